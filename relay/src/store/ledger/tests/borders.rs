//! Amounts that are exactly enough, and what is told apart though it looks the same.

use super::model::recorded;
use super::*;
use crate::store::ledger::budget::{self, Budget};
use crate::store::ledger::correct::{correct, estimated};
use crate::store::ledger::rates::{Rates, limits};
use crate::store::ledger::record::{RecordOutcome, record};
use crate::store::ledger::recover;
use belay_protocol::calendar::DAY_MS;

fn id(id: u8) -> RequestId {
    RequestId([id; 16])
}

fn line(kind: UnitKind, units: u64) -> UsageLine {
    UsageLine { kind, units }
}

#[test]
fn a_budget_that_is_exactly_enough_is_enough() {
    let book = book(50_000_000);
    budget::set(&book.connection, &Scope::Tenant, Measure::SpendDay, Some(HELD)).expect("set");
    assert_eq!(held(&book, &request(1)), NanoUsd(HELD));
    assert!(matches!(
        refusal(&book, &HoldRequest { asked_output: Some(1), input_bound: 1, ..request(2) }),
        HoldRefusal::OverBudget { .. }
    ));
}

#[test]
fn so_many_at_once_as_are_allowed() {
    let book = book(50_000_000);
    let two = |number| HoldRequest { at_once: 2, ..request(number) };
    held(&book, &two(1));
    held(&book, &two(2));
    assert_eq!(refusal(&book, &two(3)), HoldRefusal::TooManyAtOnce);
}

#[test]
fn an_allowance_that_the_operator_changes_holds_from_the_next_month_on() {
    let book = book(0);
    set_terms(&book.connection, &Terms { tier: Tier::Free, ..Terms::default() }, 1).expect("set");
    let small =
        |number, allowance| HoldRequest { asked_output: Some(1), allowance: NanoUsd(allowance), ..request(number) };
    held(&book, &small(1, 500_000));
    held(&book, &small(2, 900_000));
    let granted: i64 =
        book.connection.query_row("SELECT sum(granted_nano) FROM credit_grant", [], |row| row.get(0)).expect("summed");
    assert_eq!(granted, 500_000);
    clean(&book);
}

#[test]
fn what_costs_nothing_is_recorded_below_the_floor_too() {
    let book = book(1_000);
    operate(&book.connection, Operation::Chargeback, NanoUsd(5_000), "back", None, NOW).expect("taken back");
    assert_eq!(prepaid(&book), -4_000);
    assert!(matches!(record(&book.connection, &recorded(1, 0, NOW)).expect("works"), RecordOutcome::Recorded(_)));
    let short = record(&book.connection, &recorded(2, 1, NOW)).expect("works");
    assert_eq!(short, RecordOutcome::Short { missing: NanoUsd(1_000 + 4_000) });
    let HoldRefusal::PaymentRequired { missing, available, .. } = refusal(&book, &request(3)) else {
        panic!("refused")
    };
    assert_eq!((missing, available), (NanoUsd(HELD + 4_000), NanoUsd::ZERO));
    credit(&book.connection, missing.0, "made good");
    held(&book, &request(3));
}

#[test]
fn recovery_names_only_what_there_was() {
    let nothing = Progress { events: 0, output_bytes: 0, told_input: None, offer: 0 };
    assert_eq!(recover::estimate(id(1), nothing, 0, NOW).usage, []);
    let some = Progress { output_bytes: 5, ..nothing };
    let told = ToldInput { input: 7, cache_read: 1, ..ToldInput::default() };
    let usage = recover::estimate(id(1), Progress { told_input: Some(told), ..some }, 99, NOW).usage;
    assert_eq!(usage, [line(UnitKind::INPUT, 7), line(UnitKind::OUTPUT, 2), line(UnitKind::CACHE_READ, 1)]);
}

#[test]
fn only_budgets_by_the_minute_are_rates() {
    let bound = |scope, measure, count| Bound { scope, measure, count };
    let budget = |scope, measure, amount| Budget { scope, measure, amount };
    let budgets = [
        budget(Scope::Tenant, Measure::SpendDay, 5),
        budget(Scope::Device("laptop".into()), Measure::TokensMinute, 70),
        budget(Scope::Tenant, Measure::RequestsMinute, 9),
    ];
    let default = PerMinute { requests: 100, tokens: Some(1_000) };
    assert_eq!(
        limits(&budgets, default),
        [
            bound(Scope::Device("laptop".into()), Measure::TokensMinute, 70),
            bound(Scope::Tenant, Measure::RequestsMinute, 9),
            bound(Scope::Tenant, Measure::TokensMinute, 1_000),
        ]
    );
}

#[test]
fn tokens_that_were_not_used_are_given_back_and_more_are_taken() {
    let rates = Rates::default();
    let bounds = [Bound { scope: Scope::Tenant, measure: Measure::TokensMinute, count: 60 }];
    let left = |rates: &Rates| rates.take(&bounds, 0, NOW).expect("asks for nothing")[0].left;
    rates.take(&bounds, 30, NOW).expect("there are 60");
    assert_eq!(left(&rates), 30);
    rates.correct(&bounds, 30, 30, NOW);
    assert_eq!(left(&rates), 30);
    rates.correct(&bounds, 30, 10, NOW);
    assert_eq!(left(&rates), 50);
    rates.correct(&bounds, 10, 25, NOW);
    assert_eq!(left(&rates), 35);
}

#[test]
fn an_estimate_under_a_key_of_ones_own_is_marked() {
    let book = book(50_000_000);
    held(&book, &request(1));
    settle(&book.connection, &Settlement { estimated: true, ..settlement(1, 1, 1) }).expect("settled");
    set_terms(&book.connection, &Terms { tier: Tier::Byok, ..Terms::default() }, 1).expect("set");
    let keyless = Offer { keyless: true, ..request(1).offers.remove(0) };
    held(&book, &HoldRequest { offers: vec![keyless], ..request(2) });
    settle(&book.connection, &Settlement { estimated: true, ..settlement(2, 1, 1) }).expect("settled");
    let listed = estimated(&book.connection, 0, i64::MAX).expect("read");
    assert_eq!(listed.iter().map(|one| one.own_key).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn input_that_a_bill_says_was_cached_is_cached_for_five_minutes_unless_it_is_known_better() {
    let book = book(50_000_000);
    let mut offer = request(1).offers.remove(0);
    offer.price.lines.push(PriceLine { kind: UnitKind::CACHE_WRITE_5M, nano_per_million: 3_000_000_000 });
    offer.price.lines.push(PriceLine { kind: UnitKind::CACHE_WRITE_1H, nano_per_million: 5_000_000_000 });
    let corrected = |number, told: &[UsageLine], bill: &[UsageLine]| {
        held(&book, &HoldRequest { offers: vec![offer.clone()], ..request(number) });
        let told = Settlement { estimated: true, usage: told.to_vec(), ..settlement(number, 0, 0) };
        settle(&book.connection, &told).expect("settled");
        correct(&book.connection, id(number), bill, NOW + 9).expect("works").expect("was estimated").after.0
    };
    let written = [line(UnitKind::CACHE_WRITE_5M, 10)];
    assert_eq!(corrected(1, &[line(UnitKind::OUTPUT, 1)], &written), 30_000, "nothing was told");
    assert_eq!(corrected(2, &[line(UnitKind::CACHE_WRITE_1H, 4)], &written), 50_000, "only hours were");
    let both = [line(UnitKind::CACHE_WRITE_1H, 4), line(UnitKind::CACHE_WRITE_5M, 4)];
    assert_eq!(corrected(3, &both, &written), 30_000, "both were");
    // A bill's output has the sound in it.
    let sound = [line(UnitKind::OUTPUT, 5), line(UnitKind::OUTPUT_AUDIO, 10)];
    assert_eq!(corrected(4, &sound, &[line(UnitKind::OUTPUT, 15)]), 15_000);
    clean(&book);
}

#[test]
fn a_correction_takes_no_more_than_a_budget_leaves_and_the_relay_bears_the_rest() {
    let book = book(HELD);
    super::super::credits::grant(&book.connection, NanoUsd(40_000), "one", None, NOW + DAY_MS, NOW).expect("granted");
    held(&book, &HoldRequest { asked_output: Some(900), ..request(1) });
    settle(&book.connection, &Settlement { estimated: true, ..settlement(1, 10, 10) }).expect("settled");
    // 20,000 are spent, all of credits; 20,000 of them are left, and 50,000 may still be spent today.
    budget::set(&book.connection, &Scope::Tenant, Measure::SpendDay, Some(70_000)).expect("set");
    let bill = settlement(1, 100, 20).usage;
    let corrected = correct(&book.connection, id(1), &bill, NOW + 9).expect("works").expect("was estimated");
    assert_eq!(corrected.after, NanoUsd(70_000));
    assert_eq!(balance(&book.connection, Account::Credits).expect("read"), NanoUsd::ZERO);
    assert_eq!(prepaid(&book), HELD - 30_000);
    assert_eq!(balance(&book.connection, Account::Absorbed).expect("read"), NanoUsd(-50_000));
    clean(&book);
}

#[test]
fn a_file_that_is_damaged_and_rows_that_refer_to_nothing_are_named() {
    let book = book(5_000_000);
    held(&book, &request(1));
    settle(&book.connection, &settlement(1, 10, 10)).expect("settled");
    clean(&book);
    book.connection.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").expect("set");
    book.connection.execute("INSERT INTO draw (request, credit_grant, nano) VALUES (77, 88, 1)", []).expect("put");
    let problems = verify(&book.connection).problems;
    assert!(problems.contains(&"a row of table draw refers to one that is not there".to_owned()), "{problems:?}");
    book.connection.execute("DELETE FROM draw", []).expect("taken away");
    clean(&book);
    book.connection.execute("UPDATE request SET estimated = 7", []).expect("changed");
    book.connection.execute_batch("PRAGMA ignore_check_constraints = OFF").expect("set");
    let problems = verify(&book.connection).problems;
    assert!(problems.iter().any(|problem| problem.starts_with("the file is damaged: ")), "{problems:?}");
}

#[test]
fn an_entry_that_cannot_be_read_is_named_and_the_next_is_not_taken_for_another() {
    let book = book(5_000_000);
    for number in 1..=3 {
        credit(&book.connection, 5, &format!("gift {number}"));
    }
    assert_eq!(verify(&book.connection).transfers, 4);
    book.connection
        .execute_batch("DROP TRIGGER transfer_no_update; PRAGMA ignore_check_constraints = ON")
        .expect("set");
    book.connection.execute("UPDATE transfer SET hash = x'00' WHERE id = 2", []).expect("changed");
    let report = verify(&book.connection);
    assert!(report.problems[0].starts_with("entry 2 cannot be read: "), "{report:?}");
    assert_eq!(report.transfers, 4);
    assert!(!report.problems.iter().any(|problem| problem.contains("is missing")), "{report:?}");
}

#[test]
fn a_voided_request_is_not_taken_for_a_settled_one() {
    let book = book(5_000_000);
    held(&book, &request(1));
    void(&book.connection, id(1), NOW).expect("voided");
    clean(&book);
    let changed = |state: i64| {
        book.connection.execute("UPDATE request SET state = ?1", [state]).expect("changed");
        verify(&book.connection).problems
    };
    for state in [0, 1] {
        let problems = changed(state);
        assert!(
            problems
                .iter()
                .any(|problem| problem.ends_with("its record is not the one that its entries prove: it was changed")),
            "{state}: {problems:?}"
        );
    }
    assert_eq!(changed(2), Vec::<String>::new());
}

#[test]
fn a_record_may_use_a_budget_up() {
    let book = book(5_000_000);
    budget::set(&book.connection, &Scope::Tenant, Measure::SpendDay, Some(7_000)).expect("set");
    assert!(matches!(record(&book.connection, &recorded(1, 7, NOW)).expect("works"), RecordOutcome::Recorded(_)));
    let short = record(&book.connection, &recorded(2, 1, NOW)).expect("works");
    assert_eq!(short, RecordOutcome::Short { missing: NanoUsd(1_000) });
}

#[test]
fn rates_that_are_in_use_are_not_forgotten_and_idle_ones_are() {
    let rates = Rates::default();
    let bound = |n: u64| Bound { scope: Scope::Key(format!("k{n}")), measure: Measure::RequestsMinute, count: 1 };
    for number in 0..80 {
        rates.take(&[bound(number)], 0, NOW).expect("its first one");
    }
    for number in 0..80 {
        assert!(rates.take(&[bound(number)], 0, NOW).is_err(), "{number} was forgotten");
    }
    rates.take(&[bound(80)], 0, NOW + 600_000).expect("its first one");
    assert_eq!(rates.remembered(), 1);
}

#[test]
fn what_verify_finds_beside_the_entries_is_named_each_by_itself() {
    let book = book(50_000_000);
    super::super::credits::grant(&book.connection, NanoUsd(40_000), "one", None, NOW + DAY_MS, NOW).expect("granted");
    for number in 1..=2 {
        held(&book, &HoldRequest { at_once: 10, ..request(number) });
        settle(&book.connection, &settlement(number, 10, 10)).expect("settled");
        held(&book, &HoldRequest { at_once: 10, ..request(number + 2) });
        void(&book.connection, id(number + 2), NOW).expect("voided");
        held(&book, &HoldRequest { at_once: 10, ..request(number + 4) });
    }
    let report = verify(&book.connection);
    assert_eq!((report.settled, report.voided, report.open), (2, 2, 2));
    clean(&book);
    book.connection.execute_batch("PRAGMA foreign_keys = OFF").expect("set");
    let shows = |change: &str, back: &str, words: &str| {
        assert!(book.connection.execute(change, []).expect("changed") > 0, "{change}");
        let problems = verify(&book.connection).problems;
        assert!(problems.iter().any(|problem| problem.contains(words)), "{words}: {problems:?}");
        book.connection.execute_batch(back).expect("put back");
        clean(&book);
    };
    shows(
        "UPDATE account SET last_transfer = last_transfer - 1 WHERE name = 'tenant:prepaid'",
        "UPDATE account SET last_transfer = last_transfer + 1 WHERE name = 'tenant:prepaid'",
        "account tenant:prepaid knows nothing of entry",
    );
    shows(
        "INSERT INTO draw (request, credit_grant, nano) SELECT id, 1, 1 FROM request WHERE request_id = x'01010101010101010101010101010101'",
        "DELETE FROM draw WHERE nano = 1",
        "1 draws belong to no open request and to no estimate",
    );
    shows(
        "UPDATE request SET terms = terms + 99 WHERE id = 1",
        "UPDATE request SET terms = terms - 99 WHERE id = 1",
        "1 requests refer to terms that are missing",
    );
    book.connection.execute_batch("CREATE TEMP TABLE kept AS SELECT id, end, cost_nano FROM request").expect("kept");
    let back = "UPDATE request SET (end, cost_nano) = (SELECT end, cost_nano FROM kept WHERE kept.id = request.id)";
    shows(
        "UPDATE request SET end = (SELECT end FROM kept WHERE end IS NOT NULL ORDER BY id DESC LIMIT 1) WHERE id = 1",
        back,
        "its End is that of 02020202020202020202020202020202",
    );
    shows(
        "UPDATE request SET cost_nano = cost_nano + 1 WHERE id = 1",
        back,
        "charged 20001 nano-USD, its End says 20000",
    );
    shows("UPDATE request SET end = NULL WHERE id = 1", back, "settled without an End");
    shows("UPDATE request SET end = x'00' WHERE id = 1", back, "its End does not decode");
}

#[test]
fn each_checkpoint_that_is_missing_is_named() {
    use crate::store::ledger::seal::{EVERY, SealKey, seal};
    let book = book(0);
    book.connection.execute_batch("BEGIN").expect("begun");
    for number in 0..3 * EVERY {
        credit(&book.connection, 1, &format!("gift {number}"));
    }
    book.connection.execute_batch("COMMIT").expect("committed");
    let (tenant, key) = ("acme".parse().expect("name"), SealKey::new(&[7; 32]));
    assert_eq!(seal(&book.connection, &tenant, &key).expect("sealed"), 3 * EVERY);
    let missing = |gone: &[i64]| {
        book.connection.execute_batch("BEGIN").expect("begun");
        for entry in gone {
            book.connection.execute("DELETE FROM checkpoint WHERE transfer_id = ?1", [entry]).expect("deleted");
        }
        let report = super::super::verify::verify(&book.connection, Some((&tenant, &key)), 3 * EVERY).expect("checked");
        book.connection.execute_batch("ROLLBACK").expect("put back");
        assert!(report.problems.iter().all(|problem| problem.ends_with("is missing")), "{report:?}");
        let entry = |problem: &String| problem.split(' ').find_map(|word| word.parse::<i64>().ok());
        report.problems.iter().filter_map(entry).collect::<Vec<_>>()
    };
    for gone in [
        vec![],
        vec![EVERY],
        vec![2 * EVERY],
        vec![3 * EVERY],
        vec![EVERY, 2 * EVERY],
        vec![EVERY, 3 * EVERY],
        vec![EVERY, 2 * EVERY, 3 * EVERY],
    ] {
        assert_eq!(missing(&gone), gone);
    }
}
