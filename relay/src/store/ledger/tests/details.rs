//! What the other tests touch only in passing: names, lookups, and every kind of sum.

use super::model::recorded;
use super::*;
use crate::store::ledger::budget;
use crate::store::ledger::find::{Found, find};
use crate::store::ledger::outbox;
use crate::store::ledger::provider_keys::{self, SealedKey};
use crate::store::ledger::record::{Record, RecordOutcome, record};
use crate::store::ledger::seal::SealKey;
use crate::store::ledger::usage::{self, Class, Grouping, Totals};
use crate::store::ledger::{TransferKind, rates::Rates, statement, time};
use belay_protocol::calendar::{DAY_MS, day, month, month_start_ms};

fn id(id: u8) -> RequestId {
    RequestId([id; 16])
}

#[test]
fn every_account_and_kind_of_transfer_is_found_by_its_number_and_has_a_name_of_its_own() {
    let mut names: Vec<&str> = Account::ALL.into_iter().map(Account::name).collect();
    names.extend(TransferKind::ALL.into_iter().map(TransferKind::name));
    for name in &names {
        assert!(name.len() > 3 && names.iter().filter(|other| other == &name).count() == 1, "{name}");
    }
    for account in Account::ALL {
        assert_eq!(Account::numbered(account as i64), Some(account));
    }
    for (place, kind) in TransferKind::ALL.into_iter().enumerate() {
        assert_eq!((TransferKind::numbered(kind as i64), kind as usize), (Some(kind), place + 1));
    }
    assert_eq!((Account::numbered(0), TransferKind::numbered(15)), (None, None));
    let classes = [Class::Cloud, Class::Local, Class::Knowledge, Class::Byok];
    assert_eq!(classes.map(Class::name), ["cloud", "local", "knowledge", "byok"]);
    assert_eq!(Tier::ALL.map(|tier| tier.to_string()), ["free", "managed", "byok"]);
    assert_eq!((time(7), time(u64::MAX)), (7, i64::MAX));
}

#[test]
fn a_boot_is_the_machines_and_the_processes() {
    let ours = Boot::current([0, 0, 0, 0, 0, 0, 1, 2]);
    let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read");
    assert_eq!(ours.to_text(), format!("{}/0000000000000102", machine.trim()));
    assert!(ours.is_same_machine_boot(&Boot::current([9; 8]).to_text()));
    assert!(!ours.is_same_machine_boot("another/0000000000000102"));
    // Where the machine cannot tell, nothing is taken for granted.
    assert!(!boot("", "p1").is_same_machine_boot("/p2"));
}

#[test]
fn secrets_are_not_printed() {
    assert_eq!(format!("{:?}", SealKey::new(&[0xaa; 32])), "SealKey(****)");
}

#[test]
fn scopes_are_written_as_they_are_read() {
    for scope in [Scope::Tenant, Scope::Device("d".into()), Scope::Key("k:1".into())] {
        let text = serde_json::to_string(&scope).expect("written");
        assert_eq!(serde_json::from_str::<Scope>(&text).expect("read"), scope);
    }
    for text in ["", "tenants", "device:", "key:", "user:x"] {
        let error = text.parse::<Scope>().expect_err(text);
        assert!(error.contains("device:ID"), "{error}");
    }
}

#[test]
fn a_request_is_found_by_its_own_device_alone() {
    let book = book(50_000_000);
    let look = |number, device: &str| find(&book.connection, id(number), &device.parse().expect("name"));
    held(&book, &request(1));
    assert_eq!(look(1, "laptop").expect("works"), Found::Open);
    assert_eq!(look(1, "desk").expect("works"), Found::Nothing);
    assert_eq!(look(2, "laptop").expect("works"), Found::Nothing);
    let settled = settle(&book.connection, &settlement(1, 1, 1)).expect("settled");
    let found = Found::Settled { end: settled.end_bytes, provider: "p".into(), model: "m".into() };
    assert_eq!(look(1, "laptop").expect("works"), found);
    held(&book, &request(2));
    assert!(void(&book.connection, id(2), NOW).expect("works"));
    assert_eq!(look(2, "laptop").expect("works"), Found::Nothing);
    assert!(!void(&book.connection, id(1), NOW).expect("works"), "it is settled");
    assert!(void(&book.connection, id(9), NOW).expect("works"), "it never was");
}

#[test]
fn keys_for_providers_are_set_replaced_listed_and_removed() {
    let book = book(0);
    let key = |byte| SealedKey { nonce: [byte; 12], sealed: vec![byte; 40] };
    assert_eq!(provider_keys::get(&book.connection, "p").expect("read"), None);
    for (provider, byte, at_ms) in [("p", 1, 5), ("a", 2, 6), ("p", 3, 7)] {
        provider_keys::set(&book.connection, provider, &key(byte), at_ms).expect("set");
    }
    let listed = provider_keys::list(&book.connection).expect("read");
    let listed: Vec<_> = listed.iter().map(|key| (key.provider.as_str(), key.set_ms)).collect();
    assert_eq!(listed, [("a", 6), ("p", 7)]);
    assert_eq!(provider_keys::get(&book.connection, "p").expect("read"), Some(key(3)));
    assert!(provider_keys::remove(&book.connection, "p").expect("removed"));
    assert!(!provider_keys::remove(&book.connection, "p").expect("was gone"));
}

#[test]
fn sums_by_everything_agree_and_name_their_groups() {
    let book = book(50_000_000);
    let RecordOutcome::Recorded(local) = record(&book.connection, &recorded(4, 500, NOW)).expect("works") else {
        panic!("recorded")
    };
    assert_eq!(local.end.cost, NanoUsd(500_000));
    let knowledge = Record { class: Class::Knowledge, device: "desk".parse().expect("name"), ..recorded(5, 7, NOW) };
    record(&book.connection, &knowledge).expect("works");
    for (number, key, at_ms) in [(1, None, NOW), (2, Some("k1"), NOW + DAY_MS), (3, Some("k2"), NOW + 40 * DAY_MS)] {
        held(&book, &HoldRequest { now_ms: at_ms, key: key.map(str::to_owned), ..request(number) });
        settle(&book.connection, &Settlement { now_ms: at_ms, ..settlement(number, 100, 50) }).expect("settled");
    }
    let names = |from, until, by| {
        let groups = usage::report(&book.connection, from, until, by).expect("summed");
        assert_eq!(groups.iter().map(|group| group.totals.cost_nano).sum::<i64>(), 3 * 150_000 + 507_000);
        groups.into_iter().map(|group| format!("{}={}", group.name, group.totals.requests)).collect::<Vec<_>>()
    };
    // Of days, and of whole months.
    let months = [month(NOW), month(NOW) + 2].map(|month| day(month_start_ms(month)));
    for (from, until) in [(0, 100_001), (months[0], months[1])] {
        assert_eq!(names(from, until, Grouping::All), ["=5"]);
        assert_eq!(names(from, until, Grouping::Month), ["2026-09=4", "2026-10=1"]);
        assert_eq!(names(from, until, Grouping::Class), ["cloud=3", "local=1", "knowledge=1"]);
        assert_eq!(names(from, until, Grouping::Device), ["desk=1", "laptop=4"]);
        assert_eq!(names(from, until, Grouping::Key), ["=3", "k1=1", "k2=1"]);
        assert_eq!(names(from, until, Grouping::Model), ["p/m=5"]);
        assert_eq!(names(from, until, Grouping::Day), ["2026-09-21=3", "2026-09-22=1", "2026-10-31=1"]);
    }
    // A provider's bill knows nothing of what ran elsewhere.
    let bill = usage::of_provider(&book.connection, "p", day(NOW), day(NOW) + 2).expect("summed");
    let bill: Vec<_> = bill.into_iter().map(|(day, model, sums)| (day, model, sums.cost_nano)).collect();
    assert_eq!(bill, [(day(NOW), "m".to_owned(), 150_000), (day(NOW) + 1, "m".to_owned(), 150_000)]);
    assert_eq!(usage::of_provider(&book.connection, "q", 0, 100_000).expect("summed").len(), 0);
    let waiting = outbox::totals(&book.connection, 0).expect("summed");
    assert_eq!(waiting, usage::all_time(&book.connection).expect("summed"));
    clean(&book);
}

#[test]
fn every_kind_of_unit_has_its_column() {
    let line = |kind, units| UsageLine { kind, units };
    let usage = [
        line(UnitKind::INPUT, 1),
        line(UnitKind::INPUT_AUDIO, 10),
        line(UnitKind::INPUT_IMAGE, 100),
        line(UnitKind::OUTPUT, 2),
        line(UnitKind::OUTPUT_AUDIO, 20),
        line(UnitKind::OUTPUT_IMAGE, 200),
        line(UnitKind::CACHE_READ, 3),
        line(UnitKind::CACHE_WRITE_5M, 4),
        line(UnitKind::CACHE_WRITE_1H, 40),
        line(UnitKind::REASONING, 5),
        line(UnitKind::CALLS, 6),
        line(UnitKind::WEB_SEARCHES, 7),
    ];
    let totals = Totals::of(&usage, NanoUsd(8), NanoUsd(9), true);
    let expected = Totals {
        requests: 1,
        estimated: 1,
        input: 111,
        output: 222,
        cache_read: 3,
        cache_write: 44,
        reasoning: 5,
        cost_nano: 8,
        absorbed_nano: 9,
    };
    assert_eq!(totals, expected);
    let mut doubled = totals;
    doubled.add(&totals);
    assert_eq!(doubled.less(&totals), totals);
    assert_eq!(totals.less(&totals), Totals::default());
    assert_eq!(Totals::of(&[line(UnitKind::INPUT, u64::MAX)], NanoUsd::ZERO, NanoUsd::ZERO, false).input, 1 << 40);
}

#[test]
fn records_are_refused_for_their_own_reasons() {
    let book = book(1_000_000);
    let outcome = |record: &Record| super::super::record::record(&book.connection, record).expect("works");
    let first = recorded(1, 100, NOW);
    let RecordOutcome::Recorded(settled) = outcome(&first) else { panic!("recorded") };
    let RecordOutcome::Recorded(again) = outcome(&first) else { panic!("the same once more") };
    assert_eq!((again.end_bytes, again.is_repeated, settled.is_repeated), (settled.end_bytes, true, false));
    assert_eq!(outcome(&recorded(1, 101, NOW)), RecordOutcome::Conflict);
    let other = Record { device: "desk".parse().expect("name"), ..first.clone() };
    assert_eq!(outcome(&other), RecordOutcome::Conflict);
    // What was asked of a provider is no record, open or settled.
    held(&book, &HoldRequest { asked_output: Some(10), ..request(2) });
    assert_eq!(outcome(&Record { digest: [7; 32], ..recorded(2, 1, NOW) }), RecordOutcome::Conflict);
    let left = prepaid(&book) as u64;
    assert_eq!(
        outcome(&recorded(3, left / 1000 + 1, NOW)),
        RecordOutcome::Short { missing: NanoUsd(1000 - 7 + 7 - (left % 1000) as i64) }
    );
    budget::set(&book.connection, &Scope::Device("laptop".into()), Measure::SpendDay, Some(300_000)).expect("set");
    // 100,000 are spent, and 110,007 held.
    assert_eq!(outcome(&recorded(3, 90, NOW)), RecordOutcome::Short { missing: NanoUsd(7) });
    let rates = Arc::<Rates>::default();
    let per_minute = PerMinute { requests: 1, tokens: None };
    let rated = |number| Record { rates: Arc::clone(&rates), per_minute, ..recorded(number, 1, NOW) };
    assert!(matches!(outcome(&rated(4)), RecordOutcome::Recorded(_)));
    assert!(matches!(outcome(&rated(5)), RecordOutcome::RateLimited(RateRefusal { retry_after_ms: 60_000, .. })));
    set_terms(&book.connection, &Terms { suspended: true, ..Terms::default() }, 1).expect("set");
    assert_eq!(outcome(&recorded(6, 0, NOW)), RecordOutcome::Suspended);
    clean(&book);
}

#[test]
fn what_costs_nothing_is_recorded_by_who_has_nothing() {
    let book = book(0);
    let free = recorded(1, 0, NOW);
    let outcome = record(&book.connection, &free).expect("works");
    assert!(matches!(outcome, RecordOutcome::Recorded(settled) if settled.end.cost == NanoUsd::ZERO));
    let outcome = record(&book.connection, &recorded(2, 1, NOW)).expect("works");
    assert_eq!(outcome, RecordOutcome::Short { missing: NanoUsd(1000) });
}

#[test]
fn rates_of_a_key_bind_that_key_and_what_is_idle_is_forgotten() {
    let book = book(50_000_000);
    budget::set(&book.connection, &Scope::Key("k1".into()), Measure::RequestsMinute, Some(1)).expect("set");
    let rates = Arc::<Rates>::default();
    let ask = |number, key: &str| HoldRequest { key: Some(key.into()), rates: Arc::clone(&rates), ..request(number) };
    held(&book, &ask(1, "k1"));
    assert!(matches!(
        refusal(&book, &ask(2, "k1")),
        HoldRefusal::RateLimited(RateRefusal { bound: Bound { scope: Scope::Key(_), .. }, .. })
    ));
    held(&book, &ask(2, "k2"));
    // Far more scopes than are kept, each let through in a minute of its own.
    let bound =
        |number: u64| Bound { scope: Scope::Key(format!("k{number}")), measure: Measure::RequestsMinute, count: 1 };
    for number in 0..200 {
        rates.take(&[bound(number)], 0, NOW + (number + 1) * 60_000).expect("let through");
    }
    assert!(rates.remembered() <= 66, "{}", rates.remembered());
    let again = rates.take(&[bound(199)], 0, NOW + 200 * 60_000).expect_err("what is not idle is not forgotten");
    assert_eq!(again.retry_after_ms, 60_000);
}

#[test]
fn a_statement_goes_on_where_a_page_ends() {
    let book = book(50_000_000);
    for number in 0..200 {
        held(&book, &HoldRequest { request_id: RequestId([number; 16]), ..request(1) });
        settle(&book.connection, &settlement(number, 1, 1)).expect("settled");
    }
    let last = statement::last_before(&book.connection, i64::MAX).expect("found");
    assert_eq!(last, 601);
    let first = statement::page(&book.connection, 0, last).expect("read");
    assert_eq!(first.len(), 500);
    let rest = statement::page(&book.connection, first[499].entry, last).expect("read");
    assert_eq!((rest.len(), rest[0].entry), (101, 501));
    let all: Vec<_> = first.into_iter().chain(rest).collect();
    // The running balance is that of the tenant's own money, on entries too that do not move it.
    let mut prepaid = 0;
    for line in &all {
        prepaid += i64::from(line.to == "tenant:prepaid") * line.amount_nano_usd;
        prepaid -= i64::from(line.from == "tenant:prepaid") * line.amount_nano_usd;
        assert_eq!(line.balance_nano_usd, prepaid, "entry {}", line.entry);
    }
    // From the middle, where the first entry does not move it: the charge out of what was held.
    let charge = &statement::page(&book.connection, 3, 4).expect("read")[0];
    assert_eq!((charge.kind.as_str(), charge.balance_nano_usd), ("settle", all[3].balance_nano_usd));
    assert!(charge.balance_nano_usd > 0);
    assert_eq!(statement::last_before(&book.connection, 0).expect("found"), 0);
    assert_eq!(statement::last_before(&book.connection, time(NOW)).expect("found"), 0);
    assert_eq!(all[2].model.as_deref(), Some("p/m"));
}

#[test]
fn the_first_record_of_a_month_has_its_allowance() {
    let book = book(0);
    set_terms(&book.connection, &Terms { tier: Tier::Free, ..Terms::default() }, 1).expect("set");
    let RecordOutcome::Recorded(settled) = record(&book.connection, &recorded(1, 500, NOW)).expect("works") else {
        panic!("the allowance pays it")
    };
    assert_eq!((settled.end.cost, settled.end.balance), (NanoUsd(500_000), NanoUsd::ZERO));
    clean(&book);
}

#[test]
fn a_copy_of_a_book_begins_an_epoch_of_its_own() {
    use crate::store::central;
    let dir = tempfile::tempdir().expect("made");
    let central = open(&dir.path().join("central.db"), Kind::Central, Durability::None).expect("opened");
    let tenant = "acme".parse().expect("name");
    central::create_tenant(&central, &tenant, NOW).expect("made");
    let (book, copy) = (book(50_000_000), book(50_000_000));
    let hand_over = |book: &Book| {
        let batch = outbox::batch(&book.connection, 10).expect("read");
        central::usage::take(&central, &tenant, &batch).expect("works")
    };
    held(&book, &request(1));
    settle(&book.connection, &settlement(1, 1, 1)).expect("settled");
    assert_eq!((hand_over(&book), hand_over(&book)), (None, None), "the same rows once more");
    // The copy knows nothing of it, and gives the number to another request.
    held(&copy, &request(2));
    settle(&copy.connection, &settlement(2, 1, 1)).expect("settled");
    assert_eq!(hand_over(&copy), Some(1));
    outbox::begin_epoch(&copy.connection).expect("begun");
    assert_eq!(hand_over(&copy), None);
    assert_eq!(central::usage::total(&central, &tenant).expect("summed").requests, 2);
    assert!(central::usage::adds_up(&central, &tenant).expect("summed"));
    central.execute("UPDATE usage_total SET cost_nano = cost_nano * 3", []).expect("changed");
    assert!(!central::usage::adds_up(&central, &tenant).expect("summed"));
}
