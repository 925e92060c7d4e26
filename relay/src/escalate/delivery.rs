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
use super::reader::{Ended, Reader, queue_all};
use belay_protocol::error::StreamCode;
use belay_protocol::message::ResponseHead;
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How long a reader may take nothing of the last bytes of an answer, or not say that it has them.
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

/// What happens to a reader that is served.
enum Step {
    /// The client has everything, or wants no more.
    Read,
    /// Everything has arrived; the client has not said yet that it has read it.
    Arrived,
    /// The reader is gone without saying so.
    Gone,
    /// Another stream wants to read on.
    Another(Box<Attach>),
}

/// How serving readers came to its end.
enum Served {
    Read,
    Arrived(Box<Reader>),
    Gone,
}

/// What a reader says to which everything has arrived.
enum Word {
    /// It has it.
    Read,
    /// Nothing.
    None,
    /// Another one has come.
    Another(Box<Attach>),
}

impl Delivery {
    /// Delivers to a reader to which everything but `End` was written. `None`: done; otherwise the
    /// answer has to wait: for the word of the reader that it has everything, or for another reader.
    pub(super) async fn deliver(mut self, mut reader: Reader) -> Option<(Self, Option<Reader>)> {
        reader.stream.writer.queue_raw(self.end.clone());
        match self.serve(reader).await {
            Served::Read => {
                self.registration.close().await;
                None
            }
            Served::Arrived(reader) => Some((self, Some(*reader))),
            Served::Gone => Some((self, None)),
        }
    }

    /// Waits for readers and serves them, until one has everything, or nobody came for `keep`.
    pub(super) async fn wait(
        mut self,
        mut here: Option<Reader>,
        budget: Arc<LogBudget>,
        keep: Duration,
        stop: CancellationToken,
    ) {
        let revoked = self.registration.revoked.clone();
        let until = Instant::now() + keep;
        budget.take(OVERHEAD);
        loop {
            // One to which all has arrived only has to say so.
            let word = match here.take() {
                Some(reader) => tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    () = revoked.cancelled() => break,
                    word = self.word(reader) => word,
                },
                None => Word::None,
            };
            let attach = match word {
                Word::Read => break,
                Word::Another(attach) => Some(*attach),
                Word::None => None,
            };
            let attach = match attach {
                Some(attach) => Some(attach),
                None => {
                    let evicted = self.registration.wait();
                    tokio::select! {
                        // What ends the waiting comes first.
                        biased;
                        () = stop.cancelled() => None,
                        () = revoked.cancelled() => None,
                        () = evicted.cancelled() => {
                            debug!("an answer that nobody fetched was let go: its memory was needed");
                            None
                        }
                        () = sleep_until(until) => None,
                        next = self.next_reader(&budget) => next,
                    }
                }
            };
            let Some(attach) = attach else { break };
            // A reader that is served is not disturbed, but by the loss of access.
            self.registration.serve();
            let Some(reader) = self.attach(attach).await else { break };
            here = tokio::select! {
                biased;
                () = revoked.cancelled() => break,
                served = self.serve(reader) => match served {
                    Served::Read => break,
                    Served::Arrived(reader) => Some(*reader),
                    Served::Gone => None,
                },
            };
        }
        // The memory first: others wait for it, and late readers may take their time.
        let Self { registration, events, .. } = self;
        drop(events);
        budget.give_back(OVERHEAD);
        registration.close().await;
    }

    /// The next stream that wants to read on. What waits long is compressed meanwhile.
    async fn next_reader(&mut self, budget: &Arc<LogBudget>) -> Option<Attach> {
        if let Ok(next) = timeout(COMPRESS_AFTER, self.registration.readers.recv()).await {
            return next;
        }
        self.pack(budget).await;
        self.registration.readers.recv().await
    }

    async fn pack(&mut self, budget: &Arc<LogBudget>) {
        let Events::Plain(log) = &self.events else { return };
        match Packed::of(log, budget).await {
            Ok(packed) => self.events = Events::Packed(packed),
            Err(error) => warn!(%error, "cannot compress a waiting answer"),
        }
    }

    /// Serves a reader, and those that take its place.
    async fn serve(&mut self, mut reader: Reader) -> Served {
        let mut progress = self.progress(&reader);
        loop {
            let step = timeout(LAST_WRITE, poll_fn(|cx| self.poll(&mut reader, cx))).await;
            match step {
                Ok(Step::Read) => {
                    reader.stream.reader.stop(StreamCode::NO_ERROR);
                    return Served::Read;
                }
                Ok(Step::Arrived) => return Served::Arrived(Box::new(reader)),
                Ok(Step::Gone) => return Served::Gone,
                Ok(Step::Another(attach)) => {
                    reader.supersede();
                    let Some(another) = self.attach(*attach).await else { return Served::Gone };
                    reader = another;
                }
                // A slow line is not a dead one.
                Err(_) if self.progress(&reader) != progress => {}
                Err(_) => {
                    debug!("the client did not take the end of its answer in time");
                    reader.give_up();
                    return Served::Gone;
                }
            }
            progress = self.progress(&reader);
        }
    }

    /// Waits, a moment at the most, for the word of a reader to which everything has arrived.
    async fn word(&mut self, mut reader: Reader) -> Word {
        let word = poll_fn(|cx| {
            if let Poll::Ready(Some(attach)) = self.registration.readers.poll_recv(cx) {
                return Poll::Ready(Word::Another(Box::new(attach)));
            }
            reader.poll_word(cx).map(|said| if said { Word::Read } else { Word::None })
        });
        match timeout(LAST_WRITE, word).await {
            Ok(word @ Word::Another(_)) => {
                reader.supersede();
                word
            }
            Ok(word) => {
                reader.stream.reader.stop(StreamCode::NO_ERROR);
                word
            }
            Err(_) => {
                reader.give_up();
                Word::None
            }
        }
    }

    /// What changes while a reader takes anything.
    fn progress(&self, reader: &Reader) -> (u64, usize) {
        let first = match &self.events {
            Events::Plain(log) => log.first(),
            Events::Packed(_) => 0,
        };
        (first, reader.stream.writer.queued())
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
            return Poll::Ready(Step::Another(Box::new(attach)));
        }
        let log = match &mut self.events {
            Events::Plain(log) => Some(log),
            Events::Packed(_) => None,
        };
        reader.poll_end(log, cx).map(|ended| match ended {
            Ok(Ended::Read) => Step::Read,
            Ok(Ended::Arrived) => Step::Arrived,
            Err(error) => {
                debug!(%error, "the client did not take the end of its answer");
                Step::Gone
            }
        })
    }
}
