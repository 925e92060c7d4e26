//! What nobody needs any more goes, once a day: rows first, then, once that is durable, the files that they named.

use super::{Sync, SyncError};
use crate::store::daily::daily;
use crate::store::erase::{Erased, erase};
use crate::store::executor::Db;
use crate::store::sync::forget::{forget, orphans};
use belay_protocol::id::TenantId;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// So long after the start.
const FIRST_ROUND: Duration = Duration::from_secs(90);

impl Sync {
    /// Forgets what is over of a tenant, and files that no row names: those of a relay that died between the two.
    pub async fn forget(&self, tenant: &TenantId) -> Result<(), SyncError> {
        let (now_ms, dir) = (self.now_ms(), self.store.tenant_dir(tenant));
        loop {
            let gone = self.run(tenant, move |connection| forget(connection, now_ms)).await?;
            self.blobs.remove(&dir, gone.files).await?;
            if !gone.more {
                break;
            }
        }
        let old = self.blobs.old(&dir).await?;
        if !old.is_empty() {
            let orphans = self.run(tenant, move |connection| orphans(connection, &old)).await?;
            self.blobs.remove(&dir, orphans).await?;
        }
        Ok(())
    }

    /// Erases all that a tenant has said and kept, in sessions too: rows first, then files.
    pub(crate) async fn erase(&self, tenant: &TenantId) -> Result<Erased, SyncError> {
        let erased = self.store.run(Db::Tenant(tenant.clone()), erase).await?;
        self.store.compact(&Db::Tenant(tenant.clone())).await?;
        self.blobs.remove_all(&self.store.tenant_dir(tenant)).await?;
        Ok(erased)
    }

    /// Forgets what is over of all tenants, soon and then every day, until `stop`.
    pub async fn forget_daily(&self, stop: CancellationToken) {
        let each = |tenant: TenantId| async move { self.forget(&tenant).await };
        daily(&self.store, FIRST_ROUND, &stop, ("forget old revisions and pieces", each)).await;
    }
}
