//! Reading the configuration anew, asked for by an operator.

use super::service::{AdminError, AdminService};
use crate::config::Difference;
use crate::providers::http::error_chain;
use crate::store::central::audit::Deed;

impl AdminService {
    /// Reads the configuration anew and puts in force what can be while the relay runs. Errors: nothing has changed.
    pub async fn reload(&self) -> Result<Difference, AdminError> {
        self.asked(Deed::operator("config.reload", None)).await?;
        self.reloader.reload().await.map_err(|error| AdminError::Config(error_chain(&error)))
    }
}
