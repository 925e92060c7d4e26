//! Suspending a tenant: by the operator, or because it has come to its ceiling.

use super::Escalator;
use crate::store::StoreError;
use belay_protocol::error::CloseCode;
use belay_protocol::id::TenantId;
use tracing::warn;

impl Escalator {
    /// Changes whether a tenant may do anything. False: there is no such tenant. If it may not, its
    /// requests end and its tunnels close.
    pub(crate) async fn suspend(&self, tenant: &TenantId, suspended: bool) -> Result<bool, StoreError> {
        let changed = self.tenants.books().change_terms(tenant, move |terms| terms.suspended = suspended).await?;
        if changed.is_some() && suspended {
            self.registry.close_tenant(tenant, CloseCode::SUSPENDED);
            self.flights.revoke_tenant(tenant);
        }
        Ok(changed.is_some())
    }

    /// A hold that found the tenant at its ceiling may have suspended it in its own file: the rest follows.
    pub(super) async fn enforce_ceiling(&self, tenant: &TenantId) {
        let is_suspended = async {
            let summary = self.tenants.books().summary(tenant).await?;
            if summary.terms.suspended {
                warn!(%tenant, "the tenant has reached its credit ceiling and is suspended");
                self.suspend(tenant, true).await?;
            }
            Ok::<(), StoreError>(())
        };
        if let Err(error) = is_suspended.await {
            warn!(%tenant, %error, "cannot suspend a tenant at its ceiling");
        }
    }
}
