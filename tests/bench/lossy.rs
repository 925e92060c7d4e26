//! Tokens over a line that loses packets: by the tunnel over QUIC, and by the same tunnel over TCP.
//!
//! Loss has to happen below TCP, so the line is a TUN device in a network namespace of its own
//! (`tun_link.py`), and this program runs there once more, with a provider and a relay.

use crate::report::{Report, Samples, us};
use crate::roles;
use crate::scene::{self, escalate};
use anyhow::{Context, bail, ensure};
use belay_client::{Client, Options};
use belay_tests::fake_provider::Script;
use belay_tests::procs::Belayd;
use belay_transport::env::Env;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// The figures that come from here.
pub(crate) const NAMES: [&str; 2] = ["lossy_tcp_travel", "lossy_quic_travel"];

const STREAMS: [usize; 3] = [1, 32, 256];
/// Streams of a tunnel.
const MOST: usize = 128;
const DELAY_MS: u64 = 20;
const LOSS: &str = "0.005";
const PACE_MS: u64 = 20;
const TOKENS: u64 = 250;
/// QUIC's p99 may be so many times that of TCP, where a lost packet of one stream holds up the others.
const BAR: f64 = 0.7;
const WITHIN: Duration = Duration::from_secs(15);

/// What one way has shown with so many streams, in microseconds.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    streams: usize,
    path: String,
    p50: f64,
    p99: f64,
}

/// Runs this program in a namespace and takes its figures over.
pub(crate) async fn measure(rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    let mut command = tokio::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net"]).arg(program).args(["lossy", &rounds.to_string()]);
    let output = command.stderr(Stdio::inherit()).kill_on_drop(true).output().await.context("cannot run unshare")?;
    ensure!(output.status.success(), "no measurement in a namespace of its own: {}", output.status);
    let seen: Vec<Seen> =
        output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    for streams in STREAMS {
        let of = |path: &str| {
            let found = seen.iter().find(|seen| seen.streams == streams && seen.path == path);
            found.with_context(|| format!("no figures of {streams} streams over {path}"))
        };
        let (tcp, quic) = (of("tcp")?, of("quic")?);
        report.figure(format!("lossy_tcp_travel_{streams}_p50"), tcp.p50, "us");
        report.figure(format!("lossy_tcp_travel_{streams}_p99"), tcp.p99, "us");
        report.figure(format!("lossy_quic_travel_{streams}_p50"), quic.p50, "us").against(tcp.p50);
        report.figure(format!("lossy_quic_travel_{streams}_p99"), quic.p99, "us").bar(tcp.p99, BAR);
    }
    Ok(())
}

/// The measurement itself, inside the namespace.
#[expect(clippy::print_stdout, reason = "this is how the bench learns of it")]
pub(crate) async fn play(rounds: usize) -> anyhow::Result<()> {
    let _line = Line::lay()?;
    let provider = roles::spawn(&["provider"])?;
    let upstream = provider.address()?;
    let belayd = Belayd::start(&format!("[listen]\nquic = \"10.0.0.1:0\"\n{}", scene::config(upstream)))?;
    let port = belayd.address()?.port();
    let (identity, key) = scene::join(&belayd, Some(format!("10.0.0.2:{port}"))).await?;
    // Another address of the same relay, to which the line carries no UDP.
    let mut without_udp = identity.clone();
    without_udp.addresses = vec![format!("10.0.0.3:{port}")];
    let mut ways = vec![];
    for (path, identity) in [("quic", &identity), ("tcp", &without_udp)] {
        let mut clients = vec![];
        for _ in 0..STREAMS[2] / MOST {
            let client = Client::start(Env::system(), identity.clone(), &key, Options::default())?;
            client.tunnel(WITHIN).await?;
            ensure!(client.status().borrow().path == path, "the tunnel is not over {path}");
            clients.push(Arc::new(client));
        }
        ways.push((path, clients));
    }
    for streams in STREAMS {
        let mut samples = [Samples::default(), Samples::default()];
        for round in 0..rounds {
            for turn in 0..ways.len() {
                let at = (round + turn) % ways.len();
                samples[at].extend(travel(&ways[at].1, streams).await?);
            }
        }
        for ((path, _), samples) in ways.iter().zip(&samples) {
            let (p50, p99) = (us(samples.percentile(50)), us(samples.percentile(99)));
            let seen = Seen { streams, path: (*path).into(), p50, p99 };
            println!("{}", serde_json::to_string(&seen)?);
        }
    }
    Ok(())
}

async fn travel(clients: &[Arc<Client>], streams: usize) -> anyhow::Result<Vec<u64>> {
    let mut running = JoinSet::new();
    for lane in 0..streams {
        let first_token_ms = PACE_MS * lane as u64 / streams as u64;
        // A single stream shows little in a few seconds.
        let tokens = if streams == 1 { 4 * TOKENS } else { TOKENS };
        let script = Script { stamp: true, pace_ms: PACE_MS, first_token_ms, ..Script::tokens(tokens) };
        let client = Arc::clone(&clients[lane / MOST]);
        running.spawn(async move { escalate(&client, Bytes::from(scene::body(&script))).await });
    }
    let mut travel = vec![];
    while let Some(streamed) = running.join_next().await {
        travel.extend(streamed??.travel_ns);
    }
    Ok(travel)
}

/// The process that is the line; it ends with its stdin.
struct Line {
    _stdin: std::process::ChildStdin,
}

impl Line {
    fn lay() -> anyhow::Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/tun_link.py");
        let mut command = Command::new("python3");
        command.arg(script).args([&DELAY_MS.to_string(), LOSS, "1"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut line = command.spawn().context("cannot run python3")?;
        let (Some(stdin), Some(stdout)) = (line.stdin.take(), line.stdout.take()) else { bail!("no pipes") };
        let mut said = String::new();
        BufReader::new(stdout).read_line(&mut said)?;
        ensure!(said.trim() == "ready", "the line said {said:?}");
        Ok(Self { _stdin: stdin })
    }
}
