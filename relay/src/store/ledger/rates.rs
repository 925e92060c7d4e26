//! Requests and tokens per minute, of a tenant, its devices and its keys. The numbers are in memory,
//! with the tenant's handle; a restart of the relay forgets at most one minute's burst.
//!
//! All limits of a request are looked at before any is taken from, under one lock: a refusal takes
//! nothing, and no update is lost.

use super::budget::{Budget, Measure, Scope};
use super::hold::PerMinute;
use crate::ops::rate::Limit;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Scopes that are remembered at the same time at the most before idle ones are forgotten.
const SWEEP_ABOVE: usize = 64;

/// A limit that binds a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Whom it binds.
    pub scope: Scope,
    /// Requests or tokens per minute.
    pub measure: Measure,
    /// How many.
    pub count: u32,
}

/// What is left of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remaining {
    /// Which limit.
    pub bound: Bound,
    /// How much may still be asked for now.
    pub left: u64,
}

/// A limit is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateRefusal {
    /// Which limit.
    pub bound: Bound,
    /// Try again after so many milliseconds.
    pub retry_after_ms: u64,
}

/// A tenant's numbers, one per scope and measure. A number is the time at which all will have been let
/// through, in nanoseconds.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<(Scope, Measure), u64>>);

impl Rates {
    /// Lets one request of so many tokens through, if all limits do. Returns what is left of each.
    pub fn take(&self, bounds: &[Bound], tokens: u64, now_ms: u64) -> Result<Vec<Remaining>, RateRefusal> {
        let now_ns = now_ms.saturating_mul(1_000_000);
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::with_capacity(bounds.len());
        for bound in bounds {
            let limit = Limit::per_minute(bound.count);
            let number = numbers.get(&(bound.scope.clone(), bound.measure)).copied().unwrap_or(0);
            let count = if bound.measure == Measure::TokensMinute { tokens } else { 1 };
            match limit.take_some(number, now_ns, count) {
                Ok(next) => taken.push((bound, limit, next)),
                Err(wait_ns) => {
                    let retry_after_ms = wait_ns.div_ceil(1_000_000);
                    return Err(RateRefusal { bound: bound.clone(), retry_after_ms });
                }
            }
        }
        let mut remaining = Vec::with_capacity(taken.len());
        for (bound, limit, next) in taken {
            numbers.insert((bound.scope.clone(), bound.measure), next);
            remaining.push(Remaining { bound: bound.clone(), left: limit.left(next, now_ns) });
        }
        if numbers.len() > SWEEP_ABOVE {
            numbers.retain(|_, number| *number > now_ns);
        }
        Ok(remaining)
    }

    /// Counts tokens on top of, or less than, what was taken for them at first. It may go beyond the
    /// limit: they have been used. Those that ask later wait for it.
    pub fn correct(&self, bounds: &[Bound], taken: u64, used: u64, now_ms: u64) {
        let now_ns = now_ms.saturating_mul(1_000_000);
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for bound in bounds.iter().filter(|bound| bound.measure == Measure::TokensMinute) {
            let limit = Limit::per_minute(bound.count);
            let number = numbers.entry((bound.scope.clone(), bound.measure)).or_default();
            *number = if used >= taken {
                limit.add(*number, now_ns, used - taken)
            } else {
                limit.give_back(*number, taken - used)
            };
        }
    }

    /// How many numbers are kept.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// True if nothing has to be remembered.
    #[must_use]
    pub fn is_idle(&self, now_ms: u64) -> bool {
        let now_ns = now_ms.saturating_mul(1_000_000);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().all(|number| *number <= now_ns)
    }
}

/// The limits that bind a request: of the budgets that do, those by the minute, and the operator's own
/// for a tenant that has none.
pub(crate) fn limits(budgets: &[Budget], default: PerMinute) -> Vec<Bound> {
    let per_minute = |measure| matches!(measure, Measure::RequestsMinute | Measure::TokensMinute);
    let mut bounds: Vec<Bound> = budgets
        .iter()
        .filter(|budget| per_minute(budget.measure))
        .map(|budget| Bound {
            scope: budget.scope.clone(),
            measure: budget.measure,
            count: u32::try_from(budget.amount).unwrap_or(u32::MAX),
        })
        .collect();
    let defaults = [(Measure::RequestsMinute, Some(default.requests)), (Measure::TokensMinute, default.tokens)];
    for (measure, count) in defaults {
        let has_own = bounds.iter().any(|bound| bound.scope == Scope::Tenant && bound.measure == measure);
        if let (Some(count), false) = (count, has_own) {
            bounds.push(Bound { scope: Scope::Tenant, measure, count });
        }
    }
    bounds
}
