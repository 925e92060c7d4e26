//! The sweeper: resolves holds that their tasks could not, recovers tenants that nobody asked for,
//! hands usage over to central, and closes what is idle.

use super::Escalator;
use crate::store::StoreError;
use crate::store::executor::Db;
use crate::store::journal::Progress;
use crate::store::ledger::recover::estimate;
use crate::store::ledger::settle::void_made_at;
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

#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) tenant: TenantId,
    pub(super) request_id: RequestId,
    pub(super) how: How,
}

#[derive(Debug, Clone)]
pub(super) enum How {
    /// It was held at that time, or not: its provider was not called.
    Unknown { made_ms: u64 },
    /// Its task ended without settling.
    Held { input_bytes: u64, progress: Progress },
}

impl Unresolved {
    pub(super) fn push(&self, lost: Lost) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(lost);
    }

    /// Some wait.
    pub(super) fn has_some(&self) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
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
            self.tenants.flush(Some(self.config.billing.flush)).await;
            self.tenants.close_idle();
        }
        self.resolve_lost().await;
    }

    async fn resolve_lost(&self) {
        for lost in self.unresolved.take() {
            match self.resolve(&lost).await {
                Ok(()) => info!(tenant = %lost.tenant, request = %lost.request_id, "resolved a lost hold"),
                Err(error) => {
                    warn!(tenant = %lost.tenant, request = %lost.request_id, %error, "cannot resolve a lost hold yet");
                    self.unresolved.push(lost);
                }
            }
        }
    }

    async fn resolve(&self, lost: &Lost) -> Result<(), StoreError> {
        let (id, now_ms) = (lost.request_id, self.env.clock.now_ms());
        match lost.how {
            How::Unknown { made_ms } => {
                let db = Db::Tenant(lost.tenant.clone());
                self.store.run(db, move |connection| void_made_at(connection, id, made_ms, now_ms)).await
            }
            How::Held { input_bytes, progress } => {
                let mut settlement = estimate(id, progress, input_bytes, now_ms);
                settlement.outcome = Outcome::LIMIT;
                settlement.message = "the request's task ended without settling; charged by estimate".into();
                let settled = self.settle(&lost.tenant, settlement).await?;
                self.tenants.handle(&lost.tenant).await?.unflushed.add(settled.end.cost, now_ms);
                Ok(())
            }
        }
    }
}
