//! The belay protocol without any I/O: bytes in, frames and messages out.
//!
//! A tunnel carries bidirectional streams. A stream begins with one [`kind::StreamKind`] byte and
//! continues with frames ([`frame`]). A frame's body is either a message ([`message`], encoded by
//! [`codec`]) or raw bytes after a fixed header (tokens and chunks, [`frame::raw`]). What the relay
//! must know of a provider's request and answer is read by [`dialect`].
//!
//! This crate must not know sockets, quinn, clocks, SQL or HTTP. Both ends of a tunnel use it, and
//! a stranger can write a third end from `docs/PROTOCOL.md`.
#![warn(missing_docs)]

pub mod adapter;
pub mod bounded;
pub mod calendar;
pub mod codec;
pub mod cut;
pub mod dialect;
pub mod error;
pub mod finding;
pub mod frame;
pub mod id;
pub mod item;
pub mod kind;
pub mod message;
pub mod money;
pub mod packing;
pub mod pipe;
pub mod stream;
pub mod table;
pub mod trace;
pub mod transcript;
pub mod vitals;

/// The ALPN name of the protocol; its number is the major version.
pub const ALPN: &[u8] = b"belay/1";

/// The newest minor version that this crate speaks.
pub const MINOR: u16 = 0;

/// The server name in the certificate that a relay shows on QUIC, whatever its address.
pub const RELAY_SERVER_NAME: &str = "relay.belay.internal";
