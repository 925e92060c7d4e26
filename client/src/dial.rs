//! Getting a connection to one of the relay's addresses.

use crate::error::ClientError;
use crate::state::Identity;
use belay_certs::issue::DeviceKey;
use belay_certs::tls::{self, Time};
use belay_protocol::{ALPN, RELAY_SERVER_NAME};
use belay_transport::env::{Clock, Env};
use belay_transport::params::{self, CLIENT_SOCKET_BUFFER};
use belay_transport::quic;
use belay_transport::runtime::LazyTimers;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long an address is tried alone before the next one is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// Who connects.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) env: Env,
    pub(crate) config: ClientConfig,
}

/// rustls checks certificates by the client's clock.
#[derive(Debug)]
struct ClockTime(Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now_ms())))
    }
}

impl Dialer {
    /// For a device that has joined.
    pub(crate) fn enrolled(env: &Env, identity: &Identity, key: &DeviceKey) -> Result<Self, ClientError> {
        let authority = CertificateDer::from(identity.ca_der.0.clone());
        let certificate = CertificateDer::from(identity.certificate_der.0.clone());
        let config = tls::enrolled_client(&authority, certificate, key, ALPN, clock_time(env))?;
        Self::new(env, config)
    }

    /// For a device that knows only the authority's fingerprint.
    pub(crate) fn enrolling(env: &Env, fingerprint: [u8; 32]) -> Result<Self, ClientError> {
        Self::new(env, tls::enrolling_client(fingerprint, ALPN, clock_time(env))?)
    }

    fn new(env: &Env, config: rustls::ClientConfig) -> Result<Self, ClientError> {
        let crypto = QuicClientConfig::try_from(config)
            .map_err(|error| ClientError::State { what: "the TLS configuration".into(), why: error.to_string() })?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(params::client());
        Ok(Self { env: env.clone(), config })
    }

    /// Races the addresses of `names`, `last_good` before all others. One gets a head start of
    /// [`HEAD_START`] on the next, IPv6 and IPv4 in turn, each at most [`HANDSHAKE`]; the first to
    /// answer wins and the others are given up. Names wait for the resolver, beside the attempts.
    ///
    /// Errors: `Closed` if a relay refuses, `Unreachable` with what happened last.
    pub(crate) async fn dial(
        &self,
        names: &[String],
        last_good: Option<SocketAddr>,
    ) -> Result<(Endpoint, Connection), ClientError> {
        let mut last = ClientError::Unreachable { addresses: names.join(", "), why: "no address is known".into() };
        let mut waiting: VecDeque<SocketAddr> = last_good.into_iter().collect();
        let mut resolving = JoinSet::new();
        for name in names {
            match name.parse() {
                Ok(address) if last_good == Some(address) => {}
                Ok(address) => waiting.push_back(address),
                Err(_) => {
                    let name = name.clone();
                    resolving.spawn(async move { (resolve(&name).await, name) });
                }
            }
        }
        let mut attempts = JoinSet::new();
        let mut next_start = Instant::now();
        loop {
            if attempts.is_empty() || next_start <= Instant::now() {
                if let Some(address) = waiting.pop_front() {
                    let dialer = self.clone();
                    attempts.spawn(async move { dialer.dial_one(address).await });
                    next_start = Instant::now() + HEAD_START;
                    continue;
                }
                if attempts.is_empty() && resolving.is_empty() {
                    return Err(last);
                }
            }
            tokio::select! {
                biased;
                Some(ended) = attempts.join_next() => match ended {
                    Ok(Ok(connected)) => return Ok(connected),
                    // A relay has answered: another address leads to the same answer.
                    Ok(Err(error @ ClientError::Closed(_))) => return Err(error),
                    Ok(Err(error)) => {
                        last = error;
                        next_start = Instant::now();
                    }
                    Err(error) => last = ClientError::Lost(error.to_string()),
                },
                Some(resolved) = resolving.join_next() => match resolved {
                    Ok((Ok(found), _)) => {
                        let new = in_turn(found).into_iter().filter(|address| Some(*address) != last_good);
                        waiting.extend(new);
                    }
                    Ok((Err(why), name)) => last = ClientError::Unreachable { addresses: name, why },
                    Err(error) => last = ClientError::Lost(error.to_string()),
                },
                () = sleep_until(next_start), if !waiting.is_empty() => {}
            }
        }
    }

    async fn dial_one(&self, address: SocketAddr) -> Result<(Endpoint, Connection), ClientError> {
        let unreachable = |why: String| ClientError::Unreachable { addresses: address.to_string(), why };
        let socket = bind(&self.env, address).map_err(|error| unreachable(error.to_string()))?;
        let config = params::endpoint(Some(self.env.random.bytes()), None);
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(LazyTimers))
            .map_err(|error| unreachable(error.to_string()))?;
        let connecting = endpoint
            .connect_with(self.config.clone(), address, RELAY_SERVER_NAME)
            .map_err(|error| unreachable(error.to_string()))?;
        match timeout(HANDSHAKE, connecting).await {
            Ok(Ok(connection)) => Ok((endpoint, connection)),
            Ok(Err(error)) => Err(match quic::close_code(&error) {
                Some(code) => ClientError::Closed(code),
                None => unreachable(error.to_string()),
            }),
            Err(_) => Err(unreachable(format!("no answer within {} s; is UDP open on the way?", HANDSHAKE.as_secs()))),
        }
    }
}

/// A client's socket towards an address.
pub(crate) fn bind(env: &Env, towards: SocketAddr) -> std::io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
    let local: SocketAddr = match towards {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    env.net.bind_udp(local, CLIENT_SOCKET_BUFFER)
}

fn clock_time(env: &Env) -> Time {
    Arc::new(ClockTime(Arc::clone(&env.clock)))
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
