//! Every dialect against a provider that behaves, and misbehaves, as real ones do.

use belay_client::escalation::{Collected, EscalationRequest};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::message::{Dialect, FailureCode, Operation, Outcome, UnitKind};
use belay_relay::admin::service::TermsChange;
use belay_relay::store::ledger::standing::Tier;
use belay_tests::fake_provider::{FakeProvider, Script, Usage};
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, tenant};
use std::time::{Duration, Instant};

const EACH: [(&str, Dialect); 3] =
    [("claude", Dialect::ANTHROPIC), ("gpt", Dialect::OPENAI_CHAT), ("gpt", Dialect::OPENAI_RESPONSES)];

async fn relay_for(provider: &FakeProvider, extra: &str) -> TestRelay {
    let url = provider.url();
    let model = |name: &str, provider: &str| {
        format!(
            "[models.{name}]\nprovider = \"{provider}\"\ncontext_tokens = 200000\nmax_output_tokens = 8192\nprice = {{ input = \"3\", output = \"15\", cache_read = \"0.30\", cache_write_5m = \"3.75\", cache_write_1h = \"6\" }}\n"
        )
    };
    let providers = format!(
        "[providers.anthropic]\nkind = \"anthropic\"\nurl = \"{url}\"\n[providers.openai]\nkind = \"openai\"\nurl = \"{url}/v1\"\n{}{}",
        model("claude", "anthropic"),
        model("gpt", "openai")
    );
    TestRelay::start(&format!("{providers}{extra}")).await
}

fn request(client: &TestClient, model: &str, dialect: Dialect) -> EscalationRequest {
    let (cap, messages) = match dialect {
        Dialect::OPENAI_RESPONSES => ("max_output_tokens", "input"),
        _ => ("max_tokens", "messages"),
    };
    let body =
        format!(r#"{{"model":"{model}","stream":true,"{cap}":1000,"{messages}":[{{"role":"user","content":"hi"}}]}}"#);
    EscalationRequest::new(client.client.request_id(), dialect, model, body.into_bytes())
}

/// Runs one request of each dialect against a script.
async fn each(script: Script, extra: &str, check: impl Fn(Dialect, Collected)) {
    let provider = FakeProvider::start().await.unwrap();
    provider.set_script(script);
    let relay = relay_for(&provider, extra).await;
    let client = relay.client().await;
    for (model, dialect) in EACH {
        check(dialect, client.send(request(&client, model, dialect)).await);
    }
    relay.verify().await;
    relay.stop().await;
}

fn ended(collected: &Collected, outcome: Outcome) -> belay_protocol::message::End {
    let end = collected.end.clone().unwrap_or_else(|| panic!("not settled: {:?}", collected.failed));
    assert_eq!(end.outcome, outcome, "{}", end.message);
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_cut_anywhere_give_the_same_text_and_the_providers_own_usage() {
    for split in [1, 2, 7] {
        let usage =
            Usage { input: 120, output: Some(40), cache_read: 30, cache_write_5m: 0, cache_write_1h: 0, reasoning: 5 };
        let script = Script { tokens: 40, split, usage, ..Script::default() };
        let text = script.whole_text(40);
        each(script, "", |dialect, collected| {
            let end = ended(&collected, Outcome::COMPLETE);
            assert_eq!(collected.text, text, "{dialect}, {split} pieces");
            assert!(!end.estimated);
            assert_eq!((end.units(UnitKind::OUTPUT), end.units(UnitKind::CACHE_READ)), (40, 30), "{dialect}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_is_charged_for_what_came_and_says_so() {
    each(Script { tokens: 50, cut_after: Some(20), ..Script::default() }, "", |_, collected| {
        let end = ended(&collected, Outcome::PROVIDER_FAILED);
        assert!(end.estimated && end.cost.0 > 0 && end.events > 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_at_the_configured_time() {
    let timeouts = "[timeouts]\nfirst_event_ms = 400\nbetween_events_ms = 400\n";
    for script in [
        Script { tokens: 50, hang_after: Some(10), ..Script::default() },
        Script { tokens: 50, hang_after: Some(0), ..Script::default() },
        Script { first_token_ms: 60_000, ..Script::default() },
    ] {
        let begun = Instant::now();
        each(script, timeouts, |_, collected| {
            assert!(ended(&collected, Outcome::TIMED_OUT).estimated);
        })
        .await;
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_after_the_head_is_passed_on_and_ends_the_request() {
    each(Script { tokens: 50, error_after: Some(10), ..Script::default() }, "", |dialect, collected| {
        let end = ended(&collected, Outcome::PROVIDER_FAILED);
        assert!(!end.message.is_empty(), "{dialect}: the provider's words are told");
        assert!(end.estimated);
        let last = String::from_utf8_lossy(collected.events.last().expect("events")).into_owned();
        assert!(last.contains("error"), "{dialect}: {last}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_provider_comes_with_its_own_words_and_costs_nothing() {
    for status in [400, 429, 529] {
        each(Script::refusal(status, Some(7)), "", |dialect, collected| {
            let failed = collected.failed.expect("refused");
            assert_eq!(failed.code, FailureCode::PROVIDER_REFUSED, "{dialect}");
            let head = collected.head.expect("told");
            assert_eq!(head.status, status);
            assert!(head.headers.iter().any(|(name, value)| name == "retry-after" && value == "7"), "{head:?}");
            assert!(!collected.body.is_empty());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_not_there_or_dies_at_once() {
    // Nobody listens on a port that was just given back.
    let gone = FakeProvider::start().await.unwrap();
    let relay = relay_for(&gone, "").await;
    drop(gone);
    let client = relay.client().await;
    let before = relay.balance("acme").await;
    for (model, dialect) in EACH {
        let failed = client.send(request(&client, model, dialect)).await.failed.expect("refused");
        assert_eq!(failed.code, FailureCode::PROVIDER_UNAVAILABLE);
    }
    assert_eq!(relay.balance("acme").await, before, "the provider never saw it");
    relay.verify().await;
    relay.stop().await;
    // One that takes the request and dies may have worked on it.
    each(Script { die: true, ..Script::default() }, "", |_, collected| {
        assert!(ended(&collected, Outcome::PROVIDER_FAILED).estimated);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_giant_events_end_typed() {
    for script in [
        Script { garbage_after: Some(5), tokens: 10, ..Script::default() },
        Script { giant_bytes: 1 << 20, tokens: 10, ..Script::default() },
    ] {
        each(script, "", |_, collected| {
            assert!(ended(&collected, Outcome::PROVIDER_FAILED).estimated);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_was_never_told_is_estimated_from_what_was_seen() {
    each(Script { tokens: 100, no_usage: true, ..Script::default() }, "", |dialect, collected| {
        let end = collected.end.expect("settled");
        assert!(end.estimated, "{dialect}");
        let seen = collected.text.len() as u64;
        let output = end.units(UnitKind::OUTPUT);
        assert!(output >= seen / 5 && output <= seen, "{dialect}: {output} tokens for {seen} bytes");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_reaches_the_provider_at_once() {
    let provider = FakeProvider::start().await.unwrap();
    provider.set_script(Script { tokens: 100_000, pace_ms: 5, endless: true, ..Script::default() });
    let relay = relay_for(&provider, "").await;
    let client = relay.client().await;
    for (model, dialect) in EACH {
        let before = provider.counts().cancelled;
        let mut escalation = client.client.escalate(request(&client, model, dialect), PATIENCE).await.unwrap();
        for _ in 0..8 {
            escalation.next().await.unwrap();
        }
        let begun = Instant::now();
        escalation.cancel("enough").await.unwrap();
        provider.wait_until("the provider is left", PATIENCE, |counts| counts.cancelled > before).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "left after {:?}", begun.elapsed());
        assert_eq!(ended(&escalation.collect().await.unwrap(), Outcome::CANCELLED).message, "enough");
    }
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_body_reaches_the_provider_untouched_but_for_the_listed_fields() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, "[aliases]\nauto = \"gpt\"\n").await;
    let client = relay.client().await;
    let odd = r#"{ "new_field" : [1e0, {"x":null}],"model":"auto",  "messages":[{"role":"user","content":[{"type":"text","text":"\u00e9"}]}],"stream":true,
        "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"stream_options":{"include_usage":true},"max_tokens":77 }"#;
    let mut asked = EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "auto", odd);
    asked.headers = vec![("OpenAI-Beta".into(), "x=1".into()), ("authorization".into(), "Bearer stolen".into())];
    ended(&client.send(asked).await, Outcome::COMPLETE);
    let received = provider.last();
    assert_eq!(String::from_utf8_lossy(&received.body), odd.replace("\"auto\"", "\"gpt\""));
    assert_eq!(received.headers.get("openai-beta").unwrap(), "x=1");
    assert!(received.headers.get("authorization").is_none(), "headers off the list do not pass");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_reaches_either_provider_with_all_its_parts_and_the_cap_that_was_paid_for() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, "").await;
    let client = relay.client().await;
    let prompt: Prompt = serde_json::from_str(
        r#"{"query":"the question","framing":"the framing","knowledge":[{"source":"s","relevance":0.5,"text":"the knowledge"}],
            "constraints":["the constraint"],"history":[{"role":"user","content":"q0"},{"role":"assistant","content":"a0"}],
            "preferences":{"language":"de","verbosity":"brief","tone":"dry"}}"#,
    )
    .unwrap();
    for (model, dialect) in [EACH[0], EACH[1]] {
        let body = serde_json::to_vec(&prompt).unwrap();
        let mut asked = EscalationRequest::new(client.client.request_id(), Dialect::PROMPT, model, body);
        asked.max_output_tokens = Some(123);
        let answer = client.send(asked).await;
        ended(&answer, Outcome::COMPLETE);
        assert_eq!(answer.head.expect("answered").dialect, dialect);
        let received = provider.last().json();
        assert_eq!((&received["max_tokens"], &received["model"]), (&123.into(), &model.into()));
        let text = received.to_string();
        for part in ["the question", "the framing", "the knowledge", "the constraint", "q0", "a0", "de", "brief", "dry"]
        {
            assert!(text.contains(part), "{model}: {part} is missing in {text}");
        }
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_streamed_come_whole() {
    let provider = FakeProvider::start().await.unwrap();
    provider.set_script(Script::tokens(20));
    let relay = relay_for(&provider, "").await;
    let client = relay.client().await;
    for (model, dialect) in EACH {
        let mut asked = request(&client, model, dialect);
        asked.body = String::from_utf8(asked.body.to_vec()).unwrap().replace("true", "false").into_bytes().into();
        asked.stream = false;
        let answer = client.send(asked).await;
        assert!(!ended(&answer, Outcome::COMPLETE).estimated);
        assert_eq!(answer.text, Script::tokens(20).whole_text(20));
        assert!(answer.events.is_empty() && !answer.body.is_empty());
    }
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_refused_with_what_to_do() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, "").await;
    let client = relay.client().await;
    let refused = async |model: &str, dialect, body: &str| {
        let asked = EscalationRequest::new(client.client.request_id(), dialect, model, body.as_bytes().to_vec());
        let failed = client.send(asked).await.failed.expect("refused");
        assert!(!failed.message.is_empty() && !failed.remedy.is_empty());
        failed.code
    };
    let body = r#"{"max_tokens":5,"messages":[]}"#;
    assert_eq!(refused("gtp", Dialect::OPENAI_CHAT, body).await, FailureCode::UNKNOWN_MODEL);
    let seeded = r#"{"max_tokens":5,"messages":[],"seed":1}"#;
    assert_eq!(refused("claude", Dialect::OPENAI_CHAT, seeded).await, FailureCode::INVALID_REQUEST);
    let ranked = r#"{"max_tokens":5,"messages":[],"top_k":1}"#;
    assert_eq!(refused("gpt", Dialect::ANTHROPIC, ranked).await, FailureCode::INVALID_REQUEST);
    let mut count = EscalationRequest::new(client.client.request_id(), Dialect::ANTHROPIC, "gpt", body);
    count.operation = Operation::COUNT_TOKENS;
    assert_eq!(client.send(count).await.failed.expect("refused").code, FailureCode::UNSUPPORTED);
    assert_eq!(refused("gpt", Dialect::OPENAI_CHAT, "not json").await, FailureCode::INVALID_REQUEST);
    assert_eq!(refused("gpt", Dialect::OPENAI_CHAT, r#"{"max_tokens":0}"#).await, FailureCode::INVALID_REQUEST);
    assert_eq!(
        refused("gpt", Dialect::OPENAI_CHAT, r#"{"service_tier":"priority"}"#).await,
        FailureCode::INVALID_REQUEST
    );
    assert_eq!(refused("claude", Dialect::PROMPT, r#"{"query":""}"#).await, FailureCode::INVALID_REQUEST);
    assert_eq!(provider.counts().requests, 0, "no provider was asked");
    relay.stop().await;
}

/// What has no answer of tokens: the request's own path, nothing edited but the model.
#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_charged_by_their_input_and_counting_is_free() {
    let provider = FakeProvider::start().await.unwrap();
    provider.set_script(Script { usage: Usage { input: 300, ..Usage::default() }, ..Script::default() });
    let embed = "[models.embed]\nprovider = \"openai\"\nname = \"text-embedding-3-small\"\n";
    let relay = relay_for(&provider, &format!("{embed}price = {{ input = \"0.02\", output = \"0\" }}\n")).await;
    let client = relay.client().await;
    let body = r#"{"model":"embed","input":["a","b"],"dimensions":2,"encoding_format":"float"}"#;
    let mut asked = EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "embed", body);
    (asked.operation, asked.stream) = (Operation::EMBEDDINGS, false);
    let answer = client.send(asked).await;
    let end = ended(&answer, Outcome::COMPLETE);
    // 300 tokens at $0.02 per million, and the tenant's 1.03.
    assert_eq!((end.cost.0, end.estimated, end.units(UnitKind::INPUT)), (6_180, false, 300));
    assert!(String::from_utf8_lossy(&answer.body).contains("embedding"));
    let received = provider.last();
    assert_eq!(received.path, "/v1/embeddings");
    assert_eq!(String::from_utf8_lossy(&received.body), body.replace("\"embed\"", "\"text-embedding-3-small\""));

    let before = relay.balance("acme").await;
    let body = r#"{"model":"claude","messages":[{"role":"user","content":"hi"}]}"#;
    let mut asked = EscalationRequest::new(client.client.request_id(), Dialect::ANTHROPIC, "claude", body);
    (asked.operation, asked.stream) = (Operation::COUNT_TOKENS, false);
    let answer = client.send(asked).await;
    let end = ended(&answer, Outcome::COMPLETE);
    assert_eq!((end.cost.0, end.estimated, end.usage.len()), (0, false, 0));
    assert_eq!(answer.body, r#"{"input_tokens":300}"#);
    let received = provider.last();
    assert_eq!((received.path.as_str(), &received.body[..]), ("/v1/messages/count_tokens", body.as_bytes()));
    assert_eq!(relay.balance("acme").await, before);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_keeps_under_a_shared_key_cannot_be_named() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, "").await;
    let client = relay.client().await;
    let ask = async |dialect, body: &str| {
        let model = if dialect == Dialect::ANTHROPIC { "claude" } else { "gpt" };
        client.send(EscalationRequest::new(client.client.request_id(), dialect, model, body.as_bytes().to_vec())).await
    };
    let responses = |field: &str| format!(r#"{{"input":"hi","max_output_tokens":5,{field}}}"#);
    let item = r#"{"input":[{"type":"item_reference","id":"msg_1"}]}"#;
    let file = r#"{"max_tokens":5,"messages":[{"role":"user","content":[{"type":"document","source":{"type":"file","file_id":"file_1"}}]}]}"#;
    let named = [
        (Dialect::OPENAI_RESPONSES, responses(r#""previous_response_id":"resp_1""#)),
        (Dialect::OPENAI_RESPONSES, responses(r#""conversation":"conv_1""#)),
        (Dialect::OPENAI_RESPONSES, responses(r#""prompt":{"id":"pmpt_1"}"#)),
        (Dialect::OPENAI_RESPONSES, item.to_owned()),
        (Dialect::ANTHROPIC, file.to_owned()),
    ];
    for (dialect, body) in &named {
        let failed = ask(*dialect, body).await.failed.expect(body);
        assert_eq!(failed.code, FailureCode::INVALID_REQUEST, "{body}");
        assert!(failed.message.contains("under a key that tenants share"), "{}", failed.message);
    }
    for field in [r#""background":true"#, r#""tools":[{"type":"web_search"}]"#] {
        let failed = ask(Dialect::OPENAI_RESPONSES, &responses(field)).await.failed.expect(field);
        assert!(failed.message.contains("leave"), "{}", failed.message);
    }
    assert_eq!(provider.counts().requests, 0, "no provider was asked");
    // Under a key of the tenant's own they are the tenant's.
    let admin = relay.relay().admin();
    let byok = TermsChange { tier: Some(Tier::Byok), ..TermsChange::default() };
    admin.change_terms(&tenant("acme"), byok).await.unwrap();
    for name in ["openai", "anthropic"] {
        admin.set_provider_key(&tenant("acme"), name.into(), Some("sk-own".into())).await.unwrap();
    }
    for (dialect, body) in &named {
        ended(&ask(*dialect, body).await, Outcome::COMPLETE);
    }
    relay.stop().await;
}
