//! What an operator can do to a running relay.

pub use super::info::{DeviceInfo, InviteInfo, Status, TenantInfo, TunnelInfo, Verified};
use crate::api_keys::ApiKeys;
use crate::authority::Keeper;
use crate::config::Config;
use crate::enrolment::Enrolment;
use crate::escalate::Escalator;
use crate::http::callers::device_of_key;
use crate::registry::Registry;
use crate::reload::Reloader;
use crate::secrets::KeySealer;
use crate::store::StoreError;
use crate::store::books::{Books, Days};
use crate::store::central;
use crate::store::central::audit::{Deed, note};
use crate::store::central::usage::{CentralGroup, CentralGrouping};
use crate::store::executor::{Db, Store};
use crate::store::ledger::money::Operation;
use crate::store::ledger::outbox::Pending;
use crate::store::ledger::standing::{Summary, Terms, Tier};
use crate::store::ledger::statement::Line;
use crate::store::ledger::usage::{Group, Grouping};
use crate::sync::Sync;
use crate::tenants::Tenants;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::money::NanoUsd;
use belay_transport::env::{Env, Random};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use thiserror::Error;

/// The longest note or name of an operation, in bytes.
const MAX_NOTE: usize = 1000;

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
    /// No such API key.
    #[error("there is no API key {0}; see: belayd key list")]
    NoKey(String),
    /// What was asked makes no sense; why.
    #[error("{0}")]
    Invalid(String),
    /// The configuration that is written cannot be put in force.
    #[error("nothing has changed; {0}")]
    Config(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A change of a tenant's terms; what is not named stays.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct TermsChange {
    /// What it pays with.
    pub tier: Option<Tier>,
    /// How far below zero its balance may go, in nano-USD.
    pub ceiling: Option<NanoUsd>,
    /// Suspend it when it comes to its ceiling.
    pub suspend_at_ceiling: Option<bool>,
}

impl TermsChange {
    /// What changes, for people.
    fn words(self) -> String {
        let tier = self.tier.map(|tier| format!("tier {tier}"));
        let ceiling = self.ceiling.map(|ceiling| format!("ceiling {ceiling}"));
        let suspend = self.suspend_at_ceiling.map(|suspend| format!("suspend at ceiling {suspend}"));
        tier.into_iter().chain(ceiling).chain(suspend).collect::<Vec<_>>().join(", ")
    }

    fn apply(self, terms: &mut Terms) {
        terms.tier = self.tier.unwrap_or(terms.tier);
        terms.ceiling = self.ceiling.unwrap_or(terms.ceiling);
        terms.suspend_at_ceiling = self.suspend_at_ceiling.unwrap_or(terms.suspend_at_ceiling);
    }
}

/// An operation under a name that was another one's is the operator's mistake.
fn moved<T>(result: Result<T, StoreError>) -> Result<T, AdminError> {
    result.map_err(|error| match error {
        StoreError::Failed { operation: "move money", why } => AdminError::Invalid(why),
        error => error.into(),
    })
}

/// Everything an operator can do.
#[derive(Debug)]
pub struct AdminService {
    pub(super) local: SocketAddr,
    pub(super) http: Option<SocketAddr>,
    pub(super) store: Store,
    pub(super) tenants: Arc<Tenants>,
    pub(super) escalator: Arc<Escalator>,
    pub(super) enrolment: Arc<Enrolment>,
    pub(super) registry: Arc<Registry>,
    pub(super) reloader: Arc<Reloader>,
    pub(super) keeper: Keeper,
    pub(super) sync: Sync,
    api_keys: ApiKeys,
    pub(super) env: Env,
}

impl AdminService {
    pub(crate) fn new(
        (local, http): (SocketAddr, Option<SocketAddr>),
        escalator: Arc<Escalator>,
        (enrolment, registry): (Arc<Enrolment>, Arc<Registry>),
        (reloader, keeper, sync): (Arc<Reloader>, Keeper, Sync),
    ) -> Self {
        Self {
            local,
            http,
            store: escalator.store.clone(),
            tenants: Arc::clone(&escalator.tenants),
            env: escalator.env.clone(),
            api_keys: ApiKeys::new(escalator.store.clone(), escalator.env.clone()),
            escalator,
            enrolment,
            registry,
            reloader,
            keeper,
            sync,
        }
    }

    pub(super) fn config(&self) -> Arc<Config> {
        self.escalator.config()
    }

    pub(super) async fn tenant_ids(&self) -> Result<Vec<TenantId>, AdminError> {
        Ok(self.tenants.all().await?.into_iter().map(|tenant| tenant.id).collect())
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.env.clock.now_ms()
    }

    pub(super) fn open_tenants(&self) -> &Tenants {
        &self.tenants
    }

    pub(super) fn books(&self) -> &Books {
        self.tenants.books()
    }

    pub(super) fn sealer(&self) -> &KeySealer {
        &self.escalator.sealer
    }

    pub(super) fn random(&self) -> &Random {
        &self.env.random
    }

    /// The API keys of the relay.
    #[must_use]
    pub fn api_keys(&self) -> &ApiKeys {
        &self.api_keys
    }

    /// Ends what runs under an API key, whether its caller is there or not.
    pub(super) fn cut_off_key(&self, id: &str) {
        self.registry.callers().close_key(id);
        if let Some(device) = device_of_key(id) {
            self.escalator.flights.revoke_device(&device);
        }
    }

    /// Creates a tenant.
    pub async fn create_tenant(&self, id: TenantId) -> Result<TenantInfo, AdminError> {
        let (name, now_ms) = (id.clone(), self.env.clock.now_ms());
        let deed = Deed::operator("tenant.create", Some(&id));
        let made = self.store.run(Db::Central, move |connection| {
            note(connection, &deed, now_ms)?;
            central::create_tenant(connection, &name, now_ms)
        });
        let made = made.await?;
        if !made {
            return Err(AdminError::TenantExists(id));
        }
        self.tenant(&id).await
    }

    /// All tenants by name.
    pub async fn tenants(&self) -> Result<Vec<TenantInfo>, AdminError> {
        let mut infos = Vec::new();
        for tenant in self.tenants.all().await? {
            let summary = self.tenants.books().summary(&tenant.id).await;
            // One that is lost or damaged hides none of the others.
            infos.push(info(tenant, summary));
        }
        Ok(infos)
    }

    pub(super) async fn tenant(&self, id: &TenantId) -> Result<TenantInfo, AdminError> {
        let name = id.clone();
        match self.store.run(Db::Central, move |connection| central::tenant(connection, &name)).await? {
            Some(tenant) => {
                let summary = self.tenants.books().summary(&tenant.id).await?;
                Ok(info(tenant, Ok(summary)))
            }
            None => Err(AdminError::NoTenant(id.clone())),
        }
    }

    /// Moves a tenant's money. `operation` makes a retry harmless; without one, each call is a new one.
    pub async fn operate(
        &self,
        id: &TenantId,
        what: Operation,
        amount: NanoUsd,
        operation: Option<String>,
        note: Option<String>,
    ) -> Result<TenantInfo, AdminError> {
        Self::check_entry(amount, [operation.as_ref(), note.as_ref()])?;
        self.tenant(id).await?;
        // What was paid is given back all the same.
        if matches!(what, Operation::Credit) {
            self.not_erased(id).await?;
        }
        let operation = self.operation(operation);
        let (action, words) = match what {
            Operation::Credit => ("money.credit", amount.to_string()),
            Operation::Refund => ("money.refund", amount.to_string()),
            Operation::Chargeback => ("money.chargeback", amount.to_string()),
        };
        self.asked(Deed::operator(action, Some(id)).on(&operation).with(words)).await?;
        moved(self.tenants.books().operate(id, what, amount, (operation, note)).await)?;
        self.tenant(id).await
    }

    /// Grants a tenant credits that end at `expires_ms` (milliseconds since 1970).
    pub async fn grant(
        &self,
        id: &TenantId,
        amount: NanoUsd,
        expires_ms: u64,
        operation: Option<String>,
        note: Option<String>,
    ) -> Result<TenantInfo, AdminError> {
        Self::check_entry(amount, [operation.as_ref(), note.as_ref()])?;
        if expires_ms <= self.env.clock.now_ms() {
            return Err(AdminError::Invalid("credits must not have expired already".into()));
        }
        self.tenant(id).await?;
        self.not_erased(id).await?;
        let operation = self.operation(operation);
        self.asked(Deed::operator("money.grant", Some(id)).on(&operation).with(amount.to_string())).await?;
        moved(self.tenants.books().grant(id, amount, expires_ms, (operation, note)).await)?;
        self.tenant(id).await
    }

    /// An entry must fit into a frame of a statement.
    fn check_entry(amount: NanoUsd, texts: [Option<&String>; 2]) -> Result<(), AdminError> {
        if texts.into_iter().flatten().any(|text| text.len() > MAX_NOTE) {
            return Err(AdminError::Invalid(format!("a note or a name must not be longer than {MAX_NOTE} bytes")));
        }
        if amount > NanoUsd::ZERO {
            return Ok(());
        }
        Err(AdminError::Invalid(format!("the amount must be above zero, not {amount}")))
    }

    fn operation(&self, named: Option<String>) -> String {
        named.unwrap_or_else(|| {
            let random: [u8; 16] = self.env.random.bytes();
            format!("operator-{:032x}", u128::from_be_bytes(random))
        })
    }

    /// Changes what a tenant pays with, and how far.
    pub async fn change_terms(&self, id: &TenantId, change: TermsChange) -> Result<TenantInfo, AdminError> {
        if change.ceiling.is_some_and(|ceiling| ceiling.is_negative()) {
            return Err(AdminError::Invalid("a ceiling must not be below zero".into()));
        }
        self.not_erased(id).await?;
        self.asked(Deed::operator("tenant.terms", Some(id)).with(change.words())).await?;
        let changed = self.tenants.books().change_terms(id, move |terms| change.apply(terms)).await?;
        if changed.is_none() {
            return Err(AdminError::NoTenant(id.clone()));
        }
        self.tenant(id).await
    }

    /// A tenant's usage in some days, from its own book.
    pub async fn usage(&self, id: &TenantId, days: Days, by: Grouping) -> Result<Vec<Group>, AdminError> {
        self.tenant(id).await?;
        Ok(self.tenants.books().usage(id, days, by).await?)
    }

    /// A page of a tenant's transfers; see [`Books::entries`](crate::store::books::Books::entries).
    pub async fn entries(&self, id: &TenantId, days: Days, after: i64) -> Result<Vec<Line>, AdminError> {
        self.tenant(id).await?;
        Ok(self.tenants.books().entries(id, days, after).await?)
    }

    /// Hands a tenant's usage over to central now.
    pub async fn flush(&self, id: &TenantId) -> Result<Pending, AdminError> {
        self.tenant(id).await?;
        Ok(self.tenants.flush_one(id).await?)
    }

    /// Usage of all tenants, or of one, as far as it has been handed over.
    pub async fn central_usage(
        &self,
        tenant: Option<TenantId>,
        days: Days,
        by: CentralGrouping,
    ) -> Result<Vec<CentralGroup>, AdminError> {
        if let Some(id) = &tenant {
            self.tenant(id).await?;
        }
        Ok(self.tenants.books().central_usage(tenant, days, by).await?)
    }

    /// Suspends a tenant, or lets it go on. Its tunnels close and its requests end at once.
    pub async fn suspend(&self, id: &TenantId, suspended: bool) -> Result<TenantInfo, AdminError> {
        if !suspended {
            self.not_erased(id).await?;
        }
        let action = if suspended { "tenant.suspend" } else { "tenant.resume" };
        self.asked(Deed::operator(action, Some(id))).await?;
        if !self.escalator.suspend(id, suspended).await? {
            return Err(AdminError::NoTenant(id.clone()));
        }
        self.tenant(id).await
    }

    /// Checks the book of one tenant, or of all.
    pub async fn verify(&self, tenant: Option<TenantId>) -> Result<Vec<Verified>, AdminError> {
        let ids = match tenant {
            Some(id) => vec![self.tenant(&id).await?.id],
            None => self.tenant_ids().await?,
        };
        let mut verified = Vec::new();
        for id in ids {
            let report = self.tenants.books().verify(&id).await?;
            verified.push(Verified { tenant: id, report });
        }
        Ok(verified)
    }

    /// Tells clients that the relay is being worked on, until then (milliseconds since 1970; 0:
    /// unknown), or no longer. Requests are served all the same.
    pub fn set_maintenance(&self, maintenance: Option<(u64, String)>) {
        *self.escalator.maintenance.lock().unwrap_or_else(PoisonError::into_inner) = maintenance;
    }
}

/// A tenant as central knows it, and what its book says.
fn info(tenant: central::Tenant, summary: Result<Summary, StoreError>) -> TenantInfo {
    let (summary, problem) = match summary {
        Ok(summary) => (Some(summary), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let figure = |of: fn(&Summary) -> NanoUsd| summary.as_ref().map_or(0, |summary| of(summary).0);
    TenantInfo {
        id: tenant.id,
        label: tenant.label,
        terms: tenant.terms,
        balance_nano_usd: figure(|summary| summary.balance),
        credits_nano_usd: figure(|summary| summary.credits),
        held_nano_usd: figure(|summary| summary.held),
        charged_nano_usd: figure(|summary| summary.charged),
        open_holds: summary.as_ref().map_or(0, |summary| summary.open_holds),
        created_ms: tenant.created_ms,
        problem,
    }
}
