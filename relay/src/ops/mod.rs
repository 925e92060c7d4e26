//! What keeps the daemon healthy: rate limits, logging, its service manager and what that is told.

pub(crate) mod chores;
pub mod files;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod rate;
pub(crate) mod reserve;
pub mod service;
pub mod vitals;
