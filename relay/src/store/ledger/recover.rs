//! Resolving the holds that a dead process left open.

use super::Boot;
use super::settle::{Settled, Settlement, settle, void};
use crate::store::StoreError;
use crate::store::journal::Progress;
use belay_protocol::dialect::usage::{BYTES_PER_ESTIMATED_TOKEN, ToldInput};
use belay_protocol::id::RequestId;
use belay_protocol::message::{Outcome, UnitKind, UsageLine};
use rusqlite::Connection;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What recovery did.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// Never dispatched: the money went back.
    pub voided: Vec<RequestId>,
    /// Settled on their last progress, marked as estimated.
    pub settled: Vec<Settled>,
    /// Left open, and why: their rows contradict themselves.
    pub failed: Vec<(RequestId, StoreError)>,
}

/// Resolves every open hold of another process than `current`.
///
/// `journal` is what the dispatch journal says, `None` if there is none. A hold that the journal of
/// the same machine boot does not mention was never dispatched and is voided. Every other is
/// settled on its last progress. After a power loss the journal proves nothing: every hold counts
/// as dispatched. One that cannot be resolved is left as it is, and the others are resolved.
pub fn recover(
    connection: &Connection,
    current: &Boot,
    journal: Option<&HashMap<RequestId, Progress>>,
    now_ms: u64,
) -> Result<Recovered, StoreError> {
    let open: Vec<(RequestId, String, u64)> = connection
        .prepare("SELECT request_id, boot, input_bytes FROM request WHERE state = 0 AND boot <> ?1")?
        .query_map([current.to_text()], |row| {
            let input_bytes: i64 = row.get(2)?;
            Ok((RequestId(row.get(0)?), row.get(1)?, u64::try_from(input_bytes).unwrap_or(0)))
        })?
        .collect::<Result<_, _>>()?;
    let mut recovered = Recovered::default();
    for (request_id, boot, input_bytes) in open {
        let progress = journal.and_then(|journal| journal.get(&request_id).copied());
        let journal_is_whole = journal.is_some() && current.is_same_machine_boot(&boot);
        connection.execute_batch("SAVEPOINT hold")?;
        let resolved = if progress.is_none() && journal_is_whole {
            void(connection, request_id, now_ms).map(|_| recovered.voided.push(request_id))
        } else {
            let settlement = estimate(request_id, progress.unwrap_or_default(), input_bytes, now_ms);
            settle(connection, &settlement).map(|settled| recovered.settled.push(settled))
        };
        if let Err(error) = resolved {
            connection.execute_batch("ROLLBACK TO hold")?;
            recovered.failed.push((request_id, error));
        }
        connection.execute_batch("RELEASE hold")?;
    }
    Ok(recovered)
}

/// The requests whose money is set aside.
pub fn open_holds(connection: &Connection) -> Result<HashSet<RequestId>, StoreError> {
    let mut statement = connection.prepare("SELECT request_id FROM request WHERE state = 0")?;
    let open = statement.query_map([], |row| row.get(0).map(RequestId))?.collect::<Result<_, _>>()?;
    Ok(open)
}

/// A settlement on what is known of a request that nobody watched to its end.
pub(crate) fn estimate(request_id: RequestId, progress: Progress, input_bytes: u64, now_ms: u64) -> Settlement {
    let tokens = |bytes: u64| bytes.div_ceil(BYTES_PER_ESTIMATED_TOKEN);
    let unknown = || ToldInput { input: tokens(input_bytes), ..ToldInput::default() };
    let told = progress.told_input.unwrap_or_else(unknown);
    let lines = [
        (UnitKind::INPUT, told.input),
        (UnitKind::OUTPUT, tokens(progress.output_bytes)),
        (UnitKind::CACHE_READ, told.cache_read),
        (UnitKind::CACHE_WRITE_5M, told.cache_write_5m),
        (UnitKind::CACHE_WRITE_1H, told.cache_write_1h),
    ];
    Settlement {
        request_id,
        offer: progress.offer.into(),
        outcome: Outcome::RELAY_DIED,
        message: "the relay stopped while the request ran; charged for what had been produced, by estimate".into(),
        usage: lines
            .into_iter()
            .filter(|(_, units)| *units > 0)
            .map(|(kind, units)| UsageLine { kind, units })
            .collect(),
        estimated: true,
        events: progress.events,
        first_event_ms: None,
        answer: Arc::default(),
        now_ms,
    }
}
