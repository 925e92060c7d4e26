//! Money through the whole path: client, tunnel, relay, provider, book.

use crate::scripted::Scripted;
use belay_client::ClientError;
use belay_client::escalation::{Collected, EscalationRequest};
use belay_protocol::message::{Content, Dialect, FailureCode, Outcome, UnitKind};
use belay_protocol::money::NanoUsd;
use belay_relay::Overrides;
use belay_relay::store::ledger::money::Operation;
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, tenant};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

fn overrides(provider: &Arc<Scripted>) -> Overrides {
    let mut overrides = Overrides::default();
    overrides.providers.insert("demo".into(), Arc::clone(provider) as _);
    overrides
}

fn openai(client: &TestClient, body: &str) -> EscalationRequest {
    EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "demo", body.as_bytes().to_vec())
}

const ASK: &str = r#"{"model":"demo","stream":true,"max_tokens":500,"messages":[{"role":"user","content":"hi"}]}"#;

/// An answer whose usage is told as 1000 input and 500 output tokens.
fn example() -> Arc<Scripted> {
    Scripted::events(&[
        r#"{"choices":[{"index":0,"delta":{"content":"x"}}]}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":500}}"#,
        "[DONE]",
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worked_example_comes_out_to_the_nano_dollar() {
    let relay = TestRelay::with("", overrides(&example())).await;
    let client = relay.client().await;
    let answer = client.send(openai(&client, ASK)).await;
    let end = answer.end.expect("settled");
    assert_eq!(end.outcome, Outcome::COMPLETE);
    assert_eq!((end.units(UnitKind::INPUT), end.units(UnitKind::OUTPUT)), (1000, 500));
    assert_eq!(end.cost, NanoUsd(10_815_000));
    assert_eq!(end.balance, NanoUsd(5_000_000_000 - 10_815_000));
    assert!(!end.estimated);
    // The usage was asked for by the relay, not by the caller, who does not see its event.
    assert_eq!(answer.events.len(), 2);
    assert_eq!(relay.balance("acme").await, end.balance.0);
    relay.verify().await;
    relay.stop().await;
}

/// A thousand requests at once, from twenty devices, against money for `paid_for` of them at once.
async fn a_thousand(relay: &TestRelay, paid_for: i64) -> (NanoUsd, JoinSet<Collected>) {
    let held = held_by_one(relay).await;
    relay.relay().admin().create_tenant(tenant("poor")).await.expect("made");
    let credit = NanoUsd(held.0 * paid_for);
    relay.relay().admin().operate(&tenant("poor"), Operation::Credit, credit, None, None).await.expect("credited");
    let mut running = JoinSet::new();
    for _ in 0..20 {
        let client = Arc::new(relay.client_of("poor").await);
        for _ in 0..50 {
            let client = Arc::clone(&client);
            running.spawn(async move { client.send(openai(&client, ASK)).await });
        }
    }
    (credit, running)
}

/// Answered or refused for want of money; true if answered.
fn is_answered(collected: &Collected) -> bool {
    match (&collected.end, &collected.failed) {
        (Some(end), None) => {
            assert_eq!((end.outcome, end.cost), (Outcome::COMPLETE, NanoUsd(10_815_000)));
            assert!(!end.balance.is_negative());
            true
        }
        (None, Some(failed)) => {
            assert_eq!(failed.code, FailureCode::PAYMENT_REQUIRED);
            assert!(failed.missing.expect("told") > NanoUsd::ZERO);
            false
        }
        other => panic!("neither answered nor refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_at_once_from_twenty_devices_against_a_balance_for_three_hundred() {
    let provider = example();
    let relay = TestRelay::with("", overrides(&provider)).await;
    let (credit, mut running) = a_thousand(&relay, 300).await;
    let mut answers = 0;
    while let Some(collected) = running.join_next().await {
        answers += i64::from(is_answered(&collected.expect("no panic")));
    }
    // As many charges as answers; what holds gave back has paid for some more than three hundred.
    let left = relay.balance("poor").await;
    assert_eq!(left, credit.0 - 10_815_000 * answers);
    assert!(left >= 0 && answers >= 300, "{answers} answers, {left} left");
    assert_eq!(provider.calls() as i64, answers + 1, "every call was answered and charged");
    relay.verify().await;
    relay.stop().await;
}

/// What one such request holds at the most.
async fn held_by_one(relay: &TestRelay) -> NanoUsd {
    let client = relay.client().await;
    let answer = client.send(openai(&client, ASK)).await;
    answer.head.expect("answered").held
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_as_many_run_at_once_as_the_money_holds() {
    let provider = example();
    let relay = TestRelay::with("", overrides(&provider)).await;
    // What one holds is found out before the pause.
    held_by_one(&relay).await;
    provider.pause_after(2);
    let (credit, mut running) = a_thousand(&relay, 300).await;
    // Nothing comes back while the provider is paused: seven hundred find no money.
    for _ in 0..700 {
        let ended = tokio::time::timeout(PATIENCE, running.join_next()).await.expect("in time").expect("some run");
        assert!(!is_answered(&ended.expect("no panic")));
    }
    provider.called(302).await;
    assert_eq!((provider.calls(), relay.balance("poor").await), (302, 0));
    provider.resume();
    while let Some(ended) = running.join_next().await {
        assert!(is_answered(&ended.expect("no panic")));
    }
    assert_eq!(relay.balance("poor").await, credit.0 - 300 * 10_815_000);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_charged_once_for_ever() {
    let provider = example();
    let relay = TestRelay::with("", overrides(&provider)).await;
    let client = relay.client().await;
    let request = openai(&client, ASK);
    let first = client.send(request.clone()).await;
    let balance = relay.balance("acme").await;
    for _ in 0..20 {
        let again = client.send(request.clone()).await;
        assert_eq!(again.head.expect("told").content, Content::GONE);
        assert_eq!(again.end, first.end);
        assert!(again.events.is_empty());
    }
    assert_eq!((relay.balance("acme").await, provider.calls()), (balance, 1));
    // The same id is nobody else's.
    let mut other = request.clone();
    other.body = ASK.replace("hi", "ho").into_bytes().into();
    assert_eq!(client.send(other).await.failed.expect("refused").code, FailureCode::CONFLICT);
    let second_device = relay.client().await;
    assert_eq!(second_device.send(request).await.failed.expect("refused").code, FailureCode::CONFLICT);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_twice_at_once_runs_once() {
    let provider = example();
    let relay = TestRelay::with("", overrides(&provider)).await;
    let client = relay.client().await;
    provider.pause();
    let request = openai(&client, ASK);
    let mut first = client.client.escalate(request.clone(), PATIENCE).await.expect("sent");
    provider.called(1).await;
    let second = client.client.escalate(request, PATIENCE).await.expect("sent");
    let superseded = tokio::time::timeout(PATIENCE, first.next()).await.expect("told");
    assert!(matches!(superseded, Err(ClientError::Superseded)), "{superseded:?}");
    provider.resume();
    assert!(second.collect().await.expect("ends").end.is_some());
    assert_eq!(provider.calls(), 1);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_reduce_or_refuse() {
    let relay = TestRelay::start("").await;
    let client = relay.client().await;
    // 5,000,000 nano-dollars buy about 300 output tokens at this price beside the input.
    let mut request = client.prompt("Tell me a long story");
    request.max_output_tokens = Some(2000);
    request.cost_cap = Some(NanoUsd(10_000_000));
    let failed = client.send(request.clone()).await.failed.expect("refused");
    assert_eq!(failed.code, FailureCode::PAYMENT_REQUIRED);
    assert!(failed.missing.expect("told") > NanoUsd::ZERO);
    request.may_reduce_output = true;
    let answer = client.send(request).await;
    let head = answer.head.expect("answered");
    assert!(head.max_output_tokens < 2000 && head.held <= NanoUsd(10_000_000), "{head:?}");
    assert!(answer.end.expect("settled").cost <= NanoUsd(10_000_000));
    // Without a cap of the caller, a small balance still buys a small answer.
    relay.relay().admin().create_tenant(tenant("small")).await.expect("made");
    relay
        .relay()
        .admin()
        .operate(&tenant("small"), Operation::Credit, NanoUsd(9_000_000), None, None)
        .await
        .expect("credited");
    let small = relay.client_of("small").await;
    let answer = small.ask("Why is the sky blue?").await;
    assert!(answer.end.expect("settled").units(UnitKind::OUTPUT) > 0);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_request_pays_for_what_was_produced_and_the_provider_is_left_at_once() {
    let provider = Scripted::endless(Duration::from_millis(2));
    let relay = TestRelay::with("", overrides(&provider)).await;
    let client = relay.client().await;
    let mut escalation = client.client.escalate(openai(&client, ASK), PATIENCE).await.expect("sent");
    let mut events = 0;
    while events < 10 {
        if let Some(belay_client::Answer::Event(_)) = escalation.next().await.expect("goes on") {
            events += 1;
        }
    }
    escalation.cancel("enough").await.expect("sent");
    let end = escalation.collect().await.expect("ends").end.expect("settled");
    assert_eq!((end.outcome, end.message.as_str()), (Outcome::CANCELLED, "enough"));
    assert!(end.estimated && end.events >= 10 && end.cost > NanoUsd::ZERO);
    // Less than the hold, more than nothing.
    assert!(end.cost < NanoUsd(10_815_000), "{end:?}");
    provider.left(1).await;
    // A reader that goes away without a word has cancelled too.
    let escalation = client.client.escalate(openai(&client, ASK), PATIENCE).await.expect("sent");
    provider.called(2).await;
    drop(escalation);
    provider.left(2).await;
    belay_tests::relay::eventually("the hold is resolved", async || {
        relay.relay().admin().verify(None).await.expect("checked").iter().all(|book| book.report.open == 0)
    })
    .await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_above_the_hold_is_absorbed_beyond_the_balance() {
    let provider =
        Scripted::events(&[r#"{"choices":[],"usage":{"prompt_tokens":9000000,"completion_tokens":1}}"#, "[DONE]"]);
    let relay = TestRelay::with("", overrides(&provider)).await;
    let client = relay.client().await;
    let end = client.send(openai(&client, ASK)).await.end.expect("settled");
    assert_eq!(end.cost, NanoUsd(5_000_000_000), "the whole balance and no more");
    assert_eq!(end.balance, NanoUsd::ZERO);
    relay.verify().await;
    relay.stop().await;
}
