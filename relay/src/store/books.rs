//! What can be done with the books of tenants: the operator's commands and the billing streams come
//! here. Each operation is one transaction in the tenant's own file; what concerns central too says
//! which of the two is first.

use super::StoreError;
use super::central::{
    self,
    usage::{CentralGroup, CentralGrouping},
};
use super::executor::{Db, Store};
use crate::secrets::MasterKey;
use crate::store::ledger::budget::{self, Budget, Measure, Scope};
use crate::store::ledger::correct::{self, Corrected, Estimated};
use crate::store::ledger::money::{Operation, operate};
use crate::store::ledger::outbox::{self, Pending};
use crate::store::ledger::provider_keys::{self, KeyInfo, SealedKey};
use crate::store::ledger::seal::{SealKey, seal};
use crate::store::ledger::standing::{Summary, Terms, set_terms, summary};
use crate::store::ledger::usage::{self, Group, Grouping, Totals};
use crate::store::ledger::verify::{Report, verify};
use crate::store::ledger::{credits, hold, restored, statement};
use belay_protocol::calendar;
use belay_protocol::id::{RequestId, TenantId};
use belay_protocol::message::UsageLine;
use belay_protocol::money::NanoUsd;
use belay_transport::env::Clock;
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::sync::Mutex;
use tracing::warn;

/// Rows that are handed to central in one transaction.
const BATCH: u32 = 500;

/// The purpose of the key that checkpoints are made with.
pub const SEAL: &str = "ledger checkpoints";

/// The books of all tenants.
#[derive(Debug, Clone)]
pub struct Books {
    store: Store,
    clock: Arc<dyn Clock>,
    seal: SealKey,
    /// In nano-USD.
    allowance: Arc<AtomicI64>,
    /// Held while rows are in two places.
    flushing: Arc<Mutex<()>>,
}

/// When a day begins, milliseconds since 1970.
fn border(day: i64) -> i64 {
    i64::try_from(calendar::day_start_ms(day)).unwrap_or(i64::MAX)
}

/// A span of days, from the first up to, not including, the last (days since 1970).
pub type Days = (i64, i64);

impl Books {
    /// `allowance` is what the free tier has in a month.
    #[must_use]
    pub fn new(store: Store, clock: Arc<dyn Clock>, master: &MasterKey, allowance: NanoUsd) -> Self {
        let allowance = Arc::new(AtomicI64::new(allowance.0));
        Self { store, clock, seal: SealKey::new(&master.derive(SEAL)), allowance, flushing: Arc::default() }
    }

    /// Another allowance, from the next month that is granted.
    pub fn set_allowance(&self, allowance: NanoUsd) {
        self.allowance.store(allowance.0, Ordering::Relaxed);
    }

    async fn run<T, F>(&self, tenant: &TenantId, command: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.store.run(Db::Tenant(tenant.clone()), command).await
    }

    /// What the tenant has, with this month's allowance and without what has expired.
    pub async fn summary(&self, tenant: &TenantId) -> Result<Summary, StoreError> {
        let (now_ms, allowance) = (self.clock.now_ms(), NanoUsd(self.allowance.load(Ordering::Relaxed)));
        self.run(tenant, move |connection| {
            hold::refresh(connection, allowance, now_ms)?;
            summary(connection)
        })
        .await
    }

    /// Gives a tenant a key of its own for a provider, or takes it away. False if there was none to take.
    pub async fn set_provider_key(
        &self,
        tenant: &TenantId,
        provider: String,
        key: Option<SealedKey>,
    ) -> Result<bool, StoreError> {
        let now_ms = self.clock.now_ms();
        self.run(tenant, move |connection| match &key {
            Some(key) => provider_keys::set(connection, &provider, key, now_ms).map(|()| true),
            None => provider_keys::remove(connection, &provider),
        })
        .await
    }

    /// For which providers a tenant has keys of its own.
    pub async fn provider_keys(&self, tenant: &TenantId) -> Result<Vec<KeyInfo>, StoreError> {
        self.run(tenant, provider_keys::list).await
    }

    /// Moves the tenant's money. `operation` makes a retry harmless.
    pub async fn operate(
        &self,
        tenant: &TenantId,
        what: Operation,
        amount: NanoUsd,
        (operation, note): (String, Option<String>),
    ) -> Result<NanoUsd, StoreError> {
        let now_ms = self.clock.now_ms();
        self.run(tenant, move |connection| operate(connection, what, amount, &operation, note.as_deref(), now_ms)).await
    }

    /// Grants credits that end at `expires_ms`. `operation` makes a retry harmless.
    pub async fn grant(
        &self,
        tenant: &TenantId,
        amount: NanoUsd,
        expires_ms: u64,
        (operation, note): (String, Option<String>),
    ) -> Result<(), StoreError> {
        let now_ms = self.clock.now_ms();
        self.run(tenant, move |connection| {
            credits::grant(connection, amount, &operation, note.as_deref(), expires_ms, now_ms)
        })
        .await
    }

    /// Changes a tenant's terms: in central, and then in its own file. `None`: there is no such tenant.
    /// Should the relay stop in between, the file is told when it is opened.
    pub async fn change_terms(
        &self,
        tenant: &TenantId,
        change: impl Fn(&mut Terms) + Send + 'static,
    ) -> Result<Option<Terms>, StoreError> {
        let id = tenant.clone();
        let changed =
            self.store.run(Db::Central, move |connection| central::change_terms(connection, &id, &change)).await?;
        let Some(changed) = changed else { return Ok(None) };
        let (terms, version) = (changed.terms, changed.version);
        self.run(tenant, move |connection| set_terms(connection, &terms, version)).await?;
        Ok(Some(terms))
    }

    /// Tells the tenant's file what central says. Called when it is opened.
    pub async fn bring_terms(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let id = tenant.clone();
        let known = self.store.run(Db::Central, move |connection| central::tenant(connection, &id)).await?;
        let Some(known) = known else { return Ok(()) };
        self.run(tenant, move |connection| set_terms(connection, &known.terms, known.version)).await
    }

    /// Sets a budget, or takes it away.
    pub async fn set_budget(
        &self,
        tenant: &TenantId,
        scope: Scope,
        measure: Measure,
        amount: Option<i64>,
    ) -> Result<(), StoreError> {
        self.run(tenant, move |connection| budget::set(connection, &scope, measure, amount)).await
    }

    /// All budgets of a tenant.
    pub async fn budgets(&self, tenant: &TenantId) -> Result<Vec<Budget>, StoreError> {
        self.run(tenant, budget::all).await
    }

    /// Usage in some days.
    pub async fn usage(&self, tenant: &TenantId, days: Days, by: Grouping) -> Result<Vec<Group>, StoreError> {
        self.run(tenant, move |connection| usage::report(connection, days.0, days.1, by)).await
    }

    /// Charges by estimate of some days that nobody has corrected.
    pub async fn estimated(&self, tenant: &TenantId, days: Days) -> Result<Vec<Estimated>, StoreError> {
        self.run(tenant, move |connection| correct::estimated(connection, border(days.0), border(days.1))).await
    }

    /// Corrects a charge by estimate; see [`correct::correct`].
    pub async fn correct(
        &self,
        tenant: &TenantId,
        request_id: RequestId,
        usage: Vec<UsageLine>,
    ) -> Result<Option<Corrected>, StoreError> {
        let now_ms = self.clock.now_ms();
        self.run(tenant, move |connection| correct::correct(connection, request_id, &usage, now_ms)).await
    }

    /// What a provider was used for in some days, by day and model.
    pub async fn usage_of_provider(
        &self,
        tenant: &TenantId,
        provider: &str,
        days: Days,
    ) -> Result<Vec<(i64, String, Totals)>, StoreError> {
        let provider = provider.to_owned();
        self.run(tenant, move |connection| usage::of_provider(connection, &provider, days.0, days.1)).await
    }

    /// Usage of all tenants, or of one, as far as it has been handed over.
    pub async fn central_usage(
        &self,
        tenant: Option<TenantId>,
        days: Days,
        by: CentralGrouping,
    ) -> Result<Vec<CentralGroup>, StoreError> {
        let report = move |connection: &Connection| central::usage::report(connection, tenant.as_ref(), days, by);
        self.store.run(Db::Central, report).await
    }

    /// A page of the transfers of some days: those above `after`. Empty: there are no more.
    pub async fn entries(&self, tenant: &TenantId, days: Days, after: i64) -> Result<Vec<statement::Line>, StoreError> {
        self.run(tenant, move |connection| {
            let first = statement::last_before(connection, border(days.0))?;
            let last = statement::last_before(connection, border(days.1))?;
            statement::page(connection, after.max(first), last)
        })
        .await
    }

    /// Hands the tenant's usage over to central, makes the checkpoints that are due, and says what waits
    /// still: what came meanwhile.
    pub async fn flush(&self, tenant: &TenantId) -> Result<Pending, StoreError> {
        let _flushing = self.flushing.lock().await;
        loop {
            let batch = self.run(tenant, |connection| outbox::batch(connection, BATCH)).await?;
            let Some(last) = batch.rows.last().map(|row| row.number) else { break };
            let (epoch, id) = (batch.epoch, tenant.clone());
            let is_last = batch.rows.len() < BATCH as usize;
            let take = move |connection: &Connection| central::usage::take(connection, &id, &batch);
            if let Some(differs) = self.store.run(Db::Central, take).await? {
                warn!(%tenant, epoch, "central has other usage under these numbers: the book is a copy, and begins anew");
                self.run(tenant, move |connection| {
                    // Those before it are the same rows.
                    outbox::confirm(connection, epoch, differs - 1)?;
                    outbox::begin_epoch(connection)
                })
                .await?;
                continue;
            }
            // Only now: central has them for good.
            self.run(tenant, move |connection| outbox::confirm(connection, epoch, last)).await?;
            if is_last {
                break;
            }
        }
        let (id, key) = (tenant.clone(), self.seal.clone());
        let sealed = self.run(tenant, move |connection| seal(connection, &id, &key)).await?;
        let id = tenant.clone();
        self.store.run(Db::Central, move |connection| central::usage::set_sealed(connection, &id, sealed)).await?;
        self.run(tenant, outbox::pending).await
    }

    /// Checks the tenant's book against itself, and what central has of it.
    pub async fn verify(&self, tenant: &TenantId) -> Result<Report, StoreError> {
        let (id, key) = (tenant.clone(), self.seal.clone());
        let of = tenant.clone();
        let sealed = self.store.run(Db::Central, move |connection| central::usage::sealed(connection, &of)).await?;
        // The whole of a large book takes longer than anybody's settlement may wait.
        let look = move |connection: &Connection| verify(connection, Some((&id, &key)), sealed);
        let mut report = self.store.go_through(tenant, look).await?;
        let _flushing = self.flushing.lock().await;
        let (id, epoch) = (tenant.clone(), self.run(tenant, outbox::epoch).await?);
        let handed = self.store.run(Db::Central, move |connection| {
            let newest = central::usage::newest(connection, &id, epoch)?;
            Ok::<_, StoreError>((central::usage::total(connection, &id)?, newest))
        });
        let (mut handed, newest) = handed.await?;
        // What is settled meanwhile is in both. What central has, and a killed process had not noted, waits no more.
        let sums = move |connection: &Connection| {
            Ok((usage::all_time(connection)?, outbox::totals(connection, newest)?, restored::total(connection)?))
        };
        let (mut own, waiting, restored) = self.run(tenant, sums).await?;
        own.add(&restored);
        handed.add(&waiting);
        if handed != own {
            report.problems.push(format!(
                "central has {} nano-USD of usage with what waits for it, the book {}",
                handed.cost_nano, own.cost_nano
            ));
        }
        let id = tenant.clone();
        if !self.store.run(Db::Central, move |connection| central::usage::adds_up(connection, &id)).await? {
            report.problems.push("central's sums of usage are not those of its rows".into());
        }
        Ok(report)
    }
}
