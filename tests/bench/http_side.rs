//! What a caller without a tunnel pays at the relay's own HTTP endpoint, and what one that means no good costs the
//! tunnels beside it.

use crate::gateway::rate;
use crate::report::{Report, Samples, us};
use crate::scene::{Scene, Way, http_of};
use anyhow::Context;
use belay_tests::fake_provider::Script;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

/// The figures that come from here.
pub(crate) const NAMES: [&str; 5] =
    ["http_first_token", "http_requests_per_second", "http_memory", "http_abuse_tunnel", "http_idle_memory"];

/// The first token may take so many times the proxy's, and a durable commit.
const FIRST_BAR: f64 = 1.5;
/// Memory may not grow by more than this, from one crowd to the next.
const MEMORY_BAR: f64 = 1.1;
/// The slowest of a hundred first tokens by a tunnel may take so many times longer while callers mean no good.
const ABUSE_BAR: f64 = 2.0;
/// Connections that say nothing.
const IDLE: u32 = 10_000;

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Size {
    pub(crate) first_tokens: usize,
    pub(crate) requests: usize,
    pub(crate) abused: usize,
}

pub(crate) async fn measure(scene: &Arc<Scene>, size: &Size, report: &mut Report) -> anyhow::Result<()> {
    first_token(scene, size.first_tokens, report).await?;
    let (proxy, relay) = (rate(scene, Way::Proxy, size.requests).await?, rate(scene, Way::Relay, size.requests).await?);
    report.figure("http_requests_per_second", relay, "1/s").against(proxy);
    // As large a crowd has run before: what it needs is there already.
    crate::travel::herd(scene, Way::Relay, 100).await?;
    let before = scene.belayd.process().rss_bytes()?;
    crate::travel::herd(scene, Way::Relay, 100).await?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    report.figure("http_memory", mib(scene.belayd.process().rss_bytes()?), "MiB").bar(mib(before), MEMORY_BAR);
    abuse(scene, size.abused, report).await
}

/// Beside it, what a proxy takes that makes a commit for each request on the very thread that has it: nobody can have
/// both for less.
async fn first_token(scene: &Scene, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let script = Script { stamp: true, pace_ms: 1, ..Script::tokens(2) };
    let mut seen: [Samples; 5] = Default::default();
    let ways = [Way::Proxy, Way::Committing, Way::Relay];
    for way in ways {
        scene.stream(way, 0, &script).await?;
    }
    for round in 0..rounds {
        for turn in 0..5 {
            let at = (round + turn) % 5;
            let ns = match ways.get(at) {
                None if at == 3 => scene.commit().await?,
                None => scene.commit_in_place().await?,
                Some(way) => scene.stream(*way, 0, &script).await?.first_ns,
            };
            seen[at].push(ns);
        }
    }
    let [proxy, committing, relay, commit, in_place] = &seen;
    let median = |samples: &Samples| us(samples.percentile(50));
    report.times("http_proxy_first_token", proxy);
    report.times("http_committing_proxy_first_token", committing);
    report.times("http_commit_alone", commit);
    report.times("http_commit_in_place", in_place);
    report.times("http_first_token", relay).bar(FIRST_BAR * median(proxy) + median(commit), 1.0);
    report
        .figure("http_first_token_in_place", median(relay), "us")
        .against(FIRST_BAR * median(proxy) + median(in_place));
    Ok(())
}

/// First tokens by a tunnel, alone and beside callers of every bad kind.
async fn abuse(scene: &Arc<Scene>, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let alone = first_tokens(scene, rounds).await?;
    let address = http_of(&scene.belayd)?;
    let before = scene.belayd.process().rss_bytes()?;
    let idle = connections(address).await?;
    let held = scene.belayd.process().rss_bytes()?.saturating_sub(before);
    let mut bad = JoinSet::new();
    for text in [
        format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n", "y".repeat(100_000)),
        "POST /v1/escalate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".into(),
        "POST /v1/escalate HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            .into(),
        "GET /v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer bly_live_nobody\r\n\r\n".into(),
        "GET /heal".into(),
    ] {
        bad.spawn(spoken(address, text));
    }
    let beside = first_tokens(scene, rounds).await?;
    bad.shutdown().await;
    report.times("http_abuse_tunnel_alone", &alone);
    report.times("http_abuse_tunnel", &beside);
    let last = |samples: &Samples| us(samples.percentile(99));
    report.figure("http_abuse_tunnel_last", last(&beside), "us").bar(last(&alone), ABUSE_BAR);
    report.figure("http_idle_memory", held as f64 / idle.len().max(1) as f64 / 1024.0, "KiB");
    Ok(())
}

async fn first_tokens(scene: &Scene, rounds: usize) -> anyhow::Result<Samples> {
    let script = Script { stamp: true, pace_ms: 1, ..Script::tokens(2) };
    let mut seen = Samples::default();
    for _ in 0..rounds {
        seen.push(scene.stream(Way::Belay, 0, &script).await?.first_ns);
    }
    Ok(seen)
}

/// Says the same again and again, a hundred times a second.
async fn spoken(address: SocketAddr, text: String) {
    let mut pace = interval(Duration::from_millis(10));
    loop {
        pace.tick().await;
        if let Ok(Ok(mut socket)) = timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
            // It may be refused in the middle.
            let _ = socket.write_all(text.as_bytes()).await;
        }
    }
}

/// Ten thousand connections from fifty addresses of this machine; those that are let in.
async fn connections(address: SocketAddr) -> anyhow::Result<Vec<TcpStream>> {
    let mut held = vec![];
    for number in 0..IDLE {
        let source = Ipv4Addr::from_bits(Ipv4Addr::new(127, 9, 0, 1).to_bits() + number / 200);
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((source, 0)))?;
        let connected = timeout(Duration::from_secs(5), socket.connect(address)).await;
        held.push(connected.context("a connection hangs")??);
        if held.len() % 1000 == 0 {
            held.retain(is_open);
        }
    }
    held.retain(is_open);
    Ok(held)
}

fn is_open(stream: &TcpStream) -> bool {
    let mut byte = [0];
    stream.try_read(&mut byte).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}
