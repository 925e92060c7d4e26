//! Tokens beside bulk, on a line that bulk alone would fill.

use belay_client::Answer;
use belay_client::escalation::EscalationRequest;
use belay_protocol::message::{Dialect, Outcome};
use belay_tests::clock::{monotonic_ns, stamps};
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::link::{self, Direction, Link};
use belay_tests::relay::{PATIENCE, TestClient, TestRelay};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::timeout;

const TOKENS: u64 = 400;
const BULK_STREAMS: usize = 12;

fn scripted(client: &TestClient, stream: bool, script: &Script) -> EscalationRequest {
    let body = serde_json::json!({
        "model": "x", "stream": stream, "messages": [{ "role": "user", "content": script.as_message() }],
    });
    let request = EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "line", body.to_string());
    EscalationRequest { stream, ..request }
}

/// What else the machine does can only make it worse: the best of so many counts.
const ATTEMPTS: usize = 3;

/// How long tokens travelled, sorted, in nanoseconds: one every 20 ms.
async fn travel(client: &TestClient) -> Vec<u64> {
    let script = Script { stamp: true, pace_ms: 20, ..Script::tokens(TOKENS) };
    let mut running = client.client.escalate(scripted(client, true, &script), PATIENCE).await.expect("sent");
    let mut took = vec![];
    loop {
        match timeout(PATIENCE, running.next()).await.expect("goes on").expect("no error") {
            Some(Answer::Event(event)) => {
                let now = monotonic_ns();
                took.extend(stamps(&event).map(|sent| now - sent));
            }
            Some(Answer::End(end)) => {
                assert_eq!(end.outcome, Outcome::COMPLETE, "{}", end.message);
                assert_eq!(took.len() as u64, TOKENS);
                took.sort_unstable();
                return took;
            }
            Some(Answer::Head(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn p95(sorted: &[u64]) -> Duration {
    Duration::from_nanos(sorted[sorted.len() * 95 / 100])
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_flow_beside_twelve_streams_of_bulk() {
    let provider = FakeProvider::start().await.unwrap();
    let model = format!(
        "[providers.fake]\nkind = \"openai\"\nurl = \"{}\"\n[models.line]\nprovider = \"fake\"\ncontext_tokens = 200000\n\
         max_output_tokens = 8192\nprice = {{ input = \"0.01\", output = \"0.01\" }}\n",
        provider.url()
    );
    let relay = TestRelay::start(&model).await;
    let line = Direction { rate_bps: Some(20_000_000), ..Direction::delay(Duration::from_millis(20)) };
    let link = Link::start(relay.address(), link::seed(), line).unwrap();
    let client = Arc::new(relay.client_through(link.address()).await);
    // Whole answers of a megabyte, one after the other on each of the streams.
    let content = "word ".repeat(200_000);
    let whole = serde_json::json!({
        "id": "x", "object": "chat.completion",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": content }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 5, "completion_tokens": 5 },
    })
    .to_string();
    provider.set_script(Script { body: Some(whole), ..Script::default() });
    let mut best = f64::MAX;
    for _ in 0..ATTEMPTS {
        let ratio = beside_bulk(&client, &link).await;
        best = best.min(ratio);
        if best <= 1.3 {
            break;
        }
    }
    assert!(best <= 1.3, "the p95 beside bulk is {best:.2} times that without");
    relay.stop().await;
}

/// The p95 beside bulk as a multiple of that without.
async fn beside_bulk(client: &Arc<TestClient>, link: &Link) -> f64 {
    let alone = p95(&travel(client).await);
    let mut bulk = JoinSet::new();
    for _ in 0..BULK_STREAMS {
        let client = Arc::clone(client);
        bulk.spawn(async move {
            loop {
                let body = r#"{"model":"x","messages":[{"role":"user","content":"all of it"}]}"#;
                let request = EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "line", body);
                let request = EscalationRequest { stream: false, ..request };
                let running = client.client.escalate(request, PATIENCE).await.expect("sent");
                timeout(PATIENCE, running.collect()).await.expect("in time").expect("no error");
            }
        });
    }
    // Until the line is full.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (began, before) = (Instant::now(), link.stats().down.bytes);
    let beside = p95(&travel(client).await);
    let rate = (link.stats().down.bytes - before) as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e6;
    bulk.shutdown().await;
    eprintln!("p95 alone {alone:?}, beside bulk {beside:?} at {rate:.1} Mbit/s; {link:?}");
    assert!(rate > 10.0, "bulk did not fill the line: {rate:.1} Mbit/s");
    beside.as_secs_f64() / alone.as_secs_f64()
}
