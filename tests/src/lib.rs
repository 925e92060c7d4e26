//! The harness of belay's tests: relays and clients in this process ([`relay`]), and whole
//! histories of them in one thread under virtual time ([`sim`]).
#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test harness fails by panicking")]

pub mod python;
pub mod relay;
pub mod sim;
