//! What can go wrong for a client, by who can do something about it.

use belay_certs::CertError;
use belay_protocol::error::{CloseCode, ProtocolError};
use belay_protocol::message::Failed;
use belay_protocol::stream::StreamError;
use belay_traces::TracesError;
use std::path::PathBuf;
use thiserror::Error;

/// Why an operation did not succeed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// This computer has no identity. Blame: the user has not joined.
    #[error("this computer has not joined a relay ({} is missing); run: belay join <invite>", .0.display())]
    NotJoined(PathBuf),
    /// This computer has one already.
    #[error("this computer is {device} of tenant {tenant} already; to leave first, run: belay logout")]
    AlreadyJoined {
        /// Which device.
        device: String,
        /// Whose.
        tenant: String,
    },
    /// A file of the client's state is not usable.
    #[error("{what} is not usable: {why}")]
    State {
        /// Which file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A key or certificate is not usable.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// No relay answered.
    #[error("cannot reach the relay at {addresses}: {why}")]
    Unreachable {
        /// Where it was tried.
        addresses: String,
        /// What happened last.
        why: String,
    },
    /// The relay closed the tunnel and will not let it in again.
    #[error("the relay refuses this computer: {}", refusal(*.0))]
    Closed(CloseCode),
    /// The relay refused the operation; nothing was charged.
    #[error("{}{}", .0.message, if .0.remedy.is_empty() { String::new() } else { format!("; {}", .0.remedy) })]
    Failed(Box<Failed>),
    /// The tunnel was lost in the middle.
    #[error("the tunnel was lost: {0}")]
    Lost(String),
    /// Another reader of the same request took over.
    #[error("another client of this device reads this answer now")]
    Superseded,
    /// The relay sent what makes no sense.
    #[error("the relay broke the protocol")]
    Protocol(#[from] ProtocolError),
    /// Spans cannot be collected as it is asked for.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// The client has been closed.
    #[error("the client is closed")]
    Stopped,
}

impl ClientError {
    /// A stable name, for programs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotJoined(_) => "not_joined",
            Self::AlreadyJoined { .. } => "already_joined",
            Self::State { .. } => "state",
            Self::Cert(_) => "certificate",
            Self::Unreachable { .. } => "relay_unreachable",
            Self::Closed(_) => "refused",
            Self::Failed(failed) => failed.code.name(),
            Self::Lost(_) => "lost",
            Self::Superseded => "superseded",
            Self::Protocol(_) => "protocol",
            Self::Traces(_) => "traces",
            Self::Stopped => "stopped",
        }
    }

    /// The relay wants nothing more of this device, ever, or of this version of the client.
    #[must_use]
    pub fn is_final(code: CloseCode) -> bool {
        matches!(code, CloseCode::REVOKED | CloseCode::UNKNOWN_DEVICE | CloseCode::EXPIRED | CloseCode::VERSION)
    }

    /// The tunnel is gone, and another one may do: nothing that the relay would say again.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Closed(code) => {
                !Self::is_final(*code) && !matches!(*code, CloseCode::SUSPENDED | CloseCode::TOO_MANY_INSTANCES)
            }
            _ => false,
        }
    }
}

impl From<StreamError> for ClientError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Protocol(error) => Self::Protocol(error),
            StreamError::Lost(why) => Self::Lost(why),
            other @ StreamError::Peer(_) => Self::Lost(other.to_string()),
        }
    }
}

impl From<Failed> for ClientError {
    fn from(failed: Failed) -> Self {
        Self::Failed(Box::new(failed))
    }
}

/// What a close code means for the user.
fn refusal(code: CloseCode) -> String {
    match code {
        CloseCode::REVOKED => "the device was revoked; ask the operator for a new invite".into(),
        CloseCode::SUSPENDED => "the tenant is suspended; ask the operator".into(),
        CloseCode::UNKNOWN_DEVICE => "the relay does not know this device; run: belay logout, then belay join".into(),
        CloseCode::EXPIRED => "the device certificate has expired; run: belay logout, then belay join".into(),
        CloseCode::VERSION => "no protocol version in common; update belay".into(),
        CloseCode::TOO_MANY_INSTANCES => "too many clients of this device run at once; close one".into(),
        other => other.to_string(),
    }
}
