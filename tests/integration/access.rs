//! Who may have a tunnel: enrolment, revocation, suspension, several instances; and how a tunnel
//! comes back.

use belay_client::state::StateDir;
use belay_client::{Client, ClientError, Options, Phase, enrol};
use belay_protocol::error::CloseCode;
use belay_protocol::message::{FailureCode, Outcome};
use belay_tests::relay::{PATIENCE, TestRelay, eventually, tenant};
use belay_transport::env::Env;
use std::time::{Duration, Instant};

fn failure(error: ClientError) -> FailureCode {
    match error {
        ClientError::Failed(failed) => failed.code,
        other => panic!("not a refusal: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_enrols_one_computer_and_answers_the_same_key_again() {
    let relay = TestRelay::start("").await;
    let invite = relay.invite("acme").await;
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::at(home.path().join("one"));
    let first = enrol::join(&Env::system(), &state, &invite, "Böser Name / 7").await.expect("joined");
    assert!(matches!(enrol::join(&Env::system(), &state, &invite, "x").await, Err(ClientError::AlreadyJoined { .. })));
    // An answer that was lost: the key is there, the identity is not.
    let (_, key) = state.load().expect("joined");
    let lost = StateDir::at(home.path().join("lost"));
    let digest = belay_certs::sha256(&invite.secret);
    lost.pending_key(digest).expect("made");
    let pending = std::fs::read_dir(lost.path()).unwrap().next().unwrap().unwrap().path();
    belay_certs::file::write_private(&pending, key.to_pem().as_bytes()).expect("written");
    let again = enrol::join(&Env::system(), &lost, &invite, "x").await.expect("the same answer");
    assert_eq!((&again.device, &again.certificate_der), (&first.device, &first.certificate_der));
    // Another key is another computer.
    let other = StateDir::at(home.path().join("other"));
    let error = enrol::join(&Env::system(), &other, &invite, "x").await.expect_err("used");
    assert_eq!(failure(error), FailureCode::INVITE_REFUSED);
    let mut forged = invite.clone();
    forged.secret[0] ^= 1;
    let error = enrol::join(&Env::system(), &other, &forged, "x").await.expect_err("unknown");
    assert_eq!(failure(error), FailureCode::INVITE_REFUSED);
    // Another authority's fingerprint: the client does not even send the secret.
    let mut elsewhere = relay.invite("acme").await;
    elsewhere.fingerprint[0] ^= 1;
    let error = enrol::join(&Env::system(), &other, &elsewhere, "x").await.expect_err("not that relay");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_cut_off_within_a_second_and_stays_out() {
    let relay = TestRelay::start("[providers.demo]\nkind = \"demo\"\npace_ms = 20\n").await;
    let client = relay.client().await;
    let neighbour = relay.client().await;
    let mut running = client.client.escalate(client.prompt("Why is the sky blue?"), PATIENCE).await.expect("sent");
    running.next().await.expect("answers");
    let status = client.client.status();
    let began = Instant::now();
    relay.relay().admin().revoke(&client.client.identity().device, "test").await.expect("revoked");
    let mut watched = status.clone();
    let refused = watched.wait_for(|status| matches!(status.phase, Phase::Refused { .. }));
    tokio::time::timeout(Duration::from_secs(1), refused).await.expect("within a second").unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    // The running request is over, settled, and says why if its last words still came through.
    match running.collect().await {
        Ok(collected) => assert_eq!(collected.end.expect("settled").outcome, Outcome::REVOKED),
        Err(error) => assert!(matches!(error, ClientError::Closed(CloseCode::REVOKED)), "{error}"),
    }
    assert!(matches!(client.client.tunnel(PATIENCE).await, Err(ClientError::Closed(CloseCode::REVOKED))));
    let (identity, key) = client.state.load().unwrap();
    let returning = Client::start(Env::system(), identity, &key, Options::default()).unwrap();
    assert!(matches!(returning.tunnel(PATIENCE).await, Err(ClientError::Closed(CloseCode::REVOKED))));
    assert!(neighbour.ask("Still there?").await.end.is_some());
    eventually("the request of the revoked device is settled", async || {
        relay.relay().admin().verify(None).await.unwrap().iter().all(|book| book.report.open == 0)
    })
    .await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_tenant_is_cut_off_and_can_be_let_back_in() {
    let relay = TestRelay::start("").await;
    let client = relay.client().await;
    let mut status = client.client.status();
    relay.relay().admin().suspend(&tenant("acme"), true).await.expect("suspended");
    let waiting = status
        .wait_for(|status| matches!(&status.phase, Phase::Waiting { reason, .. } if reason.contains("suspended")));
    tokio::time::timeout(PATIENCE, waiting).await.expect("in time").unwrap();
    relay.relay().admin().suspend(&tenant("acme"), false).await.expect("let go on");
    // The old client is in no hurry; a new one shows that the door is open.
    let (identity, key) = client.state.load().unwrap();
    let fresh = Client::start(Env::system(), identity, &key, Options::default()).unwrap();
    fresh.balance(PATIENCE).await.expect("let in");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_revokes_the_device() {
    let relay = TestRelay::start("").await;
    let client = relay.client().await;
    let left = client.client.leave("moving out", PATIENCE).await.expect("left");
    assert_eq!(left.device, client.client.identity().device);
    let devices = relay.relay().admin().devices(None).await.unwrap();
    assert!(devices[0].device.revoked_ms.is_some());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_instances_of_a_device_coexist() {
    let relay = TestRelay::start("").await;
    let first = relay.client().await;
    let (identity, key) = first.state.load().unwrap();
    let second = Client::start(Env::system(), identity, &key, Options::default()).unwrap();
    second.balance(PATIENCE).await.expect("beside the first");
    first.client.balance(PATIENCE).await.expect("beside the second");
    assert_eq!(relay.relay().admin().status().tunnels.len(), 2);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_tells_its_state_and_comes_back_after_the_relay_did() {
    let relay = TestRelay::start("[timeouts]\nheartbeat_ms = 50\ndrain_ms = 100\n").await;
    let address = relay.address();
    let client = relay.client().await;
    let mut status = client.client.status();
    let beat = status.wait_for(|status| status.phase == Phase::Up && status.round_trip_us.is_some());
    let up = tokio::time::timeout(PATIENCE, beat).await.expect("a heartbeat is answered").unwrap().clone();
    assert_eq!((up.path, up.remote, up.reconnects), ("quic", Some(address), 0));
    assert!(up.relay_round_trip_us.is_some() && up.bytes_sent > 0 && up.bytes_received > 0);
    eventually("the relay hears heartbeats", async || relay.relay().admin().status().tunnels[0].heartbeats >= 3).await;
    eventually("the relay knows the client's round trip", async || {
        relay.relay().admin().status().tunnels[0].round_trip_us > 0
    })
    .await;
    let relay = relay.restart().await;
    let mut status = client.client.status();
    let back = status.wait_for(|status| status.phase == Phase::Up && status.reconnects == 1);
    tokio::time::timeout(PATIENCE, back).await.expect("comes back").unwrap();
    assert!(client.ask("Hello again").await.end.is_some());
    relay.stop().await;
}
