//! The official SDKs, unmodified, against a gateway and against a relay's own HTTP side.

use crate::gateway::relay_for;
use belay_tests::fake_provider::FakeProvider;
use belay_tests::gateway::TestGateway;
use belay_tests::http::{HTTP, HttpCaller};
use belay_tests::relay::{PATIENCE, eventually};
use belay_tests::{node, python};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Runs a program of checks against a gateway, then against the relay itself; all must hold, and so must the books.
async fn all_hold(command: impl Fn() -> Command, least: usize) {
    let _turn = crate::MACHINE.lock().await;
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, "").await;
    let client = relay.client().await;
    let gateway = TestGateway::start(&client).await;
    let mut through = command();
    through.arg(&gateway.url);
    let charged = checks(through, least).await;
    // Callers' own keys go nowhere.
    for received in provider.received() {
        assert!(!format!("{:?}", received.headers).contains("callers-own-key"), "{received:?}");
    }
    settled(&provider, charged, async |path| gateway.get(&format!("/belay{path}")).await).await;
    gateway.stop().await;
    relay.verify().await;
    relay.stop().await;

    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, HTTP).await;
    let caller = relay.caller().await;
    let mut direct = command();
    direct.args([&caller.url, &caller.key]);
    let charged = checks(direct, least).await;
    for received in provider.received() {
        assert!(!format!("{:?}", received.headers).contains(&caller.key), "{received:?}");
    }
    settled(&provider, charged, async |path| HttpCaller::good(caller.get(&format!("/v1/billing{path}"))).await).await;
    relay.verify().await;
    relay.stop().await;
}

/// Runs a program of checks. How many requests were charged.
async fn checks(mut command: Command, least: usize) -> Option<u64> {
    command.env("NO_PROXY", "127.0.0.1").env_remove("HTTP_PROXY").env_remove("http_proxy");
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE * 4, output).await.expect("in time").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let seen: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let checks = seen["checks"].as_object().expect("checks");
    let failed: Vec<_> = checks.iter().filter(|(_, held)| **held != true).map(|(name, _)| name).collect();
    assert!(failed.is_empty(), "{failed:?}\n{errors}");
    assert!(checks.len() >= least, "{} checks", checks.len());
    seen["charged"].as_u64()
}

/// Each answer was charged once, and no refusal; counting tokens costs nothing and is settled too.
async fn settled(provider: &FakeProvider, charged: Option<u64>, mut get: impl AsyncFnMut(&str) -> Value) {
    eventually("all requests are settled", async || {
        get("/usage?period=all").await["total"]["requests"].as_u64() >= charged
    })
    .await;
    assert_eq!(get("/balance").await["open_holds"], 0);
    let counted = provider.received().iter().filter(|one| one.path.ends_with("count_tokens")).count() as u64;
    let usage = get("/usage?period=all").await;
    assert_eq!(usage["total"]["requests"].as_u64(), charged.map(|charged| charged + counted));
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdks_work_unchanged() {
    let requirements = folder("python").join("requirements.txt");
    let made = tokio::task::spawn_blocking(move || python::environment("sdks", &requirements)).await.unwrap();
    let Some(interpreter) = made else { return };
    let command = || {
        let mut command = Command::new(&interpreter);
        command.arg(folder("python").join("check.py"));
        command
    };
    all_hold(command, 65).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_sdks_work_unchanged() {
    let package = folder("node").join("package.json");
    let made = tokio::task::spawn_blocking(move || node::environment("sdks", &package)).await.unwrap();
    let Some(installed) = made else { return };
    // A module finds packages beside itself, so it runs from where they are.
    let program = installed.join("check.mjs");
    std::fs::copy(folder("node").join("check.mjs"), &program).unwrap();
    let command = || {
        let mut command = Command::new("node");
        command.arg(&program);
        command
    };
    all_hold(command, 25).await;
}
