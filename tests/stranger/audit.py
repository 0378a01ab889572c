#!/usr/bin/env python3
"""Verifies an audit log: a second implementation, from docs/audit-format.md alone.

    audit.py FILE... --public-key PEM [--complete] [--end LOGID:LINE:SHA256:PHASE[:BYTES]] [--transcript FILE] [--each]

FILEs are one log, oldest first; with --each every one is a log of its own. TRANSCRIPT is that of the appliance's birth, which
transcript.py verifies. Prints for each log a JSON object of what was found. Exit code 0 if every one verifies, else 1. Needs Python
3.11 and the package `cryptography`.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import re
import sys

from cryptography.hazmat.primitives import serialization

from common import Invalid, is_integer, need, p256_key, parse, spki_of, unhex, verify

FORMAT = 2
LONGEST_LINE = 8191
WINDOW = 1 << 20
TYPES = ("header", "intent", "decision", "summary", "checkpoint", "recovered")
NUMBERS = ("seq", "format", "signed_seq", "torn_bytes", "intent", "denied", "errors", "ok")
TEXTS = (
    "type", "prev", "log_id", "signing_key", "signed_hash", "signature", "torn_sha256", "operation", "key", "request_id", "identity",
    "outcome",
)


def read_line(raw):
    """A line's members, or None if it is no line of a log."""
    try:
        need(len(raw) <= LONGEST_LINE, "too long")
        need(all(0x20 <= byte <= 0x7E for byte in raw), "a byte that is not printable ASCII")
        line = parse(raw)
        need("type" in line and "seq" in line and "prev" in line, "members are missing")
        need(all(is_integer(line[name]) and line[name] >= 0 for name in NUMBERS if name in line), "a number")
        need(line.get("format", 0) < 2**32, "a format")
        need(all(isinstance(line[name], str) for name in TEXTS if name in line), "a text")
        return line
    except Invalid:
        return None


class Log:
    def __init__(self, key):
        self.key = key
        self.fingerprint = hashlib.sha256(spki_of(key)).hexdigest()
        self.problems = []
        self.expected = None  # number and `prev` of the next line
        self.log_id = None
        self.signed = 0
        self.first = 0
        self.last = 0
        self.open = set()  # intents without an outcome
        self.recent = collections.OrderedDict()
        self.lines = 0
        self.checkpoints = 0
        self.first_hash = None
        self.end_seen = self.end_bytes = None
        self.wanted = None

    def problem(self, place, what):
        self.problems.append(f"{place}: {what}")

    def file(self, name, content):
        if not content:
            self.problem(name, "the file is empty")
            return
        lines, start = [], 0
        for raw in content.split(b"\n"):
            lines.append((start, raw))
            start += len(raw) + 1
        unfinished = lines.pop()
        if unfinished[1]:
            lines.append(unfinished)
            self.problem(name, "the last line has no end")
        left_out = self.left_out(name, content, lines)
        for number, (start, raw) in enumerate(lines, 1):
            if not any(begin <= start < end for begin, end in left_out):
                self.lines += 1
                self.line(f"{name}:{number}", raw, min(start + len(raw) + 1, len(content)))

    def left_out(self, name, content, lines):
        """The bytes that `recovered` lines account for."""
        ranges, claimed = [], []
        for number, (start, raw) in reversed(list(enumerate(lines, 1))):
            line = read_line(raw)
            if line is None or line["type"] != "recovered" or any(begin <= start < end for begin, end in claimed):
                continue
            count, digest = line.get("torn_bytes"), line.get("torn_sha256")
            begin = start - count if count is not None else -1
            claimed.append((max(begin, 0) if count is not None else start, start))
            if digest is not None and begin >= 0 and hashlib.sha256(content[begin:start]).hexdigest() == digest:
                ranges.append((begin, start))
            else:
                self.problem(f"{name}:{number}", "it does not account for what stands before it")
        return ranges

    def line(self, place, raw, ends):
        line = read_line(raw)
        if line is None:
            self.problem(place, "not a line of an audit log")
            return
        digest = hashlib.sha256(raw).hexdigest()
        kind, seq = line["type"], line["seq"]
        if self.expected is None:
            self.first, self.first_hash = seq, digest
            if kind != "header":
                self.problem(place, "the log does not begin with a header")
            if seq == 1 and line["prev"] != "0" * 64:
                self.problem(place, "line 1 has something before it")
        elif (seq, line["prev"]) != self.expected:
            self.problem(place, "lines are missing, added, moved or changed")
        if kind not in TYPES:
            self.problem(place, "unknown type")
        try:
            if kind in ("header", "checkpoint", "intent", "decision"):
                getattr(self, kind)(line)
        except Invalid as problem:
            self.problem(place, problem)
        self.expected = (min(seq + 1, 2**64 - 1), digest)
        self.last = seq
        if self.wanted and self.wanted[0] == seq:
            self.end_seen, self.end_bytes = digest, ends
        self.recent[seq] = digest
        self.recent.move_to_end(seq)
        if len(self.recent) > WINDOW:
            self.recent.popitem(last=False)

    def header(self, line):
        log_id = unhex(line.get("log_id"), 16)
        need(self.log_id in (None, log_id), "the header is of another log")
        self.log_id = log_id
        need(line.get("format") == FORMAT, "another format")
        need(line.get("signing_key") == self.fingerprint, "the header names another signing key")

    def checkpoint(self, line):
        seq, digest, signature = (line.get(name) for name in ("signed_seq", "signed_hash", "signature"))
        need(None not in (seq, digest, signature), "the checkpoint is not whole")
        message = b"strongroom audit checkpoint v1\0" + (self.log_id or bytes(16)) + seq.to_bytes(8, "big") + unhex(digest, 32)
        verify(self.key, hashlib.sha256(message).digest(), signature, "the checkpoint's signature")
        if seq in self.recent:
            need(self.recent[seq] == digest, "it signs another line")
            self.checkpoints += 1
            self.signed = max(self.signed, seq)
        else:
            need(seq < self.first, "the line that it signs is missing")

    def intent(self, line):
        self.open.add(line["seq"])

    def decision(self, line):
        number = line.get("intent", 0)
        known = number == 0 or number in self.open or number < self.first
        self.open.discard(number)
        missing = sorted(self.open) if line.get("operation") == "server:start" else []
        self.open.difference_update(missing)
        need(known, f"the outcome of a change that was not begun ({number})")
        need(not missing, f"the outcomes of changes are missing ({missing})")

    def finish(self, complete, anchor):
        if self.lines and not self.checkpoints:
            self.problem("the whole", "no line is signed")
        tail = max(self.last - max(self.signed, max(self.first - 1, 0)), 0)
        self.tail = 0 if tail == 1 and self.checkpoints else tail
        if complete:
            if self.tail:
                self.problem("the whole", "lines are not signed")
            if self.open:
                self.problem("the whole", f"changes without an outcome: {sorted(self.open)}")
        if anchor:
            self.anchored(*anchor)

    def anchored(self, log_id, number, digest, phase, ends):
        if self.log_id is None or self.log_id != log_id:
            self.problem("the end", "of another log")
        elif self.end_seen is None and number >= self.first:
            self.problem("the end", "the line that the token knows is missing")
        elif self.end_seen not in (None, digest):
            self.problem("the end", "another line than the token knows")
        elif self.end_seen and ends not in (None, self.end_bytes):
            self.problem("the end", "lines before it were taken out, or put in")
        elif phase == "stopped" and self.last != number:
            self.problem("the end", "lines were added to a log that was stopped")

    def begins_as(self, transcript):
        """A birth's transcript names the log's first line."""
        lines = [parse(line) for line in transcript.split(b"\n")[:-1]]
        named = [
            line["outputs"].get("audit_log_header_sha256") for line in lines if line["type"] == "done" and line["step"] == "store"
        ]
        if lines[0]["kind"] != "birth" or named != [self.first_hash] or self.first != 1:
            self.problem("the beginning", "not the log that was begun at the appliance's birth")


def the_anchor(text):
    found = re.fullmatch(r"([0-9a-f]{32}):(0|[1-9][0-9]*):([0-9a-f]{64}):(open|stopped|rotating)(?::(0|[1-9][0-9]*))?", text, re.ASCII)
    need(found and int(found[2]) < 2**64 and int(found[5] or 0) < 2**64, "--end is not LOGID:LINE:SHA256:PHASE[:BYTES]")
    return bytes.fromhex(found[1]), int(found[2]), found[3], found[4], found[5] and int(found[5])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", metavar="FILE", type=pathlib.Path)
    parser.add_argument("--public-key", required=True, type=pathlib.Path)
    parser.add_argument("--complete", action="store_true")
    parser.add_argument("--end")
    parser.add_argument("--transcript", type=pathlib.Path)
    parser.add_argument("--each", action="store_true")
    options = parser.parse_args()
    key = p256_key(spki_of(serialization.load_pem_public_key(options.public_key.read_bytes())))
    anchor = the_anchor(options.end) if options.end else None
    valid = True
    for files in [[file] for file in options.files] if options.each else [options.files]:
        log = Log(key)
        log.wanted = (anchor[1],) if anchor else None
        for file in files:
            log.file(file, file.read_bytes())
        log.finish(options.complete, anchor)
        if options.transcript:
            log.begins_as(options.transcript.read_bytes())
        valid = valid and not log.problems
        print(json.dumps({
            "first_seq": log.first, "checkpoints": log.checkpoints, "unsigned_tail": log.tail, "problems": log.problems,
        }))
    return 0 if valid else 1


if __name__ == "__main__":
    sys.exit(main())
