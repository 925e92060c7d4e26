//! The state in which a tunnel is up: it is kept company until it is over, or another takes its place.

use super::{Attempt, Down, FIRST_BACKOFF, Keeper, Next, Opened};
use crate::control::{Control, Event};
use crate::dial::Way;
use crate::error::ClientError;
use crate::fallback::{Retired, retire};
use crate::status::{LOCAL, Phase};
use crate::tunnel::Tunnel;
use belay_protocol::error::CloseCode;
use belay_protocol::vitals::RelayState;
use belay_transport::connection::{Path, Traffic};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info};

/// How long an attempt beside a suspected tunnel may take before it is begun anew: a handshake whose
/// packets were lost for long waits longer and longer before it sends again.
const BESIDE: Duration = Duration::from_secs(3);
/// And the longest pause before the next one: a relay that refuses at once is not hammered.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);

impl Keeper {
    pub(super) async fn up(&mut self, tunnel: Arc<Tunnel>, mut control: Box<Control>, came_back: bool) -> Next {
        let (remote, path) = (tunnel.connection().remote_address(), tunnel.connection().path());
        let is_local = tunnel.connection().is_local();
        if !is_local {
            self.fallback.up(path, came_back);
        }
        self.tunnels.status.send_modify(|status| {
            status.phase = Phase::Up;
            status.path = if is_local { LOCAL } else { path.name() };
            status.path_why = self.fallback.why();
            status.last_failure = None;
            status.since_ms = self.env.clock.now_ms();
            status.reconnects += u64::from(status.remote.is_some());
            status.remote = Some(remote);
            status.relay = Some(tunnel.hello().relay_name.clone());
        });
        if !is_local {
            self.remember(remote);
        }
        self.local_ip = self.env.net.local_ip(remote);
        self.tunnels.refuse(None);
        self.tunnels.set(Some(Arc::clone(&tunnel)));
        info!(relay = %tunnel.hello().relay_name, %remote, %path, "tunnel up");
        let down = self.watch_over(&tunnel, &mut control).await;
        self.count_bytes(tunnel.connection().traffic());
        match down {
            Down::Closed => {
                // Over this very tunnel.
                self.tunnels.last_cancels().await;
                self.tunnels.set(None);
                tunnel.close().await;
                Next::Stop
            }
            Down::Replaced(second, control) => {
                info!("a second tunnel takes the place of one that was silent");
                // Its requests go on over the second one. Until that is in place, they wait.
                self.tunnels.set(None);
                tunnel.connection().close(CloseCode::DEAD, "replaced");
                Next::Up(second, control, false)
            }
            Down::BackOnQuic(second, its_control) => {
                info!("QUIC gets through again; what runs over TCP goes on there");
                self.retired.spawn(retire(tunnel, control, self.take_back.clone(), Arc::clone(&self.tunnels)));
                Next::Up(second, its_control, true)
            }
            Down::Lost(why, go_away) => {
                self.tunnels.set(None);
                info!(%why, "tunnel down");
                let error = tunnel.lost(why);
                // Whoever still waits on it learns that it is over; a reason that the relay gave stands.
                if tunnel.connection().ended().is_none() {
                    tunnel.connection().close(CloseCode::DEAD, "lost");
                }
                self.after(error, go_away)
            }
        }
    }

    /// Keeps a tunnel company until it is over.
    async fn watch_over(&mut self, tunnel: &Tunnel, control: &mut Control) -> Down {
        let mut beside: Option<Attempt> = None;
        let mut over_quic: Option<Attempt> = None;
        let mut go_away = None;
        loop {
            let network = Arc::clone(&self.network);
            let event = tokio::select! {
                biased;
                () = self.tunnels.stop.cancelled() => return Down::Closed,
                event = control.event() => event,
                ended = tunnel.connection().closed() => return Down::Lost(ended.why, go_away),
                () = network.notified() => {
                    self.another_way(tunnel, &mut beside);
                    continue;
                }
                opened = until(&mut over_quic) => {
                    over_quic = None;
                    match opened {
                        Ok((second, control)) => return Down::BackOnQuic(second, control),
                        Err(error) => debug!(%error, "QUIC does not get through yet"),
                    }
                    self.fallback.still_blocked();
                    self.tunnels.status.send_modify(|status| status.path_why = self.fallback.why());
                    continue;
                }
                () = sleep_until_some(self.fallback.probe_at()),
                    if over_quic.is_none() && go_away.is_none() && !tunnel.connection().is_local() => {
                    over_quic = Some(self.attempt(Way::Quic, true, false));
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
                Event::Answered { round_trip, relay_round_trip, state, renew_since_ms } => {
                    if let Some(since_ms) = renew_since_ms {
                        self.tunnels.asked_to_renew(since_ms);
                    }
                    self.answered(tunnel, round_trip, relay_round_trip, state);
                }
                Event::Suspect(why) => {
                    tunnel.set_silent(true);
                    if tunnel.connection().is_local() {
                        // It hangs: until it is heard of again, the relay is dialled.
                        self.goes_through = false;
                    } else {
                        self.fallback.fell_silent();
                    }
                    if let Some((tunnel, control)) = self.take_back(tunnel.connection().path()).await {
                        info!(why, "QUIC may be dead; back on the tunnel over TCP that lives");
                        return Down::Replaced(tunnel, control);
                    }
                    info!(why, "the path may be dead; dialling beside it");
                    beside.get_or_insert_with(|| self.beside(Duration::ZERO));
                }
                Event::Alive => {
                    self.goes_through |= tunnel.connection().is_local();
                    // One that the relay may have taken in already is in place of this one.
                    beside = beside.take().filter(Attempt::is_committed);
                    tunnel.set_silent(false);
                }
                Event::LookAtNetwork => {
                    let local_ip = self.env.net.local_ip(tunnel.connection().remote_address());
                    // Without a way to the relay there is nothing to move to.
                    if local_ip.is_some() && local_ip != self.local_ip {
                        self.another_way(tunnel, &mut beside);
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
        let attempt = self.attempt(self.fallback.way_beside(), false, false);
        let pause = self.env.random.part_of(at_most_after);
        let Attempt { opening, committed } = attempt;
        let opening = Box::pin(async move {
            sleep(pause).await;
            timeout(BESIDE, opening).await.unwrap_or_else(|_| Err(ClientError::Lost("no answer yet".into())))
        });
        Attempt { opening, committed }
    }

    /// A tunnel over TCP that was left for `path`, and lives.
    async fn take_back(&mut self, path: Path) -> Option<(Arc<Tunnel>, Box<Control>)> {
        if path != Path::Quic {
            return None;
        }
        std::mem::take(&mut self.take_back).cancel();
        let mut back = None;
        while let Some(retired) = self.retired.join_next().await {
            match retired {
                Ok(Retired::Back(tunnel, control)) if back.is_none() => back = Some((tunnel, control)),
                // One is enough: what runs over another goes on there.
                Ok(Retired::Back(tunnel, control)) => {
                    let tunnels = Arc::clone(&self.tunnels);
                    self.retired.spawn(retire(tunnel, control, self.take_back.clone(), tunnels));
                    break;
                }
                Ok(Retired::Over(traffic)) => self.count_bytes(traffic),
                Err(error) => debug!(%error, "a task that kept a retired tunnel company has failed"),
            }
        }
        back
    }

    fn answered(
        &mut self,
        tunnel: &Tunnel,
        round_trip: Duration,
        relay_round_trip: Duration,
        state: Option<RelayState>,
    ) {
        self.backoff = FIRST_BACKOFF;
        while let Some(Ok(retired)) = self.retired.try_join_next() {
            if let Retired::Over(traffic) = retired {
                self.count_bytes(traffic);
            }
        }
        let traffic = tunnel.connection().traffic();
        let (sent, received) = (self.sent_before, self.received_before);
        self.tunnels.status.send_modify(|status| {
            status.round_trip_us = u64::try_from(round_trip.as_micros()).ok();
            status.relay_round_trip_us = u64::try_from(relay_round_trip.as_micros()).ok();
            status.relay_state = state;
            status.bytes_sent = sent + traffic.bytes_sent;
            status.bytes_received = received + traffic.bytes_received;
        });
    }

    fn count_bytes(&mut self, traffic: Traffic) {
        self.sent_before += traffic.bytes_sent;
        self.received_before += traffic.bytes_received;
    }

    /// The machine is on another network: a tunnel over QUIC moves there, one over TCP cannot.
    fn another_way(&mut self, tunnel: &Tunnel, beside: &mut Option<Attempt>) {
        let remote = tunnel.connection().remote_address();
        self.local_ip = self.env.net.local_ip(remote);
        match tunnel.rebind(&self.env) {
            Ok(()) => info!("another network: the tunnel moves to a new socket"),
            Err(error) => {
                debug!(%error, "cannot move to a new socket; dialling beside it");
                beside.get_or_insert_with(|| self.beside(Duration::ZERO));
            }
        }
    }

    fn remember(&mut self, remote: SocketAddr) {
        if self.target.last_good == Some(remote) {
            return;
        }
        self.target.last_good = Some(remote);
        if let Some(state) = &self.state
            && let Err(error) = state.remember_good(remote)
        {
            debug!(%error, "cannot remember the relay's address");
        }
    }
}

/// Waits until then; for ever, if there is no such time.
async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// An attempt's end; never, if there is none.
async fn until(attempt: &mut Option<Attempt>) -> Opened {
    match attempt {
        Some(attempt) => attempt.opening.as_mut().await,
        None => std::future::pending().await,
    }
}
