//! The beginning of a request: what it is to be, whether its caller may ask, and the money for it.

use super::flights::{Entered, Registration};
use super::guard::HoldGuard;
use super::held::{Aside, Held};
use super::offers::{Offers, Sent};
use super::refusal::{failed, refused, store_failed};
use super::route::Chooser;
use super::session::{self, Conversation};
use super::traced::Traced;
use super::{Caller, Escalator, plan};
use crate::ops::memory;
use crate::providers::CallFuture;
use crate::settings::Settings;
use crate::store::StoreError;
use crate::store::central::{Standing, admit};
use crate::store::executor::Db;
use crate::store::ledger::hold::{self, HoldOutcome, HoldRefusal, HoldRequest, Usable};
use crate::tenants::TenantHandle;
use belay_protocol::message::{Dialect, EscalateRequest, Failed, FailureCode};
use bytes::Bytes;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::debug;

/// A session's question up to this may be written down on the thread that has the request, in bytes.
const SHORT_QUESTION: usize = 16 << 10;

/// A request that can be sent.
pub(super) struct Begun {
    pub(super) settings: Arc<Settings>,
    pub(super) plan: plan::Plan,
    pub(super) held: Held,
    pub(super) registration: Registration,
    pub(super) offers: Offers,
    /// To the first of them. Errors: why it cannot be made.
    pub(super) call: Result<CallFuture, String>,
}

/// A request that may ask its book.
struct Asked {
    settings: Arc<Settings>,
    plan: plan::Plan,
    tenant: Arc<TenantHandle>,
    hold_request: HoldRequest,
}

/// What became of a request before it ran.
pub(super) enum Beginning {
    Begun(Box<Begun>),
    /// It was settled before: its recorded `End`.
    Settled(Recorded),
    /// It runs already, or its answer waits: this stream reads on there.
    Known,
    /// The book says no.
    Refused(HoldRefusal),
}

/// The recorded end of a request.
pub(super) struct Recorded {
    pub(super) dialect: Dialect,
    pub(super) end: Vec<u8>,
    pub(super) provider: String,
    pub(super) model: String,
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

    /// Plans the request and sets its money aside.
    pub(super) async fn begin(
        &self,
        caller: &Caller,
        request: &EscalateRequest,
        body: &Bytes,
        traced: &mut Traced,
    ) -> Result<Beginning, Failed> {
        let id = request.request_id;
        let settings = self.settings.get();
        let conversation = self.conversation(&settings.config, caller, request).await?;
        let plan = self.plan(&settings, request, body, conversation)?;
        let tenant = self.tenants.handle(&caller.tenant).await.map_err(|error| store_failed(id, &error))?;
        let hold_request = plan.hold_request((self, &settings.config), caller, request, body, &tenant.rates);
        let mut registration = match self.flights.enter(&caller.tenant, id, &caller.device, hold_request.digest) {
            Entered::New(registration) => Some(registration),
            Entered::Known => return Ok(Beginning::Known),
            Entered::Conflict => return Err(refused(id, &HoldRefusal::Conflict)),
        };
        let asked = Asked { settings, plan, tenant, hold_request };
        let beginning = self.set_aside(caller, request, (body, asked), &mut registration, traced).await;
        if let Some(registration) = registration {
            // Who came for the same request meanwhile is told to ask again, and hears then what became of it.
            registration.close().await;
        }
        beginning
    }

    /// Sets the money aside. `registration` is taken by a request that can be sent.
    async fn set_aside(
        &self,
        caller: &Caller,
        request: &EscalateRequest,
        (body, asked): (&Bytes, Asked),
        registration: &mut Option<Registration>,
        traced: &mut Traced,
    ) -> Result<Beginning, Failed> {
        let id = request.request_id;
        let Asked { settings, plan, tenant, hold_request } = asked;
        let input_bytes = hold_request.input_bytes;
        if self.draining.is_cancelled() {
            return Err(failed(id, FailureCode::DRAINING, "the relay is going down", "try again in a moment"));
        }
        if self.reserve.is_short() {
            let message = "the relay's disk is nearly full";
            let mut full = failed(id, FailureCode::OVERLOADED, message, "ask the operator of the relay to make room");
            full.retry_after_ms = Some(30_000);
            return Err(full);
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
        let part = traced.part("hold");
        let db = Db::Tenant(caller.tenant.clone());
        // A long question is much to write, which nobody else is to wait for.
        let is_short = hold_request.question.as_ref().is_none_or(|question| question.text.len() <= SHORT_QUESTION);
        let is_alone = is_short && self.flights.running() == 1;
        let outcome = self.store.run_here_if(is_alone, db, move |connection| hold::hold(connection, &hold_request));
        // Made ready while the store writes, for what is expected to come out; it is sent only when polled.
        let sent = Sent { body: body.clone(), headers: request.headers.clone() };
        let (first, cap) = (Usable { place: 0, key: None }, plan.expected_output(&settings.config));
        let prepared = self.prepare((&settings, &caller.tenant, &plan), &first, &sent, cap, traced);
        let outcome = outcome.await;
        drop(part);
        match outcome.map_err(|error| store_failed(id, &error))? {
            HoldOutcome::Held(hold::Held { amount, output_cap, counted, remaining, usable }) => {
                guard.held();
                traced.held(amount);
                let aside = Aside::new(Arc::clone(&self.metrics), amount);
                let at = Instant::now();
                let held =
                    Held { guard, tenant, amount, output_cap, counted, remaining, at, _charge: charge, _aside: aside };
                let call = if (&usable[0], output_cap) == (&first, cap) {
                    prepared
                } else {
                    self.prepare((&settings, &caller.tenant, &plan), &usable[0], &sent, output_cap, traced)
                };
                let offers = Offers::new(usable, sent, settings.config.retries);
                let model = &offers.candidate(&plan).model;
                debug!(held = %amount, output_cap, provider = %model.provider, model = %model.name, "money held");
                // It is there: this runs once.
                let registration = registration
                    .take()
                    .ok_or_else(|| failed(id, FailureCode::INTERNAL, "the request has no place", "ask again"))?;
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
