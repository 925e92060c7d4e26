//! The tunnel over TCP: where UDP does not get through, and back.

use crate::counted::{count, read};
use crate::faults::forty_readers_stand_still;
use crate::scripted::Scripted;
use belay_certs::invite::Invite;
use belay_certs::tls::system_time;
use belay_client::enrol;
use belay_client::escalation::EscalationRequest;
use belay_client::state::StateDir;
use belay_client::{Client, ClientError, Options, Phase};
use belay_protocol::ALPN;
use belay_protocol::error::{CloseCode, StreamCode};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{Dialect, FailureCode};
use belay_protocol::money::NanoUsd;
use belay_protocol::stream::StreamError;
use belay_relay::Overrides;
use belay_relay::providers::{Provider, Providers};
use belay_relay::store::ledger::money::Operation;
use belay_tests::counting::Counting;
use belay_tests::link::{self, Direction, Link};
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, eventually, tenant};
use belay_tests::tcp_link::TcpLink;
use belay_transport::connection::{Connection, Path};
use belay_transport::env::Env;
use belay_transport::tcp::TcpConnection;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// UDP and TCP to a relay through the same port.
pub(crate) struct Ways {
    pub(crate) udp: Link,
    pub(crate) tcp: TcpLink,
}

impl Ways {
    pub(crate) async fn to(relay: &TestRelay) -> Self {
        loop {
            let udp = Link::start(relay.address(), link::seed(), Direction::delay(Duration::from_millis(5))).unwrap();
            // The port may be taken for TCP: then another one.
            if let Ok(tcp) = TcpLink::start(udp.address(), relay.address()).await {
                return Self { udp, tcp };
            }
        }
    }

    /// The same with UDP blocked from the beginning.
    pub(crate) async fn without_udp(relay: &TestRelay) -> Self {
        let ways = Self::to(relay).await;
        ways.udp.blackhole(true);
        ways
    }
}

fn path(client: &TestClient) -> &'static str {
    client.client.status().borrow().path
}

async fn on_path(client: &TestClient, path: &str, within: Duration) {
    let mut status = client.client.status();
    let there = status.wait_for(|status| status.path == path && status.phase == Phase::Up);
    timeout(within, there).await.unwrap_or_else(|_| panic!("not on {path} within {within:?}")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_that_is_dropped_costs_three_seconds_and_its_return_costs_nothing() {
    let counting = Counting { events: 1200, pace: Duration::from_millis(20) };
    let relay = TestRelay::with("", counting.overrides()).await;
    let ways = Ways::to(&relay).await;
    let client = Arc::new(relay.client_through(ways.udp.address()).await);
    let before = relay.balance("acme").await;
    assert_eq!((path(&client), ways.tcp.connections()), ("quic", 0));
    let running = tokio::spawn(read(Arc::clone(&client), count(&client.client), 2 * PATIENCE));
    sleep(Duration::from_millis(500)).await;
    ways.udp.blackhole(true);
    on_path(&client, "tcp", Duration::from_secs(3)).await;
    let why = client.client.status().borrow().path_why.clone().expect("says why");
    assert!(why.contains("UDP"), "{why}");
    // A request that begins over TCP, and runs on beside the return to QUIC.
    let began = Instant::now();
    let mut over_tcp = client.client.escalate(count(&client.client), PATIENCE).await.expect("sent");
    over_tcp.next().await.expect("answers");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    drop(over_tcp);
    let second = tokio::spawn(read(Arc::clone(&client), count(&client.client), 2 * PATIENCE));
    sleep(Duration::from_millis(500)).await;
    ways.udp.blackhole(false);
    on_path(&client, "quic", Duration::from_secs(60)).await;
    assert!(!second.is_finished(), "the stream was over before QUIC came back");
    assert_eq!(client.client.status().borrow().path_why, None);
    assert_eq!(relay.relay().admin().status().tunnels.len(), 2, "what runs over TCP goes on there");
    // UDP fails once more while that still runs: it is not cut, and what is new goes there again.
    ways.udp.blackhole(true);
    let third = tokio::spawn(read(Arc::clone(&client), count(&client.client), 2 * PATIENCE));
    on_path(&client, "tcp", Duration::from_secs(3)).await;
    assert!(!second.is_finished(), "the stream over TCP was over before UDP failed again");
    third.abort();
    let first = running.await.unwrap();
    assert!(first.longest_gap < Duration::from_secs(3), "a gap of {:?}", first.longest_gap);
    let second = second.await.unwrap();
    assert_eq!(second.moves, 0, "the stream over TCP was cut");
    assert!(second.longest_gap < Duration::from_secs(1), "a gap of {:?}", second.longest_gap);
    eventually("the tunnel over TCP is given up", async || relay.relay().admin().status().tunnels.len() == 1).await;
    eventually("all is settled", async || {
        relay.relay().admin().verify(None).await.unwrap().iter().all(|book| book.report.open == 0)
    })
    .await;
    relay.verify().await;
    assert!(relay.balance("acme").await < before);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_computer_without_udp_joins_asks_and_is_answered() {
    let relay = TestRelay::with("", Counting { events: 200, pace: Duration::ZERO }.overrides()).await;
    let ways = Ways::without_udp(&relay).await;
    let began = Instant::now();
    let client = Arc::new(relay.client_through(ways.udp.address()).await);
    assert!(began.elapsed() < Duration::from_secs(5), "joined and up after {:?}", began.elapsed());
    assert_eq!(path(&client), "tcp");
    let before = relay.balance("acme").await;
    let mut readers = JoinSet::new();
    for _ in 0..40 {
        readers.spawn(read(Arc::clone(&client), count(&client.client), 2 * PATIENCE));
    }
    for seen in readers.join_all().await {
        assert_eq!(seen.moves, 0);
    }
    let mut status = client.client.status();
    let answered = status.wait_for(|status| status.round_trip_us.is_some() && status.bytes_received > 0);
    timeout(PATIENCE, answered).await.expect("heartbeats are answered").unwrap();
    assert!(relay.balance("acme").await < before);
    assert_eq!(relay.relay().admin().status().tunnels[0].path, "tcp");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_over_tcp_that_breaks_or_stands_still_is_replaced() {
    let relay = TestRelay::with("", Counting { events: 500, pace: Duration::from_millis(20) }.overrides()).await;
    let ways = Ways::without_udp(&relay).await;
    let client = Arc::new(relay.client_through(ways.udp.address()).await);
    let running = tokio::spawn(read(Arc::clone(&client), count(&client.client), 2 * PATIENCE));
    sleep(Duration::from_millis(500)).await;
    let before = ways.tcp.connections();
    ways.tcp.cut();
    eventually("there is another connection", async || ways.tcp.connections() > before).await;
    on_path(&client, "tcp", PATIENCE).await;
    sleep(Duration::from_secs(1)).await;
    ways.tcp.stand_still();
    let seen = running.await.unwrap();
    assert!((1..=4).contains(&seen.interruptions), "{}", seen.interruptions);
    assert!(seen.longest_gap < Duration::from_secs(4), "a gap of {:?}", seen.longest_gap);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_a_revoked_device_is_cut_off_within_a_second_too() {
    let relay = TestRelay::with("", Counting { events: 500, pace: Duration::from_millis(20) }.overrides()).await;
    let ways = Ways::without_udp(&relay).await;
    let client = relay.client_through(ways.udp.address()).await;
    let mut running = client.client.escalate(count(&client.client), PATIENCE).await.expect("sent");
    running.next().await.expect("answers");
    let mut status = client.client.status();
    relay.relay().admin().revoke(&client.client.identity().device, "test").await.expect("revoked");
    let refused = status.wait_for(|status| matches!(status.phase, Phase::Refused { .. }));
    timeout(Duration::from_secs(1), refused).await.expect("within a second").unwrap();
    let (identity, key) = client.state.load().unwrap();
    // The reason arrives whatever the client is just sending: at the first attempt, each time.
    for attempt in 0..10 {
        let before = ways.tcp.connections();
        let returning = Client::start(Env::system(), identity.clone(), &key, Options::default()).unwrap();
        assert!(matches!(returning.tunnel(PATIENCE).await, Err(ClientError::Closed(CloseCode::REVOKED))));
        assert_eq!(ways.tcp.connections(), before + 1, "attempt {attempt} did not hear the reason at once");
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_lets_only_the_handshake_through_costs_seconds_and_no_more() {
    let relay = TestRelay::start("").await;
    let ways = Ways::to(&relay).await;
    let client = relay.client_through(ways.udp.address()).await;
    let (identity, key) = client.state.load().unwrap();
    for packets in [7, 8, 9, 10, 12] {
        let so_far = ways.udp.stats().up.came;
        let line = Direction::delay(Duration::from_millis(5));
        ways.udp.set(link::Way::Up, Direction { first: so_far + packets, ..line });
        let began = Instant::now();
        let other = Client::start(Env::system(), identity.clone(), &key, Options::default()).unwrap();
        other.balance(PATIENCE).await.unwrap_or_else(|error| panic!("{packets} packets: {error}"));
        assert!(began.elapsed() < Duration::from_secs(5), "{packets} packets: {:?}", began.elapsed());
        other.close().await;
    }
    assert!(ways.tcp.connections() > 0, "QUIC was enough each time");
    // Joining too.
    let invite = relay.invite("acme").await;
    let so_far = ways.udp.stats().up.came;
    ways.udp.set(link::Way::Up, Direction { first: so_far + 6, ..Direction::default() });
    let invite = Invite { addresses: vec![ways.udp.address().to_string()], ..invite };
    let home = tempfile::tempdir().unwrap();
    let (env, state) = (Env::system(), StateDir::at(home.path()));
    let joining = enrol::join(&env, &state, &invite, "late");
    timeout(Duration::from_secs(12), joining).await.expect("in time").expect("joined");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_question_on_a_slow_line_gets_through_beside_one_that_waits() {
    let relay = TestRelay::with("", Counting { events: 10, pace: Duration::from_secs(2) }.overrides()).await;
    let ways = Ways::without_udp(&relay).await;
    let client = Arc::new(relay.client_through(ways.udp.address()).await);
    let waiting = tokio::spawn(read(Arc::clone(&client), count(&client.client), 2 * PATIENCE));
    ways.tcp.slow_upload(64 << 10);
    let before = ways.tcp.connections();
    let filler = "x".repeat(400 << 10);
    let body = crate::counted::ASK.replace("count", &filler);
    let request = EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "auto", body);
    let large = client.send(request).await;
    assert!(large.end.is_some(), "{:?}", large.failed);
    assert_eq!(waiting.await.unwrap().moves, 0);
    assert_eq!(ways.tcp.connections(), before, "the tunnel that carries it was taken for dead");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_too_a_dropped_answer_is_cancelled_and_a_refusal_says_why() {
    let provider = Scripted::endless(Duration::from_millis(10));
    let endless: Arc<dyn Provider> = provider.clone();
    let overrides = Overrides { providers: Providers::from([("demo".to_owned(), endless)]), ..Overrides::default() };
    let relay = TestRelay::with("[limits]\nrequest_body_mib = 1\n", overrides).await;
    let ways = Ways::without_udp(&relay).await;
    let client = relay.client_through(ways.udp.address()).await;
    let mut running = client.client.escalate(count(&client.client), PATIENCE).await.expect("sent");
    running.next().await.expect("answers");
    drop(running);
    eventually("the provider's call has stopped", async || {
        relay.relay().admin().verify(None).await.unwrap().iter().all(|book| book.report.open == 0)
    })
    .await;
    // A body that the relay refuses in the middle; the words arrive although it reads no further.
    let filler = "x".repeat(2 << 20);
    let body = crate::counted::ASK.replace("count", &filler);
    let request = EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "auto", body);
    let refused = client.send(request).await.failed.expect("too large");
    assert_eq!(refused.code, FailureCode::LIMIT, "{}", refused.message);
    assert_eq!(path(&client), "tcp");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stand_still_over_tcp_cost_only_themselves() {
    forty_readers_stand_still(Path::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tcp_the_error_says_what_failed_over_both() {
    let relay = TestRelay::start("").await;
    let ways = Ways::without_udp(&relay).await;
    let client = relay.client_through(ways.udp.address()).await;
    drop(ways.tcp);
    let (identity, key) = client.state.load().unwrap();
    let other = Client::start(Env::system(), identity, &key, Options::default()).unwrap();
    let error = other.tunnel(Duration::from_secs(7)).await.expect_err("nothing gets through").to_string();
    assert!(error.contains("UDP") && error.contains("TCP") && error.contains("refused"), "{error}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_silence_and_floods_over_tcp_cost_their_sender_only() {
    let relay = TestRelay::start(
        "[timeouts]\nhandshake_ms = 500\nhello_ms = 500\n[limits]\npending_handshakes = 50\nhandshakes_per_second = 1000\n",
    )
    .await;
    let good = relay.client().await;
    let address = relay.address();
    let mut hostile = JoinSet::new();
    for number in 0..200_u32 {
        hostile.spawn(async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            match number % 3 {
                // Says nothing: closed when the handshake's time is over, or at once for want of room.
                0 => {}
                1 => drop(socket.write_all(&number.to_le_bytes().repeat(1000)).await),
                // The beginning of a ClientHello that never goes on.
                _ => drop(socket.write_all(&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc]).await),
            }
            // All end, by the relay's doing.
            let mut rest = vec![];
            timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("the relay closes it").ok();
        });
    }
    hostile.join_all().await;
    assert!(good.ask("Still there?").await.end.is_some());
    assert_eq!(good.client.status().borrow().reconnects, 0);
    let ways = Ways::without_udp(&relay).await;
    let late = relay.client_through(ways.udp.address()).await;
    assert!(late.ask("And I?").await.end.is_some());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_can_be_told_to_leave_tcp_alone() {
    let relay = TestRelay::start("").await;
    let taken = relay.address();
    assert!(TcpStream::connect(taken).await.is_ok());
    relay.stop().await;
    let other_server = tokio::net::TcpListener::bind(taken).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text = |tcp: bool| {
        let text = belay_tests::relay::config_text(dir.path(), "");
        let listen = format!("quic = \"{taken}\"\ntcp = {tcp}");
        belay_relay::Config::parse(&text.replace("quic = \"127.0.0.1:0\"", &listen), "test").unwrap()
    };
    let start = |tcp| belay_relay::Relay::start(text(tcp), Env::system(), Overrides::default());
    let error = start(true).await.expect_err("the port is taken").to_string();
    assert!(error.contains("TCP") && error.contains("listen.tcp = false"), "{error}");
    start(false).await.expect("UDP alone").shutdown().await;
    drop(other_server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_over_tcp_takes_all_its_streams_at_once() {
    let relay = TestRelay::with("", Counting { events: 50, pace: Duration::from_millis(5) }.overrides()).await;
    let ways = Ways::without_udp(&relay).await;
    let client = Arc::new(relay.client_through(ways.udp.address()).await);
    let enough = NanoUsd(10_000_000_000_000);
    relay.relay().admin().operate(&tenant("acme"), Operation::Credit, enough, None, None).await.expect("credited");
    let mut readers = JoinSet::new();
    // More than a tunnel has: the rest waits.
    for _ in 0..200 {
        readers.spawn(read(Arc::clone(&client), count(&client.client), 2 * PATIENCE));
    }
    for seen in readers.join_all().await {
        assert_eq!(seen.moves, 0);
    }
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_tunnel_over_tcp_is_not_taken_for_dead() {
    let relay = TestRelay::start("[limits]\ninstances_per_device = 1\n").await;
    let ways = Ways::without_udp(&relay).await;
    let first = relay.client_through(ways.udp.address()).await;
    // Idle, its first heartbeat long answered: only what it is asked for can show that it lives.
    let mut status = first.client.status();
    timeout(PATIENCE, status.wait_for(|status| status.round_trip_us.is_some())).await.expect("a heartbeat").unwrap();
    let (identity, key) = first.state.load().unwrap();
    let second = Client::start(Env::system(), identity, &key, Options::default()).unwrap();
    let refused = second.tunnel(PATIENCE).await.expect_err("there is no room");
    assert!(matches!(refused, ClientError::Closed(CloseCode::TOO_MANY_INSTANCES)), "{refused}");
    assert!(first.ask("Still there?").await.end.is_some());
    assert_eq!(first.client.status().borrow().reconnects, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_hello_a_connection_over_tcp_has_four_streams() {
    let relay = TestRelay::start("").await;
    let invite = relay.invite("acme").await;
    let config = belay_certs::tls::enrolling_client(invite.fingerprint, ALPN, system_time()).unwrap();
    let socket = TcpStream::connect(relay.address()).await.unwrap();
    let connection = Connection::Tcp(TcpConnection::connect(socket, Arc::new(config)).await.unwrap());
    let mut streams = vec![];
    for _ in 0..4 {
        let mut stream = connection.open().await.unwrap();
        stream.writer.preface(StreamKind::Enrol);
        stream.writer.flush().await.unwrap();
        streams.push(stream);
    }
    let mut fifth = connection.open().await.unwrap();
    fifth.writer.preface(StreamKind::Enrol);
    // The relay may refuse it before its first bytes have left.
    let refused = match fifth.writer.flush().await {
        Err(refused) => refused,
        Ok(()) => timeout(PATIENCE, fifth.reader.frame()).await.expect("at once").expect_err("one too many"),
    };
    assert_eq!(refused, StreamError::Peer(StreamCode::LIMIT));
    let fourth = timeout(Duration::from_millis(300), streams[3].reader.frame()).await;
    assert!(fourth.is_err(), "the fourth is listened to: {fourth:?}");
    // Four streams that ask for nothing: a relay that leaves does not wait for them.
    timeout(Duration::from_secs(5), relay.stop()).await.expect("at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_tcp_count_against_the_handshakes_of_their_address() {
    let relay = TestRelay::start("[limits]\nhandshakes_per_second = 5\n[timeouts]\nhandshake_ms = 20000\n").await;
    let mut closed = JoinSet::new();
    for _ in 0..40 {
        let mut mute = TcpStream::connect(relay.address()).await.unwrap();
        // Those that are let in have twenty seconds to say something.
        closed.spawn(async move { timeout(Duration::from_secs(3), mute.read(&mut [0])).await.is_ok() });
    }
    let closed = closed.join_all().await.into_iter().filter(|closed| *closed).count();
    // Five, and five more since TCP proves an address; some again while they come.
    assert!((20..=30).contains(&closed), "{closed} of 40 were closed at once");
    relay.stop().await;
}
