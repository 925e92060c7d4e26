//! Everything that a measurement needs, started and warm.

use crate::echo::{Dialer, Raw};
use crate::http::{Http, Streamed};
use crate::proxy::{commit, open_book, open_placed};
use crate::roles;
use anyhow::{Context, bail, ensure};
use belay_certs::invite::Invite;
use belay_certs::issue::DeviceKey;
use belay_client::escalation::EscalationRequest;
use belay_client::state::StateDir;
use belay_client::{Answer, Client, Identity, Options, enrol};
use belay_protocol::message::{Dialect, Outcome};
use belay_tests::clock;
use belay_tests::fake_provider::Script;
use belay_tests::procs::{Belayd, Listening, binary};
use belay_transport::env::Env;
use bytes::Bytes;
use rusqlite::Connection;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Streams at once, where there are many.
pub(crate) const MANY: usize = 32;
/// And where there are very many.
pub(crate) const CROWD: usize = 256;
/// Streams of a tunnel.
const MOST: usize = 128;
/// How long the tunnel may take to come up.
const WITHIN: Duration = Duration::from_secs(10);

/// The ways to the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Proxy,
    Belay,
    /// The same through the local gateway.
    Gateway,
    /// The relay's own HTTP endpoint, without a tunnel.
    Relay,
    /// A proxy that makes a durable commit for each request.
    Committing,
}

impl Way {
    /// Those without a local gateway.
    pub(crate) const ALL: [Self; 3] = [Self::Direct, Self::Proxy, Self::Belay];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Proxy => "proxy",
            Self::Belay => "belay",
            Self::Gateway => "gateway",
            Self::Relay => "http",
            Self::Committing => "committing proxy",
        }
    }
}

/// All processes, and a client of each.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) belayd: Belayd,
    pub(crate) proxy: Listening,
    pub(crate) echo: Listening,
    pub(crate) dialer: Dialer,
    pub(crate) raw: Raw,
    _provider: Listening,
    /// `belay up`.
    pub(crate) gateway: Listening,
    direct: Http,
    proxied: Http,
    by_committing: Http,
    pub(crate) committing: Listening,
    by_gateway: Http,
    by_relay: Http,
    identity: Identity,
    key: DeviceKey,
    /// More than one: a tunnel has so many streams at the most.
    clients: Vec<Client>,
    /// One whose log grows, and one whose log is written over in place.
    books: [Arc<Mutex<Connection>>; 2],
}

impl Scene {
    /// Starts everything.
    pub(crate) async fn set() -> anyhow::Result<Self> {
        let provider = roles::spawn(&["provider"])?;
        let upstream = provider.address()?;
        let proxy = roles::spawn(&["proxy", &upstream.to_string()])?;
        let belayd = Belayd::start(&config(upstream))?;
        let book = belayd.dir().join("proxy.sqlite");
        let committing = roles::spawn(&["proxy", &upstream.to_string(), &book.display().to_string()])?;
        let authority = belayd.dir().join("raw-authority");
        let echo = roles::spawn(&["echo".as_ref(), authority.as_os_str()])?;
        let dialer = Dialer::new(&authority, echo.address()?)?;
        let (identity, key) = join(&belayd, None).await?;
        let home = belayd.dir().join("client");
        let mut up = Command::new(binary("belay"));
        up.arg("--home").arg(home).args(["--json", "up", "--listen", "127.0.0.1:0"]);
        let gateway = Listening::spawn(&mut up).context("belay up did not start")?;
        let mut clients = vec![];
        for _ in 0..CROWD.div_ceil(MOST) {
            let client = Client::start(Env::system(), identity.clone(), &key, Options::default())?;
            client.tunnel(WITHIN).await?;
            clients.push(client);
        }
        Ok(Self {
            raw: dialer.dial().await?,
            direct: Http::connect(upstream, CROWD).await?,
            proxied: Http::connect(proxy.address()?, CROWD).await?,
            by_committing: Http::connect(committing.address()?, 1).await?,
            committing,
            by_gateway: Http::connect(gateway.address()?, CROWD).await?,
            by_relay: Http::with_key(http_of(&belayd)?, CROWD, api_key(&belayd)?).await?,
            gateway,
            books: [open_book(&belayd.dir().join("bench.sqlite"))?, open_placed(&belayd.dir().join("placed.sqlite"))?]
                .map(|book| Arc::new(Mutex::new(book))),
            belayd,
            proxy,
            echo,
            dialer,
            _provider: provider,
            identity,
            key,
            clients,
        })
    }

    /// Closes what says goodbye; the processes are killed.
    pub(crate) async fn strike(&self) {
        for client in &self.clients {
            client.close().await;
        }
    }

    /// The device whose tunnels these are.
    pub(crate) fn identity(&self) -> (Identity, &DeviceKey) {
        (self.identity.clone(), &self.key)
    }

    /// Another idle tunnel to the relay, up and with its first heartbeat answered.
    pub(crate) async fn another_tunnel(&self) -> anyhow::Result<Client> {
        let client = Client::start(Env::system(), self.identity.clone(), &self.key, Options::default())?;
        let mut status = client.status();
        let beat = status.wait_for(|status| status.round_trip_us.is_some());
        tokio::time::timeout(WITHIN, beat).await.context("no heartbeat was answered")??;
        Ok(client)
    }

    /// One request by that way, read to its end. Errors: it failed, or a token is missing.
    pub(crate) async fn stream(&self, way: Way, lane: usize, script: &Script) -> anyhow::Result<Streamed> {
        let body = Bytes::from(body(script));
        let seen = match way {
            Way::Direct => self.direct.stream(lane, body).await,
            Way::Proxy => self.proxied.stream(lane, body).await,
            Way::Gateway => self.by_gateway.stream(lane, body).await,
            Way::Relay => self.by_relay.stream(lane, body).await,
            Way::Committing => self.by_committing.stream(lane, body).await,
            Way::Belay => escalate(&self.clients[lane / MOST], body).await,
        };
        let seen = seen.with_context(|| format!("the {} way", way.name()))?;
        let count = seen.travel_ns.len() as u64;
        ensure!(count == script.tokens, "{count} of {} tokens came the {} way", script.tokens, way.name());
        Ok(seen)
    }

    /// One durable commit, to the end of a log that grows; nanoseconds.
    pub(crate) async fn commit(&self) -> anyhow::Result<u64> {
        timed(&self.books[0]).await
    }

    /// The same into the room that a log has already, as the relay's own books make it most of the time.
    pub(crate) async fn commit_in_place(&self) -> anyhow::Result<u64> {
        timed(&self.books[1]).await
    }
}

async fn timed(book: &Arc<Mutex<Connection>>) -> anyhow::Result<u64> {
    let book = Arc::clone(book);
    tokio::task::spawn_blocking(move || {
        let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        commit(&mut book)?;
        u64::try_from(start.elapsed().as_nanos()).context("an endless commit")
    })
    .await?
}

/// One request through a tunnel, read to its end.
pub(crate) async fn escalate(client: &Client, body: Bytes) -> anyhow::Result<Streamed> {
    let request = EscalationRequest::new(client.request_id(), Dialect::OPENAI_CHAT, "bench", body);
    let mut seen = Streamed::default();
    let asked_ns = clock::monotonic_ns();
    let mut escalation = client.escalate(request, WITHIN).await?;
    while let Some(answer) = escalation.next().await? {
        let now_ns = clock::monotonic_ns();
        match answer {
            Answer::Event(event) => seen.take(&event, asked_ns, now_ns),
            Answer::End(end) => ensure!(end.outcome == Outcome::COMPLETE, "it ended {}", end.outcome),
            Answer::Failed(failed) => bail!("{}: {}", failed.code, failed.message),
            _ => {}
        }
    }
    Ok(seen)
}

/// A relay's configuration with the model `bench` at `upstream`.
pub(crate) fn config(upstream: SocketAddr) -> String {
    config_for(&format!("http://{upstream}"), "")
}

/// The same with a provider's own keys.
pub(crate) fn config_for(url: &str, provider: &str) -> String {
    format!(
        "[limits]\nrequests_per_minute = 1000000\nrequests_at_once = 1000\ninstances_per_device = 20000\n\
         handshakes_per_second = 100000\n\
         [http]\nlisten = \"127.0.0.1:0\"\nconnections_per_address = 2000\nidle_s = 3600\n\
         [providers.fake]\nkind = \"openai\"\nurl = \"{url}\"\n{provider}\
         [models.bench]\nprovider = \"fake\"\ncontext_tokens = 100000\nmax_output_tokens = 100000\n\
         price = {{ input = \"0.01\", output = \"0.02\" }}\n"
    )
}

/// A request's body that carries a script.
pub(crate) fn body(script: &Script) -> String {
    let body = serde_json::json!({
        "model": "bench", "stream": true, "messages": [{"role": "user", "content": script.as_message()}],
    });
    body.to_string()
}

/// Makes a tenant and a device of it. `through`: the relay's address, if it is not its own.
pub(crate) async fn join(belayd: &Belayd, through: Option<String>) -> anyhow::Result<(Identity, DeviceKey)> {
    belayd.run(&["tenant", "create", "bench", "--credit", "100000"])?;
    let invite = belayd.run(&["invite", "bench"])?;
    let invite = invite.get("invite").and_then(|text| text.as_str()).context("no invite")?;
    let state = StateDir::at(belayd.dir().join("client"));
    let mut invite = Invite::decode(invite)?;
    invite.addresses = through.map_or(invite.addresses, |address| vec![address]);
    enrol::join(&Env::system(), &state, &invite, "bench").await?;
    Ok(state.load()?)
}

/// Where a relay serves HTTP.
pub(crate) fn http_of(belayd: &Belayd) -> anyhow::Result<SocketAddr> {
    let url = belayd.process().hello.get("http").and_then(|url| url.as_str()).context("no HTTP")?;
    Ok(url.trim_start_matches("http://").parse()?)
}

fn api_key(belayd: &Belayd) -> anyhow::Result<String> {
    let made = belayd.run(&["key", "create", "bench", "--scope", "escalate"])?;
    Ok(made.get("secret").and_then(|secret| secret.as_str()).context("no key")?.to_owned())
}
