//! The relay's configuration: TOML text, parsed into `raw`, checked once into [`Config`] before
//! anything is bound. Unknown keys and a missing file are errors; errors name line and column, and
//! near misses get a "did you mean". Secrets are read from files or the environment and never shown.

mod billing;
mod check;
mod environment;
mod http;
mod jwt;
mod limits;
mod models;
mod raw;
mod reload;
mod routes;
mod stripe;
mod template;
mod traces;
mod upstream;

pub use billing::Billing;
pub use check::{Config, ConfigError};
pub use environment::Environment;
pub use http::{Http, HttpTls};
pub use jwt::{Issuer, JwtAlgorithm, JwtKeys};
pub use limits::{Limits, Retries, Timeouts};
pub use models::Model;
pub use reload::Difference;
pub use routes::{Prefer, Route, Target};
pub use stripe::Stripe;
pub use template::{TEMPLATE, for_units, template};
pub use upstream::{ProviderConfig, ProviderKind};

use check::Keys;
use std::path::Path;

impl Config {
    /// Reads and checks a file. Errors: all of [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let mut config = Self::parse(&text, &path.display().to_string())?;
        // Whoever loads it again may stand elsewhere.
        config.file = Some(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
        Ok(config)
    }

    /// The same with every provider key left empty: for an operator's commands, which need to know
    /// where the relay is, and whose shell need not have what the relay's own environment has.
    pub fn load_without_keys(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let name = path.display().to_string();
        check::check(raw::parse(&text, &name)?, &name, Keys::Leave)
    }

    /// Checks a text; `name` is how errors call it.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let config = check::check(raw::parse(text, name)?, name, Keys::Read)?;
        Ok(Self { written: raw::written(text), ..config })
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.display().to_string(), source })
}
