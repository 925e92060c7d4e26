//! What becomes of a request that nobody waits for any more: the relay is told, until it has heard it.
//!
//! A reset alone is not enough. The tunnel may be lost before it arrives, or be closed right after it,
//! and a relay that was not told reads on for its resume window, at the caller's expense.

use super::line::Line;
use super::{Escalation, RETRY};
use crate::error::ClientError;
use crate::tunnels::Tunnels;
use belay_protocol::codec::Message;
use belay_protocol::error::StreamCode;
use belay_protocol::frame::FrameType;
use belay_protocol::id::RequestId;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{Cancel, Failed, FailureCode, Resume};
use belay_protocol::stream::{FrameReader, FrameWriter, StreamError};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::debug;

/// How long a cancel may take to be written, before the stream is reset instead.
const WRITES: Duration = Duration::from_secs(1);

/// Why, for the relay's log.
const GONE: &str = "its caller has left";

/// Nobody waits for the answer: the request is to end.
#[derive(Debug)]
struct Leaving {
    tunnels: Arc<Tunnels>,
    id: RequestId,
    next: u64,
    until: Instant,
}

impl Drop for Escalation {
    fn drop(&mut self) {
        if self.keeps {
            return self.detach();
        }
        let stream = match std::mem::replace(&mut self.line, Line::Over) {
            Line::Over => return,
            Line::Broken(_) => None,
            Line::Open(open) => Some((open.writer, open.reader)),
        };
        // Without a runtime nothing of the tunnel lives on either.
        let Ok(runtime) = Handle::try_current() else { return };
        let leaving = Leaving {
            tunnels: Arc::clone(&self.tunnels),
            id: self.id,
            next: self.next,
            until: Instant::now() + self.resume_window,
        };
        self.tunnels.leaving.spawn_on(leaving.tell(stream), &runtime);
    }
}

impl Leaving {
    /// Waits until the relay has ended the stream; without one, or if its tunnel is lost, the same is said on
    /// another. What still comes meanwhile is not kept.
    async fn tell(self, stream: Option<(FrameWriter, FrameReader)>) {
        // While it does not know, a silent path is soon left.
        let _waits = self.tunnels.wait_for_answer();
        let mut reader = match stream {
            Some((writer, reader)) => Some(cancel(writer, reader).await),
            None => None,
        };
        while Instant::now() < self.until {
            if let Some(reader) = reader.take() {
                // As long as the path may be dead, nobody knows; then the tunnel is lost.
                match timeout_at(self.until, ends(reader)).await {
                    Ok(true) => return,
                    Ok(false) => sleep(RETRY).await,
                    Err(_) => return debug!(request = %self.id, "the relay does not end a request that was cancelled"),
                }
            }
            match self.say_again().await {
                Ok(again) => reader = Some(again),
                Err(error) if error.is_passing() => sleep(RETRY).await,
                Err(error) => return debug!(request = %self.id, %error, "the relay was not told that nobody waits"),
            }
        }
    }

    async fn say_again(&self) -> Result<FrameReader, ClientError> {
        let tunnel = self.tunnels.tunnel(self.until).await?;
        let (mut writer, reader) = tunnel.stream(StreamKind::Escalate).await?;
        writer.queue(&Resume { request_id: self.id, next: self.next })?;
        writer.queue(&Cancel { reason: GONE.into() })?;
        writer.flush().await?;
        writer.finish();
        Ok(reader)
    }
}

/// Says on a request's own stream that nobody waits. A reset would do over QUIC; over TCP it ends the other
/// half too, which is to tell that the relay has heard it. It remains for a request that is not written yet.
async fn cancel(mut writer: FrameWriter, reader: FrameReader) -> FrameReader {
    let is_whole = writer.is_flushed() && writer.queue(&Cancel { reason: GONE.into() }).is_ok();
    if is_whole && matches!(timeout(WRITES, writer.flush()).await, Ok(Ok(()))) {
        writer.finish();
    } else {
        writer.reset(StreamCode::CANCELLED);
    }
    reader
}

/// Waits for the end of a stream. False: it does not tell that the relay has heard us.
async fn ends(mut reader: FrameReader) -> bool {
    loop {
        match reader.frame().await {
            Ok(Some(frame)) if frame.kind == FrameType::End => return true,
            // One that has a time for another attempt has not looked at the request.
            Ok(Some(frame)) if frame.kind == FrameType::Failed => {
                let failed = Failed::from_frame(&frame);
                return failed
                    .is_ok_and(|failed| failed.retry_after_ms.is_none() && failed.code != FailureCode::DRAINING);
            }
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(StreamError::Lost(_)) => return false,
            // Also if another reads it now.
            Err(_) => return true,
        }
    }
}
