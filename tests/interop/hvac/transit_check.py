"""Drives a Strongroom server with hvac, HashiCorp Vault's client for Python: every transit function that applies to aes256-gcm96.

One line per check; the exit code is 1 if any failed. The server and the credentials come from the environment, see Server.from_environment and
../README.md. Each expectation also holds for a real Vault: run it against one to see (STRONGROOM_TOKEN is then needed).
"""

import sys

import byok
import checks_crypto
import checks_keys
from harness import CHECKS, Mismatch, Server, Skip


def main() -> int:
    """Run every check, also after one has failed, and delete the keys that were made."""
    server = Server.from_environment()
    failed = 0
    try:
        for name, check in CHECKS:
            try:
                check(server)
                print(f"ok    {name}", flush=True)
            except Skip as reason:
                print(f"skip  {name}: {reason}", flush=True)
            except Mismatch as mismatch:
                failed += 1
                print(f"FAIL  {name}: {mismatch}", flush=True)
            except Exception as error:  # noqa: BLE001  (whatever a client library raises is a failed check, and the rest still runs)
                failed += 1
                print(f"FAIL  {name}: {type(error).__name__}: {error}", flush=True)
    finally:
        server.delete_made_keys()
    print(f"{len(CHECKS)} checks, {failed} failed")
    return 1 if failed else 0


# The modules register their checks when they are imported.
assert byok and checks_crypto and checks_keys

if __name__ == "__main__":
    sys.exit(main())
