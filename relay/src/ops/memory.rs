//! The memory that clients make the relay use, counted, and a budget for it: above it new work is
//! refused and running work goes on.
//!
//! What is counted is what grows with clients: tunnels and requests at what one was measured to cost,
//! request bodies, and the events that no reader has acknowledged. The process's own figure
//! would be no guide: an allocator keeps what it once had.

use belay_protocol::id::TenantId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// An idle tunnel: measured at 47 KiB (docs/BENCHMARKS.md).
pub(crate) const TUNNEL: usize = 64 << 10;
/// A running request beside its body and its events: its task, the provider's connection, buffers.
pub(crate) const REQUEST: usize = 64 << 10;

/// What is used, and how much may be.
#[derive(Debug)]
pub struct Memory {
    used: AtomicUsize,
    max: AtomicUsize,
}

impl Memory {
    /// A budget of `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max: AtomicUsize::new(max) })
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Another budget from now on.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Above nine tenths.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.used() > self.max() / 10 * 9
    }

    /// Counts `bytes` until the charge is dropped. `None`: there is no room for new work.
    pub(crate) fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        self.take(bytes).then(|| Charge { memory: Arc::clone(self), bytes })
    }

    /// Counts `bytes` of work that is under way, whether there is room or not, until the charge is dropped.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Charge {
        self.add(bytes);
        Charge { memory: Arc::clone(self), bytes }
    }

    /// Counts `bytes`, if there is room for new work, until they are given back.
    fn take(&self, bytes: usize) -> bool {
        let max = self.max();
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let after = used.saturating_add(bytes);
            (after <= max).then_some(after)
        });
        taken.is_ok()
    }

    /// Counts what belongs to work that is under way, whether there is room or not.
    pub(crate) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Undoes [`add`](Self::add).
    pub(crate) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Memory that is counted for as long as this lives.
#[derive(Debug)]
pub(crate) struct Charge {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Charge {
    /// Counts `bytes` more, whether there is room or not.
    pub(crate) fn grow(&mut self, bytes: usize) {
        self.memory.add(bytes);
        self.bytes += bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
    }
}

/// One tenant may have this part of the room for bodies: half.
const TENANTS_PART: usize = 2;

/// Memory for request bodies of the whole process; a part of what it may use in all. It is taken as
/// bodies arrive, never for what is announced.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    /// In KiB.
    room: Arc<Semaphore>,
    /// The same for each tenant that sends bodies.
    tenants: Arc<Mutex<HashMap<TenantId, Weak<Semaphore>>>>,
    tenants_room: usize,
    memory: Arc<Memory>,
}

/// Room for one body, as far as it has arrived.
#[derive(Debug)]
pub(crate) struct BodyPermit {
    of_tenant: Arc<Semaphore>,
    room: Arc<Semaphore>,
    memory: Arc<Memory>,
    kib: usize,
}

impl BodyBudget {
    /// A budget of `bytes` of `memory`, where the largest body has `largest`.
    #[must_use]
    pub fn new(bytes: u32, largest: u32, memory: Arc<Memory>) -> Self {
        let kib = bytes as usize / 1024;
        let tenants_room = (kib / TENANTS_PART).max(largest.div_ceil(1024) as usize).min(kib);
        Self { room: Arc::new(Semaphore::new(kib)), tenants: Arc::default(), tenants_room, memory }
    }

    /// For one body of a tenant; there is nothing of it yet.
    pub(crate) fn body(&self, tenant: &TenantId) -> BodyPermit {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tenants.get(tenant).and_then(Weak::upgrade);
        let of_tenant = known.unwrap_or_else(|| {
            let new = Arc::new(Semaphore::new(self.tenants_room));
            tenants.retain(|_, room| room.strong_count() > 0);
            tenants.insert(tenant.clone(), Arc::downgrade(&new));
            new
        });
        BodyPermit { of_tenant, room: Arc::clone(&self.room), memory: Arc::clone(&self.memory), kib: 0 }
    }
}

impl BodyPermit {
    /// Has room for `bytes` in all; waits for it until then. False: there is none.
    pub(crate) async fn grow(&mut self, bytes: usize, until: Instant) -> bool {
        let kib = bytes.div_ceil(1024);
        let more = u32::try_from(kib.saturating_sub(self.kib)).unwrap_or(u32::MAX);
        if more == 0 {
            return true;
        }
        // The tenant's first: what waits there keeps nothing from others.
        let taken = timeout_at(until, async {
            let of_tenant = self.of_tenant.acquire_many(more).await.ok()?;
            Some((of_tenant, self.room.acquire_many(more).await.ok()?))
        });
        let Ok(Some((of_tenant, room))) = taken.await else { return false };
        if !self.memory.take(more as usize * 1024) {
            return false;
        }
        of_tenant.forget();
        room.forget();
        self.kib = kib;
        true
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        self.of_tenant.add_permits(self.kib);
        self.room.add_permits(self.kib);
        self.memory.give_back(self.kib * 1024);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_until_the_budget_is_used_and_again_when_it_is_given_back() {
        let memory = Memory::new(100);
        let first = memory.charge(60).expect("room");
        assert!(memory.charge(41).is_none());
        memory.add(50);
        assert!(memory.charge(1).is_none());
        memory.give_back(50);
        let second = memory.charge(40).expect("room");
        drop(first);
        assert_eq!(memory.used(), 40);
        drop(second);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_take_what_has_arrived_and_one_tenant_leaves_room_for_others() {
        let memory = Memory::new(1 << 20);
        let budget = BodyBudget::new(100 << 10, 10 << 10, Arc::clone(&memory));
        let soon = || Instant::now() + std::time::Duration::from_secs(1);
        let [a, b]: [TenantId; 2] = ["a", "b"].map(|name| name.parse().expect("name"));
        let mut large = budget.body(&a);
        assert!(large.grow(40 << 10, soon()).await && large.grow(30 << 10, soon()).await);
        assert_eq!(memory.used(), 40 << 10);
        let mut second = budget.body(&a);
        assert!(second.grow(10 << 10, soon()).await);
        assert!(!second.grow(11 << 10, soon()).await, "half of the room is the tenant's");
        let mut others = budget.body(&b);
        assert!(others.grow(50 << 10, soon()).await, "and half is left");
        drop(large);
        assert!(second.grow(50 << 10, soon()).await);
        drop((second, others));
        assert_eq!(memory.used(), 0);
    }
}
