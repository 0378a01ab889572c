#!/usr/bin/env python3
"""Gets both secrets back from custodians' shares: a second implementation, from docs/share-format.md alone.

    shares.py TRANSCRIPT [--transport] SHARE...

SHARE is one of

    --jwe FILE --key KEY_FILE --passphrase-file FILE     an encrypted share, and its custodian's key
    --words FILE                                         a share from paper (needs --word-list: BIP-39's English one)

Prints one JSON object with `so` and `user`, base64, and exits with 0; or says of each share why it is refused, and exits with 1 if
too few are left. It does not verify the transcript: transcript.py does. Needs Python 3.11 and the package `cryptography`.
"""

import argparse
import base64
import hashlib
import json
import pathlib
import re
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common import Invalid, is_integer, members, need, parse, spki_of, unbase64, unbase64url, unhex

LONGEST_JWE = 65536
WORD_LIST = "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"
SPACE = " \t\n\f\r"
SECRETS = ("so", "user")


class Deal:
    """What every share in force has in common, from a transcript."""

    def __init__(self, transcript, transport=False):
        lines = [parse(line) for line in transcript.split(b"\n")[:-1]]
        outputs = {line["step"]: line["outputs"] for line in lines if line["type"] == "done"}
        self.mode = lines[0]["mode"]
        self.ceremony_id = lines[0]["ceremony_id"]
        if transport:
            record = outputs["transport"]
        elif "pins" in outputs:
            record = outputs["pins"]
        else:
            record = outputs["opening"]["shares"]
            self.ceremony_id = record["ceremony_id"]
        self.threshold = record["threshold"]
        self.commitments = {one["index"]: one for one in record["commitments"]}
        self.taken = {}

    def take(self, share):
        """Takes one share, or says why not."""
        need(share["mode"] == self.mode, f"of a {share['mode']}, not of a {self.mode}")
        need(share["ceremony_id"] == self.ceremony_id, "of another ceremony")
        index = share["index"]
        dealt = self.commitments.get(index)
        need(dealt and share.get("custodian") in (None, dealt["custodian"]), "of nobody in the plan")
        need(index not in self.taken, "there already")
        for secret in SECRETS:
            salt, values = share[secret]
            commitment = hashlib.sha256(salt + bytes([index]) + values).hexdigest()
            need(commitment == dealt[secret], f"not the one that was dealt ({secret})")
        need(share["threshold"] == self.threshold, "not the one that was dealt (threshold)")
        self.taken[index] = share

    def secrets(self):
        need(len(self.taken) >= self.threshold, f"{len(self.taken)} shares, and {self.threshold} are needed")
        shares = dict(list(self.taken.items())[: self.threshold])
        return {secret: combine({index: share[secret][1] for index, share in shares.items()}) for secret in SECRETS}


def combine(values):
    """The secret, from the values of as many polynomials at as many places as are needed."""
    need(len({len(one) for one in values.values()}) == 1, "shares of different lengths")
    factors = {}
    for at in values:
        factors[at] = 1
        for other in values:
            if other != at:
                factors[at] = multiply(factors[at], multiply(other, invert(other ^ at)))
    secret = bytearray(len(next(iter(values.values()))))
    for at, bytes_there in values.items():
        for place, value in enumerate(bytes_there):
            secret[place] ^= multiply(factors[at], value)
    return bytes(secret)


def multiply(a, b):
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def invert(a):
    power = 1
    for _ in range(254):
        power = multiply(power, a)
    return power


def private_keys(text, passphrase):
    """A custodian's signing and agreement key."""
    blocks = re.findall("-----BEGIN ENCRYPTED PRIVATE KEY-----.*?-----END ENCRYPTED PRIVATE KEY-----", text, re.DOTALL)
    need(len(blocks) == 2, "not a key file with two encrypted private keys")
    try:
        keys = [serialization.load_pem_private_key(block.encode() + b"\n", passphrase) for block in blocks]
    except ValueError as error:
        raise Invalid("the passphrase is wrong, or the key file is damaged") from error
    for key in keys:
        need(isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1), "not a key on P-256")
    return keys


def open_jwe(text, signing, agreement):
    """What was encrypted to that custodian."""
    text = text.strip(SPACE)
    need(len(text) <= LONGEST_JWE, "too long")
    parts = text.split(".")
    need(len(parts) == 5 and parts[1] == "", "not a compact JWE with direct key agreement")
    header_text, _, nonce, ciphertext, tag = parts
    header = parse(unbase64url(header_text))
    members(header, {"alg": str, "enc": str, "epk": dict, "kid": str})
    need((header["alg"], header["enc"]) == ("ECDH-ES", "A256GCM"), "not ECDH-ES with A256GCM")
    need(header["kid"] == hashlib.sha256(spki_of(signing.public_key())).hexdigest(), "encrypted to somebody else")
    members(header["epk"], dict.fromkeys(("kty", "crv", "x", "y"), str))
    need((header["epk"]["kty"], header["epk"]["crv"]) == ("EC", "P-256"), "a key of another kind")
    x, y = (unbase64url(header["epk"][name]) for name in "xy")
    need(len(x) == len(y) == 32, "a coordinate of a wrong length")
    try:
        peer = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()).public_key()
    except ValueError as error:
        raise Invalid("not a point on the curve") from error
    nonce, tag = unbase64url(nonce), unbase64url(tag)
    need(len(nonce) == 12 and len(tag) == 16, "a nonce or a tag of a wrong length")
    shared = agreement.exchange(ec.ECDH(), peer)
    other = (7).to_bytes(4, "big") + b"A256GCM" + bytes(4) + bytes(4) + (256).to_bytes(4, "big")
    key = hashlib.sha256((1).to_bytes(4, "big") + shared + other).digest()
    try:
        return AESGCM(key).decrypt(nonce, unbase64url(ciphertext) + tag, header_text.encode("ascii"))
    except InvalidTag as error:
        raise Invalid("altered or damaged") from error


def share_from_json(raw):
    share = parse(raw)
    members(share, {
        "format": int, "ceremony_id": str, "mode": str, "custodian": str, "index": int, "threshold": int,
        "so": dict, "user": dict,
    })
    need(share["format"] == 1, "of another format")
    unhex(share["ceremony_id"], 16)
    need(share["mode"] in ("CEREMONY", "REHEARSAL"), "of an unknown mode")
    need(1 <= share["index"] <= 255, "an index out of range")
    need(0 <= share["threshold"] <= 255, "a threshold out of range")
    for secret in SECRETS:
        members(share[secret], {"salt": str, "share": str})
        salt, piece = unbase64(share[secret]["salt"]), unbase64(share[secret]["share"])
        need(len(salt) == 32 and len(piece) > 1 and piece[0] == share["index"], f"the piece of {secret}")
        share[secret] = (salt, piece[1:])
    return share


def share_from_words(text, listed):
    need(text.isascii(), "a character that is in no word")
    numbers = []
    for word in re.findall("[A-Za-z]+", text):
        word = word.lower()
        found = [at for at, one in enumerate(listed) if one == word]
        if not found and len(word) == 4:
            found = [at for at, one in enumerate(listed) if one.startswith(word)]
        need(len(found) == 1, f"word {len(numbers) + 1} is none of the list")
        numbers += found
    bits = "".join(f"{number:011b}" for number in numbers)
    need(bits, "no words")
    length = 1 + int(bits[:8], 2) + 4
    rest = bits[8 * length :]
    need(len(bits) >= 8 * length and len(rest) < 11 and "1" not in rest, "too many words, or too few")
    framed = int(bits[: 8 * length], 2).to_bytes(length, "big")
    content, check = framed[:-4], framed[-4:]
    need(hashlib.sha256(b"strongroom words v1\0" + content).digest()[:4] == check, "the words' checksum is wrong")
    return share_from_paper(content[1:])


def share_from_paper(packed):
    def take(count):
        nonlocal packed
        need(len(packed) >= count, "right words, but not of a share")
        taken, packed = packed[:count], packed[count:]
        return taken

    kind, mode = take(2)
    need(kind == 1 and mode in (0, 1), "right words, but not of a share of this format")
    ceremony_id = take(16).hex()
    index, threshold = take(2)
    share = {"mode": ("CEREMONY", "REHEARSAL")[mode], "ceremony_id": ceremony_id, "index": index, "threshold": threshold}
    for secret in SECRETS:
        (count,) = take(1)
        need(count > 0, "a secret of no bytes")
        share[secret] = (take(32), take(count))
    need(packed == b"", "right words, but too many for a share")
    return share


def word_list(path):
    content = pathlib.Path(path).read_bytes()
    need(hashlib.sha256(content).hexdigest() == WORD_LIST, "not the English list of BIP-39")
    return content.decode("ascii").split()


def add_arguments(parser):
    """One list for all kinds of shares, in the order in which they come."""
    parser.add_argument("--jwe", action="append", default=[])
    parser.add_argument("--key", action="append", default=[])
    parser.add_argument("--passphrase-file", action="append", default=[])
    parser.add_argument("--words", action="append", default=[])
    parser.add_argument("--word-list")


def collect(deal, options):
    """Both secrets, from the shares that the options name."""
    need(len(options.jwe) == len(options.key) == len(options.passphrase_file), "each --jwe needs --key and --passphrase-file")

    def encrypted(file, key_file, passphrase_file):
        passphrase = pathlib.Path(passphrase_file).read_bytes().rstrip(b"\n")
        signing, agreement = private_keys(pathlib.Path(key_file).read_text(encoding="utf-8"), passphrase)
        try:
            text = pathlib.Path(file).read_bytes().decode("ascii")
        except UnicodeDecodeError as error:
            raise Invalid("not a compact JWE") from error
        return share_from_json(open_jwe(text, signing, agreement))

    def on_paper(file):
        need(options.word_list, "--words needs --word-list")
        try:
            text = pathlib.Path(file).read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise Invalid("not text") from error
        return share_from_words(text, word_list(options.word_list))

    sources = [(names[0], encrypted, names) for names in zip(options.jwe, options.key, options.passphrase_file)]
    sources += [(name, on_paper, (name,)) for name in options.words]
    for name, read, arguments in sources:
        try:
            deal.take(read(*arguments))
        except Invalid as problem:
            print(f"{name}: {problem}", file=sys.stderr)
    return deal.secrets()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("transcript")
    parser.add_argument("--transport", action="store_true")
    add_arguments(parser)
    options = parser.parse_args()
    try:
        deal = Deal(pathlib.Path(options.transcript).read_bytes(), options.transport)
        need(is_integer(deal.threshold), "the transcript's threshold is no number")
        secrets = collect(deal, options)
    except Invalid as problem:
        print(f"shares.py: {problem}", file=sys.stderr)
        return 1
    print(json.dumps({secret: base64.b64encode(value).decode() for secret, value in secrets.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
