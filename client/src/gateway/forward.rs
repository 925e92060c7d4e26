//! One LLM request of a caller: its body goes into the tunnel as it is, and what comes back goes out as
//! it is.

use super::Shared;
use super::api::Forward;
use super::body::{Body, Events, gone};
use super::recent::{Asked, Running};
use super::refusal::Refusal;
use super::upload::Upload;
use crate::error::ClientError;
use crate::escalation::{Answer, Escalation, EscalationRequest, Reading};
use belay_certs::sha256;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Content, End, FailureCode, Outcome, ResponseHead};
use belay_protocol::money::NanoUsd;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Response, StatusCode, request};
use serde::Deserialize;
use std::borrow::Cow;
use std::pin::pin;
use tokio::time::sleep;

/// Headers of a caller that a provider gets to see.
const PASSED_ON: [&str; 3] = ["anthropic-version", "anthropic-beta", "openai-beta"];
/// So much of a model's name is remembered.
const MODEL_SHOWN: usize = 200;
/// So much of a body is shown where prompts are to be.
const PROMPT_SHOWN: usize = 4096;

/// What must be known of a body here; the relay reads the rest.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct Peek<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(default)]
    stream: Option<bool>,
}

/// What a caller says beside its body.
#[derive(Debug, Default)]
struct Wishes {
    idempotency_key: Option<String>,
    cost_cap: Option<NanoUsd>,
    may_reduce: bool,
    deadline_ms: Option<u32>,
}

impl Wishes {
    fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        let text = |name: &str| match headers.get(name).map(HeaderValue::to_str) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.trim())),
            Some(Err(_)) => Err(Refusal::bad_request(format!("the header {name} is no text"))),
        };
        let wrong = |name: &str, value: &str, wanted: &str| {
            Refusal::bad_request(format!("the header {name} is {value:?}; it must be {wanted}"))
        };
        let mut wishes = Self::default();
        if let Some(key) = text("idempotency-key")?.filter(|key| !key.is_empty()) {
            if key.len() > 255 {
                return Err(Refusal::bad_request("the header idempotency-key has more than 255 characters"));
            }
            wishes.idempotency_key = Some(key.to_owned());
        }
        if let Some(cap) = text("belay-cost-cap")? {
            let dollars = cap.parse().ok().filter(|dollars: &NanoUsd| *dollars >= NanoUsd::ZERO);
            let wanted = "an amount of dollars such as 0.05";
            wishes.cost_cap = Some(dollars.ok_or_else(|| wrong("belay-cost-cap", cap, wanted))?);
        }
        wishes.may_reduce = match text("belay-may-reduce")? {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(wrong("belay-may-reduce", other, "true or false")),
        };
        if let Some(ms) = text("belay-deadline-ms")? {
            let parsed = ms.parse().ok().filter(|ms| *ms > 0);
            wishes.deadline_ms = Some(parsed.ok_or_else(|| wrong("belay-deadline-ms", ms, "a whole number above 0"))?);
        }
        Ok(wishes)
    }
}

/// Serves a request.
pub(super) async fn forward(
    shared: &Shared,
    forward: Forward,
    head: &request::Parts,
    upload: &mut Upload,
) -> Result<Response<Body>, Refusal> {
    let wishes = Wishes::read(&head.headers)?;
    let encoding = head.headers.get(CONTENT_ENCODING).map(|encoding| encoding.to_str().unwrap_or("?"));
    if let Some(shown) = encoding.filter(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        let message = format!("a body with content-encoding {shown:?} is not served; send it as it is");
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported", message));
    }
    let body = upload.read(shared.settings.max_body).await?;
    let peek: Peek<'_> = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_request(format!("the request body is not understood: {error}")))?;
    let (model, stream) = (peek.model.unwrap_or_default().into_owned(), peek.stream.unwrap_or(false));
    let again = wishes.idempotency_key.is_some();
    let id = match &wishes.idempotency_key {
        Some(key) => shared.named(key),
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
    };
    let mut running = shared.recent.begin(asked, again);
    let request = EscalationRequest {
        operation: forward.operation,
        stream,
        may_reduce_output: wishes.may_reduce,
        cost_cap: wishes.cost_cap,
        deadline_ms: wishes.deadline_ms,
        reading: if again { Reading::Again } else { Reading::Once },
        headers: PASSED_ON
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), head.headers.get(name)?.to_str().ok()?.to_owned())))
            .collect(),
        ..EscalationRequest::new(id, forward.dialect, model, body)
    };
    let place = shared.lanes.place(shared.settings.wait).await.map_err(|refusal| failed(&running, &refusal))?;
    let begun = place.client.escalate(request, shared.settings.wait).await;
    let escalation = begun.map_err(|error| failed(&running, &Refusal::from(&error)))?;
    running.takes(place);
    answer(shared, forward, Box::new(escalation), running, stream).await
}

/// Waits for the answer's beginning, or for all of one that is not streamed.
async fn answer(
    shared: &Shared,
    forward: Forward,
    mut escalation: Box<Escalation>,
    running: Running,
    stream: bool,
) -> Result<Response<Body>, Refusal> {
    let keep_alive = shared.settings.keep_alive;
    let mut patience = pin!(sleep(keep_alive));
    let mut whole = Whole::default();
    loop {
        let next = tokio::select! {
            biased;
            next = escalation.next() => next,
            // Its caller hears something before it gives up; whatever comes is an event then.
            () = &mut patience, if stream && whole.head.is_none() => {
                let id = running.live.asked.id;
                return Ok(early(shared.events(escalation, forward, running, false), id));
            }
        };
        match next.map_err(|error| failed(&running, &Refusal::from(&error)))? {
            Some(Answer::Head(head)) => {
                running.head(&head);
                if head.stream {
                    let response = respond(&head, None);
                    let events = shared.events(escalation, forward, running, true);
                    return Ok(response.map(|()| Body::Events(Box::new(events))));
                }
                whole.head = Some(head);
            }
            Some(Answer::Chunk(chunk)) => {
                running.live.count(chunk.len());
                whole.body.put(chunk);
            }
            // Of an answer that began as a stream: its head has gone out above.
            Some(Answer::Event(_)) => {}
            Some(Answer::Interrupted { .. }) => running.interrupted(),
            Some(Answer::Resumed { missed, content, .. }) => {
                running.resumed();
                whole.is_gone |= missed > 0 || content == Content::GONE;
            }
            Some(Answer::End(end)) => return whole.settled(&end, &running),
            Some(Answer::Failed(failure)) => {
                let refusal = Refusal::from(&failure);
                return match whole.head {
                    // In its own words, if it has any.
                    Some(head) if failure.code == FailureCode::PROVIDER_REFUSED => {
                        running.failed(head.status, &refusal.message);
                        Ok(respond(&head, None).map(|()| Body::whole(whole.body.freeze())))
                    }
                    _ => Err(failed(&running, &refusal)),
                };
            }
            None => return Err(failed(&running, &Refusal::from(&ClientError::Stopped))),
        }
    }
}

/// An answer that is not streamed.
#[derive(Debug, Default)]
struct Whole {
    head: Option<ResponseHead>,
    body: BytesMut,
    is_gone: bool,
}

impl Whole {
    fn settled(self, end: &End, running: &Running) -> Result<Response<Body>, Refusal> {
        let complete = end.outcome == Outcome::COMPLETE;
        running.end(end, complete);
        let is_gone = self.is_gone || self.head.as_ref().is_some_and(|head| head.content == Content::GONE);
        match self.head {
            _ if is_gone => Err(gone().with_request(end.request_id)),
            Some(head) if complete => Ok(respond(&head, Some(end)).map(|()| Body::whole(self.body.freeze()))),
            _ => Err(Refusal::incomplete(end.outcome, &end.message, end.cost).with_request(end.request_id)),
        }
    }
}

fn failed(running: &Running, refusal: &Refusal) -> Refusal {
    running.failed(refusal.status.as_u16(), &refusal.message);
    refusal.clone().with_request(running.live.asked.id)
}

/// The provider's status and headers, and what the relay says of the request.
fn respond(head: &ResponseHead, end: Option<&End>) -> Response<()> {
    let mut response = Response::new(());
    // Where a provider wants to send its caller elsewhere, nobody can go.
    let status = StatusCode::from_u16(head.status).ok().filter(|status| !status.is_redirection());
    *response.status_mut() = status.unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    for (name, value) in &head.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    let mut say = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    say("belay-request-id", head.request_id.to_string());
    say("belay-provider", head.provider.clone());
    say("belay-model", head.model.clone());
    if let Some(end) = end {
        say("belay-cost", end.cost.to_string());
        say("belay-balance", end.balance.to_string());
    }
    if head.stream {
        headers.entry(http::header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
    }
    response
}

/// The head of a stream whose provider has not answered yet.
fn early(events: Events, id: RequestId) -> Response<Body> {
    let mut response = Response::new(Body::Events(Box::new(events)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(HeaderName::from_static("belay-request-id"), id);
    }
    response
}

fn header_text(headers: &HeaderMap, name: &HeaderName) -> String {
    let text = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.chars().take(120).collect()
}

impl Shared {
    /// A stream for its caller, until its end or the gateway's.
    fn events(&self, escalation: Box<Escalation>, forward: Forward, running: Running, has_head: bool) -> Events {
        Events::new(escalation, forward, running, self.settings.keep_alive, has_head, self.end.clone())
    }

    /// The request that a key of a caller stands for, for ever: of this device, since others may choose the
    /// same one.
    fn named(&self, key: &str) -> RequestId {
        let identity = self.client.identity();
        let name = format!("idempotency\n{}\n{}\n{key}", identity.tenant, identity.device);
        let mut id = [0; 16];
        id.copy_from_slice(&sha256(name.as_bytes())[..16]);
        RequestId(id)
    }
}
