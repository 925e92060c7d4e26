//! The node at a glance.

use super::info::{Status, TunnelInfo};
use super::service::AdminService;
use crate::ops::metrics::View;
use belay_protocol::calendar::DAY_MS;
use belay_transport::connection::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

impl AdminService {
    /// The node at a glance.
    #[must_use]
    pub fn status(&self) -> Status {
        let tunnels = self.registry.list();
        let tunnels = tunnels.iter().map(|live| TunnelInfo {
            tenant: live.tenant.clone(),
            device: live.device.clone(),
            instance: live.instance.to_string(),
            path: live.path.to_string(),
            remote: live.remote,
            since_ms: live.since_ms,
            heartbeats: live.heartbeats.load(Ordering::Relaxed),
            round_trip_us: live.round_trip_us.load(Ordering::Relaxed),
            vitals: *live.vitals.lock().unwrap_or_else(PoisonError::into_inner),
            loaded_model: live.loaded_model.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        });
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            listen: self.local,
            http: self.http,
            tunnels: tunnels.collect(),
            open_tenants: self.tenants.open_count(),
            state: self.escalator.state(),
            reload: self.reloader.last(),
            running_requests: self.escalator.running(),
            waiting_answers: self.escalator.flights.waiting(),
            event_log_bytes: self.escalator.flights.log_bytes(),
            store_commits: self.store.commits(),
            memory_bytes: self.escalator.memory.used(),
            authority: data_encoding::HEXLOWER.encode(&self.enrolment.fingerprint()),
        }
    }

    /// Figures for those who watch it, in the text form of OpenMetrics.
    #[must_use]
    pub fn metrics(&self) -> String {
        let live = self.registry.list();
        let count = |path: Path| (path.name(), live.iter().filter(|live| live.path == path).count());
        let now_ms = self.env.clock.now_ms();
        let days = |ends_ms: u64| i64::try_from(ends_ms.saturating_sub(now_ms) / DAY_MS).unwrap_or(i64::MAX);
        let authority = ("authority", days(self.enrolment.authority_ends_ms()));
        let http = self.reloader.http_certificate_ends_ms().map(|ends_ms| ("http", days(ends_ms)));
        let (ill, config) = (self.escalator.health.ill(), self.config());
        // Where callers may name any model of a provider, what they name is no label.
        let known = |(provider, model): (String, String)| {
            let is_listed = config.models.values().any(|known| known.provider == provider && known.name == model);
            (provider, if is_listed { model } else { "other".to_owned() })
        };
        self.escalator.metrics.text(&View {
            tunnels: [count(Path::Quic), count(Path::Tcp)],
            requests_running: self.escalator.running(),
            answers_waiting: self.escalator.flights.waiting(),
            event_log_bytes: self.escalator.flights.log_bytes(),
            memory_bytes: self.escalator.memory.used(),
            tenants_open: self.tenants.open_count(),
            ill: ill.into_iter().map(known).collect(),
            certificates: [Some(authority), http].into_iter().flatten().collect(),
            spans: self.escalator.tracer.as_ref().map(|tracer| {
                let counts = tracer.traces.counts();
                [("exported", counts.exported_so_far()), ("dropped", counts.dropped_so_far())]
            }),
        })
    }
}
