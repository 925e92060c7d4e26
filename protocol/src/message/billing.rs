//! The messages of billing streams.

use crate::bounded;
use crate::error::codes;
use crate::id::{RequestId, TenantId};
use crate::message::{Dialect, UsageLine};
use crate::money::NanoUsd;
use serde::{Deserialize, Serialize};

/// Asks for the tenant's balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalanceRequest {
    /// Reserved, 0.
    pub reserved: u8,
}

codes! {
    /// What a tenant pays with.
    PaysWith(u16) {
        /// An allowance every month, and nothing else.
        FREE = 1, "free";
        /// Its balance; the relay's keys are used.
        MANAGED = 2, "managed";
        /// Its own keys for providers, and a licence to the relay out of its balance.
        BYOK = 3, "byok";
    }
}

/// The tenant's balance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// The tenant.
    pub tenant: TenantId,
    /// Its own money, in nano-USD; below zero by at most the ceiling.
    pub balance: NanoUsd,
    /// Credits that have not expired, in nano-USD; they are used first.
    pub credits: NanoUsd,
    /// What is set aside for running requests, in nano-USD; it is in neither of the two.
    pub held: NanoUsd,
    /// Requests that hold it.
    pub open_holds: u32,
    /// Charged since the book began, in nano-USD.
    pub charged: NanoUsd,
    /// What it pays with.
    pub pays_with: PaysWith,
    /// How far below zero the balance may go, in nano-USD.
    pub ceiling: NanoUsd,
}

codes! {
    /// What kind of usage it is.
    UsageClass(u16) {
        /// Requests that the relay sent to a provider.
        CLOUD = 1, "cloud";
        /// Inference on the tenant's own computers.
        LOCAL = 2, "local";
        /// Indexing, embedding and search of knowledge.
        KNOWLEDGE = 3, "knowledge";
    }
}

codes! {
    /// A span of days, by the relay's calendar (UTC).
    UsagePeriod(u16) {
        /// Today.
        DAY = 1, "day";
        /// The last seven days, today among them.
        WEEK = 2, "week";
        /// This calendar month.
        MONTH = 3, "month";
        /// Since the book began.
        EVER = 4, "all";
        /// The days that are named.
        DAYS = 5, "days";
    }
}

codes! {
    /// By what usage is told apart.
    UsageBy(u16) {
        /// One sum of everything.
        TOTAL = 1, "all";
        /// By day.
        DAY = 2, "day";
        /// By month.
        MONTH = 3, "month";
        /// By provider and model.
        MODEL = 4, "model";
        /// By device.
        DEVICE = 5, "device";
        /// By API key.
        KEY = 6, "key";
        /// By kind of usage.
        CLASS = 7, "class";
    }
}

/// Asks what was used. The answer is any number of [`UsageGroup`], then [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRequest {
    /// Of which days.
    pub period: UsagePeriod,
    /// For `DAYS`: the first, days since 1970.
    pub from_day: u32,
    /// For `DAYS`: the one after the last.
    pub until_day: u32,
    /// By what it is told apart.
    pub by: UsageBy,
}

/// A sum of usage.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UsageGroup {
    /// A day (`2026-11-25`), a month, `provider/model`, a device, a key or a class; empty for everything.
    pub name: String,
    /// Requests and records.
    pub requests: u64,
    /// Of these, charged by estimate and not corrected since.
    pub estimated: u64,
    /// Input of every kind but from and to a cache, in tokens.
    pub input: u64,
    /// Output of every kind, in tokens.
    pub output: u64,
    /// Read from a provider's cache, in tokens.
    pub cache_read: u64,
    /// Written to a provider's cache, in tokens.
    pub cache_write: u64,
    /// Of the output, reasoning, in tokens.
    pub reasoning: u64,
    /// Charged, in nano-USD.
    pub cost: NanoUsd,
}

/// The end of a list, so that a list that was cut does not pass for a whole one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Rows that came before.
    pub rows: u64,
    /// The first day that was looked at, days since 1970.
    pub from_day: u32,
    /// The one after the last.
    pub until_day: u32,
}

/// Asks for the entries of the tenant's book. The answer is any number of [`StatementLine`], then
/// [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementRequest {
    /// The first day, days since 1970.
    pub from_day: u32,
    /// The one after the last.
    pub until_day: u32,
    /// Only entries above this number: where a statement that was cut is gone on with.
    pub after: u64,
}

/// One entry: money that moved from one account to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementLine {
    /// Its number in the book.
    pub entry: u64,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Why: `hold`, `settle`, `credit` …
    pub kind: String,
    /// From which account.
    pub from: String,
    /// To which account.
    pub to: String,
    /// How much, in nano-USD.
    pub amount: NanoUsd,
    /// The tenant's own money right after, in nano-USD.
    pub balance: NanoUsd,
    /// Which request it is about.
    pub request_id: Option<RequestId>,
    /// Provider and model of a settled request; empty: none.
    pub model: String,
    /// The name of an operation from outside; empty: none.
    pub operation: String,
    /// What was noted with it.
    pub note: String,
}

/// Records usage outside of the relay. The answer is `End`, the same for ever for the same id. Its price
/// is the relay's business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordRequest {
    /// Names it for ever, among requests too.
    pub request_id: RequestId,
    /// What kind of usage; not `CLOUD`.
    pub class: UsageClass,
    /// What did the work.
    pub model: String,
    /// What was used.
    #[serde(with = "bounded::usage")]
    pub usage: Vec<UsageLine>,
}

/// Asks how money can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUpRequest {
    /// How much is wanted, in nano-USD; zero: not said.
    pub amount: NanoUsd,
}

/// Where money can be added. Nothing is credited before it was paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUp {
    /// A page to pay at.
    pub url: String,
}

/// Asks that usage be handed to the relay's central database now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushRequest {
    /// Reserved, 0.
    pub reserved: u8,
}

/// It was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Rows that came meanwhile and wait for the next time.
    pub waiting_rows: u64,
    /// What they cost, in nano-USD.
    pub waiting: NanoUsd,
}

/// Asks which models can be asked. The answer is any number of [`ModelOffer`], then [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelsRequest {
    /// Reserved, 0.
    pub reserved: u8,
}

/// A name that a request may carry, and what it stands for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOffer {
    /// The model or alias.
    pub name: String,
    /// The provider that is asked first.
    pub provider: String,
    /// That provider's own name of the model.
    pub model: String,
    /// The API that the provider speaks.
    pub dialect: Dialect,
    /// The most input, in tokens.
    pub context_tokens: u32,
    /// The most output, in tokens.
    pub max_output_tokens: u32,
    /// What a million input tokens cost now, in nano-USD, before the tenant's multiplier. `None`: it has no
    /// price, and cannot be asked.
    pub input: Option<NanoUsd>,
    /// The same for output.
    pub output: Option<NanoUsd>,
}
