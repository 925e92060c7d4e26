//! Writing a user's part down: first in central, then in the tenant's own file.

use super::report::{Left, Report, Tally};
use super::sessions::{Conversation, device};
use super::target::Target;
use super::{Arriving, ImportError};
use crate::store::central::import::{Arrival, KeyArrival, arrive, arrive_key, arrived, revoke_others};
use crate::store::central::stripe;
use crate::store::executor::Db;
use crate::store::ledger::import::{ImportedUsage, opening, usage};
use crate::store::old::{API_KEYS, CHAT_SESSIONS, USAGE_RECORDS, USERS};
use crate::store::schema::{Kind, scratch};
use crate::store::sessions::find::messages;
use crate::store::sessions::{self, Change, Deed, act, add, find_one};
use crate::store::{Connection, StoreError};
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use std::collections::HashMap;

/// Writes. Clones write to the same.
#[derive(Debug, Clone)]
pub(super) struct Applier {
    pub(super) target: Target,
    pub(super) dry_run: bool,
}

/// How a command that is only tried ends: undone, with what it would have done.
enum Tried<T> {
    Done(T),
    Failed(StoreError),
}

impl<T> From<StoreError> for Tried<T> {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Applier {
    pub(super) fn new(target: Target, dry_run: bool) -> Self {
        Self { target, dry_run }
    }

    /// Runs a command, or tries what it would do.
    pub(super) async fn run<T, F>(&self, db: Db, mut command: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let there = self.target.state.as_ref().filter(|state| !self.dry_run || state.store.has(&db));
        match there {
            Some(state) if !self.dry_run => state.store.run(db, command).await,
            Some(state) => {
                let tried =
                    state.store.run(db, move |connection| Err::<(), _>(Tried::Done(command(connection)?))).await;
                match tried {
                    Err(Tried::Done(would)) => Ok(would),
                    Err(Tried::Failed(error)) => Err(error),
                    Ok(()) => Err(StoreError::Closed),
                }
            }
            None => {
                let kind = if db == Db::Central { Kind::Central } else { Kind::Tenant };
                command(&scratch(kind)?)
            }
        }
    }

    /// Who came before, and what they are called here.
    pub(super) async fn known(&self) -> Result<HashMap<String, TenantId>, StoreError> {
        self.run(Db::Central, arrived).await
    }

    /// Takes a user in, with all that was planned. What became of it; of one whose file refuses something, that it is
    /// left out from there on.
    pub(super) async fn arrive(&self, arriving: Arriving) -> Result<Report, ImportError> {
        let name = arriving.user.user.clone();
        match self.all(arriving).await {
            Err(ImportError::Store(StoreError::Failed { operation, why })) if !why.contains("full") => {
                let mut report = Report::default();
                report.users.add(Tally { found: 1, left_out: 1, ..Tally::default() });
                let why = format!("what is left of it could not be written: {operation}: {why}");
                report.leave(Left { table: USERS.name, user: name.clone(), id: name, why });
                Ok(report)
            }
            done => done,
        }
    }

    async fn all(&self, arriving: Arriving) -> Result<Report, ImportError> {
        let Arriving { user, customer, keys, are_all_keys, balance, usage, sessions, items, mut report, .. } = arriving;
        let (tenant, name, now_ms) = (user.tenant.clone(), user.user.clone(), self.target.now_ms);
        let ids: Vec<String> = keys.iter().map(|(key, _)| key.id.clone()).collect();
        let known = self
            .run(Db::Central, move |connection| {
                let arrival = arrive(connection, &user, now_ms)?;
                if arrival == Arrival::Taken {
                    return Ok((arrival, vec![], true));
                }
                let arrived = keys.iter().map(|(key, hash)| arrive_key(connection, key, *hash, now_ms));
                let arrived: Vec<KeyArrival> = arrived.collect::<Result<_, _>>()?;
                if are_all_keys {
                    let there = keys.iter().map(|(_, hash)| *hash).collect();
                    revoke_others(connection, &user.tenant, &there, now_ms)?;
                }
                let is_customer = match &customer {
                    None => true,
                    Some(customer) => {
                        let kept = stripe::set_customer(connection, &user.tenant, customer, now_ms)?;
                        kept.is_some_and(|kept| kept.customer == *customer)
                    }
                };
                Ok((arrival, arrived, is_customer))
            })
            .await?;
        let (arrival, arrived, is_customer) = known;
        match arrival {
            Arrival::New => report.users.new += 1,
            Arrival::Known => report.users.known += 1,
            Arrival::Taken => {
                let mut report = Report { notes: report.notes, ..Report::default() };
                report.users = Tally { found: 1, left_out: 1, ..Tally::default() };
                let why =
                    format!("there is a tenant {tenant} that did not come from here; choose other names with --prefix");
                report.leave(Left { table: USERS.name, user: name.clone(), id: name, why });
                return Ok(report);
            }
        }
        if !is_customer {
            let note = format!(
                "the customer at Stripe of the tenant {tenant} is another one, or another tenant's: it is left out"
            );
            report.notes.push(note);
        }
        for (id, arrived) in ids.into_iter().zip(arrived) {
            match arrived {
                KeyArrival::New => report.keys.new += 1,
                KeyArrival::Known => report.keys.known += 1,
                KeyArrival::Taken => {
                    report.keys.left_out += 1;
                    let why = "another tenant has the same key, or one of that id".into();
                    report.leave(Left { table: API_KEYS.name, user: name.clone(), id, why });
                }
            }
        }
        self.balance(&tenant, balance, &mut report).await?;
        self.sessions(&tenant, &name, sessions, &mut report).await?;
        self.items(&tenant, &name, items, &mut report).await?;
        self.usage(&tenant, usage, report).await
    }

    async fn balance(
        &self,
        tenant: &TenantId,
        balance: Option<NanoUsd>,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        let Some(balance) = balance else { return Ok(()) };
        let now_ms = self.target.now_ms;
        let moved =
            self.run(Db::Tenant(tenant.clone()), move |connection| opening(connection, balance, now_ms)).await?;
        report.balances_nano_usd += i128::from(balance.0);
        *(if moved { &mut report.balances.new } else { &mut report.balances.known }) += 1;
        Ok(())
    }

    /// Takes rows of usage in, and hands them on to central.
    pub(super) async fn usage(
        &self,
        tenant: &TenantId,
        rows: Vec<ImportedUsage>,
        mut report: Report,
    ) -> Result<Report, ImportError> {
        if rows.is_empty() {
            return Ok(report);
        }
        let count = rows.len() as u64;
        report.usage_nano_usd += rows.iter().map(|row| i128::from(row.totals.cost_nano)).sum::<i128>();
        let (new, other) = self.run(Db::Tenant(tenant.clone()), move |connection| usage(connection, &rows)).await?;
        report.usage.new += new;
        report.usage.known += count - new - other;
        report.usage.left_out += other;
        if other > 0 {
            let why = format!("{other} rows came before and said something else; they stay as they were");
            report.leave(Left { table: USAGE_RECORDS.name, user: tenant.to_string(), id: String::new(), why });
        }
        if let Some(state) = self.target.state.as_ref().filter(|_| !self.dry_run) {
            state.books.flush(tenant).await?;
        }
        Ok(report)
    }

    async fn sessions(
        &self,
        tenant: &TenantId,
        user: &str,
        all: Vec<Conversation>,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        if all.is_empty() {
            return Ok(());
        }
        let (limits, name) = ((self.target.sessions, self.target.now_ms), user.to_owned());
        let taken = self
            .run(Db::Tenant(tenant.clone()), move |connection| {
                let mut taken = Report::default();
                for one in &all {
                    take(connection, one, &name, limits, &mut taken)?;
                }
                Ok(taken)
            })
            .await?;
        report.add(taken);
        Ok(())
    }
}

/// Takes a conversation in, or what has come to it since.
fn take(
    connection: &Connection,
    one: &Conversation,
    user: &str,
    (most, now_ms): (u64, u64),
    report: &mut Report,
) -> Result<(), StoreError> {
    let leave = |why: &str, report: &mut Report| {
        report.leave(Left { table: CHAT_SESSIONS.name, user: user.into(), id: one.id.clone(), why: why.into() });
    };
    let count = one.messages.len() as u64;
    if one.is_gone {
        report.sessions.deleted += 1;
        report.messages.deleted += count;
        return delete(connection, one, now_ms);
    }
    let before = match find_one(connection, &one.name)? {
        // It was deleted here since, and stays so.
        Some(stored) if stored.deleted_ms.is_some() => {
            report.sessions.known += 1;
            report.messages.known += count;
            return Ok(());
        }
        Some(stored) => {
            report.sessions.known += 1;
            stored.messages
        }
        None => {
            if let Err(refusal) = sessions::update(connection, &one.name, &one.change, (most, one.created_ms))? {
                report.sessions.left_out += 1;
                report.messages.left_out += count;
                leave(&why(&refusal), report);
                return Ok(());
            }
            report.sessions.new += 1;
            0
        }
    };
    let mut refused = 0;
    for message in &one.messages {
        if let Err(refusal) = add(connection, &one.name, message, most)? {
            refused += 1;
            leave(&why(&refusal), report);
        }
    }
    let after = match find_one(connection, &one.name)? {
        Some(stored) => stored.messages,
        None => 0,
    };
    let new = after - before;
    report.messages.new += new;
    report.messages.left_out += refused;
    report.messages.known += count - new - refused;
    if new > 0 || before == 0 {
        // When something was last said, and not when it came over.
        let _ = sessions::update(connection, &one.name, &Change::default(), (most, one.updated_ms))?;
    }
    Ok(())
}

/// Deletes what was deleted there, unless something was said in it here. It can be restored, as always.
fn delete(connection: &Connection, one: &Conversation, now_ms: u64) -> Result<(), StoreError> {
    let Some(stored) = find_one(connection, &one.name)?.filter(|stored| stored.deleted_ms.is_none()) else {
        return Ok(());
    };
    let mut after = 0;
    loop {
        let page = messages(connection, stored.row, after)?;
        let Some(last) = page.last() else { break };
        if page.iter().any(|message| message.added.device != device()) {
            return Ok(());
        }
        after = last.number;
    }
    let _ = act(connection, &one.name, Deed::Delete, now_ms)?;
    Ok(())
}

fn why(refusal: &sessions::Refusal) -> String {
    match refusal {
        sessions::Refusal::Full => "the tenant's sessions have no room left: raise limits.sessions_mib".into(),
        sessions::Refusal::TooLarge(bytes) => format!("its context would have {bytes} bytes: too many"),
        sessions::Refusal::Conflict => "a message of that id says something else".into(),
        sessions::Refusal::Deleted | sessions::Refusal::NotFound => "it was deleted meanwhile".into(),
    }
}
