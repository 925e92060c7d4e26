//! Requests that nobody waits for any more: they end at the provider, whatever the tunnel is doing.

use crate::scripted::Scripted;
use belay_client::escalation::{Escalation, EscalationRequest};
use belay_client::status::Phase;
use belay_client::{Answer, Client, Options};
use belay_protocol::error::CloseCode;
use belay_protocol::message::Dialect;
use belay_relay::Overrides;
use belay_relay::providers::{Provider, Providers};
use belay_tests::link::{self, Direction, Link};
use belay_tests::relay::{PATIENCE, TestClient, TestRelay};
use belay_transport::env::Env;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const ASK: &str = r#"{"model":"x","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const PACED: &str = "[providers.demo]\nkind = \"demo\"\n";

async fn started() -> (Arc<Scripted>, TestRelay, TestClient) {
    let endless = Scripted::endless(Duration::from_millis(2));
    let provider: Arc<dyn Provider> = endless.clone();
    let providers = Providers::from([("demo".to_owned(), provider)]);
    let relay = TestRelay::with(PACED, Overrides { providers, ..Overrides::default() }).await;
    let client = relay.client().await;
    (endless, relay, client)
}

/// A request of which some events have come.
async fn flowing(client: &Client) -> Escalation {
    let request = EscalationRequest::new(client.request_id(), Dialect::OPENAI_CHAT, "auto", ASK);
    let mut running = client.escalate(request, PATIENCE).await.unwrap();
    for _ in 0..10 {
        next(&mut running).await;
    }
    running
}

async fn next(running: &mut Escalation) -> Answer {
    timeout(PATIENCE, running.next()).await.expect("goes on").expect("no error").expect("more")
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_and_closed_at_once_every_request_ends() {
    let (provider, relay, client) = started().await;
    let (identity, key) = client.state.load().unwrap();
    for round in 0..10 {
        let options = Options { state: Some(client.state.clone()), ..Options::default() };
        let other = Client::start(Env::system(), identity.clone(), &key, options).unwrap();
        let running = vec![flowing(&other).await, flowing(&other).await, flowing(&other).await];
        drop(running);
        // In order, and as a program does that forgets it.
        match round % 2 {
            0 => other.close().await,
            _ => drop(other),
        }
        provider.left(3 * (round + 1)).await;
    }
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_between_two_tunnels_a_request_ends_over_the_next() {
    let (provider, relay, client) = started().await;
    for told in [false, true] {
        let mut running = flowing(&client.client).await;
        let tunnel = client.client.tunnel(PATIENCE).await.unwrap();
        tunnel.connection().close(CloseCode::DEAD, "test");
        // Before, and after it has noticed.
        if told {
            while !matches!(next(&mut running).await, Answer::Interrupted { .. }) {}
        }
        drop(running);
        provider.left(1 + usize::from(told)).await;
    }
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_while_the_relay_is_away_a_request_ends_once_it_is_back() {
    let (provider, relay, _client) = started().await;
    let link = Link::start(relay.address(), link::seed(), Direction::default()).unwrap();
    let client = relay.client_through(link.address()).await;
    let running = flowing(&client.client).await;
    let mut status = client.client.status();
    link.blackhole(true);
    client.client.tunnel(PATIENCE).await.unwrap().connection().close(CloseCode::DEAD, "test");
    drop(running);
    timeout(PATIENCE, status.wait_for(|status| status.phase != Phase::Up)).await.expect("in time").unwrap();
    assert_eq!(relay.relay().admin().status().running_requests, 1);
    link.blackhole(false);
    provider.left(1).await;
    relay.verify().await;
    relay.stop().await;
}
