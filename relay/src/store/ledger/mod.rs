//! A tenant's book: double entry, append only.
//!
//! Every movement of money is a transfer from one account to another, so the sum of all entries is
//! zero by construction; [`verify`](mod@verify) checks it all the same. Account balances are kept
//! beside the transfers in the same transaction. What a transaction decides on it reads in that
//! transaction.
//!
//! A request's life: [`hold`](mod@hold) moves the most it can cost from `tenant:prepaid` to
//! `tenant:held`; [`settle`](mod@settle) turns that into the charge and gives the rest back;
//! `void` gives all of it back. [`recover`](mod@recover) resolves the holds of a dead process.

pub mod find;
pub mod hold;
pub mod recover;
pub mod settle;
#[cfg(test)]
mod tests;
pub mod verify;

use super::StoreError;
use belay_protocol::id::RequestId;
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension, params};

/// The accounts of a tenant's book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum Account {
    /// Where credited money comes from; negative by what was ever credited.
    Funding = 1,
    /// What the tenant can spend.
    Prepaid = 2,
    /// What is set aside for running requests.
    Held = 3,
    /// What was charged.
    Revenue = 4,
    /// Where usage above a hold that nobody could pay comes from.
    Absorbed = 5,
}

/// Why money moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum TransferKind {
    /// The operator credited the tenant.
    Credit = 1,
    /// Money was set aside.
    Hold = 2,
    /// Held money became a charge.
    Settle = 3,
    /// The rest of a hold was given back.
    Release = 4,
    /// A whole hold was given back.
    Void = 5,
    /// Usage above the hold, paid from the balance.
    Excess = 6,
    /// Usage above the hold that the relay bears.
    Absorb = 7,
}

/// Which process made a hold: the machine's boot and the process's own random number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Changes when the machine starts anew.
    pub machine: String,
    /// Changes when the process starts anew.
    pub process: String,
}

impl Boot {
    /// This machine's boot, and `process`.
    #[must_use]
    pub fn current(process: [u8; 8]) -> Self {
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { machine: machine.trim().to_owned(), process: format!("{:016x}", u64::from_be_bytes(process)) }
    }

    /// The text that stands in the book.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{}/{}", self.machine, self.process)
    }

    fn is_same_machine_boot(&self, text: &str) -> bool {
        !self.machine.is_empty() && text.split('/').next() == Some(self.machine.as_str())
    }
}

/// The state column of a request.
pub(crate) mod state {
    pub(crate) const OPEN: i64 = 0;
    pub(crate) const SETTLED: i64 = 1;
    pub(crate) const VOIDED: i64 = 2;
}

/// One movement of money.
pub(crate) struct Transfer<'a> {
    pub(crate) at_ms: u64,
    pub(crate) kind: TransferKind,
    pub(crate) from: Account,
    pub(crate) to: Account,
    pub(crate) amount: NanoUsd,
    pub(crate) request_id: Option<RequestId>,
    pub(crate) operation_id: Option<&'a str>,
    pub(crate) note: Option<&'a str>,
}

impl<'a> Transfer<'a> {
    pub(crate) fn of_request(at_ms: u64, kind: TransferKind, request_id: RequestId) -> Self {
        let (from, to) = match kind {
            TransferKind::Hold => (Account::Prepaid, Account::Held),
            TransferKind::Settle => (Account::Held, Account::Revenue),
            TransferKind::Release | TransferKind::Void => (Account::Held, Account::Prepaid),
            TransferKind::Excess => (Account::Prepaid, Account::Revenue),
            TransferKind::Absorb => (Account::Absorbed, Account::Revenue),
            TransferKind::Credit => (Account::Funding, Account::Prepaid),
        };
        let amount = NanoUsd::ZERO;
        Self { at_ms, kind, from, to, amount, request_id: Some(request_id), operation_id: None, note: None }
    }

    pub(crate) fn amount(mut self, amount: NanoUsd) -> Self {
        self.amount = amount;
        self
    }

    /// Writes the transfer and both balances; nothing for an amount of zero.
    pub(crate) fn post(&self, connection: &Connection) -> Result<(), StoreError> {
        if self.amount == NanoUsd::ZERO {
            return Ok(());
        }
        if self.amount.is_negative() {
            return Err(StoreError::Corrupt { what: "a transfer", why: format!("negative amount {:?}", self.amount) });
        }
        connection
            .prepare_cached(
                "INSERT INTO transfer (at_ms, kind, from_account, to_account, amount_nano, request_id, operation_id, note)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                time(self.at_ms),
                self.kind as i64,
                self.from as i64,
                self.to as i64,
                self.amount.0,
                self.request_id.map(|id| id.0),
                self.operation_id,
                self.note,
            ])?;
        connection
            .prepare_cached(
                "UPDATE account SET balance_nano = balance_nano + iif(id = ?2, ?3, -?3) WHERE id IN (?1, ?2)",
            )?
            .execute(params![self.from as i64, self.to as i64, self.amount.0])?;
        Ok(())
    }
}

/// What an account holds now.
pub(crate) fn balance(connection: &Connection, account: Account) -> Result<NanoUsd, StoreError> {
    let nano = connection
        .prepare_cached("SELECT balance_nano FROM account WHERE id = ?1")?
        .query_row([account as i64], |row| row.get(0))?;
    Ok(NanoUsd(nano))
}

/// Times are stored as signed integers.
pub(crate) fn time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// Credits the tenant. `operation_id` makes a retry harmless: the second one changes nothing.
/// Returns the balance. Errors: `Corrupt` for an amount that is not positive.
pub fn credit(
    connection: &Connection,
    amount: NanoUsd,
    operation_id: &str,
    note: Option<&str>,
    now_ms: u64,
) -> Result<NanoUsd, StoreError> {
    let known: Option<i64> = connection
        .query_row("SELECT amount_nano FROM transfer WHERE operation_id = ?1", [operation_id], |row| row.get(0))
        .optional()?;
    match known {
        Some(nano) if nano == amount.0 => {}
        Some(nano) => {
            let why = format!("operation {operation_id:?} has credited {} before, not {amount}", NanoUsd(nano));
            return Err(StoreError::Failed { operation: "credit", why });
        }
        None => Transfer {
            at_ms: now_ms,
            kind: TransferKind::Credit,
            from: Account::Funding,
            to: Account::Prepaid,
            amount,
            request_id: None,
            operation_id: Some(operation_id),
            note,
        }
        .post(connection)?,
    }
    balance(connection, Account::Prepaid)
}

/// What a tenant has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Can be spent.
    pub balance: NanoUsd,
    /// Is set aside.
    pub held: NanoUsd,
    /// Requests that hold it.
    pub open_holds: u32,
    /// Was charged since the book began.
    pub charged: NanoUsd,
}

/// Reads the tenant's standing.
pub fn summary(connection: &Connection) -> Result<Summary, StoreError> {
    Ok(Summary {
        balance: balance(connection, Account::Prepaid)?,
        held: balance(connection, Account::Held)?,
        open_holds: connection.query_row("SELECT count(*) FROM request WHERE state = 0", [], |row| row.get(0))?,
        charged: balance(connection, Account::Revenue)? + balance(connection, Account::Absorbed)?,
    })
}

/// Suspends the tenant in its own file, where the hold reads it.
pub fn set_suspended(connection: &Connection, suspended: bool) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO meta (key, value) VALUES ('suspended', ?1) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [if suspended { "1" } else { "0" }],
    )?;
    Ok(())
}
