//! A hundred thousand retries of settled requests.

use belay_client::escalation::EscalationRequest;
use belay_protocol::id::RequestId;
use belay_protocol::message::{End, Outcome, UnitKind, UsageLine};
use belay_protocol::money::NanoUsd;
use belay_relay::pricing::{PriceLine, PriceSnapshot};
use belay_relay::store::StoreError;
use belay_relay::store::executor::{Db, Store, StoreConfig};
use belay_relay::store::ledger::Boot;
use belay_relay::store::ledger::hold::{HoldOutcome, HoldRequest, Multipliers, PerMinute, hold};
use belay_relay::store::ledger::money::{Operation, operate};
use belay_relay::store::ledger::request::Offer;
use belay_relay::store::ledger::settle::{Settlement, settle};
use belay_relay::store::ledger::standing::summary;
use belay_relay::store::ledger::verify::verify;
use belay_relay::store::schema::Durability;
use belay_tests::relay::{TestRelay, tenant};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const REQUESTS: u8 = 100;
const RETRIES: usize = 100_000;
/// At once.
const LANES: usize = 50;

fn request(id: u8) -> HoldRequest {
    let line = |kind| PriceLine { kind, nano_per_million: 1_000_000_000 };
    HoldRequest {
        request_id: RequestId([id; 16]),
        device: "laptop".parse().expect("a name"),
        key: None,
        digest: [id; 32],
        boot: Boot { machine: "m".into(), process: "p".into() },
        now_ms: 1_795_600_000_000,
        offers: vec![Offer {
            provider: "p".into(),
            model: "m".into(),
            price: PriceSnapshot {
                version: 1,
                multiplier_bp: 10_000,
                lines: vec![line(UnitKind::INPUT), line(UnitKind::OUTPUT)],
                tiers: vec![],
            },
            keyless: false,
        }],
        multipliers: Multipliers { free: 10_000, managed: 10_300, byok: 3_000 },
        allowance: NanoUsd::ZERO,
        input_bound: 100,
        refers: None,
        input_bytes: 80,
        asked_output: Some(100),
        default_output: 100,
        may_reduce: false,
        choices: 1,
        extra_output: 0,
        question: None,
        cost_cap: None,
        rates: Arc::default(),
        per_minute: PerMinute { requests: 10_000, tokens: None },
        at_once: 1000,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_retries_are_answered_by_the_first_end_and_charged_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::start(&StoreConfig {
        dir: dir.path().into(),
        threads: 2,
        durability: Durability::None,
        idle_close: Duration::from_secs(60),
        max_open: 10,
    });
    let db = || Db::Tenant(tenant("acme"));
    store
        .run(db(), |connection| operate(connection, Operation::Credit, NanoUsd(1 << 50), "opening", None, 0))
        .await
        .unwrap();
    let mut ends = vec![];
    for id in 0..REQUESTS {
        let end = store.run(db(), move |connection| {
            hold(connection, &request(id))?;
            let usage = [(UnitKind::INPUT, 20), (UnitKind::OUTPUT, u64::from(id) + 1)];
            let settlement = Settlement {
                request_id: RequestId([id; 16]),
                offer: 0,
                outcome: Outcome::COMPLETE,
                message: String::new(),
                usage: usage.into_iter().map(|(kind, units)| UsageLine { kind, units }).collect(),
                estimated: false,
                events: 1,
                first_event_ms: Some(1),
                answer: Arc::default(),
                now_ms: 1_795_600_000_005,
            };
            Ok::<_, StoreError>(settle(connection, &settlement)?.end_bytes)
        });
        ends.push(end.await.unwrap());
    }
    let ends = Arc::new(ends);
    let before = store.run(db(), summary).await.unwrap();
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let (store, ends) = (store.clone(), Arc::clone(&ends));
        lanes.spawn(async move {
            for number in 0..RETRIES / LANES {
                let id = ((lane * 7 + number) % usize::from(REQUESTS)) as u8;
                let db = Db::Tenant(tenant("acme"));
                let outcome = store.run(db, move |connection| hold(connection, &request(id))).await;
                match outcome.unwrap() {
                    HoldOutcome::Finished { end, .. } => assert_eq!(end, ends[usize::from(id)]),
                    other => panic!("{other:?}"),
                }
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
    assert_eq!(store.run(db(), summary).await.unwrap(), before);
    let report = store.run(db(), |connection| verify(connection, None, 0)).await.unwrap();
    assert_eq!((report.problems, report.settled), (vec![], u64::from(REQUESTS)));
    store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_over_the_tunnel_get_the_same_end() {
    let relay = TestRelay::start("").await;
    let client = Arc::new(relay.client().await);
    let mut asked: Vec<(EscalationRequest, End)> = vec![];
    for _ in 0..10 {
        let request = client.prompt("Why is the sky blue?");
        let end = client.send(request.clone()).await.end.expect("settled");
        asked.push((request, end));
    }
    let balance = relay.balance("acme").await;
    let mut lanes = JoinSet::new();
    for (request, first) in asked {
        let client = Arc::clone(&client);
        lanes.spawn(async move {
            for _ in 0..200 {
                assert_eq!(client.send(request.clone()).await.end.as_ref(), Some(&first));
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
    assert_eq!(relay.balance("acme").await, balance);
    relay.verify().await;
    relay.stop().await;
}
