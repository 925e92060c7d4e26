//! The life of one request: plan, hold, provider, events, settle.
//!
//! `streams/escalate` hands over a request with its body and the stream; `Escalator::run` answers
//! on that stream. One task owns everything of the request: the stream, the provider's answer, the
//! event log. No lock is held across an await and no event passes through another task.
//!
//! `plan` decides what would be sent and what it could cost, `runner` sends it and watches the
//! answer, `finish` settles, `delivery` sees to it that the reader gets everything. A reader that
//! lost its tunnel comes back through `flights`, with a `resume` or the whole request, and its new
//! stream is handed to the request's task. A hold rides on a `HoldGuard`: should the task end without having
//! resolved it, the sweeper does.

mod begin;
mod candidates;
mod delivery;
mod finish;
mod flights;
mod guard;
mod health;
mod held;
mod intake;
mod log;
mod offers;
mod packed;
mod patience;
mod plan;
mod prewarm;
mod progress;
mod reader;
mod record;
mod refusal;
mod resume;
mod route;
mod runner;
pub(crate) mod session;
mod suspend;
mod sweeper;
mod traced;
mod watch;
mod whole;

pub use flights::Flights;
pub use sweeper::Unresolved;

use begin::{Beginning, Begun, Recorded};
pub(crate) use health::Health;
pub(crate) use held::Held;
pub(crate) use refusal::failed;
use refusal::{refused, store_failed};
use traced::Traced;
pub(crate) use traced::Tracer;

use crate::config::Config;
use crate::ops::chores::Chores;
use crate::ops::memory::{BodyPermit, Memory};
use crate::ops::metrics::Metrics;
use crate::ops::reserve::Reserve;
use crate::registry::Registry;
use crate::secrets::KeySealer;
use crate::settings::InForce;
use crate::store::executor::Store;
use crate::store::ledger::Boot;
use crate::store::ledger::hold::HoldRefusal;
use crate::stripe::Stripe;
use crate::tenants::Tenants;
use belay_protocol::error::StreamCode;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::message::{EscalateRequest, Failed};
use belay_protocol::stream::{FrameReader, FrameWriter};
use belay_protocol::vitals::RelayState;
use belay_transport::connection::Stream;
use belay_transport::env::Env;
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug, info};

/// How long a client may take to take the last bytes of a refusal or a repetition.
const LAST_WRITE: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who pays.
    pub tenant: TenantId,
    /// Which device.
    pub device: DeviceId,
    /// The API key that it asks under, by its id.
    pub key: Option<String>,
    /// Cancelled when the device is revoked or its tenant suspended, while its tunnel is there.
    pub revoked: CancellationToken,
    /// Cancelled when the tunnel is gone.
    pub gone: CancellationToken,
}

/// A client's stream after the request has been read from it.
#[derive(Debug)]
pub struct ClientStream {
    /// To the client.
    pub writer: FrameWriter,
    /// From the client: acknowledgements and cancellation.
    pub reader: FrameReader,
}

impl From<Stream> for ClientStream {
    fn from(stream: Stream) -> Self {
        Self { writer: stream.writer, reader: stream.reader }
    }
}

/// Runs requests.
#[derive(Debug)]
pub struct Escalator {
    pub(crate) settings: InForce,
    pub(crate) env: Env,
    pub(crate) boot: Boot,
    pub(crate) store: Store,
    pub(crate) tenants: Arc<Tenants>,
    /// How they have been of late.
    pub(crate) health: Health,
    /// Opens the keys of tenants that pay with their own.
    pub(crate) sealer: KeySealer,
    /// Cancelled when running requests must come to an end.
    pub(crate) stop: CancellationToken,
    /// Cancelled when no new request may begin.
    pub(crate) draining: CancellationToken,
    pub(crate) unresolved: Unresolved,
    pub(crate) running: AtomicUsize,
    /// Small deeds that devices ask for.
    pub(crate) chores: Chores,
    /// Room for settling what runs when the disk is full.
    pub(crate) reserve: Arc<Reserve>,
    /// Set by the operator: until when (milliseconds since 1970, 0: unknown), and why.
    pub(crate) maintenance: Mutex<Option<(u64, String)>>,
    /// What those who watch the relay are told.
    pub(crate) metrics: Arc<Metrics>,
    /// Where spans of requests go, if they go anywhere.
    pub(crate) tracer: Option<Tracer>,
    /// What clients make the process use.
    pub(crate) memory: Arc<Memory>,
    /// Requests that a reader can come back to.
    pub(crate) flights: Arc<Flights>,
    /// Tunnels of tenants, to be closed when one is suspended.
    pub(crate) registry: Arc<Registry>,
    /// Where tenants can pay, if they can.
    pub(crate) stripe: Option<Arc<Stripe>>,
    /// Tasks of answers that wait for their reader.
    pub(crate) deliveries: TaskTracker,
    /// Cancelled when they must be let go.
    pub(crate) stop_deliveries: CancellationToken,
}

impl Escalator {
    /// The configuration that is in force now.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.settings.get().config)
    }

    /// How many requests are running.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// How the relay is, as clients are told with their heartbeats.
    #[must_use]
    pub fn state(&self) -> RelayState {
        if self.draining.is_cancelled() {
            return RelayState::Maintenance { until_ms: 0, reason: "the relay is shutting down".into() };
        }
        let maintenance = self.maintenance.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((until_ms, reason)) = maintenance
            && (until_ms == 0 || until_ms > self.env.clock.now_ms())
        {
            return RelayState::Maintenance { until_ms, reason };
        }
        if self.memory.is_nearly_full() {
            return RelayState::Degraded { reason: "memory is nearly used up; new requests may be refused".into() };
        }
        if self.reserve.is_short() {
            return RelayState::Degraded { reason: "the disk is nearly full; new requests are refused".into() };
        }
        if self.unresolved.has_some() {
            return RelayState::Degraded { reason: "a book could not be written; it is tried again".into() };
        }
        RelayState::Healthy
    }

    /// Runs one request to its end and answers on its stream. `body` is the whole request body.
    /// `span` is the request's; it is entered here, but not for what is done for every token.
    pub(crate) async fn run(
        &self,
        caller: &Caller,
        request: EscalateRequest,
        (body, body_permit): (Bytes, BodyPermit),
        mut stream: ClientStream,
        span: &Span,
    ) {
        self.running.fetch_add(1, Ordering::Relaxed);
        let running = &self.running;
        let _count = Defer(|| {
            running.fetch_sub(1, Ordering::Relaxed);
        });
        let mut traced = Traced::begin(self.tracer.as_ref(), caller, &request, self.env.clock.as_ref());
        let body = match plan::meant(&request, body) {
            Ok(body) => body,
            Err(failure) => return self.refuse(&mut stream, &failure, traced, span).await,
        };
        let begun = self.begin(caller, &request, &body, &mut traced).instrument(span.clone()).await;
        drop(body);
        match begun {
            Ok(Beginning::Begun(begun)) => {
                // On the heap: the task of a request that waits to begin need not have room for it.
                Box::pin(self.run_held(&request, *begun, body_permit, (stream, traced), span)).await;
            }
            Ok(Beginning::Settled(recorded)) => {
                traced.event("settled before");
                drop(traced);
                resume::repeat_end(&mut stream, request.request_id, recorded).await;
            }
            Ok(Beginning::Known) => {
                traced.event("another reader of a request that runs");
                drop(traced);
                self.join(caller, request.request_id, 0, stream).instrument(span.clone()).await;
            }
            Ok(Beginning::Refused(refusal)) => {
                self.refuse(&mut stream, &refused(request.request_id, &refusal), traced, span).await;
                // Only now: its tunnels close.
                if let HoldRefusal::PaymentRequired { suspended: true, .. } = refusal {
                    self.suspend_at_ceiling(&caller.tenant).instrument(span.clone()).await;
                }
            }
            Err(failure) => self.refuse(&mut stream, &failure, traced, span).await,
        }
    }

    async fn refuse(&self, stream: &mut ClientStream, failure: &Failed, mut traced: Traced, span: &Span) {
        traced.failed(failure.code);
        self.metrics.refused(failure.code);
        span.in_scope(|| info!(code = %failure.code, "request refused: {}", failure.message));
        send_failed(stream, failure).await;
    }
}

/// Sends a failure and ends the stream. A client that does not take it loses it.
pub(crate) async fn send_failed(stream: &mut ClientStream, failure: &Failed) {
    if stream.writer.queue(failure).is_ok() {
        finish_stream(stream, StreamCode::NO_ERROR).await;
    }
}

/// Flushes what is queued and ends the stream, within a deadline; `code` tells the client why
/// nothing more of it is read. What was written is not reset: that would discard it on the way. So
/// would closing the tunnel: this returns when all has arrived, or the client does not want it.
pub(crate) async fn finish_stream(stream: &mut ClientStream, code: StreamCode) {
    stream.reader.stop(code);
    match timeout(LAST_WRITE, stream.writer.flush()).await {
        Ok(Ok(())) => {
            stream.writer.finish();
            let _ = timeout(LAST_WRITE, poll_fn(|cx| stream.writer.poll_stopped(cx))).await;
        }
        Ok(Err(error)) => debug!(%error, "the client did not take the end of its answer"),
        Err(_) => {
            debug!("the client did not take the end of its answer in time");
            stream.writer.reset(StreamCode::TIMEOUT);
        }
    }
}

/// Runs a closure when it goes out of scope.
struct Defer<F: FnMut()>(F);

impl<F: FnMut()> Drop for Defer<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
