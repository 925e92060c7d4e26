//! Keeps one tunnel alive: a state machine with one function per state, and its state as a watch.
//!
//! connecting → up → waiting → connecting …, until the client is closed or the relay refuses for
//! good. The wait is random up to a bound that doubles from 50 ms to 30 s and falls back only when
//! a heartbeat has been answered: a relay that accepts and dies at once is not hammered.

use crate::dial::Dialer;
use crate::error::ClientError;
use crate::escalation::{Escalation, EscalationRequest};
use crate::state::Identity;
use crate::tunnel::{Beat, Control, Tunnel};
use belay_certs::issue::DeviceKey;
use belay_protocol::error::CloseCode;
use belay_protocol::id::{InstanceId, RequestId};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{Balance, BalanceRequest, LeaveAnswer, LeaveRequest};
use belay_transport::env::Env;
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Where the tunnel is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// A handshake is under way.
    Connecting,
    /// Streams can be opened.
    Up,
    /// The next attempt comes after a while.
    Waiting {
        /// Why the last one ended.
        reason: String,
        /// How long the wait is, in milliseconds.
        for_ms: u64,
    },
    /// The relay refuses; there will be no further attempt.
    Refused {
        /// With which code.
        code: String,
    },
    /// The client was closed.
    Closed,
}

/// What a program can follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TunnelStatus {
    /// Where the tunnel is in its life.
    #[serde(flatten)]
    pub phase: Phase,
    /// What carries it.
    pub path: &'static str,
    /// The relay's address, while up.
    pub remote: Option<SocketAddr>,
    /// The relay's name, as it said.
    pub relay: Option<String>,
    /// Since when the phase lasts, milliseconds since 1970.
    pub since_ms: u64,
    /// How often the tunnel came up after the first time.
    pub reconnects: u64,
    /// Round trip of the last answered heartbeat, in microseconds.
    pub round_trip_us: Option<u64>,
    /// The same as the relay's transport measures it, in microseconds.
    pub relay_round_trip_us: Option<u64>,
    /// UDP bytes sent, all tunnels together.
    pub bytes_sent: u64,
    /// UDP bytes received, all tunnels together.
    pub bytes_received: u64,
}

/// What may be set for a client.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Used instead of the addresses that the identity names.
    pub addresses: Option<Vec<String>>,
}

type Current = watch::Sender<Option<Arc<Tunnel>>>;

/// A client with a tunnel that is kept alive by its own task.
#[derive(Debug)]
pub struct Client {
    env: Env,
    identity: Identity,
    status: watch::Receiver<TunnelStatus>,
    current: watch::Receiver<Option<Arc<Tunnel>>>,
    refused: Arc<Mutex<Option<CloseCode>>>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Client {
    /// Starts to keep a tunnel alive. Errors: the identity is not usable.
    pub fn start(env: Env, identity: Identity, key: &DeviceKey, options: Options) -> Result<Self, ClientError> {
        let dialer = Dialer::enrolled(&env, &identity, key)?;
        let (status_sender, status) = watch::channel(TunnelStatus {
            phase: Phase::Connecting,
            path: "quic",
            remote: None,
            relay: None,
            since_ms: env.clock.now_ms(),
            reconnects: 0,
            round_trip_us: None,
            relay_round_trip_us: None,
            bytes_sent: 0,
            bytes_received: 0,
        });
        let (current_sender, current) = watch::channel(None);
        let refused = Arc::new(Mutex::new(None));
        let stop = CancellationToken::new();
        let keeper = Keeper {
            instance: InstanceId(env.random.bytes()),
            addresses: options.addresses.unwrap_or_else(|| identity.addresses.clone()),
            last_good: None,
            env: env.clone(),
            dialer,
            status: status_sender,
            current: current_sender,
            refused: Arc::clone(&refused),
            stop: stop.clone(),
            generation: 0,
            backoff: FIRST_BACKOFF,
            sent_before: 0,
            received_before: 0,
        };
        let task = Mutex::new(Some(tokio::spawn(keeper.run())));
        Ok(Self { env, identity, status, current, refused, stop, task })
    }

    /// The tunnel's state, to follow.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<TunnelStatus> {
        self.status.clone()
    }

    /// Who this client is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The tunnel, as soon as one is up. Errors: `Closed` if the relay refuses for good, or until
    /// its operator or another instance of this device does something (the keeper tries on);
    /// `Unreachable` after `within`.
    pub async fn tunnel(&self, within: Duration) -> Result<Arc<Tunnel>, ClientError> {
        let mut current = self.current.clone();
        let mut status = self.status.clone();
        let waited = timeout(within, async {
            loop {
                // A relay that is going away takes no new streams: the next tunnel will.
                if let Some(tunnel) = current.borrow_and_update().clone()
                    && !tunnel.going_away.is_cancelled()
                {
                    return Ok(tunnel);
                }
                if let Some(refused) = self.refusal() {
                    return Err(refused);
                }
                if self.stop.is_cancelled() {
                    return Err(ClientError::Stopped);
                }
                let changed = tokio::select! {
                    // In order, so that a simulation repeats.
                    biased;
                    changed = current.changed() => changed,
                    changed = status.changed() => changed,
                };
                if changed.is_err() {
                    // The keeper has ended: by refusal, or because the client was closed.
                    return Err(self.refusal().unwrap_or(ClientError::Stopped));
                }
            }
        });
        waited.await.unwrap_or_else(|_| {
            let why = match &self.status.borrow().phase {
                Phase::Waiting { reason, .. } => reason.clone(),
                _ => format!("no answer within {} s", within.as_secs()),
            };
            Err(ClientError::Unreachable { addresses: self.identity.addresses.join(", "), why })
        })
    }

    /// The relay's refusal, if it stands.
    fn refusal(&self) -> Option<ClientError> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).map(ClientError::Closed)
    }

    /// A new name for a request.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        RequestId(self.env.random.bytes())
    }

    /// Sends an LLM request; answers come from the returned stream.
    pub async fn escalate(&self, request: EscalationRequest, within: Duration) -> Result<Escalation, ClientError> {
        let tunnel = self.tunnel(within).await?;
        Escalation::begin(tunnel, request).await
    }

    /// The tenant's balance.
    pub async fn balance(&self, within: Duration) -> Result<Balance, ClientError> {
        self.tunnel(within).await?.call(StreamKind::Billing, &BalanceRequest { reserved: 0 }).await
    }

    /// Asks the relay to revoke this device.
    pub async fn leave(&self, reason: &str, within: Duration) -> Result<LeaveAnswer, ClientError> {
        self.tunnel(within).await?.call(StreamKind::Enrol, &LeaveRequest { reason: reason.into() }).await
    }

    /// Closes the tunnel and ends the client's task.
    pub async fn close(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // It can only fail by a panic, which has been reported where it happened.
            let _ = task.await;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The task that keeps the tunnel.
struct Keeper {
    env: Env,
    dialer: Dialer,
    addresses: Vec<String>,
    /// Where the last tunnel was.
    last_good: Option<SocketAddr>,
    instance: InstanceId,
    status: watch::Sender<TunnelStatus>,
    current: Current,
    refused: Arc<Mutex<Option<CloseCode>>>,
    stop: CancellationToken,
    generation: u64,
    backoff: Duration,
    /// Bytes of the tunnels before the current one.
    sent_before: u64,
    received_before: u64,
}

/// What comes after a state.
enum Next {
    Connect,
    Up(Arc<Tunnel>, Box<Control>),
    Wait(String),
    Refused(CloseCode),
    Stop,
}

impl Keeper {
    async fn run(mut self) {
        let mut next = Next::Connect;
        loop {
            next = match next {
                Next::Connect => self.connecting().await,
                Next::Up(tunnel, control) => self.up(tunnel, *control).await,
                Next::Wait(reason) => self.waiting(reason).await,
                Next::Refused(code) => {
                    self.refuse(Some(code));
                    return self.enter(Phase::Refused { code: code.name().into() });
                }
                Next::Stop => return self.enter(Phase::Closed),
            };
        }
    }

    async fn connecting(&mut self) -> Next {
        self.enter(Phase::Connecting);
        self.generation += 1;
        let opened = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Next::Stop,
            opened = Tunnel::open(&self.dialer, &self.addresses, self.last_good, self.instance, self.generation) => opened,
        };
        match opened {
            Ok((tunnel, control)) => Next::Up(Arc::new(tunnel), Box::new(control)),
            Err(error) => self.after(error),
        }
    }

    async fn up(&mut self, tunnel: Arc<Tunnel>, control: Control) -> Next {
        let first = self.generation == 1 && self.status.borrow().remote.is_none();
        self.status.send_modify(|status| {
            status.phase = Phase::Up;
            status.since_ms = self.env.clock.now_ms();
            status.reconnects += u64::from(!first && status.remote.is_some());
            status.remote = Some(tunnel.connection().remote_address());
            status.relay = Some(tunnel.hello().relay_name.clone());
        });
        self.last_good = Some(tunnel.connection().remote_address());
        self.refuse(None);
        self.current.send_replace(Some(Arc::clone(&tunnel)));
        info!(relay = %tunnel.hello().relay_name, remote = %tunnel.connection().remote_address(), "tunnel up");
        let (status, backoff) = (&self.status, &mut self.backoff);
        let (sent, received) = (self.sent_before, self.received_before);
        let beats = control.run(|beat| {
            let Beat::Answered { round_trip, relay_round_trip } = beat;
            *backoff = FIRST_BACKOFF;
            let stats = tunnel.connection().stats();
            status.send_modify(|status| {
                status.round_trip_us = u64::try_from(round_trip.as_micros()).ok();
                status.relay_round_trip_us = u64::try_from(relay_round_trip.as_micros()).ok();
                status.bytes_sent = sent + stats.udp_tx.bytes;
                status.bytes_received = received + stats.udp_rx.bytes;
            });
        });
        let ended = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            why = beats => Some(why),
            error = tunnel.connection().closed() => Some(error.to_string()),
        };
        self.current.send_replace(None);
        let stats = tunnel.connection().stats();
        self.sent_before += stats.udp_tx.bytes;
        self.received_before += stats.udp_rx.bytes;
        let Some(why) = ended else {
            tunnel.close().await;
            return Next::Stop;
        };
        info!(%why, "tunnel down");
        let error = tunnel.lost(why);
        // Whoever still waits on it learns that it is over; a reason that the relay gave stands.
        if tunnel.connection().close_reason().is_none() {
            belay_transport::quic::close(tunnel.connection(), CloseCode::DEAD, "lost");
        }
        self.after(error)
    }

    /// What callers are told instead of waiting for a tunnel, until there is one.
    fn refuse(&self, code: Option<CloseCode>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = code;
    }

    /// Whether another attempt makes sense.
    fn after(&mut self, error: ClientError) -> Next {
        debug!(%error, "an attempt ended");
        match error {
            ClientError::Closed(
                code @ (CloseCode::REVOKED | CloseCode::UNKNOWN_DEVICE | CloseCode::VERSION | CloseCode::EXPIRED),
            ) => Next::Refused(code),
            // Only the operator can change these, so there is no hurry.
            ClientError::Closed(code @ (CloseCode::SUSPENDED | CloseCode::TOO_MANY_INSTANCES)) => {
                self.backoff = LONGEST_BACKOFF;
                self.refuse(Some(code));
                Next::Wait(error.to_string())
            }
            error => Next::Wait(error.to_string()),
        }
    }

    async fn waiting(&mut self, reason: String) -> Next {
        let wait = self.env.random.part_of(self.backoff);
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        self.enter(Phase::Waiting { reason, for_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) });
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Next::Stop,
            () = sleep(wait) => Next::Connect,
        }
    }

    fn enter(&self, phase: Phase) {
        self.status.send_modify(|status| {
            status.phase = phase;
            status.since_ms = self.env.clock.now_ms();
        });
    }
}
