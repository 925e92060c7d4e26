//! Checking a book against itself.

mod beside;
mod charges;

use super::chain::{self, GENESIS, Hash, Posted};
use super::correct;
use super::import;
use super::request::{self, Offer, Stored};
use super::seal::SealKey;
use super::usage::{Subject, Totals};
use super::{Account, TransferKind, state};
use crate::store::StoreError;
use belay_protocol::calendar;
use belay_protocol::codec::Message;
use belay_protocol::id::{RequestId, TenantId};
use belay_protocol::message::End;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Problems that are told; what comes on top is only counted.
const MOST_TOLD: usize = 100;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Transfers in the book.
    pub transfers: u64,
    /// Of these, those up to the last checkpoint.
    #[serde(default)]
    pub sealed: u64,
    /// Requests settled.
    pub settled: u64,
    /// Requests voided.
    pub voided: u64,
    /// Requests with an open hold.
    pub open: u64,
    /// What is wrong, first things first; empty if the book is clean.
    pub problems: Vec<String>,
    /// Problems beyond those that are told.
    #[serde(default)]
    pub further_problems: u64,
}

impl Report {
    fn problem(&mut self, what: String) {
        if self.problems.len() < MOST_TOLD {
            self.problems.push(what);
        } else {
            self.further_problems += 1;
        }
    }
}

/// What the entries say of a request.
#[derive(Debug, Clone, Default)]
struct Moved {
    revenue: i64,
    absorbed: i64,
    held: i64,
    /// The last entry about its state: which kind, and what it proves.
    proof: Option<(i64, Hash)>,
    /// What the entry of its correction proves.
    corrected: Option<Hash>,
}

type ByRequest = HashMap<[u8; 16], Moved>;

/// Recomputes everything that the book says twice: the chain, balances, holds, each request's charge
/// and its `End`, sums of usage, credits; and the checkpoints, if their key is given.
///
/// Checkpoints up to entry `sealed` were made, as central knows: none of them may be missing.
pub fn verify(connection: &Connection, seal: Option<(&TenantId, &SealKey)>, sealed: i64) -> Result<Report, StoreError> {
    let mut report = Report::default();
    integrity(connection, &mut report)?;
    let Entries { balances, touched, mut moved, mut grants } = entries(connection, &mut report)?;
    accounts(connection, &balances, &touched, &mut report)?;
    let terms = beside::terms(connection, &mut report)?;
    requests(connection, &terms, &mut moved, &mut report)?;
    for id in moved.keys() {
        report.problem(format!("request {} has transfers but no record", RequestId(*id)));
    }
    beside::credit_grants(connection, &balances, &mut grants, &mut report)?;
    references(connection, &mut report)?;
    beside::outbox(connection, &mut report)?;
    beside::checkpoints(connection, seal, sealed, &mut report)?;
    Ok(report)
}

fn integrity(connection: &Connection, report: &mut Report) -> Result<(), StoreError> {
    let answer: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if answer != "ok" {
        report.problem(format!("the file is damaged: {answer}"));
    }
    Ok(())
}

fn references(connection: &Connection, report: &mut Report) -> Result<(), StoreError> {
    let mut orphans = connection.prepare("SELECT \"table\" FROM pragma_foreign_key_check")?;
    let mut orphans = orphans.query([])?;
    while let Some(row) = orphans.next()? {
        let table: String = row.get(0)?;
        report.problem(format!("a row of table {table} refers to one that is not there"));
    }
    Ok(())
}

/// What the entries say.
struct Entries {
    /// By account.
    balances: BTreeMap<i64, i64>,
    /// The last entry that changed it, by account.
    touched: BTreeMap<i64, i64>,
    moved: ByRequest,
    /// What they prove of grants.
    grants: HashSet<Hash>,
}

/// Follows the chain.
fn entries(connection: &Connection, report: &mut Report) -> Result<Entries, StoreError> {
    let deepest: i64 = connection.query_row("SELECT deepest_ceiling_nano FROM tenant", [], |row| row.get(0))?;
    let mut balances: BTreeMap<i64, i64> = Account::ALL.into_iter().map(|account| (account as i64, 0)).collect();
    let (mut moved, mut grants, mut touched) = (ByRequest::new(), HashSet::new(), BTreeMap::new());
    let (mut expected, mut last_ms, mut hash) = (1, 0, GENESIS);
    let mut statement = connection.prepare(&format!("SELECT {} FROM transfer ORDER BY id", chain::COLUMNS))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        report.transfers += 1;
        let entry = match Posted::read(row) {
            Ok(entry) => entry,
            Err(error) => {
                report.problem(format!("entry {expected} cannot be read: {error}"));
                expected += 1;
                continue;
            }
        };
        if entry.id != expected {
            report.problem(format!("entry {expected} is missing"));
        } else if entry.hash_after(&hash) != entry.hash {
            report.problem(format!(
                "entry {} does not follow from the one before it: one of the two was changed",
                entry.id
            ));
        }
        if entry.at_ms < last_ms {
            report.problem(format!("entry {} is older than the one before it", entry.id));
        }
        (expected, last_ms, hash) = (entry.id + 1, entry.at_ms, entry.hash);
        for (account, change, after) in
            [(entry.from, -entry.amount, entry.from_after), (entry.to, entry.amount, entry.to_after)]
        {
            touched.insert(account, entry.id);
            let balance = balances.entry(account).or_default();
            *balance = balance.wrapping_add(change);
            if *balance != after {
                report.problem(format!(
                    "entry {} leaves account {account} with {after} nano-USD instead of {balance}",
                    entry.id
                ));
                *balance = after;
            }
        }
        let takes = entry.from == Account::Prepaid as i64
            && [TransferKind::Hold, TransferKind::Excess, TransferKind::Correct]
                .into_iter()
                .any(|kind| entry.kind == kind as i64);
        if takes && entry.amount > 0 && entry.from_after < -deepest {
            report.problem(format!(
                "entry {} takes the balance to {} nano-USD, below its floor",
                entry.id, entry.from_after
            ));
        }
        if entry.kind == TransferKind::Grant as i64 {
            grants.extend(entry.evidence);
        }
        follow(&mut moved, &entry);
    }
    Ok(Entries { balances, touched, moved, grants })
}

fn follow(moved: &mut ByRequest, entry: &Posted) {
    let Some(id) = entry.request_id else { return };
    let request = moved.entry(id).or_default();
    let sum = |account: Account| match account as i64 {
        number if number == entry.to => entry.amount,
        number if number == entry.from => -entry.amount,
        _ => 0,
    };
    request.revenue += sum(Account::Revenue);
    request.absorbed -= sum(Account::Absorbed);
    request.held += sum(Account::Held);
    match entry.evidence {
        Some(evidence) if entry.kind == TransferKind::Correct as i64 => request.corrected = Some(evidence),
        Some(evidence) => request.proof = Some((entry.kind, evidence)),
        None => {}
    }
}

fn accounts(
    connection: &Connection,
    balances: &BTreeMap<i64, i64>,
    touched: &BTreeMap<i64, i64>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare("SELECT id, name, balance_nano, last_transfer FROM account ORDER BY id")?;
    let rows: Vec<(i64, String, i64, i64)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    for account in Account::ALL {
        let (number, summed) = (account as i64, balances.get(&(account as i64)).copied().unwrap_or(0));
        let Some((_, name, kept, last)) = rows.iter().find(|row| row.0 == number) else {
            report.problem(format!("account {} is missing", account.name()));
            continue;
        };
        if name != account.name() {
            report.problem(format!("account {} is called {name}", account.name()));
        }
        match touched.get(&number).copied().unwrap_or(0) {
            found if found < *last => {
                report.problem(format!("entry {last} is missing: account {name} was changed by it"));
            }
            found if found > *last => {
                report.problem(format!("account {name} knows nothing of entry {found}, which changes it"));
            }
            _ => {}
        }
        if *kept != summed {
            report.problem(format!("account {name} shows {kept} nano-USD, its entries sum to {summed}"));
        }
    }
    let total: i64 = balances.values().sum();
    if total != 0 {
        report.problem(format!("the entries sum to {total} nano-USD instead of 0"));
    }
    let open: i64 =
        connection
            .query_row("SELECT coalesce(sum(held_nano), 0) FROM request WHERE state = 0", [], |row| row.get(0))?;
    let held = balances.get(&(Account::Held as i64)).copied().unwrap_or(0);
    if held != open {
        report.problem(format!("account tenant:held has {held} nano-USD, open requests hold {open}"));
    }
    Ok(())
}

/// The terms of requests by their number, and the digests of what they say.
type TermsById = HashMap<i64, (Vec<Offer>, Hash)>;

type Sums = BTreeMap<(i64, Subject), Totals>;

fn requests(
    connection: &Connection,
    terms: &TermsById,
    moved: &mut ByRequest,
    report: &mut Report,
) -> Result<(), StoreError> {
    let (mut by_day, mut by_month) = (Sums::new(), Sums::new());
    let mut statement = connection.prepare(&format!("SELECT {} FROM request ORDER BY id", request::COLUMNS))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let stored = Stored::read(row)?;
        let what = moved.remove(&stored.request_id.0).unwrap_or_default();
        match stored.state {
            state::OPEN => report.open += 1,
            state::SETTLED => report.settled += 1,
            _ => report.voided += 1,
        }
        let correction = correct::find(connection, stored.row)?;
        let known = terms.get(&stored.terms);
        for problem in charges::problems(&stored, known, correction.as_ref(), &what) {
            report.problem(format!("request {}: {problem}", stored.request_id));
        }
        if stored.state == state::SETTLED
            && let Some(Ok(end)) = stored.end.as_deref().map(End::decode_body)
            && let Ok(subject) = stored.subject()
        {
            let mut totals = Totals::of(&end.usage, stored.cost, stored.absorbed, stored.estimated);
            if let Some(correction) = &correction {
                totals.add(&correction.difference(&stored, &end)?);
            }
            let at_ms = u64::try_from(stored.finished_ms.unwrap_or(0)).unwrap_or(0);
            by_day.entry((calendar::day(at_ms), subject.clone())).or_default().add(&totals);
            by_month.entry((calendar::month(at_ms), subject)).or_default().add(&totals);
        }
    }
    import::each_usage(connection, |row| {
        let at_ms = row.at_ms;
        let subject = row.subject();
        by_day.entry((calendar::day(at_ms), subject.clone())).or_default().add(&row.totals);
        by_month.entry((calendar::month(at_ms), subject)).or_default().add(&row.totals);
    })?;
    sums(connection, "usage_day", "day", by_day, report)?;
    sums(connection, "usage_month", "month", by_month, report)
}

/// Compares a table of sums with what the requests say.
fn sums(
    connection: &Connection,
    table: &str,
    period: &str,
    mut expected: Sums,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare(&format!(
        "SELECT {period}, device, key, class, provider, model, requests, estimated, input, output, cache_read,
                cache_write, reasoning, cost_nano, absorbed_nano FROM {table}"
    ))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let subject = Stored::subject_at(row, 1)?;
        let kept = Totals::read(row, 6)?;
        let number: i64 = row.get(0)?;
        let summed = expected.remove(&(number, subject.clone())).unwrap_or_default();
        if kept != summed {
            let Subject { device, model, .. } = subject;
            report.problem(format!(
                "the usage of {period} {number}, device {device}, model {model} shows {} requests for {} nano-USD, its requests sum to {} for {}",
                kept.requests, kept.cost_nano, summed.requests, summed.cost_nano
            ));
        }
    }
    for (number, subject) in expected.into_keys() {
        report.problem(format!(
            "there is no usage of {period} {number}, device {}, model {}",
            subject.device, subject.model
        ));
    }
    Ok(())
}
