#!/usr/bin/env python3
"""Tries the PKCS#11 calls that Strongroom makes, one by one, on the module named by $PKCS11_MODULE, and prints what each returned.

    SOFTHSM2_CONF=... PKCS11_MODULE=.../libsofthsm2.so probe.py TOKEN-LABEL PIN-FILE            # SoftHSM itself
    run-client.sh TREE SOCKET -- python3 probe.py TOKEN-LABEL PIN-FILE                           # through p11-kit's RPC

One line per attempt: name, CKR name, and "-> ..." with what was compared. Needs a throwaway token: it writes to it. Standard library only.
Exit code 0 when it ran to the end, whatever the calls returned: this is a probe, not a test; README.md in this folder keeps its findings.
"""

import ctypes as c
import hashlib
import hmac
import os
import sys
import time

UL = c.c_ulong
FUNCTIONS = """Initialize Finalize GetInfo GetFunctionList GetSlotList GetSlotInfo GetTokenInfo GetMechanismList GetMechanismInfo InitToken
InitPIN SetPIN OpenSession CloseSession CloseAllSessions GetSessionInfo GetOperationState SetOperationState Login Logout CreateObject CopyObject
DestroyObject GetObjectSize GetAttributeValue SetAttributeValue FindObjectsInit FindObjects FindObjectsFinal EncryptInit Encrypt EncryptUpdate
EncryptFinal DecryptInit Decrypt DecryptUpdate DecryptFinal DigestInit Digest DigestUpdate DigestKey DigestFinal SignInit Sign SignUpdate
SignFinal SignRecoverInit SignRecover VerifyInit Verify VerifyUpdate VerifyFinal VerifyRecoverInit VerifyRecover DigestEncryptUpdate
DecryptDigestUpdate SignEncryptUpdate DecryptVerifyUpdate GenerateKey GenerateKeyPair WrapKey UnwrapKey DeriveKey SeedRandom GenerateRandom
GetFunctionStatus CancelFunction WaitForSlotEvent""".split()

CKR = {0: "CKR_OK", 0x5: "CKR_GENERAL_ERROR", 0x6: "CKR_FUNCTION_FAILED", 0x7: "CKR_ARGUMENTS_BAD", 0x8: "CKR_NO_EVENT", 0x10: "CKR_ATTRIBUTE_READ_ONLY",
       0x11: "CKR_ATTRIBUTE_SENSITIVE", 0x12: "CKR_ATTRIBUTE_TYPE_INVALID", 0x13: "CKR_ATTRIBUTE_VALUE_INVALID", 0x1B: "CKR_ACTION_PROHIBITED",
       0x20: "CKR_DATA_INVALID", 0x21: "CKR_DATA_LEN_RANGE", 0x30: "CKR_DEVICE_ERROR", 0x32: "CKR_DEVICE_REMOVED", 0x40: "CKR_ENCRYPTED_DATA_INVALID",
       0x54: "CKR_FUNCTION_NOT_SUPPORTED", 0x60: "CKR_KEY_HANDLE_INVALID", 0x62: "CKR_KEY_SIZE_RANGE", 0x63: "CKR_KEY_TYPE_INCONSISTENT",
       0x68: "CKR_KEY_FUNCTION_NOT_PERMITTED", 0x69: "CKR_KEY_NOT_WRAPPABLE", 0x6A: "CKR_KEY_UNEXTRACTABLE", 0x70: "CKR_MECHANISM_INVALID",
       0x71: "CKR_MECHANISM_PARAM_INVALID", 0x82: "CKR_OBJECT_HANDLE_INVALID", 0x90: "CKR_OPERATION_ACTIVE", 0x91: "CKR_OPERATION_NOT_INITIALIZED",
       0xA0: "CKR_PIN_INCORRECT", 0xA2: "CKR_PIN_LEN_RANGE", 0xB3: "CKR_SESSION_HANDLE_INVALID", 0xC0: "CKR_SIGNATURE_INVALID", 0xD0: "CKR_TEMPLATE_INCOMPLETE",
       0xD1: "CKR_TEMPLATE_INCONSISTENT", 0xE0: "CKR_TOKEN_NOT_PRESENT", 0x100: "CKR_USER_ALREADY_LOGGED_IN", 0x101: "CKR_USER_NOT_LOGGED_IN",
       0x110: "CKR_WRAPPED_KEY_INVALID", 0x113: "CKR_WRAPPING_KEY_HANDLE_INVALID", 0x150: "CKR_BUFFER_TOO_SMALL", 0x190: "CKR_CRYPTOKI_NOT_INITIALIZED", 0x191: "CKR_CRYPTOKI_ALREADY_INITIALIZED"}

CKO_DATA, CKO_PUBLIC, CKO_PRIVATE, CKO_SECRET = 0, 2, 3, 4
CKK_RSA, CKK_EC, CKK_GENERIC, CKK_AES = 0, 3, 0x10, 0x1F
CKA_CLASS, CKA_TOKEN, CKA_PRIVATE, CKA_LABEL, CKA_APPLICATION, CKA_VALUE = 0, 1, 2, 3, 0x10, 0x11
CKA_KEY_TYPE, CKA_ID, CKA_SENSITIVE, CKA_ENCRYPT, CKA_DECRYPT, CKA_WRAP, CKA_UNWRAP = 0x100, 0x102, 0x103, 0x104, 0x105, 0x106, 0x107
CKA_SIGN, CKA_VERIFY, CKA_DERIVE, CKA_MODULUS, CKA_MODULUS_BITS, CKA_PUBLIC_EXPONENT = 0x108, 0x10A, 0x10C, 0x120, 0x121, 0x122
CKA_VALUE_LEN, CKA_EXTRACTABLE, CKA_LOCAL, CKA_NEVER_EXTRACTABLE, CKA_ALWAYS_SENSITIVE, CKA_MODIFIABLE, CKA_COPYABLE = 0x161, 0x162, 0x163, 0x164, 0x165, 0x170, 0x171
CKA_EC_PARAMS, CKA_EC_POINT, CKA_UNWRAP_TEMPLATE, CKA_ALLOWED_MECHANISMS = 0x180, 0x181, 0x40000212, 0x40000600
CKM = dict(RSA_GEN=0x0, RSA_PKCS=0x1, OAEP=0x9, SHA256_RSA_PSS=0x43, SHA256=0x250, SHA256_HMAC=0x251, GENERIC_GEN=0x350, EC_GEN=0x1040, ECDSA=0x1041, ECDH1=0x1050,
           AES_GEN=0x1080, AES_ECB=0x1081, AES_CBC=0x1082, AES_CBC_PAD=0x1085, AES_CTR=0x1086, AES_GCM=0x1087, AES_CMAC=0x108A, AES_KW=0x2109, AES_KWP=0x210A)
P256 = bytes.fromhex("06082a8648ce3d030107")


class Attribute(c.Structure):
    _fields_ = [("type", UL), ("value", c.c_void_p), ("len", UL)]


class Mechanism(c.Structure):
    _fields_ = [("type", UL), ("parameter", c.c_void_p), ("len", UL)]


class GcmParams(c.Structure):
    _fields_ = [("iv", c.c_void_p), ("iv_len", UL), ("iv_bits", UL), ("aad", c.c_void_p), ("aad_len", UL), ("tag_bits", UL)]


class OaepParams(c.Structure):
    _fields_ = [("hash", UL), ("mgf", UL), ("source", UL), ("data", c.c_void_p), ("data_len", UL)]


class InitArgs(c.Structure):
    _fields_ = [("create", c.c_void_p), ("destroy", c.c_void_p), ("lock", c.c_void_p), ("unlock", c.c_void_p), ("flags", UL), ("reserved", c.c_void_p)]


class FunctionList(c.Structure):
    _fields_ = [("version", c.c_ubyte * 2)] + [(name, c.c_void_p) for name in FUNCTIONS]


keep = []  # what C structures point to: must outlive the calls


def template(pairs):
    """(attribute, value) pairs as a CK_ATTRIBUTE array; bool is CK_BBOOL, int CK_ULONG, a list of ints CK_ULONGs, a list of pairs a template."""
    array = (Attribute * max(len(pairs), 1))()
    for slot, (kind, value) in zip(array, pairs):
        if isinstance(value, bool):
            value = bytes([value])
        elif isinstance(value, int):
            value = value.to_bytes(8, sys.byteorder)
        elif isinstance(value, list) and value and isinstance(value[0], tuple):
            inner, count = template(value)
            slot.type, slot.value, slot.len = kind, c.addressof(inner), count * c.sizeof(Attribute)
            continue
        elif isinstance(value, list):
            value = b"".join(v.to_bytes(8, sys.byteorder) for v in value)
        buffer = c.create_string_buffer(value, max(len(value), 1))
        keep.append(buffer)
        slot.type, slot.value, slot.len = kind, c.addressof(buffer), len(value)
    keep.append(array)
    return array, len(pairs)


def mechanism(name, parameter=None):
    m = Mechanism(CKM[name], None, 0)
    if isinstance(parameter, bytes):
        parameter = c.create_string_buffer(parameter, len(parameter))
    if parameter is not None:
        keep.append(parameter)
        m.parameter, m.len = c.addressof(parameter), c.sizeof(parameter)
    return m


def gcm(iv, aad=b""):
    iv_buffer, aad_buffer = c.create_string_buffer(iv, len(iv)), c.create_string_buffer(aad, max(len(aad), 1))
    keep.extend([iv_buffer, aad_buffer])
    return mechanism("AES_GCM", GcmParams(c.addressof(iv_buffer), len(iv), len(iv) * 8, c.addressof(aad_buffer) if aad else None, len(aad), 128))


def oaep(hash_type=0x220, mgf=1):
    return mechanism("OAEP", OaepParams(hash_type, mgf, 1, None, 0))


class Token:
    def __init__(self, path):
        self.lib = c.CDLL(path)
        pointer = c.POINTER(FunctionList)()
        self.lib.C_GetFunctionList(c.byref(pointer))
        self.f = pointer.contents

    def __getattr__(self, name):
        function = c.CFUNCTYPE(UL)(getattr(self.f, name))
        function.argtypes = None
        return lambda *args: function(*[UL(a) if isinstance(a, int) else a for a in args])


def say(name, code, note=""):
    print(f"{name:<62} {CKR.get(code, hex(code)):<32} {'-> ' + note if note else ''}", flush=True)
    return code == 0


def sized(call, *args, by_length_query=True):
    """Calls a function whose last arguments are an output buffer and its length; asks for the length first, as callers do."""
    length = UL(0)
    if by_length_query:
        code = call(*args, None, c.byref(length))
        if code:
            return code, b""
    else:
        length = UL(4096)
    buffer = c.create_string_buffer(max(length.value, 1))
    code = call(*args, buffer, c.byref(length))
    return code, buffer.raw[: length.value] if code == 0 else b""


def main():
    label, pin = sys.argv[1], open(sys.argv[2], "rb").read().strip()
    t = Token(os.environ["PKCS11_MODULE"])
    say("C_Initialize (CKF_OS_LOCKING_OK)", t.Initialize(c.byref(InitArgs(None, None, None, None, 2, None))))
    count = UL(0)
    t.GetSlotList(b"\1", None, c.byref(count))
    slots = (UL * count.value)()
    say("C_GetSlotList", t.GetSlotList(1, slots, c.byref(count)), f"slots {[hex(s) for s in slots]}")
    slot = None
    for candidate in slots:
        info = c.create_string_buffer(256)
        code = t.GetTokenInfo(candidate, info)
        if code == 0 and info.raw[:32].rstrip() == label.encode():
            slot = candidate
            say("C_GetTokenInfo", code, f"serial {info.raw[80:96].decode().strip()}, flags {int.from_bytes(info.raw[96:104], 'little'):#x}")
    if slot is None:
        sys.exit(f"no token labelled {label}")

    t.GetMechanismList(slot, None, c.byref(count))
    kinds = (UL * count.value)()
    code = t.GetMechanismList(slot, kinds, c.byref(count))
    say("C_GetMechanismList", code, f"{count.value} mechanisms")
    names = {v: k for k, v in CKM.items()}
    print("    of interest:", " ".join(sorted(names[k] for k in kinds if k in names)))
    print("    not listed: ", " ".join(sorted(n for n, k in CKM.items() if k not in list(kinds))))
    print("    all:", " ".join(f"{k:#x}" for k in sorted(kinds)))
    info = (UL * 3)()
    say("C_GetMechanismInfo AES_GCM", t.GetMechanismInfo(slot, CKM["AES_GCM"], info), f"{list(info)}")
    say("C_GetMechanismInfo AES_KW", t.GetMechanismInfo(slot, CKM["AES_KW"], info))

    h = UL(0)
    say("C_OpenSession (read-write)", t.OpenSession(slot, 6, None, None, c.byref(h)))
    s = h.value
    say("C_Login, wrong PIN", t.Login(s, 1, b"wrong-pin", 9))
    say("C_Login", t.Login(s, 1, pin, len(pin)))
    say("C_Login again", t.Login(s, 1, pin, len(pin)))
    session_info = c.create_string_buffer(64)
    say("C_GetSessionInfo", t.GetSessionInfo(s, session_info), f"state {session_info.raw[8]}")
    random = c.create_string_buffer(32)
    say("C_GenerateRandom 32", t.GenerateRandom(s, random, 32), "not all zero" if any(random.raw) else "ALL ZERO")
    big = c.create_string_buffer(65536)
    say("C_GenerateRandom 65536", t.GenerateRandom(s, big, 65536), "not all zero" if any(big.raw[-64:]) else "ALL ZERO")
    say("C_SeedRandom", t.SeedRandom(s, b"seed", 4))

    def create(name, pairs):
        array, n = template(pairs)
        handle = UL(0)
        code = t.CreateObject(s, array, n, c.byref(handle))
        say(f"C_CreateObject {name}", code)
        return handle.value

    def attribute(handle, kind, size=1024):
        buffer = c.create_string_buffer(size)
        a = Attribute(kind, c.addressof(buffer), size)
        code = t.GetAttributeValue(s, handle, c.byref(a), 1)
        return code, (buffer.raw[: a.len] if code == 0 else b"")

    def find(pairs):
        array, n = template(pairs)
        code = t.FindObjectsInit(s, array, n)
        if code:
            return code, []
        found, n = (UL * 64)(), UL(0)
        code = t.FindObjects(s, found, 64, c.byref(n))
        t.FindObjectsFinal(s)
        return code, list(found[: n.value])

    # AES-GCM: a generated session key, then the known-answer test of a created one (NIST GCM test
    # case 16).
    def generate(name, mech, pairs):
        array, n = template(pairs)
        handle = UL(0)
        say(f"C_GenerateKey {name}", t.GenerateKey(s, c.byref(mechanism(mech)), array, n, c.byref(handle)))
        return handle.value

    strict = [(CKA_CLASS, CKO_SECRET), (CKA_TOKEN, False), (CKA_PRIVATE, True), (CKA_SENSITIVE, True), (CKA_EXTRACTABLE, False)]
    kek = generate("AES-256, session, non-extractable", "AES_GEN", strict + [(CKA_VALUE_LEN, 32), (CKA_ENCRYPT, True), (CKA_DECRYPT, True), (CKA_WRAP, False), (CKA_UNWRAP, False),
                                                                            (CKA_ALLOWED_MECHANISMS, [CKM["AES_GCM"]])])
    say("C_GetAttributeValue CKA_VALUE of it", attribute(kek, CKA_VALUE)[0])
    code, value = attribute(kek, CKA_ALLOWED_MECHANISMS)
    say("C_GetAttributeValue CKA_ALLOWED_MECHANISMS of it", code, value.hex())

    def encrypt(key, mech, data, **how):
        code = t.EncryptInit(s, c.byref(mech), key)
        return (code, b"") if code else sized(t.Encrypt, s, data, len(data), **how)

    def decrypt(key, mech, data, **how):
        code = t.DecryptInit(s, c.byref(mech), key)
        return (code, b"") if code else sized(t.Decrypt, s, data, len(data), **how)

    iv, text = os.urandom(12), os.urandom(32)
    code, sealed = encrypt(kek, gcm(iv, b"aad"), text)
    say("C_EncryptInit/C_Encrypt AES-GCM with AAD, length query", code, f"{len(sealed)} bytes")
    code, opened = decrypt(kek, gcm(iv, b"aad"), sealed)
    say("C_DecryptInit/C_Decrypt AES-GCM with AAD, length query", code, "same" if opened == text else f"DIFFERENT {len(opened)} bytes")
    code, opened = decrypt(kek, gcm(iv, b"aad"), sealed, by_length_query=False)
    say("C_Decrypt AES-GCM, buffer given at once", code, "same" if opened == text else "DIFFERENT")
    code, _ = decrypt(kek, gcm(iv, b"other"), sealed)
    say("C_Decrypt AES-GCM with another AAD", code)
    code, sealed0 = encrypt(kek, gcm(iv), b"")
    say("C_Encrypt AES-GCM of nothing, no AAD", code, f"{len(sealed0)} bytes")
    large = os.urandom(1 << 20)
    code, sealed1 = encrypt(kek, gcm(iv), large)
    say("C_Encrypt AES-GCM of 1 MiB", code, f"{len(sealed1)} bytes")
    code, opened = decrypt(kek, gcm(iv), sealed1, by_length_query=False) if len(sealed1) < 4096 else decrypt(kek, gcm(iv), sealed1)
    say("C_Decrypt AES-GCM of 1 MiB", code, "same" if opened == large else "DIFFERENT")
    say("C_EncryptInit AES-ECB with it (off its list)", t.EncryptInit(s, c.byref(mechanism("AES_ECB")), kek))
    start = time.perf_counter()
    for _ in range(1000):
        decrypt(kek, gcm(iv, b"aad"), sealed, by_length_query=False)
    print(f"    1000 x C_DecryptInit + C_Decrypt AES-GCM 32 bytes: {(time.perf_counter() - start) * 1000:.0f} µs each (with Python's overhead)")

    kat = create("AES-256 session key of known value", strict + [(CKA_KEY_TYPE, CKK_AES), (CKA_ENCRYPT, True), (CKA_DECRYPT, True),
                 (CKA_VALUE, bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2))])
    code, got = encrypt(kat, gcm(bytes.fromhex("cafebabefacedbaddecaf888"), bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")),
                        bytes.fromhex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"))
    say("AES-GCM known answer with it", code, "right tag" if got[-16:].hex() == "76fc6ece0f4e1768cddf8853bb2d551b" else f"WRONG {got.hex()}")

    # HMAC: the store key is a generic secret; RFC 4231 test case 2 needs a 4-byte key, so the value
    # is compared with Python's own.
    secret = bytes(range(32))
    mac_key = create("generic secret session key of known value", strict + [(CKA_KEY_TYPE, CKK_GENERIC), (CKA_SIGN, True), (CKA_VERIFY, True), (CKA_VALUE, secret)])
    code = t.SignInit(s, c.byref(mechanism("SHA256_HMAC")), mac_key)
    code, got = (code, b"") if code else sized(t.Sign, s, b"message", 7)
    say("C_SignInit/C_Sign SHA256_HMAC", code, "right" if got == hmac.digest(secret, b"message", "sha256") else "WRONG")
    code = t.SignInit(s, c.byref(mechanism("SHA256_HMAC")), mac_key) or t.SignUpdate(s, b"mess", 4) or t.SignUpdate(s, b"age", 3)
    code, got = (code, b"") if code else sized(t.SignFinal, s)
    say("C_SignUpdate/C_SignFinal SHA256_HMAC", code, "right" if got == hmac.digest(secret, b"message", "sha256") else "WRONG")
    code = t.VerifyInit(s, c.byref(mechanism("SHA256_HMAC")), mac_key) or t.Verify(s, b"message", 7, got, len(got))
    say("C_VerifyInit/C_Verify SHA256_HMAC", code)
    code = t.VerifyInit(s, c.byref(mechanism("SHA256_HMAC")), mac_key) or t.Verify(s, b"massage", 7, got, len(got))
    say("C_Verify SHA256_HMAC, other message", code)
    generate("generic secret 32, token, non-extractable", "GENERIC_GEN", [(CKA_CLASS, CKO_SECRET), (CKA_KEY_TYPE, CKK_GENERIC), (CKA_TOKEN, True), (CKA_PRIVATE, True), (CKA_SENSITIVE, True),
             (CKA_EXTRACTABLE, False), (CKA_VALUE_LEN, 32), (CKA_SIGN, True), (CKA_VERIFY, True), (CKA_LABEL, b"probe-store")])

    # The master key: unwrap-only, with an unwrap template, and the template repeated in each call.
    def pair(name, mech, public, private):
        (pub, n), (priv, m) = template(public), template(private)
        a, b = UL(0), UL(0)
        start = time.perf_counter()
        say(f"C_GenerateKeyPair {name}", t.GenerateKeyPair(s, c.byref(mechanism(mech)), pub, n, priv, m, c.byref(a), c.byref(b)), f"{time.perf_counter() - start:.1f} s")
        return a.value, b.value

    forced = [(CKA_EXTRACTABLE, False), (CKA_SENSITIVE, True), (CKA_WRAP, False), (CKA_UNWRAP, False)]
    public, master = pair("RSA-4096, token, CKA_UNWRAP_TEMPLATE, CKA_ALLOWED_MECHANISMS", "RSA_GEN",
                          [(CKA_TOKEN, True), (CKA_MODULUS_BITS, 4096), (CKA_PUBLIC_EXPONENT, b"\1\0\1"), (CKA_WRAP, True), (CKA_ENCRYPT, True), (CKA_VERIFY, False), (CKA_LABEL, b"probe-master")],
                          [(CKA_TOKEN, True), (CKA_PRIVATE, True), (CKA_SENSITIVE, True), (CKA_EXTRACTABLE, False), (CKA_DECRYPT, False), (CKA_SIGN, False), (CKA_UNWRAP, True),
                           (CKA_LABEL, b"probe-master"), (CKA_ID, b"m"), (CKA_ALLOWED_MECHANISMS, [CKM["OAEP"]]), (CKA_UNWRAP_TEMPLATE, forced)])
    for name, kind in [("CKA_SENSITIVE", CKA_SENSITIVE), ("CKA_EXTRACTABLE", CKA_EXTRACTABLE), ("CKA_DECRYPT", CKA_DECRYPT), ("CKA_LOCAL", CKA_LOCAL), ("CKA_NEVER_EXTRACTABLE", CKA_NEVER_EXTRACTABLE),
                       ("CKA_ALWAYS_SENSITIVE", CKA_ALWAYS_SENSITIVE), ("CKA_ALLOWED_MECHANISMS", CKA_ALLOWED_MECHANISMS)]:
        code, value = attribute(master, kind)
        say(f"    C_GetAttributeValue {name}", code, value.hex())
    code, modulus = attribute(public, CKA_MODULUS)
    say("    C_GetAttributeValue CKA_MODULUS of the public key", code, f"{len(modulus)} bytes")
    a = Attribute(CKA_UNWRAP_TEMPLATE, None, 0)
    code = t.GetAttributeValue(s, master, c.byref(a), 1)
    say("    C_GetAttributeValue CKA_UNWRAP_TEMPLATE, length", code, f"{c.c_long(a.len).value} bytes")
    inner = (Attribute * 4)()
    a = Attribute(CKA_UNWRAP_TEMPLATE, c.addressof(inner), c.sizeof(inner))
    code = t.GetAttributeValue(s, master, c.byref(a), 1)
    say("    C_GetAttributeValue CKA_UNWRAP_TEMPLATE, inner lengths", code, " ".join(f"{i.type:#x}({c.c_long(i.len).value})" for i in inner))
    buffers = [c.create_string_buffer(8) for _ in inner]
    for i, buffer in zip(inner, buffers):
        i.value, i.len = c.addressof(buffer), i.len if i.len <= 8 else 8
    code = t.GetAttributeValue(s, master, c.byref(a), 1)
    say("    C_GetAttributeValue CKA_UNWRAP_TEMPLATE, values", code, " ".join(f"{i.type:#x}={b.raw[:1].hex()}({c.c_long(i.len).value})" for i, b in zip(inner, buffers)))

    key_bytes = os.urandom(32)
    code, wrapped = encrypt(public, oaep(), key_bytes)
    say("C_Encrypt RSA-OAEP SHA-1 of a known KEK, public key", code, f"{len(wrapped)} bytes")

    def unwrap(name, pairs, key=None, mech=None, data=None):
        array, n = template(pairs)
        handle = UL(0)
        data = wrapped if data is None else data
        code = t.UnwrapKey(s, c.byref(mech or oaep()), master if key is None else key, data, len(data), array, n, c.byref(handle))
        say(f"C_UnwrapKey {name}", code)
        return handle.value if code == 0 else 0

    kek_template = [(CKA_CLASS, CKO_SECRET), (CKA_KEY_TYPE, CKK_AES), (CKA_TOKEN, False), (CKA_PRIVATE, True), (CKA_ENCRYPT, True), (CKA_DECRYPT, True)]
    known = unwrap("RSA-OAEP SHA-1, template repeated", kek_template + forced)
    code, sealed = encrypt(known, gcm(iv), text)
    check = create("same value, to compare", strict + [(CKA_KEY_TYPE, CKK_AES), (CKA_ENCRYPT, True), (CKA_DECRYPT, True), (CKA_VALUE, key_bytes)])
    code, again = encrypt(check, gcm(iv), text)
    say("    AES-GCM with the unwrapped key", code, "same as with the known value" if again == sealed and sealed else "DIFFERENT")
    say("    C_GetAttributeValue CKA_VALUE of it", attribute(known, CKA_VALUE)[0])
    unwrap("RSA-OAEP, template not repeated", kek_template)
    unwrap("RSA-OAEP, as extractable", kek_template + [(CKA_EXTRACTABLE, True), (CKA_SENSITIVE, True), (CKA_WRAP, False), (CKA_UNWRAP, False)])
    unwrap("RSA-OAEP, with CKA_WRAP", kek_template + [(CKA_EXTRACTABLE, False), (CKA_SENSITIVE, True), (CKA_WRAP, True), (CKA_UNWRAP, False)])
    unwrap("RSA-OAEP SHA-256", kek_template + forced, mech=oaep(0x250, 2))
    unwrap("RSA-PKCS (off the list)", kek_template + forced, mech=mechanism("RSA_PKCS"))
    say("C_DecryptInit RSA-OAEP with the master key", t.DecryptInit(s, c.byref(oaep()), master))
    loose = generate("AES-256, session, extractable", "AES_GEN", [(CKA_CLASS, CKO_SECRET), (CKA_TOKEN, False), (CKA_PRIVATE, True), (CKA_SENSITIVE, True), (CKA_EXTRACTABLE, True), (CKA_VALUE_LEN, 32),
                     (CKA_ENCRYPT, True), (CKA_DECRYPT, True), (CKA_WRAP, False), (CKA_UNWRAP, False)])
    code, blob = sized(t.WrapKey, s, c.byref(oaep()), public, loose)
    say("C_WrapKey RSA-OAEP SHA-1 of it", code, f"{len(blob)} bytes")
    back = unwrap("RSA-OAEP of that", kek_template + forced, data=blob) if blob else 0
    if back:
        say("    AES-GCM with both", 0, "same" if encrypt(loose, gcm(iv), text)[1] == encrypt(back, gcm(iv), text)[1] else "DIFFERENT")
    say("C_WrapKey RSA-OAEP of a non-extractable key", sized(t.WrapKey, s, c.byref(oaep()), public, kek)[0])

    wrapper = generate("AES-256, session, wrap and unwrap", "AES_GEN", strict + [(CKA_VALUE_LEN, 32), (CKA_WRAP, True), (CKA_UNWRAP, True), (CKA_ENCRYPT, False), (CKA_DECRYPT, False)])
    for name in ("AES_KW", "AES_KWP"):
        code, blob = sized(t.WrapKey, s, c.byref(mechanism(name)), wrapper, loose)
        say(f"C_WrapKey {name}", code, f"{len(blob)} bytes")
        unwrap(name, kek_template + forced, key=wrapper, mech=mechanism(name), data=blob or bytes(40))

    # ECDSA over a digest made here; JWTs and the audit log need the raw r || s.
    ec_public, ec_private = pair("P-256, token", "EC_GEN", [(CKA_TOKEN, True), (CKA_VERIFY, True), (CKA_EC_PARAMS, P256), (CKA_LABEL, b"probe-sign")],
                                 [(CKA_TOKEN, True), (CKA_PRIVATE, True), (CKA_SENSITIVE, True), (CKA_EXTRACTABLE, False), (CKA_SIGN, True), (CKA_DERIVE, False), (CKA_LABEL, b"probe-sign"),
                                  (CKA_ALLOWED_MECHANISMS, [CKM["ECDSA"]])])
    code, point = attribute(ec_public, CKA_EC_POINT)
    say("    C_GetAttributeValue CKA_EC_POINT", code, f"{len(point)} bytes")
    digest = hashlib.sha256(b"message").digest()
    code = t.SignInit(s, c.byref(mechanism("ECDSA")), ec_private)
    code, signature = (code, b"") if code else sized(t.Sign, s, digest, 32)
    say("C_SignInit/C_Sign ECDSA", code, f"{len(signature)} bytes")
    say("C_VerifyInit/C_Verify ECDSA", t.VerifyInit(s, c.byref(mechanism("ECDSA")), ec_public) or t.Verify(s, digest, 32, signature, len(signature)))
    create("P-256 private session key of known value", [(CKA_CLASS, CKO_PRIVATE), (CKA_KEY_TYPE, CKK_EC), (CKA_TOKEN, False), (CKA_PRIVATE, True), (CKA_SENSITIVE, True), (CKA_SIGN, True),
           (CKA_EC_PARAMS, P256), (CKA_VALUE, bytes.fromhex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721"))])
    create("P-256 public session key", [(CKA_CLASS, CKO_PUBLIC), (CKA_KEY_TYPE, CKK_EC), (CKA_TOKEN, False), (CKA_VERIFY, True), (CKA_EC_PARAMS, P256), (CKA_EC_POINT, point)])
    rsa_public = create("RSA-4096 public session key", [(CKA_CLASS, CKO_PUBLIC), (CKA_KEY_TYPE, CKK_RSA), (CKA_TOKEN, False), (CKA_ENCRYPT, True), (CKA_WRAP, True), (CKA_MODULUS, modulus), (CKA_PUBLIC_EXPONENT, b"\1\0\1")])
    say("    C_Encrypt RSA-OAEP with it", encrypt(rsa_public, oaep(), key_bytes)[0])
    say("C_DigestInit/C_Digest SHA-256", *(lambda r: (r[0], "right" if r[1] == digest else "WRONG"))((lambda code: (code, b"") if code else sized(t.Digest, s, b"message", 7))(t.DigestInit(s, c.byref(mechanism("SHA256"))))))

    # The epoch: a data object that is found, read and set.
    data = create("data object, token, private", [(CKA_CLASS, CKO_DATA), (CKA_TOKEN, True), (CKA_PRIVATE, True), (CKA_MODIFIABLE, True), (CKA_LABEL, b"probe-epoch"), (CKA_APPLICATION, b"strongroom"), (CKA_VALUE, b"epoch-1")])
    code, found = find([(CKA_CLASS, CKO_DATA), (CKA_LABEL, b"probe-epoch")])
    say("C_FindObjects data object", code, f"{len(found)} found")
    array, n = template([(CKA_VALUE, b"epoch-2")])
    say("C_SetAttributeValue CKA_VALUE of it", t.SetAttributeValue(s, data, array, n), attribute(data, CKA_VALUE)[1].decode())
    for name, kind in [("CKA_APPLICATION", CKA_APPLICATION), ("CKA_OBJECT_ID", 0x12), ("CKA_LABEL", CKA_LABEL)]:
        array, n = template([(kind, b"probe-epoch-2")])
        say(f"C_SetAttributeValue {name} of it", t.SetAttributeValue(s, data, array, n), attribute(data, kind)[1].decode())
    code, found = find([(CKA_CLASS, CKO_PRIVATE), (CKA_LABEL, b"probe-master"), (CKA_EXTRACTABLE, False)])
    say("C_FindObjects private key", code, f"{len(found)} found")
    handle, (array, n) = UL(0), template([(CKA_EXTRACTABLE, True)])
    say("C_CopyObject of a key as extractable", t.CopyObject(s, kek, array, n, c.byref(handle)))
    say("C_SetAttributeValue CKA_EXTRACTABLE=true", t.SetAttributeValue(s, kek, array, n))
    size = UL(0)
    say("C_GetObjectSize", t.GetObjectSize(s, data, c.byref(size)))

    # Sessions: a key made in one is used in another; what closing does.
    say("C_OpenSession, a second", t.OpenSession(slot, 6, None, None, c.byref(h)))
    second, first, s = h.value, s, h.value
    say("    AES-GCM there with the first one's session key", encrypt(kek, gcm(iv), text)[0])
    s = first
    say("C_CloseSession of the second", t.CloseSession(second))
    say("    C_GetSessionInfo of it", t.GetSessionInfo(second, session_info))
    # C_DestroyObject is how a KEK leaves and how a used wrapped key is dropped
    say("C_DestroyObject of a session key", t.DestroyObject(s, kek))
    say("    AES-GCM with it", encrypt(kek, gcm(iv), text)[0])
    for target in (data, public, master, ec_public, ec_private, *find([(CKA_LABEL, b"probe-store")])[1]):
        code = t.DestroyObject(s, target)
    say("C_DestroyObject of the token objects", code)
    say("C_WaitForSlotEvent (CKF_DONT_BLOCK)", t.WaitForSlotEvent(1, c.byref(size), None))
    say("C_CloseAllSessions", t.CloseAllSessions(slot))
    say("    C_GetSessionInfo after", t.GetSessionInfo(s, session_info))
    say("C_OpenSession after", t.OpenSession(slot, 6, None, None, c.byref(h)))
    say("C_Finalize", t.Finalize(None))


if __name__ == "__main__":
    main()
