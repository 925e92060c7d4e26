//! Several addresses of one relay, and a relay that is gone.

use crate::programs::{DEADLINE, Site, demo_config};
use belay_certs::invite::Invite;
use belay_client::state::StateDir;
use belay_client::{Client, Options, Phase, enrol};
use belay_protocol::error::CloseCode;
use belay_tests::relay::TestRelay;
use belay_transport::env::Env;
use rustls::Side;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::Version;
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

/// What anybody who sees a client's first packet can send back: an Initial packet under keys that follow from it, with an
/// application's close in it (RFC 9001, 5.2).
fn forged(first: &[u8], code: u8) -> Vec<u8> {
    let to_relay = &first[6..6 + usize::from(first[5])];
    let at = 6 + to_relay.len();
    let to_client = &first[at + 1..at + 1 + usize::from(first[at])];
    let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap().quic_suite().unwrap();
    let keys = suite.keys(to_relay, Side::Server, Version::V1).local;
    // The frame, no words, and padding; a packet number of two bytes.
    let mut payload = vec![0x1d, code, 0];
    payload.resize(64, 0);
    let length = 2 + payload.len() + keys.packet.tag_len();
    let mut packet = vec![0xc1, 0, 0, 0, 1, u8::try_from(to_client.len()).unwrap()];
    packet.extend_from_slice(to_client);
    packet.extend_from_slice(&[4, 1, 2, 3, 4, 0]);
    packet.extend_from_slice(&(0x4000 | u16::try_from(length).unwrap()).to_be_bytes());
    let number_at = packet.len();
    packet.extend_from_slice(&[0, 0]);
    let tag = keys.packet.encrypt_in_place(0, &packet, &mut payload).unwrap();
    packet.extend_from_slice(&payload);
    packet.extend_from_slice(tag.as_ref());
    let sample: Vec<u8> = packet[number_at + 4..number_at + 4 + keys.header.sample_len()].to_vec();
    let (head, rest) = packet.split_at_mut(number_at);
    keys.header.encrypt_in_place(&sample, &mut head[0], &mut rest[..2]).unwrap();
    packet
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_that_anybody_could_have_sent_sends_no_client_away() {
    let relay = TestRelay::start("").await;
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::at(home.path());
    enrol::join(&Env::system(), &state, &relay.invite("acme").await, "laptop").await.unwrap();
    let liar = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = liar.local_addr().unwrap().to_string();
    let answered = std::thread::spawn(move || {
        let mut packet = [0; 2000];
        for code in [CloseCode::REVOKED, CloseCode::EXPIRED, CloseCode::UNKNOWN_DEVICE] {
            let (len, from) = liar.recv_from(&mut packet).unwrap();
            liar.send_to(&forged(&packet[..len], u8::try_from(code.0).unwrap()), from).unwrap();
        }
    });
    let (mut identity, key) = state.load().unwrap();
    identity.addresses = vec![at];
    let client = Client::start(Env::system(), identity, &key, Options::default()).unwrap();
    let mut status = client.status();
    let mut waits = 0;
    // It hears each of them, and tries on.
    while waits < 3 {
        timeout(DEADLINE, status.changed()).await.expect("it tries on").unwrap();
        let now = status.borrow_and_update().phase.clone();
        assert!(!matches!(now, Phase::Refused { .. }), "{now:?}");
        waits += u32::from(matches!(now, Phase::Waiting { .. }));
    }
    answered.join().unwrap();
    client.close().await;
    relay.stop().await;
}
