//! Streams over bad and broken paths, under virtual time: every event has to arrive once, in order.

use super::net::{Path, SimHost, SimNet};
use crate::counting::{Counting, number};
use crate::relay::{config_text, tenant};
use belay_certs::invite::Invite;
use belay_client::escalation::EscalationRequest;
use belay_client::state::StateDir;
use belay_client::{Answer, Client, Options, enrol};
use belay_protocol::message::{Dialect, End, Outcome};
use belay_protocol::money::NanoUsd;
use belay_relay::admin::service::AdminService;
use belay_relay::store::ledger::money::Operation;
use belay_relay::store::ledger::verify::Report;
use belay_relay::{Config, Overrides, Relay};
use belay_transport::env::{Env, Random, TokioClock};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Longer than any answer here may stand still: the path is gone for a minute at the most.
const PATIENCE: Duration = Duration::from_secs(240);
const ASK: &str = r#"{"model":"x","stream":true,"messages":[{"role":"user","content":"count"}]}"#;
const CREDIT: NanoUsd = NanoUsd(1_000_000_000_000);

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Repeats the history.
    pub seed: u64,
    /// Computers, one tunnel each.
    pub devices: u8,
    /// Requests at once on each, one after the other.
    pub streams: usize,
    /// Requests, one after the other, on each stream.
    pub rounds: usize,
    /// What the provider answers.
    pub answer: Counting,
    /// How every computer is connected.
    pub path: Path,
    /// Every path is taken away so often, for one of these times, at random moments.
    pub blackholes: usize,
    /// See `blackholes`.
    pub holes: Vec<Duration>,
    /// How long a device's certificate holds, with no grace after its end. `None`: as ever.
    pub certificate: Option<Duration>,
}

/// What is left at the end.
#[derive(Debug)]
pub struct Left {
    /// Events read, all answers together.
    pub events: u64,
    /// Ends seen.
    pub ends: u64,
    /// Interruptions that readers were told of.
    pub interrupted: u64,
    /// Tunnels that came up after the first of each computer.
    pub reconnects: u64,
    /// Certificates that were renewed.
    pub renewals: u64,
    /// From the first request to the last end.
    pub took: Duration,
    /// The longest time that a reader waited for its next event or word.
    pub longest_gap: Duration,
    /// What all ends say that was charged, in nano-USD.
    pub charged: i64,
    /// What is gone from the balance, in nano-USD.
    pub spent: i64,
    /// The book, checked.
    pub book: Report,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    events: u64,
    ends: u64,
    interrupted: u64,
    longest_gap: Duration,
    charged: i64,
}

/// Runs a plan to its end on this thread. Panics if an event is missing, doubled or out of order, or
/// an answer is not complete.
#[must_use]
pub fn run(plan: &Plan) -> Left {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(simulate(plan))
}

async fn simulate(plan: &Plan) -> Left {
    let net = SimNet::new(Random::from_seed(plan.seed ^ 1));
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(TokioClock::starting_at(1_795_392_000_000));
    let env = |host: SimHost, salt: u64| Env {
        clock: clock.clone(),
        random: Random::from_seed(plan.seed ^ salt),
        net: Arc::new(host),
    };
    let mut extra =
        "[listen]\nquic = \"10.0.0.1:4433\"\n[timeouts]\nfirst_event_ms = 600000\ntotal_ms = 86400000\n".to_owned();
    if let Some(lifetime) = plan.certificate {
        extra += &format!("device_certificate_ms = {}\nexpired_grace_ms = 1\n", lifetime.as_millis());
    }
    let config = Config::parse(&config_text(&dir.path().join("state"), &extra), "simulation").unwrap();
    let overrides = Overrides { inline_store: true, ..plan.answer.overrides() };
    let relay = Relay::start(config, env(net.host(Ipv4Addr::new(10, 0, 0, 1)), 2), overrides).await.unwrap();
    let acme = tenant("acme");
    relay.admin().create_tenant(acme.clone()).await.unwrap();
    relay.admin().operate(&acme, Operation::Credit, CREDIT, None, None).await.unwrap();
    let random = Random::from_seed(plan.seed);
    let (mut readers, mut holes, mut clients) = (JoinSet::new(), JoinSet::new(), vec![]);
    for device in 0..plan.devices {
        let host = net.host(Ipv4Addr::new(10, 0, 1, device));
        let device_env = env(host.clone(), 1000 + u64::from(device));
        let invite = Invite::decode(&relay.admin().invite(&acme).await.unwrap().invite).unwrap();
        let state = StateDir::at(dir.path().join(format!("device-{device}")));
        enrol::join(&device_env, &state, &invite, "sim").await.unwrap();
        let (identity, key) = state.load().unwrap();
        host.change(|path| *path = plan.path);
        let client = Arc::new(Client::start(device_env, identity, &key, Options::default()).unwrap());
        for _ in 0..plan.streams {
            readers.spawn(reader(Arc::clone(&client), plan.rounds, plan.answer.events));
        }
        holes.spawn(punch(host, random.clone(), plan.clone()));
        clients.push(client);
    }
    let began = Instant::now();
    let renewed = tokio::spawn(count_renewals(Arc::clone(relay.admin())));
    let mut seen = Seen::default();
    while let Some(one) = readers.join_next().await {
        let one = one.unwrap();
        seen.events += one.events;
        seen.ends += one.ends;
        seen.interrupted += one.interrupted;
        seen.charged += one.charged;
        seen.longest_gap = seen.longest_gap.max(one.longest_gap);
    }
    let took = began.elapsed();
    renewed.abort();
    let renewals = RENEWALS.with(|renewals| renewals.take());
    holes.abort_all();
    while holes.join_next().await.is_some() {}
    let reconnects = clients.iter().map(|client| client.status().borrow().reconnects).sum();
    for client in clients {
        client.close().await;
    }
    let book = relay.admin().verify(None).await.unwrap().into_iter().next().unwrap().report;
    let spent = CREDIT.0 - relay.admin().tenants().await.unwrap()[0].balance_nano_usd;
    relay.shutdown().await;
    let Seen { events, ends, interrupted, longest_gap, charged } = seen;
    Left { events, ends, interrupted, reconnects, renewals, took, longest_gap, charged, spent, book }
}

thread_local! {
    /// A simulation has a thread to itself.
    static RENEWALS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Looks every minute for devices whose certificate holds longer than it did.
async fn count_renewals(admin: Arc<AdminService>) {
    let mut known = std::collections::HashMap::new();
    loop {
        for one in admin.devices(None).await.unwrap() {
            let before = known.insert(one.device.id, one.device.expires_ms);
            let is_longer = before.is_some_and(|before| before < one.device.expires_ms);
            RENEWALS.with(|renewals| renewals.set(renewals.get() + u64::from(is_longer)));
        }
        sleep(Duration::from_secs(60)).await;
    }
}

/// Takes a path away now and then.
async fn punch(host: SimHost, random: Random, plan: Plan) {
    for _ in 0..plan.blackholes {
        sleep(random.part_of(Duration::from_secs(20))).await;
        host.change(|path| path.up = false);
        let which = usize::try_from(random.below(plan.holes.len() as u64)).unwrap();
        sleep(plan.holes[which]).await;
        host.change(|path| path.up = true);
    }
}

async fn reader(client: Arc<Client>, rounds: usize, events: u64) -> Seen {
    let mut seen = Seen::default();
    for _ in 0..rounds {
        let end = read(&client, &mut seen).await;
        assert_eq!((end.outcome, end.events), (Outcome::COMPLETE, events + 1), "{}", end.message);
        seen.ends += 1;
        seen.charged += end.cost.0;
    }
    seen
}

async fn read(client: &Client, seen: &mut Seen) -> End {
    let request = EscalationRequest::new(client.request_id(), Dialect::OPENAI_CHAT, "auto", ASK);
    let mut answer = client.escalate(request, PATIENCE).await.unwrap();
    let (mut next, mut last) = (0, Instant::now());
    loop {
        let word = timeout(PATIENCE, answer.next()).await.expect("an answer never hangs").expect("and never fails");
        seen.longest_gap = seen.longest_gap.max(last.elapsed());
        last = Instant::now();
        match word.expect("an end comes before the end") {
            Answer::Event(event) => {
                if let Some(number) = number(&event) {
                    assert_eq!(number, next, "an event is missing, doubled or out of order");
                    next += 1;
                    seen.events += 1;
                }
            }
            Answer::Interrupted { .. } => seen.interrupted += 1,
            Answer::Head(_) | Answer::Resumed { .. } => {}
            Answer::End(end) => return end,
            other => panic!("{other:?}"),
        }
    }
}
