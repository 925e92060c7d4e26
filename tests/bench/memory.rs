//! What an idle tunnel costs the relay in memory, beside what a raw connection costs a raw server.

use crate::report::Report;
use crate::scene::Scene;

/// The figures that come from here.
pub(crate) const NAMES: [&str; 2] = ["raw_quinn_memory", "idle_tunnel_memory"];

/// Opened before anything is counted: the allocator takes its first pages in large steps.
const WARM: usize = 20;

/// Opens `count` idle tunnels and as many raw connections, one of each in turn.
pub(crate) async fn measure(scene: &Scene, count: usize, report: &mut Report) -> anyhow::Result<()> {
    let (mut tunnels, mut raws) = (vec![], vec![]);
    let (mut relay_before, mut raw_before) = (0, 0);
    for opened in 0..WARM + count {
        if opened == WARM {
            (relay_before, raw_before) = (scene.belayd.process().rss_bytes()?, scene.echo.rss_bytes()?);
        }
        tunnels.push(scene.another_tunnel().await?);
        let raw = scene.dialer.dial().await?;
        raw.round_trip().await?;
        raws.push(raw);
    }
    let each = |before: u64, now: u64| now.saturating_sub(before) as f64 / count as f64 / 1024.0;
    let raw = each(raw_before, scene.echo.rss_bytes()?);
    report.figure("raw_quinn_memory", raw, "KiB");
    report.figure("idle_tunnel_memory", each(relay_before, scene.belayd.process().rss_bytes()?), "KiB").against(raw);
    for tunnel in tunnels {
        tunnel.close().await;
    }
    Ok(())
}
