//! The relay's authority as its operator sees and changes it, while tunnels stand.

use crate::providers::http::error_chain;
use crate::server::setup::own_certificate;
use crate::store::StoreError;
use crate::store::central::rollover::waiting;
use crate::store::executor::{Db, Store};
use belay_certs::rollover::{Authorities, Standing};
use belay_certs::shown::Shown;
use belay_certs::{CertError, sha256};
use belay_transport::env::Env;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Why an authority was not changed.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// Some devices would be lost.
    #[error("{devices} of the devices {why}; they are brought along by and by, or left behind with --force")]
    Waiting {
        /// How many.
        devices: u64,
        /// What they have not done yet.
        why: &'static str,
    },
    /// Its files cannot be changed, or not in that order.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// It is not known which devices wait.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A step of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Make the next one, of which devices are told as they renew.
    Prepare,
    /// Let it sign from now on.
    Switch,
    /// Trust the former one no more.
    Retire,
}

/// An authority, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuthorityInfo {
    /// SHA-256 of its certificate, in hexadecimal: what invites carry.
    pub fingerprint: String,
    /// When it ends, milliseconds since 1970.
    pub ends_ms: u64,
    /// The one that is prepared.
    pub next: Option<OtherAuthority>,
    /// The one that was replaced and is trusted still.
    pub former: Option<OtherAuthority>,
}

/// The next authority, or the former one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OtherAuthority {
    /// SHA-256 of its certificate, in hexadecimal.
    pub fingerprint: String,
    /// When it was prepared, or replaced, milliseconds since 1970.
    pub since_ms: u64,
    /// Devices that have not been told of the next one, or have nothing but the former one's certificate.
    pub devices_waiting: u64,
}

/// Whoever changes it.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) authorities: Arc<Authorities>,
    /// What servers of the tunnel show.
    pub(crate) shown: Arc<Shown>,
    pub(crate) env: Env,
    pub(crate) store: Store,
    /// How long after its end a device's certificate can be renewed.
    pub(crate) grace: Duration,
}

impl Keeper {
    /// As it is now.
    pub(crate) async fn info(&self) -> Result<AuthorityInfo, AuthorityError> {
        let standing = self.authorities.standing();
        let hex = |der: &[u8]| HEXLOWER.encode(&sha256(der));
        let next = match (&standing.next, self.to_tell(&standing).await?) {
            (Some(next), Some((since_ms, devices_waiting))) => {
                Some(OtherAuthority { fingerprint: hex(next), since_ms, devices_waiting })
            }
            _ => None,
        };
        let former = match (&standing.former, self.to_sign(&standing).await?) {
            (Some(former), Some(devices_waiting)) => Some(OtherAuthority {
                fingerprint: hex(&former.certificate),
                since_ms: former.replaced_ms,
                devices_waiting,
            }),
            _ => None,
        };
        let fingerprint = HEXLOWER.encode(&standing.current.fingerprint());
        Ok(AuthorityInfo { fingerprint, ends_ms: standing.ends_ms(), next, former })
    }

    /// Takes a step. Errors: `Waiting`, unless it is forced; nothing has changed then.
    pub(crate) async fn step(&self, step: Step, force: bool) -> Result<AuthorityInfo, AuthorityError> {
        let (standing, now_ms) = (self.authorities.standing(), self.env.clock.now_ms());
        match step {
            Step::Prepare => self.authorities.prepare(now_ms)?,
            Step::Switch => {
                if let Some((_, devices @ 1..)) = self.to_tell(&standing).await?
                    && !force
                {
                    let why =
                        "have not been told of the next authority (as they are when they renew their certificates)";
                    return Err(AuthorityError::Waiting { devices, why });
                }
                self.authorities.switch(now_ms)?;
                let (chain, key) = own_certificate(&self.authorities, &self.env)?;
                self.shown.show(chain, key)?;
            }
            Step::Retire => {
                if let Some(devices @ 1..) = self.to_sign(&standing).await?
                    && !force
                {
                    let why = "have a certificate of the former authority, and would have to join again";
                    return Err(AuthorityError::Waiting { devices, why });
                }
                self.authorities.retire()?;
                let (chain, key) = own_certificate(&self.authorities, &self.env)?;
                self.shown.show(chain, key)?;
            }
        }
        self.info().await
    }

    /// Since when there is a next one, and how many devices have not been told of it.
    async fn to_tell(&self, standing: &Standing) -> Result<Option<(u64, u64)>, StoreError> {
        let Some(since_ms) = standing.prepared_ms() else { return Ok(None) };
        Ok(Some((since_ms, self.waiting(since_ms, false).await?)))
    }

    /// How many devices have nothing but the former one's certificate.
    async fn to_sign(&self, standing: &Standing) -> Result<Option<u64>, StoreError> {
        let Some(former) = &standing.former else { return Ok(None) };
        Ok(Some(self.waiting(former.replaced_ms, true).await?))
    }

    async fn waiting(&self, since_ms: u64, joining_counts: bool) -> Result<u64, StoreError> {
        let grace_ms = u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX);
        let alive_ms = self.env.clock.now_ms().saturating_sub(grace_ms);
        let count = move |connection: &_| waiting(connection, alive_ms, since_ms, joining_counts);
        self.store.run(Db::Central, count).await
    }
}

impl AuthorityError {
    /// All of it, in a line.
    pub(crate) fn words(&self) -> String {
        error_chain(self)
    }
}
