//! One rule for every rate limit: the generic cell rate algorithm on a single stored number, in nanoseconds: a limit of
//! millions of tokens a minute has less than a microsecond for each.

/// So many per period, all of them at once if need be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    interval_ns: u64,
    burst_ns: u64,
}

impl Limit {
    /// At most `count` in any minute; a count of zero lets nothing through.
    #[must_use]
    pub fn per_minute(count: u32) -> Self {
        Self::new(count, 60_000_000_000)
    }

    /// At most `count` in any second.
    #[must_use]
    pub const fn per_second(count: u32) -> Self {
        Self::new(count, 1_000_000_000)
    }

    const fn new(count: u32, period_ns: u64) -> Self {
        let interval_ns = if count == 0 { u64::MAX } else { period_ns.div_ceil(count as u64) };
        // As many as the limit says, though their parts of a minute were rounded up.
        let burst_ns = if count == 0 { period_ns } else { interval_ns * count as u64 };
        Self { interval_ns, burst_ns }
    }

    /// Lets one through at `now_ns`. `tat_ns` is what the last one left (0 at first). Returns what
    /// to remember, or how long to wait.
    pub fn take(self, tat_ns: u64, now_ns: u64) -> Result<u64, u64> {
        self.take_some(tat_ns, now_ns, 1)
    }

    /// The same for `count` at once. More than fit into a period pass alone, when nothing else has
    /// passed for one: they would never pass otherwise.
    pub fn take_some(self, tat_ns: u64, now_ns: u64, count: u64) -> Result<u64, u64> {
        let next = self.add(tat_ns, now_ns, count);
        let allowed_until = now_ns.saturating_add(self.burst_ns);
        if next <= allowed_until {
            return Ok(next);
        }
        let too_many = self.interval_ns.saturating_mul(count) > self.burst_ns;
        match tat_ns.saturating_sub(now_ns) {
            // A limit of zero lets nothing through, alone or not.
            _ if !too_many || self.interval_ns > self.burst_ns => Err(next - allowed_until),
            0 => Ok(next),
            until_alone => Err(until_alone),
        }
    }

    /// Counts so many on top, whether or not they are within the limit.
    #[must_use]
    pub fn add(self, tat_ns: u64, now_ns: u64, count: u64) -> u64 {
        tat_ns.max(now_ns).saturating_add(self.interval_ns.saturating_mul(count))
    }

    /// Counts so many less.
    #[must_use]
    pub fn give_back(self, tat_ns: u64, count: u64) -> u64 {
        tat_ns.saturating_sub(self.interval_ns.saturating_mul(count))
    }

    /// How many would pass now.
    #[must_use]
    pub fn left(self, tat_ns: u64, now_ns: u64) -> u64 {
        let used_ns = tat_ns.saturating_sub(now_ns);
        self.burst_ns.saturating_sub(used_ns) / self.interval_ns.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        let limit = Limit::per_minute(100);
        let mut tat = 0;
        let now = 1_000_000_000_000;
        for _ in 0..100 {
            tat = limit.take(tat, now).expect("within the burst");
        }
        assert_eq!(limit.take(tat, now), Err(600_000_000));
        assert!(limit.take(tat, now + 600_000_000).is_ok());
    }

    #[test]
    fn many_at_once_pass_as_far_as_there_is_room_and_too_many_alone() {
        let limit = Limit::per_minute(1000);
        let now = 1_000_000_000_000;
        let after = limit.take_some(0, now, 900).expect("room");
        assert_eq!(limit.left(after, now), 100);
        assert_eq!(limit.take_some(after, now, 200), Err(6_000_000_000));
        assert_eq!(limit.left(limit.give_back(after, 400), now), 500);
        // Used beyond what there was: the next one waits for it.
        let beyond = limit.add(after, now, 600);
        assert_eq!((limit.left(beyond, now), limit.take(beyond, now)), (0, Err(30_060_000_000)));
        let too_many = limit.take_some(0, now, 5000).expect("alone");
        assert_eq!(limit.take_some(too_many, now, 5000), Err(300_000_000_000), "until it is alone again");
        assert!(limit.take_some(too_many, now + 300_000_000_000, 5000).is_ok());
    }

    #[test]
    fn no_more_pass_than_the_limit_says_however_large_it_is() {
        for count in [7_000_000, 45_000_000, u32::MAX] {
            let limit = Limit::per_minute(count);
            let (now, mut tat, mut passed) = (1_000_000_000_000, 0, 0_u64);
            while let Ok(next) = limit.take_some(tat, now, 100_000) {
                (tat, passed) = (next, passed + 100_000);
            }
            assert!(passed <= u64::from(count) && passed * 20 > u64::from(count) * 18, "{passed} of {count}");
        }
    }

    #[test]
    fn a_limit_of_zero_lets_nothing_through() {
        assert!(Limit::per_second(0).take(0, 5).is_err());
    }
}
