//! Handing spans over to a collector.

use crate::QUEUE;
use crate::post::{self, Post};
use crate::span::Traces;
use belay_transport::env::Env;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, RetryPolicy, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use secrecy::{ExposeSecret, SecretString};
use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// So many spans go out together at the most.
const BATCH: usize = 512;
/// The first span of a batch waits so long for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long a collector may take, with all that is tried again, and each time.
const PATIENCE: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(5);
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
    /// This part of traces is kept, whatever their callers say of it: from 0 to 1.
    pub ratio: f64,
    /// A trace that its caller does not keep is not kept here either.
    pub follows_callers: bool,
}

/// Why there are no spans.
#[derive(Debug, Error)]
pub enum TracesError {
    /// The address is none.
    #[error("this is not where a collector is ({0}); write for example \"http://127.0.0.1:4318\"")]
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
    /// When the last one was dropped.
    last_dropped: Mutex<Option<Instant>>,
}

impl Counts {
    /// A collector took them.
    #[must_use]
    pub fn exported_so_far(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// The queue was full, somebody made too many, or the collector did not take them.
    #[must_use]
    pub fn dropped_so_far(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Whether one was dropped within so long.
    #[must_use]
    pub fn has_dropped_within(&self, age: Duration) -> bool {
        let last = *self.last_dropped.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| at.elapsed() <= age)
    }

    /// Some are let go.
    pub fn dropped(&self, spans: u64) {
        if spans > 0 {
            self.dropped.fetch_add(spans, Ordering::Relaxed);
            *self.last_dropped.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }
}

/// Hands spans over, in a task of its owner.
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::Receiver<SpanData>,
    exporter: opentelemetry_otlp::SpanExporter,
    counts: Arc<Counts>,
    /// Spans that a collector has rejected one by one.
    rejected: Arc<AtomicU64>,
    /// The log was told last, and spans that it was not told of.
    told: Option<Instant>,
    untold: u64,
}

impl Settings {
    /// Errors: which of it makes no sense.
    pub fn check(&self) -> Result<(), TracesError> {
        self.url()?;
        self.header_map()?;
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(TracesError::Ratio(self.ratio));
        }
        Ok(())
    }

    /// The endpoint in the one form that it has. Errors: it is none; what of a key may stand in it is not said.
    pub fn url(&self) -> Result<reqwest::Url, TracesError> {
        let url = reqwest::Url::parse(&self.endpoint).map_err(|error| TracesError::Endpoint(error.to_string()))?;
        let wrong = |why: &str| Err(TracesError::Endpoint(why.to_owned()));
        match url.scheme() {
            "http" | "https" if url.has_host() => {}
            _ => return wrong("it is not an http or https address"),
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return wrong("a key does not belong there; name it as a header");
        }
        if url.path().trim_end_matches('/').ends_with("/v1/traces") {
            return wrong("leave /v1/traces out");
        }
        Ok(url)
    }

    fn header_map(&self) -> Result<http::HeaderMap, TracesError> {
        let all = self.headers.iter().map(|(name, value)| (name.as_str(), value.expose_secret()));
        post::headers(all).map_err(TracesError::Header)
    }

    /// Whether spans go there, with these headers.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let headers = |settings: &Self| -> Vec<(String, String)> {
            settings.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect()
        };
        self.endpoint == other.endpoint && self.ratio == other.ratio && headers(self) == headers(other)
    }
}

/// Nobody can listen in on the way there.
fn is_safe(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    url.scheme() == "https" || is_here
}

impl Traces {
    /// Errors: all of [`TracesError`].
    pub fn new(settings: &Settings, env: Env) -> Result<(Self, Exporter), TracesError> {
        settings.check()?;
        let url = settings.url()?;
        let setup = |error: &dyn std::fmt::Display| TracesError::Setup(error.to_string());
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(ATTEMPT)
            .user_agent(format!("{}/{}", settings.service, settings.version))
            .build()
            .map_err(|error| setup(&error))?;
        let rejected = Arc::new(AtomicU64::new(0));
        let post =
            Post { client, headers: settings.header_map()?, is_safe: is_safe(&url), rejected: Arc::clone(&rejected) };
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(post)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", url.as_str().trim_end_matches('/')))
            .with_timeout(PATIENCE)
            .with_retry_policy(RetryPolicy::disabled())
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
            follows_callers: settings.follows_callers,
        };
        Ok((traces, Exporter { queue, exporter, counts, rejected, told: None, untold: 0 }))
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
            // What is under way when it is to stop is given up after the same two seconds.
            let last = async {
                stop.cancelled().await;
                sleep(LAST).await;
            };
            self.export(std::mem::take(&mut batch), last).await;
        }
        let last = sleep(LAST);
        self.queue.close();
        while let Some(next) = self.queue.recv().await {
            batch.push(next);
        }
        if !batch.is_empty() {
            self.export(batch, last).await;
        }
    }

    /// Sends a batch, unless `last` is over before, or its time.
    async fn export(&mut self, batch: Vec<SpanData>, last: impl Future<Output = ()>) {
        let spans = batch.len() as u64;
        let sending = timeout(PATIENCE, self.exporter.export(batch));
        let sent = tokio::select! {
            // What is done is done.
            biased;
            sent = sending => sent.unwrap_or(Err(OTelSdkError::Timeout(PATIENCE))),
            () = last => Err(OTelSdkError::Timeout(LAST)),
        };
        let rejected = self.rejected.swap(0, Ordering::Relaxed).min(spans);
        let lost = if sent.is_ok() { rejected } else { spans };
        self.counts.exported.fetch_add(spans - lost, Ordering::Relaxed);
        self.counts.dropped(lost);
        self.untold += lost;
        let now = Instant::now();
        if lost > 0 && self.told.is_none_or(|told| now.duration_since(told) >= TELL_AGAIN) {
            let why = sent.err().map_or_else(|| "it rejected them".to_owned(), |error| error.to_string());
            warn!(spans = self.untold, %why, "a collector of traces did not take what it was sent");
            (self.told, self.untold) = (Some(now), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(endpoint: &str) -> Settings {
        let (headers, service, version) = (vec![], "test", "0");
        Settings { endpoint: endpoint.into(), headers, service, version, ratio: 1.0, follows_callers: false }
    }

    #[test]
    fn an_endpoint_has_one_form_and_tells_no_key() {
        let url = |endpoint: &str| settings(endpoint).url().map(|url| url.to_string());
        assert_eq!(url("HTTP://LocalHost:4318/a b/").ok().as_deref(), Some("http://localhost:4318/a%20b/"));
        for bad in [
            "",
            "x:4318",
            "ftp://h",
            "http://u:SECRET@h",
            "http://h?key=SECRET",
            "http://h/v1/traces/",
            "http://h#SECRET",
        ] {
            let error = settings(bad).check().expect_err(bad).to_string();
            assert!(error.contains("http://127.0.0.1:4318") && !error.contains("SECRET"), "{error}");
        }
        for (endpoint, safe) in
            [("http://127.0.0.1:1", true), ("http://[::1]:1", true), ("https://h", true), ("http://h", false)]
        {
            assert_eq!(is_safe(&settings(endpoint).url().expect("good")), safe, "{endpoint}");
        }
        assert!(matches!(Settings { ratio: 1.5, ..settings("http://h") }.check(), Err(TracesError::Ratio(_))));
        let headers = vec![("a b".to_owned(), "x".into())];
        assert!(matches!(Settings { headers, ..settings("http://h") }.check(), Err(TracesError::Header(_))));
    }

    #[tokio::test]
    async fn a_collector_that_wants_to_be_asked_later_holds_nobody_up() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.read(&mut [0; 65_536]).await;
                let busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = socket.write_all(busy).await;
            }
        });
        let (traces, exporter) = Traces::new(&settings(&endpoint), Env::system()).expect("made");
        let stop = CancellationToken::new();
        let running = tokio::spawn(exporter.run(stop.clone()));
        drop(traces.begin((None, [1; 16]), "a span", opentelemetry::trace::SpanKind::Internal).expect("kept"));
        // On the only thread that there is.
        let (mut longest, mut last) = (Duration::ZERO, Instant::now());
        let until = last + Duration::from_secs(3);
        while Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        assert!(longest < Duration::from_secs(4), "{longest:?}");
        stop.cancel();
        timeout(LAST * 3, running).await.expect("it ends").expect("in order");
        assert_eq!((traces.counts().dropped_so_far(), traces.counts().exported_so_far()), (1, 0));
        assert!(traces.counts().has_dropped_within(Duration::from_secs(60)));
    }
}
