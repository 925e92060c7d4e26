//! What may stand between this computer and its relay: looked at one after the other, over both transports, with tunnels
//! of its own that leave the one that runs alone.

use crate::dial::{Dialer, Way};
use crate::error::ClientError;
use crate::state::{Identity, StateDir};
use crate::tunnel::{Target, Tunnel, hello};
use belay_certs::identity::DeviceIdentity;
use belay_certs::issue::DeviceKey;
use belay_protocol::calendar::{DAY_MS, day, day_text};
use belay_protocol::finding::Finding;
use belay_protocol::id::InstanceId;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{Balance, BalanceRequest};
use belay_transport::connection::Connection;
use belay_transport::env::Env;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Questions that measure a path, and the time between two.
const QUESTIONS: usize = 20;
const PACE: Duration = Duration::from_millis(50);
/// A path that loses more packets is told of, in permille.
const LOSS_PERMILLE: u64 = 20;
/// Clocks that differ by more are told of.
const CLOCK_MS: u64 = 30_000;
/// A path whose round trips take longer at the worst is told of.
const SLOW: Duration = Duration::from_millis(400);
/// What every path of the internet carries is little; one that carries no more is told of.
const SMALL_MTU: u16 = 1250;

/// What a path was like.
struct Path {
    handshake: Duration,
    /// Sorted.
    trips: Vec<Duration>,
    lost_permille: Option<u64>,
    mtu: Option<u16>,
    relay: String,
    /// How far the relay's clock is from ours.
    clock_ms: u64,
}

/// Looks at everything. Takes a few seconds.
pub async fn look(env: &Env, state: &StateDir) -> Vec<Finding> {
    let (identity, key) = match state.load() {
        Ok(found) => found,
        Err(error) => {
            let remedy = "belay join belay1:..., with an invite of the relay's operator";
            return vec![Finding::bad("identity", error.to_string(), remedy)];
        }
    };
    let joined = format!("{} of {}, relay at {}", identity.device, identity.tenant, identity.addresses.join(", "));
    let mut findings = vec![Finding::good("identity", joined), certificate(env, &identity)];
    let (quic, tcp) = (path(env, &identity, &key, Way::Quic).await, path(env, &identity, &key, Way::Tcp).await);
    match &quic {
        Ok(path) => findings.push(reached("UDP (QUIC)", path)),
        // The relay was reached and said no: the same over TCP would say nothing more.
        Err(error @ ClientError::Closed(_)) => {
            findings.push(Finding::bad("UDP (QUIC)", error.to_string(), "if that is wrong, ask the relay's operator"))
        }
        Err(error) if tcp.is_ok() => {
            let remedy = "tunnels go over TCP meanwhile; have the network let UDP through to that address and port";
            findings.push(Finding::warn("UDP (QUIC)", error.to_string(), remedy));
        }
        Err(error) => {
            let remedy =
                "is this computer online, is the address right, and does the relay run? its operator: belayd doctor";
            findings.push(Finding::bad("UDP (QUIC)", error.to_string(), remedy));
        }
    }
    match &tcp {
        Ok(path) => findings.push(reached("TCP", path)),
        Err(error) if quic.is_ok() => {
            let remedy = "it is wanted only where UDP is blocked; the relay may have turned it off (listen.tcp)";
            findings.push(Finding::warn("TCP", error.to_string(), remedy));
        }
        Err(error) => findings.push(Finding::bad("TCP", error.to_string(), "the same as over UDP")),
    }
    if let Some(path) = quic.as_ref().ok().or(tcp.as_ref().ok()) {
        findings.extend(quality(path));
        findings.push(clock(path.clock_ms));
        let both = format!("belay {} here, {} there", env!("CARGO_PKG_VERSION"), path.relay);
        findings.push(Finding::good("versions", both));
    }
    findings.push(running(state, &identity).await);
    findings
}

fn certificate(env: &Env, identity: &Identity) -> Finding {
    let what = "certificate";
    let (now_ms, ends_ms) = (env.clock.now_ms(), identity.expires_ms);
    let left = ends_ms.saturating_sub(now_ms);
    let found = format!("holds until {}, {} days", day_text(day(ends_ms)), left / DAY_MS);
    let begins_ms = DeviceIdentity::from_certificate(&identity.certificate_der.0).map_or(0, |own| own.begins_ms);
    if left == 0 {
        let remedy = "belay up renews it, if it ended not long ago; else: belay logout, then belay join";
        return Finding::bad(what, format!("ended on {}", day_text(day(ends_ms))), remedy);
    }
    // It is renewed when a third of its time is left.
    if left < ends_ms.saturating_sub(begins_ms) / 4 {
        return Finding::warn(what, found, "it is renewed by itself while a tunnel is up: belay up");
    }
    Finding::good(what, found)
}

/// Opens a tunnel one way, and asks a little.
async fn path(env: &Env, identity: &Identity, key: &DeviceKey, way: Way) -> Result<Path, ClientError> {
    let dialer = Dialer::enrolled(env, identity, key)?;
    let target = Target { addresses: identity.addresses.clone(), last_good: None, goes_through: false };
    let began = Instant::now();
    let said = hello(InstanceId(env.random.bytes()), 1, false);
    let (tunnel, _control) = Tunnel::open(&dialer, &target, way, said, &AtomicBool::new(false)).await?;
    let handshake = began.elapsed();
    let relay_time_ms = tunnel.hello().relay_time_ms;
    let half_ms = u64::try_from(tunnel.connection().rtt().as_millis() / 2).unwrap_or(0);
    let clock_ms = env.clock.now_ms().abs_diff(relay_time_ms + half_ms);
    let mut trips = vec![];
    for _ in 0..QUESTIONS {
        let asked = Instant::now();
        let _: Balance = tunnel.call(StreamKind::Billing, &BalanceRequest { reserved: 0 }).await?;
        trips.push(asked.elapsed());
        sleep(PACE).await;
    }
    trips.sort_unstable();
    let (lost_permille, mtu) = match tunnel.connection() {
        Connection::Quic(quic) => {
            let path = quic.stats().path;
            (Some(path.lost_packets * 1000 / path.sent_packets.max(1)), Some(path.current_mtu))
        }
        Connection::Tcp(_) => (None, None),
    };
    let relay = tunnel.hello().relay_name.clone();
    tunnel.close().await;
    Ok(Path { handshake, trips, lost_permille, mtu, relay, clock_ms })
}

fn reached(what: &str, path: &Path) -> Finding {
    Finding::good(what, format!("reaches the relay; from nothing to a tunnel in {}", ms(path.handshake)))
}

fn quality(path: &Path) -> Vec<Finding> {
    let (middle, worst) = (path.trips[path.trips.len() / 2], path.trips[path.trips.len() - 1]);
    let lost = path.lost_permille.unwrap_or(0);
    let loss = path.lost_permille.map(|lost| format!(", {}.{} % of packets lost", lost / 10, lost % 10));
    let found = format!("answers in {}, at the worst {}{}", ms(middle), ms(worst), loss.unwrap_or_default());
    let remedy = "answers stutter on such a line; is the Wi-Fi far away, or somebody filling it?";
    let mut findings = vec![if lost > LOSS_PERMILLE || worst > SLOW {
        Finding::warn("path", found, remedy)
    } else {
        Finding::good("path", found)
    }];
    if let Some(mtu) = path.mtu {
        let found = format!("packets of {mtu} bytes get through");
        findings.push(if mtu < SMALL_MTU {
            Finding::warn("MTU", found, "some tunnel or VPN on the way leaves little room; large transfers are slower")
        } else {
            Finding::good("MTU", found)
        });
    }
    findings
}

fn clock(apart_ms: u64) -> Finding {
    let found = format!("{}.{} s from that of the relay", apart_ms / 1000, apart_ms % 1000 / 100);
    if apart_ms > CLOCK_MS {
        return Finding::warn("clock", found, "set one of them: certificates are judged by it");
    }
    Finding::good("clock", found)
}

async fn running(state: &StateDir, identity: &Identity) -> Finding {
    let what = "belay up";
    match state.running() {
        Ok(Some(told)) if told.device == identity.device => match told.status().await {
            Ok(_) => Finding::good(what, format!("process {} serves http://{}", told.process, told.listen)),
            Err(error) => Finding::bad(what, format!("process {}: {error}", told.process), "belay down, then belay up"),
        },
        Ok(_) => Finding::good(what, "does not run; commands make a tunnel of their own"),
        Err(error) => Finding::warn(what, error.to_string(), "belay down, then belay up"),
    }
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
