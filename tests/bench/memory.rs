//! What idle tunnels cost the relay in memory and CPU, beside what raw connections cost a raw server.

use crate::report::{Report, Samples};
use crate::scene::Scene;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The figures that come from here.
pub(crate) const NAMES: [&str; 4] = ["raw_quinn_memory", "idle_tunnel_memory", "idle_tunnels_cpu", "idle_tunnels_call"];

/// Opened before anything is counted: the allocator takes its first pages in large steps.
const WARM: usize = 20;
/// Opened at once.
const TOGETHER: usize = 16;
/// A tunnel may take so many times the memory of a raw connection.
const MEMORY_BAR: f64 = 1.3;
/// All of them may take so many percent of a core.
const CPU_BAR: f64 = 10.0;

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Size {
    pub(crate) tunnels: usize,
    pub(crate) raw: usize,
    /// How long the idle tunnels are watched.
    pub(crate) idle: Duration,
}

/// Opens idle tunnels and raw connections, and lets them be.
pub(crate) async fn measure(scene: &Arc<Scene>, size: &Size, report: &mut Report) -> anyhow::Result<()> {
    // A socket each.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let mut raws = vec![];
    let mut before = 0;
    for opened in 0..WARM + size.raw {
        if opened == WARM {
            before = scene.echo.rss_bytes()?;
        }
        let raw = scene.dialer.dial().await?;
        raw.round_trip().await?;
        raws.push(raw);
    }
    let each = |before: u64, now: u64, count: usize| now.saturating_sub(before) as f64 / count as f64 / 1024.0;
    let raw = each(before, scene.echo.rss_bytes()?, size.raw);
    drop(raws);
    let belayd = scene.belayd.process();
    let mut tunnels = open(scene, WARM).await?;
    let before = belayd.rss_bytes()?;
    tunnels.extend(open(scene, size.tunnels).await?);
    let memory = each(before, belayd.rss_bytes()?, size.tunnels);
    let (began, cpu_ns) = (Instant::now(), belayd.cpu_ns()?);
    tokio::time::sleep(size.idle).await;
    let cpu_percent = (belayd.cpu_ns()? - cpu_ns) as f64 / began.elapsed().as_nanos() as f64 * 100.0;
    // What somebody notices who uses one of them.
    let mut trips = Samples::default();
    for tunnel in tunnels.iter().step_by((tunnels.len() / 200).max(1)) {
        let began = Instant::now();
        tunnel.balance(Duration::from_secs(10)).await?;
        trips.push(u64::try_from(began.elapsed().as_nanos())?);
    }
    report.figure("raw_quinn_memory", raw, "KiB");
    report.figure("idle_tunnel_memory", memory, "KiB").bar(raw, MEMORY_BAR);
    report.figure("idle_tunnels", size.tunnels as f64, "");
    report.figure("idle_tunnels_cpu", cpu_percent, "% of a core").bar(CPU_BAR, 1.0);
    report.times("idle_tunnels_call", &trips);
    let mut closing = JoinSet::new();
    for tunnel in tunnels {
        closing.spawn(async move { tunnel.close().await });
    }
    closing.join_all().await;
    Ok(())
}

/// Opens so many idle tunnels, some at once.
async fn open(scene: &Arc<Scene>, count: usize) -> anyhow::Result<Vec<belay_client::Client>> {
    let mut opening = JoinSet::new();
    let mut open = vec![];
    for started in 0..count {
        if started >= TOGETHER
            && let Some(opened) = opening.join_next().await
        {
            open.push(opened??);
        }
        let scene = Arc::clone(scene);
        opening.spawn(async move { scene.another_tunnel().await });
    }
    while let Some(opened) = opening.join_next().await {
        open.push(opened??);
    }
    Ok(open)
}
