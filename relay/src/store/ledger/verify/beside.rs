//! What stands beside the entries and the requests: credits, terms, the outbox, checkpoints.

use super::{Report, TermsById};
use crate::store::StoreError;
use crate::store::ledger::chain::Hash;
use crate::store::ledger::correct;
use crate::store::ledger::import;
use crate::store::ledger::request::{self, Stored};
use crate::store::ledger::seal::{EVERY, SealKey};
use crate::store::ledger::usage::Totals;
use crate::store::ledger::{Account, credits, time};
use belay_protocol::codec::Message;
use belay_protocol::id::{RequestId, TenantId};
use belay_protocol::message::End;
use rusqlite::Connection;
use std::collections::{BTreeMap, HashSet};

pub(super) fn credit_grants(
    connection: &Connection,
    balances: &BTreeMap<i64, i64>,
    proven: &mut HashSet<Hash>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let (mut left, mut statement) =
        (0, connection.prepare("SELECT id, granted_nano, expires_ms, left_nano FROM credit_grant")?);
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        if !proven.remove(&credits::evidence(id, row.get(1)?, row.get(2)?)) {
            report.problem(format!("grant {id} is not the one that its entry proves"));
        }
        left += row.get::<_, i64>(3)?;
    }
    if !proven.is_empty() {
        report.problem(format!("{} grants are missing", proven.len()));
    }
    let balance = balances.get(&(Account::Credits as i64)).copied().unwrap_or(0);
    if left != balance {
        report.problem(format!("account tenant:credits has {balance} nano-USD, what is left of the grants is {left}"));
    }
    // What each open request holds of credits is what it has taken from grants that there are.
    let mut statement = connection.prepare(
        "SELECT request.request_id, credits_nano, coalesce(sum(nano), 0) FROM request
         LEFT JOIN draw ON draw.request = request.id AND draw.credit_grant IN (SELECT id FROM credit_grant)
         WHERE state = 0 GROUP BY request.id HAVING credits_nano <> coalesce(sum(nano), 0)",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, held, drawn): (_, i64, i64) = (RequestId(row.get(0)?), row.get(1)?, row.get(2)?);
        report.problem(format!("request {id} holds {held} nano-USD of credits, {drawn} were taken from the grants"));
    }
    let stray: i64 = connection.query_row(
        "SELECT count(*) FROM draw WHERE request NOT IN (SELECT id FROM request WHERE state = 0 OR estimated = 1)",
        [],
        |row| row.get(0),
    )?;
    if stray > 0 {
        report.problem(format!("{stray} draws belong to no open request and to no estimate"));
    }
    // An estimate keeps in mind what it has used of which grant, until it is corrected.
    let mut statement = connection.prepare(
        "SELECT request.request_id, min(cost_nano, credits_nano), coalesce(sum(nano), 0) FROM request
         LEFT JOIN draw ON draw.request = request.id AND draw.credit_grant IN (SELECT id FROM credit_grant)
         WHERE state = 1 AND estimated = 1 AND request.id NOT IN (SELECT request FROM correction)
         GROUP BY request.id HAVING min(cost_nano, credits_nano) <> coalesce(sum(nano), 0)",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, used, drawn): (_, i64, i64) = (RequestId(row.get(0)?), row.get(1)?, row.get(2)?);
        report.problem(format!("request {id} has used {used} nano-USD of credits, {drawn} were taken from the grants"));
    }
    Ok(())
}

/// Reads the terms: their digests are what entries prove of them.
pub(super) fn terms(connection: &Connection, report: &mut Report) -> Result<TermsById, StoreError> {
    let mut known = TermsById::new();
    let mut statement = connection.prepare("SELECT id, digest, terms FROM terms")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (id, digest, text): (i64, Vec<u8>, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let says = request::terms_digest(&text);
        if says.as_slice() != digest {
            report.problem(format!("terms {id} were changed"));
        }
        match request::read_terms(&text) {
            Ok(offers) => drop(known.insert(id, (offers, says))),
            Err(error) => report.problem(format!("terms {id}: {error}")),
        }
    }
    let stray: i64 =
        connection.query_row("SELECT count(*) FROM request WHERE terms NOT IN (SELECT id FROM terms)", [], |row| {
            row.get(0)
        })?;
    if stray > 0 {
        report.problem(format!("{stray} requests refer to terms that are missing"));
    }
    Ok(known)
}

/// What waits for central is what the requests say, and nothing is left out: numbers have no gap.
pub(super) fn outbox(connection: &Connection, report: &mut Report) -> Result<(), StoreError> {
    let mut statement = connection.prepare(
        "SELECT number, outbox.device, outbox.key, outbox.class, outbox.provider, outbox.model, requests,
                outbox.estimated, input, output, cache_read, cache_write, reasoning, outbox.cost_nano,
                outbox.absorbed_nano, outbox.request_id, outbox.at_ms FROM outbox ORDER BY number",
    )?;
    let mut rows = statement.query([])?;
    let mut last: i64 = connection.query_row("SELECT flushed FROM tenant", [], |row| row.get(0))?;
    while let Some(row) = rows.next()? {
        let number: i64 = row.get(0)?;
        let (subject, totals, id) = (Stored::subject_at(row, 1)?, Totals::read(row, 6)?, RequestId(row.get(15)?));
        let at_ms: Option<i64> = row.get(16)?;
        let stored = request::find(connection, id)?;
        let end = stored.as_ref().and_then(|stored| End::decode_body(stored.end.as_deref()?).ok());
        let fits = match stored.zip(end) {
            Some((stored, end)) => {
                // A correction has a row of its own, with what it adds.
                let added = correct::find(connection, stored.row)?.map(|found| found.difference(&stored, &end));
                stored.subject().is_ok_and(|own| own == subject)
                    && stored.finished_ms == at_ms
                    && (Totals::of(&end.usage, stored.cost, stored.absorbed, stored.estimated) == totals
                        || added.transpose()? == Some(totals))
            }
            None => import::find(connection, id)?
                .is_some_and(|row| row.subject() == subject && Some(time(row.at_ms)) == at_ms && row.totals == totals),
        };
        if !fits {
            report.problem(format!("row {number} on its way to central is not what request {id} says"));
        }
        if number != last + 1 {
            report.problem(format!("row {} on its way to central is missing", last + 1));
        }
        last = number;
    }
    let settled: i64 = connection.query_row(
        "SELECT (SELECT count(*) FROM request WHERE state = 1) + (SELECT count(*) FROM correction)",
        [],
        |row| row.get(0),
    )?;
    let settled = settled + import::count(connection)?;
    if last != settled {
        report.problem(format!("{settled} charges and corrections were made, {last} were put on their way to central"));
    }
    Ok(())
}

pub(super) fn checkpoints(
    connection: &Connection,
    seal: Option<(&TenantId, &SealKey)>,
    sealed: i64,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut next = EVERY;
    let mut missing = |report: &mut Report, below: i64| {
        while next < below {
            report.problem(format!("the checkpoint at entry {next} is missing"));
            next += EVERY;
        }
        next = below + EVERY;
    };
    let mut statement = connection.prepare(
        "SELECT transfer_id, checkpoint.hash, mac, transfer.hash FROM checkpoint
         LEFT JOIN transfer ON transfer.id = checkpoint.transfer_id ORDER BY transfer_id",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (entry, hash, mac): (i64, Hash, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let stands: Option<Hash> = row.get(3)?;
        missing(report, entry);
        if seal.is_some_and(|(tenant, key)| !key.fits(tenant, entry, &hash, &mac)) {
            report.problem(format!("the checkpoint at entry {entry} was not made by this relay"));
        } else if stands != Some(hash) {
            report
                .problem(format!("entry {entry} is not the one that its checkpoint has seen: the chain was made anew"));
        } else {
            report.sealed = u64::try_from(entry).unwrap_or(0);
        }
    }
    missing(report, sealed + 1);
    Ok(())
}
