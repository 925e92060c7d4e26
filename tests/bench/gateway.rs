//! What a program pays for going through the local gateway: first token, travel, requests per second,
//! and the CPU of client and relay together.

use crate::first_token::Basis;
use crate::report::{Report, Samples, us};
use crate::scene::{CROWD, MANY, Scene, Way};
use anyhow::Context;
use belay_tests::fake_provider::Script;
use std::sync::Arc;
use std::time::Instant;
use tokio::task::JoinSet;

/// The figures that come from here.
pub(crate) const NAMES: [&str; 7] = [
    "gateway_first_token",
    "gateway_travel",
    "gateway_herd",
    "gateway_cpu_per_token",
    "gateway_requests_per_second",
    "gateway_client_memory",
    "gateway_relay_memory",
];

/// The first token may take so many times the sum of its parts.
const FIRST_BAR: f64 = 1.5;
/// One token in a thousand may take so many microseconds more than directly.
const LAST_BAR_US: f64 = 5000.0;
/// Client and relay together may take so many times the proxy's CPU.
const CPU_BAR: f64 = 4.0;
/// Memory may not grow by more than this, from one crowd to the next.
const MEMORY_BAR: f64 = 1.1;
/// Crowds, one after the other.
const CROWDS: usize = 2;
/// Tokens of an answer, where requests are counted.
const SHORT: u64 = 64;

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Size {
    pub(crate) first_tokens: usize,
    pub(crate) rounds: usize,
    pub(crate) tokens: u64,
    pub(crate) crowd_tokens: u64,
    pub(crate) requests: usize,
}

pub(crate) async fn measure(scene: &Arc<Scene>, size: &Size, basis: &Basis, report: &mut Report) -> anyhow::Result<()> {
    first_token(scene, size, basis, report).await?;
    // The first streams on new connections are not counted.
    for way in [Way::Direct, Way::Proxy, Way::Gateway] {
        crate::travel::herd(scene, way, 5).await?;
    }
    travel(scene, size, report).await?;
    herd(scene, size, report).await?;
    requests(scene, size, report).await
}

async fn first_token(scene: &Arc<Scene>, size: &Size, basis: &Basis, report: &mut Report) -> anyhow::Result<()> {
    let script = Script { stamp: true, pace_ms: 1, ..Script::tokens(2) };
    let ways = [Way::Direct, Way::Proxy, Way::Belay, Way::Gateway];
    let mut seen: [Samples; 4] = Default::default();
    for way in ways {
        scene.stream(way, 0, &script).await?;
    }
    for round in 0..size.first_tokens {
        for turn in 0..ways.len() {
            let at = (round + turn) % ways.len();
            seen[at].push(scene.stream(ways[at], 0, &script).await?.first_ns);
        }
    }
    let [direct, proxy, belay, gateway] = &seen;
    let median = |samples: &Samples| us(samples.percentile(50));
    // Two hops of HTTP, as the proxy adds one; the tunnel and the books as without a gateway.
    let hop = median(proxy) - median(direct);
    let parts = basis.parts_us + hop;
    report.times("gateway_first_token", gateway).bar(parts, FIRST_BAR);
    report.figure("gateway_first_token_beside_tunnel_alone", median(gateway), "us").against(median(belay));
    Ok(())
}

async fn travel(scene: &Arc<Scene>, size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let ways = [Way::Direct, Way::Proxy, Way::Gateway];
    let mut cpu = [(0, 0); 3];
    let before = taken_and_all()?;
    for (streams, tokens) in [(1, size.tokens), (MANY, size.tokens), (CROWD, size.crowd_tokens)] {
        let mut seen: [Samples; 3] = Default::default();
        let rounds = if streams == CROWD { CROWDS } else { size.rounds };
        let memory = || Ok::<_, anyhow::Error>((scene.gateway.rss_bytes()?, scene.belayd.process().rss_bytes()?));
        let mut before = memory()?;
        for round in 0..rounds {
            for turn in 0..ways.len() {
                let at = (round + turn) % ways.len();
                let used = cpu_ns(scene, ways[at])?;
                let took = crate::travel::streams(scene, ways[at], streams, tokens).await?;
                if streams == MANY {
                    cpu[at].0 += cpu_ns(scene, ways[at])?.saturating_sub(used);
                    cpu[at].1 += took.len();
                }
                seen[at].extend(took);
            }
            if round == 0 {
                before = memory()?;
            }
        }
        let [direct, proxy, gateway] = &seen;
        let last = |samples: &Samples| us(samples.permille(999));
        report.times(&format!("gateway_travel_{streams}"), gateway).against(us(proxy.percentile(50)));
        let most = last(direct) + LAST_BAR_US;
        report.figure(format!("gateway_travel_{streams}_p999"), last(gateway), "us").bar(most, 1.0);
        if streams == CROWD {
            // As large a crowd has run before: what it needs is there already.
            let (client, relay) = memory()?;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            report.figure("gateway_client_memory", mib(client), "MiB").bar(mib(before.0), MEMORY_BAR);
            report.figure("gateway_relay_memory", mib(relay), "MiB").bar(mib(before.1), MEMORY_BAR);
        }
    }
    let after = taken_and_all()?;
    let taken = 100.0 * (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64;
    report.figure("gateway_travel_taken", taken, "%");
    let per_token = |at: usize| us(cpu[at].0) / cpu[at].1.max(1) as f64;
    report.figure("gateway_cpu_per_token", per_token(2), "us").bar(per_token(1), CPU_BAR);
    Ok(())
}

/// A crowd that begins in the same moment: its tokens wait for its beginnings.
async fn herd(scene: &Arc<Scene>, size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let mut last = vec![];
    for way in [Way::Direct, Way::Proxy, Way::Gateway] {
        let mut seen = Samples::default();
        for _ in 0..CROWDS {
            seen.extend(crate::travel::herd(scene, way, size.tokens).await?);
        }
        last.push(us(seen.permille(999)));
    }
    report.figure(format!("direct_herd_{CROWD}_p999"), last[0], "us");
    report.figure(format!("proxy_herd_{CROWD}_p999"), last[1], "us").against(last[0]);
    report.figure(format!("gateway_herd_{CROWD}_p999"), last[2], "us").against(last[1]);
    Ok(())
}

/// Short answers, one after the other, by so many readers.
async fn requests(scene: &Arc<Scene>, size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let mut rates = vec![];
    for way in [Way::Direct, Way::Proxy, Way::Gateway] {
        rates.push(rate(scene, way, size.requests).await?);
    }
    report.figure("direct_requests_per_second", rates[0], "1/s");
    report.figure("proxy_requests_per_second", rates[1], "1/s").against(rates[0]);
    report.figure("gateway_requests_per_second", rates[2], "1/s").against(rates[1]);
    Ok(())
}

/// Requests per second of 32 readers with short answers.
pub(crate) async fn rate(scene: &Arc<Scene>, way: Way, requests: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut running = JoinSet::new();
    for lane in 0..MANY {
        let (scene, count) = (Arc::clone(scene), requests / MANY);
        running.spawn(async move {
            let script = Script { stamp: true, ..Script::tokens(SHORT) };
            for _ in 0..count {
                scene.stream(way, lane, &script).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok((requests / MANY * MANY) as f64 / began.elapsed().as_secs_f64())
}

/// Time of the processors that a hypervisor has taken, and all of it: what a run's slowest tokens met.
fn taken_and_all() -> anyhow::Result<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().context("/proc/stat is empty")?.split_whitespace().skip(1);
    let all = all.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice.
    let all = all.get(..8).context("/proc/stat is short")?;
    Ok((all[7], all.iter().sum()))
}

/// CPU of what stands in a way.
fn cpu_ns(scene: &Scene, way: Way) -> anyhow::Result<u64> {
    match way {
        Way::Direct => Ok(0),
        Way::Proxy => scene.proxy.cpu_ns(),
        Way::Committing => scene.committing.cpu_ns(),
        Way::Belay | Way::Relay => scene.belayd.process().cpu_ns(),
        Way::Gateway => Ok(scene.belayd.process().cpu_ns()? + scene.gateway.cpu_ns()?),
    }
}
