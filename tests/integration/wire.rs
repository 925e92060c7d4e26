//! Every way to break the protocol costs its stream or, on the control stream, its connection. The
//! tunnel beside it and everybody else go on.

use crate::raw::{
    Bystander, Device, Faults, HOME, Peer, Stream, Tunnel, authority, body_chunk, books_are_clean, frame_of, heartbeat,
    hello, knock, nobody, now, prompt, raw_frame, request, soon, took,
};
use belay_certs::ca::Authority;
use belay_certs::issue::{self, DeviceKey};
use belay_certs::pin::PinnedAuthority;
use belay_certs::rollover::Authorities;
use belay_certs::shown::Shown;
use belay_certs::tls::{self, system_time};
use belay_protocol::codec::Message;
use belay_protocol::error::{CloseCode, StreamCode};
use belay_protocol::frame::{FrameType, MAX_SKIPPED};
use belay_protocol::item::Digest;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    Ack, BalanceRequest, BlobGet, EnrolAnswer, EnrolRequest, FailureCode, Hello, LeaveRequest, Outcome, ResponseHead,
    SessionList, SyncPull,
};
use belay_protocol::{ALPN, RELAY_SERVER_NAME};
use belay_tests::relay::TestRelay;
use belay_transport::env::{Clock, SystemClock};
use quinn::ConnectionError;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, NamedGroup, ProtocolVersion, ServerConfig, ServerConnection, version};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A type number that this version does not know.
const UNKNOWN_TYPE: u16 = 0x7777;
/// Its answer takes a while.
const QUESTION: &str = "Why is the sky blue?";
const DAY_MS: u64 = 86_400_000;

/// Bytes on a stream, and how the relay must refuse them.
struct Break {
    what: String,
    preface: Option<u8>,
    bytes: Vec<u8>,
    /// The stream ends after the bytes.
    ends: bool,
    failure: FailureCode,
    code: StreamCode,
}

impl Break {
    fn new(what: &str, kind: StreamKind, bytes: Vec<u8>) -> Self {
        let what = format!("{what} on a stream of kind {}", kind.name());
        let (failure, code) = (FailureCode::MALFORMED, StreamCode::MALFORMED);
        Self { what, preface: Some(kind.to_wire()), bytes, ends: false, failure, code }
    }

    fn ending(self) -> Self {
        Self { ends: true, ..self }
    }

    fn with(self, failure: FailureCode, code: StreamCode) -> Self {
        Self { failure, code, ..self }
    }

    /// Does it, and checks that the relay refuses it and that the tunnel works on.
    async fn check(&self, peer: &Peer) {
        let mut stream = peer.open_bare().await;
        stream.write(&self.preface.into_iter().collect::<Vec<_>>()).await;
        stream.write(&self.bytes).await;
        if self.ends {
            stream.finish();
        }
        stream.is_refused(self.failure, self.code, &self.what).await;
        assert_eq!(peer.balance().await.tenant.as_str(), "acme", "{}: the tunnel works on", self.what);
    }
}

/// Frames that are wrong on any stream that expects `good` first.
fn broken_frames<M: Message>(kind: StreamKind, good: &M) -> Vec<Break> {
    let wire = M::TYPE.to_wire();
    let whole = good.to_frame().unwrap();
    let too_long = raw_frame(M::TYPE.max_body() + 1, wire, 1, 0, b"");
    let left_over = frame_of(M::TYPE, &[good.encode_body().unwrap(), vec![0]].concat());
    let break_ = |what, bytes| Break::new(what, kind, bytes);
    vec![
        break_("an unknown flag", raw_frame(0, wire, 0b11, 0, b"")),
        break_("a reserved byte", raw_frame(0, wire, 1, 1, b"")),
        break_("garbage as a body", frame_of(M::TYPE, &[0xff; 40])),
        break_("an empty body", frame_of(M::TYPE, b"")),
        break_("a byte left over", left_over),
        break_("another stream's frame", hello([1; 16], 1).to_frame().unwrap().to_vec()),
        break_("half a header", whole[..5].to_vec()).ending(),
        break_("half a frame", whole[..whole.len() - 1].to_vec()).ending(),
        break_("nothing", vec![]).ending(),
        break_("an unknown required frame", raw_frame(0, UNKNOWN_TYPE, 1, 0, b""))
            .with(FailureCode::UNSUPPORTED, StreamCode::UNSUPPORTED),
        break_("a frame above its type's maximum", too_long).with(FailureCode::LIMIT, StreamCode::LIMIT),
        break_("an unknown frame too long to be skipped", raw_frame(MAX_SKIPPED + 1, UNKNOWN_TYPE, 0, 0, b""))
            .with(FailureCode::LIMIT, StreamCode::LIMIT),
    ]
}

/// Request bodies that do not come as announced: ten bytes in chunks without gaps.
fn broken_bodies() -> Vec<Break> {
    let announced = request(10).to_frame().unwrap();
    let break_ = |what, chunks: &[Vec<u8>]| {
        Break::new(what, StreamKind::Escalate, [announced.to_vec(), chunks.concat()].concat())
    };
    vec![
        break_("a chunk that leaves a gap", &[body_chunk(0, b"12345"), body_chunk(6, b"7890")]),
        break_("a chunk that overlaps", &[body_chunk(0, b"12345"), body_chunk(4, b"567890")]),
        break_("a body that does not begin at 0", &[body_chunk(1, b"234567890")]),
        break_("an offset near the end of numbers", &[body_chunk(u64::MAX, b"1")]),
        break_("a body that is too long", &[body_chunk(0, b"12345"), body_chunk(5, b"678901")]),
        break_("a body that is too long at once", &[body_chunk(0, b"12345678901")]),
        break_("an empty chunk", &[body_chunk(0, b"")]),
        break_("a chunk without its offset", &[frame_of(FrameType::BodyChunk, b"1234567")]),
        break_("another frame inside a body", &[body_chunk(0, b"12345"), request(5).to_frame().unwrap().to_vec()]),
        break_("a body that is cut", &[body_chunk(0, b"12345")]).ending(),
        break_("a chunk above its maximum", &[raw_frame((256 << 10) + 9, FrameType::BodyChunk.to_wire(), 1, 0, b"")])
            .with(FailureCode::LIMIT, StreamCode::LIMIT),
    ]
}

/// Streams that the relay does not serve.
fn unserved_kinds() -> Vec<Break> {
    let known = |kind| Break::new("a kind that is not served", kind, vec![]);
    let unknown = |byte: u8| Break {
        what: format!("the stream kind {byte:#04x}"),
        preface: Some(byte),
        ..Break::new("", StreamKind::Feed, vec![])
    };
    let all = [0x00, 0x09, 0x80, 0xff].map(unknown).into_iter();
    // The control stream is there already; there is never a second one.
    all.chain([known(StreamKind::Control)])
        .map(|case| case.with(FailureCode::UNSUPPORTED, StreamCode::UNSUPPORTED))
        .collect()
}

fn enrolment() -> EnrolRequest {
    EnrolRequest { secret: vec![7; 24], csr_der: vec![8; 100], device_label: "raw".into() }
}

fn pull() -> SyncPull {
    SyncPull { cursor: String::new(), limit: 0 }
}

fn session_list() -> SessionList {
    SessionList { deleted: false, cursor: String::new(), limit: 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_a_stream_costs_that_stream_and_nothing_else() {
    let relay = TestRelay::start("").await;
    let bystander = Bystander::start(relay.client().await.client);
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let cases = [
        broken_frames(StreamKind::Escalate, &request(10)),
        broken_frames(StreamKind::Billing, &BalanceRequest { reserved: 0 }),
        broken_frames(StreamKind::Session, &session_list()),
        broken_frames(StreamKind::Sync, &pull()),
        broken_frames(StreamKind::Feed, &pull()),
        broken_frames(StreamKind::Blob, &BlobGet { digest: Digest([7; 32]), offset: 0 }),
        broken_frames(StreamKind::Enrol, &enrolment()),
        broken_bodies(),
        unserved_kinds(),
        vec![Break { preface: None, ..Break::new("not even a preface", StreamKind::Feed, vec![]) }.ending()],
    ];
    for case in cases.iter().flatten() {
        case.check(&tunnel.peer).await;
    }
    assert!(bystander.stop().await > 0);
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_enrolment_says_wrongly_is_refused_with_its_own_code() {
    let relay = TestRelay::start("").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let csr_der = DeviceKey::generate().unwrap().request().unwrap();
    let cases = [
        (enrolment(), FailureCode::INVALID_REQUEST),
        (EnrolRequest { csr_der, ..enrolment() }, FailureCode::INVITE_REFUSED),
    ];
    for (request, code) in cases {
        let mut stream = tunnel.peer.open(StreamKind::Enrol).await;
        stream.send(&request).await;
        stream.ended().await.is_failed(code);
        tunnel.peer.balance().await;
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_may_be_cut_anywhere_and_unknown_optional_ones_are_skipped() {
    let relay = TestRelay::start("").await;
    let mut tunnel = Device::enrol(&relay).await.tunnel().await;
    let optional = raw_frame(3, UNKNOWN_TYPE, 0, 0, b"new");
    let balance = BalanceRequest { reserved: 0 }.to_frame().unwrap();

    let mut billing = tunnel.peer.open(StreamKind::Billing).await;
    for byte in [&optional[..], &balance].concat() {
        billing.write(&[byte]).await;
    }
    assert_eq!(billing.frame().await.kind, FrameType::Balance);

    let body = prompt("Hello?");
    let mut escalation = tunnel.peer.open(StreamKind::Escalate).await;
    escalation.write(&optional).await;
    escalation.send(&request(body.len())).await;
    for (offset, byte) in body.iter().enumerate() {
        escalation.write(&optional).await;
        escalation.write(&body_chunk(offset as u64, &[*byte])).await;
    }
    escalation.write(&optional).await;
    assert_eq!(escalation.ended().await.end().outcome, Outcome::COMPLETE);

    tunnel.control.write(&optional).await;
    tunnel.beat(1).await;
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_during_the_answer_ends_and_settles_the_request() {
    let relay = TestRelay::start("[providers.demo]\nkind = \"demo\"\npace_ms = 100\n").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    for nonsense in [
        body_chunk(prompt(QUESTION).len() as u64, b"more than was announced"),
        request(1).to_frame().unwrap().to_vec(),
        frame_of(FrameType::Ack, b""),
        raw_frame(0, UNKNOWN_TYPE, 1, 0, b""),
        raw_frame(u32::MAX, FrameType::Cancel.to_wire(), 1, 0, b""),
    ] {
        let mut stream = tunnel.peer.ask(request(0), QUESTION).await;
        let _: ResponseHead = stream.expect().await;
        stream.write(&nonsense).await;
        let end = stream.ended().await.end();
        assert_eq!(end.outcome, Outcome::CANCELLED, "{}", end.message);
        assert_eq!(tunnel.peer.balance().await.open_holds, 0);
    }
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_whose_request_comes_late_are_given_up() {
    let relay = TestRelay::start("[timeouts]\nhello_ms = 300\nrequest_body_ms = 600\n").await;
    let bystander = Bystander::start(relay.client().await.client);
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let peer = &tunnel.peer;
    let start = Instant::now();

    // A stream is not announced before something is sent on it, or on a later one.
    let mut silent = peer.open_bare().await;
    peer.balance().await;
    let mut billing = peer.open(StreamKind::Billing).await;
    let mut enrol = peer.open(StreamKind::Enrol).await;
    enrol.write(&enrolment().to_frame().unwrap()[..20]).await;
    let mut escalation = peer.open(StreamKind::Escalate).await;
    let mut body = peer.open(StreamKind::Escalate).await;
    body.send(&request(10)).await;
    body.write(&body_chunk(0, b"12345")).await;

    assert_eq!(silent.ended().await.reset, Some(StreamCode::TIMEOUT));
    billing.ended().await.is_failed(FailureCode::TIMED_OUT);
    enrol.ended().await.is_failed(FailureCode::TIMED_OUT);
    took("giving up what hello_ms bounds", start, Duration::from_millis(300));
    for stream in [&mut escalation, &mut body] {
        stream.is_refused(FailureCode::TIMED_OUT, StreamCode::TIMEOUT, "a late request").await;
    }
    took("giving up what request_body_ms bounds", start, Duration::from_millis(600));
    peer.balance().await;
    assert!(bystander.stop().await > 0);
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_control_stream_costs_its_connection_and_no_other() {
    let relay = TestRelay::start("").await;
    let bystander = Bystander::start(relay.client().await.client);
    let device = Device::enrol(&relay).await;
    let neighbour = device.tunnel().await;
    let kind = FrameType::Heartbeat;
    let cases = [
        ("a second hello", hello([1; 16], 2).to_frame().unwrap().to_vec()),
        ("a frame of another stream", BalanceRequest { reserved: 0 }.to_frame().unwrap().to_vec()),
        ("an acknowledgement", Ack { next: 1, end: false }.to_frame().unwrap().to_vec()),
        ("a reserved flag", raw_frame(0, kind.to_wire(), 0x80, 0, b"")),
        ("an unknown required frame", raw_frame(0, UNKNOWN_TYPE, 1, 0, b"")),
        ("a heartbeat above its maximum", raw_frame((64 << 10) + 1, kind.to_wire(), 1, 0, b"")),
        ("a heartbeat of garbage", frame_of(kind, &[0xfe; 30])),
    ];
    for (what, bytes) in cases {
        let mut tunnel = device.tunnel().await;
        tunnel.control.write(&bytes).await;
        assert_eq!(tunnel.peer.closed().await, CloseCode::PROTOCOL, "{what}");
        neighbour.peer.balance().await;
    }

    let mut cut = device.tunnel().await;
    cut.control.write(&heartbeat(1).to_frame().unwrap()[..7]).await;
    cut.control.finish();
    assert_eq!(cut.peer.closed().await, CloseCode::PROTOCOL, "a cut frame");
    let mut finished = device.tunnel().await;
    finished.control.finish();
    assert_eq!(finished.peer.closed().await, CloseCode::DONE, "a control stream that ends in order");
    let Tunnel { peer, control } = device.tunnel().await;
    drop(control);
    assert_eq!(peer.closed().await, CloseCode::DONE, "a control stream that is reset");

    neighbour.peer.balance().await;
    assert!(bystander.stop().await > 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_begins_with_a_good_hello_or_not_at_all() {
    let relay = TestRelay::start("").await;
    let device = Device::enrol(&relay).await;
    let good = hello([1; 16], 1);
    let frame = good.to_frame().unwrap();
    let on = |kind: StreamKind, bytes: &[u8]| [&[kind.to_wire()], bytes].concat();
    let newer = Hello { min_minor: 99, max_minor: 99, ..good.clone() };
    let upside_down = Hello { min_minor: 1, max_minor: 0, ..good.clone() };
    let left_over = frame_of(FrameType::Hello, &[good.encode_body().unwrap(), vec![0]].concat());
    let cases = [
        ("another stream first", on(StreamKind::Billing, b""), CloseCode::PROTOCOL),
        ("an unknown stream first", vec![0x99], CloseCode::PROTOCOL),
        ("another frame first", on(StreamKind::Control, &heartbeat(1).to_frame().unwrap()), CloseCode::PROTOCOL),
        ("a hello with a byte left over", on(StreamKind::Control, &left_over), CloseCode::PROTOCOL),
        ("a hello above its maximum", on(StreamKind::Control, &raw_frame(4097, 1, 1, 0, b"")), CloseCode::PROTOCOL),
        ("a newer version", on(StreamKind::Control, &newer.to_frame().unwrap()), CloseCode::VERSION),
        ("no version at all", on(StreamKind::Control, &upside_down.to_frame().unwrap()), CloseCode::VERSION),
    ];
    for (what, bytes, code) in cases {
        let peer = device.connect().await;
        let mut stream = peer.open_bare().await;
        stream.write(&bytes).await;
        assert_eq!(peer.closed().await, code, "{what}");
    }
    for (what, len) in [("nothing", 1), ("half a hello", frame.len() / 2)] {
        let peer = device.connect().await;
        let mut stream = peer.open_bare().await;
        stream.write(&on(StreamKind::Control, &frame)[..len]).await;
        stream.finish();
        assert_eq!(peer.closed().await, CloseCode::PROTOCOL, "{what}, and the end of the stream");
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_does_not_come_in_time_closes_the_connection() {
    let relay = TestRelay::start("[timeouts]\nhello_ms = 300\n").await;
    let device = Device::enrol(&relay).await;
    let frame = [vec![StreamKind::Control.to_wire()], hello([1; 16], 1).to_frame().unwrap().to_vec()].concat();
    for (what, sent) in [("no stream", 0), ("a preface", 1), ("half a hello", frame.len() / 2)] {
        let start = Instant::now();
        let peer = device.connect().await;
        let mut stream = peer.open_bare().await;
        stream.write(&frame[..sent]).await;
        assert_eq!(peer.closed().await, CloseCode::TIMEOUT, "{what}");
        took(what, start, Duration::from_millis(300));
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_lives_by_its_heartbeats() {
    let relay = TestRelay::start("[timeouts]\nheartbeat_ms = 100\n").await;
    let device = Device::enrol(&relay).await;
    let mut alive = device.tunnel().await;
    let start = Instant::now();
    let silent = device.tunnel().await;
    // What else a tunnel carries is no heartbeat.
    let mut busy = silent.peer.open(StreamKind::Escalate).await;
    busy.send(&request(1000)).await;
    let mut sequence = 0;
    let closed = silent.peer.closed();
    tokio::pin!(closed);
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let code = loop {
        tokio::select! {
            biased;
            code = &mut closed => break code,
            _ = ticks.tick() => {}
        }
        busy.write(&body_chunk(sequence, b"x")).await;
        sequence += 1;
        alive.beat(sequence).await;
    };
    assert_eq!(code, CloseCode::DEAD);
    took("finding a tunnel without heartbeats dead", start, Duration::from_millis(3 * 100 + 1000));
    assert!(sequence > 3);
    alive.beat(sequence + 1).await;
    alive.peer.balance().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_is_enrolment_and_nothing_else() {
    let relay = TestRelay::start("").await;
    let peer = Peer::connect(relay.address(), HOME, nobody(&relay)).await.unwrap();
    for kind in StreamKind::ALL.into_iter().filter(|kind| *kind != StreamKind::Enrol) {
        let mut stream = peer.open(kind).await;
        stream.is_refused(FailureCode::UNAUTHENTICATED, StreamCode::REFUSED, kind.name()).await;
    }
    let enrol = async |request: &[u8]| -> Stream {
        let mut stream = peer.open(StreamKind::Enrol).await;
        stream.write(request).await;
        stream
    };
    let mut leave = enrol(&LeaveRequest { reason: "bye".into() }.to_frame().unwrap()).await;
    leave.ended().await.is_failed(FailureCode::UNAUTHENTICATED);
    let request = EnrolRequest {
        secret: relay.invite("acme").await.secret.to_vec(),
        csr_der: DeviceKey::generate().unwrap().request().unwrap(),
        device_label: "raw".into(),
    };
    let answer: EnrolAnswer = enrol(&request.to_frame().unwrap()).await.expect().await;
    assert_eq!(answer.tenant.as_str(), "acme");
    relay.stop().await;
}

/// The TLS alert with which the relay refuses a handshake. A client may think itself connected
/// until the relay has looked at its certificate.
async fn alert_of(relay: &TestRelay, tls: ClientConfig) -> u64 {
    let error = match Peer::connect(relay.address(), HOME, tls).await {
        Err(error) => error,
        Ok(peer) => soon("the refusal", peer.connection.closed()).await,
    };
    match error {
        // A TLS alert is the low byte of 0x1xx.
        ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) >> 8 == 1 => {
            u64::from(close.error_code) & 0xff
        }
        other => panic!("not refused in the handshake: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_needs_our_protocol_and_a_valid_certificate_of_our_authority() {
    // All authorities have one name, so a stranger's signature is looked at, and does not hold.
    const UNKNOWN_CA: u64 = 48;
    const CERTIFICATE_EXPIRED: u64 = 45;
    const NO_APPLICATION_PROTOCOL: u64 = 120;
    let relay = TestRelay::start("").await;
    let (ours, device) = (authority(&relay), Device::enrol(&relay).await);
    let now_ms = SystemClock.now_ms();
    let certified = |signer: &Authority, at_ms| device.certified(signer, &device.tenant, &device.id, at_ms);

    assert_eq!(alert_of(&relay, device.tls_with(b"belay/2")).await, NO_APPLICATION_PROTOCOL);
    assert_eq!(alert_of(&relay, device.tls_with(b"h3")).await, NO_APPLICATION_PROTOCOL);
    let stranger = certified(&Authority::create(now_ms).unwrap(), now_ms);
    assert_eq!(alert_of(&relay, stranger.tls()).await, UNKNOWN_CA);
    // Issued 31 days ago for 30 days.
    assert_eq!(alert_of(&relay, certified(&ours, now_ms - 61 * DAY_MS).tls()).await, CERTIFICATE_EXPIRED);
    // The same made well gets in.
    certified(&ours, now_ms - 29 * DAY_MS).tunnel().await.peer.balance().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_gives_only_the_device_that_it_names() {
    let relay = TestRelay::start("").await;
    relay.relay().admin().create_tenant("other".parse().unwrap()).await.unwrap();
    let (ours, device) = (authority(&relay), Device::enrol(&relay).await);
    let now_ms = SystemClock.now_ms();
    for (tenant, id) in
        [("acme", "nobody-1"), ("other", &*device.id), ("nowhere", &*device.id), ("../acme", "x"), ("", "")]
    {
        let peer = device.certified(&ours, tenant, id, now_ms).connect().await;
        assert_eq!(peer.closed().await, CloseCode::UNKNOWN_DEVICE, "{tenant}/{id}");
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_refuses_a_relay_with_another_authority() {
    let relay = TestRelay::start("").await;
    let other = Authority::create(SystemClock.now_ms()).unwrap();
    let pinned = tls::enrolling_client(other.fingerprint(), ALPN, system_time()).unwrap();
    let mut enrolled = Device::enrol(&relay).await;
    enrolled.trusts = other.certificate().clone();
    for tls in [pinned, enrolled.tls()] {
        let refused = Peer::connect(relay.address(), HOME, tls).await.unwrap_err();
        assert!(matches!(refused, ConnectionError::TransportError(_)), "refused by this side: {refused}");
    }
    relay.stop().await;
}

/// A client without a certificate that offers one key exchange only.
fn offering(relay: &TestRelay, group: &'static dyn SupportedKxGroup) -> ClientConfig {
    let provider = CryptoProvider { kx_groups: vec![group], ..(*tls::crypto_provider()).clone() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority::new(authority(relay).fingerprint())))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_exchanges_keys_by_the_documented_groups_only() {
    const HANDSHAKE_FAILURE: u64 = 40;
    let relay = TestRelay::start("").await;
    for group in [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1] {
        Peer::connect(relay.address(), HOME, offering(&relay, group)).await.unwrap();
    }
    assert_eq!(alert_of(&relay, offering(&relay, kx_group::SECP384R1)).await, HANDSHAKE_FAILURE);
    relay.stop().await;
}

/// Shakes hands in memory.
fn shake(client: ClientConfig, server: ServerConfig) -> Result<ClientConnection, rustls::Error> {
    let name = ServerName::try_from(RELAY_SERVER_NAME).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let (mut up, mut down) = (vec![], vec![]);
        while client.wants_write() {
            client.write_tls(&mut up).unwrap();
        }
        while !up.is_empty() {
            let read = server.read_tls(&mut &up[..]).unwrap();
            up.drain(..read);
            server.process_new_packets()?;
        }
        while server.wants_write() {
            server.write_tls(&mut down).unwrap();
        }
        while !down.is_empty() {
            let read = client.read_tls(&mut &down[..]).unwrap();
            down.drain(..read);
            client.process_new_packets()?;
        }
    }
    Ok(client)
}

#[test]
fn both_sides_agree_on_tls_1_3_with_post_quantum_keys_and_on_nothing_older() {
    let now_ms = SystemClock.now_ms();
    let dir = tempfile::tempdir().unwrap();
    let authorities = Authorities::load_or_create(dir.path(), now_ms).unwrap();
    let standing = authorities.standing();
    let authority = &standing.current;
    let relay = || {
        let (certificate, key) = issue::server(authority, &[RELAY_SERVER_NAME], [1; 12], now_ms).unwrap();
        let shown = Shown::new(vec![certificate, authority.certificate().clone()], key).unwrap();
        tls::relay(Arc::clone(&authorities), shown, Duration::ZERO, ALPN, system_time()).unwrap()
    };
    let ours = tls::enrolling_client(authority.fingerprint(), ALPN, system_time()).unwrap();
    let client = shake(ours, relay()).unwrap();
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(client.alpn_protocol(), Some(ALPN));

    let older = || {
        let pin = Arc::new(PinnedAuthority::new(authority.fingerprint()));
        let builder = ClientConfig::builder_with_provider(tls::crypto_provider());
        let builder = builder.with_protocol_versions(&[&version::TLS12]).unwrap();
        builder.dangerous().with_custom_certificate_verifier(pin).with_no_client_auth()
    };
    assert!(shake(older(), relay()).is_err(), "TLS 1.2 is refused");
    let name = ServerName::try_from(RELAY_SERVER_NAME).unwrap();
    let over_quic = rustls::quic::ClientConnection::new(Arc::new(older()), rustls::quic::Version::V1, name, vec![]);
    assert!(over_quic.is_err(), "and QUIC has no words for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_early_data_no_datagram_and_no_stream_of_one_direction() {
    let relay = TestRelay::start("").await;
    // A client that would resume and send early data if the relay let it.
    let mut eager = nobody(&relay);
    eager.enable_early_data = true;
    eager.resumption = Resumption::in_memory_sessions(8);
    for _ in 0..2 {
        let (endpoint, connecting) = knock(relay.address(), HOME, eager.clone(), Faults::none());
        let Err(connecting) = connecting.into_0rtt() else { panic!("early data was offered") };
        let peer = Peer::of(endpoint, soon("the handshake", connecting).await.unwrap());
        // Tickets, if there were any, would have come by the time that a stream is answered.
        peer.open(StreamKind::Feed).await.ended().await;
    }
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    tunnel.peer.balance().await;
    let connection = &tunnel.peer.connection;
    assert_eq!(connection.max_datagram_size(), None);
    assert!(now(connection.open_uni()).await.is_none(), "a stream of one direction");
    // And the relay opens none.
    assert!(now(connection.accept_bi()).await.is_none());
    assert!(now(connection.accept_uni()).await.is_none());
    relay.stop().await;
}
