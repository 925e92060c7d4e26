//! Sends a request to its provider and passes the answer on, event by event.

use super::finish::Ending;
use super::log::EventLog;
use super::plan::Plan;
use super::{Caller, ClientStream, Escalator, Held};
use crate::providers::{Answer, Call, ProviderError};
use crate::store::journal::Progress;
use belay_protocol::codec::Message;
use belay_protocol::dialect::sse::SseSplitter;
use belay_protocol::dialect::usage::{EventMeaning, UsageMeter};
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{FrameType, MAX_CHUNK};
use belay_protocol::message::{Ack, Cancel, Content, EscalateRequest, Outcome, ResponseHead};
use belay_protocol::stream::StreamError;
use bytes::{Bytes, BytesMut};
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

/// Progress is noted at most this often: what a kill may cost in tokens that are not charged.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// A request in flight.
pub(super) struct Flight<'a> {
    pub(super) escalator: &'a Escalator,
    pub(super) caller: &'a Caller,
    pub(super) plan: Plan,
    pub(super) held: Held,
    pub(super) stream: &'a mut ClientStream,
    pub(super) log: EventLog,
    pub(super) meter: UsageMeter,
    pub(super) first_event: Option<Instant>,
    /// False once the client has said that it will send nothing more: then what was written counts
    /// as read.
    client_talks: bool,
    deadline: Instant,
    progress_noted: Instant,
    /// Whole answers that are not streamed are kept for their usage figures.
    whole: BytesMut,
}

/// What the client's side of the stream did.
enum ClientDid {
    Wrote,
    Acknowledged,
    Finished,
    Cancelled(String),
    Left(String),
}

impl Escalator {
    pub(super) async fn run_held(
        &self,
        caller: &Caller,
        request: &EscalateRequest,
        body: &Bytes,
        plan: Plan,
        held: Held,
        stream: &mut ClientStream,
    ) {
        let total = self.config.timeouts.total;
        let total = request.deadline_ms.map_or(total, |ms| total.min(Duration::from_millis(ms.into())));
        let call = Call { body: plan.outgoing(body, held.output_cap), headers: request.headers.clone() };
        let flight = Flight {
            log: EventLog::new(self.config.limits.unread_events),
            meter: UsageMeter::new(plan.dialect),
            first_event: None,
            client_talks: true,
            deadline: held.at + total,
            progress_noted: held.at,
            whole: BytesMut::new(),
            escalator: self,
            caller,
            plan,
            held,
            stream,
        };
        flight.fly(call).await;
    }
}

impl Flight<'_> {
    async fn fly(mut self, call: Call) {
        if let Err(error) = self.held.tenant.journal.append(self.held.guard.request_id, Progress::default()) {
            warn!(%error, "cannot note the dispatch");
            return self.end(Ending::NotDispatched("the relay could not note the dispatch".into())).await;
        }
        let ending = match self.call(call).await {
            Ok(answer) if (200..300).contains(&answer.status) => self.pass_on(answer).await,
            Ok(answer) => self.refused_by_provider(answer).await,
            Err(ending) => ending,
        };
        self.end(ending).await;
    }

    /// Waits for the provider's status and headers.
    async fn call(&mut self, call: Call) -> Result<Answer, Ending> {
        let provider = self.escalator.providers.get(&self.plan.provider);
        let Some(provider) = provider else {
            return Err(Ending::NotDispatched(format!("provider {} is not running", self.plan.provider)));
        };
        let mut answer = provider.call(call);
        let first_event = self.held.at + self.escalator.config.timeouts.first_event;
        let mut timer = pin!(sleep_until(first_event.min(self.deadline)));
        let (revoked, stop) = (self.caller.revoked.clone(), self.escalator.stop.clone());
        loop {
            tokio::select! {
                // Cancellation first: nothing that the provider says may delay it.
                biased;
                () = revoked.cancelled() => return Err(Ending::After(Outcome::REVOKED, "access was revoked".into())),
                () = stop.cancelled() => return Err(Ending::After(Outcome::DRAINED, "the relay was shut down".into())),
                did = client_did(self.stream, self.client_talks, &mut self.log) => self.heed(did)?,
                () = &mut timer => {
                    return Err(Ending::After(Outcome::TIMED_OUT, "the provider sent nothing in time".into()));
                }
                answer = &mut answer => return answer.map_err(|error| match error {
                    ProviderError::Unreachable(why) => Ending::NotDispatched(format!("cannot reach the provider: {why}")),
                    ProviderError::Broken(why) => Ending::After(Outcome::PROVIDER_FAILED, why),
                }),
            }
        }
    }

    /// Passes a successful answer on until its end.
    async fn pass_on(&mut self, mut answer: Answer) -> Ending {
        let streams = answer.is_event_stream();
        if let Err(error) = self.queue_head(&answer, streams) {
            return Ending::After(Outcome::PROVIDER_FAILED, error.to_string());
        }
        let timeouts = self.escalator.config.timeouts.clone();
        let (revoked, stop) = (self.caller.revoked.clone(), self.escalator.stop.clone());
        // Registered once, not at every event.
        let (mut revoked, mut stop) = (pin!(revoked.cancelled()), pin!(stop.cancelled()));
        let mut splitter = SseSplitter::new(MAX_CHUNK);
        // Until when the provider may be silent: first for its first event, then between two.
        let mut patience = self.held.at + timeouts.first_event;
        let mut timer = pin!(sleep_until(self.deadline.min(patience)));
        loop {
            let has_room = self.log.has_room();
            tokio::select! {
                // Cancellation first; then the client, so that what is ready is written before more
                // is read; the provider last.
                biased;
                () = &mut revoked => return Ending::After(Outcome::REVOKED, "access was revoked".into()),
                () = &mut stop => return Ending::After(Outcome::DRAINED, "the relay was shut down".into()),
                did = client_did(self.stream, self.client_talks, &mut self.log) => {
                    if let Err(ending) = self.heed(did) { return ending; }
                    // While reading was paused for the reader, the provider's silence is not its own.
                    if !has_room { patience = Instant::now() + timeouts.between_events; }
                }
                () = &mut timer => {
                    let now = Instant::now();
                    if now >= self.deadline {
                        return Ending::After(Outcome::TIMED_OUT, "the request took longer than its deadline".into());
                    }
                    if has_room && now >= patience {
                        return Ending::After(Outcome::TIMED_OUT, "the provider fell silent".into());
                    }
                    // The timer is not moved at every event, only here and at the first.
                    let next = if has_room { patience } else { now + timeouts.between_events };
                    timer.as_mut().reset(next.min(self.deadline));
                }
                chunk = answer.chunk(), if has_room => {
                    let heard = Instant::now();
                    patience = heard + timeouts.between_events;
                    if self.first_event.is_none() {
                        self.first_event = Some(heard);
                        timer.as_mut().reset(patience.min(self.deadline));
                    }
                    let taken = match chunk {
                        None => return self.provider_ended(streams),
                        Some(Err(error)) => return Ending::After(Outcome::PROVIDER_FAILED, error.to_string()),
                        Some(Ok(chunk)) if streams => self.take_events(&mut splitter, chunk),
                        Some(Ok(chunk)) => self.take_bytes(chunk),
                    };
                    if let Err(ending) = taken { return ending; }
                    self.note_progress(heard);
                }
            }
        }
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

    fn heed(&mut self, did: ClientDid) -> Result<(), Ending> {
        match did {
            ClientDid::Wrote | ClientDid::Acknowledged => {
                // A client that says nothing more cannot acknowledge: what it took counts as read.
                if !self.client_talks && self.stream.writer.is_flushed() {
                    self.log.acknowledge(u64::MAX);
                }
                Ok(())
            }
            ClientDid::Finished => {
                self.client_talks = false;
                Ok(())
            }
            ClientDid::Cancelled(why) => Err(Ending::After(Outcome::CANCELLED, why)),
            ClientDid::Left(why) => {
                debug!(%why, "the client left");
                Err(Ending::After(Outcome::CANCELLED, why))
            }
        }
    }

    fn note_progress(&mut self, now: Instant) {
        let progress = Progress {
            events: self.log.next(),
            output_bytes: self.meter.output_bytes(),
            told_input: self.meter.told_input(),
        };
        self.held.guard.progress = progress;
        if now.duration_since(self.progress_noted) >= PROGRESS_EVERY {
            self.progress_noted = now;
            if let Err(error) = self.held.tenant.journal.append(self.held.guard.request_id, progress) {
                debug!(%error, "cannot note the progress");
            }
        }
    }
}

/// Waits until the client's side does something, writing what is queued meanwhile. Dropping the
/// future loses nothing.
async fn client_did(stream: &mut ClientStream, client_talks: bool, log: &mut EventLog) -> ClientDid {
    poll_fn(|cx| {
        if client_talks {
            while let Poll::Ready(frame) = stream.reader.poll_frame(cx) {
                match read_client(frame, log) {
                    // Wake the loop only if reading the provider was paused.
                    ClientDid::Acknowledged if log.has_room() => return Poll::Ready(ClientDid::Acknowledged),
                    ClientDid::Acknowledged => {}
                    other => return Poll::Ready(other),
                }
            }
        }
        if let Poll::Ready(error) = stream.writer.poll_stopped(cx) {
            return Poll::Ready(ClientDid::Left(error.to_string()));
        }
        if stream.writer.is_flushed() {
            return Poll::Pending;
        }
        match stream.writer.poll_flush(cx) {
            Poll::Pending => Poll::Pending,
            // Nobody waits for it: one round of the loop less for every token.
            Poll::Ready(Ok(())) if client_talks => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(ClientDid::Wrote),
            Poll::Ready(Err(error)) => Poll::Ready(ClientDid::Left(error.to_string())),
        }
    })
    .await
}

fn read_client(frame: Result<Option<belay_protocol::frame::Frame>, StreamError>, log: &mut EventLog) -> ClientDid {
    let frame = match frame {
        Ok(Some(frame)) => frame,
        Ok(None) => return ClientDid::Finished,
        Err(error) => return ClientDid::Left(error.to_string()),
    };
    let read = match frame.kind {
        FrameType::Ack => Ack::from_frame(&frame).map(|ack| {
            log.acknowledge(ack.next);
            ClientDid::Acknowledged
        }),
        FrameType::Cancel => Cancel::from_frame(&frame).map(|cancel| {
            let why: String = cancel.reason.chars().take(200).collect();
            ClientDid::Cancelled(if why.is_empty() { "cancelled by the caller".into() } else { why })
        }),
        kind => Err(ProtocolError::Unexpected { got: kind.name(), expected: "Ack or Cancel" }),
    };
    read.unwrap_or_else(|error| ClientDid::Left(error.to_string()))
}
