//! All SQL of the relay lives below this module. It knows no QUIC and no HTTP.
//!
//! One SQLite file per tenant and one central file, opened on demand and closed when idle. A fixed
//! set of threads ([`executor`]) owns the connections; a database belongs to one of them. Commands
//! that wait for the same database share one commit; what one of them wrote before it failed is undone
//! alone, and a reply leaves only after that commit is durable. Long reads, and what goes through a whole
//! file, run on threads and connections of their own. [`ledger`] is the tenant's book, [`central`] the relay-wide
//! database, [`journal`] the dispatch journal beside the book, [`schema`] the migrations, [`old`] what was exported from
//! the deployment before.

mod aside;
pub mod books;
pub mod central;
mod commit;
pub mod copy;
pub(crate) mod daily;
pub mod erase;
pub mod executor;
pub mod journal;
pub mod ledger;
pub mod lock;
mod log;
pub mod old;
mod readers;
pub mod schema;
mod seat;
pub mod sessions;
pub mod sync;
#[cfg(test)]
mod testing;
mod watch;
mod worker;

use belay_protocol::error::ProtocolError;
use belay_protocol::id::RequestId;
use belay_protocol::money::MoneyError;
/// What commands of the store run on.
pub use rusqlite::Connection;
use thiserror::Error;

/// Why a command of the store did not take effect, or may not have.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// A database that was there is gone.
    #[error("{path} is gone, and was there: bring it back with belayd restore --tenant")]
    Lost {
        /// Which.
        path: String,
    },
    /// SQLite refused the command; nothing of it was kept.
    #[error("{operation}: {why}")]
    Failed {
        /// What was attempted.
        operation: &'static str,
        /// SQLite's words.
        why: String,
    },
    /// The commit failed: whether it took effect is unknown until the file is opened anew. Retry
    /// with the same id.
    #[error("the commit's outcome is unknown: {why}")]
    Unknown {
        /// SQLite's words.
        why: String,
    },
    /// The file was written by a newer belay.
    #[error(
        "{path} has schema version {found}, this belayd knows {known}: start the newer belayd, or restore a backup"
    )]
    NewerSchema {
        /// Which file.
        path: String,
        /// Its version.
        found: i64,
        /// The newest known here.
        known: i64,
    },
    /// There is no such hold, or none any more: it was given back.
    #[error("there is no open hold {request_id}")]
    NoHold {
        /// Whose.
        request_id: RequestId,
    },
    /// What is stored contradicts itself.
    #[error("{what} is corrupt: {why}")]
    Corrupt {
        /// Which record.
        what: &'static str,
        /// In which way.
        why: String,
    },
    /// A question took longer than it may.
    #[error("the answer takes longer than a question may")]
    TooLong,
    /// The store has been shut down.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// The same command may get through later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Unknown { .. })
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // Only questions have a time, and nobody else interrupts.
            Some(rusqlite::ErrorCode::OperationInterrupted) => Self::TooLong,
            _ => Self::Failed { operation: "sqlite", why: error.to_string() },
        }
    }
}

impl From<MoneyError> for StoreError {
    fn from(error: MoneyError) -> Self {
        Self::Failed { operation: "add up", why: error.to_string() }
    }
}

impl From<ProtocolError> for StoreError {
    fn from(error: ProtocolError) -> Self {
        Self::Failed { operation: "encode a record", why: error.to_string() }
    }
}
