//! A whole answer that is not streamed, kept for its usage figures and counted for as long as it is.

use crate::ops::memory::{Charge, Memory};
use bytes::BytesMut;
use std::ops::Deref;
use std::sync::Arc;

/// What has come of it.
#[derive(Debug)]
pub(super) struct Whole {
    bytes: BytesMut,
    charge: Charge,
}

impl Whole {
    pub(super) fn new(memory: &Arc<Memory>) -> Self {
        Self { bytes: BytesMut::new(), charge: memory.hold(0) }
    }

    /// It belongs to work that is under way, so there is room; new work is refused for it.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.charge.grow(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }
}

impl Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_until_it_is_dropped() {
        let memory = Memory::new(100);
        let mut whole = Whole::new(&memory);
        whole.push(&[1; 70]);
        whole.push(&[2; 70]);
        assert_eq!((whole.len(), memory.used()), (140, 140));
        assert!(memory.charge(1).is_none(), "nothing new begins");
        drop(whole);
        assert_eq!(memory.used(), 0);
    }
}
