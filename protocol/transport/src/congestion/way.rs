//! What is known of a path beside what oneself sends.

use std::time::{Duration, Instant};

/// So often the round trip is looked at that the way takes by itself.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What a way may lose by itself as long as nothing is known.
const LOSS_AT_FIRST: f64 = 0.4;

/// What the way takes by itself.
#[derive(Debug, Clone)]
pub(super) struct Way {
    looked: Instant,
    pub(super) trip: Option<Duration>,
    /// The least round trip since then.
    pub(super) least: Option<Duration>,
    /// The part that is lost.
    pub(super) loss: f64,
    /// How much the least ones of two rounds differ, on average.
    pub(super) noise: Duration,
    last_round: Option<Duration>,
}

impl Way {
    pub(super) fn new(now: Instant) -> Self {
        Self { looked: now, trip: None, least: None, loss: LOSS_AT_FIRST, noise: Duration::ZERO, last_round: None }
    }

    /// Takes a round trip in. True if it is time to look again.
    pub(super) fn take(&mut self, now: Instant, trip: Duration, doubling: bool) -> bool {
        self.least = Some(self.least.map_or(trip, |least| least.min(trip)));
        if doubling || self.trip.is_none() {
            self.trip = self.least;
        }
        now.saturating_duration_since(self.looked) > LOOK_EVERY
    }

    /// It has been looked at: `trip` is what it takes.
    pub(super) fn looked(&mut self, now: Instant, trip: Option<Duration>) {
        (self.looked, self.trip, self.least) = (now, trip.or(self.trip), None);
    }

    pub(super) fn lost(&mut self, part: f64) {
        self.loss = (self.loss + part) / 2.0;
    }

    pub(super) fn round_ends(&mut self, least: Option<Duration>) {
        let (Some(before), Some(now)) = (std::mem::replace(&mut self.last_round, least), least) else { return };
        self.noise = (self.noise * 7 + before.abs_diff(now)) / 8;
    }
}
