//! The book by itself: every way a hold can end, what recovery does after a death, and that verify
//! sees what does not fit.

mod borders;
mod corrections;
mod damage;
mod details;
mod model;
mod reference;
mod tampering;
mod terms;
mod turns;

use super::budget::{Measure, Scope};
use super::hold::{Held, HoldOutcome, HoldRefusal, HoldRequest, Multipliers, PerMinute, hold};
use super::money::{Operation, operate};
use super::rates::{Bound, RateRefusal};
use super::recover::recover;
use super::request::Offer;
use super::settle::{Settled, Settlement, settle, void, void_made_at};
use super::standing::{Terms, Tier, set_terms};
use super::verify::Report;
use super::{Account, Boot, balance};
use crate::pricing::{PriceLine, PriceSnapshot};
use crate::store::StoreError;
use crate::store::journal::Progress;
use crate::store::schema::{Durability, Kind, open};
use belay_protocol::codec::Message;
use belay_protocol::dialect::usage::ToldInput;
use belay_protocol::id::RequestId;
use belay_protocol::message::{End, Outcome, UnitKind, UsageLine};
use belay_protocol::money::NanoUsd;
use rusqlite::Connection;
use std::collections::HashMap;
use std::sync::Arc;
use tempfile::TempDir;

const NOW: u64 = 1_790_000_000_000;

struct Book {
    connection: Connection,
    dir: TempDir,
}

fn book(credited: i64) -> Book {
    let dir = tempfile::tempdir().expect("made");
    let connection = open(&dir.path().join("t.db"), Kind::Tenant, Durability::None).expect("opened");
    if credited > 0 {
        credit(&connection, credited, "opening");
    }
    Book { connection, dir }
}

fn credit(connection: &Connection, nano: i64, operation: &str) {
    operate(connection, Operation::Credit, NanoUsd(nano), operation, None, NOW).expect("credited");
}

fn verify(connection: &Connection) -> Report {
    super::verify::verify(connection, None, 0).expect("checked")
}

fn boot(machine: &str, process: &str) -> Boot {
    Boot { machine: machine.into(), process: process.into() }
}

pub(crate) fn request(id: u8) -> HoldRequest {
    let line = |kind, nano_per_million| PriceLine { kind, nano_per_million };
    HoldRequest {
        request_id: RequestId([id; 16]),
        device: "laptop".parse().expect("name"),
        key: None,
        digest: [7; 32],
        boot: boot("m1", "p1"),
        now_ms: NOW,
        // A micro-dollar per token of either kind.
        offers: vec![Offer {
            provider: "p".into(),
            model: "m".into(),
            price: PriceSnapshot {
                version: 1,
                multiplier_bp: 10_000,
                lines: vec![line(UnitKind::INPUT, 1_000_000_000), line(UnitKind::OUTPUT, 1_000_000_000)],
                tiers: vec![],
            },
            keyless: false,
        }],
        multipliers: Multipliers { free: 10_000, managed: 10_000, byok: 3_000 },
        allowance: NanoUsd(500_000),
        input_bound: 100,
        refers: None,
        input_bytes: 80,
        asked_output: Some(900),
        default_output: 4096,
        may_reduce: false,
        choices: 1,
        extra_output: 0,
        question: None,
        cost_cap: None,
        rates: Arc::default(),
        per_minute: PerMinute { requests: 1000, tokens: None },
        at_once: 100,
    }
}

/// What [`request`] holds: 1,000 tokens and the rounding of the lines that there can be.
const HELD: i64 = 1_000_000 + 7;

fn settlement(id: u8, input: u64, output: u64) -> Settlement {
    Settlement {
        request_id: RequestId([id; 16]),
        offer: 0,
        outcome: Outcome::COMPLETE,
        message: String::new(),
        usage: vec![
            UsageLine { kind: UnitKind::INPUT, units: input },
            UsageLine { kind: UnitKind::OUTPUT, units: output },
        ],
        estimated: false,
        events: 3,
        first_event_ms: Some(1),
        answer: Arc::default(),
        now_ms: NOW + 5,
    }
}

fn held(book: &Book, request: &HoldRequest) -> NanoUsd {
    match hold(&book.connection, request).expect("works") {
        HoldOutcome::Held(Held { amount, .. }) => amount,
        other => panic!("not held: {other:?}"),
    }
}

fn refusal(book: &Book, request: &HoldRequest) -> HoldRefusal {
    match hold(&book.connection, request).expect("works") {
        HoldOutcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn prepaid(book: &Book) -> i64 {
    balance(&book.connection, Account::Prepaid).expect("read").0
}

fn clean(book: &Book) {
    assert_eq!(verify(&book.connection).problems, Vec::<String>::new());
}

#[test]
fn a_hold_becomes_a_charge_and_the_rest_goes_back() {
    let book = book(5_000_000);
    assert_eq!(held(&book, &request(1)), NanoUsd(HELD));
    assert_eq!(prepaid(&book), 5_000_000 - HELD);
    clean(&book);
    let first = settle(&book.connection, &settlement(1, 100, 50)).expect("settled");
    assert_eq!((first.end.cost, first.end.balance), (NanoUsd(150_000), NanoUsd(4_850_000)));
    assert_eq!(End::decode_body(&first.end_bytes).expect("valid"), first.end);
    // Again, with other figures: the first answer, byte for byte.
    let again = settle(&book.connection, &settlement(1, 9, 9)).expect("again");
    assert_eq!(again, Settled { is_repeated: true, ..first.clone() });
    match hold(&book.connection, &request(1)).expect("works") {
        HoldOutcome::Finished { end, .. } => assert_eq!(end, first.end_bytes),
        other => panic!("ran again: {other:?}"),
    }
    void(&book.connection, RequestId([1; 16]), NOW).expect("changes nothing");
    assert_eq!(prepaid(&book), 4_850_000);
    clean(&book);
}

#[test]
fn a_voided_hold_may_run_again() {
    let book = book(HELD);
    held(&book, &request(1));
    assert_eq!(refusal(&book, &request(1)), HoldRefusal::InProgress);
    void(&book.connection, RequestId([1; 16]), NOW).expect("voided");
    assert_eq!(prepaid(&book), HELD);
    held(&book, &request(1));
    settle(&book.connection, &settlement(1, 1, 1)).expect("settled");
    clean(&book);
}

#[test]
fn money_is_never_promised_twice() {
    let book = book(HELD + 10);
    held(&book, &request(1));
    let missing = NanoUsd(HELD - 10);
    assert_eq!(
        refusal(&book, &request(2)),
        HoldRefusal::PaymentRequired { missing, available: NanoUsd(10), tier: Tier::Managed, suspended: false }
    );
    clean(&book);
    assert!(matches!(settle(&book.connection, &settlement(2, 1, 1)), Err(StoreError::NoHold { .. })));
}

#[test]
fn usage_above_the_hold_takes_the_balance_and_then_the_relay() {
    let book = book(HELD + 500_000);
    held(&book, &request(1));
    let settled = settle(&book.connection, &settlement(1, 1_000_000, 1_000_000)).expect("settled");
    assert_eq!(settled.end.cost, NanoUsd(HELD + 500_000));
    assert_eq!(settled.absorbed, NanoUsd(2_000_000_000 - HELD - 500_000));
    assert_eq!(prepaid(&book), 0);
    clean(&book);
}

#[test]
fn limits_refuse_before_anything_is_written() {
    let book = book(50_000_000);
    let one_a_minute = HoldRequest { per_minute: PerMinute { requests: 1, tokens: None }, ..request(1) };
    held(&book, &one_a_minute);
    let second = HoldRequest { request_id: RequestId([2; 16]), ..one_a_minute };
    assert_eq!(
        refusal(&book, &second),
        HoldRefusal::RateLimited(RateRefusal {
            bound: Bound { scope: Scope::Tenant, measure: Measure::RequestsMinute, count: 1 },
            retry_after_ms: 60_000,
        })
    );
    assert_eq!(refusal(&book, &HoldRequest { at_once: 1, ..request(3) }), HoldRefusal::TooManyAtOnce);
    let dear = HoldRequest { cost_cap: Some(NanoUsd(HELD - 7)), ..request(4) };
    assert_eq!(refusal(&book, &dear), HoldRefusal::AboveCostCap { missing: NanoUsd(7) });
    assert_eq!(refusal(&book, &HoldRequest { digest: [8; 32], ..request(1) }), HoldRefusal::Conflict);
    set_terms(&book.connection, &Terms { suspended: true, ..Terms::default() }, 1).expect("set");
    assert_eq!(refusal(&book, &request(5)), HoldRefusal::Suspended);
    assert_eq!(verify(&book.connection).open, 1);
}

#[test]
fn without_a_cap_a_request_takes_its_fair_share() {
    let book = book(10_000_000);
    let open_ended = |id| HoldRequest { asked_output: None, ..request(id) };
    let cap_of = |book: &Book, request| match hold(&book.connection, &request).expect("works") {
        HoldOutcome::Held(Held { output_cap, .. }) => Some(output_cap),
        _ => None,
    };
    // A tenth each, a hundred tokens of it for the input: ten at once get the same.
    for id in 0..10 {
        let cap = cap_of(&book, open_ended(id)).expect("held");
        assert!((890..=900).contains(&cap), "{cap}");
    }
    assert_eq!(cap_of(&book, open_ended(10)), None, "nothing is left");
    // With little, all ten still get something.
    let small = self::book(10 * (100 + 64) * 1000 + 200);
    for id in 0..10 {
        assert_eq!(cap_of(&small, open_ended(id)), Some(64));
    }
}

#[test]
fn credits_with_a_name_count_once() {
    let book = book(0);
    for _ in 0..3 {
        credit(&book.connection, 5, "invoice-7");
    }
    assert_eq!(prepaid(&book), 5);
    let again = |what, nano| operate(&book.connection, what, NanoUsd(nano), "invoice-7", None, NOW);
    assert!(again(Operation::Credit, 6).is_err(), "the same name, another amount");
    assert!(again(Operation::Refund, 5).is_err(), "the same name, another operation");
    clean(&book);
}

#[test]
fn recovery_voids_what_was_never_dispatched_and_settles_the_rest_on_its_progress() {
    let book = book(50_000_000);
    for id in 1..=3 {
        held(&book, &request(id));
    }
    let far = Progress {
        events: 9,
        output_bytes: 400,
        told_input: Some(ToldInput { input: 50, cache_read: 10, ..ToldInput::default() }),
        offer: 0,
    };
    let journal = HashMap::from([(RequestId([2; 16]), Progress::default()), (RequestId([3; 16]), far)]);
    let recovered = recover(&book.connection, &boot("m1", "p2"), Some(&journal), NOW + 9).expect("recovered");
    assert_eq!(recovered.voided, [RequestId([1; 16])]);
    let ends: HashMap<_, _> = recovered.settled.iter().map(|settled| (settled.end.request_id, &settled.end)).collect();
    // Dispatched, nothing heard: the input, by its bytes.
    let silent = ends[&RequestId([2; 16])];
    assert_eq!((silent.units(UnitKind::INPUT), silent.units(UnitKind::OUTPUT)), (20, 0));
    let far_along = ends[&RequestId([3; 16])];
    assert_eq!((far_along.units(UnitKind::INPUT), far_along.units(UnitKind::OUTPUT)), (50, 100));
    assert_eq!(far_along.units(UnitKind::CACHE_READ), 10);
    for end in ends.values() {
        assert!(end.estimated && end.outcome == Outcome::RELAY_DIED);
    }
    assert_eq!(verify(&book.connection).open, 0);
    clean(&book);
}

#[test]
fn after_a_power_loss_the_journal_proves_nothing_and_own_holds_are_left_alone() {
    let book = book(50_000_000);
    held(&book, &request(1));
    held(&book, &HoldRequest { boot: boot("m2", "p3"), ..request(2) });
    let recovered = recover(&book.connection, &boot("m2", "p3"), Some(&HashMap::new()), NOW).expect("recovered");
    assert_eq!(recovered.voided, []);
    assert_eq!(recovered.settled.len(), 1, "the machine was started anew: it counts as dispatched");
    assert_eq!(verify(&book.connection).open, 1, "the hold of this process");
    // A journal that is gone proves nothing either.
    let book = self::book(50_000_000);
    held(&book, &request(1));
    let recovered = recover(&book.connection, &boot("m1", "p2"), None, NOW).expect("recovered");
    assert_eq!((recovered.voided.len(), recovered.settled.len()), (0, 1));
}

#[test]
fn a_hold_of_which_nobody_knows_is_voided_only_if_it_is_that_one() {
    let book = book(10 * HELD);
    let before = balance(&book.connection, Account::Prepaid).expect("read");
    held(&book, &request(1));
    // The caller has tried again in the meantime: that hold is another.
    void_made_at(&book.connection, RequestId([1; 16]), NOW - 5, NOW).expect("works");
    assert_eq!(refusal(&book, &request(1)), HoldRefusal::InProgress);
    void_made_at(&book.connection, RequestId([1; 16]), NOW, NOW).expect("works");
    assert_eq!(balance(&book.connection, Account::Prepaid).expect("read"), before);
}
