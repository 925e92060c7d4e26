//! What heartbeats carry: a computer's vitals, the relay's state, and the wish to be pre-warmed.

use belay_client::vitals::Sensors;
use belay_client::{Client, Options};
use belay_protocol::message::Dialect;
use belay_protocol::vitals::{RelayState, Vitals};
use belay_relay::Overrides;
use belay_relay::providers::{Call, CallFuture, Provider, ProviderError, Providers, WarmFuture};
use belay_tests::relay::{PATIENCE, TestRelay, eventually};
use belay_transport::env::Env;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tokio::time::timeout;

/// A computer as a test wants it.
#[derive(Debug, Default)]
struct Pretended(Mutex<Vitals>);

impl Sensors for Pretended {
    fn vitals(&self) -> Vitals {
        *self.0.lock().unwrap()
    }
}

/// Counts how often it was warmed.
#[derive(Debug, Default)]
struct Warmed(AtomicU32);

impl Provider for Warmed {
    fn dialect(&self) -> Dialect {
        Dialect::OPENAI_CHAT
    }

    fn call(&self, _call: Call) -> CallFuture {
        Box::pin(std::future::ready(Err(ProviderError::Unreachable("nobody calls".into()))))
    }

    fn warm(&self) -> WarmFuture {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(true))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_computer_that_runs_hot_has_its_provider_and_its_book_made_ready() {
    let provider = Arc::new(Warmed::default());
    let warmed: Arc<dyn Provider> = provider.clone();
    let providers = Providers::from([("demo".to_owned(), warmed)]);
    let config = "[timeouts]\nheartbeat_ms = 100\ndrain_ms = 100\n";
    let relay = TestRelay::with(config, Overrides { providers, ..Overrides::default() }).await;
    let joined = relay.client().await;
    joined.client.close().await;
    let (identity, key) = joined.state.load().unwrap();
    let computer = Arc::new(Pretended::default());
    *computer.0.lock().unwrap() =
        Vitals { cpu_permille: Some(123), gpu_permille: Some(790), gpu_celsius: Some(60), ..Vitals::default() };
    let options = Options {
        sensors: Some(computer.clone()),
        loaded_model: Some("llama-3".into()),
        prewarm_model: "demo".into(),
        ..Options::default()
    };
    let client = Client::start(Env::system(), identity, &key, options).unwrap();
    client.tunnel(PATIENCE).await.unwrap();
    let tunnels = || relay.relay().admin().status().tunnels;
    eventually("the vitals are known", async || tunnels().iter().any(|tunnel| tunnel.vitals.is_some())).await;
    let tunnel = tunnels().into_iter().find(|tunnel| tunnel.vitals.is_some()).unwrap();
    let vitals = tunnel.vitals.unwrap();
    assert_eq!((vitals.cpu_permille, vitals.gpu_permille, vitals.active_requests), (Some(123), Some(790), Some(0)));
    assert_eq!(tunnel.loaded_model.as_deref(), Some("llama-3"));
    assert_eq!(provider.0.load(Ordering::Relaxed), 0, "it is not hot");

    computer.0.lock().unwrap().gpu_permille = Some(810);
    eventually("the provider is warmed", async || provider.0.load(Ordering::Relaxed) == 1).await;
    // Hot for long is not hot again, and a relay is not to be driven by its clients.
    client.prewarm();
    let before = tunnels()[0].heartbeats;
    eventually("heartbeats go on", async || tunnels()[0].heartbeats > before + 5).await;
    assert_eq!(provider.0.load(Ordering::Relaxed), 1);
    client.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_how_the_relay_is() {
    let relay = TestRelay::start("[timeouts]\nheartbeat_ms = 50\ndrain_ms = 100\n").await;
    let client = relay.client().await;
    let mut status = client.client.status();
    let mut told = async |wanted: RelayState| {
        let state = status.wait_for(|status| status.relay_state.as_ref() == Some(&wanted));
        timeout(PATIENCE, state).await.unwrap_or_else(|_| panic!("{wanted:?} is not told")).unwrap();
    };
    told(RelayState::Healthy).await;
    let until_ms = u64::MAX;
    relay.relay().admin().set_maintenance(Some((until_ms, "new disk".into())));
    told(RelayState::Maintenance { until_ms, reason: "new disk".into() }).await;
    assert!(client.ask("Still there?").await.end.is_some(), "requests are served all the same");
    // A time that is over is over, whoever forgot to say so.
    relay.relay().admin().set_maintenance(Some((1, "long ago".into())));
    told(RelayState::Healthy).await;
    relay.relay().admin().set_maintenance(None);
    told(RelayState::Healthy).await;
    relay.stop().await;
}
