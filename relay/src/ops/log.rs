//! Logging: `tracing`, for people or as JSON.
//!
//! No key, token or prompt text is ever a field or a message, at any level: secrets are
//! `SecretString`s, bodies are never logged, and a test greps for planted canaries.

mod journal;
mod lines;

pub use lines::{Line, recent};

use journal::Journal;
use lines::Lines;
use serde::Deserialize;
use std::sync::OnceLock;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Puts another filter in the place of the one that is there.
type Change = Box<dyn Fn(Filter) -> Result<(), String> + Send + Sync>;

/// The process has one logger.
static CHANGE: OnceLock<Change> = OnceLock::new();

/// What the environment says, which wins.
fn own() -> Option<String> {
    std::env::var("RUST_LOG").ok().filter(|own| !own.is_empty())
}

/// What is logged.
type Filter = Box<dyn Layer<Registry> + Send + Sync>;

fn parse(filter: &str) -> Result<Filter, String> {
    let whole = EnvFilter::try_new(filter).map_err(|error| format!("log filter {filter:?}: {error}"))?;
    Ok(targets(filter).map_or_else(|| whole.boxed(), Layer::boxed))
}

/// A filter that names no span: none has to be looked at whenever a request's task goes on.
fn targets(filter: &str) -> Option<Targets> {
    // An empty piece, and an empty level, mean something else here.
    let is_plain = filter.split(',').all(|piece| !piece.is_empty() && !piece.ends_with('=') && !piece.contains('['));
    filter.parse().ok().filter(|_| is_plain)
}

/// Starts logging: to systemd's journal, with fields, where stderr leads there and nothing else is wanted; else to stderr.
/// `filter` is in the form of `RUST_LOG`, which wins if it is set. Errors: the filter does not parse. A second call changes
/// nothing.
pub fn start(format: LogFormat, filter: &str) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(parse(&own().unwrap_or_else(|| filter.to_owned()))?);
    let journal = if format == LogFormat::Human { Journal::behind_stderr() } else { None };
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let shown = match format {
        LogFormat::Human if journal.is_some() => None,
        LogFormat::Human => {
            Some(fmt::layer().with_writer(std::io::stderr).with_span_events(FmtSpan::NONE).with_ansi(ansi).boxed())
        }
        LogFormat::Json => {
            Some(fmt::layer().json().with_writer(std::io::stderr).with_span_events(FmtSpan::NONE).boxed())
        }
    };
    let started = tracing_subscriber::registry().with(filter).with(Lines { journal }).with(shown).try_init();
    // Only a second call fails, and the first one's logger stays.
    if started.is_ok() {
        let _ = CHANGE.set(Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())));
    }
    Ok(())
}

/// Another filter, ready to be used. Errors: it does not parse.
pub fn prepare(filter: &str) -> Result<impl FnOnce() + use<>, String> {
    let filter = parse(filter)?;
    Ok(move || {
        if own().is_some() {
            return tracing::info!("RUST_LOG is set, and wins over log.filter");
        }
        if let Some(Err(error)) = CHANGE.get().map(|change| change(filter)) {
            tracing::warn!(%error, "the log filter could not be changed");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_filters_that_mean_the_same_without_spans_are_read_without_them() {
        for plain in ["info", "info,belay_relay=debug", "warn,belay_relay::store=trace,quinn=off"] {
            assert!(targets(plain).is_some() && parse(plain).is_ok(), "{plain}");
        }
        for other in ["", "info,", "belay_relay=", "belay_relay[request]=debug", "[{tenant=acme}]=debug"] {
            assert!(targets(other).is_none() && parse(other).is_ok(), "{other}");
        }
        assert!(parse("belay_relay=loud").is_err());
    }
}
