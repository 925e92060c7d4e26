//! What streams of small requests answer, and how they end.

use super::{failure, refuse};
use crate::escalate::{ClientStream, finish_stream, send_failed};
use crate::store::StoreError;
use belay_protocol::error::{ProtocolError, StreamCode};
use belay_protocol::message::{Failed, FailureCode};
use belay_protocol::stream::{FrameWriter, StreamError};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tracing::warn;

/// How long a client may take nothing of what waits for it.
const TAKEN: Duration = Duration::from_secs(60);

/// What a client takes at the least, in the long run, in bytes a second: what waits for it takes room that others need.
const SLOWEST: u64 = 1 << 10;

/// Why there is no answer.
pub(super) enum NoAnswer {
    Failed(Box<Failed>),
    /// The stream is lost, or broke the protocol.
    Stream(StreamError),
    /// The client takes nothing.
    Gone,
}

impl NoAnswer {
    pub(super) fn because(code: FailureCode, message: impl Into<String>, remedy: &str) -> Self {
        Self::Failed(Box::new(failure(code, message, remedy)))
    }
}

impl From<StoreError> for NoAnswer {
    fn from(error: StoreError) -> Self {
        if let StoreError::TooLong = error {
            return Self::because(FailureCode::LIMIT, error.to_string(), "ask for less, or for rarer words");
        }
        warn!(%error, "cannot answer a stream");
        let mut failed = failure(FailureCode::STORE_UNAVAILABLE, "the relay could not read its books", "try again");
        failed.retry_after_ms = Some(1000);
        Self::Failed(Box::new(failed))
    }
}

impl From<ProtocolError> for NoAnswer {
    fn from(error: ProtocolError) -> Self {
        warn!(%error, "cannot encode an answer");
        Self::because(FailureCode::INTERNAL, "the answer cannot be sent", "ask for less")
    }
}

impl From<StreamError> for NoAnswer {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

/// Ends a stream whose answer is queued, or says why there is none.
pub(super) async fn end(stream: &mut ClientStream, answered: Result<(), NoAnswer>) {
    match answered {
        Ok(()) => finish_stream(stream, StreamCode::NO_ERROR).await,
        Err(NoAnswer::Failed(failure)) => send_failed(stream, &failure).await,
        Err(NoAnswer::Stream(error)) => refuse(stream, &error).await,
        Err(NoAnswer::Gone) => stream.writer.reset(StreamCode::TIMEOUT),
    }
}

/// Waits until the client has taken what is queued; as long as it takes something, and that not too slowly, it may go on.
pub(super) async fn taken(writer: &mut FrameWriter) -> Result<(), NoAnswer> {
    let (all, begun) = (writer.queued(), Instant::now());
    loop {
        let before = writer.queued();
        match timeout(TAKEN, writer.flush()).await {
            Ok(flushed) => return Ok(flushed?),
            Err(_) if writer.queued() < before && is_fast((all - writer.queued()) as u64, begun.elapsed()) => {}
            Err(_) => return Err(NoAnswer::Gone),
        }
    }
}

fn is_fast(taken: u64, within: Duration) -> bool {
    taken >= SLOWEST.saturating_mul(within.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_trickles_is_too_slow_and_who_is_on_a_poor_line_is_not() {
        assert!(!is_fast(60, Duration::from_secs(60)));
        assert!(is_fast(100 << 10, Duration::from_secs(60)));
        assert!(!is_fast(100 << 10, Duration::from_secs(120)));
    }
}
