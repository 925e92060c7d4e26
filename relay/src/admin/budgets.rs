//! Budgets of tenants, their devices and their keys.

use super::service::{AdminError, AdminService};
use crate::store::central::audit::Deed;
use crate::store::ledger::budget::{Budget, Measure, Scope};
use belay_protocol::id::TenantId;

impl AdminService {
    /// Sets a budget, or takes it away. Returns all that there are.
    pub async fn set_budget(
        &self,
        id: &TenantId,
        scope: Scope,
        measure: Measure,
        amount: Option<i64>,
    ) -> Result<Vec<Budget>, AdminError> {
        if amount.is_some_and(|amount| amount < 0) {
            return Err(AdminError::Invalid("a budget must not be below zero".into()));
        }
        self.tenant(id).await?;
        self.not_erased(id).await?;
        // One that binds nobody would be a misspelt one. What is gone can still lose its budget.
        if amount.is_some() && !self.is_of(id, &scope).await? {
            let why = format!("tenant {id} has no {scope}; see belayd device list and belayd key list");
            return Err(AdminError::Invalid(why));
        }
        let words = amount.map_or_else(|| "none".to_owned(), |amount| amount.to_string());
        let deed = Deed::operator("budget.set", Some(id)).on(scope.to_string());
        self.asked(deed.with(format!("{measure:?} {words}"))).await?;
        self.books().set_budget(id, scope, measure, amount).await?;
        self.budgets(id).await
    }

    async fn is_of(&self, tenant: &TenantId, scope: &Scope) -> Result<bool, AdminError> {
        Ok(match scope {
            Scope::Tenant => true,
            Scope::Device(id) => {
                self.devices(Some(tenant.clone())).await?.iter().any(|known| known.device.id.as_str() == id)
            }
            Scope::Key(id) => self.keys(Some(tenant.clone())).await?.iter().any(|key| key.id == *id),
        })
    }

    /// All budgets of a tenant.
    pub async fn budgets(&self, id: &TenantId) -> Result<Vec<Budget>, AdminError> {
        self.tenant(id).await?;
        Ok(self.books().budgets(id).await?)
    }
}
