"""Checks the Python codec against the golden vectors of protocol/vectors/.

Run: python test_vectors.py [DIRECTORY]; prints one line per file, exits 0 when
all agree.
"""

import hashlib
import hmac
import pathlib
import sys

import payswitch_client as wire

DIRECTORY = pathlib.Path(__file__).resolve().parents[2] / "protocol" / "vectors"


def vectors(path):
    """The vectors of a file: lists of (name, value)."""
    found = [[]]
    for line in path.read_text("ascii").splitlines():
        if line.startswith("#"):
            continue
        if not line:
            found.append([])
            continue
        name, _, value = line.partition(":")
        found[-1].append((name, value.removeprefix(" ")))
    return [dict(lines) for lines in found if lines]


NUMBERS = {"amount", "time_expire", "wait", "transaction_id", "key_id", "timestamp", "nonce"}


def fields_of(vector):
    """What the encoders want."""
    fields = {"tags": {}}
    for name, value in vector.items():
        last = name.removeprefix("second.")
        if name.startswith("tag."):
            fields["tags"][name.removeprefix("tag.")] = value
        elif last in NUMBERS:
            fields[name] = int(value)
        elif last == "signature" or name == "client_ip":
            fields[name] = bytes.fromhex(value)
        else:
            fields[name] = value
    fields["refresh"] = vector.get("refresh") == "1"
    return fields


def same(name, have, want):
    if have != want:
        raise SystemExit(f"{name}: {have!r} is not {want!r}")


def check_request(vector, kind, raw):
    name, fields = vector["vector"], fields_of(vector)
    body = wire.ENCODERS[kind](fields)
    same(name, wire.frame(kind, int(vector["correlation"]), body).hex(), raw.hex())
    form = wire.canonical(kind, fields)
    same(name, form.decode("ascii"), vector["canonical"])
    algorithm, _, key = vector.get("key", "").partition(" ")
    if algorithm == "hmac-sha256":
        tag = hmac.new(bytes.fromhex(key), form, hashlib.sha256).hexdigest()
        same(name, tag, vector["signature"])
    if kind == wire.PAY:
        same(name, wire.fingerprint(fields).hex(), vector["fingerprint"])
        same(name, wire.shard(vector["mch_id"], 12), int(vector["shard_of_12"]))


def check_reply(vector, kind, body):
    """Every line of the twin that the decoder knows must agree."""
    have = wire.decode_reply(kind, body)
    for name, value in have.items():
        if name in ("code", "reason") or (name == "state" and name not in vector):
            continue
        want = vector[name]
        same(vector["vector"], str(int(value)) if isinstance(value, bool) else str(value), want)


def check(path):
    count = 0
    for vector in vectors(path):
        raw = bytes.fromhex(vector["frame"])
        [(kind, correlation, body)] = wire.split(bytearray(raw))
        same(vector["vector"], (f"{kind:#04x}", str(correlation)), (vector["kind"], vector["correlation"]))
        if kind in wire.ENCODERS:
            check_request(vector, kind, raw)
        elif kind == wire.HELLO:
            for name, value in wire.decode_hello(body).items():
                same(vector["vector"], str(value), vector[name])
        elif kind == wire.LEADER:
            have = {f"leader.{m['shard']}": f"site {m['site']} term {m['term']}" for m in wire.decode_leaders(body)}
            want = {name: value for name, value in vector.items() if name.startswith("leader.")}
            same(vector["vector"], have, want)
        elif kind == wire.ERROR or kind & wire.REPLY and (kind & 0x7F) in wire.ENCODERS:
            check_reply(vector, kind, body)
        count += 1
    return count


def main(directory):
    files = sorted(pathlib.Path(directory).glob("*.txt"))
    if not files:
        raise SystemExit(f"no vectors in {directory}")
    for path in files:
        print(f"vectors: {path.name}: {check(path)} frames agree")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else DIRECTORY)
