//! Certificates of devices: renewed before they end, and after that for a while.

use crate::raw::{Device, authority};
use belay_certs::identity::DeviceIdentity;
use belay_certs::issue::DeviceRequest;
use belay_client::escalation::EscalationRequest;
use belay_client::state::{HexBytes, StateDir};
use belay_client::{Client, ClientError, Options, enrol};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::error::{CloseCode, StreamCode};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{BalanceRequest, Dialect, FailureCode, RenewAnswer, RenewRequest};
use belay_tests::counting::Counting;
use belay_tests::fault::{Fault, seed};
use belay_tests::relay::{PATIENCE, TestRelay, eventually};
use belay_tests::sim::faults;
use belay_tests::sim::net::Path;
use belay_tests::tcp_link::TcpLink;
use belay_transport::env::{Clock, Env, SystemClock};
use std::time::Duration;

const DAY_MS: u64 = 86_400_000;

#[tokio::test(flavor = "multi_thread")]
async fn with_a_certificate_that_has_ended_only_renewal_works_and_then_everything() {
    let relay = TestRelay::start("").await;
    let device = Device::enrol(&relay).await;
    let now_ms = SystemClock.now_ms();
    let ended = device.aged(&authority(&relay), now_ms - 45 * DAY_MS);
    let tunnel = ended.tunnel().await;
    let ask = async |kind, failure| {
        let mut stream = tunnel.peer.open(kind).await;
        stream.send(&BalanceRequest { reserved: 0 }).await;
        stream.finish();
        stream.is_refused(failure, StreamCode::REFUSED, "a certificate that has ended").await
    };
    let failed = ask(StreamKind::Billing, FailureCode::UNAUTHENTICATED).await;
    assert!(failed.remedy.contains("renew"), "{}", failed.remedy);
    let renew = async |csr_der: Vec<u8>| {
        let mut stream = tunnel.peer.open(StreamKind::Enrol).await;
        stream.send(&RenewRequest { csr_der }).await;
        stream.finish();
        stream
    };
    // Another key's request, one that is none, and then its own.
    let others = Device::enrol(&relay).await.request();
    for wrong in [others, vec![0x30, 0x01]] {
        let mut stream = renew(wrong).await;
        stream.is_refused(FailureCode::INVALID_REQUEST, StreamCode::REFUSED, "no request of this device").await;
    }
    ask(StreamKind::Billing, FailureCode::UNAUTHENTICATED).await;
    let answer: RenewAnswer = renew(device.request()).await.expect().await;
    let identity = DeviceIdentity::from_certificate(&answer.certificate_der).unwrap();
    assert_eq!((identity.tenant, identity.device), (device.tenant.clone(), device.id.clone()));
    assert_eq!((identity.expires_ms, answer.next_ca_der), (answer.expires_ms, vec![]));
    assert!(answer.expires_ms > now_ms + 29 * DAY_MS);
    // The tunnel that it came over counts as renewed.
    tunnel.peer.balance().await;
    let known = relay.relay().admin().devices(None).await.unwrap();
    assert!(known.iter().any(|one| one.device.id.as_str() == device.id && one.device.expires_ms == answer.expires_ms));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_computer_that_slept_for_weeks_renews_before_anything_else() {
    let relay = TestRelay::start("").await;
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::at(home.path());
    enrol::join(&Env::system(), &state, &relay.invite("acme").await, "sleeper").await.unwrap();
    let (mut identity, key) = state.load().unwrap();
    let slept_ms = SystemClock.now_ms() - 50 * DAY_MS;
    let request = DeviceRequest::from_der(&key.request().unwrap()).unwrap();
    let made = (slept_ms, belay_certs::issue::DEVICE_LIFETIME);
    let (tenant, device) = (identity.tenant.as_str(), identity.device.as_str());
    let old = request.issue(&authority(&relay), tenant, device, [9; 12], made).unwrap();
    identity.certificate_der = HexBytes(old.certificate.to_vec());
    identity.expires_ms = old.expires_ms;
    state.save(&identity, &key, [0; 32]).unwrap();
    let options = || Options { state: Some(state.clone()), ..Options::default() };
    let client = Client::start(Env::system(), identity.clone(), &key, options()).unwrap();
    let ask = async |client: &Client| {
        let body = serde_json::to_vec(&Prompt::new("hello")).unwrap();
        let request = EscalationRequest::new(client.request_id(), Dialect::PROMPT, "auto", body);
        client.escalate(request, PATIENCE).await.unwrap().collect().await.unwrap()
    };
    let answer = ask(&client).await;
    assert!(answer.end.is_some(), "{:?}", answer.failed);
    let (renewed, _) = state.load().unwrap();
    assert!(renewed.expires_ms > SystemClock.now_ms() + 29 * DAY_MS);
    assert_eq!((&renewed.device, &renewed.ca_der), (&identity.device, &identity.ca_der));
    // What is on disk is what the next one shows; one that still has the old takes what is there.
    let late = Client::start(Env::system(), identity, &key, options()).unwrap();
    assert!(ask(&late).await.end.is_some());
    assert_eq!(state.load().unwrap().0, renewed);
    client.close().await;
    late.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_computer_that_slept_beyond_the_grace_is_told_to_join_again_and_tries_no_more() {
    let relay = TestRelay::start("").await;
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::at(home.path());
    enrol::join(&Env::system(), &state, &relay.invite("acme").await, "sleeper").await.unwrap();
    let (mut identity, key) = state.load().unwrap();
    let request = DeviceRequest::from_der(&key.request().unwrap()).unwrap();
    let made = (SystemClock.now_ms() - 100 * DAY_MS, belay_certs::issue::DEVICE_LIFETIME);
    let (tenant, device) = (identity.tenant.as_str(), identity.device.as_str());
    let old = request.issue(&authority(&relay), tenant, device, [9; 12], made).unwrap();
    identity.certificate_der = HexBytes(old.certificate.to_vec());
    identity.expires_ms = old.expires_ms;
    // Where a gate lets TCP through and nothing is to be found over UDP.
    let gate = TcpLink::start("127.0.0.2:0".parse().unwrap(), relay.address()).await.unwrap();
    for addresses in [identity.addresses.clone(), vec![gate.address().to_string()]] {
        identity.addresses = addresses;
        let client = Client::start(Env::system(), identity.clone(), &key, Options::default()).unwrap();
        let error = client.tunnel(PATIENCE).await.unwrap_err();
        assert!(matches!(error, ClientError::Closed(CloseCode::EXPIRED)), "{error}");
        client.close().await;
    }
    assert!(gate.connections() > 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_while_its_tunnel_is_up() {
    let relay = TestRelay::start("[timeouts]\ndevice_certificate_ms = 10000\n").await;
    let client = relay.client().await;
    let expires = async || relay.relay().admin().devices(None).await.unwrap()[0].device.expires_ms;
    let first = expires().await;
    eventually("it is renewed", async || expires().await > first).await;
    assert!(SystemClock.now_ms() < first, "renewed before its end");
    assert_eq!(client.client.status().borrow().reconnects, 0);
    relay.stop().await;
}

/// Five computers, whose certificates hold for 20 minutes, read answers of 100 minutes.
#[test]
fn a_hundred_certificates_that_end_in_the_middle_of_streams_cut_none() {
    let plan = faults::Plan {
        seed: seed(20_261_128),
        devices: 5,
        streams: 2,
        rounds: 5,
        answer: Counting { events: 600, pace: Duration::from_secs(10) },
        path: Path::default(),
        blackholes: 0,
        holes: vec![],
        certificate: Some(Duration::from_secs(1200)),
    };
    let left = faults::run(&plan);
    let ends = left.took.as_secs() / 1200 * u64::from(plan.devices);
    eprintln!("seed {}: {ends} certificates ended, {} were made, {left:?}", plan.seed, left.renewals);
    assert!(ends >= 100 && left.renewals >= ends, "{left:?}");
    assert_eq!((left.interrupted, left.reconnects, left.ends), (0, 0, 50));
    assert_eq!((left.events, left.charged), (50 * 600, left.spent));
    assert_eq!((left.book.problems, left.book.open), (vec![], 0));
    Fault::kept("certificates-ended", ends, "renewed before, no stream cut").tell();
}
