//! Two thousand clients that lose their relay at once.

use belay_certs::invite::Invite;
use belay_client::state::StateDir;
use belay_client::{Client, Options, Phase, enrol};
use belay_tests::fault::Fault;
use belay_tests::procs::Belayd;
use belay_transport::env::Env;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::timeout;

const CLIENTS: usize = 2000;
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// Each client has a socket: as many files as the system lets this process have.
fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_clients_that_lose_their_relay_are_back_within_thirty_seconds() {
    let _turn = crate::MACHINE.lock().await;
    allow_files();
    let mut belayd = Belayd::start(
        "[limits]\ninstances_per_device = 5000\nhandshakes_per_second = 100000\n[timeouts]\nheartbeat_ms = 10000\n",
    )
    .expect("started");
    belayd.run(&["tenant", "create", "acme"]).expect("created");
    let made = belayd.run(&["invite", "acme"]).expect("invited");
    let invite = Invite::decode(made["invite"].as_str().expect("an invite")).expect("decodes");
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::at(home.path());
    let identity = enrol::join(&Env::system(), &state, &invite, "herd").await.expect("joined");
    let (_, key) = state.load().unwrap();
    let mut clients = vec![];
    for _ in 0..CLIENTS / 50 {
        let some: Vec<Client> = (0..50)
            .map(|_| Client::start(Env::system(), identity.clone(), &key, Options::default()).expect("started"))
            .collect();
        for client in &some {
            client.tunnel(BACK_WITHIN).await.expect("up");
        }
        clients.extend(some);
    }
    let memory_before = belayd.process().rss_bytes().unwrap();
    belayd.kill9().unwrap();
    belayd.restart().unwrap();
    let returned = Instant::now();
    let mut back = JoinSet::new();
    for client in &clients {
        let mut status = client.status();
        back.spawn(async move {
            let up = status.wait_for(|status| status.phase == Phase::Up && status.reconnects > 0);
            timeout(BACK_WITHIN, up).await.map(|up| drop(up.unwrap())).map(|()| returned.elapsed())
        });
    }
    let mut took: Vec<Duration> = vec![];
    while let Some(one) = back.join_next().await {
        let Ok(one) = one.unwrap() else {
            let states = clients.iter().map(|client| client.status().borrow().clone());
            let away: Vec<_> = states.filter(|status| status.phase != Phase::Up || status.reconnects == 0).collect();
            panic!("{} of {CLIENTS} are not back, such as {:?}", away.len(), away.first());
        };
        took.push(one);
    }
    took.sort_unstable();
    let memory = belayd.process().rss_bytes().unwrap();
    // Established tunnels, while all of them are up.
    let mut trips = vec![];
    for client in clients.iter().step_by(10) {
        let began = Instant::now();
        client.balance(BACK_WITHIN).await.expect("answered");
        trips.push(began.elapsed());
    }
    trips.sort_unstable();
    let over_tcp = clients.iter().filter(|client| client.status().borrow().path == "tcp").count();
    eprintln!(
        "{CLIENTS} clients back after p50 {:?}, p99 {:?}, last {:?}, {over_tcp} over TCP; memory {} -> {} MiB; \
         a call then takes p50 {:?}, p99 {:?}",
        took[CLIENTS / 2],
        took[CLIENTS * 99 / 100],
        took[CLIENTS - 1],
        memory_before >> 20,
        memory >> 20,
        trips[trips.len() / 2],
        trips[trips.len() * 99 / 100]
    );
    assert!(memory < 2 * memory_before + (64 << 20), "{memory_before} -> {memory} bytes");
    // Whom a slow machine has kept waiting too long is over TCP, and tries QUIC again later.
    assert!(over_tcp * 50 < CLIENTS, "UDP works, and {over_tcp} took TCP");
    Fault::kept("herd", CLIENTS as u64, "all back within 30 s")
        .worst(format!("p99 {:?}, the last {:?}", took[CLIENTS * 99 / 100], took[CLIENTS - 1]))
        .tell();
}
