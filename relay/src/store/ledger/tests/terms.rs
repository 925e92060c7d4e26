//! What a tenant pays with: credits and their end, the free tier, the ceiling, budgets, large inputs, and what usage and statements say of it.

use super::*;
use crate::pricing::PriceTier;
use crate::store::ledger::budget;
use crate::store::ledger::credits::grant;
use crate::store::ledger::hold::refresh;
use crate::store::ledger::outbox;
use crate::store::ledger::standing::summary;
use crate::store::ledger::statement;
use crate::store::ledger::usage::{self, Grouping};
use belay_protocol::calendar::{DAY_MS, day, month, month_start_ms};

fn credits(book: &Book) -> i64 {
    balance(&book.connection, Account::Credits).expect("read").0
}

#[test]
fn credits_are_used_before_the_balance_and_those_first_that_end_first() {
    let book = book(2_000_000);
    grant(&book.connection, NanoUsd(100_000), "late", None, NOW + 2 * DAY_MS, NOW).expect("granted");
    grant(&book.connection, NanoUsd(60_000), "soon", Some("a gift"), NOW + DAY_MS, NOW).expect("granted");
    grant(&book.connection, NanoUsd(60_000), "soon", None, NOW + DAY_MS, NOW).expect("the same once more");
    held(&book, &request(1));
    assert_eq!((credits(&book), prepaid(&book)), (0, 2_000_000 - (HELD - 160_000)));
    clean(&book);
    // 90,000 are used: all of what ends soon, and 30,000 of the rest.
    let settled = settle(&book.connection, &settlement(1, 40, 50)).expect("settled");
    assert_eq!((settled.end.cost, settled.end.balance), (NanoUsd(90_000), NanoUsd(2_070_000)));
    assert_eq!((credits(&book), prepaid(&book)), (70_000, 2_000_000));
    clean(&book);
    // A request that is voided gives them back, and what has expired meanwhile goes with the next look.
    held(&book, &request(2));
    assert!(!refresh(&book.connection, NanoUsd::ZERO, NOW + 3 * DAY_MS).expect("looked"), "all of it is held");
    void(&book.connection, RequestId([2; 16]), NOW + 3 * DAY_MS).expect("voided");
    assert_eq!(credits(&book), 70_000);
    assert!(refresh(&book.connection, NanoUsd::ZERO, NOW + 3 * DAY_MS).expect("looked"));
    assert_eq!((credits(&book), prepaid(&book)), (0, 2_000_000));
    clean(&book);
}

#[test]
fn the_free_tier_has_its_allowance_every_month_and_nothing_else() {
    let book = book(9_000_000);
    set_terms(&book.connection, &Terms { tier: Tier::Free, ..Terms::default() }, 1).expect("set");
    let small = |id, now_ms| HoldRequest { asked_output: Some(300), now_ms, ..request(id) };
    held(&book, &small(1, NOW));
    assert_eq!((credits(&book), prepaid(&book)), (500_000 - 400_007, 9_000_000));
    let HoldRefusal::PaymentRequired { missing, available, tier, .. } = refusal(&book, &small(2, NOW)) else {
        panic!("the allowance is used up")
    };
    assert_eq!((missing, available, tier), (NanoUsd(300_014), NanoUsd(99_993), Tier::Free));
    settle(&book.connection, &settlement(1, 100, 300)).expect("settled");
    // Usage above the hold is not the balance's.
    held(&book, &HoldRequest { asked_output: Some(0), input_bound: 50, ..small(3, NOW) });
    let settled = settle(&book.connection, &settlement(3, 50, 40)).expect("settled");
    assert_eq!((settled.end.cost, settled.absorbed), (NanoUsd(50_007), NanoUsd(39_993)));
    let next = month_start_ms(month(NOW) + 1);
    held(&book, &small(4, next));
    assert_eq!(credits(&book), 500_000 - 400_007, "what was left of the last month is gone");
    assert_eq!(summary(&book.connection).expect("read").terms.tier, Tier::Free);
    clean(&book);
}

#[test]
fn a_ceiling_lets_the_balance_go_below_zero_so_far_and_suspends_if_it_is_to() {
    let book = book(0);
    let terms = Terms { ceiling: NanoUsd(1_500_000), ..Terms::default() };
    set_terms(&book.connection, &terms, 1).expect("set");
    held(&book, &request(1));
    assert_eq!(prepaid(&book), -HELD);
    assert!(matches!(refusal(&book, &request(2)), HoldRefusal::PaymentRequired { suspended: false, .. }));
    let settled = settle(&book.connection, &settlement(1, 1_000_000, 1_000_000)).expect("settled");
    assert_eq!((settled.end.cost, settled.end.balance), (NanoUsd(1_500_000), NanoUsd(-1_500_000)));
    clean(&book);
    // Only refunds and chargebacks go further.
    for (what, name) in [(Operation::Refund, "r"), (Operation::Chargeback, "c")] {
        operate(&book.connection, what, NanoUsd(1000), name, None, NOW).expect("taken");
    }
    assert_eq!(prepaid(&book), -1_502_000);
    clean(&book);
    set_terms(&book.connection, &Terms { suspend_at_ceiling: true, ..terms }, 2).expect("set");
    set_terms(&book.connection, &Terms::default(), 1).expect("an older version changes nothing");
    assert!(matches!(refusal(&book, &request(3)), HoldRefusal::PaymentRequired { suspended: true, .. }));
    assert_eq!(refusal(&book, &request(3)), HoldRefusal::Suspended);
}

#[test]
fn budgets_bind_tenant_device_and_key_by_day_and_month_with_what_is_held() {
    let book = book(50_000_000);
    let set = |scope, measure, amount| budget::set(&book.connection, &scope, measure, amount).expect("set");
    set(Scope::Device("laptop".into()), Measure::SpendDay, Some(1_500_000));
    set(Scope::Key("k1".into()), Measure::SpendMonth, Some(100));
    held(&book, &request(1));
    let HoldRefusal::OverBudget { missing, room, retry_after_ms } = refusal(&book, &request(2)) else {
        panic!("the device's day is used up by what is held")
    };
    assert_eq!((missing.0, room.left.0), (2 * HELD - 1_500_000, 1_500_000 - HELD));
    assert_eq!(retry_after_ms, DAY_MS - NOW % DAY_MS);
    settle(&book.connection, &settlement(1, 100, 50)).expect("settled");
    held(&book, &request(2));
    // A smaller answer fits where the caller allows one.
    let fits = HoldRequest { may_reduce: true, asked_output: Some(900), ..request(3) };
    assert!(held(&book, &fits) <= NanoUsd(1_500_000 - 150_000 - HELD));
    // The next day, what is held still counts, and what was spent does not.
    let tomorrow = HoldRequest { now_ms: NOW + DAY_MS, ..request(4) };
    assert!(matches!(refusal(&book, &tomorrow), HoldRefusal::OverBudget { .. }));
    let other = |key: &str| HoldRequest { device: "desk".parse().expect("name"), key: Some(key.into()), ..request(5) };
    assert!(matches!(refusal(&book, &other("k1")), HoldRefusal::OverBudget { .. }));
    held(&book, &other("k2"));
    // Usage above the hold stops at the budget, too.
    let settled = settle(&book.connection, &settlement(2, 1_000_000, 1_000_000)).expect("settled");
    let spent = usage::report(&book.connection, day(NOW), day(NOW) + 1, Grouping::Device).expect("summed");
    let laptop = spent.iter().find(|group| group.name == "laptop").expect("used").totals.cost_nano;
    assert!(settled.absorbed > NanoUsd::ZERO && laptop <= 1_500_000, "{laptop}");
    assert_eq!(budget::all(&book.connection).expect("read").len(), 2);
    set(Scope::Device("laptop".into()), Measure::SpendDay, None);
    held(&book, &request(6));
    clean(&book);
}

#[test]
fn rates_bind_whom_their_budget_names() {
    let book = book(50_000_000);
    let rates = Arc::default();
    let ask = |id, device: &str| HoldRequest {
        device: device.parse().expect("name"),
        rates: Arc::clone(&rates),
        ..request(id)
    };
    let set = |scope, measure, amount| budget::set(&book.connection, &scope, measure, Some(amount)).expect("set");
    set(Scope::Device("laptop".into()), Measure::RequestsMinute, 1);
    set(Scope::Tenant, Measure::TokensMinute, 600);
    let HoldOutcome::Held(Held { remaining, .. }) = hold(&book.connection, &ask(1, "laptop")).expect("works") else {
        panic!("held")
    };
    let mut left: Vec<(Measure, u64)> = remaining.iter().map(|left| (left.bound.measure, left.left)).collect();
    left.sort_unstable();
    // 80 bytes are 20 tokens, and a quarter of the 900 that may come.
    assert_eq!(left, [(Measure::RequestsMinute, 0), (Measure::RequestsMinute, 999), (Measure::TokensMinute, 355)]);
    assert!(matches!(
        refusal(&book, &ask(2, "laptop")),
        HoldRefusal::RateLimited(RateRefusal { bound: Bound { scope: Scope::Device(_), .. }, retry_after_ms: 60_000 })
    ));
    hold(&book.connection, &ask(3, "desk")).expect("works");
    assert!(matches!(
        refusal(&book, &ask(4, "desk")),
        HoldRefusal::RateLimited(RateRefusal { bound: Bound { measure: Measure::TokensMinute, .. }, .. })
    ));
    // What was used after all counts.
    let bounds = [Bound { scope: Scope::Tenant, measure: Measure::TokensMinute, count: 600 }];
    rates.correct(&bounds, 490, 0, NOW);
    hold(&book.connection, &ask(5, "desk")).expect("works");
    rates.correct(&bounds, 245, 2445, NOW);
    let HoldRefusal::RateLimited(RateRefusal { retry_after_ms, .. }) = refusal(&book, &ask(6, "desk")) else {
        panic!("far beyond the limit")
    };
    assert!(retry_after_ms > 180_000, "{retry_after_ms}");
    assert!(!rates.is_idle(NOW) && rates.is_idle(NOW + 1_000_000));
}

#[test]
fn the_dearest_offer_is_held_and_the_one_that_ran_is_charged() {
    let book = book(50_000_000);
    let dear = |offer: &Offer| {
        let mut offer = Offer { model: "dear".into(), ..offer.clone() };
        offer.price.lines.iter_mut().for_each(|line| line.nano_per_million *= 3);
        // Twice as much again for what is large.
        let tier =
            offer.price.lines.iter().map(|line| PriceLine { nano_per_million: line.nano_per_million * 2, ..*line });
        offer.price.tiers = vec![PriceTier { above: 90, lines: tier.collect() }];
        offer.price.lines.push(PriceLine { kind: UnitKind::CALLS, nano_per_million: 1_000_000 });
        offer
    };
    let offers = vec![request(1).offers[0].clone(), dear(&request(1).offers[0])];
    let amount = held(&book, &HoldRequest { offers, ..request(1) });
    assert_eq!(amount, NanoUsd(6_000_000 + 1 + 7));
    let settled = settle(&book.connection, &Settlement { offer: 1, ..settlement(1, 80, 20) }).expect("settled");
    assert_eq!((settled.end.model.as_str(), settled.end.cost), ("dear", NanoUsd(300_000 + 1)));
    assert_eq!(settled.end.units(UnitKind::CALLS), 1);
    held(&book, &request(2));
    assert!(matches!(
        settle(&book.connection, &Settlement { offer: 1, ..settlement(2, 1, 1) }),
        Err(StoreError::Corrupt { .. })
    ));
    // A tenant that pays with its own keys has none here; a provider that needs none is open to it.
    set_terms(&book.connection, &Terms { tier: Tier::Byok, ..Terms::default() }, 1).expect("set");
    assert_eq!(refusal(&book, &request(3)), HoldRefusal::NoProviderKey { provider: "p".into() });
    let keyless = Offer { keyless: true, ..request(1).offers[0].clone() };
    let amount = held(&book, &HoldRequest { offers: vec![keyless], ..request(3) });
    assert_eq!(amount, NanoUsd(300_000 + 7), "three tenths of the price");
    clean(&book);
}

#[test]
fn usage_statements_and_the_outbox_say_the_same_as_the_entries() {
    let book = book(50_000_000);
    for (id, at_ms) in [(1, NOW), (2, NOW + DAY_MS), (3, NOW + 40 * DAY_MS)] {
        held(&book, &HoldRequest { now_ms: at_ms, ..request(id) });
        settle(&book.connection, &Settlement { now_ms: at_ms, estimated: id == 2, ..settlement(id, 100, 50) })
            .expect("settled");
    }
    let report = |from, until, by| usage::report(&book.connection, from, until, by).expect("summed");
    let costs = |by| report(0, 100_000, by).into_iter().map(|group| group.totals.cost_nano).collect::<Vec<_>>();
    assert_eq!(costs(Grouping::Day), [150_000; 3]);
    assert_eq!(costs(Grouping::Month).into_iter().sum::<i64>(), 450_000);
    assert_eq!((costs(Grouping::All), costs(Grouping::Model)), (vec![450_000], vec![450_000]));
    let all = usage::all_time(&book.connection).expect("summed");
    assert_eq!((all.requests, all.estimated, all.input, all.output), (3, 1, 300, 150));
    let revenue = balance(&book.connection, Account::Revenue).expect("read");
    assert_eq!(all.cost_nano, revenue.0);
    // Whole months are read from the sums of months, and say the same as the days.
    let (from, until) = (day(month_start_ms(month(NOW))), day(month_start_ms(month(NOW) + 2)));
    let by_days: i64 = report(from, until, Grouping::Day).iter().map(|group| group.totals.cost_nano).sum();
    assert_eq!(report(from, until, Grouping::All)[0].totals.cost_nano, by_days);
    // Central is handed each once, and the outbox is empty after that.
    let batch = outbox::batch(&book.connection, 2).expect("read");
    assert_eq!((batch.rows.len(), outbox::pending(&book.connection).expect("read").cost), (2, NanoUsd(450_000)));
    outbox::confirm(&book.connection, batch.epoch + 1, 2).expect("another life of the book: nothing");
    outbox::confirm(&book.connection, batch.epoch, 2).expect("confirmed");
    assert_eq!(outbox::batch(&book.connection, 9).expect("read").rows[0].number, 3);
    // The statement's entries lead from one balance to the next.
    let last = statement::last_before(&book.connection, i64::MAX).expect("found");
    let before = statement::last_before(&book.connection, i64::try_from(NOW + DAY_MS).expect("fits")).expect("found");
    let lines = statement::page(&book.connection, 0, last).expect("read");
    assert_eq!((lines.len() as i64, before), (last, 4));
    let mut prepaid = 0;
    for line in &lines {
        prepaid += i64::from(line.to == "tenant:prepaid") * line.amount_nano_usd;
        prepaid -= i64::from(line.from == "tenant:prepaid") * line.amount_nano_usd;
        if line.to == "tenant:prepaid" {
            assert_eq!(line.to_after_nano_usd, prepaid);
        }
    }
    assert_eq!(prepaid, self::prepaid(&book));
}

#[test]
fn of_several_budgets_the_tightest_binds_and_says_when_it_begins_anew() {
    let book = book(50_000_000);
    let set = |scope, measure, amount| budget::set(&book.connection, &scope, measure, amount).expect("set");
    let tight = |key: Option<&str>| {
        let ask = HoldRequest { key: key.map(str::to_owned), asked_output: Some(4000), ..request(1) };
        let HoldRefusal::OverBudget { room, retry_after_ms, .. } = refusal(&book, &ask) else { panic!("over budget") };
        (room.budget.scope, room.budget.measure, room.left.0, retry_after_ms)
    };
    let until_month = month_start_ms(month(NOW) + 1) - NOW;
    let until_day = DAY_MS - NOW % DAY_MS;
    let laptop = || Scope::Device("laptop".into());
    set(laptop(), Measure::SpendMonth, Some(2_000_000));
    assert_eq!(tight(None), (laptop(), Measure::SpendMonth, 2_000_000, until_month));
    set(laptop(), Measure::SpendDay, Some(3_000_000));
    assert_eq!(tight(None), (laptop(), Measure::SpendMonth, 2_000_000, until_month));
    set(Scope::Tenant, Measure::SpendDay, Some(1_000_000));
    assert_eq!(tight(None), (Scope::Tenant, Measure::SpendDay, 1_000_000, until_day));
    set(Scope::Key("k".into()), Measure::SpendDay, Some(500_000));
    assert_eq!(tight(None).2, 1_000_000, "not under that key");
    assert_eq!(tight(Some("k")), (Scope::Key("k".into()), Measure::SpendDay, 500_000, until_day));
    // Of two that leave the same, the first that is read is named.
    set(Scope::Tenant, Measure::SpendDay, None);
    set(laptop(), Measure::SpendDay, Some(2_000_000));
    assert_eq!(tight(None).1, Measure::SpendDay);
}

#[test]
fn a_cost_cap_that_is_enough_is_no_obstacle() {
    let book = book(50_000_000);
    let capped = |id, nano| HoldRequest { cost_cap: Some(NanoUsd(nano)), ..request(id) };
    assert_eq!(held(&book, &capped(1, HELD)), NanoUsd(HELD));
    assert_eq!(refusal(&book, &capped(2, HELD - 1)), HoldRefusal::AboveCostCap { missing: NanoUsd(1) });
    let shrunk = HoldRequest { may_reduce: true, ..capped(3, 500_000) };
    assert!(held(&book, &shrunk) <= NanoUsd(500_000));
}

#[test]
fn several_answers_are_held_for_and_share_what_there_is() {
    let book = book(50_000_000);
    let three = HoldRequest { choices: 3, extra_output: 5, ..request(1) };
    assert_eq!(held(&book, &three), NanoUsd(100_000 + 3 * 900_000 + 5_000 + 7));
    let capped = HoldRequest { choices: 3, may_reduce: true, cost_cap: Some(NanoUsd(1_000_007)), ..request(2) };
    let HoldOutcome::Held(Held { output_cap, amount, .. }) = hold(&book.connection, &capped).expect("works") else {
        panic!("held")
    };
    // 900 tokens can be paid, 300 for each.
    assert_eq!((output_cap, amount), (300, NanoUsd(1_000_007)));
}

#[test]
fn usage_above_a_hold_stops_at_the_budget_of_its_key() {
    let book = book(50_000_000);
    budget::set(&book.connection, &Scope::Key("k".into()), Measure::SpendDay, Some(1_200_000)).expect("set");
    held(&book, &HoldRequest { key: Some("k".into()), ..request(1) });
    let settled = settle(&book.connection, &settlement(1, 2_000, 1_000)).expect("settled");
    assert_eq!((settled.end.cost, settled.absorbed), (NanoUsd(1_200_000), NanoUsd(1_800_000)));
    let told = summary(&book.connection).expect("read");
    assert_eq!((told.charged, told.balance), (NanoUsd(1_200_000), NanoUsd(50_000_000 - 1_200_000)));
    assert_eq!((told.open_holds, told.held, told.credits), (0, NanoUsd::ZERO, NanoUsd::ZERO));
    clean(&book);
}

#[test]
fn only_who_has_used_up_its_ceiling_is_suspended() {
    let suspended = |tier, ceiling, balance: i64, holding: bool| {
        let book = book(0);
        // Room for the hold below, wherever it is looked at.
        operate(&book.connection, Operation::Credit, NanoUsd(10_000_000), "opening", None, NOW).expect("credited");
        if holding {
            held(&book, &request(9));
        }
        let down = 10_000_000 - balance;
        operate(&book.connection, Operation::Chargeback, NanoUsd(down), "down", None, NOW).expect("taken");
        let terms = Terms { tier, ceiling: NanoUsd(ceiling), suspend_at_ceiling: true, ..Terms::default() };
        set_terms(&book.connection, &terms, 1).expect("set");
        let ask = HoldRequest { allowance: NanoUsd::ZERO, ..request(1) };
        match refusal(&book, &ask) {
            HoldRefusal::PaymentRequired { suspended, .. } => suspended,
            other => panic!("{other:?}"),
        }
    };
    assert!(suspended(Tier::Managed, 1_000_000, -990_000, false), "a hundredth is left");
    assert!(!suspended(Tier::Managed, 1_000_000, -989_999, false));
    assert!(!suspended(Tier::Managed, 1_000_000, 0, false), "too dear is not used up");
    assert!(!suspended(Tier::Managed, 0, 0, false), "without a ceiling there is none to come to");
    assert!(!suspended(Tier::Free, 1_000_000, -990_000, false), "the free tier has none");
    // What is set aside may come back.
    assert!(!suspended(Tier::Managed, 1_000_000, -500_000, true));
}
