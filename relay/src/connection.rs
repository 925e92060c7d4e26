//! One connection: handshake, identity, hello, then streams until it ends.
//!
//! The connection's task owns its registration and its control stream. Streams are served by tasks
//! on the relay's tracker: a request must be settled even when its connection is gone.

mod greeting;
mod serving;

use greeting::{hello, identity};
use serving::renew_only;
pub(crate) use serving::serve_stream;

use crate::admission::{Place, Strangers};
use crate::enrolment::Enrolment;
use crate::escalate::{Caller, ClientStream, Escalator};
use crate::ops::memory::{self, BodyBudget};
use crate::registry::{Arrival, Arrived, Live, Registration, Registry};
use crate::store::central::{self, Standing};
use crate::store::executor::Db;
use crate::store::sessions::service::Sessions;
use crate::streams;
use crate::streams::control::Link;
use crate::sync::Sync;
use belay_certs::identity::DeviceIdentity;
use belay_protocol::MINOR;
use belay_protocol::error::CloseCode;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::message::hello::BESIDE;
use belay_protocol::message::{GoAway, Heartbeat, HelloAck};
use belay_protocol::vitals::{self, RelayState};
use belay_transport::connection::{Connection, Path, Stream};
use belay_transport::env::Env;
use belay_transport::tcp::TcpConnection;
use belay_transport::twice::{Losses, LossyLines};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug, info, warn};

/// How long a client may take to acknowledge a packet when its place is wanted by another.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) escalator: Arc<Escalator>,
    pub(crate) enrolment: Arc<Enrolment>,
    pub(crate) sessions: Sessions,
    pub(crate) sync: Sync,
    pub(crate) registry: Arc<Registry>,
    pub(crate) bodies: BodyBudget,
    /// Tasks of streams; they outlive their connection until their request is settled.
    pub(crate) streams: TaskTracker,
    /// Cancelled when connections must close.
    pub(crate) stop: CancellationToken,
    /// Connections that have not said hello, or are there to enrol.
    pub(crate) strangers: Arc<Strangers>,
    /// Where tokens that come one at a time are sent twice.
    pub(crate) lossy_lines: Arc<LossyLines>,
}

/// Serves one connection over QUIC from its first packet to its end. `pending` is given back when the
/// handshake is over.
pub(crate) async fn serve_quic(shared: Arc<Shared>, incoming: quinn::Incoming, pending: OwnedSemaphorePermit) {
    let remote = incoming.remote_address();
    let handshake = async move {
        let connecting = incoming.accept().map_err(io::Error::other)?;
        Ok(Connection::Quic(connecting.await.map_err(io::Error::other)?))
    };
    serve(shared, remote, Path::Quic, handshake, pending).await;
}

/// The same over TCP.
pub(crate) async fn serve_tcp(
    shared: Arc<Shared>,
    socket: TcpStream,
    remote: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    pending: (OwnedSemaphorePermit, Place),
) {
    let streams = shared.escalator.config().limits.streams_per_tunnel;
    let handshake = async move { Ok(Connection::Tcp(TcpConnection::serve(socket, tls, streams).await?)) };
    serve(shared, remote, Path::Tcp, handshake, pending).await;
}

async fn serve(
    shared: Arc<Shared>,
    remote: SocketAddr,
    path: Path,
    handshake: impl Future<Output = io::Result<Connection>>,
    pending: impl Send,
) {
    let span = tracing::info_span!("connection", %remote, %path);
    async {
        // Large, and of use for a moment only.
        let handshake = timeout(shared.escalator.config().timeouts.handshake, Box::pin(handshake)).await;
        drop(pending);
        let became = match &handshake {
            Ok(Ok(_)) => "done",
            Ok(Err(_)) => "failed",
            Err(_) => "timed_out",
        };
        shared.escalator.metrics.handshake(path.name(), became);
        match handshake {
            Ok(Ok(connection)) => match shared.strangers.enter(remote.ip()) {
                Some(place) => accepted(&shared, connection, place).await,
                None => connection.close(CloseCode::OVERLOADED, "too many connections that say nothing"),
            },
            Ok(Err(error)) => debug!(%error, "handshake failed"),
            Err(_) => debug!("handshake took too long"),
        }
    }
    .instrument(span)
    .await;
}

/// `place` is a stranger's, until the connection has said who it is.
async fn accepted(shared: &Arc<Shared>, connection: Connection, place: Place) {
    let code = match identity(&connection) {
        Ok(None) => {
            let code = enrol_only(shared, &connection).await;
            drop(place);
            code
        }
        Ok(Some((identity, tenant, device))) => {
            let span = tracing::info_span!("tunnel", %tenant, %device);
            let ended = tunnel(shared, &connection, &identity, (tenant, device), place).instrument(span).await;
            ended.unwrap_or_else(|code| code)
        }
        Err(why) => {
            warn!(%why, "the device certificate is not usable");
            CloseCode::UNKNOWN_DEVICE
        }
    };
    connection.close(code, code.name());
    // The socket of its own takes a moment for the last words; those of QUIC are the endpoint's.
    if connection.path() == Path::Tcp {
        connection.closed().await;
    }
}

/// Streams of a connection without a certificate, in all.
const ENROLMENTS: usize = 32;

/// A connection without a certificate: enrolment and nothing else.
async fn enrol_only(shared: &Arc<Shared>, connection: &Connection) -> CloseCode {
    // It has one thing to do.
    let patience = sleep(shared.escalator.config().timeouts.hello * 2);
    tokio::pin!(patience);
    // Each costs a look into central.
    for _ in 0..ENROLMENTS {
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return CloseCode::GOING_AWAY,
            () = &mut patience => return CloseCode::TIMEOUT,
            accepted = connection.accept() => accepted,
        };
        let Ok(stream) = accepted else { return CloseCode::DONE };
        let (shared_task, span) = (Arc::clone(shared), stream_span(&stream));
        shared.streams.spawn(async move { serve_stream(&shared_task, None, stream.into(), span).await });
    }
    // The last one may still be answered.
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => CloseCode::GOING_AWAY,
        _ = connection.closed() => CloseCode::DONE,
        () = &mut patience => CloseCode::TIMEOUT,
    }
}

async fn tunnel(
    shared: &Arc<Shared>,
    connection: &Connection,
    identity: &DeviceIdentity,
    (tenant, device): (TenantId, DeviceId),
    place: Place,
) -> Result<CloseCode, CloseCode> {
    let config = shared.escalator.config();
    let _charge = shared.escalator.memory.charge(memory::TUNNEL).ok_or(CloseCode::OVERLOADED)?;
    admit(shared, &tenant, &device).await?;
    let hello = timeout(config.timeouts.hello, hello(connection)).await.map_err(|_| CloseCode::TIMEOUT)?;
    let (mut control, hello) = hello?;
    drop(place);
    let arrival = Arrival {
        tenant: tenant.clone(),
        device: device.clone(),
        instance: hello.instance_id,
        generation: hello.path_generation,
        path: connection.path(),
        beside: hello.extensions.iter().any(|extension| extension.kind == BESIDE),
        remote: connection.remote_address(),
        now_ms: shared.escalator.env.clock.now_ms(),
        expires_ms: identity.expires_ms,
    };
    let mut registration = register(shared, connection, arrival).await?;
    // A revocation between the first look and the registration has closed nothing yet.
    admit(shared, &tenant, &device).await?;
    let ack = HelloAck {
        // The lowest that there is: every client speaks it.
        minor: MINOR,
        capabilities: 0,
        relay_name: concat!("belayd/", env!("CARGO_PKG_VERSION")).into(),
        tenant: tenant.clone(),
        device: device.clone(),
        heartbeat_interval_ms: u32::try_from(config.timeouts.heartbeat.as_millis()).unwrap_or(u32::MAX),
        relay_time_ms: shared.escalator.env.clock.now_ms(),
        extensions: vec![],
    };
    connection.grant_streams(config.limits.streams_per_tunnel);
    control.writer.send(&ack).await.map_err(|_| CloseCode::DONE)?;
    let client: String = hello.client_name.chars().filter(|c| !c.is_control()).take(64).collect();
    info!(client, instance = %hello.instance_id, generation = hello.path_generation, "tunnel up");
    let code = streams_until_end(shared, connection, control, &mut registration).await;
    shared.escalator.metrics.tunnel_closed(code.name());
    info!(reason = %code, "tunnel down");
    Ok(code)
}

/// Takes the tunnel in. Where the device has too many, those of clients that have died go first.
async fn register(shared: &Shared, connection: &Connection, arrival: Arrival) -> Result<Registration, CloseCode> {
    let most = shared.escalator.config().limits.instances_per_device;
    let arrived = || {
        let connection = connection.clone();
        Arrived(Box::new(move || connection.traffic().arrivals))
    };
    match shared.registry.register(arrival.clone(), arrived(), most) {
        Err(CloseCode::TOO_MANY_INSTANCES) => {
            shared.registry.close_dead(&arrival.device, SIGN_OF_LIFE).await;
            shared.registry.register(arrival, arrived(), most)
        }
        other => other,
    }
}

async fn admit(shared: &Shared, tenant: &TenantId, device: &DeviceId) -> Result<(), CloseCode> {
    let (tenant, device, now_ms) = (tenant.clone(), device.clone(), shared.escalator.env.clock.now_ms());
    let store = &shared.escalator.store;
    let standing = store.run(Db::Central, move |connection| central::admit(connection, &tenant, &device, now_ms)).await;
    match standing {
        Ok(Standing::Good) => Ok(()),
        Ok(Standing::Revoked) => Err(CloseCode::REVOKED),
        Ok(Standing::Suspended) => Err(CloseCode::SUSPENDED),
        Ok(Standing::Unknown) => Err(CloseCode::UNKNOWN_DEVICE),
        Err(error) => {
            warn!(%error, "cannot look a device up");
            Err(CloseCode::OVERLOADED)
        }
    }
}

struct ConnectionLink<'a> {
    shared: &'a Arc<Shared>,
    connection: &'a Connection,
    live: &'a Arc<Live>,
    losses: Mutex<Losses>,
}

impl Link for ConnectionLink<'_> {
    fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    fn heard(&self, heartbeat: &Heartbeat) {
        self.live.heard(heartbeat);
        self.shared.escalator.metrics.heard(heartbeat.round_trip_us);
        self.losses.lock().unwrap_or_else(PoisonError::into_inner).look(self.connection, &self.shared.lossy_lines);
        let wanted = vitals::text_among(vitals::heartbeat::PREWARM, &heartbeat.extensions);
        let escalator = &self.shared.escalator;
        if let Some(model) = wanted
            && *self.live.expires.borrow() > escalator.env.clock.now_ms()
            && self.live.may_prewarm(escalator.env.clock.now_ms())
        {
            let (escalator, tenant) = (Arc::clone(escalator), self.live.tenant.clone());
            self.shared.streams.spawn(async move { escalator.prewarm(&tenant, &model).await }.in_current_span());
        }
    }

    fn state(&self) -> RelayState {
        self.shared.escalator.state()
    }

    fn renew_since_ms(&self) -> Option<u64> {
        self.shared.enrolment.renew_since_ms()
    }

    fn ahead_of_heartbeats(&self) -> u64 {
        match self.connection.path() {
            Path::Quic => 0,
            Path::Tcp => self.connection.traffic().bytes_received,
        }
    }

    async fn probed(&self) {
        self.live.probe.notified().await;
        self.connection.ask_for_sign();
    }
}

async fn streams_until_end(
    shared: &Arc<Shared>,
    connection: &Connection,
    control: ClientStream,
    registration: &mut Registration,
) -> CloseCode {
    let config = shared.escalator.config();
    let timeouts = &config.timeouts;
    let live = Arc::clone(&registration.live);
    let caller = Caller {
        tenant: live.tenant.clone(),
        device: live.device.clone(),
        key: None,
        revoked: live.revoked.clone(),
        gone: live.gone.clone(),
    };
    let link = ConnectionLink { shared, connection, live: &live, losses: Mutex::default() };
    let go_away = GoAway { reconnect_after_ms: 500, spread_ms: 2000, reason: "the relay is shutting down".into() };
    let draining = shared.escalator.draining.clone();
    let control = streams::control::serve(control, &link, timeouts.heartbeat, draining, &go_away);
    tokio::pin!(control);
    let expired = grace_is_over(&live, &shared.escalator.env, timeouts.expired_grace);
    tokio::pin!(expired);
    loop {
        let accepted = tokio::select! {
            // What ends the tunnel comes before what it carries; the heartbeat before new streams.
            biased;
            code = registration.closed() => return code,
            () = shared.stop.cancelled() => return CloseCode::GOING_AWAY,
            () = &mut expired => return CloseCode::EXPIRED,
            code = &mut control => return code,
            accepted = connection.accept() => accepted,
        };
        let Ok(stream) = accepted else { return CloseCode::DONE };
        let (shared_task, caller, span) = (Arc::clone(shared), caller.clone(), stream_span(&stream));
        if *live.expires.borrow() <= shared.escalator.env.clock.now_ms() {
            shared.streams.spawn(async move { renew_only(&shared_task, &caller, stream.into(), span).await });
            continue;
        }
        shared.streams.spawn(async move { serve_stream(&shared_task, Some(&caller), stream.into(), span).await });
    }
}

/// Ready when a tunnel has outlived its certificate by so long, and the device has no newer one.
async fn grace_is_over(live: &Live, env: &Env, grace: Duration) {
    let mut expires = live.expires.subscribe();
    loop {
        let left_ms = expires.borrow_and_update().saturating_sub(env.clock.now_ms());
        tokio::select! {
            biased;
            changed = expires.changed() => if changed.is_err() { return },
            () = sleep(Duration::from_millis(left_ms) + grace) => return,
        }
    }
}

/// A stream's span, below that of its connection.
fn stream_span(stream: &Stream) -> Span {
    tracing::info_span!("stream", id = stream.id, kind = tracing::field::Empty)
}
