#!/usr/bin/env python3
"""A foreign client of the belay relay, written from docs/PROTOCOL.md alone.

It enrols with a join string (first argument, or BELAY_JOIN), asks one question, goes through the
corners of the protocol, leaves, and prints one JSON object of what it saw. Exit code 0: every
check held. 1: something did not, and stderr says what.
"""

import argparse
import asyncio
import base64
import datetime
import hashlib
import ipaddress
import json
import os
import re
import ssl
import struct
import sys
import time

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

DEADLINE = 20.0  # seconds, for every single wait
SERVER_NAME = "relay.belay.internal"
CONTROL, ENROL, ESCALATE, BILLING = 1, 2, 3, 4  # prefaces
REQUIRED = 0x01
SKIPPABLE = 1_048_576  # longest body of an unknown frame without the required bit
CHUNK = 262_144
RAW = ("BodyChunk", "Event", "AnswerChunk")


class Fault(Exception):
    """The relay, or this client, did not do what the page says."""


class Reset(Exception):
    """The relay reset a stream; the argument is the StreamCode."""


# ---------------------------------------------------------------- messages (sections 2, 3 and 4)

USAGE, MONEY = "usage", "i64"
RECORDS = {
    "extension": "kind:u16 value:bytes",
    "header": "name:text value:text",
    "usage": "kind:u16 units:u64",
}
LIST_LIMITS = {"extension": 64, "header": 256, "usage": 64}
FRAMES = {  # name: (type, largest body, fields); "?" is an option, "*" a list
    "Hello": (0x01, 4096, "min_minor:u16 max_minor:u16 capabilities:u64 client_name:text "
              "instance_id:id path_generation:u64 extensions:*extension"),
    "HelloAck": (0x02, 4096, "minor:u16 capabilities:u64 relay_name:text tenant:name device:name "
                 "heartbeat_interval_ms:u32 relay_time_ms:u64 extensions:*extension"),
    "Heartbeat": (0x03, 65536, "sequence:u64 sent_at_us:u64 round_trip_us:?u32 "
                  "extensions:*extension"),
    "HeartbeatAck": (0x04, 65536, "sequence:u64 echo_us:u64 held_us:u32 relay_round_trip_us:u32 "
                     "extensions:*extension"),
    "GoAway": (0x05, 4096, "reconnect_after_ms:u32 spread_ms:u32 reason:text"),
    "EnrolRequest": (0x10, 65536, "secret:bytes csr_der:bytes device_label:text"),
    "EnrolAnswer": (0x11, 65536, "tenant:name device:name certificate_der:bytes ca_der:bytes "
                    "expires_ms:u64"),
    "LeaveRequest": (0x12, 4096, "reason:text"),
    "LeaveAnswer": (0x13, 4096, "device:name"),
    "EscalateRequest": (0x20, 1_048_576, "request_id:id session_id:?text operation:u16 dialect:u16 "
                        "model:text stream:bool max_output_tokens:?u32 may_reduce_output:bool "
                        "cost_cap:?i64 deadline_ms:?u32 headers:*header body_len:u32 "
                        "extensions:*extension"),
    "BodyChunk": (0x21, CHUNK + 8, None),
    "ResponseHead": (0x22, 1_048_576, "request_id:id status:u16 headers:*header dialect:u16 "
                     "stream:bool provider:text model:text max_output_tokens:u32 held:i64 "
                     "content:u16 first_event:u64"),
    "Event": (0x23, CHUNK + 8, None),
    "AnswerChunk": (0x24, CHUNK + 8, None),
    "End": (0x25, 65536, "request_id:id outcome:u16 message:text provider:text model:text "
            "usage:*usage cost:i64 balance:i64 estimated:bool events:u64 first_event_ms:?u32 "
            "total_ms:u32"),
    "Failed": (0x26, 65536, "code:u16 message:text remedy:text request_id:?id "
               "retry_after_ms:?u64 missing:?i64"),
    "Cancel": (0x27, 4096, "reason:text"),
    "Ack": (0x28, 4096, "next:u64 end:bool"),
    "BalanceRequest": (0x40, 4096, "reserved:u8"),
    "Balance": (0x41, 4096, "tenant:name balance:i64 held:i64 open_holds:u32 charged:i64"),
}
BY_TYPE = {number: name for name, (number, _, _) in FRAMES.items()}
BITS = {"u16": 16, "u32": 32, "u64": 64, "i64": 64}
FORMATS = {0xFB: (2, "<H"), 0xFC: (4, "<I"), 0xFD: (8, "<Q")}


def put_int(value):
    if value < 251:
        return bytes([value])
    mark = 0xFB if value < 1 << 16 else 0xFC if value < 1 << 32 else 0xFD
    return bytes([mark]) + struct.pack(FORMATS[mark][1], value)


def put(kind, value):
    if kind.startswith("?"):
        return b"\0" if value is None else b"\1" + put(kind[1:], value)
    if kind.startswith("*"):
        return put_int(len(value)) + b"".join(put(kind[1:], item) for item in value)
    if kind in RECORDS:
        return put_fields(RECORDS[kind], value)
    if kind in ("text", "name"):
        kind, value = "bytes", value.encode()
    if kind == "bytes":
        return put_int(len(value)) + value
    if kind == "id":
        return value
    if kind in ("u8", "bool"):
        return bytes([value])
    return put_int((value << 1) ^ (value >> 63) if kind == "i64" else value)


def put_fields(fields, values):
    pairs = [field.split(":") for field in fields.split()]
    if set(values) != {name for name, _ in pairs}:
        raise Fault(f"fields {sorted(values)} do not fit {fields!r}")
    return b"".join(put(kind, values[name]) for name, kind in pairs)


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if count > len(self.data) - self.at:
            raise Fault("a length reaches beyond the body")
        self.at += count
        return self.data[self.at - count:self.at]

    def int(self, bits):
        first = self.take(1)[0]
        if first < 251:
            return first
        size, form = FORMATS.get(first, (99, ""))
        if size * 8 > bits:
            raise Fault(f"mark {first:#x} in an integer of {bits} bits")
        return struct.unpack(form, self.take(size))[0]

    def get(self, kind):
        if kind.startswith("?"):
            return self.get(kind[1:]) if self.get("bool") else None
        if kind.startswith("*"):
            count = self.int(64)
            if count > LIST_LIMITS[kind[1:]]:
                raise Fault("a list is too long")
            return [self.get(kind[1:]) for _ in range(count)]
        if kind in RECORDS:
            return self.fields(RECORDS[kind])
        if kind == "id":
            return self.take(16)
        if kind == "u8":
            return self.take(1)[0]
        if kind == "bool":
            byte = self.take(1)[0]
            if byte > 1:
                raise Fault(f"{byte} is no bool")
            return byte == 1
        if kind in ("bytes", "text", "name"):
            value = self.take(self.int(64))
            value = value if kind == "bytes" else value.decode()
            if kind == "name" and not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", value):
                raise Fault(f"{value!r} is no name")
            return value
        value = self.int(BITS[kind])
        return (value >> 1) ^ -(value & 1) if kind == "i64" else value

    def fields(self, fields):
        return {name: self.get(kind) for name, kind in (f.split(":") for f in fields.split())}


def decode(name, body):
    """The fields of a message, or (number, payload) of a raw frame."""
    if name in RAW:
        if len(body) < 8:
            raise Fault("a raw body is shorter than its number")
        return struct.unpack("<Q", body[:8])[0], body[8:]
    reader = Reader(body)
    values = reader.fields(FRAMES[name][2])
    if reader.at != len(body):
        raise Fault(f"{len(body) - reader.at} bytes left over in {name}")
    return values


def raw_frame(number, body, flags=REQUIRED):
    return struct.pack("<IHBB", len(body), number, flags, 0) + body


def frame(name, **values):
    number, _, fields = FRAMES[name]
    return raw_frame(number, put_fields(fields, values))


def self_test():
    """The worked examples of the page."""
    hello = frame("Hello", min_minor=0, max_minor=300, capabilities=0x8000000000000001,
                  client_name="belay 0.1.0", instance_id=bytes(range(16)), path_generation=70_000,
                  extensions=[{"kind": 1, "value": b"\xaa\xbb"}, {"kind": 1000, "value": b""}])
    expected = ("37000000 0100 01 00 00 fb2c01 fd0100000000000080 0b62656c617920302e312e30"
                "000102030405060708090a0b0c0d0e0f fc70110100 02 0102aabb fbe80300")
    numbers = [("u64", 250, "fa"), ("u64", 251, "fbfb00"), ("u64", 65535, "fbffff"),
               ("u64", 65536, "fc00000100"), ("u64", 1 << 32, "fd0000000001000000"),
               ("i64", -1, "01"), ("i64", 1, "02"), ("i64", 10_815_000, "fc300c4a01")]
    return (hello == bytes.fromhex(expected)
            and put_fields(FRAMES["Hello"][2], decode("Hello", hello[8:])) == hello[8:]
            and all(put(kind, value) == bytes.fromhex(text)
                    and Reader(bytes.fromhex(text)).get(kind) == value
                    for kind, value, text in numbers))


# ---------------------------------------------------------------- QUIC (sections 1 and 2)

class Stream:
    def __init__(self, tunnel, stream_id):
        self.tunnel, self.id = tunnel, stream_id
        self.buffer, self.finished = bytearray(), False
        self.reset_code = self.stop_code = None
        self.news = asyncio.Event()

    def write(self, data):
        """Writes; what the relay no longer wants is dropped."""
        if self.stop_code is None:
            self.tunnel.quic.send_stream_data(self.id, data)
            self.tunnel.transmit()

    async def until(self, condition):
        async def wait():
            while not condition():
                if self.tunnel.closed.done():
                    raise Fault(f"the connection closed: {self.tunnel.closed.result()}")
                self.news.clear()
                await self.news.wait()
        await asyncio.wait_for(wait(), DEADLINE)

    async def read(self, count):
        """`count` bytes; fewer only at the end of the stream."""
        await self.until(lambda: len(self.buffer) >= count or self.finished
                         or self.reset_code is not None)
        if len(self.buffer) < count and self.reset_code is not None:
            raise Reset(self.reset_code)
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def frame(self):
        """The next frame as (name, fields, body); None at the end of the stream."""
        while True:
            header = await self.read(8)
            if not header:
                return None
            if len(header) < 8:
                raise Fault("the stream ended in the middle of a header")
            length, number, flags, reserved = struct.unpack("<IHBB", header)
            if flags & ~REQUIRED or reserved:
                raise Fault(f"reserved bits in the header {header.hex()}")
            name = BY_TYPE.get(number)
            if name is None and flags & REQUIRED:
                raise Fault(f"unknown required frame {number:#06x}")
            if length > (FRAMES[name][1] if name else SKIPPABLE):
                raise Fault(f"{length} bytes are too many for {name or hex(number)}")
            body = await self.read(length)
            if len(body) < length:
                raise Fault("the stream ended in the middle of a body")
            if name:
                return name, decode(name, body), body

    async def expect(self, name):
        """The fields and the body of the next frame, which must be a `name`."""
        got = await self.frame()
        if got is None or got[0] != name:
            raise Fault(f"wanted {name}, got {got and got[:2]}")
        return got[1:]

    async def refusal(self):
        """(FailureCode, StreamCode), each None if it was not seen: what refused the stream."""
        failure = None
        try:
            while (got := await self.frame()) is not None:
                failure = got[1]["code"] if got[0] == "Failed" else failure
        except Reset:
            pass
        return failure, self.reset_code


class Tunnel(QuicConnectionProtocol):
    def __init__(self, quic):
        super().__init__(quic)
        self.quic, self.streams = quic, {}
        self.closed = asyncio.get_running_loop().create_future()  # (is_application, code, reason)

    def quic_event_received(self, event):
        if isinstance(event, events.ConnectionTerminated) and not self.closed.done():
            self.closed.set_result((event.frame_type is None, event.error_code,
                                    event.reason_phrase))
            for stream in self.streams.values():
                stream.news.set()
        stream = self.streams.get(getattr(event, "stream_id", None))
        if stream is None:
            return
        if isinstance(event, events.StreamDataReceived):
            stream.buffer += event.data
            stream.finished |= event.end_stream
        elif isinstance(event, events.StreamReset):
            stream.reset_code = event.error_code
        elif isinstance(event, events.StopSendingReceived):
            stream.stop_code = event.error_code
        stream.news.set()

    def open(self, preface, data):
        """Opens a stream; the preface goes together with the first frame."""
        stream_id = self.quic.get_next_available_stream_id()
        stream = self.streams[stream_id] = Stream(self, stream_id)
        stream.write(bytes([preface]) + data)
        return stream

    async def close_done(self):
        self.close(error_code=0, reason_phrase="")
        await asyncio.wait_for(self.wait_closed(), DEADLINE)
        self._transport.close()


def check_chain(leaf, ca):
    """`ca` is the only trust anchor: its signature on the leaf, name, validity and usage."""
    now = datetime.datetime.now(datetime.timezone.utc)
    for certificate in (leaf, ca):
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise Fault("a certificate of the relay is not valid now")
    leaf.verify_directly_issued_by(ca)
    if not ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise Fault("the pinned certificate is no CA")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if SERVER_NAME not in names.get_values_for_type(x509.DNSName):
        raise Fault(f"the relay's certificate is not for {SERVER_NAME}")
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if x509.ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise Fault("the relay's certificate is not for a server")


async def connect(address, pin=None, ca=None, certificate=None, key=None):
    """Dials with a pin (before enrolment), or with the CA and the device certificate."""
    config = QuicConfiguration(
        alpn_protocols=["belay/1"], is_client=True, server_name=SERVER_NAME, idle_timeout=30.0,
        max_stream_data=262_144, max_data=32 << 20,
        supported_versions=[QuicProtocolVersion.VERSION_1])
    if ca is None:
        config.verify_mode = ssl.CERT_NONE  # aioquic knows no pins: checked below, before any data
    else:
        config.load_verify_locations(cadata=ca.public_bytes(Encoding.PEM))
        config.certificate, config.private_key = certificate, key
    host, port = address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    target = (await loop.getaddrinfo(host.strip("[]"), int(port)))[0][4]
    local = "::" if ipaddress.ip_address(target[0]).version == 6 else "0.0.0.0"
    _, tunnel = await loop.create_datagram_endpoint(
        lambda: Tunnel(QuicConnection(configuration=config)), local_addr=(local, 0))
    tunnel.connect(target)
    await asyncio.wait_for(tunnel.wait_connected(), DEADLINE)
    # The handshake has proved that the relay holds the leaf's key, with and without CERT_NONE.
    leaf, chain = tunnel.quic.tls._peer_certificate, tunnel.quic.tls._peer_certificate_chain
    if ca is None:
        pinned = [c for c in chain if hashlib.sha256(c.public_bytes(Encoding.DER)).digest() == pin]
        if not pinned:
            raise Fault("no certificate of the chain has the pinned hash")
        ca = pinned[0]
    check_chain(leaf, ca)
    return tunnel


async def first_that_answers(addresses, **how):
    for address in addresses:
        try:
            return address, await connect(address, **how)
        except (OSError, asyncio.TimeoutError) as error:
            reason = error
    raise Fault(f"none of {addresses} answers: {reason!r}")


def parse_join(text):
    """(pin, secret, addresses) of a join string."""
    scheme, _, coded = text.strip().partition(":")
    data = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
    data, checksum = data[:-4], data[-4:]
    if scheme != "belay1" or hashlib.sha256(data).digest()[:4] != checksum or data[0] != 1:
        raise Fault("the join string is cut or mistyped")
    reader = Reader(data[1:])
    pin, secret = reader.take(32), reader.take(24)
    addresses = [reader.take(reader.take(1)[0]).decode() for _ in range(reader.take(1)[0])]
    return pin, secret, addresses


# ---------------------------------------------------------------- flows (section 6)

def micros():
    return time.monotonic_ns() // 1000


def escalation(request_id, body):
    """Everything that an Escalate stream says first, after its preface."""
    data = frame("EscalateRequest", request_id=request_id, session_id=None, operation=1, dialect=1,
                 model="auto", stream=True, max_output_tokens=None, may_reduce_output=False,
                 cost_cap=None, deadline_ms=None, headers=[], body_len=len(body), extensions=[])
    for offset in range(0, len(body), CHUNK):
        data += raw_frame(0x21, struct.pack("<Q", offset) + body[offset:offset + CHUNK])
    return data


def text_of(event):
    """What one server-sent event of an OpenAI chat stream adds to the answer."""
    lines = event.decode().splitlines()
    data = "\n".join(line[5:].lstrip() for line in lines if line.startswith("data:"))
    if data in ("", "[DONE]"):
        return ""
    return "".join(c["delta"].get("content") or "" for c in json.loads(data)["choices"])


def cost_of(usage, prices, multiplier):
    """The charge in nano-USD; prices in nano-USD per million units, by UnitKind."""
    exact = sum(prices[u["kind"]] * u["units"] for u in usage) * multiplier
    return -(-exact // (1_000_000 * 10_000))  # rounded up once, at the end


async def run(args, checks):
    pin, secret, addresses = parse_join(args.join)
    checks["worked_examples"] = self_test()

    # Enrol. The repetition stands for a client whose first answer was lost.
    key = Ed25519PrivateKey.generate()
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    request = frame("EnrolRequest", secret=secret, csr_der=csr.public_bytes(Encoding.DER),
                    device_label="foreign client")
    address, tunnel = await first_that_answers(addresses, pin=pin)
    answer, recorded = await tunnel.open(ENROL, request).expect("EnrolAnswer")
    checks["enrol_repeated"] = (await tunnel.open(ENROL, request).expect("EnrolAnswer"))[1] == recorded
    refusal = await tunnel.open(BILLING, frame("BalanceRequest", reserved=0)).refusal()
    checks["stranger_may_only_enrol"] = refusal in [(22, 7), (None, 7)]
    await tunnel.close_done()
    checks["pin"] = hashlib.sha256(answer["ca_der"]).digest() == pin
    ca = x509.load_der_x509_certificate(answer["ca_der"])
    certificate = x509.load_der_x509_certificate(answer["certificate_der"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    checks["certificate_names"] = names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"belay://{answer['tenant']}/{answer['device']}"]
    checks["certificate_key"] = certificate.public_key() == key.public_key()
    checks["certificate_expiry"] = (
        int(certificate.not_valid_after_utc.timestamp()) == answer["expires_ms"] // 1000)

    # Hello and one heartbeat.
    tunnel = await connect(address, ca=ca, certificate=certificate, key=key)
    control = tunnel.open(CONTROL, frame(
        "Hello", min_minor=0, max_minor=0, capabilities=0, client_name="foreign-python 0.1.0",
        instance_id=os.urandom(16), path_generation=1, extensions=[]))
    hello, _ = await control.expect("HelloAck")
    checks["hello"] = (hello["minor"], hello["tenant"], hello["device"]) == (
        0, answer["tenant"], answer["device"])
    beats, round_trip = 0, None

    async def heartbeat():
        nonlocal beats, round_trip
        beats, sent = beats + 1, micros()
        control.write(frame("Heartbeat", sequence=beats, sent_at_us=sent, round_trip_us=round_trip,
                            extensions=[]))
        ack, _ = await control.expect("HeartbeatAck")
        round_trip = micros() - ack["echo_us"] - ack["held_us"]
        return (ack["sequence"], ack["echo_us"]) == (beats, sent) and round_trip >= 0

    checks["heartbeat"] = await heartbeat()
    heartbeat_rtt_ms = round_trip / 1000

    async def balance(prefix=b""):
        return (await tunnel.open(BILLING, prefix + frame("BalanceRequest", reserved=0))
                .expect("Balance"))[0]

    before = await balance()

    # One question, streamed.
    request_id, body = os.urandom(16), json.dumps({"query": args.query}).encode()
    stream = tunnel.open(ESCALATE, escalation(request_id, body))
    head, _ = await stream.expect("ResponseHead")
    checks["head"] = (head["request_id"], head["status"], head["stream"], head["dialect"],
                      head["content"]) == (request_id, 200, True, 2, 1)
    text, expected, numbered, whole = "", head["first_event"], True, True
    while (got := await stream.frame())[0] == "Event":
        number, payload = got[1]
        numbered &= number == expected
        whole &= payload.endswith((b"\n\n", b"\r\n\r\n"))
        expected += 1
        text += text_of(payload)
        if expected % 4 == 0:
            stream.write(frame("Ack", next=expected, end=False))
    if got[0] != "End":
        raise Fault(f"wanted End, got {got[:2]}")
    end, end_bytes = got[1:]
    stream.write(frame("Ack", next=expected, end=True))
    await stream.until(lambda: stream.finished and stream.stop_code is not None)
    checks["finished"] = await stream.frame() is None and stream.stop_code == 0
    checks["event_numbers"] = numbered and head["first_event"] == 0 and end["events"] == expected
    checks["whole_events"], checks["text"] = whole, len(text) > 0
    checks["complete"] = (end["request_id"], end["outcome"], end["message"]) == (request_id, 1, "")
    prices = {1: args.price_input, 2: args.price_output, 6: 0}
    checks["cost"] = end["cost"] == cost_of(end["usage"], prices, args.multiplier_bp)
    checks["within_hold"] = 0 < end["cost"] <= head["held"]
    after = await balance()
    checks["balance"] = (after["tenant"] == answer["tenant"] and after["balance"] == end["balance"]
                         and before["balance"] - after["balance"] == end["cost"]
                         and after["charged"] - before["charged"] == end["cost"]
                         and (after["held"], after["open_holds"]) == (0, 0))

    # The same request again, and another one under its id.
    again = tunnel.open(ESCALATE, escalation(request_id, body))
    checks["repeated_gone"] = (await again.expect("ResponseHead"))[0]["content"] == 3
    checks["repeated_end"] = (await again.expect("End"))[1] == end_bytes
    other = json.dumps({"query": args.query + " Really?"}).encode()
    refusal = await tunnel.open(ESCALATE, escalation(request_id, other)).expect("Failed")
    checks["conflict"] = (refusal[0]["code"], refusal[0]["request_id"]) == (7, request_id)

    # Streams that the relay refuses: a Failed, a reset, or both; never anything else.
    ask = frame("BalanceRequest", reserved=0)
    bad = {
        "unknown_kind": (0x7F, ask, (20, 2)),
        "reserved_kind": (0x05, ask, (20, 2)),
        "too_large": (BILLING, struct.pack("<IHBB", 4097, 0x40, REQUIRED, 0), (16, 3)),
        "too_large_request": (ESCALATE, struct.pack("<IHBB", 1_048_577, 0x20, REQUIRED, 0), (16, 3)),
        "unknown_required": (BILLING, raw_frame(0x7001, b"?") + ask, (20, 2)),
        "unknown_too_long": (BILLING, struct.pack("<IHBB", SKIPPABLE + 1, 0x7001, 0, 0), (16, 3)),
        "reserved_bits": (BILLING, raw_frame(0x40, b"\0", flags=0x81), (1, 1)),
        "bytes_left_over": (BILLING, raw_frame(0x40, b"\0\0"), (1, 1)),
        "misplaced_frame": (BILLING, frame("Ack", next=0, end=False), (1, 1)),
    }
    for name, (preface, data, (failure, code)) in bad.items():
        seen = await tunnel.open(preface, data).refusal()
        if args.verbose:
            print(name, seen, file=sys.stderr)
        checks[name] = seen in [(failure, code), (None, code)]
    skipped = await balance(raw_frame(0x7001, b"not for you", flags=0))
    checks["unknown_optional_skipped"] = skipped == after
    checks["tunnel_lives_on"] = await heartbeat() and not tunnel.closed.done()

    # Leave; the relay closes all tunnels of the device.
    left, _ = await tunnel.open(ENROL, frame("LeaveRequest", reason="the test is over")).expect(
        "LeaveAnswer")
    checks["left"] = left["device"] == answer["device"]
    closed = await asyncio.wait_for(asyncio.shield(tunnel.closed), DEADLINE)
    checks["closed_as_revoked"] = closed[:2] == (True, 3)
    return {"device": answer["device"], "tenant": answer["tenant"], "text": text,
            "events": end["events"], "cost_nano_usd": end["cost"],
            "balance_nano_usd": after["balance"], "heartbeat_rtt_ms": heartbeat_rtt_ms,
            "usage": end["usage"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("join", nargs="?", default=os.environ.get("BELAY_JOIN"))
    parser.add_argument("--price-input", type=int, required=True, help="nano-USD per million tokens")
    parser.add_argument("--price-output", type=int, required=True, help="nano-USD per million tokens")
    parser.add_argument("--multiplier-bp", type=int, required=True, help="10000 is the price itself")
    parser.add_argument("--query", default="Why is the sky blue?")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    if not args.join:
        parser.error("no join string: give it as an argument or in BELAY_JOIN")
    checks = {}
    try:
        seen = asyncio.run(asyncio.wait_for(run(args, checks), 6 * DEADLINE))
        failed = [name for name, held in checks.items() if held is not True]
        if failed:
            raise Fault(f"checks that did not hold: {', '.join(failed)}; seen: {seen}")
    except Exception as error:
        print(f"foreign client: {error!r} (checks so far: {checks})", file=sys.stderr)
        sys.exit(1)
    print(json.dumps({**seen, "checks": checks}))


if __name__ == "__main__":
    main()
