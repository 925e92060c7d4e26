//! The event log of one request: its events by number, until the reader has them.
//!
//! Owned by the request's one task, so it needs no lock. It is bounded by bytes, and all logs of the
//! process together by a [`LogBudget`]: while there is no room, the provider is not read. A reader
//! that comes back is served from it.

use crate::ops::memory::Memory;
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::FrameType;
use belay_protocol::frame::raw::PrefixPool;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a log may hold whatever the others do: readers acknowledge at every quarter of it, so one
/// that keeps up is never stopped by those that do not.
const ALWAYS: usize = 256 << 10;

/// Memory for the event logs of the whole process; a part of what the process may use.
#[derive(Debug)]
pub(crate) struct LogBudget {
    used: AtomicUsize,
    max: AtomicUsize,
    memory: Arc<Memory>,
}

impl LogBudget {
    /// A budget of `max` bytes.
    pub(crate) fn new(max: usize, memory: Arc<Memory>) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max: AtomicUsize::new(max), memory })
    }

    /// Another budget from now on.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    pub(super) fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.memory.add(bytes);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.memory.give_back(bytes);
    }

    /// Bytes that all logs hold.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// More is held than should be.
    pub(super) fn is_exceeded(&self) -> bool {
        self.used() > self.max.load(Ordering::Relaxed)
    }
}

/// Events that the reader has not acknowledged.
#[derive(Debug)]
pub(crate) struct EventLog {
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    bytes: usize,
    max_bytes: usize,
    prefixes: PrefixPool,
    budget: Arc<LogBudget>,
}

/// One event's frame: what stands before it, and itself, uncopied.
#[derive(Debug)]
struct Entry {
    prefix: Bytes,
    payload: Bytes,
}

impl Entry {
    /// What it costs to keep, with its places here, where half may be empty, and in the queue of a
    /// reader that does not take it.
    fn cost(&self) -> usize {
        self.prefix.len() + self.payload.len() + 3 * size_of::<Self>()
    }
}

impl EventLog {
    /// A log of at most `max_bytes`, within `budget`.
    pub(crate) fn new(max_bytes: usize, budget: Arc<LogBudget>) -> Self {
        Self { entries: VecDeque::new(), first: 0, bytes: 0, max_bytes, prefixes: PrefixPool::default(), budget }
    }

    /// Takes an event in and returns what stands before it in its frame.
    pub(crate) fn append(&mut self, kind: FrameType, payload: &Bytes) -> Result<Bytes, ProtocolError> {
        let prefix = self.prefixes.prefix(kind, self.next(), payload.len())?;
        let entry = Entry { prefix: prefix.clone(), payload: payload.clone() };
        self.bytes += entry.cost();
        self.budget.take(entry.cost());
        self.entries.push_back(entry);
        Ok(prefix)
    }

    /// The number of the first event that is still here, or of the next one.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// The number that the next event will have; as many events there were.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// What the log holds, with what each event's place costs.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The frames of all events that are still here, in two parts each.
    pub(super) fn frames(&self) -> impl Iterator<Item = &Bytes> {
        self.entries.iter().flat_map(|entry| [&entry.prefix, &entry.payload])
    }

    /// The reader has everything below `next`.
    pub(crate) fn acknowledge(&mut self, next: u64) {
        let mut freed = 0;
        while self.first < next {
            let Some(entry) = self.entries.pop_front() else { break };
            freed += entry.cost();
            self.first += 1;
        }
        self.bytes -= freed;
        self.budget.give_back(freed);
    }

    /// False while the reader is too far behind for more.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < ALWAYS.min(self.max_bytes) || self.bytes < self.max_bytes && !self.budget.is_exceeded()
    }

    /// The process's budget, and not this log's own bound, is in the way.
    pub(super) fn is_short_of_budget(&self) -> bool {
        self.bytes < self.max_bytes && !self.has_room()
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(len: usize) -> Bytes {
        Bytes::from(vec![b'x'; len])
    }

    #[test]
    fn it_is_full_until_the_reader_acknowledges() {
        let mut log = EventLog::new(2000, LogBudget::new(1 << 20, Memory::new(1 << 30)));
        log.append(FrameType::Event, &event(940)).expect("fits");
        assert!(log.has_room());
        log.append(FrameType::Event, &event(940)).expect("fits");
        assert!(!log.has_room() && !log.is_short_of_budget());
        log.acknowledge(1);
        assert!(log.has_room());
        assert_eq!((log.first(), log.next(), log.frames().count()), (1, 2, 2));
        // An acknowledgement of what was never sent acknowledges what was.
        log.acknowledge(u64::MAX);
        assert_eq!((log.next(), log.bytes()), (2, 0));
        log.append(FrameType::Event, &event(40)).expect("fits");
        assert_eq!(log.next(), 3);
    }

    #[test]
    fn all_logs_share_a_budget_and_none_is_starved_by_the_others() {
        let budget = LogBudget::new(1 << 20, Memory::new(1 << 30));
        let mut hoarder = EventLog::new(8 << 20, Arc::clone(&budget));
        while hoarder.has_room() {
            hoarder.append(FrameType::Event, &event(100_000)).expect("fits");
        }
        assert!(budget.used() > 1 << 20 && budget.used() < (1 << 20) + 110_000 && hoarder.is_short_of_budget());
        let mut other = EventLog::new(8 << 20, Arc::clone(&budget));
        for _ in 0..20 {
            assert!(other.has_room());
            other.append(FrameType::Event, &event(100_000)).expect("fits");
            other.acknowledge(u64::MAX);
        }
        other.append(FrameType::Event, &event(200_000)).expect("fits");
        other.append(FrameType::Event, &event(100_000)).expect("fits");
        assert!(!other.has_room() && other.is_short_of_budget());
        drop(hoarder);
        assert!(other.has_room());
        drop(other);
        assert_eq!(budget.used(), 0);
    }
}
