//! Random histories of a book beside a reference that does the sums by hand.

use super::reference::Reference;
use super::*;
use crate::store::ledger::correct::correct;
use crate::store::ledger::credits::grant;
use crate::store::ledger::hold::refresh;
use crate::store::ledger::outbox;
use crate::store::ledger::record::{Record, RecordOutcome, record};
use crate::store::ledger::recover::estimate;
use crate::store::ledger::usage;
use proptest::prelude::*;

/// What can happen.
#[derive(Debug, Clone)]
enum Step {
    Credit(u32),
    /// Credits, and for how many milliseconds they last.
    Grant(u32, u16),
    Refund(u32),
    Ceiling(u32),
    /// A request, the output that it asks for, and whether it names a maximum.
    Hold(u8, u16, bool),
    /// A request, and the tokens that it used: perhaps more than it was held for.
    Settle(u8, u16, u16),
    Void(u8),
    /// The lease of a request has run out: it is settled by estimate, whatever its task does later.
    Lease(u8),
    /// The provider says what a request had really used.
    Correct(u8, u16, u16),
    /// Usage elsewhere, under an id that a request may have too.
    Record(u8, u16),
    Wait(u16),
    /// The process dies: what is open is recovered, with or without a journal.
    Die(bool),
    /// Central takes some rows; or the process dies before they are confirmed.
    Flush(u8, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u32..5_000_000).prop_map(Step::Credit),
        1 => (1u32..2_000_000, any::<u16>()).prop_map(|(nano, lasts)| Step::Grant(nano, lasts)),
        1 => (1u32..1_000_000).prop_map(Step::Refund),
        1 => (0u32..2_000_000).prop_map(Step::Ceiling),
        8 => (0u8..12, 1u16..1500, any::<bool>()).prop_map(|(id, output, named)| Step::Hold(id, output, named)),
        8 => (0u8..12, 0u16..1500, 0u16..3000).prop_map(|(id, input, output)| Step::Settle(id, input, output)),
        2 => (0u8..12).prop_map(Step::Void),
        1 => (0u8..12).prop_map(Step::Lease),
        3 => (0u8..12, 0u16..2000, 0u16..2000).prop_map(|(id, input, output)| Step::Correct(id, input, output)),
        2 => (0u8..16, 1u16..1000).prop_map(|(id, units)| Step::Record(id, units)),
        2 => any::<u16>().prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Die),
        2 => (1u8..5, any::<bool>()).prop_map(|(rows, confirmed)| Step::Flush(rows, confirmed)),
    ]
}

pub(super) fn recorded(id: u8, units: u64, now_ms: u64) -> Record {
    let HoldRequest { request_id, device, boot, mut offers, rates, per_minute, .. } = request(id);
    Record {
        request_id,
        device,
        key: None,
        // As different from another record as from a request.
        digest: [units as u8; 32],
        class: usage::Class::Local,
        offer: offers.remove(0),
        allowance: NanoUsd(500_000),
        usage: vec![UsageLine { kind: UnitKind::INPUT, units }],
        boot,
        now_ms,
        rates,
        per_minute,
    }
}

fn voided(book: &Book, id: u8) -> bool {
    let sql = "SELECT count(*) FROM request WHERE request_id = ?1 AND state = 2";
    book.connection.query_row(sql, [[id; 16]], |row| row.get::<_, i64>(0)).expect("read") == 1
}

/// Runs what a process would run in one transaction; it may die just before the commit and try again.
fn transaction<T>(book: &Book, dies_first: bool, run: impl Fn(&Connection) -> T) -> T {
    if dies_first {
        book.connection.execute_batch("BEGIN IMMEDIATE").expect("begun");
        run(&book.connection);
        book.connection.execute_batch("ROLLBACK").expect("undone");
    }
    book.connection.execute_batch("BEGIN IMMEDIATE").expect("begun");
    let result = run(&book.connection);
    book.connection.execute_batch("COMMIT").expect("committed");
    result
}

fn play(steps: &[(Step, bool)]) {
    let book = book(0);
    let mut reference = Reference::default();
    let (mut now_ms, mut process, mut version) = (NOW, 1, 0);
    for (number, (step, dies_first)) in steps.iter().enumerate() {
        let name = number.to_string();
        match step {
            Step::Credit(0) | Step::Hold(_, 0, _) => {}
            Step::Credit(nano) => {
                let nano = i64::from(*nano);
                for _ in 0..2 {
                    transaction(&book, *dies_first, |connection| credit(connection, nano, &name));
                }
                reference.prepaid += nano;
            }
            Step::Grant(nano, lasts) => {
                let (nano, end) = (i64::from(*nano), now_ms + 1 + u64::from(*lasts));
                transaction(&book, *dies_first, |connection| {
                    grant(connection, NanoUsd(nano), &name, None, end, now_ms).expect("granted");
                });
                reference.granted += 1;
                reference.grants.insert((end, reference.granted), nano);
            }
            Step::Refund(nano) => {
                transaction(&book, *dies_first, |connection| {
                    operate(connection, Operation::Refund, NanoUsd((*nano).into()), &name, None, now_ms)
                        .expect("refunded")
                });
                reference.prepaid -= i64::from(*nano);
            }
            Step::Ceiling(nano) => {
                version += 1;
                reference.ceiling = i64::from(*nano);
                let terms = Terms { ceiling: NanoUsd(reference.ceiling), ..Terms::default() };
                transaction(&book, *dies_first, |connection| set_terms(connection, &terms, version).expect("set"));
            }
            Step::Hold(id, output, named) => {
                reference.expire(now_ms);
                let boot = boot("m1", &format!("p{process}"));
                let asked_output = named.then_some(u32::from(*output));
                let ask = HoldRequest { boot, now_ms, asked_output, rates: Arc::default(), ..request(*id) };
                let outcome = transaction(&book, *dies_first, |connection| {
                    hold(connection, &HoldRequest { rates: Arc::default(), ..ask.clone() }).expect("works")
                });
                match outcome {
                    HoldOutcome::Held(Held { amount, .. }) => {
                        assert!(!reference.held.contains_key(id) && !reference.settled.contains_key(id));
                        assert!(amount.0 <= reference.available(), "step {number}: overshot");
                        reference.hold(*id, amount.0);
                    }
                    HoldOutcome::Finished { end, .. } => assert_eq!(Some(&end), reference.settled.get(id)),
                    HoldOutcome::Refused(HoldRefusal::Conflict) => {
                        assert!(reference.recorded.contains(id), "step {number}");
                    }
                    HoldOutcome::Refused(HoldRefusal::InProgress) => assert!(reference.held.contains_key(id)),
                    HoldOutcome::Refused(HoldRefusal::PaymentRequired { available, .. }) => {
                        assert_eq!(available.0, reference.available(), "step {number}");
                    }
                    other => panic!("step {number}: {other:?}"),
                }
            }
            Step::Settle(id, input, output) => {
                let estimated = input % 3 == 0;
                let settlement = Settlement { now_ms, estimated, ..settlement(*id, (*input).into(), (*output).into()) };
                let settled = transaction(&book, *dies_first, |connection| settle(connection, &settlement));
                match (reference.held.contains_key(id), reference.settled.get(id)) {
                    (true, _) => {
                        let cost = 1000 * (i64::from(*input) + i64::from(*output));
                        reference.settle(*id, cost, estimated, settled.expect("settled").end_bytes);
                    }
                    (false, Some(end)) => assert_eq!(&settled.expect("the first answer").end_bytes, end),
                    (false, None) => assert!(settled.is_err(), "step {number}: nothing was held"),
                }
            }
            Step::Void(id) => {
                transaction(&book, *dies_first, |connection| {
                    void(connection, RequestId([*id; 16]), now_ms).expect("works");
                });
                if reference.held.contains_key(id) {
                    reference.release(*id, 0);
                }
            }
            Step::Lease(id) => {
                let by_estimate = estimate(RequestId([*id; 16]), Progress::default(), 80, now_ms);
                let settled = transaction(&book, *dies_first, |connection| settle(connection, &by_estimate));
                if reference.held.contains_key(id) {
                    reference.settle(*id, 20_000, true, settled.expect("settled").end_bytes);
                }
            }
            Step::Correct(id, input, output) => {
                let usage = settlement(*id, (*input).into(), (*output).into()).usage;
                let corrected = transaction(&book, *dies_first, |connection| {
                    correct(connection, RequestId([*id; 16]), &usage, now_ms)
                });
                if reference.settled.contains_key(id) {
                    let cost = 1000 * (i64::from(*input) + i64::from(*output));
                    let done = corrected.expect("settled").is_some();
                    assert_eq!(done, reference.correct(*id, cost, now_ms), "step {number}");
                } else {
                    assert!(corrected.is_err(), "step {number}: nothing was settled");
                }
            }
            Step::Record(id, units) => {
                reference.expire(now_ms);
                let wanted = recorded(*id, u64::from(*units), now_ms);
                let cost = 1000 * i64::from(*units);
                let outcome = transaction(&book, *dies_first, |connection| {
                    record(connection, &Record { rates: Arc::default(), ..wanted.clone() }).expect("works")
                });
                match outcome {
                    RecordOutcome::Recorded(settled) => match reference.settled.get(id) {
                        Some(end) => assert_eq!(end, &settled.end_bytes, "step {number}"),
                        None => {
                            reference.hold(*id, cost);
                            reference.settle(*id, cost, false, settled.end_bytes);
                            reference.recorded.insert(*id);
                        }
                    },
                    RecordOutcome::Short { missing } => {
                        assert_eq!(
                            missing.0,
                            cost - reference.credits() - (reference.prepaid + reference.ceiling),
                            "step {number}"
                        );
                    }
                    RecordOutcome::Conflict => {
                        let known = reference.settled.contains_key(id) || reference.held.contains_key(id);
                        assert!(known || voided(&book, *id), "step {number}");
                    }
                    other => panic!("step {number}: {other:?}"),
                }
            }
            Step::Wait(ms) => now_ms += u64::from(*ms),
            Step::Die(with_journal) => {
                process += 1;
                let boot = boot("m1", &format!("p{process}"));
                // Every other one had been dispatched.
                let journal: HashMap<_, _> = reference
                    .held
                    .keys()
                    .filter(|id| **id % 2 == 0)
                    .map(|id| (RequestId([*id; 16]), Progress { output_bytes: 44, ..Progress::default() }))
                    .collect();
                let known = with_journal.then_some(&journal);
                let recovered = transaction(&book, *dies_first, |connection| {
                    recover(connection, &boot, known, now_ms).expect("recovered")
                });
                for id in recovered.voided {
                    reference.release(id.0[0], 0);
                }
                for settled in recovered.settled {
                    let id = settled.end.request_id;
                    let progress = known.and_then(|known| known.get(&id).copied()).unwrap_or_default();
                    let tokens: u64 = estimate(id, progress, 80, now_ms).usage.iter().map(|line| line.units).sum();
                    reference.settle(id.0[0], 1000 * tokens as i64, true, settled.end_bytes);
                }
                assert!(reference.held.is_empty(), "step {number}: a hold is left open");
            }
            Step::Flush(rows, confirmed) => {
                let batch = outbox::batch(&book.connection, (*rows).into()).expect("read");
                for row in &batch.rows {
                    let known = reference.handed.insert(row.number, row.totals.cost_nano);
                    assert!(known.is_none_or(|known| known == row.totals.cost_nano), "a number means one row for ever");
                }
                if let (true, Some(last)) = (*confirmed, batch.rows.last()) {
                    transaction(&book, *dies_first, |connection| {
                        outbox::confirm(connection, batch.epoch, last.number).expect("confirmed");
                    });
                }
            }
        }
        let is = |account| balance(&book.connection, account).expect("read").0;
        assert_eq!(is(Account::Prepaid), reference.prepaid, "step {number}: {step:?}");
        assert_eq!(is(Account::Held), reference.held.values().map(|held| held.0).sum::<i64>(), "step {number}");
        assert_eq!(is(Account::Revenue) + is(Account::Absorbed), reference.charged, "step {number}");
        assert_eq!(-is(Account::Absorbed), reference.absorbed, "step {number}");
        assert_eq!(Account::ALL.into_iter().map(is).sum::<i64>(), 0, "step {number}");
    }
    reference.expire(now_ms);
    refresh(&book.connection, NanoUsd::ZERO, now_ms).expect("expired");
    assert_eq!(balance(&book.connection, Account::Credits).expect("read").0, reference.credits());
    let all = usage::all_time(&book.connection).expect("summed");
    assert_eq!((all.cost_nano, all.absorbed_nano), (reference.charged, reference.absorbed));
    for row in outbox::batch(&book.connection, 10_000).expect("read").rows {
        reference.handed.insert(row.number, row.totals.cost_nano);
    }
    assert_eq!(reference.handed.values().sum::<i64>(), reference.charged, "central gets each charge once");
    let open = |end: &&(i64, i64, i64, bool)| end.3;
    assert_eq!(all.estimated, reference.ends.values().filter(open).count() as i64, "estimates that stand");
    clean(&book);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_book_does_what_sums_by_hand_do(steps in proptest::collection::vec((step(), any::<bool>()), 1..60)) {
        play(&steps);
    }
}
