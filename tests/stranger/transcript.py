#!/usr/bin/env python3
"""Checks a ceremony's transcript: a second implementation, from docs/transcript-format.md alone.

    transcript.py TRANSCRIPT... [--plan FILE] [--audit-key PEM] [--token-serial SERIAL] [--previous PATH]... [--rehearsal]

PATH is a transcript that a later ceremony goes on from, or a folder of them.

Exit code 0 if every one is valid, 1 if not; each problem that was found is printed as "TRANSCRIPT: problem". Needs Python 3.11 and the
package `cryptography`.
"""

import argparse
import base64
import datetime
import functools
import hashlib
import ipaddress
import json
import pathlib
import re
import sys
import tomllib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from common import ORDER, Invalid, is_integer, members, need, p256_key, parse, spki_of, unbase64, unhex, verify

KINDS = {
    "birth": [
        "opening", "self-test", "pins", "token", "keys", "evidence",
        "store", "identity", "trial", "runtime-pin", "closing",
    ],
    "replace-custodian": ["opening", "pins", "closing"],
    "backup": ["opening", "transport", "export", "closing"],
    "add-token": ["opening", "second-token", "copy", "closing"],
    "restore": [
        "opening", "pins", "token", "keys", "evidence", "store", "identity", "trial", "runtime-pin", "closing",
    ],
    "rotate-master": [
        "opening", "self-test", "successor", "trust", "move", "retire", "keys", "evidence", "closing",
    ],
    "destroy": ["opening", "inventory", "consent", "destroy", "closing"],
}
# What the machine must have computed rightly.
KNOWN_ANSWERS = [
    "SHA-256, FIPS 180-4 abc",
    "HMAC-SHA-256, RFC 4231 case 2",
    "AES-256-GCM, the GCM specification's case 16",
    "ECDSA P-256 signing and verification, RFC 6979 A.2.5",
    "ECDH P-256, RFC 5903 8.1",
]
# The kinds that are sealed before that step, not at the end.
SEALED_BEFORE = {"destroy": "destroy"}
# What the plan's [keys] must have for a kind.
NEEDS = {"backup": "backup", "add-token": "backup", "restore": "backup", "rotate-master": "transfer"}
# What in the summary may differ from the transcript before.
MAY_CHANGE = {
    "replace-custodian": set(), "backup": set(), "add-token": set(), "destroy": set(), "rotate-master": set(),
    "restore": {"token", "audit_key", "strongroom-audit", "strongroom-wrapping"},
}
# Labels of the keys that each token makes for itself.
OWN = ("strongroom-audit", "strongroom-wrapping")
# What a rotation of the master key replaces.
ROTATED = re.compile(r"strongroom-(master|transfer|memory-master)(-[0-9]+)?")
HEAD = {"type": str, "seq": int, "time": str, "mode": str, "prev": str}
BODY = {
    "open": {
        "format": int, "ceremony_id": str, "kind": str, "plan_sha256": str,
        "plan": str, "signatures": list, "software": dict,
    },
    "begin": {"step": str, "actor": list, "inputs": dict},
    "note": {"step": str, "text": str, "data": None},
    "done": {"step": str, "actor": list, "outputs": dict},
    "close": {"summary": dict, "audit_key": str},
    "signature": {"name": str, "role": str, "key": str, "signature": str},
    "seal": {"signature": str},
}
LONGEST_LINE = 4 << 20
# The document: its table of attributes is read, not copied.
FORMAT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "transcript-format.md"
FIXED, MOVABLE, MOVED = range(3)
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
SPACE = " \xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
# Of what is not ASCII a name has none of these.
SIGNS = [
    tuple(int(number, 16) for number in (one + "-" + one).split("-")[:2] if number) for one in
    """00D7 00F7 034F 061C 115F-1160 1680 17B4-17B5 180B-180F 2000-2BFF 2E00-2E7F 2FF0-3004 3008-3020 3164 E000-F8FF FDD0-FDEF
    FE00-FE6F FEFF-FF0F FF1A-FF20 FF3B-FF40 FF5B-FF65 FFA0 FFE0-FFFF 1D000-1D7FF 1F000-1FAFF E0000-10FFFF""".split()
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("transcripts", nargs="+", metavar="TRANSCRIPT")
    parser.add_argument("--plan")
    parser.add_argument("--audit-key")
    parser.add_argument("--token-serial")
    parser.add_argument("--previous", action="append", default=[], type=pathlib.Path)
    parser.add_argument("--rehearsal", action="store_true")
    options = parser.parse_args()
    previous = {}
    for path in options.previous:
        for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
            content = file.read_bytes()
            previous[hashlib.sha256(content).hexdigest()] = content
    valid = True
    for path in options.transcripts:
        with open(path, "rb") as file:
            transcript = Transcript(file.read())
        transcript.check()
        transcript.anchor(options)
        transcript.go_back(previous)
        if not transcript.problems and transcript.mode == "REHEARSAL":
            print(f"{path}: REHEARSAL: this transcript is no evidence", file=sys.stderr)
            if not options.rehearsal:
                transcript.problems.append("it is of a REHEARSAL")
        for problem in transcript.problems:
            print(f"{path}: {problem}")
        valid = valid and not transcript.problems
    return 0 if valid else 1


class Transcript:
    def __init__(self, content):
        self.content = content
        self.problems = []
        self.mode = None
        self.kind = None
        self.steps = KINDS["birth"]
        self.previous = None
        self.ceremony_id = None
        self.plan = None
        self.plan_text = None
        self.people = []
        self.outputs = {}
        self.spares = []  # second tokens with the same keys and PINs
        self.came = False  # the token's keys came from another one by a backup
        self.begun = None
        self.closed = None  # the close line, its seq and hash
        self.signatures = 0
        self.sealed = False
        self.ended = False
        self.seq = 0
        self.hash = bytes(32)
        self.time = None

    def check(self):
        *lines, rest = self.content.split(b"\n")
        for number, line in enumerate(lines, 1):
            if not self.guard(f"line {number}", self.line, number, line):
                # What follows is still compared with the bytes that are there.
                self.seq, self.hash = number, hashlib.sha256(line).digest()
        if rest:
            self.problems.append("the last line has no end")
        self.guard("the whole", self.end)
        self.guard("what the steps record", self.facts)

    def guard(self, place, check, *arguments):
        try:
            check(*arguments)
            return True
        except Invalid as problem:
            self.problems.append(f"{place}: {problem}")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError, UnsupportedAlgorithm) as error:
            self.problems.append(f"{place}: not as the format has it ({error!r})")
        return False

    def line(self, number, raw):
        need(len(raw) <= LONGEST_LINE, "too long")
        need(not self.ended, "something follows the last line")
        line = parse(raw)
        kind = line["type"]
        need(isinstance(kind, str) and kind in BODY, f"unknown type {kind!r}")
        more = {"previous_sha256": str} if kind == "open" and line["kind"] != "birth" else {}
        members(line, HEAD | BODY[kind] | more)
        need(line["seq"] == number, "seq is not the line's number")
        need(line["prev"] == self.hash.hex(), "prev is not the hash of the line before")
        need(line["mode"] in ("CEREMONY", "REHEARSAL"), "unknown mode")
        need(self.mode in (None, line["mode"]), "the mode changes")
        self.mode = line["mode"]
        check_time(line["time"])
        need((number == 1) == (kind == "open"), "the first line, and no other, is `open`")
        if kind in ("begin", "note", "done"):
            need(line["step"] in self.steps, f"unknown step {line['step']!r}")
        if kind in ("begin", "done"):
            names = [person["name"] for person in self.people]
            need(line["actor"], "nobody acts")
            need(all(name in names for name in line["actor"]), "an actor who is not in the plan")
        before = (self.seq, self.hash, self.time)
        self.seq, self.hash, self.time = number, hashlib.sha256(raw).digest(), line["time"]
        if kind in ("seal", "signature"):
            getattr(self, kind)(raw, line, *before)
        elif kind != "note":
            getattr(self, kind)(line)

    def open(self, line):
        need(line["format"] == 1, "format")
        need(line["kind"] in KINDS, "kind")
        self.kind = line["kind"]
        self.steps = KINDS[self.kind]
        if self.kind != "birth":
            unhex(line["previous_sha256"], 32)
            self.previous = line["previous_sha256"]
        self.ceremony_id = unhex(line["ceremony_id"], 16)
        self.ids = {self.ceremony_id}
        members(line["software"], {"version": str, "binary_sha256": str})
        plan_hash = hashlib.sha256(line["plan"].encode()).digest()
        need(line["plan_sha256"] == plan_hash.hex(), "plan_sha256 is not the plan's hash")
        self.plan_text, self.plan_hash = line["plan"], plan_hash.hex()
        self.binary = line["software"]["binary_sha256"]
        unhex(self.binary, 32)
        need(not re.search("[\\\\{}\ufeff\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", line["plan"]), "the plan has a character that none has")
        self.plan = tomllib.loads(line["plan"])
        self.people = check_plan(self.plan)
        digest = hashlib.sha256(b"strongroom ceremony plan v1\0" + plan_hash).digest()
        signed = []
        for signature in line["signatures"]:
            members(signature, {"name": str, "key": str, "signature": str})
            person = [p for p in self.people if (p["name"], p["key"]) == (signature["name"], signature["key"])]
            need(person, f"the plan is signed by a stranger, {signature['name']!r}")
            verify(person[0]["signing"], digest, signature["signature"], f"{signature['name']}'s signature of the plan")
            signed.append(signature["key"])
        need(sorted(signed) == sorted(p["key"] for p in self.people), "the plan is not signed once by everyone")
        if self.kind == "birth":
            need("replaces" not in self.plan, "the plan of a birth replaces no other")
        if self.mode == "CEREMONY" and self.kind == "birth":
            need(line["software"]["binary_sha256"] == self.plan["software"]["binary_sha256"], "another program than planned")

    def next(self):
        return (self.steps + [None])[len(self.outputs)]

    def signers(self):
        """Everyone at a birth, later those who were present."""
        if self.kind == "birth":
            return self.people
        present = [one["key"] for one in self.outputs["opening"]["present"]]
        return [person for person in self.people if person["key"] in present]

    def begin(self, line):
        need(not self.closed, "a step after the summary")
        need(line["step"] == self.next(), "a step out of order")
        need(SEALED_BEFORE.get(self.kind) != line["step"] or self.sealed, "a step that must come after the seal")
        self.begun = line["step"]

    def done(self, line):
        need(not self.closed, "a step after the summary")
        need(line["step"] == self.next() == self.begun, "a step is done out of order")
        self.outputs[line["step"]] = line["outputs"]
        self.begun = None

    def close(self, line):
        need(not self.closed, "a second summary")
        need(self.next() is None and self.begun is None, "the summary before the end of all steps")
        self.closed = (line, self.seq, self.hash)
        self.closings = {self.hash.hex()}

    def signature(self, raw, line, before_seq, before_hash, before_time):
        need(self.closed, "a signature before the summary")
        _, seq, digest = self.closed
        signers = self.signers()
        need(self.signatures < len(signers), "more signatures than people")
        person = signers[self.signatures]
        self.signatures += 1
        self.ended = self.kind in SEALED_BEFORE and self.signatures == len(signers)
        need(
            (line["name"], line["role"], line["key"]) == (person["name"], person["role"], person["key"]),
            f"{person['name']}'s signature was expected here",
        )
        message = b"strongroom ceremony transcript v1\0" + self.ceremony_id + seq.to_bytes(8, "big") + digest
        verify(person["signing"], hashlib.sha256(message).digest(), line["signature"], f"{line['name']}'s signature")
        if self.kind in SEALED_BEFORE:
            fields = {name: line[name] for name in ("name", "role", "key", "signature")}
            self.prescribed("signature", raw, fields, before_seq, before_hash, before_time)

    def seal(self, raw, line, seq, digest, time):
        need(not self.sealed, "a second seal")
        self.sealed = True
        early = SEALED_BEFORE.get(self.kind)
        self.ended = early is None
        if early:
            need(self.next() == early and self.begun is None and not self.closed, "a seal at another place")
            key = public_key(self.outputs["inventory"]["audit_key"])
        else:
            need(self.closed, "a seal before the summary")
            key = public_key(self.closed[0]["audit_key"])
        message = b"strongroom ceremony seal v1\0" + self.ceremony_id + seq.to_bytes(8, "big") + digest
        verify(key, hashlib.sha256(message).digest(), line["signature"], "the seal")
        self.prescribed("seal", raw, {"signature": line["signature"]}, seq, digest, time)

    def prescribed(self, kind, raw, fields, seq, digest, time):
        """The bytes of a line that no other line follows."""
        need(int.from_bytes(unbase64(fields["signature"])[32:], "big") <= ORDER // 2, "s is the greater one")
        line = {"type": kind, "seq": seq + 1, "time": time, "mode": self.mode, "prev": digest.hex()} | fields
        text = json.dumps(line, separators=(",", ":"), ensure_ascii=False)
        need(text.encode() == raw, "the line is not as prescribed")

    def end(self):
        need(self.content, "the transcript is empty")
        need(self.closed, "it is not complete: there is no summary")
        need(self.signatures == len(self.signers()), "not everyone has signed")
        need(self.sealed, "it is not sealed")

    def facts(self):
        if not (self.closed and self.plan):
            return  # said already
        line = self.closed[0]
        summary = line["summary"]
        members(summary, {"token": dict, "keys": list, "store_id": str})
        members(summary["token"], dict.fromkeys(("label", "serial", "manufacturer", "model"), str))
        for key in summary["keys"]:
            members(key, {"name": str, "label": str, "spki": None, "sha256": None})
        token, keys = the_token(summary["token"]), [the_key(key) for key in summary["keys"]]
        unhex(summary["store_id"], 16)
        audit_key = hashlib.sha256(unbase64(line["audit_key"])).hexdigest()
        own = next((key for key in keys if key[1] == "strongroom-audit"), None)
        need(own and own[3] == audit_key, "the audit key is not the one of the keys")
        theirs = [text for person in self.people for text in (person["signing_key"], person["agreement_key"])]
        need(not any(key[2] in theirs for key in keys), "a key of the token is somebody's of the plan")
        self.serials, self.backups = {token[1]}, {}
        self.public_keys = {key[2] for key in keys if key[2]}
        if self.kind == "birth":
            self.public_keys.add(self.outputs["identity"]["spki"])
        self.peoples_keys = set(theirs)
        self.made_here = set()
        planned = self.plan.get("keys", {})
        if self.kind in NEEDS:
            need(planned.get(NEEDS[self.kind]), f"the plan's [keys] {NEEDS[self.kind]} is not true")
        here = MOVABLE if planned.get("backup") else FIXED

        # Each kind has some of these steps; what it has must be right.
        self.verdicts()
        self.commitments = set()
        for step in ("pins", "transport"):
            if step in self.steps:
                self.pins(self.outputs[step])
        if "token" in self.steps:
            need(the_token(self.outputs["token"]["token"]) == token, "summary: token")
            need(token[0] == self.plan["token"]["label"], "token: label is not the plan's")
        if "keys" in self.steps:
            need([the_key(key) for key in self.outputs["keys"]["keys"]] == keys, "summary: keys")
        self.keys_fit(keys, self.expected(generation(keys)))
        if "evidence" in self.steps:
            need(the_token(self.outputs["evidence"]["token"]) == token, "evidence: of another token")
            if self.kind != "rotate-master":
                shape = MOVED if self.kind == "restore" else here
                self.objects_fit(self.outputs["evidence"]["objects"], keys, lambda _: shape)
        if "store" in self.steps:
            need(summary["store_id"] == self.outputs["store"]["store_id"], "summary: store_id")
        if self.kind == "birth":
            serial = self.plan["token"].get("serial")
            need(self.mode != "CEREMONY" or serial in (None, token[1]), "token: serial is not the plan's")
        else:
            self.presence(self.outputs["opening"])
        if self.kind == "backup":
            export = self.outputs["export"]
            unhex(export["backup_sha256"], 32)
            exported = [the_key(key) for key in export["keys"]]
            need(sorted(exported, key=str) == sorted((key for key in keys if key[1] not in OWN), key=str), "export: other keys")
            self.backups[export["backup_sha256"]] = set(exported)
        if self.kind == "add-token":
            copy = self.outputs["copy"]
            need(the_token(copy["token"]) == the_token(self.outputs["second-token"]["token"]), "copy: on another token")
            copied = [the_key(key) for key in copy["keys"]]
            need(("strongroom-audit", copy["audit_key"]) in [key[1:3] for key in copied], "copy: its audit key is none of its keys")
            self.keys_fit(copied, self.expected(generation(copied)))
            self.objects_fit(copy["objects"], copied, lambda _: MOVED)
            need(all(key in copied for key in keys if key[1] not in OWN), "copy: a key is missing")
            self.spares = [copy]
            self.serials.add(copy["token"]["serial"])
            need(not any(key[2] in theirs for key in copied), "copy: a key of it is somebody's of the plan")
            self.public_keys |= {key[2] for key in copied if key[2]}
        if self.kind == "restore":
            restored = self.outputs["keys"]
            unhex(restored["backup_sha256"], 32)
            need(restored["new_audit_key"] == line["audit_key"], "the new audit key is not the summary's")
        if self.kind == "rotate-master":
            made, moved = self.outputs["successor"], self.outputs["move"]
            need(is_integer(moved["versions"]) and moved["moved"] == moved["versions"] >= 0, "move: not every key was moved")
            need(is_integer(made["generation"]) and 0 <= made["generation"] < 2**32, "successor: generation")
            need(self.outputs["retire"]["generation"] == made["generation"], "retire: another generation was left")
            new = [the_key(key) for key in made["keys"]]
            expected = [key for key in self.expected(made["generation"]) if ROTATED.fullmatch(key)]
            self.keys_fit(new, expected)
            self.objects_fit(made["objects"], new, lambda _: here, expected, whole=False)
            need(sorted(new) == sorted(key for key in keys if ROTATED.fullmatch(key[1])), "summary: other keys than were made")
            self.made_here = set(expected)
        if self.kind == "destroy":
            inventory = self.outputs["inventory"]
            need(the_token(inventory["token"]) == token, "inventory: of another token")
            need(inventory["audit_key"] == line["audit_key"], "the summary's audit key is not the one that sealed")
            need(self.outputs["destroy"]["left"] == [], "objects were left")

    def verdicts(self):
        """What a step must have come to."""
        def same(step, **wanted):
            for member, value in wanted.items():
                told = self.outputs[step][member]
                need(type(told) is type(value) and told == value, f"{step}: {member} is not {value!r}")

        def destroyed(outputs):
            need(isinstance(outputs["destroyed"], list), "destroyed is not a list")
            for one in outputs["destroyed"]:
                members(one, {"name": str, "class": str, "label": str})

        plan, outputs = self.plan, self.outputs
        keys = {"memory_master": False, "transfer": False} | plan.get("keys", {})
        summary = self.closed[0]["summary"]
        unhex(outputs["opening"]["binary_sha256"], 32)
        for step in self.steps:
            if step == "opening" and self.kind == "birth":
                everyone = [{name: person[name] for name in ("name", "role", "key")} for person in self.people]
                same(step, binary_sha256=self.binary, plan_sha256=self.plan_hash, present=everyone)
            elif step == "self-test":
                known = outputs[step]["known_answers"]
                need(isinstance(known, list) and all(isinstance(one, str) and one for one in known), "self-test: known_answers")
                need(all(one in known for one in KNOWN_ANSWERS), "self-test: a known answer is left out")
            elif step in ("token", "second-token"):
                same(step, flags={"initialized": True, "user_pin_set": True, "user_pin_locked": False, "so_pin_locked": False})
                need(all(isinstance(flag, bool) for flag in outputs[step]["flags"].values()), f"{step}: flags")
            elif step == "evidence":
                same(step, self_tests="passed")
                if self.kind != "rotate-master":
                    profile = outputs[step]["profile"]
                    need(all(profile[name] is keys[name] for name in ("transfer", "memory_master")), "evidence: profile is not the plan's")
            elif step == "store" and self.kind == "birth":
                same(step, epoch=1)
                unhex(outputs[step]["audit_log_header_sha256"], 32)
            elif step == "store":
                epochs = [outputs[step][name] for name in ("store_epoch", "backup_epoch", "epoch")]
                need(all(is_integer(epoch) and epoch >= 0 for epoch in epochs), "store: an epoch is no number")
                need(epochs[2] > max(epochs[:2]), "store: the epoch is not greater than those before")
            elif step == "identity":
                unhex(outputs[step]["configuration_sha256"], 32)
                if self.kind == "birth":
                    for name in ("request_sha256", "certificate_sha256", "client_ca_sha256", "policy_sha256"):
                        unhex(outputs[step][name], 32)
                    spki = outputs[step]["spki"]
                    public_key(spki)
                    same(step, spki_sha256=hashlib.sha256(unbase64(spki)).hexdigest())
                    others = [key["spki"] for key in summary["keys"]]
                    others += [person[name] for person in self.people for name in ("signing_key", "agreement_key")]
                    need(spki not in others, "identity: the key is another's")
            elif step == "trial":
                master = [key for key in summary["keys"] if re.fullmatch("strongroom-master(-[0-9]+)?", key["label"])]
                fingerprint = master[0]["sha256"][:32] if master else None
                same(step, sealed=True, unsealed=True, altered_refused=True, kept="nothing", master_fingerprint=fingerprint)
            elif step == "runtime-pin":
                same(step, method="file" if self.mode == "REHEARSAL" else plan["runtime_pin"]["method"])
            elif step == "trust":
                same(step, in_force=outputs["successor"]["generation"], marked_by=plan["security_officer"]["name"])
            elif step == "move":
                same(step, trial="opened")
                need(outputs[step]["by"] in ("server", "ceremony"), "move: by nobody")
            elif step == "consent":
                same(step, typed=plan["name"])
            elif step == "destroy":
                same(step, reinitialised=True)
                destroyed(outputs[step])
            elif step == "retire":
                destroyed(outputs[step])
            elif step == "closing" and self.kind != "destroy":
                same(step, audit_key=self.closed[0]["audit_key"])
        told = outputs["inventory" if self.kind == "destroy" else "closing"]["register"]
        if self.kind in ("birth", "restore"):
            need(told is None, "register: the token knew of a ceremony before")
        elif told is not None:
            unhex(told, 32)

    def expected(self, number):
        """The labels that the plan's keys have on a token, the rotated ones in that generation."""
        keys = self.plan.get("keys", {})
        wanted = ["strongroom-master", "strongroom-store", "strongroom-audit", "strongroom-wrapping"]
        wanted += ["strongroom-transfer"] if keys.get("transfer") else []
        wanted += ["strongroom-memory-master"] if keys.get("memory_master") else []
        return [f"{label}-{number}" if number > 1 and ROTATED.fullmatch(label) else label for label in wanted]

    def keys_fit(self, keys, expected):
        need(sorted(key[1] for key in keys) == sorted(expected), "keys: not those of the plan, each once")
        for _, label, spki, _ in keys:
            if label == "strongroom-store":
                need(spki is None, "keys: a secret key with a public half")
            elif label == "strongroom-audit":
                public_key(spki)
            else:
                rsa_key(spki)
        public = [spki for _, _, spki, _ in keys if spki is not None]
        need(len(public) == len(set(public)), "keys: one key under two labels")

    def objects_fit(self, objects, keys, shape, expected=None, whole=True, taken=None):
        """Every half of each key once, as the table has it, and no other key. `taken`: where signing keys may be, public keys that none of them has."""
        expected = expected or self.expected(generation(keys))
        found = [the_object(one) for one in objects]
        spki_of = {label: spki for _, label, spki, _ in keys}
        tables = attribute_tables()
        known, signing = set(), []
        for label in expected:
            base = label if label in tables else label.rpartition("-")[0]
            for kind, rules in tables[base]:
                known.add((label, kind))
                same = [one for one in found if one[:2] == (label, kind)]
                need(len(same) == 1, f"objects: {len(same)} of {label}, {kind}")
                told = attributes_fit(same[0][3], rules, shape(label), label if base != label else None)
                need(told is None, f"objects: {label}, {kind}: {told}")
                spki = same[0][2]
                if kind == "CKO_SECRET_KEY":
                    need(spki is None, "objects: a secret key with a public half")
                elif kind == "CKO_PUBLIC_KEY" or label != "strongroom-audit":
                    need(spki == spki_of[label] is not None, f"objects: {label}, {kind}: other numbers than the key's")
                else:
                    need(spki in (None, spki_of[label]), f"objects: {label}, {kind}: other numbers than the key's")
        for label, kind, spki, attributes in found:
            if kind in ("CKO_DATA", "CKO_CERTIFICATE"):
                told = [pair for pair in attributes if pair[0] in ("CKA_LABEL", "CKA_CLASS")]
                need(all(value == (label if name == "CKA_LABEL" else kind) for name, value in told), "objects: one that contradicts itself")
                need(spki is None, "objects: data with a public key")
            elif label == "strongroom-signing" and taken is not None:
                fits = [kind == wanted and attributes_fit(attributes, rules, FIXED, None) is None for wanted, rules in tables[label]]
                need(any(fits), "objects: a signing key that is not as it must be")
                key_type = dict(attributes)["CKA_KEY_TYPE"]
                need(spki is not None or key_type != "CKK_RSA", "objects: an RSA signing key without its numbers")
                if spki is not None:
                    {"CKK_EC": public_key, "CKK_RSA": rsa_key, "CKK_EC_EDWARDS": ed25519_key}[key_type](spki)
                    need(spki not in taken, "objects: a signing key that is there for something else")
                    signing.append(spki)
            else:
                need((label, kind) in known, f"objects: {label!r}, {kind}, is none of the keys")
        need(len(signing) == len(set(signing)), "objects: two signing keys are one")
        need(not whole or any(one[:2] == ("strongroom-epoch", "CKO_DATA") for one in found), "objects: no epoch object")

    def pins(self, pins):
        custodians = [person for person in self.people if person["role"] == "custodian"]
        need(is_integer(pins["threshold"]) and pins["threshold"] == self.plan["custody"]["threshold"], "pins: threshold")
        need(len(pins["commitments"]) == len(custodians), "pins: number of commitments")
        for index, (commitment, custodian) in enumerate(zip(pins["commitments"], custodians), 1):
            members(commitment, {"custodian": str, "index": int, "so": str, "user": str})
            need(commitment["custodian"] == custodian["key"] and commitment["index"] == index, "pins: commitment of another")
            for name in ("so", "user"):
                unhex(commitment[name], 32)
                need(commitment[name] not in self.commitments, "pins: a commitment twice")
                self.commitments.add(commitment[name])

    def presence(self, opening):
        expected = [{name: person[name] for name in ("name", "role", "key")} for person in self.signers()]
        need(opening["present"] == expected, "present: not people of the plan, each once and in its order")
        roles = [person["role"] for person in expected]
        need(
            roles.count("security-officer") == roles.count("auditor") == 1
            and roles.count("custodian") >= self.plan["custody"]["threshold"],
            "present: too few",
        )
        shares = opening["shares"]
        members(shares, {"ceremony_id": str, "threshold": int, "commitments": list})
        unhex(shares["ceremony_id"], 16)
        need(0 <= shares["threshold"] <= 255, "shares: threshold")
        for commitment in shares["commitments"]:
            members(commitment, {"custodian": str, "index": int, "so": str, "user": str})
            need(0 <= commitment["index"] <= 255, "shares: index")

    def go_back(self, previous):
        """Holds it against the transcripts that it goes on from, back to the birth."""
        this, links = self, []
        while this.previous is not None:
            if this.previous not in previous:
                self.problems.append(f"the transcript that it goes on from is not given: {this.previous}")
                return
            before = Transcript(previous[this.previous])
            before.check()
            self.problems += [f"the transcript {this.previous}: {problem}" for problem in before.problems]
            if before.problems or this.problems and this is not self:
                return
            if not (this.plan and this.closed):
                return  # said already
            links.append((this, before))
            this = before
        # From the oldest on: what stood after it, and whether the next one fits that.
        for this, before in reversed(links):
            if not self.guard(f"after the transcript {this.previous}", this.link, before):
                return
            this.spares = ([] if this.kind == "restore" else before.spares) + this.spares
            this.ids = before.ids | {this.ceremony_id}
            this.closings = before.closings | {this.closed[2].hex()}
            this.serials |= before.serials
            this.public_keys |= before.public_keys
            this.peoples_keys |= before.peoples_keys
            this.commitments |= before.commitments
            this.backups |= before.backups

    def link(self, before):
        need(before.kind != "destroy", "it was one that destroyed the keys")
        need(self.mode == before.mode, "its mode is another")
        need(self.ceremony_id not in before.ids, "its ceremony id was used before")
        need(not self.commitments & before.commitments, "a share is one of an earlier ceremony")
        need(not self.backups.keys() & before.backups.keys(), "the backup is one of an earlier ceremony")
        opening = self.outputs["opening"]
        need(opening["previous_kind"] == before.kind, "opening: another kind was read aloud")
        serials = [before.closed[0]["summary"]["token"]["serial"]] + [spare["token"]["serial"] for spare in before.spares]
        need(opening["token_serial"] in serials, "opening: another token at work")
        if self.kind != "restore":
            serial = self.closed[0]["summary"]["token"]["serial"]
            need(opening["token_serial"] == serial, "opening: another token than the summary's")
        if self.kind == "replace-custodian":
            old = hashlib.sha256(before.plan_text.encode()).hexdigest()
            need(self.plan.get("replaces") == old, "the plan does not replace the one before")
            defaults = {"keys": {"memory_master": False, "transfer": False, "backup": False}}
            for name in ("name", "token", "keys", "appliance", "runtime_pin"):
                new, then = ((defaults.get(name, {}) | plan[name]) if isinstance(plan[name], dict) else plan[name]
                             for plan in (self.plan, before.plan))
                need(new == then, f"the plan's {name} is another")
        else:
            need(self.plan_text == before.plan_text, "the plan is another")
        need(self.outputs["opening"]["shares"] == before.shares(), "the shares in force are others")
        (now, audit_key), (then, old_key) = ((one.closed[0]["summary"], one.closed[0]["audit_key"]) for one in (self, before))
        moved = [key for key in then["keys"] if key["label"] not in OWN]
        ready = [spare for spare in before.spares if all(key in spare["keys"] for key in moved)]
        new = []
        if self.kind == "restore":
            restored = self.outputs["keys"]
            need(restored["old_audit_key"] in [old_key] + [spare["audit_key"] for spare in ready], "the old audit key is another")
            need(restored["backup_sha256"] in before.backups, "the backup is of no ceremony before")
            need(before.backups[restored["backup_sha256"]] == {the_key(key) for key in moved}, "the backup is of other keys")
            need(now["token"]["serial"] not in before.serials, "the token is one of those before")
            new = [key["spki"] for key in now["keys"] if key["label"] in OWN]
        if self.kind == "add-token":
            copy = self.outputs["copy"]
            need(copy["token"]["serial"] not in before.serials, "the second token is one of those before")
            new = [key["spki"] for key in copy["keys"] if key["label"] in OWN]
        if self.kind == "rotate-master":
            made = self.outputs["successor"]
            need(made["generation"] == generation([the_key(key) for key in then["keys"]]) + 1, "the generation is not the next")
            new = [key["spki"] for key in made["keys"]]
        need(not set(new) & (before.public_keys | before.peoples_keys), "a new key was there before")
        need(not self.peoples_keys & before.public_keys, "a key of somebody in the plan is one of the appliance's")
        # Which keys the token that is at work made itself since its keys came from elsewhere.
        came, here = before.came, before.made_here
        for spare in ready:
            if the_token(spare["token"]) == the_token(now["token"]) != the_token(then["token"]):
                # The spare is at work in place of the token.
                then, old_key = then | {"token": spare["token"], "keys": spare["keys"]}, spare["audit_key"]
                came, here = True, set()
                break
        own = MOVABLE if self.plan.get("keys", {}).get("backup") else FIXED
        self.came = came or self.kind == "restore"
        self.made_here = set() if self.kind == "restore" else self.made_here or here

        def shape(label):
            return MOVED if self.came and label not in self.made_here else own

        known = self.outputs["inventory" if self.kind == "destroy" else "closing"]["register"]
        if self.kind != "restore":
            spare = the_token(now["token"]) != the_token(before.closed[0]["summary"]["token"])
            fits = known is None or known in before.closings if spare else known == before.closed[2].hex()
            need(fits, "register: the token did not know the transcript before as its last one")
        told = {"rotate-master": "evidence", "destroy": "inventory"}.get(self.kind)
        if told:
            keys = [the_key(key) for key in now["keys"]]
            taken = self.public_keys | before.public_keys | self.peoples_keys | before.peoples_keys
            self.objects_fit(self.outputs[told]["objects"], keys, shape, taken=taken)
        keys, old_keys = ({key["label"]: the_key(key) for key in summary["keys"]} for summary in (now, then))
        changed = {name for name in ("token", "store_id") if now[name] != then[name]}
        changed |= {"audit_key"} if audit_key != old_key else set()
        fixed, old_fixed = (
            {label for label in one if self.kind != "rotate-master" or not ROTATED.fullmatch(label)} for one in (keys, old_keys)
        )
        changed |= {"keys"} if fixed != old_fixed or len(now["keys"]) != len(then["keys"]) else set()
        changed |= {label for label in keys.keys() & old_keys.keys() if keys[label] != old_keys[label]}
        need(changed <= MAY_CHANGE[self.kind], f"the summary's {changed} may not change")

    def shares(self):
        """Those in force after it."""
        if "pins" not in self.steps:
            return self.outputs["opening"]["shares"]
        pins = self.outputs["pins"]
        return {
            "ceremony_id": self.ceremony_id.hex(), "threshold": pins["threshold"], "commitments": pins["commitments"],
        }

    def anchor(self, options):
        line = self.closed[0] if self.closed else None
        if options.plan:
            with open(options.plan, "rb") as file:
                if self.plan_text is None or file.read() != self.plan_text.encode():
                    self.problems.append("it is of another plan")
        if options.audit_key:
            with open(options.audit_key, "rb") as file:
                wanted = serialization.load_pem_public_key(file.read()).public_bytes(
                    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
                )
            if not line or base64.b64encode(wanted).decode() != line["audit_key"]:
                self.problems.append("it is of an HSM with another audit key")
        if options.token_serial is not None:
            token = line["summary"].get("token") if line else None
            if not isinstance(token, dict) or token.get("serial") != options.token_serial:
                self.problems.append("it is from another token")


def check_time(text):
    need(re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z", text, re.ASCII), "time")
    need("1970" <= text[:4] <= "9998", "time")
    datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ")


def public_key(text):
    return p256_key(unbase64(text))


def rsa_key(text):
    spki = unbase64(text)
    key = serialization.load_der_public_key(spki)
    need(isinstance(key, rsa.RSAPublicKey), "not an RSA key")
    numbers = key.public_numbers()
    need(numbers.n.bit_length() == 4096 and numbers.n % 2 and numbers.e == 65537, "an RSA key of another size or exponent")
    need(spki_of(key) == spki, "not the canonical form of a public key")


def ed25519_key(text):
    spki = unbase64(text)
    key = serialization.load_der_public_key(spki)
    need(isinstance(key, ed25519.Ed25519PublicKey), "not an Ed25519 key")
    need(spki_of(key) == spki, "not the canonical form of a public key")


def generation(keys):
    """Of the master key among these."""
    numbers = [re.fullmatch("strongroom-master-([1-9][0-9]*)", key[1]) for key in keys]
    return next((int(number[1]) for number in numbers if number), 1)


@functools.cache
def attribute_tables():
    """The document's table: by label, the class and the rules of each object."""
    text = FORMAT.read_text(encoding="utf-8").partition("## The attributes of each object")[2]
    tables = {}
    for line in text.partition("```text\n")[2].partition("```")[0].splitlines():
        if line and not line.startswith(" "):
            label, kind = line.split()
            tables.setdefault(label, []).append((kind, []))
        elif line:
            name, value = line.split(maxsplit=1)
            values = value.split(" | ")
            tables[label][-1][1].append((name, values * 3 if len(values) == 1 else values))
    need(tables, "the document has no table")
    return tables


def attributes_fit(attributes, rules, shape, label):
    """What is wrong with them, if anything. `label`: of a later generation, in place of the table's."""
    told = dict(attributes)
    if len(told) != len(attributes):
        return "an attribute is told twice"
    if told.get("CKA_TRUSTED", "false") != "false":
        return "CKA_TRUSTED"
    inner = [part.partition("=")[::2] for part in told.get("CKA_UNWRAP_TEMPLATE", "").split(", ")]
    for name, values in rules:
        wanted = values[shape]
        if wanted == "-":
            continue
        if label and name in ("CKA_LABEL", "CKA_ID"):
            wanted = label
        if name.startswith("CKA_UNWRAP_TEMPLATE/"):
            inner_name = name.partition("/")[2]
            found = [value for other, value in inner if other == inner_name.removesuffix("?")]
            if found != [wanted] and (found or not name.endswith("?")):
                return name
        elif name.endswith("?"):
            if told.get(name[:-1], wanted) != wanted:
                return name[:-1]
        elif name.endswith("~"):
            if told.get(name[:-1], wanted) not in (wanted, "unavailable"):
                return name[:-1]
        elif told.get(name) != wanted:
            return name
    return None


def the_token(value):
    names = ("label", "serial", "manufacturer", "model")
    need(all(isinstance(value[name], str) for name in names), "a token's members are strings")
    return tuple(value[name] for name in names)


def the_key(value):
    name, label, spki, digest = (value[member] for member in ("name", "label", "spki", "sha256"))
    need(isinstance(name, str) and isinstance(label, str), "a key's name and label are strings")
    need((spki is None) == (digest is None), "a key has `spki` and `sha256`, or neither")
    need(spki is None or hashlib.sha256(unbase64(spki)).hexdigest() == digest, "a key's hash")
    return name, label, spki, digest


def the_object(value):
    need(all(isinstance(value[name], str) for name in ("name", "label", "class")), "an object's members are strings")
    need(isinstance(value["attributes"], list), "attributes")
    for pair in value["attributes"]:
        need(isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair), "an attribute is a pair")
    need(isinstance(value.get("spki", ""), str), "spki")
    return value["label"], value["class"], value.get("spki"), [tuple(pair) for pair in value["attributes"]]


def check_plan(plan):
    """Everyone in the plan, in the order of the signatures."""
    if "replaces" in plan:
        unhex(plan["replaces"], 32)
    members(plan, {name: str for name in ("replaces",) if name in plan} | {
        "format": int, "name": str, "token": dict, "keys": dict, "custody": dict, "custodian": list,
        "security_officer": dict, "auditor": dict, "software": dict, "appliance": dict, "runtime_pin": dict,
    })
    need(plan["format"] == 1, "the plan's format")
    need(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", plan["name"]), "the plan's name")
    token = plan["token"]
    members(token, {"module": str, "label": str} | ({"serial": str} if "serial" in token else {}))
    need(token["module"].startswith("/") and not CONTROL.search(token["module"]), "the plan's module")
    label = token["label"]
    need(1 <= len(label.encode()) <= 32 and label.strip(SPACE) == label and not CONTROL.search(label), "the plan's label")
    serial = token.get("serial", "-")
    need(1 <= len(serial.encode()) <= 16 and not CONTROL.search(serial), "the plan's serial")
    keys = plan["keys"]
    booleans = ("memory_master", "transfer", "backup")
    members(dict.fromkeys(booleans, False) | keys, dict.fromkeys(booleans, bool))
    members(plan["custody"], {"threshold": int})
    need(1 <= plan["custody"]["threshold"] <= len(plan["custodian"]) <= 255, "the plan's threshold")
    software = plan["software"]
    optional = {"image_sha256": str} if "image_sha256" in software else {}
    members(software, {"binary_sha256": str} | optional)
    for digest in software.values():
        unhex(digest, 32)
    members(plan["appliance"], {"folder": str, "state": str, "listen": str, "names": list})
    for folder in (plan["appliance"][name] for name in ("folder", "state")):
        need(folder.startswith("/") and not CONTROL.search(folder), "the plan's folders")
    listen = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):(0|[1-9][0-9]{0,4})", plan["appliance"]["listen"], re.ASCII)
    need(listen and int(listen[3]) <= 65535, "the plan's address")
    ipaddress.IPv6Address(listen[1]) if listen[1] else ipaddress.IPv4Address(listen[2])
    need(plan["appliance"]["names"], "the plan's names")
    for name in plan["appliance"]["names"]:
        need(is_dns_name(name) or "%" not in name and ipaddress.ip_address(name), "the plan's names")
    members(plan["runtime_pin"], {"method": str})
    need(plan["runtime_pin"]["method"] in ("systemd-creds", "file"), "the plan's method")

    parts = [("custodian", part) for part in plan["custodian"]]
    parts += [("security-officer", plan["security_officer"]), ("auditor", plan["auditor"])]
    people, seen = [], []
    for role, part in parts:
        members(part, {"name": str, "signing_key": str, "agreement_key": str})
        name = part["name"]
        need(1 <= len(name) <= 64 and name.strip(" ") == name and all(map(is_written, name)), f"the name {name!r}")
        public_key(part["agreement_key"])
        people.append({
            "name": name, "role": role, "signing": public_key(part["signing_key"]),
            "key": hashlib.sha256(unbase64(part["signing_key"])).hexdigest(),
            "signing_key": part["signing_key"], "agreement_key": part["agreement_key"],
        })
        seen += [part["signing_key"], part["agreement_key"], "".join(c.lower() if c.isascii() else c for c in name)]
    need(len(seen) == len(set(seen)), "two people in the plan have a name or a key in common")
    return people


def is_written(c):
    """Whether a name may have that character."""
    if c.isascii():
        return c.isalnum() or c in " .,-_'()"
    return c in "\u00aa\u00ba" or ord(c) >= 0xC0 and not any(first <= ord(c) <= last for first, last in SIGNS)


def is_dns_name(name):
    labels = name.split(".")
    return (
        len(name) <= 253
        and all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", label) for label in labels)
        and not re.fullmatch(r"[0-9]+", labels[-1])
    )


if __name__ == "__main__":
    sys.exit(main())
