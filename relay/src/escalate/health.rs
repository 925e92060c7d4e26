//! How offers have been of late. One that has failed again and again, or has said when to come back, is
//! asked after the others for a while; then a single request tries it, and its outcome decides.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// So many failures in a row, and an offer is ill.
const FAILURES: u32 = 5;
/// How long it is left alone at first, in milliseconds; twice as long each time it is ill again.
const FIRST_MS: u64 = 5_000;
/// And at the most.
const LONGEST_MS: u64 = 60_000;
/// Offers that are remembered at the most.
const MOST: usize = 1024;
/// A request that tries it has so long; then the next may.
const PROBE_MS: u64 = 30_000;

/// Of all offers, by provider and model.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<HashMap<(String, String), State>>);

#[derive(Debug, Default)]
struct State {
    /// In a row.
    failures: u32,
    /// How often it was ill since it was last well.
    times: u32,
    ill_until_ms: u64,
    probe_until_ms: u64,
}

impl Health {
    /// True if it may be asked before others. Of an offer whose time has come, the first caller is told so,
    /// and is expected to ask it.
    pub(crate) fn may_lead(&self, provider: &str, model: &str, now_ms: u64) -> bool {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match states.get_mut(&(provider.to_owned(), model.to_owned())) {
            None => true,
            Some(state) if state.ill_until_ms == 0 => true,
            Some(state) if now_ms < state.ill_until_ms || now_ms < state.probe_until_ms => false,
            Some(state) => {
                state.probe_until_ms = now_ms + PROBE_MS;
                true
            }
        }
    }

    /// True while it is left alone, or its trial is not over.
    pub(crate) fn is_ill(&self, provider: &str, model: &str, now_ms: u64) -> bool {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states
            .get(&(provider.to_owned(), model.to_owned()))
            .is_some_and(|state| now_ms < state.ill_until_ms.max(state.probe_until_ms))
    }

    /// It did not answer; `retry_after_ms`: it said when it will. True if it has become ill.
    pub(crate) fn failed(&self, provider: &str, model: &str, retry_after_ms: Option<u64>, now_ms: u64) -> bool {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if states.len() >= MOST {
            // Names that nobody has may be asked for without end.
            states.retain(|_, state| state.ill_until_ms > now_ms);
            if states.len() >= MOST {
                return false;
            }
        }
        let state = states.entry((provider.to_owned(), model.to_owned())).or_default();
        state.failures += 1;
        let was_ill = state.ill_until_ms > 0;
        if !was_ill && retry_after_ms.is_none() && state.failures < FAILURES {
            return false;
        }
        // A failure while it is left alone is not one more time.
        if now_ms >= state.ill_until_ms {
            let pause = FIRST_MS.saturating_mul(1 << state.times.min(8)).min(LONGEST_MS);
            state.times += 1;
            state.ill_until_ms = now_ms + retry_after_ms.map_or(pause, |ms| ms.clamp(1, LONGEST_MS));
            state.probe_until_ms = 0;
        }
        !was_ill
    }

    /// Those that are asked after others, by provider and model.
    pub(crate) fn ill(&self) -> Vec<(String, String)> {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.iter().filter(|(_, state)| state.ill_until_ms > 0).map(|(name, _)| name.clone()).collect()
    }

    /// It answered. True if it had been ill.
    pub(crate) fn answered(&self, provider: &str, model: &str) -> bool {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.remove(&(provider.to_owned(), model.to_owned())).is_some_and(|state| state.ill_until_ms > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_failures_in_a_row_one_request_at_a_time_tries_it() {
        let health = Health::default();
        let leads = |now| health.may_lead("p", "m", now);
        for _ in 0..FAILURES - 1 {
            assert!(!health.failed("p", "m", None, 1000) && leads(1000));
        }
        assert!(health.failed("p", "m", None, 1000));
        assert!(!leads(1000) && !leads(1000 + FIRST_MS - 1) && health.may_lead("p", "other", 1000));
        assert!(leads(1000 + FIRST_MS), "its time has come");
        assert!(!leads(1000 + FIRST_MS), "for one alone");
        assert!(!health.failed("p", "m", None, 6100), "it is ill still");
        assert!(!leads(6100 + 2 * FIRST_MS - 1) && leads(6100 + 2 * FIRST_MS), "twice as long");
        assert!(leads(6100 + 2 * FIRST_MS + PROBE_MS), "a probe that never came back blocks nobody");
        assert!(health.answered("p", "m") && leads(0) && !health.answered("p", "m"));
    }

    #[test]
    fn who_says_when_to_come_back_is_left_alone_until_then() {
        let health = Health::default();
        assert!(health.failed("p", "m", Some(700), 1000));
        assert!(!health.may_lead("p", "m", 1699) && health.may_lead("p", "m", 1700));
        assert!(!health.failed("p", "m", Some(u64::MAX), 1700));
        assert!(!health.may_lead("p", "m", 1700 + LONGEST_MS - 1) && health.may_lead("p", "m", 1700 + LONGEST_MS));
        // An answer in between begins anew.
        for _ in 0..20 {
            health.answered("q", "m");
            assert!(!health.failed("q", "m", None, 1));
        }
    }

    #[test]
    fn names_without_end_are_not_all_remembered() {
        let health = Health::default();
        let failed = |name: u32, now_ms| health.failed("p", &format!("m{name}"), Some(1_000), now_ms);
        let remembered = (0..2_000).filter(|name| failed(*name, 1)).count();
        let count = || health.0.lock().expect("sound").len();
        assert_eq!((remembered, count()), (MOST, MOST));
        assert!(health.may_lead("p", "m1999", 1), "one that is not remembered counts as well");
        assert!(failed(2_000, 1_000_000), "those whose time has come make room");
        assert_eq!(count(), 1);
    }
}
