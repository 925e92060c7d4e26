//! Comparing what providers say was used with what the books say, by day and model, and dividing what
//! charges by estimate should have been. Pure: no I/O.

use crate::store::ledger::correct::Estimated;
use crate::store::ledger::usage::Totals;
use belay_protocol::id::{RequestId, TenantId};
use belay_protocol::message::{UnitKind, UsageLine};
use serde::{Deserialize, Serialize};

/// Tokens of the kinds that providers report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tokens {
    /// Input that has nothing to do with a cache.
    pub input: u64,
    /// Output, reasoning included.
    pub output: u64,
    /// Input read from a cache.
    pub cache_read: u64,
    /// Input written to a cache.
    pub cache_write: u64,
}

impl Tokens {
    const KINDS: [UnitKind; 4] = [UnitKind::INPUT, UnitKind::OUTPUT, UnitKind::CACHE_READ, UnitKind::CACHE_WRITE_5M];

    fn of(lines: &[UsageLine]) -> Self {
        Self::from(Totals::of(lines, Default::default(), Default::default(), false))
    }

    fn each(self) -> [u64; 4] {
        [self.input, self.output, self.cache_read, self.cache_write]
    }

    /// Adds others', as far as there is room.
    pub fn add(&mut self, other: Self) {
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
        self.cache_read = self.cache_read.saturating_add(other.cache_read);
        self.cache_write = self.cache_write.saturating_add(other.cache_write);
    }

    /// True if the provider counts less of anything than it had told: its figures are not whole.
    #[must_use]
    pub fn lacks(&self, told: &Self) -> bool {
        self.each().into_iter().zip(told.each()).any(|(theirs, told)| theirs < told)
    }

    fn less(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_sub(other.input),
            output: self.output.saturating_sub(other.output),
            cache_read: self.cache_read.saturating_sub(other.cache_read),
            cache_write: self.cache_write.saturating_sub(other.cache_write),
        }
    }
}

impl From<Totals> for Tokens {
    fn from(totals: Totals) -> Self {
        let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
        Self {
            input: unsigned(totals.input),
            output: unsigned(totals.output),
            cache_read: unsigned(totals.cache_read),
            cache_write: unsigned(totals.cache_write),
        }
    }
}

/// What a provider says was used on a day with a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderUsage {
    /// Days since 1970.
    pub day: i64,
    /// The provider's name for the model.
    pub model: String,
    /// How much.
    pub tokens: Tokens,
}

/// What the books say of a day and a model, all tenants together.
#[derive(Debug, Clone, Default)]
pub struct Booked {
    /// All of it, estimates included.
    pub tokens: Tokens,
    /// The charges by estimate in it.
    pub estimated: Vec<(TenantId, Estimated)>,
}

/// What a request should have been charged for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Whose request.
    pub tenant: TenantId,
    /// Which.
    pub request_id: RequestId,
    /// What it is taken to have used.
    pub usage: Vec<UsageLine>,
}

impl Booked {
    /// What the provider had told: all but the estimates.
    #[must_use]
    pub fn told(&self) -> Tokens {
        let mut by_estimate = Tokens::default();
        self.estimated.iter().for_each(|(_, request)| by_estimate.add(Tokens::of(&request.usage)));
        self.tokens.less(by_estimate)
    }
}

/// Divides what the provider counted beyond what it had told among the requests that were charged by
/// estimate, in proportion to their estimates; together they get exactly that.
#[must_use]
pub fn divide(theirs: Tokens, booked: &Booked) -> Vec<Share> {
    let estimates: Vec<Tokens> = booked.estimated.iter().map(|(_, request)| Tokens::of(&request.usage)).collect();
    let untold = theirs.less(booked.told());
    let mut shares: Vec<Share> = booked
        .estimated
        .iter()
        .map(|(tenant, request)| Share { tenant: tenant.clone(), request_id: request.request_id, usage: vec![] })
        .collect();
    for (at, (kind, amount)) in Tokens::KINDS.into_iter().zip(untold.each()).enumerate() {
        let own: Vec<u64> = estimates.iter().map(|estimate| estimate.each()[at]).collect();
        // An estimate knows nothing of caches: what was cached is divided as input is.
        let weights = if own.iter().all(|weight| *weight == 0) {
            estimates.iter().map(|estimate| estimate.input.max(1)).collect()
        } else {
            own
        };
        for (share, units) in shares.iter_mut().zip(apportion(amount, &weights)) {
            if units > 0 {
                share.usage.push(UsageLine { kind, units });
            }
        }
    }
    shares
}

/// Whole parts of `amount` in proportion to `weights`, by the largest remainders. They sum to `amount`,
/// if there is any weight.
fn apportion(amount: u64, weights: &[u64]) -> Vec<u64> {
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if total == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: u64| u128::from(amount) * u128::from(weight);
    let mut parts: Vec<u64> =
        weights.iter().map(|weight| u64::try_from(exact(*weight) / total).unwrap_or(u64::MAX)).collect();
    let given: u64 = parts.iter().sum();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|at| (std::cmp::Reverse(exact(weights[*at]) % total), *at));
    let left = usize::try_from(amount - given).unwrap_or(0);
    for at in by_remainder.into_iter().take(left) {
        parts[at] += 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_protocol::money::NanoUsd;
    use proptest::prelude::*;

    fn estimated(id: u8, input: u64, output: u64) -> (TenantId, Estimated) {
        let lines = [(UnitKind::INPUT, input), (UnitKind::OUTPUT, output)];
        let request = Estimated {
            request_id: RequestId([id; 16]),
            at_ms: 0,
            device: "d".into(),
            provider: "p".into(),
            model: "m".into(),
            usage: lines.into_iter().map(|(kind, units)| UsageLine { kind, units }).collect(),
            cost: NanoUsd(1),
            own_key: false,
        };
        ("acme".parse().expect("valid"), request)
    }

    #[test]
    fn what_was_not_told_is_divided_by_the_estimates() {
        // 1,000 input were told beside the two estimates of 100 and 300.
        let booked = Booked {
            tokens: Tokens { input: 1400, output: 90, cache_read: 10, cache_write: 0 },
            estimated: vec![estimated(1, 100, 30), estimated(2, 300, 60)],
        };
        let theirs = Tokens { input: 1441, output: 60, cache_read: 50, cache_write: 0 };
        let shares = divide(theirs, &booked);
        let units = |at: usize| shares[at].usage.iter().map(|line| (line.kind, line.units)).collect::<Vec<_>>();
        assert_eq!(units(0), [(UnitKind::INPUT, 110), (UnitKind::OUTPUT, 20), (UnitKind::CACHE_READ, 10)]);
        assert_eq!(units(1), [(UnitKind::INPUT, 331), (UnitKind::OUTPUT, 40), (UnitKind::CACHE_READ, 30)]);
        // The provider counts less than it had told: nothing is left for the estimates.
        let none = divide(Tokens { input: 5, ..Tokens::default() }, &booked);
        assert!(none.iter().all(|share| share.usage.is_empty()), "{none:?}");
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_whole(amount in any::<u64>(), weights in proptest::collection::vec(0u64..1 << 40, 1..20)) {
            let parts = apportion(amount, &weights);
            let sum: u128 = parts.iter().map(|part| u128::from(*part)).sum();
            let any = weights.iter().any(|weight| *weight > 0);
            prop_assert_eq!(sum, if any { u128::from(amount) } else { 0 });
            for (part, weight) in parts.iter().zip(&weights) {
                prop_assert!(*weight > 0 || *part == 0);
            }
        }
    }
}
