//! Making ready for requests that are likely to come: the tenant's book is open and a connection to
//! the provider stands, so that the first request finds both.

use super::Escalator;
use belay_protocol::id::TenantId;
use tracing::{debug, warn};

impl Escalator {
    /// Opens the tenant's book and the connection to the provider of a model or alias; empty:
    /// `auto`. What fails is found out by the request itself.
    pub(crate) async fn prewarm(&self, tenant: &TenantId, model: &str) {
        if let Err(error) = self.tenants.handle(tenant).await {
            warn!(%error, "cannot open a book ahead of its requests");
        }
        let settings = self.settings.get();
        let provider = match settings.config.resolve(model) {
            Ok(models) => models.first().and_then(|model| settings.providers.get(&model.provider)),
            Err(why) => return debug!(%why, "nothing to pre-warm"),
        };
        if let Some(provider) = provider {
            let answered = provider.warm().await;
            debug!(model, answered, "pre-warmed");
        }
    }
}
