//! The harness of belay's tests: relays and clients in this process ([`relay`]) or in their own
//! ([`procs`]), a scriptable provider ([`fake_provider`]), a bad network ([`link`], [`tcp_link`]), whole histories
//! in one thread under virtual time ([`sim`]), and Python peers ([`python`]).
#![warn(missing_docs)]
#![expect(clippy::unwrap_used, reason = "a test harness fails by panicking")]

pub mod clock;
pub mod counting;
pub mod fake_provider;
pub mod link;
pub mod procs;
pub mod python;
pub mod relay;
pub mod sim;
pub mod tcp_link;
