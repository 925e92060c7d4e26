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
use belay_protocol::message::{Cancel, Failed, Resume};
use belay_protocol::stream::{FrameReader, StreamError};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

/// How long the relay may take to end a stream that was reset. What it still sends meanwhile is not kept.
const CONFIRMS: Duration = Duration::from_secs(10);

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
        let reader = match std::mem::replace(&mut self.line, Line::Over) {
            Line::Over => return,
            Line::Broken(_) => None,
            Line::Open(mut open) => {
                open.writer.reset(StreamCode::CANCELLED);
                Some(open.reader)
            }
        };
        // Without a runtime nothing of the tunnel lives on either.
        let Ok(runtime) = Handle::try_current() else { return };
        let leaving = Leaving {
            tunnels: Arc::clone(&self.tunnels),
            id: self.id,
            next: self.next,
            until: Instant::now() + self.resume_window,
        };
        self.tunnels.leaving.spawn_on(leaving.tell(reader), &runtime);
    }
}

impl Leaving {
    /// Waits until the relay has ended the stream that was reset; without one, or if its tunnel is lost,
    /// the same is said on another.
    async fn tell(self, mut reader: Option<FrameReader>) {
        // While it does not know, a silent path is soon left.
        let _waits = self.tunnels.wait_for_answer();
        while Instant::now() < self.until {
            if let Some(reader) = reader.take() {
                match timeout(CONFIRMS, ends(reader)).await {
                    Ok(true) => return,
                    Ok(false) => sleep(RETRY).await,
                    Err(_) => return debug!(request = %self.id, "the relay does not end a stream that was reset"),
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
        writer.queue(&Cancel { reason: "its caller has left".into() })?;
        writer.flush().await?;
        writer.finish();
        Ok(reader)
    }
}

/// Waits for the end of a stream. False: it does not tell that the relay has heard us.
async fn ends(mut reader: FrameReader) -> bool {
    loop {
        match reader.frame().await {
            Ok(Some(frame)) if frame.kind == FrameType::End => return true,
            // One that has a time for another attempt has not looked at the request.
            Ok(Some(frame)) if frame.kind == FrameType::Failed => {
                return Failed::from_frame(&frame).is_ok_and(|failed| failed.retry_after_ms.is_none());
            }
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(StreamError::Lost(_)) => return false,
            // Also if another reads it now.
            Err(_) => return true,
        }
    }
}
