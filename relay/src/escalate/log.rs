//! The event log of one request: its events by number, until the reader has them.
//!
//! Owned by the request's one task, so it needs no lock. It is bounded by bytes: while it is full
//! the provider is not read. Resuming readers will be served from it.

use belay_protocol::error::ProtocolError;
use belay_protocol::frame::FrameType;
use belay_protocol::frame::raw::PrefixPool;
use bytes::Bytes;
use std::collections::VecDeque;

/// Events that the reader has not acknowledged.
#[derive(Debug)]
pub(crate) struct EventLog {
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    bytes: usize,
    max_bytes: usize,
    prefixes: PrefixPool,
}

#[derive(Debug)]
struct Entry {
    bytes: usize,
}

impl EventLog {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { entries: VecDeque::new(), first: 0, bytes: 0, max_bytes, prefixes: PrefixPool::default() }
    }

    /// Takes an event in and returns its frame in two parts: what stands before it, and itself,
    /// uncopied.
    pub(crate) fn append(&mut self, kind: FrameType, payload: &Bytes) -> Result<Bytes, ProtocolError> {
        let prefix = self.prefixes.prefix(kind, self.next(), payload.len())?;
        let bytes = prefix.len() + payload.len();
        self.entries.push_back(Entry { bytes });
        self.bytes += bytes;
        Ok(prefix)
    }

    /// The number that the next event will have; as many events there were.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The reader has everything below `next`.
    pub(crate) fn acknowledge(&mut self, next: u64) {
        while self.first < next {
            let Some(entry) = self.entries.pop_front() else { return };
            self.bytes -= entry.bytes;
            self.first += 1;
        }
    }

    /// False while the reader is too far behind for more.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < self.max_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_until_the_reader_acknowledges() {
        let mut log = EventLog::new(100);
        let event = Bytes::from_static(&[b'x'; 40]);
        log.append(FrameType::Event, &event).expect("fits");
        assert!(log.has_room());
        log.append(FrameType::Event, &event).expect("fits");
        assert!(!log.has_room());
        log.acknowledge(1);
        assert!(log.has_room());
        // An acknowledgement of what was never sent acknowledges what was.
        log.acknowledge(u64::MAX);
        assert_eq!(log.next(), 2);
        log.append(FrameType::Event, &event).expect("fits");
        assert_eq!(log.next(), 3);
    }
}
