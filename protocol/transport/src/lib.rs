//! What both ends of a tunnel share below the protocol.
//!
//! [`connection`] is a connection whatever carries it: [`quic`] puts quinn behind the protocol's stream
//! traits, [`tcp`] HTTP/2 over TLS. [`params`] holds the transport
//! parameters of both sides, [`mod@env`] is what is passed in from outside so that a test can own it:
//! wall clock, randomness and sockets ([`inherited`]: those that were there before), [`twice`] what the relay's socket does for lone tokens on bad
//! lines. Monotonic time and timers are tokio's, which a test can
//! pause; [`runtime`] puts them under quinn.
#![warn(missing_docs)]

mod cid;
pub mod congestion;
pub mod connection;
pub mod env;
pub mod inherited;
pub mod params;
pub mod quic;
pub mod runtime;
#[cfg(unix)]
mod socket;
pub mod tcp;
pub mod twice;
