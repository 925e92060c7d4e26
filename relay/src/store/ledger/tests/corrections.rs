//! Putting charges by estimate right: which there are, who pays, and what a bill does not tell.

use super::*;
use crate::store::ledger::correct::{correct, estimated};
use crate::store::ledger::time;
use belay_protocol::calendar::DAY_MS;

fn id(id: u8) -> RequestId {
    RequestId([id; 16])
}

#[test]
fn estimates_are_listed_until_they_are_put_right() {
    let book = book(50_000_000);
    for number in 1..=3 {
        held(&book, &request(number));
        let estimated = number != 2;
        let now_ms = NOW + u64::from(number);
        settle(&book.connection, &Settlement { estimated, now_ms, ..settlement(number, 100, 50) }).expect("settled");
    }
    let listed = |from, until| {
        let found = estimated(&book.connection, time(from), time(until)).expect("read");
        found.into_iter().map(|one| (one.request_id, one.at_ms, one.cost.0)).collect::<Vec<_>>()
    };
    assert_eq!(listed(NOW, NOW + 9), [(id(1), time(NOW + 1), 150_000), (id(3), time(NOW + 3), 150_000)]);
    assert_eq!(listed(NOW + 1, NOW + 3), [(id(1), time(NOW + 1), 150_000)], "from, but not until");
    let one = &estimated(&book.connection, 0, i64::MAX).expect("read")[0];
    assert_eq!((one.device.as_str(), one.provider.as_str(), one.model.as_str()), ("laptop", "p", "m"));
    assert_eq!(one.usage, settlement(1, 100, 50).usage);
    let fewer = settlement(1, 100, 20).usage;
    let corrected = correct(&book.connection, id(1), &fewer, NOW + 9).expect("works").expect("was estimated");
    assert_eq!((corrected.before, corrected.after), (NanoUsd(150_000), NanoUsd(120_000)));
    assert_eq!(listed(NOW, NOW + 9), [(id(3), time(NOW + 3), 150_000)]);
    assert_eq!(correct(&book.connection, id(1), &fewer, NOW + 9).expect("works"), None);
    assert_eq!(correct(&book.connection, id(2), &fewer, NOW + 9).expect("works"), None, "it was no estimate");
    assert!(matches!(correct(&book.connection, id(7), &fewer, NOW), Err(StoreError::Failed { .. })));
    // Never more than was held for it.
    let more = settlement(3, 100, 5_000).usage;
    let corrected = correct(&book.connection, id(3), &more, NOW + 9).expect("works").expect("was estimated");
    assert_eq!(corrected.after, NanoUsd(HELD));
    clean(&book);
}

#[test]
fn a_correction_pays_with_credits_first_and_gives_back_to_them_what_they_paid() {
    let book = book(5_000_000);
    let granted = |nano, name| {
        super::super::credits::grant(&book.connection, NanoUsd(nano), name, None, NOW + DAY_MS, NOW).expect("granted");
    };
    let credits = || balance(&book.connection, Account::Credits).expect("read").0;
    granted(100_000, "one");
    held(&book, &request(1));
    settle(&book.connection, &Settlement { estimated: true, ..settlement(1, 100, 50) }).expect("settled");
    assert_eq!((credits(), prepaid(&book)), (0, 4_950_000), "100,000 of the credits and 50,000 of the balance");
    clean(&book);
    // It was 30,000 in truth: all of it the credits'.
    correct(&book.connection, id(1), &settlement(1, 10, 20).usage, NOW + 9).expect("works").expect("was estimated");
    assert_eq!((credits(), prepaid(&book)), (70_000, 5_000_000));
    clean(&book);
    // The other way round: credits that there are pay what is missing.
    held(&book, &HoldRequest { now_ms: NOW + 10, ..request(2) });
    let late = Settlement { estimated: true, now_ms: NOW + 11, ..settlement(2, 10, 20) };
    settle(&book.connection, &late).expect("settled");
    assert_eq!((credits(), prepaid(&book)), (40_000, 5_000_000));
    correct(&book.connection, id(2), &settlement(2, 100, 50).usage, NOW + 12).expect("works").expect("was estimated");
    assert_eq!((credits(), prepaid(&book)), (0, 5_000_000 - 80_000));
    clean(&book);
    // What comes back to a grant that has ended is gone.
    granted(100_000, "two");
    held(&book, &HoldRequest { now_ms: NOW + 20, ..request(3) });
    settle(
        &book.connection,
        &Settlement { now_ms: NOW + 21, ..Settlement { estimated: true, ..settlement(3, 50, 50) } },
    )
    .expect("settled");
    let after = NOW + 2 * DAY_MS;
    correct(&book.connection, id(3), &[], after).expect("works").expect("was estimated");
    assert_eq!((credits(), prepaid(&book)), (100_000, 4_920_000));
    assert!(super::super::hold::refresh(&book.connection, NanoUsd::ZERO, after).expect("looked"));
    assert_eq!(credits(), 0);
    clean(&book);
}

#[test]
fn a_correction_keeps_what_a_bill_does_not_tell() {
    let book = book(50_000_000);
    let mut offer = request(1).offers.remove(0);
    offer.price.lines.push(PriceLine { kind: UnitKind::CALLS, nano_per_million: 10_000_000_000 });
    offer.price.lines.push(PriceLine { kind: UnitKind::CACHE_WRITE_1H, nano_per_million: 2_000_000_000 });
    held(&book, &HoldRequest { offers: vec![offer], ..request(1) });
    let told = vec![UsageLine { kind: UnitKind::CACHE_WRITE_1H, units: 10 }, settlement(1, 1, 5).usage[1]];
    let settled = settle(&book.connection, &Settlement { estimated: true, usage: told.clone(), ..settlement(1, 0, 0) })
        .expect("settled");
    assert_eq!(settled.end.cost, NanoUsd(20_000 + 5_000 + 10_000));
    let bill = [UsageLine { kind: UnitKind::CACHE_WRITE_5M, units: 10 }, told[1]];
    let corrected = correct(&book.connection, id(1), &bill, NOW + 9).expect("works").expect("was estimated");
    assert_eq!(corrected.after, corrected.before, "the same tokens: the same price, calls included");
    clean(&book);
    // A bill's input has the sound in it: what stays as sound is not input once more.
    held(&book, &request(2));
    let sound = UsageLine { kind: UnitKind::INPUT_AUDIO, units: 30 };
    let told = vec![sound, settlement(2, 20, 5).usage[0], settlement(2, 20, 5).usage[1]];
    settle(&book.connection, &Settlement { estimated: true, usage: told, ..settlement(2, 0, 0) }).expect("settled");
    let bill = settlement(2, 50, 5).usage;
    let corrected = correct(&book.connection, id(2), &bill, NOW + 9).expect("works").expect("was estimated");
    assert_eq!((corrected.before, corrected.after), (NanoUsd(55_000), NanoUsd(55_000)));
    clean(&book);
}
