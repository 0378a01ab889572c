#!/usr/bin/env python3
"""Writes what the image is made of, as a CycloneDX 1.6 bill of materials (ECMA-424).

    sbom.py VERSION DEBIAN_PACKAGES CRATES PROGRAM_SHA256 >sbom.cdx.json

DEBIAN_PACKAGES: lines of packages.sh: name, version, architecture, source package, SHA-256 of the .deb. Each that was unpacked is named, also where only
some of its files are in the image. CRATES: lines "name vVERSION" of `cargo tree`. The same input gives the same bytes; the time is SOURCE_DATE_EPOCH.
"""
import datetime
import hashlib
import json
import os
import sys
import urllib.parse
import uuid


def quote(text):
    return urllib.parse.quote(text, safe="")


def debian(line):
    name, version, architecture, source, sha256 = line.split()
    return {
        "type": "library",
        "bom-ref": f"deb/{name}",
        "name": name,
        "version": version,
        "purl": f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}&distro=trixie&upstream={quote(source)}",
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }


def crate(line):
    name, version = line.split()[:2]
    version = version.removeprefix("v")
    return {
        "type": "library",
        "bom-ref": f"cargo/{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:cargo/{quote(name)}@{quote(version)}",
    }


def main(version, packages, crates, program):
    with open(packages, encoding="utf-8") as lines:
        components = [debian(line) for line in sorted(set(lines))]
    with open(crates, encoding="utf-8") as lines:
        components += [crate(line) for line in sorted(set(lines)) if line.strip()]
    names = json.dumps(components, sort_keys=True).encode() + program.encode()
    time = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc)
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(names).digest()[:16], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "operating-system",
                "bom-ref": "image",
                "name": "strongroom-image",
                "version": version,
                "components": [
                    {
                        "type": "application",
                        "bom-ref": "strongroom",
                        "name": "strongroom",
                        "version": version,
                        "hashes": [{"alg": "SHA-256", "content": program}],
                    }
                ],
            },
        },
        "components": components,
    }
    json.dump(bom, sys.stdout, indent=1)
    print()


main(*sys.argv[1:])
