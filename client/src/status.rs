//! What a program can follow of its tunnel.

use belay_protocol::vitals::RelayState;
use belay_transport::connection::Path;
use serde::{Deserialize, Deserializer, Serialize};
use std::net::SocketAddr;

/// Where the tunnel is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// A handshake is under way.
    Connecting,
    /// Streams can be opened.
    Up,
    /// The next attempt comes after a while.
    Waiting {
        /// Why the last one ended.
        reason: String,
        /// How long the wait is, in milliseconds.
        for_ms: u64,
    },
    /// The relay refuses; there will be no further attempt.
    Refused {
        /// With which code.
        code: String,
    },
    /// The client was closed.
    Closed,
}

/// A path's stable name. An alias, since serde would borrow a `&str` from what it reads.
pub type PathName = &'static str;

/// What a program can follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// Where the tunnel is in its life.
    #[serde(flatten)]
    pub phase: Phase,
    /// What carries it: `quic` or `tcp`, or `local` through the client that runs on this computer.
    #[serde(deserialize_with = "path_name")]
    pub path: PathName,
    /// Why it is not QUIC.
    pub path_why: Option<String>,
    /// The relay's address, while up.
    pub remote: Option<SocketAddr>,
    /// The relay's name, as it said.
    pub relay: Option<String>,
    /// How the relay is, as it said last.
    pub relay_state: Option<RelayState>,
    /// Since when the phase lasts, milliseconds since 1970.
    pub since_ms: u64,
    /// How often the tunnel came up after the first time.
    pub reconnects: u64,
    /// Why the last attempt to bring a tunnel up failed, or the last tunnel ended, until one is up.
    pub last_failure: Option<String>,
    /// Round trip of the last answered heartbeat, in microseconds.
    pub round_trip_us: Option<u64>,
    /// The same as the relay's transport measures it, in microseconds.
    pub relay_round_trip_us: Option<u64>,
    /// UDP or TCP bytes sent, all tunnels together.
    pub bytes_sent: u64,
    /// UDP or TCP bytes received, all tunnels together.
    pub bytes_received: u64,
}

/// The path through the client that runs on this computer.
pub(crate) const LOCAL: &str = "local";

fn path_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathName, D::Error> {
    let name = String::deserialize(deserializer)?;
    let known = [Path::Quic.name(), Path::Tcp.name(), LOCAL].into_iter().find(|known| *known == name);
    known.ok_or_else(|| serde::de::Error::custom(format!("unknown path {name:?}")))
}

impl TunnelStatus {
    /// Before the first attempt.
    pub(crate) fn starting(now_ms: u64) -> Self {
        Self {
            phase: Phase::Connecting,
            path: Path::Quic.name(),
            path_why: None,
            remote: None,
            relay: None,
            relay_state: None,
            since_ms: now_ms,
            reconnects: 0,
            last_failure: None,
            round_trip_us: None,
            relay_round_trip_us: None,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }
}
