//! Handles of tenants: opened on demand with recovery first, closed when idle.
//!
//! A tenant's file is opened by the store when a command comes. Before the first hold of this
//! process, the holds of dead processes are resolved with the help of the dispatch journal, and the
//! journal is begun anew. A running request keeps its tenant's handle alive.

use crate::ops::rate::Rate;
use crate::store::executor::{Db, Store};
use crate::store::journal::{self, Journal};
use crate::store::ledger::recover::{Recovered, recover};
use crate::store::ledger::{self, Boot};
use crate::store::{StoreError, central};
use belay_protocol::id::TenantId;
use belay_transport::env::Clock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;
use tracing::info;

/// A tenant whose book is recovered and whose journal is open.
#[derive(Debug)]
pub struct TenantHandle {
    /// The tenant.
    pub id: TenantId,
    /// Where dispatches are noted.
    pub journal: Journal,
    /// Its requests of the last minute.
    pub rate: Arc<Rate>,
}

type Slot = Arc<OnceCell<Arc<TenantHandle>>>;

/// All open tenants.
#[derive(Debug)]
pub struct Tenants {
    store: Store,
    boot: Boot,
    clock: Arc<dyn Clock>,
    open: Mutex<HashMap<TenantId, Slot>>,
}

impl Tenants {
    /// No tenant is open yet.
    #[must_use]
    pub fn new(store: Store, boot: Boot, clock: Arc<dyn Clock>) -> Self {
        Self { store, boot, clock, open: Mutex::new(HashMap::new()) }
    }

    /// The tenant's handle; the first caller recovers the book. The tenant must exist in central.
    pub async fn handle(&self, id: &TenantId) -> Result<Arc<TenantHandle>, StoreError> {
        let slot = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(open.entry(id.clone()).or_default())
        };
        slot.get_or_try_init(|| self.open(id)).await.cloned()
    }

    async fn open(&self, id: &TenantId) -> Result<Arc<TenantHandle>, StoreError> {
        let failed =
            |error: std::io::Error| StoreError::Failed { operation: "dispatch journal", why: error.to_string() };
        let dir = self.store.tenant_dir(id);
        let progress = journal::read(&dir).map_err(failed)?;
        let (boot, now_ms) = (self.boot.clone(), self.clock.now_ms());
        let recovered: Recovered = self
            .store
            .run(Db::Tenant(id.clone()), move |connection| recover(connection, &boot, progress.as_ref(), now_ms))
            .await?;
        if !recovered.voided.is_empty() || !recovered.settled.is_empty() {
            let (voided, settled) = (recovered.voided.len(), recovered.settled.len());
            info!(tenant = %id, voided, settled, "resolved the holds of a process that died");
        }
        // Every hold that the journal spoke of is resolved, durably.
        let journal = Journal::start(&dir).map_err(failed)?;
        Ok(Arc::new(TenantHandle { id: id.clone(), journal, rate: Arc::default() }))
    }

    /// Closes the handles that nobody uses and that have nothing to remember.
    pub fn close_idle(&self) {
        let now_us = self.clock.now_ms().saturating_mul(1000);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody can take a new reference while the map is locked.
        open.retain(|_, slot| {
            let handle_used =
                slot.get().is_some_and(|handle| Arc::strong_count(handle) > 1 || !handle.rate.is_idle(now_us));
            Arc::strong_count(slot) > 1 || handle_used
        });
    }

    /// How many handles are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What the tenant has.
    pub async fn summary(&self, id: &TenantId) -> Result<ledger::Summary, StoreError> {
        self.store.run(Db::Tenant(id.clone()), ledger::summary).await
    }

    /// Names of all tenants.
    pub async fn all(&self) -> Result<Vec<central::Tenant>, StoreError> {
        self.store.run(Db::Central, central::tenants).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::rate::Limit;
    use crate::store::executor::StoreConfig;
    use crate::store::schema::Durability;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[derive(Debug)]
    struct At(AtomicU64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn a_tenant_is_closed_once_its_last_minute_is_over() {
        let dir = tempfile::tempdir().expect("made");
        let (threads, durability) = (0, Durability::None);
        let idle_close = Duration::from_secs(60);
        let store = Store::start(&StoreConfig { dir: dir.path().into(), threads, durability, idle_close, max_open: 2 });
        let clock = Arc::new(At(AtomicU64::new(1_000_000)));
        let boot = Boot { machine: "m".into(), process: "p".into() };
        let tenants = Tenants::new(store, boot, clock.clone());
        let (id, limit) = ("acme".parse().expect("name"), Limit::per_minute(2));
        let take = |handle: &TenantHandle| handle.rate.take(limit, clock.now_ms() * 1000);
        for _ in 0..2 {
            assert_eq!(take(&tenants.handle(&id).await.expect("opened")), Ok(()));
            tenants.close_idle();
        }
        assert!(take(&tenants.handle(&id).await.expect("opened")).is_err(), "a sweep forgives nothing");
        clock.0.fetch_add(60_000, Ordering::Relaxed);
        tenants.close_idle();
        assert_eq!(tenants.open_count(), 0);
        assert_eq!(take(&tenants.handle(&id).await.expect("opened")), Ok(()));
    }
}
