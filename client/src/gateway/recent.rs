//! The last requests, for whoever wants to see what runs and what it costs.
//!
//! A token touches three atomic numbers and nothing else; all that is said of a request beside them
//! changes a few times in its life, under a lock.

use super::lanes::Place;
use super::room::BodyRoom;
use belay_http::api::Forward;
use belay_protocol::id::RequestId;
use belay_protocol::message::{End, ResponseHead, UnitKind};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::Instant;

/// So many requests are remembered.
const KEPT: usize = 200;
/// So many changes may wait for a reader of them; one that is slower is told that it missed some.
const WAITING: usize = 256;

/// The last requests, the newest last.
#[derive(Debug)]
pub(super) struct Recent {
    requests: Mutex<VecDeque<Arc<Live>>>,
    feed: broadcast::Sender<Bytes>,
}

/// What is known of a request before it is sent.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: RequestId,
    pub(super) forward: Forward,
    pub(super) model: String,
    pub(super) stream: bool,
    /// The program that asks, as it calls itself.
    pub(super) caller: String,
    /// The body's beginning, where that is wanted.
    pub(super) prompt: Option<String>,
    pub(super) at_ms: u64,
    /// What those who collect spans know it by.
    pub(super) trace: RequestId,
}

/// One request.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) asked: Asked,
    began: Instant,
    events: AtomicU64,
    bytes: AtomicU64,
    /// Microseconds from the request to its first event; 0: none yet.
    first_us: AtomicU64,
    /// What was published last of `events`.
    published: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Streaming,
    Interrupted,
    Complete,
    Incomplete,
    Refused,
    /// The caller went away.
    Left,
    /// The same, and it may come back.
    Kept,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Streaming => "streaming",
            Self::Interrupted => "interrupted",
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Refused => "refused",
            Self::Left => "left",
            Self::Kept => "kept",
        }
    }

    fn is_over(self) -> bool {
        !matches!(self, Self::Waiting | Self::Streaming | Self::Interrupted)
    }
}

#[derive(Debug)]
struct Told {
    state: State,
    status: u16,
    provider: String,
    model: String,
    interruptions: u64,
    error: Option<String>,
    end: Option<End>,
    total: Option<Duration>,
}

impl Recent {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { requests: Mutex::default(), feed: broadcast::Sender::new(WAITING) })
    }

    /// A request begins; it is over when the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, asked: Asked, keeps: bool) -> Running {
        let live = Arc::new(Live {
            asked,
            began: Instant::now(),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            first_us: AtomicU64::new(0),
            published: AtomicU64::new(0),
            told: Mutex::new(Told {
                state: State::Waiting,
                status: 0,
                provider: String::new(),
                model: String::new(),
                interruptions: 0,
                error: None,
                end: None,
                total: None,
            }),
        });
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() == KEPT {
            requests.pop_front();
        }
        requests.push_back(Arc::clone(&live));
        drop(requests);
        self.publish(&live);
        Running { live, recent: Arc::clone(self), keeps, place: None }
    }

    /// All of them, the newest first.
    pub(super) fn list(&self) -> Vec<Arc<Live>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    /// How many run.
    pub(super) fn running(&self) -> usize {
        self.list().iter().filter(|live| !live.told().state.is_over()).count()
    }

    /// Changes from now on, as server-sent events.
    pub(super) fn feed(&self) -> broadcast::Receiver<Bytes> {
        self.feed.subscribe()
    }

    /// Whether anybody reads them.
    pub(super) fn has_readers(&self) -> bool {
        self.feed.receiver_count() > 0
    }

    /// Tells all readers.
    pub(super) fn tell(&self, event: &str, data: &Value) {
        if self.has_readers() {
            // Nobody is left to read it: then nobody misses it.
            let _ = self.feed.send(event_of(event, data));
        }
    }

    /// Tells all readers how far the running requests have come.
    pub(super) fn tell_progress(&self) {
        for live in self.list() {
            let events = live.events.load(Ordering::Relaxed);
            if live.published.swap(events, Ordering::Relaxed) != events {
                self.publish(&live);
            }
        }
    }

    fn publish(&self, live: &Live) {
        if self.has_readers() {
            self.tell("request", &live.json());
        }
    }
}

/// A server-sent event with data in JSON.
pub(super) fn event_of(name: &str, data: &Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

impl Live {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event, or a piece of an answer, has come.
    pub(super) fn count(&self, bytes: usize) {
        if self.events.fetch_add(1, Ordering::Relaxed) == 0 {
            let us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.first_us.store(us.max(1), Ordering::Relaxed);
        }
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// All that is known of it.
    pub(super) fn json(&self) -> Value {
        let told = self.told();
        let first_us = Some(self.first_us.load(Ordering::Relaxed)).filter(|us| *us > 0);
        let units = |kind| told.end.as_ref().map(|end| end.units(kind));
        json!({
            "id": self.asked.id.to_string(),
            "at_ms": self.asked.at_ms,
            "operation": self.asked.forward.operation.name(),
            "dialect": self.asked.forward.dialect.name(),
            "asked_model": self.asked.model,
            "stream": self.asked.stream,
            "caller": self.asked.caller,
            "prompt": self.asked.prompt,
            "state": told.state.name(),
            "status": Some(told.status).filter(|status| *status > 0),
            "provider": told.provider,
            "model": told.model,
            "interruptions": told.interruptions,
            "events": self.events(),
            "bytes": self.bytes.load(Ordering::Relaxed),
            "first_event_us": first_us,
            "total_ms": told.total.unwrap_or_else(|| self.began.elapsed()).as_millis(),
            "input_tokens": units(UnitKind::INPUT),
            "output_tokens": units(UnitKind::OUTPUT),
            "cache_read_tokens": units(UnitKind::CACHE_READ),
            "cost_nano_usd": told.end.as_ref().map(|end| end.cost.0),
            "balance_nano_usd": told.end.as_ref().map(|end| end.balance.0),
            "estimated": told.end.as_ref().map(|end| end.estimated),
            "error": told.error,
        })
    }
}

/// Keeps a request among those that run; dropped without an end, its caller has left.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) live: Arc<Live>,
    recent: Arc<Recent>,
    /// Its caller may come back.
    keeps: bool,
    /// Where it runs.
    place: Option<(Place, BodyRoom)>,
}

impl Running {
    /// It has a place and room for its body, until it is over.
    pub(super) fn takes(&mut self, place: (Place, BodyRoom)) {
        self.place = Some(place);
    }

    fn change(&self, change: impl FnOnce(&mut Told)) {
        {
            let mut told = self.live.told();
            if told.state.is_over() {
                return;
            }
            change(&mut told);
            if told.state.is_over() {
                told.total = Some(self.live.began.elapsed());
            }
        }
        self.recent.publish(&self.live);
    }

    pub(super) fn head(&self, head: &ResponseHead) {
        self.change(|told| {
            told.state = State::Streaming;
            told.status = head.status;
            told.provider.clone_from(&head.provider);
            told.model.clone_from(&head.model);
        });
    }

    pub(super) fn interrupted(&self) {
        self.change(|told| {
            told.state = State::Interrupted;
            told.interruptions += 1;
        });
    }

    pub(super) fn resumed(&self) {
        let state = if self.live.events() > 0 { State::Streaming } else { State::Waiting };
        self.change(|told| told.state = state);
    }

    /// It was settled.
    pub(super) fn end(&self, end: &End, complete: bool) {
        self.change(|told| {
            told.state = if complete { State::Complete } else { State::Incomplete };
            told.error = (!end.message.is_empty()).then(|| end.message.clone());
            told.end = Some(end.clone());
        });
    }

    /// It failed, with nothing charged.
    pub(super) fn failed(&self, status: u16, why: &str) {
        self.change(|told| {
            told.state = State::Refused;
            told.status = status;
            told.error = Some(why.to_owned());
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let state = if self.keeps { State::Kept } else { State::Left };
        self.change(|told| told.state = state);
    }
}
