//! Getting a connection to one of the relay's addresses, over QUIC or, where no UDP gets through,
//! over TCP.

use crate::error::ClientError;
use crate::renew::Renewal;
use crate::shown::{Shown, certified, clock_time};
use crate::state::{Identity, StateDir};
use belay_certs::issue::DeviceKey;
use belay_certs::pin::NOT_NAMED;
use belay_certs::tls;
use belay_protocol::error::CloseCode;
use belay_protocol::id::DeviceId;
use belay_protocol::{ALPN, RELAY_SERVER_NAME};
use belay_transport::connection::{Connection, Path};
use belay_transport::env::{Env, Side};
use belay_transport::params;
use belay_transport::runtime::LazyTimers;
use belay_transport::tcp::TcpConnection;
use quinn::Endpoint;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long an address is tried alone before the next one is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// How long the end of a connection may take to reach the relay.
const FAREWELL: Duration = Duration::from_millis(500);

/// Who connects.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) env: Env,
    /// What it shows, and whom it trusts; the same for all clones.
    shown: Arc<RwLock<Shown>>,
    /// Keeps the certificate young.
    pub(crate) renewal: Option<Arc<Renewal>>,
    /// Where a client of which device may run that has a tunnel already.
    through: Option<(StateDir, DeviceId)>,
}

/// Which transports are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// QUIC, and TCP beside it; each once the other has no address left, or after so long from the
    /// beginning.
    Either {
        /// When QUIC begins.
        quic_after: Duration,
        /// When TCP does.
        tcp_after: Duration,
    },
    /// QUIC alone.
    Quic,
    /// TCP alone.
    Tcp,
}

impl Way {
    /// When QUIC and TCP begin, those that do.
    fn begins(self) -> (Option<Duration>, Option<Duration>) {
        match self {
            Self::Either { quic_after, tcp_after } => (Some(quic_after), Some(tcp_after)),
            Self::Quic => (Some(Duration::ZERO), None),
            Self::Tcp => (None, Some(Duration::ZERO)),
        }
    }
}

/// A connection that was made, with the socket below it.
#[derive(Debug)]
pub(crate) struct Dialed {
    /// Of a connection over QUIC.
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) connection: Connection,
}

impl Dialed {
    /// Closes in order and waits, shortly, until the relay can know.
    pub(crate) async fn close(&self, reason: &str) {
        self.connection.close(CloseCode::DONE, reason);
        let _ = match &self.endpoint {
            Some(endpoint) => timeout(FAREWELL, endpoint.wait_idle()).await,
            None => timeout(FAREWELL, async { drop(self.connection.closed().await) }).await,
        };
    }
}

/// The addresses that are tried over one transport.
struct Lane {
    path: Path,
    waiting: VecDeque<SocketAddr>,
    next_start: Instant,
    has_begun: bool,
    running: usize,
    failure: Option<ClientError>,
}

impl Lane {
    fn new(path: Path, waiting: VecDeque<SocketAddr>, next_start: Instant) -> Self {
        Self { path, waiting, next_start, has_begun: false, running: 0, failure: None }
    }

    /// The address whose turn it is: after the head start of the one before, or when that has failed.
    fn next(&mut self, now: Instant) -> Option<SocketAddr> {
        if now < self.next_start {
            return None;
        }
        let address = self.waiting.pop_front()?;
        self.next_start = now + HEAD_START;
        self.has_begun = true;
        self.running += 1;
        Some(address)
    }

    fn failed(&mut self, error: ClientError) {
        self.running -= 1;
        self.failure = Some(error);
        self.next_start = Instant::now();
    }

    fn is_spent(&self) -> bool {
        self.running == 0 && self.waiting.is_empty()
    }
}

impl Dialer {
    /// For a device that has joined.
    pub(crate) fn enrolled(env: &Env, identity: &Identity, key: &DeviceKey) -> Result<Self, ClientError> {
        Self::new(env, certified(env, identity, key)?)
    }

    /// Shows another certificate from now on. Errors: it cannot be used; then the one before stays.
    pub(crate) fn show(&self, identity: &Identity, key: &DeviceKey) -> Result<(), ClientError> {
        let shown = Shown::new(certified(&self.env, identity, key)?)?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
        Ok(())
    }

    fn shown(&self) -> Shown {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For a device that knows only the authority's fingerprint.
    pub(crate) fn enrolling(env: &Env, fingerprint: [u8; 32]) -> Result<Self, ClientError> {
        Self::new(env, tls::enrolling_client(fingerprint, ALPN, clock_time(env))?)
    }

    fn new(env: &Env, config: rustls::ClientConfig) -> Result<Self, ClientError> {
        let shown = Arc::new(RwLock::new(Shown::new(config)?));
        Ok(Self { env: env.clone(), shown, renewal: None, through: None })
    }

    /// Says where a client may run whose tunnel can be used.
    pub(crate) fn may_go_through(&mut self, state: StateDir, device: DeviceId) {
        self.through = Some((state, device));
    }

    /// A connection through the client that runs, if one does and answers.
    pub(crate) async fn dial_running(&self) -> Option<Dialed> {
        let (state, device) = self.through.as_ref()?;
        let told = match state.running() {
            // Not one of an identity that was there before.
            Ok(told) => told.filter(|told| told.device == *device)?,
            Err(error) => {
                debug!(%error, "cannot find the client that runs");
                return None;
            }
        };
        match told.connect().await {
            Ok(connection) => Some(Dialed { endpoint: None, connection: Connection::Tcp(connection) }),
            Err(error) => {
                debug!(%error, "the client that runs does not answer; dialling the relay");
                None
            }
        }
    }

    /// Races the addresses of `names`, `last_good` before all others. One gets a head start of
    /// [`HEAD_START`] on the next, IPv6 and IPv4 in turn, each at most [`HANDSHAKE`]; the first to
    /// answer wins and the others are given up. Names wait for the resolver, beside the attempts. The
    /// same runs over both transports, as late as `way` says.
    ///
    /// Errors: `Unreachable` with what happened last.
    pub(crate) async fn dial(
        &self,
        names: &[String],
        last_good: Option<SocketAddr>,
        way: Way,
    ) -> Result<Dialed, ClientError> {
        let mut known: VecDeque<SocketAddr> = last_good.into_iter().collect();
        let mut resolving = JoinSet::new();
        for name in names {
            match name.parse() {
                Ok(address) if last_good == Some(address) => {}
                Ok(address) => known.push_back(address),
                Err(_) => {
                    let name = name.clone();
                    resolving.spawn(async move { (resolve(&name).await, name) });
                }
            }
        }
        let now = Instant::now();
        let lane = |path, after: Option<Duration>| after.map(|after| Lane::new(path, known.clone(), now + after));
        let (quic_after, tcp_after) = way.begins();
        let mut lanes = [lane(Path::Quic, quic_after), lane(Path::Tcp, tcp_after)];
        let mut attempts = JoinSet::new();
        let mut unresolved = None;
        loop {
            let now = Instant::now();
            if resolving.is_empty() && lanes.iter().flatten().any(Lane::is_spent) {
                // One of them has no address left: the other begins.
                let waiting = lanes.iter_mut().flatten().filter(|lane| !lane.has_begun);
                waiting.for_each(|lane| lane.next_start = lane.next_start.min(now));
            }
            let mut next_start: Option<Instant> = None;
            for lane in lanes.iter_mut().flatten() {
                while let Some(address) = lane.next(now) {
                    let (dialer, path) = (self.clone(), lane.path);
                    attempts.spawn(async move { (path, dialer.dial_one(address, path).await) });
                }
                if !lane.waiting.is_empty() {
                    next_start = Some(next_start.map_or(lane.next_start, |next| next.min(lane.next_start)));
                }
            }
            if attempts.is_empty() && resolving.is_empty() && next_start.is_none() {
                let [quic, tcp] = lanes.map(|lane| lane.and_then(|lane| lane.failure));
                return Err(unreachable(names, [quic, tcp, unresolved]));
            }
            tokio::select! {
                biased;
                Some(ended) = attempts.join_next() => match ended {
                    Ok((_, Ok(dialed))) => return Ok(dialed),
                    Ok((path, Err(error))) => {
                        if let Some(lane) = lanes.iter_mut().flatten().find(|lane| lane.path == path) {
                            lane.failed(error);
                        }
                    }
                    Err(error) => return Err(ClientError::Lost(error.to_string())),
                },
                Some(resolved) = resolving.join_next() => match resolved {
                    Ok((Ok(found), _)) => {
                        let new = in_turn(found).into_iter().filter(|address| Some(*address) != last_good);
                        for address in new {
                            lanes.iter_mut().flatten().for_each(|lane| lane.waiting.push_back(address));
                        }
                    }
                    Ok((Err(why), name)) => unresolved = Some(ClientError::Unreachable { addresses: name, why }),
                    Err(error) => return Err(ClientError::Lost(error.to_string())),
                },
                () = sleep_until(next_start.unwrap_or(now)), if next_start.is_some() => {}
            }
        }
    }

    async fn dial_one(&self, address: SocketAddr, path: Path) -> Result<Dialed, ClientError> {
        let handshake = async {
            match path {
                Path::Quic => self.dial_quic(address).await,
                Path::Tcp => self.dial_tcp(address).await,
            }
        };
        let unreachable = |why: String| ClientError::Unreachable { addresses: address.to_string(), why };
        match timeout(HANDSHAKE, handshake).await {
            Ok(Ok(dialed)) => Ok(dialed),
            // Without what the layers between have put around it.
            Ok(Err(Failure(why))) if why.contains(NOT_NAMED) => Err(unreachable(NOT_NAMED.into())),
            Ok(Err(Failure(why))) if why.contains("UnknownIssuer") => Err(unreachable(ANOTHER.into())),
            Ok(Err(Failure(why))) => Err(unreachable(why)),
            Err(_) => {
                let open = if path == Path::Quic { "; is UDP open on the way?" } else { "" };
                Err(unreachable(format!("no answer within {} s{open}", HANDSHAKE.as_secs())))
            }
        }
    }

    async fn dial_quic(&self, address: SocketAddr) -> Result<Dialed, Failure> {
        let socket = bind(&self.env, address)?;
        let config = params::endpoint(&self.env.random, None);
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(LazyTimers))?;
        let connecting = endpoint
            .connect_with(self.shown().quic, address, RELAY_SERVER_NAME)
            .map_err(|error| Failure(error.to_string()))?;
        match connecting.await {
            Ok(connection) => Ok(Dialed { endpoint: Some(endpoint), connection: Connection::Quic(connection) }),
            // Whatever closes a handshake that is not finished may be anybody's word: only a relay that has proved who it
            // is can send a client away for good.
            Err(error) => Err(Failure(error.to_string())),
        }
    }

    async fn dial_tcp(&self, address: SocketAddr) -> Result<Dialed, Failure> {
        let socket = self.env.net.connect_tcp(address).await?;
        let connection = TcpConnection::connect(socket, self.shown().tls).await?;
        Ok(Dialed { endpoint: None, connection: Connection::Tcp(connection) })
    }
}

/// What is said of a relay with an authority that this computer does not trust.
const ANOTHER: &str = "it is not the relay that this computer has joined, or its certificate authority has become another \
    while this computer was away; to join again: belay logout --offline, then belay join with a new invite";

/// Why an address could not be dialled.
struct Failure(String);

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// What to say when nothing answered: why not over QUIC first, then why not over TCP.
fn unreachable(names: &[String], failures: [Option<ClientError>; 3]) -> ClientError {
    let [quic, tcp, unresolved] = failures;
    match (quic.or(unresolved), tcp) {
        (
            Some(ClientError::Unreachable { addresses, why }),
            Some(ClientError::Unreachable { addresses: over_tcp, why: tcp }),
        ) => {
            let at = if over_tcp == addresses { String::new() } else { format!(" to {over_tcp}") };
            ClientError::Unreachable { addresses, why: format!("{why} Over TCP{at}: {tcp}") }
        }
        (Some(error), _) | (None, Some(error)) => error,
        (None, None) => ClientError::Unreachable { addresses: names.join(", "), why: "no address is known".into() },
    }
}

/// A client's socket towards an address.
pub(crate) fn bind(env: &Env, towards: SocketAddr) -> std::io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
    let local: SocketAddr = match towards {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    env.net.bind_udp(local, Side::Client)
}

/// IPv6 and IPv4 in turn, beginning with IPv6; within a family as the resolver has sorted them.
fn in_turn(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = found.into_iter().partition(SocketAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut mixed = vec![];
    loop {
        let before = mixed.len();
        mixed.extend(six.next());
        mixed.extend(four.next());
        if mixed.len() == before {
            return mixed;
        }
    }
}

/// A name's addresses, from the system's resolver.
async fn resolve(name: &str) -> Result<Vec<SocketAddr>, String> {
    let found = timeout(HANDSHAKE, tokio::net::lookup_host(name)).await;
    let found: Vec<SocketAddr> = match found {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("the name was not resolved in time".into()),
    };
    if found.is_empty() { Err("the name has no address".into()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse =
            |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<SocketAddr>>();
        let found = parse(&["1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1", "[::1]:1", "[::2]:1"]);
        assert_eq!(in_turn(found), parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "3.3.3.3:1"]));
        assert_eq!(in_turn(vec![]), vec![]);
    }
}
