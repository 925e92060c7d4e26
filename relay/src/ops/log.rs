//! Logging: `tracing`, for people or as JSON.
//!
//! No key, token or prompt text is ever a field or a message, at any level: secrets are
//! `SecretString`s, bodies are never logged, and a test greps for planted canaries.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

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

/// Starts logging to stderr. `filter` is in the form of `RUST_LOG`, which wins if it is set.
/// Errors: the filter does not parse. A second call changes nothing.
pub fn start(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(own) if !own.is_empty() => own,
        _ => filter.to_owned(),
    };
    let filter = EnvFilter::try_new(&filter).map_err(|error| format!("log filter {filter:?}: {error}"))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_span_events(FmtSpan::NONE);
    let started = match format {
        LogFormat::Human => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // Only a second call fails, and the first one's logger stays.
    let _ = started;
    Ok(())
}
