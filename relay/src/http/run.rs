//! An LLM request: from its body to a task that runs it.

use super::Http;
use super::access::Admitted;
use super::inside::{Piped, ends};
use crate::escalate::Caller;
use crate::ops::memory::BodyPermit;
use belay_http::answer::Terms;
use belay_http::refusal::Refusal;
use belay_http::wishes::{Wishes, named};
use belay_protocol::id::RequestId;
use belay_protocol::message::{Dialect, EscalateRequest, FailureCode, Operation};
use belay_protocol::trace::TraceContext;
use bytes::Bytes;
use http::StatusCode;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};

impl Http {
    /// The id of a request: that of its caller's own name for it, among those of its kind, or a new one.
    pub(super) fn request_id(&self, caller: &Caller, name: Option<(&str, &str)>) -> RequestId {
        match name {
            Some((kind, name)) => named(caller.tenant.as_str(), caller.device.as_str(), &format!("{kind}\n{name}")),
            None => RequestId(self.shared.escalator.env.random.bytes()),
        }
    }

    /// How an answer is given.
    pub(super) fn terms(&self, wishes: &Wishes) -> Terms {
        Terms {
            keep_alive: self.config().keep_alive,
            end: self.end.clone(),
            numbered: wishes.idempotency_key.is_some().then_some(wishes.last_event),
        }
    }

    /// Runs a request. Errors: the tenant has too many already.
    pub(super) fn run(
        &self,
        admitted: &Admitted,
        request: EscalateRequest,
        body: (Bytes, BodyPermit),
        keeps: bool,
    ) -> Result<Piped, Refusal> {
        let escalator = Arc::clone(&self.shared.escalator);
        let caller = admitted.caller.clone();
        let most = escalator.config().limits.streams_per_tenant;
        let Some(permit) = self.shared.registry.stream(&caller.tenant, most) else {
            let message = format!("{most} streams of this tenant are open");
            let mut refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, FailureCode::LIMIT.name(), message);
            refusal.retry_after_ms = Some(1000);
            return Err(refusal.remedy("wait until one has ended"));
        };
        let id = request.request_id;
        let trace = TraceContext::name(TraceContext::among(&request.headers), id);
        let model: String = request.model.chars().filter(|c| !c.is_control()).take(64).collect();
        let span = tracing::info_span!("http", tenant = %caller.tenant, device = %caller.device, %id, model = %model);
        let (ours, theirs) = ends();
        let mut running = Box::pin(async move {
            escalator.run(&caller, request, body, theirs, &span).await;
            drop(permit);
        });
        // Its first step, in which money is asked for, is taken here: a new task has its turn only once this one rests.
        // Nobody is woken yet; the task's own first step says whom.
        if running.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.shared.streams.spawn(running);
        }
        Ok(Piped::new(ours, (id, trace), keeps))
    }
}

/// A request with nothing said that need not be.
pub(super) fn request(
    id: RequestId,
    (operation, dialect): (Operation, Dialect),
    (model, stream): (String, bool),
    wishes: &Wishes,
    body: &Bytes,
) -> EscalateRequest {
    EscalateRequest {
        request_id: id,
        session_id: None,
        operation,
        dialect,
        model,
        stream,
        max_output_tokens: None,
        may_reduce_output: wishes.may_reduce,
        cost_cap: wishes.cost_cap,
        deadline_ms: wishes.deadline_ms,
        headers: wishes.trace.map(|trace| trace.header()).into_iter().collect(),
        body_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
        extensions: vec![],
    }
}
