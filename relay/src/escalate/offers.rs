//! Who serves a request: the first of its offers, or the next where that one does not answer; after the
//! last, those are asked again that said when, or whose fault may pass.
//!
//! Another is asked only before the head of an answer has gone out; the tenant pays for the one that
//! serves, or that is asked last. What those before it may have begun on is the relay's own cost.

use super::Escalator;
use super::candidates::Candidate;
use super::finish::Ending;
use super::plan::Plan;
use super::runner::Flight;
use super::traced::Traced;
use crate::config::Retries;
use crate::providers::{Answer, Call, CallFuture};
use crate::settings::Settings;
use crate::store::ledger::hold::Usable;
use belay_protocol::id::TenantId;
use belay_protocol::message::{FailureCode, Outcome};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// Before the first time that all are asked again.
const FIRST_WAIT: Duration = Duration::from_millis(300);

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
    /// Kept while another call may be made.
    sent: Option<Sent>,
    /// Those that did not answer, and why.
    failed: Vec<String>,
    /// Of each offer that failed for a reason that may pass: when it may be asked again.
    again: Vec<(usize, Instant)>,
    /// So often they may all be asked again.
    rounds: u32,
    retries: Retries,
}

impl Offers {
    /// `usable` is not empty.
    pub(super) fn new(usable: Vec<Usable>, sent: Sent, retries: Retries) -> Self {
        let sent = (usable.len() > 1 || retries.rounds > 0).then_some(sent);
        Self { usable, at: 0, sent, failed: vec![], again: vec![], rounds: retries.rounds, retries }
    }

    /// No other call will be made: what would be sent is let go.
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

    /// Turns to the next offer; after the last, to the one that may be asked again the soonest. Returns when,
    /// which is before `deadline`; where there is no other, all stays as it is.
    fn turn(&mut self, failure: &Failure, now: Instant, deadline: Instant) -> Option<Instant> {
        if failure.passes {
            // Twice as long each round where nobody says how long.
            let round = self.retries.rounds.saturating_sub(self.rounds);
            let wait = failure.retry_after_ms.map_or(FIRST_WAIT * (1 << round.min(6)), Duration::from_millis);
            self.again.push((self.at, now + wait));
        }
        if self.at + 1 < self.usable.len() && now < deadline {
            self.at += 1;
            return Some(now);
        }
        let rounds = self.rounds.checked_sub(1)?;
        let latest = deadline.min(now + self.retries.longest_wait);
        let soonest = self.again.iter().copied().min_by_key(|(_, when)| *when);
        let (at, when) = soonest.filter(|(_, when)| *when < latest)?;
        (self.at, self.rounds) = (at, rounds);
        self.again.clear();
        Some(when)
    }
}

/// Why a provider did not answer.
#[derive(Debug)]
struct Failure {
    why: String,
    /// It may answer the same request a moment later.
    passes: bool,
    /// It said when.
    retry_after_ms: Option<u64>,
}

/// Statuses of which another provider may know better: the fault is not the request's.
fn is_their_fault(status: u16) -> bool {
    matches!(status, 401..=404 | 408 | 429 | 500..=599)
}

/// Statuses that may be others a moment later.
fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=504 | 529)
}

/// Why a provider did not answer, if another may, or it may itself later.
fn why_not(answer: &Result<Answer, Ending>) -> Option<Failure> {
    let failure = |why: &str, passes| Some(Failure { why: why.into(), passes, retry_after_ms: None });
    match answer {
        Ok(answer) if is_their_fault(answer.status) => Some(Failure {
            why: format!("status {}", answer.status),
            passes: may_pass(answer.status),
            retry_after_ms: retry_after_ms(&answer.headers),
        }),
        Ok(_) => None,
        Err(Ending::NotDispatched(FailureCode::PROVIDER_UNAVAILABLE, _)) => failure("unreachable", true),
        Err(Ending::After(Outcome::PROVIDER_FAILED, _)) => failure("failed", true),
        Err(Ending::After(Outcome::TIMED_OUT, _)) => failure("silent", false),
        Err(_) => None,
    }
}

/// When a provider wants to be asked again: in milliseconds, or in seconds.
fn retry_after_ms(headers: &[(String, String)]) -> Option<u64> {
    let number = |name: &str| headers.iter().find(|(key, _)| key == name)?.1.trim().parse::<f64>().ok();
    let ms = number("retry-after-ms").or_else(|| Some(number("retry-after")? * 1000.0))?;
    // A day is as good as never.
    (ms >= 0.0).then(|| ms.min(86_400_000.0) as u64)
}

impl Escalator {
    /// A call to a candidate's provider, which is sent once it is polled. Errors: why it cannot be made.
    pub(super) fn prepare(
        &self,
        (settings, tenant, plan): (&Settings, &TenantId, &Plan),
        usable: &Usable,
        sent: &Sent,
        output_cap: u32,
        traced: &mut Traced,
    ) -> Result<CallFuture, String> {
        let candidate = &plan.candidates[usable.place];
        let name = &candidate.model.provider;
        let provider = settings.providers.get(name).ok_or_else(|| format!("provider {name} is not running"))?;
        let opened = usable.key.as_ref().map(|key| {
            let unreadable = || format!("the tenant's key for {name} was sealed under another master key; set it anew");
            self.sealer.open(tenant, name, key).ok_or_else(unreadable)
        });
        let body = plan.outgoing(candidate, &sent.body, output_cap);
        let (operation, headers) = (plan.operation, sent.headers.clone());
        let trace = traced.call(candidate, &settings.config, (operation, plan.stream, output_cap));
        Ok(provider.call(Call { operation, body, headers, key: opened.transpose()?, trace }))
    }
}

impl Flight<'_> {
    /// The candidate that serves, or is being asked.
    pub(super) fn candidate(&self) -> &Candidate {
        self.offers.candidate(&self.plan)
    }

    /// Counts what became of a call.
    fn count_call(&self, answer: &Result<Answer, Ending>, now: Instant) {
        let (became, head_after) = match answer {
            Ok(answer) => {
                let became = match answer.status {
                    200..=299 => "answered",
                    429 => "rate_limited",
                    500..=599 => "failed",
                    _ => "refused",
                };
                (became, Some(now.duration_since(self.asked_at)))
            }
            Err(Ending::NotDispatched(FailureCode::PROVIDER_UNAVAILABLE, _)) => ("unreachable", None),
            Err(Ending::After(Outcome::PROVIDER_FAILED, _)) => ("failed", None),
            Err(Ending::After(Outcome::TIMED_OUT, _)) => ("silent", None),
            // Nobody waited for what it would have said.
            Err(_) => ("given_up", None),
        };
        self.escalator.metrics.called(&self.candidate().model.provider, became, head_after);
    }

    /// Turns to the next offer if this one has not answered. Returns the call to it, and when it is to be
    /// made.
    pub(super) fn fall_back(
        &mut self,
        answer: &Result<Answer, Ending>,
    ) -> Option<(Result<CallFuture, String>, Instant)> {
        let (now, now_ms) = (Instant::now(), self.escalator.env.clock.now_ms());
        self.count_call(answer, now);
        let asked = Arc::clone(&self.candidate().model);
        let health = &self.escalator.health;
        let Some(failure) = why_not(answer) else {
            self.traced.answered(answer, true);
            if answer.is_ok() && health.answered(&asked.provider, &asked.name) {
                self.span.in_scope(|| info!(provider = %asked.provider, model = %asked.name, "it answers again"));
            }
            return None;
        };
        // What a tenant's own key meets says nothing of others.
        let is_shared = self.offers.usable[self.offers.at].key.is_none();
        if is_shared && health.failed(&asked.provider, &asked.name, failure.retry_after_ms, now_ms) {
            let (provider, model, why) = (&asked.provider, &asked.name, &failure.why);
            self.span.in_scope(|| warn!(%provider, %model, %why, "others are asked before it for a while"));
        }
        let failed = format!("{} ({})", asked.provider, failure.why);
        let turned = self.offers.sent.clone().zip(self.offers.turn(&failure, now, self.deadline));
        self.traced.answered(answer, turned.is_none());
        let (sent, when) = turned?;
        self.span.in_scope(|| warn!(%failed, wait_ms = (when - now).as_millis(), "asking another, or again"));
        self.offers.failed.push(failed);
        self.meter = self.plan.meter(self.candidate());
        self.answers = self.plan.answers(self.candidate(), now_ms);
        let usable = &self.offers.usable[self.offers.at];
        let of = (&*self.settings, &self.held.tenant.id, &self.plan);
        let call = self.escalator.prepare(of, usable, &sent, self.held.output_cap, &mut self.traced);
        Some((call, when))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_wrong_is_wrong_everywhere() {
        for status in [200, 400, 405, 409, 413, 422] {
            assert!(!is_their_fault(status), "{status}");
        }
        for status in [401, 402, 403, 404, 408, 429, 500, 503, 529] {
            assert!(is_their_fault(status), "{status}");
        }
        // None is asked again whose answer would be the same.
        for status in 400..=599 {
            assert!(!may_pass(status) || is_their_fault(status), "{status}");
        }
        assert!(!may_pass(401) && !may_pass(404) && may_pass(429) && may_pass(529));
    }

    #[test]
    fn where_no_other_is_asked_the_last_one_stays() {
        let usable = (0..2).map(|place| Usable { place, key: None }).collect();
        let sent = Sent { body: Bytes::new(), headers: vec![] };
        let retries = Retries { rounds: 1, longest_wait: Duration::from_secs(5) };
        let mut offers = Offers::new(usable, sent, retries);
        let failure = |passes, retry_after_ms| Failure { why: "no".into(), passes, retry_after_ms };
        let now = Instant::now();
        let deadline = now + Duration::from_secs(60);
        // The first wants more time than there is, the second fails for good.
        assert_eq!(offers.turn(&failure(true, Some(30_000)), now, deadline), Some(now));
        assert_eq!((offers.at, offers.turn(&failure(false, None), now, deadline)), (1, None));
        assert_eq!((offers.at, offers.rounds), (1, 1));
        // One that comes back soon enough is turned to, but not after the deadline.
        let soon = failure(true, Some(2_000));
        assert_eq!(offers.turn(&soon, now, now + Duration::from_secs(1)), None);
        assert_eq!(offers.at, 1);
        assert_eq!(offers.turn(&soon, now, deadline), Some(now + Duration::from_secs(2)));
        assert_eq!((offers.at, offers.rounds), (1, 0));
        assert_eq!(offers.turn(&soon, now, deadline), None, "no round is left");
    }

    #[test]
    fn providers_say_when_to_come_back_in_two_ways() {
        let said = |headers: &[(&str, &str)]| {
            let headers: Vec<_> =
                headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            retry_after_ms(&headers)
        };
        assert_eq!(said(&[("retry-after", "2")]), Some(2000));
        assert_eq!(said(&[("retry-after", "0.5")]), Some(500));
        assert_eq!(said(&[("retry-after", "9"), ("retry-after-ms", "20")]), Some(20));
        assert_eq!(said(&[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")]), None);
        assert_eq!(said(&[("retry-after", "-1")]), None);
        assert_eq!(said(&[("retry-after", "1e300")]), Some(86_400_000));
    }
}
