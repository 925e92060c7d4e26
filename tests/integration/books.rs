//! What a tenant pays with and how far, through the whole path; and usage on its way to central.

use belay_client::Phase;
use belay_protocol::message::FailureCode;
use belay_protocol::money::NanoUsd;
use belay_relay::admin::service::TermsChange;
use belay_relay::store::central::usage::CentralGrouping;
use belay_relay::store::ledger::budget::{Measure, Scope};
use belay_relay::store::ledger::money::Operation;
use belay_relay::store::ledger::standing::Tier;
use belay_relay::store::ledger::usage::Grouping;
use belay_tests::relay::{PATIENCE, TestRelay, eventually, tenant};
use tokio::time::timeout;

/// All days that there were.
const EVER: (i64, i64) = (0, 1_000_000);

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_handed_to_central_once_and_the_books_agree() {
    let relay = TestRelay::start("[billing]\nflush_after_s = 3600\n").await;
    let client = relay.client().await;
    for _ in 0..5 {
        assert!(client.ask("Why is the sky blue?").await.end.is_some());
    }
    let admin = relay.relay().admin();
    let central = async || admin.central_usage(None, EVER, CentralGrouping::Tenant).await.unwrap();
    assert_eq!(central().await, [], "neither enough money nor enough time has come together");
    relay.verify().await;
    for _ in 0..2 {
        assert_eq!(admin.flush(&tenant("acme")).await.unwrap().rows, 0);
    }
    let own = admin.usage(&tenant("acme"), EVER, Grouping::All).await.unwrap();
    assert_eq!((own[0].totals.requests, central().await[0].totals), (5, own[0].totals));
    let charged = NanoUsd(5_000_000_000 - relay.balance("acme").await);
    assert_eq!(own[0].totals.cost_nano, charged.0);
    relay.verify().await;
    // A relay that is stopped hands over what waits.
    assert!(client.ask("Why is the sky blue?").await.end.is_some());
    let relay = relay.restart().await;
    let after = relay.relay().admin().central_usage(None, EVER, CentralGrouping::Tenant).await.unwrap();
    assert_eq!(after[0].totals.requests, 6);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enough_money_that_waits_is_handed_over_by_itself() {
    let relay = TestRelay::start("[billing]\nflush_after_s = 3600\nflush_at = \"0.000001\"\n").await;
    assert!(relay.client().await.ask("Hi").await.end.is_some());
    eventually("central has it", async || {
        !relay.relay().admin().central_usage(None, EVER, CentralGrouping::Day).await.unwrap().is_empty()
    })
    .await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_never_overshot_and_says_when_it_begins_anew() {
    let relay = TestRelay::start("").await;
    let (client, other) = (relay.client().await, relay.client().await);
    let admin = relay.relay().admin();
    let scope = Scope::Device(client.client.identity().device.to_string());
    admin.set_budget(&tenant("acme"), scope.clone(), Measure::SpendDay, Some(20_000_000)).await.unwrap();
    let mut refused = None;
    for _ in 0..200 {
        let asked = client.ask("Why is the sky blue?").await;
        if asked.failed.is_some() {
            refused = asked.failed;
            break;
        }
    }
    let refused = refused.expect("the budget is used up at last");
    assert_eq!(refused.code, FailureCode::PAYMENT_REQUIRED);
    assert!(refused.message.contains("budget of device:") && refused.missing.is_some(), "{}", refused.message);
    let wait_ms = refused.retry_after_ms.expect("says when");
    assert!((1..=86_400_000).contains(&wait_ms), "{wait_ms}");
    let spent = admin.usage(&tenant("acme"), EVER, Grouping::Device).await.unwrap();
    assert!(spent[0].totals.cost_nano <= 20_000_000, "{}", spent[0].totals.cost_nano);
    assert!(other.ask("Hi").await.end.is_some(), "another device has none");
    admin.set_budget(&tenant("acme"), scope, Measure::SpendDay, None).await.unwrap();
    assert!(client.ask("Hi").await.end.is_some());
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_at_its_ceiling_is_suspended_if_its_terms_say_so() {
    let relay = TestRelay::start("").await;
    let admin = relay.relay().admin();
    admin.create_tenant(tenant("trusted")).await.unwrap();
    let terms =
        TermsChange { ceiling: Some(NanoUsd(10_000)), suspend_at_ceiling: Some(true), ..TermsChange::default() };
    admin.change_terms(&tenant("trusted"), terms).await.unwrap();
    let client = relay.client_of("trusted").await;
    let mut status = client.client.status();
    // One that is too dear for what is left is refused, and no reason to stop all others.
    let refused = client.ask("Why is the sky blue?").await.failed.expect("more than the ceiling");
    assert!(!refused.message.contains("suspended"), "{}", refused.message);
    admin.operate(&tenant("trusted"), Operation::Chargeback, NanoUsd(9_950), None, None).await.unwrap();
    let refused = client.ask("Why is the sky blue?").await.failed.expect("as good as nothing is left");
    assert!(refused.message.contains("suspended"), "{}", refused.message);
    let out = status
        .wait_for(|status| matches!(&status.phase, Phase::Waiting { reason, .. } if reason.contains("suspended")));
    timeout(PATIENCE, out).await.expect("its tunnels close").unwrap();
    // Until the operator has been paid.
    admin.operate(&tenant("trusted"), Operation::Credit, NanoUsd(1_000_000_000), None, None).await.unwrap();
    admin.suspend(&tenant("trusted"), false).await.unwrap();
    assert!(relay.client_of("trusted").await.ask("Hi").await.end.is_some());
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_free_tier_pays_with_its_allowance_at_its_own_multiplier() {
    let relay = TestRelay::start("[billing]\nfree_allowance = \"0.05\"\n").await;
    let admin = relay.relay().admin();
    let info = admin.create_tenant(tenant("free")).await.unwrap();
    assert_eq!(info.credits_nano_usd, 0);
    let terms = TermsChange { tier: Some(Tier::Free), ..TermsChange::default() };
    assert_eq!(admin.change_terms(&tenant("free"), terms).await.unwrap().credits_nano_usd, 50_000_000);
    let (free, paid) = (relay.client_of("free").await, relay.client().await);
    let (free_end, paid_end) = (free.ask("Hi").await.end.unwrap(), paid.ask("Hi").await.end.unwrap());
    assert_eq!(free_end.usage, paid_end.usage);
    assert!(free_end.cost < paid_end.cost, "{} and {}", free_end.cost, paid_end.cost);
    assert_eq!(free_end.balance, NanoUsd(50_000_000) - free_end.cost);
    let mut refused = None;
    while refused.is_none() {
        refused = free.ask("Why is the sky blue?").await.failed;
    }
    let refused = refused.unwrap();
    assert!(refused.message.contains("allowance") && refused.remedy.contains("next month"), "{}", refused.message);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_has_waited_long_enough_is_handed_over_by_itself() {
    let relay = TestRelay::start("[billing]\nflush_after_s = 1\nflush_at = \"1000\"\n").await;
    assert!(relay.client().await.ask("Hi").await.end.is_some());
    eventually("central has it", async || {
        !relay.relay().admin().central_usage(None, EVER, CentralGrouping::Day).await.unwrap().is_empty()
    })
    .await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_per_minute_are_limited_by_what_was_used_and_answers_say_what_is_left() {
    let relay = TestRelay::start("[limits]\ntokens_per_minute = 2000\nrequests_per_minute = 50\n").await;
    let client = relay.client().await;
    let ask = async || client.ask("Why is the sky blue?").await;
    let left = |asked: &belay_client::escalation::Collected, name: &str| {
        let headers = &asked.head.as_ref().expect("answered").headers;
        headers.iter().find(|(header, _)| header == name).expect("told").1.parse::<u64>().expect("a number")
    };
    let first = ask().await;
    assert_eq!(left(&first, "belay-remaining-requests"), 49);
    let before = left(&first, "belay-remaining-tokens");
    let used: u64 = first.end.as_ref().expect("settled").usage.iter().map(|line| line.units).sum();
    // What was not used is given back: the next one begins with all but what was used.
    let second = left(&ask().await, "belay-remaining-tokens");
    let taken = 2000 - before;
    assert!(second + taken + used >= 1990, "{second} + {taken} + {used}");
    let mut refused = None;
    for _ in 0..40 {
        refused = ask().await.failed;
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("the minute's tokens are used up");
    assert_eq!(refused.code, FailureCode::RATE_LIMITED);
    assert!(refused.message.contains("too many tokens") && refused.retry_after_ms.is_some(), "{}", refused.message);
    relay.stop().await;
}
