//! The relay's HTTP side: questions in belay's own words, money, and who may ask.

use crate::gateway::relay_for;
use belay_relay::store::central::keys::KeyScope;
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::http::{HTTP, HttpCaller};
use belay_tests::relay::{PATIENCE, TestRelay, eventually, tenant};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Events of a stream: id, name, data.
fn events(text: &str) -> Vec<(Option<u64>, String, Value)> {
    let line = |block: &str, name: &str| {
        block.lines().find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()))
    };
    let blocks = text.split("\n\n").filter(|block| block.lines().any(|line| line.starts_with("data:")));
    blocks
        .map(|block| {
            let data = serde_json::from_str(&line(block, "data:").unwrap()).unwrap();
            (line(block, "id:").and_then(|id| id.parse().ok()), line(block, "event:").unwrap_or_default(), data)
        })
        .collect()
}

fn content(events: &[(Option<u64>, String, Value)]) -> String {
    let pieces = events.iter().filter(|(_, name, _)| name == "content");
    pieces.map(|(.., data)| data["content"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_question_of_the_deployment_before_is_answered_and_charged_once() {
    let relay = TestRelay::start(HTTP).await;
    let caller = relay.caller().await;
    // As curl sends it, with a content type of its own choice.
    let body = json!({ "request_id": "test-123", "query": "What is 2+2?", "max_tokens": 100 });
    let ask = || caller.post("/v1/escalate", &body).header("content-type", "application/x-www-form-urlencoded");
    let answer = HttpCaller::good(ask()).await;
    assert_eq!(answer["request_id"], "test-123");
    assert!(answer["content"].as_str().unwrap().len() > 10, "{answer}");
    assert_eq!(answer["model_used"], "demo-1");
    assert_eq!(
        answer["tokens_used"].as_u64().unwrap(),
        answer["tokens"]["input"].as_u64().unwrap() + answer["tokens"]["output"].as_u64().unwrap()
    );
    let nanos = answer["cost_nano_usd"].as_i64().unwrap();
    assert!(nanos > 0);
    assert!((answer["cost_cents"].as_f64().unwrap() - nanos as f64 / 1e7).abs() < 1e-9);
    assert!(answer["latency_ms"].is_u64());
    assert_eq!(HttpCaller::good(ask()).await, answer, "the same request is the same answer");
    let balance = HttpCaller::good(caller.get("/v1/billing/balance")).await;
    assert_eq!(balance["balance_nano_usd"].as_i64().unwrap(), 5_000_000_000 - nanos);
    let other = json!({ "request_id": "test-123", "query": "Another question" });
    let (status, refused) = HttpCaller::json(caller.post("/v1/escalate", &other)).await;
    assert_eq!((status, &refused["error"]["code"]), (422, &json!("conflict")));
    // Another caller's name is another request.
    let second = relay.caller().await;
    let answer = HttpCaller::good(second.post("/v1/escalate", &other)).await;
    assert_eq!(answer["request_id"], "test-123");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_with_a_question_reaches_the_provider_and_old_names_find_their_model() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, HTTP).await;
    let caller = relay.caller().await;
    let question = json!({
        "query": Script { tokens: 3, ..Script::default() }.as_message(),
        "context": {
            "framing": "be kind", "constraints": ["no lists"],
            "knowledge": ["plain text", { "source": "notes.md", "content": "sourced text", "score": 0.5 }],
            "history": [{ "role": "user", "content": "before" }, { "role": "assistant", "content": "indeed" }],
        },
        "model_preference": "claude", "max_tokens": 50, "stream": false,
    });
    let answer = HttpCaller::good(caller.post("/v1/escalate", &question)).await;
    assert_eq!(answer["provider"], "anthropic");
    let sent = provider.last().json();
    let system = sent["system"].as_str().unwrap();
    for part in ["be kind", "no lists", "plain text", "sourced text", "notes.md"] {
        assert!(system.contains(part), "{part}: {system}");
    }
    assert_eq!(
        (&sent["messages"][0]["content"], &sent["messages"][1]["content"]),
        (&json!("before"), &json!("indeed"))
    );
    assert_eq!(sent["max_tokens"], 50);
    for (preference, served) in [("gpt4", "openai"), ("auto", "openai"), ("gpt", "openai"), ("claude", "anthropic")] {
        let question = json!({ "query": "hi", "model_preference": preference });
        let answer = HttpCaller::good(caller.post("/v1/escalate", &question)).await;
        assert_eq!(answer["provider"], served, "{preference}");
    }
    let (status, refused) =
        HttpCaller::json(caller.post("/v1/escalate", &json!({ "query": "hi", "model_preference": "nothing" }))).await;
    assert_eq!((status, &refused["error"]["code"]), (404, &json!("unknown_model")));
    // In a session, twice.
    for _ in 0..2 {
        let question = json!({ "query": "hi", "session_id": "work" });
        HttpCaller::good(caller.post("/v1/escalate", &question)).await;
    }
    assert_eq!(provider.last().json()["messages"].as_array().unwrap().len(), 3);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_content_and_a_closing_event_and_goes_on_after_the_last_one_that_was_read() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, HTTP).await;
    let caller = relay.caller().await;
    let script = Script { tokens: 60, pace_ms: 5, ..Script::default() };
    let body = json!({ "request_id": "s-1", "query": script.as_message(), "max_tokens": 500 });
    let mut first = caller.post("/v1/stream", &body).send().await.unwrap();
    assert!(first.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let mut read = String::new();
    while events(&read).len() < 5 {
        read += std::str::from_utf8(&first.chunk().await.unwrap().expect("more")).unwrap();
    }
    // Only whole events count.
    read.truncate(read.rfind("\n\n").unwrap() + 2);
    drop(first);
    let seen = events(&read);
    let last = seen.last().unwrap().0.unwrap();
    let again = caller.post("/v1/stream", &body).header("last-event-id", last.to_string());
    let (status, rest) = HttpCaller::text(again).await;
    assert_eq!(status, 200);
    let rest = events(&rest);
    assert!(rest[0].0.unwrap() > last);
    let (_, whole) = HttpCaller::text(caller.post("/v1/stream", &body)).await;
    let whole = events(&whole);
    assert_eq!(content(&seen) + &content(&rest), content(&whole));
    let (_, name, done) = whole.last().unwrap();
    assert_eq!(name, "done");
    assert_eq!(done["provider"], "openai");
    assert!(done["cost_nano_usd"].as_i64().unwrap() > 0);
    assert_eq!(provider.counts().requests, 1, "it ran once");
    // What fails in the middle is an event.
    let broken = Script { tokens: 10, cut_after: Some(4), ..Script::default() };
    let (status, text) = HttpCaller::text(caller.post("/v1/stream", &json!({ "query": broken.as_message() }))).await;
    let told = events(&text);
    assert_eq!(status, 200);
    assert_eq!(told.last().unwrap().1, "error", "{text}");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_cancels_unless_it_has_named_its_request() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, HTTP).await;
    let caller = relay.caller().await;
    let endless = Script { endless: true, pace_ms: 5, ..Script::default() }.as_message();
    let mut leaving = caller.post("/v1/stream", &json!({ "query": endless })).send().await.unwrap();
    leaving.chunk().await.unwrap().expect("events");
    drop(leaving);
    provider.wait_until("the call ends", PATIENCE, |counts| counts.cancelled == 1).await;
    let named = json!({ "query": endless, "request_id": "stays" });
    let mut leaving = caller.post("/v1/stream", &named).send().await.unwrap();
    leaving.chunk().await.unwrap().expect("events");
    drop(leaving);
    // Its key is revoked: what runs under it ends, though nobody reads it.
    let before = Instant::now();
    relay.relay().admin().revoke_key(&caller.key_id).await.unwrap();
    provider.wait_until("the call ends", Duration::from_secs(1), |counts| counts.cancelled == 2).await;
    assert!(before.elapsed() < Duration::from_secs(1));
    let (status, refused) = HttpCaller::json(caller.get("/v1/status")).await;
    assert_eq!((status, &refused["error"]["code"]), (401, &json!("unauthenticated")));
    eventually("all is settled", async || relay.relay().admin().status().running_requests == 0).await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_gives_what_it_is_for_and_a_suspended_tenant_nothing() {
    let relay = TestRelay::start(HTTP).await;
    let reads = relay.caller_of("acme", &[KeyScope::Read]).await;
    let asks = relay.caller_of("acme", &[KeyScope::Escalate]).await;
    let status = HttpCaller::good(reads.get("/v1/status")).await;
    assert_eq!(status["relay"]["status"], "ok");
    assert_eq!(status["balance"]["tenant"], "acme");
    assert!(status["models"].as_array().unwrap().contains(&json!("auto")));
    let question = json!({ "query": "hi" });
    let (status, refused) = HttpCaller::json(reads.post("/v1/escalate", &question)).await;
    assert_eq!((status, &refused["error"]["code"]), (403, &json!("forbidden")));
    assert!(refused["error"]["message"].as_str().unwrap().contains("scope escalate"), "{refused}");
    HttpCaller::good(asks.post("/v1/escalate", &question)).await;
    assert_eq!(HttpCaller::json(asks.get("/v1/billing/balance")).await.0, 403);
    for path in ["/v1/billing/flush", "/v1/billing/record"] {
        assert_eq!(HttpCaller::json(reads.post(path, &json!({}))).await.0, 403, "{path}");
    }
    // Without a key, with a wrong one, and with one that is nobody's.
    let wrong = HttpCaller { key: reads.key.replace("bly_live_", "bly_live_x"), ..reads.clone() };
    for request in [reads.http.get(format!("{}/v1/status", reads.url)), wrong.get("/v1/status")] {
        let (status, refused) = HttpCaller::json(request).await;
        assert_eq!((status, &refused["error"]["code"]), (401, &json!("unauthenticated")));
    }
    relay.relay().admin().suspend(&tenant("acme"), true).await.unwrap();
    for caller in [&reads, &asks] {
        let (status, refused) = HttpCaller::json(caller.get("/v1/status")).await;
        assert_eq!((status, &refused["error"]["code"]), (403, &json!("suspended")));
    }
    relay.relay().admin().suspend(&tenant("acme"), false).await.unwrap();
    HttpCaller::good(reads.get("/v1/status")).await;
    // The public ones need none.
    for path in ["/health", "/ready"] {
        let answer = HttpCaller::good(reads.http.get(format!("{}{path}", reads.url))).await;
        assert_eq!(answer["status"], "ok", "{path}");
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_seen_recorded_and_added() {
    let relay = TestRelay::start(&format!(
        "{HTTP}[billing]\ntopup_url = \"https://pay.example.org/?tenant={{tenant}}&amount={{amount}}\"\n\
         [recorded.local]\nprice = {{ input = \"0.10\", output = \"0.20\" }}\n"
    ))
    .await;
    let caller = relay.caller().await;
    let record = json!({
        "request_id": "r-1", "class": "local", "model": "llama", "tokens": { "input": 1_000_000, "output": 500_000 }
    });
    let recorded = HttpCaller::good(caller.post("/v1/billing/record", &record)).await;
    assert_eq!(recorded["cost_nano_usd"], 200_000_000);
    assert_eq!(recorded["cost_cents"], 20);
    assert_eq!(HttpCaller::good(caller.post("/v1/billing/record", &record)).await, recorded, "charged once");
    HttpCaller::good(caller.post("/v1/escalate", &json!({ "query": "hi" }))).await;
    let usage = HttpCaller::good(caller.get("/v1/usage?by=class")).await;
    assert_eq!(usage["total"]["requests"], 2);
    assert_eq!(usage["groups"].as_array().unwrap().len(), 2);
    assert_eq!(usage, HttpCaller::good(caller.get("/v1/billing/usage?by=class&period=month")).await);
    let (status, refused) = HttpCaller::json(caller.get("/v1/usage?by=colour")).await;
    assert_eq!(status, 400);
    assert!(refused["error"]["message"].as_str().unwrap().contains("model, device, key"), "{refused}");
    let (status, refused) = HttpCaller::json(caller.get("/v1/usage?colour=red")).await;
    assert_eq!(status, 400, "{refused}");
    let flushed = HttpCaller::good(caller.post("/v1/billing/flush", &json!({}))).await;
    assert_eq!(flushed["waiting_rows"], 0);
    let statement = HttpCaller::good(caller.get("/v1/billing/statement")).await;
    let kinds: Vec<&str> =
        statement["entries"].as_array().unwrap().iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"credit") && kinds.contains(&"settle"), "{kinds:?}");
    assert_eq!(statement["next"], Value::Null);
    let last = statement["entries"].as_array().unwrap().last().unwrap()["entry"].as_u64().unwrap();
    let rest = HttpCaller::good(caller.get(&format!("/v1/billing/statement?after={last}"))).await;
    assert_eq!(rest["entries"], json!([]));
    // Somebody who may not add money is shown where to pay.
    let page = HttpCaller::good(caller.post("/v1/billing/topup", &json!({ "amount_cents": 2000 }))).await;
    assert_eq!(
        (&page["credited"], &page["url"]),
        (&json!(false), &json!("https://pay.example.org/?tenant=acme&amount=20.00"))
    );
    let operator = relay.caller_of("acme", &[KeyScope::Read, KeyScope::Admin]).await;
    let before = relay.balance("acme").await;
    let topup = json!({ "amount_nano_usd": 1_500_000_000, "operation": "invoice 7" });
    for _ in 0..3 {
        let done = HttpCaller::good(operator.post("/v1/billing/topup", &topup)).await;
        assert_eq!(done["credited"], true);
    }
    assert_eq!(relay.balance("acme").await, before + 1_500_000_000, "once");
    let other = json!({ "amount_nano_usd": 1, "operation": "invoice 7" });
    assert_eq!(HttpCaller::json(operator.post("/v1/billing/topup", &other)).await.0, 409);
    for bad in [
        json!({ "amount_nano_usd": 5 }),
        json!({ "operation": "x" }),
        json!({ "amount_nano_usd": -5, "operation": "x" }),
    ] {
        assert_eq!(HttpCaller::json(operator.post("/v1/billing/topup", &bad)).await.0, 400, "{bad}");
    }
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_named_and_too_little_money_is_402() {
    let relay = TestRelay::start(HTTP).await;
    let caller = relay.caller().await;
    for (body, part) in [
        (json!({}), "missing field `query`"),
        (json!({ "query": "hi", "colour": "red" }), "unknown field `colour`"),
        (json!({ "query": "  " }), "query is empty"),
        (json!({ "query": "hi", "request_id": "" }), "request_id must have"),
        (json!({ "query": "hi", "session_id": " x" }), "does not name a session"),
        (
            json!({ "query": "hi", "context": { "history": [{ "role": "king", "content": "x" }] } }),
            "unknown variant `king`",
        ),
        (json!([1]), "not a JSON object"),
    ] {
        let (status, refused) = HttpCaller::json(caller.post("/v1/escalate", &body)).await;
        assert_eq!((status, &refused["error"]["code"]), (400, &json!("invalid_request")), "{body}");
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    }
    let (status, refused) = HttpCaller::json(caller.get("/v1/nothing")).await;
    assert_eq!((status, &refused["error"]["code"]), (404, &json!("unknown_path")));
    relay.relay().admin().create_tenant(tenant("poor")).await.unwrap();
    let poor = relay.caller_of("poor", &[KeyScope::Escalate]).await;
    let (status, refused) = HttpCaller::json(poor.post("/v1/escalate", &json!({ "query": "hi" }))).await;
    assert_eq!((status, &refused["error"]["code"]), (402, &json!("payment_required")));
    assert!(refused["error"]["missing_nano_usd"].as_i64().unwrap() > 0);
    assert!(refused["error"]["remedy"].as_str().unwrap().contains("top up"));
    relay.stop().await;
}
