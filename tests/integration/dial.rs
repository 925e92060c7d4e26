//! Several addresses of one relay, and a relay that is gone.

use crate::programs::{DEADLINE, Site, demo_config};
use belay_certs::invite::Invite;
use belay_client::state::StateDir;
use belay_client::{Client, Options, Phase, enrol};
use belay_protocol::error::CloseCode;
use belay_tests::relay::TestRelay;
use belay_transport::env::Env;
use std::net::UdpSocket;
use std::time::Duration;
use tokio::time::timeout;

/// An address where packets are taken and never answered.
fn dead() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn packets(socket: &UdpSocket) -> usize {
    let mut buffer = [0; 2000];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count()
}

/// A handshake may take five seconds at one address: in less, it was tried at another beside it.
const SOON: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn dead_addresses_cost_a_moment_and_the_good_one_is_remembered() {
    let relay = TestRelay::start("").await;
    let (first, second) = (dead(), dead());
    let addresses = [first.local_addr().unwrap(), second.local_addr().unwrap(), relay.address()];
    // It dials twice: to enrol, and for its tunnel.
    let client = timeout(2 * SOON, relay.client_by(&addresses)).await.expect("the third address answers");
    let mut status = client.client.status();
    timeout(SOON, status.wait_for(|status| status.remote == Some(relay.address()))).await.expect("up").unwrap();
    assert!(packets(&first) > 0 && packets(&second) > 0, "they were tried before");

    let tunnel = client.client.tunnel(SOON).await.unwrap();
    tunnel.connection().close(CloseCode::DONE, "test");
    timeout(SOON, status.wait_for(|status| status.reconnects == 1)).await.expect("back").unwrap();
    assert_eq!((packets(&first), packets(&second)), (0, 0), "the last good address comes first");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_answers_nowhere_is_said_to_be_unreachable_in_bounded_time() {
    let relay = TestRelay::start("").await;
    let (silent, also_silent, home) = (dead(), dead(), tempfile::tempdir().unwrap());
    let addresses = [&silent, &also_silent].map(|socket| socket.local_addr().unwrap().to_string());
    let invite = Invite { addresses: addresses.into(), ..relay.invite("acme").await };
    let (env, state) = (Env::system(), StateDir::at(home.path()));
    // Tried beside each other: one after the other would take ten seconds.
    let joined = timeout(2 * SOON, enrol::join(&env, &state, &invite, "test"));
    let error = joined.await.expect("bounded").unwrap_err();
    assert!(error.to_string().contains("cannot reach the relay"), "{error}");
    relay.stop().await;
}

/// Clients of one device, up and with an answered heartbeat.
async fn clients(site: &Site, count: usize) -> Vec<Client> {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::at(home.path());
    enrol::join(&Env::system(), &state, &Invite::decode(&site.invite("acme")).unwrap(), "many").await.unwrap();
    let (identity, key) = state.load().unwrap();
    let start = |_| Client::start(Env::system(), identity.clone(), &key, Options::default()).unwrap();
    let clients: Vec<_> = (0..count).map(start).collect();
    for client in &clients {
        let mut status = client.status();
        timeout(DEADLINE, status.wait_for(|status| status.round_trip_us.is_some())).await.expect("up").unwrap();
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_of_a_killed_relay_learns_of_it_with_its_next_packet() {
    let config = demo_config(1)
        .replace("[limits]\n", "[limits]\ninstances_per_device = 100\n")
        .replace("heartbeat_ms = 1000", "heartbeat_ms = 5000");
    let mut site = tokio::task::block_in_place(|| Site::with(&config, &[]));
    let clients = clients(&site, 40).await;
    tokio::task::block_in_place(|| site.relay.kill9().unwrap());
    tokio::task::block_in_place(|| site.relay.restart().unwrap());
    // Their heartbeats come all at once, and without a reset to each only the third one missed,
    // fifteen seconds later, would tell.
    let all_back = async {
        for client in &clients {
            let mut status = client.status();
            let back = status.wait_for(|status| status.phase == Phase::Up && status.reconnects == 1);
            back.await.unwrap();
        }
    };
    timeout(Duration::from_secs(10), all_back).await.expect("within one heartbeat and some");
}
