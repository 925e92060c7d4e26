//! One live connection to the relay: hello, typed streams.

use crate::dial::{Dialed, Dialer, Way, bind};
use crate::error::ClientError;
use belay_protocol::MINOR;
use belay_protocol::codec::Message;
use belay_protocol::error::CloseCode;
use belay_protocol::frame::FrameType;
use belay_protocol::id::InstanceId;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::hello::BESIDE;
use belay_protocol::message::{Extension, Failed, Hello, HelloAck};
use belay_protocol::stream::{FrameReader, FrameWriter, StreamError};
use belay_transport::connection::{Connection, Path, Stream};
use belay_transport::env::Env;
use belay_transport::params::{PRIORITY_CONTROL, PRIORITY_TOKENS};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How long the relay may take to answer the hello.
const HELLO: Duration = Duration::from_secs(5);
/// The same over QUIC where TCP can be tried, unless the round trip is long.
const HELLO_OVER_QUIC: Duration = Duration::from_millis(1500);
/// How long the reason of a lost connection may stay behind its streams' errors.
const REASON: Duration = Duration::from_millis(500);
/// How long an answer to a small request may take.
pub(crate) const CALL: Duration = Duration::from_secs(15);

/// A tunnel that is up.
#[derive(Debug)]
pub struct Tunnel {
    dialed: Dialed,
    hello: HelloAck,
    /// Set by the relay's `GoAway`.
    pub(crate) going_away: CancellationToken,
    /// Another tunnel carries what is new.
    retired: AtomicBool,
    /// True while the path may be dead.
    silent: watch::Sender<bool>,
}

impl Tunnel {
    /// Dials, says hello, and returns the tunnel with its control stream. Where the network lets the
    /// handshake over QUIC through and nothing after it, the same is done over TCP, if `way` allows it:
    /// with the generation after `hello`'s, which is left free for it. `committed` is set once a hello
    /// may have reached the relay: it then takes this tunnel for the instance's, and the one before it
    /// for gone.
    pub(crate) async fn open(
        dialer: &Dialer,
        target: &Target,
        way: Way,
        hello: Hello,
        committed: &AtomicBool,
    ) -> Result<(Self, (FrameWriter, FrameReader)), ClientError> {
        let running = if target.goes_through { dialer.dial_running().await } else { None };
        let dialed = match running {
            Some(dialed) => dialed,
            None => dialer.dial(&target.addresses, target.last_good, way).await?,
        };
        let may_go_on = matches!(way, Way::Either { .. }) && dialed.connection.path() == Path::Quic;
        let patience = if may_go_on { HELLO_OVER_QUIC.max(dialed.connection.rtt() * 6) } else { HELLO };
        committed.store(true, Ordering::Release);
        match Self::greet(dialed, &hello, patience).await {
            Err(ClientError::Unreachable { addresses, why }) if may_go_on => {
                debug!(why, "a handshake over QUIC, and nothing after it; dialling over TCP");
                let hello = Hello { path_generation: hello.path_generation + 1, ..hello };
                let over_tcp = async {
                    let dialed = dialer.dial(&target.addresses, target.last_good, Way::Tcp).await?;
                    Self::greet(dialed, &hello, HELLO).await
                };
                over_tcp.await.map_err(|error| match error {
                    ClientError::Unreachable { why: tcp, .. } => {
                        ClientError::Unreachable { addresses, why: format!("{why} Over TCP: {tcp}") }
                    }
                    error => error,
                })
            }
            other => other,
        }
    }

    /// Says hello on a connection.
    async fn greet(
        dialed: Dialed,
        hello: &Hello,
        patience: Duration,
    ) -> Result<(Self, (FrameWriter, FrameReader)), ClientError> {
        let connection = &dialed.connection;
        match timeout(patience, say_hello(connection, hello)).await {
            Ok(Ok((writer, reader, hello))) => {
                let tunnel = Self {
                    dialed,
                    hello,
                    going_away: CancellationToken::new(),
                    retired: AtomicBool::new(false),
                    silent: watch::Sender::new(false),
                };
                Ok((tunnel, (writer, reader)))
            }
            Ok(Err(error)) => {
                if let ClientError::Lost(_) = error {
                    // The relay's reason comes with the connection's end, which a stream may see first.
                    let _ = timeout(REASON, connection.closed()).await;
                }
                Err(closed(connection).unwrap_or(error))
            }
            Err(_) => {
                connection.close(CloseCode::TIMEOUT, "no answer to the hello");
                let why = format!("the relay did not answer the hello over {}.", connection.path());
                Err(ClientError::Unreachable { addresses: connection.remote_address().to_string(), why })
            }
        }
    }

    /// What the relay said of itself and of us.
    #[must_use]
    pub fn hello(&self) -> &HelloAck {
        &self.hello
    }

    /// The connection below, for figures.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.dialed.connection
    }

    /// Opens a stream of a kind; its preface leaves with the first frame.
    pub async fn stream(&self, kind: StreamKind) -> Result<(FrameWriter, FrameReader), ClientError> {
        let opened = timeout(CALL, self.connection().open()).await;
        let Stream { mut writer, reader, .. } = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(ended)) => return Err(self.lost(StreamError::from(ended).to_string())),
            Err(_) => return Err(ClientError::Lost("all streams of the tunnel are in use".into())),
        };
        if kind == StreamKind::Escalate {
            writer.set_priority(PRIORITY_TOKENS);
        }
        writer.preface(kind);
        Ok((writer, reader))
    }

    /// One request, one answer.
    pub async fn call<Q: Message, A: Message>(&self, kind: StreamKind, request: &Q) -> Result<A, ClientError> {
        let read = answered(async {
            let mut reader = self.ask(kind, request).await?;
            read_answer(&mut reader).await
        });
        read.await.map_err(|error| match error {
            ClientError::Lost(why) => self.lost(why),
            other => other,
        })
    }

    /// Whether this is over and another tunnel may do better: for what may be asked again. A stream may see the end before
    /// the connection does.
    pub(crate) async fn is_over(&self, error: &ClientError) -> bool {
        if !error.is_passing() {
            return false;
        }
        if self.takes_streams() {
            let _ = timeout(REASON, self.connection().closed()).await;
        }
        !self.takes_streams()
    }

    /// Sends a request and reads the list that answers it, to its end. Errors: those of
    /// [`Self::call`]; a list without its end is `Lost`. `each` says whether it wants more; `None`: it
    /// did not. `D` is the end of such a list.
    pub async fn list<Q: Message, R: Message, D: Message>(
        &self,
        kind: StreamKind,
        request: &Q,
        mut each: impl FnMut(R) -> bool,
    ) -> Result<Option<D>, ClientError> {
        let told = async {
            let mut reader = self.ask(kind, request).await?;
            loop {
                let cut = || ClientError::Lost("the relay ended the list before its end".into());
                let frame = answered(async { Ok(reader.frame().await?) }).await?.ok_or_else(cut)?;
                match frame.kind {
                    kind if kind == D::TYPE => return Ok(Some(D::from_frame(&frame)?)),
                    FrameType::Failed => return Err(Failed::from_frame(&frame)?.into()),
                    _ if !each(R::from_frame(&frame)?) => return Ok(None),
                    _ => {}
                }
            }
        };
        told.await.map_err(|error| match error {
            ClientError::Lost(why) => self.lost(why),
            other => other,
        })
    }

    /// Sends a request; what answers it is to be read.
    pub(crate) async fn ask<Q: Message>(&self, kind: StreamKind, request: &Q) -> Result<FrameReader, ClientError> {
        answered(async {
            let (mut writer, reader) = self.stream(kind).await?;
            writer.send(request).await?;
            writer.finish();
            Ok(reader)
        })
        .await
    }

    /// A lost stream's error; the relay's own reason if it closed the tunnel.
    pub(crate) fn lost(&self, why: String) -> ClientError {
        closed(self.connection()).unwrap_or(ClientError::Lost(why))
    }

    /// False once the relay is going away or the connection has ended.
    pub(crate) fn takes_streams(&self) -> bool {
        let ready = !self.going_away.is_cancelled() && !self.retired.load(Ordering::Acquire);
        ready && self.connection().ended().is_none()
    }

    /// Nothing new is begun here, or it is again.
    pub(crate) fn set_retired(&self, retired: bool) {
        self.retired.store(retired, Ordering::Release);
    }

    /// The path may be dead, or is not after all.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.silent.send_if_modified(|was| std::mem::replace(was, silent) != silent);
    }

    /// Whether the path may be dead, to follow.
    pub(crate) fn silent(&self) -> watch::Receiver<bool> {
        self.silent.subscribe()
    }

    /// Goes on over a new socket: the machine is on another network. The relay follows by itself.
    /// Errors: no socket; a connection over TCP cannot move.
    pub(crate) fn rebind(&self, env: &Env) -> std::io::Result<()> {
        match &self.dialed.endpoint {
            Some(endpoint) => endpoint.rebind_abstract(bind(env, self.connection().remote_address())?),
            None => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }

    /// Closes in order and waits, shortly, until the relay can know.
    pub async fn close(&self) {
        self.dialed.close("done").await;
    }
}

/// Where the relay is.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) addresses: Vec<String>,
    /// Where the last tunnel was.
    pub(crate) last_good: Option<SocketAddr>,
    /// A client that runs on this computer is asked before.
    pub(crate) goes_through: bool,
}

/// What this client says of itself. `beside`: what runs over the other transport goes on there.
pub(crate) fn hello(instance_id: InstanceId, path_generation: u64, beside: bool) -> Hello {
    Hello {
        min_minor: 0,
        max_minor: MINOR,
        capabilities: 0,
        client_name: concat!("belay/", env!("CARGO_PKG_VERSION")).into(),
        instance_id,
        path_generation,
        extensions: if beside { vec![Extension { kind: BESIDE, value: vec![] }] } else { vec![] },
    }
}

/// The relay's own reason, if it closed the connection with one that it will repeat.
pub(crate) fn closed(connection: &Connection) -> Option<ClientError> {
    let code = connection.ended()?.code?;
    // A tunnel that another one took the place of says nothing about the relay's will.
    (!matches!(code, CloseCode::DONE | CloseCode::REPLACED | CloseCode::DEAD)).then_some(ClientError::Closed(code))
}

/// What comes within the time that an answer may take.
pub(crate) async fn answered<T>(coming: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let silent = |_| Err(ClientError::Lost(format!("no answer within {} s", CALL.as_secs())));
    timeout(CALL, coming).await.unwrap_or_else(silent)
}

/// Reads an answer or the failure in its place.
pub(crate) async fn read_answer<A: Message>(reader: &mut FrameReader) -> Result<A, ClientError> {
    let Some(frame) = reader.frame().await? else {
        return Err(ClientError::Lost("the relay ended the stream without an answer".into()));
    };
    if frame.kind == FrameType::Failed {
        return Err(Failed::from_frame(&frame)?.into());
    }
    Ok(A::from_frame(&frame)?)
}

async fn say_hello(
    connection: &Connection,
    hello: &Hello,
) -> Result<(FrameWriter, FrameReader, HelloAck), ClientError> {
    let Stream { mut writer, mut reader, .. } = connection.open().await.map_err(StreamError::from)?;
    writer.set_priority(PRIORITY_CONTROL);
    writer.preface(StreamKind::Control);
    writer.send(hello).await?;
    let ack: HelloAck = read_answer(&mut reader).await?;
    Ok((writer, reader, ack))
}
