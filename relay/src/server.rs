//! The relay as a whole: builds everything, owns the task trackers and the stop tokens, and takes
//! it down in order.

pub(crate) mod setup;

pub(crate) use self::setup::record_prices;

use self::setup::{
    endpoint_keys, keep_shown, lasting_name, quic_config, shown, store_config, strangers, tls_config, traces_of,
};
use crate::admin::copies::copies_dir;
use crate::admin::service::AdminService;
use crate::authority::Keeper;
use crate::backup::restore::RESTORING;
use crate::blobs::Blobs;
use crate::blobs::disk::{Disk, SystemDisk};
use crate::config::{Config, HttpTls};
use crate::connection::Shared;
use crate::enrolment::Enrolment;
use crate::escalate::{Escalator, Flights, Health, Tracer, Unresolved};
use crate::http::{Certificates, Http, HttpListener, HttpStartError};
use crate::listener::{Gate, Listener};
use crate::master_key::{self, MasterKeyError};
use crate::ops::chores::Chores;
use crate::ops::memory::{BodyBudget, Memory};
use crate::ops::metrics::Metrics;
use crate::ops::reserve::Reserve;
use crate::ops::vitals::Vitals;
use crate::providers::{self, Providers};
use crate::registry::Registry;
use crate::reload::Reloader;
use crate::secrets::{KeySealer, MasterKey};
use crate::settings::{InForce, Settings};
use crate::store::StoreError;
use crate::store::books::Books;
use crate::store::executor::{CENTRAL, Store};
use crate::store::ledger::Boot;
use crate::store::lock::{LockError, StateLock};
use crate::store::sessions::service::Sessions;
use crate::stripe::Stripe;
use crate::sync::Sync;
use crate::tenants::Tenants;
use belay_certs::rollover::Authorities;
use belay_certs::tls::Time;
use belay_certs::{CertError, file};
use belay_transport::env::{Clock, Env};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// Why a relay could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The state directory is in use or cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A certificate or key could not be made, read or used.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// The central database could not be opened.
    #[error("cannot open the central database")]
    Store(#[from] StoreError),
    /// The key that the state was made under is gone.
    #[error(
        "the master key {} is missing: books and providers' keys of this state were sealed under it. Bring it back from your backup", path.display()
    )]
    NoMasterKey {
        /// Where it should be.
        path: PathBuf,
    },
    /// A restore was broken off.
    #[error("a restore into {} was broken off: finish it with belayd restore DIR", dir.display())]
    Restoring {
        /// Which state directory.
        dir: PathBuf,
    },
    /// The address could not be bound.
    #[error("cannot listen on {address} ({protocol}){}", if *protocol == "TCP" { "; without TCP, clients whose UDP is blocked stay out: listen.tcp = false" } else { "" })]
    Bind {
        /// UDP or TCP.
        protocol: &'static str,
        /// Which address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// HTTP cannot be served.
    #[error("cannot serve HTTP on {address}")]
    Http {
        /// Which address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: HttpStartError,
    },
    /// The master key is not the one of these books.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// Something else of the set-up failed. Blame: ours.
    #[error("{0}")]
    Setup(String),
}

/// What a test or a simulation may replace.
#[derive(Debug, Default)]
pub struct Overrides {
    /// Used instead of the configured providers of the same name.
    pub providers: Providers,
    /// Run every store command on the calling thread, without waiting for the disk.
    pub inline_store: bool,
    /// Where the bytes of synced content are kept, in place of the machine's disk.
    pub disk: Option<Arc<dyn Disk>>,
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    local: SocketAddr,
    http: Option<SocketAddr>,
    admin: Arc<AdminService>,
    escalator: Arc<Escalator>,
    shared: Arc<Shared>,
    connections: TaskTracker,
    background: TaskTracker,
    store: Store,
    _lock: StateLock,
}

/// Certificates are checked by the same clock as everything else.
#[derive(Debug)]
struct ClockTime(Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now_ms())))
    }
}

impl Relay {
    /// Takes the state directory, opens everything and listens. Errors: all of [`StartError`].
    pub async fn start(config: Config, env: Env, overrides: Overrides) -> Result<Self, StartError> {
        let config = Arc::new(config);
        file::create_private_dir(&config.state_dir)?;
        let lock = StateLock::acquire(&config.state_dir)?;
        if config.state_dir.join(RESTORING).exists() {
            return Err(StartError::Restoring { dir: config.state_dir.clone() });
        }
        for dir in [&config.state_dir, &config.state_dir.join("ca")] {
            file::sweep(dir);
        }
        // Copies that nobody took away.
        let _ = std::fs::remove_dir_all(copies_dir(&config.state_dir));
        let now_ms = env.clock.now_ms();
        // Books and keys that are there were sealed under a key that must be there, too.
        let is_new = !config.state_dir.join(CENTRAL).exists();
        if !is_new && !config.master_key.exists() {
            return Err(StartError::NoMasterKey { path: config.master_key.clone() });
        }
        let authorities = Authorities::load_or_create(&config.state_dir.join("ca"), now_ms)?;
        // Before the first database: one without its key would never be opened again.
        let master = MasterKey::load(&config.master_key, is_new.then_some(&env.random))?;
        let metrics = Arc::new(Metrics::default());
        let store = Store::start_with(&store_config(&config, overrides.inline_store), metrics.store.clone());
        let price_version = record_prices(&store, &config, now_ms).await?;
        let boot = Boot::current(env.random.bytes());
        master_key::claim(&config.state_dir, &master, &config.master_key, (!is_new).then_some(&store)).await?;
        let clock = || Arc::clone(&env.clock);
        let books = Books::new(store.clone(), clock(), &master, config.billing.free_allowance);
        let name = lasting_name(&config.state_dir, &authorities)?;
        let stripe = match config.stripe.clone() {
            Some(wanted) => Some(
                Stripe::new(wanted, &config.timeouts, (store.clone(), books.clone()), clock(), name)
                    .map_err(StartError::Setup)?,
            ),
            None => None,
        };
        let tenants = Arc::new(Tenants::new(store.clone(), books, boot.clone(), clock()));
        let mut providers = providers::from_config(&config, None).map_err(StartError::Setup)?;
        providers.extend(overrides.providers.clone());
        let memory = Memory::new(config.limits.memory);
        let flights = Flights::new(config.limits.event_logs, Arc::clone(&memory));
        let registry = Arc::new(Registry::default());
        let (traces, exporter) = traces_of(&config, &env)?;
        let reserve = Arc::new(Reserve::of(&config.state_dir, config.reserve));
        reserve.look();
        let escalator = Arc::new(Escalator {
            settings: InForce::new(Settings { config: Arc::clone(&config), providers, price_version }),
            env: env.clone(),
            boot,
            store: store.clone(),
            tenants: Arc::clone(&tenants),
            health: Health::default(),
            sealer: KeySealer::new(&master)?,
            stop: CancellationToken::new(),
            draining: CancellationToken::new(),
            unresolved: Unresolved::default(),
            running: AtomicUsize::new(0),
            chores: Chores::default(),
            reserve: Arc::clone(&reserve),
            maintenance: Mutex::new(None),
            metrics: Arc::clone(&metrics),
            tracer: traces.map(Tracer::new),
            memory: Arc::clone(&memory),
            flights: Arc::clone(&flights),
            registry: Arc::clone(&registry),
            stripe: stripe.clone(),
            deliveries: TaskTracker::new(),
            stop_deliveries: CancellationToken::new(),
        });
        let disk = overrides.disk.unwrap_or_else(|| Arc::new(SystemDisk));
        let blobs = Blobs::new(disk, env.random.clone(), overrides.inline_store);
        let enrolment = Arc::new(Enrolment::new(
            (Arc::clone(&authorities), config.timeouts.device_certificate),
            env.clone(),
            store.clone(),
            Arc::clone(&registry),
            Arc::clone(&flights),
        ));
        let shared = Arc::new(Shared {
            escalator: Arc::clone(&escalator),
            enrolment: Arc::clone(&enrolment),
            sessions: Sessions::new(store.clone(), clock(), config.limits.sessions).beside(Arc::clone(&reserve)),
            sync: Sync::new(store.clone(), blobs, clock(), config.limits.sync, metrics.sync.clone()).beside(reserve),
            registry: Arc::clone(&registry),
            bodies: BodyBudget::new(config.limits.bodies_in_memory, config.limits.request_body, memory),
            streams: TaskTracker::new(),
            stop: CancellationToken::new(),
            strangers: strangers(&config.limits),
            lossy_lines: Arc::default(),
        });
        let keys = endpoint_keys(&config.state_dir, &env)?;
        let shown = shown(&authorities, &env)?;
        let tls = tls_config(Arc::clone(&authorities), Arc::clone(&shown), config.timeouts.expired_grace, &env)?;
        let listener = Listener {
            server: quic_config(tls.clone(), &keys)?,
            tls: config.tcp.then(|| Arc::new(tls)),
            env: env.clone(),
            keys,
            shared: Arc::clone(&shared),
            connections: TaskTracker::new(),
            gate: Gate::new(config.limits.pending_handshakes, config.limits.handshakes_per_second),
        };
        let address = config.listen;
        let sockets =
            listener.bind(address).map_err(|(protocol, source)| StartError::Bind { protocol, address, source })?;
        let (local, tcp) = (sockets.local, sockets.tcp.is_some());
        let connections = listener.connections.clone();
        let background = TaskTracker::new();
        let http = serve_http(&config, &shared, &authorities, &background)?;
        let (http, served) = http.unzip();
        let reloader = Arc::new(Reloader::new(Arc::clone(&shared), served, overrides.providers));
        background.spawn(async move { listener.serve(sockets).await });
        let keeper = Keeper {
            authorities: Arc::clone(&authorities),
            shown: Arc::clone(&shown),
            env: env.clone(),
            store: store.clone(),
            grace: config.timeouts.expired_grace,
        };
        background.spawn(keep_shown(shown, authorities, env, shared.stop.clone()));
        if let Some(exporter) = exporter {
            background.spawn(exporter.run(shared.stop.clone()));
        }
        let (sweeper, stop) = (Arc::clone(&escalator), shared.stop.clone());
        background.spawn(async move { sweeper.sweep(stop).await });
        let (sessions, stop) = (shared.sessions.clone(), shared.stop.clone());
        background.spawn(async move { sessions.forget_daily(stop).await });
        if let Some(stripe) = stripe {
            background.spawn(stripe.run(shared.stop.clone()));
        }
        let (sync, stop) = (shared.sync.clone(), shared.stop.clone());
        background.spawn(async move { sync.forget_daily(stop).await });
        let admin = Arc::new(AdminService::new(
            (local, http),
            Arc::clone(&escalator),
            (enrolment, registry),
            (reloader, keeper, shared.sync.clone()),
        ));
        info!(%local, tcp, "belayd is listening");
        Ok(Self { local, http, admin, escalator, shared, connections, background, store, _lock: lock })
    }

    /// Where it listens, over UDP and TCP.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Where it serves HTTP, if it does.
    #[must_use]
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http
    }

    /// The same as the beginning of a URL.
    #[must_use]
    pub fn http_url(&self) -> Option<String> {
        let is_plain = self.escalator.config().http.as_ref().is_some_and(|http| http.tls == HttpTls::Off);
        self.http.map(|address| format!("{}://{address}", if is_plain { "http" } else { "https" }))
    }

    /// True if it listens over TCP too.
    #[must_use]
    pub fn serves_tcp(&self) -> bool {
        self.escalator.config().tcp
    }

    /// Where it is asked whether it makes progress.
    #[must_use]
    pub fn vitals(&self) -> Vitals {
        let is_plain = self.escalator.config().http.as_ref().is_some_and(|http| http.tls == HttpTls::Off);
        Vitals { quic: self.local, http: self.http.filter(|_| is_plain), store: self.store.clone() }
    }

    /// What an operator can do.
    #[must_use]
    pub fn admin(&self) -> &Arc<AdminService> {
        &self.admin
    }

    /// Drains and stops: no new requests, running ones get the configured time, the rest is ended
    /// and settled; then tunnels close and the store is written out.
    pub async fn shutdown(self) {
        let drain = self.escalator.config().timeouts.drain;
        self.escalator.draining.cancel();
        self.shared.streams.close();
        if self.escalator.running() > 0 {
            info!(running = self.escalator.running(), "waiting for running requests");
        }
        if timeout(drain, self.shared.streams.wait()).await.is_err() {
            warn!(running = self.escalator.running(), "ending requests that outlast the drain time");
            self.escalator.stop.cancel();
            // Settling has its own bounded retries; reading requests their own deadlines.
            let _ = timeout(Duration::from_secs(20), self.shared.streams.wait()).await;
        }
        self.escalator.tenants.flush(None).await;
        // What waits for a reader that is not here is let go: it is settled.
        self.escalator.stop_deliveries.cancel();
        self.escalator.deliveries.close();
        let _ = timeout(Duration::from_secs(5), self.escalator.deliveries.wait()).await;
        self.shared.stop.cancel();
        self.connections.close();
        self.background.close();
        let ended = async {
            self.connections.wait().await;
            self.background.wait().await;
        };
        if timeout(Duration::from_secs(5), ended).await.is_err() {
            warn!("some tasks did not end in time");
        }
        self.shared.sync.close();
        self.store.close();
        info!("belayd has stopped");
    }
}

/// Serves HTTP, if that is configured.
fn serve_http(
    config: &Config,
    shared: &Arc<Shared>,
    authorities: &Arc<Authorities>,
    background: &TaskTracker,
) -> Result<Option<(SocketAddr, Arc<Http>)>, StartError> {
    let Some(wanted) = config.http.clone() else { return Ok(None) };
    let failed = |address, source| StartError::Http { address, source };
    let (env, address) = (&shared.escalator.env, wanted.listen);
    let time: Time = Arc::new(ClockTime(Arc::clone(&env.clock)));
    let certificates = Certificates { authorities: Arc::clone(authorities), env: env.clone(), time };
    let http = Http::new(Arc::clone(shared), wanted, certificates).map_err(|source| failed(address, source))?;
    let listener = HttpListener::bind(Arc::clone(&http), env).map_err(|source| failed(address, source))?;
    let local = listener.local_addr().map_err(|error| failed(address, error.into()))?;
    let stop = shared.stop.clone();
    background.spawn(async move { listener.serve(stop).await });
    if config.http.as_ref().is_some_and(|http| http.tls != HttpTls::Off) {
        let (http, stop) = (Arc::clone(&http), shared.stop.clone());
        background.spawn(async move { http.watch_certificate(stop).await });
    }
    info!(%local, "serving HTTP");
    Ok(Some((local, http)))
}
