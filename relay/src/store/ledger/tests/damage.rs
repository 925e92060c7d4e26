//! A file that says what it cannot say: the error names what, and nothing moves.

use super::*;
use crate::store::ledger::chain::{Chain, Transfer};
use crate::store::ledger::correct::{correct, estimated};
use crate::store::ledger::credits::grant;
use crate::store::ledger::find::find;
use crate::store::ledger::usage::Class;
use crate::store::ledger::{TransferKind, statement, usage};

fn corrupt<T: std::fmt::Debug>(result: Result<T, StoreError>) -> (&'static str, String) {
    match result {
        Err(StoreError::Corrupt { what, why }) => (what, why),
        other => panic!("not seen: {other:?}"),
    }
}

fn change(book: &Book, sql: &str) {
    assert!(book.connection.execute(sql, []).expect("changed") > 0, "{sql}");
}

#[test]
fn a_settled_request_without_its_end_is_named() {
    let book = book(5_000_000);
    held(&book, &request(1));
    settle(&book.connection, &Settlement { estimated: true, ..settlement(1, 10, 10) }).expect("settled");
    change(&book, "UPDATE request SET end = NULL");
    let id = RequestId([1; 16]);
    let device = "laptop".parse().expect("name");
    for (what, why) in [
        corrupt(hold(&book.connection, &request(1))),
        corrupt(find(&book.connection, id, &device)),
        corrupt(correct(&book.connection, id, &[], NOW)),
        corrupt(estimated(&book.connection, 0, i64::MAX)),
    ] {
        assert_eq!((what, why), ("a settled request", format!("{id} has no End")));
    }
    assert!(matches!(settle(&book.connection, &settlement(1, 1, 1)), Err(StoreError::Corrupt { .. })));
}

#[test]
fn terms_devices_and_classes_that_nobody_can_read_are_named() {
    let book = book(5_000_000);
    for id in 1..=3 {
        held(&book, &HoldRequest { asked_output: Some(10), ..request(id) });
    }
    // Far above the hold: what the device's budgets leave is asked for.
    change(&book, "UPDATE request SET device = '?' WHERE id = 1");
    let (what, why) = corrupt(settle(&book.connection, &settlement(1, 1_000, 1_000)));
    assert!(what == "a device" && !why.is_empty(), "{what}: {why}");
    change(&book, "UPDATE request SET class = 9 WHERE id = 2");
    let (what, why) = corrupt(settle(&book.connection, &settlement(2, 1, 1)));
    assert_eq!((what, why.as_str()), ("a class of usage", "there is no class 9"));
    change(&book, "UPDATE terms SET terms = '[{]'");
    let (what, why) = corrupt(settle(&book.connection, &settlement(3, 1, 1)));
    assert!(what == "terms" && why.contains("line 1"), "{what}: {why}");
}

#[test]
fn grants_that_have_less_than_their_account_are_named() {
    let book = book(0);
    grant(&book.connection, NanoUsd(5_000_000), "gift", None, NOW + 1_000, NOW).expect("granted");
    change(&book, "UPDATE credit_grant SET left_nano = 7");
    let (what, why) = corrupt(hold(&book.connection, &request(1)));
    assert_eq!((what, why), ("credits", format!("the grants have {HELD_BESIDE} nano-USD less than the account")));
}

/// What [`request`] holds beyond the seven that are left.
const HELD_BESIDE: i64 = HELD - 7;

#[test]
fn accounts_budgets_and_tiers_that_there_are_not_are_named() {
    let book = book(5_000_000);
    book.connection.execute_batch("PRAGMA foreign_keys = OFF; DROP TRIGGER transfer_no_update").expect("set");
    let (what, why) = corrupt({
        let transfer = Transfer::new(TransferKind::Credit, Account::Funding, Account::Prepaid, NanoUsd(-1));
        Chain::at(&book.connection, NOW).and_then(|mut chain| chain.record(&transfer))
    });
    assert!(what == "a transfer" && why.contains("-"), "{what}: {why}");
    for (sql, back, what) in [
        ("UPDATE account SET id = 66 WHERE id = 6", "UPDATE account SET id = 6 WHERE id = 66", "an account"),
        ("INSERT INTO budget VALUES ('everyone', 'spend_day', 1)", "DELETE FROM budget", ""),
        ("INSERT INTO budget VALUES ('tenant', 'spend_year', 1)", "DELETE FROM budget", "a budget"),
        ("UPDATE tenant SET tier = 'gold'", "UPDATE tenant SET tier = 'managed'", "a tenant's tier"),
    ] {
        change(&book, sql);
        if what.is_empty() {
            // Of no concern to this request; who reads all of them is told.
            assert_eq!(corrupt(super::super::budget::all(&book.connection)).0, "a budget");
        } else {
            let found = match what {
                "an account" => corrupt(Chain::at(&book.connection, NOW).map(|_| ())),
                _ => corrupt(hold(&book.connection, &request(1))),
            };
            assert_eq!(found.0, what, "{sql}");
        }
        change(&book, back);
    }
    for (sql, named) in [
        ("UPDATE transfer SET kind = 77", "entry 1 names kind 77, which there is not"),
        ("UPDATE transfer SET kind = 1, to_account = 88", "entry 1 names account 88, which there is not"),
    ] {
        change(&book, sql);
        let (what, why) = corrupt(statement::page(&book.connection, 0, 10));
        assert_eq!((what, why.as_str()), ("an entry", named));
    }
    assert_eq!(corrupt(Class::read(0)).0, "a class of usage");
    assert!(usage::all_time(&book.connection).expect("read").requests == 0);
}

#[test]
fn figures_that_nobody_can_mean_cost_what_was_held_and_the_book_stays_sound() {
    let book = book(50_000_000);
    held(&book, &request(1));
    let settled = settle(&book.connection, &settlement(1, u64::MAX, 1)).expect("settled all the same");
    assert_eq!((settled.end.cost, settled.end.estimated), (NanoUsd(HELD), true));
    // Within the range of money, and still more than any request can cost.
    held(&book, &request(2));
    let settled = settle(&book.connection, &settlement(2, 2_000_000_000_000, 1)).expect("settled all the same");
    assert_eq!((settled.end.cost, settled.end.estimated), (NanoUsd(HELD), true));
    clean(&book);
}

#[test]
fn a_hold_that_cannot_be_resolved_does_not_keep_the_others_from_it() {
    let book = book(50_000_000);
    for id in 1..=3 {
        held(&book, &request(id));
    }
    change(&book, "UPDATE request SET class = 9 WHERE id = 2");
    let recovered = recover(&book.connection, &boot("m1", "p2"), None, NOW).expect("recovered");
    assert_eq!(recovered.settled.len(), 2);
    let failed: Vec<_> = recovered.failed.iter().map(|(id, why)| (id.0[0], why.to_string())).collect();
    assert_eq!(failed, [(2, "a class of usage is corrupt: there is no class 9".to_owned())]);
    let report = verify(&book.connection);
    assert_eq!((report.open, report.settled), (1, 2));
    assert!(report.problems.iter().all(|problem| problem.contains(&RequestId([2; 16]).to_string())), "{report:?}");
}

#[test]
fn a_balance_that_was_below_its_floor_is_named() {
    let book = book(0);
    let terms = Terms { ceiling: NanoUsd(2_000_000), ..Terms::default() };
    set_terms(&book.connection, &terms, 1).expect("set");
    held(&book, &request(1));
    settle(&book.connection, &settlement(1, 100, 50)).expect("settled");
    clean(&book);
    change(&book, "UPDATE tenant SET deepest_ceiling_nano = 5");
    let problems = verify(&book.connection).problems;
    assert_eq!(problems, [format!("entry 1 takes the balance to {} nano-USD, below its floor", -HELD)]);
}

#[test]
fn problems_beyond_a_hundred_are_counted() {
    let book = book(500_000_000);
    for id in 0..130 {
        held(&book, &HoldRequest { at_once: 1000, ..request(id) });
    }
    change(&book, "UPDATE request SET input_bytes = input_bytes + 1");
    let report = verify(&book.connection);
    assert_eq!((report.problems.len(), report.further_problems), (100, 30));
}

#[test]
fn what_a_provider_keeps_is_named_under_a_key_of_ones_own_only() {
    let book = book(5_000_000);
    let named = HoldRequest { refers: Some("conversation"), ..request(1) };
    assert_eq!(refusal(&book, &named), HoldRefusal::SharedKey { field: "conversation" });
    set_terms(&book.connection, &Terms { tier: Tier::Byok, ..Terms::default() }, 1).expect("set");
    let keyless = Offer { keyless: true, ..request(1).offers.remove(0) };
    held(&book, &HoldRequest { offers: vec![keyless], ..named });
    settle(&book.connection, &settlement(1, 100, 50)).expect("settled");
    // The provider bills the tenant: such usage is a class of its own.
    let groups = usage::report(&book.connection, 0, 100_000, usage::Grouping::Class).expect("summed");
    assert_eq!(groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["byok"]);
    assert!(usage::of_provider(&book.connection, "p", 0, 100_000).expect("summed").is_empty());
    clean(&book);
}
