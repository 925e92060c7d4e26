//! Spans of both ends of a tunnel, for a collector of OpenTelemetry (OTLP over HTTP). Off unless an address is named.
//!
//! A [`Span`] is a guard: it is handed over when it is dropped, however its request came to its end. What is handed
//! over waits in a queue of [`QUEUE`] spans for the task that [`Exporter::run`] is; whatever finds it full is counted
//! and let go, since nobody's answer waits for a collector. One that does not answer loses what was sent to it, and
//! the log tells so, not more often than once in a minute. A text in a span is cut at [`MAX_TEXT`]: what waits is bounded
//! in bytes, too.
//!
//! The data and its encoding are OpenTelemetry's own crates; none of their globals is used, so that several relays
//! and clients in one process stay apart. Attributes are named one by one where a span is made: nothing of what is
//! asked, answered or paid with can get into one by being in scope.
#![warn(missing_docs)]

mod export;
mod post;
mod span;

pub use export::{Counts, Exporter, Settings, TracesError};
pub use opentelemetry::trace::SpanKind;
pub use span::{Span, Traces};

/// So many spans wait for the exporter at the most.
pub const QUEUE: usize = 2048;
/// The longest text of a span, in bytes.
pub const MAX_TEXT: usize = 200;
