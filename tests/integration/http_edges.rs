//! Callers over HTTP at the edges: behind proxies, with keys that are revoked in the middle, after the end, and while the
//! relay leaves.

use crate::gateway::relay_for;
use belay_certs::ca::Authority;
use belay_relay::store::central::keys::KeyScope;
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::http::{HTTP, HttpCaller};
use belay_tests::procs::Belayd;
use belay_tests::relay::{PATIENCE, TestRelay, eventually};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Statuses of that many unknown keys, from whom the header says.
async fn guesses(caller: &HttpCaller, from: &str, count: usize) -> Vec<u16> {
    let mut statuses = vec![];
    for number in 0..count {
        let key = format!("bly_live_guess_{from}_{number}");
        let asked = caller.http.get(format!("{}/v1/status", caller.url)).bearer_auth(key);
        statuses.push(HttpCaller::text(asked.header("x-forwarded-for", from)).await.0);
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_guesses_is_bounded_by_address_and_a_trusted_proxy_says_which() {
    let few = "[http]\nlisten = \"127.0.0.1:0\"\nlook_ups_per_second = 2\n";
    let relay = TestRelay::start(few).await;
    let caller = relay.caller().await;
    HttpCaller::good(caller.get("/v1/status")).await;
    // Nobody is trusted: what the header says is a stranger's word.
    let all = [guesses(&caller, "10.0.0.1", 20).await, guesses(&caller, "10.0.0.2", 5).await].concat();
    assert!(all.iter().filter(|status| **status == 429).count() > 10, "{all:?}");
    // Whoever is known already is not looked up.
    HttpCaller::good(caller.get("/v1/status")).await;
    relay.stop().await;

    let relay = TestRelay::start(&format!("{few}trusted_proxies = [\"127.0.0.1\"]\n")).await;
    let caller = relay.caller().await;
    let first = guesses(&caller, "10.0.0.1", 20).await;
    assert!(first.contains(&429), "{first:?}");
    assert_eq!(guesses(&caller, "10.0.0.2", 1).await, [401], "another address");
    // Only the last one is the proxy's own word.
    let (began, mut forged) = (Instant::now(), vec![]);
    while !forged.contains(&429) {
        assert!(began.elapsed() < PATIENCE, "{forged:?}");
        forged = guesses(&caller, "10.9.9.9, 10.0.0.1", 20).await;
    }
    assert_eq!(guesses(&caller, "10.9.9.9", 1).await, [401], "nobody has guessed from there");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_ends_what_is_being_fetched_with_it() {
    let relay = TestRelay::start(&format!("{HTTP}[limits]\nrequest_body_mib = 64\n")).await;
    let caller = relay.caller().await;
    let content = belay_tests::synced::noise(24 << 20, 3);
    let encoded = data_encoding::BASE64.encode(&content);
    let item = json!({ "items": [{ "key": "large.bin", "content_base64": encoded }] });
    let pushed = HttpCaller::good(caller.post("/v1/sync/knowledge/push", &item)).await;
    let revision = pushed["results"][0]["revision"].as_str().unwrap_or_else(|| panic!("{pushed}")).to_owned();
    // A socket that holds little, so that most of it is still to come.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut socket = socket.connect(relay.relay().http_addr().unwrap()).await.unwrap();
    let head = format!(
        "GET /v1/sync/content?revision={revision} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        caller.key
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut read = vec![0; 100_000];
    socket.read_exact(&mut read).await.unwrap();
    assert!(read.starts_with(b"HTTP/1.1 200"));
    relay.relay().admin().revoke_key(&caller.key_id).await.unwrap();
    let rest = timeout(PATIENCE, socket.read_to_end(&mut read)).await.expect("ends");
    assert!(read.len() < 16 << 20, "{rest:?}, {} bytes came", read.len());
    let (status, _) = HttpCaller::json(caller.get("/v1/status")).await;
    assert_eq!(status, 401);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_read_more_than_there_is_hears_so() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, HTTP).await;
    let caller = relay.caller().await;
    let script = Script { tokens: 5, ..Script::default() };
    let body = json!({ "request_id": "s-1", "query": script.as_message(), "max_tokens": 50 });
    let (_, whole) = HttpCaller::text(caller.post("/v1/stream", &body)).await;
    assert!(whole.contains("event: done"), "{whole}");
    let (status, told) = HttpCaller::text(caller.post("/v1/stream", &body).header("last-event-id", "100000")).await;
    assert_eq!(status, 200);
    assert!(told.contains("event: error") && !told.contains("event: done"), "{told}");
    let chat = json!({ "model": "gpt", "stream": true, "max_tokens": 50,
        "messages": [{ "role": "user", "content": script.as_message() }] });
    let ask = || caller.post("/v1/chat/completions", &chat).header("idempotency-key", "k-1");
    let (status, whole) = HttpCaller::text(ask()).await;
    assert!(status == 200 && whole.contains("[DONE]"), "{whole}");
    let (_, told) = HttpCaller::text(ask().header("last-event-id", "100000")).await;
    assert!(told.contains("error") && !told.contains("[DONE]"), "{told}");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_leaves_waits_for_its_answers() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, &format!("{HTTP}[timeouts]\ndrain_ms = 20000\n")).await;
    let caller = relay.caller().await;
    let script = Script { tokens: 40, pace_ms: 20, ..Script::default() };
    let stream = json!({ "query": script.as_message(), "max_tokens": 100 });
    let asked = caller.clone();
    let whole = json!({ "query": script.as_message(), "max_tokens": 100 });
    let answer = tokio::spawn(async move { HttpCaller::json(asked.post("/v1/escalate", &whole)).await });
    let mut read = caller.post("/v1/stream", &stream).send().await.unwrap();
    let mut text = String::from_utf8(read.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    eventually("both run", async || provider.counts().running == 2).await;
    let stopped = tokio::spawn(relay.stop());
    while let Some(more) = timeout(PATIENCE, read.chunk()).await.unwrap().unwrap() {
        text += std::str::from_utf8(&more).unwrap();
    }
    assert!(text.contains("event: done"), "{text}");
    let (status, answer) = answer.await.unwrap();
    assert_eq!((status, answer["tokens"]["output"].as_u64()), (200, Some(40)), "{answer}");
    stopped.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_nobody_can_have_signed_is_not_read() {
    let (relay, _dir) = crate::stripe::relay_at("http://127.0.0.1:9", "").await;
    let address = relay.relay().http_addr().unwrap();
    for signature in ["", "stripe-signature: v1=00\r\n", "stripe-signature: t=1,v1=00\r\n"] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        // Its body never comes.
        let head = format!("POST /webhooks/stripe HTTP/1.1\r\nhost: x\r\n{signature}content-length: 200000\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        let (began, mut start) = (Instant::now(), [0; 12]);
        timeout(PATIENCE, socket.read_exact(&mut start)).await.expect("in time").unwrap();
        assert_eq!(&start, b"HTTP/1.1 400", "{signature}");
        // A body that is waited for takes the whole of that time.
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_have_the_memory_that_there_is_and_no_more() {
    let relay =
        TestRelay::start(&format!("{HTTP}patience_s = 3\n[limits]\nmemory_mib = 24\nevent_logs_mib = 4\n")).await;
    let caller = relay.caller_of("acme", &[KeyScope::Read, KeyScope::Write]).await;
    let text = "words ".repeat(100_000);
    for number in 0..10 {
        let added = json!({ "session": "long", "role": "user", "content": text, "message_id": format!("m-{number}") });
        HttpCaller::good(caller.post("/v1/sessions/add-message", &added)).await;
    }
    let address = relay.relay().http_addr().unwrap();
    let head = format!(
        "GET /v1/sessions/export?session=long&format=markdown HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        caller.key
    );
    let (mut held, mut refused) = (vec![], 0);
    for _ in 0..10 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        let mut socket = socket.connect(address).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        timeout(PATIENCE, socket.read_exact(&mut start)).await.expect("in time").unwrap();
        match &start {
            b"HTTP/1.1 200" => held.push(socket),
            b"HTTP/1.1 503" => refused += 1,
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    assert!(refused > 0 && !held.is_empty(), "{} held, {refused} refused", held.len());
    drop(held);
    let export = || caller.get("/v1/sessions/export?session=long&format=markdown");
    eventually("there is room again", async || HttpCaller::text(export()).await.0 == 200).await;
    relay.stop().await;
}

/// A file of one object in PEM.
fn pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_certificate_is_shown_over_both_versions_of_http() {
    let dir = tempfile::tempdir().unwrap();
    let now_ms = belay_transport::env::Clock::now_ms(&belay_transport::env::SystemClock);
    let authority = Authority::load_or_create(&dir.path().join("ca"), now_ms).unwrap();
    let (certificate, key) =
        belay_certs::issue::server(&authority, &["localhost", "127.0.0.1"], [7; 12], now_ms).unwrap();
    let (at_certificate, at_key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&at_certificate, pem("CERTIFICATE", &certificate)).unwrap();
    std::fs::write(&at_key, pem("PRIVATE KEY", key.secret_der())).unwrap();
    let config = format!("{HTTP}cert_file = {at_certificate:?}\nkey_file = {at_key:?}\n");
    let mut relay = TestRelay::start(&config).await;
    let url = relay.url();
    assert!(url.starts_with("https://"), "{url}");
    let client = || {
        let root = reqwest::Certificate::from_der(authority.certificate()).unwrap();
        reqwest::Client::builder().no_proxy().tls_certs_only([root])
    };
    let kept = client().build().unwrap();
    let health = async |client: &reqwest::Client| client.get(format!("{url}/health")).send().await;
    let seen = async |client: reqwest::ClientBuilder| {
        let answer = health(&client.build().unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers().contains_key("strict-transport-security"));
        answer.version()
    };
    assert_eq!(seen(client()).await, reqwest::Version::HTTP_2);
    assert_eq!(seen(client().http1_only()).await, reqwest::Version::HTTP_11);
    // Whoever trusts somebody else is not served.
    assert!(health(&reqwest::Client::builder().no_proxy().build().unwrap()).await.is_err());

    // Another certificate in the same files is shown to whoever comes from then on, asked for or not.
    health(&kept).await.unwrap();
    let other = Authority::load_or_create(&dir.path().join("other"), now_ms).unwrap();
    let (certificate, key) = belay_certs::issue::server(&other, &["127.0.0.1"], [8; 12], now_ms).unwrap();
    std::fs::write(&at_certificate, "no certificate").unwrap();
    let refused = relay.reload(|text| text).await.unwrap_err().to_string();
    assert!(refused.contains("cert.pem") && refused.contains("nothing has changed"), "{refused}");
    assert_eq!(seen(client()).await, reqwest::Version::HTTP_2);
    std::fs::write(&at_key, pem("PRIVATE KEY", key.secret_der())).unwrap();
    std::fs::write(&at_certificate, pem("CERTIFICATE", &certificate)).unwrap();
    let theirs = || {
        let root = reqwest::Certificate::from_der(other.certificate()).unwrap();
        reqwest::Client::builder().no_proxy().tls_certs_only([root]).build().unwrap()
    };
    eventually("the files are looked at", async || health(&theirs()).await.is_ok()).await;
    assert!(health(&client().build().unwrap()).await.is_err());
    assert_eq!(health(&kept).await.unwrap().status(), 200, "a connection that stands goes on");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_providers_go_where_the_operator_said_and_nowhere_else() {
    let (provider, elsewhere) = (FakeProvider::start().await.unwrap(), FakeProvider::start().await.unwrap());
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at_proxy = format!("http://{}", proxy.local_addr().unwrap());
    let url = provider.url();
    let config = format!(
        "{HTTP}[providers.p]\nkind = \"openai\"\nurl = \"{url}/v1\"\nprivate = true\n[models.m]\nprovider = \"p\"\n\
         context_tokens = 1000\nmax_output_tokens = 100\nprice = {{ input = \"1\", output = \"1\" }}\n[aliases]\nauto = \"m\"\n"
    );
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let env: Vec<(&str, &str)> = names.iter().map(|name| (*name, at_proxy.as_str())).collect();
    let relay = tokio::task::block_in_place(|| Belayd::start_with_env(&config, &env)).unwrap();
    relay.run(&["tenant", "create", "acme", "--credit", "5"]).unwrap();
    let made = relay.run(&["key", "create", "acme", "--scope", "escalate"]).unwrap();
    let at = format!("{}/v1/chat/completions", relay.process().hello["http"].as_str().unwrap());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = |words: String| {
        let body = json!({ "model": "m", "max_tokens": 10, "messages": [{ "role": "user", "content": words }] });
        http.post(&at).bearer_auth(made["secret"].as_str().unwrap()).body(body.to_string())
    };
    let (status, answer) = HttpCaller::text(ask(Script { tokens: 3, ..Script::default() }.as_message())).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(provider.counts().requests, 1);
    for status in [301, 302, 307, 308] {
        let headers = [("location".to_owned(), format!("{}/v1/chat/completions", elsewhere.url()))].into();
        let moved = Script { status, headers, body: Some("moved".into()), ..Script::default() };
        let (told, answer) = HttpCaller::text(ask(moved.as_message())).await;
        assert_ne!(told, 200, "{answer}");
    }
    assert_eq!(elsewhere.counts().requests, 0, "a redirect is followed");
    assert!(timeout(Duration::ZERO, proxy.accept()).await.is_err(), "the environment's proxy is asked");
    tokio::task::block_in_place(|| drop(relay));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_minute_is_told_and_when_there_is_more() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, &format!("{HTTP}[limits]\nrequests_per_minute = 2\n")).await;
    let caller = relay.caller().await;
    let words = Script { tokens: 3, ..Script::default() }.as_message();
    let body = json!({ "model": "gpt", "max_tokens": 10, "messages": [{ "role": "user", "content": words }] });
    let mut left = vec![];
    for _ in 0..2 {
        let answer = caller.post("/v1/chat/completions", &body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        left.push(answer.headers()["belay-remaining-requests"].to_str().unwrap().to_owned());
        answer.bytes().await.unwrap();
    }
    assert_eq!(left, ["1", "0"]);
    for path in ["/v1/chat/completions", "/v1/escalate"] {
        let body = if path.ends_with("escalate") { json!({ "query": "hi" }) } else { body.clone() };
        let refused = caller.post(path, &body).send().await.unwrap();
        assert_eq!(refused.status(), 429, "{path}");
        let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{path}: {wait}");
    }
    relay.verify().await;
    relay.stop().await;
}
