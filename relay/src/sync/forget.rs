//! What nobody needs any more goes, once a day: rows first, then, once that is durable, the files that they named.

use super::{Sync, SyncError};
use crate::store::central;
use crate::store::executor::Db;
use crate::store::sync::forget::{forget, orphans};
use belay_protocol::id::TenantId;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// So long after the start, and then every so often.
const FIRST_ROUND: Duration = Duration::from_secs(90);
const ROUND: Duration = Duration::from_secs(24 * 60 * 60);

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

    /// The same for all tenants, soon and then every day, until `stop`.
    pub async fn forget_daily(&self, stop: CancellationToken) {
        let mut next = FIRST_ROUND;
        while stop.run_until_cancelled(sleep(next)).await.is_some() {
            next = ROUND;
            match self.store.run(Db::Central, central::tenants).await {
                Ok(all) => {
                    for tenant in all {
                        if stop.is_cancelled() {
                            return;
                        }
                        if let Err(error) = self.forget(&tenant.id).await {
                            warn!(tenant = %tenant.id, ?error, "cannot forget old revisions and pieces");
                        }
                    }
                }
                Err(error) => warn!(%error, "cannot list the tenants"),
            }
        }
    }
}
