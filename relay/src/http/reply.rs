//! Reading requests and writing answers, the same for all endpoints.

use super::Http;
use super::access::Admitted;
use crate::ops::memory::{BodyPermit, Charge};
use crate::store::central::keys::KeyScope;
use axum::body::{Body, HttpBody};
use axum::extract::{Query, Request};
use axum::response::Response;
use belay_http::refusal::Refusal;
use belay_http::upload::{Room, Upload};
use belay_http::wishes::plain;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{StatusCode, Version};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// A request that is being answered. Borrowed mutably throughout: a body can be sent to another thread, not shared.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) head: Parts,
    upload: Upload<Body>,
    /// For the body, until the answer is there.
    kept: Option<Charge>,
}

impl Asked {
    pub(super) fn new(request: Request) -> Self {
        let (head, body) = request.into_parts();
        Self { upload: Upload::new(body, &head.headers), head, kept: None }
    }

    /// Who asks. Errors: nobody, or one that may not.
    pub(super) async fn admit(&mut self, http: &Http, scope: KeyScope) -> Result<Admitted, Refusal> {
        let admitted = http.access.admit(&self.head).await?;
        admitted.needs(scope)?;
        // The worker wakes while the body is read.
        let escalator = &http.shared.escalator;
        escalator.store.expect(&admitted.caller.tenant, escalator.flights.running() == 0);
        Ok(admitted)
    }

    /// Who asks, and what the body says.
    pub(super) async fn posted<T: DeserializeOwned>(
        &mut self,
        http: &Http,
        scope: KeyScope,
    ) -> Result<(Admitted, T), Refusal> {
        let admitted = self.admit(http, scope).await?;
        plain(&self.head.headers)?;
        let (body, _permit) = self.body(http, &admitted).await?;
        // What it takes stays counted. Its room is given back: whoever serves it may need some of the same.
        self.kept = Some(http.shared.escalator.memory.hold(body.len()));
        Ok((admitted, parse(&body)?))
    }

    /// Who asks, and what the address says.
    pub(super) async fn queried<T: DeserializeOwned>(
        &mut self,
        http: &Http,
        scope: KeyScope,
    ) -> Result<(Admitted, T), Refusal> {
        let admitted = self.admit(http, scope).await?;
        let query = Query::try_from_uri(&self.head.uri)
            .map_err(|error| Refusal::bad_request(error.to_string()).remedy("see /openapi.json"))?;
        Ok((admitted, query.0))
    }

    /// The whole body, with its room in the budget for bodies.
    pub(super) async fn body(&mut self, http: &Http, admitted: &Admitted) -> Result<(Bytes, BodyPermit), Refusal> {
        let until = Instant::now() + http.shared.escalator.config().timeouts.request_body;
        let mut room = Counted { permit: http.shared.bodies.body(&admitted.caller.tenant), until };
        let read = timeout_at(until, self.upload.read_into(&mut room, http.max_body())).await.map_err(|_| {
            Refusal::new(StatusCode::REQUEST_TIMEOUT, "timed_out", "the request body did not arrive in time")
        })?;
        Ok((read?, room.permit))
    }

    /// The answer, once what was not read of the body is off the caller's hands.
    pub(super) async fn done(self, http: &Http, answered: Result<Response, Refusal>) -> Response {
        self.told(http, answered, own).await
    }

    /// The same in the words of the caller's API.
    pub(super) async fn told(
        mut self,
        http: &Http,
        answered: Result<Response, Refusal>,
        refused: impl FnOnce(&Refusal) -> Response,
    ) -> Response {
        let mut response = answered.unwrap_or_else(|refusal| refused(&refusal.in_trace_of(&self.head.headers)));
        // HTTP/2 closes the stream alone.
        if !self.upload.discard(http.max_body()).await && self.head.version <= Version::HTTP_11 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Room in the budget for bodies.
struct Counted {
    permit: BodyPermit,
    until: Instant,
}

impl Room for Counted {
    async fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        if self.permit.grow(bytes, self.until).await {
            return Ok(());
        }
        let message = "the relay has no memory left for request bodies";
        let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
        refusal.retry_after_ms = Some(1000);
        Err(refusal.remedy("try again later"))
    }
}

/// A body of whom nobody knows yet, byte for byte.
pub(super) async fn raw(asked: &mut Asked, most: usize, within: Duration) -> Result<Bytes, Refusal> {
    timeout(within, asked.upload.read(most)).await.map_err(|_| {
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "timed_out", "the request body did not arrive in time")
    })?
}

/// A refusal in belay's own words.
pub(super) fn own(refusal: &Refusal) -> Response {
    refusal.own_answer().map(Body::from)
}

/// A body as JSON of that shape; the error names line, column and field.
pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    // A body is optional where all of it is.
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    // A list of values would do for a reader that goes by their order, and mean something else with the next field.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Refusal::bad_request("the request body is not a JSON object").remedy("see /openapi.json"));
    }
    serde_json::from_slice(body).map_err(|error| {
        Refusal::bad_request(format!("the request body is not understood: {error}")).remedy("see /openapi.json")
    })
}

/// An answer whose bytes count as the relay's memory until they have gone out. Errors: there is no room.
pub(super) fn counted(http: &Http, response: Response) -> Result<Response, Refusal> {
    let bytes = response.body().size_hint().upper().unwrap_or_default();
    let charge = room(http, usize::try_from(bytes).unwrap_or(usize::MAX))?;
    Ok(response.map(|body| Body::new(Held { body, charge: Arc::new(charge) })))
}

/// Room for so many bytes of an answer. Errors: there is none.
pub(super) fn room(http: &Http, bytes: usize) -> Result<Charge, Refusal> {
    http.shared.escalator.memory.charge(bytes).ok_or_else(|| {
        let message = "the relay has no memory left for answers";
        let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
        refusal.retry_after_ms = Some(1000);
        refusal.remedy("try again later")
    })
}

/// A body whose bytes keep its room, wherever they wait to be written.
struct Held {
    body: Body,
    charge: Arc<Charge>,
}

/// Bytes with their room.
struct Kept {
    bytes: Bytes,
    _charge: Arc<Charge>,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        // The body has ended for its writer once the last frame is taken, and not once that has gone out.
        let charge = Arc::clone(&self.charge);
        Pin::new(&mut self.body)
            .poll_frame(cx)
            .map_ok(|frame| frame.map_data(|bytes| Bytes::from_owner(Kept { bytes, _charge: charge })))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// An answer in JSON.
pub(super) fn json(value: &impl Serialize) -> Result<Response, Refusal> {
    let body = serde_json::to_vec(value).map_err(|error| {
        Refusal::new(StatusCode::BAD_GATEWAY, "internal", format!("the answer cannot be written: {error}"))
    })?;
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
