//! Whoever waits for a tenant's items to change is told after the commit that changed one.

use super::sync::last_number;
use belay_protocol::id::TenantId;
use rusqlite::Connection;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;
use tracing::warn;

/// The tenants that somebody watches, each with the number of its last change.
#[derive(Debug, Default)]
pub(super) struct Watchers(Mutex<HashMap<TenantId, watch::Sender<u64>>>);

impl Watchers {
    /// Follows a tenant's changes, from the next commit on.
    pub(super) fn watch(&self, tenant: &TenantId) -> watch::Receiver<u64> {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, sender| sender.receiver_count() > 0);
        watched.entry(tenant.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// A transaction of a tenant was committed.
    pub(super) fn committed(&self, tenant: &TenantId, connection: &Connection) {
        let watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = watched.get(tenant) else { return };
        match last_number(connection) {
            Ok(number) => {
                sender.send_if_modified(|known| std::mem::replace(known, number) != number);
            }
            Err(error) => warn!(%tenant, %error, "cannot tell what has changed"),
        }
    }
}
