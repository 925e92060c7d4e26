//! Invites, enrolment and revocation: who may have a tunnel.

use crate::escalate::Flights;
use crate::ops::chores::Chores;
use crate::registry::Registry;
use crate::store::StoreError;
use crate::store::central::audit::{Deed, note};
use crate::store::central::{self, EnrolmentOutcome};
use crate::store::executor::{Db, Store};
use belay_certs::issue::DeviceRequest;
use belay_certs::rollover::Authorities;
use belay_certs::sha256;
use belay_protocol::error::CloseCode;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::message::{EnrolAnswer, EnrolRequest, Failed, RenewAnswer, RenewRequest};
use belay_transport::env::Env;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// How long an invite can be used, in milliseconds.
pub const INVITE_LIFETIME_MS: u64 = 15 * 60 * 1000;

/// Why nobody was enrolled.
#[derive(Debug, Error)]
pub enum EnrolmentError {
    /// The invite does not hold.
    #[error("{0}")]
    Refused(&'static str),
    /// The certificate request does not hold.
    #[error("{0}")]
    Request(String),
    /// The device was revoked, or is none.
    #[error("this device has no access any more")]
    Revoked,
    /// Nothing could be recorded.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Enrols and revokes devices.
#[derive(Debug)]
pub struct Enrolment {
    authorities: Arc<Authorities>,
    /// How long a certificate holds.
    lifetime: Duration,
    env: Env,
    store: Store,
    registry: Arc<Registry>,
    flights: Arc<Flights>,
    chores: Chores,
}

impl Enrolment {
    /// With the relay's authority, and how long its certificates hold.
    #[must_use]
    pub fn new(
        (authorities, lifetime): (Arc<Authorities>, Duration),
        env: Env,
        store: Store,
        registry: Arc<Registry>,
        flights: Arc<Flights>,
    ) -> Self {
        Self { authorities, lifetime, env, store, registry, flights, chores: Chores::default() }
    }

    /// Whether a device may renew its certificate now. Errors: it has asked too often.
    pub(crate) fn may_renew(&self, device: &DeviceId) -> Result<(), Box<Failed>> {
        self.chores.take(device, self.env.clock.now_ms())
    }

    /// The authority's fingerprint, for invites.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.authorities.fingerprint()
    }

    /// When the authority's own certificate ends, milliseconds since 1970.
    #[must_use]
    pub fn authority_ends_ms(&self) -> u64 {
        self.authorities.standing().ends_ms()
    }

    /// Certificates of devices that were made then or before should be renewed, milliseconds since 1970.
    #[must_use]
    pub fn renew_since_ms(&self) -> Option<u64> {
        self.authorities.standing().changed_ms()
    }

    /// Makes an invite and returns its secret. `None`: there is no such tenant.
    pub async fn invite(&self, tenant: &TenantId) -> Result<Option<[u8; 24]>, StoreError> {
        let secret: [u8; 24] = self.env.random.bytes();
        let (tenant, now_ms) = (tenant.clone(), self.env.clock.now_ms());
        self.store
            .run(Db::Central, move |connection| {
                if !central::tenant_exists(connection, &tenant)? {
                    return Ok(None);
                }
                let expires_ms = now_ms + INVITE_LIFETIME_MS;
                central::create_invite(connection, sha256(&secret), &tenant, now_ms, expires_ms)?;
                Ok(Some(secret))
            })
            .await
    }

    /// Uses an invite.
    pub async fn enrol(&self, request: EnrolRequest) -> Result<EnrolAnswer, EnrolmentError> {
        let csr =
            DeviceRequest::from_der(&request.csr_der).map_err(|error| EnrolmentError::Request(error.to_string()))?;
        let label: String = request.device_label.chars().filter(|c| !c.is_control()).take(64).collect();
        let enrolment = central::Enrolment {
            secret_hash: sha256(&request.secret),
            key_fingerprint: csr.key_fingerprint(),
            new_device: self.device_id(&label),
            label,
            now_ms: self.env.clock.now_ms(),
        };
        let (standing, serial) = (self.authorities.standing(), self.env.random.bytes::<12>());
        let signs = Arc::clone(&standing);
        let lifetime = self.lifetime;
        let outcome = self
            .store
            .run(Db::Central, move |connection| {
                let now_ms = enrolment.now_ms;
                central::enrol(connection, &enrolment, |tenant, device| {
                    let issued = csr
                        .issue(&signs.current, tenant.as_str(), device.as_str(), serial, (now_ms, lifetime))
                        .map_err(|error| StoreError::Failed {
                            operation: "sign a certificate",
                            why: error.to_string(),
                        })?;
                    let deed = Deed::of(format!("device:{device}"), "device.enrol", Some(tenant)).on(device.as_str());
                    // Not its label: the log stays when the tenant is erased.
                    note(connection, &deed, now_ms)?;
                    Ok((issued.certificate.to_vec(), issued.expires_ms))
                })
            })
            .await?;
        match outcome {
            EnrolmentOutcome::Refused(why) => Err(EnrolmentError::Refused(why)),
            EnrolmentOutcome::Enrolled { tenant, device, certificate, expires_ms } => Ok(EnrolAnswer {
                tenant,
                device,
                certificate_der: certificate,
                ca_der: standing.current.certificate().to_vec(),
                expires_ms,
            }),
        }
    }

    /// Another certificate for a device that has one. Errors: it was revoked; its request is none, or was made with
    /// another key than the one that it was enrolled with.
    pub async fn renew(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        request: &RenewRequest,
    ) -> Result<RenewAnswer, EnrolmentError> {
        let wrong = |why: String| EnrolmentError::Request(why);
        let csr = DeviceRequest::from_der(&request.csr_der).map_err(|error| wrong(error.to_string()))?;
        let (of, named) = (tenant.clone(), device.clone());
        let known = self.store.run(Db::Central, move |connection| central::device_key(connection, &of, &named)).await?;
        if known.ok_or(EnrolmentError::Revoked)? != csr.key_fingerprint() {
            return Err(wrong("the request is not signed with the key that this device was enrolled with".into()));
        }
        let (serial, now_ms) = (self.env.random.bytes::<12>(), self.env.clock.now_ms());
        let standing = self.authorities.standing();
        let issued = csr
            .issue(&standing.current, tenant.as_str(), device.as_str(), serial, (now_ms, self.lifetime))
            .map_err(|error| StoreError::Failed { operation: "sign a certificate", why: error.to_string() })?;
        let (named, expires_ms) = (device.clone(), issued.expires_ms);
        let deed = Deed::of(format!("device:{device}"), "device.renew", Some(tenant)).on(device.as_str());
        self.store
            .run(Db::Central, move |connection| {
                note(connection, &deed, now_ms)?;
                central::device_renewed(connection, &named, expires_ms)
            })
            .await?;
        self.registry.renewed(device, expires_ms);
        Ok(RenewAnswer {
            certificate_der: issued.certificate.to_vec(),
            ca_der: standing.current.certificate().to_vec(),
            next_ca_der: standing.next.as_ref().map(|next| next.to_vec()).unwrap_or_default(),
            expires_ms,
        })
    }

    /// A name for a new device: what its user calls it, and random digits.
    fn device_id(&self, label: &str) -> DeviceId {
        let word: String =
            label.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(24).collect();
        let word = word.trim_matches('-');
        let word = if word.is_empty() { "device" } else { word };
        let digits = u32::from_le_bytes(self.env.random.bytes());
        let name = format!("{word}-{digits:08x}");
        // The text is made of allowed characters only.
        DeviceId::try_from(name).unwrap_or_else(|_| unreachable!("a device name of letters, digits and dashes"))
    }

    /// Revokes a device and closes its tunnels, those that are there at once, whatever the disk takes for the rest. False if
    /// there is no such device. Errors: it is cut off and may come back.
    pub async fn revoke(&self, device: &DeviceId, deed: Deed, why: &str) -> Result<bool, StoreError> {
        self.disconnect(device);
        let known = self.record_leaving(device, deed, why).await?;
        // One that came in between.
        self.disconnect(device);
        Ok(known)
    }

    /// The same, asked for by the device itself, on a tunnel that is still to carry the answer.
    pub async fn leave(&self, tenant: &TenantId, device: &DeviceId, why: &str) -> Result<bool, StoreError> {
        let deed = Deed::of(format!("device:{device}"), "device.leave", Some(tenant)).on(device.as_str()).with(why);
        self.record_leaving(device, deed, why).await
    }

    /// Notes and records that a device is revoked.
    async fn record_leaving(&self, device: &DeviceId, deed: Deed, why: &str) -> Result<bool, StoreError> {
        let (id, why, now_ms) = (device.clone(), why.to_owned(), self.env.clock.now_ms());
        let left = move |connection: &_| {
            note(connection, &deed, now_ms)?;
            central::revoke_device(connection, &id, &why, now_ms)
        };
        self.store.run(Db::Central, left).await
    }

    /// Closes the tunnels of a revoked device.
    pub fn disconnect(&self, device: &DeviceId) {
        self.registry.close_device(device, CloseCode::REVOKED);
        // Requests whose reader is away have no tunnel that could be closed.
        self.flights.revoke_device(device);
    }
}
