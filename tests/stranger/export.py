#!/usr/bin/env python3
"""Reads an export of the sealed store: a second implementation, from docs/store-format.md alone.

    export.py FILE [--keys DIR [--epoch BASE64] | --module FILE --serial NUMBER --pin-file FILE]
              [--decrypt NAME CIPHERTEXT_FILE [--context BASE64] [--associated-data BASE64]]

DIR is what backup.py wrote with --out: strongroom-store.key and the master keys, LABEL.pem. In its place the token itself, through its
PKCS#11 module and with the user PIN. Without either only what needs no key is checked: the file's structure, its order, its hash, the
envelopes. With one every record is opened and looked into, every key of a master key at hand is unwrapped, and the root is computed.
--epoch is the content of the token's epoch object, which must then fit; the token at hand is asked for its own.

Prints a JSON object of what is in it, or with --decrypt the plaintext. Exit code 0 if all is right, else 1. Needs Python 3.11 and the
package `cryptography`; with a token also `python-pkcs11`.
"""

import argparse
import base64
import hashlib
import hmac
import json
import pathlib
import re
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common import Invalid, members, need, parse, spki_of, unbase64, unhex

HEADER = b"\0"
RECORD = re.compile(rb"SRrc\x01(.)(.{16})(.{12})(.*)(.{16})", re.DOTALL)
OAEP = {"sha1": hashes.SHA1, "sha256": hashes.SHA256}
NAME = re.compile(rb"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?")
LEAST_PERIOD = 3600
COUNTS = ("min_available_version", "min_decryption_version", "min_encryption_version", "latest_version")
KEY = dict.fromkeys(("derived", "convergent", "imported", "allow_rotation", "deletion_allowed"), bool) | dict.fromkeys(COUNTS, int) | {
    "residency": str, "kdf": str, "auto_rotate_period": int,
}
SIGNING_KEY = dict.fromkeys(COUNTS, int) | {
    "type": str, "deletion_allowed": bool, "auto_rotate_period": int, "signing_version": int, "published_version": int,
}
WRAPPED = dict.fromkeys(("id", "usage", "master", "master_fingerprint", "oaep", "blob"), str)


class Export:
    def __init__(self, content):
        need(hashlib.sha256(content[:-32]).digest() == content[-32:], "the hash at its end is not its own: it is damaged")
        self.rest = content[:-32]
        need(self.take(5) == b"SRex\x01", "not an export of this format")
        self.entries = []
        for _ in range(int.from_bytes(self.take(8), "big")):
            key = self.take(int.from_bytes(self.take(4), "big"))
            length = int.from_bytes(self.take(4), "big")
            need(50 <= length <= 16_777_216, "a record that is too long or too short")
            self.entries.append((key, self.take(length)))
        need(self.rest == b"", "something follows the last entry")
        need(self.entries and self.entries[0][0] == HEADER, "the first entry is not the header")
        self.places = [(0, b"", 0)] + [place(key) for key, _ in self.entries[1:]]
        need(all(one < other for one, other in zip(self.places, self.places[1:])), "the records are not in order, or one is there twice")
        self.store_id = None
        for (key, sealed), (kind, _, _) in zip(self.entries, self.places):
            envelope = RECORD.fullmatch(sealed)
            need(envelope and envelope[1][0] == kind, "a record's envelope")
            need(self.store_id in (None, envelope[2]), "a record is of another store")
            self.store_id = envelope[2]

    def take(self, count):
        need(len(self.rest) >= count, "it is cut")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def open(self, keys):
        """The header's fields, and the payload of each record by its place."""
        payloads = {}
        for (key, sealed), at in zip(self.entries, self.places):
            nonce, ciphertext = sealed[22:34], sealed[34:]
            try:
                payloads[at] = keys.open_record(nonce, ciphertext, b"strongroom store\x01" + self.store_id + key)
            except Invalid as error:
                raise Invalid(f"the record {at} does not open with the store key") from error
        header = payloads.pop((0, b"", 0))
        need(len(header) == 64 and header[:16] == self.store_id, "the header")
        root = hashlib.sha256(b"strongroom root\x01" + len(payloads).to_bytes(8, "big"))
        for key, sealed in self.entries[1:]:
            root.update(key + hashlib.sha256(sealed).digest())
        need(root.digest() == header[24:56], "the records do not give the header's root")
        return header, payloads


def place(key):
    """Kind, name and version of a database key."""
    need(7 <= len(key) <= 65_542, "a database key of a wrong length")
    kind, length = key[0], int.from_bytes(key[1:3], "big")
    need(1 <= kind <= 6 and len(key) == 7 + length, "a database key that is none")
    name, version = key[3 : 3 + length], int.from_bytes(key[3 + length :], "big")
    try:
        name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("a name that is not UTF-8") from error
    need((version >= 1) == (kind in (2, 3, 5)), "a version that this kind of record has not")
    return kind, name, version


def look_into(payloads):
    """Settings and versions by name; all that makes a store holds."""
    named, ids = {}, set()
    for (kind, name, version), payload in payloads.items():
        if kind in (1, 4):
            need(name not in named, "two keys of one name")
            need(NAME.fullmatch(name), "a name that no key has")
            settings = parse(payload)
            members(settings, KEY if kind == 1 else SIGNING_KEY)
            available, decryption, encryption, latest = (settings[count] for count in COUNTS)
            need(latest >= 1 and available <= decryption and 1 <= decryption <= latest, "versions that contradict each other")
            need(settings["auto_rotate_period"] == 0 or settings["auto_rotate_period"] >= LEAST_PERIOD, "a period that is too short")
            if kind == 1:
                need(encryption == available == 0 or max(available, decryption) <= encryption <= latest, "the least version that encrypts")
                need(settings["residency"] in ("hsm", "memory"), "an unknown residency")
                need(settings["kdf"] in ("hkdf_sha256", "hmac-sha256-counter"), "an unknown kdf")
                convergent = settings["derived"] and settings["kdf"] == "hkdf_sha256"
                need(convergent or not settings["convergent"], "a convergent key that is not derived")
            else:
                need(settings["type"] in ("ecdsa-p256", "rsa-4096", "ed25519"), "an unknown type of key")
                need(max(available, 1) <= settings["published_version"] <= settings["signing_version"] <= latest, "the versions in use")
            named[name] = (kind, settings, {})
        elif kind == 6:
            need(len(unhex(name.decode("ascii", "replace"), 16)) == 16 and parse(payload) == {}, "a leftover key that is none")
    wanted = {kind: set() for kind in (2, 3, 5)}
    for name, (kind, settings, _) in named.items():
        for version in range(max(settings["min_available_version"], 1), settings["latest_version"] + 1):
            for more in (2, 3) if kind == 1 else (5,):
                wanted[more].add((name, version))
    for more, places in wanted.items():
        there = {(name, version) for kind, name, version in payloads if kind == more}
        need(there == places, f"versions are missing or too many (kind {more})")
    for (kind, name, version), payload in payloads.items():
        if kind == 2:
            record = parse(payload)
            members(record, {"created": int, "kek": dict, "mac": dict} | ({"format": int} if "format" in record else {}))
            need(record.get("format", 2) == 2, "a version of another format")
            for wrapped in (record["kek"], record["mac"]):
                members(wrapped, WRAPPED | ({"transfer": dict} if "transfer" in wrapped else {}))
                need(len(unbase64(wrapped["id"])) == 16 and wrapped["id"] not in ids, "a key's id, or one that is there twice")
                ids.add(wrapped["id"])
                need(len(unbase64(wrapped["master_fingerprint"])) == 16, "a master key's fingerprint")
                need(wrapped["oaep"] in OAEP, "an unknown OAEP")
                need(len(unbase64(wrapped["blob"])) == 512, "a wrapped key of a wrong length")
                if "transfer" in wrapped:
                    members(wrapped["transfer"], {"fingerprint": str, "blob": str})
                    need(len(unbase64(wrapped["transfer"]["fingerprint"])) == 16, "a transfer key's fingerprint")
                    need(len(unbase64(wrapped["transfer"]["blob"])) == 512, "a wrapped key of a wrong length")
            settings = named[name][1]
            need(record["kek"]["usage"] == ("mac" if settings["derived"] else "aead"), "a kek of another usage")
            need(record["kek"]["master"] == settings["residency"], "a kek of another master key")
            need((record["mac"]["usage"], record["mac"]["master"]) == ("mac", "hsm"), "a mac of another usage or master key")
            named[name][2][version] = record
        elif kind == 3:
            need(len(payload) == 8, "a count that is none")
        elif kind == 5:
            record = parse(payload)
            members(record, {"created": int, "id": str, "spki": str})
            need(len(unbase64(record["id"])) == 16 and record["id"] not in ids, "a key's id, or one that is there twice")
            ids.add(record["id"])
            serialization.load_der_public_key(unbase64(record["spki"]))
            named[name][2][version] = record
    used = {unbase64(record["id"]).hex() for kind, _, versions in named.values() if kind == 4 for record in versions.values()}
    need(not used & {name.decode() for kind, name, _ in payloads if kind == 6}, "a private key that is both used and left over")
    return named


class Held:
    """A key whose bytes are at hand."""

    def __init__(self, key):
        self.key = key

    def decrypt(self, nonce, sealed, more):
        try:
            return AESGCM(self.key).decrypt(nonce, sealed, more)
        except InvalidTag as error:
            raise Invalid("it does not open with that key") from error

    def mac(self, text):
        return hmac.digest(self.key, text, "sha256")


class Keys:
    """The store key, and private keys by the fingerprint of their public halves."""

    def __init__(self, folder):
        self.store_key = Held((folder / "strongroom-store.key").read_bytes())
        self.keys = {}
        for path in folder.glob("*.pem"):
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            self.keys[hashlib.sha256(spki_of(key.public_key())).digest()[:16]] = key

    def open_record(self, nonce, sealed, more):
        return self.store_key.decrypt(nonce, sealed, more)

    def unwrap(self, wrapped):
        """The key; None if its master key is not at hand."""
        master = self.keys.get(unbase64(wrapped["master_fingerprint"]))
        if master is None:
            return None
        found = decrypt_oaep(master, wrapped["oaep"], wrapped["blob"])
        need(len(found) == 32 or (wrapped["usage"], len(found)) == ("mac", 64), "an unwrapped key of a wrong length")
        transfer = wrapped.get("transfer")
        transfer_key = transfer and self.keys.get(unbase64(transfer["fingerprint"]))
        if transfer_key:
            need(decrypt_oaep(transfer_key, wrapped["oaep"], transfer["blob"]) == found, "the transfer key unwraps another key")
        return Held(found)


def decrypt_oaep(key, name, blob):
    digest = OAEP[name]
    try:
        return key.decrypt(unbase64(blob), padding.OAEP(mgf=padding.MGF1(digest()), algorithm=digest(), label=None))
    except ValueError as error:
        raise Invalid("a wrapped key does not open") from error


def decrypt(named, keys, name, text, context, associated_data):
    need(name.encode() in named, "no key of that name")
    kind, settings, versions = named[name.encode()]
    need(kind == 1, "a key that signs")
    found = re.fullmatch(r"vault:v(0|[1-9][0-9]*):([A-Za-z0-9+/=]+)", text.strip(), re.ASCII)
    need(found, "not a ciphertext")
    version = max(int(found[1]), 1)
    need(version in versions, "of a version that is not there")
    key = keys.unwrap(versions[version]["kek"])
    need(key is not None, "its master key is not at hand")
    if settings["derived"]:
        if settings["kdf"] == "hkdf_sha256":
            key = Held(key.mac(context + b"\x01"))
        else:
            key = Held(key.mac(bytes(4) + context + bytes((0, 0, 1, 0))))
    sealed = unbase64(found[2])
    need(len(sealed) >= 28, "too short for a ciphertext")
    return key.decrypt(sealed[:12], sealed[12:], associated_data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--keys", type=pathlib.Path)
    parser.add_argument("--epoch")
    parser.add_argument("--module")
    parser.add_argument("--serial")
    parser.add_argument("--pin-file", type=pathlib.Path)
    parser.add_argument("--decrypt", nargs=2, metavar=("NAME", "CIPHERTEXT_FILE"))
    parser.add_argument("--context", default="")
    parser.add_argument("--associated-data", default="")
    options = parser.parse_args()
    try:
        export = Export(options.file.read_bytes())
        found = {"store_id": export.store_id.hex(), "records": len(export.entries) - 1}
        if options.keys or options.module:
            epoch = options.epoch and unbase64(options.epoch)
            if options.module:
                from hsm import Token  # the only one that needs python-pkcs11

                keys = Token(options.module, options.serial, options.pin_file.read_text(encoding="ascii"))
                epoch = keys.epoch()
            else:
                keys = Keys(options.keys)
            header, payloads = export.open(keys)
            if epoch is not None:
                need(epoch[:61] == b"SRep\x01" + header[:56], "not the store that the epoch object names")
            named = look_into(payloads)
            if options.decrypt:
                name, path = options.decrypt
                text = pathlib.Path(path).read_text(encoding="ascii")
                context, more = (base64.b64decode(one, validate=True) for one in (options.context, options.associated_data))
                sys.stdout.buffer.write(decrypt(named, keys, name, text, context, more))
                return 0
            opened = 0
            for kind, _, versions in named.values():
                wrapped = [one for version in versions.values() for one in (version["kek"], version["mac"])] if kind == 1 else []
                opened += sum(keys.unwrap(one) is not None for one in wrapped)
            found["epoch"] = int.from_bytes(header[16:24], "big")
            found["keys"] = {name.decode(): sorted(versions) for name, (_, _, versions) in named.items()}
            found["unwrapped"] = opened
    except Invalid as problem:
        print(f"export.py: {problem}", file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
