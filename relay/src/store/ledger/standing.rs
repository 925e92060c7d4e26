//! What a tenant may do: its tier, its floor, whether it is suspended. Central says so; a versioned
//! copy stands in the tenant's own file, where a hold reads it in its own transaction.

use super::chain::Chain;
use super::{Account, balance};
use crate::store::StoreError;
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// What a tenant pays with, and at which multipliers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// An allowance every month, and nothing beyond it.
    Free,
    /// The relay's provider keys, out of credits and balance.
    #[default]
    Managed,
    /// The tenant's own provider keys; the relay charges a licence.
    Byok,
}

impl Tier {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Free, Self::Managed, Self::Byok];

    /// Its stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Managed => "managed",
            Self::Byok => "byok",
        }
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Tier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|tier| tier.name() == text);
        found.ok_or_else(|| format!("{text:?} is no tier; there are free, managed and byok"))
    }
}

/// What central says of a tenant, as its own file has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Terms {
    /// What it pays with.
    pub tier: Tier,
    /// How far below zero its balance may go, in nano-USD.
    pub ceiling: NanoUsd,
    /// No request runs while this is set.
    pub suspended: bool,
    /// Suspend it when it comes to its ceiling.
    pub suspend_at_ceiling: bool,
}

/// Takes over what central says. An older version changes nothing.
pub fn set_terms(connection: &Connection, terms: &Terms, version: i64) -> Result<(), StoreError> {
    connection.execute(
        "UPDATE tenant SET tier = ?1, ceiling_nano = ?2, deepest_ceiling_nano = max(deepest_ceiling_nano, ?2),
             suspended = ?3, suspend_at_ceiling = ?4, version = ?5 WHERE version <= ?5",
        params![terms.tier.name(), terms.ceiling.0, terms.suspended, terms.suspend_at_ceiling, version],
    )?;
    Ok(())
}

/// A tenant with less than this part of its ceiling left is at it.
const HUNDREDTH: i64 = 100;

/// What decides whether anything may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) terms: Terms,
    /// Holds that are open.
    pub(crate) open: i64,
    pub(crate) prepaid: NanoUsd,
    pub(crate) credits: NanoUsd,
    pub(crate) held: NanoUsd,
    /// There are budgets, of whomever.
    pub(crate) has_budgets: bool,
}

impl Standing {
    /// What the balance can pay, credits aside.
    pub(crate) fn payable(&self) -> NanoUsd {
        match self.terms.tier {
            Tier::Free => NanoUsd::ZERO,
            Tier::Managed | Tier::Byok => NanoUsd(self.prepaid.0.saturating_add(self.terms.ceiling.0).max(0)),
        }
    }

    /// As good as all of the credit is used, what is set aside not counted: it may come back. A request
    /// that is too dear for what is left is no reason to stop all others.
    pub(crate) fn is_at_ceiling(&self) -> bool {
        let Terms { ceiling, tier, .. } = self.terms;
        let left = self.prepaid.0.saturating_add(self.held.0).saturating_add(ceiling.0);
        tier != Tier::Free && ceiling > NanoUsd::ZERO && left <= ceiling.0 / HUNDREDTH
    }

    /// What can be set aside for a request.
    pub(crate) fn available(&self) -> NanoUsd {
        NanoUsd(self.payable().0.saturating_add(self.credits.0))
    }

    /// What has to be paid in before so much can be set aside. A refund or a chargeback may have taken the
    /// balance below its floor: that has to be made good first.
    pub(crate) fn missing(&self, amount: NanoUsd) -> Option<NanoUsd> {
        let available = self.available();
        let below = match self.terms.tier {
            Tier::Free => 0,
            Tier::Managed | Tier::Byok => self.prepaid.0.saturating_add(self.terms.ceiling.0).min(0).saturating_neg(),
        };
        (amount > available).then(|| NanoUsd((amount - available).0.saturating_add(below)))
    }
}

/// Reads it beside the balances that the end of the chain has read.
pub(crate) fn standing(connection: &Connection, chain: &Chain<'_>) -> Result<Standing, StoreError> {
    let (terms, tier, open, has_budgets) = connection
        .prepare_cached(
            "SELECT tier, ceiling_nano, suspended, suspend_at_ceiling,
                    (SELECT count(*) FROM request WHERE state = 0), EXISTS (SELECT 1 FROM budget) FROM tenant",
        )?
        .query_row([], |row| {
            let terms = Terms {
                tier: Tier::default(),
                ceiling: NanoUsd(row.get(1)?),
                suspended: row.get(2)?,
                suspend_at_ceiling: row.get(3)?,
            };
            Ok((terms, row.get_ref(0)?.as_str()?.parse(), row.get(4)?, row.get(5)?))
        })?;
    let tier = tier.map_err(|why| StoreError::Corrupt { what: "a tenant's tier", why })?;
    let [prepaid, credits, held] = [Account::Prepaid, Account::Credits, Account::Held].map(|one| chain.balance(one));
    Ok(Standing { terms: Terms { tier, ..terms }, open, prepaid, credits, held, has_budgets })
}

/// Suspends the tenant in its own file, in the transaction that found it at its ceiling.
pub(crate) fn suspend(connection: &Connection) -> Result<(), StoreError> {
    connection.execute("UPDATE tenant SET suspended = 1", [])?;
    Ok(())
}

/// What a tenant has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// What it pays with.
    pub terms: Terms,
    /// Of its own money, below zero by at most the ceiling.
    pub balance: NanoUsd,
    /// Credits that have not expired.
    pub credits: NanoUsd,
    /// Is set aside.
    pub held: NanoUsd,
    /// The part of it that comes from credits.
    pub held_credits: NanoUsd,
    /// Requests that hold it.
    pub open_holds: u32,
    /// Was charged since the book began.
    pub charged: NanoUsd,
}

impl Summary {
    /// Its own money, with what is set aside and may come back: what payments go by.
    #[must_use]
    pub fn owned(&self) -> NanoUsd {
        let held = self.held.0.saturating_sub(self.held_credits.0);
        NanoUsd(self.balance.0.saturating_add(held))
    }
}

/// Reads the tenant's standing.
pub fn summary(connection: &Connection) -> Result<Summary, StoreError> {
    // What the time would be matters only to who posts.
    let standing = standing(connection, &Chain::at(connection, 0)?)?;
    let sql = "SELECT coalesce(sum(credits_nano), 0) FROM request INDEXED BY request_open WHERE state = 0";
    let held_credits = connection.prepare_cached(sql)?.query_row([], |row| row.get(0).map(NanoUsd))?;
    Ok(Summary {
        terms: standing.terms,
        balance: standing.prepaid,
        credits: standing.credits,
        held: standing.held,
        held_credits,
        open_holds: u32::try_from(standing.open).unwrap_or(u32::MAX),
        charged: balance(connection, Account::Revenue)? + balance(connection, Account::Absorbed)?,
    })
}
