//! Money that comes and goes by the operator's hand, or by a payment: never on a caller's word.

use super::chain::{Chain, Transfer};
use super::{Account, TransferKind, balance};
use crate::store::StoreError;
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

/// Why the operator moves money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// The tenant has paid, or is given something.
    Credit,
    /// A payment is given back.
    Refund,
    /// A payment was taken back by its payer.
    Chargeback,
}

/// Moves money in or out. `operation_id` makes a retry harmless: the second one changes nothing. A
/// refund and a chargeback may take the balance below its floor; nothing else can. Returns the balance.
///
/// Errors: `Failed` if the same name has moved another amount; `Corrupt` for one that is not positive.
pub fn operate(
    connection: &Connection,
    operation: Operation,
    amount: NanoUsd,
    operation_id: &str,
    note: Option<&str>,
    now_ms: u64,
) -> Result<NanoUsd, StoreError> {
    let (kind, from, to) = match operation {
        Operation::Credit => (TransferKind::Credit, Account::Funding, Account::Prepaid),
        Operation::Refund => (TransferKind::Refund, Account::Prepaid, Account::Funding),
        Operation::Chargeback => (TransferKind::Chargeback, Account::Prepaid, Account::Funding),
    };
    if !done_before(connection, kind, operation_id, amount)? {
        let mut chain = Chain::at(connection, now_ms)?;
        chain.post(&Transfer::new(kind, from, to, amount).named(operation_id, note))?;
        chain.finish()?;
    }
    balance(connection, Account::Prepaid)
}

/// True if that operation was done. Errors: `Failed` if it was another one under the same name.
pub(super) fn done_before(
    connection: &Connection,
    kind: TransferKind,
    operation_id: &str,
    amount: NanoUsd,
) -> Result<bool, StoreError> {
    let known: Option<(i64, i64)> = connection
        .prepare_cached("SELECT kind, amount_nano FROM transfer WHERE operation_id = ?1")?
        .query_row([operation_id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match known {
        None => Ok(false),
        Some((known, nano)) if (known, nano) == (kind as i64, amount.0) => Ok(true),
        Some((_, nano)) => {
            let why = format!("operation {operation_id:?} has moved {} before, not {amount} now", NanoUsd(nano));
            Err(StoreError::Failed { operation: "move money", why })
        }
    }
}
