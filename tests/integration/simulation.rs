//! Whole histories under virtual time.

use belay_tests::counting::Counting;
use belay_tests::fault::{Fault, scaled, seed};
use belay_tests::sim::faults;
use belay_tests::sim::net::Path;
use belay_tests::sim::world::{Outcome, Plan, run};
use std::time::Duration;

fn plan(seed: u64, hours: u64) -> Plan {
    Plan {
        seed,
        devices: 20,
        duration: Duration::from_secs(hours * 3600),
        between_requests: Duration::from_secs(300),
        between_losses: Duration::from_secs(1800),
    }
}

fn check(plan: Plan, outcome: &Outcome) {
    let history = &outcome.history;
    eprintln!(
        "seed {}: {} asked, {} ends seen, {} not sent, {} interrupted, {} resumed, {} cancelled, {} path losses, {} packets, book: {:?}",
        plan.seed,
        history.asked,
        history.ends.len(),
        history.lost,
        history.interrupted,
        history.resumed,
        history.cancelled,
        history.path_losses,
        outcome.packets,
        outcome.book
    );
    assert_eq!(outcome.book.problems, Vec::<String>::new(), "seed {}", plan.seed);
    assert_eq!(outcome.book.open, 0, "seed {}: holds are open", plan.seed);
    // Every charge that a device saw is in the book, with the same cost.
    for (id, end) in &history.ends {
        assert_eq!(outcome.settled.get(id), Some(&end.cost.0), "seed {}: request {id}", plan.seed);
    }
    // And every nano-dollar that is gone went into a settled request.
    assert_eq!(outcome.settled.values().sum::<i64>(), outcome.spent, "seed {}", plan.seed);
    assert!(outcome.settled.len() as u64 <= history.asked, "seed {}", plan.seed);
    assert_eq!(history.ends.len() as u64 + history.lost, history.asked, "seed {}", plan.seed);
}

#[test]
fn a_hundred_hours_of_twenty_devices_leave_the_books_clean() {
    let hours = scaled(100, 1000);
    let plan = plan(seed(20_261_123), hours);
    let outcome = run(plan);
    check(plan, &outcome);
    // The history has to have something to tell.
    assert!(
        outcome.history.ends.len() > 5_000
            && outcome.history.interrupted > 50
            && outcome.history.resumed > 0
            && outcome.history.lost < hours / 10
            && outcome.history.path_losses > 1_000
    );
    assert!(outcome.history.cancelled > 100);
    Fault::kept("hours-simulated", hours, "books clean, every charge seen is in them")
        .worst(format!("{} requests, {} path losses", outcome.history.asked, outcome.history.path_losses))
        .tell();
}

#[test]
fn a_seed_repeats_its_history() {
    let plan = plan(7, 2);
    let (first, second) = (run(plan), run(plan));
    check(plan, &first);
    assert_eq!(first.history.log, second.history.log, "seed {}", plan.seed);
    assert_ne!(first.history.log, run(Plan { seed: 8, ..plan }).history.log, "another seed, another history");
}

/// A minute of every fault, a thousand times.
#[test]
fn paths_that_are_lost_a_thousand_times_cost_no_event_and_no_cent() {
    let plan = faults::Plan {
        seed: seed(20_261_124),
        devices: 10,
        streams: 2,
        rounds: 110,
        answer: Counting { events: 100, pace: Duration::from_millis(200) },
        path: Path::default(),
        blackholes: 100,
        holes: [1, 10, 60].map(Duration::from_secs).into(),
        certificate: None,
    };
    let left = faults::run(&plan);
    check_faults(&plan, &left);
    assert!(left.interrupted > 800, "{left:?}");
    Fault::kept("paths-lost-simulated", 1000, "every token once, every cent once").tell();
}

#[test]
fn a_million_tokens_over_a_bad_line_arrive_once_and_in_order() {
    let plan = faults::Plan {
        seed: seed(20_261_125),
        devices: 4,
        streams: 50,
        rounds: 1,
        answer: Counting { events: 5000, pace: Duration::from_millis(20) },
        // 5 % of the packets lost in each direction, a round trip of 100 ms and up to 60 ms more: packets overtake.
        path: Path {
            delay: Duration::from_millis(50),
            jitter: Duration::from_millis(60),
            loss: 500,
            duplicate: 200,
            up: true,
        },
        blackholes: 0,
        holes: vec![],
        certificate: None,
    };
    let left = faults::run(&plan);
    check_faults(&plan, &left);
    assert_eq!((left.events, left.reconnects), (1_000_000, 0), "{left:?}");
    Fault::kept("bad-line-simulated", 1_000_000, "every token once and in order").tell();
}

fn check_faults(plan: &faults::Plan, left: &faults::Left) {
    eprintln!("seed {}: {left:?}", plan.seed);
    let requests = u64::from(plan.devices) * plan.streams as u64 * plan.rounds as u64;
    assert_eq!(left.ends, requests, "seed {}", plan.seed);
    assert_eq!(left.events, requests * plan.answer.events, "seed {}", plan.seed);
    assert_eq!(left.book.problems, Vec::<String>::new(), "seed {}", plan.seed);
    // Every request is charged, and once.
    assert_eq!((left.book.settled, left.book.open), (requests, 0), "seed {}", plan.seed);
    assert_eq!(left.charged, left.spent, "seed {}", plan.seed);
}
