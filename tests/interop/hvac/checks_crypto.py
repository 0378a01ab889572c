"""Cryptography: encrypt, decrypt, rewrap, batches, derived and convergent keys, data keys, random, hash, HMAC."""

import base64
import hashlib

from harness import Mismatch, Server, b64, check, equal, holds, refused
from hvac.exceptions import InvalidPath, InvalidRequest

NO_KEY = "encryption key not found"
NOT_AUTHENTIC = "cipher: message authentication failed"
TOO_OLD = "ciphertext or signature version is disallowed by policy (too old)"


@check("encrypt and decrypt: 0 B to 64 KiB, associated data")
def round_trips(server: Server) -> None:
    name = server.key()
    for size in (0, 1, 16, 33, 4096, 65536):
        plaintext = bytes(i * 7 % 256 for i in range(size))
        equal(f"{size} bytes", plaintext, server.decrypt(name, server.encrypt(name, plaintext)))
    one, other = (server.encrypt(name, b"same") for _ in range(2))
    holds("two ciphertexts of one text differ", one != other, one)
    prefix, version, body = one.split(":")
    equal("prefix", ("vault", "v1"), (prefix, version))
    equal("length is nonce, text, tag", 12 + 4 + 16, len(base64.b64decode(body, validate=True)))
    bound = server.encrypt(name, b"bound", associated_data=b64(b"row 7"))
    equal("with its associated data", b"bound", server.decrypt(name, bound, associated_data=b64(b"row 7")))
    with refused("with other associated data", InvalidRequest, NOT_AUTHENTIC):
        server.decrypt(name, bound, associated_data=b64(b"row 8"))
    with refused("without associated data", InvalidRequest, NOT_AUTHENTIC):
        server.decrypt(name, bound)


@check("encrypt: key_version")
def key_version(server: Server) -> None:
    name = server.key()
    for _ in range(3):
        server.transit.rotate_key(name, mount_point=server.mount)
    answer = server.transit.encrypt_data(name, plaintext=b64(b"x"), key_version=2, mount_point=server.mount)["data"]
    equal("key_version", 2, answer["key_version"])
    holds("the ciphertext's version", answer["ciphertext"].startswith("vault:v2:"), answer["ciphertext"])
    equal("key_version 0 is the latest", 4, server.write(f"encrypt/{name}", {"plaintext": b64(b"x"), "key_version": 0})["data"]["key_version"])
    server.transit.update_key_configuration(name, min_encryption_version=3, mount_point=server.mount)
    for version, message in [
        (5, "requested version for encryption is higher than the latest key version"),
        (2, "requested version for encryption is less than the minimum encryption key version"),
        (-1, "requested version for encryption is negative"),
    ]:
        with refused(f"key_version {version}", InvalidRequest, message):
            server.encrypt(name, b"x", key_version=version)


@check("encrypt: bad input")
def encrypt_badly(server: Server) -> None:
    name = server.key()
    with refused("no base64", InvalidRequest, "illegal base64 data at input byte 2"):
        server.transit.encrypt_data(name, plaintext="ab!d", mount_point=server.mount)
    with refused("no plaintext", InvalidRequest, "missing plaintext to encrypt"):
        server.write(f"encrypt/{name}", {})
    absent = server.name()
    if server.upserts:
        holds("the key is made", server.encrypt(absent, b"x").startswith("vault:v1:"), absent)
        equal("and can be read", 1, server.read(absent)["latest_version"])
    else:
        try:
            server.encrypt(absent, b"x")
        except Exception as error:
            holds("encrypting with no key is a 400 or a 403", type(error).__name__ in ("InvalidRequest", "Forbidden"), repr(error))
        else:
            raise Mismatch("encrypting with an absent key: expected a refusal, got an answer (STRONGROOM_UPSERTS=1 says that the server makes it)")
        with refused("and no key is made", InvalidPath):
            server.read(absent)


@check("decrypt: altered, truncated, of another key, of no version")
def decrypt_badly(server: Server) -> None:
    name, other = server.key(), server.key()
    whole = server.encrypt(name, b"sixteen bytes...")
    head, body = whole.rsplit(":", 1)
    raw = base64.b64decode(body)
    for at in range(len(raw)):
        altered = bytes(byte ^ (at == i) for i, byte in enumerate(raw))
        with refused(f"bit 0 of byte {at} flipped", InvalidRequest, NOT_AUTHENTIC):
            server.decrypt(name, f"{head}:{b64(altered)}")
    for what, ciphertext, message in [
        ("cut by a byte", f"{head}:{b64(raw[:-1])}", NOT_AUTHENTIC),
        ("nonce and half a tag", f"{head}:{b64(raw[:20])}", NOT_AUTHENTIC),
        ("eleven bytes", f"{head}:{b64(raw[:11])}", "invalid ciphertext length"),
        ("no bytes", f"{head}:", "invalid ciphertext length"),
        ("empty", "", "missing ciphertext to decrypt"),
        ("no prefix", body, "invalid ciphertext: no prefix"),
        ("another prefix", f"vaultx:v1:{body}", "invalid ciphertext: no prefix"),
        ("two fields", f"vault:v1{body}", "invalid ciphertext: wrong number of fields"),
        ("no number", f"vault:v:{body}", "invalid ciphertext: version number could not be decoded"),
        ("a huge number", f"vault:v99999999999999999999:{body}", "invalid ciphertext: version number could not be decoded"),
        ("a version to come", f"vault:v2:{body}", "invalid ciphertext: version is too new"),
        ("a negative version", f"vault:v-1:{body}", TOO_OLD),
        ("no base64", f"{head}:{body[:-2]}!!", "invalid ciphertext: could not decode base64"),
        ("a field too many", f"{whole}:{body}", "invalid ciphertext: could not decode base64"),
    ]:
        with refused(what, InvalidRequest, message):
            server.decrypt(name, ciphertext)
    equal("version 0 is version 1", b"sixteen bytes...", server.decrypt(name, f"vault:v0:{body}"))
    with refused("of another key", InvalidRequest, NOT_AUTHENTIC):
        server.decrypt(other, whole)
    with refused("no such key", InvalidRequest, NO_KEY):
        server.decrypt(server.name(), whole)
    with refused("no ciphertext", InvalidRequest, "missing ciphertext to decrypt"):
        server.write(f"decrypt/{name}", {})


@check("decrypt: below min_decryption_version")
def decrypt_old(server: Server) -> None:
    name = server.key()
    old = server.encrypt(name, b"old")
    server.transit.rotate_key(name, mount_point=server.mount)
    server.transit.update_key_configuration(name, min_decryption_version=2, mount_point=server.mount)
    with refused("version 1", InvalidRequest, TOO_OLD):
        server.decrypt(name, old)
    server.transit.update_key_configuration(name, min_decryption_version=1, mount_point=server.mount)
    equal("allowed again", b"old", server.decrypt(name, old))


@check("rewrap: to the latest version, to a given one, in a batch")
def rewrap(server: Server) -> None:
    name = server.key()
    old = server.encrypt(name, b"carried over")
    for _ in range(2):
        server.transit.rotate_key(name, mount_point=server.mount)
    for wanted, options in ((3, {}), (2, {"key_version": 2})):
        data = server.transit.rewrap_data(name, old, mount_point=server.mount, **options)["data"]
        equal("key_version", wanted, data["key_version"])
        holds("its ciphertext's version", data["ciphertext"].startswith(f"vault:v{wanted}:"), data["ciphertext"])
        equal("its text", b"carried over", server.decrypt(name, data["ciphertext"]))
    batch = [{"ciphertext": old, "reference": "first"}, {"ciphertext": "vault:v1:AAAA", "reference": "second"}]
    results = server.transit.rewrap_data(name, None, batch_input=batch, mount_point=server.mount)["data"]["batch_results"]
    equal("first item's text", b"carried over", server.decrypt(name, results[0]["ciphertext"]))
    equal("second item's error", "invalid ciphertext length", results[1]["error"])
    equal("references", ["first", "second"], [item["reference"] for item in results])
    with refused("altered", InvalidRequest, NOT_AUTHENTIC):
        server.transit.rewrap_data(name, old[:-8] + "AAAAAAA=", mount_point=server.mount)
    with refused("no such key", InvalidRequest, NO_KEY):
        server.transit.rewrap_data(server.name(), old, mount_point=server.mount)


@check("batches: encrypt and decrypt 256 items")
def batches(server: Server) -> None:
    name = server.key()
    texts = [f"item {i}".encode() for i in range(256)]
    items = [{"plaintext": b64(text), "reference": str(i)} for i, text in enumerate(texts)]
    sealed = server.transit.encrypt_data(name, batch_input=items, mount_point=server.mount)["data"]["batch_results"]
    equal("references, in order", [str(i) for i in range(256)], [item["reference"] for item in sealed])
    equal("key_version of each", {1}, {item["key_version"] for item in sealed})
    items = [{"ciphertext": item["ciphertext"]} for item in sealed]
    opened = server.transit.decrypt_data(name, batch_input=items, mount_point=server.mount)["data"]["batch_results"]
    equal("texts, in order", texts, [base64.b64decode(item["plaintext"]) for item in opened])
    bound = [{"plaintext": b64(b"x"), "associated_data": b64(b"a")}, {"plaintext": b64(b"y")}]
    sealed = server.transit.encrypt_data(name, batch_input=bound, mount_point=server.mount)["data"]["batch_results"]
    equal("associated data is each item's own", b"x", server.decrypt(name, sealed[0]["ciphertext"], associated_data=b64(b"a")))
    equal("and none where none was given", b"y", server.decrypt(name, sealed[1]["ciphertext"]))


@check("batches: errors of single items")
def batch_errors(server: Server) -> None:
    name = server.key()
    good = server.encrypt(name, b"good")
    items = [{"ciphertext": good}, {"ciphertext": "vault:v9:AAAA"}, {"ciphertext": ""}, {"ciphertext": "bare"}]
    expected = [None, "invalid ciphertext: version is too new", "missing ciphertext to decrypt", "invalid ciphertext: no prefix"]
    try:
        server.transit.decrypt_data(name, batch_input=items, mount_point=server.mount)
        raise Mismatch("a batch with failed items: expected status 400, got an answer")
    except InvalidRequest as error:
        equal("a partly failed batch has no `errors`", None, error.errors)
        results = error.json["data"]["batch_results"]
    equal("errors", expected, [item.get("error") for item in results])
    equal("the good item", b"good", base64.b64decode(results[0]["plaintext"]))
    answer = server.write(f"decrypt/{name}", {"batch_input": items, "partial_failure_response_code": 200})
    equal("errors, with partial_failure_response_code 200", expected, [item.get("error") for item in answer["data"]["batch_results"]])
    with refused("all failed: 400 whatever the code asked for", InvalidRequest):
        server.write(f"decrypt/{name}", {"batch_input": items[1:], "partial_failure_response_code": 200})
    items = [{"plaintext": b64(b"good")}, {"plaintext": "!"}]
    answer = server.write(f"encrypt/{name}", {"batch_input": items, "partial_failure_response_code": 207})
    results = answer.json()["data"]["batch_results"]
    equal("status", 207, answer.status_code)
    equal("the good item", b"good", server.decrypt(name, results[0]["ciphertext"]))
    equal("the bad item", "illegal base64 data at input byte 0", results[1]["error"])
    for operation in ("encrypt", "decrypt", "rewrap", "hmac"):
        with refused(f"{operation}, an empty batch", InvalidRequest, "missing batch input to process"):
            server.write(f"{operation}/{name}", {"batch_input": []})
    with refused("context in some items only", InvalidRequest, "context should be set either in all the request blocks or in none"):
        server.write(f"encrypt/{name}", {"batch_input": [{"plaintext": "", "context": b64(b"c")}, {"plaintext": ""}]})


@check("derived key: another context is another key")
def derived(server: Server) -> None:
    name = server.key(derived=True)
    context, other = b64(b"tenant 1"), b64(b"tenant 2")
    sealed = server.encrypt(name, b"tenant data", context=context)
    equal("its own context", b"tenant data", server.decrypt(name, sealed, context=context))
    with refused("another context", InvalidRequest, NOT_AUTHENTIC):
        server.decrypt(name, sealed, context=other)
    missing = (
        "missing 'context' for key derivation; the key was created using a derived key, which means additional, "
        "per-request information must be included in order to perform operations with the key"
    )
    with refused("no context to decrypt", InvalidRequest, missing):
        server.decrypt(name, sealed)
    with refused("no context to encrypt", InvalidRequest, missing):
        server.encrypt(name, b"x")
    with refused("context that is no base64", InvalidRequest, "illegal base64 data at input byte 0"):
        server.encrypt(name, b"x", context="!")
    server.transit.rotate_key(name, mount_point=server.mount)
    fresh = server.transit.rewrap_data(name, sealed, context=context, mount_point=server.mount)["data"]["ciphertext"]
    holds("rewrapped", fresh.startswith("vault:v2:"), fresh)
    equal("rewrapped text", b"tenant data", server.decrypt(name, fresh, context=context))
    wrapped = server.transit.generate_data_key(name, "plaintext", context=context, mount_point=server.mount)["data"]
    equal("a data key", base64.b64decode(wrapped["plaintext"]), server.decrypt(name, wrapped["ciphertext"], context=context))


@check("convergent key: one text, one context, one ciphertext")
def convergent(server: Server) -> None:
    name = server.key(derived=True, convergent_encryption=True)
    context = b64(b"column email")
    one = server.encrypt(name, b"a@example.org", context=context)
    equal("the same again", one, server.encrypt(name, b"a@example.org", context=context))
    holds("another text", one != server.encrypt(name, b"b@example.org", context=context), one)
    holds("another context", one != server.encrypt(name, b"a@example.org", context=b64(b"column name")), one)
    equal("back", b"a@example.org", server.decrypt(name, one, context=context))
    server.transit.rotate_key(name, mount_point=server.mount)
    new = server.encrypt(name, b"a@example.org", context=context)
    holds("another version", new.startswith("vault:v2:"), new)
    equal("by its old version", one, server.encrypt(name, b"a@example.org", context=context, key_version=1))
    equal("old one back", b"a@example.org", server.decrypt(name, one, context=context))


@check("data keys: 128, 256, 512 bits, plaintext and wrapped")
def data_keys(server: Server) -> None:
    name = server.key()
    for bits in (128, 256, 512, None):
        both = server.transit.generate_data_key(name, "plaintext", bits=bits, mount_point=server.mount)["data"]
        key = base64.b64decode(both["plaintext"], validate=True)
        equal(f"bytes of {bits} bits", (bits or 256) // 8, len(key))
        equal("the wrapped key", key, server.decrypt(name, both["ciphertext"]))
        equal("key_version", 1, both["key_version"])
        only = server.transit.generate_data_key(name, "wrapped", bits=bits, mount_point=server.mount)["data"]
        holds("`wrapped` gives no plaintext", "plaintext" not in only, sorted(only))
        equal(f"bytes of {bits} bits, wrapped", (bits or 256) // 8, len(server.decrypt(name, only["ciphertext"])))
    with refused("192 bits", InvalidRequest, "invalid bit length"):
        server.write(f"datakey/plaintext/{name}", {"bits": 192})
    with refused("neither plaintext nor wrapped", InvalidRequest, "Invalid path, must be 'plaintext' or 'wrapped'"):
        server.write(f"datakey/naked/{name}", {})
    with refused("no such key", InvalidRequest, NO_KEY):
        server.transit.generate_data_key(server.name(), "wrapped", mount_point=server.mount)


@check("random bytes")
def random_bytes(server: Server) -> None:
    def draw(**options) -> str:
        return server.transit.generate_random_bytes(mount_point=server.mount, **options)["data"]["random_bytes"]

    equal("default", 32, len(base64.b64decode(draw(), validate=True)))
    equal("7 bytes", 7, len(base64.b64decode(draw(n_bytes=7), validate=True)))
    equal("48 bytes in hex", 48, len(bytes.fromhex(draw(n_bytes=48, output_format="hex"))))
    equal("by the path", 5, len(base64.b64decode(server.write("random/5", {})["data"]["random_bytes"])))
    holds("two draws differ", draw() != draw(), None)
    with refused("no bytes", InvalidRequest, '"bytes" cannot be less than 1'):
        draw(n_bytes=0)
    with refused("too many", InvalidRequest, '"bytes" should be less than 131072'):
        draw(n_bytes=131073)
    with refused("a format", InvalidRequest, 'unsupported encoding format "octal"; must be "hex" or "base64"'):
        draw(output_format="octal")


@check("hash: SHA-2 and SHA-3")
def hashes(server: Server) -> None:
    data = b"the quick brown fox"
    for bits in (224, 256, 384, 512):
        for family, prefix in (("sha2", "sha"), ("sha3", "sha3_")):
            expected = hashlib.new(f"{prefix}{bits}", data)
            answer = server.write(f"hash/{family}-{bits}", {"input": b64(data), "format": "base64"})
            equal(f"{family}-{bits}", b64(expected.digest()), answer["data"]["sum"])
            if family == "sha2":  # hvac itself knows no SHA-3
                answer = server.transit.hash_data(b64(data), algorithm=f"sha2-{bits}", mount_point=server.mount)
                equal(f"{family}-{bits} in hex", expected.hexdigest(), answer["data"]["sum"])
    answer = server.transit.hash_data(b64(data), mount_point=server.mount)
    equal("default", hashlib.sha256(data).hexdigest(), answer["data"]["sum"])
    with refused("no input", InvalidRequest, "input missing"):
        server.write("hash", {})
    with refused("no base64", InvalidRequest, "unable to decode input as base64: illegal base64 data at input byte 0"):
        server.write("hash", {"input": "!"})
    with refused("an algorithm", InvalidRequest, "unsupported algorithm md5"):
        server.write("hash", {"input": "", "algorithm": "md5"})


@check("HMAC and its verification")
def hmac(server: Server) -> None:
    name = server.key()
    data = b64(b"a message")

    def verify(mac: str, input_: str = data, **options) -> bool:
        answer = server.transit.verify_signed_data(name, hash_input=input_, hmac=mac, mount_point=server.mount, **options)
        return answer["data"]["valid"]

    for bits in (224, 256, 384, 512):
        algorithm = f"sha2-{bits}"
        mac = server.transit.generate_hmac(name, data, algorithm=algorithm, mount_point=server.mount)["data"]["hmac"]
        holds("its form", mac.startswith("vault:v1:") and len(base64.b64decode(mac[9:], validate=True)) == bits // 8, mac)
        equal("the same again", mac, server.transit.generate_hmac(name, data, algorithm=algorithm, mount_point=server.mount)["data"]["hmac"])
        answer = server.write(f"verify/{name}/{algorithm}", {"input": data, "hmac": mac})
        equal(f"{algorithm} verifies", True, answer["data"]["valid"])
    mac = server.transit.generate_hmac(name, data, mount_point=server.mount)["data"]["hmac"]
    equal("the default is sha2-256", True, verify(mac))
    equal("another message", False, verify(mac, b64(b"another message")))
    server.transit.rotate_key(name, mount_point=server.mount)
    fresh = server.transit.generate_hmac(name, data, mount_point=server.mount)["data"]["hmac"]
    holds("of version 2", fresh.startswith("vault:v2:") and fresh[9:] != mac[9:], fresh)
    equal("version 1 still verifies", True, verify(mac))
    equal("by key_version", mac, server.transit.generate_hmac(name, data, key_version=1, mount_point=server.mount)["data"]["hmac"])
    equal("version 1's bytes as version 2's", False, verify(mac.replace("v1", "v2")))
    for what, altered, message in [
        ("no prefix", mac[9:], "invalid HMAC to verify: no prefix"),
        ("no version", "vault:v" + mac[9:], "invalid HMAC: wrong number of fields"),
        ("a version to come", mac.replace("v1", "v3"), "invalid HMAC: version is too new"),
    ]:
        with refused(what, InvalidRequest, message):
            verify(altered)
    with refused("key_version 3", InvalidRequest, "key version does not exist; latest key version is 2"):
        server.transit.generate_hmac(name, data, key_version=3, mount_point=server.mount)
    with refused("nothing to verify", InvalidRequest, "neither a 'signature' nor an 'hmac' were given to verify"):
        server.write(f"verify/{name}", {"input": data})
    with refused("no input", InvalidRequest, "missing input for HMAC"):
        server.write(f"hmac/{name}", {})
    with refused("no such key", InvalidRequest, NO_KEY):
        server.transit.generate_hmac(server.name(), data, mount_point=server.mount)
    results = server.write(f"hmac/{name}", {"batch_input": [{"input": data}, {"input": "!"}]})["data"]["batch_results"]
    equal("in a batch", fresh, results[0]["hmac"])
    holds("its bad item", "unable to decode input as base64" in results[1]["error"], results[1])
    batch = [{"input": data, "hmac": mac}, {"input": b64(b"another"), "hmac": mac}]
    results = server.write(f"verify/{name}", {"batch_input": batch})["data"]["batch_results"]
    equal("verified in a batch", [True, False], [item.get("valid", False) for item in results])
    server.transit.update_key_configuration(name, min_decryption_version=2, mount_point=server.mount)
    with refused("below min_decryption_version", InvalidRequest, "cannot verify HMAC: version is too old (disallowed by policy)"):
        verify(mac)
