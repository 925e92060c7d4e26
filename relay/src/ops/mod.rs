//! What keeps the daemon healthy: rate limits, logging, its service manager and what that is told.

pub mod files;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod rate;
pub mod service;
pub mod vitals;
