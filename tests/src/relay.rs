//! Relays and clients of this process, over real loopback sockets.

use belay_certs::invite::Invite;
use belay_client::escalation::{Collected, EscalationRequest};
use belay_client::state::StateDir;
use belay_client::{Client, Options, enrol};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::id::TenantId;
use belay_protocol::message::Dialect;
use belay_protocol::money::NanoUsd;
use belay_relay::admin::service::AdminError;
use belay_relay::config::Difference;
use belay_relay::store::ledger::money::Operation;
use belay_relay::{Config, Overrides, Relay};
use belay_transport::env::Env;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// How long anything in a test may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration for tests: demo provider, generous rates. `extra` is TOML that is appended;
/// tables that it names must not be in here.
#[must_use]
pub fn config_text(state: &Path, extra: &str) -> String {
    let mut text = String::new();
    let mut table = |header: &str, body: &str| {
        if !extra.lines().any(|line| line.trim() == header) {
            text += &format!("{header}\n{body}\n");
        }
    };
    table("[listen]", "quic = \"127.0.0.1:0\"");
    table("[state]", &format!("dir = {:?}\nreserve_mib = 1", state.display().to_string()));
    table("[limits]", "requests_per_minute = 100000\nrequests_at_once = 1000\nhandshakes_per_second = 10000\n");
    table("[timeouts]", "drain_ms = 3000");
    // Tests say themselves when they want a provider to be asked again.
    table("[retries]", "rounds = 0");
    table("[providers.demo]", "kind = \"demo\"\npace_ms = 1");
    table(
        "[models.demo]",
        "provider = \"demo\"\nname = \"demo-1\"\ncontext_tokens = 32000\nmax_output_tokens = 4096\nprice = { input = \"3\", output = \"15\" }",
    );
    table("[aliases]", "auto = \"demo\"");
    text + extra
}

/// A relay in this process.
#[derive(Debug)]
pub struct TestRelay {
    relay: Option<Relay>,
    config: String,
    dir: TempDir,
}

impl TestRelay {
    /// Starts a relay with the tenant `acme`, which has $5.00.
    pub async fn start(extra: &str) -> Self {
        Self::with(extra, Overrides::default()).await
    }

    /// The same with overrides.
    pub async fn with(extra: &str, overrides: Overrides) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = config_text(&dir.path().join("state"), extra);
        let file = dir.path().join("belayd.toml");
        std::fs::write(&file, &text).unwrap();
        let relay = Relay::start(Config::load(&file).unwrap(), Env::system(), overrides).await.unwrap();
        let tenant = tenant("acme");
        relay.admin().create_tenant(tenant.clone()).await.unwrap();
        relay.admin().operate(&tenant, Operation::Credit, NanoUsd(5_000_000_000), None, None).await.unwrap();
        Self { relay: Some(relay), config: text, dir }
    }

    /// The relay itself.
    #[must_use]
    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().unwrap()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.relay().local_addr()
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    /// A new invite for a tenant.
    pub async fn invite(&self, id: &str) -> Invite {
        Invite::decode(&self.relay().admin().invite(&tenant(id)).await.unwrap().invite).unwrap()
    }

    /// Enrols a new device of `acme` and brings its tunnel up.
    pub async fn client(&self) -> TestClient {
        self.client_of("acme").await
    }

    /// Enrols a new device of `acme` and brings its tunnel up through another address.
    pub async fn client_through(&self, address: SocketAddr) -> TestClient {
        self.client_by(&[address]).await
    }

    /// The same with several addresses in the invite.
    pub async fn client_by(&self, addresses: &[SocketAddr]) -> TestClient {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::at(home.path());
        let addresses = addresses.iter().map(SocketAddr::to_string).collect();
        let invite = Invite { addresses, ..self.invite("acme").await };
        enrol::join(&Env::system(), &state, &invite, "test").await.unwrap();
        TestClient::start(state, home, Options::default()).await
    }

    /// Enrols a new device of a tenant and brings its tunnel up.
    pub async fn client_of(&self, id: &str) -> TestClient {
        self.enrolled(id, Options::default()).await
    }

    /// Enrols a new device of `acme` and brings its tunnel up with options.
    pub async fn client_with(&self, options: Options) -> TestClient {
        self.enrolled("acme", options).await
    }

    async fn enrolled(&self, id: &str, options: Options) -> TestClient {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::at(home.path());
        enrol::join(&Env::system(), &state, &self.invite(id).await, "test").await.unwrap();
        TestClient::start(state, home, options).await
    }

    /// Fails unless every request ends in time, every book is clean and no hold is open.
    pub async fn verify(&self) {
        // Whoever saw the end of an answer, or of a call to a provider, may be ahead of its settlement.
        eventually("all requests have ended", async || self.relay().admin().status().running_requests == 0).await;
        for book in self.relay().admin().verify(None).await.unwrap() {
            assert_eq!(book.report.problems, Vec::<String>::new(), "tenant {}", book.tenant);
            assert_eq!(book.report.open, 0, "tenant {} has open holds", book.tenant);
        }
    }

    /// What a tenant has, in nano-USD.
    pub async fn balance(&self, id: &str) -> i64 {
        let tenants = self.relay().admin().tenants().await.unwrap();
        tenants.into_iter().find(|info| info.id.as_str() == id).unwrap().balance_nano_usd
    }

    /// Writes another configuration and has it read. Errors: it is not taken.
    pub async fn reload(&mut self, change: impl FnOnce(String) -> String) -> Result<Difference, AdminError> {
        self.config = change(std::mem::take(&mut self.config));
        std::fs::write(self.dir.path().join("belayd.toml"), &self.config).unwrap();
        self.relay().admin().reload().await
    }

    /// Stops the relay in order and starts it anew on the same state and address.
    pub async fn restart(self) -> Self {
        self.restart_after(|_| {}).await
    }

    /// The same, with something done to its state directory in between.
    pub async fn restart_after(mut self, deed: impl FnOnce(&Path)) -> Self {
        let address = self.address();
        let config = self.config.replace("quic = \"127.0.0.1:0\"", &format!("quic = \"{address}\""));
        let relay = self.relay.take().unwrap();
        tokio::time::timeout(PATIENCE, relay.shutdown()).await.expect("the relay stops");
        deed(&self.state());
        let config = Config::parse(&config, "test").unwrap();
        self.relay = Some(Relay::start(config, Env::system(), Overrides::default()).await.unwrap());
        self
    }

    /// Stops the relay in order.
    pub async fn stop(mut self) {
        let relay = self.relay.take().unwrap();
        tokio::time::timeout(PATIENCE, relay.shutdown()).await.expect("the relay stops");
    }
}

/// A client with its own device.
#[derive(Debug)]
pub struct TestClient {
    /// The client.
    pub client: Arc<Client>,
    /// Its state directory.
    pub state: StateDir,
    _home: TempDir,
}

impl TestClient {
    /// Enrols with a join string, and brings the tunnel up.
    pub async fn join(invite: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::at(home.path());
        enrol::join(&Env::system(), &state, &Invite::decode(invite).unwrap(), "test").await.unwrap();
        Self::start(state, home, Options::default()).await
    }

    /// The same device with another client.
    #[must_use]
    pub fn with(&self, client: Client) -> Self {
        Self { client: Arc::new(client), state: self.state.clone(), _home: tempfile::tempdir().unwrap() }
    }

    async fn start(state: StateDir, home: TempDir, options: Options) -> Self {
        let (identity, key) = state.load().unwrap();
        let client = Arc::new(Client::start(Env::system(), identity, &key, options).unwrap());
        client.tunnel(PATIENCE).await.unwrap();
        Self { client, state, _home: home }
    }

    /// A streamed prompt for the model `auto`.
    #[must_use]
    pub fn prompt(&self, question: &str) -> EscalationRequest {
        let body = serde_json::to_vec(&Prompt::new(question)).unwrap();
        EscalationRequest::new(self.client.request_id(), Dialect::PROMPT, "auto", body)
    }

    /// Sends a request and gathers its answer. Panics after [`PATIENCE`].
    pub async fn send(&self, request: EscalationRequest) -> Collected {
        let asked = async { self.client.escalate(request, PATIENCE).await.unwrap().collect().await.unwrap() };
        tokio::time::timeout(PATIENCE, asked).await.expect("the answer ends")
    }

    /// Asks a question.
    pub async fn ask(&self, question: &str) -> Collected {
        self.send(self.prompt(question)).await
    }
}

/// A tenant's name.
#[must_use]
pub fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

/// Waits until a condition holds. Panics, naming it, after [`PATIENCE`].
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come true in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
