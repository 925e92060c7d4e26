//! When TCP is used, and how the client comes back to QUIC.
//!
//! QUIC is tried first, always. TCP begins beside it when QUIC has not answered for a while, and the
//! first to answer carries the tunnel. While that is TCP, QUIC is tried again and again; once it
//! answers it carries what is new, and what runs over TCP goes on there to its end.

use crate::control::{Control, Event};
use crate::dial::Way;
use crate::tunnel::Tunnel;
use crate::tunnels::Tunnels;
use belay_transport::connection::{Connection, Path, Traffic};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// QUIC is given so long before TCP is tried beside it: two lost first packets, or a round trip of
/// half a second and all its waits.
pub(crate) const TCP_AFTER: Duration = Duration::from_millis(1500);
/// The same where there is a reason to think that UDP does not get through: the last tunnel was over
/// TCP, or has fallen silent.
const TCP_SOON: Duration = Duration::from_millis(400);
/// QUIC is tried again after this, then after twice as long, up to the second.
const FIRST_PROBE: Duration = Duration::from_secs(5);
const LONGEST_PROBE: Duration = Duration::from_secs(30);
/// A return to QUIC that lasted no longer than this was none: the next one is tried later.
const SOUND: Duration = Duration::from_secs(60);
/// How much later at most.
const LONGEST_DISTRUST: Duration = Duration::from_secs(600);

/// So many tunnels over QUIC, one after the other, that fell silent soon: TCP is tried before it.
const TOO_SHORT: u32 = 2;

/// What is known of the two transports.
#[derive(Debug)]
pub(crate) struct Fallback {
    /// What carries the tunnel, or carried the last one, and since when.
    path: Path,
    since: Instant,
    /// When the client last came back to QUIC.
    returned: Option<Instant>,
    /// Returns that did not last, one after the other.
    failed_returns: u32,
    /// Tunnels over QUIC that fell silent soon, one after the other.
    short: u32,
    /// The tunnel that is up, or was last, has fallen silent.
    is_silent: bool,
    /// The pause before the next attempt over QUIC, and when that is.
    pause: Duration,
    probe_at: Instant,
}

impl Fallback {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            path: Path::Quic,
            since: now,
            returned: None,
            failed_returns: 0,
            short: 0,
            is_silent: false,
            pause: FIRST_PROBE,
            probe_at: now,
        }
    }

    /// How the relay is dialled while no tunnel is up.
    pub(crate) fn way(&self) -> Way {
        self.either(if self.path == Path::Quic { TCP_AFTER } else { TCP_SOON })
    }

    /// How it is dialled beside a tunnel that has fallen silent.
    pub(crate) fn way_beside(&self) -> Way {
        self.either(TCP_SOON)
    }

    fn either(&self, tcp_after: Duration) -> Way {
        if self.short >= TOO_SHORT {
            Way::Either { quic_after: TCP_AFTER, tcp_after: Duration::ZERO }
        } else {
            Way::Either { quic_after: Duration::ZERO, tcp_after }
        }
    }

    /// The tunnel has fallen silent.
    pub(crate) fn fell_silent(&mut self) {
        // Once for each tunnel: it may come back, and be suspected again.
        let is_first = !std::mem::replace(&mut self.is_silent, true);
        if self.path == Path::Quic && (is_first || self.since.elapsed() >= SOUND) {
            self.short = if self.since.elapsed() < SOUND { self.short + 1 } else { 1 };
        }
    }

    /// A tunnel is up. `came_back`: over QUIC, beside one over TCP.
    pub(crate) fn up(&mut self, path: Path, came_back: bool) {
        let now = Instant::now();
        self.is_silent = false;
        match path {
            Path::Quic if came_back => self.returned = Some(now),
            // One QUIC tunnel after another: whether the return lasts is still open.
            Path::Quic => {}
            Path::Tcp => {
                let lasted = self.returned.take().map(|since| now.duration_since(since));
                self.failed_returns = match lasted {
                    Some(lasted) if lasted < SOUND => self.failed_returns + 1,
                    // It let the handshake through, and little more.
                    _ if self.path == Path::Quic && self.short >= TOO_SHORT => self.failed_returns + 1,
                    // Between two tunnels over TCP nothing was learnt.
                    None if self.path == Path::Tcp => self.failed_returns,
                    _ => 0,
                };
                self.short = 0;
                let distrust = FIRST_PROBE * 4_u32.saturating_pow(self.failed_returns.min(8));
                self.pause = distrust.min(LONGEST_DISTRUST);
                self.probe_at = now + self.pause;
            }
        }
        (self.path, self.since) = (path, now);
    }

    /// When QUIC is tried again; `None` while it carries the tunnel.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        (self.path == Path::Tcp).then_some(self.probe_at)
    }

    /// QUIC did not answer again.
    pub(crate) fn still_blocked(&mut self) {
        self.pause = (self.pause * 2).min(LONGEST_PROBE.max(self.pause));
        self.probe_at = Instant::now() + self.pause;
    }

    /// Why it is not QUIC, for people.
    pub(crate) fn why(&self) -> Option<String> {
        (self.path == Path::Tcp).then(|| {
            let seconds = self.pause.as_secs();
            match self.failed_returns {
                0 => format!("nothing came back over UDP; QUIC is tried again every {seconds} s"),
                _ => format!("UDP did not stay open for long; QUIC is tried again in {seconds} s"),
            }
        })
    }
}

/// What became of a tunnel that was retired.
pub(crate) enum Retired {
    /// It is closed; what it has carried meanwhile.
    Over(Traffic),
    /// It is wanted again, and lives.
    Back(Arc<Tunnel>, Box<Control>),
}

/// Lets what runs over `tunnel` go on to its end, and closes it then; at once, if its path dies: what
/// runs there goes on over the next one. `wanted` takes it back before.
pub(crate) async fn retire(
    tunnel: Arc<Tunnel>,
    mut control: Box<Control>,
    wanted: CancellationToken,
    tunnels: Arc<Tunnels>,
) -> Retired {
    let Connection::Tcp(connection) = tunnel.connection().clone() else { return Retired::Over(Traffic::default()) };
    let before = tunnel.connection().traffic();
    tunnel.set_retired(true);
    loop {
        tokio::select! {
            biased;
            () = tunnels.stop.cancelled() => {
                tunnels.last_cancels().await;
                break;
            }
            // All but the control stream.
            () = connection.streams_end(1) => break,
            () = wanted.cancelled() => {
                tunnel.set_retired(false);
                return Retired::Back(tunnel, control);
            }
            event = control.event() => match event {
                Event::Suspect(why) => {
                    info!(why, "the path over TCP may be dead: its streams move to QUIC");
                    break;
                }
                Event::Ended(why) => {
                    debug!(why, "the tunnel over TCP has ended");
                    break;
                }
                _ => {}
            }
        }
    }
    tunnel.close().await;
    Retired::Over(tunnel.connection().traffic().since(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn quic_is_tried_again_within_a_minute_and_later_if_it_does_not_last() {
        let mut fallback = Fallback::new();
        assert_eq!(fallback.way(), Way::Either { quic_after: Duration::ZERO, tcp_after: TCP_AFTER });
        fallback.up(Path::Tcp, false);
        assert_eq!(fallback.way(), Way::Either { quic_after: Duration::ZERO, tcp_after: TCP_SOON });
        for _ in 0..10 {
            assert!(fallback.probe_at().expect("over TCP") <= Instant::now() + LONGEST_PROBE);
            fallback.still_blocked();
        }
        let mut last = Duration::ZERO;
        for _ in 0..4 {
            fallback.up(Path::Quic, true);
            assert_eq!(fallback.probe_at(), None);
            tokio::time::advance(Duration::from_secs(10)).await;
            fallback.up(Path::Tcp, false);
            assert!(fallback.pause > last, "{:?}", fallback.pause);
            last = fallback.pause;
        }
        fallback.up(Path::Quic, true);
        tokio::time::advance(SOUND).await;
        fallback.up(Path::Tcp, false);
        assert_eq!(fallback.pause, FIRST_PROBE);
    }

    #[tokio::test(start_paused = true)]
    async fn quic_that_falls_silent_soon_again_and_again_comes_after_tcp() {
        let mut fallback = Fallback::new();
        let tcp_first = Way::Either { quic_after: TCP_AFTER, tcp_after: Duration::ZERO };
        for _ in 0..TOO_SHORT {
            assert_ne!(fallback.way_beside(), tcp_first);
            fallback.up(Path::Quic, false);
            tokio::time::advance(Duration::from_secs(10)).await;
            fallback.fell_silent();
        }
        assert_eq!((fallback.way(), fallback.way_beside()), (tcp_first, tcp_first));
        fallback.up(Path::Tcp, false);
        assert_eq!(fallback.pause, FIRST_PROBE * 4, "and it is not tried again at once");
        assert_ne!(fallback.way(), tcp_first);
        // One that lasted is no reason.
        fallback.up(Path::Quic, true);
        for _ in 0..5 {
            tokio::time::advance(SOUND).await;
            fallback.fell_silent();
            fallback.up(Path::Quic, false);
        }
        assert_ne!(fallback.way(), tcp_first);
    }
}
