//! A request as spans, for whoever collects them: the request itself, its hold, every call of a provider with the
//! words of GenAI, and its settling. Where nobody collects any, all of this is a look at an empty place.
//!
//! What is told is named here, one by one: who pays, which device, names of models (cut), of providers as they are
//! configured, and of sessions, numbers, and codes. No sentence of anybody, since sentences can carry what was asked.
//!
//! Each tenant has its share: traces beyond [`SHARE`] in a second are counted and let go, so that a flood of one, of
//! requests that cost nothing even, does not push out what is told of others.

use super::Caller;
use super::candidates::Candidate;
use super::finish::Ending;
use crate::config::{Config, ProviderKind};
use crate::ops::rate::Limit;
use crate::providers::Answer;
use belay_protocol::id::TenantId;
use belay_protocol::message::{End, EscalateRequest, FailureCode, Operation, Outcome, UnitKind, UsageLine};
use belay_protocol::money::NanoUsd;
use belay_protocol::trace::TraceContext;
use belay_traces::{Span, SpanKind, Traces};
use belay_transport::env::Clock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// So many traces of a tenant are kept in a second.
const SHARE: Limit = Limit::per_second(100);
/// So many tenants' shares are remembered.
const TENANTS: usize = 1024;

/// Where spans come from, and each tenant's share of them.
#[derive(Debug)]
pub(crate) struct Tracer {
    pub(crate) traces: Traces,
    shares: Mutex<HashMap<TenantId, u64>>,
}

impl Tracer {
    pub(crate) fn new(traces: Traces) -> Self {
        Self { traces, shares: Mutex::default() }
    }

    /// One more of a tenant, if it is within its share.
    fn takes(&self, tenant: &TenantId, now_ms: u64) -> bool {
        let now_ns = now_ms.saturating_mul(1_000_000);
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.len() >= TENANTS {
            shares.retain(|_, used_until| *used_until > now_ns);
        }
        let share = shares.entry(tenant.clone()).or_default();
        let taken = SHARE.take(*share, now_ns);
        if let Ok(used) = taken {
            *share = used;
        }
        taken.is_ok()
    }
}

/// The spans of a request, if there are any.
#[derive(Debug, Default)]
pub(super) struct Traced {
    /// Where its caller says that it stands.
    caller: Option<TraceContext>,
    open: Option<Box<Open>>,
}

#[derive(Debug)]
struct Open {
    root: Span,
    /// The provider that is asked, or will be next; and whether it is asked.
    call: Option<(Span, bool)>,
}

impl Open {
    /// What was only made ready has not happened.
    fn forget_unsent(&mut self) {
        if let Some((call, false)) = self.call.take_if(|(_, is_sent)| !*is_sent) {
            call.discard();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.forget_unsent();
        // Before the request that it is a part of.
        self.call = None;
    }
}

impl Traced {
    pub(super) fn begin(
        tracer: Option<&Tracer>,
        caller: &Caller,
        request: &EscalateRequest,
        clock: &dyn Clock,
    ) -> Self {
        let place = TraceContext::among(&request.headers);
        let begun = tracer.and_then(|tracer| {
            let span = tracer.traces.begin((place, request.request_id.0), "request", SpanKind::Server)?;
            if tracer.takes(&caller.tenant, clock.now_ms()) {
                return Some(span);
            }
            span.discard();
            tracer.traces.counts().dropped(1);
            None
        });
        let open = begun.map(|mut root| {
            root.set("belay.request_id", request.request_id.to_string());
            root.set("belay.tenant", caller.tenant.to_string());
            root.set("belay.device", caller.device.to_string());
            root.set("belay.operation", request.operation.name());
            root.set("belay.model", request.model.clone());
            root.set("belay.stream", request.stream);
            if let Some(session) = &request.session_id {
                root.set("gen_ai.conversation.id", session.clone());
            }
            Box::new(Open { root, call: None })
        });
        Self { caller: place, open }
    }

    /// A part of it, until what this returns is dropped.
    pub(super) fn part(&self, name: &'static str) -> Option<Span> {
        self.open.as_ref().map(|open| open.root.child(name, SpanKind::Internal))
    }

    /// A call is made ready. Returns where it stands, for a provider that is to know.
    pub(super) fn call(
        &mut self,
        candidate: &Candidate,
        config: &Config,
        (operation, stream, output_cap): (Operation, bool, u32),
    ) -> Option<TraceContext> {
        let Some(open) = &mut self.open else { return self.caller };
        open.forget_unsent();
        let (operation, model) = (called(operation), &candidate.model.name);
        let provider = &config.providers[&candidate.model.provider];
        // Names of spans are few: one that callers choose is no part of them.
        let is_configured = config.models.values().any(|model| Arc::ptr_eq(model, &candidate.model));
        let name = if is_configured { format!("{operation} {model}") } else { operation.to_owned() };
        let mut call = open.root.child(name, SpanKind::Client);
        call.set("gen_ai.operation.name", operation);
        call.set("gen_ai.provider.name", named(provider.kind));
        call.set("gen_ai.request.model", model.clone());
        call.set("gen_ai.request.max_tokens", i64::from(output_cap));
        call.set("gen_ai.request.stream", stream);
        call.set("belay.provider", candidate.model.provider.clone());
        if let Ok(url) = reqwest::Url::parse(&provider.url) {
            call.set("server.address", url.host_str().unwrap_or_default().to_owned());
            call.set("server.port", i64::from(url.port_or_known_default().unwrap_or_default()));
        }
        let place = call.context();
        open.call = Some((call, false));
        Some(place)
    }

    /// It is made now.
    pub(super) fn dispatched(&mut self) {
        if let Some((call, is_sent)) = self.open.as_mut().and_then(|open| open.call.as_mut()) {
            call.begins_now();
            *is_sent = true;
        }
    }

    /// What a provider said first, or that it said nothing; `is_last`: no other is asked.
    pub(super) fn answered(&mut self, answer: &Result<Answer, Ending>, is_last: bool) {
        let Some(open) = &mut self.open else { return };
        let Some((call, _)) = &mut open.call else { return };
        match answer {
            Ok(answer) => {
                call.set("http.response.status_code", i64::from(answer.status));
                if !(200..300).contains(&answer.status) {
                    call.failed(answer.status.to_string());
                }
            }
            Err(Ending::NotDispatched(code, _)) if *code != FailureCode::CANCELLED => call.failed(code.name()),
            Err(Ending::PastDeadline) => call.failed(Outcome::TIMED_OUT.name()),
            Err(Ending::After(outcome, _)) => {
                if let Some(kind) = wrong(*outcome) {
                    call.failed(kind);
                }
            }
            Err(_) => {}
        }
        if !is_last {
            open.forget_unsent();
            open.call = None;
            open.root.event("asking another, or again");
        }
    }

    /// The first event has come, so long after the call.
    pub(super) fn first_event(&mut self, after: Duration) {
        if let Some((call, _)) = self.open.as_mut().and_then(|open| open.call.as_mut()) {
            call.set("gen_ai.response.time_to_first_chunk", after.as_secs_f64());
        }
    }

    /// Something happened to it.
    pub(super) fn event(&mut self, name: &'static str) {
        if let Some(open) = &mut self.open {
            open.root.event(name);
        }
    }

    /// The money is set aside.
    pub(super) fn held(&mut self, amount: NanoUsd) {
        if let Some(open) = &mut self.open {
            open.root.set("belay.held_nano_usd", amount.0);
        }
    }

    /// The provider is done with, whatever it was paid for.
    pub(super) fn used(&mut self, outcome: Outcome, usage: &[UsageLine]) {
        let Some((mut call, true)) = self.open.as_mut().and_then(|open| open.call.take()) else { return };
        let units = |kinds: &[UnitKind]| {
            let of_kind = usage.iter().filter(|line| kinds.contains(&line.kind));
            i64::try_from(of_kind.map(|line| line.units).sum::<u64>()).unwrap_or(i64::MAX)
        };
        let written = [UnitKind::CACHE_WRITE_5M, UnitKind::CACHE_WRITE_1H];
        let input = [UnitKind::INPUT, UnitKind::INPUT_AUDIO, UnitKind::INPUT_IMAGE, UnitKind::CACHE_READ];
        let output = [UnitKind::OUTPUT, UnitKind::OUTPUT_AUDIO, UnitKind::OUTPUT_IMAGE];
        call.set("gen_ai.usage.input_tokens", units(&input) + units(&written));
        call.set("gen_ai.usage.output_tokens", units(&output));
        for (key, kinds) in [
            ("gen_ai.usage.cache_read.input_tokens", &[UnitKind::CACHE_READ][..]),
            ("gen_ai.usage.cache_write.input_tokens", &written),
            ("gen_ai.usage.reasoning.output_tokens", &[UnitKind::REASONING]),
        ] {
            if units(kinds) > 0 {
                call.set(key, units(kinds));
            }
        }
        if let Some(kind) = wrong(outcome) {
            call.failed(kind);
        }
    }

    /// It is settled; that is its end.
    pub(super) fn settled(&mut self, end: &End) {
        let Some(mut open) = self.open.take() else { return };
        open.root.set("belay.outcome", end.outcome.name());
        open.root.set("belay.cost_nano_usd", end.cost.0);
        open.root.set("belay.estimated", end.estimated);
        open.root.set("belay.events", i64::try_from(end.events).unwrap_or(i64::MAX));
        if let Some(kind) = wrong(end.outcome) {
            open.root.failed(kind);
        }
    }

    /// It came to nothing; that is its end.
    pub(super) fn failed(&mut self, code: FailureCode) {
        let Some(mut open) = self.open.take() else { return };
        if code != FailureCode::CANCELLED {
            open.root.failed(code.name());
        }
    }
}

/// What of an outcome is an error. A caller that has had enough has made none.
fn wrong(outcome: Outcome) -> Option<&'static str> {
    (outcome != Outcome::COMPLETE && outcome != Outcome::CANCELLED).then(|| outcome.name())
}

/// An operation in the words of GenAI.
fn called(operation: Operation) -> &'static str {
    match operation {
        Operation::EMBEDDINGS => "embeddings",
        Operation::COUNT_TOKENS => "count_tokens",
        _ => "chat",
    }
}

/// A provider in the words of GenAI: by the API that it speaks, where nobody can know whose it is.
fn named(kind: ProviderKind) -> &'static str {
    match kind {
        ProviderKind::Anthropic => "anthropic",
        ProviderKind::OpenAi => "openai",
        ProviderKind::Demo => "belay.demo",
    }
}
