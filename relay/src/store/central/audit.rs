//! The audit log: who did what to access and money, in the order in which it was asked.
//!
//! An entry is written before what it tells of is done, in the same transaction where that is in central too: nothing that
//! was done is missing. One that is followed by nothing was refused, or its process died.

use crate::store::StoreError;
use crate::store::ledger::time;
use belay_protocol::id::TenantId;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// Entries of a page.
pub const PAGE: u32 = 1000;

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts from 1, without a gap.
    pub id: i64,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Who: `operator`, `device:NAME`, `key:ID`, `stripe` or `relay`.
    pub actor: String,
    /// What, such as `tenant.create`.
    pub action: String,
    /// Whom it concerns; empty: nobody in particular.
    pub tenant: String,
    /// A device, a key, an operation; may be empty.
    pub subject: String,
    /// What else there is to say; may be empty.
    pub detail: String,
}

/// What is to be noted.
#[derive(Debug, Clone)]
pub struct Deed {
    /// See [`Entry`].
    pub actor: String,
    /// See [`Entry`].
    pub action: &'static str,
    /// See [`Entry`].
    pub tenant: Option<TenantId>,
    /// See [`Entry`].
    pub subject: String,
    /// See [`Entry`].
    pub detail: String,
}

impl Deed {
    /// Something that an operator asks for.
    #[must_use]
    pub fn operator(action: &'static str, tenant: Option<&TenantId>) -> Self {
        Self::of("operator".into(), action, tenant)
    }

    /// Something that somebody else does.
    #[must_use]
    pub fn of(actor: String, action: &'static str, tenant: Option<&TenantId>) -> Self {
        Self { actor, action, tenant: tenant.cloned(), subject: String::new(), detail: String::new() }
    }

    /// To whom or what.
    #[must_use]
    pub fn on(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }

    /// With what words.
    #[must_use]
    pub fn with(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

/// Notes a deed.
pub fn note(connection: &Connection, deed: &Deed, now_ms: u64) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            // Of a device or a key it is known whose it is.
            "INSERT INTO audit (at_ms, actor, action, tenant, subject, detail)
             VALUES (?1, ?2, ?3, coalesce(?4, (SELECT tenant FROM device WHERE id = ?5),
                     (SELECT tenant FROM api_key WHERE id = ?5), ''), ?5, ?6)",
        )?
        .execute(params![
            time(now_ms),
            deed.actor,
            deed.action,
            deed.tenant.as_ref().map(TenantId::as_str),
            deed.subject,
            deed.detail
        ])?;
    Ok(())
}

/// The same, unless it was noted before under that name.
pub fn note_once(connection: &Connection, deed: &Deed, now_ms: u64) -> Result<(), StoreError> {
    let known = connection
        .prepare_cached("SELECT 1 FROM audit WHERE subject = ?1 AND action = ?2 AND actor = ?3")?
        .exists(params![deed.subject, deed.action, deed.actor])?;
    if known { Ok(()) } else { note(connection, deed, now_ms) }
}

/// When something was last done, milliseconds since 1970.
pub fn last(connection: &Connection, action: &str) -> Result<Option<u64>, StoreError> {
    let sql = "SELECT max(at_ms) FROM audit WHERE action = ?1";
    let at_ms: Option<i64> = connection.query_row(sql, [action], |row| row.get(0))?;
    Ok(at_ms.and_then(|at_ms| u64::try_from(at_ms).ok()))
}

/// The first [`PAGE`] entries after `after`, between two times (milliseconds since 1970), of one tenant or of all.
pub fn page(
    connection: &Connection,
    after: i64,
    tenant: Option<&TenantId>,
    (from_ms, until_ms): (u64, u64),
) -> Result<Vec<Entry>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, at_ms, actor, action, tenant, subject, detail FROM audit
         WHERE id > ?1 AND (?2 IS NULL OR tenant = ?2) AND at_ms >= ?3 AND at_ms < ?4 ORDER BY id LIMIT ?5",
    )?;
    let bounds = params![after, tenant.map(TenantId::as_str), time(from_ms), time(until_ms), PAGE];
    let rows = statement.query_map(bounds, |row| {
        Ok(Entry {
            id: row.get(0)?,
            at_ms: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
            actor: row.get(2)?,
            action: row.get(3)?,
            tenant: row.get(4)?,
            subject: row.get(5)?,
            detail: row.get(6)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
