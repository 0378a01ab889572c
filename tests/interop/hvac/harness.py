"""What the checks share: the server, the list of checks, and comparisons that say what was expected and what came."""

import base64
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import hvac

CHECKS: list[tuple[str, Callable]] = []


class Mismatch(Exception):
    """A check's expectation was not met; the message says what was expected and what came."""


class Skip(Exception):
    """A check does not apply to this server; the message says why."""


def check(name: str) -> Callable:
    """Register a function of one Server as the check called name."""

    def register(function: Callable) -> Callable:
        CHECKS.append((name, function))
        return function

    return register


@dataclass
class Server:
    """The server under test and hvac's client for it."""

    client: hvac.Client
    mount: str
    has_token: bool
    upserts: bool  # encrypting with an absent key makes it, as a Vault policy with `create` allows
    denied_key: str  # a key name that this client may not use; empty: unknown
    oaep_hash: str  # SHA1 or SHA256: what the wrapping key takes
    made: list[str] = field(default_factory=list)

    @staticmethod
    def from_environment() -> "Server":
        """Read STRONGROOM_ADDR, _CA, _CERT, _KEY, _MOUNT and the optional _TOKEN, _UPSERTS, _DENIED_KEY, _OAEP_HASH."""
        missing = [name for name in ("ADDR", "CA", "CERT", "KEY", "MOUNT") if not os.environ.get(f"STRONGROOM_{name}")]
        if missing:
            raise SystemExit("not set: " + ", ".join(f"STRONGROOM_{name}" for name in missing))
        for name in [name for name in os.environ if name.startswith("VAULT_")]:
            del os.environ[name]  # a developer's own shell must not decide what is tested
        environment = os.environ
        token = environment.get("STRONGROOM_TOKEN")
        client = hvac.Client(
            url=environment["STRONGROOM_ADDR"],
            token=token,
            cert=(environment["STRONGROOM_CERT"], environment["STRONGROOM_KEY"]),
            verify=environment["STRONGROOM_CA"],
            timeout=60,
        )
        if not token:
            client.token = None  # hvac falls back to ~/.vault-token
        return Server(
            client=client,
            mount=environment["STRONGROOM_MOUNT"].strip("/"),
            has_token=bool(token),
            upserts=environment.get("STRONGROOM_UPSERTS") == "1",
            denied_key=environment.get("STRONGROOM_DENIED_KEY", ""),
            oaep_hash=environment.get("STRONGROOM_OAEP_HASH", "SHA256"),
        )

    @property
    def transit(self) -> hvac.api.secrets_engines.Transit:
        """hvac's transit functions."""
        return self.client.secrets.transit

    def name(self) -> str:
        """A key name that no key has; deleted at the end if one has it then."""
        name = f"interop-hvac-{secrets.token_hex(6)}"
        self.made.append(name)
        return name

    def key(self, **options) -> str:
        """Make an aes256-gcm96 key and return its name."""
        name = self.name()
        self.transit.create_key(name, key_type="aes256-gcm96", mount_point=self.mount, **options)
        return name

    def read(self, name: str) -> dict:
        """A key's description: the `data` of the answer."""
        return self.transit.read_key(name, mount_point=self.mount)["data"]

    def encrypt(self, name: str, plaintext: bytes, **options) -> str:
        """The ciphertext of plaintext."""
        return self.transit.encrypt_data(name, plaintext=b64(plaintext), mount_point=self.mount, **options)["data"]["ciphertext"]

    def decrypt(self, name: str, ciphertext: str, **options) -> bytes:
        """The plaintext of ciphertext."""
        answer = self.transit.decrypt_data(name, ciphertext=ciphertext, mount_point=self.mount, **options)
        return base64.b64decode(answer["data"]["plaintext"], validate=True)

    def write(self, path: str, data: dict):
        """POST data to a path below the mount."""
        return self.client.write_data(f"{self.mount}/{path}", data=data)

    def delete_made_keys(self) -> None:
        """Delete what the checks made and did not delete themselves."""
        for name in self.made:
            try:
                self.transit.update_key_configuration(name, deletion_allowed=True, mount_point=self.mount)
                self.transit.delete_key(name, mount_point=self.mount)
            except hvac.exceptions.VaultError:
                continue  # deleted by its check, or never made


def b64(data: bytes) -> str:
    """Standard base64 with padding, as Vault wants it."""
    return base64.b64encode(data).decode()


def equal(what: str, expected, got) -> None:
    """Fail unless got is expected, of the same type (1 is not True)."""
    if type(expected) is not type(got) or expected != got:
        raise Mismatch(f"{what}: expected {expected!r}, got {got!r}")


def holds(what: str, condition: bool, got) -> None:
    """Fail unless condition is true."""
    if not condition:
        raise Mismatch(f"{what}: got {got!r}")


@contextmanager
def refused(what: str, error: type[Exception], *messages: str) -> Iterator[None]:
    """Fail unless the block raises exactly error; where messages are given, the server's `errors` must be these."""
    try:
        yield
    except error as raised:
        if type(raised) is not error:
            raise Mismatch(f"{what}: expected {error.__name__}, got {type(raised).__name__}: {raised}") from raised
        if messages and (raised.errors or []) != list(messages):
            raise Mismatch(f"{what}: expected errors {list(messages)}, got {raised.errors} ({raised.text!r})") from raised
    except hvac.exceptions.VaultError as raised:
        raise Mismatch(f"{what}: expected {error.__name__} {list(messages)}, got {type(raised).__name__}: {raised}") from raised
    else:
        raise Mismatch(f"{what}: expected {error.__name__} {list(messages)}, got an answer")
