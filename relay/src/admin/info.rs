//! What an operator is shown.

use crate::reload::LastReload;
use crate::store::central::Device;
use crate::store::ledger::standing::Terms;
use crate::store::ledger::verify;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::vitals::{RelayState, Vitals};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A tenant with its money.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantInfo {
    /// The tenant's name.
    pub id: TenantId,
    /// What people call it; empty: nothing else.
    pub label: String,
    /// What it pays with, how far, and whether it may do anything at all.
    #[serde(flatten)]
    pub terms: Terms,
    /// Its own money, in nano-USD; below zero by at most its ceiling.
    pub balance_nano_usd: i64,
    /// Credits that have not expired, in nano-USD.
    pub credits_nano_usd: i64,
    /// Is set aside, in nano-USD.
    pub held_nano_usd: i64,
    /// Was charged since the book began, in nano-USD.
    pub charged_nano_usd: i64,
    /// Requests that hold money.
    pub open_holds: u32,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Why its book cannot be read; the figures are then none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A device, and whether it is connected.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// As central knows it.
    #[serde(flatten)]
    pub device: Device,
    /// Live tunnels.
    pub tunnels: u32,
}

/// A new invite.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InviteInfo {
    /// The join string.
    pub invite: String,
    /// Who will pay.
    pub tenant: TenantId,
    /// Milliseconds since 1970.
    pub expires_ms: u64,
}

/// The node at a glance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// belayd's version.
    pub version: String,
    /// Where QUIC listens.
    pub listen: SocketAddr,
    /// Where HTTP is served, if it is.
    pub http: Option<SocketAddr>,
    /// Live tunnels.
    pub tunnels: Vec<TunnelInfo>,
    /// Open tenants.
    pub open_tenants: usize,
    /// What clients are told with their heartbeats.
    pub state: RelayState,
    /// How the configuration was last read anew.
    pub reload: LastReload,
    /// Requests that run.
    pub running_requests: usize,
    /// Finished answers that wait for their reader.
    pub waiting_answers: usize,
    /// Commits of the store since the start.
    pub store_commits: u64,
    /// Bytes that clients make the relay use, as it counts them.
    pub memory_bytes: usize,
    /// Bytes of events that no reader has acknowledged, all requests together.
    pub event_log_bytes: usize,
    /// SHA-256 of the authority's certificate, hex.
    pub authority: String,
}

/// A live tunnel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TunnelInfo {
    /// Who pays.
    pub tenant: TenantId,
    /// Which device.
    pub device: DeviceId,
    /// Which running client.
    pub instance: String,
    /// What carries it: `quic` or `tcp`.
    pub path: String,
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Milliseconds since 1970.
    pub since_ms: u64,
    /// Heartbeats heard.
    pub heartbeats: u64,
    /// The client's last measured round trip in microseconds; 0 before the first.
    pub round_trip_us: u64,
    /// How the client's computer is, as it said last.
    pub vitals: Option<Vitals>,
    /// The model that it has loaded itself.
    pub loaded_model: Option<String>,
}

/// A book's check.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verified {
    /// Whose book.
    pub tenant: TenantId,
    /// What was found.
    #[serde(flatten)]
    pub report: verify::Report,
}
