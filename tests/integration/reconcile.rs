//! Charges by estimate, and how a provider's own figures put them right.

use belay_client::escalation::EscalationRequest;
use belay_protocol::calendar;
use belay_protocol::message::{Dialect, End, UnitKind, UsageLine};
use belay_protocol::money::NanoUsd;
use belay_relay::admin::reconcile::Reconcile;
use belay_relay::admin::service::TermsChange;
use belay_relay::reconcile::{ProviderUsage, Tokens};
use belay_relay::store::central::usage::CentralGrouping;
use belay_relay::store::ledger::money::Operation;
use belay_relay::store::ledger::standing::Tier;
use belay_relay::store::ledger::usage::Grouping;
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::procs::{Belayd, binary, run};
use belay_tests::relay::{TestClient, TestRelay, eventually, tenant};
use belay_transport::env::{Clock, SystemClock};
use std::process::Command;

const EVER: (i64, i64) = (0, 1_000_000);

async fn ask(client: &TestClient) -> End {
    let body = r#"{"model":"gpt-4.1","stream":true,"max_tokens":1000,"messages":[{"role":"user","content":"hi"}]}"#;
    let request =
        EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "gpt-4.1", body.as_bytes().to_vec());
    client.client.escalate(request, belay_tests::relay::PATIENCE).await.unwrap().collect().await.unwrap().end.unwrap()
}

fn tokens(usage: &[UsageLine]) -> Tokens {
    let units = |kind| usage.iter().filter(|line| line.kind == kind).map(|line| line.units).sum();
    Tokens {
        input: units(UnitKind::INPUT),
        output: units(UnitKind::OUTPUT),
        cache_read: units(UnitKind::CACHE_READ),
        cache_write: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_estimated_becomes_what_the_provider_counts() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = TestRelay::start(&format!(
        "[billing]\nflush_after_s = 1\n[providers.openai]\nkind = \"openai\"\nprices = \"openai\"\nurl = \"{}\"\n[models.\"gpt-4.1\"]\nprovider = \"openai\"\n",
        provider.url()
    ))
    .await;
    let admin = relay.relay().admin();
    admin.create_tenant(tenant("other")).await.unwrap();
    admin.operate(&tenant("other"), Operation::Credit, NanoUsd(5_000_000_000), None, None).await.unwrap();
    let (one, two) = (relay.client().await, relay.client_of("other").await);
    let mut told = Tokens::default();
    for client in [&one, &two, &one] {
        provider.push_script(Script::tokens(20));
        told.add(tokens(&ask(client).await.usage));
    }
    let mut estimates = vec![];
    for (client, events) in [(&one, 40), (&two, 10), (&one, 30)] {
        provider.push_script(Script { cut_after: Some(events), ..Script::tokens(100) });
        let end = ask(client).await;
        assert!(end.estimated, "{end:?}");
        estimates.push(end);
    }
    // Who pays the provider by a key of its own is not on the relay's bill.
    admin.create_tenant(tenant("own")).await.unwrap();
    admin.operate(&tenant("own"), Operation::Credit, NanoUsd(5_000_000_000), None, None).await.unwrap();
    let byok = TermsChange { tier: Some(Tier::Byok), ..TermsChange::default() };
    admin.change_terms(&tenant("own"), byok).await.unwrap();
    admin.set_provider_key(&tenant("own"), "openai".into(), Some("sk-own".into())).await.unwrap();
    provider.push_script(Script { cut_after: Some(20), ..Script::tokens(100) });
    assert!(ask(&relay.client_of("own").await).await.estimated);
    let own_before = relay.balance("own").await;
    let listed: Vec<_> = admin.estimated(None, EVER).await.unwrap();
    assert_eq!((listed.len(), listed.iter().filter(|one| one.charge.own_key).count()), (4, 1));
    assert_eq!(admin.estimated(Some(tenant("other")), EVER).await.unwrap()[0].charge.usage, estimates[1].usage);
    // The day's bill: what was told, and more than was estimated; under the model's dated name.
    let mut truth = told;
    truth.add(Tokens { input: 1000, output: 501, cache_read: 64, cache_write: 0 });
    let day = calendar::day(SystemClock.now_ms());
    let bill = |apply, force| Reconcile {
        provider: "openai".into(),
        usage: vec![
            ProviderUsage { day, model: "gpt-4.1-2025-04-14".into(), tokens: truth },
            ProviderUsage { day: day - 400, model: "gpt-3".into(), tokens: truth },
        ],
        apply,
        force,
    };
    let before = [relay.balance("acme").await, relay.balance("other").await];
    let compared = admin.reconcile(bill(false, false)).await.unwrap();
    assert_eq!(compared.len(), 2, "{compared:?}");
    assert_eq!((compared[0].day, compared[0].ours), (day - 400, Tokens::default()), "nobody here used it");
    assert_eq!((compared[1].theirs, compared[1].estimated, compared[1].corrected), (truth, 3, 0));
    assert_eq!([relay.balance("acme").await, relay.balance("other").await], before, "looking changes nothing");
    // A charge is corrected once: not before all of the day is known, and not on half of a bill.
    let early = admin.reconcile(bill(true, false)).await.unwrap();
    assert_eq!((early[1].estimated, early[1].corrected), (3, 0));
    assert!(early[1].left.as_ref().unwrap().contains("not over"), "{early:?}");
    let handed = async || {
        let groups = admin.central_usage(None, EVER, CentralGrouping::Tenant).await.unwrap();
        groups.iter().map(|group| group.totals.cost_nano).sum::<i64>()
    };
    let spent = async || {
        let mut left = 0;
        for name in ["acme", "other", "own"] {
            left += relay.balance(name).await;
        }
        15_000_000_000 - left
    };
    eventually("central has the charges", async || handed().await == spent().await).await;
    let compared = admin.reconcile(bill(true, true)).await.unwrap();
    assert_eq!((compared[1].estimated, compared[1].corrected), (3, 3));
    eventually("central has the corrections, by itself", async || handed().await == spent().await).await;
    let after = [relay.balance("acme").await, relay.balance("other").await];
    assert_eq!(before.iter().sum::<i64>() - after.iter().sum::<i64>(), compared[1].difference_nano_usd);
    assert!(after[0] < before[0] && after[1] < before[1], "all three had used more");
    relay.verify().await;
    // Now books and bill agree, and nothing is left to correct.
    let again = admin.reconcile(bill(true, true)).await.unwrap();
    assert_eq!((again[1].ours, again[1].estimated, again[1].corrected), (truth, 0, 0));
    assert!(admin.estimated(None, EVER).await.unwrap().iter().all(|one| one.charge.own_key));
    assert_eq!(relay.balance("own").await, own_before);
    for (name, client) in [("acme", &one), ("other", &two)] {
        let usage = admin.usage(&tenant(name), EVER, Grouping::All).await.unwrap()[0].totals;
        assert_eq!((usage.estimated, usage.cost_nano), (0, 5_000_000_000 - relay.balance(name).await));
        admin.flush(&tenant(name)).await.unwrap();
        let mut lines = vec![];
        let taken = client.client.statement((0, 1_000_000), belay_tests::relay::PATIENCE, |line| {
            lines.push(line);
            true
        });
        taken.await.unwrap();
        assert!(lines.iter().any(|line| line.kind == "correct" && line.amount > NanoUsd::ZERO));
    }
    relay.verify().await;
    // The recorded end is what it was.
    let repeated = client_resume(&one, &estimates[0]).await;
    assert_eq!(repeated, estimates[0]);
    let unknown =
        admin.reconcile(Reconcile { provider: "opnai".into(), ..bill(true, true) }).await.expect_err("unknown");
    assert!(unknown.to_string().contains("it has demo, openai"), "{unknown}");
    relay.stop().await;
}

async fn client_resume(client: &TestClient, end: &End) -> End {
    let resumed = client.client.resume(end.request_id, belay_tests::relay::PATIENCE).await.unwrap();
    resumed.collect().await.unwrap().end.unwrap()
}

#[test]
fn the_commands_list_compare_and_correct() {
    let mut relay = Belayd::start("[providers.demo]\nkind = \"demo\"\n").unwrap();
    relay.run(&["tenant", "create", "acme", "--credit", "5"]).unwrap();
    let shown = relay.command(&["ledger", "estimated"]).unwrap();
    assert_eq!(shown.json().unwrap(), serde_json::json!([]));
    let file = relay.dir().join("usage.csv");
    std::fs::write(&file, "date,model,input_tokens,output_tokens\n2026-11-24,demo-1,10,5\n").unwrap();
    let compared = relay.run(&["ledger", "reconcile", "demo", file.to_str().unwrap(), "--apply"]).unwrap();
    assert_eq!((&compared[0]["theirs"]["input"], &compared[0]["corrected"]), (&10.into(), &0.into()));
    let mut plain = Command::new(binary("belayd"));
    plain.arg("--config").arg(relay.config_path()).args(["ledger", "reconcile", "demo"]).arg(&file);
    let shown = run(&mut plain).unwrap().stdout;
    assert!(shown.contains("2026-11-24  demo-1  0 (+10)       0  0 (+5)"), "{shown}");
    std::fs::write(&file, "when,model\n").unwrap();
    let refused = relay.command(&["ledger", "reconcile", "demo", file.to_str().unwrap()]).unwrap();
    assert!(refused.code != Some(0) && refused.stderr.contains("the file has when, model"), "{}", refused.stderr);
    relay.terminate().unwrap();
}
