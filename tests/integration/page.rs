//! The gateway's page in headless Chromium. Its pictures lie below `target/page`, to be looked at.

use crate::gateway::relay_for;
use belay_client::gateway::Settings;
use belay_tests::fake_provider::FakeProvider;
use belay_tests::gateway::TestGateway;
use belay_tests::relay::PATIENCE;
use belay_tests::{node, python};
use std::path::{Path, PathBuf};
use tokio::process::Command;

fn chromium() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|folder| folder.join("chromium")).find(|path| path.exists());
    if found.is_none() {
        assert!(!python::require_all(), "no Chromium: install Debian's package chromium");
        eprintln!("SKIPPED: no Chromium; install Debian's package chromium");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_runs_and_what_it_costs() {
    let _turn = crate::MACHINE.lock().await;
    let Some(chromium) = chromium() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
    let package = folder.join("package.json");
    let made = tokio::task::spawn_blocking(move || node::environment("page", &package)).await.unwrap();
    let Some(installed) = made else { return };
    let program = installed.join("check.mjs");
    std::fs::copy(folder.join("check.mjs"), &program).unwrap();
    let pictures = python::target_dir().join("page");
    std::fs::create_dir_all(&pictures).unwrap();

    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, "").await;
    let client = relay.client().await;
    let gateway = TestGateway::start(&client).await;
    let guarded = TestGateway::with(&client, Settings { token: Some("s3cret".into()), ..Settings::default() }).await;
    let mut command = Command::new("node");
    command.arg(program).arg(chromium).args([&gateway.url, &guarded.url, "s3cret"]).arg(&pictures);
    let output =
        tokio::time::timeout(PATIENCE * 4, command.kill_on_drop(true).output()).await.expect("in time").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let checks = seen["checks"].as_object().expect("checks");
    assert!(checks.len() >= 12 && checks.values().all(|held| held == true), "{seen}");
    gateway.stop().await;
    guarded.stop().await;
    relay.verify().await;
    relay.stop().await;
}
