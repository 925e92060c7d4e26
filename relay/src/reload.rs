//! A reload: another configuration takes effect while everything goes on.
//!
//! All that can fail is done before anything is changed: the file is read and checked, certificates, keys and providers are
//! made ready, prices recorded. What needs a restart keeps its old value and is named. Requests that have begun end under
//! the settings that they began with; a provider of which nothing has changed keeps its warm connections.

use crate::config::{ConfigError, Difference};
use crate::connection::Shared;
use crate::http::{Http, HttpStartError};
use crate::ops::log;
use crate::providers::http::error_chain;
use crate::providers::{self, Providers};
use crate::server::record_prices;
use crate::settings::Settings;
use crate::store::StoreError;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;
use tracing::{error, info, warn};

/// Why everything stays as it was.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// What is written is not acceptable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate, or the keys of an issuer, cannot be used.
    #[error(transparent)]
    Http(#[from] HttpStartError),
    /// The prices could not be recorded.
    #[error("cannot record the prices")]
    Store(#[from] StoreError),
    /// Something else cannot be made of it.
    #[error("{0}")]
    Setup(String),
}

/// How the last reload went.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LastReload {
    /// When, milliseconds since 1970; 0: there was none.
    pub at_ms: u64,
    /// Why nothing was changed.
    pub error: Option<String>,
    /// Keys whose new value waits for a restart.
    pub needs_restart: Vec<String>,
}

/// Reloads a relay.
#[derive(Debug)]
pub(crate) struct Reloader {
    shared: Arc<Shared>,
    http: Option<Arc<Http>>,
    /// Used whatever is configured.
    overrides: Providers,
    /// One at a time.
    turn: tokio::sync::Mutex<()>,
    last: Mutex<LastReload>,
}

impl Reloader {
    pub(crate) fn new(shared: Arc<Shared>, http: Option<Arc<Http>>, overrides: Providers) -> Self {
        Self { shared, http, overrides, turn: tokio::sync::Mutex::default(), last: Mutex::default() }
    }

    /// When the certificate ends that callers over HTTP are shown.
    pub(crate) fn http_certificate_ends_ms(&self) -> Option<u64> {
        self.http.as_ref()?.certificate_ends_ms()
    }

    /// How the last one went.
    pub(crate) fn last(&self) -> LastReload {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the configuration anew and puts it in force. Errors: nothing has changed; all of [`ReloadError`].
    pub(crate) async fn reload(&self) -> Result<Difference, ReloadError> {
        let _turn = self.turn.lock().await;
        let at_ms = self.shared.escalator.env.clock.now_ms();
        let reloaded = self.take().await;
        self.shared.escalator.metrics.reloaded(reloaded.is_ok());
        let last = match &reloaded {
            Ok(difference) => {
                let (applied, waiting) = (difference.applied.join(", "), difference.needs_restart.join(", "));
                info!(%applied, "the configuration was read anew");
                if !waiting.is_empty() {
                    warn!(keys = %waiting, "these have changed and need a restart");
                }
                LastReload { at_ms, error: None, needs_restart: difference.needs_restart.clone() }
            }
            Err(error) => {
                let why = error_chain(error);
                error!(%why, "the new configuration is not taken; everything stays as it was");
                LastReload { at_ms, error: Some(why), needs_restart: self.last().needs_restart }
            }
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
        reloaded
    }

    async fn take(&self) -> Result<Difference, ReloadError> {
        let escalator = &self.shared.escalator;
        let old = escalator.settings.get();
        let (config, difference) = old.config.changed_to(old.config.load_again()?);
        let log = log::prepare(&config.log_filter).map_err(|why| ReloadError::Setup(format!("log.filter: {why}")))?;
        let http = match (&self.http, &config.http) {
            (Some(http), Some(wanted)) => Some((http, http.prepare(wanted.clone())?)),
            _ => None,
        };
        let mut made = providers::from_config(&config, Some(&old)).map_err(ReloadError::Setup)?;
        made.extend(self.overrides.clone());
        let price_version = record_prices(&escalator.store, &config, escalator.env.clock.now_ms()).await?;
        // From here on nothing fails.
        let limits = &config.limits;
        escalator.memory.set_max(limits.memory);
        escalator.flights.budget.set_max(limits.event_logs);
        escalator.tenants.books().set_allowance(config.billing.free_allowance);
        self.shared.sessions.set_most(limits.sessions);
        self.shared.sync.set_quota(limits.sync);
        if let Some((http, next)) = http {
            http.take(next);
        }
        escalator.settings.set(Settings { config: Arc::new(config), providers: made, price_version });
        log();
        Ok(difference)
    }
}
