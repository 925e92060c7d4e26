//! The body of a caller's request.

use crate::refusal::Refusal;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, EXPECT, HeaderMap};
use http_body::Body;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::Duration;
use tokio::time::timeout;

/// How long a caller may pause in the middle of its body.
const PAUSE: Duration = Duration::from_secs(30);
/// How long what a caller sends in vain is taken off its hands.
const DISCARDS: Duration = Duration::from_secs(1);

/// Where the bytes of a body are counted.
pub trait Room: Send {
    /// Has room for so many in all; waits for it. Errors: there is none.
    fn grow(&mut self, bytes: usize) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// Room for everything.
#[derive(Debug, Clone, Copy)]
pub struct Unbounded;

impl Room for Unbounded {
    async fn grow(&mut self, _bytes: usize) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A body, until it was read to its end.
#[derive(Debug)]
pub struct Upload<B> {
    body: B,
    is_read: bool,
    announced: Option<usize>,
    /// The caller sends its body once it is told to.
    waits: bool,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    /// A body that has not been read.
    pub fn new(body: B, headers: &HeaderMap) -> Self {
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { is_read: body.is_end_stream(), body, announced, waits: headers.contains_key(EXPECT) }
    }

    /// All of it. Errors: it is too large, or does not come.
    pub async fn read(&mut self, max: usize) -> Result<Bytes, Refusal> {
        self.read_into(&mut Unbounded, max).await
    }

    /// The same for who counts what arrives. Errors: those of `room`, too.
    pub async fn read_into(&mut self, room: &mut impl Room, max: usize) -> Result<Bytes, Refusal> {
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
            let len = first.as_ref().map_or(0, Bytes::len) + rest.len() + data.remaining();
            if len > max {
                return Err(too_large());
            }
            room.grow(len).await?;
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
    pub async fn discard(&mut self, max: usize) -> bool {
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
    async fn next(&mut self) -> Result<Option<Bytes>, B::Error> {
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
