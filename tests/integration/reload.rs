//! Another configuration takes effect while everything goes on, or nothing of it does.

use belay_protocol::message::{FailureCode, Outcome};
use belay_relay::config::Difference;
use belay_relay::store::central::keys::KeyScope;
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::http::HttpCaller;
use belay_tests::procs::Belayd;
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, eventually};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";
const PRICE: &str = "price = { input = \"3\", output = \"15\" }";
const DEARER: &str = "price = { input = \"4\", output = \"20\" }";

fn toggled(text: &str, one: &str, other: &str) -> String {
    if text.contains(one) { text.replace(one, other) } else { text.replace(other, one) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_reloads_under_load_fail_no_request_and_close_no_tunnel() {
    let mut relay = TestRelay::start(HTTP).await;
    let (first, second) = (relay.client().await, relay.client().await);
    let caller = relay.caller_of("acme", &[KeyScope::Escalate]).await;
    // What the question costs under either price list.
    let mut costs = BTreeSet::new();
    for _ in 0..2 {
        costs.insert(first.ask("how are you").await.end.unwrap().cost.0);
        relay.reload(|text| toggled(&text, PRICE, DEARER)).await.unwrap();
    }
    assert_eq!(costs.len(), 2);
    let since = |relay: &TestRelay| -> BTreeSet<(String, u64)> {
        let tunnels = relay.relay().admin().status().tunnels;
        tunnels.into_iter().map(|tunnel| (tunnel.device.to_string(), tunnel.since_ms)).collect()
    };
    let before = since(&relay);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut asking = JoinSet::new();
    for client in [first, second] {
        let (stop, answered, costs) = (Arc::clone(&stop), Arc::clone(&answered), costs.clone());
        asking.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = client.ask("how are you").await;
                let end = answer.end.unwrap_or_else(|| panic!("{:?}", answer.failed));
                assert_eq!((end.outcome, answer.resumed), (Outcome::COMPLETE, 0));
                assert!(costs.contains(&end.cost.0), "{} is no price of either list", end.cost);
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Some(client)
        });
    }
    let (over_http, by_http) = (Arc::clone(&stop), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&by_http);
    asking.spawn(async move {
        let body = serde_json::json!({ "model": "auto", "stream": true,
            "messages": [{ "role": "user", "content": "how are you" }] });
        while !over_http.load(Ordering::Relaxed) {
            let (status, text) = HttpCaller::text(caller.post("/v1/chat/completions", &body)).await;
            assert!(status == 200 && text.contains("[DONE]"), "{status} {text}");
            counted.fetch_add(1, Ordering::Relaxed);
        }
        None
    });
    for round in 0..100 {
        eventually("requests are answered meanwhile", async || answered.load(Ordering::Relaxed) >= round).await;
        let difference = relay
            .reload(|text| {
                let text = toggled(&text, PRICE, DEARER);
                let text = toggled(&text, "pace_ms = 1\n", "pace_ms = 0\n");
                toggled(&text, "requests_at_once = 1000", "requests_at_once = 999")
            })
            .await
            .unwrap();
        assert_eq!(difference.applied.len(), 4, "{difference:?}");
    }
    stop.store(true, Ordering::Relaxed);
    // Their tunnels live as long as they do.
    let clients = asking.join_all().await;
    let (by_tunnel, by_http) = (answered.load(Ordering::Relaxed), by_http.load(Ordering::Relaxed));
    eprintln!("{by_tunnel} requests by two tunnels and {by_http} over HTTP beside 100 reloads");
    assert!(by_tunnel >= 100 && by_http > 10, "{by_tunnel} {by_http}");
    assert_eq!(since(&relay), before);
    drop(clients);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_limits_and_providers_come_and_go() {
    let provider = FakeProvider::start().await.unwrap();
    let mut relay = TestRelay::start(HTTP).await;
    let client = relay.client().await;
    // A request that runs meanwhile ends under what it began with, at a provider that is not there any more.
    let slow = Script { pace_ms: 20, ..Script::tokens(50) };
    let url = provider.url();
    let added = format!(
        "[providers.p]\nkind = \"openai\"\nurl = \"{url}/v1\"\nprivate = true\n[models.m]\nprovider = \"p\"\n\
         context_tokens = 1000\nmax_output_tokens = 100\n{PRICE}\n"
    );
    let difference = relay.reload(|text| text + &added).await.unwrap();
    assert!(difference.applied.iter().any(|key| key == "models.m.provider"), "{difference:?}");
    let mut asked = client.prompt(&slow.as_message());
    asked.model = "m".into();
    let running = tokio::spawn({
        let client = Arc::clone(&client.client);
        async move { client.escalate(asked, PATIENCE).await.unwrap().collect().await.unwrap() }
    });
    eventually("the request runs", async || provider.counts().requests == 1).await;
    relay.reload(|text| text.replace(&added, "")).await.unwrap();
    let mut again = client.prompt("hello");
    again.model = "m".into();
    assert_eq!(client.send(again).await.failed.unwrap().code, FailureCode::UNKNOWN_MODEL);
    let ended = running.await.unwrap();
    assert_eq!(ended.end.unwrap().outcome, Outcome::COMPLETE);

    relay.reload(|text| text.replace("requests_per_minute = 100000", "requests_per_minute = 1")).await.unwrap();
    let refused =
        async || client.ask("hello").await.failed.is_some_and(|failed| failed.code == FailureCode::RATE_LIMITED);
    eventually("the smaller rate holds", refused).await;
    relay.reload(|text| text.replace("requests_per_minute = 1\n", "requests_per_minute = 100000\n")).await.unwrap();
    assert!(client.ask("hello").await.end.is_some());
    relay.reload(|text| text.replace("[limits]\n", "[limits]\nmemory_mib = 1\n")).await.unwrap();
    // Sixteen of 64 KiB would be a MiB.
    let all = at_once(&client, 40).await;
    assert!(all.contains(&Some(FailureCode::OVERLOADED)), "{all:?}");
    relay.verify().await;
    relay.stop().await;
}

/// So many at once, and why those failed that did.
async fn at_once(client: &TestClient, count: usize) -> Vec<Option<FailureCode>> {
    let mut all = JoinSet::new();
    for _ in 0..count {
        let (client, request) = (Arc::clone(&client.client), client.prompt("hello"));
        all.spawn(async move {
            let answer = client.escalate(request, PATIENCE).await.unwrap().collect().await.unwrap();
            answer.failed.map(|failed| failed.code)
        });
    }
    all.join_all().await
}

#[test]
fn what_cannot_be_used_changes_nothing_and_is_shown() {
    let config = "[providers.demo]\nkind = \"demo\"\n[models.demo]\nprovider = \"demo\"\ncontext_tokens = 32000\n\
         max_output_tokens = 4096\nprice = { input = \"3\", output = \"15\" }\n[log]\nfilter = \"info\"\n";
    let relay = Belayd::start(config).unwrap();
    let reload = || relay.command(&["reload"]).unwrap();
    let change = |from: &str, to: &str| {
        let text = std::fs::read_to_string(relay.config_path()).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(relay.config_path(), text.replacen(from, to, 1)).unwrap();
    };
    let nothing: Difference = serde_json::from_value(reload().json().unwrap()).unwrap();
    assert_eq!(nothing, Difference::default());

    // Text that does not parse is found by the command, values that make no sense by either.
    change("[log]", "[lgo]");
    let ran = reload();
    assert_eq!(ran.code, Some(64), "{}", ran.stderr);
    assert!(ran.stderr.contains("did you mean `log`?"), "{}", ran.stderr);
    change("[lgo]", "[log]");
    change("kind = \"demo\"", "kind = \"openai\"\nkey_file = \"nowhere.txt\"");
    let ran = reload();
    assert_eq!(ran.code, Some(64), "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing has changed") && ran.stderr.contains("nowhere.txt"), "{}", ran.stderr);
    let status = relay.run(&["status"]).unwrap();
    assert!(status["reload"]["error"].as_str().unwrap().contains("nowhere.txt"), "{status}");

    // The signal does the same, and the log says what came of it.
    relay.process().signal(Signal::HUP);
    logged(&relay, "the new configuration is not taken", 2);
    change("kind = \"openai\"\nkey_file = \"nowhere.txt\"", "kind = \"demo\"");
    change("filter = \"info\"", "filter = \"debug\"");
    change("127.0.0.1:0", "127.0.0.1:1");
    let done: Difference = serde_json::from_value(reload().json().unwrap()).unwrap();
    assert_eq!((done.applied.join(" "), done.needs_restart.join(" ")), ("log.filter".into(), "listen.quic".into()));
    let status = relay.run(&["status"]).unwrap();
    assert_eq!(
        (&status["reload"]["error"], &status["reload"]["needs_restart"][0]),
        (&serde_json::Value::Null, &"listen.quic".into())
    );
    // What runs goes on where it was.
    assert_eq!(status["listen"].as_str().unwrap(), relay.address().unwrap().to_string());
    assert!(!relay.log().contains("handshake failed"));
    let mut stranger = std::net::TcpStream::connect(relay.address().unwrap()).unwrap();
    std::io::Write::write_all(&mut stranger, &[0; 100]).unwrap();
    logged(&relay, "handshake failed", 1);
}

#[test]
fn the_rules_of_an_environment_hold_for_as_long_as_it_runs() {
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "sk-a-real-one").unwrap();
    let config = format!(
        "environment = \"production\"\n[providers.p]\nkind = \"openai\"\nkey_file = {:?}\n",
        key.path().display().to_string()
    );
    let relay = Belayd::start(&config).unwrap();
    let text = std::fs::read_to_string(relay.config_path()).unwrap();
    let other = text.replace("\"production\"", "\"development\"").replace("kind = \"openai\"", "kind = \"demo\"");
    std::fs::write(relay.config_path(), other).unwrap();
    let ran = relay.command(&["reload"]).unwrap();
    assert_eq!(ran.code, Some(64), "{} {}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("not for production"), "{}", ran.stderr);
}

/// Waits until that stands in the log so often.
fn logged(relay: &Belayd, words: &str, times: usize) {
    let until = Instant::now() + PATIENCE;
    while relay.log().matches(words).count() < times {
        assert!(Instant::now() < until, "{words:?} is not logged: {}", relay.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}
