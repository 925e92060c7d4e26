//! What carries an answer: a stream, or the wait for one.

use crate::error::ClientError;
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{Frame, FrameType};
use belay_protocol::stream::{FrameReader, FrameWriter, StreamError};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What carries the answer at the moment.
#[derive(Debug)]
pub(super) enum Line {
    Open(Box<Open>),
    Broken(Broken),
    Over,
}

pub(super) struct Open {
    pub(super) writer: FrameWriter,
    pub(super) reader: FrameReader,
    /// Since when the answer is interrupted, until the relay's first word on this stream.
    pub(super) resuming: Option<Interruption>,
    /// A frame that ended a silence, of which the caller is told first.
    ended_silence: Option<Frame>,
    silent: watch::Receiver<bool>,
    /// Ready when the path may be dead.
    falls_silent: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    /// Since when the caller knows that it may be.
    silence: Option<Instant>,
}

/// What comes of waiting on a stream.
pub(super) enum Heard {
    Frame(Result<Option<Frame>, StreamError>),
    /// The path may be dead.
    Silence,
    /// It was not, after so long.
    Sound(Duration),
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("resuming", &self.resuming).field("silence", &self.silence).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Interruption {
    pub(super) since: Instant,
    /// The caller knows.
    pub(super) told: bool,
}

#[derive(Debug)]
pub(super) struct Broken {
    pub(super) interruption: Interruption,
    /// No attempt before this.
    pub(super) not_before: Instant,
    pub(super) why: String,
}

impl Open {
    pub(super) fn new(
        writer: FrameWriter,
        reader: FrameReader,
        silent: watch::Receiver<bool>,
        resuming: Option<Interruption>,
    ) -> Self {
        let falls_silent = falls(silent.clone());
        Self { writer, reader, resuming, ended_silence: None, silent, falls_silent, silence: None }
    }

    /// Since when the caller sees nothing more.
    pub(super) fn interruption(&self) -> Option<Interruption> {
        self.resuming.or(self.silence.map(|since| Interruption { since, told: true }))
    }

    /// The next frame, or that none will come; what is queued is written meanwhile.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        if !self.writer.is_flushed() {
            match self.writer.poll_flush(cx) {
                // A relay that has finished no longer listens; what it sent is still to come.
                Poll::Ready(Ok(()) | Err(StreamError::Peer(_))) | Poll::Pending => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Heard::Frame(Err(error))),
            }
        }
        if let Some(frame) = self.ended_silence.take() {
            return Poll::Ready(Heard::Frame(Ok(Some(frame))));
        }
        if let Poll::Ready(heard) = self.reader.poll_frame(cx) {
            return Poll::Ready(match (heard, self.silence) {
                (Ok(Some(frame)), Some(since)) => {
                    self.silence = None;
                    self.falls_silent = falls_again(self.silent.clone());
                    self.ended_silence = Some(frame);
                    Heard::Sound(since.elapsed())
                }
                (heard, _) => Heard::Frame(heard),
            });
        }
        if self.silence.is_none() && self.resuming.is_none() && self.falls_silent.as_mut().poll(cx).is_ready() {
            self.silence = Some(Instant::now());
            return Poll::Ready(Heard::Silence);
        }
        Poll::Pending
    }
}

/// Waits until the path may be dead; for ever, if the tunnel ends before.
fn falls(mut silent: watch::Receiver<bool>) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
    Box::pin(async move {
        if silent.wait_for(|silent| *silent).await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// The same after a silence: the path is first found to be sound.
fn falls_again(mut silent: watch::Receiver<bool>) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
    Box::pin(async move {
        if silent.wait_for(|silent| !*silent).await.is_err() || silent.wait_for(|silent| *silent).await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// The relay's numbers do not fit ours.
pub(super) fn out_of_order(number: u64, expected: u64) -> ClientError {
    let why = format!("number {number}, expected {expected}");
    ProtocolError::Malformed { kind: FrameType::Event.name(), why }.into()
}
