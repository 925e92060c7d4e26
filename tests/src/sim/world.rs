//! A world to simulate: one relay, many devices that ask, lose their path and come back.

use super::net::{SimHost, SimNet};
use crate::relay::{config_text, tenant};
use belay_certs::invite::Invite;
use belay_client::escalation::EscalationRequest;
use belay_client::state::StateDir;
use belay_client::{Answer, Client, ClientError, Options, enrol};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Content, Dialect, End};
use belay_protocol::money::NanoUsd;
use belay_relay::store::ledger::money::Operation;
use belay_relay::store::ledger::verify::Report;
use belay_relay::{Config, Overrides, Relay};
use belay_transport::env::{Env, Random, TokioClock};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Where the simulated wall clock begins: a Monday in November 2026.
const EPOCH_MS: u64 = 1_795_392_000_000;

/// What to simulate.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Repeats the history.
    pub seed: u64,
    /// Devices of one tenant.
    pub devices: u8,
    /// How long, in simulated time.
    pub duration: Duration,
    /// A device waits up to twice this between two requests.
    pub between_requests: Duration,
    /// A path works up to twice this before it is lost.
    pub between_losses: Duration,
}

/// What happened.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct History {
    /// Requests sent.
    pub asked: u64,
    /// Ends seen by devices, by request.
    pub ends: BTreeMap<RequestId, End>,
    /// Requests that were not sent, since there was no path for too long.
    pub lost: u64,
    /// Times that an answer was interrupted.
    pub interrupted: u64,
    /// Times that one went on in its middle, and not from the beginning.
    pub resumed: u64,
    /// Requests that the devices cancelled.
    pub cancelled: u64,
    /// Times a path was lost.
    pub path_losses: u64,
    /// Every noteworthy moment, in order: virtual milliseconds, device, what.
    pub log: Vec<(u64, u8, String)>,
}

/// What is left at the end.
#[derive(Debug)]
pub struct Outcome {
    /// What the devices saw.
    pub history: History,
    /// The tenant's book, checked.
    pub book: Report,
    /// What the tenant had in the beginning less what is left, in nano-USD.
    pub spent: i64,
    /// Settled requests of the book: id, cost in nano-USD, events.
    pub settled: BTreeMap<RequestId, i64>,
    /// Packets that crossed the network.
    pub packets: u64,
}

const CREDIT: NanoUsd = NanoUsd(1_000_000_000_000);

/// Runs a plan to its end on this thread.
#[must_use]
pub fn run(plan: Plan) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(simulate(plan))
}

struct World {
    plan: Plan,
    start: Instant,
    random: Random,
    history: Mutex<History>,
}

impl World {
    fn note(&self, device: u8, what: String) {
        let at = u64::try_from(self.start.elapsed().as_millis()).unwrap();
        self.history.lock().unwrap().log.push((at, device, what));
    }

    fn over(&self) -> Instant {
        self.start + self.plan.duration
    }
}

async fn simulate(plan: Plan) -> Outcome {
    let random = Random::from_seed(plan.seed);
    let net = SimNet::new(Random::from_seed(plan.seed ^ 1));
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(TokioClock::starting_at(EPOCH_MS));
    let env = |host: SimHost, salt: u64| Env {
        clock: clock.clone(),
        random: Random::from_seed(plan.seed ^ salt),
        net: Arc::new(host),
    };
    let listen = "[listen]\nquic = \"10.0.0.1:4433\"\n[providers.demo]\nkind = \"demo\"\npace_ms = 30\n";
    let config = Config::parse(&config_text(&dir.path().join("state"), listen), "simulation").unwrap();
    let overrides = Overrides { inline_store: true, ..Overrides::default() };
    let relay_env = env(net.host(Ipv4Addr::new(10, 0, 0, 1)), 2);
    let relay = Relay::start(config, relay_env, overrides).await.unwrap();
    let acme = tenant("acme");
    relay.admin().create_tenant(acme.clone()).await.unwrap();
    relay.admin().operate(&acme, Operation::Credit, CREDIT, None, None).await.unwrap();
    let world = Arc::new(World { plan, start: Instant::now(), random, history: Mutex::default() });
    let mut tasks = tokio::task::JoinSet::new();
    for device in 0..plan.devices {
        let host = net.host(Ipv4Addr::new(10, 0, 1, device));
        let device_env = env(host.clone(), 1000 + u64::from(device));
        let invite = Invite::decode(&relay.admin().invite(&acme).await.unwrap().invite).unwrap();
        let state = StateDir::at(dir.path().join(format!("device-{device}")));
        enrol::join(&device_env, &state, &invite, "sim").await.unwrap();
        tasks.spawn(live(Arc::clone(&world), device, device_env, state));
        tasks.spawn(lose_paths(Arc::clone(&world), device, host));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    // Tunnels that died unseen are found by their idle timeout; then every request is settled.
    sleep(Duration::from_secs(120)).await;
    let verified = relay.admin().verify(None).await.unwrap();
    let book = verified.into_iter().next().unwrap().report;
    let left = relay.admin().tenants().await.unwrap()[0].balance_nano_usd;
    relay.shutdown().await;
    let settled = settled(&dir.path().join("state/tenants/acme/tenant.db"));
    let history = world.history.lock().unwrap().clone();
    Outcome { history, book, spent: CREDIT.0 - left, settled, packets: net.packets() }
}

/// A device's life: ask now and then, sometimes change one's mind.
async fn live(world: Arc<World>, device: u8, env: Env, state: StateDir) {
    let (identity, key) = state.load().unwrap();
    let client = Client::start(env, identity, &key, Options::default()).unwrap();
    loop {
        sleep(world.random.part_of(world.plan.between_requests * 2)).await;
        if Instant::now() >= world.over() {
            break;
        }
        let what = ask(&world, &client).await;
        world.note(device, what);
    }
    client.close().await;
}

async fn ask(world: &World, client: &Client) -> String {
    let body = serde_json::to_vec(&Prompt::new("Tell me something")).unwrap();
    let mut request = EscalationRequest::new(client.request_id(), Dialect::PROMPT, "auto", body);
    let id = request.request_id;
    request.max_output_tokens = Some(1 + u32::try_from(world.random.below(20)).unwrap());
    let gives_up = (world.random.below(10) == 0).then(|| world.random.below(20));
    world.history.lock().unwrap().asked += 1;
    // A device without a path waits for it, but not for ever.
    let mut escalation = match client.escalate(request, Duration::from_secs(600)).await {
        Ok(escalation) => escalation,
        Err(error) => {
            world.history.lock().unwrap().lost += 1;
            return format!("not sent: {}", short(&error));
        }
    };
    let deadline = Instant::now() + Duration::from_secs(300);
    let mut events = 0;
    loop {
        match timeout_at(deadline, escalation.next()).await.expect("an answer never hangs") {
            Ok(Some(Answer::Event(_))) => {
                events += 1;
                if gives_up == Some(events) {
                    world.history.lock().unwrap().cancelled += 1;
                    let _ = escalation.cancel("changed my mind").await;
                }
            }
            Ok(Some(Answer::End(end))) => {
                assert_eq!(end.events, events, "every event is seen once");
                let told = format!("{} {} {}", end.outcome, end.events, end.cost);
                let before = world.history.lock().unwrap().ends.insert(id, end);
                assert_eq!(before, None, "an end is seen once");
                return told;
            }
            Ok(Some(Answer::Failed(failed))) => panic!("refused: {} {}", failed.code, failed.message),
            Ok(Some(Answer::Resumed { content, .. })) => {
                assert_ne!(content, Content::GONE, "the relay has lived all the time");
                world.history.lock().unwrap().resumed += 1;
            }
            Ok(Some(Answer::Interrupted { .. })) => world.history.lock().unwrap().interrupted += 1,
            Ok(Some(_)) => {}
            Ok(None) => panic!("the answer ended without an end"),
            Err(error) => panic!("a path that came back within the resume window lost an answer: {error}"),
        }
    }
}

/// Errors name nothing that differs between two runs of a history.
fn short(error: &ClientError) -> &'static str {
    match error {
        ClientError::Unreachable { .. } => "unreachable",
        ClientError::Lost(_) => "lost",
        ClientError::Closed(_) => "closed",
        other => panic!("unexpected: {other}"),
    }
}

/// Takes a device's path away now and then, for up to two minutes; sometimes it is merely bad.
async fn lose_paths(world: Arc<World>, device: u8, host: SimHost) {
    loop {
        sleep(world.random.part_of(world.plan.between_losses * 2)).await;
        if Instant::now() >= world.over() {
            break;
        }
        let bad = world.random.below(3) == 0;
        host.change(|path| if bad { path.loss = 500 } else { path.up = false });
        world.note(device, if bad { "path bad" } else { "path lost" }.into());
        world.history.lock().unwrap().path_losses += 1;
        sleep(world.random.part_of(Duration::from_secs(120))).await;
        host.change(|path| *path = super::net::Path::default());
        world.note(device, "path back".into());
    }
}

/// The settled requests of a tenant's file, read behind the relay's back.
fn settled(path: &std::path::Path) -> BTreeMap<RequestId, i64> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut statement = connection.prepare("SELECT request_id, cost_nano FROM request WHERE state = 1").unwrap();
    let rows = statement.query_map([], |row| Ok((RequestId(row.get(0)?), row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}
