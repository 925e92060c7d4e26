//! Who serves a request: the first of its offers, or the next where that one does not answer.
//!
//! Another is asked only before the head of an answer has gone out; the tenant pays for the one that
//! serves. What a provider may have begun on and never answered is the relay's own cost.

use super::Escalator;
use super::finish::Ending;
use super::plan::{Candidate, Plan};
use super::runner::Flight;
use crate::providers::{Answer, Call, CallFuture};
use crate::store::ledger::hold::Usable;
use belay_protocol::id::TenantId;
use belay_protocol::message::{FailureCode, Outcome};
use bytes::Bytes;
use tokio::time::Instant;
use tracing::warn;

/// What a caller sent, for the providers.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) body: Bytes,
    pub(super) headers: Vec<(String, String)>,
}

/// The offers of a request whose money is held.
#[derive(Debug)]
pub(super) struct Offers {
    usable: Vec<Usable>,
    /// Which of them is asked.
    at: usize,
    /// Kept while there is another that could be asked.
    sent: Option<Sent>,
    /// Those that did not answer, and why.
    failed: Vec<String>,
}

impl Offers {
    /// `usable` is not empty.
    pub(super) fn new(usable: Vec<Usable>, sent: Sent) -> Self {
        let sent = (usable.len() > 1).then_some(sent);
        Self { usable, at: 0, sent, failed: vec![] }
    }

    /// No other will be asked: what it would be sent is let go.
    pub(super) fn settle_on(&mut self) {
        self.sent = None;
    }

    /// The one that is asked, by its place in the request's terms.
    pub(super) fn number(&self) -> usize {
        self.at
    }

    /// The candidate that is asked.
    pub(super) fn candidate<'a>(&self, plan: &'a Plan) -> &'a Candidate {
        &plan.candidates[self.usable[self.at].place]
    }

    /// What those that did not answer said, for the caller.
    pub(super) fn header(&self) -> Option<(String, String)> {
        (!self.failed.is_empty()).then(|| ("belay-fell-back-from".to_owned(), self.failed.join(", ")))
    }
}

/// Statuses of which another provider may know better: the fault is not the request's.
fn is_their_fault(status: u16) -> bool {
    matches!(status, 401..=404 | 408 | 429 | 500..=599)
}

/// Why a provider did not answer, if another may.
fn why_not(answer: &Result<Answer, Ending>) -> Option<String> {
    match answer {
        Ok(answer) => is_their_fault(answer.status).then(|| format!("status {}", answer.status)),
        Err(Ending::NotDispatched(FailureCode::PROVIDER_UNAVAILABLE, _)) => Some("unreachable".into()),
        Err(Ending::After(Outcome::PROVIDER_FAILED, _)) => Some("failed".into()),
        Err(Ending::After(Outcome::TIMED_OUT, _)) => Some("silent".into()),
        Err(_) => None,
    }
}

impl Escalator {
    /// A call to a candidate's provider, which is sent once it is polled. Errors: why it cannot be made.
    pub(super) fn prepare(
        &self,
        tenant: &TenantId,
        plan: &Plan,
        usable: &Usable,
        sent: &Sent,
        output_cap: u32,
    ) -> Result<CallFuture, String> {
        let candidate = &plan.candidates[usable.place];
        let name = &candidate.model.provider;
        let provider = self.providers.get(name).ok_or_else(|| format!("provider {name} is not running"))?;
        let opened = usable.key.as_ref().map(|key| {
            let unreadable = || format!("the tenant's key for {name} was sealed under another master key; set it anew");
            self.sealer.open(tenant, name, key).ok_or_else(unreadable)
        });
        let body = plan.outgoing(candidate, &sent.body, output_cap);
        let (operation, headers) = (plan.operation, sent.headers.clone());
        Ok(provider.call(Call { operation, body, headers, key: opened.transpose()? }))
    }
}

impl Flight<'_> {
    /// The candidate that serves, or is being asked.
    pub(super) fn candidate(&self) -> &Candidate {
        self.offers.candidate(&self.plan)
    }

    /// Turns to the next offer if this one has not answered. Returns the call to it.
    pub(super) fn fall_back(&mut self, answer: &Result<Answer, Ending>) -> Option<Result<CallFuture, String>> {
        let why = why_not(answer).filter(|_| Instant::now() < self.deadline)?;
        let sent = self.offers.sent.clone()?;
        if self.offers.at + 1 >= self.offers.usable.len() {
            return None;
        }
        let from = &self.candidate().model.provider;
        self.span.in_scope(|| warn!(provider = %from, %why, "falling back to the next offer"));
        let failed = format!("{from} ({why})");
        self.offers.failed.push(failed);
        self.offers.at += 1;
        self.meter = self.plan.meter(self.candidate());
        self.answers = self.plan.answers(self.candidate(), self.escalator.env.clock.now_ms());
        let usable = &self.offers.usable[self.offers.at];
        Some(self.escalator.prepare(&self.held.tenant.id, &self.plan, usable, &sent, self.held.output_cap))
    }
}

#[cfg(test)]
mod tests {
    use super::is_their_fault;

    #[test]
    fn a_request_that_is_wrong_is_wrong_everywhere() {
        for status in [200, 400, 405, 409, 413, 422] {
            assert!(!is_their_fault(status), "{status}");
        }
        for status in [401, 402, 403, 404, 408, 429, 500, 503, 529] {
            assert!(is_their_fault(status), "{status}");
        }
    }
}
