//! `belayd status`: the node at a glance, once or as it changes.

use super::admin::connect;
use super::{Global, print_json, print_json_line, table};
use belay_protocol::table::render;
use belay_protocol::vitals::Vitals;
use belay_relay::admin::service::{Status, TunnelInfo};
use belay_transport::env::{Clock, SystemClock};
use clap::Args;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// A screen of its own, which gives back what was there; and its beginning, with what was there wiped away line by line.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K\r\n";
const REST: &str = "\x1b[J";

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Show it anew every second, until interrupted
    #[arg(long, short)]
    watch: bool,
}

pub(super) async fn status(global: &Global, args: &StatusArgs) -> anyhow::Result<()> {
    if args.watch {
        return watch(global).await;
    }
    let status: Status = connect(global)?.get("/status").await?;
    if global.json {
        return print_json(&status);
    }
    print!("{}", text(&status));
    Ok(())
}

/// The screen is given back however the watch ends.
struct Screen;

impl Screen {
    fn enter() -> Self {
        print!("{ENTER}");
        Self
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print!("{LEAVE}");
        let _ = std::io::stdout().flush();
    }
}

async fn watch(global: &Global) -> anyhow::Result<()> {
    let client = connect(global)?;
    let mut before: Option<Status> = None;
    let screen = (std::io::stdout().is_terminal() && !global.json).then(Screen::enter);
    // One listener for all the time: a signal that comes while nobody listens is lost.
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            // First, so that it listens from the beginning.
            biased;
            _ = &mut interrupt => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let status: Status = match client.get("/status").await {
            Ok(status) => status,
            // It may be back in a moment, as after an upgrade.
            Err(error) if screen.is_some() => {
                print!("{HOME}{error}{REST_OF_LINE}{REST}");
                std::io::stdout().flush()?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if global.json {
            print_json_line(&status)?;
        } else {
            let commits = before.as_ref().map_or(0, |before| status.store_commits.saturating_sub(before.store_commits));
            let now_ms = SystemClock.now_ms();
            let text = format!("{}{}\n{commits} commits in the last second\n", text(&status), table::time(now_ms));
            match &screen {
                Some(_) => {
                    let lines: String = text.lines().map(|line| format!("{line}{REST_OF_LINE}")).collect();
                    print!("{HOME}{lines}{REST}");
                }
                None => println!("{text}"),
            }
            std::io::stdout().flush()?;
        }
        before = Some(status);
    }
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = writeln!(
        text,
        "belayd {} on {}{}, {}: {} tunnels, {} tenants open, {} requests running, {} answers waiting, {} MiB in use",
        status.version,
        status.listen,
        status.http.map(|http| format!(" and {http} (HTTP)")).unwrap_or_default(),
        status.state.describe(SystemClock.now_ms()),
        status.tunnels.len(),
        status.open_tenants,
        status.running_requests,
        status.waiting_answers,
        status.memory_bytes >> 20
    );
    if let Some(error) = &status.reload.error {
        let _ = writeln!(text, "the configuration that is written is not in force: {error}");
    }
    if !status.reload.needs_restart.is_empty() {
        let _ = writeln!(text, "waiting for a restart: {}", status.reload.needs_restart.join(", "));
    }
    if !status.tunnels.is_empty() {
        let header = ["DEVICE", "TENANT", "PATH", "FROM", "ROUND TRIP", "CPU MEM GPU", "SINCE"];
        text += &render(&header, &[4], &status.tunnels.iter().map(row).collect::<Vec<_>>());
    }
    text
}

fn row(tunnel: &TunnelInfo) -> Vec<String> {
    let trip = match tunnel.round_trip_us {
        0 => "-".into(),
        us => format!("{}.{:03} ms", us / 1000, us % 1000),
    };
    vec![
        tunnel.device.to_string(),
        tunnel.tenant.to_string(),
        tunnel.path.clone(),
        tunnel.remote.to_string(),
        trip,
        tunnel.vitals.map_or_else(|| "-".into(), vitals),
        table::time(tunnel.since_ms),
    ]
}

/// Processor, memory and GPU load in percent.
fn vitals(vitals: Vitals) -> String {
    let percent = |permille: Option<u32>| permille.map_or_else(|| "-".into(), |load| format!("{}%", load / 10));
    format!("{} {} {}", percent(vitals.cpu_permille), percent(vitals.memory_permille), percent(vitals.gpu_permille))
}
