"""Keys: create, read, list, configure, rotate, trim, delete; then sys/ and auth/token/."""

import contextlib
import time

from harness import Server, Skip, check, equal, holds, refused
from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, UnexpectedError

# What Vault 1.14 says of a new aes256-gcm96 key, apart from `name` and `keys`.
NEW_KEY = {
    "type": "aes256-gcm96",
    "derived": False,
    "deletion_allowed": False,
    "exportable": False,
    "allow_plaintext_backup": False,
    "imported_key": False,
    "min_available_version": 0,
    "min_decryption_version": 1,
    "min_encryption_version": 0,
    "latest_version": 1,
    "auto_rotate_period": 7_776_000,  # 90 days; Vault's own default is 0
    "supports_encryption": True,
    "supports_decryption": True,
    "supports_signing": False,
    "supports_derivation": True,
}


@check("keys: create and read")
def create_and_read(server: Server) -> None:
    name = server.key()
    data = server.read(name)
    equal("name", name, data["name"])
    for member, value in NEW_KEY.items():
        holds(f"`{member}` is in the answer", member in data, sorted(data))
        equal(member, value, data[member])
    equal("versions", ["1"], list(data["keys"]))
    holds("keys.1 is the time of creation", abs(data["keys"]["1"] - time.time()) < 300, data["keys"]["1"])


@check("keys: creating a key again changes nothing")
def create_again(server: Server) -> None:
    name = server.key()
    server.transit.rotate_key(name, mount_point=server.mount)
    server.transit.create_key(name, mount_point=server.mount)
    # Vault takes what contradicts the key with a warning, and changes nothing; Strongroom says so.
    with contextlib.suppress(InvalidRequest):
        server.transit.create_key(name, derived=True, mount_point=server.mount)
    data = server.read(name)
    equal("latest_version", 2, data["latest_version"])
    equal("derived", False, data["derived"])


@check("keys: derived and convergent")
def create_derived(server: Server) -> None:
    data = server.read(server.key(derived=True))
    equal("derived", True, data["derived"])
    equal("kdf", "hkdf_sha256", data["kdf"])
    equal("convergent_encryption", False, data["convergent_encryption"])
    data = server.read(server.key(derived=True, convergent_encryption=True))
    equal("convergent_encryption", True, data["convergent_encryption"])
    equal("convergent_encryption_version", -1, data["convergent_encryption_version"])


@check("keys: create with bad parameters")
def create_badly(server: Server) -> None:
    path = f"keys/{server.name()}"
    with refused("convergent, not derived", InvalidRequest, "convergent encryption requires derivation to be enabled"):
        server.write(path, {"convergent_encryption": True})
    with refused("unknown type", InvalidRequest, "unknown key type aes257-gcm96"):
        server.write(path, {"type": "aes257-gcm96"})
    with refused("rotation every minute", InvalidRequest, "auto rotate period must be 0 to disable or at least an hour"):
        server.write(path, {"auto_rotate_period": "1m"})
    with refused("and none was made", InvalidPath):
        server.client.secrets.transit.read_key(path.removeprefix("keys/"), mount_point=server.mount)


@check("keys: list, with LIST and with ?list=true")
def list_keys(server: Server) -> None:
    made = sorted([server.key(), server.key()])
    listed = server.transit.list_keys(mount_point=server.mount)["data"]["keys"]
    holds("both keys are listed", set(made) <= set(listed), listed)
    equal("the list is sorted", sorted(listed), listed)
    answer = server.client.adapter.get(f"/v1/{server.mount}/keys", params={"list": "true"})
    equal("the list by ?list=true", listed, answer["data"]["keys"])


@check("keys: configure")
def configure(server: Server) -> None:
    name = server.key()
    for _ in range(3):
        server.transit.rotate_key(name, mount_point=server.mount)
    server.transit.update_key_configuration(name, min_decryption_version=2, min_encryption_version=3, deletion_allowed=True, mount_point=server.mount)
    server.transit.update_key_configuration(name, auto_rotate_period="48h", mount_point=server.mount)
    data = server.read(name)
    equal("min_decryption_version", 2, data["min_decryption_version"])
    equal("min_encryption_version", 3, data["min_encryption_version"])
    equal("deletion_allowed", True, data["deletion_allowed"])
    equal("auto_rotate_period", 172800, data["auto_rotate_period"])
    equal("listed versions start at min_decryption_version", ["2", "3", "4"], sorted(data["keys"]))
    server.transit.update_key_configuration(name, min_decryption_version=1, deletion_allowed=False, mount_point=server.mount)
    data = server.read(name)
    equal("an old version is back", ["1", "2", "3", "4"], sorted(data["keys"]))
    equal("deletion_allowed", False, data["deletion_allowed"])
    equal("min_encryption_version is left alone", 3, data["min_encryption_version"])


@check("keys: configure badly")
def configure_badly(server: Server) -> None:
    name = server.key()
    server.transit.rotate_key(name, mount_point=server.mount)
    before = server.read(name)
    for data, message in [
        ({"min_decryption_version": 3}, "cannot set min decryption version of 3, latest key version is 2"),
        ({"min_decryption_version": -1}, "min decryption version cannot be negative"),
        ({"min_encryption_version": 3}, "cannot set min encryption version of 3, latest key version is 2"),
        ({"min_encryption_version": -1}, "min encryption version cannot be negative"),
        (
            {"min_decryption_version": 2, "min_encryption_version": 1},
            "cannot set min encryption/decryption values; min encryption version of 1 must be greater than or equal to min decryption version of 2",
        ),
        ({"auto_rotate_period": 60}, "auto rotate period must be 0 to disable or at least an hour"),
    ]:
        with refused(str(data), InvalidRequest, message):
            server.write(f"keys/{name}/config", data)
    equal("a refused configuration changes nothing", before, server.read(name))
    absent = server.name()
    with refused("no such key", InvalidRequest, f"no existing key named {absent} could be found"):
        server.transit.update_key_configuration(absent, deletion_allowed=True, mount_point=server.mount)


@check("keys: rotate")
def rotate(server: Server) -> None:
    name = server.key()
    old = server.encrypt(name, b"old")
    server.transit.rotate_key(name, mount_point=server.mount)
    data = server.read(name)
    equal("latest_version", 2, data["latest_version"])
    equal("versions", ["1", "2"], sorted(data["keys"]))
    holds("what is encrypted now has version 2", server.encrypt(name, b"new").startswith("vault:v2:"), server.encrypt(name, b"new"))
    equal("what version 1 encrypted", b"old", server.decrypt(name, old))
    with refused("no such key", InvalidRequest, "key not found"):
        server.transit.rotate_key(server.name(), mount_point=server.mount)


@check("keys: trim")
def trim(server: Server) -> None:
    name = server.key()
    old = server.encrypt(name, b"old")
    for _ in range(3):
        server.transit.rotate_key(name, mount_point=server.mount)
    with refused("no min_encryption_version", InvalidRequest, "minimum available version cannot be set when minimum encryption version is not set"):
        server.transit.trim_key(name, 2, mount_point=server.mount)
    server.transit.update_key_configuration(name, min_decryption_version=2, min_encryption_version=3, mount_point=server.mount)
    for version, message in [
        (4, "minimum available version cannot be greater than minmum encryption version"),
        (3, "minimum available version cannot be greater than minimum decryption version"),
        (0, "minimum available version should be positive"),
    ]:
        with refused(f"trim to {version}", InvalidRequest, message):
            server.transit.trim_key(name, version, mount_point=server.mount)
    server.transit.trim_key(name, 2, mount_point=server.mount)
    data = server.read(name)
    equal("min_available_version", 2, data["min_available_version"])
    with refused("trim back", InvalidRequest, "minimum available version cannot be decremented"):
        server.transit.trim_key(name, 1, mount_point=server.mount)
    with refused("min_decryption_version below it", InvalidRequest, "min decryption version should not be less then min available version"):
        server.transit.update_key_configuration(name, min_decryption_version=1, mount_point=server.mount)
    with refused("what the trimmed version encrypted", InvalidRequest, "ciphertext or signature version is disallowed by policy (too old)"):
        server.decrypt(name, old)
    with refused("no such key", InvalidRequest, "invalid key name"):
        server.transit.trim_key(server.name(), 1, mount_point=server.mount)


@check("keys: delete")
def delete(server: Server) -> None:
    name = server.key()
    old = server.encrypt(name, b"gone")
    with refused("not allowed yet", InvalidRequest, f"error deleting policy {name}: deletion is not allowed for this key"):
        server.transit.delete_key(name, mount_point=server.mount)
    server.transit.update_key_configuration(name, deletion_allowed=True, mount_point=server.mount)
    equal("status", 204, server.transit.delete_key(name, mount_point=server.mount).status_code)
    with refused("reading it", InvalidPath):
        server.read(name)
    with refused("decrypting with it", InvalidRequest, "encryption key not found"):
        server.decrypt(name, old)
    with refused("deleting it again", InvalidRequest, f"error deleting policy {name}: could not delete key; not found"):
        server.transit.delete_key(name, mount_point=server.mount)
    server.transit.create_key(name, mount_point=server.mount)
    equal("a key of the same name starts again", 1, server.read(name)["latest_version"])
    with refused("and is another key", InvalidRequest, "cipher: message authentication failed"):
        server.decrypt(name, old)


@check("paths: unknown path 404, unsupported operation 405, both in Vault's shape")
def paths(server: Server) -> None:
    with refused("reading a key that is not there", InvalidPath):
        server.read(server.name())
    answer = server.client.adapter.request("get", f"/v1/{server.mount}/keys/{server.name()}", raise_exception=False)
    equal("its body", {"errors": []}, answer.json())
    with refused("an unknown path", InvalidPath):
        server.write("no-such-path", {})
    for method, path in [("delete", f"encrypt/{server.key()}"), ("get", "random"), ("post", "wrapping_key")]:
        answer = server.client.adapter.request(method, f"/v1/{server.mount}/{path}", raise_exception=False)
        equal(f"status of {method} {path}", 405, answer.status_code)
        holds(f"errors of {method} {path}", any("unsupported operation" in text for text in answer.json()["errors"]), answer.text)
    with refused("hvac's name for a 405", UnexpectedError):
        server.client.adapter.delete(f"/v1/{server.mount}/encrypt/{server.made[-1]}")


@check("paths: bodies that are no JSON object")
def bodies(server: Server) -> None:
    for body in ("{", "[]", '"text"', '{"bits": 256', "\x00"):
        answer = server.client.adapter.request("post", f"/v1/{server.mount}/random", data=body, raise_exception=False)
        equal(f"status of {body!r}", 400, answer.status_code)
        equal(f"errors of {body!r}", ["error parsing JSON"], answer.json()["errors"])


@check("policy: a key that this client may not use")
def denied(server: Server) -> None:
    if not server.denied_key:
        raise Skip("STRONGROOM_DENIED_KEY is not set")
    name = server.denied_key
    for what, call in {
        "read": lambda: server.read(name),
        "create": lambda: server.transit.create_key(name, mount_point=server.mount),
        "rotate": lambda: server.transit.rotate_key(name, mount_point=server.mount),
        "encrypt": lambda: server.encrypt(name, b"no"),
        "decrypt": lambda: server.decrypt(name, "vault:v1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        "delete": lambda: server.transit.delete_key(name, mount_point=server.mount),
    }.items():
        with refused(what, Forbidden):
            call()


@check("sys: health and seal status")
def sys_status(server: Server) -> None:
    health = server.client.sys.read_health_status(method="GET")
    health = health if isinstance(health, dict) else health.json()
    for member, value in {"initialized": True, "sealed": False, "standby": False}.items():
        equal(f"health.{member}", value, health[member])
    holds("health.version is text", isinstance(health["version"], str), health["version"])
    holds("health.server_time_utc is now", abs(health["server_time_utc"] - time.time()) < 300, health["server_time_utc"])
    equal("status of HEAD", 200, server.client.sys.read_health_status(method="HEAD").status_code)
    equal("is_sealed", False, server.client.sys.is_sealed())
    status = server.client.sys.read_seal_status()
    for member, kind in {"type": str, "initialized": bool, "sealed": bool, "t": int, "n": int, "progress": int, "version": str}.items():
        holds(f"seal-status.{member} is {kind.__name__}", isinstance(status[member], kind), status)


@check("auth/token: lookup-self and renew-self")
def token(server: Server) -> None:
    if not server.has_token:
        raise Skip("STRONGROOM_TOKEN is not set")
    data = server.client.auth.token.lookup_self()["data"]
    equal("id", server.client.token, data["id"])
    for member, kinds in {"policies": list, "display_name": str, "ttl": int, "creation_time": int, "orphan": bool, "path": str, "type": str}.items():
        holds(f"lookup-self {member} is {kinds.__name__}", isinstance(data[member], kinds), data)
    holds("is_authenticated", server.client.is_authenticated(), False)
    auth = server.client.auth.token.renew_self()["auth"]
    equal("client_token", server.client.token, auth["client_token"])
    for member, kinds in {"policies": list, "lease_duration": int, "renewable": bool}.items():
        holds(f"renew-self {member} is {kinds.__name__}", isinstance(auth[member], kinds), auth)
