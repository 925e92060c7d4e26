//! The bench program: what belay costs beside doing without it, measured in one run.
//!
//! `cargo run --release -p belay-tests --bin bench -- [--quick] [--only NAME] [--json] [--plots DIR] [--from FILE]`
//!
//! It starts a fake provider, a minimal reverse proxy, a raw quinn echo server (all three are this
//! program again) and a real `belayd`, each in a process of its own, and takes its samples in turn:
//! never one thing's block after another's, so that a busy moment of the machine meets all alike.
//! Each figure that has a bar stands beside what it is held against. If the direct way alone is too
//! slow for anything to be learned, the run says that it is void.
//!
//! Exit codes: 0 all bars hold, 1 one does not (or the bench itself failed), 2 void.

mod echo;
mod first_token;
mod gaps;
mod gateway;
mod http;
mod http_side;
mod ledger;
mod lossy;
mod memory;
mod plot;
mod prewarm;
mod proxy;
mod report;
mod roles;
mod scene;
mod sessions;
mod start;
mod sync;
mod travel;

use clap::Parser;
use report::{Report, Verdict};
use roles::Role;
use scene::Scene;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Measures belay beside a direct connection, a minimal reverse proxy and raw QUIC
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    /// Fewer samples: five minutes instead of half an hour
    #[arg(long)]
    quick: bool,
    /// Show only figures whose name contains this; what they are held against is measured anyway
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Draw the main curves into this directory (SVG)
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Show and draw an earlier run's figures (what --json has printed) and measure nothing
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// What this process is, when the bench starts itself
    #[command(subcommand)]
    role: Option<Role>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(Verdict::Holds) => ExitCode::SUCCESS,
        Ok(Verdict::Fails) => ExitCode::from(1),
        Ok(Verdict::Void) => ExitCode::from(2),
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(args: Args) -> anyhow::Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async move {
        if let Some(role) = args.role {
            return roles::play(role).await.map(|()| Verdict::Holds);
        }
        let (only, json, plots) = (args.only.clone(), args.json, args.plots.clone());
        let drawn = |report: &Report| match &plots {
            Some(dir) => plot::draw(report, dir).map(|files| eprintln!("drawn: {}", files.join(", "))),
            None => Ok(()),
        };
        if let Some(from) = &args.from {
            let report = Report::read(&std::fs::read_to_string(from)?)?.only(only.as_deref());
            report.print(json)?;
            drawn(&report)?;
            return Ok(report.verdict());
        }
        let most = Duration::from_secs(if args.quick { 600 } else { 2400 });
        // On a worker thread, like everything that is measured.
        let measured = tokio::spawn(async move {
            let mut report = Report::default();
            let ended = tokio::time::timeout(most, measure(&args, &mut report)).await;
            (report, ended)
        });
        let (report, ended) = measured.await?;
        let report = report.only(only.as_deref());
        // What there is, even if something failed in the end.
        report.print(json)?;
        drawn(&report)?;
        ended??;
        Ok(report.verdict())
    })
}

async fn measure(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    // A figure's name begins with one of these and goes on with `_p50` or the like.
    let named = |only: &str, name: &str| name.contains(only) || only.contains(name);
    let wanted = |names: &[&str]| args.only.as_ref().is_none_or(|only| names.iter().any(|name| named(only, name)));
    if wanted(&ledger::NAMES) {
        let size = if args.quick {
            ledger::Size { rounds: 3, pairs: 1280, entries: 100_000 }
        } else {
            ledger::Size { rounds: 10, pairs: 2560, entries: 1_000_000 }
        };
        ledger::measure(size, report).await?;
    }
    if wanted(&sessions::NAMES) {
        let sizes: &[u64] = if args.quick { &[10, 1000, 10_000] } else { &[10, 1000, 100_000] };
        sessions::measure(sizes, 200, report)?;
    }
    if wanted(&sync::NAMES) {
        let size = if args.quick {
            sync::Size { mib: 16, rounds: 1, documents: 2000, pushes: 200 }
        } else {
            sync::Size { mib: 64, rounds: 3, documents: 10_000, pushes: 1000 }
        };
        sync::measure(size, report).await?;
    }
    if wanted(&start::NAMES) {
        let size = if args.quick {
            start::Size { starts: 11, idle: Duration::from_secs(5) }
        } else {
            start::Size { starts: 51, idle: Duration::from_secs(30) }
        };
        start::measure(&size, report).await?;
    }
    // The books need no relay and no provider, and sync and the starts have their own.
    let of_the_store = || ledger::NAMES.iter().chain(&sessions::NAMES).chain(&sync::NAMES).chain(&start::NAMES);
    if args.only.as_ref().is_some_and(|only| of_the_store().any(|name| only.starts_with(name))) {
        return Ok(());
    }
    let scene = Arc::new(Scene::set().await?);
    let basis = first_token::measure(&scene, if args.quick { 150 } else { 1000 }, report).await?;
    if wanted(&travel::NAMES) {
        let size = if args.quick {
            travel::Size { rounds: 2, rounds_of_one: 10, tokens_of_one: 10, tokens_of_many: 130, rounds_of_crowd: 1 }
        } else {
            travel::Size { rounds: 6, rounds_of_one: 80, tokens_of_one: 15, tokens_of_many: 150, rounds_of_crowd: 4 }
        };
        travel::measure(&scene, &size, &basis, report).await?;
    }
    if wanted(&gateway::NAMES) {
        let size = if args.quick {
            gateway::Size { first_tokens: 100, rounds: 2, tokens: 100, crowd_tokens: 250, requests: 640 }
        } else {
            gateway::Size { first_tokens: 600, rounds: 5, tokens: 150, crowd_tokens: 3060, requests: 3200 }
        };
        gateway::measure(&scene, &size, &basis, report).await?;
    }
    if wanted(&http_side::NAMES) {
        let size = if args.quick {
            http_side::Size { first_tokens: 150, requests: 640, abused: 200 }
        } else {
            http_side::Size { first_tokens: 1000, requests: 3200, abused: 1000 }
        };
        http_side::measure(&scene, &size, report).await?;
    }
    if wanted(&gaps::NAMES) {
        gaps::measure(&scene, if args.quick { 5 } else { 30 }, report).await?;
    }
    if wanted(&prewarm::NAMES) {
        prewarm::measure(if args.quick { 5 } else { 30 }, report).await?;
    }
    if wanted(&memory::NAMES) {
        let size = if args.quick {
            memory::Size { tunnels: 500, raw: 200, idle: Duration::from_secs(11) }
        } else {
            memory::Size { tunnels: 10_000, raw: 2000, idle: Duration::from_secs(30) }
        };
        memory::measure(&scene, &size, report).await?;
    }
    scene.strike().await;
    // Last and alone: it has its own processes.
    if wanted(&lossy::NAMES) {
        lossy::measure(if args.quick { 1 } else { 3 }, report).await?;
    }
    Ok(())
}
