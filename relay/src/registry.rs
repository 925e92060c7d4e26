//! The live tunnels: who is connected, and how to cut them off.

mod live;

pub(crate) use live::Arrived;
pub use live::{Arrival, Live};

use crate::http::callers::Callers;
use belay_protocol::error::CloseCode;
use belay_protocol::id::{DeviceId, InstanceId, TenantId};
use belay_transport::connection::Path;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The tunnels of a device. An instance has at most one over each transport: while it moves from one
/// to the other, what runs on the first goes on there.
type Tunnels = HashMap<(InstanceId, Path), Arc<Live>>;

/// All live tunnels.
#[derive(Debug, Default)]
pub struct Registry {
    devices: Mutex<HashMap<DeviceId, Tunnels>>,
    /// Streams at once by tenant.
    streams: Mutex<HashMap<TenantId, u32>>,
    /// Who is known without a tunnel.
    callers: Callers,
}

/// A stream of a tenant, counted for as long as this lives.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    registry: Arc<Registry>,
    tenant: TenantId,
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut streams = self.registry.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = streams.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.tenant);
            }
        }
    }
}

/// A registered tunnel; dropping it takes the tunnel out.
#[derive(Debug)]
pub struct Registration {
    registry: Arc<Registry>,
    /// The tunnel.
    pub live: Arc<Live>,
    closed: watch::Receiver<Option<CloseCode>>,
}

impl Registration {
    /// Waits until somebody wants this tunnel closed.
    pub async fn closed(&mut self) -> CloseCode {
        match self.closed.wait_for(Option::is_some).await {
            Ok(code) => code.unwrap_or(CloseCode::INTERNAL),
            Err(_) => CloseCode::INTERNAL,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.live.gone.cancel();
        let mut devices = self.registry.lock();
        if let Some(tunnels) = devices.get_mut(&self.live.device) {
            self.live.leave(tunnels);
            if tunnels.is_empty() {
                devices.remove(&self.live.device);
            }
        }
    }
}

impl Registry {
    /// Who is known without a tunnel.
    pub(crate) fn callers(&self) -> &Callers {
        &self.callers
    }

    /// Registers a tunnel. A tunnel of the same instance with a lower or equal generation is closed
    /// with `REPLACED`. Errors: `REPLACED` if a newer one is there, `TOO_MANY_INSTANCES`.
    pub(crate) fn register(
        self: &Arc<Self>,
        arrival: Arrival,
        arrived: Arrived,
        max_instances: u32,
    ) -> Result<Registration, CloseCode> {
        let mut devices = self.lock();
        let tunnels = devices.entry(arrival.device.clone()).or_default();
        let of_instance = || tunnels.iter().filter(|((instance, _), _)| *instance == arrival.instance);
        let replaced = || of_instance().filter(|((_, path), _)| *path == arrival.path || !arrival.beside);
        if replaced().any(|(_, old)| old.generation > arrival.generation) {
            return Err(CloseCode::REPLACED);
        }
        if of_instance().next().is_none() {
            let others: HashSet<InstanceId> = tunnels.keys().map(|(instance, _)| *instance).collect();
            if others.len() >= max_instances as usize {
                return Err(CloseCode::TOO_MANY_INSTANCES);
            }
        }
        replaced().for_each(|(_, old)| old.close(CloseCode::REPLACED));
        tunnels
            .retain(|(instance, path), _| *instance != arrival.instance || (arrival.beside && *path != arrival.path));
        let (close, closed) = watch::channel(None);
        let live = Arc::new(Live {
            tenant: arrival.tenant,
            device: arrival.device,
            instance: arrival.instance,
            generation: arrival.generation,
            path: arrival.path,
            remote: arrival.remote,
            since_ms: arrival.now_ms,
            heartbeats: AtomicU64::new(0),
            round_trip_us: AtomicU64::new(0),
            revoked: CancellationToken::new(),
            gone: CancellationToken::new(),
            vitals: Mutex::default(),
            loaded_model: Mutex::default(),
            prewarmed_ms: AtomicU64::new(0),
            probe: Notify::new(),
            expires: watch::Sender::new(arrival.expires_ms),
            arrived,
            close,
        });
        tunnels.insert((live.instance, live.path), Arc::clone(&live));
        Ok(Registration { registry: Arc::clone(self), live, closed })
    }

    /// Counts a stream of a tenant. `None`: it has `most` already.
    pub(crate) fn stream(self: &Arc<Self>, tenant: &TenantId, most: u32) -> Option<StreamPermit> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let count = streams.entry(tenant.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(StreamPermit { registry: Arc::clone(self), tenant: tenant.clone() })
    }

    /// Closes the tunnels of a device whose clients give no sign of life within `patience`. A client
    /// that was killed says nothing, and must not keep the next one out until it is missed.
    pub(crate) async fn close_dead(&self, device: &DeviceId, patience: Duration) {
        let instances: Vec<_> = self.lock().get(device).into_iter().flat_map(HashMap::values).cloned().collect();
        let before: Vec<_> = instances.iter().map(|live| (live.arrived.0)()).collect();
        instances.iter().for_each(|live| live.probe.notify_one());
        let deadline = Instant::now() + patience;
        let silent = || instances.iter().zip(&before).filter(|(live, before)| (live.arrived.0)() == **before);
        while silent().next().is_some() && Instant::now() < deadline {
            sleep(patience / 20).await;
        }
        let mut devices = self.lock();
        for (live, _) in silent() {
            live.close(CloseCode::DEAD);
            if let Some(tunnels) = devices.get_mut(device) {
                live.leave(tunnels);
            }
        }
    }

    /// Closes all tunnels of a device.
    pub fn close_device(&self, device: &DeviceId, code: CloseCode) {
        for live in self.lock().get(device).into_iter().flat_map(HashMap::values) {
            live.close(code);
        }
    }

    /// The tunnels of a device go on until then (milliseconds since 1970): it has another certificate.
    pub(crate) fn renewed(&self, device: &DeviceId, expires_ms: u64) {
        for live in self.lock().get(device).into_iter().flat_map(HashMap::values) {
            live.expires.send_modify(|known| *known = expires_ms.max(*known));
        }
    }

    /// Closes all tunnels of a tenant.
    pub fn close_tenant(&self, tenant: &TenantId, code: CloseCode) {
        self.callers.close_tenant(tenant);
        for live in self.lock().values().flat_map(HashMap::values).filter(|live| live.tenant == *tenant) {
            live.close(code);
        }
    }

    /// All live tunnels, by device.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Live>> {
        let mut all: Vec<_> = self.lock().values().flat_map(HashMap::values).cloned().collect();
        all.sort_by(|a, b| (&a.tenant, &a.device, a.instance).cmp(&(&b.tenant, &b.device, b.instance)));
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DeviceId, Tunnels>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    fn arrival(instance: u8, generation: u64) -> Arrival {
        Arrival {
            tenant: "acme".parse().expect("name"),
            device: "laptop".parse().expect("name"),
            instance: InstanceId([instance; 16]),
            generation,
            path: Path::Quic,
            beside: false,
            remote: "127.0.0.1:1".parse().expect("address"),
            now_ms: 0,
            expires_ms: u64::MAX,
        }
    }

    /// A tunnel from which packets keep coming.
    fn alive() -> Arrived {
        let packets = AtomicU64::new(0);
        Arrived(Box::new(move || packets.fetch_add(1, Ordering::Relaxed)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_gives_no_sign_of_life_makes_room() {
        let registry = Arc::new(Registry::default());
        let living = registry.register(arrival(1, 1), alive(), 2).expect("room");
        let mut dead = registry.register(arrival(2, 1), Arrived(Box::new(|| 7)), 2).expect("room");
        let device = "laptop".parse().expect("name");
        registry.close_dead(&device, Duration::from_secs(1)).await;
        assert_eq!(dead.closed().await, CloseCode::DEAD);
        let next = registry.register(arrival(3, 1), alive(), 2).expect("room again");
        drop(dead);
        assert_eq!(registry.list().len(), 2);
        registry.close_dead(&device, Duration::from_secs(1)).await;
        assert_eq!(registry.register(arrival(4, 1), alive(), 2).err(), Some(CloseCode::TOO_MANY_INSTANCES));
        drop((living, next));
    }

    #[tokio::test]
    async fn a_newer_tunnel_takes_the_place_of_an_older_one_of_the_same_instance_only() {
        let registry = Arc::new(Registry::default());
        let mut first = registry.register(arrival(1, 1), alive(), 2).expect("room");
        let other = registry.register(arrival(2, 1), alive(), 2).expect("room");
        assert_eq!(registry.register(arrival(3, 1), alive(), 2).err(), Some(CloseCode::TOO_MANY_INSTANCES));
        let second = registry.register(arrival(1, 2), alive(), 2).expect("replaces");
        assert_eq!(first.closed().await, CloseCode::REPLACED);
        assert_eq!(registry.register(arrival(1, 1), alive(), 2).err(), Some(CloseCode::REPLACED));
        // The old one leaving takes nothing from the new one.
        drop(first);
        assert_eq!(registry.list().len(), 2);
        drop((second, other));
        assert!(registry.list().is_empty());
    }

    #[tokio::test]
    async fn a_tunnel_over_the_other_transport_stays_if_the_client_wants_it() {
        let registry = Arc::new(Registry::default());
        let over_tcp = |generation, beside| Arrival { path: Path::Tcp, beside, ..arrival(1, generation) };
        let mut quic = registry.register(arrival(1, 1), alive(), 1).expect("room");
        let mut tcp = registry.register(over_tcp(2, true), alive(), 1).expect("the same instance");
        assert_eq!(registry.list().len(), 2);
        assert_eq!(registry.register(arrival(2, 1), alive(), 1).err(), Some(CloseCode::TOO_MANY_INSTANCES));
        let both = registry.register(over_tcp(3, true), alive(), 1).expect("replaces its own kind");
        assert_eq!(tcp.closed().await, CloseCode::REPLACED);
        assert_eq!(registry.list().len(), 2);
        let alone = registry.register(over_tcp(4, false), alive(), 1).expect("replaces both");
        assert_eq!(quic.closed().await, CloseCode::REPLACED);
        drop((quic, tcp, both));
        assert_eq!(registry.list().len(), 1);
        drop(alone);
        assert!(registry.list().is_empty());
    }

    #[tokio::test]
    async fn revocation_reaches_running_requests() {
        let registry = Arc::new(Registry::default());
        let mut registration = registry.register(arrival(1, 1), alive(), 4).expect("room");
        registry.close_device(&"laptop".parse().expect("name"), CloseCode::REVOKED);
        assert!(registration.live.revoked.is_cancelled());
        assert_eq!(registration.closed().await, CloseCode::REVOKED);
    }
}
