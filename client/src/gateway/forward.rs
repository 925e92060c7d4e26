//! One LLM request of a caller: its body goes into the tunnel as it is, and what comes back goes out as
//! it is.

use super::Shared;
use super::body::Body;
use super::recent::{Asked, Running};
use super::relayed::Relayed;
use super::room::WITHIN;
use crate::escalation::{EscalationRequest, Reading};
use belay_http::answer::{Terms, respond};
use belay_http::api::Forward;
use belay_http::refusal::Refusal;
use belay_http::upload::Upload;
use belay_http::wishes::{Wishes, named, passed_on, peek};
use belay_protocol::trace::TraceContext;
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, USER_AGENT};
use http::{Response, StatusCode, request};
use hyper::body::Incoming;
use tokio::time::timeout;

/// So much of a model's name is remembered.
const MODEL_SHOWN: usize = 200;
/// So much of a body is shown where prompts are to be.
const PROMPT_SHOWN: usize = 4096;

/// Serves a request.
pub(super) async fn forward(
    shared: &Shared,
    forward: Forward,
    head: &request::Parts,
    upload: &mut Upload<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let wishes = Wishes::read(&head.headers)?;
    let mut room = shared.bodies.one();
    let read = timeout(WITHIN, upload.read_into(&mut room, shared.settings.max_body)).await;
    let body = read.map_err(|_| {
        let message = format!("the request body did not come within {} s", WITHIN.as_secs());
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "timed_out", message)
    })??;
    let (model, stream) = peek(&body)?;
    let again = wishes.idempotency_key.is_some();
    let identity = shared.client.identity();
    let id = match &wishes.idempotency_key {
        Some(key) => named(identity.tenant.as_str(), identity.device.as_str(), key),
        None => shared.client.request_id(),
    };
    let shown = |bytes: &Bytes| String::from_utf8_lossy(&bytes[..bytes.len().min(PROMPT_SHOWN)]).into_owned();
    let asked = Asked {
        id,
        forward,
        model: model.chars().take(MODEL_SHOWN).collect(),
        stream,
        caller: header_text(&head.headers, &USER_AGENT),
        prompt: shared.settings.show_prompts.then(|| shown(&body)),
        at_ms: shared.client.now_ms(),
        trace: TraceContext::name(wishes.trace, id),
    };
    let mut running = shared.recent.begin(asked, again);
    let request = EscalationRequest {
        operation: forward.operation,
        stream,
        may_reduce_output: wishes.may_reduce,
        cost_cap: wishes.cost_cap,
        deadline_ms: wishes.deadline_ms,
        reading: if again { Reading::Again } else { Reading::Once },
        headers: passed_on(&head.headers),
        trace: wishes.trace,
        ..EscalationRequest::new(id, forward.dialect, model, body)
    };
    let place = shared.lanes.place(shared.settings.wait).await.map_err(|refusal| failed(&running, &refusal))?;
    let begun = place.client.escalate(request, shared.settings.wait).await;
    let escalation = begun.map_err(|error| failed(&running, &Refusal::from(&error)))?;
    running.takes((place, room));
    let terms = Terms {
        keep_alive: shared.settings.keep_alive,
        end: shared.end.clone(),
        numbered: again.then_some(wishes.last_event),
    };
    let answered = respond(Relayed::new(escalation, running), forward, stream, terms).await?;
    Ok(answered.map(Body::Answer))
}

fn failed(running: &Running, refusal: &Refusal) -> Refusal {
    running.failed(refusal.status.as_u16(), &refusal.words());
    let asked = &running.live.asked;
    refusal.clone().with_request(asked.id).with_trace(asked.trace)
}

fn header_text(headers: &HeaderMap, name: &HeaderName) -> String {
    let text = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.chars().take(120).collect()
}
