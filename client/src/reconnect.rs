//! Keeps one tunnel alive: a state machine with one function per state, and its state as a watch.
//!
//! connecting → up → waiting → connecting …, until the client is closed or the relay refuses for
//! good. While up, a path that is suspected to be dead gets a second tunnel dialled beside it: the
//! first sign of life ends the attempt, the second tunnel's hello ends the first. A tunnel over TCP is
//! followed by one over QUIC as soon as that gets through (`fallback`). The wait is random up to a
//! bound that doubles from 50 ms to 30 s and falls back only when a heartbeat has been answered: a
//! relay that accepts and dies at once is not hammered.

mod up;

use crate::control::Control;
use crate::dial::{Dialer, Way};
use crate::error::ClientError;
use crate::fallback::{Fallback, Retired};
use crate::state::StateDir;
use crate::status::Phase;
use crate::tunnel::{Target, Tunnel, hello};
use crate::tunnels::Tunnels;
use belay_protocol::error::CloseCode;
use belay_protocol::id::InstanceId;
use belay_protocol::message::GoAway;
use belay_transport::env::Env;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// No wait is longer than this while requests wait for the tunnel.
const LONGEST_WHILE_WAITED_FOR: Duration = Duration::from_secs(5);
/// While no tunnel is up, another network ends the wait; it is looked for so often.
const LOOK_AT_NETWORK: Duration = Duration::from_secs(1);

/// The task that keeps the tunnel.
pub(crate) struct Keeper {
    env: Env,
    dialer: Dialer,
    target: Target,
    fallback: Fallback,
    /// A client that runs on this computer is asked first; not while it hangs.
    goes_through: bool,
    /// Tunnels over TCP on which something still runs.
    retired: JoinSet<Retired>,
    /// Takes them back.
    take_back: CancellationToken,
    /// Where that is remembered.
    state: Option<StateDir>,
    instance: InstanceId,
    tunnels: Arc<Tunnels>,
    /// Somebody says that the network is another one.
    network: Arc<Notify>,
    /// The machine's own address when it was last looked at.
    local_ip: Option<IpAddr>,
    generation: u64,
    backoff: Duration,
    /// Bytes of the tunnels before the current one.
    sent_before: u64,
    received_before: u64,
}

/// What comes after a state.
enum Next {
    Connect,
    /// With whether it has come back to QUIC beside a tunnel over TCP.
    Up(Arc<Tunnel>, Box<Control>, bool),
    Wait(String, Duration),
    Refused(CloseCode),
    Stop,
}

type Opened = Result<(Arc<Tunnel>, Box<Control>), ClientError>;

/// A tunnel that is being brought up.
struct Attempt {
    opening: Pin<Box<dyn Future<Output = Opened> + Send>>,
    /// The relay may have taken it in already, and closed the one before it: then it must be waited for.
    committed: Arc<AtomicBool>,
}

impl Attempt {
    fn is_committed(&self) -> bool {
        self.committed.load(Ordering::Acquire)
    }
}

/// How a tunnel that was up came to its end.
enum Down {
    Closed,
    /// Why, and how long the relay asked to wait.
    Lost(String, Option<GoAway>),
    /// A second tunnel has taken its place.
    Replaced(Arc<Tunnel>, Box<Control>),
    /// QUIC gets through again.
    BackOnQuic(Arc<Tunnel>, Box<Control>),
}

impl Keeper {
    pub(crate) fn new(
        env: Env,
        dialer: Dialer,
        addresses: Vec<String>,
        state: Option<StateDir>,
        tunnels: Arc<Tunnels>,
        network: Arc<Notify>,
    ) -> Self {
        Self {
            instance: InstanceId(env.random.bytes()),
            target: Target { addresses, last_good: state.as_ref().and_then(StateDir::last_good), goes_through: false },
            state,
            fallback: Fallback::new(),
            goes_through: true,
            retired: JoinSet::new(),
            take_back: CancellationToken::new(),
            env,
            dialer,
            tunnels,
            network,
            local_ip: None,
            generation: 0,
            backoff: FIRST_BACKOFF,
            sent_before: 0,
            received_before: 0,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut next = Next::Connect;
        loop {
            next = match next {
                Next::Connect => self.connecting().await,
                Next::Up(tunnel, control, came_back) => self.up(tunnel, control, came_back).await,
                Next::Wait(reason, wait) => self.waiting(reason, wait).await,
                Next::Refused(code) => {
                    self.tunnels.refuse(Some(code));
                    return self.enter(Phase::Refused { code: code.name().into() });
                }
                Next::Stop => {
                    while self.retired.join_next().await.is_some() {}
                    return self.enter(Phase::Closed);
                }
            };
        }
    }

    async fn connecting(&mut self) -> Next {
        self.enter(Phase::Connecting);
        let attempt = self.attempt(self.fallback.way(), false, self.goes_through);
        let opened = tokio::select! {
            biased;
            () = self.tunnels.stop.cancelled() => return Next::Stop,
            opened = attempt.opening => opened,
        };
        match opened {
            Ok((tunnel, control)) => Next::Up(tunnel, control, false),
            Err(error) => self.after(error, None),
        }
    }

    /// An attempt to bring a tunnel up, with the next generation. `beside`: what runs over TCP goes on
    /// there. `goes_through`: a client that runs on this computer is asked first.
    fn attempt(&mut self, way: Way, beside: bool, goes_through: bool) -> Attempt {
        // Two of them: one for each transport.
        self.generation += 2;
        let (dialer, target) = (self.dialer.clone(), Target { goes_through, ..self.target.clone() });
        let hello = hello(self.instance, self.generation, beside);
        let (tunnels, clock) = (Arc::clone(&self.tunnels), Arc::clone(&self.env.clock));
        let committed = Arc::new(AtomicBool::new(false));
        let is_committed = Arc::clone(&committed);
        let opening = Box::pin(async move {
            if let Some(renewal) = &dialer.renewal {
                renewal.look(&dialer)?;
            }
            let (tunnel, streams) = Tunnel::open(&dialer, &target, way, hello, &is_committed).await?;
            // Nothing else works before.
            if let Some(renewal) =
                dialer.renewal.as_ref().filter(|renewal| renewal.has_ended(tunnel.hello().relay_time_ms))
            {
                renewal.renew(&dialer, &tunnel).await?;
            }
            let control = Control::new(streams, &tunnel, tunnels, clock);
            Ok((Arc::new(tunnel), Box::new(control)))
        });
        Attempt { opening, committed }
    }

    /// Whether another attempt makes sense, and when.
    fn after(&mut self, error: ClientError, go_away: Option<GoAway>) -> Next {
        debug!(%error, "an attempt ended");
        match error {
            ClientError::Closed(code) if ClientError::is_final(code) => return Next::Refused(code),
            // Only the operator can change these, so there is no hurry.
            ClientError::Closed(code @ (CloseCode::SUSPENDED | CloseCode::TOO_MANY_INSTANCES)) => {
                self.tunnels.refuse(Some(code));
                return Next::Wait(error.to_string(), self.env.random.part_of(LONGEST_BACKOFF));
            }
            _ => {}
        }
        if let Some(go_away) = go_away {
            let spread = self.env.random.part_of(Duration::from_millis(go_away.spread_ms.into()));
            let wait = Duration::from_millis(go_away.reconnect_after_ms.into()) + spread;
            return Next::Wait(error.to_string(), wait.min(LONGEST_BACKOFF));
        }
        let longest = if self.tunnels.is_waited_for() { LONGEST_WHILE_WAITED_FOR } else { LONGEST_BACKOFF };
        let wait = self.env.random.part_of(self.backoff.min(longest));
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        Next::Wait(error.to_string(), wait)
    }

    async fn waiting(&mut self, reason: String, wait: Duration) -> Next {
        self.tunnels.status.send_modify(|status| status.last_failure = Some(reason.clone()));
        self.enter(Phase::Waiting { reason, for_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) });
        self.local_ip = self.local_ip.or_else(|| self.env.net.local_ip(self.target.last_good?));
        tokio::select! {
            biased;
            () = self.tunnels.stop.cancelled() => Next::Stop,
            () = self.network.notified() => Next::Connect,
            local_ip = self.another_network() => {
                self.local_ip = Some(local_ip);
                Next::Connect
            }
            () = sleep(wait) => Next::Connect,
            () = self.waited_for(), if wait > LONGEST_WHILE_WAITED_FOR => Next::Connect,
        }
    }

    /// Ready a while after somebody begins to wait for an answer.
    async fn waited_for(&self) {
        self.tunnels.waited_for().await;
        sleep(self.env.random.part_of(LONGEST_WHILE_WAITED_FOR)).await;
    }

    /// Waits until the machine has another address on the way to where the relay last was, or one again.
    async fn another_network(&self) -> IpAddr {
        let Some(remote) = self.target.last_good else { return std::future::pending().await };
        let mut had_none = self.env.net.local_ip(remote).is_none();
        loop {
            sleep(LOOK_AT_NETWORK).await;
            let local_ip = self.env.net.local_ip(remote);
            match local_ip {
                Some(local_ip) if had_none || Some(local_ip) != self.local_ip => return local_ip,
                Some(_) => {}
                None => had_none = true,
            }
        }
    }

    fn enter(&self, phase: Phase) {
        self.tunnels.status.send_modify(|status| {
            status.phase = phase;
            status.since_ms = self.env.clock.now_ms();
        });
    }
}
