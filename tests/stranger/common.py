"""What the programs of the stranger's kit share: docs/json.md, and keys and signatures as all formats have them.

Needs Python 3.11 and the package `cryptography`.
"""

import base64
import binascii
import json
import re
import sys

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
DEEPEST = 127


class Invalid(Exception):
    """What is wrong."""


def need(condition, what):
    if not condition:
        raise Invalid(what)


def parse(raw):
    """An object of strict JSON, from its bytes."""
    need(raw[:1] == b"{" and raw[-1:] == b"}", "not an object from its first byte to its last")

    def once(pairs):
        names = [name for name, _ in pairs]
        need(len(names) == len(set(names)), "a member stands there twice")
        return dict(pairs)

    def integer(text):
        need(text != "-0" and len(text) <= 20, f"{text} is not a number here")
        value = int(text)
        need(-(2**63) <= value < 2**64, f"{text} is not a number here")
        return value

    def no(text):
        raise Invalid(f"{text} is not a number here")

    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=once, parse_int=integer, parse_float=no, parse_constant=no
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Invalid(f"not JSON ({error})") from error
    look_through(value)
    return value


def look_through(value):
    """Depth and surrogates."""
    todo = [(value, 1)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, str):
            need(not re.search("[\ud800-\udfff]", value), "half a surrogate pair")
        elif isinstance(value, (dict, list)):
            need(depth <= DEEPEST, "nested too deeply")
            todo += [(one, depth + 1) for one in value]
            todo += [(one, depth + 1) for one in (value.values() if isinstance(value, dict) else [])]


def members(value, types):
    """Exactly these members, each of its type (None: any)."""
    need(isinstance(value, dict), "not an object")
    need(value.keys() == types.keys(), f"members {sorted(value.keys() ^ types.keys())} are missing or too many")
    for name, kind in types.items():
        fits = kind is None or (is_integer(value[name]) if kind is int else isinstance(value[name], kind))
        need(fits, f"`{name}` is not of its type")


def is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def unhex(text, length):
    need(isinstance(text, str) and re.fullmatch(rf"[0-9a-f]{{{2 * length}}}", text, re.ASCII), f"not {length} bytes in hexadecimal")
    return bytes.fromhex(text)


def unbase64(text):
    need(isinstance(text, str), "not base64")
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("not base64") from error
    need(base64.b64encode(value).decode() == text, "not canonical base64")
    return value


def unbase64url(text):
    need(re.fullmatch(r"[A-Za-z0-9_-]*", text, re.ASCII) and len(text) % 4 != 1, "not base64url")
    value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    need(base64.urlsafe_b64encode(value).rstrip(b"=").decode() == text, "not canonical base64url")
    return value


def p256_key(spki):
    """A public key on P-256, from its SubjectPublicKeyInfo."""
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Invalid("not a public key") from error
    need(isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1), "not a key on P-256")
    need(spki_of(key) == spki, "not the canonical form of a public key")
    return key


def spki_of(key):
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def verify(key, digest, signature, what):
    """ECDSA over a digest of 32 bytes: r || s, base64."""
    raw = unbase64(signature)
    need(len(raw) == 64, f"{what} has a wrong length")
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    need(0 < r < ORDER and 0 < s < ORDER, f"{what} is out of range")
    try:
        key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature as error:
        raise Invalid(f"{what} is not one by that key") from error


def main():
    """Says of each file whether it is strict JSON: `read` or `refused`, a line each."""
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            try:
                parse(file.read())
                print("read")
            except Invalid:
                print("refused")


if __name__ == "__main__":
    main()
