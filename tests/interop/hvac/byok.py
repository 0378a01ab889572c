"""Bring your own key: hvac has no function for it, so these use its general read and write.

An imported key is a key whose bytes the test knows: what the server does with it can be checked with another implementation of the same standards.
"""

import base64
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from harness import Server, b64, check, equal, holds, refused
from hvac.exceptions import InvalidPath, VaultError

OAEP_HASHES = {"SHA1": hashes.SHA1, "SHA256": hashes.SHA256}

# A key that Vault makes is derived by HKDF; one that is imported, by the older counter mode (NIST
# SP 800-108), which seems to be an oversight.
KDFS = {
    "hkdf_sha256": lambda key, context: HKDF(hashes.SHA256(), 32, salt=None, info=context).derive(key),
    "hmac-sha256-counter": lambda key, context: hmac.digest(key, bytes(4) + context + (256).to_bytes(4), "sha256"),
}


def wrapped_for(server: Server, key: bytes) -> str:
    """Key, wrapped as Vault's documentation of `import` asks: RSA-OAEP of an ephemeral AES key, then AES-KWP (RFC 5649) of the key, in base64."""
    pem = server.client.read(f"{server.mount}/wrapping_key")["data"]["public_key"]
    wrapping_key = serialization.load_pem_public_key(pem.encode())
    holds("the wrapping key is RSA-4096", isinstance(wrapping_key, rsa.RSAPublicKey) and wrapping_key.key_size == 4096, pem)
    ephemeral = os.urandom(32)
    oaep = OAEP_HASHES[server.oaep_hash]
    sealed = wrapping_key.encrypt(ephemeral, padding.OAEP(padding.MGF1(oaep()), oaep(), None))
    return b64(sealed + aes_key_wrap_with_padding(ephemeral, key))


def imported(server: Server, key: bytes, **options) -> str:
    """Import key and return its name."""
    name = server.name()
    data = {"ciphertext": wrapped_for(server, key), "hash_function": server.oaep_hash, "type": "aes256-gcm96", **options}
    equal("status of the import", 204, server.write(f"keys/{name}/import", data).status_code)
    return name


def opened(key: bytes, ciphertext: str) -> bytes:
    """What ciphertext holds, found without the server."""
    raw = base64.b64decode(ciphertext.rsplit(":", 1)[1], validate=True)
    return AESGCM(key).decrypt(raw[:12], raw[12:], None)


@check("import: the server encrypts and decrypts with the very key")
def import_key(server: Server) -> None:
    key = os.urandom(32)
    name = imported(server, key)
    data = server.read(name)
    equal("imported_key", True, data["imported_key"])
    equal("imported_key_allow_rotation", False, data["imported_key_allow_rotation"])
    equal("latest_version", 1, data["latest_version"])
    equal("the server's ciphertext, decrypted here", b"from the server", opened(key, server.encrypt(name, b"from the server")))
    nonce = os.urandom(12)
    ours = "vault:v1:" + b64(nonce + AESGCM(key).encrypt(nonce, b"from here", None))
    equal("our ciphertext, decrypted there", b"from here", server.decrypt(name, ours))


@check("import: a derived key is derived as its `kdf` says")
def import_derived(server: Server) -> None:
    key, context = os.urandom(32), b"tenant 1"
    name = imported(server, key, derived=True)
    kdf = server.read(name)["kdf"]
    holds("a kdf that is known", kdf in KDFS, kdf)
    equal(f"decrypted here, {kdf}", b"tenant data", opened(KDFS[kdf](key, context), server.encrypt(name, b"tenant data", context=b64(context))))


@check("import: rotation only where it was allowed, another version by import_version")
def import_rotation(server: Server) -> None:
    first, second = os.urandom(32), os.urandom(32)
    name = imported(server, first)
    with refused_somehow("rotating an imported key"):
        server.transit.rotate_key(name, mount_point=server.mount)
    data = {"ciphertext": wrapped_for(server, second), "hash_function": server.oaep_hash}
    equal("status of import_version", 204, server.write(f"keys/{name}/import_version", data).status_code)
    equal("latest_version", 2, server.read(name)["latest_version"])
    equal("decrypted with the second key", b"x", opened(second, server.encrypt(name, b"x")))
    equal("and version 1 with the first", b"x", opened(first, server.encrypt(name, b"x", key_version=1)))
    name = imported(server, first, allow_rotation=True)
    server.transit.rotate_key(name, mount_point=server.mount)
    equal("latest_version", 2, server.read(name)["latest_version"])
    with refused_somehow("import_version of a key that was not imported"):
        server.write(f"keys/{server.key()}/import_version", data)


@check("import: bad wrappings make no key")
def import_badly(server: Server) -> None:
    key = os.urandom(32)
    good = base64.b64decode(wrapped_for(server, key))
    for what, ciphertext in {
        "a flipped bit in the wrapped ephemeral key": good[:10] + bytes([good[10] ^ 1]) + good[11:],
        "a flipped bit in the wrapped key": good[:-1] + bytes([good[-1] ^ 1]),
        "nothing after the ephemeral key": good[:512],
        "cut short": good[:100],
        "a key of 16 bytes": base64.b64decode(wrapped_for(server, key[:16])),
        "a key of 33 bytes": base64.b64decode(wrapped_for(server, key + b"x")),
    }.items():
        name = server.name()
        with refused_somehow(what):
            server.write(f"keys/{name}/import", {"ciphertext": b64(ciphertext), "hash_function": server.oaep_hash})
        with refused(f"{what}: reading the key", InvalidPath):
            server.read(name)
    name = server.key()
    with refused_somehow("onto a key that exists"):
        server.write(f"keys/{name}/import", {"ciphertext": b64(good), "hash_function": server.oaep_hash})
    equal("it is as it was", False, server.read(name)["imported_key"])
    name = server.name()
    with refused_somehow("an unknown hash function"):
        server.write(f"keys/{name}/import", {"ciphertext": b64(good), "hash_function": "MD5"})


@contextmanager
def refused_somehow(what: str) -> Iterator[None]:
    """Fail unless the block raises: Vault answers 500 to a bad import, which is a client's error, and Strongroom may say 400."""
    try:
        yield
    except VaultError:
        return
    holds(f"{what}: expected a refusal", False, "an answer")
