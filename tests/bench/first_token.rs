//! How long the first token takes, beside the parts that it cannot do without: a direct request, a
//! QUIC round trip and a durable commit.

use crate::report::{Report, Samples, us};
use crate::scene::{Scene, Way};
use belay_tests::fake_provider::Script;

/// Rounds that are not counted: connections, caches and the allocator get warm.
const WARM: usize = 20;
/// The direct way's p50 must be below this, in microseconds, or the machine is too busy to measure.
const VOID_US: f64 = 500.0;
/// belay may take so many times the sum of its parts.
const BAR: f64 = 1.5;

/// Medians that later bars are made of, in microseconds.
#[derive(Debug)]
pub(crate) struct Basis {
    pub(crate) round_trip_us: f64,
    /// What a first token cannot do without.
    pub(crate) parts_us: f64,
}

/// The things that are measured in turn.
const KINDS: usize = 5;

/// Takes `rounds` samples of each.
pub(crate) async fn measure(scene: &Scene, rounds: usize, report: &mut Report) -> anyhow::Result<Basis> {
    // The tokens are apart, so that the first one travels alone.
    let script = Script { stamp: true, pace_ms: 1, ..Script::tokens(2) };
    let mut samples: [Samples; KINDS] = Default::default();
    for round in 0..WARM + rounds {
        // Each round begins with another, so that none always comes after the same.
        for turn in 0..KINDS {
            let kind = (round + turn) % KINDS;
            let ns = match kind {
                0 => scene.raw.round_trip().await?,
                1 => scene.commit().await?,
                2 => scene.stream(Way::Direct, 0, &script).await?.first_ns,
                3 => scene.stream(Way::Proxy, 0, &script).await?.first_ns,
                _ => scene.stream(Way::Belay, 0, &script).await?.first_ns,
            };
            if round >= WARM {
                samples[kind].push(ns);
            }
        }
    }
    let [raw, commit, direct, proxy, belay] = samples;
    let median = |samples: &Samples| us(samples.percentile(50));
    report.times("raw_quinn_rtt", &raw);
    report.times("sqlite_commit", &commit);
    report.times("direct_first_token", &direct).bar(VOID_US, 1.0).condition();
    report.times("proxy_first_token", &proxy).against(median(&direct));
    let parts_us = median(&direct) + median(&raw) + median(&commit);
    report.times("belay_first_token", &belay).bar(parts_us, BAR);
    Ok(Basis { round_trip_us: median(&raw), parts_us })
}
