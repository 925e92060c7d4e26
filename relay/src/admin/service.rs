//! What an operator can do to a running relay.

use crate::config::Config;
use crate::enrolment::{Enrolment, INVITE_LIFETIME_MS};
use crate::escalate::Escalator;
use crate::registry::Registry;
use crate::store::StoreError;
use crate::store::central::{self, Device};
use crate::store::executor::{Db, Store};
use crate::store::ledger::{self, verify};
use crate::tenants::Tenants;
use belay_certs::invite::Invite;
use belay_protocol::error::CloseCode;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::money::NanoUsd;
use belay_protocol::vitals::{RelayState, Vitals};
use belay_transport::env::Env;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use thiserror::Error;

/// Why an operation was not done.
#[derive(Debug, Error)]
pub enum AdminError {
    /// No such tenant.
    #[error("there is no tenant {0}; see: belayd tenant list")]
    NoTenant(TenantId),
    /// There is one already.
    #[error("there is a tenant {0} already")]
    TenantExists(TenantId),
    /// No such device.
    #[error("there is no device {0}; see: belayd device list")]
    NoDevice(DeviceId),
    /// The amount makes no sense.
    #[error("{0}")]
    Amount(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A tenant with its money.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantInfo {
    /// The tenant's name.
    pub id: TenantId,
    /// No request runs and no device connects while this is set.
    pub suspended: bool,
    /// Can be spent, in nano-USD.
    pub balance_nano_usd: i64,
    /// Is set aside, in nano-USD.
    pub held_nano_usd: i64,
    /// Was charged since the book began, in nano-USD.
    pub charged_nano_usd: i64,
    /// Requests that hold money.
    pub open_holds: u32,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// A device, and whether it is connected.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// As central knows it.
    #[serde(flatten)]
    pub device: Device,
    /// Live tunnels.
    pub tunnels: u32,
}

/// A new invite.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InviteInfo {
    /// The join string.
    pub invite: String,
    /// Who will pay.
    pub tenant: TenantId,
    /// Milliseconds since 1970.
    pub expires_ms: u64,
}

/// The node at a glance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// belayd's version.
    pub version: String,
    /// Where QUIC listens.
    pub listen: SocketAddr,
    /// Live tunnels.
    pub tunnels: Vec<TunnelInfo>,
    /// Open tenants.
    pub open_tenants: usize,
    /// What clients are told with their heartbeats.
    pub state: RelayState,
    /// Requests that run.
    pub running_requests: usize,
    /// Finished answers that wait for their reader.
    pub waiting_answers: usize,
    /// Bytes that clients make the relay use, as it counts them.
    pub memory_bytes: usize,
    /// Bytes of events that no reader has acknowledged, all requests together.
    pub event_log_bytes: usize,
    /// SHA-256 of the authority's certificate, hex.
    pub authority: String,
}

/// A live tunnel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TunnelInfo {
    /// Who pays.
    pub tenant: TenantId,
    /// Which device.
    pub device: DeviceId,
    /// Which running client.
    pub instance: String,
    /// What carries it: `quic` or `tcp`.
    pub path: String,
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Milliseconds since 1970.
    pub since_ms: u64,
    /// Heartbeats heard.
    pub heartbeats: u64,
    /// The client's last measured round trip in microseconds; 0 before the first.
    pub round_trip_us: u64,
    /// How the client's computer is, as it said last.
    pub vitals: Option<Vitals>,
    /// The model that it has loaded itself.
    pub loaded_model: Option<String>,
}

/// A book's check.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verified {
    /// Whose book.
    pub tenant: TenantId,
    /// What was found.
    #[serde(flatten)]
    pub report: verify::Report,
}

/// Everything an operator can do.
#[derive(Debug)]
pub struct AdminService {
    config: Arc<Config>,
    local: SocketAddr,
    store: Store,
    tenants: Arc<Tenants>,
    escalator: Arc<Escalator>,
    enrolment: Arc<Enrolment>,
    registry: Arc<Registry>,
    env: Env,
}

impl AdminService {
    pub(crate) fn new(
        local: SocketAddr,
        escalator: Arc<Escalator>,
        enrolment: Arc<Enrolment>,
        registry: Arc<Registry>,
    ) -> Self {
        Self {
            config: Arc::clone(&escalator.config),
            local,
            store: escalator.store.clone(),
            tenants: Arc::clone(&escalator.tenants),
            env: escalator.env.clone(),
            escalator,
            enrolment,
            registry,
        }
    }

    /// Creates a tenant.
    pub async fn create_tenant(&self, id: TenantId) -> Result<TenantInfo, AdminError> {
        let (name, now_ms) = (id.clone(), self.env.clock.now_ms());
        let made =
            self.store.run(Db::Central, move |connection| central::create_tenant(connection, &name, now_ms)).await?;
        if !made {
            return Err(AdminError::TenantExists(id));
        }
        self.tenant(&id).await
    }

    /// All tenants by name.
    pub async fn tenants(&self) -> Result<Vec<TenantInfo>, AdminError> {
        let mut infos = Vec::new();
        for tenant in self.tenants.all().await? {
            infos.push(self.info(tenant).await?);
        }
        Ok(infos)
    }

    async fn tenant(&self, id: &TenantId) -> Result<TenantInfo, AdminError> {
        let found = self.tenants.all().await?.into_iter().find(|tenant| tenant.id == *id);
        match found {
            Some(tenant) => self.info(tenant).await,
            None => Err(AdminError::NoTenant(id.clone())),
        }
    }

    async fn info(&self, tenant: central::Tenant) -> Result<TenantInfo, AdminError> {
        let summary = self.tenants.summary(&tenant.id).await?;
        Ok(TenantInfo {
            id: tenant.id,
            suspended: tenant.suspended,
            balance_nano_usd: summary.balance.0,
            held_nano_usd: summary.held.0,
            charged_nano_usd: summary.charged.0,
            open_holds: summary.open_holds,
            created_ms: tenant.created_ms,
        })
    }

    /// Credits a tenant. `operation` makes a retry harmless; without one, each call is a new
    /// credit.
    pub async fn credit(
        &self,
        id: &TenantId,
        amount: NanoUsd,
        operation: Option<String>,
        note: Option<String>,
    ) -> Result<TenantInfo, AdminError> {
        if amount <= NanoUsd::ZERO {
            return Err(AdminError::Amount(format!("a credit must be above zero, not {amount}")));
        }
        self.tenant(id).await?;
        let operation = operation.unwrap_or_else(|| {
            let random: [u8; 16] = self.env.random.bytes();
            format!("credit-{:032x}", u128::from_be_bytes(random))
        });
        let now_ms = self.env.clock.now_ms();
        let credit = self.store.run(Db::Tenant(id.clone()), move |connection| {
            ledger::credit(connection, amount, &operation, note.as_deref(), now_ms)
        });
        match credit.await {
            Ok(_) => self.tenant(id).await,
            Err(StoreError::Failed { operation: "credit", why }) => Err(AdminError::Amount(why)),
            Err(error) => Err(error.into()),
        }
    }

    /// Suspends a tenant, or lets it go on. Its tunnels close and its requests end at once.
    pub async fn suspend(&self, id: &TenantId, suspended: bool) -> Result<TenantInfo, AdminError> {
        let name = id.clone();
        let known = self
            .store
            .run(Db::Central, move |connection| central::suspend_tenant(connection, &name, suspended))
            .await?;
        if !known {
            return Err(AdminError::NoTenant(id.clone()));
        }
        self.store.run(Db::Tenant(id.clone()), move |connection| ledger::set_suspended(connection, suspended)).await?;
        if suspended {
            self.registry.close_tenant(id, CloseCode::SUSPENDED);
            self.escalator.flights.revoke_tenant(id);
        }
        self.tenant(id).await
    }

    /// Makes an invite.
    pub async fn invite(&self, id: &TenantId) -> Result<InviteInfo, AdminError> {
        let Some(secret) = self.enrolment.invite(id).await? else {
            return Err(AdminError::NoTenant(id.clone()));
        };
        let invite = Invite { fingerprint: self.enrolment.fingerprint(), secret, addresses: self.addresses() };
        let expires_ms = self.env.clock.now_ms() + INVITE_LIFETIME_MS;
        Ok(InviteInfo { invite: invite.encode(), tenant: id.clone(), expires_ms })
    }

    /// Where clients are to dial: the configured public addresses, or the one that is listened on.
    fn addresses(&self) -> Vec<String> {
        if !self.config.public.is_empty() {
            return self.config.public.clone();
        }
        let mut local = self.local;
        if local.ip().is_unspecified() {
            // Nobody can dial 0.0.0.0; without a public address the relay is for this machine.
            local.set_ip(if local.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
        }
        vec![local.to_string()]
    }

    /// All devices, or those of one tenant.
    pub async fn devices(&self, tenant: Option<TenantId>) -> Result<Vec<DeviceInfo>, AdminError> {
        let devices =
            self.store.run(Db::Central, move |connection| central::devices(connection, tenant.as_ref())).await?;
        let live = self.registry.list();
        let tunnels = |id: &DeviceId| u32::try_from(live.iter().filter(|live| live.device == *id).count()).unwrap_or(0);
        Ok(devices.into_iter().map(|device| DeviceInfo { tunnels: tunnels(&device.id), device }).collect())
    }

    /// Revokes a device; its tunnels close at once.
    pub async fn revoke(&self, id: &DeviceId, why: &str) -> Result<(), AdminError> {
        if self.enrolment.revoke(id, why).await? { Ok(()) } else { Err(AdminError::NoDevice(id.clone())) }
    }

    /// Checks the book of one tenant, or of all.
    pub async fn verify(&self, tenant: Option<TenantId>) -> Result<Vec<Verified>, AdminError> {
        let ids = match tenant {
            Some(id) => vec![self.tenant(&id).await?.id],
            None => self.tenants.all().await?.into_iter().map(|tenant| tenant.id).collect(),
        };
        let mut verified = Vec::new();
        for id in ids {
            let report = self.store.run(Db::Tenant(id.clone()), verify::verify).await?;
            verified.push(Verified { tenant: id, report });
        }
        Ok(verified)
    }

    /// Tells clients that the relay is being worked on, until then (milliseconds since 1970; 0:
    /// unknown), or no longer. Requests are served all the same.
    pub fn set_maintenance(&self, maintenance: Option<(u64, String)>) {
        *self.escalator.maintenance.lock().unwrap_or_else(PoisonError::into_inner) = maintenance;
    }

    /// The node at a glance.
    #[must_use]
    pub fn status(&self) -> Status {
        let tunnels = self.registry.list();
        let tunnels = tunnels.iter().map(|live| TunnelInfo {
            tenant: live.tenant.clone(),
            device: live.device.clone(),
            instance: live.instance.to_string(),
            path: live.path.to_string(),
            remote: live.remote,
            since_ms: live.since_ms,
            heartbeats: live.heartbeats.load(Ordering::Relaxed),
            round_trip_us: live.round_trip_us.load(Ordering::Relaxed),
            vitals: *live.vitals.lock().unwrap_or_else(PoisonError::into_inner),
            loaded_model: live.loaded_model.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        });
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            listen: self.local,
            tunnels: tunnels.collect(),
            open_tenants: self.tenants.open_count(),
            state: self.escalator.state(),
            running_requests: self.escalator.running(),
            waiting_answers: self.escalator.flights.waiting(),
            event_log_bytes: self.escalator.flights.log_bytes(),
            memory_bytes: self.escalator.memory.used(),
            authority: data_encoding::HEXLOWER.encode(&self.enrolment.fingerprint()),
        }
    }
}
