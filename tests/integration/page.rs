//! The gateway's page in headless Chromium. Its pictures lie below `target/page`, to be looked at.

use crate::gateway::relay_for;
use crate::programs::{Running, belay, demo_config, exits, run, until};
use belay_client::gateway::Settings;
use belay_tests::fake_provider::FakeProvider;
use belay_tests::gateway::TestGateway;
use belay_tests::procs::Belayd;
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

/// The folder of the programs that look at pages, and where they put their pictures.
async fn eyes(program: &str) -> Option<(PathBuf, PathBuf, PathBuf)> {
    let chromium = chromium()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
    let package = folder.join("package.json");
    let installed = tokio::task::spawn_blocking(move || node::environment("page", &package)).await.unwrap()?;
    let copy = installed.join(program);
    // Beside what is installed, where its imports are looked for.
    for file in [program, "browser.mjs"] {
        std::fs::copy(folder.join(file), installed.join(file)).unwrap();
    }
    let pictures = python::target_dir().join("page");
    std::fs::create_dir_all(&pictures).unwrap();
    Some((chromium, copy, pictures))
}

/// Runs such a program; fails unless all that it looked at was as it should be.
async fn seen(command: &mut Command, at_least: usize) {
    let output =
        tokio::time::timeout(PATIENCE * 4, command.kill_on_drop(true).output()).await.expect("in time").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let checks = seen["checks"].as_object().expect("checks");
    assert!(checks.len() >= at_least && checks.values().all(|held| held == true), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_page_shows_the_node_and_does_what_is_confirmed() {
    let _turn = crate::MACHINE.lock().await;
    let Some((chromium, program, pictures)) = eyes("admin.mjs").await else { return };
    let config = demo_config(1).replacen("[listen]\nquic = \"127.0.0.1:0\"\n", "", 1);
    let config = config.replacen("[timeouts]\n", "[billing]\nflush_after_s = 1\n[timeouts]\n", 1);
    let relay = Belayd::start(&format!("{config}[admin]\nlisten = \"127.0.0.1:0\"\n")).unwrap();
    relay.run(&["tenant", "create", "acme", "--credit", "5"]).unwrap();
    relay.run(&["tenant", "label", "acme", "Acme Inc"]).unwrap();
    relay.run(&["tenant", "create", "globex", "--credit", "2"]).unwrap();
    let homes = tempfile::tempdir().unwrap();
    let home = homes.path().join("desk");
    let invite = relay.run(&["invite", "acme"]).unwrap()["invite"].as_str().unwrap().to_owned();
    exits(&run(&mut belay(&home, &["join", &invite, "--label", "desk"])), 0);
    let up = Running::start(&mut belay(&home, &["up", "--listen", "127.0.0.1:0"]), "");
    up.wait_for("its gateway", |text| text.contains("http://127.0.0.1:"));
    exits(&run(&mut belay(&home, &["ask", "--max-tokens", "200", "hello"])), 0);
    // Something for the list of errors, and for the plot.
    let written = std::fs::read_to_string(relay.config_path()).unwrap();
    std::fs::write(relay.config_path(), written.replacen("kind = \"demo\"", "kind = \"cat\"", 1)).unwrap();
    relay.process().signal(rustix::process::Signal::HUP);
    until("the relay has read it", || relay.log().contains("everything stays as it was"));
    std::fs::write(relay.config_path(), &written).unwrap();
    exits(&relay.command(&["reload"]).unwrap(), 0);
    until("central has the usage", || relay.run(&["usage"]).unwrap().as_array().is_some_and(|rows| !rows.is_empty()));
    let url = format!("http://{}/", relay.process().hello["admin"].as_str().unwrap());
    let token = std::fs::read_to_string(relay.state().join("admin.token")).unwrap();
    let mut command = Command::new("node");
    command.arg(program).arg(chromium).args([&url, token.trim()]).arg(&pictures);
    seen(&mut command, 14).await;
    let audit = relay.command(&["audit"]).unwrap().stdout;
    for deed in ["money.credit", "tenant.suspend", "device.revoke", "stolen"] {
        assert!(audit.contains(deed), "no {deed} in {audit}");
    }
    assert_eq!(audit.matches("money.credit").count(), 3, "{audit}");
    drop(up);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_runs_and_what_it_costs() {
    let _turn = crate::MACHINE.lock().await;
    let Some((chromium, program, pictures)) = eyes("check.mjs").await else { return };
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, "").await;
    let client = relay.client().await;
    let gateway = TestGateway::start(&client).await;
    let guarded = TestGateway::with(&client, Settings { token: Some("s3cret".into()), ..Settings::default() }).await;
    let mut command = Command::new("node");
    command.arg(program).arg(chromium).args([&gateway.url, &guarded.url, "s3cret"]).arg(&pictures);
    seen(&mut command, 12).await;
    gateway.stop().await;
    guarded.stop().await;
    relay.verify().await;
    relay.stop().await;
}
