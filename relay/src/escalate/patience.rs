//! How long a request and its provider's silence may last.

use super::finish::Ending;
use belay_protocol::message::Outcome;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// How often a paused request looks whether there is room again: other requests make room in the
/// budget for all, and wake nobody.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the provider may be silent: first for its first event, then between two; and how long
/// the request may take in all.
pub(super) struct Patience<'a> {
    pub(super) between_events: Duration,
    pub(super) deadline: Instant,
    /// Fires at `until` or before: it is not moved at every event.
    pub(super) timer: Pin<&'a mut Sleep>,
    pub(super) until: Instant,
    /// The provider is not read, since the reader is too far behind: its silence is not its own.
    pub(super) paused: bool,
}

impl Patience<'_> {
    /// Ready when it has run out.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= self.deadline {
                return Poll::Ready(Ending::PastDeadline);
            }
            if !self.paused && now >= self.until {
                return Poll::Ready(Ending::After(Outcome::TIMED_OUT, "the provider fell silent".into()));
            }
            let next = if self.paused { now + PAUSE } else { self.until };
            self.timer.as_mut().reset(next.min(self.deadline));
        }
        Poll::Pending
    }

    pub(super) fn heard(&mut self, now: Instant, first: bool) {
        self.until = now + self.between_events;
        if first {
            // This may be sooner than the time for the first event was. Whoever polled the timer is
            // still woken by it.
            self.timer.as_mut().reset(self.until.min(self.deadline));
        }
    }

    pub(super) fn pause(&mut self, paused: bool) {
        if self.paused == paused {
            return;
        }
        self.paused = paused;
        let now = Instant::now();
        if paused {
            self.timer.as_mut().reset(self.deadline.min(now + PAUSE));
        } else {
            self.until = now + self.between_events;
        }
    }
}
