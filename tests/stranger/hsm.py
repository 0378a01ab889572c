"""A token that is at hand, through PKCS#11: what docs/store-format.md says that its keys do.

Needs Python 3.11 and the packages `cryptography` and `python-pkcs11`.
"""

import hashlib

import pkcs11
from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MGF, ObjectClass

from common import Invalid, need, spki_of, unbase64

OAEP = {"sha1": (Mechanism.SHA_1, MGF.SHA1, None), "sha256": (Mechanism.SHA256, MGF.SHA256, None)}


class Token:
    def __init__(self, module, serial, pin):
        with told("the token does not open"):
            self.session = pkcs11.lib(module).get_token(token_serial=serial.encode()).open(user_pin=pin)
        self.store_key = self.one("strongroom-store", ObjectClass.SECRET_KEY)
        self.private = {}
        for public in self.session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.KEY_TYPE: KeyType.RSA}):
            numbers = (int.from_bytes(public[name], "big") for name in (Attribute.PUBLIC_EXPONENT, Attribute.MODULUS))
            fingerprint = hashlib.sha256(spki_of(rsa.RSAPublicNumbers(*numbers).public_key())).digest()[:16]
            self.private[fingerprint] = public[Attribute.LABEL]

    def one(self, label, kind):
        found = list(self.session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: label}))
        need(len(found) == 1, f"{len(found)} objects {label} on the token")
        return found[0]

    def epoch(self):
        """The content of the epoch object, without the sequence number."""
        return self.one("strongroom-epoch", ObjectClass.DATA)[Attribute.VALUE][8:]

    def open_record(self, nonce, sealed, more):
        return Held(self.store_key).decrypt(nonce, sealed, more)

    def unwrap(self, wrapped):
        """The key, in the token or not as it is meant to be; None if its master key is not on this token."""
        label = self.private.get(unbase64(wrapped["master_fingerprint"]))
        if label is None:
            return None
        master = self.one(label, ObjectClass.PRIVATE_KEY)
        how = {"mechanism": Mechanism.RSA_PKCS_OAEP, "mechanism_param": OAEP[wrapped["oaep"]]}
        blob, aead = unbase64(wrapped["blob"]), wrapped["usage"] == "aead"
        with told("a wrapped key does not open"):
            if wrapped["master"] == "memory":
                return master.decrypt(blob, **how)
            template = {
                Attribute.TOKEN: False,
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.WRAP: False,
                Attribute.UNWRAP: False,
                Attribute.ENCRYPT: aead,
                Attribute.DECRYPT: aead,
                Attribute.SIGN: not aead,
                Attribute.VERIFY: not aead,
                Attribute.DERIVE: False,
                Attribute.COPYABLE: False,
                Attribute.MODIFIABLE: False,
            }
            kind = KeyType.AES if aead else KeyType.GENERIC_SECRET
            return Held(master.unwrap_key(ObjectClass.SECRET_KEY, kind, blob, template=template, **how))


class Held:
    """A key that does not leave the token."""

    def __init__(self, key):
        self.key = key

    def decrypt(self, nonce, sealed, more):
        with told("it does not open with that key"):
            return self.key.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=GCMParams(nonce, more, 128))

    def mac(self, text):
        with told("the token makes no HMAC"):
            return self.key.sign(text, mechanism=Mechanism.SHA256_HMAC)


class told:
    """What the token refuses is what is wrong."""

    def __init__(self, what):
        self.what = what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if kind is not None and issubclass(kind, (pkcs11.PKCS11Error, LookupError)):
            raise Invalid(f"{self.what} ({kind.__name__} {error})") from error
