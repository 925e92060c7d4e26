//! Peers that others wrote, or that were written from PROTOCOL.md alone.

use crate::foreign_server;
use belay_client::escalation::EscalationRequest;
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::message::{Dialect, Outcome, UnitKind};
use belay_protocol::money::NanoUsd;
use belay_tests::python;
use belay_tests::relay::{PATIENCE, TestRelay};
use std::path::Path;

/// A client in Python on aioquic, written from docs/PROTOCOL.md without a look at this code.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_quic_stack_enrols_asks_and_reads_tokens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign");
    let requirements = folder.join("requirements.txt");
    let made = tokio::task::spawn_blocking(move || python::environment("foreign", &requirements)).await.unwrap();
    let Some(interpreter) = made else { return };
    let relay = TestRelay::start("").await;
    let mut command = tokio::process::Command::new(interpreter);
    command.arg(folder.join("client.py")).arg(relay.invite("acme").await.encode());
    command.args(["--price-input", "3000000000", "--price-output", "15000000000", "--multiplier-bp", "10300"]);
    let output =
        tokio::time::timeout(PATIENCE * 2, command.kill_on_drop(true).output()).await.expect("in time").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(seen["tenant"], "acme");
    assert!(seen["text"].as_str().is_some_and(|text| text.len() > 20), "{seen}");
    assert!(seen["events"].as_u64().is_some_and(|events| events > 5), "{seen}");
    let checks = seen["checks"].as_object().expect("checks");
    assert!(checks.len() >= 20 && checks.values().all(|check| check == true), "{checks:?}");
    assert_eq!(seen["leave_answer_seen"], true, "{seen}");
    relay.verify().await;
    relay.stop().await;
}

/// llmsim, an LLM simulator that somebody else wrote, as both providers.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_provider_answers_in_both_dialects() {
    let server = foreign_server::start().await;
    let relay = TestRelay::start(&format!(
        r#"
[providers.anthropic]
kind = "anthropic"
url = "{0}/anthropic"
[providers.openai]
kind = "openai"
url = "{0}/openai/v1"
[models.claude]
provider = "anthropic"
name = "claude-sonnet-4-5"
context_tokens = 200000
max_output_tokens = 8192
price = {{ input = "3", output = "15" }}
[models.gpt]
provider = "openai"
name = "gpt-4o"
context_tokens = 128000
max_output_tokens = 8192
price = {{ input = "3", output = "15" }}
"#,
        server.url
    ))
    .await;
    let client = relay.client().await;
    let prompt = serde_json::to_vec(&Prompt::new("Say something in a few words")).unwrap();
    let messages = r#"[{"role":"user","content":"Say something"}]"#;
    for (model, own) in [("claude", Dialect::ANTHROPIC), ("gpt", Dialect::OPENAI_CHAT)] {
        for stream in [true, false] {
            let mut asked = EscalationRequest::new(client.client.request_id(), Dialect::PROMPT, model, prompt.clone());
            asked.stream = stream;
            let own_body = format!(r#"{{"model":"{model}","stream":{stream},"max_tokens":200,"messages":{messages}}}"#);
            let raw = EscalationRequest::new(client.client.request_id(), own, model, own_body.into_bytes());
            for request in [asked, raw] {
                let what = format!("{model}, {}, stream {stream}", request.dialect);
                let answer = client.send(request).await;
                let end = answer.end.unwrap_or_else(|| panic!("{what}: {:?}", answer.failed));
                assert_eq!(end.outcome, Outcome::COMPLETE, "{what}: {}", end.message);
                assert!(!end.estimated, "{what}: llmsim tells its usage");
                let (input, output) = (end.units(UnitKind::INPUT), end.units(UnitKind::OUTPUT));
                assert!(input > 0 && output > 0, "{what}: {end:?}");
                let line = |units: u64, nano: u64| i64::try_from((units * nano * 103).div_ceil(100)).unwrap();
                assert_eq!(end.cost, NanoUsd(line(input, 3000) + line(output, 15000)), "{what}");
                assert!(!answer.text.is_empty(), "{what}: no text");
                assert_eq!(answer.head.expect("answered").dialect, own, "{what}");
            }
        }
    }
    relay.verify().await;
    relay.stop().await;
}
