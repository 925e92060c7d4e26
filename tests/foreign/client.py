#!/usr/bin/env python3
"""A foreign client of the belay relay, written from docs/PROTOCOL.md alone.

It enrols with a join string (argument, or BELAY_JOIN), asks a question, visits the corners of the
protocol, leaves, and prints one JSON object. Exit code 1: a check failed, and stderr says which.
"""

import argparse
import asyncio
import base64
import datetime
import hashlib
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
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from blake3 import blake3

DEADLINE = 20.0  # seconds, for every single wait
SERVER_NAME = "relay.belay.internal"
CONTROL, ENROL, ESCALATE, BILLING, SYNC, BLOB, FEED = 1, 2, 3, 4, 6, 7, 8  # prefaces
REQUIRED, SKIPPABLE = 0x01, 1_048_576  # the only flag; longest unknown body without it


class Fault(Exception):
    """Something is not as the page says."""


class Reset(Exception):
    """The relay reset a stream."""


# ---- Messages (sections 2 to 4): type, largest body, name, fields. "?" is an option, "*" a list.

FRAMES = {}
for line in """
01 4096 Hello min_minor:u16 max_minor:u16 capabilities:u64 client_name:text instance_id:id \
    path_generation:u64 extensions:*extension
02 4096 HelloAck minor:u16 capabilities:u64 relay_name:text tenant:name device:name \
    heartbeat_interval_ms:u32 relay_time_ms:u64 extensions:*extension
03 65536 Heartbeat sequence:u64 sent_at_us:u64 round_trip_us:?u32 extensions:*extension
04 65536 HeartbeatAck sequence:u64 echo_us:u64 held_us:u32 relay_round_trip_us:u32 \
    extensions:*extension
05 4096 GoAway reconnect_after_ms:u32 spread_ms:u32 reason:text
10 65536 EnrolRequest secret:bytes csr_der:bytes device_label:text
11 65536 EnrolAnswer tenant:name device:name certificate_der:bytes ca_der:bytes expires_ms:u64
12 4096 LeaveRequest reason:text
13 4096 LeaveAnswer device:name
14 65536 RenewRequest csr_der:bytes
15 65536 RenewAnswer certificate_der:bytes ca_der:bytes next_ca_der:bytes expires_ms:u64
20 1048576 EscalateRequest request_id:id session_id:?text operation:u16 dialect:u16 model:text \
    stream:bool max_output_tokens:?u32 may_reduce_output:bool cost_cap:?i64 deadline_ms:?u32 \
    headers:*header body_len:u32 extensions:*extension
21 262152 BodyChunk
22 1048576 ResponseHead request_id:id status:u16 headers:*header dialect:u16 stream:bool \
    provider:text model:text max_output_tokens:u32 held:i64 content:u16 first_event:u64
23 262152 Event
24 262152 AnswerChunk
25 65536 End request_id:id outcome:u16 message:text provider:text model:text usage:*usage \
    cost:i64 balance:i64 estimated:bool events:u64 first_event_ms:?u32 total_ms:u32
26 65536 Failed code:u16 message:text remedy:text request_id:?id retry_after_ms:?u64 missing:?i64
27 4096 Cancel reason:text
28 4096 Ack next:u64 end:bool
40 4096 BalanceRequest reserved:u8
41 4096 Balance tenant:name balance:i64 credits:i64 held:i64 open_holds:u32 charged:i64 \
    pays_with:u16 ceiling:i64
42 4096 UsageRequest period:u16 from_day:u32 until_day:u32 by:u16
43 4096 UsageGroup name:text requests:u64 estimated:u64 input:u64 output:u64 cache_read:u64 \
    cache_write:u64 reasoning:u64 cost:i64
44 4096 Done rows:u64 from_day:u32 until_day:u32
45 4096 StatementRequest from_day:u32 until_day:u32 after:u64
46 65536 StatementLine entry:u64 at_ms:u64 kind:text from:text to:text amount:i64 balance:i64 \
    request_id:?id model:text operation:text note:text
47 65536 RecordRequest request_id:id class_:u16 model:text usage:*usage
48 4096 TopUpRequest amount:i64
49 4096 TopUp url:text
4a 4096 FlushRequest reserved:u8
4b 4096 Flushed waiting_rows:u64 waiting:i64
80 1048576 SyncPush revision:id parent:?id kind:u16 key:text content:u16 modified_ms:u64 size:u64 \
    digest:digest inline:bytes meta:text earlier:?id
81 4096 SyncPushed revision:id outcome:u16 head:id number:u64 copy:?text
82 4096 SyncPull cursor:text limit:u32
83 1048576 SyncChange number:u64 kind:u16 key:text revision:id content:u16 device:?name at_ms:u64 \
    modified_ms:u64 size:u64 digest:digest inline:bytes meta:text conflict_of:text
84 4096 SyncPage changes:u64 cursor:text has_more:bool resync:u16
85 4096 SyncGet revision:id
86 1048576 SyncGot content:u16 size:u64 inline:bytes parts:bytes
90 1048576 BlobBegin revision:id kind:u16 parts:bytes
91 1048576 BlobNeeded needed:bytes
92 4096 BlobPut revision:id part:u32 offset:u32 encoding:u16 len:u32
93 4096 BlobStored part:u32
94 4096 BlobGet digest:digest offset:u32
95 4096 BlobPart size:u32 encoding:u16 len:u32
""".strip().splitlines():
    number, largest, name, *fields = line.split()
    FRAMES[name] = int(number, 16), int(largest), [field.split(":") for field in fields]
BY_TYPE = {number: name for name, (number, _, _) in FRAMES.items()}
RECORDS = {"extension": ([("kind", "u16"), ("value", "bytes")], 64),  # and the longest list
           "header": ([("name", "text"), ("value", "text")], 256),
           "usage": ([("kind", "u16"), ("units", "u64")], 64)}
MARKS = {0xFB: 2, 0xFC: 4, 0xFD: 8}


def put(kind, value):
    if kind[0] == "?":
        return b"\0" if value is None else b"\1" + put(kind[1:], value)
    if kind[0] == "*":
        return put("u64", len(value)) + b"".join(put(kind[1:], item) for item in value)
    if kind in RECORDS:
        return b"".join(put(kind, value[name]) for name, kind in RECORDS[kind][0])
    if kind in ("text", "name", "bytes"):
        data = value if kind == "bytes" else value.encode()
        return put("u64", len(data)) + data
    if kind in ("id", "digest"):
        return value
    if kind in ("u8", "bool"):
        return bytes([value])
    if kind == "i64":
        value = value * 2 if value >= 0 else -value * 2 - 1
    if value < 251:
        return bytes([value])
    mark = 0xFB if value < 1 << 16 else 0xFC if value < 1 << 32 else 0xFD
    return bytes([mark]) + value.to_bytes(MARKS[mark], "little")


class Reader:
    def __init__(self, data):
        self.data = data

    def take(self, count):
        if count > len(self.data):
            raise Fault("a length reaches beyond the body")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def get(self, kind):
        if kind[0] == "?":
            return self.get(kind[1:]) if self.get("bool") else None
        if kind[0] == "*":
            count = self.get("u64")
            fields, longest = RECORDS[kind[1:]]
            if count > longest:
                raise Fault("a list is too long")
            return [{name: self.get(kind) for name, kind in fields} for _ in range(count)]
        if kind in ("id", "digest", "bytes"):
            return self.take({"id": 16, "digest": 32}.get(kind) or self.get("u64"))
        if kind in ("text", "name"):
            value = self.get("bytes").decode()
            if kind == "name" and not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", value):
                raise Fault(f"{value!r} is no name")
            return value
        value = self.take(1)[0]
        if kind == "bool":
            return (False, True)[value]
        if value > 250 and kind != "u8":
            size = MARKS.get(value, 99)
            if size * 8 > int(kind[1:]):
                raise Fault(f"mark {value:#x} in a {kind}")
            value = int.from_bytes(self.take(size), "little")
        return (value >> 1) ^ -(value & 1) if kind == "i64" else value


def decode(name, body):
    """The fields of a message; (number, payload) of a raw frame."""
    reader = Reader(body)
    if not FRAMES[name][2]:
        return int.from_bytes(reader.take(8), "little"), reader.data
    values = {field: reader.get(kind) for field, kind in FRAMES[name][2]}
    if reader.data:
        raise Fault(f"{len(reader.data)} bytes left over in {name}")
    return values


def raw_frame(number, body, flags=REQUIRED, length=None):
    return struct.pack("<IHBB", len(body) if length is None else length, number, flags, 0) + body


def frame(name, **values):
    number, _, fields = FRAMES[name]
    return raw_frame(number, b"".join(put(kind, values[field]) for field, kind in fields))


# ---- QUIC and frames (sections 1 and 2)
class Stream:
    def __init__(self, tunnel, stream_id):
        self.tunnel, self.id = tunnel, stream_id
        self.buffer, self.finished, self.news = bytearray(), False, asyncio.Event()
        self.reset_code = self.stop_code = None

    def write(self, data):
        """Writes, unless the relay has no more interest."""
        if self.stop_code is None:
            self.tunnel.quic.send_stream_data(self.id, data)
            self.tunnel.transmit()

    async def until(self, condition):
        while not condition():
            if self.tunnel.ended.done():
                raise ConnectionError(f"closed: {self.tunnel.ended.result()}")
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), DEADLINE)

    async def read(self, count, between=False):
        """`count` bytes; between two frames none, if the stream is at its end."""
        over = lambda: self.finished or self.reset_code is not None
        await self.until(lambda: len(self.buffer) >= count or over())
        if len(self.buffer) < count and self.reset_code is not None:
            raise Reset(self.reset_code)
        if len(self.buffer) < count and (self.buffer or not between):
            raise Fault("the stream ended in the middle of a frame")
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def frame(self):
        """The next known frame as (name, fields, body); (None, None, None) at the end."""
        while header := await self.read(8, between=True):
            length, number, flags, reserved = struct.unpack("<IHBB", header)
            name = BY_TYPE.get(number)
            if (flags & ~REQUIRED or reserved or (name is None and flags & REQUIRED)
                    or length > (FRAMES[name][1] if name else SKIPPABLE)):
                raise Fault(f"reserved bits, too long, or unknown and required: {header.hex()}")
            body = await self.read(length)
            if name:
                return name, decode(name, body), body
        return None, None, None

    async def expect(self, name):
        """Fields and body of the next frame, which must be a `name`."""
        got, values, body = await self.frame()
        if got != name:
            raise Fault(f"wanted {name}, got {got}: {values}")
        return values, body

    async def refused(self, failure_code, stream_code):
        """Was the stream refused with these codes: by Failed, by a reset, or by both?"""
        failed = None
        try:
            while (got := await self.frame())[0]:
                failed = got[1]["code"] if got[0] == "Failed" else got
        except Reset:
            pass
        codes = (failed, self.reset_code)
        return codes in [(failure_code, stream_code), (failure_code, None), (None, stream_code)]


class Tunnel(QuicConnectionProtocol):
    def __init__(self, quic):
        super().__init__(quic)
        self.quic, self.streams = quic, {}
        self.ended = asyncio.get_running_loop().create_future()  # (by application?, code)

    def quic_event_received(self, event):
        if isinstance(event, events.ConnectionTerminated):
            self.ended.set_result((event.frame_type is None, event.error_code))
            for stream in self.streams.values():
                stream.news.set()
        stream = self.streams.get(getattr(event, "stream_id", None))
        if isinstance(event, events.StreamDataReceived):
            stream.buffer += event.data
            stream.finished |= event.end_stream
        elif isinstance(event, events.StreamReset):
            stream.reset_code = event.error_code
        elif isinstance(event, events.StopSendingReceived):
            stream.stop_code = event.error_code
        if stream:
            stream.news.set()

    def open(self, preface, data):
        """Opens a stream; the preface goes together with the first frame."""
        stream_id = self.quic.get_next_available_stream_id()
        stream = self.streams[stream_id] = Stream(self, stream_id)
        stream.write(bytes([preface]) + data)
        return stream


async def connect(address, pin=None, ca=None, certificate=None, key=None):
    """Dials with the pin (before enrolment), or with the CA and the device's certificate."""
    config = QuicConfiguration(
        alpn_protocols=["belay/1"], server_name=SERVER_NAME, idle_timeout=30.0, max_data=32 << 20,
        max_stream_data=262_144, supported_versions=[QuicProtocolVersion.VERSION_1])
    if ca is None:
        config.verify_mode = ssl.CERT_NONE  # aioquic knows no pins: checked below, before any data
    else:
        config.load_verify_locations(cadata=ca.public_bytes(Encoding.PEM))
        config.certificate, config.private_key = certificate, key
    host, port = address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    *_, target = (await loop.getaddrinfo(host.strip("[]"), int(port)))[0]
    _, tunnel = await loop.create_datagram_endpoint(
        lambda: Tunnel(QuicConnection(configuration=config)),
        local_addr=("::" if ":" in target[0] else "0.0.0.0", 0))
    tunnel.connect(target)
    await asyncio.wait_for(tunnel.wait_connected(), DEADLINE)
    # In both modes the handshake has proved that the relay holds the key of its leaf. The CA is the
    # only trust anchor: it must have signed the leaf; then come validity, name and usage.
    leaf, chain = tunnel.quic.tls._peer_certificate, tunnel.quic.tls._peer_certificate_chain
    for ca in [ca] if ca else [c for c in chain if c.fingerprint(hashes.SHA256()) == pin]:
        leaf.verify_directly_issued_by(ca)
        now = datetime.datetime.now(datetime.timezone.utc)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if (all(c.not_valid_before_utc <= now <= c.not_valid_after_utc for c in (leaf, ca))
                and SERVER_NAME in names.get_values_for_type(x509.DNSName)
                and x509.ExtendedKeyUsageOID.SERVER_AUTH in usage):
            return tunnel
    raise Fault("the relay is not the pinned one, or its certificate does not hold")


# ---- Flows (section 6)
def parse_join(text):
    """(pin, secret, addresses) of a join string."""
    scheme, _, coded = text.strip().partition(":")
    data = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
    if scheme != "belay1" or hashlib.sha256(data[:-4]).digest()[:4] != data[-4:] or data[0] != 1:
        raise Fault("the join string is cut or mistyped")
    reader = Reader(data[1:-4])
    pin, secret, count = reader.take(32), reader.take(24), reader.take(1)[0]
    return pin, secret, [reader.take(reader.take(1)[0]).decode() for _ in range(count)]


def escalation(request_id, query):
    """Everything that an Escalate stream says after its preface: a streamed prompt to `auto`."""
    body = json.dumps({"query": query}).encode()
    return frame("EscalateRequest", request_id=request_id, session_id=None, operation=1, dialect=1,
                 model="auto", stream=True, max_output_tokens=None, may_reduce_output=False,
                 cost_cap=None, deadline_ms=None, headers=[], body_len=len(body), extensions=[]
                 ) + raw_frame(0x21, bytes(8) + body)  # a body of up to 262,144 bytes: one chunk


def text_of(event):
    """What a server-sent event of an OpenAI chat stream adds to the answer."""
    data = "".join(line[5:].strip() for line in event.decode().splitlines() if line[:5] == "data:")
    choices = [] if data in ("", "[DONE]") else json.loads(data)["choices"]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def push(content, key, parent=None, parts=None):
    """A SyncPush of a document, and its revision."""
    revision, digest = os.urandom(16), blake3(parts or content).digest()
    return revision, frame(
        "SyncPush", revision=revision, parent=parent, kind=2, key=key, content=2 if parts else 1,
        modified_ms=1, size=len(content), digest=digest, inline=b"" if parts else content,
        meta="", earlier=None)


async def synced(tunnel, checks):
    feed = tunnel.open(FEED, frame("SyncPull", cursor="", limit=0))
    page, _ = await feed.expect("SyncPage")
    checks["feed_is_empty"] = (page["changes"], page["has_more"], page["resync"]) == (0, False, 0)
    stream = tunnel.open(SYNC, b"")
    first, sent = push(b"one", "notes/a.md")
    stream.write(sent)
    pushed = (await stream.expect("SyncPushed"))[0]
    checks["pushed"] = (pushed["outcome"], pushed["head"], pushed["copy"]) == (1, first, None)
    stream.write(sent)
    checks["pushed_once"] = (await stream.expect("SyncPushed"))[0] == pushed
    second, sent = push(b"two", "notes/a.md", first)
    stream.write(sent + push(b"three", "notes/a.md", first)[1])
    checks["edited"] = (await stream.expect("SyncPushed"))[0]["outcome"] == 1
    pushed = (await stream.expect("SyncPushed"))[0]
    checks["a_conflict_is_kept"] = (pushed["outcome"], pushed["head"]) == (3, second) \
        and re.fullmatch(r"notes/a \(conflict .* \d{4}-\d\d-\d\d\)\.md", pushed["copy"]) is not None
    # Two parts, the second of which is sent in two pieces.
    parts = [os.urandom(30_000), os.urandom(20_000)]
    listed = b"".join(blake3(part).digest() + struct.pack("<I", len(part)) for part in parts)
    large, sent = push(b"".join(parts), "large.bin", parts=listed)
    blob = tunnel.open(BLOB, frame("BlobBegin", revision=large, kind=2, parts=listed))
    needed = (await blob.expect("BlobNeeded"))[0]["needed"]
    checks["both_parts_are_needed"] = struct.unpack("<4I", needed) == (0, 0, 1, 0)
    for place, part in enumerate(parts):
        blob.write(frame("BlobPut", revision=large, part=place, offset=0, encoding=0, len=len(part)))
        for at in range(0, len(part), 16_384):
            blob.write(raw_frame(0x21, struct.pack("<Q", at) + part[at:at + 16_384]))
        checks["stored"] = (await blob.expect("BlobStored"))[0] == {"part": place}
    stream.write(sent + frame("SyncGet", revision=large))
    checks["pushed_in_parts"] = (await stream.expect("SyncPushed"))[0]["outcome"] == 1
    checks["parts_are_told"] = (await stream.expect("SyncGot"))[0]["parts"] == listed
    blob.write(frame("BlobGet", digest=listed[36:68], offset=12_345))
    head, came = (await blob.expect("BlobPart"))[0], b""
    while len(came) < head["len"]:
        came += (await blob.expect("BodyChunk"))[0][1]
    checks["a_part_comes_back"] = (head["size"], head["encoding"], came) == (20_000, 0, parts[1][12_345:])
    seen = {}
    while "large.bin" not in seen:
        name, values, _ = await feed.frame()
        if name == "SyncChange":
            seen[values["key"]] = values["inline"]
    checks["the_feed_told_all"] = len(seen) == 3 and seen["notes/a.md"] == b"two"


async def run(args, checks):
    pin, secret, addresses = parse_join(args.join)

    # Enrol, twice, as a client would whose first answer was lost.
    key = Ed25519PrivateKey.generate()
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, None)
    request = frame("EnrolRequest", secret=secret, csr_der=csr.public_bytes(Encoding.DER),
                    device_label="foreign client")
    tunnel = await connect(addresses[0], pin=pin)
    answer, body = await tunnel.open(ENROL, request).expect("EnrolAnswer")
    ask_balance = frame("BalanceRequest", reserved=0)
    checks["enrol_repeated"] = body == (await tunnel.open(ENROL, request).expect("EnrolAnswer"))[1]
    checks["stranger_refused"] = await tunnel.open(BILLING, ask_balance).refused(22, 7)
    tunnel.close(error_code=0)
    ca = x509.load_der_x509_certificate(answer["ca_der"])
    certificate = x509.load_der_x509_certificate(answer["certificate_der"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    checks["pin"] = ca.fingerprint(hashes.SHA256()) == pin
    checks["certificate"] = certificate.public_key() == key.public_key() and (
        names.get_values_for_type(x509.UniformResourceIdentifier)
        == [f"belay://{answer['tenant']}/{answer['device']}"])

    # Hello and a heartbeat.
    tunnel = await connect(addresses[0], ca=ca, certificate=certificate, key=key)
    control = tunnel.open(CONTROL, frame(
        "Hello", min_minor=0, max_minor=0, capabilities=0, client_name="foreign-python 0.1.0",
        instance_id=os.urandom(16), path_generation=1, extensions=[]))
    hello, _ = await control.expect("HelloAck")
    checks["hello"] = hello["minor"] == 0 and hello["device"] == answer["device"]
    beats, round_trip, sent = 0, None, 0

    async def heartbeat():
        nonlocal beats, round_trip, sent
        beats, sent = beats + 1, time.monotonic_ns() // 1000
        control.write(frame("Heartbeat", sequence=beats, sent_at_us=sent,
                            round_trip_us=round_trip, extensions=[]))
        ack, _ = await control.expect("HeartbeatAck")
        round_trip = max(0, time.monotonic_ns() // 1000 - ack["echo_us"] - ack["held_us"])
        return (ack["sequence"], ack["echo_us"]) == (beats, sent)

    checks["heartbeat"] = await heartbeat()

    # One question, streamed.
    before, _ = await tunnel.open(BILLING, ask_balance).expect("Balance")
    request_id, text, numbers, whole = os.urandom(16), "", [], True
    stream = tunnel.open(ESCALATE, escalation(request_id, args.query))
    head, _ = await stream.expect("ResponseHead")
    checks["head"] = (request_id, 200, True, 2, 1, 0) == tuple(
        head[f] for f in ("request_id", "status", "stream", "dialect", "content", "first_event"))
    while (got := await stream.frame())[0] == "Event":
        number, event = got[1]
        numbers.append(number)
        whole &= event.endswith((b"\n\n", b"\r\n\r\n"))
        text += text_of(event)
        if len(numbers) % 4 == 0:
            stream.write(frame("Ack", next=number + 1, end=False))
        if time.monotonic_ns() // 1000 - sent > hello["heartbeat_interval_ms"] * 1000:
            await heartbeat()
    if got[0] != "End":
        raise Fault(f"wanted End, got {got}")
    _, end, end_body = got
    stream.write(frame("Ack", next=len(numbers), end=True))
    await stream.until(lambda: stream.finished and stream.stop_code is not None)
    checks["finished"] = stream.stop_code == 0 and (await stream.frame())[0] is None
    checks["events"] = numbers == list(range(end["events"])) and whole and text != ""
    checks["complete"] = (end["request_id"], end["outcome"], end["message"]) == (request_id, 1, "")
    prices = {1: args.price_input, 2: args.price_output, 6: 0}  # by UnitKind
    cost = sum(-(-line["units"] * prices[line["kind"]] * args.multiplier_bp // 10**10)
               for line in end["usage"])  # every line rounded up
    checks["cost"] = 0 < end["cost"] == cost <= head["held"]
    after, _ = await tunnel.open(BILLING, ask_balance).expect("Balance")
    checks["balance"] = after == {
        "tenant": answer["tenant"], "balance": end["balance"], "credits": 0, "held": 0,
        "open_holds": 0, "charged": before["charged"] + end["cost"], "pays_with": 2, "ceiling": 0}

    # The book, the sums over it, and usage elsewhere.
    async def listed(request, row):
        stream, rows = tunnel.open(BILLING, request), []
        while (got := await stream.frame())[0] == row:
            rows.append(got[1])
        checks["done"] = checks.get("done", True) and (got[0], got[1]["rows"]) == ("Done", len(rows))
        return rows

    record = frame("RecordRequest", request_id=os.urandom(16), class_=2, model="llama3",
                   usage=[{"kind": 1, "units": 70}])
    recorded = [(await tunnel.open(BILLING, record).expect("End"))[1] for _ in range(2)]
    checks["recorded_once"] = recorded[0] == recorded[1]
    lines = await listed(frame("StatementRequest", from_day=0, until_day=40_000, after=0),
                         "StatementLine")
    checks["statement"] = [line["entry"] for line in lines] == list(range(1, len(lines) + 1)) \
        and lines[-1]["balance"] == after["balance"]
    charged = sum(line["amount"] for line in lines if line["to"] == "relay:revenue")
    groups = await listed(frame("UsageRequest", period=4, from_day=0, until_day=0, by=7),
                          "UsageGroup")
    checks["usage"] = [group["name"] for group in groups] == ["cloud", "local"] \
        and sum(group["cost"] for group in groups) == charged == after["charged"]
    flushed, _ = await tunnel.open(BILLING, frame("FlushRequest", reserved=0)).expect("Flushed")
    checks["flushed"] = flushed == {"waiting_rows": 0, "waiting": 0}
    failed, _ = await tunnel.open(BILLING, frame("TopUpRequest", amount=1)).expect("Failed")
    checks["topup_by_the_operator"] = failed["code"] == 20

    # The same request again, and another one under its id.
    again = tunnel.open(ESCALATE, escalation(request_id, args.query))
    checks["repeated_gone"] = (await again.expect("ResponseHead"))[0]["content"] == 3
    checks["repeated_end"] = (await again.expect("End"))[1] == end_body
    other = tunnel.open(ESCALATE, escalation(request_id, args.query + " Really?"))
    failed, _ = await other.expect("Failed")
    checks["conflict"] = (failed["code"], failed["request_id"]) == (7, request_id)

    # Items: small ones, a conflict, one in two parts, and the feed.
    await synced(tunnel, checks)

    # Faults of a client: preface, bytes, FailureCode and StreamCode.
    for name, preface, data, failure, code in [
            ("unknown_kind", 0x7F, ask_balance, 20, 2),
            ("no_kind", 0x09, ask_balance, 20, 2),
            ("too_large", BILLING, raw_frame(0x40, b"", length=4097), 16, 3),
            ("too_large_request", ESCALATE, raw_frame(0x20, b"", length=1_048_577), 16, 3),
            ("unknown_too_large", BILLING, raw_frame(0x7001, b"", 0, SKIPPABLE + 1), 16, 3),
            ("unknown_required", BILLING, raw_frame(0x7001, b"?") + ask_balance, 20, 2),
            ("reserved_bits", BILLING, raw_frame(0x40, b"\0", flags=0x81), 1, 1),
            ("bytes_left_over", BILLING, raw_frame(0x40, b"\0\0"), 1, 1),
            ("frame_out_of_place", BILLING, frame("Ack", next=0, end=False), 1, 1)]:
        checks[name] = await tunnel.open(preface, data).refused(failure, code)
    skipping = tunnel.open(BILLING, raw_frame(0x7001, b"skip me", flags=0) + ask_balance)
    checks["unknown_optional"] = (await skipping.expect("Balance"))[0] == after
    checks["tunnel_lives_on"] = await heartbeat() and not tunnel.ended.done()

    # A new certificate for the same key, over the tunnel.
    csr_der = csr.public_bytes(Encoding.DER)
    renewed, _ = await tunnel.open(ENROL, frame("RenewRequest", csr_der=csr_der)).expect("RenewAnswer")
    newer = x509.load_der_x509_certificate(renewed["certificate_der"])
    checks["renewed"] = newer.public_key() == key.public_key() and (
        newer.serial_number != certificate.serial_number and renewed["ca_der"] == answer["ca_der"]
        and renewed["next_ca_der"] == b"" and newer.subject == certificate.subject)
    other = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(Ed25519PrivateKey.generate(), None)
    checks["another_key_refused"] = await tunnel.open(ENROL, frame(
        "RenewRequest", csr_der=other.public_bytes(Encoding.DER))).refused(2, 7)

    # Leave. The close may overtake LeaveAnswer, and says the same.
    leaving, left = tunnel.open(ENROL, frame("LeaveRequest", reason="the test is over")), None
    try:
        left = (await leaving.expect("LeaveAnswer"))[0]["device"]
    except ConnectionError:
        pass
    checks["revoked"] = left in (answer["device"], None) and (
        await asyncio.wait_for(tunnel.ended, DEADLINE) == (True, 3))
    tunnel = await connect(addresses[0], ca=ca, certificate=newer, key=key)
    checks["stays_revoked"] = await asyncio.wait_for(tunnel.ended, DEADLINE) == (True, 3)
    return {"device": answer["device"], "tenant": answer["tenant"], "text": text,
            "events": end["events"], "cost_nano_usd": end["cost"], "usage": end["usage"],
            "balance_nano_usd": after["balance"], "heartbeat_rtt_ms": round_trip / 1000,
            "leave_answer_seen": left is not None}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("join", nargs="?", default=os.environ.get("BELAY_JOIN", ""))
    parser.add_argument("--price-input", type=int, required=True, help="nano-USD per 10^6 tokens")
    parser.add_argument("--price-output", type=int, required=True, help="likewise")
    parser.add_argument("--multiplier-bp", type=int, required=True, help="10000: the price itself")
    parser.add_argument("--query", default="Why is the sky blue?")
    args, checks = parser.parse_args(), {}
    try:
        seen = asyncio.run(asyncio.wait_for(run(args, checks), 6 * DEADLINE))
        if failed := [name for name, held in checks.items() if held is not True]:
            raise Fault(f"these checks did not hold: {failed}; seen: {seen}")
    except Exception as error:
        sys.exit(f"foreign client: {error!r}; checks so far: {checks}")
    print(json.dumps({**seen, "checks": checks}))


if __name__ == "__main__":
    main()
