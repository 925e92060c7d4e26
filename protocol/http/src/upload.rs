//! The body of a caller's request.

use super::refusal::Refusal;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, EXPECT, HeaderMap};
use hyper::body::{Body as _, Incoming};
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::timeout;

/// How long a caller may pause in the middle of its body.
const PAUSE: Duration = Duration::from_secs(30);
/// How long what a caller sends in vain is taken off its hands.
const DISCARDS: Duration = Duration::from_secs(1);

/// A body, until it was read to its end.
pub(super) struct Upload {
    body: Incoming,
    is_read: bool,
    announced: Option<usize>,
    /// The caller sends its body once it is told to.
    waits: bool,
}

impl Upload {
    pub(super) fn new(body: Incoming, headers: &HeaderMap) -> Self {
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { is_read: body.is_end_stream(), body, announced, waits: headers.contains_key(EXPECT) }
    }

    /// All of it. Errors: it is too large, or does not come.
    pub(super) async fn read(&mut self, max: usize) -> Result<Bytes, Refusal> {
        let too_large = || {
            let message = format!("the request body is above {max} bytes");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "limit", message)
        };
        if self.announced.is_some_and(|length| length > max) {
            return Err(too_large());
        }
        self.waits = false;
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        loop {
            let next = timeout(PAUSE, self.next()).await.map_err(|_| {
                let message = format!("nothing came of the request body for {} s", PAUSE.as_secs());
                Refusal::new(StatusCode::REQUEST_TIMEOUT, "timed_out", message)
            })?;
            let next =
                next.map_err(|error| Refusal::bad_request(format!("the request body did not arrive: {error}")))?;
            let Some(data) = next else { break };
            if first.as_ref().map_or(0, Bytes::len) + rest.len() + data.remaining() > max {
                return Err(too_large());
            }
            // Most bodies come in one piece, which is not copied.
            match &first {
                None => first = Some(data),
                Some(_) => rest.put(data),
            }
        }
        let first = first.unwrap_or_default();
        if rest.is_empty() {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(first.len() + rest.len());
        whole.put(first);
        whole.put(rest);
        Ok(whole.freeze())
    }

    /// Takes what comes of a body that nobody reads, shortly: a caller that still sends may never look at
    /// its answer. False: there is more, and the connection cannot carry another request.
    pub(super) async fn discard(&mut self, max: usize) -> bool {
        let discards = async {
            let mut taken = 0;
            // Twice as much as is served: what is refused for its size is above that already.
            while !self.is_read && !self.waits && taken / 2 <= max {
                match self.next().await {
                    Ok(data) => taken += data.map_or(0, |data| data.len()),
                    Err(_) => break,
                }
            }
        };
        // Late is as good as too much.
        let _ = timeout(DISCARDS, discards).await;
        self.is_read
    }

    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        loop {
            match poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                None => {
                    self.is_read = true;
                    return Ok(None);
                }
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}
