//! The fake provider itself, seen through an ordinary HTTP client.

use super::*;
use belay_protocol::dialect::answer::{body_text, event_text};
use belay_protocol::dialect::sse::SseSplitter;
use belay_protocol::message::Dialect;
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(10);

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

async fn post(provider: &FakeProvider, path: &str, stream: bool, message: &str) -> reqwest::Result<reqwest::Response> {
    let messages = json!([{"role": "user", "content": message}]);
    let body = json!({"model": "m", "stream": stream, "stream_options": {"include_usage": true}, "messages": messages});
    http().post(format!("{}{path}", provider.url())).body(body.to_string()).send().await
}

/// Reads a stream to its end: the text, the raw bytes, and whether it ended in order.
async fn read(mut response: reqwest::Response, dialect: Dialect) -> (String, Vec<u8>, bool) {
    let (mut splitter, mut text, mut bytes) = (SseSplitter::new(1 << 24), String::new(), vec![]);
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                bytes.extend_from_slice(&chunk);
                splitter.push(chunk);
                while let Some(event) = splitter.next().expect("events") {
                    text += &event_text(dialect, &event);
                }
            }
            Ok(None) => return (text, bytes, true),
            Err(_) => return (text, bytes, false),
        }
    }
}

fn contains(bytes: &[u8], part: &str) -> bool {
    String::from_utf8_lossy(bytes).contains(part)
}

#[tokio::test]
async fn both_apis_stream_as_the_real_ones_do() {
    let provider = FakeProvider::start().await.expect("listens");
    for (path, dialect, last, usage) in [
        ("/v1/chat/completions", Dialect::OPENAI_CHAT, "data: [DONE]\n\n", "\"completion_tokens\":20,"),
        ("/v1/messages", Dialect::ANTHROPIC, "data: {\"type\":\"message_stop\"}\n\n", "\"output_tokens\":20,"),
    ] {
        for split in [1, 3, 9] {
            let script = Script { split, ping_every: 7, giant_bytes: 5000, ..Script::tokens(20) };
            let response = post(&provider, path, true, &script.as_message()).await.expect("answers");
            assert_eq!(response.headers()["content-type"], EVENTS);
            let (text, bytes, in_order) = read(response, dialect).await;
            assert_eq!(text, script.whole_text(20), "{path} in {split} pieces");
            assert!(in_order && bytes.ends_with(last.as_bytes()) && contains(&bytes, usage), "{path}");
        }
        let response = post(&provider, path, false, &Script::tokens(3).as_message()).await.expect("answers");
        let body = response.bytes().await.expect("a body");
        assert_eq!(body_text(dialect, &body), Script::default().whole_text(3));
    }
    assert_eq!(provider.last().json()["stream"], false);
    let counts = provider.wait_until("all are finished", DEADLINE, |counts| counts.finished == 8).await;
    assert_eq!((counts.requests, counts.running, counts.cancelled), (8, 0, 0));
}

#[tokio::test]
async fn a_caller_that_leaves_is_noticed_at_once() {
    let provider = FakeProvider::start().await.expect("listens");
    let scripts = [
        Script { hang: true, ..Script::default() },
        Script { hang_after: Some(3), ..Script::default() },
        Script { endless: true, pace_ms: 1, ..Script::default() },
        Script { endless: true, ..Script::default() },
        Script { drip_ms: Some(1), ..Script::default() },
    ];
    for (number, script) in scripts.iter().enumerate() {
        let asking = {
            let (url, message) = (provider.url(), script.as_message());
            let body = json!({"stream": true, "messages": [{"role": "user", "content": message}]}).to_string();
            tokio::spawn(async move {
                let response = http().post(url + "/v1/messages").body(body).send().await.expect("answers");
                read(response, Dialect::ANTHROPIC).await
            })
        };
        provider.wait_until("it runs", DEADLINE, |counts| counts.running == 1).await;
        if !script.hang {
            provider.wait_until("it has begun", DEADLINE, |counts| counts.events > 0).await;
        }
        asking.abort();
        let gone = number as u64 + 1;
        let counts = provider.wait_until("it is noticed", DEADLINE, |counts| counts.cancelled == gone).await;
        assert_eq!((counts.running, counts.finished), (0, 0), "{script:?}");
        provider.wait_until("the connection is closed", DEADLINE, |counts| counts.connections_open == 0).await;
    }
}

#[tokio::test]
async fn it_fails_in_all_the_ways_that_real_ones_do() {
    let provider = FakeProvider::start().await.expect("listens");
    let chat = "/v1/chat/completions";
    provider.push_script(Script::refusal(429, Some(3)));
    let response = post(&provider, chat, true, "hello").await.expect("answers");
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "3");
    assert!(response.text().await.expect("a body").contains("rate_limit_exceeded"));
    let ask = |script: Script| {
        let message = script.as_message();
        let provider = &provider;
        async move { post(provider, chat, true, &message).await }
    };
    assert!(ask(Script { die: true, ..Script::default() }).await.is_err());
    let cut = ask(Script { cut_after: Some(4), ..Script::default() }).await.expect("answers");
    let (text, _, in_order) = read(cut, Dialect::OPENAI_CHAT).await;
    assert_eq!((text, in_order), (Script::default().whole_text(3), false), "all that was said before is read");
    let error = ask(Script { error_after: Some(2), ..Script::default() }).await.expect("answers");
    let (_, bytes, in_order) = read(error, Dialect::OPENAI_CHAT).await;
    assert!(in_order && contains(&bytes, "server_error") && !contains(&bytes, "[DONE]"));
    let stopped = ask(Script { stop_after: Some(2), ..Script::default() }).await.expect("answers");
    let (text, bytes, in_order) = read(stopped, Dialect::OPENAI_CHAT).await;
    assert!(in_order && text == Script::default().whole_text(1) && !contains(&bytes, "[DONE]"));
    let garbage = ask(Script { garbage_after: Some(2), ..Script::default() }).await.expect("answers");
    assert!(contains(&read(garbage, Dialect::OPENAI_CHAT).await.1, "{\"choices\":[{\"del\n"));
    let silent = ask(Script { no_usage: true, ..Script::default() }).await.expect("answers");
    assert!(!contains(&read(silent, Dialect::OPENAI_CHAT).await.1, "completion_tokens"));
    let wrong = post(&provider, chat, true, "{\"fake\":{\"tokns\":1}}").await.expect("answers");
    assert_eq!(wrong.status(), 400);
    assert_eq!(post(&provider, "/v1/nothing", true, "").await.expect("answers").status(), 404);
}

#[tokio::test]
async fn stamped_tokens_tell_when_they_were_sent() {
    let provider = FakeProvider::start().await.expect("listens");
    let script = Script { stamp: true, pace_ms: 1, ..Script::tokens(5) };
    let before = crate::clock::monotonic_ns();
    let response = post(&provider, "/v1/chat/completions", true, &script.as_message()).await.expect("answers");
    let (text, _, _) = read(response, Dialect::OPENAI_CHAT).await;
    let stamps: Vec<u64> = crate::clock::stamps(text.as_bytes()).collect();
    assert_eq!(stamps.len(), 5);
    assert!(stamps.is_sorted() && before < stamps[0] && stamps[4] < crate::clock::monotonic_ns());
}
