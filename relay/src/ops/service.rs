//! A service of systemd's: what it was given, and what it tells. Started by anything else, all of this is nothing.

use belay_transport::env::Env;
use belay_transport::inherited::InheritedNet;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::io;
use std::sync::Arc;
use tracing::debug;

/// Sockets that systemd holds for the relay; `None`: there are none.
///
/// Errors: one is of no kind that a relay uses.
pub fn inherited(env: &mut Env) -> io::Result<Option<Arc<InheritedNet>>> {
    let mut given = ListenFd::from_env();
    let (mut udp, mut tcp) = (vec![], vec![]);
    for index in 0..given.len() {
        // What is of another kind stays where it is.
        match given.take_udp_socket(index) {
            Ok(socket) => udp.extend(socket),
            Err(_) => tcp.extend(given.take_tcp_listener(index)?),
        }
    }
    if udp.is_empty() && tcp.is_empty() {
        return Ok(None);
    }
    let net = Arc::new(InheritedNet::new(udp, tcp, Arc::clone(&env.net))?);
    env.net = net.clone();
    Ok(Some(net))
}

/// Tells what has become of the relay. Nobody may be listening.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot tell the service manager");
    }
}

/// It serves.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It reads its configuration anew.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "cannot tell the service manager"),
    }
}

/// It leaves.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining: no new requests, running ones end")]);
}

/// How it is, in a line.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// It lives, as far as everything that must make progress has.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often it must say so at least; `None`: nobody waits for it.
#[must_use]
pub fn watchdog() -> Option<std::time::Duration> {
    sd_notify::watchdog_enabled()
}
