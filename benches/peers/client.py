"""Closed-loop clients for etcd (gRPC over HTTP/2) and NATS JetStream, standard library only.

Each client has one connection and one request outstanding. A payment is two durable
writes of 256 bytes, one after the other: the intent, then the outcome. Its latency is
from the first request to the second answer.
"""

import json
import os
import selectors
import socket
import struct
import sys
import time

RECORD = 256


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def literal(name, value):
    """An HTTP/2 header field without indexing: nothing to remember on either side."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


class Etcd:
    """`etcdserverpb.KV/Put`, one stream after the other on one connection."""

    HEADERS = b"".join(
        literal(name, value)
        for name, value in [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/etcdserverpb.KV/Put"),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ]
    )

    def __init__(self, key):
        self.key, self.stream, self.number = key, -1, 0
        self.got_message, self.since_update = False, 0

    @staticmethod
    def frame(kind, flags, stream, payload):
        length = struct.pack(">I", len(payload))[1:]
        return length + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    def hello(self):
        return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self.frame(4, 0, 0, b"")

    def ready(self, _data):
        return True

    def request(self):
        self.stream += 2
        self.number += 1
        key = b"%s-%d" % (self.key, self.number)
        put = b"\x0a" + varint(len(key)) + key + b"\x12" + varint(RECORD) + os.urandom(8).hex().encode() * 16
        message = b"\x00" + struct.pack(">I", len(put)) + put
        self.got_message = False
        return self.frame(1, 4, self.stream, self.HEADERS) + self.frame(0, 1, self.stream, message)

    def answered(self, buffer):
        """Takes frames off the buffer; answers what must be, tells whether the reply is whole."""
        reply, done = b"", False
        while len(buffer) >= 9:
            length = int.from_bytes(buffer[:3], "big")
            if len(buffer) < 9 + length:
                break
            kind, flags = buffer[3], buffer[4]
            stream = int.from_bytes(buffer[5:9], "big") & 0x7FFFFFFF
            payload = bytes(buffer[9 : 9 + length])
            del buffer[: 9 + length]
            if kind == 0:
                self.got_message |= length > 0
                self.since_update += length
            elif kind == 4 and not flags & 1:
                reply += self.frame(4, 1, 0, b"")
            elif kind == 6 and not flags & 1:
                reply += self.frame(6, 1, 0, payload)
            elif kind in (3, 7):
                sys.exit(f"etcd closed the stream: {payload!r}")
            if kind in (0, 1) and flags & 1 and stream == self.stream:
                if not self.got_message:
                    sys.exit("etcd refused a put")
                done = True
        if self.since_update > 16_384:
            reply += self.frame(8, 0, 0, struct.pack(">I", self.since_update))
            self.since_update = 0
        return done, reply


class Nats:
    """A publish that waits for the stream's acknowledgement."""

    def __init__(self, key):
        self.key, self.inbox = key, b"_INBOX." + key

    def hello(self):
        options = b'{"verbose":false,"pedantic":false,"headers":true,"no_responders":true}'
        return b"CONNECT " + options + b"\r\nSUB " + self.inbox + b" 1\r\nPING\r\n"

    def ready(self, data):
        return b"PONG" in data

    def request(self):
        payload = os.urandom(8).hex().encode() * 16
        return b"PUB pay.%s %s %d\r\n%s\r\n" % (self.key, self.inbox, RECORD, payload)

    def answered(self, buffer):
        if bytes(buffer[:4]) == b"PING":
            del buffer[: buffer.index(b"\n") + 1]
            return False, b"PONG\r\n"
        if bytes(buffer[:4]) == b"-ERR":
            sys.exit(bytes(buffer).decode())
        # MSG subject 1 length, then the acknowledgement as JSON.
        if buffer[:3] in (b"MSG", b"HMS") and buffer.count(b"\n") >= 2:
            if b'"seq"' not in buffer or b'"error"' in buffer:
                sys.exit(bytes(buffer).decode(errors="replace"))
            del buffer[:]
            return True, b""
        return False, b""


class Client:
    def __init__(self, protocol, address):
        self.protocol, self.buffer = protocol, bytearray()
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(protocol.hello())
        if isinstance(protocol, Nats):
            data = b""
            while not protocol.ready(data):
                data += self.socket.recv(65_536)
        self.begin()

    def begin(self):
        self.started, self.step = time.monotonic(), 0
        self.socket.sendall(self.protocol.request())

    def receive(self):
        """The latency of a payment that just ended, else None."""
        data = self.socket.recv(65_536)
        if not data:
            sys.exit("the server closed the connection")
        self.buffer += data
        done, reply = self.protocol.answered(self.buffer)
        if reply:
            self.socket.sendall(reply)
        if not done:
            return None
        if self.step == 0:
            self.step = 1
            self.socket.sendall(self.protocol.request())
            return None
        took = time.monotonic() - self.started
        self.begin()
        return took


def main():
    kind, ports, clients, seconds, name = sys.argv[1:6]
    ports, clients, seconds = [int(port) for port in ports.split(",")], int(clients), float(seconds)
    protocol = {"etcd": Etcd, "nats": Nats}[kind]
    selector = selectors.DefaultSelector()
    for number in range(clients):
        key = f"{name}-{number}".encode()
        client = Client(protocol(key), ("127.0.0.1", ports[number % len(ports)]))
        selector.register(client.socket, selectors.EVENT_READ, client)
    # The first fifth is warm-up.
    began = time.monotonic()
    measured_from, until = began + seconds / 5, began + seconds
    latencies = []
    while (now := time.monotonic()) < until:
        for key, _ in selector.select(0.1):
            took = key.data.receive()
            if took is not None and now >= measured_from:
                latencies.append(round(took * 1e6))
    print(json.dumps({"seconds": until - measured_from, "us": latencies}))


if __name__ == "__main__":
    main()
