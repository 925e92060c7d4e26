//! Figures for those who watch relays: all are explained, and all move.

use crate::scripted::Scripted;
use belay_client::escalation::EscalationRequest;
use belay_client::{Client, Options};
use belay_protocol::message::{Dialect, FailureCode};
use belay_protocol::money::NanoUsd;
use belay_relay::Overrides;
use belay_relay::store::central::keys::KeyScope;
use belay_relay::store::ledger::money::Operation;
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::http::HttpCaller;
use belay_tests::procs::Belayd;
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, eventually, tenant};
use belay_tests::synced::Synced;
use belay_transport::env::Env;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Of every metric, the sum of its series; of histograms, the count.
fn sums(text: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        if name.ends_with("_bucket") || name.ends_with("_sum") {
            continue;
        }
        *sums.entry(name.trim_end_matches("_count").to_owned()).or_default() += value.parse::<f64>().unwrap();
    }
    sums
}

fn docs(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap()
}

/// All names of metrics that stand in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("belay_"));
    names.map(|name| name.trim_end_matches("_bucket").to_owned()).collect()
}

/// A request for the model that is scripted by its message.
fn asked(client: &TestClient, script: &Script) -> EscalationRequest {
    EscalationRequest { model: "m".into(), ..client.prompt(&script.as_message()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_explained_and_moves() {
    let provider = FakeProvider::start().await.unwrap();
    let huge =
        Scripted::events(&[r#"{"choices":[],"usage":{"prompt_tokens":9000000,"completion_tokens":1}}"#, "[DONE]"]);
    let overrides =
        Overrides { providers: [("huge".to_owned(), Arc::clone(&huge) as _)].into(), ..Overrides::default() };
    let model = |name: &str, provider: &str| {
        format!(
            "[models.{name}]\nprovider = \"{provider}\"\ncontext_tokens = 32000\nmax_output_tokens = 4096\n\
             price = {{ input = \"3\", output = \"15\" }}\n"
        )
    };
    let config = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\ntls = \"own\"\n[traces]\nendpoint = \"http://127.0.0.1:1\"\n[timeouts]\nheartbeat_ms = 100\nfirst_event_ms = 5000\n\
         [providers.p]\nkind = \"openai\"\nurl = \"{}/v1\"\nprivate = true\n{}\
         [providers.huge]\nkind = \"demo\"\n{}",
        provider.url(),
        model("m", "p"),
        model("huge", "huge"),
    );
    let mut relay = TestRelay::with(&config, overrides).await;
    let (synced, client) = (Synced::enrol(&relay).await, relay.client().await);
    relay.client().await.client.close().await;

    // What ends well, what the provider does not tell the usage of, what is refused by the book and by the provider.
    assert!(client.send(asked(&client, &Script::tokens(5))).await.end.is_some());
    let untold = Script { no_usage: true, ..Script::tokens(20) };
    assert!(client.send(asked(&client, &untold)).await.end.unwrap().estimated);
    let unknown = EscalationRequest { model: "nobody".into(), ..client.prompt("hello") };
    assert_eq!(client.send(unknown).await.failed.unwrap().code, FailureCode::UNKNOWN_MODEL);
    for _ in 0..6 {
        client.send(asked(&client, &Script::refusal(500, None))).await;
    }
    let ill = relay.relay().admin().metrics();
    assert!(ill.contains("belay_provider_ill{provider=\"p\",model=\"m\"} 1\n"), "{ill}");
    // What nobody's balance covers.
    let admin = relay.relay().admin();
    admin.create_tenant(tenant("poor")).await.unwrap();
    admin.operate(&tenant("poor"), Operation::Credit, NanoUsd(100_000_000), None, None).await.unwrap();
    let poor = relay.client_of("poor").await;
    let ask = r#"{"model":"huge","stream":true,"max_tokens":50,"messages":[{"role":"user","content":"hi"}]}"#;
    let id = poor.client.request_id();
    let end = poor.send(EscalationRequest::new(id, Dialect::OPENAI_CHAT, "huge", ask.as_bytes().to_vec())).await.end;
    assert_eq!(end.unwrap().balance, NanoUsd::ZERO);
    // Documents, one with parts; over HTTP; and again with another configuration.
    synced.write("a.md", vec![b'x'; 300_000]);
    synced.sync_all().await;
    let other = Synced::enrol(&relay).await;
    other.sync_all().await;
    let caller = relay.caller_of("acme", &[KeyScope::Read]).await;
    let root = reqwest::Certificate::from_der(&client.client.identity().ca_der.0).unwrap();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([root]).build().unwrap();
    let (status, _) = HttpCaller::text(http.get(format!("{}/health", caller.url))).await;
    assert_eq!(status, 200);
    relay.reload(|text| text.replace("heartbeat_ms = 100\n", "heartbeat_ms = 101\n")).await.unwrap();

    // An answer whose reader has gone and comes back, while another runs.
    let (identity, key) = client.state.load().unwrap();
    let start = || Client::start(Env::system(), identity.clone(), &key, Options::default()).unwrap();
    let leaving = start();
    let request = asked(&client, &Script { pace_ms: 2, ..Script::tokens(50) });
    let id = request.request_id;
    let mut read = leaving.escalate(request, PATIENCE).await.unwrap();
    for _ in 0..3 {
        read.next().await.unwrap();
    }
    leaving.close().await;
    drop(read);
    eventually("the answer waits", async || relay.relay().admin().status().waiting_answers == 1).await;
    let slow = asked(&client, &Script { pace_ms: 5, ..Script::tokens(2000) });
    let mut running = client.client.escalate(slow, PATIENCE).await.unwrap();
    for _ in 0..3 {
        running.next().await.unwrap();
    }
    let seen = sums(&relay.relay().admin().metrics());
    for gauge in
        ["belay_answers_waiting", "belay_event_log_bytes", "belay_requests_running", "belay_money_held_nanousd"]
    {
        assert!(seen[gauge] > 0.0, "{gauge}: {seen:?}");
    }
    running.cancel("enough").await.unwrap();
    let back = start();
    back.resume(id, PATIENCE).await.unwrap().collect().await.unwrap();

    let unmoved = || {
        let seen = sums(&relay.relay().admin().metrics());
        // At rest these are back where they were; they were seen above.
        let rest =
            ["belay_answers_waiting", "belay_event_log_bytes", "belay_requests_running", "belay_money_held_nanousd"];
        let still = |(name, value): (String, f64)| (value <= 0.0 && !rest.contains(&name.as_str())).then_some(name);
        // Nothing waits for the store but for a moment.
        seen.into_iter().filter_map(still).filter(|name| name != "belay_store_queue").collect::<Vec<_>>()
    };
    eventually("every metric moves", async || {
        let unmoved = unmoved();
        if !unmoved.is_empty() {
            eprintln!("still at nothing: {unmoved:?}");
        }
        unmoved.is_empty()
    })
    .await;
    let seen = || sums(&relay.relay().admin().metrics());
    eventually("all that was held is free, and nothing waits", async || {
        let seen = seen();
        seen["belay_money_held_nanousd"] == 0.0 && seen["belay_store_queue"] == 0.0
    })
    .await;

    // All that there is is explained, and all that is explained or drawn is there.
    let text = relay.relay().admin().metrics();
    let there: BTreeSet<String> = sums(&ill).into_keys().chain(sums(&text).into_keys()).collect();
    assert_eq!(named(&docs("METRICS.md")), there);
    for name in ["grafana.json", "alerts.yml"] {
        let unknown: Vec<String> = named(&docs(name)).difference(&there).cloned().collect();
        assert_eq!(unknown, Vec::<String>::new(), "{name}");
    }
    assert_eq!(named(&docs("grafana.json")), there, "each has its place on the dashboard");
    // No caller can make a series: neither names of tenants nor of models that are not there.
    for word in ["acme", "poor", "nobody", client.client.identity().device.as_str()] {
        assert!(!text.contains(word), "{word}");
    }
    back.close().await;
    relay.stop().await;
}

#[test]
fn over_tcp_they_are_for_whoever_has_the_token() {
    let relay = Belayd::start("[admin]\nlisten = \"127.0.0.1:0\"\n[providers.demo]\nkind = \"demo\"\n").unwrap();
    let address = relay.process().hello["admin"].as_str().unwrap().to_owned();
    let token = std::fs::read_to_string(relay.dir().join("state/admin.token")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let ask = |path: &str| http.get(format!("http://{address}{path}"));
        let status = async |request: reqwest::RequestBuilder| HttpCaller::text(request).await;
        for path in ["/metrics", "/status", "/tenants"] {
            assert_eq!(status(ask(path)).await.0, 401, "{path}");
            assert_eq!(status(ask(path).bearer_auth("wrong")).await.0, 401, "{path}");
            assert_eq!(
                status(ask(path).bearer_auth(token.trim()).header("host", "evil.example")).await.0,
                403,
                "{path}"
            );
            assert_eq!(status(ask(path).bearer_auth(token.trim())).await.0, 200, "{path}");
        }
        let (_, text) = status(ask("/metrics").bearer_auth(token.trim())).await;
        assert!(text.contains("belay_build") && text.ends_with("# EOF\n"), "{text}");
    });
    let other = Belayd::start("[admin]\nlisten = \"0.0.0.0:0\"\n").unwrap().process().hello["error"].to_string();
    assert!(other.contains("admin.listen") && other.contains("other machines"), "{other}");
}
