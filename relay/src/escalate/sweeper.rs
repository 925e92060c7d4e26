//! The sweeper: resolves holds that their tasks could not, recovers tenants that nobody asked for,
//! and closes what is idle.

use super::Escalator;
use crate::store::journal::Progress;
use crate::store::ledger::recover::estimate;
use belay_protocol::id::{RequestId, TenantId};
use belay_protocol::message::Outcome;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the sweeper looks.
const EVERY: Duration = Duration::from_secs(5);

/// Holds that lost their task, waiting for the sweeper. Bounded by the holds that can be open.
#[derive(Debug, Clone, Default)]
pub struct Unresolved(Arc<Mutex<Vec<Lost>>>);

#[derive(Debug)]
struct Lost {
    tenant: TenantId,
    request_id: RequestId,
    input_bytes: u64,
    progress: Progress,
}

impl Unresolved {
    pub(super) fn push(&self, tenant: TenantId, request_id: RequestId, input_bytes: u64, progress: Progress) {
        let lost = Lost { tenant, request_id, input_bytes, progress };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(lost);
    }

    fn take(&self) -> Vec<Lost> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Escalator {
    /// Sweeps until `stop`. The first round opens every tenant once, so that the holds of a dead
    /// process do not wait for their tenant's next request.
    pub async fn sweep(&self, stop: CancellationToken) {
        match self.tenants.all().await {
            Ok(tenants) => {
                for tenant in tenants {
                    if stop.is_cancelled() {
                        return;
                    }
                    if let Err(error) = self.tenants.handle(&tenant.id).await {
                        warn!(tenant = %tenant.id, %error, "cannot recover a tenant");
                    }
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => warn!(%error, "cannot list the tenants"),
        }
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            self.resolve_lost().await;
            self.tenants.close_idle();
        }
        self.resolve_lost().await;
    }

    async fn resolve_lost(&self) {
        for lost in self.unresolved.take() {
            let mut settlement = estimate(lost.request_id, lost.progress, lost.input_bytes, self.env.clock.now_ms());
            settlement.outcome = Outcome::LIMIT;
            settlement.message = "the request's task ended without settling; charged by estimate".into();
            let settled = self.settle(&lost.tenant, settlement).await;
            match settled {
                Ok(settled) => {
                    info!(tenant = %lost.tenant, request = %lost.request_id, cost = %settled.end.cost, "resolved a lost hold");
                }
                Err(error) => {
                    warn!(tenant = %lost.tenant, request = %lost.request_id, %error, "cannot resolve a lost hold yet");
                    self.unresolved.push(lost.tenant, lost.request_id, lost.input_bytes, lost.progress);
                }
            }
        }
    }
}
