//! Suspending a tenant: by the operator, or because it has come to its ceiling.

use super::Escalator;
use crate::store::StoreError;
use crate::store::central::audit::{Deed, note};
use crate::store::executor::Db;
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

    /// A hold has found the tenant at its ceiling, and suspended it in its own file: the rest follows.
    pub(super) async fn suspend_at_ceiling(&self, tenant: &TenantId) {
        warn!(%tenant, "the tenant has reached its credit ceiling and is suspended");
        let (deed, now_ms) = (Deed::of("relay".into(), "tenant.suspend", Some(tenant)), self.env.clock.now_ms());
        let deed = deed.with("it has reached its credit ceiling");
        let noted = self.store.run(Db::Central, move |connection| note(connection, &deed, now_ms)).await;
        if let Err(error) = noted {
            // It is suspended in its own book by now, so the rest follows all the same.
            warn!(%tenant, %error, "cannot note that a tenant is suspended");
        }
        if let Err(error) = self.suspend(tenant, true).await {
            warn!(%tenant, %error, "cannot suspend a tenant at its ceiling");
        }
    }
}
