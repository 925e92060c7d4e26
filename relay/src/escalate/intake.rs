//! Taking a provider's answer in: its head, its events or bytes, and how it ended.

use super::Held;
use super::finish::Ending;
use super::runner::Flight;
use crate::providers::Answer;
use crate::store::ledger::budget::Measure;
use crate::store::sessions::MAX_TEXT;
use belay_protocol::codec::Message;
use belay_protocol::dialect::answer::{body_text, event_text};
use belay_protocol::dialect::sse::SseSplitter;
use belay_protocol::dialect::usage::EventMeaning;
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{FrameType, MAX_CHUNK};
use belay_protocol::message::{Content, Outcome, ResponseHead};
use bytes::{Bytes, BytesMut};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::time::sleep;

/// How long the words of a refusal are waited for.
const WORDS: Duration = Duration::from_secs(10);

/// In place of what a session does not keep of an answer.
const NOT_KEPT: &str = "\n[the rest of this answer is not kept]";

impl Held {
    /// What is left of the limits per minute, the tightest of each kind.
    fn remaining_headers(&self) -> impl Iterator<Item = (String, String)> {
        let names =
            [(Measure::RequestsMinute, "belay-remaining-requests"), (Measure::TokensMinute, "belay-remaining-tokens")];
        names.into_iter().filter_map(|(measure, name)| {
            let of_kind = self.remaining.iter().filter(|remaining| remaining.bound.measure == measure);
            let left = of_kind.map(|remaining| remaining.left).min()?;
            Some((name.to_owned(), left.to_string()))
        })
    }
}

impl Flight<'_> {
    pub(super) fn queue_head(&mut self, answer: &Answer, streams: bool) -> Result<(), ProtocolError> {
        let head = ResponseHead {
            request_id: self.held.guard.request_id,
            status: answer.status,
            headers: answer
                .headers
                .iter()
                .cloned()
                .map(|header| self.as_carried(header, streams))
                .chain(self.held.remaining_headers())
                .chain(self.offers.header())
                .chain(self.plan.headers())
                .collect(),
            dialect: self.plan.shown(self.candidate()),
            stream: streams,
            provider: self.candidate().model.provider.clone(),
            model: self.candidate().model.name.clone(),
            max_output_tokens: self.held.output_cap,
            held: self.held.amount,
            content: Content::LIVE,
            first_event: 0,
        };
        let frame = head.to_frame()?;
        self.head = Some(head);
        self.queue(frame);
        Ok(())
    }

    /// A header of the provider's: what is carried over whole is JSON, whatever it was before.
    fn as_carried(&self, (name, value): (String, String), streams: bool) -> (String, String) {
        let is_ours = self.answers.is_some() && !streams && name == "content-type";
        (name, if is_ours { "application/json".to_owned() } else { value })
    }

    pub(super) fn take_events(&mut self, splitter: &mut SseSplitter, chunk: Bytes) -> Result<(), Ending> {
        splitter.push(chunk);
        loop {
            let event = match splitter.next() {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(error) => return Err(Ending::After(Outcome::PROVIDER_FAILED, error.to_string())),
            };
            let meaning = self.meter.event(&event);
            if self.said.is_some() {
                self.hear(&event);
            }
            if let Some(answers) = &mut self.answers {
                for event in answers.event(&event) {
                    self.emit(FrameType::Event, event)?;
                }
            } else
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

    pub(super) fn take_bytes(&mut self, chunk: Bytes) -> Result<(), Ending> {
        let limit = self.settings.config.limits.answer_body as usize;
        if self.whole.len() + chunk.len() > limit {
            return Err(Ending::After(Outcome::LIMIT, format!("the answer is above {limit} bytes")));
        }
        self.whole.push(&chunk);
        // What is carried over is so once it is whole.
        if self.answers.is_some() { Ok(()) } else { self.emit_bytes(chunk) }
    }

    /// Keeps the text of an event for the session.
    fn hear(&mut self, event: &[u8]) {
        let dialect = self.candidate().dialect;
        if let Some(said) = self.said.as_mut().filter(|said| said.len() <= MAX_TEXT) {
            said.push_str(&event_text(dialect, event));
            cut(said);
        }
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
        if let Some(reader) = &mut self.reader {
            reader.stream.writer.queue_raw(prefix);
            reader.stream.writer.queue_raw(payload);
        }
        Ok(())
    }

    /// For the reader that is there; one that comes later is given all from the log.
    fn queue(&mut self, frame: Bytes) {
        if let Some(reader) = &mut self.reader {
            reader.stream.writer.queue_raw(frame);
        }
    }

    /// The provider closed its answer.
    pub(super) fn provider_ended(&mut self, streams: bool) -> Ending {
        if !streams {
            self.meter.body(&self.whole);
            let dialect = self.candidate().dialect;
            if let Some(said) = &mut self.said {
                *said = body_text(dialect, &self.whole);
                cut(said);
            }
            if let Some(answers) = &mut self.answers {
                let carried = answers.whole(&self.whole);
                return match carried.map(|whole| self.emit_bytes(whole)) {
                    Ok(Ok(())) => Ending::Complete,
                    Ok(Err(ending)) => ending,
                    Err(why) => Ending::After(Outcome::PROVIDER_FAILED, why),
                };
            }
            return Ending::Complete;
        }
        self.meter.catch_up();
        if let Some(EventMeaning::Error(words)) = self.meter.overlooked() {
            return Ending::After(Outcome::PROVIDER_FAILED, words);
        }
        // Some servers send no closing event; told usage is as good.
        if self.meter.report(0).estimated {
            return Ending::After(Outcome::PROVIDER_FAILED, "the provider's stream was cut".into());
        }
        let last = self.answers.as_mut().map(|answers| answers.end()).unwrap_or_default();
        let sent = last.into_iter().try_for_each(|event| self.emit(FrameType::Event, event));
        sent.err().unwrap_or(Ending::Complete)
    }

    /// Passes the provider's own refusal on, as it is: nothing was charged.
    pub(super) async fn refused_by_provider(&mut self, mut answer: Answer) -> Ending {
        let status = answer.status;
        if let Err(error) = self.queue_head(&answer, false) {
            return Ending::not_dispatched(error.to_string());
        }
        let mut timer = pin!(sleep(self.settings.config.timeouts.between_events.min(WORDS)));
        let limit = 1 << 20;
        let mut size = 0;
        let mut words = BytesMut::new();
        loop {
            // Nothing is charged, whatever ends it.
            let piece = poll_fn(|cx| match self.poll_interruption(cx) {
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending if timer.as_mut().poll(cx).is_ready() => Poll::Ready(None),
                Poll::Pending => answer.body.poll_chunk(cx),
            });
            let Some(Ok(chunk)) = piece.await else { break };
            size += chunk.len();
            if size > limit {
                break;
            }
            if self.answers.is_some() {
                words.extend_from_slice(&chunk);
            } else if self.emit_bytes(chunk).is_err() {
                break;
            }
        }
        let carried = self.answers.as_ref().map(|answers| answers.refusal(status, &words));
        // What does not fit any more is missing from words that nobody waits for.
        let _ = carried.map(|words| self.emit_bytes(words));
        Ending::RefusedByProvider(status)
    }
}

/// Leaves no more of an answer than a session keeps.
fn cut(said: &mut String) {
    if said.len() > MAX_TEXT {
        said.truncate(said.floor_char_boundary(MAX_TEXT));
        said.push_str(NOT_KEPT);
    }
}
