//! A request's row: is it what its entries prove, and does what was used cost what was charged?

use super::Moved;
use crate::store::ledger::chain::Hash;
use crate::store::ledger::correct::{self, Correction};
use crate::store::ledger::request::{Offer, Stored};
use crate::store::ledger::{TransferKind, settle, state};
use belay_protocol::codec::Message;
use belay_protocol::message::End;

/// What does not fit in a request's row, beside what its entries say.
pub(super) fn problems(
    stored: &Stored,
    terms: Option<&(Vec<Offer>, Hash)>,
    correction: Option<&Correction>,
    moved: &Moved,
) -> Vec<String> {
    let mut problems = vec![];
    let charged = moved.revenue - moved.absorbed;
    let proving = match stored.state {
        state::OPEN => {
            if moved.held != stored.held.0 {
                problems.push(format!("holds {} nano-USD, its transfers leave {}", stored.held.0, moved.held));
            }
            TransferKind::Hold
        }
        state::SETTLED => {
            let (cost, absorbed) =
                correction.map_or((stored.cost.0, stored.absorbed.0), |found| (found.cost, found.absorbed));
            if (charged, moved.absorbed, moved.held) != (cost, absorbed, 0) {
                problems.push(format!(
                    "settled at {cost} nano-USD with {absorbed} absorbed, its transfers say {charged} and {}, {} still held",
                    moved.absorbed, moved.held
                ));
            }
            problems.extend(end_problem(stored));
            problems.extend(terms.and_then(|(offers, _)| price_problem(stored, offers, correction)));
            TransferKind::Settle
        }
        _ => {
            if (moved.revenue, moved.held) != (0, 0) {
                problems
                    .push(format!("voided, but {} nano-USD were charged and {} are held", moved.revenue, moved.held));
            }
            TransferKind::Void
        }
    };
    let has_end = stored.provider.is_some() || stored.model.is_some() || stored.end.is_some() || stored.estimated;
    let has_cost = stored.cost.0 != 0 || stored.absorbed.0 != 0;
    let is_finished = stored.finished_ms.is_some();
    if stored.state != state::SETTLED && (has_end || has_cost) || stored.state == state::OPEN && is_finished {
        problems.push("it is not settled, and yet its record says how it ended".into());
    }
    if moved.corrected != correction.map(|correction| correction.evidence(stored.request_id)) {
        problems.push("its correction is not the one that its entry proves: it was changed".into());
    }
    let evidence = terms.map(|(_, digest)| stored.evidence(digest));
    if evidence.is_none() || moved.proof != evidence.map(|evidence| (proving as i64, evidence)) {
        problems.push("its record is not the one that its entries prove: it was changed".into());
    }
    problems
}

fn end_problem(stored: &Stored) -> Option<String> {
    match stored.end.as_deref().map(End::decode_body) {
        None => Some("settled without an End".into()),
        Some(Err(error)) => Some(format!("its End does not decode: {error}")),
        Some(Ok(end)) if end.request_id != stored.request_id => Some(format!("its End is that of {}", end.request_id)),
        Some(Ok(end)) if end.cost != stored.cost => {
            Some(format!("charged {} nano-USD, its End says {}", stored.cost.0, end.cost.0))
        }
        Some(Ok(_)) => None,
    }
}

/// What was used costs what was charged, at the request's own terms.
fn price_problem(stored: &Stored, offers: &[Offer], correction: Option<&Correction>) -> Option<String> {
    let end = End::decode_body(stored.end.as_deref()?).ok()?;
    let Some(offer) = stored.ran(offers) else { return Some("its terms do not have what ran".into()) };
    let (costs, _) = settle::charge(&offer.price, &end.usage, stored.held);
    let was = stored.cost + stored.absorbed;
    if costs != was {
        return Some(format!("charged and borne are {} nano-USD, what was used costs {}", was.0, costs.0));
    }
    let correction = correction?;
    let costs = correct::price(&offer.price, &correction.lines().ok()?, stored);
    let is = correction.cost.wrapping_add(correction.absorbed);
    (costs.0 != is).then(|| format!("corrected to {is} nano-USD, what was used costs {}", costs.0))
}
