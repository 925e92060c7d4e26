//! Other `belay` commands of this computer: their streams go through the tunnels that are here.
//!
//! A command connects to the gateway with the secret of its directory, and speaks the tunnel's own protocol
//! from then on. Its control stream is answered here; every other stream is carried, byte for byte, by one to
//! the relay. If that is lost, the command's connection ends as a lost tunnel does, and the command comes back
//! and resumes as it would with a tunnel of its own. A command that is killed leaves its requests as one whose
//! network has gone: it may come back for the answers.

use super::Shared;
use super::lanes::Place;
use crate::error::ClientError;
use crate::tunnel::{Tunnel, closed};
use crate::tunnels::Outstanding;
use belay_http::patient::Patient;
use belay_http::refusal::Refusal;
use belay_protocol::codec::Message;
use belay_protocol::error::{CloseCode, ProtocolError, StreamCode};
use belay_protocol::frame::FrameType;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{Failed, FailureCode, Heartbeat, HeartbeatAck, Hello, HelloAck};
use belay_protocol::stream::{FrameReader, FrameWriter, StreamError};
use belay_protocol::vitals;
use belay_transport::connection::{Connection, Stream};
use belay_transport::tcp::TcpConnection;
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::{Response, StatusCode, request};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::debug;

/// Commands at the same time.
pub(super) const COMMANDS: usize = 64;
/// Streams of a command.
const STREAMS: u32 = 32;
/// What a client upgrades to.
const PROTOCOL: &str = "belay";
/// How long a command may take to say hello.
const HELLO: Duration = Duration::from_secs(5);
/// How long it waits for the tunnel before it is told that there is none.
const TUNNEL: Duration = Duration::from_secs(2);

/// Lets a command in. Errors: it does not show the secret, does not ask for this, or too many are in.
pub(super) fn let_in(shared: &Arc<Shared>, head: &mut request::Parts) -> Result<Response<super::Body>, Refusal> {
    if !shared.settings.is_own_command(&head.headers) {
        let message = "only commands of who can read this computer's state may use its tunnel";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    let upgrade = head.extensions.remove::<OnUpgrade>().filter(|_| wants(&head.headers));
    let Some(upgrade) = upgrade else {
        let message = "this is for belay commands: it is asked with \"upgrade: belay\"";
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message));
    };
    let Ok(place) = Arc::clone(&shared.commands).try_acquire_owned() else {
        let message = format!("{COMMANDS} belay commands use the tunnel already");
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message));
    };
    let task = Arc::clone(shared);
    shared.tasks.spawn(async move {
        if let Err(error) = serve(&task, upgrade, place).await {
            debug!(%error, "a command did not get in");
        }
    });
    let mut response = Response::new(super::Body::whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

fn wants(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).and_then(|value| value.to_str().ok()).is_some_and(|value| value.eq_ignore_ascii_case(PROTOCOL))
}

/// Serves a command until it has done what it wanted, or the gateway ends.
async fn serve(shared: &Arc<Shared>, upgrade: OnUpgrade, _place: OwnedSemaphorePermit) -> io::Result<()> {
    let opened = async {
        let upgraded = upgrade.await.map_err(io::Error::other)?;
        TcpConnection::serve_local(socket(upgraded)?, STREAMS).await
    };
    let connection = tokio::select! {
        biased;
        () = shared.stop.cancelled() => return Ok(()),
        opened = timeout(HELLO, opened) => Connection::Tcp(opened??),
    };
    let streams = TaskTracker::new();
    let code = tokio::select! {
        biased;
        // It goes on with a tunnel of its own.
        () = shared.stop.cancelled() => CloseCode::GOING_AWAY,
        code = commands(shared, &connection, &streams) => code,
    };
    connection.close(code, code.name());
    connection.closed().await;
    streams.close();
    streams.wait().await;
    Ok(())
}

/// The socket below hyper, of which nothing must have been read yet.
fn socket(upgraded: Upgraded) -> io::Result<TcpStream> {
    let parts = upgraded.downcast::<TokioIo<Patient<TcpStream>>>().map_err(|_| io::Error::other("no socket"))?;
    match parts.read_buf.is_empty() {
        true => Ok(parts.io.into_inner().into_inner()),
        false => Err(io::Error::other("it did not wait for the answer")),
    }
}

/// The command's hello, then its streams, until it ends or its relay is lost.
async fn commands(shared: &Arc<Shared>, connection: &Connection, streams: &TaskTracker) -> CloseCode {
    let hello = timeout(HELLO, greet(shared, connection)).await;
    let mut control = match hello {
        Ok(Ok(control)) => control,
        Ok(Err(code)) => return code,
        Err(_) => return CloseCode::TIMEOUT,
    };
    connection.grant_streams(STREAMS);
    loop {
        let stream = tokio::select! {
            biased;
            stream = connection.accept() => stream,
            code = heartbeats(shared, &mut control) => return code,
        };
        let Ok(stream) = stream else { return CloseCode::DONE };
        let (shared, connection) = (Arc::clone(shared), connection.clone());
        streams.spawn(async move {
            if let Some(code) = carry(&shared, stream).await {
                connection.close(code, "the tunnel is lost");
            }
        });
    }
}

/// Answers the hello in the relay's words, once there is a tunnel.
async fn greet(shared: &Shared, connection: &Connection) -> Result<Stream, CloseCode> {
    let mut control = connection.accept().await.map_err(|_| CloseCode::DONE)?;
    match control.reader.preface().await {
        Ok(StreamKind::Control) => {}
        Ok(_) | Err(StreamError::Protocol(_)) => return Err(CloseCode::PROTOCOL),
        Err(_) => return Err(CloseCode::DONE),
    }
    control.reader.expect::<Hello>().await.map_err(|_| CloseCode::PROTOCOL)?;
    let tunnel = match shared.client.tunnel(TUNNEL).await {
        Ok(tunnel) => tunnel,
        Err(ClientError::Closed(code)) => return Err(code),
        Err(error) => {
            let message = format!("belay up runs here and has no tunnel: {error}");
            send_failed(control, message).await;
            return Err(CloseCode::DONE);
        }
    };
    let ack = HelloAck { relay_time_ms: shared.client.now_ms(), extensions: vec![], ..tunnel.hello().clone() };
    control.writer.send(&ack).await.map_err(|_| CloseCode::DONE)?;
    Ok(control)
}

fn failed(message: String) -> Failed {
    Failed {
        code: FailureCode::OVERLOADED,
        message,
        remedy: String::new(),
        request_id: None,
        retry_after_ms: Some(100),
        missing: None,
    }
}

/// Answers heartbeats with what is known of the relay. Dropping the future loses nothing.
async fn heartbeats(shared: &Shared, control: &mut Stream) -> CloseCode {
    loop {
        let frame = match control.reader.frame().await {
            Ok(Some(frame)) => frame,
            Err(StreamError::Protocol(_)) => return CloseCode::PROTOCOL,
            Ok(None) | Err(_) => return CloseCode::DONE,
        };
        let arrived = Instant::now();
        let heartbeat = match frame.kind {
            FrameType::Heartbeat => Heartbeat::from_frame(&frame),
            kind => Err(ProtocolError::Unexpected { got: kind.name(), expected: FrameType::Heartbeat.name() }),
        };
        let Ok(heartbeat) = heartbeat else { return CloseCode::PROTOCOL };
        if vitals::text_among(vitals::heartbeat::PREWARM, &heartbeat.extensions).is_some() {
            shared.client.prewarm();
        }
        let ack = {
            let status = shared.client.status();
            let status = status.borrow();
            HeartbeatAck {
                sequence: heartbeat.sequence,
                echo_us: heartbeat.sent_at_us,
                held_us: u32::try_from(arrived.elapsed().as_micros()).unwrap_or(u32::MAX),
                relay_round_trip_us: u32::try_from(status.relay_round_trip_us.unwrap_or(0)).unwrap_or(u32::MAX),
                extensions: status.relay_state.as_ref().map(|state| state.to_extension()).into_iter().collect(),
            }
        };
        // It is small, and flushed with the next one should there be no room.
        if control.writer.queue(&ack).is_err() || !flushes(&mut control.writer) {
            return CloseCode::DONE;
        }
    }
}

/// Writes what fits. False: there is nobody to write to.
fn flushes(writer: &mut FrameWriter) -> bool {
    let cx = &mut Context::from_waker(Waker::noop());
    !matches!(writer.poll_flush(cx), Poll::Ready(Err(_)))
}

/// Carries a command's stream to its end. `Some`: the relay is lost, and its code, if it gave one.
async fn carry(shared: &Shared, mut near: Stream) -> Option<CloseCode> {
    let Ok(kind) = near.reader.preface().await else { return None };
    let opened = tokio::select! {
        biased;
        () = shared.stop.cancelled() => return None,
        // What was given up before it began does not begin.
        _ = poll_fn(|cx| near.writer.poll_stopped(cx)) => return None,
        opened = far_end(shared, kind) => opened,
    };
    let (tunnel, mut far, _place, _waits) = match opened {
        Ok(opened) => opened,
        Err(NoFarEnd::Busy(message)) => {
            send_failed(near, message).await;
            return None;
        }
        Err(NoFarEnd::Lost(code)) => return Some(code),
    };
    let up = pipe(&mut near.reader, &mut far.0);
    let down = pipe(&mut far.1, &mut near.writer);
    match both(up, down).await {
        Over::Done => None,
        Over::NearLost => {
            far.0.reset(StreamCode::DETACHED);
            far.1.stop(StreamCode::DETACHED);
            None
        }
        Over::FarLost => Some(match closed(tunnel.connection()) {
            Some(ClientError::Closed(code)) => code,
            _ => CloseCode::DEAD,
        }),
    }
}

/// Tells a command that its stream cannot be carried now.
async fn send_failed(mut near: Stream, message: String) {
    // If it cannot be told, it sees the end.
    if near.writer.queue(&failed(message)).is_ok() && matches!(timeout(HELLO, near.writer.flush()).await, Ok(Ok(()))) {
        near.writer.finish();
        let _ = timeout(HELLO, poll_fn(|cx| near.writer.poll_stopped(cx))).await;
    }
}

type FarEnd = (Arc<Tunnel>, (FrameWriter, FrameReader), Option<Place>, Option<Outstanding>);

/// Why there is no stream to the relay.
enum NoFarEnd {
    /// There is no room; in these words.
    Busy(String),
    /// There is no tunnel.
    Lost(CloseCode),
}

/// A stream to the relay, in a tunnel that has room.
async fn far_end(shared: &Shared, kind: StreamKind) -> Result<FarEnd, NoFarEnd> {
    let wait = shared.settings.wait;
    let place = match kind {
        StreamKind::Escalate => {
            Some(shared.lanes.place(wait).await.map_err(|refusal| NoFarEnd::Busy(refusal.message.into()))?)
        }
        _ => None,
    };
    let client = place.as_ref().map_or(&shared.client, |place| &place.client);
    // Somebody waits for what comes, so that a silent path is soon left; a feed may be silent for long.
    let waits = (kind != StreamKind::Feed).then(|| client.waits());
    let is_first = Arc::ptr_eq(client, &shared.client);
    let lost = |error| match error {
        ClientError::Closed(code) if is_first => NoFarEnd::Lost(code),
        // The first one is there all the same.
        error if !is_first => NoFarEnd::Busy(format!("there is no tunnel for more requests: {error}")),
        _ => NoFarEnd::Lost(CloseCode::DEAD),
    };
    let tunnel = client.tunnel(wait).await.map_err(lost)?;
    let far = tunnel.stream(kind).await.map_err(lost)?;
    Ok((tunnel, far, place, waits))
}

/// How a pair of streams ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Done,
    NearLost,
    FarLost,
}

/// How one direction ended.
enum Piped {
    /// All was carried, or one side wanted no more and the other knows.
    Done,
    /// The one that sends has lost its connection.
    SourceLost,
    /// The one that receives has.
    SinkLost,
}

async fn both(up: impl Future<Output = Piped>, down: impl Future<Output = Piped>) -> Over {
    let (mut up, mut down) = (pin!(up), pin!(down));
    let (mut up_is_over, mut down_is_over) = (false, false);
    while !up_is_over || !down_is_over {
        tokio::select! {
            biased;
            piped = &mut up, if !up_is_over => match piped {
                Piped::Done => up_is_over = true,
                Piped::SourceLost => return Over::NearLost,
                Piped::SinkLost => return Over::FarLost,
            },
            piped = &mut down, if !down_is_over => match piped {
                Piped::Done => down_is_over = true,
                Piped::SourceLost => return Over::FarLost,
                Piped::SinkLost => return Over::NearLost,
            },
        }
    }
    Over::Done
}

/// Carries one direction: bytes, its end, and why either side wants no more.
async fn pipe(source: &mut FrameReader, sink: &mut FrameWriter) -> Piped {
    loop {
        let read = tokio::select! {
            biased;
            error = poll_fn(|cx| sink.poll_stopped(cx)) => return stopped(source, error),
            read = source.bytes() => read,
        };
        match read {
            Ok(Some(bytes)) => {
                sink.queue_raw(bytes);
                if let Err(error) = sink.flush().await {
                    return stopped(source, error);
                }
            }
            Ok(None) => {
                sink.finish();
                return Piped::Done;
            }
            Err(StreamError::Peer(code)) => {
                sink.reset(code);
                return Piped::Done;
            }
            Err(_) => return Piped::SourceLost,
        }
    }
}

/// The one that receives wants no more.
fn stopped(source: &mut FrameReader, error: StreamError) -> Piped {
    match error {
        StreamError::Peer(code) => {
            source.stop(code);
            Piped::Done
        }
        _ => Piped::SinkLost,
    }
}
