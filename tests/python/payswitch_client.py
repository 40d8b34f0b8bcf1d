"""A payswitch client in Python, written from docs/WIRE.md alone.

Knows nothing of the Rust code: its own frame codec, its own canonical form and
HMAC. It is a conformance client, not a product: one connection, one request on
one stream at a time.
"""

import asyncio
import hashlib
import hmac
import os
import ssl
import struct
import time

HEADER = struct.Struct("<IBBHQ")
BODY_MAX = 16 * 1024

HELLO, GOAWAY, PING, LEADER = 0x01, 0x02, 0x03, 0x04
PAY, QUERY, REFUND, QUERY_REFUND, CLOSE, REVERSE = 0x10, 0x11, 0x12, 0x13, 0x14, 0x15
SUBSCRIBE, EVENT, ACK = 0x20, 0x21, 0x22
REPLY, ERROR = 0x80, 0xFF

METHODS = {"WALLET": 1, "CARD": 2, "BANK": 3, "MICROPAY": 4, "QR_CODE": 5}
SCENES = {"POS": 1, "WEB": 2, "APP": 3, "UNATTENDED": 4, "RECURRING": 5}
ORDER_STATES = ["NONE", "PROCESSING", "WAIT_PAYER", "PAID", "FAILED", "CLOSED", "MANUAL"]
REFUND_STATES = ["NONE", "PROCESSING", "SUCCESS", "FAILED", "MANUAL"]
OPS = {
    PAY: "pay",
    QUERY: "query",
    REFUND: "refund",
    QUERY_REFUND: "query_refund",
    CLOSE: "close",
    REVERSE: "reverse",
}


class WireError(Exception):
    """The peer's bytes are not this protocol."""


# --- frames -----------------------------------------------------------------


def frame(kind, correlation, body):
    """Header and body."""
    if len(body) > BODY_MAX:
        raise WireError("body too long")
    return HEADER.pack(len(body), kind, 0, 0, correlation) + body


def split(buffer):
    """Takes complete frames off a bytearray: a list of (kind, correlation, body)."""
    frames = []
    while len(buffer) >= HEADER.size:
        length, kind, _flags, reserved, correlation = HEADER.unpack_from(buffer)
        if length > BODY_MAX or reserved != 0:
            raise WireError("not a frame of this protocol")
        if len(buffer) < HEADER.size + length:
            break
        frames.append((kind, correlation, bytes(buffer[HEADER.size : HEADER.size + length])))
        del buffer[: HEADER.size + length]
    return frames


def text(value):
    """A field with a length of one byte."""
    raw = value if isinstance(value, bytes) else value.encode("ascii")
    return bytes([len(raw)]) + raw


class Body:
    """Reads a body front to back."""

    def __init__(self, raw):
        self.raw, self.at = raw, 0

    def take(self, form):
        size = struct.calcsize("<" + form)
        if self.at + size > len(self.raw):
            raise WireError("body ends early")
        values = struct.unpack_from("<" + form, self.raw, self.at)
        self.at += size
        return values[0] if len(values) == 1 else values

    def text(self):
        length = self.take("B")
        raw = self.raw[self.at : self.at + length]
        if len(raw) < length:
            raise WireError("body ends early")
        self.at += length
        return raw.decode("ascii")


# --- requests ---------------------------------------------------------------


def auth(fields, prefix=""):
    return struct.pack(
        "<IQQ",
        fields.get(prefix + "key_id", 0),
        fields.get(prefix + "timestamp", 0),
        fields.get(prefix + "nonce", 0),
    ) + text(fields.get(prefix + "signature", b""))


def order_ref(fields):
    return struct.pack("<Q", fields.get("transaction_id", 0)) + text(
        fields.get("out_trade_no", "")
    )


def encode_pay(f):
    tags = sorted(f.get("tags", {}).items())
    return b"".join(
        [
            struct.pack("<qQI", f["amount"], f["time_expire"], f.get("wait", 0)),
            f["currency"].encode("ascii"),
            bytes([METHODS[f["method"]], SCENES[f["scene"]]]),
            f.get("client_ip", bytes(16)),
            text(f["mch_id"]),
            text(f["out_trade_no"]),
            text(f.get("payer_token", "")),
            text(f.get("device_id", "")),
            text(f.get("notify", "")),
            bytes([len(tags)]),
            b"".join(text(name) + text(value) for name, value in tags),
            auth(f),
            auth(f, "second."),
        ]
    )


def encode_order(f):
    return b"".join(
        [
            struct.pack("<IB", f.get("wait", 0), int(f.get("refresh", False))),
            order_ref(f),
            text(f["mch_id"]),
            auth(f),
        ]
    )


def encode_refund(f):
    return b"".join(
        [
            struct.pack("<qI", f["amount"], f.get("wait", 0)),
            f["currency"].encode("ascii"),
            order_ref(f),
            text(f["mch_id"]),
            text(f["out_refund_no"]),
            text(f.get("reason", "")),
            auth(f),
        ]
    )


def encode_query_refund(f):
    return b"".join([order_ref(f), text(f["mch_id"]), text(f["out_refund_no"]), auth(f)])


ENCODERS = {
    PAY: encode_pay,
    QUERY: encode_order,
    CLOSE: encode_order,
    REVERSE: encode_order,
    REFUND: encode_refund,
    QUERY_REFUND: encode_query_refund,
}


def canonical(kind, f):
    """Signed fields as name=value, in dictionary order, joined by '&'."""
    form = {
        "op": OPS[kind],
        "key_id": f.get("key_id", 0),
        "timestamp": f.get("timestamp", 0),
        "nonce": f.get("nonce", 0),
    }
    for name in ("mch_id", "out_trade_no", "out_refund_no", "reason", "currency", "amount"):
        form[name] = f.get(name, "")
    if f.get("transaction_id"):
        form["transaction_id"] = f["transaction_id"]
    if kind == PAY:
        for name in ("device_id", "method", "notify", "payer_token", "scene", "time_expire"):
            form[name] = f.get(name, "")
        if any(f.get("client_ip", bytes(16))):
            form["client_ip"] = f["client_ip"].hex()
    if f.get("refresh"):
        form["refresh"] = 1
    form = {name: value for name, value in form.items() if value != ""}
    if kind == PAY:
        # A tag stands in the form even when its value is empty.
        form.update({"tag." + name: value for name, value in f.get("tags", {}).items()})
    return "&".join(f"{name}={form[name]}" for name in sorted(form)).encode("ascii")


def fingerprint(f):
    """First 16 bytes of SHA-256 over the immutable content of a pay."""
    tags = sorted(f.get("tags", {}).items())
    content = [
        struct.pack("<qQ", f["amount"], f["time_expire"]),
        f["currency"].encode("ascii"),
        bytes([METHODS[f["method"]], SCENES[f["scene"]]]),
        text(f["mch_id"]),
        text(f["out_trade_no"]),
        text(f.get("payer_token", "")),
        text(f.get("notify", "")),
        bytes([len(tags)]),
        b"".join(text(name) + text(value) for name, value in tags),
    ]
    return hashlib.sha256(b"".join(content)).digest()[:16]


def shard(mch_id, shards):
    """FNV-1a, 64 bit, modulo the number of shards."""
    value = 0xCBF29CE484222325
    for byte in mch_id.encode("ascii"):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value % shards


# --- replies ----------------------------------------------------------------


def decode_order_reply(raw):
    b = Body(raw)
    code, state, replayed, retry_after = b.take("HBBI")
    transaction_id, amount, refunded, refunding, finished_at = b.take("QqqqQ")
    reason, channel = b.take("HH")
    currency = b.take("3s").rstrip(b"\0").decode("ascii")
    leader_hint = b.take("B")
    return {
        "code": code,
        "state": ORDER_STATES[state],
        "replayed": bool(replayed),
        "retry_after": retry_after,
        "transaction_id": transaction_id,
        "amount": amount,
        "refunded": refunded,
        "refunding": refunding,
        "finished_at": finished_at,
        "reason": reason,
        "channel": channel,
        "currency": currency,
        "leader_hint": leader_hint,
        "out_trade_no": b.text(),
        "channel_ref": b.text(),
    }


def decode_refund_reply(raw):
    b = Body(raw)
    code, state, replayed, retry_after = b.take("HBBI")
    transaction_id, amount, refunded, refunding, finished_at = b.take("QqqqQ")
    reason = b.take("H")
    currency = b.take("3s").rstrip(b"\0").decode("ascii")
    leader_hint = b.take("B")
    return {
        "code": code,
        "state": REFUND_STATES[state],
        "replayed": bool(replayed),
        "retry_after": retry_after,
        "transaction_id": transaction_id,
        "amount": amount,
        "refunded": refunded,
        "refunding": refunding,
        "finished_at": finished_at,
        "reason": reason,
        "currency": currency,
        "leader_hint": leader_hint,
        "channel_ref": b.text(),
    }


def decode_error(raw):
    b = Body(raw)
    code, retry_after = b.take("HI")
    return {"code": code, "state": "NONE", "retry_after": retry_after, "detail": b.text()}


def decode_hello(raw):
    b = Body(raw)
    names = ("in_flight_max", "shards", "site", "sites", "time", "cluster")
    return dict(zip(names, b.take("IHBBQQ")))


def decode_leaders(raw):
    b = Body(raw)
    count = b.take("H")
    return [dict(zip(("shard", "site", "term"), b.take("HBQ"))) for _ in range(count)]


def decode_reply(kind, raw):
    if kind == ERROR:
        return decode_error(raw)
    if kind in (REFUND | REPLY, QUERY_REFUND | REPLY):
        return decode_refund_reply(raw)
    if kind in (PAY | REPLY, QUERY | REPLY, CLOSE | REPLY, REVERSE | REPLY):
        return decode_order_reply(raw)
    if kind == PING | REPLY:
        return dict(zip(("token", "time"), Body(raw).take("QQ")))
    raise WireError(f"unexpected kind {kind:#04x}")


# --- the connection ---------------------------------------------------------


class Client:
    """One connection. Use as `async with Client(...) as client`."""

    def __init__(self, host, port, server_name, ca, cert, key, mch_id, key_id, secret):
        self.address = (host, port)
        self.tls = (server_name, ca, cert, key)
        self.mch_id, self.key_id, self.secret = mch_id, key_id, secret
        self.hello, self.correlation = None, 0

    async def __aenter__(self):
        from aioquic.asyncio import connect
        from aioquic.asyncio.protocol import QuicConnectionProtocol
        from aioquic.quic.configuration import QuicConfiguration
        from aioquic.quic.events import ConnectionTerminated, StreamDataReceived

        outer = self
        self.frames, self.waiters, self.ended = {}, {}, None
        # Who leads which shard: shard to (term, site).
        self.leaders = {}
        self.greeted = asyncio.get_running_loop().create_future()

        class Protocol(QuicConnectionProtocol):
            def quic_event_received(self, event):
                if isinstance(event, StreamDataReceived):
                    outer.received(event.stream_id, event.data)
                elif isinstance(event, ConnectionTerminated):
                    outer.terminated(event)

        server_name, ca, cert, key = self.tls
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=["payswitch/1"],
            server_name=server_name,
            verify_mode=ssl.CERT_REQUIRED,
            idle_timeout=3.0,
        )
        configuration.load_verify_locations(ca)
        configuration.load_cert_chain(cert, key)
        self.context = connect(*self.address, configuration=configuration, create_protocol=Protocol)
        self.protocol = await self.context.__aenter__()
        # The server has judged our certificate when HELLO is here, not before.
        self.hello = await asyncio.wait_for(self.greeted, 10)
        return self

    async def __aexit__(self, *error):
        self.protocol.close(error_code=0)
        return await self.context.__aexit__(*error)

    def received(self, stream_id, data):
        buffer = self.frames.setdefault(stream_id, bytearray())
        buffer += data
        for kind, correlation, body in split(buffer):
            if kind == HELLO and not self.greeted.done():
                self.greeted.set_result(decode_hello(body))
            elif kind == LEADER:
                for news in decode_leaders(body):
                    told = (news["term"], news["site"])
                    self.leaders[news["shard"]] = max(told, self.leaders.get(news["shard"], told))
            elif correlation in self.waiters:
                waiter = self.waiters.pop(correlation)
                if not waiter.done():
                    waiter.set_result(decode_reply(kind, body))

    def terminated(self, event):
        error = ConnectionError(f"closed: code {event.error_code} {event.reason_phrase}")
        for waiter in [self.greeted, *self.waiters.values()]:
            if not waiter.done():
                waiter.set_exception(error)

    async def send(self, kind, body, timeout):
        """One request on one stream, with FIN."""
        self.correlation += 1
        waiter = asyncio.get_running_loop().create_future()
        self.waiters[self.correlation] = waiter
        stream_id = self.protocol._quic.get_next_available_stream_id()
        raw = frame(kind, self.correlation, body)
        self.protocol._quic.send_stream_data(stream_id, raw, end_stream=True)
        self.protocol.transmit()
        return await asyncio.wait_for(waiter, timeout)

    async def request(self, kind, fields, timeout=10):
        """Signs and sends; the reply as a dictionary."""
        fields = dict(fields, mch_id=self.mch_id, key_id=self.key_id)
        fields["timestamp"] = int(time.time() * 1000)
        fields["nonce"] = int.from_bytes(os.urandom(8), "little")
        form = canonical(kind, fields)
        fields["signature"] = hmac.new(self.secret, form, hashlib.sha256).digest()
        return await self.send(kind, ENCODERS[kind](fields), timeout)

    async def ping(self, token):
        return await self.send(PING, struct.pack("<Q", token), 5)
