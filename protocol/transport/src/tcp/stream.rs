//! HTTP/2 streams behind the protocol's traits.

use super::STREAM_CODES;
use super::driver::on_wire;
use super::shared::{OpenStream, Shared};
use crate::connection::Stream;
use belay_protocol::error::StreamCode;
use belay_protocol::stream::{FrameReader, FrameWriter, RecvHalf, SendHalf, StreamError};
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

/// The most bytes offered to a stream at once.
const WRITE_MAX: usize = 64 << 10;

/// A stream that a client has opened.
pub(super) fn client(response: ResponseFuture, send: SendStream<Bytes>, shared: &Arc<Shared>) -> Stream {
    stream(Incoming::Awaited(response), send, shared)
}

/// A stream that a relay was given.
pub(super) fn relay(body: RecvStream, send: SendStream<Bytes>, shared: &Arc<Shared>) -> Stream {
    stream(Incoming::Open(body), send, shared)
}

fn stream(incoming: Incoming, send: SendStream<Bytes>, shared: &Arc<Shared>) -> Stream {
    let id = u64::from(send.stream_id().as_u32());
    let common = Arc::new(Common { silent: AtomicBool::new(false), _open: OpenStream::new(shared) });
    let writer =
        TcpSend { stream: send, ended: false, waits_for_reset: None, displaced: false, common: Arc::clone(&common) };
    let reader = TcpRecv { incoming, common };
    Stream { id, writer: FrameWriter::new(Box::new(writer)), reader: FrameReader::new(Box::new(reader)) }
}

/// What both halves share.
struct Common {
    /// Nothing more is expected of the receiving half: the peer has ended it, or nobody reads it.
    silent: AtomicBool,
    _open: OpenStream,
}

/// The sending half of an HTTP/2 stream.
struct TcpSend {
    stream: SendStream<Bytes>,
    /// Finished or reset.
    ended: bool,
    /// Who waits for a reset. h2 keeps one waker for all that a sender may wait for: a wait for room
    /// takes its place, and it has to be put back.
    waits_for_reset: Option<Waker>,
    displaced: bool,
    common: Arc<Common>,
}

impl Drop for TcpSend {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(StreamCode::CANCELLED);
        }
    }
}

impl fmt::Debug for TcpSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpSend({:?})", self.stream.stream_id())
    }
}

impl TcpSend {
    /// Why nothing can be written.
    fn why_closed(&mut self, cx: &mut Context<'_>) -> StreamError {
        match self.stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => reset_by(reason),
            Poll::Ready(Err(error)) => stream_error(&error),
            Poll::Pending => StreamError::Lost("the stream is closed".into()),
        }
    }
}

impl TcpSend {
    /// Puts the waker of who waits for a reset back, after a wait for room.
    fn wait_for_reset_again(&mut self) {
        if std::mem::take(&mut self.displaced)
            && let Some(waker) = self.waits_for_reset.clone()
            && self.stream.poll_reset(&mut Context::from_waker(&waker)).is_ready()
        {
            waker.wake();
        }
    }
}

impl SendHalf for TcpSend {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<Result<(), StreamError>> {
        let wanted = chunks.iter().map(Bytes::len).sum::<usize>().min(WRITE_MAX);
        self.stream.reserve_capacity(wanted);
        let mut room = self.stream.capacity();
        while room == 0 {
            room = match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(room))) => room,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(self.why_closed(cx))),
                Poll::Pending => {
                    // A reset ends this wait as well.
                    self.displaced = true;
                    return Poll::Pending;
                }
            };
        }
        self.wait_for_reset_again();
        while room > 0
            && let Some(front) = chunks.front_mut()
        {
            let piece = front.split_to(front.len().min(room));
            if front.is_empty() {
                chunks.pop_front();
            }
            room -= piece.len();
            if self.stream.send_data(piece, false).is_err() {
                return Poll::Ready(Err(self.why_closed(cx)));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// After `finish`, HTTP/2 tells nobody that all has arrived. It counts as arrived when the peer
    /// says nothing more, or nobody listens to what it says: until then the frames that it sends, or
    /// its reset, tell more.
    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match self.stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => Poll::Ready(reset_by(reason)),
            Poll::Ready(Err(error)) => Poll::Ready(stream_error(&error)),
            Poll::Pending if self.ended && self.common.silent.load(Ordering::Acquire) => {
                Poll::Ready(StreamError::Peer(StreamCode::NO_ERROR))
            }
            Poll::Pending => {
                match &mut self.waits_for_reset {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    fn finish(&mut self) {
        self.ended = true;
        // An error means that the peer has reset it.
        let _ = self.stream.send_data(Bytes::new(), true);
    }

    fn reset(&mut self, code: StreamCode) {
        self.ended = true;
        self.stream.send_reset(Reason::from(STREAM_CODES + on_wire(code.0, StreamCode::INTERNAL.0)));
    }

    /// HTTP/2 as it is deployed has none; small send buffers keep streams out of each other's way.
    fn set_priority(&mut self, _: i32) {}
}

/// Where what arrives is read.
enum Incoming {
    /// A client's, until the relay has answered.
    Awaited(ResponseFuture),
    Open(RecvStream),
    Over,
}

/// The receiving half of an HTTP/2 stream.
struct TcpRecv {
    incoming: Incoming,
    common: Arc<Common>,
}

impl fmt::Debug for TcpRecv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TcpRecv")
    }
}

impl RecvHalf for TcpRecv {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        loop {
            match &mut self.incoming {
                Incoming::Awaited(response) => {
                    let response = ready!(Pin::new(response).poll(cx)).map_err(|error| stream_error(&error))?;
                    self.incoming = Incoming::Open(response.into_body());
                }
                Incoming::Open(body) => match ready!(body.poll_data(cx)) {
                    Some(Ok(bytes)) => {
                        // It is taken out: the peer may send as much again.
                        let _ = body.flow_control().release_capacity(bytes.len());
                        if !bytes.is_empty() {
                            return Poll::Ready(Ok(Some(bytes)));
                        }
                    }
                    Some(Err(error)) => return Poll::Ready(Err(stream_error(&error))),
                    None => self.stop(StreamCode::NO_ERROR),
                },
                Incoming::Over => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// HTTP/2 cannot say it: what still comes is dropped, up to the stream's window.
    fn stop(&mut self, _: StreamCode) {
        self.incoming = Incoming::Over;
        self.common.silent.store(true, Ordering::Release);
    }
}

/// A stream's error in the protocol's words. Only a code of ours, or the peer's lack of interest,
/// means that the peer has ended the stream; all else is a fault of the connection, after which a
/// request goes on over the next one.
fn stream_error(error: &h2::Error) -> StreamError {
    match error.reason() {
        Some(reason) if error.is_reset() => reset_by(reason),
        _ => StreamError::Lost(error.to_string()),
    }
}

fn reset_by(reason: Reason) -> StreamError {
    let code = u32::from(reason);
    match reason {
        Reason::NO_ERROR => StreamError::Peer(StreamCode::NO_ERROR),
        Reason::CANCEL => StreamError::Peer(StreamCode::CANCELLED),
        _ if code & 0xffff_0000 == STREAM_CODES => StreamError::Peer(StreamCode(code - STREAM_CODES)),
        _ => StreamError::Lost(format!("the connection broke ({reason})")),
    }
}
