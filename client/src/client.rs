//! The client: a tunnel that is kept alive, and the calls through it.

use crate::dial::Dialer;
use crate::error::ClientError;
use crate::escalation::{Escalation, EscalationRequest, Reading, Traced};
use crate::pending::Pending;
use crate::reconnect::Keeper;
use crate::renew::Renewal;
use crate::state::{Identity, StateDir};
use crate::status::TunnelStatus;
use crate::tunnel::Tunnel;
use crate::tunnels::{Outstanding, Signs, Tunnels};
use crate::vitals::Sensors;
use belay_certs::issue::DeviceKey;
use belay_protocol::codec::Message;
use belay_protocol::id::RequestId;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{LeaveAnswer, LeaveRequest};
use belay_traces::Traces;
use belay_transport::env::Env;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long a request waits for its connection to come back, by default as long as the relay does.
const RESUME_WINDOW: Duration = Duration::from_secs(300);

/// What may be set for a client.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Used instead of the addresses that the identity names.
    pub addresses: Option<Vec<String>>,
    /// Where running requests and the last good address are remembered, so that a restarted client
    /// can go on. `None`: they are forgotten with the process.
    pub state: Option<StateDir>,
    /// Goes through the tunnel of the client that runs for `state`, if one does (`belay up`).
    pub through_running: bool,
    /// How long a request waits for its connection to come back. `None`: five minutes.
    pub resume_window: Option<Duration>,
    /// Tells how this computer is; heartbeats carry it.
    pub sensors: Option<Arc<dyn Sensors>>,
    /// The model that this computer has loaded itself; heartbeats carry it.
    pub loaded_model: Option<String>,
    /// The model that this computer will ask the relay for when its own GPU is busy. Empty: `auto`.
    pub prewarm_model: String,
    /// Where spans of requests go. `None`: there are none.
    pub traces: Option<belay_traces::Settings>,
}

/// A client with a tunnel that is kept alive by its own task.
#[derive(Debug)]
pub struct Client {
    env: Env,
    identity: Identity,
    dialer: Dialer,
    addresses: Vec<String>,
    state: Option<StateDir>,
    tunnels: Arc<Tunnels>,
    pending: Option<Pending>,
    resume_window: Duration,
    network: Arc<Notify>,
    task: Mutex<Option<JoinHandle<()>>>,
    /// Renews the certificate.
    renewing: Mutex<Option<JoinHandle<()>>>,
    traces: Option<Traces>,
    /// Hands spans over until it is told to stop.
    exporting: Mutex<Option<JoinHandle<()>>>,
    stop_exporting: CancellationToken,
}

impl Client {
    /// Starts to keep a tunnel alive. Errors: the identity is not usable.
    pub fn start(env: Env, identity: Identity, key: &DeviceKey, options: Options) -> Result<Self, ClientError> {
        let addresses = options.addresses.unwrap_or_else(|| identity.addresses.clone());
        let signs = Signs {
            sensors: options.sensors,
            loaded_model: options.loaded_model,
            prewarm_model: options.prewarm_model,
            prewarm: Notify::new(),
        };
        let mut dialer = Dialer::enrolled(&env, &identity, key)?;
        if let Some(state) = options.state.as_ref().filter(|_| options.through_running) {
            dialer.may_go_through(state.clone(), identity.device.clone());
        }
        let renewal = Arc::new(Renewal::new(&env, &identity, key, options.state.clone())?);
        dialer.renewal = Some(Arc::clone(&renewal));
        let resume_window = options.resume_window.unwrap_or(RESUME_WINDOW);
        let traces = options.traces.map(|settings| Traces::new(&settings, env.clone())).transpose()?;
        let mut client = Self::run(env, identity, dialer, addresses, options.state, resume_window, signs);
        if let Some((traces, exporter)) = traces {
            client.traces = Some(traces);
            let exporting = tokio::spawn(exporter.run(client.stop_exporting.clone()));
            client.exporting = Mutex::new(Some(exporting));
        }
        // It ends with the client.
        let (stop, dialer, tunnels) = (client.tunnels.stop.clone(), client.dialer.clone(), Arc::clone(&client.tunnels));
        let renewing = tokio::spawn(async move {
            stop.run_until_cancelled(renewal.run(dialer, tunnels)).await;
        });
        client.renewing = Mutex::new(Some(renewing));
        Ok(client)
    }

    /// Another client of the same device, with a tunnel of its own: a tunnel carries so many streams at the
    /// most. It says nothing of the computer.
    #[must_use]
    pub fn another(&self) -> Self {
        let (env, identity, dialer) = (self.env.clone(), self.identity.clone(), self.dialer.clone());
        let (addresses, state) = (self.addresses.clone(), self.state.clone());
        let mut another = Self::run(env, identity, dialer, addresses, state, self.resume_window, Signs::default());
        // Their exporter is this one's.
        another.traces.clone_from(&self.traces);
        another
    }

    fn run(
        env: Env,
        identity: Identity,
        dialer: Dialer,
        addresses: Vec<String>,
        state: Option<StateDir>,
        resume_window: Duration,
        signs: Signs,
    ) -> Self {
        let tunnels = Tunnels::new(env.clock.now_ms(), addresses.join(", "), signs);
        let network = Arc::new(Notify::new());
        let keeper = Keeper::new(
            env.clone(),
            dialer.clone(),
            addresses.clone(),
            state.clone(),
            Arc::clone(&tunnels),
            Arc::clone(&network),
        );
        let task = Mutex::new(Some(tokio::spawn(keeper.run())));
        let pending = state.as_ref().map(StateDir::pending);
        Self {
            env,
            identity,
            dialer,
            addresses,
            state,
            tunnels,
            pending,
            resume_window,
            network,
            task,
            renewing: Mutex::default(),
            traces: None,
            exporting: Mutex::default(),
            stop_exporting: CancellationToken::new(),
        }
    }

    /// The tunnel's state, to follow.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<TunnelStatus> {
        self.tunnels.status.subscribe()
    }

    /// When the certificate that is shown now ends, milliseconds since 1970.
    #[must_use]
    pub fn certificate_ends_ms(&self) -> u64 {
        let renewal = self.dialer.renewal.as_ref();
        renewal.map_or(self.identity.expires_ms, |renewal| renewal.ends_ms())
    }

    /// Who this client is, as it was when it started.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The tunnel, as soon as one is up. Errors: `Closed` if the relay refuses for good, or until
    /// its operator or another instance of this device does something (the keeper tries on);
    /// `Unreachable` after `within`.
    pub async fn tunnel(&self, within: Duration) -> Result<Arc<Tunnel>, ClientError> {
        let _wants = self.tunnels.wants();
        self.tunnels.tunnel_within(within).await
    }

    /// Says that the machine is on another network, sooner than the client would notice: the tunnel
    /// moves to a new socket, or an attempt is made at once.
    pub fn network_changed(&self) {
        self.network.notify_one();
    }

    /// Asks the relay to make ready for requests: to open the provider's connection and the tenant's
    /// book. Done by itself when the computer's GPU is near its limit.
    pub fn prewarm(&self) {
        self.tunnels.signs.prewarm.notify_one();
    }

    /// The wall clock, milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        self.env.clock.now_ms()
    }

    /// A new name for a request.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        RequestId(self.env.random.bytes())
    }

    /// Sends an LLM request; answers come from the returned stream, over another tunnel if this one
    /// is lost.
    pub async fn escalate(&self, mut request: EscalationRequest, within: Duration) -> Result<Escalation, ClientError> {
        let mut traced = Traced::begin(self.traces.as_ref(), &mut request, &self.addresses);
        let tunnel = self.tunnel(within).await.inspect_err(|error| traced.broke(error))?;
        let begin = |pending: &Pending| pending.begin(request.request_id, &request.model, self.env.clock.now_ms());
        let pending = self.pending.as_ref().filter(|_| request.reading == Reading::Noted);
        let record = match pending.map(begin) {
            Some(Err(error)) => {
                // It runs all the same; only a restarted client could not go on with it.
                warn!(%error, "cannot remember a request");
                None
            }
            other => other.transpose().inspect_err(|error| traced.broke(error))?,
        };
        Escalation::begin(Arc::clone(&self.tunnels), tunnel, request, self.resume_window, (record, traced)).await
    }

    /// Goes on with a request that was sent before, by this client or one that is gone. The answer
    /// begins where the other left off, if its state tells that, or where the relay's memory does.
    pub async fn resume(&self, id: RequestId, within: Duration) -> Result<Escalation, ClientError> {
        let tunnel = self.tunnel(within).await?;
        let record = self.pending.as_ref().map(|pending| pending.open(id)).transpose()?.flatten();
        Escalation::resume(Arc::clone(&self.tunnels), tunnel, id, self.resume_window, record).await
    }

    /// Somebody waits for an answer until this is dropped: a silent path is soon left.
    pub(crate) fn waits(&self) -> Outstanding {
        self.tunnels.wait_for_answer()
    }

    /// The tunnel that is up then at the latest.
    pub(crate) async fn tunnel_until(&self, until: Instant) -> Result<Arc<Tunnel>, ClientError> {
        self.tunnels.tunnel(until).await
    }

    /// One small request that may be repeated: a tunnel that is lost meanwhile is no answer.
    pub(crate) async fn call<Q: Message, A: Message>(
        &self,
        kind: StreamKind,
        request: &Q,
        within: Duration,
    ) -> Result<A, ClientError> {
        let until = Instant::now() + within;
        // While it waits, a silent path is soon left.
        let _waits = self.tunnels.wait_for_answer();
        loop {
            let tunnel = self.tunnels.tunnel(until).await?;
            match tunnel.call(kind, request).await {
                // Once it is known to be over, the next one is waited for.
                Err(error) if tunnel.is_over(&error).await && Instant::now() < until => {}
                other => return other,
            }
        }
    }

    /// Asks the relay to revoke this device.
    pub async fn leave(&self, reason: &str, within: Duration) -> Result<LeaveAnswer, ClientError> {
        self.tunnel(within).await?.call(StreamKind::Enrol, &LeaveRequest { reason: reason.into() }).await
    }

    /// Closes the tunnel and ends the client's task. Requests that were dropped are cancelled before: a
    /// connection's end says nothing of the kind.
    pub async fn close(&self) {
        self.tunnels.stop.cancel();
        for task in [&self.task, &self.renewing] {
            let task = task.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(task) = task {
                // It can only fail by a panic, which has been reported where it happened.
                let _ = task.await;
            }
        }
        self.stop_exporting.cancel();
        let exporting = self.exporting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(exporting) = exporting {
            let _ = exporting.await;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tunnels.stop.cancel();
        self.stop_exporting.cancel();
    }
}
