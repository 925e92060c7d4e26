//! How long a token travels from the provider to the reader, and what it costs the process in
//! between, at the pace of a real model.

use crate::first_token::Basis;
use crate::report::{Report, Samples, us};
use crate::scene::{CROWD, MANY, Scene, Way};
use belay_tests::fake_provider::Script;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// The figures that come from here.
pub(crate) const NAMES: [&str; 12] = [
    "paced_quinn_rtt",
    "direct_travel_1",
    "proxy_travel_1",
    "belay_travel_1",
    "direct_travel_32",
    "proxy_travel_32",
    "belay_travel_32",
    "direct_travel_256",
    "proxy_travel_256",
    "belay_travel_256",
    "proxy_cpu_per_token",
    "relay_cpu_per_token",
];

const PACE_MS: u64 = 20;
/// Within so long the streams of a crowd begin.
const GATHERING: Duration = Duration::from_secs(1);
/// A token by belay may take so many times the direct way and half a QUIC round trip.
const TRAVEL_BAR: f64 = 1.5;
/// And one in a thousand so many microseconds more than directly.
const LAST_BAR_US: f64 = 5000.0;
/// A token may cost the relay so many times what it costs the proxy.
const CPU_BAR: f64 = 2.0;

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Size {
    pub(crate) rounds: usize,
    /// Rounds of a single stream. Many and short ones: where the kernel wakes a lone reader, on the
    /// core that wrote or on one that sleeps, is settled anew for each, and makes more of a
    /// difference than what is measured.
    pub(crate) rounds_of_one: usize,
    pub(crate) tokens_of_one: u64,
    pub(crate) tokens_of_many: u64,
    pub(crate) rounds_of_crowd: usize,
}

/// What one way has shown.
#[derive(Debug, Default)]
struct Seen {
    one: Samples,
    many: Samples,
    crowd: Samples,
    /// CPU of the process in between, in nanoseconds, and the tokens that it passed on meanwhile.
    cpu_ns: u64,
    tokens: u64,
}

/// Streams by each way in turn, a single one and then many at once.
pub(crate) async fn measure(scene: &Arc<Scene>, size: &Size, basis: &Basis, report: &mut Report) -> anyhow::Result<()> {
    let mut seen: [Seen; 3] = Default::default();
    let mut paced = Samples::default();
    // The first streams on new connections are not counted.
    for way in Way::ALL {
        herd(scene, way, 5).await?;
    }
    for round in 0..size.rounds_of_one {
        for turn in 0..=Way::ALL.len() {
            let at = (round + turn) % (Way::ALL.len() + 1);
            match Way::ALL.get(at) {
                Some(way) => seen[at].one.extend(streams(scene, *way, 1, size.tokens_of_one).await?),
                None => paced.extend(round_trips(scene, size.tokens_of_one).await?),
            }
        }
    }
    for round in 0..size.rounds {
        for turn in 0..Way::ALL.len() {
            let at = (round + turn) % Way::ALL.len();
            let before = cpu_ns(scene, Way::ALL[at])?;
            let travel = streams(scene, Way::ALL[at], MANY, size.tokens_of_many).await?;
            let after = cpu_ns(scene, Way::ALL[at])?;
            seen[at].cpu_ns += after.saturating_sub(before);
            seen[at].tokens += travel.len() as u64;
            seen[at].many.extend(travel);
        }
    }
    for round in 0..size.rounds_of_crowd {
        for turn in 0..Way::ALL.len() {
            let at = (round + turn) % Way::ALL.len();
            seen[at].crowd.extend(streams(scene, Way::ALL[at], CROWD, size.tokens_of_many).await?);
        }
    }
    let [direct, proxy, belay] = seen;
    report.times("paced_quinn_rtt", &paced);
    // Between two tokens of a single stream every core falls asleep, and so it does between round
    // trips at that pace; many streams find them awake, as round trips without a pause do.
    let round_trips = [us(paced.percentile(50)), basis.round_trip_us, basis.round_trip_us];
    let sizes =
        [(1, (|seen| &seen.one) as fn(&Seen) -> &Samples), (MANY, |seen| &seen.many), (CROWD, |seen| &seen.crowd)];
    for ((streams, of), round_trip_us) in sizes.into_iter().zip(round_trips) {
        let median = |seen| us(of(seen).percentile(50));
        report.times(&format!("direct_travel_{streams}"), of(&direct));
        report.times(&format!("proxy_travel_{streams}"), of(&proxy)).against(median(&direct));
        let least = median(&direct) + round_trip_us / 2.0;
        let row = report.times(&format!("belay_travel_{streams}"), of(&belay));
        // A crowd fills the cores: its median is the wait for one of them, which no lone round trip
        // has. It is held to its slowest tokens.
        if streams == CROWD {
            row.against(least)
        } else {
            row.bar(least, TRAVEL_BAR)
        };
        let last = |seen| us(of(seen).permille(999));
        report.figure(format!("direct_travel_{streams}_p999"), last(&direct), "us");
        let most = last(&direct) + LAST_BAR_US;
        report.figure(format!("belay_travel_{streams}_p999"), last(&belay), "us").bar(most, 1.0);
    }
    let per_token = |seen: &Seen| us(seen.cpu_ns) / seen.tokens.max(1) as f64;
    report.figure("proxy_cpu_per_token", per_token(&proxy), "us");
    report.figure("relay_cpu_per_token", per_token(&belay), "us").bar(per_token(&proxy), CPU_BAR);
    Ok(())
}

/// CPU of the process that stands in a way.
fn cpu_ns(scene: &Scene, way: Way) -> anyhow::Result<u64> {
    match way {
        Way::Direct => Ok(0),
        Way::Proxy => scene.proxy.cpu_ns(),
        Way::Committing => scene.committing.cpu_ns(),
        Way::Belay | Way::Gateway | Way::Relay => scene.belayd.process().cpu_ns(),
    }
}

/// Raw QUIC round trips at the pace of tokens.
async fn round_trips(scene: &Scene, count: u64) -> anyhow::Result<Vec<u64>> {
    let mut ticks = tokio::time::interval(Duration::from_millis(PACE_MS));
    let mut took = vec![];
    for _ in 0..count {
        ticks.tick().await;
        took.push(scene.raw.round_trip().await?);
    }
    Ok(took)
}

/// So many streams at once; the travel times of all their tokens. A crowd gathers within a second: what it is
/// to have them all begin in the same moment is another question ([`herd`]).
pub(crate) async fn streams(scene: &Arc<Scene>, way: Way, count: usize, tokens: u64) -> anyhow::Result<Vec<u64>> {
    let within = if count == CROWD { GATHERING } else { Duration::ZERO };
    gathered(scene, way, (count, within), tokens).await
}

/// The same, of a crowd that begins in the same moment.
pub(crate) async fn herd(scene: &Arc<Scene>, way: Way, tokens: u64) -> anyhow::Result<Vec<u64>> {
    gathered(scene, way, (CROWD, Duration::ZERO), tokens).await
}

async fn gathered(
    scene: &Arc<Scene>,
    way: Way,
    (count, within): (usize, Duration),
    tokens: u64,
) -> anyhow::Result<Vec<u64>> {
    let mut running = JoinSet::new();
    let began = tokio::time::Instant::now();
    for lane in 0..count {
        // Spread over the time between two tokens: real streams do not tick together.
        let first_token_ms = PACE_MS * lane as u64 / count as u64;
        let script = Script { stamp: true, pace_ms: PACE_MS, first_token_ms, ..Script::tokens(tokens) };
        let scene = Arc::clone(scene);
        let at = began + within * u32::try_from(lane)? / u32::try_from(count)?;
        running.spawn(async move {
            tokio::time::sleep_until(at).await;
            scene.stream(way, lane, &script).await
        });
    }
    let mut travel = vec![];
    while let Some(streamed) = running.join_next().await {
        travel.extend(streamed??.travel_ns);
    }
    Ok(travel)
}
