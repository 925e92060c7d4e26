//! One rule for every rate limit: the generic cell rate algorithm on a single stored number.

/// So many per period, all of them at once if need be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    interval_us: u64,
    burst_us: u64,
}

impl Limit {
    /// At most `count` in any minute; a count of zero lets nothing through.
    #[must_use]
    pub fn per_minute(count: u32) -> Self {
        Self::new(count, 60_000_000)
    }

    /// At most `count` in any second.
    #[must_use]
    pub const fn per_second(count: u32) -> Self {
        Self::new(count, 1_000_000)
    }

    const fn new(count: u32, period_us: u64) -> Self {
        let interval_us = if count == 0 { u64::MAX } else { period_us / count as u64 };
        Self { interval_us, burst_us: period_us }
    }

    /// Lets one through at `now_us`. `tat_us` is what the last one left (0 at first). Returns what
    /// to remember, or how long to wait.
    pub fn take(self, tat_us: u64, now_us: u64) -> Result<u64, u64> {
        self.take_some(tat_us, now_us, 1)
    }

    /// The same for `count` at once. More than fit into a period pass alone, when nothing else has
    /// passed for one: they would never pass otherwise.
    pub fn take_some(self, tat_us: u64, now_us: u64, count: u64) -> Result<u64, u64> {
        let next = self.add(tat_us, now_us, count);
        let allowed_until = now_us.saturating_add(self.burst_us);
        if next <= allowed_until {
            return Ok(next);
        }
        let too_many = self.interval_us.saturating_mul(count) > self.burst_us;
        match tat_us.saturating_sub(now_us) {
            // A limit of zero lets nothing through, alone or not.
            _ if !too_many || self.interval_us > self.burst_us => Err(next - allowed_until),
            0 => Ok(next),
            until_alone => Err(until_alone),
        }
    }

    /// Counts so many on top, whether or not they are within the limit.
    #[must_use]
    pub fn add(self, tat_us: u64, now_us: u64, count: u64) -> u64 {
        tat_us.max(now_us).saturating_add(self.interval_us.saturating_mul(count))
    }

    /// Counts so many less.
    #[must_use]
    pub fn give_back(self, tat_us: u64, count: u64) -> u64 {
        tat_us.saturating_sub(self.interval_us.saturating_mul(count))
    }

    /// How many would pass now.
    #[must_use]
    pub fn left(self, tat_us: u64, now_us: u64) -> u64 {
        let used_us = tat_us.saturating_sub(now_us);
        self.burst_us.saturating_sub(used_us) / self.interval_us.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        let limit = Limit::per_minute(100);
        let mut tat = 0;
        let now = 1_000_000_000;
        for _ in 0..100 {
            tat = limit.take(tat, now).expect("within the burst");
        }
        assert_eq!(limit.take(tat, now), Err(600_000));
        assert!(limit.take(tat, now + 600_000).is_ok());
    }

    #[test]
    fn many_at_once_pass_as_far_as_there_is_room_and_too_many_alone() {
        let limit = Limit::per_minute(1000);
        let now = 1_000_000_000;
        let after = limit.take_some(0, now, 900).expect("room");
        assert_eq!(limit.left(after, now), 100);
        assert_eq!(limit.take_some(after, now, 200), Err(6_000_000));
        assert_eq!(limit.left(limit.give_back(after, 400), now), 500);
        // Used beyond what there was: the next one waits for it.
        let beyond = limit.add(after, now, 600);
        assert_eq!((limit.left(beyond, now), limit.take(beyond, now)), (0, Err(30_060_000)));
        let too_many = limit.take_some(0, now, 5000).expect("alone");
        assert_eq!(limit.take_some(too_many, now, 5000), Err(300_000_000), "until it is alone again");
        assert!(limit.take_some(too_many, now + 300_000_000, 5000).is_ok());
    }

    #[test]
    fn a_limit_of_zero_lets_nothing_through() {
        assert!(Limit::per_second(0).take(0, 5).is_err());
    }
}
