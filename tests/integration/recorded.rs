//! Usage as real answers told it, priced through the whole path, beside sums by hand.
//!
//! The OpenAI blocks are figures of answers that others have published (gpt-4.1-mini with
//! `include_usage`, a reasoning model's, gpt-6-luna with its cache counted inside); those of Anthropic are
//! in the form of its API, cache beside the input, as published for prompt caching (5,501 tokens written,
//! then read). Prices per million: input $3, output $15, cache read $0.30, written $3.75 (five minutes) and
//! $6 (an hour); 1.03 times that, each line rounded up to a nano-dollar.

use belay_client::escalation::EscalationRequest;
use belay_protocol::message::{Dialect, End, UnitKind};
use belay_protocol::money::NanoUsd;
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::relay::{TestClient, TestRelay};

/// A usage block, as the provider writes it; the units that are in it, and what they cost.
struct Case {
    dialect: Dialect,
    usage: &'static str,
    units: &'static [(UnitKind, u64)],
    nano: i64,
}

const CASES: [Case; 7] = [
    // 22 × 3,090 + 34 × 15,450.
    Case {
        dialect: Dialect::OPENAI_CHAT,
        usage: r#"{"completion_tokens":34,"completion_tokens_details":{"accepted_prediction_tokens":0,"audio_tokens":0,"reasoning_tokens":0,"rejected_prediction_tokens":0},"prompt_tokens":22,"prompt_tokens_details":{"audio_tokens":0,"cached_tokens":0},"total_tokens":56}"#,
        units: &[(UnitKind::INPUT, 22), (UnitKind::OUTPUT, 34)],
        nano: 593_280,
    },
    // Reasoning is in the output: 11 × 3,090 + 172 × 15,450.
    Case {
        dialect: Dialect::OPENAI_CHAT,
        usage: r#"{"completion_tokens":172,"prompt_tokens":11,"total_tokens":183,"completion_tokens_details":{"accepted_prediction_tokens":0,"audio_tokens":0,"reasoning_tokens":128,"rejected_prediction_tokens":0},"prompt_tokens_details":{"audio_tokens":0,"cached_tokens":0}}"#,
        units: &[(UnitKind::INPUT, 11), (UnitKind::OUTPUT, 172), (UnitKind::REASONING, 128)],
        nano: 2_691_390,
    },
    // 4,577 × 3,090 + 1,443 × 15,450.
    Case {
        dialect: Dialect::OPENAI_CHAT,
        usage: r#"{"prompt_tokens":4577,"completion_tokens":1443,"total_tokens":6020,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":1152,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}"#,
        units: &[(UnitKind::INPUT, 4577), (UnitKind::OUTPUT, 1443), (UnitKind::REASONING, 1152)],
        nano: 36_437_280,
    },
    // The cache is inside: 2,006 − 1,920 = 86 × 3,090 + 1,920 × 309 + 300 × 15,450.
    Case {
        dialect: Dialect::OPENAI_CHAT,
        usage: r#"{"prompt_tokens":2006,"completion_tokens":300,"total_tokens":2306,"prompt_tokens_details":{"cached_tokens":1920},"completion_tokens_details":{"reasoning_tokens":0}}"#,
        units: &[(UnitKind::INPUT, 86), (UnitKind::OUTPUT, 300), (UnitKind::CACHE_READ, 1920)],
        nano: 5_494_020,
    },
    // And so is what was written to it: 14 − 4 − 6 = 4 × 3,090 + 4 × 309 + 6 × 3,862.5 + 5 × 15,450.
    Case {
        dialect: Dialect::OPENAI_CHAT,
        usage: r#"{"prompt_tokens":14,"completion_tokens":5,"total_tokens":19,"prompt_tokens_details":{"cached_tokens":4,"cache_write_tokens":6,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}"#,
        units: &[(UnitKind::INPUT, 4), (UnitKind::OUTPUT, 5), (UnitKind::CACHE_READ, 4), (UnitKind::CACHE_WRITE_5M, 6)],
        nano: 114_021,
    },
    // Beside the input: 7 × 3,090 + 5,501 × 3,862.5 (rounded up) + 21 × 15,450.
    Case {
        dialect: Dialect::ANTHROPIC,
        usage: r#"{"input_tokens":7,"cache_creation_input_tokens":5501,"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":5501,"ephemeral_1h_input_tokens":0},"output_tokens":21,"service_tier":"standard"}"#,
        units: &[(UnitKind::INPUT, 7), (UnitKind::OUTPUT, 21), (UnitKind::CACHE_WRITE_5M, 5501)],
        nano: 21_593_693,
    },
    // 3 × 3,090 + 5,501 × 309 + 400 × 6,180 + 57 × 15,450.
    Case {
        dialect: Dialect::ANTHROPIC,
        usage: r#"{"input_tokens":3,"cache_creation_input_tokens":400,"cache_read_input_tokens":5501,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":400},"output_tokens":57,"service_tier":"standard"}"#,
        units: &[
            (UnitKind::INPUT, 3),
            (UnitKind::OUTPUT, 57),
            (UnitKind::CACHE_READ, 5501),
            (UnitKind::CACHE_WRITE_1H, 400),
        ],
        nano: 5_061_729,
    },
];

/// A whole answer with that usage, streamed or not, as its API writes it.
fn answer(case: &Case, stream: bool) -> (String, &'static str) {
    let usage = case.usage;
    match (case.dialect, stream) {
        (Dialect::ANTHROPIC, false) => (
            format!(
                r#"{{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[{{"type":"text","text":"Yes."}}],"stop_reason":"end_turn","usage":{usage}}}"#
            ),
            "application/json",
        ),
        (Dialect::ANTHROPIC, true) => (
            format!(
                "event: message_start\ndata: {{\"type\":\"message_start\",\"message\":{{\"id\":\"msg_1\",\"content\":[],\"usage\":{{\"input_tokens\":1,\"output_tokens\":1}}}}}}\n\n\
                 event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"Yes.\"}}}}\n\n\
                 event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"end_turn\"}},\"usage\":{usage}}}\n\n\
                 event: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n"
            ),
            "text/event-stream",
        ),
        (_, false) => (
            format!(
                r#"{{"id":"chatcmpl-1","object":"chat.completion","choices":[{{"index":0,"message":{{"role":"assistant","content":"Yes."}},"finish_reason":"stop"}}],"usage":{usage}}}"#
            ),
            "application/json",
        ),
        (_, true) => (
            format!(
                "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"Yes.\"}}}}],\"usage\":null}}\n\n\
                 data: {{\"choices\":[],\"usage\":{usage}}}\n\ndata: [DONE]\n\n"
            ),
            "text/event-stream",
        ),
    }
}

async fn ask(client: &TestClient, case: &Case, stream: bool) -> End {
    let model = if case.dialect == Dialect::ANTHROPIC { "claude" } else { "gpt" };
    let body = format!(
        r#"{{"model":"{model}","stream":{stream},"max_tokens":8000,"messages":[{{"role":"user","content":"{}"}}]}}"#,
        // As long as what was counted.
        "word ".repeat(6000)
    );
    let mut request = EscalationRequest::new(client.client.request_id(), case.dialect, model, body.into_bytes());
    request.stream = stream;
    let collected = client.send(request).await;
    collected.end.unwrap_or_else(|| panic!("not settled: {:?}", collected.failed))
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_usage_is_priced_to_the_nano_dollar_both_ways_round() {
    let provider = FakeProvider::start().await.unwrap();
    let url = provider.url();
    let part = |model: &str, name: &str, url: &str| {
        format!(
            "[providers.{name}]\nkind = \"{name}\"\nurl = \"{url}\"\n[models.{model}]\nprovider = \"{name}\"\n\
             context_tokens = 200000\nmax_output_tokens = 8192\nprice = {{ input = \"3\", output = \"15\", \
             cache_read = \"0.30\", cache_write_5m = \"3.75\", cache_write_1h = \"6\" }}\n"
        )
    };
    let relay = TestRelay::start(&(part("claude", "anthropic", &url) + &part("gpt", "openai", &url))).await;
    let client = relay.client().await;
    for case in &CASES {
        for stream in [true, false] {
            let (body, kind) = answer(case, stream);
            let mut script = Script { body: Some(body), ..Script::default() };
            script.headers.insert("content-type".into(), kind.into());
            provider.push_script(script);
            let end = ask(&client, case, stream).await;
            let told: Vec<_> = end.usage.iter().map(|line| (line.kind, line.units)).collect();
            let mut wanted = case.units.to_vec();
            wanted.sort_by_key(|(kind, _)| kind.0);
            let mut sorted = told.clone();
            sorted.sort_by_key(|(kind, _)| kind.0);
            assert_eq!(sorted, wanted, "stream {stream}: {}", case.usage);
            assert_eq!((end.cost, end.estimated), (NanoUsd(case.nano), false), "stream {stream}: {}", case.usage);
        }
    }
    relay.verify().await;
    relay.stop().await;
}
