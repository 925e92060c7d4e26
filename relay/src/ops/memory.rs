//! The memory that clients make the relay use, counted, and a budget for it: above it new work is
//! refused and running work goes on.
//!
//! What is counted is what grows with clients: tunnels and requests at what one was measured to cost,
//! request bodies, and the events that no reader has acknowledged. The process's own figure
//! would be no guide: an allocator keeps what it once had.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// An idle tunnel: measured at 54 KiB (docs/BENCHMARKS.md).
pub(crate) const TUNNEL: usize = 64 << 10;
/// A running request beside its body and its events: its task, the provider's connection, buffers.
pub(crate) const REQUEST: usize = 64 << 10;

/// What is used, and how much may be.
#[derive(Debug)]
pub struct Memory {
    used: AtomicUsize,
    max: usize,
}

impl Memory {
    /// A budget of `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Above nine tenths.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.used() > self.max / 10 * 9
    }

    /// Counts `bytes` until the charge is dropped. `None`: there is no room for new work.
    pub(crate) fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let after = used.saturating_add(bytes);
            (after <= self.max).then_some(after)
        });
        taken.is_ok().then(|| Charge { memory: Arc::clone(self), bytes })
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

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
    }
}

/// Memory for request bodies of the whole process; a part of what it may use in all.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    /// In KiB.
    room: Arc<Semaphore>,
    memory: Arc<Memory>,
}

/// Room for one body.
#[derive(Debug)]
pub(crate) struct BodyPermit(
    #[expect(dead_code, reason = "held")] OwnedSemaphorePermit,
    #[expect(dead_code, reason = "held")] Charge,
);

impl BodyBudget {
    /// A budget of `bytes` of `memory`.
    #[must_use]
    pub fn new(bytes: u32, memory: Arc<Memory>) -> Self {
        Self { room: Arc::new(Semaphore::new(bytes as usize / 1024)), memory }
    }

    /// Waits for room in the budget, and takes it from the memory if there is any.
    pub(crate) async fn take(&self, bytes: u32, wait: Duration) -> Option<BodyPermit> {
        let taken = Arc::clone(&self.room).acquire_many_owned(bytes.div_ceil(1024));
        let room = timeout(wait, taken).await.ok()?.ok()?;
        Some(BodyPermit(room, self.memory.charge(bytes as usize)?))
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
}
