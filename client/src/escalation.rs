//! One LLM request as a stream of answers, which survives the tunnel that it runs in.
//!
//! A request that has lost its stream waits for the next tunnel and asks for the rest: with `Resume`
//! once the head has come, before that with the whole request, which is the same request for ever.
//! The caller is told (`Interrupted`, `Resumed`) and sees no error as long as the resume window lasts.

mod answer;
mod leave;
mod line;
mod reading;
mod request;
mod traced;
mod watched;

pub use answer::{Answer, Collected};
pub use request::{EscalationRequest, Reading};
pub(crate) use traced::Traced;

use crate::error::ClientError;
use crate::pending::Record;
use crate::tunnel::Tunnel;
use crate::tunnels::Tunnels;
use belay_protocol::codec::Message;
use belay_protocol::dialect::answer::event_text;
use belay_protocol::error::{ProtocolError, StreamCode};
use belay_protocol::frame::{Frame, FrameType, raw};
use belay_protocol::id::RequestId;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{Cancel, Content, Dialect, End, Failed, FailureCode, ResponseHead, Resume};
use belay_protocol::stream::StreamError;
use line::{Broken, Heard, Interruption, Line, Open, out_of_order};
use request::queue_whole;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use watched::Watched;

/// So many bytes, or events, of answer are acknowledged together.
const ACK_EVERY_BYTES: usize = 64 << 10;
const ACK_EVERY_EVENTS: u64 = 64;
/// So much of an answer that can be read again is not acknowledged: half of what a relay keeps unread.
const KEPT_BYTES: usize = 4 << 20;
/// After an attempt to go on that has failed at once, the next one comes after this at the earliest.
const RETRY: Duration = Duration::from_millis(50);

/// A running request. Dropping it cancels the request, unless it can be read again ([`Reading`]): the relay
/// is told in the background, over another tunnel if need be.
#[derive(Debug)]
pub struct Escalation {
    tunnels: Arc<Tunnels>,
    /// `None`: it was sent before, by another.
    request: Option<EscalationRequest>,
    id: RequestId,
    line: Line,
    resume_window: Duration,
    dialect: Dialect,
    /// The number of the next event.
    next: u64,
    /// What the relay knows that we have, and bytes since.
    acknowledged: u64,
    unacknowledged: usize,
    /// The head has come: the relay has the request, and need not be sent it again.
    has_head: bool,
    /// Said again on every new stream.
    cancelled: Option<String>,
    record: Option<Record>,
    /// Another may read the answer from its beginning, as long as it is not longer than what is kept.
    keeps: bool,
    watched: Watched,
    traced: Traced,
}

impl Escalation {
    /// Sends the request and its body.
    pub(crate) async fn begin(
        tunnels: Arc<Tunnels>,
        tunnel: Arc<Tunnel>,
        request: EscalationRequest,
        resume_window: Duration,
        (record, traced): (Option<Record>, Traced),
    ) -> Result<Self, ClientError> {
        let (id, dialect) = (request.request_id, request.dialect);
        let mut begun = Self::new(tunnels, id, Some(request), dialect, resume_window, record);
        begun.traced = traced;
        begun.start(tunnel).await
    }

    /// Asks for the rest of an answer.
    pub(crate) async fn resume(
        tunnels: Arc<Tunnels>,
        tunnel: Arc<Tunnel>,
        id: RequestId,
        resume_window: Duration,
        record: Option<Record>,
    ) -> Result<Self, ClientError> {
        Self::new(tunnels, id, None, Dialect::PROMPT, resume_window, record).start(tunnel).await
    }

    fn new(
        tunnels: Arc<Tunnels>,
        id: RequestId,
        request: Option<EscalationRequest>,
        dialect: Dialect,
        resume_window: Duration,
        record: Option<Record>,
    ) -> Self {
        let next = record.as_ref().map_or(0, Record::next);
        Self {
            tunnels,
            keeps: request.as_ref().is_some_and(|request| request.reading == Reading::Again),
            request,
            id,
            line: Line::Over,
            resume_window,
            dialect,
            next,
            acknowledged: next,
            unacknowledged: 0,
            has_head: false,
            cancelled: None,
            record,
            watched: Watched::soon(),
            traced: Traced::default(),
        }
    }

    async fn start(mut self, tunnel: Arc<Tunnel>) -> Result<Self, ClientError> {
        // Somebody who asks for the rest knows of the interruption.
        let resuming = self.request.is_none().then(|| Interruption { since: Instant::now(), told: true });
        match self.open(tunnel, resuming).await {
            Ok(()) => {}
            // It was up a moment ago: the next one will do.
            Err(error) if error.is_passing() => self.break_off(error.to_string(), resuming, Duration::ZERO),
            Err(error) => {
                self.traced.broke(&error);
                return Err(error);
            }
        }
        let Line::Open(open) = &mut self.line else { return Ok(self) };
        match open.writer.flush().await {
            // A relay that refuses a body in the middle stops the stream and says why on the other half.
            Ok(()) | Err(StreamError::Peer(_)) => Ok(self),
            Err(StreamError::Lost(why)) => {
                self.break_off(why, resuming, Duration::ZERO);
                Ok(self)
            }
            Err(error) => {
                let error = ClientError::from(error);
                self.traced.broke(&error);
                Err(error)
            }
        }
    }

    /// Opens a stream and queues what has to be said on it. Once it is open it is kept, so dropping
    /// the future does not cancel the request.
    async fn open(&mut self, tunnel: Arc<Tunnel>, resuming: Option<Interruption>) -> Result<(), ClientError> {
        let (mut writer, reader) = tunnel.stream(StreamKind::Escalate).await?;
        match &self.request {
            Some(request) if !self.has_head => queue_whole(&mut writer, request)?,
            _ => writer.queue(&Resume { request_id: self.id, next: self.wanted() })?,
        }
        if let Some(reason) = &self.cancelled {
            writer.queue(&Cancel { reason: reason.clone() })?;
        }
        if !self.keeps {
            self.acknowledged = self.next;
            self.unacknowledged = 0;
        }
        self.line = Line::Open(Box::new(Open::new(writer, reader, tunnel.silent(), resuming)));
        Ok(())
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next answer; `None` after `End` or `Failed`. Dropping the future loses nothing. Asking
    /// for the next one says that the one before has been read.
    ///
    /// Errors: `Closed` if the relay refuses this computer, `Lost` if the connection did not come
    /// back within the resume window, `Superseded`.
    pub async fn next(&mut self) -> Result<Option<Answer>, ClientError> {
        let answer = match self.acknowledge() {
            Ok(()) => self.advance().await,
            Err(error) => Err(error),
        };
        self.traced.saw(&answer);
        if answer.is_err() {
            self.over();
        }
        answer
    }

    async fn advance(&mut self) -> Result<Option<Answer>, ClientError> {
        loop {
            match &mut self.line {
                Line::Over => return Ok(None),
                Line::Open(open) => {
                    let heard = poll_fn(|cx| {
                        let heard = open.poll(cx);
                        if heard.is_pending() {
                            self.watched.poll(&self.tunnels, cx);
                        }
                        heard
                    });
                    let frame = match heard.await {
                        Heard::Frame(frame) => frame,
                        Heard::Silence => {
                            return Ok(Some(Answer::Interrupted { why: "nothing comes from the relay".into() }));
                        }
                        Heard::Sound(after) => {
                            return Ok(Some(Answer::Resumed { after, content: Content::LIVE, missed: 0 }));
                        }
                    };
                    if let Some(answer) = self.take(frame)? {
                        return Ok(Some(answer));
                    }
                }
                Line::Broken(broken) if !broken.interruption.told => {
                    broken.interruption.told = true;
                    return Ok(Some(Answer::Interrupted { why: broken.why.clone() }));
                }
                Line::Broken(_) => self.reopen().await?,
            }
        }
    }

    /// Waits for a tunnel and opens a stream on it.
    async fn reopen(&mut self) -> Result<(), ClientError> {
        let Line::Broken(broken) = &self.line else { return Ok(()) };
        let (interruption, why) = (broken.interruption, broken.why.clone());
        let until = interruption.since + self.resume_window;
        let not_before = broken.not_before;
        sleep_until(not_before.min(until)).await;
        let lost = |why: String| ClientError::Lost(format!("{why}; it did not come back in time"));
        if not_before >= until {
            return Err(lost(why));
        }
        let tunnel = match self.tunnels.tunnel(until).await {
            Ok(tunnel) => tunnel,
            Err(ClientError::Unreachable { .. }) => return Err(lost(why)),
            Err(error) => return Err(error),
        };
        match self.open(tunnel, Some(interruption)).await {
            Err(error) if error.is_passing() => {
                self.break_off(why, Some(interruption), RETRY);
                Ok(())
            }
            other => other,
        }
    }

    /// The stream is no more; another will be opened.
    fn break_off(&mut self, why: String, interruption: Option<Interruption>, wait: Duration) {
        let now = Instant::now();
        self.watched.now(&self.tunnels);
        let interruption = interruption.unwrap_or(Interruption { since: now, told: false });
        self.line = Line::Broken(Broken { interruption, not_before: now + wait, why });
    }

    /// What a frame, or the lack of one, means to the caller.
    fn take(&mut self, frame: Result<Option<Frame>, StreamError>) -> Result<Option<Answer>, ClientError> {
        let Line::Open(open) = &mut self.line else { return Ok(None) };
        let resuming = open.interruption();
        let frame = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(ProtocolError::Truncated("the answer").into()),
            Err(StreamError::Lost(why)) => {
                self.break_off(why, resuming, if resuming.is_some() { RETRY } else { Duration::ZERO });
                return Ok(None);
            }
            Err(StreamError::Peer(StreamCode::SUPERSEDED)) => return Err(ClientError::Superseded),
            // We were too slow for the relay, or its task has died: it may have kept the answer.
            Err(StreamError::Peer(code @ (StreamCode::TIMEOUT | StreamCode::INTERNAL | StreamCode::CANCELLED))) => {
                self.break_off(format!("the relay ended the stream ({code})"), resuming, RETRY * 4);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        match frame.kind {
            FrameType::ResponseHead => self.head(ResponseHead::from_frame(&frame)?),
            FrameType::Event | FrameType::AnswerChunk => {
                let (number, payload) = raw::split(frame.kind, frame.body)?;
                if self.keeps && number < self.next {
                    return Ok(None);
                }
                if number != self.next {
                    return Err(out_of_order(number, self.next));
                }
                self.next += 1;
                self.unacknowledged += payload.len();
                let event = frame.kind == FrameType::Event;
                Ok(Some(if event { Answer::Event(payload) } else { Answer::Chunk(payload) }))
            }
            FrameType::End => {
                let end = End::from_frame(&frame)?;
                self.finish(true);
                Ok(Some(Answer::End(end)))
            }
            FrameType::Failed => self.failed(Failed::from_frame(&frame)?),
            kind => Err(ProtocolError::Unexpected { got: kind.name(), expected: "an answer" }.into()),
        }
    }

    fn head(&mut self, head: ResponseHead) -> Result<Option<Answer>, ClientError> {
        let Line::Open(open) = &mut self.line else { return Ok(None) };
        let resuming = open.resuming.take();
        let gone = head.content == Content::GONE;
        self.dialect = head.dialect;
        if !std::mem::replace(&mut self.has_head, true) {
            if !gone && head.first_event < self.next {
                return Err(out_of_order(head.first_event, self.next));
            }
            self.next = if gone { self.next } else { head.first_event };
            return Ok(Some(Answer::Head(head)));
        }
        if !gone && head.first_event < self.wanted() {
            return Err(out_of_order(head.first_event, self.next));
        }
        // Another reader has read on meanwhile: what it has read is not kept.
        let missed = if gone { 0 } else { head.first_event.saturating_sub(self.next) };
        self.next += missed;
        // Told even if the caller knows of no interruption: it has seen a head already.
        let after = resuming.map_or(Duration::ZERO, |interruption| interruption.since.elapsed());
        Ok(Some(Answer::Resumed { after, content: head.content, missed }))
    }

    fn failed(&mut self, failed: Failed) -> Result<Option<Answer>, ClientError> {
        let Line::Open(open) = &self.line else { return Ok(None) };
        let resuming = open.interruption();
        // What has a time for another attempt, passes. A refused request is tried again only where an
        // answer was begun already: otherwise the caller decides.
        let passes = failed.retry_after_ms.is_some() || failed.code == FailureCode::DRAINING;
        if let Some(interruption) = resuming.filter(|_| passes) {
            let wait = failed.retry_after_ms.map_or(RETRY * 4, Duration::from_millis);
            self.break_off(failed.message, Some(interruption), wait.clamp(RETRY, RETRY * 100));
            return Ok(None);
        }
        if failed.code == FailureCode::UNKNOWN_REQUEST && self.next == 0 && self.request.is_some() {
            // Nothing of it was charged or read: it may run again.
            self.has_head = false;
            self.break_off(failed.message, resuming, RETRY);
            return Ok(None);
        }
        if passes {
            // What became of it may not be known: it can still be resumed.
            self.record = None;
        }
        self.finish(false);
        Ok(Some(Answer::Failed(failed)))
    }

    /// Asks the relay to stop; `End` still comes, with what was produced until then.
    pub async fn cancel(&mut self, reason: &str) -> Result<(), ClientError> {
        self.cancelled = Some(reason.to_owned());
        let Line::Open(open) = &mut self.line else { return Ok(()) };
        open.writer.queue(&Cancel { reason: reason.into() })?;
        match open.writer.flush().await {
            // It is said again on the next stream, if there has to be one.
            Ok(()) | Err(StreamError::Lost(_) | StreamError::Peer(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The text that an answer adds.
    #[must_use]
    pub fn text(&self, answer: &Answer) -> String {
        match answer {
            Answer::Event(event) => event_text(self.dialect, event),
            _ => String::new(),
        }
    }

    /// Reads to the end and gathers everything.
    pub async fn collect(self) -> Result<Collected, ClientError> {
        Collected::of(self).await
    }

    fn over(&mut self) {
        self.line = Line::Over;
        self.watched = Watched::Over;
    }
}
