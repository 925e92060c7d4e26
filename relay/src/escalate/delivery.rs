//! After the settling: the answer's last events and its `End`, until the client says that it has
//! them.
//!
//! As long as a reader is there and takes what it gets, this is done by the stream's own task. An
//! answer whose reader went away waits in a task of its own, compressed after a moment: until it is
//! fetched, its time is over, its memory is needed, the device is revoked, or the relay leaves. What
//! is lost then is the content alone: `End` stands in the book.

use super::flights::{Attach, Registration};
use super::log::{EventLog, LogBudget};
use super::packed::Packed;
use super::reader::{Reader, queue_all};
use belay_protocol::error::StreamCode;
use belay_protocol::message::ResponseHead;
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How long a reader may take for the last bytes of an answer and for saying that it has them.
const LAST_WRITE: Duration = Duration::from_secs(10);
/// An answer that waits so long is compressed: most readers are back sooner.
const COMPRESS_AFTER: Duration = Duration::from_secs(5);
/// What a waiting answer costs beside its bytes: its task, its head, its place.
const OVERHEAD: usize = 4 << 10;

/// A settled answer on its way to its reader.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) registration: Registration,
    pub(super) head: Option<ResponseHead>,
    pub(super) events: Events,
    /// The frame of `End`.
    pub(super) end: Bytes,
}

/// The events that the reader has not acknowledged.
#[derive(Debug)]
pub(super) enum Events {
    Plain(EventLog),
    Packed(Packed),
}

/// How serving a reader came to its end.
enum Step {
    /// The client has everything, or wants no more.
    Delivered,
    /// The reader is gone without saying so.
    Gone,
    /// Another stream wants to read on.
    Another(Attach),
}

impl Delivery {
    /// Delivers to a reader to which everything but `End` was written. `None`: done; otherwise the
    /// answer has to wait.
    pub(super) async fn deliver(mut self, mut reader: Reader) -> Option<Self> {
        reader.stream.writer.queue_raw(self.end.clone());
        if self.serve(reader).await {
            self.registration.close().await;
            return None;
        }
        Some(self)
    }

    /// Waits for a reader, at most for `keep`.
    pub(super) async fn wait(mut self, budget: Arc<LogBudget>, keep: Duration, stop: CancellationToken) {
        let evicted = self.registration.wait();
        let revoked = self.registration.revoked.clone();
        budget.take(OVERHEAD);
        tokio::select! {
            // What ends the waiting comes first.
            biased;
            () = stop.cancelled() => {}
            () = revoked.cancelled() => {}
            () = evicted.cancelled() => debug!("an answer that nobody fetched was let go: its memory was needed"),
            () = sleep(keep) => debug!("an answer that nobody fetched was let go"),
            () = self.wait_for_readers(&budget) => {}
        }
        budget.give_back(OVERHEAD);
        self.registration.close().await;
    }

    /// Serves readers until one has everything.
    async fn wait_for_readers(&mut self, budget: &Arc<LogBudget>) {
        loop {
            let next = match timeout(COMPRESS_AFTER, self.registration.readers.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    self.pack(budget).await;
                    self.registration.readers.recv().await
                }
            };
            // The registration holds a sender's twin for as long as it stands.
            let Some(attach) = next else { return };
            if let Some(reader) = self.attach(attach).await
                && self.serve(reader).await
            {
                return;
            }
        }
    }

    async fn pack(&mut self, budget: &Arc<LogBudget>) {
        let Events::Plain(log) = &self.events else { return };
        match Packed::of(log, budget).await {
            Ok(packed) => self.events = Events::Packed(packed),
            Err(error) => warn!(%error, "cannot compress a waiting answer"),
        }
    }

    /// Serves a reader, and those that take its place. True if one of them has everything.
    async fn serve(&mut self, mut reader: Reader) -> bool {
        loop {
            let step = timeout(LAST_WRITE, poll_fn(|cx| self.poll(&mut reader, cx))).await;
            match step {
                Ok(Step::Delivered) => {
                    reader.stream.reader.stop(StreamCode::NO_ERROR);
                    return true;
                }
                Ok(Step::Gone) => return false,
                Ok(Step::Another(attach)) => {
                    reader.supersede();
                    let Some(another) = self.attach(attach).await else { return false };
                    reader = another;
                }
                Err(_) => {
                    debug!("the client did not take the end of its answer in time");
                    reader.stream.writer.reset(StreamCode::TIMEOUT);
                    reader.stream.reader.stop(StreamCode::TIMEOUT);
                    return false;
                }
            }
        }
    }

    /// Writes all that there is from the wanted number on to another stream.
    async fn attach(&mut self, attach: Attach) -> Option<Reader> {
        let mut reader = Reader::new(attach.stream);
        match &mut self.events {
            Events::Plain(log) => {
                log.acknowledge(attach.next);
                if let Some(head) = &self.head {
                    reader.replay(head, log);
                }
            }
            Events::Packed(packed) => {
                let frames = match packed.frames(attach.next).await {
                    Ok(frames) => frames,
                    Err(error) => {
                        warn!(%error, "a waiting answer cannot be restored");
                        return None;
                    }
                };
                if let Some(head) = &self.head {
                    reader.replay_head(head, packed.first_for(attach.next));
                }
                queue_all(&mut reader, frames);
            }
        }
        reader.stream.writer.queue_raw(self.end.clone());
        Some(reader)
    }

    fn poll(&mut self, reader: &mut Reader, cx: &mut Context<'_>) -> Poll<Step> {
        if let Poll::Ready(Some(attach)) = self.registration.readers.poll_recv(cx) {
            return Poll::Ready(Step::Another(attach));
        }
        let log = match &mut self.events {
            Events::Plain(log) => Some(log),
            Events::Packed(_) => None,
        };
        reader.poll_end(log, cx).map(|ended| match ended {
            Ok(()) => Step::Delivered,
            Err(error) => {
                debug!(%error, "the client did not take the end of its answer");
                Step::Gone
            }
        })
    }
}
