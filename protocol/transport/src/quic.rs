//! quinn's streams behind the protocol's traits, and its errors in the protocol's words.

use crate::connection::certificate_alert;
use belay_protocol::error::{CloseCode, StreamCode};
use belay_protocol::stream::{FrameReader, FrameWriter, RecvHalf, SendHalf, StreamError};
use bytes::Bytes;
use quinn::{ConnectionError, ReadError, StoppedError, VarInt, WriteError};
use rustls::AlertDescription;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

/// The most bytes taken from a stream at once.
const READ_MAX: usize = 256 << 10;

/// Wraps a quinn stream.
#[must_use]
pub fn frames(send: quinn::SendStream, recv: quinn::RecvStream) -> (FrameWriter, FrameReader) {
    let writer = FrameWriter::new(Box::new(QuicSend { stream: send, stopped: None, ended: false }));
    (writer, FrameReader::new(Box::new(QuicRecv { stream: recv })))
}

type Stopped = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync>>;

/// The sending half of a QUIC stream.
struct QuicSend {
    stream: quinn::SendStream,
    /// Made when somebody first asks; it outlives single polls.
    stopped: Option<Stopped>,
    /// Finished or reset; quinn would take a mere drop for "all was sent".
    ended: bool,
}

impl Drop for QuicSend {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(StreamCode::CANCELLED);
        }
    }
}

impl fmt::Debug for QuicSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuicSend({})", self.stream.id())
    }
}

impl SendHalf for QuicSend {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<Result<(), StreamError>> {
        // The future has no state of its own: dropping it after one poll loses nothing.
        let written = {
            let write = pin!(self.stream.write_chunks(chunks.make_contiguous()));
            ready!(write.poll(cx)).map_err(write_error)?
        };
        chunks.drain(..written.chunks);
        Poll::Ready(Ok(()))
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let stream = &self.stream;
        let stopped = self.stopped.get_or_insert_with(|| Box::pin(stream.stopped()));
        let result = ready!(stopped.as_mut().poll(cx));
        self.stopped = None;
        Poll::Ready(match result {
            Ok(code) => StreamError::Peer(code.map_or(StreamCode::NO_ERROR, stream_code)),
            Err(StoppedError::ConnectionLost(error)) => lost(&error),
            Err(StoppedError::ZeroRttRejected) => StreamError::Lost("0-RTT is off".into()),
        })
    }

    fn finish(&mut self) {
        self.ended = true;
        // An error here means that it is finished or reset already.
        let _ = self.stream.finish();
        // quinn leaves a stream open that the peer has stopped before; it would count against the
        // peer's limit for as long as somebody holds it.
        let stopped = pin!(self.stream.stopped()).poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Ok(Some(code))) = stopped {
            let _ = self.stream.reset(code);
        }
    }

    fn reset(&mut self, code: StreamCode) {
        self.ended = true;
        let _ = self.stream.reset(VarInt::from_u32(code.0));
    }

    fn set_priority(&mut self, priority: i32) {
        let _ = self.stream.set_priority(priority);
    }
}

/// The receiving half of a QUIC stream.
struct QuicRecv {
    stream: quinn::RecvStream,
}

impl fmt::Debug for QuicRecv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuicRecv({})", self.stream.id())
    }
}

impl RecvHalf for QuicRecv {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        let read = pin!(self.stream.read_chunk(READ_MAX, true));
        let chunk = ready!(read.poll(cx)).map_err(read_error)?;
        Poll::Ready(Ok(chunk.map(|chunk| chunk.bytes)))
    }

    fn stop(&mut self, code: StreamCode) {
        let _ = self.stream.stop(VarInt::from_u32(code.0));
    }
}

fn stream_code(code: VarInt) -> StreamCode {
    StreamCode(u32::try_from(code.into_inner()).unwrap_or(u32::MAX))
}

fn write_error(error: WriteError) -> StreamError {
    match error {
        WriteError::Stopped(code) => StreamError::Peer(stream_code(code)),
        WriteError::ConnectionLost(error) => lost(&error),
        WriteError::ClosedStream => StreamError::Lost("the stream is closed".into()),
        WriteError::ZeroRttRejected => StreamError::Lost("0-RTT is off".into()),
    }
}

fn read_error(error: ReadError) -> StreamError {
    match error {
        ReadError::Reset(code) => StreamError::Peer(stream_code(code)),
        ReadError::ConnectionLost(error) => lost(&error),
        ReadError::ClosedStream => StreamError::Lost("the stream is closed".into()),
        ReadError::IllegalOrderedRead => StreamError::Lost("illegal ordered read".into()),
        ReadError::ZeroRttRejected => StreamError::Lost("0-RTT is off".into()),
    }
}

/// A lost connection as a stream's error.
#[must_use]
pub fn lost(error: &ConnectionError) -> StreamError {
    StreamError::Lost(lost_why(error))
}

/// Why a connection was lost, for people.
#[must_use]
pub fn lost_why(error: &ConnectionError) -> String {
    match close_code(error) {
        Some(code) => format!("closed by the peer ({code})"),
        None => error.to_string(),
    }
}

/// The code with which the peer closed the connection, if it did.
#[must_use]
pub fn close_code(error: &ConnectionError) -> Option<CloseCode> {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            Some(CloseCode(u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX)))
        }
        _ => None,
    }
}

/// What the peer's TLS has against this side's certificate, on a connection whose handshake this side has finished.
pub(crate) fn certificate_refused(error: &ConnectionError) -> Option<CloseCode> {
    let ConnectionError::ConnectionClosed(close) = error else { return None };
    // QUIC carries TLS alerts as error codes from here on.
    let alert = u64::from(close.error_code).checked_sub(0x100)?;
    certificate_alert(AlertDescription::from(u8::try_from(alert).ok()?))
}

/// Closes a connection with a code and words for people.
pub fn close(connection: &quinn::Connection, code: CloseCode, reason: &str) {
    connection.close(VarInt::from_u32(code.0), reason.as_bytes());
}
