//! Sends a request to its provider and passes the answer on, event by event.

use super::finish::Ending;
use super::log::EventLog;
use super::patience::Patience;
use super::plan::Plan;
use super::watch::Watch;
use super::{Begun, Caller, ClientStream, Escalator, Held};
use crate::providers::{Answer, CallFuture, ProviderError};
use crate::store::journal::Progress;
use belay_protocol::codec::Message;
use belay_protocol::dialect::sse::SseSplitter;
use belay_protocol::dialect::usage::{EventMeaning, UsageMeter};
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{Frame, FrameType, MAX_CHUNK};
use belay_protocol::message::{Ack, Cancel, Content, EscalateRequest, Outcome, ResponseHead};
use belay_protocol::stream::StreamError;
use bytes::{Bytes, BytesMut};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::{Instrument, Span, debug, warn};

/// Progress is noted at most this often: what a kill may cost in tokens that are not charged.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// A request in flight.
pub(super) struct Flight<'a> {
    pub(super) escalator: &'a Escalator,
    pub(super) caller: &'a Caller,
    pub(super) plan: Plan,
    pub(super) held: Held,
    pub(super) stream: &'a mut ClientStream,
    /// Entered where something is logged, not at every poll.
    span: &'a Span,
    pub(super) log: EventLog,
    pub(super) meter: UsageMeter,
    pub(super) first_event: Option<Instant>,
    /// False once the client has said that it will send nothing more: then what was written counts
    /// as read.
    client_talks: bool,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    deadline: Instant,
    progress_noted: Instant,
    /// Whole answers that are not streamed are kept for their usage figures.
    whole: BytesMut,
}

impl Escalator {
    pub(super) async fn run_held(
        &self,
        caller: &Caller,
        request: &EscalateRequest,
        begun: Begun,
        stream: &mut ClientStream,
        span: &Span,
    ) {
        let Begun { plan, held, call } = begun;
        let total = self.config.timeouts.total;
        let total = request.deadline_ms.map_or(total, |ms| total.min(Duration::from_millis(ms.into())));
        let flight = Flight {
            log: EventLog::new(self.config.limits.unread_events),
            meter: UsageMeter::new(plan.dialect),
            first_event: None,
            client_talks: true,
            revoked: Box::pin(caller.revoked.clone().cancelled_owned()),
            stop: Box::pin(self.stop.clone().cancelled_owned()),
            deadline: held.at + total,
            progress_noted: held.at,
            whole: BytesMut::new(),
            escalator: self,
            caller,
            plan,
            held,
            stream,
            span,
        };
        flight.fly(call).await;
    }
}

impl Flight<'_> {
    async fn fly(mut self, call: Option<CallFuture>) {
        let noted = self.held.tenant.journal.append(self.held.guard.request_id, Progress::default());
        let answer = match noted {
            Ok(()) => self.call(call).await,
            Err(error) => {
                self.span.in_scope(|| warn!(%error, "cannot note the dispatch"));
                Err(Ending::NotDispatched("the relay could not note the dispatch".into()))
            }
        };
        let ending = match answer {
            Ok(answer) if (200..300).contains(&answer.status) => self.pass_on(answer).await,
            Ok(answer) => self.refused_by_provider(answer).await,
            Err(ending) => ending,
        };
        let span = self.span.clone();
        self.end(ending).instrument(span).await;
    }

    /// Waits for the provider's status and headers.
    async fn call(&mut self, call: Option<CallFuture>) -> Result<Answer, Ending> {
        let Some(mut answer) = call else {
            return Err(Ending::NotDispatched(format!("provider {} is not running", self.plan.provider)));
        };
        let first_event = self.held.at + self.escalator.config.timeouts.first_event;
        let mut timer = pin!(sleep_until(first_event.min(self.deadline)));
        poll_fn(|cx| {
            if let Poll::Ready(ending) = self.poll_interruption(cx) {
                return Poll::Ready(Err(ending));
            }
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Ending::After(Outcome::TIMED_OUT, "the provider sent nothing in time".into())));
            }
            answer.as_mut().poll(cx).map_err(|error| match error {
                ProviderError::Unreachable(why) => Ending::NotDispatched(format!("cannot reach the provider: {why}")),
                ProviderError::Broken(why) => Ending::After(Outcome::PROVIDER_FAILED, why),
            })
        })
        .await
    }

    /// Passes a successful answer on until its end.
    async fn pass_on(&mut self, mut answer: Answer) -> Ending {
        let streams = answer.is_event_stream();
        if let Err(error) = self.queue_head(&answer, streams) {
            return Ending::After(Outcome::PROVIDER_FAILED, error.to_string());
        }
        let mut splitter = SseSplitter::new(MAX_CHUNK);
        let timeouts = &self.escalator.config.timeouts;
        let until = self.held.at + timeouts.first_event;
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
                let was_full = !self.log.has_room();
                if let Poll::Ready(ending) = self.poll_write(cx) {
                    return Poll::Ready(ending);
                }
                self.note_progress();
                // Unless the write has made room, everything has been asked to wake this task.
                if !was_full || !self.log.has_room() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Ready when the request must end for a reason of the relay or of the client.
    fn poll_interruption(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        if self.revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ending::After(Outcome::REVOKED, "access was revoked".into()));
        }
        if self.stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ending::After(Outcome::DRAINED, "the relay was shut down".into()));
        }
        while self.client_talks {
            match self.stream.reader.poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(None)) => self.client_talks = false,
                Poll::Ready(Ok(Some(frame))) => match heard(&frame) {
                    Ok(Heard::Acknowledged(next)) => self.log.acknowledge(next),
                    Ok(Heard::Cancelled(why)) => return Poll::Ready(Ending::After(Outcome::CANCELLED, why)),
                    Err(error) => return Poll::Ready(left(&error.into())),
                },
                Poll::Ready(Err(error)) => return Poll::Ready(left(&error)),
            }
        }
        self.stream.writer.poll_stopped(cx).map(|error| left(&error))
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
            patience.pause(!self.log.has_room());
            if patience.paused {
                return Poll::Pending;
            }
            let chunk = ready!(answer.body.poll_chunk(cx));
            let heard = Instant::now();
            patience.heard(heard, self.first_event.is_none());
            self.first_event.get_or_insert(heard);
            let taken = match chunk {
                None => Err(self.provider_ended(streams)),
                Some(Err(error)) => Err(Ending::After(Outcome::PROVIDER_FAILED, error.to_string())),
                Some(Ok(chunk)) if streams => self.take_events(splitter, chunk),
                Some(Ok(chunk)) => self.take_bytes(chunk),
            };
            if let Err(ending) = taken {
                return Poll::Ready(ending);
            }
        }
    }

    /// Writes what is queued. Ready when the client is gone.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        match self.stream.writer.poll_flush(cx) {
            Poll::Pending => {}
            Poll::Ready(Err(error)) => return Poll::Ready(left(&error)),
            // A client that says nothing more cannot acknowledge: what it took counts as read.
            Poll::Ready(Ok(())) if !self.client_talks => self.log.acknowledge(u64::MAX),
            Poll::Ready(Ok(())) => {}
        }
        Poll::Pending
    }

    fn queue_head(&mut self, answer: &Answer, streams: bool) -> Result<(), ProtocolError> {
        let head = ResponseHead {
            request_id: self.held.guard.request_id,
            status: answer.status,
            headers: answer.headers.clone(),
            dialect: self.plan.dialect,
            stream: streams,
            provider: self.plan.provider.clone(),
            model: self.plan.model.name.clone(),
            max_output_tokens: self.held.output_cap,
            held: self.held.amount,
            content: Content::LIVE,
            first_event: 0,
        };
        self.stream.writer.queue_raw(head.to_frame()?);
        Ok(())
    }

    fn take_events(&mut self, splitter: &mut SseSplitter, chunk: Bytes) -> Result<(), Ending> {
        splitter.push(chunk);
        loop {
            let event = match splitter.next() {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(error) => return Err(Ending::After(Outcome::PROVIDER_FAILED, error.to_string())),
            };
            let meaning = self.meter.event(&event);
            // Usage that the relay asked for on its own account is not the caller's event.
            if meaning != EventMeaning::UsageOnly || self.plan.wants_usage_event {
                self.emit(FrameType::Event, event)?;
            }
            match meaning {
                EventMeaning::Done => return Err(Ending::Complete),
                EventMeaning::Error(words) => return Err(Ending::After(Outcome::PROVIDER_FAILED, words)),
                EventMeaning::Content | EventMeaning::UsageOnly => {}
            }
        }
    }

    fn take_bytes(&mut self, chunk: Bytes) -> Result<(), Ending> {
        let limit = self.escalator.config.limits.answer_body as usize;
        if self.whole.len() + chunk.len() > limit {
            return Err(Ending::After(Outcome::LIMIT, format!("the answer is above {limit} bytes")));
        }
        self.whole.extend_from_slice(&chunk);
        self.emit_bytes(chunk)
    }

    fn emit_bytes(&mut self, mut chunk: Bytes) -> Result<(), Ending> {
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(MAX_CHUNK));
            self.emit(FrameType::AnswerChunk, piece)?;
        }
        Ok(())
    }

    fn emit(&mut self, kind: FrameType, payload: Bytes) -> Result<(), Ending> {
        let prefix = self
            .log
            .append(kind, &payload)
            .map_err(|error| Ending::After(Outcome::PROVIDER_FAILED, error.to_string()))?;
        self.stream.writer.queue_raw(prefix);
        self.stream.writer.queue_raw(payload);
        Ok(())
    }

    /// The provider closed its answer.
    fn provider_ended(&mut self, streams: bool) -> Ending {
        if !streams {
            self.meter.body(&self.whole);
            return Ending::Complete;
        }
        self.meter.catch_up();
        if let Some(EventMeaning::Error(words)) = self.meter.overlooked() {
            return Ending::After(Outcome::PROVIDER_FAILED, words);
        }
        // Some servers send no closing event; told usage is as good.
        if self.meter.report(0).estimated {
            Ending::After(Outcome::PROVIDER_FAILED, "the provider's stream was cut".into())
        } else {
            Ending::Complete
        }
    }

    /// Passes the provider's own refusal on, as it is: nothing was charged.
    async fn refused_by_provider(&mut self, mut answer: Answer) -> Ending {
        let status = answer.status;
        if let Err(error) = self.queue_head(&answer, false) {
            return Ending::NotDispatched(error.to_string());
        }
        let deadline = Instant::now() + self.escalator.config.timeouts.between_events;
        let limit = 1 << 20;
        let mut size = 0;
        while let Ok(Some(Ok(chunk))) = tokio::time::timeout_at(deadline, answer.chunk()).await {
            size += chunk.len();
            if size > limit || self.emit_bytes(chunk).is_err() {
                break;
            }
        }
        Ending::RefusedByProvider(status)
    }

    /// How far the answer has come, as far as it is metered.
    pub(super) fn progress(&self) -> Progress {
        Progress {
            events: self.log.next(),
            output_bytes: self.meter.output_bytes(),
            told_input: self.meter.told_input(),
        }
    }

    /// After the write: nobody waits for a note.
    fn note_progress(&mut self) {
        if self.log.next() == self.held.guard.progress.events {
            return;
        }
        let now = Instant::now();
        if now.duration_since(self.progress_noted) >= PROGRESS_EVERY {
            self.progress_noted = now;
            self.meter.catch_up();
            let progress = self.progress();
            self.held.guard.progress = progress;
            if let Err(error) = self.held.tenant.journal.append(self.held.guard.request_id, progress) {
                self.span.in_scope(|| debug!(%error, "cannot note the progress"));
            }
        }
    }
}

/// What a client says while it is answered.
enum Heard {
    Acknowledged(u64),
    Cancelled(String),
}

fn heard(frame: &Frame) -> Result<Heard, ProtocolError> {
    match frame.kind {
        FrameType::Ack => Ok(Heard::Acknowledged(Ack::from_frame(frame)?.next)),
        FrameType::Cancel => {
            let why: String = Cancel::from_frame(frame)?.reason.chars().take(200).collect();
            Ok(Heard::Cancelled(if why.is_empty() { "cancelled by the caller".into() } else { why }))
        }
        kind => Err(ProtocolError::Unexpected { got: kind.name(), expected: "Ack or Cancel" }),
    }
}

fn left(why: &StreamError) -> Ending {
    Ending::After(Outcome::CANCELLED, why.to_string())
}
