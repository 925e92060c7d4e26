//! Lines of the log as data: for systemd's journal, which keeps their fields, and the last warnings and errors for whoever
//! looks at the node.

use super::journal::Journal;
use belay_transport::env::{Clock, SystemClock};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Warnings and errors that are remembered.
const MOST: usize = 200;

/// The process has one log.
static RECENT: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`.
    pub level: String,
    /// The module that tells.
    pub target: String,
    /// What it tells.
    pub message: String,
    /// What else it tells, and in the course of what: names and values, the outermost first.
    pub fields: Vec<(String, String)>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.fields.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// The last warnings and errors, the newest first.
#[must_use]
pub fn recent() -> Vec<Line> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
}

/// Gathers lines.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) journal: Option<Journal>,
}

/// The fields of a span, until it is closed.
#[derive(Debug, Default)]
struct Fields(Vec<(String, String)>);

/// Reads fields; the message stands apart.
#[derive(Default)]
struct Reader {
    message: String,
    fields: Vec<(String, String)>,
}

impl Visit for Reader {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            name => self.fields.push((name.to_owned(), text)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.fields.push((name.to_owned(), value.to_owned())),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut reader = Reader::default();
        attributes.record(&mut reader);
        span.extensions_mut().insert(Fields(reader.fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut reader = Reader::default();
        values.record(&mut reader);
        if let Some(Fields(fields)) = span.extensions_mut().get_mut() {
            fields.extend(reader.fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let is_remembered = *metadata.level() <= Level::WARN;
        if !is_remembered && self.journal.is_none() {
            return;
        }
        let mut fields = vec![];
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(Fields(of)) = span.extensions().get() {
                fields.extend(of.iter().cloned());
            }
        }
        let mut reader = Reader { message: String::new(), fields };
        event.record(&mut reader);
        let line = Line {
            at_ms: SystemClock.now_ms(),
            level: metadata.level().to_string(),
            target: metadata.target().to_owned(),
            message: reader.message,
            fields: reader.fields,
        };
        if let Some(journal) = &self.journal {
            journal.tell(&line);
        }
        if is_remembered {
            let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
            if recent.len() == MOST {
                recent.pop_front();
            }
            recent.push_back(line);
        }
    }
}
