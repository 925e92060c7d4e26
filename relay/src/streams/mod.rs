//! A handler per kind of stream. Handlers are written on the protocol's stream traits: they parse,
//! call a service, and write. They never see SQL or quinn.

mod answer;
pub mod billing;
pub mod blob;
pub mod control;
pub mod enrol;
pub mod escalate;
pub mod session;
pub mod sync;

use crate::escalate::{ClientStream, finish_stream};
use belay_protocol::error::{ProtocolError, StreamCode};
use belay_protocol::frame::{Frame, FrameType};
use belay_protocol::message::{Failed, FailureCode};
use belay_protocol::stream::StreamError;
use std::future::Future;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How long a stream may take to say what it wants: up to a deadline, and not beyond the beginning
/// of a drain, which is for what runs.
#[derive(Debug, Clone)]
pub struct Intake {
    deadline: Duration,
    draining: CancellationToken,
}

impl Intake {
    /// `draining` is cancelled when no new request may begin.
    pub(crate) fn new(deadline: Duration, draining: CancellationToken) -> Self {
        Self { deadline, draining }
    }

    /// What arrived; or what to answer, and the code that stops what still comes.
    pub(crate) async fn within<T>(&self, arrival: impl Future<Output = T>) -> Result<T, (Failed, StreamCode)> {
        self.within_time(self.deadline, arrival).await
    }

    /// The same for what may take another time: the next request of a stream that has had one.
    pub(crate) async fn within_time<T>(
        &self,
        deadline: Duration,
        arrival: impl Future<Output = T>,
    ) -> Result<T, (Failed, StreamCode)> {
        tokio::select! {
            // What has arrived is taken, whatever else is due.
            biased;
            arrived = timeout(deadline, arrival) => arrived.map_err(|_| {
                let message = format!("no request arrived within {} ms", deadline.as_millis());
                (failure(FailureCode::TIMED_OUT, message, "send the request at once"), StreamCode::TIMEOUT)
            }),
            () = self.draining.cancelled() => {
                let failure = failure(FailureCode::DRAINING, "the relay is going down", "try again in a moment");
                Err((failure, StreamCode::REFUSED))
            }
        }
    }
}

/// The first frame of a stream that carries any number of requests. `None`: there is none, and the client knows why.
pub(crate) async fn first_frame(intake: &Intake, stream: &mut ClientStream, wanted: FrameType) -> Option<Frame> {
    match intake.within(stream.reader.frame()).await {
        Ok(Ok(Some(frame))) => return Some(frame),
        Ok(Ok(None)) => refuse(stream, &ProtocolError::Truncated(wanted.name()).into()).await,
        Ok(Err(error)) => refuse(stream, &error).await,
        Err((failure, code)) => fail(stream, failure, code).await,
    }
    None
}

/// Answers bytes that made no sense with a typed failure; what else comes is not read.
pub(crate) async fn refuse(stream: &mut ClientStream, error: &StreamError) {
    let StreamError::Protocol(error) = error else {
        debug!(%error, "a stream was lost before its request was read");
        return;
    };
    // Anybody can cause it, as often as he likes.
    debug!(%error, "a stream broke the protocol");
    fail(stream, failure_of(error), error.stream_code()).await;
}

fn failure_of(error: &ProtocolError) -> Failed {
    let code = match error.stream_code() {
        StreamCode::LIMIT => FailureCode::LIMIT,
        StreamCode::UNSUPPORTED => FailureCode::UNSUPPORTED,
        _ => FailureCode::MALFORMED,
    };
    failure(code, error.to_string(), "correct the client; see PROTOCOL.md")
}

/// A failure that concerns no request.
pub(crate) fn failure(code: FailureCode, message: impl Into<String>, remedy: &str) -> Failed {
    Failed {
        code,
        message: message.into(),
        remedy: remedy.to_owned(),
        request_id: None,
        retry_after_ms: None,
        missing: None,
    }
}

/// Sends a failure and ends the stream in order; `code` stops what the client still sends.
pub(crate) async fn fail(stream: &mut ClientStream, failure: Failed, code: StreamCode) {
    if stream.writer.queue(&failure).is_ok() {
        finish_stream(stream, code).await;
    }
}
