//! One live tunnel, and what it says of itself when it comes.

use super::Tunnels;
use belay_protocol::error::CloseCode;
use belay_protocol::id::{DeviceId, InstanceId, TenantId};
use belay_protocol::message::Heartbeat;
use belay_protocol::vitals::{self, Vitals};
use belay_transport::connection::Path;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// A tunnel may have something pre-warmed so often.
const PREWARM_EVERY_MS: u64 = 5000;

/// One live tunnel, as others may see it.
#[derive(Debug)]
pub struct Live {
    /// Who pays.
    pub tenant: TenantId,
    /// Which device.
    pub device: DeviceId,
    /// Which running client of it.
    pub instance: InstanceId,
    /// Rises with every tunnel of the instance.
    pub generation: u64,
    /// What carries it.
    pub path: Path,
    /// Where it came from.
    pub remote: SocketAddr,
    /// When it said hello, milliseconds since 1970.
    pub since_ms: u64,
    /// Heartbeats heard.
    pub heartbeats: AtomicU64,
    /// The client's last measured round trip in microseconds; 0 before the first.
    pub round_trip_us: AtomicU64,
    /// Cancelled when the device loses its access: running requests end at once.
    pub revoked: CancellationToken,
    /// Cancelled when the tunnel is gone.
    pub gone: CancellationToken,
    /// How the client's computer is, as it said last.
    pub vitals: Mutex<Option<Vitals>>,
    /// The model that the client's computer has loaded itself.
    pub loaded_model: Mutex<Option<String>>,
    /// When the client last had something pre-warmed, milliseconds since 1970.
    pub(super) prewarmed_ms: AtomicU64,
    /// Asks the client for a sign of life.
    pub(crate) probe: Notify,
    /// When its certificate ends, or the newest that it was given; milliseconds since 1970.
    pub(crate) expires: watch::Sender<u64>,
    pub(super) arrived: Arrived,
    pub(super) close: watch::Sender<Option<CloseCode>>,
}

impl Live {
    pub(super) fn close(&self, code: CloseCode) {
        if matches!(code, CloseCode::REVOKED | CloseCode::SUSPENDED) {
            self.revoked.cancel();
        }
        // The first reason stands.
        self.close.send_if_modified(|current| {
            let first = current.is_none();
            current.get_or_insert(code);
            first
        });
    }

    /// Takes it out, unless a newer tunnel has taken the place already.
    pub(super) fn leave(self: &Arc<Self>, tunnels: &mut Tunnels) {
        let place = (self.instance, self.path);
        if tunnels.get(&place).is_some_and(|live| Arc::ptr_eq(live, self)) {
            tunnels.remove(&place);
        }
    }

    /// Notes a heartbeat.
    pub fn heard(&self, heartbeat: &Heartbeat) {
        self.heartbeats.fetch_add(1, Ordering::Relaxed);
        if let Some(us) = heartbeat.round_trip_us {
            self.round_trip_us.store(us.into(), Ordering::Relaxed);
        }
        let set = |what: &Mutex<Option<String>>, value| *what.lock().unwrap_or_else(PoisonError::into_inner) = value;
        set(&self.loaded_model, vitals::text_among(vitals::heartbeat::LOADED_MODEL, &heartbeat.extensions));
        *self.vitals.lock().unwrap_or_else(PoisonError::into_inner) = Vitals::among(&heartbeat.extensions);
    }

    /// Whether the client may have something pre-warmed now: it costs the provider a connection.
    pub(crate) fn may_prewarm(&self, now_ms: u64) -> bool {
        let last = self.prewarmed_ms.load(Ordering::Relaxed);
        let may = last == 0 || now_ms.saturating_sub(last) >= PREWARM_EVERY_MS;
        if may {
            self.prewarmed_ms.store(now_ms, Ordering::Relaxed);
        }
        may
    }
}

/// What a tunnel says of itself when it registers.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Who pays.
    pub tenant: TenantId,
    /// Which device.
    pub device: DeviceId,
    /// Which running client of it.
    pub instance: InstanceId,
    /// Rises with every tunnel of the instance.
    pub generation: u64,
    /// What carries it.
    pub path: Path,
    /// The instance's tunnel over the other transport stays.
    pub beside: bool,
    /// Where it came from.
    pub remote: SocketAddr,
    /// The wall clock.
    pub now_ms: u64,
    /// When its certificate ends, milliseconds since 1970.
    pub expires_ms: u64,
}

/// Tells how many packets have arrived in a tunnel.
pub(crate) struct Arrived(pub(crate) Box<dyn Fn() -> u64 + Send + Sync>);

impl fmt::Debug for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arrived({})", (self.0)())
    }
}
