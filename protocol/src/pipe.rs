//! Streams without a tunnel: two ends in the same process, behind the stream traits.
//!
//! Callers that reach a relay without a tunnel are served by the same handlers as streams of a tunnel: what
//! takes their requests in holds one end, the handler the other. Bytes pass through as they are. What is written
//! and not read is bounded, so a reader that stands still holds its writer up, as a stream's window would.

use crate::error::StreamCode;
use crate::stream::{FrameReader, FrameWriter, RecvHalf, SendHalf, StreamError};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// One side.
#[derive(Debug)]
pub struct Side {
    /// To the other end.
    pub writer: FrameWriter,
    /// From the other end.
    pub reader: FrameReader,
}

/// Two sides; what one writes the other reads. At most `room` bytes wait in each direction.
#[must_use]
pub fn pipe(room: usize) -> (Side, Side) {
    let (there, back) = (Arc::new(Way::new(room)), Arc::new(Way::new(room)));
    let end = |out: &Arc<Way>, back: &Arc<Way>| Side {
        writer: FrameWriter::new(Box::new(Sender(Arc::clone(out)))),
        reader: FrameReader::new(Box::new(Receiver(Arc::clone(back)))),
    };
    (end(&there, &back), end(&back, &there))
}

/// One direction.
#[derive(Debug)]
struct Way {
    room: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Bytes>,
    waiting: usize,
    /// The sender has said that this is all, or has given up with a code.
    ended: Option<Ended>,
    /// The receiver wants no more.
    stopped: Option<StreamCode>,
    reads: Option<Waker>,
    writes: Option<Waker>,
    waits_for_stop: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Finished,
    Reset(StreamCode),
}

impl Way {
    fn new(room: usize) -> Self {
        Self { room: room.max(1), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn wait(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

#[derive(Debug)]
struct Sender(Arc<Way>);

impl Sender {
    fn end(&self, ended: Ended) {
        let mut state = self.0.state();
        if state.ended.is_none() {
            state.ended = Some(ended);
            if ended != Ended::Finished {
                state.chunks.clear();
                state.waiting = 0;
            }
            wake(&mut state.reads);
            // All of it may have been read already.
            wake(&mut state.waits_for_stop);
        }
    }
}

impl SendHalf for Sender {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<Result<(), StreamError>> {
        let mut state = self.0.state();
        if let Some(code) = state.stopped {
            return Poll::Ready(Err(StreamError::Peer(code)));
        }
        if state.ended.is_some() {
            return Poll::Ready(Err(StreamError::Lost("the stream is closed".into())));
        }
        if state.waiting >= self.0.room {
            wait(&mut state.writes, cx);
            return Poll::Pending;
        }
        while let Some(mut chunk) = chunks.pop_front() {
            let room = self.0.room - state.waiting;
            if chunk.len() > room {
                let rest = chunk.split_off(room);
                chunks.push_front(rest);
            }
            state.waiting += chunk.len();
            state.chunks.push_back(chunk);
            if state.waiting >= self.0.room {
                break;
            }
        }
        wake(&mut state.reads);
        Poll::Ready(Ok(()))
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let mut state = self.0.state();
        if let Some(code) = state.stopped {
            return Poll::Ready(StreamError::Peer(code));
        }
        // All that was sent has arrived.
        if state.ended == Some(Ended::Finished) && state.chunks.is_empty() {
            return Poll::Ready(StreamError::Peer(StreamCode::NO_ERROR));
        }
        wait(&mut state.waits_for_stop, cx);
        Poll::Pending
    }

    fn finish(&mut self) {
        self.end(Ended::Finished);
    }

    fn reset(&mut self, code: StreamCode) {
        self.end(Ended::Reset(code));
    }

    /// Nothing else shares its way.
    fn set_priority(&mut self, _priority: i32) {}
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end(Ended::Reset(StreamCode::CANCELLED));
    }
}

#[derive(Debug)]
struct Receiver(Arc<Way>);

impl RecvHalf for Receiver {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        let mut state = self.0.state();
        if let Some(chunk) = state.chunks.pop_front() {
            state.waiting -= chunk.len();
            wake(&mut state.writes);
            if state.chunks.is_empty() {
                wake(&mut state.waits_for_stop);
            }
            return Poll::Ready(Ok(Some(chunk)));
        }
        match state.ended {
            Some(Ended::Finished) => Poll::Ready(Ok(None)),
            Some(Ended::Reset(code)) => Poll::Ready(Err(StreamError::Peer(code))),
            None => {
                wait(&mut state.reads, cx);
                Poll::Pending
            }
        }
    }

    fn stop(&mut self, code: StreamCode) {
        let mut state = self.0.state();
        if state.stopped.is_none() {
            state.stopped = Some(code);
            state.chunks.clear();
            state.waiting = 0;
            wake(&mut state.writes);
            wake(&mut state.waits_for_stop);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop(StreamCode::NO_ERROR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Cancel;
    use std::future::Future;
    use std::pin::pin;

    /// Polls once.
    fn now<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_one_end_writes_the_other_reads_and_a_full_way_holds_the_writer() {
        let (mut a, mut b) = pipe(16);
        a.writer.queue(&Cancel { reason: "a reason that is longer than the way".into() }).expect("queued");
        assert!(now(a.writer.flush()).is_pending(), "there is no room for all of it");
        let mut got = None;
        while got.is_none() {
            match now(b.reader.expect::<Cancel>()) {
                Poll::Ready(read) => got = Some(read),
                Poll::Pending => drop(now(a.writer.flush())),
            }
        }
        assert_eq!(got.expect("read").expect("whole").reason, "a reason that is longer than the way");
        let stopped = |end: &mut Side| end.writer.poll_stopped(&mut Context::from_waker(Waker::noop()));
        assert!(stopped(&mut a).is_pending());
        a.writer.finish();
        assert_eq!(stopped(&mut a), Poll::Ready(StreamError::Peer(StreamCode::NO_ERROR)));
        assert!(matches!(now(b.reader.frame()), Poll::Ready(Ok(None))));
    }

    #[test]
    fn an_end_that_goes_is_told_apart_by_its_code() {
        let (a, mut b) = pipe(16);
        drop(a);
        assert!(matches!(now(b.reader.frame()), Poll::Ready(Err(StreamError::Peer(StreamCode::CANCELLED)))));
        let written = now(b.writer.send(&Cancel { reason: String::new() }));
        assert!(matches!(written, Poll::Ready(Err(StreamError::Peer(StreamCode::NO_ERROR)))));
        let (mut a, mut b) = pipe(16);
        a.reader.stop(StreamCode::DETACHED);
        a.writer.reset(StreamCode::DETACHED);
        let stopped = b.writer.poll_stopped(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(stopped, Poll::Ready(error) if error.is_away()));
        assert!(matches!(now(b.reader.frame()), Poll::Ready(Err(error)) if error.is_away()));
    }
}
