//! Handles of tenants: opened on demand with recovery first, closed when idle.
//!
//! A tenant's file is opened by the store when a command comes. Before the first hold of this
//! process, the holds of dead processes are resolved with the help of the dispatch journal, and the
//! journal is begun anew. A running request keeps its tenant's handle alive.

use crate::store::books::Books;
use crate::store::executor::{Db, Store};
use crate::store::journal::{self, Journal};
use crate::store::ledger::Boot;
use crate::store::ledger::outbox::{self, Pending};
use crate::store::ledger::rates::Rates;
use crate::store::ledger::recover::{Recovered, open_holds, recover};
use crate::store::{StoreError, central};
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use belay_transport::env::Clock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;
use tracing::{error, info, warn};

/// A tenant whose book is recovered and whose journal is open.
#[derive(Debug)]
pub struct TenantHandle {
    /// The tenant.
    pub id: TenantId,
    /// Where dispatches are noted.
    pub journal: Journal,
    /// Its requests of the last minute.
    pub rates: Arc<Rates>,
    /// Usage that central has not been handed.
    pub unflushed: Unflushed,
}

/// Usage that waits to be handed to central, as far as it is known here: the outbox has the truth.
#[derive(Debug, Default)]
pub struct Unflushed(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    nano: i64,
    /// Since when, milliseconds since 1970.
    since_ms: Option<u64>,
    /// Requests that were settled.
    settled: u64,
}

impl Unflushed {
    /// A request was settled.
    pub(crate) fn add(&self, cost: NanoUsd, now_ms: u64) {
        let mut waiting = self.lock();
        waiting.nano = waiting.nano.saturating_add(cost.0);
        waiting.since_ms.get_or_insert(now_ms);
        waiting.settled += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many were settled by now, and what waits for them.
    fn known(&self) -> (u64, i64) {
        let waiting = self.lock();
        (waiting.settled, waiting.nano)
    }

    /// This waits in the outbox, which was read after so much was `known`, at `now_ms`. What was settled since may be in
    /// it, or not: it counts once more, and from now on.
    fn set(&self, pending: &Pending, known: (u64, i64), now_ms: u64) {
        let mut waiting = self.lock();
        let oldest_ms = pending.oldest_ms.map(|ms| u64::try_from(ms).unwrap_or(0));
        let is_since = waiting.settled != known.0;
        waiting.nano = pending.cost.0.saturating_add(waiting.nano.saturating_sub(known.1).max(0));
        waiting.since_ms = oldest_ms.or(is_since.then_some(now_ms));
    }

    fn is_due(&self, policy: FlushPolicy, now_ms: u64) -> bool {
        let waiting = self.lock();
        let is_old = |since_ms| now_ms.saturating_sub(since_ms) >= policy.after_ms;
        waiting.since_ms.is_some_and(|since_ms| waiting.nano >= policy.at.0 || is_old(since_ms))
    }

    fn is_empty(&self) -> bool {
        self.lock().since_ms.is_none()
    }
}

/// When usage is handed to central.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlushPolicy {
    /// As soon as a tenant has so much waiting, in nano-USD.
    pub at: NanoUsd,
    /// And when the oldest has waited for so many milliseconds.
    pub after_ms: u64,
}

type Slot = Arc<OnceCell<Arc<TenantHandle>>>;

/// All open tenants.
#[derive(Debug)]
pub struct Tenants {
    store: Store,
    books: Books,
    boot: Boot,
    clock: Arc<dyn Clock>,
    open: Mutex<HashMap<TenantId, Slot>>,
}

impl Tenants {
    /// No tenant is open yet.
    #[must_use]
    pub fn new(store: Store, books: Books, boot: Boot, clock: Arc<dyn Clock>) -> Self {
        Self { store, books, boot, clock, open: Mutex::new(HashMap::new()) }
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
        self.books.bring_terms(id).await?;
        let progress = journal::read(&dir).map_err(failed)?;
        let said = progress.clone();
        let (boot, now_ms) = (self.boot.clone(), self.clock.now_ms());
        let recovered: Recovered = self
            .store
            .run(Db::Tenant(id.clone()), move |connection| recover(connection, &boot, progress.as_ref(), now_ms))
            .await?;
        if !recovered.voided.is_empty() || !recovered.settled.is_empty() {
            let (voided, settled) = (recovered.voided.len(), recovered.settled.len());
            info!(tenant = %id, voided, settled, "resolved the holds of a process that died");
        }
        for (request, why) in &recovered.failed {
            error!(tenant = %id, %request, %why, "cannot resolve a hold; see what belayd ledger verify says");
        }
        // What it says of holds that are open still, which the sweeper waits to resolve or recovery could not,
        // is to be known after the next death, too.
        let open = self.store.run(Db::Tenant(id.clone()), open_holds).await?;
        let kept = said.into_iter().flatten().filter(|(request, _)| open.contains(request)).collect();
        let journal = Journal::start(&dir, kept).map_err(failed)?;
        let pending = self.store.run(Db::Tenant(id.clone()), outbox::pending).await?;
        let unflushed = Unflushed::default();
        unflushed.set(&pending, unflushed.known(), self.clock.now_ms());
        Ok(Arc::new(TenantHandle { id: id.clone(), journal, rates: Arc::default(), unflushed }))
    }

    fn opened(&self) -> Vec<Arc<TenantHandle>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().filter_map(|slot| slot.get().cloned()).collect()
    }

    /// Hands over to central what is due; `None`: all of it.
    pub async fn flush(&self, policy: Option<FlushPolicy>) {
        for handle in self.opened() {
            let due = match policy {
                Some(policy) => handle.unflushed.is_due(policy, self.clock.now_ms()),
                None => !handle.unflushed.is_empty(),
            };
            if due && let Err(error) = self.flush_one(&handle.id).await {
                // It stays in the outbox, and is due at the next look.
                warn!(tenant = %handle.id, %error, "cannot hand usage over to central");
            }
        }
    }

    /// Hands a tenant's usage over now. Returns what waits still.
    pub async fn flush_one(&self, id: &TenantId) -> Result<Pending, StoreError> {
        let handle = self.handle(id).await?;
        let known = handle.unflushed.known();
        let pending = self.books.flush(id).await?;
        handle.unflushed.set(&pending, known, self.clock.now_ms());
        Ok(pending)
    }

    /// Closes the handles that nobody uses and that have nothing to remember.
    pub fn close_idle(&self) {
        let now_ms = self.clock.now_ms();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody can take a new reference while the map is locked.
        open.retain(|_, slot| {
            let handle_used = slot.get().is_some_and(|handle| {
                Arc::strong_count(handle) > 1 || !handle.rates.is_idle(now_ms) || !handle.unflushed.is_empty()
            });
            Arc::strong_count(slot) > 1 || handle_used
        });
    }

    /// How many handles are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Their books.
    #[must_use]
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// Names of all tenants.
    pub async fn all(&self) -> Result<Vec<central::Tenant>, StoreError> {
        self.store.run(Db::Central, central::tenants).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::{MASTER_KEY, MasterKey};
    use crate::store::executor::StoreConfig;
    use crate::store::ledger::budget::{Measure, Scope};
    use crate::store::ledger::hold::{HoldOutcome, hold};
    use crate::store::ledger::money::{Operation, operate};
    use crate::store::ledger::rates::Bound;
    use crate::store::ledger::{self};
    use crate::store::schema::Durability;
    use belay_protocol::id::RequestId;
    use belay_transport::env::Random;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[derive(Debug)]
    struct At(AtomicU64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn tenants(dir: &std::path::Path) -> (Tenants, Arc<At>) {
        let (threads, durability) = (0, Durability::None);
        let idle_close = Duration::from_secs(60);
        let store = Store::start(&StoreConfig { dir: dir.into(), threads, durability, idle_close, max_open: 2 });
        let clock = Arc::new(At(AtomicU64::new(1_000_000)));
        let boot = Boot { machine: "m1".into(), process: "p1".into() };
        let master = MasterKey::load(&dir.join(MASTER_KEY), Some(&Random::from_seed(1))).expect("made");
        let books = Books::new(store.clone(), clock.clone(), &master, NanoUsd::ZERO);
        (Tenants::new(store, books, boot, clock.clone()), clock)
    }

    #[tokio::test]
    async fn a_tenant_is_closed_once_its_last_minute_is_over() {
        let dir = tempfile::tempdir().expect("made");
        let (tenants, clock) = tenants(dir.path());
        let id = "acme".parse().expect("name");
        let limit = [Bound { scope: Scope::Tenant, measure: Measure::RequestsMinute, count: 2 }];
        let take = |handle: &TenantHandle| handle.rates.take(&limit, 0, clock.now_ms()).map(|_| ());
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

    #[test]
    fn what_is_settled_while_the_outbox_is_read_still_waits() {
        let unflushed = Unflushed::default();
        let nothing = Pending::default();
        unflushed.add(NanoUsd(5), 1000);
        let before = unflushed.known();
        unflushed.add(NanoUsd(7), 2000);
        unflushed.set(&nothing, before, 3000);
        assert!(!unflushed.is_empty(), "the second one may not have been read");
        assert_eq!(unflushed.known().1, 7);
        unflushed.set(&nothing, unflushed.known(), 3000);
        assert!(unflushed.is_empty());
    }

    #[tokio::test]
    async fn the_journal_keeps_what_it_says_of_holds_that_are_open() {
        let dir = tempfile::tempdir().expect("made");
        let (tenants, _) = tenants(dir.path());
        let id: TenantId = "acme".parse().expect("name");
        let open = ledger::tests::request(1);
        let (request, store) = (open.request_id, tenants.store.clone());
        let held = store.run(Db::Tenant(id.clone()), move |connection| {
            operate(connection, Operation::Credit, NanoUsd(1 << 30), "opening", None, open.now_ms)?;
            hold(connection, &open)
        });
        assert!(matches!(held.await.expect("works"), HoldOutcome::Held(_)));
        let journal = Journal::start(&store.tenant_dir(&id), HashMap::new()).expect("made");
        let progress = journal::Progress { events: 7, ..journal::Progress::default() };
        for id in [request, RequestId([9; 16])] {
            journal.append(id, progress).expect("noted");
        }
        // Opened, and opened anew after it was closed, while the hold waits for the sweeper.
        for _ in 0..2 {
            tenants.handle(&id).await.expect("opened");
            tenants.close_idle();
            assert_eq!(tenants.open_count(), 0);
            let said = journal::read(&store.tenant_dir(&id)).expect("read").expect("there");
            assert_eq!(said, HashMap::from([(request, progress)]));
        }
    }
}
