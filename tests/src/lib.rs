//! The harness of belay's tests: relays and clients in this process ([`relay`]) or in their own
//! ([`procs`]), a scriptable provider ([`fake_provider`]), a bad network ([`link`], [`tcp_link`]), whole histories
//! in one thread under virtual time ([`sim`]), local gateways ([`gateway`]), a collector of spans ([`collector`]), disks that lose power ([`power`]), and peers in Python ([`python`])
//! and Node ([`node`]).
#![warn(missing_docs)]
#![expect(clippy::unwrap_used, reason = "a test harness fails by panicking")]

pub mod clock;
pub mod collector;
pub mod counting;
pub mod fake_provider;
pub mod fault;
pub mod gateway;
pub mod http;
pub mod link;
pub mod node;
pub mod nspawn;
pub mod old_deployment;
pub mod packages;
pub mod power;
pub mod procs;
pub mod python;
pub mod relay;
pub mod sim;
pub mod synced;
pub mod tcp_link;
