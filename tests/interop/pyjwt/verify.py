"""Verifies tokens, one a line on standard input, with PyJWT, as a service would that keeps the public keys by their cache headers alone.

A line is "<seconds to wait> <token>". Keys are fetched when there are none and when those there are have reached the `max-age` that came with
them, and at no other time: a token of an unknown key is a rejection. Prints "verified <n>"; exit code 1 if any was rejected.
"""

import http.client
import json
import os
import re
import ssl
import sys
import threading
import time
import urllib.parse

import jwt

ADDRESS = urllib.parse.urlparse(os.environ["STRONGROOM_ADDR"])


class Keys:
    """The set of public keys, as long as it may be kept."""

    def __init__(self):
        self.tls = ssl.create_default_context(cafile=os.environ["STRONGROOM_CA"])
        self.tls.load_cert_chain(os.environ["STRONGROOM_CERT"], os.environ["STRONGROOM_KEY"])
        self.lock = threading.Lock()
        self.until = 0.0
        self.tag = None
        self.keys = {}
        self.unchanged = 0

    def get(self, kid):
        with self.lock:
            if time.monotonic() >= self.until:
                self.fetch()
            return self.keys[kid]

    def fetch(self):
        connection = http.client.HTTPSConnection(ADDRESS.hostname, ADDRESS.port, context=self.tls, timeout=10)
        headers = {"If-None-Match": self.tag} if self.tag else {}
        connection.request("GET", "/.well-known/jwks.json", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        max_age = re.search(r"max-age=(\d+)", answer.headers["Cache-Control"])
        self.until = time.monotonic() + int(max_age.group(1))
        if answer.status == 304:
            self.unchanged += 1
            return
        assert answer.status == 200, (answer.status, body)
        self.tag = answer.headers["ETag"]
        self.keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(json.loads(body)).keys}


def main():
    keys, verified, rejected = Keys(), 0, []
    keys.fetch()
    waiting = []

    def verify(token):
        nonlocal verified
        try:
            kid = jwt.get_unverified_header(token)["kid"]
            key = keys.get(kid)
            jwt.decode(token, key, algorithms=["ES256", "PS256", "EdDSA"], audience="shop", options={"require": ["exp", "iat", "nbf", "jti"]}, leeway=1)
            verified += 1
        except Exception as error:  # noqa: BLE001: each is a rejection
            rejected.append(f"{type(error).__name__}: {error}: {token}")

    for line in sys.stdin:
        wait, token = line.split()
        timer = threading.Timer(float(wait), verify, [token])
        timer.start()
        waiting.append(timer)
    for timer in waiting:
        timer.join()
    for why in rejected[:10]:
        print(f"rejected: {why}", file=sys.stderr)
    print(f"verified {verified}, rejected {len(rejected)}, not modified {keys.unchanged}")
    return 1 if rejected else 0


sys.exit(main())
