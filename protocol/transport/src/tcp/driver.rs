//! The task that drives a TCP connection: socket, new streams, pings, and the end.

use super::shared::{Shared, ended_here};
use super::socket::{Socket, linger};
use super::{CLOSE_CODES, STREAM_CODES, stream};
use crate::connection::{Ended, Stream, certificate_alert};
use crate::params::{HEARTBEAT_INTERVAL, STREAMS_BEFORE_HELLO};
use belay_protocol::error::{CloseCode, StreamCode};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason, RecvStream};
use http::Response;
use rustls::AlertDescription;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// How long an end may take: the peer may read nothing any more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Drives a client's side until it is over.
pub(super) async fn client<T>(connection: h2::client::Connection<T, Bytes>, socket: Socket, shared: Arc<Shared>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let _ends = EndsAnyway(Arc::clone(&shared));
    let mut connection = Box::pin(connection);
    let pings = connection.ping_pong();
    let mut pings = pin!(ping(pings, &shared));
    // In the last case, its streams may learn of it first; whoever needs the reason waits for it.
    let ended = tokio::select! {
        biased;
        (_, reason) = shared.wanted_closed() => {
            write_all(&shared, |cx| connection.as_mut().poll(cx).map(|_| true)).await;
            ended_here(&reason)
        }
        never = &mut pings => match never {},
        over = &mut connection => over_with(over),
    };
    drop(connection);
    linger(&socket).await;
    shared.end(ended);
}

/// Drives a relay's side until it is over; the client's streams go to `accepted`.
pub(super) async fn relay<T>(
    mut connection: h2::server::Connection<T, Bytes>,
    socket: Socket,
    shared: Arc<Shared>,
    accepted: mpsc::Sender<Stream>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let _ends = EndsAnyway(Arc::clone(&shared));
    let pings = connection.ping_pong();
    let mut pings = pin!(ping(pings, &shared));
    let mut opened = 0_u32;
    let ended = loop {
        tokio::select! {
            biased;
            (code, reason) = shared.wanted_closed() => {
                // Streams that come now are dropped: nobody takes them any more.
                write_all(&shared, |cx| connection.poll_accept(cx).map(|next| next.is_none())).await;
                connection.abrupt_shutdown(Reason::from(CLOSE_CODES + on_wire(code.0, CloseCode::INTERNAL.0)));
                let _ = timeout(LAST_WORDS, poll_fn(|cx| connection.poll_closed(cx))).await;
                break ended_here(&reason);
            }
            never = &mut pings => match never {},
            next = connection.accept() => match next {
                None => break over_with(Ok(())),
                Some(Err(error)) => break over_with(Err(error)),
                Some(Ok((request, respond))) => {
                    opened = opened.saturating_add(1);
                    let may = shared.is_granted() || opened <= STREAMS_BEFORE_HELLO;
                    take(request.into_body(), respond, may, &accepted, &shared);
                }
            }
        }
    };
    drop(connection);
    linger(&socket).await;
    shared.end(ended);
}

/// A connection whose task has gone, for whatever reason, has ended: somebody waits for that.
struct EndsAnyway(Arc<Shared>);

impl Drop for EndsAnyway {
    fn drop(&mut self) {
        self.0.end(Ended { code: None, why: "the connection's task has ended".into() });
    }
}

/// A code as HTTP/2 carries it. Over QUIC there are more numbers, and what came there may be passed on here.
pub(super) fn on_wire(code: u32, other: u32) -> u32 {
    if code <= 0xffff { code } else { other }
}

/// Answers a new stream and hands it over.
fn take(
    body: RecvStream,
    mut respond: SendResponse<Bytes>,
    may: bool,
    accepted: &mpsc::Sender<Stream>,
    shared: &Arc<Shared>,
) {
    let Some(room) = accepted.try_reserve().ok().filter(|_| may) else {
        return respond.send_reset(Reason::from(STREAM_CODES + StreamCode::LIMIT.0));
    };
    // An error means that the client has given the stream up already.
    if let Ok(send) = respond.send_response(Response::new(()), false) {
        room.send(stream::relay(body, send, shared));
    }
}

/// Writes what streams have queued, as far as the peer takes it in time. `poll` drives the connection
/// and is ready with true once that is over.
async fn write_all(shared: &Shared, mut poll: impl FnMut(&mut Context<'_>) -> Poll<bool>) {
    let all_written = poll_fn(|cx| {
        loop {
            match poll(cx) {
                Poll::Ready(true) => return Poll::Ready(()),
                Poll::Ready(false) => {}
                // What is left waits for the peer's window, or there is nothing.
                Poll::Pending if !shared.is_full() => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    let _ = timeout(LAST_WORDS, all_written).await;
}

/// Measures the round trip at once, at every heartbeat's time, and when it is asked to. A connection
/// that ends says so itself.
async fn ping(mut pings: Option<PingPong>, shared: &Shared) -> Infallible {
    while let Some(pings) = &mut pings {
        let sent = Instant::now();
        if pings.ping(Ping::opaque()).await.is_err() {
            break;
        }
        shared.measured(sent.elapsed());
        let _ = timeout(HEARTBEAT_INTERVAL, shared.ping.notified()).await;
    }
    std::future::pending().await
}

fn over_with(over: Result<(), h2::Error>) -> Ended {
    match over {
        Ok(()) => Ended { code: None, why: "the peer has ended the connection".into() },
        Err(error) => ended(&error),
    }
}

/// An HTTP/2 connection's end in the protocol's words.
pub(super) fn ended(error: &h2::Error) -> Ended {
    let code = error.reason().map_or(0, u32::from);
    if error.is_go_away() && error.is_remote() && code & 0xffff_0000 == CLOSE_CODES {
        let code = CloseCode(code - CLOSE_CODES);
        return Ended { code: Some(code), why: format!("closed by the peer ({code})") };
    }
    let why = error.to_string();
    // h2 keeps no more of an error of the layer below than its words.
    let alerts = [AlertDescription::CertificateExpired, AlertDescription::UnknownCA, AlertDescription::BadCertificate];
    let alert = alerts.into_iter().find(|alert| why.contains(&rustls::Error::AlertReceived(*alert).to_string()));
    Ended { code: alert.and_then(certificate_alert), why }
}
