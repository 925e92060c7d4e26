//! The belay client: one persistent tunnel to a relay, and typed calls through it.
//!
//! [`state`] is where keys and certificates lie on disk, [`enrol`] gets them, [`tunnel`] is one live
//! connection, `reconnect` keeps one alive, `fallback` decides between QUIC and TCP, [`status`] is
//! what it tells of it, [`escalation`] is one LLM request as a stream of answers that survives a lost
//! tunnel, [`pending`] what a restarted client needs to go on with it, [`vitals`] how this computer is.
//! [`Client`] puts them together; [`gateway`] lets other programs use it over HTTP, [`running`] finds the one
//! that runs in the background, [`local`] the way through it.
#![warn(missing_docs)]

pub mod billing;
pub mod client;
mod control;
mod dial;
pub mod doctor;
pub mod enrol;
pub mod error;
pub mod escalation;
mod fallback;
pub mod gateway;
pub mod local;
pub mod pending;
mod reconnect;
mod renew;
pub mod running;
pub mod sessions;
mod shown;
pub mod state;
pub mod status;
pub mod sync;
pub mod tunnel;
mod tunnels;
pub mod vitals;

pub use client::{Client, Options};
pub use error::ClientError;
pub use escalation::{Answer, Escalation};
pub use state::Identity;
pub use status::{Phase, TunnelStatus};
