//! The belay relay: keeps tunnels to devices, runs their LLM requests, and keeps the books.
//!
//! Data flows one way through the modules: `listener` admits connections, `connection` learns
//! who they are, [`streams`] read requests, [`escalate`] runs them against [`providers`] with money
//! set aside in the [`store`]. `http` is the way in for callers without a tunnel. [`store::books`] is what can be done with a
//! tenant's money. [`server`] builds and stops all of it; [`admin`] is the operator's
//! way in. `docs/ARCHITECTURE.md` says what each part must not know.
#![warn(missing_docs)]

pub mod admin;
mod admission;
pub mod api_keys;
pub mod authority;
pub mod backup;
pub mod blobs;
pub mod config;
mod connection;
pub mod doctor;
pub mod enrolment;
pub mod escalate;
pub mod export;
mod http;
pub mod import;
mod listener;
pub mod master_key;
pub mod ops;
pub mod pricing;
pub mod providers;
pub mod reconcile;
pub mod registry;
mod reload;
pub mod secrets;
pub mod server;
mod settings;
pub mod store;
pub mod streams;
pub mod stripe;
pub mod sync;
pub mod tenants;

pub use config::{Config, ConfigError};
pub use reload::{LastReload, ReloadError};
pub use server::{Overrides, Relay, StartError};
