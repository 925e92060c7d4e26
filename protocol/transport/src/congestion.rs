//! Congestion control for tokens beside bulk: it fills a line without filling its queue.
//!
//! A line's buffer is as long as its owner made it, and a sender that fills it until something is lost
//! (CUBIC, NewReno) makes every token wait for all of it. On the other hand, loss on a radio link says
//! nothing of congestion, and a sender that slows down at every loss starves. So this one goes by the
//! round trip: it keeps as much in flight as the line holds (the round trip of the way by itself, times
//! what comes out of it) and a millisecond or a few packets more, which tell that there is room when
//! they are not seen to wait. Loss counts only where it is more than the way loses by itself.
//!
//! Beside a sender that does fill the buffer it gets little, as all of its kind do; `FLOOR` is what it
//! always takes, which is plenty for tokens.
//!
//! Measured beside what quinn brings, in `docs/BENCHMARKS.md`.

#[cfg(test)]
mod line;
mod way;

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};
use way::Way;

/// Packets that may always be in flight: more than a peer may leave without an acknowledgement.
const FLOOR: u64 = 12;
/// Packets in flight on a new path.
const FIRST: u64 = 32;
/// A queue below either is none: there is room for more.
const LOW: (u64, Duration) = (2, Duration::from_millis(1));
/// A queue above both is too long.
const HIGH: (u64, Duration) = (3, Duration::from_millis(2));
/// How much longer the queue may become by what is added in a round, and after how many rounds without
/// a queue it may be more.
const STEP: Duration = Duration::from_millis(1);
const GENTLE_ROUNDS: u32 = 5;
/// Round trips of a round that must agree before it is believed, while the window doubles.
const AGREEING: u32 = 8;
/// To look at what the way takes by itself, so many rounds are sent with less, and the last of them
/// shows it, without one's own queue. What it shows may be the queue of others: their doing is not ours to make up for.
const DRAINED_ROUNDS: u8 = 3;
/// Loss is judged over so many packets, and tolerated up to this part of them above what the way loses
/// by itself (reordering looks like loss, too), as it is seen in those rounds.
const LOSS_OVER: u64 = 128;
const LOSS_TOLERATED: f64 = 0.1;
/// Nobody needs more.
const CEILING: u64 = 1 << 28;

/// Makes controllers.
#[derive(Debug, Clone, Copy, Default)]
pub struct LowDelay;

impl ControllerFactory for LowDelay {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(State::new(now, mtu))
    }
}

/// The state of one path.
#[derive(Debug, Clone)]
struct State {
    mtu: u64,
    window: u64,
    /// It doubles with every round, until a queue is seen.
    doubling: bool,
    way: Way,
    round: Round,
    last_sent: u64,
    /// quinn's smoothed round trip, from which the single ones follow.
    smoothed: Option<Duration>,
    /// What it was before anything was measured.
    assumed: Option<Duration>,
    /// When a mark made the window smaller: what was sent before says nothing new.
    marked: Option<Instant>,
    /// The round trip of this acknowledgement is taken in.
    taken: bool,
    /// The window has just been set; what is seen now was sent before.
    settling: bool,
    /// Rounds without a queue, one after the other.
    free_rounds: u32,
    /// What was acknowledged and lost lately, in bytes.
    acknowledged: u64,
    lost: u64,
    /// Rounds that are still sent with less, and with what to go on then.
    drained: Option<(u8, u64)>,
}

/// From the sending of a packet to its acknowledgement.
#[derive(Debug, Clone, Default)]
struct Round {
    /// It ends when a packet after this one is acknowledged.
    end: u64,
    least: Option<Duration>,
    trips: u32,
    /// The window was in the way of what there was to send.
    limited: bool,
    /// The window when the packets were sent that are acknowledged in this round, and in the next.
    window: u64,
    next_window: u64,
}

impl State {
    fn new(now: Instant, mtu: u16) -> Self {
        let mtu = u64::from(mtu);
        Self {
            mtu,
            window: FIRST * mtu,
            doubling: true,
            way: Way::new(now),
            round: Round { window: FIRST * mtu, next_window: FIRST * mtu, ..Round::default() },
            last_sent: 0,
            smoothed: None,
            assumed: None,
            marked: None,
            taken: false,
            settling: false,
            free_rounds: 0,
            acknowledged: 0,
            lost: 0,
            drained: None,
        }
    }

    /// A packet was acknowledged. `smoothed` is the average before this acknowledgement; from two of
    /// them follows the round trip between, without the time that the peer took to acknowledge.
    fn acknowledged(&mut self, now: Instant, smoothed: Duration, bytes: u64, app_limited: bool) {
        self.acknowledged += bytes;
        self.round.limited |= !app_limited;
        if self.doubling && !app_limited {
            self.set(self.window + bytes);
        }
        // All packets of one acknowledgement come with the same average.
        if std::mem::replace(&mut self.taken, true) {
            return;
        }
        // Before anything is measured, the average is what quinn begins with; the first that is measured is a round trip.
        if self.smoothed.is_none() && *self.assumed.get_or_insert(smoothed) == smoothed {
            return;
        }
        let before = self.smoothed.replace(smoothed).unwrap_or(smoothed);
        let trip = (smoothed * 8).saturating_sub(before * 7);
        if trip.is_zero() {
            return;
        }
        if self.way.take(now, trip, self.doubling) && self.drained.is_none() {
            if self.round.limited && !self.doubling {
                self.drained = Some((DRAINED_ROUNDS, self.window));
                (self.acknowledged, self.lost) = (0, 0);
                self.set(self.window / 8 * 5);
            } else {
                // Where little is sent there is no queue of one's own.
                self.way.looked(now, self.way.least);
            }
        }
        self.round.least = Some(self.round.least.map_or(trip, |least| least.min(trip)));
        self.round.trips += 1;
        let agree = self.doubling && self.round.trips >= AGREEING;
        if agree && self.queue().is_some_and(|queue| self.is_long(&queue)) {
            self.leave_queue();
        }
    }

    /// An acknowledgement was taken in as a whole.
    fn acknowledgement_ends(&mut self, now: Instant, largest: Option<u64>) {
        self.taken = false;
        if largest.is_none_or(|largest| largest < self.round.end) {
            return;
        }
        self.round_ends(now);
        self.round = Round { end: self.last_sent + 1, window: self.round.next_window, ..Round::default() };
        self.round.next_window = self.window;
    }

    fn round_ends(&mut self, now: Instant) {
        if let Some((rounds, go_on_with)) = self.drained {
            self.drained = (rounds > 1).then_some((rounds - 1, go_on_with));
            if self.drained.is_none() {
                self.way.looked(now, self.round.least);
                self.way.lost(self.lost as f64 / (self.acknowledged + self.lost).max(1) as f64);
                (self.acknowledged, self.lost) = (0, 0);
                self.set(go_on_with);
                self.settling = true;
            }
            return;
        }
        if !self.round.limited {
            // What was sent without filling the window is soon forgotten: it must not outweigh what comes.
            (self.acknowledged, self.lost) = (self.acknowledged / 2, self.lost / 2);
            return;
        }
        self.way.round_ends(self.round.least);
        if self.loses_much() {
            return;
        }
        if std::mem::take(&mut self.settling) {
            return;
        }
        let Some(queue) = self.queue() else { return };
        if self.is_long(&queue) {
            self.leave_queue();
        } else if self.is_none(&queue) && !self.doubling {
            // What is added now is seen two rounds later: gently at the end of the room, boldly once
            // there is much.
            let gently = (self.window as f64 * STEP.as_secs_f64() / queue.trip.as_secs_f64()) as u64;
            let boldly = (gently << self.free_rounds.saturating_sub(GENTLE_ROUNDS).min(16)).min(self.window / 8);
            self.free_rounds += 1;
            self.set(self.window + boldly.max(self.mtu));
        } else {
            self.free_rounds = 0;
        }
    }

    /// Gives way to loss that is too much to be the line's own.
    fn loses_much(&mut self) -> bool {
        let all = self.acknowledged + self.lost;
        if all < LOSS_OVER * self.mtu {
            return false;
        }
        let part = self.lost as f64 / all as f64;
        (self.acknowledged, self.lost) = (self.acknowledged / 2, self.lost / 2);
        if part <= self.way.loss + LOSS_TOLERATED {
            return false;
        }
        self.doubling = false;
        self.free_rounds = 0;
        self.set((self.window as f64 * (1.0 - part)) as u64);
        (self.acknowledged, self.lost) = (0, 0);
        true
    }

    fn queue(&self) -> Option<Queue> {
        let trip = self.round.least?;
        let time = trip.saturating_sub(self.way.trip?);
        let bytes = (self.round.window as f64 * time.as_secs_f64() / trip.as_secs_f64()) as u64;
        Some(Queue { bytes, time, trip })
    }

    /// A way whose round trips differ by themselves hides a queue as long as that.
    fn is_long(&self, queue: &Queue) -> bool {
        queue.bytes > HIGH.0 * self.mtu && queue.time > HIGH.1.max(self.way.noise)
    }

    fn is_none(&self, queue: &Queue) -> bool {
        queue.bytes < LOW.0 * self.mtu || queue.time < LOW.1.max(self.way.noise / 2)
    }

    /// Down to what the line holds, and a little.
    fn leave_queue(&mut self) {
        let Some(queue) = self.queue() else { return };
        let low = LOW.1.max(self.way.noise / 2);
        let little = (queue.bytes as f64 * low.as_secs_f64() / queue.time.as_secs_f64()) as u64;
        self.doubling = false;
        self.free_rounds = 0;
        self.settling = true;
        self.set(self.round.window - queue.bytes + little.max(LOW.0 * self.mtu));
    }

    fn set(&mut self, window: u64) {
        self.window = window.clamp(FLOOR * self.mtu, CEILING);
    }
}

/// What waits on the way, as far as one's own window shows it.
struct Queue {
    bytes: u64,
    time: Duration,
    trip: Duration,
}

impl Controller for State {
    fn on_sent(&mut self, _now: Instant, _bytes: u64, last_packet_number: u64) {
        self.last_sent = last_packet_number;
    }

    fn on_ack(&mut self, now: Instant, _sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.acknowledged(now, rtt.get(), bytes, app_limited);
    }

    fn on_end_acks(&mut self, now: Instant, _in_flight: u64, _app_limited: bool, largest: Option<u64>) {
        self.acknowledgement_ends(now, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.lost += lost_bytes;
        if persistent {
            self.doubling = true;
            self.drained = None;
            self.set(0);
        } else if lost_bytes == 0 && self.marked.is_none_or(|since| sent > since) {
            // A router on the way has marked a packet: its queue is long. It marks many, and is answered once a round.
            self.marked = Some(now);
            self.doubling = false;
            self.set(self.window / 20 * 19);
            if let Some((_, go_on_with)) = &mut self.drained {
                *go_on_with = *go_on_with / 20 * 19;
            }
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.set(self.window);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        FIRST * self.mtu
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests;
