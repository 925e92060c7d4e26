//! Keeps one tunnel alive: a state machine with one function per state, and its state as a watch.
//!
//! connecting → up → waiting → connecting …, until the client is closed or the relay refuses for
//! good. While up, a path that is suspected to be dead gets a second tunnel dialled beside it: the
//! first sign of life ends the attempt, the second tunnel's hello ends the first. The wait is random up to a bound that doubles from 50 ms to 30 s and falls back only when
//! a heartbeat has been answered: a relay that accepts and dies at once is not hammered.

use crate::control::{Control, Event};
use crate::dial::Dialer;
use crate::error::ClientError;
use crate::state::StateDir;
use crate::status::Phase;
use crate::tunnel::Tunnel;
use crate::tunnels::Tunnels;
use belay_protocol::error::CloseCode;
use belay_protocol::id::InstanceId;
use belay_protocol::message::GoAway;
use belay_protocol::vitals::RelayState;
use belay_transport::env::Env;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// No wait is longer than this while requests wait for the tunnel.
const LONGEST_WHILE_WAITED_FOR: Duration = Duration::from_secs(5);
/// How long an attempt beside a suspected tunnel may take before it is begun anew: a handshake whose
/// packets were lost for long waits longer and longer before it sends again.
const BESIDE: Duration = Duration::from_secs(3);
/// And the longest pause before the next one: a relay that refuses at once is not hammered.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);
/// While no tunnel is up, another network ends the wait; it is looked for so often.
const LOOK_AT_NETWORK: Duration = Duration::from_secs(1);

/// The task that keeps the tunnel.
pub(crate) struct Keeper {
    env: Env,
    dialer: Dialer,
    addresses: Vec<String>,
    /// Where the last tunnel was.
    last_good: Option<SocketAddr>,
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
    Up(Arc<Tunnel>, Box<Control>),
    Wait(String, Duration),
    Refused(CloseCode),
    Stop,
}

type Opened = Result<(Arc<Tunnel>, Box<Control>), ClientError>;
type Attempt = Pin<Box<dyn Future<Output = Opened> + Send>>;

/// How a tunnel that was up came to its end.
enum Down {
    Closed,
    /// Why, and how long the relay asked to wait.
    Lost(String, Option<GoAway>),
    /// A second tunnel has taken its place.
    Replaced(Arc<Tunnel>, Box<Control>),
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
            last_good: state.as_ref().and_then(StateDir::last_good),
            state,
            addresses,
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
                Next::Up(tunnel, control) => self.up(tunnel, control).await,
                Next::Wait(reason, wait) => self.waiting(reason, wait).await,
                Next::Refused(code) => {
                    self.tunnels.refuse(Some(code));
                    return self.enter(Phase::Refused { code: code.name().into() });
                }
                Next::Stop => return self.enter(Phase::Closed),
            };
        }
    }

    async fn connecting(&mut self) -> Next {
        self.enter(Phase::Connecting);
        let attempt = self.attempt();
        let opened = tokio::select! {
            biased;
            () = self.tunnels.stop.cancelled() => return Next::Stop,
            opened = attempt => opened,
        };
        match opened {
            Ok((tunnel, control)) => Next::Up(tunnel, control),
            Err(error) => self.after(error, None),
        }
    }

    /// An attempt to bring a tunnel up, with the next generation.
    fn attempt(&mut self) -> Attempt {
        self.generation += 1;
        let (dialer, addresses, last_good) = (self.dialer.clone(), self.addresses.clone(), self.last_good);
        let (instance, generation) = (self.instance, self.generation);
        let (tunnels, clock) = (Arc::clone(&self.tunnels), Arc::clone(&self.env.clock));
        Box::pin(async move {
            let (tunnel, streams) = Tunnel::open(&dialer, &addresses, last_good, instance, generation).await?;
            let control = Control::new(streams, &tunnel, tunnels, clock);
            Ok((Arc::new(tunnel), Box::new(control)))
        })
    }

    async fn up(&mut self, tunnel: Arc<Tunnel>, mut control: Box<Control>) -> Next {
        let remote = tunnel.connection().remote_address();
        self.tunnels.status.send_modify(|status| {
            status.phase = Phase::Up;
            status.since_ms = self.env.clock.now_ms();
            status.reconnects += u64::from(status.remote.is_some());
            status.remote = Some(remote);
            status.relay = Some(tunnel.hello().relay_name.clone());
        });
        self.remember(remote);
        self.local_ip = self.env.net.local_ip(remote);
        self.tunnels.refuse(None);
        self.tunnels.set(Some(Arc::clone(&tunnel)));
        info!(relay = %tunnel.hello().relay_name, %remote, "tunnel up");
        let down = self.watch_over(&tunnel, &mut control).await;
        self.count_bytes(&tunnel);
        match down {
            Down::Closed => {
                self.tunnels.set(None);
                tunnel.close().await;
                Next::Stop
            }
            Down::Replaced(second, control) => {
                info!("a second tunnel takes the place of one that was silent");
                // Its requests go on over the second one. Until that is in place, they wait.
                self.tunnels.set(None);
                belay_transport::quic::close(tunnel.connection(), CloseCode::DEAD, "replaced");
                Next::Up(second, control)
            }
            Down::Lost(why, go_away) => {
                self.tunnels.set(None);
                info!(%why, "tunnel down");
                let error = tunnel.lost(why);
                // Whoever still waits on it learns that it is over; a reason that the relay gave stands.
                if tunnel.connection().close_reason().is_none() {
                    belay_transport::quic::close(tunnel.connection(), CloseCode::DEAD, "lost");
                }
                self.after(error, go_away)
            }
        }
    }

    /// Keeps a tunnel company until it is over.
    async fn watch_over(&mut self, tunnel: &Tunnel, control: &mut Control) -> Down {
        let mut beside: Option<Attempt> = None;
        let mut go_away = None;
        loop {
            let network = Arc::clone(&self.network);
            let event = tokio::select! {
                biased;
                () = self.tunnels.stop.cancelled() => return Down::Closed,
                event = control.event() => event,
                error = tunnel.connection().closed() => return Down::Lost(error.to_string(), go_away),
                () = network.notified() => {
                    self.rebind(tunnel);
                    continue;
                }
                opened = until(&mut beside) => {
                    match opened {
                        Ok((second, control)) => return Down::Replaced(second, control),
                        Err(error) => debug!(%error, "an attempt beside a silent tunnel ended"),
                    }
                    beside = control.is_suspected().then(|| self.beside(BETWEEN_ATTEMPTS));
                    continue;
                }
            };
            match event {
                Event::Answered { round_trip, relay_round_trip, state } => {
                    self.answered(tunnel, round_trip, relay_round_trip, state);
                }
                Event::Suspect(why) => {
                    info!(why, "the path may be dead; dialling beside it");
                    tunnel.set_silent(true);
                    beside.get_or_insert_with(|| self.beside(Duration::ZERO));
                }
                Event::Alive => {
                    beside = None;
                    tunnel.set_silent(false);
                }
                Event::LookAtNetwork => {
                    let local_ip = self.env.net.local_ip(tunnel.connection().remote_address());
                    // Without a way to the relay there is nothing to move to.
                    if local_ip.is_some() && local_ip != self.local_ip {
                        self.rebind(tunnel);
                    }
                }
                Event::GoingAway(new) => {
                    info!(reason = %new.reason, "the relay is going away");
                    tunnel.going_away.cancel();
                    go_away = Some(new);
                }
                Event::Ended(why) => return Down::Lost(why, go_away),
            }
        }
    }

    /// An attempt beside a tunnel that is suspected to be dead.
    fn beside(&mut self, at_most_after: Duration) -> Attempt {
        let attempt = self.attempt();
        let pause = self.env.random.part_of(at_most_after);
        Box::pin(async move {
            sleep(pause).await;
            timeout(BESIDE, attempt).await.unwrap_or_else(|_| Err(ClientError::Lost("no answer yet".into())))
        })
    }

    fn answered(
        &mut self,
        tunnel: &Tunnel,
        round_trip: Duration,
        relay_round_trip: Duration,
        state: Option<RelayState>,
    ) {
        self.backoff = FIRST_BACKOFF;
        let stats = tunnel.connection().stats();
        let (sent, received) = (self.sent_before, self.received_before);
        self.tunnels.status.send_modify(|status| {
            status.round_trip_us = u64::try_from(round_trip.as_micros()).ok();
            status.relay_round_trip_us = u64::try_from(relay_round_trip.as_micros()).ok();
            status.relay_state = state;
            status.bytes_sent = sent + stats.udp_tx.bytes;
            status.bytes_received = received + stats.udp_rx.bytes;
        });
    }

    fn count_bytes(&mut self, tunnel: &Tunnel) {
        let stats = tunnel.connection().stats();
        self.sent_before += stats.udp_tx.bytes;
        self.received_before += stats.udp_rx.bytes;
    }

    fn rebind(&mut self, tunnel: &Tunnel) {
        let remote = tunnel.connection().remote_address();
        self.local_ip = self.env.net.local_ip(remote);
        match tunnel.rebind(&self.env) {
            Ok(()) => info!("another network: the tunnel moves to a new socket"),
            Err(error) => debug!(%error, "cannot move to a new socket"),
        }
    }

    fn remember(&mut self, remote: SocketAddr) {
        if self.last_good == Some(remote) {
            return;
        }
        self.last_good = Some(remote);
        if let Some(state) = &self.state
            && let Err(error) = state.remember_good(remote)
        {
            debug!(%error, "cannot remember the relay's address");
        }
    }

    /// Whether another attempt makes sense, and when.
    fn after(&mut self, error: ClientError, go_away: Option<GoAway>) -> Next {
        debug!(%error, "an attempt ended");
        match error {
            ClientError::Closed(
                code @ (CloseCode::REVOKED | CloseCode::UNKNOWN_DEVICE | CloseCode::VERSION | CloseCode::EXPIRED),
            ) => return Next::Refused(code),
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
        let waited_for = *self.tunnels.outstanding().borrow() > 0;
        let longest = if waited_for { LONGEST_WHILE_WAITED_FOR } else { LONGEST_BACKOFF };
        let wait = self.env.random.part_of(self.backoff.min(longest));
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        Next::Wait(error.to_string(), wait)
    }

    async fn waiting(&mut self, reason: String, wait: Duration) -> Next {
        self.enter(Phase::Waiting { reason, for_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) });
        self.local_ip = self.local_ip.or_else(|| self.env.net.local_ip(self.last_good?));
        tokio::select! {
            biased;
            () = self.tunnels.stop.cancelled() => Next::Stop,
            () = self.network.notified() => Next::Connect,
            local_ip = self.another_network() => {
                self.local_ip = Some(local_ip);
                Next::Connect
            }
            () = sleep(wait) => Next::Connect,
        }
    }

    /// Waits until the machine has another address on the way to where the relay last was.
    async fn another_network(&self) -> IpAddr {
        let Some(remote) = self.last_good else { return std::future::pending().await };
        loop {
            sleep(LOOK_AT_NETWORK).await;
            let local_ip = self.env.net.local_ip(remote);
            if let Some(local_ip) = local_ip.filter(|_| local_ip != self.local_ip) {
                return local_ip;
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

/// An attempt's end; never, if there is none.
async fn until(attempt: &mut Option<Attempt>) -> Opened {
    match attempt {
        Some(attempt) => attempt.await,
        None => std::future::pending().await,
    }
}
