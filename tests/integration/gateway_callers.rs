//! Callers of the gateway that do not do what they should, or change their mind.

use crate::gateway::relay_for;
use crate::tcp::Ways;
use belay_client::gateway::{Settings, Token};
use belay_client::running::Told;
use belay_client::{Client, Options, Phase};
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::gateway::TestGateway;
use belay_tests::relay::{PATIENCE, TestRelay, eventually};
use belay_transport::env::Env;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_nothing_of_its_answer_is_let_go_and_its_request_ends() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, "").await;
    let client = relay.client().await;
    let settings = Settings { patience: Duration::from_millis(500), ..Settings::default() };
    let gateway = TestGateway::with(&client, settings).await;
    let endless = Script { endless: true, ..Script::default() }.as_message();
    let messages = json!([{ "role": "user", "content": endless }]);
    let body = json!({ "model": "gpt", "stream": true, "max_tokens": 8000, "messages": messages }).to_string();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = gateway.url.strip_prefix("http://").unwrap();
    let mut asleep = socket.connect(address.parse().unwrap()).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    asleep.write_all((head + &body).as_bytes()).await.unwrap();
    provider.wait_until("the call ends", PATIENCE, |counts| counts.cancelled == 1).await;
    eventually("its place is free", async || gateway.get("/belay/status").await["gateway"]["running"] == 0).await;
    // What lay in the socket is all that it gets.
    let mut said = vec![];
    let _ = tokio::time::timeout(PATIENCE, asleep.read_to_end(&mut said)).await.expect("it is closed");
    assert!(said.starts_with(b"HTTP/1.1 200") && !said.ends_with(b"\r\n0\r\n\r\n"), "it was cut");
    gateway.stop().await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_over_tcp_that_is_lost_goes_through_the_one_that_runs_and_stays_there() {
    let relay = TestRelay::start("[providers.demo]\nkind = \"demo\"\n").await;
    let ways = Ways::without_udp(&relay).await;
    let first = relay.client_through(ways.udp.address()).await;
    let (identity, key) = first.state.load().unwrap();
    let options = Options {
        addresses: Some(vec![ways.udp.address().to_string()]),
        state: Some(first.state.clone()),
        through_running: true,
        ..Options::default()
    };
    let command = Client::start(Env::system(), identity.clone(), &key, options).unwrap();
    command.tunnel(PATIENCE).await.unwrap();
    let mut status = command.status();
    assert_eq!(status.borrow().path, "tcp");
    // One begins to run beside it.
    let secret = "s3cret";
    let gateway =
        TestGateway::with(&first, Settings { secret: Some(Token::from(secret)), ..Settings::default() }).await;
    let held = first.state.hold().unwrap().expect("free");
    let listen = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    held.tell(&Told { process: 1, device: identity.device, listen, secret: secret.into() }).unwrap();
    // QUIC is tried again meanwhile, and is not found there.
    let tried = ways.udp.stats().up.blackholed;
    ways.udp.wait_until("QUIC is tried again", PATIENCE, |stats| stats.up.blackholed > tried).await;
    assert_eq!((status.borrow().path, status.borrow().reconnects), ("tcp", 0));
    ways.tcp.cut();
    let moved = status.wait_for(|status| status.path == "local" && status.phase == Phase::Up);
    tokio::time::timeout(PATIENCE, moved).await.expect("in time").unwrap();
    let reconnects = status.borrow().reconnects;
    let until = Instant::now() + Duration::from_secs(7);
    eventually("a probe would have come", async || Instant::now() > until).await;
    assert_eq!((status.borrow().path, status.borrow().reconnects), ("local", reconnects));
    assert!(command.balance(PATIENCE).await.is_ok());
    command.close().await;
    gateway.stop().await;
    relay.stop().await;
}

/// What a caller says on a connection, and the head of the answer.
async fn say(socket: &mut TcpStream, words: &[u8]) -> String {
    socket.write_all(words).await.unwrap();
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(PATIENCE, socket.read_u8()).await.expect("in time").unwrap());
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_body_spoils_no_other_request_and_commands_are_limited() {
    let relay = TestRelay::start("[providers.demo]\nkind = \"demo\"\n").await;
    let client = relay.client().await;
    let secret = Some(Token::from("s3cret"));
    let gateway = TestGateway::with(&client, Settings { max_body: 1000, secret, ..Settings::default() }).await;
    let address = gateway.url.strip_prefix("http://").unwrap();
    let connect = async || TcpStream::connect(address).await.unwrap();
    let post = |headers: &str, length: usize| {
        format!("POST /v1/messages HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n{headers}\r\n")
    };
    let mut socket = connect().await;
    // The rest does not come.
    let head = say(&mut socket, &[post("", 500_000).into_bytes(), vec![b'x'; 900]].concat()).await;
    assert!(head.starts_with("http/1.1 413") && head.contains("connection: close"), "{head}");
    // All of it is sent: the connection serves on.
    let mut socket = connect().await;
    let head = say(&mut socket, &[post("", 1800).into_bytes(), vec![b'x'; 1800]].concat()).await;
    assert!(head.starts_with("http/1.1 413") && !head.contains("connection: close"), "{head}");
    let length: usize = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    socket.read_exact(&mut vec![0; length]).await.unwrap();
    let get = format!("GET /belay/status HTTP/1.1\r\nHost: {address}\r\n\r\n");
    assert!(say(&mut socket, get.as_bytes()).await.starts_with("http/1.1 200"));
    // One that waits to be told is told no.
    let mut socket = connect().await;
    let head = say(&mut socket, post("Expect: 100-continue\r\n", 1800).as_bytes()).await;
    assert!(head.starts_with("http/1.1 413") && head.contains("connection: close"), "{head}");
    // Commands that come and say nothing take the places there are, and no more.
    let upgrade = format!(
        "GET /belay/tunnel HTTP/1.1\r\nHost: {address}\r\nConnection: upgrade\r\nUpgrade: belay\r\nbelay-secret: s3cret\r\n\r\n"
    );
    let mut commands = vec![];
    for _ in 0..64 {
        let mut socket = connect().await;
        assert!(say(&mut socket, upgrade.as_bytes()).await.starts_with("http/1.1 101"));
        commands.push(socket);
    }
    let head = say(&mut connect().await, upgrade.as_bytes()).await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
    // Those that say nothing are let go.
    eventually("a place is free", async || {
        say(&mut connect().await, upgrade.as_bytes()).await.starts_with("http/1.1 101")
    })
    .await;
    drop(commands);
    gateway.stop().await;
    relay.stop().await;
}
