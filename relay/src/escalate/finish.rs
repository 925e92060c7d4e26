//! The end of a request: settle or void, then tell the client.

use super::delivery::{Delivery, Events};
use super::runner::Flight;
use super::{Escalator, Held, failed, send_failed, store_failed};
use crate::store::executor::Db;
use crate::store::ledger::settle::{Settled, Settlement, settle, void};
use crate::store::{Connection, StoreError};
use belay_protocol::frame::{FrameType, frame};
use belay_protocol::id::{RequestId, TenantId};
use belay_protocol::message::{Failed, FailureCode, Outcome, UnitKind, UsageLine};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tracing::{info, warn};

/// How often a settlement is tried while the store fails, before it is left to the sweeper.
const SETTLE_TRIES: u32 = 6;

/// What is said of a request that took too long.
const PAST_DEADLINE: &str = "the request took longer than its deadline";

/// How a request came to its end.
#[derive(Debug)]
pub(super) enum Ending {
    /// The provider said that it was done.
    Complete,
    /// It ended otherwise after the provider had been called: what was used is charged.
    After(Outcome, String),
    /// The provider never saw it: nothing is charged.
    NotDispatched(FailureCode, String),
    /// The time that its caller gave it, or the relay gives any, was over.
    PastDeadline,
    /// The provider refused it with this status; its words are on their way to the client.
    RefusedByProvider(u16),
}

impl Ending {
    /// The provider could not be asked.
    pub(super) fn not_dispatched(why: impl Into<String>) -> Self {
        Self::NotDispatched(FailureCode::PROVIDER_UNAVAILABLE, why.into())
    }

    /// The same end, of a request that had not been sent yet.
    pub(super) fn before_the_call(self) -> Self {
        match self {
            Self::After(Outcome::REVOKED, why) => Self::NotDispatched(FailureCode::REVOKED, why),
            Self::After(Outcome::DRAINED, why) => Self::NotDispatched(FailureCode::DRAINING, why),
            Self::After(_, why) => Self::NotDispatched(FailureCode::CANCELLED, why),
            other => other,
        }
    }
}

/// Tokens in and out; reasoning is part of the output.
fn tokens(usage: &[UsageLine]) -> u64 {
    let others = [UnitKind::REASONING, UnitKind::CALLS, UnitKind::WEB_SEARCHES];
    usage.iter().filter(|line| !others.contains(&line.kind)).map(|line| line.units).sum()
}

impl Held {
    /// Counts the tokens that were used in place of those that it was taken for.
    fn count(&self, used: u64, now_ms: u64) {
        let bounds: Vec<_> = self.remaining.iter().map(|remaining| remaining.bound.clone()).collect();
        self.tenant.rates.correct(&bounds, self.counted, used, now_ms);
    }
}

impl Flight<'_> {
    /// Resolves the hold and tells the client.
    pub(super) async fn end(self, ending: Ending) {
        let id = self.held.guard.request_id;
        match ending {
            Ending::Complete => self.settle(Outcome::COMPLETE, String::new()).await,
            Ending::After(outcome, why) => self.settle(outcome, why).await,
            Ending::PastDeadline => self.settle(Outcome::TIMED_OUT, PAST_DEADLINE.into()).await,
            Ending::NotDispatched(code, why) => {
                let remedy = "try again; if it persists, ask the operator of the relay";
                self.void(failed(id, code, why, remedy)).await;
            }
            Ending::RefusedByProvider(status) => {
                let message = format!("the provider refused the request with status {status}");
                self.void(failed(id, FailureCode::PROVIDER_REFUSED, message, "see the provider's own words")).await;
            }
        }
    }

    async fn settle(mut self, outcome: Outcome, message: String) {
        let report = self.meter.report(self.held.guard.input_bytes);
        let first_event_ms = self.first_event.map(|at| at.duration_since(self.held.at).as_millis());
        let settlement = Settlement {
            request_id: self.held.guard.request_id,
            offer: self.offers.number(),
            outcome,
            message,
            usage: report.lines,
            estimated: report.estimated,
            events: self.log.next(),
            first_event_ms: first_event_ms.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX)),
            answer: self.said.take().map(Arc::from).unwrap_or_default(),
            now_ms: self.escalator.env.clock.now_ms(),
        };
        self.traced.used(outcome, &settlement.usage);
        let part = self.traced.part("settle");
        // Should the store fail for long, the sweeper settles so.
        self.held.guard.settling(&settlement);
        let settled = self.escalator.settle(&self.held.tenant.id, settlement).await;
        drop(part);
        match settled {
            Ok(settled) => {
                self.traced.settled(&settled.end);
                self.held.guard.disarm();
                self.held.tenant.journal.end(settled.end.request_id);
                let end = &settled.end;
                // Not what the sweeper has settled for a task that stood still.
                if !settled.is_repeated {
                    self.escalator.metrics.settled(&settled.provider, end, settled.absorbed);
                    self.held.tenant.unflushed.add(end.cost, self.escalator.env.clock.now_ms());
                }
                self.held.count(tokens(&end.usage), self.escalator.env.clock.now_ms());
                info!(outcome = %end.outcome, cost = %end.cost, balance = %end.balance, estimated = end.estimated,
                    events = end.events, first_event_ms = end.first_event_ms, total_ms = end.total_ms, "request settled");
                match frame(FrameType::End, &settled.end_bytes) {
                    Ok(end) => self.deliver(end).await,
                    Err(error) => warn!(%error, "cannot send an End"),
                }
            }
            // The guard stays armed: the sweeper settles once the store works again.
            Err(error) => {
                let failure = store_failed(self.held.guard.request_id, &error);
                self.fail(&failure).await;
            }
        }
    }

    /// Hands `End` over; an answer whose reader is away waits for it in a task of its own.
    async fn deliver(self, end: Bytes) {
        let Self { escalator, registration, head, log, reader, .. } = self;
        let delivery = Delivery { registration, head, events: Events::Plain(log), end };
        let waiting = match reader {
            Some(reader) => delivery.deliver(reader).await,
            None => Some((delivery, None)),
        };
        if let Some((waiting, reader)) = waiting {
            let keep = self.settings.config.timeouts.keep_answer;
            let budget = Arc::clone(&escalator.flights.budget);
            escalator.deliveries.spawn(waiting.wait(reader, budget, keep, escalator.stop_deliveries.clone()));
        }
    }

    async fn void(mut self, failure: Failed) {
        let (id, tenant) = (self.held.guard.request_id, self.held.tenant.id.clone());
        // Should the store fail for long, the sweeper gives it back.
        self.held.guard.voiding();
        match self.escalator.void(&tenant, id).await {
            Ok(true) => {
                self.held.guard.disarm();
                self.held.tenant.journal.end(id);
                self.held.count(0, self.escalator.env.clock.now_ms());
                self.escalator.metrics.refused(failure.code);
                info!(code = %failure.code, "request voided: {}", failure.message);
                self.fail(&failure).await;
            }
            // Its lease ran out, and the sweeper was faster.
            Ok(false) => {
                self.held.guard.disarm();
                let words = "the request stood still for too long and was charged by estimate";
                self.fail(&failed(id, FailureCode::IN_PROGRESS, words, "ask again with the same id for its end")).await;
            }
            Err(error) => self.fail(&store_failed(id, &error)).await,
        }
    }

    /// A reader that is away asks again and is told then.
    async fn fail(mut self, failure: &Failed) {
        self.traced.failed(failure.code);
        if let Some(reader) = &mut self.reader {
            send_failed(&mut reader.stream, failure).await;
        }
        self.registration.close().await;
    }
}

impl Escalator {
    /// Settles durably. A commit whose outcome is unknown is tried again: settling twice gives the
    /// same answer.
    pub(super) async fn settle(&self, tenant: &TenantId, settlement: Settlement) -> Result<Settled, StoreError> {
        let command = || {
            let settlement = settlement.clone();
            move |connection: &Connection| settle(connection, &settlement)
        };
        self.insist(tenant, "a settlement", command).await
    }

    /// Gives a hold back, durably; doing it twice does it once. False: it was settled.
    async fn void(&self, tenant: &TenantId, id: RequestId) -> Result<bool, StoreError> {
        let now_ms = self.env.clock.now_ms();
        self.insist(tenant, "giving a hold back", || move |connection: &Connection| void(connection, id, now_ms)).await
    }

    /// Tries a command again for as long as its failure may pass, some seconds at the most.
    async fn insist<T, F>(&self, tenant: &TenantId, what: &str, command: impl Fn() -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let mut wait = Duration::from_millis(20);
        let mut tries = 1;
        loop {
            match self.store.run(Db::Tenant(tenant.clone()), command()).await {
                Err(error) if tries < SETTLE_TRIES && error.may_pass() => {
                    warn!(%error, tries, "{what} failed; trying again");
                    // The disk may be full, and the reserve is for this.
                    self.reserve.look();
                    sleep(wait).await;
                    wait *= 3;
                    tries += 1;
                }
                other => return other,
            }
        }
    }
}
