//! One rule for every rate limit: the generic cell rate algorithm on a single stored number.

use std::sync::{Mutex, PoisonError};

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
    pub fn per_second(count: u32) -> Self {
        Self::new(count, 1_000_000)
    }

    fn new(count: u32, period_us: u64) -> Self {
        let interval_us = period_us.checked_div(u64::from(count)).unwrap_or(u64::MAX);
        Self { interval_us, burst_us: period_us }
    }

    /// Lets one through at `now_us`. `tat_us` is what the last one left (0 at first). Returns what
    /// to remember, or how long to wait.
    pub fn take(self, tat_us: u64, now_us: u64) -> Result<u64, u64> {
        let next = tat_us.max(now_us).saturating_add(self.interval_us);
        let allowed_until = now_us.saturating_add(self.burst_us);
        if next > allowed_until { Err(next - allowed_until) } else { Ok(next) }
    }
}

/// A limit's one number, shared. It is as good as new when its time has passed.
#[derive(Debug, Default)]
pub struct Rate(Mutex<u64>);

impl Rate {
    /// Lets one through at `now_us`, or says how long to wait.
    pub fn take(&self, limit: Limit, now_us: u64) -> Result<(), u64> {
        let mut tat_us = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *tat_us = limit.take(*tat_us, now_us)?;
        Ok(())
    }

    /// True if nothing has to be remembered of it.
    #[must_use]
    pub fn is_idle(&self, now_us: u64) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) <= now_us
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
    fn a_limit_of_zero_lets_nothing_through() {
        assert!(Limit::per_second(0).take(0, 5).is_err());
    }
}
