//! What a link does to a packet. Pure: no socket, no clock.
//!
//! The fate of a packet depends on the seed, its way and its number alone, not on when it comes.
//! When it arrives depends on the [`Lane`], which keeps the line's timetable.

use std::time::Duration;
use tokio::time::Instant;

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// From a client to the relay.
    Up,
    /// From the relay to a client.
    Down,
}

/// What happens to packets of one way. The default is a perfect line.
#[derive(Debug, Clone, PartialEq)]
pub struct Direction {
    /// From end to end, without queueing.
    pub delay: Duration,
    /// A random time up to this comes on top. It never changes the order; `reorder` does.
    pub jitter: Duration,
    /// Bits per second; `None` is without bound.
    pub rate_bps: Option<u64>,
    /// What may wait for a line with a rate; a packet that does not fit is dropped.
    pub queue_bytes: usize,
    /// The largest UDP payload that gets through, in bytes; longer ones vanish.
    pub largest: usize,
    /// So many packets get through, from the link's start; those after them vanish.
    pub first: u64,
    /// Part of the packets that is lost, 0 to 1.
    pub loss: f64,
    /// Part of the packets that arrives twice.
    pub duplicate: f64,
    /// Part of the packets that is overtaken by those behind it.
    pub reorder: f64,
    /// How late a packet is that is overtaken.
    pub reorder_by: Duration,
}

impl Default for Direction {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            rate_bps: None,
            queue_bytes: 256 << 10,
            largest: usize::MAX,
            first: u64::MAX,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(5),
        }
    }
}

impl Direction {
    /// A perfect line with that delay.
    #[must_use]
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// What chance decided for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// It never arrives.
    pub lost: bool,
    /// It arrives twice.
    pub duplicated: bool,
    /// It is overtaken.
    pub overtaken: bool,
    /// Its own part of the jitter.
    pub jitter: Duration,
}

impl Direction {
    /// The fate of packet `number` of its way. The same arguments give the same answer.
    #[must_use]
    pub fn fate(&self, seed: u64, way: Way, number: u64) -> Fate {
        let draw = |what: u64| {
            let way = u64::from(way == Way::Up);
            unit(mix(mix(mix(seed).wrapping_add(number)).wrapping_add(what * 2 + way)))
        };
        Fate {
            lost: draw(0) < self.loss,
            duplicated: draw(1) < self.duplicate,
            overtaken: draw(2) < self.reorder,
            jitter: self.jitter.mul_f64(draw(3)),
        }
    }
}

/// The timetable of one way.
#[derive(Debug, Clone, Default)]
pub(super) struct Lane {
    /// When the line has sent all that waits for it.
    free_at: Option<Instant>,
    /// When the latest packet that keeps the order arrives.
    latest: Option<Instant>,
}

impl Lane {
    /// When a packet of `len` bytes that comes `now` arrives; `None` if the queue is full.
    pub(super) fn arrival(&mut self, rules: &Direction, fate: Fate, len: usize, now: Instant) -> Option<Instant> {
        let mut sent = now;
        if let Some(rate) = rules.rate_bps {
            let start = self.free_at.map_or(now, |free| free.max(now));
            let waiting = bytes_in(start.duration_since(now), rate);
            if waiting + len as u64 > rules.queue_bytes as u64 {
                return None;
            }
            sent = start + time_for(len, rate);
            self.free_at = Some(sent);
        }
        let due = sent + rules.delay + fate.jitter;
        if fate.overtaken {
            return Some(due + rules.reorder_by);
        }
        let due = self.latest.map_or(due, |latest| latest.max(due));
        self.latest = Some(due);
        Some(due)
    }
}

/// How long a line of that rate takes for so many bytes.
fn time_for(bytes: usize, rate_bps: u64) -> Duration {
    let ns = bytes as u128 * 8 * 1_000_000_000 / u128::from(rate_bps.max(1));
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

/// How many bytes a line of that rate sends in that time.
fn bytes_in(time: Duration, rate_bps: u64) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(rate_bps) / 8_000_000_000).unwrap_or(u64::MAX)
}

/// A number from 0 to below 1.
fn unit(random: u64) -> f64 {
    // The upper 53 bits fit a double exactly.
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// `SplitMix64`.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_seed_alone_decides() {
        let rules = Direction { loss: 0.1, duplicate: 0.02, reorder: 0.3, jitter: 10 * MS, ..Direction::default() };
        let fates = |seed, way| (0..10_000).map(|n| rules.fate(seed, way, n)).collect::<Vec<_>>();
        let first = fates(7, Way::Up);
        assert_eq!(first, fates(7, Way::Up));
        assert_ne!(first, fates(8, Way::Up));
        assert_ne!(first, fates(7, Way::Down));
        let count = |of: fn(&Fate) -> bool| first.iter().filter(|fate| of(fate)).count();
        assert!((900..1100).contains(&count(|fate| fate.lost)));
        assert!((140..260).contains(&count(|fate| fate.duplicated)));
        assert!((2800..3200).contains(&count(|fate| fate.overtaken)));
        assert!((4700..5300).contains(&count(|fate| fate.jitter > 5 * MS)));
        assert!(first.iter().all(|fate| fate.jitter < 10 * MS));
        let never = Direction::default().fate(7, Way::Up, 3);
        assert_eq!(never, Fate { lost: false, duplicated: false, overtaken: false, jitter: Duration::ZERO });
    }

    #[test]
    fn a_line_with_a_rate_queues_and_then_drops() {
        let rules = Direction { rate_bps: Some(8_000_000), queue_bytes: 2500, delay: 5 * MS, ..Direction::default() };
        let (mut lane, now) = (Lane::default(), Instant::now());
        let fate = rules.fate(1, Way::Up, 0);
        // A kilobyte takes a millisecond.
        assert_eq!(lane.arrival(&rules, fate, 1000, now), Some(now + 6 * MS));
        assert_eq!(lane.arrival(&rules, fate, 1000, now), Some(now + 7 * MS));
        assert_eq!(lane.arrival(&rules, fate, 1000, now), None, "two wait already");
        assert_eq!(lane.arrival(&rules, fate, 1000, now + MS), Some(now + 8 * MS));
        assert_eq!(lane.arrival(&rules, fate, 1000, now + 100 * MS), Some(now + 106 * MS));
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let rules = Direction { delay: 10 * MS, reorder_by: 3 * MS, ..Direction::default() };
        let (mut lane, now) = (Lane::default(), Instant::now());
        let fate = |jitter, overtaken| Fate { lost: false, duplicated: false, overtaken, jitter };
        assert_eq!(lane.arrival(&rules, fate(4 * MS, false), 1, now), Some(now + 14 * MS));
        assert_eq!(lane.arrival(&rules, fate(MS, false), 1, now + MS), Some(now + 14 * MS));
        assert_eq!(lane.arrival(&rules, fate(MS, true), 1, now + 2 * MS), Some(now + 16 * MS));
        assert_eq!(lane.arrival(&rules, fate(MS, false), 1, now + 3 * MS), Some(now + 14 * MS));
    }
}
