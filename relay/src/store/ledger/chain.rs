//! The entries of a book, chained: each transfer carries a hash over itself and over the hash of the
//! one before it. A row that is changed, removed or put in another's place breaks the chain there.
//!
//! A transfer is numbered without a gap, its time never goes back, and it names the balance that
//! each of its two accounts had right after it. What it says of a request (its price, its device,
//! its `End`) is in the chain too, as a digest: the [`Evidence`].

use super::{Account, TransferKind, time};
use crate::store::StoreError;
use aws_lc_rs::digest::{SHA256, digest};
use belay_protocol::id::RequestId;
use belay_protocol::money::{MoneyError, NanoUsd};
use rusqlite::{Connection, OptionalExtension, Row, params};

/// A SHA-256.
pub(crate) type Hash = [u8; 32];

/// What comes before the first entry.
pub(crate) const GENESIS: Hash = [0; 32];

/// A movement of money that is to be posted.
#[derive(Debug, Clone)]
pub(crate) struct Transfer<'a> {
    pub(crate) kind: TransferKind,
    pub(crate) from: Account,
    pub(crate) to: Account,
    pub(crate) amount: NanoUsd,
    pub(crate) request_id: Option<RequestId>,
    pub(crate) operation_id: Option<&'a str>,
    pub(crate) note: Option<&'a str>,
    pub(crate) evidence: Option<Hash>,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(kind: TransferKind, from: Account, to: Account, amount: NanoUsd) -> Self {
        Self { kind, from, to, amount, request_id: None, operation_id: None, note: None, evidence: None }
    }

    pub(crate) fn of(mut self, request_id: RequestId) -> Self {
        self.request_id = Some(request_id);
        self
    }

    pub(crate) fn named(mut self, operation_id: &'a str, note: Option<&'a str>) -> Self {
        self.operation_id = Some(operation_id);
        self.note = note;
        self
    }

    pub(crate) fn proving(mut self, evidence: Hash) -> Self {
        self.evidence = Some(evidence);
        self
    }
}

/// A digest over fields, each with its length, so that no two lists of fields give the same.
pub(crate) struct Evidence(Vec<u8>);

impl Evidence {
    pub(crate) fn new(what: &str) -> Self {
        // Most are shorter. One call with all of it costs half of one call per field.
        Self(Vec::with_capacity(512)).text(what)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn number(self, number: i64) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    /// Absence is not the same as emptiness.
    pub(crate) fn optional(self, bytes: Option<&[u8]>) -> Self {
        match bytes {
            Some(bytes) => self.number(1).bytes(bytes),
            None => self.number(0),
        }
    }

    pub(crate) fn finish(self) -> Hash {
        let mut hash = GENESIS;
        hash.copy_from_slice(digest(&SHA256, &self.0).as_ref());
        hash
    }
}

/// A transfer as it stands in the book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Posted {
    pub(crate) id: i64,
    pub(crate) at_ms: i64,
    pub(crate) kind: i64,
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) amount: i64,
    pub(crate) from_after: i64,
    pub(crate) to_after: i64,
    pub(crate) request_id: Option<[u8; 16]>,
    pub(crate) operation_id: Option<String>,
    pub(crate) note: Option<String>,
    pub(crate) evidence: Option<Hash>,
    pub(crate) hash: Hash,
}

/// The columns of [`Posted`], in its order.
pub(crate) const COLUMNS: &str = "id, at_ms, kind, from_account, to_account, amount_nano, from_after_nano, \
    to_after_nano, request_id, operation_id, note, evidence, hash";

impl Posted {
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            at_ms: row.get(1)?,
            kind: row.get(2)?,
            from: row.get(3)?,
            to: row.get(4)?,
            amount: row.get(5)?,
            from_after: row.get(6)?,
            to_after: row.get(7)?,
            request_id: row.get(8)?,
            operation_id: row.get(9)?,
            note: row.get(10)?,
            evidence: row.get(11)?,
            hash: row.get(12)?,
        })
    }

    /// What its hash must be after `previous`.
    pub(crate) fn hash_after(&self, previous: &Hash) -> Hash {
        let numbers = [self.id, self.at_ms, self.kind, self.from, self.to, self.amount, self.from_after, self.to_after];
        let evidence = Evidence::new("transfer").bytes(previous);
        numbers
            .into_iter()
            .fold(evidence, Evidence::number)
            .optional(self.request_id.as_ref().map(<[u8; 16]>::as_slice))
            .optional(self.operation_id.as_deref().map(str::as_bytes))
            .optional(self.note.as_deref().map(str::as_bytes))
            .optional(self.evidence.as_ref().map(<[u8; 32]>::as_slice))
            .finish()
    }
}

/// The end of the chain, to post at, with the balances as they are after what it has posted. Lives as long
/// as one command; [`finish`](Self::finish) writes the balances.
#[derive(Debug)]
#[must_use]
pub(crate) struct Chain<'a> {
    connection: &'a Connection,
    id: i64,
    at_ms: i64,
    hash: Hash,
    /// By the account's number less one: what it has, and the entry that changed it, if one here did.
    accounts: [(NanoUsd, Option<i64>); Account::ALL.len()],
}

impl<'a> Chain<'a> {
    /// Finds the end of the chain. `now_ms` is the time of what will be posted, or the last entry's if
    /// that is later.
    pub(crate) fn at(connection: &'a Connection, now_ms: u64) -> Result<Self, StoreError> {
        let last: Option<(i64, i64, Hash)> = connection
            .prepare_cached("SELECT id, at_ms, hash FROM transfer ORDER BY id DESC LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let (id, last_ms, hash) = last.unwrap_or((0, 0, GENESIS));
        let mut accounts = [(NanoUsd::ZERO, None); Account::ALL.len()];
        let mut statement = connection.prepare_cached("SELECT id, balance_nano FROM account")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let account = Account::numbered(row.get(0)?);
            let corrupt = || StoreError::Corrupt { what: "an account", why: "it has an unknown number".into() };
            accounts[place(account.ok_or_else(corrupt)?)].0 = NanoUsd(row.get(1)?);
        }
        Ok(Self { connection, id, at_ms: time(now_ms).max(last_ms), hash, accounts })
    }

    /// When this posts, milliseconds since 1970.
    pub(crate) fn at_ms(&self) -> i64 {
        self.at_ms
    }

    /// The same, as a moment: what is booked is booked in its day and month, so budgets are looked at in them.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.at_ms).unwrap_or(0)
    }

    /// What an account has after all that was posted here.
    pub(crate) fn balance(&self, account: Account) -> NanoUsd {
        self.accounts[place(account)].0
    }

    /// Posts, unless there is nothing to move.
    pub(crate) fn post(&mut self, transfer: &Transfer<'_>) -> Result<(), StoreError> {
        if transfer.amount == NanoUsd::ZERO { Ok(()) } else { self.record(transfer) }
    }

    /// Posts, be the amount zero: the entry carries evidence.
    pub(crate) fn record(&mut self, transfer: &Transfer<'_>) -> Result<(), StoreError> {
        if transfer.amount.is_negative() {
            let why = format!("negative amount {:?}", transfer.amount);
            return Err(StoreError::Corrupt { what: "a transfer", why });
        }
        let id = self.id + 1;
        let amount = transfer.amount;
        let from_after = self.change(transfer.from, id, |balance| balance.checked_add(NanoUsd(-amount.0)))?;
        let to_after = self.change(transfer.to, id, |balance| balance.checked_add(amount))?;
        let mut posted = Posted {
            id,
            at_ms: self.at_ms,
            kind: transfer.kind as i64,
            from: transfer.from as i64,
            to: transfer.to as i64,
            amount: amount.0,
            from_after: from_after.0,
            to_after: to_after.0,
            request_id: transfer.request_id.map(|id| id.0),
            operation_id: transfer.operation_id.map(str::to_owned),
            note: transfer.note.map(str::to_owned),
            evidence: transfer.evidence,
            hash: GENESIS,
        };
        posted.hash = posted.hash_after(&self.hash);
        self.connection
            .prepare_cached(
                "INSERT INTO transfer (id, at_ms, kind, from_account, to_account, amount_nano, from_after_nano,
                                       to_after_nano, request_id, operation_id, note, evidence, hash)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?
            .execute(params![
                posted.id,
                posted.at_ms,
                posted.kind,
                posted.from,
                posted.to,
                posted.amount,
                posted.from_after,
                posted.to_after,
                posted.request_id,
                posted.operation_id,
                posted.note,
                posted.evidence,
                posted.hash,
            ])?;
        self.id = id;
        self.hash = posted.hash;
        Ok(())
    }

    fn change(
        &mut self,
        account: Account,
        entry: i64,
        by: impl FnOnce(NanoUsd) -> Result<NanoUsd, MoneyError>,
    ) -> Result<NanoUsd, StoreError> {
        let (balance, touched) = &mut self.accounts[place(account)];
        *balance = by(*balance)?;
        *touched = Some(entry);
        Ok(*balance)
    }

    /// Writes the balances that were changed since the last time.
    pub(crate) fn finish(&mut self) -> Result<(), StoreError> {
        let sql = "UPDATE account SET balance_nano = ?2, last_transfer = ?3 WHERE id = ?1";
        let mut update = self.connection.prepare_cached(sql)?;
        for account in Account::ALL {
            let (balance, touched) = &mut self.accounts[place(account)];
            if let Some(entry) = touched.take() {
                update.execute(params![account as i64, balance.0, entry])?;
            }
        }
        Ok(())
    }
}

fn place(account: Account) -> usize {
    account as usize - 1
}
