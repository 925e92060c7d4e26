//! The document that describes the HTTP side, and whether the relay does what it says: asked by a tool that makes
//! requests of it, sensible ones and others, in every state that a caller may be in.

use belay_relay::store::central::keys::KeyScope;
use belay_tests::http::{HTTP, HttpCaller, SCOPES};
use belay_tests::python;
use belay_tests::relay::{TestRelay, tenant};
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// What must hold of every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
     unsupported_method,ignored_auth";

#[tokio::test(flavor = "multi_thread")]
async fn the_document_names_every_endpoint_of_the_deployment_before() {
    let relay = TestRelay::start(HTTP).await;
    let caller = relay.caller().await;
    let document = HttpCaller::good(caller.http.get(format!("{}/openapi.json", caller.url))).await;
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    for path in [
        "/v1/escalate",
        "/v1/stream",
        "/v1/status",
        "/v1/usage",
        "/health",
        "/ready",
        "/v1/billing/record",
        "/v1/billing/usage",
        "/v1/billing/balance",
        "/v1/billing/topup",
        "/v1/billing/flush",
        "/v1/billing/statement",
        "/v1/sessions/get",
        "/v1/sessions/add-message",
        "/v1/sessions/update-context",
        "/v1/sessions/list",
        "/v1/sessions/delete",
        "/v1/sessions/clear",
        "/v1/sessions/rename",
        "/v1/sessions/export",
        "/v1/sync/{kind}/push",
        "/v1/sync/{kind}/pull",
        "/v1/sync/status",
        "/v1/sync/lock",
        "/v1/sync/unlock",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    let (status, page) = HttpCaller::text(caller.http.get(format!("{}/docs", caller.url))).await;
    assert_eq!(status, 200);
    assert!(paths.keys().all(|path| page.contains(path.as_str())), "the page names every path");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_one_that_the_document_knows() {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/requirements.txt");
    let made = tokio::task::spawn_blocking(move || python::environment("schema", &requirements)).await.unwrap();
    let Some(python) = made else { return };
    let _turn = crate::MACHINE.lock().await;
    let relay = TestRelay::start(&format!(
        "{HTTP}[recorded.local]\nprice = {{ input = \"0.10\", output = \"0.20\" }}\n\
         [limits]\nrequests_per_minute = 1000000\nrequests_at_once = 1000\n"
    ))
    .await;
    relay.relay().admin().create_tenant(tenant("poor")).await.unwrap();
    relay.relay().admin().create_tenant(tenant("gone")).await.unwrap();
    let all = [&SCOPES[..], &[KeyScope::Admin]].concat();
    let revoked = relay.caller().await;
    relay.relay().admin().revoke_key(&revoked.key_id).await.unwrap();
    let suspended = relay.caller_of("gone", &SCOPES).await;
    relay.relay().admin().suspend(&tenant("gone"), true).await.unwrap();
    let seed: u64 = std::env::var("BELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    eprintln!("seed {seed}");
    let examples: u32 = std::env::var("BELAY_EXAMPLES").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let elsewhere = tempfile::tempdir().unwrap();
    for (state, key) in [
        ("no key", None),
        ("everything", Some(relay.caller_of("acme", &all).await.key)),
        ("reads", Some(relay.caller_of("acme", &[KeyScope::Read]).await.key)),
        ("asks", Some(relay.caller_of("acme", &[KeyScope::Escalate]).await.key)),
        ("has no money", Some(relay.caller_of("poor", &SCOPES).await.key)),
        ("revoked", Some(revoked.key)),
        ("suspended", Some(suspended.key)),
        ("nobody's", Some("bly_live_nobody".into())),
    ] {
        let mut command = Command::new(python.with_file_name("st"));
        // It keeps what it found in a directory below.
        command.current_dir(elsewhere.path());
        command.args(["run", &format!("{}/openapi.json", relay.url()), "--checks", CHECKS, "--no-color"]);
        command.args([
            "--phases",
            "examples,coverage,fuzzing",
            "--continue-on-failure",
            "--generation-database",
            "none",
        ]);
        // Who is let in nowhere need not be tried as often.
        let examples = if state == "everything" { examples * 4 } else { examples };
        command.args(["-n", &examples.to_string(), "--seed", &seed.to_string(), "--suppress-health-check", "all"]);
        command.args(["--mode", "all", "--workers", "2", "--warnings", "off"]);
        if let Some(key) = key {
            command.args(["-H", &format!("Authorization: Bearer {key}")]);
        }
        command.env("NO_PROXY", "127.0.0.1").env_remove("HTTP_PROXY").env_remove("http_proxy");
        let output = command.kill_on_drop(true).output();
        let output = tokio::time::timeout(Duration::from_secs(600), output).await.expect("in time").unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{state}, seed {seed}:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    relay.verify().await;
    relay.stop().await;
}
