//! A tenant's book: double entry, append only, chained.
//!
//! Every movement of money is a transfer from one account to another, so the sum of all entries is
//! zero by construction; [`verify`](mod@verify) checks it all the same. Balances are kept beside the
//! transfers in the same transaction, and what a transaction decides on it reads in that transaction.
//!
//! A request's life: [`hold`](mod@hold) moves the most it can cost from `tenant:credits` and
//! `tenant:prepaid` to `tenant:held`; [`settle`](mod@settle) turns that into the charge and gives the
//! rest back; `void` gives all of it back. [`recover`](mod@recover) resolves the holds of a dead
//! process. `chain` is how a
//! transfer is posted, [`request`] what is written down of a request, [`usage`] what is summed up,
//! [`outbox`] what goes to central.

pub mod budget;
mod cap;
mod chain;
pub mod correct;
pub mod credits;
pub mod find;
pub mod hold;
pub mod import;
pub mod money;
pub mod outbox;
pub mod provider_keys;
pub mod rates;
pub mod record;
pub mod recover;
pub mod rekey;
pub mod request;
pub mod restored;
pub mod seal;
pub mod settle;
pub mod standing;
pub mod statement;
#[cfg(test)]
pub(crate) mod tests;
pub mod usage;
pub mod verify;

use super::StoreError;
use belay_protocol::money::NanoUsd;
use rusqlite::Connection;

/// The accounts of a tenant's book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum Account {
    /// Where credited money comes from; negative by what was ever credited.
    Funding = 1,
    /// What the tenant has paid and not used.
    Prepaid = 2,
    /// What is set aside for running requests.
    Held = 3,
    /// What was charged.
    Revenue = 4,
    /// Where usage above a hold that nobody could pay comes from.
    Absorbed = 5,
    /// Credits that expire.
    Credits = 6,
}

impl Account {
    /// All of them, by number.
    pub const ALL: [Self; 6] = [Self::Funding, Self::Prepaid, Self::Held, Self::Revenue, Self::Absorbed, Self::Credits];

    /// Its name in the book.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Funding => "relay:funding",
            Self::Prepaid => "tenant:prepaid",
            Self::Held => "tenant:held",
            Self::Revenue => "relay:revenue",
            Self::Absorbed => "relay:absorbed",
            Self::Credits => "tenant:credits",
        }
    }

    /// The account of that number.
    #[must_use]
    pub fn numbered(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|account| *account as i64 == number)
    }
}

/// Why money moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum TransferKind {
    /// The operator credited the tenant, or a payment did.
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
    /// Credits were set aside.
    HoldCredits = 8,
    /// Credits that were set aside were given back.
    ReleaseCredits = 9,
    /// Credits were granted.
    Grant = 10,
    /// Credits have expired.
    Expire = 11,
    /// A payment was given back.
    Refund = 12,
    /// A payment was taken back by its payer.
    Chargeback = 13,
    /// A charge by estimate was put right.
    Correct = 14,
}

impl TransferKind {
    /// All of them, by number.
    pub const ALL: [Self; 14] = [
        Self::Credit,
        Self::Hold,
        Self::Settle,
        Self::Release,
        Self::Void,
        Self::Excess,
        Self::Absorb,
        Self::HoldCredits,
        Self::ReleaseCredits,
        Self::Grant,
        Self::Expire,
        Self::Refund,
        Self::Chargeback,
        Self::Correct,
    ];

    /// Its name in statements.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Credit => "credit",
            Self::Hold => "hold",
            Self::Settle => "settle",
            Self::Release => "release",
            Self::Void => "void",
            Self::Excess => "excess",
            Self::Absorb => "absorb",
            Self::HoldCredits => "hold-credits",
            Self::ReleaseCredits => "release-credits",
            Self::Grant => "grant",
            Self::Expire => "expire",
            Self::Refund => "refund",
            Self::Chargeback => "chargeback",
            Self::Correct => "correct",
        }
    }

    /// The kind of that number.
    #[must_use]
    pub fn numbered(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as i64 == number)
    }
}

/// Which process made a hold: the machine's boot and the process's own random number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Changes when the machine starts anew.
    pub machine: String,
    /// Changes when the process starts anew.
    pub process: String,
}

/// Changes when the machine starts anew; empty where it does not tell.
pub(crate) fn machines_boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Boot {
    /// This machine's boot, and `process`.
    #[must_use]
    pub fn current(process: [u8; 8]) -> Self {
        Self { machine: machines_boot(), process: format!("{:016x}", u64::from_be_bytes(process)) }
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
