//! Handing spans over to a collector.

use crate::QUEUE;
use crate::span::Traces;
use belay_transport::env::Env;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use secrecy::{ExposeSecret, SecretString};
use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// So many spans go out together at the most.
const BATCH: usize = 512;
/// The first span of a batch waits so long for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long a collector may take, with all that is tried again.
const PATIENCE: Duration = Duration::from_secs(10);
/// And when the process is on its way out.
const LAST: Duration = Duration::from_secs(2);
/// How often the log may tell of a collector that does not take what it gets.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Where spans go, and whose they are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The collector, without the path: `http://127.0.0.1:4318`.
    pub endpoint: String,
    /// What is shown to it beside the spans, mostly a key.
    pub headers: Vec<(String, SecretString)>,
    /// `service.name`.
    pub service: &'static str,
    /// `service.version`.
    pub version: &'static str,
    /// Of traces that begin here, this part is kept: from 0 to 1.
    pub ratio: f64,
}

/// Why there are no spans.
#[derive(Debug, Error)]
pub enum TracesError {
    /// The address is none.
    #[error("{0:?} is not where a collector is; write for example \"http://127.0.0.1:4318\"")]
    Endpoint(String),
    /// A header is none.
    #[error("{0:?} is not the name of a header, or its value cannot stand in one")]
    Header(String),
    /// The part of traces that are kept is none.
    #[error("{0} is not a part from 0 to 1")]
    Ratio(f64),
    /// TLS, or the exporter, cannot be set up.
    #[error("spans cannot be sent: {0}")]
    Setup(String),
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// A collector took them.
    #[must_use]
    pub fn exported_so_far(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// The queue was full, or the collector did not take them.
    #[must_use]
    pub fn dropped_so_far(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn dropped(&self, spans: u64) {
        self.dropped.fetch_add(spans, Ordering::Relaxed);
    }
}

/// Hands spans over, in a task of its owner.
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::Receiver<SpanData>,
    exporter: opentelemetry_otlp::SpanExporter,
    counts: Arc<Counts>,
    /// The log was told last, and spans that it was not told of.
    told: Option<Instant>,
    untold: u64,
}

impl Settings {
    /// Errors: which of it makes no sense.
    pub fn check(&self) -> Result<(), TracesError> {
        let url = reqwest::Url::parse(&self.endpoint).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if url.is_none() {
            return Err(TracesError::Endpoint(self.endpoint.clone()));
        }
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(TracesError::Ratio(self.ratio));
        }
        for (name, value) in &self.headers {
            let is_name = http::HeaderName::try_from(name.as_str()).is_ok();
            if !is_name || http::HeaderValue::try_from(value.expose_secret()).is_err() {
                return Err(TracesError::Header(name.clone()));
            }
        }
        Ok(())
    }
}

impl Traces {
    /// Errors: all of [`TracesError`].
    pub fn new(settings: &Settings, env: Env) -> Result<(Self, Exporter), TracesError> {
        settings.check()?;
        let setup = |error: &dyn std::fmt::Display| TracesError::Setup(error.to_string());
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .user_agent(format!("{}/{}", settings.service, settings.version))
            .build()
            .map_err(|error| setup(&error))?;
        let headers: HashMap<_, _> =
            settings.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect();
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", settings.endpoint.trim_end_matches('/')))
            .with_timeout(PATIENCE)
            .with_headers(headers)
            .build()
            .map_err(|error| setup(&error))?;
        let instance: [u8; 8] = env.random.bytes();
        let instance: String = instance.iter().map(|byte| format!("{byte:02x}")).collect();
        let resource = Resource::builder_empty().with_attributes([
            KeyValue::new("service.name", settings.service),
            KeyValue::new("service.version", settings.version),
            KeyValue::new("service.instance.id", instance),
        ]);
        exporter.set_resource(&resource.build());
        let (sender, queue) = mpsc::channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let traces = Self {
            env,
            queue: sender,
            counts: Arc::clone(&counts),
            scope: InstrumentationScope::builder("belay").with_version(settings.version).build(),
            // Saturates at both ends.
            kept: (settings.ratio * 2_f64.powi(64)) as u64,
        };
        Ok((traces, Exporter { queue, exporter, counts, told: None, untold: 0 }))
    }

    /// What became of spans so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Exporter {
    /// Hands over whatever comes, until `stop` is cancelled or nobody makes spans any more; then the rest, within two
    /// seconds.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                first = self.queue.recv() => first,
            };
            let Some(first) = first else { return };
            batch.push(first);
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH
                && let Some(Ok(Some(next))) = stop.run_until_cancelled(timeout_at(until, self.queue.recv())).await
            {
                batch.push(next);
            }
            if stop.is_cancelled() {
                break;
            }
            let sent = batch.len() as u64;
            let counts = Arc::clone(&self.counts);
            let mut sending = pin!(self.export(std::mem::take(&mut batch)));
            tokio::select! {
                // What is under way is not lost by a stop that comes with its end.
                biased;
                () = &mut sending => {}
                () = stop.cancelled() => {
                    if timeout(LAST, sending).await.is_err() {
                        counts.dropped(sent);
                    }
                    break;
                }
            }
        }
        self.queue.close();
        while let Some(next) = self.queue.recv().await {
            batch.push(next);
        }
        let rest = batch.len() as u64;
        if rest > 0 && timeout(LAST, self.export(batch)).await.is_err() {
            self.counts.dropped(rest);
        }
    }

    async fn export(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => {
                self.counts.exported.fetch_add(spans, Ordering::Relaxed);
            }
            Err(error) => {
                self.counts.dropped(spans);
                self.untold += spans;
                let now = Instant::now();
                if self.told.is_none_or(|told| now.duration_since(told) >= TELL_AGAIN) {
                    warn!(spans = self.untold, %error, "a collector of traces did not take what it was sent");
                    (self.told, self.untold) = (Some(now), 0);
                }
            }
        }
    }
}
