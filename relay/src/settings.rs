//! What the relay runs with, until a reload puts something else in its place. Whoever has begun goes on with what it has:
//! a request is held, sent and settled by one and the same configuration.

use crate::config::Config;
use crate::providers::Providers;
use std::sync::{Arc, PoisonError, RwLock};

/// A configuration, and what was made of it.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) config: Arc<Config>,
    pub(crate) providers: Providers,
    /// Version of its price list in central.
    pub(crate) price_version: i64,
}

/// The settings that are in force.
#[derive(Debug)]
pub(crate) struct InForce(RwLock<Arc<Settings>>);

impl InForce {
    pub(crate) fn new(settings: Settings) -> Self {
        Self(RwLock::new(Arc::new(settings)))
    }

    /// Those of now.
    pub(crate) fn get(&self) -> Arc<Settings> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Others, from now on.
    pub(crate) fn set(&self, settings: Settings) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }
}
