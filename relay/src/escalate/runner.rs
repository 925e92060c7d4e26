//! Sends a request to its provider and passes the answer on, event by event.
//!
//! The reader may be lost and come back on another stream: the provider is read on meanwhile, as far
//! as there is room, for the resume window.

use super::finish::Ending;
use super::flights::{Attach, Registration};
use super::log::EventLog;
use super::offers::Offers;
use super::patience::Patience;
use super::plan::Plan;
use super::reader::{Heard, Reader};
use super::sweeper::RENEW;
use super::traced::Traced;
use super::watch::Watch;
use super::whole::Whole;
use super::{Begun, ClientStream, Escalator, Held};
use crate::ops::memory::BodyPermit;
use crate::providers::{Answer, CallFuture, ProviderError};
use crate::settings::Settings;
use belay_protocol::dialect::sse::SseSplitter;
use belay_protocol::dialect::translate::Answers;
use belay_protocol::dialect::usage::UsageMeter;
use belay_protocol::frame::MAX_CHUNK;
use belay_protocol::message::{EscalateRequest, Outcome, ResponseHead};
use belay_protocol::stream::StreamError;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::{Instrument, Span, info, warn};

/// What is said of an answer that broke off.
const BROKEN: &str = "the provider's connection failed";

/// A request in flight.
pub(super) struct Flight<'a> {
    pub(super) escalator: &'a Escalator,
    /// Those that it began with.
    pub(super) settings: Arc<Settings>,
    pub(super) plan: Plan,
    pub(super) held: Held,
    /// Who may serve it, and who does.
    pub(super) offers: Offers,
    /// When its provider was asked.
    pub(super) asked_at: Instant,
    /// How other streams find this request.
    pub(super) registration: Registration,
    /// Who reads the answer; `None` while it is away.
    pub(super) reader: Option<Reader>,
    /// Ends the request unless a reader comes back before.
    away: Option<Pin<Box<Sleep>>>,
    /// As it was sent, for readers that come later.
    pub(super) head: Option<ResponseHead>,
    /// Entered where something is logged, not at every poll.
    pub(super) span: &'a Span,
    pub(super) log: EventLog,
    pub(super) meter: UsageMeter,
    /// Carries the answer over to a caller of another dialect.
    pub(super) answers: Option<Box<Answers>>,
    pub(super) first_event: Option<Instant>,
    /// When the first event came that has not been written yet.
    unwritten: Option<Instant>,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    pub(super) deadline: Instant,
    pub(super) progress_noted: Instant,
    /// Renews the lease of the hold when there is nothing to note.
    renewal: Pin<Box<Sleep>>,
    /// Room for the request's body, until the provider has it.
    body_permit: Option<BodyPermit>,
    /// Whole answers that are not streamed are kept for their usage figures.
    pub(super) whole: Whole,
    /// What it says, where a session is to have it.
    pub(super) said: Option<String>,
    pub(super) traced: Traced,
}

impl Escalator {
    pub(super) async fn run_held(
        &self,
        request: &EscalateRequest,
        begun: Begun,
        body_permit: BodyPermit,
        (stream, traced): (ClientStream, Traced),
        span: &Span,
    ) {
        let Begun { settings, plan, held, offers, call, registration } = begun;
        let total = settings.config.timeouts.total;
        let total = request.deadline_ms.map_or(total, |ms| total.min(Duration::from_millis(ms.into())));
        let flight = Flight {
            log: EventLog::new(settings.config.limits.unread_events, Arc::clone(&self.flights.budget)),
            meter: plan.meter(offers.candidate(&plan)),
            answers: plan.answers(offers.candidate(&plan), self.env.clock.now_ms()),
            first_event: None,
            unwritten: None,
            revoked: Box::pin(registration.revoked.clone().cancelled_owned()),
            stop: Box::pin(self.stop.clone().cancelled_owned()),
            deadline: held.at + total,
            progress_noted: held.at,
            asked_at: held.at,
            renewal: Box::pin(sleep(RENEW)),
            offers,
            body_permit: Some(body_permit),
            whole: Whole::new(&self.memory),
            said: plan.is_in_session().then(String::new),
            escalator: self,
            settings,
            plan,
            held,
            registration,
            reader: Some(Reader::new(stream)),
            away: None,
            head: None,
            span,
            traced,
        };
        flight.fly(call).await;
    }
}

impl Flight<'_> {
    async fn fly(mut self, mut call: Result<CallFuture, String>) {
        let body_permit = self.body_permit.take();
        let answer = loop {
            let answer = self.dispatch(call).await;
            let Some((next, when)) = self.fall_back(&answer) else { break answer };
            call = next;
            // Rare, and not to make every request's task larger.
            if let Err(ending) = Box::pin(self.wait_until(when)).await {
                break Err(ending);
            }
        };
        // The provider has the body, or will not get it; nobody else will be asked.
        self.offers.settle_on();
        drop(body_permit);
        let ending = match answer {
            Ok(answer) if (200..300).contains(&answer.status) => self.pass_on(answer).await,
            Ok(answer) => self.refused_by_provider(answer).await,
            Err(ending) => ending,
        };
        let span = self.span.clone();
        self.end(ending).instrument(span).await;
    }

    /// Waits for the next attempt. Errors: the request ends before.
    async fn wait_until(&mut self, when: Instant) -> Result<(), Ending> {
        if when <= Instant::now() {
            return Ok(());
        }
        let mut timer = pin!(sleep_until(when));
        poll_fn(|cx| match self.poll_interruption(cx) {
            Poll::Ready(ending) => Poll::Ready(Err(ending.before_the_call())),
            Poll::Pending => timer.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    /// Notes that a provider is called, and calls it.
    async fn dispatch(&mut self, call: Result<CallFuture, String>) -> Result<Answer, Ending> {
        let call = call.map_err(Ending::not_dispatched)?;
        self.held.guard.note(self.progress());
        let noted = self.held.tenant.journal.append(self.held.guard.request_id, self.held.guard.progress());
        noted.map_err(|error| {
            self.span.in_scope(|| warn!(%error, "cannot note the dispatch"));
            Ending::not_dispatched("the relay could not note the dispatch")
        })?;
        self.call(call).await
    }

    /// Waits for the provider's status and headers.
    async fn call(&mut self, mut answer: CallFuture) -> Result<Answer, Ending> {
        self.asked_at = Instant::now();
        self.traced.dispatched();
        let first_event = self.asked_at + self.settings.config.timeouts.first_event;
        let mut timer = pin!(sleep_until(first_event.min(self.deadline)));
        let mut is_sent = false;
        poll_fn(|cx| {
            if let Poll::Ready(ending) = self.poll_interruption(cx) {
                return Poll::Ready(Err(if is_sent { ending } else { ending.before_the_call() }));
            }
            is_sent = true;
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer.map_err(|error| self.no_answer(&error)));
            }
            ready!(timer.as_mut().poll(cx));
            // Of a caller in a hurry, the provider has done nothing wrong.
            Poll::Ready(Err(if Instant::now() >= self.deadline {
                Ending::PastDeadline
            } else {
                Ending::After(Outcome::TIMED_OUT, "the provider sent nothing in time".into())
            }))
        })
        .await
    }

    /// What the caller hears; addresses and networks are the operator's.
    fn no_answer(&self, error: &ProviderError) -> Ending {
        let provider = &self.candidate().model.provider;
        self.span.in_scope(|| warn!(%provider, %error, "a provider gave no answer"));
        match error {
            ProviderError::Unreachable(_) => Ending::not_dispatched(format!("cannot reach the provider {provider}")),
            ProviderError::Broken(_) => Ending::After(Outcome::PROVIDER_FAILED, BROKEN.into()),
        }
    }

    /// Passes a successful answer on until its end.
    async fn pass_on(&mut self, mut answer: Answer) -> Ending {
        let streams = answer.is_event_stream();
        if let Err(error) = self.queue_head(&answer, streams) {
            return Ending::After(Outcome::PROVIDER_FAILED, error.to_string());
        }
        let mut splitter = SseSplitter::new(MAX_CHUNK);
        let timeouts = &self.settings.config.timeouts;
        let until = self.asked_at + timeouts.first_event;
        let mut patience = Patience {
            between_events: timeouts.between_events,
            deadline: self.deadline,
            timer: pin!(sleep_until(self.deadline.min(until))),
            until,
            paused: false,
        };
        let mut watch = Watch::default();
        poll_fn(|cx| {
            // Cancellation and the client first: nothing that the provider says may delay them.
            if let Some(waker) = watch.woken(cx) {
                let cx = &mut Context::from_waker(&waker);
                if let Poll::Ready(ending) = self.poll_interruption(cx) {
                    return Poll::Ready(ending);
                }
                if let Poll::Ready(ending) = patience.poll(cx) {
                    return Poll::Ready(ending);
                }
            }
            // A token passes in a single round.
            loop {
                if let Poll::Ready(ending) = self.poll_provider(cx, &mut answer, &mut splitter, &mut patience, streams)
                {
                    return Poll::Ready(ending);
                }
                let was_full = !self.has_room();
                if let Poll::Ready(ending) = self.poll_write(cx, &watch) {
                    return Poll::Ready(ending);
                }
                if let Some(heard) = self.unwritten.take() {
                    self.escalator.metrics.travelled(heard.elapsed());
                }
                self.note_progress();
                // Unless the write has made room, everything has been asked to wake this task.
                if !was_full || !self.has_room() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Ready when the request must end for a reason of the relay or of the client.
    pub(super) fn poll_interruption(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        if self.revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ending::After(Outcome::REVOKED, "access was revoked".into()));
        }
        if self.stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ending::After(Outcome::DRAINED, "the relay was shut down".into()));
        }
        while self.renewal.as_mut().poll(cx).is_ready() {
            self.held.guard.note(self.progress());
            self.renewal.as_mut().reset(Instant::now() + RENEW);
        }
        while let Poll::Ready(Some(attach)) = self.registration.readers.poll_recv(cx) {
            self.attach(attach);
        }
        while let Some(reader) = &mut self.reader {
            match reader.poll_heard(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(Heard::Acknowledged(ack))) => self.log.acknowledge(ack.next),
                Poll::Ready(Ok(Heard::Silence)) => {}
                Poll::Ready(Ok(Heard::Cancelled(why))) => {
                    return Poll::Ready(Ending::After(Outcome::CANCELLED, why));
                }
                Poll::Ready(Err(error)) => {
                    if let Poll::Ready(ending) = self.left(&error) {
                        return Poll::Ready(ending);
                    }
                }
            }
        }
        if let Some(reader) = &mut self.reader
            && let Poll::Ready(error) = reader.stream.writer.poll_stopped(cx)
            && let Poll::Ready(ending) = self.left(&error)
        {
            return Poll::Ready(ending);
        }
        if let Some(away) = &mut self.away {
            ready!(away.as_mut().poll(cx));
            let window = self.settings.config.timeouts.resume_window.as_secs();
            let why = format!("the connection was lost, and nobody came back for the answer within {window} s");
            return Poll::Ready(Ending::After(Outcome::CANCELLED, why));
        }
        Poll::Pending
    }

    /// The reader's stream is over. Whoever ended it wants no more; a lost tunnel says nothing of
    /// the kind, and its reader may come back, as one that detached may. Ready in the first case.
    fn left(&mut self, error: &StreamError) -> Poll<Ending> {
        if !error.is_away() {
            return Poll::Ready(Ending::After(Outcome::CANCELLED, error.to_string()));
        }
        self.span.in_scope(|| info!(why = %error, events = self.log.next(), "the reader is away"));
        self.traced.event("the reader is away");
        self.reader = None;
        self.away = Some(Box::pin(sleep(self.settings.config.timeouts.resume_window)));
        Poll::Pending
    }

    /// Another stream reads on, from a number that it names.
    fn attach(&mut self, attach: Attach) {
        if let Some(old) = self.reader.take() {
            old.supersede();
        }
        self.span.in_scope(|| info!(next = attach.next, events = self.log.next(), "a reader is back"));
        self.traced.event("a reader is back");
        self.away = None;
        self.log.acknowledge(attach.next);
        let mut reader = Reader::new(attach.stream);
        if let Some(head) = &self.head {
            reader.replay(head, &self.log);
        }
        self.reader = Some(reader);
    }

    /// Takes in what the provider has sent, while there is room. Ready at the answer's end.
    fn poll_provider(
        &mut self,
        cx: &mut Context<'_>,
        answer: &mut Answer,
        splitter: &mut SseSplitter,
        patience: &mut Patience<'_>,
        streams: bool,
    ) -> Poll<Ending> {
        loop {
            patience.pause(!self.has_room());
            if patience.paused {
                if self.log.is_short_of_budget() {
                    self.escalator.flights.evict();
                }
                return Poll::Pending;
            }
            let chunk = ready!(answer.body.poll_chunk(cx));
            let before = self.log.next();
            let taken = match chunk {
                None => Err(self.provider_ended(streams)),
                Some(Err(error)) => Err(self.no_answer(&error)),
                Some(Ok(chunk)) if streams => self.take_events(splitter, chunk),
                Some(Ok(chunk)) => self.take_bytes(chunk),
            };
            // A provider that sends bytes and no event is silent.
            if self.log.next() != before {
                let heard = Instant::now();
                patience.heard(heard, self.first_event.is_none());
                self.unwritten = self.unwritten.or(Some(heard));
                if self.first_event.is_none() {
                    self.first_event = Some(heard);
                    self.escalator.metrics.first_token(heard.duration_since(self.held.at));
                    self.traced.first_event(heard.duration_since(self.asked_at));
                }
            }
            if let Err(ending) = taken {
                return Poll::Ready(ending);
            }
        }
    }

    /// False while the reader is too far behind for more: by what it has acknowledged, and by what it
    /// has taken, whatever it says.
    fn has_room(&self) -> bool {
        let queued = self.reader.as_ref().map_or(0, |reader| reader.stream.writer.queued());
        self.log.has_room() && queued < self.settings.config.limits.unread_events
    }

    /// Writes what is queued. Ready when the client wants no more.
    fn poll_write(&mut self, cx: &mut Context<'_>, watch: &Watch) -> Poll<Ending> {
        let Some(reader) = &mut self.reader else { return Poll::Pending };
        match reader.stream.writer.poll_flush(cx) {
            Poll::Ready(Err(error)) => {
                let left = self.left(&error);
                // How long it may stay away must be waited for.
                watch.look_again();
                return left;
            }
            // A client that says nothing more cannot acknowledge: what it took counts as read.
            Poll::Ready(Ok(())) if !reader.talks => self.log.acknowledge(u64::MAX),
            Poll::Pending | Poll::Ready(Ok(())) => {}
        }
        Poll::Pending
    }
}
