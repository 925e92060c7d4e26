//! Figures of a link.

/// What has become of the packets of one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Packets that came.
    pub came: u64,
    /// Packets that were handed on, doubles included.
    pub arrived: u64,
    /// Bytes that were handed on.
    pub bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Sent twice by chance.
    pub duplicated: u64,
    /// Made late by chance.
    pub overtaken: u64,
    /// Dropped because the queue was full.
    pub overflowed: u64,
    /// Dropped by the blackhole.
    pub blackholed: u64,
}

/// What has become of all packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// From clients to the relay.
    pub up: Tally,
    /// From the relay to clients.
    pub down: Tally,
    /// Client addresses seen.
    pub clients: usize,
}
