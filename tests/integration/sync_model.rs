//! Random histories of sync, each from a seed. `BELAY_HISTORIES=10000` runs so many; `BELAY_SEED=7` runs that one.

use belay_tests::fault::{Fault, scaled};
use belay_tests::sim::sync::{Tally, history};
use std::sync::atomic::{AtomicU64, Ordering};

/// So many take some seconds.
const HISTORIES: u64 = 600;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// A seed that is asked for alone is one history that somebody wants to see again.
fn usual(has_seed: bool) -> u64 {
    if has_seed && std::env::var_os("BELAY_SCALE").is_none() { 1 } else { scaled(HISTORIES, 10_000) }
}

#[test]
fn devices_converge_and_nothing_is_lost_whatever_happens() {
    let first = number("BELAY_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()) << 16);
    let count = number("BELAY_HISTORIES").unwrap_or_else(|| usual(number("BELAY_SEED").is_some()));
    eprintln!("seeds {first} to {}", first + count - 1);
    let next = AtomicU64::new(first);
    let run = || {
        let (mut sum, mut wrong) = (Tally::default(), vec![]);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return (sum, wrong);
            }
            let (tally, found) = history(seed);
            sum.rounds += tally.rounds;
            sum.conflicts += tally.conflicts;
            sum.crashes += tally.crashes;
            sum.losses += tally.losses;
            sum.restarts += tally.restarts;
            sum.kept += tally.kept;
            if !found.is_empty() {
                wrong.push((seed, found));
            }
        }
    };
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let mut all = [0; 6];
    for (tally, wrong) in &results {
        eprintln!("{tally:?}");
        assert!(wrong.is_empty(), "seeds that went wrong: {wrong:#?}");
        let Tally { rounds, conflicts, crashes, losses, restarts, kept } = *tally;
        let one = [rounds, conflicts, crashes, losses, restarts, kept];
        all.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
    }
    if count >= HISTORIES {
        assert!(all.iter().all(|count| *count > 100), "histories are too quiet: {all:?}");
    }
    Fault::kept("sync-histories", count, "all devices converge, nothing that was written is lost")
        .worst(format!("seeds from {first}; rounds, conflicts, crashes, losses, restarts, kept: {all:?}"))
        .tell();
}
