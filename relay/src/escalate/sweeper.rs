//! The sweeper: resolves holds that their tasks could not, recovers tenants that nobody asked for,
//! hands usage over to central, and closes what is idle.

use super::Escalator;
use crate::store::executor::Db;
use crate::store::journal::Progress;
use crate::store::ledger::recover::estimate;
use crate::store::ledger::settle::{Settlement, settle, void_made_at};
use crate::store::{Connection, StoreError};
use belay_protocol::id::{RequestId, TenantId};
use belay_protocol::message::Outcome;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the sweeper looks.
const EVERY: Duration = Duration::from_secs(5);

/// How long a hold is left to its task without a sign of life. A running request gives one every
/// [`RENEW`], whatever its provider and its reader do.
pub(super) const LEASE: Duration = Duration::from_secs(120);
/// How often a request that has nothing to note renews its lease.
pub(super) const RENEW: Duration = Duration::from_secs(30);

/// Holds that lost their task, waiting for the sweeper, and the leases of those that have one. Bounded by
/// the holds that can be open.
#[derive(Debug, Clone, Default)]
pub struct Unresolved(Arc<Mutex<Holds>>);

#[derive(Debug, Default)]
struct Holds {
    lost: Vec<Lost>,
    leases: HashMap<u64, Lease>,
    last: u64,
}

#[derive(Debug)]
struct Lease {
    until: Instant,
    /// What is to be resolved when it ends.
    hold: Lost,
}

#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) tenant: TenantId,
    pub(super) request_id: RequestId,
    pub(super) how: How,
}

#[derive(Debug, Clone)]
pub(super) enum How {
    /// It was held at that time, or not: nothing is charged. Its provider was not called, or has refused it.
    Void { made_ms: u64 },
    /// Its task ended without settling.
    Held { input_bytes: u64, progress: Progress },
    /// Its settlement did not get through.
    Settle(Box<Settlement>),
}

impl Unresolved {
    fn lock(&self) -> MutexGuard<'_, Holds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, lost: Lost) {
        self.lock().lost.push(lost);
    }

    /// Begins a lease. Returns its number.
    pub(super) fn lease(&self, hold: Lost) -> u64 {
        let mut holds = self.lock();
        holds.last += 1;
        let number = holds.last;
        holds.leases.insert(number, Lease { until: Instant::now() + LEASE, hold });
        number
    }

    /// The task is alive, and so far has it come.
    pub(super) fn renew(&self, number: u64, now: Progress) {
        if let Some(lease) = self.lock().leases.get_mut(&number) {
            lease.until = Instant::now() + LEASE;
            if let How::Held { progress, .. } = &mut lease.hold.how {
                *progress = now;
            }
        }
    }

    /// This is how the hold is to be settled, whatever becomes of its task.
    pub(super) fn settling(&self, number: u64, settlement: &Settlement) {
        if let Some(lease) = self.lock().leases.get_mut(&number) {
            lease.until = Instant::now() + LEASE;
            lease.hold.how = How::Settle(Box::new(settlement.clone()));
        }
    }

    /// The hold is to be given back, whatever becomes of its task.
    pub(super) fn voiding(&self, number: u64, made_ms: u64) {
        if let Some(lease) = self.lock().leases.get_mut(&number) {
            lease.until = Instant::now() + LEASE;
            lease.hold.how = How::Void { made_ms };
        }
    }

    /// Ends a lease. Returns what is known of its hold; `None` if it has run out: the sweeper has it.
    pub(super) fn end(&self, number: u64) -> Option<Lost> {
        self.lock().leases.remove(&number).map(|lease| lease.hold)
    }

    /// Some wait.
    pub(super) fn has_some(&self) -> bool {
        !self.lock().lost.is_empty()
    }

    /// All that wait, with those whose lease has run out.
    fn take(&self) -> Vec<Lost> {
        let (mut holds, now) = (self.lock(), Instant::now());
        let mut lost = std::mem::take(&mut holds.lost);
        lost.extend(holds.leases.extract_if(|_, lease| lease.until <= now).map(|(_, lease)| lease.hold));
        lost
    }
}

impl Escalator {
    /// Sweeps until `stop`. Meanwhile every tenant is opened once, so that the holds of a dead process do not wait for their
    /// tenant's next request.
    pub async fn sweep(&self, stop: CancellationToken) {
        tokio::join!(self.recover_all(&stop), self.sweep_again_and_again(&stop));
        self.resolve_lost().await;
    }

    async fn recover_all(&self, stop: &CancellationToken) {
        let tenants = match self.tenants.all().await {
            Ok(tenants) => tenants,
            Err(error) => return warn!(%error, "cannot list the tenants"),
        };
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

    async fn sweep_again_and_again(&self, stop: &CancellationToken) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            self.reserve.look();
            self.resolve_lost().await;
            self.tenants.flush(Some(self.config().billing.flush)).await;
            self.tenants.close_idle();
        }
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
        match &lost.how {
            How::Void { made_ms } => {
                let made_ms = *made_ms;
                let db = Db::Tenant(lost.tenant.clone());
                self.store.run(db, move |connection| void_made_at(connection, id, made_ms, now_ms)).await?;
                self.tenants.handle(&lost.tenant).await?.journal.end(id);
                Ok(())
            }
            How::Held { input_bytes, progress } => {
                let mut settlement = estimate(id, *progress, *input_bytes, now_ms);
                settlement.outcome = Outcome::LIMIT;
                settlement.message = "the request's task ended without settling; charged by estimate".into();
                self.settle_lost(&lost.tenant, settlement).await
            }
            How::Settle(settlement) => self.settle_lost(&lost.tenant, Settlement::clone(settlement)).await,
        }
    }

    async fn settle_lost(&self, tenant: &TenantId, settlement: Settlement) -> Result<(), StoreError> {
        let (id, now_ms) = (settlement.request_id, settlement.now_ms);
        // Once: it is tried again in the next round, and others wait for this one.
        let command = move |connection: &Connection| settle(connection, &settlement);
        let settled = match self.store.run(Db::Tenant(tenant.clone()), command).await {
            Ok(settled) => settled,
            Err(error @ StoreError::NoHold { .. }) => {
                warn!(%tenant, request = %id, %error, "there is nothing to settle any more");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let handle = self.tenants.handle(tenant).await?;
        if !settled.is_repeated {
            self.metrics.settled(&settled.provider, &settled.end, settled.absorbed);
            handle.unflushed.add(settled.end.cost, now_ms);
        }
        handle.journal.end(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::guard::HoldGuard;
    use super::*;
    use tokio::time::advance;

    fn held(unresolved: &Unresolved, id: u8) -> HoldGuard {
        let tenant: TenantId = "acme".parse().expect("valid");
        let mut guard = HoldGuard::queued(&tenant, RequestId([id; 16]), 80, 5, unresolved.clone());
        guard.held();
        guard
    }

    /// What the sweeper would resolve, by request and by how far its answer had come.
    fn taken(unresolved: &Unresolved) -> Vec<(u8, Option<u64>)> {
        let lost = unresolved.take().into_iter().map(|lost| match lost.how {
            How::Held { progress, .. } => (lost.request_id.0[0], Some(progress.events)),
            How::Settle(settlement) => (lost.request_id.0[0], Some(settlement.events)),
            How::Void { .. } => (lost.request_id.0[0], None),
        });
        lost.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_hold_of_a_task_that_stands_still_goes_to_the_sweeper_once() {
        let unresolved = Unresolved::default();
        let (mut alive, mut still) = (held(&unresolved, 1), held(&unresolved, 2));
        still.note(Progress { events: 7, ..Progress::default() });
        for _ in 0..10 {
            advance(RENEW).await;
            alive.note(alive.progress());
        }
        assert_eq!(taken(&unresolved), [(2, Some(7))]);
        assert!(taken(&unresolved).is_empty(), "once");
        // The task wakes up and goes: nothing more is to be resolved for it.
        drop(still);
        assert!(taken(&unresolved).is_empty());
        alive.disarm();
        advance(LEASE * 2).await;
        drop(alive);
        assert!(taken(&unresolved).is_empty(), "it was settled");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_that_is_dropped_goes_to_the_sweeper_with_its_progress() {
        let unresolved = Unresolved::default();
        let mut guard = held(&unresolved, 1);
        guard.note(Progress { events: 3, ..Progress::default() });
        drop(guard);
        let tenant: TenantId = "acme".parse().expect("valid");
        drop(HoldGuard::queued(&tenant, RequestId([2; 16]), 80, 5, unresolved.clone()));
        assert_eq!(taken(&unresolved), [(1, Some(3)), (2, None)]);
        advance(LEASE * 2).await;
        assert!(taken(&unresolved).is_empty(), "its lease has ended with it");
        // What did not get through to the store is settled later just so.
        let settlement = Settlement {
            request_id: RequestId([3; 16]),
            offer: 0,
            outcome: Outcome::COMPLETE,
            message: String::new(),
            usage: vec![],
            estimated: false,
            events: 44,
            first_event_ms: None,
            answer: Arc::default(),
            now_ms: 7,
        };
        for is_late in [false, true] {
            let mut guard = held(&unresolved, 4);
            guard.note(Progress { events: 3, ..Progress::default() });
            guard.voiding();
            if is_late {
                advance(LEASE * 2).await;
            } else {
                drop(guard);
            }
            assert_eq!(taken(&unresolved), [(4, None)], "what is to be given back is never charged");
        }
        for is_late in [false, true] {
            let mut guard = held(&unresolved, 3);
            guard.note(Progress { events: 3, ..Progress::default() });
            guard.settling(&settlement);
            if is_late {
                advance(LEASE * 2).await;
            } else {
                drop(guard);
            }
            assert_eq!(taken(&unresolved), [(3, Some(44))]);
        }
    }
}
