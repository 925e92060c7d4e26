//! What sync takes: bulk beside raw QUIC on the same line, many small documents, and how soon another device hears of a
//! change.

use crate::echo::{self, Dialer};
use crate::report::{Report, Samples, us};
use crate::roles;
use anyhow::{Context, ensure};
use belay_certs::invite::Invite;
use belay_client::state::StateDir;
use belay_client::sync::config::SyncConfig;
use belay_client::sync::engine::Engine;
use belay_client::sync::index::Index;
use belay_client::sync::remote::{Remote, Tunnelled};
use belay_client::{Client, Options, enrol};
use belay_protocol::id::RevisionId;
use belay_protocol::item::{Digest, ItemKind};
use belay_protocol::message::{SyncContent, SyncPush};
use belay_tests::link::{Direction, Link};
use belay_tests::procs::{Belayd, Listening};
use belay_tests::synced::{adapter, write_settled};
use belay_transport::env::Env;
use rusqlite::Connection;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// The figures that come from here.
pub(crate) const NAMES: [&str; 3] = ["sync_bulk", "sync_documents", "sync_feed"];

/// A transfer may take so many times as long as raw QUIC: four fifths of its speed.
const BULK_BAR: f64 = 1.25;
/// A sync that finds nothing to do may take a second.
const NOTHING_BAR_MS: f64 = 1000.0;
/// Round trips and durable commits between a push and another device.
const FEED_BAR: f64 = 2.0;
/// The line that bulk runs over.
const RATE_BPS: u64 = 200_000_000;
const DELAY: Duration = Duration::from_millis(10);
const WITHIN: Duration = Duration::from_secs(60);

/// How much is measured.
pub(crate) struct Size {
    pub(crate) mib: usize,
    pub(crate) rounds: usize,
    pub(crate) documents: usize,
    pub(crate) pushes: usize,
}

/// A device with its folders.
struct Device {
    client: Client,
    config: SyncConfig,
    home: TempDir,
}

impl Device {
    async fn join(relay: &Belayd, address: SocketAddr) -> anyhow::Result<Self> {
        let home = tempfile::tempdir()?;
        let state = StateDir::at(home.path().join("state"));
        let invite = relay.run(&["invite", "bench"])?;
        let invite = Invite::decode(invite["invite"].as_str().context("an invite")?)?;
        let invite = Invite { addresses: vec![address.to_string()], ..invite };
        enrol::join(&Env::system(), &state, &invite, "bench").await?;
        let (identity, key) = state.load()?;
        let client = Client::start(Env::system(), identity, &key, Options::default())?;
        client.tunnel(WITHIN).await?;
        let at = |name: &str| Some(home.path().join(name));
        let mut config = SyncConfig::default();
        config.knowledge = at("knowledge");
        config.adapters = at("adapters");
        config.set_up(&Env::system().random)?;
        Ok(Self { client, config, home })
    }

    fn engine(&self) -> anyhow::Result<Engine<Tunnelled<'_>>> {
        let env = Env::system();
        let index = Index::open(&self.home.path().join("sync.db"))?;
        let remote = Tunnelled { client: &self.client, within: WITHIN };
        Ok(Engine::new(remote, index, self.config.places()?, env.clock, env.random)?)
    }

    /// A round as a new process would do it; milliseconds, and how many items went and came.
    async fn round(&self) -> anyhow::Result<(f64, u64)> {
        let start = Instant::now();
        let report = self.engine()?.round(false, &mut |_| {}).await?;
        ensure!(report.problems.is_empty() && report.total().unsettled == 0, "{report:?}");
        Ok((start.elapsed().as_secs_f64() * 1000.0, report.total().pushed + report.total().pulled))
    }
}

pub(crate) async fn measure(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let relay = Belayd::start("[listen]\nquic = \"127.0.0.1:0\"\n[limits]\nhandshakes_per_second = 10000\n")?;
    relay.run(&["tenant", "create", "bench", "--credit", "5"])?;
    let authority = relay.dir().join("raw-authority");
    let raw = roles::spawn(&["echo".as_ref(), authority.as_os_str()])?;
    bulk(&relay, &raw, &size, report).await?;
    documents(&relay, &size, report).await?;
    feed(&relay, &raw, &size, report).await
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

async fn bulk(relay: &Belayd, raw: &Listening, size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let rules = || Direction { delay: DELAY, rate_bps: Some(RATE_BPS), ..Direction::default() };
    let (to_relay, to_raw) = (Link::start(relay.address()?, 1, rules())?, Link::start(raw.address()?, 2, rules())?);
    let a = Device::join(relay, to_relay.address()).await?;
    let b = Device::join(relay, to_relay.address()).await?;
    let dialer = Dialer::new(&relay.dir().join("raw-authority"), to_raw.address())?.dial().await?;
    let mut took: [Vec<f64>; 4] = Default::default();
    for round in 0..size.rounds {
        let (weights, config) = adapter(size.mib << 20, 100 + round as u64);
        let folder = a.config.adapters.as_ref().context("a folder")?.join(format!("a{round}"));
        write_settled(&folder.join("adapter_model.safetensors"), &weights);
        write_settled(&folder.join("adapter_config.json"), config.as_bytes());
        let each = weights.len() / echo::STREAMS;
        took[0].push(dialer.bulk_up(each).await?.as_secs_f64() * 1000.0);
        let (up, went) = a.round().await?;
        ensure!(went == 1, "one adapter goes");
        took[1].push(up);
        took[2].push(dialer.bulk_down(each).await?.as_secs_f64() * 1000.0);
        let (down, came) = b.round().await?;
        ensure!(came == 1, "one adapter comes");
        took[3].push(down);
    }
    let [raw_up, up, raw_down, down] = took.map(median);
    report.figure("sync_bulk_up", up, "ms").bar(raw_up, BULK_BAR);
    report.figure("sync_bulk_down", down, "ms").bar(raw_down, BULK_BAR);
    a.client.close().await;
    b.client.close().await;
    Ok(())
}

async fn documents(relay: &Belayd, size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let (a, b) = (Device::join(relay, relay.address()?).await?, Device::join(relay, relay.address()?).await?);
    // What is there of other measurements comes first.
    a.round().await?;
    b.round().await?;
    let folder = a.config.knowledge.as_ref().context("a folder")?;
    for number in 0..size.documents {
        let text = format!("# Document {number}\n\n{}\n", "Some words of it. ".repeat(20 + number % 100));
        write_settled(&folder.join(format!("d{}/n{number}.md", number % 100)), text.as_bytes());
    }
    let (first, went) = a.round().await?;
    ensure!(went == size.documents as u64, "{went} documents went");
    let (received, came) = b.round().await?;
    ensure!(came == went, "{came} documents came");
    let mut nothing = vec![];
    for _ in 0..5 {
        let (took, moved) = a.round().await?;
        ensure!(moved == 0, "nothing is to be done");
        nothing.push(took);
    }
    report.figure("sync_documents_first", first, "ms");
    report.figure("sync_documents_received", received, "ms");
    report.figure("sync_documents_no_change", median(nothing), "ms").bar(NOTHING_BAR_MS, 1.0);
    a.client.close().await;
    b.client.close().await;
    Ok(())
}

/// A plain durable commit on the same disk.
fn commit(book: &Connection) -> anyhow::Result<u64> {
    let start = Instant::now();
    book.execute("INSERT INTO t (x) VALUES (1)", [])?;
    Ok(u64::try_from(start.elapsed().as_nanos())?)
}

async fn feed(relay: &Belayd, raw: &Listening, size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let (a, b) = (Device::join(relay, relay.address()?).await?, Device::join(relay, relay.address()?).await?);
    let dialer = Dialer::new(&relay.dir().join("raw-authority"), raw.address()?)?.dial().await?;
    let book = Connection::open(relay.dir().join("plain.db"))?;
    book.pragma_update(None, "journal_mode", "wal")?;
    book.pragma_update(None, "synchronous", "full")?;
    book.execute_batch("CREATE TABLE t (x INTEGER)")?;
    let (mut cursor, b) = (b.client.sync_status(WITHIN).await?.1.cursor, Arc::new(b));
    let (sender, mut heard) = mpsc::unbounded_channel();
    let reader = {
        let b = Arc::clone(&b);
        tokio::spawn(async move {
            let told = b.client.sync_feed(&mut cursor, WITHIN, |changes, _| {
                changes.iter().for_each(|change| _ = sender.send((change.revision, Instant::now())));
                true
            });
            told.await
        })
    };
    let remote = Tunnelled { client: &a.client, within: WITHIN };
    let random = Env::system().random;
    let (mut hops, mut round_trips, mut commits) = (Samples::default(), Samples::default(), Samples::default());
    for number in 0..size.pushes {
        let content = format!("content {number}").into_bytes();
        let push = SyncPush {
            revision: RevisionId(random.bytes()),
            parent: None,
            kind: ItemKind::DOCUMENT,
            key: format!("feed-{number}.md").parse()?,
            content: SyncContent::INLINE,
            modified_ms: 0,
            size: content.len() as u64,
            digest: Digest::of(&content),
            inline: content,
            meta: String::new(),
            earlier: None,
        };
        let start = Instant::now();
        remote.push(std::slice::from_ref(&push)).await?;
        let (revision, at) = tokio::time::timeout(WITHIN, heard.recv()).await?.context("the feed has ended")?;
        ensure!(revision == push.revision, "another change was heard");
        // The first ones warm up.
        if number >= size.pushes / 10 {
            hops.push(u64::try_from(at.duration_since(start).as_nanos())?);
            round_trips.push(dialer.round_trip().await?);
            commits.push(commit(&book)?);
        }
    }
    reader.abort();
    let least = us(round_trips.percentile(50)) + us(commits.percentile(50));
    report.figure("sync_feed_p50", us(hops.percentile(50)), "us").bar(least, FEED_BAR);
    report.figure("sync_feed_p99", us(hops.percentile(99)), "us");
    a.client.close().await;
    b.client.close().await;
    Ok(())
}
