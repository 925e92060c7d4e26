//! Requests that nobody waits for any more: they end at the provider, whatever the tunnel is doing.

use crate::scripted::Scripted;
use crate::tcp::Ways;
use belay_client::escalation::{Escalation, EscalationRequest};
use belay_client::status::Phase;
use belay_client::{Answer, Client, Options};
use belay_protocol::error::CloseCode;
use belay_protocol::message::Dialect;
use belay_relay::Overrides;
use belay_relay::providers::{Provider, Providers};
use belay_tests::link::{self, Direction, Link};
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, eventually};
use belay_transport::connection::Path;
use belay_transport::env::Env;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

const ASK: &str = r#"{"model":"x","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const PACED: &str = "[providers.demo]\nkind = \"demo\"\n";

/// A relay whose provider never ends, and a client that reaches it that way.
struct Scene {
    provider: Arc<Scripted>,
    relay: TestRelay,
    client: TestClient,
    ways: Ways,
}

impl Scene {
    async fn over(path: Path) -> Self {
        let provider = Scripted::endless(Duration::from_millis(2));
        let endless: Arc<dyn Provider> = provider.clone();
        let providers = Providers::from([("demo".to_owned(), endless)]);
        let relay = TestRelay::with(PACED, Overrides { providers, ..Overrides::default() }).await;
        let ways = match path {
            Path::Quic => Ways::to(&relay).await,
            Path::Tcp => Ways::without_udp(&relay).await,
        };
        let client = relay.client_through(ways.udp.address()).await;
        assert_eq!(client.client.status().borrow().path, path.name());
        Self { provider, relay, client, ways }
    }

    async fn end(self) {
        self.relay.verify().await;
        self.relay.stop().await;
    }
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
    for path in [Path::Quic, Path::Tcp] {
        let scene = Scene::over(path).await;
        let (identity, key) = scene.client.state.load().unwrap();
        for round in 0..6 {
            let addresses = Some(vec![scene.ways.udp.address().to_string()]);
            let options = Options { state: Some(scene.client.state.clone()), addresses, ..Options::default() };
            let other = Client::start(Env::system(), identity.clone(), &key, options).unwrap();
            let running = vec![flowing(&other).await, flowing(&other).await, flowing(&other).await];
            drop(running);
            // In order, and as a program does that forgets it.
            match round % 2 {
                0 => other.close().await,
                _ => drop(other),
            }
            scene.provider.left(3 * (round + 1)).await;
        }
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_between_two_tunnels_a_request_ends_over_the_next() {
    for path in [Path::Quic, Path::Tcp] {
        let scene = Scene::over(path).await;
        for (round, told) in [false, true].into_iter().enumerate() {
            let mut running = flowing(&scene.client.client).await;
            let tunnel = scene.client.client.tunnel(PATIENCE).await.unwrap();
            tunnel.connection().close(CloseCode::DEAD, "test");
            // Before, and after it has noticed.
            if told {
                while !matches!(next(&mut running).await, Answer::Interrupted { .. }) {}
            }
            drop(running);
            scene.provider.left(1 + round).await;
        }
        // And before the next one is closed, too.
        let mut running = flowing(&scene.client.client).await;
        scene.client.client.tunnel(PATIENCE).await.unwrap().connection().close(CloseCode::DEAD, "test");
        while !matches!(next(&mut running).await, Answer::Interrupted { .. }) {}
        scene.client.client.tunnel(PATIENCE).await.unwrap();
        drop(running);
        scene.client.client.close().await;
        scene.provider.left(3).await;
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_while_the_relay_is_away_a_request_ends_once_it_is_back() {
    for noticed in [false, true] {
        let scene = Scene::over(Path::Quic).await;
        // Without TCP.
        let link = Link::start(scene.relay.address(), link::seed(), Direction::default()).unwrap();
        let client = scene.relay.client_through(link.address()).await;
        let running = flowing(&client.client).await;
        let mut status = client.client.status();
        link.blackhole(true);
        if noticed {
            client.client.tunnel(PATIENCE).await.unwrap().connection().close(CloseCode::DEAD, "test");
        }
        drop(running);
        if noticed {
            timeout(PATIENCE, status.wait_for(|status| status.phase != Phase::Up)).await.expect("in time").unwrap();
        } else {
            // For as long as a path may be dead that is not given up yet.
            let until = Instant::now() + Duration::from_secs(11);
            eventually("it is dead for long", async || Instant::now() > until).await;
        }
        assert_eq!(scene.relay.relay().admin().status().running_requests, 1);
        link.blackhole(false);
        scene.provider.left(1).await;
        scene.end().await;
    }
}
