//! Certificates of belay: the relay's own authority, device and server certificates, pins, and the
//! rustls configurations of both sides.
//!
//! A relay has one [`ca::Authority`], and for a while two ([`rollover`]). A device makes its own key, asks with a CSR
//! ([`issue::DeviceKey`]), and is known from then on by the URI in its certificate
//! ([`identity::DeviceIdentity`]). The client trusts a relay by the fingerprint of its authority
//! ([`pin`]), never by the system's certificate store. This crate must not know sockets; files are
//! read and written by [`mod@file`], with modes that keep others out.
#![warn(missing_docs)]

pub mod ca;
pub mod file;
pub mod identity;
pub mod invite;
pub mod issue;
pub mod pin;
pub mod rollover;
pub mod shown;
pub mod tls;
mod verify;

use thiserror::Error;

/// Why a certificate operation failed.
#[derive(Debug, Error)]
pub enum CertError {
    /// A key or certificate could not be made or signed. Blame: ours.
    #[error("cannot {operation}")]
    Make {
        /// What was attempted.
        operation: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// Bytes are not what they should be. Blame: whoever sent or stored them.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A file could not be read or written.
    #[error("cannot {operation} {path}")]
    File {
        /// What was attempted.
        operation: &'static str,
        /// Which file.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The authority cannot be changed that way now; why, and what to do.
    #[error("{0}")]
    Rollover(&'static str),
    /// rustls refuses the configuration. Blame: ours.
    #[error("TLS configuration: {0}")]
    Tls(String),
}

/// The SHA-256 of some bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}
