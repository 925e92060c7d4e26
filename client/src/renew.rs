//! The device's certificate: renewed over the tunnel when two thirds of its time are over, and before anything else when
//! it has ended; sooner where the relay asks for it, since its authority becomes another. The key stays; only `identity.json` is written, whole or not at all.

use crate::dial::Dialer;
use crate::error::ClientError;
use crate::state::{HexBytes, Identity, StateDir};
use crate::tunnel::Tunnel;
use crate::tunnels::Tunnels;
use belay_certs::CertError;
use belay_certs::identity::DeviceIdentity;
use belay_certs::issue::{BACKDATED, DeviceKey};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{FailureCode, RenewAnswer, RenewRequest};
use belay_transport::env::Env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

/// A computer that sleeps stops its timers: the clock on the wall is looked at so often.
const LOOK: Duration = Duration::from_secs(3600);
/// After a failure, twice as long each time up to [`LOOK`].
const AGAIN: Duration = Duration::from_secs(30);
/// How long it waits for a tunnel.
const TUNNEL: Duration = Duration::from_secs(60);

/// When a certificate was made, is to be renewed, and ends; milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    made_ms: u64,
    due_ms: u64,
    ends_ms: u64,
}

/// Keeps the certificate of a device young.
#[derive(Debug)]
pub(crate) struct Renewal {
    env: Env,
    key: DeviceKey,
    state: Option<StateDir>,
    identity: Mutex<(Identity, Times)>,
    /// What the relay asked for last: certificates that were made then or before, and when this one's turn is.
    asked: Mutex<(u64, u64)>,
    /// One at a time: several tunnels may find that it is due.
    turn: tokio::sync::Mutex<()>,
    /// What is shown is not in the directory yet.
    unsaved: AtomicBool,
}

impl Renewal {
    /// Errors: the certificate is none.
    pub(crate) fn new(
        env: &Env,
        identity: &Identity,
        key: &DeviceKey,
        state: Option<StateDir>,
    ) -> Result<Self, ClientError> {
        let times = times(env, identity)?;
        let identity = Mutex::new((identity.clone(), times));
        let (asked, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        let unsaved = AtomicBool::new(false);
        Ok(Self { env: env.clone(), key: key.copy()?, state, identity, asked, turn, unsaved })
    }

    fn now(&self) -> (Identity, Times) {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the certificate ends that is shown now.
    pub(crate) fn ends_ms(&self) -> u64 {
        self.now().1.ends_ms
    }

    /// When it is time, by its age or since the relay has asked.
    fn due_ms(&self) -> u64 {
        let (_, times) = self.now();
        let (since_ms, turn_ms) = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if times.made_ms <= since_ms { times.due_ms.min(turn_ms) } else { times.due_ms }
    }

    /// The relay asks for it. Not all come at once: within ten minutes, where certificates hold for a month.
    fn asked(&self, since_ms: u64) {
        let (_, Times { made_ms, ends_ms, .. }) = self.now();
        let lifetime = Duration::from_millis(ends_ms.saturating_sub(made_ms));
        let wait = lifetime / 43_200 + self.env.random.part_of(lifetime / 4_800);
        let turn_ms = self.env.clock.now_ms() + u64::try_from(wait.as_millis()).unwrap_or(0);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.0 != since_ms {
            *asked = (since_ms, turn_ms);
        }
    }

    /// What was asked for before a renewal is done with it, to whatever second its certificate says that it was made.
    fn granted(&self, since_ms: u64) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.0 == since_ms {
            asked.1 = u64::MAX;
        }
    }

    /// Whether the certificate has ended, by this clock or by the relay's, which decides.
    pub(crate) fn has_ended(&self, relay_ms: u64) -> bool {
        self.now().1.ends_ms <= self.env.clock.now_ms().max(relay_ms)
    }

    /// Before a connection is made: shows what another process of this device has got meanwhile, if what is shown has ended.
    pub(crate) fn look(&self, dialer: &Dialer) -> Result<(), ClientError> {
        if self.has_ended(0)
            && let Some(newer) = self.on_disk(&self.now().0)?
        {
            self.show(dialer, newer)?;
        }
        Ok(())
    }

    /// Renews whenever it is time, for as long as it is let.
    pub(crate) async fn run(self: Arc<Self>, dialer: Dialer, tunnels: Arc<Tunnels>) {
        let mut again = AGAIN;
        let mut wishes = tunnels.renew_since_ms.subscribe();
        loop {
            let since_ms = *wishes.borrow_and_update();
            self.asked(since_ms);
            let left = Duration::from_millis(self.due_ms().saturating_sub(self.env.clock.now_ms()));
            if !left.is_zero() {
                // The disk may have been full.
                let soon = match self.save() {
                    Ok(()) => LOOK,
                    Err(error) => {
                        warn!(%error, "the device's renewed certificate cannot be kept yet");
                        AGAIN
                    }
                };
                pause(&mut wishes, left.min(soon)).await;
                continue;
            }
            let renewed = match tunnels.tunnel_within(TUNNEL).await {
                Ok(tunnel) => self.renew(&dialer, &tunnel).await,
                Err(error) => Err(error),
            };
            match renewed {
                Ok(()) if self.due_ms() > self.env.clock.now_ms() => again = AGAIN,
                // The relay's clock and this one are far apart.
                Ok(()) => {
                    pause(&mut wishes, again).await;
                    again = (again * 2).min(LOOK);
                }
                Err(error) => {
                    let ends_ms = self.now().1.ends_ms;
                    warn!(%error, ends_ms, "the device's certificate cannot be renewed yet");
                    pause(&mut wishes, again).await;
                    again = (again * 2).min(LOOK);
                }
            }
        }
    }

    /// Asks for a certificate over a tunnel, unless another process of this device has got one meanwhile, and shows it from
    /// then on. Errors: there is none; the one before stays.
    pub(crate) async fn renew(&self, dialer: &Dialer, tunnel: &Tunnel) -> Result<(), ClientError> {
        let _turn = self.turn.lock().await;
        let (known, _) = self.now();
        let (wished_ms, _) = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let relay_ms = tunnel.hello().relay_time_ms;
        if self.due_ms() > self.env.clock.now_ms().max(relay_ms) {
            return Ok(());
        }
        // Over a tunnel that was made with one that has ended, only another one made over it helps.
        if !self.has_ended(relay_ms)
            && let Some(newer) = self.on_disk(&known)?
        {
            return self.show(dialer, newer);
        }
        let request = RenewRequest { csr_der: self.key.request()? };
        let answer: RenewAnswer = match tunnel.call(StreamKind::Enrol, &request).await {
            Err(ClientError::Failed(failed)) if failed.code == FailureCode::UNSUPPORTED => {
                return Err(ClientError::State { what: "the relay".into(), why: "it is too old to renew".into() });
            }
            answer => answer?,
        };
        let mut identity = known;
        identity.certificate_der = HexBytes(answer.certificate_der);
        identity.ca_der = HexBytes(answer.ca_der);
        identity.next_ca_der = HexBytes(answer.next_ca_der);
        identity.expires_ms = answer.expires_ms;
        // What cannot be used is not kept.
        self.show(dialer, identity.clone())?;
        self.granted(wished_ms);
        self.unsaved.store(true, Ordering::Relaxed);
        self.save()?;
        info!(ends_ms = identity.expires_ms, "the device's certificate was renewed");
        Ok(())
    }

    /// Keeps what was renewed, unless it is kept.
    fn save(&self) -> Result<(), ClientError> {
        if let Some(state) = self.state.as_ref().filter(|_| self.unsaved.load(Ordering::Relaxed)) {
            state.save_renewed(&self.now().0)?;
            self.unsaved.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A younger certificate of this device that lies in its directory.
    fn on_disk(&self, known: &Identity) -> Result<Option<Identity>, ClientError> {
        let Some(state) = self.state.as_ref().filter(|state| state.is_joined()) else { return Ok(None) };
        let (found, _) = state.load()?;
        let is_newer = found.device == known.device && found.expires_ms > known.expires_ms;
        Ok(Some(found).filter(|_| is_newer))
    }

    fn show(&self, dialer: &Dialer, identity: Identity) -> Result<(), ClientError> {
        let times = times(&self.env, &identity)?;
        dialer.show(&identity, &self.key)?;
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = (identity, times);
        Ok(())
    }
}

/// Waits so long, or until the relay asks for something else.
async fn pause(wishes: &mut watch::Receiver<u64>, time: Duration) {
    tokio::select! {
        // In order, so that a simulation repeats.
        biased;
        // The sender is there for as long as there are tunnels, and without them nobody waits here.
        Ok(()) = wishes.changed() => {}
        () = sleep(time) => {}
    }
}

fn times(env: &Env, identity: &Identity) -> Result<Times, CertError> {
    let DeviceIdentity { begins_ms, expires_ms, .. } = DeviceIdentity::from_certificate(&identity.certificate_der.0)?;
    let made_ms = begins_ms + u64::try_from(BACKDATED.as_millis()).unwrap_or(0);
    let lifetime = expires_ms.saturating_sub(made_ms);
    // Those that joined in one hour do not come back in one.
    let early = env.random.part_of(Duration::from_millis(lifetime / 30)).as_millis();
    let due_ms = (made_ms + lifetime / 3 * 2).saturating_sub(u64::try_from(early).unwrap_or(0));
    Ok(Times { made_ms, due_ms, ends_ms: expires_ms })
}
