//! What keeps the daemon healthy: rate limits, logging, signals.

pub mod files;
pub mod log;
pub mod memory;
pub mod rate;
