//! The control stream after the hello: heartbeats, and go-away.

use crate::escalate::ClientStream;
use belay_protocol::codec::Message;
use belay_protocol::error::{CloseCode, ProtocolError};
use belay_protocol::frame::FrameType;
use belay_protocol::message::{GoAway, Heartbeat, HeartbeatAck, Probe};
use belay_protocol::stream::StreamError;
use belay_protocol::vitals::{self, RelayState};
use std::future::Future;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

/// A client that sends so many bytes between two heartbeats is busy with that.
const UPLOADING: u64 = 16 << 10;

/// What the control stream shares with the connection.
pub trait Link: Send + Sync {
    /// The round trip as the transport measures it.
    fn round_trip(&self) -> Duration;
    /// A heartbeat has come.
    fn heard(&self, heartbeat: &Heartbeat);
    /// How the relay is.
    fn state(&self) -> RelayState;
    /// Which certificates are to be renewed soon: those that were made then or before, milliseconds since 1970.
    fn renew_since_ms(&self) -> Option<u64>;
    /// Bytes that a client has sent where a heartbeat waits in line behind them: over TCP.
    fn ahead_of_heartbeats(&self) -> u64;
    /// Ready when somebody wants a sign of life from the client.
    fn probed(&self) -> impl Future<Output = ()> + Send;
}

/// Serves the control stream; returns the code with which the connection is to be closed.
pub async fn serve<L: Link>(
    mut stream: ClientStream,
    link: &L,
    heartbeat: Duration,
    draining: CancellationToken,
    go_away: &GoAway,
) -> CloseCode {
    let patience = heartbeat * 3 + Duration::from_secs(1);
    let mut dead_at = Instant::now() + patience;
    let mut told = false;
    let mut received = 0;
    loop {
        let frame = tokio::select! {
            // Going away is told even while heartbeats keep coming.
            biased;
            () = draining.cancelled(), if !told => {
                told = true;
                if stream.writer.send(go_away).await.is_err() {
                    return CloseCode::GOING_AWAY;
                }
                continue;
            }
            () = sleep_until(dead_at) => {
                // A large request on a slow line: its client lives.
                let before = std::mem::replace(&mut received, link.ahead_of_heartbeats());
                if received < before + UPLOADING {
                    return CloseCode::DEAD;
                }
                dead_at += heartbeat;
                continue;
            }
            () = link.probed() => {
                if stream.writer.queue(&Probe { reserved: 0 }).is_err() {
                    return CloseCode::INTERNAL;
                }
                // A client that takes nothing any more does not hold the answer up: it is silent.
                let _ = stream.writer.poll_flush(&mut Context::from_waker(Waker::noop()));
                continue;
            }
            frame = stream.reader.frame() => frame,
        };
        let arrived = Instant::now();
        let frame = match frame {
            Ok(Some(frame)) => frame,
            // A client that ends its control stream is done.
            Ok(None) => return CloseCode::DONE,
            Err(StreamError::Protocol(error)) => {
                debug!(%error, "the control stream broke the protocol");
                return CloseCode::PROTOCOL;
            }
            Err(_) => return CloseCode::DONE,
        };
        let heartbeat = match heartbeat_of(&frame) {
            Ok(heartbeat) => heartbeat,
            Err(error) => {
                debug!(%error, "the control stream broke the protocol");
                return CloseCode::PROTOCOL;
            }
        };
        dead_at = arrived + patience;
        received = link.ahead_of_heartbeats();
        link.heard(&heartbeat);
        trace!(sequence = heartbeat.sequence, "heartbeat");
        let ack = HeartbeatAck {
            sequence: heartbeat.sequence,
            echo_us: heartbeat.sent_at_us,
            held_us: u32::try_from(arrived.elapsed().as_micros()).unwrap_or(u32::MAX),
            relay_round_trip_us: u32::try_from(link.round_trip().as_micros()).unwrap_or(u32::MAX),
            extensions: std::iter::once(link.state().to_extension())
                .chain(link.renew_since_ms().map(vitals::renew))
                .collect(),
        };
        // A client that does not read its acknowledgements is as good as dead.
        match tokio::time::timeout(patience, stream.writer.send(&ack)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return CloseCode::DONE,
            Err(_) => return CloseCode::DEAD,
        }
    }
}

fn heartbeat_of(frame: &belay_protocol::frame::Frame) -> Result<Heartbeat, ProtocolError> {
    match frame.kind {
        FrameType::Heartbeat => Heartbeat::from_frame(frame),
        kind => Err(ProtocolError::Unexpected { got: kind.name(), expected: FrameType::Heartbeat.name() }),
    }
}
