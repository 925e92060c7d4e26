//! The operator's way into a running relay: [`service`] does the work, [`http`] puts it on a Unix
//! socket in the state directory, [`client`] is how the commands reach it.

pub mod audit;
pub mod authority;
mod budgets;
pub mod client;
pub(crate) mod copies;
mod devices;
pub mod doctor;
mod erase;
mod glance;
pub mod http;
pub mod info;
pub mod keys;
pub mod labels;
pub mod loopback;
mod page;
pub mod reconcile;
mod reload;
pub mod service;

use std::path::{Path, PathBuf};

/// Where the admin socket of a state directory is.
#[must_use]
pub fn socket_path(state: &Path) -> PathBuf {
    state.join("admin.sock")
}
