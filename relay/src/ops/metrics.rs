//! Figures for those who watch relays, in the text form of Prometheus (OpenMetrics). What each is, docs/METRICS.md says.
//!
//! No label names a tenant, a device or anything else that callers choose: there are as many series as the configuration
//! and this code make. Counters and histograms are moved where things happen; gauges are set when somebody looks.

use belay_protocol::message::{End, FailureCode};
use belay_protocol::money::NanoUsd;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A label of which this code knows all values.
type Known = [(&'static str, &'static str); 1];
/// A label whose values are the names of the configuration.
type Named = [(&'static str, String); 1];
/// Both.
type Of = [(&'static str, String); 2];

/// From 50 µs to 26 s.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 20))
}

/// From 1 to 256.
fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 9))
}

/// What the store tells.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    /// Commands that wait for their commit.
    pub(crate) queued: Gauge,
    /// Commands of a commit.
    pub(crate) batch: Histogram,
    /// From its beginning to its end, in seconds.
    pub(crate) commit: Histogram,
    /// Bytes of the write-ahead logs of all open databases, as each worker saw its own last.
    pub(crate) wal: Gauge,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self { queued: Gauge::default(), batch: sizes(), commit: times(), wal: Gauge::default() }
    }
}

/// What the sync service tells.
#[derive(Debug, Clone, Default)]
pub struct SyncMetrics {
    pub(crate) pushes: Family<Known, Counter>,
    pub(crate) bytes: Family<Known, Counter>,
}

/// All figures of a relay.
pub struct Metrics {
    registry: Registry,
    pub(crate) store: StoreMetrics,
    pub(crate) sync: SyncMetrics,
    tunnels: Family<Known, Gauge>,
    tunnels_closed: Family<Named, Counter>,
    handshakes: Family<[(&'static str, &'static str); 2], Counter>,
    pub(crate) heartbeats: Counter,
    round_trip: Histogram,
    streams: Family<Known, Counter>,
    refusals: Family<Named, Counter>,
    http_answers: Family<Named, Counter>,
    requests: Family<Named, Counter>,
    requests_running: Gauge,
    first_token: Histogram,
    travel: Histogram,
    tokens: Family<Of, Counter>,
    held: Gauge,
    settled: Counter,
    estimated: Counter,
    absorbed: Counter,
    provider_calls: Family<Of, Counter>,
    provider_head: Family<Named, Histogram>,
    provider_ill: Family<Of, Gauge>,
    pub(crate) resumed: Counter,
    answers_waiting: Gauge,
    event_log_bytes: Gauge,
    memory_bytes: Gauge,
    tenants_open: Gauge,
    certificate_days: Family<Known, Gauge>,
    reloads: Family<Known, Counter>,
    spans: Family<Known, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// What is looked at when somebody asks.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) tunnels: [(&'static str, usize); 2],
    pub(crate) requests_running: usize,
    pub(crate) answers_waiting: usize,
    pub(crate) event_log_bytes: usize,
    pub(crate) memory_bytes: usize,
    pub(crate) tenants_open: usize,
    /// Offers that are asked after others, by provider and model.
    pub(crate) ill: Vec<(String, String)>,
    /// Days until certificates end, by whose they are.
    pub(crate) certificates: Vec<(&'static str, i64)>,
    /// What became of spans, where there are any.
    pub(crate) spans: Option<[(&'static str, u64); 2]>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("belay");
        let store = StoreMetrics::default();
        let sync = SyncMetrics::default();
        let all = Self {
            registry: Registry::default(),
            store: store.clone(),
            sync: sync.clone(),
            tunnels: Family::default(),
            tunnels_closed: Family::default(),
            handshakes: Family::default(),
            heartbeats: Counter::default(),
            round_trip: times(),
            streams: Family::default(),
            refusals: Family::default(),
            http_answers: Family::default(),
            requests: Family::default(),
            requests_running: Gauge::default(),
            first_token: times(),
            travel: times(),
            tokens: Family::default(),
            held: Gauge::default(),
            settled: Counter::default(),
            estimated: Counter::default(),
            absorbed: Counter::default(),
            provider_calls: Family::default(),
            provider_head: Family::new_with_constructor(times),
            provider_ill: Family::default(),
            resumed: Counter::default(),
            answers_waiting: Gauge::default(),
            event_log_bytes: Gauge::default(),
            memory_bytes: Gauge::default(),
            tenants_open: Gauge::default(),
            certificate_days: Family::default(),
            reloads: Family::default(),
            spans: Family::default(),
        };
        let version: Family<Known, Gauge> = Family::default();
        version.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("build", "The relay's version", version);
        registry.register("tunnels", "Live tunnels", all.tunnels.clone());
        registry.register("tunnels_closed", "Tunnels that have ended, by reason", all.tunnels_closed.clone());
        registry.register("handshakes", "Handshakes, by path and what became of them", all.handshakes.clone());
        registry.register("heartbeats", "Heartbeats heard", all.heartbeats.clone());
        let seconds = || Unit::Seconds;
        registry.register_with_unit(
            "heartbeat_round_trip",
            "Round trips as clients measured them",
            seconds(),
            all.round_trip.clone(),
        );
        registry.register("streams", "Streams, by kind", all.streams.clone());
        registry.register("refusals", "LLM requests that did not run, by reason", all.refusals.clone());
        registry.register("http_answers", "Answers over HTTP, by status", all.http_answers.clone());
        registry.register("requests", "LLM requests that have ended, by outcome", all.requests.clone());
        registry.register("requests_running", "LLM requests that run", all.requests_running.clone());
        registry.register_with_unit(
            "first_token",
            "From the hold to the provider's first event",
            seconds(),
            all.first_token.clone(),
        );
        registry.register_with_unit(
            "token_travel",
            "From the arrival of an event to its being written",
            seconds(),
            all.travel.clone(),
        );
        registry.register("tokens", "Units that were settled, by provider and kind", all.tokens.clone());
        registry.register("money_held_nanousd", "Money that is set aside", all.held.clone());
        registry.register("money_settled_nanousd", "Money that was charged", all.settled.clone());
        registry.register("money_estimated_nanousd", "The part of it that was estimated", all.estimated.clone());
        registry.register("money_absorbed_nanousd", "What the relay had to bear itself", all.absorbed.clone());
        registry.register("provider_calls", "Calls, by provider and what became of them", all.provider_calls.clone());
        registry.register_with_unit(
            "provider_head",
            "From a call to the provider's status",
            seconds(),
            all.provider_head.clone(),
        );
        registry.register("provider_ill", "Offers that are asked after others", all.provider_ill.clone());
        registry.register("streams_resumed", "Readers that came back to a request", all.resumed.clone());
        registry.register("answers_waiting", "Answers that wait for their reader", all.answers_waiting.clone());
        registry.register_with_unit(
            "event_log",
            "Events that no reader has acknowledged",
            Unit::Bytes,
            all.event_log_bytes.clone(),
        );
        registry.register_with_unit("memory", "What clients make the relay use", Unit::Bytes, all.memory_bytes.clone());
        registry.register("tenants_open", "Tenants whose books are open", all.tenants_open.clone());
        registry.register("store_queue", "Commands that wait for their commit", store.queued);
        registry.register("store_batch", "Commands that shared a commit", store.batch);
        registry.register_with_unit("store_commit", "How long commits took", seconds(), store.commit);
        registry.register_with_unit("store_wal", "Write-ahead logs of open databases", Unit::Bytes, store.wal);
        registry.register("sync_pushes", "Revisions that were pushed, by what became of them", sync.pushes);
        registry.register_with_unit("sync", "Content of items, by direction", Unit::Bytes, sync.bytes);
        registry.register("certificate_days", "Days until certificates end", all.certificate_days.clone());
        registry.register("reloads", "Times that the configuration was read anew", all.reloads.clone());
        registry.register("spans", "Spans of requests, by what became of them", all.spans.clone());
        Self { registry, ..all }
    }
}

fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Money that only grows is counted as what it is above zero.
fn amount(money: NanoUsd) -> u64 {
    u64::try_from(money.0).unwrap_or(0)
}

impl Metrics {
    /// The text.
    pub(crate) fn text(&self, view: &View) -> String {
        for (path, count) in view.tunnels {
            self.tunnels.get_or_create(&[("path", path)]).set(gauge(count));
        }
        self.requests_running.set(gauge(view.requests_running));
        self.answers_waiting.set(gauge(view.answers_waiting));
        self.event_log_bytes.set(gauge(view.event_log_bytes));
        self.memory_bytes.set(gauge(view.memory_bytes));
        self.tenants_open.set(gauge(view.tenants_open));
        self.provider_ill.clear();
        for (provider, model) in &view.ill {
            self.provider_ill.get_or_create(&[("provider", provider.clone()), ("model", model.clone())]).set(1);
        }
        for (whose, days) in &view.certificates {
            self.certificate_days.get_or_create(&[("certificate", whose)]).set(*days);
        }
        for (became, count) in view.spans.into_iter().flatten() {
            self.spans.get_or_create(&[("result", became)]).inner().store(count, Ordering::Relaxed);
        }
        let mut text = String::new();
        // A `String` takes everything.
        let _ = encode(&mut text, &self.registry);
        text
    }

    pub(crate) fn handshake(&self, path: &'static str, became: &'static str) {
        self.handshakes.get_or_create(&[("path", path), ("result", became)]).inc();
    }

    pub(crate) fn tunnel_closed(&self, reason: &str) {
        self.tunnels_closed.get_or_create(&[("reason", reason.to_owned())]).inc();
    }

    pub(crate) fn heard(&self, round_trip_us: Option<u32>) {
        self.heartbeats.inc();
        if let Some(us) = round_trip_us {
            self.round_trip.observe(f64::from(us) / 1e6);
        }
    }

    pub(crate) fn stream(&self, kind: &'static str) {
        self.streams.get_or_create(&[("kind", kind)]).inc();
    }

    pub(crate) fn refused(&self, code: FailureCode) {
        self.refusals.get_or_create(&[("reason", code.name().to_owned())]).inc();
    }

    pub(crate) fn answered_over_http(&self, status: u16) {
        self.http_answers.get_or_create(&[("status", status.to_string())]).inc();
    }

    /// Money was set aside.
    pub(crate) fn held(&self, amount: NanoUsd) {
        self.held.inc_by(amount.0);
    }

    /// It is so no longer.
    pub(crate) fn released(&self, amount: NanoUsd) {
        self.held.dec_by(amount.0);
    }

    /// A request has ended and was settled.
    pub(crate) fn settled(&self, provider: &str, end: &End, absorbed: NanoUsd) {
        self.requests.get_or_create(&[("outcome", end.outcome.name().to_owned())]).inc();
        self.settled.inc_by(amount(end.cost));
        self.absorbed.inc_by(amount(absorbed));
        if end.estimated {
            self.estimated.inc_by(amount(end.cost));
        }
        for line in &end.usage {
            let kind = ("kind", line.kind.name().to_owned());
            self.tokens.get_or_create(&[("provider", provider.to_owned()), kind]).inc_by(line.units);
        }
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    pub(crate) fn travelled(&self, within: Duration) {
        self.travel.observe(within.as_secs_f64());
    }

    /// A provider was called; after how long it answered, if it did.
    pub(crate) fn called(&self, provider: &str, became: &'static str, head_after: Option<Duration>) {
        let provider = || ("provider", provider.to_owned());
        self.provider_calls.get_or_create(&[provider(), ("result", became.to_owned())]).inc();
        if let Some(after) = head_after {
            self.provider_head.get_or_create(&[provider()]).observe(after.as_secs_f64());
        }
    }

    pub(crate) fn reloaded(&self, taken: bool) {
        self.reloads.get_or_create(&[("result", if taken { "taken" } else { "refused" })]).inc();
    }
}
