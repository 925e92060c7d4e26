//! Every limit and every timeout of the configuration, each set small and run into. What runs into
//! it is told so in the documented words, and what stands beside it does not notice.

use crate::raw::{
    Device, Faults, HOME, Peer, Stream, Tunnel, authority, body_chunk, books_are_clean, credit, hello, knock, nobody,
    request, soon, took,
};
use belay_protocol::codec::Message;
use belay_protocol::error::{CloseCode, StreamCode};
use belay_protocol::frame::FrameType;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    Ack, BalanceRequest, Dialect, End, EscalateRequest, FailureCode, GoAway, HelloAck, Outcome, ResponseHead,
};
use belay_protocol::stream::StreamError;
use belay_relay::config::{Limits, TEMPLATE, Timeouts};
use belay_relay::providers::{Answer, AnswerBody, Call, CallFuture, Provider, ProviderError, Providers};
use belay_relay::{Config, Overrides};
use belay_tests::relay::{TestRelay, eventually, tenant};
use belay_transport::connection::Connection;
use belay_transport::env::{Clock, SystemClock};
use belay_transport::tcp::TcpConnection;
use bytes::Bytes;
use quinn::{ConnectionError, Endpoint};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

const MIB: usize = 1 << 20;
/// Answered by the demo provider in about ninety tokens.
const QUESTION: &str = "Why is the sky blue?";

// --- a provider that does what a test says ---------------------------------------------------

/// A second provider and its model, `puppet`, beside the demo.
const PUPPET: &str = r#"
[providers.puppet]
kind = "demo"
[models.puppet]
provider = "puppet"
name = "puppet-1"
context_tokens = 32000
max_output_tokens = 4096
price = { input = "3", output = "15" }
"#;

/// Hands every call to the test.
#[derive(Debug)]
struct Puppet(mpsc::UnboundedSender<Strings>);

/// A test's end of one call.
#[derive(Debug)]
struct Strings {
    head: Option<oneshot::Sender<&'static str>>,
    pieces: mpsc::UnboundedSender<Bytes>,
    taken: Arc<AtomicUsize>,
}

struct Pieces {
    pieces: mpsc::UnboundedReceiver<Bytes>,
    taken: Arc<AtomicUsize>,
}

impl Strings {
    /// Answers with status 200 and this content type.
    fn begin(&mut self, content_type: &'static str) {
        self.head.take().unwrap().send(content_type).unwrap();
    }

    /// Has a piece of the answer ready.
    fn say(&self, piece: impl Into<Bytes>) {
        // The relay may have given the call up already.
        let _ = self.pieces.send(piece.into());
    }

    /// Bytes of the answer that the relay has read.
    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Provider for Puppet {
    fn dialect(&self) -> Dialect {
        Dialect::OPENAI_CHAT
    }

    fn call(&self, _: Call) -> CallFuture {
        let puppeteer = self.0.clone();
        Box::pin(async move {
            let (head, begun) = oneshot::channel();
            let (sender, pieces) = mpsc::unbounded_channel();
            let taken = Arc::new(AtomicUsize::new(0));
            let strings = Strings { head: Some(head), pieces: sender, taken: Arc::clone(&taken) };
            puppeteer.send(strings).unwrap();
            let content_type = begun.await.map_err(|_| ProviderError::Broken("the strings were cut".into()))?;
            let headers = vec![("content-type".into(), content_type.into())];
            Ok(Answer { status: 200, headers, body: Box::new(Pieces { pieces, taken }) })
        })
    }
}

impl AnswerBody for Pieces {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ProviderError>>> {
        self.pieces.poll_recv(cx).map(|piece| {
            let piece = piece?;
            self.taken.fetch_add(piece.len(), Ordering::Relaxed);
            Some(Ok(piece))
        })
    }
}

/// A relay with the puppet, and the calls to it.
async fn puppet(extra: &str) -> (TestRelay, mpsc::UnboundedReceiver<Strings>) {
    let (sender, calls) = mpsc::unbounded_channel();
    let provider: Arc<dyn Provider> = Arc::new(Puppet(sender));
    let providers = Providers::from([("puppet".to_owned(), provider)]);
    let relay = TestRelay::with(&format!("{extra}{PUPPET}"), Overrides { providers, ..Overrides::default() }).await;
    (relay, calls)
}

/// A request to the puppet.
fn for_puppet() -> EscalateRequest {
    EscalateRequest { model: "puppet".into(), ..request(0) }
}

/// An event that says something of `len` bytes.
fn event(len: usize) -> String {
    let text = "x".repeat(len);
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

/// The events with which an answer ends well.
const ENDING: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9}}\n\ndata: [DONE]\n\n";

const EVENTS: &str = "text/event-stream";

/// Fails unless a request came to this end, at that time, and holds nothing any more.
async fn ended_as(outcome: Outcome, stream: &mut Stream, peer: &Peer) -> End {
    let end = stream.ended().await.end();
    assert_eq!(end.outcome, outcome, "{}", end.message);
    assert_eq!(peer.balance().await.open_holds, 0);
    end
}

// --- the numbers themselves ------------------------------------------------------------------

#[test]
fn the_defaults_are_the_documented_ones() {
    let documented = Limits {
        requests_per_minute: 100,
        tokens_per_minute: None,
        requests_at_once: 50,
        streams_per_tunnel: 128,
        instances_per_device: 4,
        handshakes_per_second: 20,
        pending_handshakes: 1024,
        request_body: 32 << 20,
        answer_body: 32 << 20,
        bodies_in_memory: 256 << 20,
        unread_events: 8 << 20,
        event_logs: 256 << 20,
        memory: 1 << 30,
        streams_per_tenant: 1024,
        session_history_tokens: 32_000,
        sessions: 1 << 30,
        sync: 10_240 << 20,
    };
    let times = Timeouts {
        handshake: Duration::from_secs(10),
        hello: Duration::from_secs(10),
        request_body: Duration::from_secs(60),
        first_event: Duration::from_secs(120),
        between_events: Duration::from_secs(60),
        total: Duration::from_secs(900),
        heartbeat: Duration::from_secs(10),
        resume_window: Duration::from_secs(300),
        keep_answer: Duration::from_secs(86_400),
        drain: Duration::from_secs(30),
        device_certificate: Duration::from_secs(2_592_000),
        expired_grace: Duration::from_secs(2_592_000),
    };
    for text in [TEMPLATE, "[state]\ndir = \"x\"\n"] {
        let config = Config::parse(text, "test").unwrap();
        assert_eq!((config.limits, config.timeouts), (documented.clone(), times.clone()));
    }
}

// --- requests --------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn requests_above_the_rate_of_a_tenant_are_told_when_to_come_back() {
    let relay = TestRelay::start("[limits]\nrequests_per_minute = 30\n").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let start = Instant::now();
    let mut streams = vec![];
    for _ in 0..40 {
        streams.push(tunnel.peer.ask(request(0), "Hi").await);
    }
    let (mut passed, mut refused) = (0, vec![]);
    for stream in &mut streams {
        let ended = stream.ended().await;
        match ended.failed() {
            None => passed += u64::from(ended.end().outcome == Outcome::COMPLETE),
            Some(_) => refused.push(ended.is_failed(FailureCode::RATE_LIMITED).retry_after_ms.unwrap()),
        }
    }
    // While they ran, one more became free every two seconds.
    let most = 30 + start.elapsed().as_secs() / 2;
    assert!((30..=most).contains(&passed), "{passed} passed, at most {most} should");
    assert!(refused.iter().all(|ms| (1..=2000).contains(ms)), "{refused:?}");
    // Another device of the tenant shares the rate; another tenant does not.
    let sibling = Device::enrol(&relay).await.tunnel().await;
    let ended = sibling.peer.ask(request(0), "Hi").await.ended().await;
    let wait = ended.is_failed(FailureCode::RATE_LIMITED).retry_after_ms.unwrap();
    relay.relay().admin().create_tenant(tenant("other")).await.unwrap();
    credit(&relay, "other").await;
    assert!(relay.client_of("other").await.ask("Hi").await.end.is_some());
    // What retry_after_ms says is true.
    tokio::time::sleep(Duration::from_millis(wait)).await;
    assert!(sibling.peer.ask(request(0), "Hi").await.ended().await.failed().is_none());
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once_are_limited_until_one_has_ended() {
    let (relay, mut calls) = puppet("[limits]\nrequests_at_once = 2\n").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let peer = &tunnel.peer;
    let mut first = peer.ask(for_puppet(), "1").await;
    let mut strings = soon("the first call", calls.recv()).await.unwrap();
    let mut second = peer.ask(for_puppet(), "2").await;
    let _second_strings = soon("the second call", calls.recv()).await.unwrap();
    let refused = peer.ask(for_puppet(), "3").await.ended().await.is_failed(FailureCode::RATE_LIMITED);
    assert!(refused.retry_after_ms.is_some());
    assert_eq!(peer.balance().await.open_holds, 2);

    strings.begin(EVENTS);
    strings.say(ENDING);
    assert_eq!(first.ended().await.end().outcome, Outcome::COMPLETE);
    assert_eq!(peer.ask(request(0), "4").await.ended().await.end().outcome, Outcome::COMPLETE);
    second.writer.reset(StreamCode::CANCELLED);
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_body_above_the_limit_is_refused_before_it_is_buffered() {
    let relay = TestRelay::start("[limits]\nrequest_body_mib = 1\n").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let peer = &tunnel.peer;
    // What these write is more than the relay's connection window of 4 MiB: were it kept, or its
    // credit not given back, the tunnel would be stuck.
    for _ in 0..20 {
        let mut stream = peer.open(StreamKind::Escalate).await;
        let writing = async {
            stream.try_write(&request(MIB + 1).to_frame().unwrap()).await?;
            for piece in 0..8_u64 {
                stream.try_write(&body_chunk(piece << 17, &[b' '; 1 << 17])).await?;
            }
            Ok::<_, StreamError>(())
        };
        let stopped = writing.await.unwrap_err();
        assert_eq!(stopped, StreamError::Peer(StreamCode::LIMIT));
        stream.ended().await.is_failed(FailureCode::LIMIT);
    }
    // Exactly the limit is taken: it is refused for what it says, not for its length.
    let mut stream = peer.open(StreamKind::Escalate).await;
    stream.send(&request(MIB)).await;
    for piece in 0..8_u64 {
        stream.write(&body_chunk(piece << 17, &[b' '; 1 << 17])).await;
    }
    stream.ended().await.is_failed(FailureCode::INVALID_REQUEST);
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_announced_cost_nothing_and_those_that_stall_only_what_has_arrived() {
    let limits = "[limits]\nrequest_body_mib = 1\nbodies_in_memory_mib = 2\n[timeouts]\nrequest_body_ms = 6000\n";
    let relay = TestRelay::start(limits).await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let peer = &tunnel.peer;
    let start = Instant::now();
    let mut stalled = vec![];
    for _ in 0..20 {
        let mut stream = peer.open(StreamKind::Escalate).await;
        stream.send(&request(MIB)).await;
        stalled.push(stream);
    }
    // The relay takes streams up in their order: it knows of them all when this is answered.
    peer.balance().await;
    ended_as(Outcome::COMPLETE, &mut peer.ask(request(0), "Hi").await, peer).await;
    // Half of the room is one tenant's at the most. It is used up by what arrives.
    for at in 0..7 {
        stalled[0].write(&body_chunk(at << 17, &[b' '; 1 << 17])).await;
    }
    peer.balance().await;
    let asked = Instant::now();
    let mut second = peer.open(StreamKind::Escalate).await;
    second.send(&request(2 << 17)).await;
    second.write(&body_chunk(0, &[b' '; 1 << 17])).await;
    second.write(&body_chunk(1 << 17, &[b' '; 1 << 17])).await;
    let refused = second.ended().await.is_failed(FailureCode::OVERLOADED);
    took("waiting for memory", asked, Duration::from_millis(3000));
    assert!(refused.retry_after_ms.is_some());
    relay.relay().admin().create_tenant(tenant("other")).await.unwrap();
    credit(&relay, "other").await;
    assert!(relay.client_of("other").await.ask(&"Hi ".repeat(100_000)).await.end.is_some(), "another tenant's half");
    for stream in &mut stalled {
        stream.is_refused(FailureCode::TIMED_OUT, StreamCode::TIMEOUT, "a stalled body").await;
    }
    took("giving up stalled bodies", start, Duration::from_millis(6000));
    ended_as(Outcome::COMPLETE, &mut peer.ask(request(0), "Hi").await, peer).await;
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_a_reader_that_was_behind_once_is_heard_when_it_leaves() {
    let (relay, mut calls) = puppet("").await;
    let device = Device::enrol(&relay).await;
    let socket = TcpStream::connect(relay.address()).await.unwrap();
    let tcp = TcpConnection::connect(socket, Arc::new(device.tls())).await.unwrap();
    let connection = Connection::Tcp(tcp);
    let mut control = connection.open().await.unwrap();
    control.writer.preface(StreamKind::Control);
    control.writer.send(&hello([1; 16], 1)).await.unwrap();
    control.reader.expect::<HelloAck>().await.unwrap();
    let mut stream = connection.open().await.unwrap();
    stream.writer.preface(StreamKind::Escalate);
    let body = br#"{"query":"Hi"}"#;
    stream.writer.queue(&EscalateRequest { body_len: body.len() as u32, ..for_puppet() }).unwrap();
    stream.writer.queue_raw(body_chunk(0, body).into());
    stream.writer.flush().await.unwrap();
    // Nothing more will be said: no acknowledgement and no Cancel.
    stream.writer.finish();
    let mut strings = soon("the call", calls.recv()).await.unwrap();
    strings.begin("text/event-stream");
    // More than the stream's window, so that it is behind for a moment; then it has everything, and silence.
    let event = event(16 << 10);
    for _ in 0..40 {
        strings.say(event.clone());
    }
    eventually("all was read", async || strings.taken() == 40 * event.len()).await;
    let head = soon("the head", stream.reader.frame()).await.unwrap().unwrap();
    assert_eq!(head.kind, FrameType::ResponseHead);
    for _ in 0..40 {
        assert_eq!(soon("an event", stream.reader.frame()).await.unwrap().unwrap().kind, FrameType::Event);
    }
    drop(stream);
    let left = Instant::now();
    eventually("the provider is left", async || strings.pieces.is_closed()).await;
    took("noticing that the reader left", left, Duration::ZERO);
    relay.stop().await;
}

// --- answers ---------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_above_the_limit_ends_and_is_settled() {
    let (relay, mut calls) = puppet("[limits]\nanswer_body_mib = 1\n").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let mut stream = tunnel.peer.ask(EscalateRequest { stream: false, ..for_puppet() }, "Hi").await;
    let mut strings = soon("the call", calls.recv()).await.unwrap();
    strings.begin("application/json");
    for _ in 0..20 {
        strings.say(vec![b' '; 64 << 10]);
    }
    let end = ended_as(Outcome::LIMIT, &mut stream, &tunnel.peer).await;
    assert!(end.estimated && end.cost.0 > 0, "what was produced is charged");
    assert!(strings.taken() <= MIB + (64 << 10), "read no further: {}", strings.taken());
    books_are_clean(&relay).await;
    relay.stop().await;
}

/// Reads and acknowledges to the end, after so many events; returns how many have come then.
async fn read_on(stream: &mut Stream, mut events: u64) -> (u64, End) {
    loop {
        let frame = stream.frame().await;
        match frame.kind {
            FrameType::ResponseHead => {}
            FrameType::Event => {
                assert_eq!(frame.body[..8], u64::to_le_bytes(events));
                events += 1;
                stream.send(&Ack { next: events, end: false }).await;
            }
            _ => return (events, End::from_frame(&frame).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledging_what_was_never_read_opens_no_tap() {
    let (relay, mut calls) = puppet("[limits]\nunread_events_mib = 1\n").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let mut stream = tunnel.peer.ask(for_puppet(), "Hi").await;
    let mut strings = soon("the call", calls.recv()).await.unwrap();
    strings.begin(EVENTS);
    for _ in 0..200 {
        strings.say(event(64 << 10));
    }
    eventually("the log is full", async || strings.taken() >= MIB).await;
    // The relay hears each of these, and has time to believe it.
    for _ in 0..20 {
        stream.send(&Ack { next: u64::MAX, end: false }).await;
        tunnel.peer.balance().await;
    }
    // What the stream takes, what waits to be written, and one piece more.
    assert!(strings.taken() < 2 * MIB, "{} bytes were read for a reader that reads nothing", strings.taken());
    drop(stream);
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_nobody_acknowledges_stop_the_reading_of_their_own_provider_only() {
    const PIECE: usize = 64 << 10;
    let (relay, mut calls) = puppet("[limits]\nunread_events_mib = 1\n[timeouts]\nbetween_events_ms = 500\n").await;
    let mut tunnel = Device::enrol(&relay).await.tunnel().await;
    let mut stream = tunnel.peer.ask(for_puppet(), "Hi").await;
    let mut strings = soon("the call", calls.recv()).await.unwrap();
    strings.begin(EVENTS);
    let piece = event(PIECE);
    for _ in 0..40 {
        strings.say(piece.clone());
    }
    strings.say(ENDING);
    let full = MIB..MIB + 2 * PIECE;
    eventually("the log is full", async || strings.taken() >= full.start).await;

    // The tunnel goes on for longer than the provider may be silent: the pause is not its fault.
    let start = Instant::now();
    let mut sequence = 0;
    while start.elapsed() < Duration::from_millis(1200) {
        sequence += 1;
        tunnel.beat(sequence).await;
        let mut beside = tunnel.peer.ask(request(0), "Hi").await;
        assert_eq!(beside.ended().await.end().outcome, Outcome::COMPLETE);
    }
    assert!(full.contains(&strings.taken()), "{} bytes were read, the limit is {MIB}", strings.taken());

    // What is read and acknowledged makes room for as much.
    let mut read = 0;
    while read < 8 {
        read += u64::from(stream.frame().await.kind == FrameType::Event);
    }
    stream.send(&Ack { next: 8, end: false }).await;
    let more = full.start + 7 * PIECE..full.end + 9 * PIECE;
    eventually("there is room again", async || strings.taken() >= more.start).await;
    tunnel.beat(sequence + 1).await;
    assert!(more.contains(&strings.taken()), "{} bytes were read", strings.taken());
    let (events, end) = read_on(&mut stream, read).await;
    assert_eq!(end.outcome, Outcome::COMPLETE, "{}", end.message);
    // The usage event was not asked for by the caller of a prompt, but prompts show all.
    assert!(events >= 41 && events == end.events, "{events} events came, {} were sent", end.events);
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_never_begins_is_given_up() {
    let (relay, mut calls) = puppet("[timeouts]\nfirst_event_ms = 400\n").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    for says_head in [false, true] {
        let start = Instant::now();
        let mut stream = tunnel.peer.ask(for_puppet(), "Hi").await;
        let mut strings = soon("the call", calls.recv()).await.unwrap();
        if says_head {
            strings.begin(EVENTS);
        }
        let end = ended_as(Outcome::TIMED_OUT, &mut stream, &tunnel.peer).await;
        took("giving up", start, Duration::from_millis(400));
        assert_eq!((end.events, end.first_event_ms), (0, None));
    }
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_falls_silent_is_given_up() {
    let (relay, mut calls) = puppet("[timeouts]\nbetween_events_ms = 400\n").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let mut stream = tunnel.peer.ask(for_puppet(), "Hi").await;
    let mut strings = soon("the call", calls.recv()).await.unwrap();
    strings.begin(EVENTS);
    let _: ResponseHead = stream.expect().await;
    for _ in 0..3 {
        strings.say(event(10));
        stream.frame().await;
    }
    let start = Instant::now();
    let end = ended_as(Outcome::TIMED_OUT, &mut stream, &tunnel.peer).await;
    // The last event came a moment before the clock was read.
    took("giving up", start - Duration::from_millis(50), Duration::from_millis(400));
    assert_eq!(end.events, 3);
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_ends_at_its_deadline_whoever_set_it() {
    let (relay, mut calls) =
        puppet("[providers.demo]\nkind = \"demo\"\npace_ms = 50\n[timeouts]\ntotal_ms = 1200\n").await;
    // What a provider says beyond its cap is charged all the same.
    credit(&relay, "acme").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let peer = &tunnel.peer;
    let own = |deadline_ms, request| EscalateRequest { deadline_ms, ..request };
    for (deadline_ms, limit) in [(Some(500), 500), (Some(60_000), 1200), (None, 1200)] {
        let limit = Duration::from_millis(limit);
        // A provider that talks all the time,
        let start = Instant::now();
        let end = ended_as(Outcome::TIMED_OUT, &mut peer.ask(own(deadline_ms, request(0)), QUESTION).await, peer).await;
        took("a talking provider", start, limit);
        assert!(end.events > 0 && end.cost.0 > 0);
        // one that has not even answered,
        let start = Instant::now();
        let mut stream = peer.ask(own(deadline_ms, for_puppet()), "Hi").await;
        let _mute = soon("the call", calls.recv()).await.unwrap();
        ended_as(Outcome::TIMED_OUT, &mut stream, peer).await;
        took("a mute provider", start, limit);
        // and one that waits for its reader.
        let start = Instant::now();
        let mut stream = peer.ask(own(deadline_ms, for_puppet()), "Hi").await;
        let mut strings = soon("the call", calls.recv()).await.unwrap();
        strings.begin(EVENTS);
        for _ in 0..80 {
            strings.say(event(200 << 10));
        }
        eventually("the log is full", async || strings.taken() >= 8 * MIB).await;
        ended_as(Outcome::TIMED_OUT, &mut stream, peer).await;
        took("a stalled reader", start, limit);
    }
    books_are_clean(&relay).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_goes_down_waits_for_running_requests_as_long_as_drain_ms_says() {
    let (relay, mut calls) = puppet("[timeouts]\ndrain_ms = 600\n").await;
    let mut tunnel = Device::enrol(&relay).await.tunnel().await;
    let mut stream = tunnel.peer.ask(for_puppet(), "Hi").await;
    let mut strings = soon("the call", calls.recv()).await.unwrap();
    strings.begin(EVENTS);
    strings.say(event(10));
    let start = Instant::now();
    let stopping = tokio::spawn(relay.stop());
    let _: GoAway = tunnel.control.expect().await;
    tunnel.peer.ask(request(0), "Hi").await.ended().await.is_failed(FailureCode::DRAINING);
    let end = stream.ended().await.end();
    assert_eq!((end.outcome, end.events), (Outcome::DRAINED, 1), "{}", end.message);
    took("draining", start, Duration::from_millis(600));
    assert_eq!(tunnel.peer.closed().await, CloseCode::GOING_AWAY);
    soon("the end of the relay", stopping).await.unwrap();
}

// --- tunnels ---------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn streams_at_once_are_limited_before_and_after_the_hello() {
    let relay = TestRelay::start("[limits]\nstreams_per_tunnel = 6\n").await;
    let peer = Device::enrol(&relay).await.connect().await;
    let mut before = vec![];
    while let Some(stream) = peer.open_now().await {
        before.push(stream);
    }
    assert_eq!(before.len(), 4, "before the hello");

    let mut control = before.remove(0);
    control.write(&[StreamKind::Control.to_wire()]).await;
    control.send(&hello([1; 16], 1)).await;
    let _: HelloAck = control.expect().await;
    let mut tunnel = Tunnel { peer, control };
    // One round trip more, so that the new number of streams has arrived.
    tunnel.beat(1).await;
    let mut after = before;
    while let Some(stream) = tunnel.peer.open_now().await {
        after.push(stream);
    }
    assert_eq!(after.len(), 5, "after the hello, with the control stream they are six");

    // One that ends makes room for one.
    let mut done = after.remove(0);
    done.write(&[StreamKind::Billing.to_wire()]).await;
    done.send(&BalanceRequest { reserved: 0 }).await;
    done.finish();
    assert_eq!(done.ended().await.frames.len(), 1);
    let _next = tunnel.peer.open_bare().await;
    tunnel.beat(2).await;
    assert!(tunnel.peer.open_now().await.is_none());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_over_takes_no_room_even_if_somebody_still_holds_it() {
    let relay = TestRelay::start("[limits]\nstreams_per_tunnel = 4\n").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let mut held = vec![];
    for _ in 0..10 {
        let mut stream = tunnel.peer.open(StreamKind::Billing).await;
        stream.send(&BalanceRequest { reserved: 0 }).await;
        assert_eq!(stream.ended().await.frames.len(), 1);
        // The relay wants no more before this side has said that there is none.
        assert_eq!(stream.stopped().await, StreamCode::NO_ERROR);
        stream.finish();
        held.push(stream);
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_a_device_are_limited_and_a_newer_tunnel_replaces_only_its_own() {
    let relay = TestRelay::start("[limits]\ninstances_per_device = 2\n").await;
    let device = Device::enrol(&relay).await;
    let arrive = async |instance: u8, generation: u64| -> Result<Tunnel, CloseCode> {
        let peer = device.connect().await;
        let mut control = peer.open(StreamKind::Control).await;
        control.send(&hello([instance; 16], generation)).await;
        match soon("the answer to the hello", control.reader.frame()).await {
            Ok(Some(_)) => Ok(Tunnel { peer, control }),
            _ => Err(peer.closed().await),
        }
    };
    let first = arrive(1, 5).await.unwrap();
    let second = arrive(2, 1).await.unwrap();
    assert_eq!(arrive(3, 1).await.unwrap_err(), CloseCode::TOO_MANY_INSTANCES);
    assert_eq!(arrive(1, 4).await.unwrap_err(), CloseCode::REPLACED, "an older one comes too late");
    let newer = arrive(1, 6).await.unwrap();
    assert_eq!(first.peer.closed().await, CloseCode::REPLACED);
    newer.peer.balance().await;
    second.peer.balance().await;
    // Another device has its own places.
    Device::enrol(&relay).await.tunnel().await.peer.balance().await;
    drop(second);
    eventually("a place is free", async || arrive(3, 1).await.is_ok()).await;
    newer.peer.balance().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_outlives_its_certificate_by_the_grace_and_no_longer() {
    let relay = TestRelay::start("[timeouts]\nexpired_grace_ms = 500\n").await;
    let device = Device::enrol(&relay).await;
    let lifetime_ms = u64::try_from(belay_certs::issue::DEVICE_LIFETIME.as_millis()).unwrap();
    // Certificates count whole seconds.
    let expires_ms = SystemClock.now_ms() / 1000 * 1000 + 2000;
    let dying = device.certified(&authority(&relay), &device.tenant, &device.id, expires_ms - lifetime_ms);
    let (start, left_ms) = (Instant::now(), expires_ms - SystemClock.now_ms());
    let tunnel = dying.tunnel().await;
    tunnel.peer.balance().await;
    assert_eq!(tunnel.peer.closed().await, CloseCode::EXPIRED);
    took("expiring", start, Duration::from_millis(left_ms + 500));
    relay.stop().await;
}

// --- handshakes ------------------------------------------------------------------------------

/// Knocks so often at once from one address; returns the connections made within a second.
async fn crowd(relay: &TestRelay, from: Ipv4Addr, knocks: usize) -> Vec<Peer> {
    let (address, tls) = (relay.address(), nobody(relay));
    let mut knocking = JoinSet::new();
    for _ in 0..knocks {
        let tls = tls.clone();
        knocking.spawn(async move {
            let (endpoint, connecting) = knock(address, from, tls, Faults::none());
            Some(Peer::of(endpoint, timeout(Duration::from_secs(1), connecting).await.ok()?.ok()?))
        });
    }
    soon("the end of the crowd", knocking.join_all()).await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_from_one_address_are_limited_and_other_addresses_get_in() {
    const LIMIT: usize = 5;
    let relay = TestRelay::start(&format!("[limits]\nhandshakes_per_second = {LIMIT}\n")).await;
    let start = Instant::now();
    let good = async {
        Peer::connect(relay.address(), Ipv4Addr::new(127, 0, 3, 2), nobody(&relay)).await.unwrap();
        start.elapsed()
    };
    let (crowd, good) = tokio::join!(crowd(&relay, Ipv4Addr::new(127, 0, 3, 1), 100), good);
    // So many at once, as many again that proved their address, and while the clients tried again
    // for a second, as many of both.
    let seconds = start.elapsed().as_secs_f64().ceil() as usize;
    let range = 2 * LIMIT..=2 * LIMIT * (1 + seconds);
    assert!(range.contains(&crowd.len()), "{} of 100 handshakes succeeded, not {range:?}", crowd.len());
    assert!(good < Duration::from_secs(1), "another address got in after {good:?}");
    relay.stop().await;
}

/// Handshakes that stop after their first flight, each from its own address. Keep what is returned
/// for as long as they are to be silent.
fn mute_knocks(relay: &TestRelay, count: u8) -> Vec<(Endpoint, quinn::Connecting)> {
    // A first flight with a post-quantum key share is two datagrams long.
    let mute = |last| knock(relay.address(), Ipv4Addr::new(127, 0, 4, last), nobody(relay), Faults::after(2, 0));
    (1..=count).map(mute).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_end_do_not_keep_others_out() {
    let relay = TestRelay::start("[limits]\npending_handshakes = 8\n").await;
    let _mute = mute_knocks(&relay, 60);
    // From an address of its own, the first attempt succeeds.
    Peer::connect(relay.address(), HOME, nobody(&relay)).await.unwrap();
    let device = Device::enrol(&relay).await;
    device.tunnel().await.peer.balance().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_at_once_are_limited_and_each_has_its_deadline() {
    let relay = TestRelay::start("[limits]\npending_handshakes = 4\n[timeouts]\nhandshake_ms = 1500\n").await;
    let is_refused = |error: &ConnectionError| matches!(error, ConnectionError::ConnectionClosed(_));
    let start = Instant::now();
    let mut mute = mute_knocks(&relay, 4);
    // These follow a Retry, so that they have proven their address, and stop then.
    let mut last = 0;
    eventually("all places are taken", async || {
        last += 1;
        let from = Ipv4Addr::new(127, 0, 5, last);
        mute.push(knock(relay.address(), from, nobody(&relay), Faults::after(4, 1)));
        Peer::connect(relay.address(), HOME, nobody(&relay)).await.is_err_and(|error| is_refused(&error))
    })
    .await;
    assert!(start.elapsed() < Duration::from_millis(1500), "the places were taken before the first became free");
    eventually("a place is free", async || Peer::connect(relay.address(), HOME, nobody(&relay)).await.is_ok()).await;
    took("waiting for a place", start, Duration::from_millis(1500));
    relay.stop().await;
}
