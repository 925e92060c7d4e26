//! Callers over HTTP that mean no good: what two servers could read differently, what never ends, what is too large,
//! too many, or taken back as soon as it was asked. Limits hold, and others are served meanwhile.

use belay_tests::http::{HTTP, HttpCaller};
use belay_tests::relay::{PATIENCE, TestRelay, eventually};
use bytes::Bytes;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Sends bytes and reads until the relay closes, or for so long.
async fn spoken(address: SocketAddr, bytes: &[u8], patience: Duration) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // What is refused in the middle is closed in the middle.
    let _ = socket.write_all(bytes).await;
    let mut answer = vec![];
    let _ = timeout(patience, socket.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answer: &str) -> Vec<u16> {
    answer.match_indices("HTTP/1.1 ").map(|(at, _)| answer[at + 9..at + 12].parse().unwrap()).collect()
}

/// A relay whose patience is short.
async fn relay() -> (TestRelay, HttpCaller, SocketAddr) {
    let relay = TestRelay::start(
        "[http]\nlisten = \"127.0.0.1:0\"\nidle_s = 1\npatience_s = 2\nconnections = 1500\nconnections_per_address = 200\n\
         [timeouts]\nrequest_body_ms = 1500\ndrain_ms = 3000\n[limits]\nrequest_body_mib = 1\nrequests_per_minute = 100000\n",
    )
    .await;
    let caller = relay.caller().await;
    let address = relay.relay().http_addr().unwrap();
    (relay, caller, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_servers_could_read_differently_is_read_by_none() {
    let (relay, caller, address) = relay().await;
    let key = &caller.key;
    let hidden = format!("GET /v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n");
    let with = |headers: &str, body: &str| {
        format!("POST /v1/escalate HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{headers}\r\n\r\n{body}")
    };
    let chunked = format!("0\r\n\r\n{hidden}");
    for (what, text) in [
        ("both lengths", with("content-length: 5\r\ntransfer-encoding: chunked", &chunked)),
        ("both, the other way", with("transfer-encoding: chunked\r\ncontent-length: 5", &chunked)),
        ("two lengths", with(&format!("content-length: 0\r\ncontent-length: {}", hidden.len()), &hidden)),
        ("two lengths in one", with(&format!("content-length: 0, {}", hidden.len()), &hidden)),
        ("a length with a sign", with("content-length: +0", &hidden)),
        ("a length in hexadecimal", with("content-length: 0x0", &hidden)),
        ("an encoding of another name", with("transfer-encoding: xchunked", &chunked)),
        ("chunked, then another", with("transfer-encoding: chunked, identity", &chunked)),
        ("a blank before the colon", with("transfer-encoding : chunked", &chunked)),
        ("a folded line", with("transfer-encoding:\r\n chunked\r\ncontent-length: 0", &hidden)),
        ("no host twice", format!("GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n{hidden}")),
        ("chunks of nonsense", with("transfer-encoding: chunked", &format!("zz\r\n{hidden}"))),
        ("a chunk of a negative size", with("transfer-encoding: chunked", &format!("-1\r\n{hidden}"))),
        ("a chunk of a giant size", with("transfer-encoding: chunked", &format!("ffffffffffffffff1\r\n{hidden}"))),
        ("a chunk without its end", with("transfer-encoding: chunked", &format!("2\r\n{{}}XX0\r\n\r\n{hidden}"))),
    ] {
        let answer = spoken(address, text.as_bytes(), Duration::from_secs(4)).await;
        // At most one answer, and none of it the hidden request's.
        let seen = statuses(&answer);
        assert!(seen.len() <= 1 && seen.iter().all(|status| *status != 200), "{what}: {answer}");
        assert!(!answer.contains("balance"), "{what}: {answer}");
    }
    // Two requests in order, one behind the other, are two.
    let body = json!({ "query": "hi" }).to_string();
    let both = with(&format!("content-length: {}", body.len()), &format!("{body}{hidden}"));
    assert_eq!(statuses(&spoken(address, both.as_bytes(), Duration::from_secs(3)).await), [200, 200]);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_ends_is_ended_and_what_is_too_large_is_refused() {
    let (relay, caller, address) = relay().await;
    let began = Instant::now();
    // A head that does not come, one that drips, and a connection that says nothing.
    let slow = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let mut byte = [0; 1];
        for letter in b"GET /health HTTP/1.1\r\nhost: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" {
            if socket.write_all(&[*letter]).await.is_err() {
                return;
            }
            if let Ok(Ok(0) | Err(_)) = timeout(Duration::from_millis(100), socket.read(&mut byte)).await {
                return;
            }
        }
        panic!("a head that drips is read for {:?}", began.elapsed());
    };
    let silent = spoken(address, b"", PATIENCE);
    let half = spoken(address, b"GET /health HTTP/1.1\r\nhost: x\r\n", PATIENCE);
    tokio::join!(slow, silent, half);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // A body that does not come.
    let head = format!("POST /v1/escalate HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n", caller.key);
    let answer = spoken(address, format!("{head}content-length: 100\r\n\r\n{{").as_bytes(), PATIENCE).await;
    assert_eq!(statuses(&answer), [408], "{answer}");
    // One that is too large: announced, and not.
    let answer = spoken(address, format!("{head}content-length: 3000000\r\n\r\n{{").as_bytes(), PATIENCE).await;
    assert_eq!(statuses(&answer), [413], "{answer}");
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(32);
    let answer = spoken(address, format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}").as_bytes(), PATIENCE).await;
    assert_eq!(statuses(&answer), [413], "{answer:.300}");
    // Heads that are too large, or of too many lines.
    for headers in [format!("x: {}\r\n", "y".repeat(200_000)), "x: y\r\n".repeat(500)] {
        let answer =
            spoken(address, format!("GET /health HTTP/1.1\r\nhost: x\r\n{headers}\r\n").as_bytes(), PATIENCE).await;
        assert_eq!(statuses(&answer), [431], "{answer:.300}");
    }
    // Who takes nothing of a long answer has left, and its request with it.
    let query = json!({ "query": "word ".repeat(2000), "max_tokens": 4000 }).to_string();
    let mut stands_still = TcpStream::connect(address).await.unwrap();
    let request = head.replace("/v1/escalate", "/v1/stream");
    let length = query.len();
    let whole = format!("{request}content-length: {length}\r\n\r\n{query}");
    stands_still.write_all(whole.as_bytes()).await.unwrap();
    // It has begun when its answer has.
    stands_still.read_exact(&mut [0]).await.unwrap();
    eventually("its request ends", async || relay.relay().admin().status().running_requests == 0).await;
    HttpCaller::good(caller.get("/v1/status")).await;
    relay.verify().await;
    relay.stop().await;
}

fn is_open(stream: &TcpStream) -> bool {
    let mut byte = [0];
    stream.try_read(&mut byte).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_take_their_places_and_no_more() {
    let _turn = crate::MACHINE.lock().await;
    let relay = TestRelay::start(
        "[http]\nlisten = \"127.0.0.1:0\"\nidle_s = 60\nconnections = 1500\nconnections_per_address = 200\n",
    )
    .await;
    let caller = relay.caller().await;
    let client = relay.client().await;
    let address = relay.relay().http_addr().unwrap();
    let mut held: Vec<TcpStream> = vec![];
    // From fifty addresses of this machine, two hundred each.
    for number in 0..10_000u32 {
        let source = Ipv4Addr::from_bits(Ipv4Addr::new(127, 9, 0, 1).to_bits() + number / 200);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((source, 0))).unwrap();
        if let Ok(Ok(stream)) = timeout(Duration::from_secs(5), socket.connect(address)).await {
            held.push(stream);
        }
        if number % 1000 == 999 {
            // Those that were closed again take nothing here either.
            held.retain(is_open);
        }
    }
    let open = |held: &[TcpStream]| held.iter().filter(|stream| is_open(stream)).count();
    eventually("all but 1500 are closed", async || open(&held) <= 1500).await;
    assert!(open(&held) > 1000, "{}", open(&held));
    // The tunnel's side goes on; an address that has its share is refused, and served once it gives some back.
    let answer = client.ask("still there?").await;
    assert!(answer.end.is_some());
    held.clear();
    eventually("there is room", async || caller.get("/health").send().await.is_ok()).await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_at_once_end_their_connection_and_nobody_elses() {
    let relay =
        TestRelay::start("[http]\nlisten = \"127.0.0.1:0\"\ntls = \"own\"\nnames = [\"localhost\", \"127.0.0.1\"]\n")
            .await;
    let address = relay.relay().http_addr().unwrap();
    let authority = std::fs::read(relay.state().join("ca").join("ca.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_pki_types::CertificateDer::pem_slice_iter(&authority) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = belay_certs::tls::crypto_provider();
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls));
    let connect = async || {
        let socket = TcpStream::connect(address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let stream = connector.connect(name, socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        h2::client::handshake(stream).await.unwrap()
    };
    let (sender, connection) = connect().await;
    let ended = tokio::spawn(connection);
    let request = || http::Request::get("https://localhost/v1/status").body(()).unwrap();
    let mut asked = 0;
    for _ in 0..20_000 {
        let Ok(mut ready) = sender.clone().ready().await else { break };
        let Ok((_, mut stream)) = ready.send_request(request(), false) else { break };
        stream.send_reset(h2::Reason::CANCEL);
        asked += 1;
    }
    assert!(asked < 20_000, "the relay takes everything");
    let ended = timeout(PATIENCE, ended).await.expect("it is closed").unwrap();
    assert!(ended.is_err(), "{ended:?}");
    // Somebody else is served, over HTTP/2 too.
    let (sender, connection) = connect().await;
    let other = tokio::spawn(connection);
    let key = relay.key("acme", &belay_tests::http::SCOPES).await.secret;
    let request = http::Request::post("https://localhost/v1/escalate").header("authorization", format!("Bearer {key}"));
    let (answer, mut body) = sender.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::from(json!({ "query": "hi" }).to_string()), true).unwrap();
    let mut answer = timeout(PATIENCE, answer).await.expect("in time").unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().contains_key("strict-transport-security"));
    let mut text = vec![];
    while let Some(piece) = answer.body_mut().data().await {
        let piece = piece.unwrap();
        answer.body_mut().flow_control().release_capacity(piece.len()).unwrap();
        text.extend_from_slice(&piece);
    }
    assert!(serde_json::from_slice::<serde_json::Value>(&text).unwrap()["content"].is_string());
    other.abort();
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_read_nothing() {
    let relay = TestRelay::start(&format!("{HTTP}origins = [\"https://app.example.org\"]\n")).await;
    let caller = relay.caller().await;
    let ask = async |origin: &str| caller.get("/v1/status").header("origin", origin).send().await.unwrap();
    let allowed = ask("https://app.example.org").await;
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://app.example.org");
    for other in ["https://evil.example.org", "null", "https://app.example.org.evil.org"] {
        assert!(!ask(other).await.headers().contains_key("access-control-allow-origin"), "{other}");
    }
    let preflight = caller.http.request(reqwest::Method::OPTIONS, format!("{}/v1/escalate", caller.url));
    let answer = preflight.header("origin", "https://app.example.org").send().await.unwrap();
    assert_eq!(answer.status(), 204);
    assert!(answer.headers()["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    for (name, value) in
        [("x-content-type-options", "nosniff"), ("cache-control", "no-store"), ("referrer-policy", "no-referrer")]
    {
        assert_eq!(allowed.headers()[name], value);
    }
    relay.stop().await;
}
