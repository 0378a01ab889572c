#!/usr/bin/env python3
"""A real Vault server, sealed by a Strongroom server, through everything that happens to it in a year.

Initialise, write a secret, restart: unsealed by itself. Strongroom gone: Vault stays sealed, and comes up when Strongroom returns. The key is
rotated: the recovery key is rekeyed, the root key too, and what Vault has stored is sealed anew. The secret is read back after each.

Environment: VAULT_BIN (from build.sh), STRONGROOM_ADDR, _CA, _CERT, _KEY, _MOUNT, _KEY_NAME; STRONGROOM_STOP_CMD and STRONGROOM_START_CMD, shell
commands that stop and start the server and return when it has stopped or answers; optionally STRONGROOM_ROTATE_CMD (otherwise the key is rotated
over HTTP) and STRONGROOM_TOKEN. One line per step; the exit code is 1 if one failed, and Vault's log is then shown. Only the standard library.
"""

import atexit
import base64
import ctypes
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

# Vault tries to unseal every 5 s (command/server.go, runUnseal); a process supervisor would start
# it again after about as long.
RETRY_EVERY = 5
SUPERVISOR_PAUSE = 2
PATIENCE = 60

SECRET = {"password": secrets.token_hex(16)}


class Failed(Exception):
    """A step went otherwise than expected; the message says what was expected and what came."""


def main() -> int:
    """Run the whole scenario."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the clean-up below runs
    settings = Settings()
    directory = Path(tempfile.mkdtemp(prefix="strongroom-vault-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    vault = Vault(settings, directory)
    atexit.register(vault.kill)
    try:
        run(settings, Strongroom(settings), vault)
    except Failed as failure:
        print(f"FAIL  {failure}\n--- the end of Vault's log\n{vault.log_end()}", flush=True)
        return 1
    return 0


def run(settings: "Settings", strongroom: "Strongroom", vault: "Vault") -> None:
    """The steps, in order; raises Failed at the first that goes wrong."""
    vault.start()
    vault.wait_for("sealed")
    recovery_key = vault.initialise()
    vault.wait_for("unsealed")
    # `type` is of no use: Vault 1.14 names there how the recovery key is split ("shamir").
    expect("recovery_seal", True, vault.seal_status()["recovery_seal"])
    ok("initialised: the root key is sealed by Strongroom, no unseal key is given out")
    vault.cli("secrets", "enable", "-path=kv", "-version=2", "kv")
    vault.cli("kv", "put", "-mount=kv", "app", *(f"{name}={value}" for name, value in SECRET.items()))
    vault.expect_secret()
    ok("a secret is written and read")

    vault.stop()
    vault.start()
    took = vault.wait_for("unsealed")
    vault.expect_secret()
    ok(f"restarted: unsealed by itself in {took:.1f} s, the secret is there")

    strongroom.stop()
    vault.expect_secret()
    ok("Strongroom is down: a Vault that is unsealed goes on serving")
    vault.stop()
    vault.start()
    code = vault.wait_for_exit()
    expect("a Vault that starts with Strongroom down ends with an error", True, code != 0)
    expect("what it says", True, "Error parsing Seal configuration" in vault.log_end())
    ok(f"started with Strongroom down: Vault ends with exit code {code}, sealed")
    for _ in range(2):
        time.sleep(SUPERVISOR_PAUSE)
        vault.start()
        vault.wait_for_exit()
    strongroom.start()
    took = vault.wait_for("unsealed", supervised=True)
    vault.expect_secret()
    ok(f"Strongroom is back: Vault, restarted by its supervisor, is unsealed {took:.1f} s later")

    first = vault.sealed_with()
    expect("both of Vault's sealed values have one key version", first["root key"], first["recovery key"])
    strongroom.rotate()
    vault.expect_secret()
    expect("a rotation alone changes nothing that Vault has stored", first, vault.sealed_with())
    recovery_key = vault.rekey_recovery(recovery_key)
    second = vault.sealed_with()
    expect("`operator rekey -target=recovery` seals the recovery key with the new version", first["recovery key"] + 1, second["recovery key"])
    expect("and leaves the root key", first["root key"], second["root key"])
    ok(f"key rotated, recovery key rekeyed: sealed with v{second['recovery key']} instead of v{first['recovery key']}")
    vault.rekey_root(recovery_key)
    third = vault.sealed_with()
    expect("`operator rekey` seals a new root key with the new version", first["root key"] + 1, third["root key"])
    vault.expect_secret()
    ok(f"root key rekeyed: sealed with v{third['root key']}")

    strongroom.rotate()
    latest = third["root key"] + 1
    vault.stop()
    vault.start()
    vault.wait_for("unsealed")
    vault.wait_for_rewrap({"root key": latest, "recovery key": latest})
    vault.expect_secret()
    ok(f"key rotated, Vault restarted: it sealed both values again by itself, with v{latest}")

    strongroom.configure(min_decryption_version=latest, min_encryption_version=latest)
    vault.stop()
    vault.start()
    vault.wait_for("unsealed")
    vault.expect_secret()
    ok(f"versions below v{latest} are forbidden: Vault unseals, nothing needs them any more")

    strongroom.rotate()
    vault.stop()
    strongroom.configure(min_decryption_version=latest + 1, min_encryption_version=latest + 1)
    vault.start()
    vault.wait_for("sealed")
    time.sleep(2 * RETRY_EVERY + 1)
    expect("its state while Strongroom refuses to unwrap", "sealed", vault.state())
    strongroom.configure(min_decryption_version=latest)
    took = vault.wait_for("unsealed")
    vault.expect_secret()
    ok(f"Strongroom refuses the old version: Vault stays sealed and keeps trying; allowed again, it is unsealed {took:.1f} s later, without a restart")

    vault.cli("operator", "seal")
    vault.wait_for("sealed")
    vault.stop()
    vault.start()
    vault.wait_for("unsealed")
    vault.new_root_token(recovery_key)
    vault.expect_secret()
    ok("sealed by hand, restarted; the rekeyed recovery key makes a new root token, which reads the secret")
    strongroom.configure(min_decryption_version=1, min_encryption_version=0)


class Settings:
    """The environment's settings, complete."""

    def __init__(self) -> None:
        names = ["VAULT_BIN", "STRONGROOM_STOP_CMD", "STRONGROOM_START_CMD"]
        names += [f"STRONGROOM_{name}" for name in ("ADDR", "CA", "CERT", "KEY", "MOUNT", "KEY_NAME")]
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise SystemExit("not set: " + ", ".join(missing))
        environment = os.environ
        self.vault_bin = environment["VAULT_BIN"]
        self.stop_command = environment["STRONGROOM_STOP_CMD"]
        self.start_command = environment["STRONGROOM_START_CMD"]
        self.rotate_command = environment.get("STRONGROOM_ROTATE_CMD")
        self.address = environment["STRONGROOM_ADDR"]
        self.ca, self.cert, self.key = (environment[f"STRONGROOM_{name}"] for name in ("CA", "CERT", "KEY"))
        self.mount = environment["STRONGROOM_MOUNT"].strip("/")
        self.key_name = environment["STRONGROOM_KEY_NAME"]
        self.token = environment.get("STRONGROOM_TOKEN")


class Strongroom:
    """The server that seals: stopped and started by the caller's commands, its key managed over Transit's HTTP."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def stop(self) -> None:
        """Stop the server."""
        shell("STRONGROOM_STOP_CMD", self.settings.stop_command)

    def start(self) -> None:
        """Start the server."""
        shell("STRONGROOM_START_CMD", self.settings.start_command)

    def rotate(self) -> None:
        """Make a new version of the key."""
        if self.settings.rotate_command:
            shell("STRONGROOM_ROTATE_CMD", self.settings.rotate_command)
        else:
            self.post("rotate", {})

    def configure(self, **options: int) -> None:
        """Set options of the key, such as min_decryption_version."""
        self.post("config", options)

    def post(self, operation: str, body: dict) -> None:
        """POST to keys/<key>/<operation>, with the client certificate."""
        context = ssl.create_default_context(cafile=self.settings.ca)
        context.load_cert_chain(self.settings.cert, self.settings.key)
        connection = http.client.HTTPSConnection(urllib.parse.urlsplit(self.settings.address).netloc, context=context, timeout=30)
        headers = {"X-Vault-Token": self.settings.token} if self.settings.token else {}
        try:
            connection.request("POST", f"/v1/{self.settings.mount}/keys/{self.settings.key_name}/{operation}", json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        finally:
            connection.close()
        if answer.status not in (200, 204):
            raise Failed(f"{operation} of key {self.settings.key_name}: expected status 200 or 204, got {answer.status}: {text}")


class Vault:
    """A Vault server in a directory of its own, on free ports of 127.0.0.1."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.directory = directory
        self.process: subprocess.Popen | None = None
        self.root_token = ""
        port, cluster_port = free_port(), free_port()
        self.address = f"http://127.0.0.1:{port}"
        token = f"  token = {json.dumps(settings.token)}\n" if settings.token else ""
        config = f"""
storage "file" {{
  path = {json.dumps(str(directory / "data"))}
}}
listener "tcp" {{
  address         = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster_port}"
  tls_disable     = true
}}
seal "transit" {{
  address         = {json.dumps(settings.address)}
  mount_path      = {json.dumps(settings.mount + "/")}
  key_name        = {json.dumps(settings.key_name)}
  tls_ca_cert     = {json.dumps(settings.ca)}
  tls_client_cert = {json.dumps(settings.cert)}
  tls_client_key  = {json.dumps(settings.key)}
{token}}}
api_addr      = "{self.address}"
disable_mlock = true
ui            = false
"""
        self.config = directory / "vault.hcl"
        self.config.touch(mode=0o600)
        self.config.write_text(config)
        self.log = directory / "vault.log"

    # --- the process

    def start(self) -> None:
        """Start the server, without waiting for anything."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.settings.vault_bin, "server", f"-config={self.config}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                preexec_fn=die_with_parent,
            )

    def stop(self) -> None:
        """Stop the server as systemd would."""
        assert self.process
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"stopping Vault: expected it to end within {PATIENCE} s of SIGTERM, it did not") from None

    def kill(self) -> None:
        """End the server whatever it does."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def wait_for_exit(self) -> int:
        """Wait until the server ends by itself, which it must do without having been unsealed; its exit code."""
        assert self.process
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if (code := self.process.poll()) is not None:
                return code
            expect("not unsealed", True, self.state() != "unsealed")
            time.sleep(0.1)
        raise Failed(f"expected Vault to end within {PATIENCE} s, it did not")

    def log_end(self) -> str:
        """The last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:]) if self.log.exists() else ""

    # --- what it says of itself

    def seal_status(self) -> dict:
        """sys/seal-status."""
        with urllib.request.urlopen(f"{self.address}/v1/sys/seal-status", timeout=10) as answer:
            return json.load(answer)

    def state(self) -> str:
        """down, sealed or unsealed."""
        try:
            return "sealed" if self.seal_status()["sealed"] else "unsealed"
        except OSError:
            return "down"

    def wait_for(self, state: str, *, supervised: bool = False) -> float:
        """Wait until the server is in a state; the seconds that it took. Supervised: one that ends is started again, as by systemd's Restart=."""
        start = time.monotonic()
        while (now := self.state()) != state:
            if time.monotonic() - start > PATIENCE:
                raise Failed(f"expected Vault to be {state} within {PATIENCE} s, it is {now}")
            if self.process and self.process.poll() is not None:
                if not supervised:
                    raise Failed(f"expected Vault to be {state}, it ended with exit code {self.process.returncode}")
                time.sleep(SUPERVISOR_PAUSE)
                self.start()
            time.sleep(0.1)
        return time.monotonic() - start

    def sealed_with(self) -> dict[str, int]:
        """The key version that each of Vault's sealed values is sealed with, read from its storage."""
        versions = {}
        for name, path in {"root key": "core/hsm/_barrier-unseal-keys", "recovery key": "core/_recovery-key"}.items():
            stored = json.loads((self.directory / "data" / path).read_text())
            value = base64.b64decode(stored["Value"])
            found = re.search(rb"vault:v(\d+):", value)
            if not found:
                raise Failed(f"the stored {name}: expected a transit ciphertext in it, got {len(value)} bytes without one")
            versions[name] = int(found[1])
        return versions

    def wait_for_rewrap(self, expected: dict[str, int]) -> None:
        """Wait until Vault, just unsealed, has sealed its stored values again."""
        end = time.monotonic() + PATIENCE
        while (versions := self.sealed_with()) != expected:
            if time.monotonic() > end:
                raise Failed(f"expected Vault to seal its values with {expected} when it is unsealed, got {versions}")
            time.sleep(0.1)

    # --- what an operator does

    def cli(self, *arguments: str) -> dict:
        """Run vault's command line; its JSON answer, if any."""
        environment = clean_environment() | {"VAULT_ADDR": self.address, "VAULT_TOKEN": self.root_token, "VAULT_FORMAT": "json", "HOME": str(self.directory)}
        done = subprocess.run([self.settings.vault_bin, *arguments], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        shown = " ".join(arguments[:3])
        if done.returncode != 0:
            raise Failed(f"vault {shown}: expected exit code 0, got {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        try:
            return json.loads(done.stdout)
        except ValueError:
            return {}

    def initialise(self) -> str:
        """`operator init`; the recovery key."""
        answer = self.cli("operator", "init", "-recovery-shares=1", "-recovery-threshold=1")
        expect("unseal keys of a Vault that Strongroom unseals", [], answer["unseal_keys_b64"])
        self.root_token = answer["root_token"]
        return answer["recovery_keys_b64"][0]

    def rekey_recovery(self, recovery_key: str) -> str:
        """`operator rekey -target=recovery`; the new recovery key."""
        started = self.cli("operator", "rekey", "-target=recovery", "-init", "-key-shares=1", "-key-threshold=1")
        answer = self.cli("operator", "rekey", "-target=recovery", f"-nonce={started['nonce']}", recovery_key)
        expect("number of new recovery keys", 1, len(answer["keys_base64"]))
        return answer["keys_base64"][0]

    def rekey_root(self, recovery_key: str) -> None:
        """`operator rekey`: a new root key, authorised by the recovery key."""
        started = self.cli("operator", "rekey", "-init", "-key-shares=1", "-key-threshold=1")
        self.cli("operator", "rekey", f"-nonce={started['nonce']}", recovery_key)

    def new_root_token(self, recovery_key: str) -> None:
        """`operator generate-root`, authorised by the recovery key; used from now on."""
        otp = self.cli("operator", "generate-root", "-generate-otp").get("otp", "")
        started = self.cli("operator", "generate-root", "-init", f"-otp={otp}")
        done = self.cli("operator", "generate-root", f"-nonce={started['nonce']}", recovery_key)
        encoded = done["encoded_root_token"]
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
        self.root_token = bytes(a ^ b for a, b in zip(raw, otp.encode(), strict=True)).decode()

    def expect_secret(self) -> None:
        """Read the secret back."""
        expect("the secret", SECRET, self.cli("kv", "get", "-mount=kv", "app")["data"]["data"])


def ok(what: str) -> None:
    """Report a step that went well."""
    print(f"ok    {what}", flush=True)


def expect(what: str, expected: object, got: object) -> None:
    """Raise Failed unless got is expected."""
    if expected != got:
        raise Failed(f"{what}: expected {expected!r}, got {got!r}")


def shell(name: str, command: str) -> None:
    """Run one of the caller's commands."""
    done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False)
    if done.returncode != 0:
        raise Failed(f"{name}: expected exit code 0, got {done.returncode} from {command!r}")


def clean_environment() -> dict[str, str]:
    """This program's environment less what would configure a Vault or its seal: only the configuration file does."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("VAULT_", "TRANSIT_", "STRONGROOM_"))}


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a child: be killed when this program is, however it ends (Linux, prctl(2))."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
