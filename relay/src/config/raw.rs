//! The text as TOML with known keys, and where it is wrong.

use super::ConfigError;
use crate::ops::log::LogFormat;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The file as written. Every field is optional here; defaults and rules come with the check.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) environment: Option<String>,
    pub(super) listen: Listen,
    pub(super) admin: RawAdmin,
    pub(super) http: RawHttp,
    pub(super) jwt: Vec<RawJwt>,
    pub(super) stripe: RawStripe,
    pub(super) state: State,
    pub(super) log: Log,
    pub(super) traces: RawTraces,
    pub(super) billing: RawBilling,
    pub(super) limits: RawLimits,
    pub(super) timeouts: RawTimeouts,
    pub(super) providers: BTreeMap<String, RawProvider>,
    pub(super) models: BTreeMap<String, RawModel>,
    pub(super) aliases: BTreeMap<String, Targets>,
    pub(super) recorded: RawRecorded,
    pub(super) retries: RawRetries,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRetries {
    pub(super) rounds: Option<u32>,
    pub(super) longest_wait_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Listen {
    pub(super) quic: Option<String>,
    pub(super) tcp: Option<bool>,
    pub(super) public: Vec<String>,
    pub(super) threads: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAdmin {
    pub(super) listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHttp {
    pub(super) listen: Option<String>,
    pub(super) tls: Option<String>,
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) names: Vec<String>,
    pub(super) origins: Vec<String>,
    pub(super) connections: Option<u32>,
    pub(super) connections_per_address: Option<u32>,
    pub(super) look_ups_per_second: Option<u32>,
    pub(super) trusted_proxies: Vec<String>,
    pub(super) idle_s: Option<u64>,
    pub(super) patience_s: Option<u64>,
    pub(super) keep_alive_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawJwt {
    pub(super) issuer: Option<String>,
    pub(super) audience: Option<String>,
    pub(super) algorithm: Option<String>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) jwks_file: Option<PathBuf>,
    pub(super) tenant_claim: Option<String>,
    pub(super) longest_s: Option<u64>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStripe {
    pub(super) key_env: Option<String>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) webhook_secret_env: Option<String>,
    pub(super) webhook_secrets_file: Option<PathBuf>,
    pub(super) url: Option<String>,
    pub(super) success_url: Option<String>,
    pub(super) cancel_url: Option<String>,
    pub(super) meter_event: Option<String>,
    pub(super) tolerance_s: Option<u64>,
    pub(super) look_every_s: Option<u64>,
    pub(super) private: bool,
}

impl RawStripe {
    /// Nothing is said of it.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct State {
    pub(super) dir: Option<PathBuf>,
    pub(super) master_key_file: Option<PathBuf>,
    pub(super) reserve_mib: Option<u32>,
    pub(super) store_threads: Option<usize>,
    pub(super) idle_close_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: LogFormat,
    pub(super) filter: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTraces {
    pub(super) endpoint: Option<String>,
    pub(super) headers_file: Option<PathBuf>,
    pub(super) ratio: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBilling {
    pub(super) multiplier_free: Option<u32>,
    pub(super) multiplier_managed: Option<u32>,
    pub(super) multiplier_byok: Option<u32>,
    pub(super) free_allowance: Option<String>,
    pub(super) flush_at: Option<String>,
    pub(super) flush_after_s: Option<u64>,
    pub(super) default_max_output_tokens: Option<u32>,
    pub(super) multiplier_local: Option<u32>,
    pub(super) multiplier_knowledge: Option<u32>,
    pub(super) topup_url: Option<String>,
    pub(super) prices_file: Option<PathBuf>,
    pub(super) default_price: Option<RawPrice>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRecorded {
    pub(super) local: RawRecordedClass,
    pub(super) knowledge: RawRecordedClass,
}

/// What is charged for usage that the relay did not see.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRecordedClass {
    pub(super) price: Option<RawPrice>,
    /// By the model's name.
    pub(super) models: BTreeMap<String, RawPrice>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    pub(super) requests_per_minute: Option<u32>,
    pub(super) tokens_per_minute: Option<u32>,
    pub(super) requests_at_once: Option<u32>,
    pub(super) streams_per_tunnel: Option<u32>,
    pub(super) instances_per_device: Option<u32>,
    pub(super) handshakes_per_second: Option<u32>,
    pub(super) pending_handshakes: Option<usize>,
    pub(super) request_body_mib: Option<u32>,
    pub(super) answer_body_mib: Option<u32>,
    pub(super) bodies_in_memory_mib: Option<u32>,
    pub(super) unread_events_mib: Option<u32>,
    pub(super) memory_mib: Option<u32>,
    pub(super) streams_per_tenant: Option<u32>,
    pub(super) event_logs_mib: Option<u32>,
    pub(super) session_history_tokens: Option<u32>,
    pub(super) sessions_mib: Option<u32>,
    pub(super) sync_mib: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTimeouts {
    pub(super) handshake_ms: Option<u64>,
    pub(super) hello_ms: Option<u64>,
    pub(super) request_body_ms: Option<u64>,
    pub(super) first_event_ms: Option<u64>,
    pub(super) between_events_ms: Option<u64>,
    pub(super) total_ms: Option<u64>,
    pub(super) heartbeat_ms: Option<u32>,
    pub(super) resume_window_ms: Option<u64>,
    pub(super) keep_answer_ms: Option<u64>,
    pub(super) drain_ms: Option<u64>,
    pub(super) device_certificate_ms: Option<u64>,
    pub(super) expired_grace_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProvider {
    pub(super) kind: String,
    pub(super) url: Option<String>,
    pub(super) key_env: Option<String>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) pace_ms: Option<u64>,
    pub(super) prices: Option<String>,
    #[serde(default)]
    pub(super) private: bool,
    #[serde(default)]
    pub(super) any_model: bool,
    #[serde(default)]
    pub(super) trace_context: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    pub(super) provider: String,
    pub(super) name: Option<String>,
    pub(super) context_tokens: Option<u32>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) cap_field: Option<String>,
    pub(super) images: Option<bool>,
    pub(super) tools: Option<bool>,
    pub(super) price: Option<RawPrice>,
    /// By the day from which on it holds.
    #[serde(default)]
    pub(super) price_from: BTreeMap<String, RawPrice>,
}

/// What an alias stands for: a model, or several of which the first that answers serves.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a model's name, a list of them, or a table with models, prefer, max_input and max_output"
)]
pub(super) enum Targets {
    One(String),
    Several(Vec<RawTarget>),
    Rules(RawRoute),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    pub(super) models: Vec<RawTarget>,
    pub(super) prefer: Option<String>,
    pub(super) max_input: Option<String>,
    pub(super) max_output: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a model's name, or a table with model and weight")]
pub(super) enum RawTarget {
    Name(String),
    Weighted { model: String, weight: u32 },
}

/// Dollars per million tokens, as text, so that no decimal is lost.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPrice {
    pub(super) input: String,
    pub(super) output: String,
    pub(super) cache_read: Option<String>,
    pub(super) cache_write_5m: Option<String>,
    pub(super) cache_write_1h: Option<String>,
    pub(super) input_audio: Option<String>,
    pub(super) output_audio: Option<String>,
    pub(super) input_image: Option<String>,
    pub(super) output_image: Option<String>,
    /// Dollars per thousand calls.
    pub(super) thousand_calls: Option<String>,
    #[serde(default)]
    pub(super) tiers: Vec<RawTier>,
}

/// Other prices for requests with a large input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTier {
    pub(super) above: u64,
    pub(super) input: Option<String>,
    pub(super) output: Option<String>,
    pub(super) cache_read: Option<String>,
    pub(super) cache_write_5m: Option<String>,
    pub(super) cache_write_1h: Option<String>,
}

/// Parses the text. Errors: `Syntax` with line, column and, for an unknown key, the nearest known.
pub(super) fn parse(text: &str, name: &str) -> Result<Raw, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let what = error.message().to_owned();
        let hint = did_you_mean(&what);
        ConfigError::Syntax { name: name.to_owned(), line, column, what, hint }
    })
}

/// Every key of a text that parses, by its whole name, with its value in some words of its own.
pub(super) fn written(text: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if let Ok(table) = toml::from_str::<toml::Table>(text) {
        flatten("", &table, &mut all);
    }
    all
}

fn flatten(before: &str, table: &toml::Table, all: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let name = if before.is_empty() { key.clone() } else { format!("{before}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, all),
            value => drop(all.insert(name, format!("{value:?}"))),
        }
    }
}

/// serde says "unknown field `x`, expected one of `a`, `b`": finds the one that was meant.
fn did_you_mean(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next().filter(|_| message.contains("unknown"))?;
    nearest(unknown, quoted)
}

/// The candidate that is near enough to be meant.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}
