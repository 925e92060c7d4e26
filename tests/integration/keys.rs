//! Keys: API keys for callers, and tenants' own keys for providers.

use belay_client::escalation::EscalationRequest;
use belay_protocol::message::{Dialect, FailureCode, UnitKind};
use belay_protocol::money::NanoUsd;
use belay_relay::admin::service::TermsChange;
use belay_relay::store::ledger::standing::Tier;
use belay_relay::{Config, Overrides, Relay};
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::procs::{Belayd, binary};
use belay_tests::relay::{TestClient, TestRelay, config_text, tenant};
use belay_transport::env::Env;
use std::io::Write;
use std::process::{Command, Stdio};

fn request(client: &TestClient, model: &str) -> EscalationRequest {
    let body = format!(
        r#"{{"model":"{model}","stream":true,"max_tokens":100,"messages":[{{"role":"user","content":"hi"}}]}}"#
    );
    EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, model, body.into_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_keys_of_its_own_pays_its_provider_and_a_licence() {
    let (one, two) = (FakeProvider::start().await.unwrap(), FakeProvider::start().await.unwrap());
    for provider in [&one, &two] {
        provider.set_script(Script::tokens(10));
    }
    let part = |name: &str, provider: &FakeProvider| {
        format!(
            "[providers.{name}]\nkind = \"openai\"\nurl = \"{}\"\n[models.{name}]\nprovider = \"{name}\"\n\
             context_tokens = 100000\nmax_output_tokens = 1000\nprice = {{ input = \"3\", output = \"15\" }}\n",
            provider.url()
        )
    };
    let aliases = "[aliases]\nauto = \"demo\"\nboth = [\"one\", \"two\"]\n";
    let relay = TestRelay::start(&(part("one", &one) + &part("two", &two) + aliases)).await;
    let admin = relay.relay().admin();
    let byok = TermsChange { tier: Some(Tier::Byok), ..TermsChange::default() };
    admin.change_terms(&tenant("acme"), byok).await.unwrap();
    let client = relay.client().await;
    let failed = client.send(request(&client, "one")).await.failed.expect("has no key");
    assert_eq!(failed.code, FailureCode::PAYMENT_REQUIRED);
    assert!(failed.message.contains("provider one"), "{}", failed.message);
    assert_eq!(one.counts().requests, 0, "the relay's own key is not used");

    let set = async |provider: &str, key: Option<&str>| {
        admin.set_provider_key(&tenant("acme"), provider.into(), key.map(Into::into)).await
    };
    assert_eq!(set("two", Some("sk-acme-2")).await.unwrap().len(), 1);
    let failed = client.send(request(&client, "one")).await.failed.expect("has none for this one");
    assert!(failed.message.contains("provider one"), "{}", failed.message);
    let end = client.send(request(&client, "both")).await.end.expect("served by the one it has a key for");
    assert_eq!(end.provider, "two");
    assert_eq!(two.last().headers["authorization"], "Bearer sk-acme-2");
    // A licence of 30 % of what the relay would have paid.
    let lines = [end.units(UnitKind::INPUT) * 900, end.units(UnitKind::OUTPUT) * 4500];
    assert_eq!(end.cost, NanoUsd(i64::try_from(lines.iter().sum::<u64>()).unwrap()));
    set("one", Some("sk-acme-1")).await.unwrap();
    assert_eq!(client.send(request(&client, "both")).await.end.expect("settled").provider, "one");
    assert_eq!(one.last().headers["authorization"], "Bearer sk-acme-1");
    // In place of the one before, and gone.
    set("one", Some("sk-acme-3")).await.unwrap();
    assert!(client.send(request(&client, "one")).await.end.is_some());
    assert_eq!(one.last().headers["authorization"], "Bearer sk-acme-3");
    assert_eq!(set("one", None).await.unwrap().len(), 1);
    assert!(client.send(request(&client, "one")).await.failed.is_some());
    for (provider, key, part) in [
        ("three", Some("k"), "it has demo, one, two"),
        ("one", Some("with space"), "cannot stand in a header"),
        ("one", Some(""), "empty"),
        ("one", Some("k".repeat(4097).leak()), "too long"),
        ("one", None, "has no key for one"),
    ] {
        let error = set(provider, key).await.expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
    // Whatever is asked for, no key is in any file.
    set("one", Some("sk-secret-of-acme")).await.unwrap();
    let state = relay.state();
    relay.verify().await;
    let relay = relay.restart().await;
    assert!(relay.client().await.ask("Hi").await.end.is_some(), "the demo provider needs no key");
    for file in files(&state) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(17).any(|part| part == b"sk-secret-of-acme"), "{}", file.display());
    }
    relay.stop().await;
}

fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_another_master_key_has_sealed_is_refused_with_what_to_do() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = TestRelay::start(&format!(
        "[providers.one]\nkind = \"openai\"\nurl = \"{}\"\n[models.one]\nprovider = \"one\"\n\
         context_tokens = 100000\nmax_output_tokens = 1000\nprice = {{ input = \"3\", output = \"15\" }}\n",
        provider.url()
    ))
    .await;
    let admin = relay.relay().admin();
    let byok = TermsChange { tier: Some(Tier::Byok), ..TermsChange::default() };
    admin.change_terms(&tenant("acme"), byok).await.unwrap();
    admin.set_provider_key(&tenant("acme"), "one".into(), Some("sk-acme".into())).await.unwrap();
    // As one of another relay's, whose master key is another: this relay does not even start with such a one.
    let book = rusqlite::Connection::open(relay.state().join("tenants/acme/tenant.db")).unwrap();
    assert_eq!(book.execute("UPDATE provider_key SET nonce = randomblob(12)", []).unwrap(), 1);
    let client = relay.client().await;
    let before = relay.balance("acme").await;
    let failed = client.send(request(&client, "one")).await.failed.expect("cannot be opened");
    assert_eq!(failed.code, FailureCode::PROVIDER_UNAVAILABLE);
    assert!(failed.message.contains("another master key; set it anew"), "{}", failed.message);
    assert_eq!((relay.balance("acme").await, provider.counts().requests), (before, 0));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_master_key_is_gone_makes_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let start = async || {
        let config = Config::parse(&config_text(dir.path(), ""), "test").unwrap();
        Relay::start(config, Env::system(), Overrides::default()).await
    };
    start().await.expect("the first time makes it").shutdown().await;
    start().await.expect("the second finds it").shutdown().await;
    let key = dir.path().join("master.key");
    std::fs::remove_file(&key).unwrap();
    let error = start().await.expect_err("it is gone").to_string();
    assert!(error.contains("master key") && error.contains("from your backup"), "{error}");
    assert!(!key.exists());
}

/// Runs `belayd` with something on its stdin. Returns what it printed, and whether it succeeded.
pub(crate) fn belayd_with(relay: &Belayd, args: &[&str], stdin: &str) -> (String, bool) {
    let mut command = Command::new(binary("belayd"));
    command.arg("--config").arg(relay.config_path()).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (String::from_utf8(text).unwrap(), out.status.success())
}

#[test]
fn api_keys_are_made_shown_once_checked_and_revoked() {
    let mut relay = Belayd::start("[providers.demo]\nkind = \"demo\"\n").unwrap();
    relay.run(&["tenant", "create", "acme"]).unwrap();
    let made = relay.run(&["key", "create", "acme", "--label", "ci", "--scope", "escalate,read,read"]).unwrap();
    let (secret, id) = (made["secret"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned());
    assert!(secret.starts_with(&format!("bly_live_{id}_")), "{secret}");
    assert_eq!(made["scopes"], serde_json::json!(["read", "escalate"]));
    let listed = relay.run(&["key", "list"]).unwrap();
    assert_eq!((&listed[0]["id"], &listed[0]["last_used_ms"]), (&made["id"], &serde_json::Value::Null));
    assert!(!listed.to_string().contains(&secret[22..]), "{listed}");
    let check = |text: &str| belayd_with(&relay, &["key", "check"], text);
    let (shown, ok) = check(&secret);
    assert!(ok && shown.contains("of tenant acme: read, escalate"), "{shown}");
    assert!(relay.run(&["key", "list"]).unwrap()[0]["last_used_ms"].is_u64());
    let (shown, ok) = check(&secret[..secret.len() - 1]);
    assert!(!ok && shown.contains("mistyped or cut"), "{shown}");
    relay.run(&["tenant", "suspend", "acme"]).unwrap();
    assert!(check(&secret).0.contains("suspended"));
    relay.run(&["tenant", "suspend", "acme", "--off"]).unwrap();
    relay.run(&["key", "revoke", &id]).unwrap();
    let (shown, ok) = check(&secret);
    assert!(!ok && shown.contains("was revoked"), "{shown}");
    // A key that is gone can still lose its budget, and no longer get one.
    relay.run(&["budget", "set", "acme", "--key", &id, "--day", "none"]).unwrap();
    let short = relay.run(&["key", "create", "acme", "--days", "0"]).unwrap();
    assert!(check(short["secret"].as_str().unwrap()).0.contains("has expired"));
    for (args, part) in [
        (vec!["key", "create", "nobody"], "there is no tenant nobody"),
        (vec!["key", "create", "acme", "--scope", "reed"], "there are read, write, escalate and admin"),
        (vec!["key", "revoke", "nothing"], "there is no API key nothing"),
        (vec!["key", "revoke", "../../x"], "is no key's id"),
        (vec!["key", "create", "acme", "--label", &"x".repeat(201)], "at most 200 bytes"),
        (vec!["key", "create", "acme", "--label", "a\u{1b}[2J"], "no control characters"),
        (vec!["budget", "set", "acme", "--key", "nosuchkey", "--day", "1"], "has no key:nosuchkey"),
        (vec!["budget", "set", "acme", "--device", "nosuchdevice", "--day", "1"], "has no device:nosuchdevice"),
        (vec!["usage", "--tenant", "nobody"], "there is no tenant nobody"),
        (vec!["usage", "--from", "2026-02-02", "--until", "2026-02-01"], "there is no day between"),
        (vec!["usage", "--from", "99999-01-01"], "is no day"),
    ] {
        let (shown, ok) = belayd_with(&relay, &args, "");
        assert!(!ok && shown.contains(part), "{shown}");
    }
    // A tenant's own key for a provider, from stdin; it is never shown.
    let (shown, ok) = belayd_with(&relay, &["provider-key", "set", "acme", "demo"], "sk-never-shown\n");
    assert!(ok && shown.contains("demo") && !shown.contains("never"), "{shown}");
    let (shown, ok) = belayd_with(&relay, &["provider-key", "remove", "acme", "demo"], "");
    assert!(ok && shown.contains("has no keys of its own"), "{shown}");
    relay.terminate().unwrap();
}
