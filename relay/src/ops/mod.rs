//! What keeps the daemon healthy: rate limits, logging, signals.

pub mod log;
pub mod memory;
pub mod rate;
