//! Spans while they are made.

use crate::MAX_TEXT;
use crate::export::Counts;
use belay_protocol::trace::TraceContext;
use belay_transport::env::Env;
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// So many events are kept of one span.
const EVENTS: usize = 64;

/// Where spans come from.
#[derive(Debug, Clone)]
pub struct Traces {
    pub(crate) env: Env,
    pub(crate) queue: mpsc::Sender<SpanData>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) scope: InstrumentationScope,
    /// Of traces that begin here, so many in 2^64 are kept.
    pub(crate) kept: u64,
    /// What its caller does not keep is not kept here.
    pub(crate) follows_callers: bool,
}

/// One operation, from its making to its being dropped.
#[derive(Debug)]
pub struct Span {
    traces: Traces,
    /// `None` once it is handed over.
    data: Option<SpanData>,
    clock: Clock,
}

/// One reading of the wall clock for all of a trace: spans cannot move against each other when it is set.
#[derive(Debug, Clone, Copy)]
struct Clock {
    began: Instant,
    began_at: SystemTime,
}

impl Clock {
    fn at(&self, at: Instant) -> SystemTime {
        self.began_at + at.saturating_duration_since(self.began)
    }
}

impl Traces {
    /// The first span of a request in this process: below `parent`, or at the root of a trace that is called `trace`.
    /// `None`: whoever began the trace does not keep it, or this one is not among those that are kept.
    #[must_use]
    pub fn begin(
        &self,
        (parent, trace): (Option<TraceContext>, [u8; 16]),
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
    ) -> Option<Span> {
        let trace = parent.map_or(trace, |parent| parent.trace);
        // By its name, so that all who keep the same part keep the same.
        let chosen = mixed(trace) <= self.kept;
        let kept = match parent {
            Some(parent) if self.follows_callers => parent.sampled,
            Some(parent) => parent.sampled || chosen,
            None => chosen,
        };
        if !kept || trace == [0; 16] {
            return None;
        }
        let above = parent.map_or(SpanId::INVALID, |parent| SpanId::from_bytes(parent.span));
        let began_at = UNIX_EPOCH + Duration::from_millis(self.env.clock.now_ms());
        let clock = Clock { began: Instant::now(), began_at };
        let ids = (TraceId::from_bytes(trace), above, self.new_id());
        Some(Span::new(self.clone(), ids, parent.is_some(), (name.into(), kind), clock, clock.began))
    }

    /// A new name for a span.
    fn new_id(&self) -> SpanId {
        loop {
            let id = self.env.random.bytes();
            if id != [0; 8] {
                return SpanId::from_bytes(id);
            }
        }
    }
}

impl Span {
    fn new(
        traces: Traces,
        (trace, above, id): (TraceId, SpanId, SpanId),
        is_remote: bool,
        (name, kind): (Cow<'static, str>, SpanKind),
        clock: Clock,
        began: Instant,
    ) -> Self {
        let at = clock.at(began);
        let data = SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: above,
            parent_span_is_remote: is_remote,
            span_kind: kind,
            name: cut(name),
            start_time: at,
            end_time: at,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: traces.scope.clone(),
        };
        Self { traces, data: Some(data), clock }
    }

    /// A part of it that begins now.
    #[must_use]
    pub fn child(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Self {
        let context = self.data.as_ref().map(|data| data.span_context.clone());
        let (trace, above) = context.map_or((TraceId::INVALID, SpanId::INVALID), |c| (c.trace_id(), c.span_id()));
        let ids = (trace, above, self.traces.new_id());
        Self::new(self.traces.clone(), ids, false, (name.into(), kind), self.clock, Instant::now())
    }

    /// Where it is, for whoever goes on with it.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        let context = self.data.as_ref().map(|data| &data.span_context);
        TraceContext {
            trace: context.map_or([0; 16], |context| context.trace_id().to_bytes()),
            span: context.map_or([0; 8], |context| context.span_id().to_bytes()),
            sampled: true,
        }
    }

    /// Says something of it; what was said before under that name is said anew.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        let Some(data) = &mut self.data else { return };
        let value = match value.into() {
            Value::String(text) => Value::String(cut(text.as_str().to_owned().into()).into_owned().into()),
            value => value,
        };
        match data.attributes.iter_mut().find(|known| known.key.as_str() == key) {
            Some(known) => known.value = value,
            None => data.attributes.push(KeyValue::new(key, value)),
        }
    }

    /// It was made ready before; what it is about begins now.
    pub fn begins_now(&mut self) {
        let at = self.clock.at(Instant::now());
        if let Some(data) = &mut self.data {
            data.start_time = at;
        }
    }

    /// It is about nothing that has happened.
    pub fn discard(mut self) {
        self.data = None;
    }

    /// Something happened.
    pub fn event(&mut self, name: &'static str) {
        let at = self.clock.at(Instant::now());
        let Some(data) = &mut self.data else { return };
        if data.events.events.len() < EVENTS {
            data.events.events.push(Event::new(name, at, Vec::new(), 0));
        } else {
            data.events.dropped_count += 1;
        }
    }

    /// It failed; `kind` is one of few names, never a sentence: sentences can carry what somebody asked.
    pub fn failed(&mut self, kind: impl Into<Cow<'static, str>>) {
        self.set("error.type", Value::String(kind.into().into()));
        if let Some(data) = &mut self.data {
            data.status = Status::error("");
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(mut data) = self.data.take() else { return };
        data.end_time = self.clock.at(Instant::now());
        if self.traces.queue.try_send(data).is_err() {
            self.traces.counts.dropped(1);
        }
    }
}

/// A text that is not too long, without characters that are for terminals.
fn cut(text: Cow<'static, str>) -> Cow<'static, str> {
    if text.len() <= MAX_TEXT && !text.chars().any(char::is_control) {
        return text;
    }
    let most = text.floor_char_boundary(MAX_TEXT);
    text[..most].chars().filter(|c| !c.is_control()).collect::<String>().into()
}

/// A number that is as good as random even where the bytes are not.
fn mixed(trace: [u8; 16]) -> u64 {
    let [a, b] =
        [&trace[..8], &trace[8..]].map(|half| half.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)));
    let mut sum = a ^ b.rotate_left(32);
    // Two rounds of the finaliser of SplitMix64.
    for _ in 0..2 {
        sum = (sum ^ (sum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        sum = (sum ^ (sum >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        sum ^= sum >> 31;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_bounded_and_printable() {
        let long = cut("é\n".repeat(300).into());
        assert!(long.len() <= MAX_TEXT && !long.contains('\n') && long.len() > MAX_TEXT / 2, "{long}");
        assert_eq!(cut("chat gpt-5".into()), "chat gpt-5");
    }

    #[test]
    fn a_part_of_all_traces_is_about_that_part() {
        let below = |part: f64| {
            let most = (part * 2_f64.powi(64)) as u64;
            (1..=4000_u128).filter(|number| mixed(number.to_be_bytes()) <= most).count()
        };
        assert_eq!((below(0.0), below(1.0)), (0, 4000));
        assert!((800..1200).contains(&below(0.25)), "{}", below(0.25));
    }
}
