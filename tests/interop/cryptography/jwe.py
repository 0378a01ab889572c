#!/usr/bin/env python3
"""A participant's key file and a share's JWE, by pyca/cryptography and RFC 7516/7518 alone.

    jwe.py open KEY_FILE PASSPHRASE_FILE JWE_FILE     prints the plaintext
    jwe.py seal PUBLIC_FILE PLAINTEXT_FILE            prints a JWE
"""

import base64
import hashlib
import json
import os
import sys
import tomllib

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def kdf(shared):
    """RFC 7518, 4.6.2, for A256GCM without apu and apv."""
    info = (7).to_bytes(4, "big") + b"A256GCM" + bytes(8) + (256).to_bytes(4, "big")
    return hashlib.sha256((1).to_bytes(4, "big") + shared + info).digest()


def open_jwe(key_file, passphrase_file, jwe_file):
    with open(key_file, encoding="utf-8") as file:
        blocks = [block + "-----END ENCRYPTED PRIVATE KEY-----\n" for block in file.read().split("-----END ENCRYPTED PRIVATE KEY-----")[:-1]]
    with open(passphrase_file, "rb") as file:
        passphrase = file.read().rstrip(b"\n")
    # Signing, then agreement.
    _, agreement = (serialization.load_pem_private_key(block.encode(), passphrase) for block in blocks)
    with open(jwe_file, encoding="ascii") as file:
        header, encrypted_key, iv, text, tag = file.read().strip().split(".")
    fields = json.loads(decode(header))
    assert (fields["alg"], fields["enc"], encrypted_key) == ("ECDH-ES", "A256GCM", "")
    x, y = (int.from_bytes(decode(fields["epk"][name]), "big") for name in "xy")
    peer = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    key = kdf(agreement.exchange(ec.ECDH(), peer))
    return AESGCM(key).decrypt(decode(iv), decode(text) + decode(tag), header.encode()).decode()


def seal_jwe(public_file, plaintext_file):
    with open(public_file, "rb") as file:
        public = tomllib.load(file)
    with open(plaintext_file, "rb") as file:
        plaintext = file.read()
    recipient = serialization.load_der_public_key(base64.b64decode(public["agreement_key"]))
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    numbers = ephemeral.public_key().public_numbers()
    epk = {"kty": "EC", "crv": "P-256", "x": encode(numbers.x.to_bytes(32, "big")), "y": encode(numbers.y.to_bytes(32, "big"))}
    kid = hashlib.sha256(base64.b64decode(public["signing_key"])).hexdigest()
    header = encode(json.dumps({"kid": kid, "epk": epk, "enc": "A256GCM", "alg": "ECDH-ES"}).encode())
    iv = os.urandom(12)
    sealed = AESGCM(kdf(ephemeral.exchange(ec.ECDH(), recipient))).encrypt(iv, plaintext, header.encode())
    return f"{header}..{encode(iv)}.{encode(sealed[:-16])}.{encode(sealed[-16:])}"


print({"open": open_jwe, "seal": seal_jwe}[sys.argv[1]](*sys.argv[2:]), end="")
