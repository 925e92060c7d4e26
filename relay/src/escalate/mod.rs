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
mod watch;

pub use flights::Flights;
pub use sweeper::Unresolved;

use flights::{Entered, Registration};
use guard::HoldGuard;
pub(crate) use health::Health;
use held::Aside;
pub(crate) use held::Held;
use offers::{Offers, Sent};
pub(crate) use refusal::failed;
use refusal::{refused, store_failed};
use route::Chooser;
use session::Conversation;

use crate::config::Config;
use crate::ops::memory::{self, BodyPermit, Memory};
use crate::ops::metrics::Metrics;
use crate::providers::CallFuture;
use crate::registry::Registry;
use crate::secrets::KeySealer;
use crate::settings::{InForce, Settings};
use crate::store::StoreError;
use crate::store::central::{Standing, admit};
use crate::store::executor::{Db, Store};
use crate::store::ledger::Boot;
use crate::store::ledger::hold::{self, HoldOutcome, HoldRefusal, Usable};
use crate::stripe::Stripe;
use crate::tenants::Tenants;
use belay_protocol::error::StreamCode;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::message::{Dialect, EscalateRequest, Failed, FailureCode};
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
    /// Set by the operator: until when (milliseconds since 1970, 0: unknown), and why.
    pub(crate) maintenance: Mutex<Option<(u64, String)>>,
    /// What those who watch the relay are told.
    pub(crate) metrics: Arc<Metrics>,
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

/// A request that can be sent.
struct Begun {
    settings: Arc<Settings>,
    plan: plan::Plan,
    held: Held,
    registration: Registration,
    offers: Offers,
    /// To the first of them. Errors: why it cannot be made.
    call: Result<CallFuture, String>,
}

/// What became of a request before it ran.
enum Beginning {
    Begun(Box<Begun>),
    /// It was settled before: its recorded `End`.
    Settled(Recorded),
    /// It runs already, or its answer waits: this stream reads on there.
    Known,
    /// The book says no.
    Refused(HoldRefusal),
}

/// The recorded end of a request.
struct Recorded {
    dialect: Dialect,
    end: Vec<u8>,
    provider: String,
    model: String,
}

impl Escalator {
    /// Whether a caller whose tunnel has gone meanwhile may still ask: a revocation closes only
    /// tunnels that are there.
    async fn lost_access(&self, caller: &Caller) -> Result<bool, StoreError> {
        if !caller.gone.is_cancelled() {
            return Ok(false);
        }
        let (tenant, device, now_ms) = (caller.tenant.clone(), caller.device.clone(), self.env.clock.now_ms());
        let standing = self.store.run(Db::Central, move |connection| admit(connection, &tenant, &device, now_ms));
        Ok(standing.await? != Standing::Good)
    }

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
        let body = match plan::meant(&request, body) {
            Ok(body) => body,
            Err(failure) => return self.refuse(&mut stream, &failure, span).await,
        };
        let begun = self.begin(caller, &request, &body).instrument(span.clone()).await;
        drop(body);
        match begun {
            Ok(Beginning::Begun(begun)) => {
                // On the heap: the task of a request that waits to begin need not have room for it.
                Box::pin(self.run_held(&request, *begun, body_permit, stream, span)).await;
            }
            Ok(Beginning::Settled(recorded)) => resume::repeat_end(&mut stream, request.request_id, recorded).await,
            Ok(Beginning::Known) => self.join(caller, request.request_id, 0, stream).instrument(span.clone()).await,
            Ok(Beginning::Refused(refusal)) => {
                self.refuse(&mut stream, &refused(request.request_id, &refusal), span).await;
                // Only now: its tunnels close.
                if let HoldRefusal::PaymentRequired { suspended: true, .. } = refusal {
                    self.suspend_at_ceiling(&caller.tenant).instrument(span.clone()).await;
                }
            }
            Err(failure) => self.refuse(&mut stream, &failure, span).await,
        }
    }

    fn plan(
        &self,
        settings: &Settings,
        request: &EscalateRequest,
        body: &Bytes,
        conversation: Option<Conversation>,
    ) -> Result<plan::Plan, Failed> {
        let chooser = Chooser {
            health: &self.health,
            random: &|| u64::from_le_bytes(self.env.random.bytes()),
            now_ms: self.env.clock.now_ms(),
        };
        match session::model_of(request, conversation.as_ref()) {
            None => plan::plan(&settings.config, settings.price_version, request, (body, conversation), &chooser),
            Some(model) => {
                let request = EscalateRequest { model, ..request.clone() };
                plan::plan(&settings.config, settings.price_version, &request, (body, conversation), &chooser)
            }
        }
    }

    async fn refuse(&self, stream: &mut ClientStream, failure: &Failed, span: &Span) {
        self.metrics.refused(failure.code);
        span.in_scope(|| info!(code = %failure.code, "request refused: {}", failure.message));
        send_failed(stream, failure).await;
    }

    /// Plans the request and sets its money aside.
    async fn begin(&self, caller: &Caller, request: &EscalateRequest, body: &Bytes) -> Result<Beginning, Failed> {
        let id = request.request_id;
        let settings = self.settings.get();
        let conversation = self.conversation(&settings.config, caller, request).await?;
        let plan = self.plan(&settings, request, body, conversation)?;
        let tenant = self.tenants.handle(&caller.tenant).await.map_err(|error| store_failed(id, &error))?;
        let hold_request = plan.hold_request((self, &settings.config), caller, request, body, &tenant.rates);
        let input_bytes = hold_request.input_bytes;
        let registration = match self.flights.enter(&caller.tenant, id, &caller.device, hold_request.digest) {
            Entered::New(registration) => registration,
            Entered::Known => return Ok(Beginning::Known),
            Entered::Conflict => return Err(refused(id, &HoldRefusal::Conflict)),
        };
        if self.draining.is_cancelled() {
            return Err(failed(id, FailureCode::DRAINING, "the relay is going down", "try again in a moment"));
        }
        let Some(charge) = self.memory.charge(memory::REQUEST) else {
            let message = "the relay has no memory left for new requests";
            let mut busy = failed(id, FailureCode::OVERLOADED, message, "try again after retry_after_ms");
            busy.retry_after_ms = Some(1000);
            return Err(busy);
        };
        // A revocation that came before the registration could not reach it.
        if caller.revoked.is_cancelled() || self.lost_access(caller).await.map_err(|error| store_failed(id, &error))? {
            return Err(failed(id, FailureCode::REVOKED, "access was revoked", "ask the operator of the relay"));
        }
        // From here on a hold may exist, whatever becomes of this task.
        let mut guard =
            HoldGuard::queued(&caller.tenant, id, input_bytes, hold_request.now_ms, self.unresolved.clone());
        let db = Db::Tenant(caller.tenant.clone());
        let outcome = self.store.run(db, move |connection| hold::hold(connection, &hold_request));
        // Made ready while the store writes, for what is expected to come out; it is sent only when polled.
        let sent = Sent { body: body.clone(), headers: request.headers.clone() };
        let (first, cap) = (Usable { place: 0, key: None }, plan.expected_output(&settings.config));
        let prepared = self.prepare(&settings, &caller.tenant, &plan, &first, &sent, cap);
        let outcome = outcome.await;
        match outcome.map_err(|error| store_failed(id, &error))? {
            HoldOutcome::Held(hold::Held { amount, output_cap, counted, remaining, usable }) => {
                guard.held();
                let aside = Aside::new(Arc::clone(&self.metrics), amount);
                let at = tokio::time::Instant::now();
                let held =
                    Held { guard, tenant, amount, output_cap, counted, remaining, at, _charge: charge, _aside: aside };
                let call = if (&usable[0], output_cap) == (&first, cap) {
                    prepared
                } else {
                    self.prepare(&settings, &caller.tenant, &plan, &usable[0], &sent, output_cap)
                };
                let offers = Offers::new(usable, sent, settings.config.retries);
                let model = &offers.candidate(&plan).model;
                debug!(held = %amount, output_cap, provider = %model.provider, model = %model.name, "money held");
                Ok(Beginning::Begun(Box::new(Begun { settings, plan, held, registration, offers, call })))
            }
            HoldOutcome::Finished { end, provider, model } => {
                guard.disarm();
                let served = plan.candidates.iter().find(|candidate| candidate.model.provider == provider);
                let dialect = plan.shown(served.unwrap_or(&plan.candidates[0]));
                Ok(Beginning::Settled(Recorded { dialect, end, provider, model }))
            }
            HoldOutcome::Refused(refusal) => {
                guard.disarm();
                Ok(Beginning::Refused(refusal))
            }
        }
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
