//! A request whose money is set aside, and for how long it counts as that.

use super::guard::HoldGuard;
use crate::ops::memory::Charge;
use crate::ops::metrics::Metrics;
use crate::store::ledger::rates::Remaining;
use crate::tenants::TenantHandle;
use belay_protocol::money::NanoUsd;
use std::sync::Arc;

/// A request whose money is set aside.
pub(crate) struct Held {
    pub(crate) guard: HoldGuard,
    pub(crate) tenant: Arc<TenantHandle>,
    pub(crate) amount: NanoUsd,
    pub(crate) output_cap: u32,
    /// Tokens that it was counted as, for the limits per minute.
    pub(super) counted: u64,
    /// What was left of them.
    pub(super) remaining: Vec<Remaining>,
    pub(crate) at: tokio::time::Instant,
    pub(super) _charge: Charge,
    pub(super) _aside: Aside,
}

/// Counts money that is set aside for as long as its request's task has it.
pub(super) struct Aside(Arc<Metrics>, NanoUsd);

impl Aside {
    pub(super) fn new(metrics: Arc<Metrics>, amount: NanoUsd) -> Self {
        metrics.held(amount);
        Self(metrics, amount)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.0.released(self.1);
    }
}
