#!/usr/bin/env python3
"""Opens a backup of an appliance's keys: a second implementation, from docs/backup-format.md and docs/share-format.md alone.

    backup.py FOLDER SHARE... [--out DIR]

FOLDER has `backup.jsonl` and the backup's `transcript.jsonl`; SHARE is as for shares.py. Checks everything that the page has a
restoration check, and prints a JSON object: for each key its label and what was found. With --out it writes the keys there, for its
owner only: LABEL.pem (PKCS #8, not encrypted) or LABEL.key (a secret key's bytes).

Exit code 0 if all is right, else 1. It does not verify the transcript: transcript.py does. Needs Python 3.11 and `cryptography`.
"""

import argparse
import hashlib
import hmac
import json
import os
import pathlib
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import shares
from common import Invalid, members, need, parse, spki_of, unbase64, unhex

KNOWN = b"strongroom trial"
CONTENT = {
    "format": int, "type": str, "mode": str, "name": str, "ceremony_id": str, "previous_sha256": str, "token": dict,
    "store_id": str, "audit_key": str, "threshold": int, "keys": list, "trial": dict, "epoch": str,
}
OAEP = {"sha1": hashes.SHA1, "sha256": hashes.SHA256}


class Backup:
    def __init__(self, file):
        lines = file.split(b"\n")
        need(len(lines) == 3 and lines[2] == b"", "not two lines, each with its end")
        self.line = lines[0]
        self.content = parse(lines[0])
        members(self.content, CONTENT)
        need(self.content["format"] == 1 and self.content["type"] == "strongroom-backup", "not a backup of this format")
        need(self.content["mode"] in ("CEREMONY", "REHEARSAL"), "an unknown mode")
        for name, length in (("ceremony_id", 16), ("previous_sha256", 32), ("store_id", 16)):
            unhex(self.content[name], length)
        members(self.content["token"], dict.fromkeys(("label", "serial", "manufacturer", "model"), str))
        need(1 <= self.content["threshold"] <= 255, "the threshold")
        unbase64(self.content["audit_key"])
        for one in self.content["keys"]:
            members(one, {"key": dict, "wrapped": str})
            members(one["key"], {"name": str, "label": str, "spki": None, "sha256": None})
            unbase64(one["wrapped"])
            spki, digest = one["key"]["spki"], one["key"]["sha256"]
            need((spki is None) == (digest is None), "a key has `spki` and `sha256`, or neither")
            need(spki is None or hashlib.sha256(unbase64(spki)).hexdigest() == digest, "a key's hash")
        members(self.content["trial"], dict.fromkeys(("oaep", "wrapped", "answer", "iv", "sealed"), str))
        need(self.content["trial"]["oaep"] in OAEP, "an unknown OAEP")
        self.trial = {name: unbase64(self.content["trial"][name]) for name in ("wrapped", "answer", "iv", "sealed")}
        need(len(self.trial["iv"]) == 12, "a nonce of a wrong length")
        epoch = unbase64(self.content["epoch"])
        need(epoch == b"" or len(epoch) == 69 and epoch[:5] == b"SRep\x01", "the epoch")
        need(epoch == b"" or epoch[5:21].hex() == self.content["store_id"], "the epoch is of another store")
        tag = parse(lines[1])
        members(tag, {"type": str, "hmac_sha256": str})
        need(tag["type"] == "tag", "the second line is no tag")
        self.tag = unhex(tag["hmac_sha256"], 32)

    def fits(self, lines, file):
        """What the (verified) transcript of its ceremony says of it."""
        need(lines[0]["kind"] == "backup", "the transcript is of no backup")
        for name in ("mode", "ceremony_id", "previous_sha256"):
            need(self.content[name] == lines[0][name], f"{name} is not the transcript's")
        export = [line["outputs"] for line in lines if line["type"] == "done" and line["step"] == "export"]
        need(export and export[0]["backup_sha256"] == hashlib.sha256(file).hexdigest(), "not the file that the transcript names")
        summary = [line["summary"] for line in lines if line["type"] == "close"]
        need(summary, "the transcript has no summary")
        for name in ("token", "store_id"):
            need(self.content[name] == summary[0][name], f"{name} is not the transcript's")
        for one in self.content["keys"]:
            need(one["key"] in summary[0]["keys"], f"{one['key']['label']} is not the transcript's")

    def authenticate(self, key):
        wanted = hmac.new(key, self.line, hashlib.sha256).digest()
        need(hmac.compare_digest(wanted, self.tag), "the tag is not that of the authentication key: it was altered")

    def open(self, transport):
        """Labels and keys: of a private key an object, of a secret key its bytes."""
        need(len(transport) == 32, "the transport key is none")
        opened = {}
        for one in self.content["keys"]:
            label, spki = one["key"]["label"], one["key"]["spki"]
            try:
                plain = keywrap.aes_key_unwrap_with_padding(transport, unbase64(one["wrapped"]))
            except (keywrap.InvalidUnwrap, ValueError) as error:
                raise Invalid(f"{label} does not open") from error
            if spki is None:
                need(len(plain) == 32, f"{label} is no AES-256 key")
                opened[label] = plain
                continue
            try:
                key = serialization.load_der_private_key(without_padding(plain), None)
            except ValueError as error:
                raise Invalid(f"{label} is no private key") from error
            need(isinstance(key, rsa.RSAPrivateKey), f"{label} is no RSA key")
            need(spki_of(key.public_key()) == unbase64(spki), f"{label} is not the private half of its public half")
            opened[label] = key
        return opened

    def check(self, opened):
        """Whether they open what the old token sealed."""
        master = [key for label, key in opened.items() if label == "strongroom-master" or label.startswith("strongroom-master-")]
        need(len(master) == 1 and "strongroom-store" in opened, "not one master key and a store key")
        digest = OAEP[self.content["trial"]["oaep"]]
        oaep = padding.OAEP(mgf=padding.MGF1(digest()), algorithm=digest(), label=None)
        try:
            kek = master[0].decrypt(self.trial["wrapped"], oaep)
        except ValueError as error:
            raise Invalid("the master key does not open the trial") from error
        need(len(kek) == 32 and AESGCM(kek).encrypt(bytes(12), KNOWN, None) == self.trial["answer"], "the trial's answer is another")
        try:
            text = AESGCM(opened["strongroom-store"]).decrypt(self.trial["iv"], self.trial["sealed"], KNOWN)
        except InvalidTag as error:
            raise Invalid("the store key does not open the trial") from error
        need(text == KNOWN, "the store key opens something else")


def without_padding(plain):
    """A DER value, without the zero bytes that the token may have put behind it."""
    need(len(plain) > 2 and plain[0] == 0x30, "not a DER sequence")
    length, header = plain[1], 2
    if length & 0x80:
        header += length & 0x7F
        need(2 < header <= 6 and len(plain) > header, "not a DER length")
        length = int.from_bytes(plain[2:header], "big")
    end = header + length
    rest = plain[end:]
    need(len(plain) >= end and len(rest) < 8 and not any(rest), "something stands behind the key")
    return plain[:end]


def write(folder, opened):
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for label, key in opened.items():
        secret = isinstance(key, bytes)
        content = key if secret else key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = os.path.join(folder, label + (".key" if secret else ".pem"))
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(content)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--out")
    shares.add_arguments(parser)
    options = parser.parse_args()
    try:
        file = (options.folder / "backup.jsonl").read_bytes()
        transcript = (options.folder / "transcript.jsonl").read_bytes()
        backup = Backup(file)
        backup.fits([parse(line) for line in transcript.split(b"\n")[:-1]], file)
        deal = shares.Deal(transcript, transport=True)
        need(deal.threshold == backup.content["threshold"], "the threshold is not the transcript's")
        secrets = shares.collect(deal, options)
        backup.authenticate(secrets["user"])
        opened = backup.open(secrets["so"])
        backup.check(opened)
        if options.out:
            need(all(label.replace("-", "").isalnum() and label.isascii() for label in opened), "a label that is no file's name")
            write(options.out, opened)
    except Invalid as problem:
        print(f"backup.py: {problem}", file=sys.stderr)
        return 1
    print(json.dumps({label: "secret key" if isinstance(key, bytes) else "private key" for label, key in opened.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
