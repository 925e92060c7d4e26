//! The rules, and the checked configuration that the rest of the relay sees.

use super::raw::{Raw, nearest};
use super::upstream::{model, provider};
use crate::ops::log::LogFormat;
use crate::pricing::{PriceLine, PriceTier};
use crate::secrets::MASTER_KEY;
use crate::store::ledger::hold::Multipliers;
use crate::tenants::FlushPolicy;
use belay_protocol::message::Dialect;
use belay_protocol::money::NanoUsd;
use belay_transport::params;
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}{}", if source.kind() == std::io::ErrorKind::NotFound { "; write one with: belayd config init" } else { "" })]
    Unreadable {
        /// Which file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The text is not TOML with the known keys.
    #[error("{name}:{line}:{column}: {what}{}", hint.as_ref().map(|hint| format!(" (did you mean `{hint}`?)")).unwrap_or_default())]
    Syntax {
        /// Which file.
        name: String,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// The parser's words.
        what: String,
        /// The key that was probably meant.
        hint: Option<String>,
    },
    /// A value is not acceptable.
    #[error("{name}: {key}: {why}")]
    Value {
        /// Which file.
        name: String,
        /// Which key.
        key: String,
        /// What is wrong and what to write.
        why: String,
    },
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Over TCP as well, for clients whose UDP does not get through.
    pub tcp: bool,
    /// The addresses that invites carry; empty: the one that is listened on.
    pub public: Vec<String>,
    /// Threads that serve tunnels and providers.
    pub network_threads: usize,
    /// Everything that the relay remembers is below this directory.
    pub state_dir: PathBuf,
    /// The file of the master key.
    pub master_key: PathBuf,
    /// Threads of the store.
    pub store_threads: usize,
    /// A tenant's file that nobody used for so long is closed.
    pub idle_close: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged, in the form of `RUST_LOG`.
    pub log_filter: String,
    /// What is charged.
    pub billing: Billing,
    /// Sizes and counts.
    pub limits: Limits,
    /// Times.
    pub timeouts: Timeouts,
    /// Providers by name.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// Models by the name that callers use.
    pub models: BTreeMap<String, Model>,
    /// Aliases to models.
    pub aliases: BTreeMap<String, String>,
}

/// What is charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Billing {
    /// Applied to every price line of a request, by the tenant's tier, in basis points.
    pub multipliers: Multipliers,
    /// What a tenant of the free tier has in a month, in nano-USD.
    pub free_allowance: NanoUsd,
    /// When usage is handed to central.
    pub flush: FlushPolicy,
    /// The output cap where the caller names none, in tokens.
    pub default_max_output: u32,
}

/// Sizes and counts; each has a test that runs into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests per minute and tenant.
    pub requests_per_minute: u32,
    /// Tokens per minute and tenant; `None`: as many as can be paid.
    pub tokens_per_minute: Option<u32>,
    /// Requests at once and tenant.
    pub requests_at_once: u32,
    /// Streams at once in a tunnel after the hello.
    pub streams_per_tunnel: u32,
    /// Tunnels at once of a device.
    pub instances_per_device: u32,
    /// Handshakes per second from one address.
    pub handshakes_per_second: u32,
    /// Handshakes at once.
    pub pending_handshakes: usize,
    /// Bytes of a request body.
    pub request_body: u32,
    /// Bytes of an answer that is not streamed.
    pub answer_body: u32,
    /// Bytes of all request bodies in memory.
    pub bodies_in_memory: u32,
    /// Bytes of events that a reader has not acknowledged.
    pub unread_events: usize,
    /// Bytes that clients may make the relay use, all together.
    pub memory: usize,
    /// Streams at once of a tenant, all its tunnels together.
    pub streams_per_tenant: u32,
    /// Bytes of the events of all requests together.
    pub event_logs: usize,
}

/// Times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first packet to the end of the TLS handshake.
    pub handshake: Duration,
    /// From there to the hello, or to the end of enrolment.
    pub hello: Duration,
    /// From the opening of a stream to the end of the request body.
    pub request_body: Duration,
    /// From the provider's call to its first event.
    pub first_event: Duration,
    /// Between two events.
    pub between_events: Duration,
    /// From the hold to the end.
    pub total: Duration,
    /// Between two heartbeats of a client.
    pub heartbeat: Duration,
    /// How long a request goes on without its reader.
    pub resume_window: Duration,
    /// How long a finished answer waits for its reader.
    pub keep_answer: Duration,
    /// How long running requests may go on after SIGTERM.
    pub drain: Duration,
    /// How long a tunnel outlives its certificate.
    pub expired_grace: Duration,
}

/// How to reach a provider.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Which API it speaks.
    pub kind: ProviderKind,
    /// Base URL, without a trailing slash.
    pub url: String,
    /// The authorities that may sign its certificate; `None`: those of the system.
    pub authorities: Option<Vec<reqwest::Certificate>>,
    /// The key; empty if it needs none.
    pub key: SecretString,
    /// The demo provider's time between two tokens.
    pub pace: Duration,
}

/// Which API a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// Anthropic Messages.
    Anthropic,
    /// OpenAI Chat Completions and everything compatible.
    OpenAi,
    /// The built-in one that needs no key.
    Demo,
}

impl ProviderKind {
    /// The dialect of its bodies. The demo provider speaks OpenAI's.
    #[must_use]
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Anthropic => Dialect::ANTHROPIC,
            Self::OpenAi | Self::Demo => Dialect::OPENAI_CHAT,
        }
    }
}

/// A model that callers can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The provider's name in this configuration.
    pub provider: String,
    /// The provider's name of the model.
    pub name: String,
    /// The most input tokens that it takes.
    pub context_tokens: u32,
    /// The most output tokens that it gives.
    pub max_output_tokens: u32,
    /// The field of the request body that caps the output.
    pub cap_field: String,
    /// Its prices.
    pub prices: Vec<PriceLine>,
    /// Its prices for large inputs, by rising size.
    pub tiers: Vec<PriceTier>,
}

/// Whether provider keys are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    Read,
    Leave,
}

pub(super) fn check(raw: Raw, name: &str, keys: Keys) -> Result<Config, ConfigError> {
    let wrong = |key: &str, why: String| ConfigError::Value { name: name.to_owned(), key: key.to_owned(), why };
    let listen = raw.listen.quic.as_deref().unwrap_or("0.0.0.0:4433");
    let listen = listen.parse().map_err(|_| {
        wrong("listen.quic", format!("{listen:?} is not an address; write for example \"0.0.0.0:4433\""))
    })?;
    for address in &raw.listen.public {
        let port =
            address.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
        if port.is_none() || address.len() > 255 {
            let why = format!("{address:?} is not host:port; write for example \"relay.example.org:4433\"");
            return Err(wrong("listen.public", why));
        }
    }
    let network_threads = match raw.listen.threads.unwrap_or(0) {
        0 => std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
        threads @ 1..=256 => threads,
        threads => return Err(wrong("listen.threads", format!("{threads} is not from 0 to 256"))),
    };
    let state_dir = raw
        .state
        .dir
        .ok_or_else(|| wrong("state.dir", "is missing; name the directory for the relay's state".into()))?;
    let store_threads = raw.state.store_threads.unwrap_or(4);
    if !(1..=64).contains(&store_threads) {
        return Err(wrong("state.store_threads", format!("{store_threads} is not from 1 to 64")));
    }
    let providers = raw
        .providers
        .iter()
        .map(|(key, raw)| {
            Ok((key.clone(), provider(raw, keys).map_err(|why| wrong(&format!("providers.{key}"), why))?))
        })
        .collect::<Result<BTreeMap<_, _>, ConfigError>>()?;
    let models = raw
        .models
        .iter()
        .map(|(key, raw)| {
            let model = model(key, raw, &providers).map_err(|why| wrong(&format!("models.{key}"), why))?;
            Ok((key.clone(), model))
        })
        .collect::<Result<BTreeMap<_, _>, ConfigError>>()?;
    for (alias, target) in &raw.aliases {
        let key = format!("aliases.{alias}");
        if !models.contains_key(target) {
            return Err(wrong(&key, unknown("model", target, models.keys())));
        }
        if models.contains_key(alias) {
            return Err(wrong(&key, "is the name of a model as well; choose another alias".into()));
        }
    }
    let billing = billing(&raw.billing).map_err(|(key, why)| wrong(key, why))?;
    let limits = limits(&raw.limits).map_err(|(key, why)| wrong(key, why))?;
    let timeouts = timeouts(&raw.timeouts).map_err(|(key, why)| wrong(key, why))?;
    Ok(Config {
        listen,
        tcp: raw.listen.tcp.unwrap_or(true),
        public: raw.listen.public,
        network_threads,
        master_key: raw.state.master_key_file.unwrap_or_else(|| state_dir.join(MASTER_KEY)),
        state_dir,
        store_threads,
        idle_close: Duration::from_secs(raw.state.idle_close_s.unwrap_or(60)),
        log_format: raw.log.format,
        log_filter: raw.log.filter.unwrap_or_else(|| "info".into()),
        billing,
        limits,
        timeouts,
        providers,
        models,
        aliases: raw.aliases,
    })
}

pub(super) fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a String>) -> String {
    let hint = nearest(name, known.map(String::as_str)).map(|hint| format!(" (did you mean `{hint}`?)"));
    format!("there is no {what} {name:?}{}", hint.unwrap_or_default())
}

type Wrong = (&'static str, String);

fn billing(raw: &super::raw::RawBilling) -> Result<Billing, Wrong> {
    let multiplier = |key, value: Option<u32>, default: u32| {
        let value = value.unwrap_or(default);
        let why = "must be from 1 to 1000000; 10000 charges the price itself";
        if (1..=1_000_000).contains(&value) { Ok(value) } else { Err((key, why.to_owned())) }
    };
    let dollars = |key, text: Option<&str>, default: &str| {
        let text = text.unwrap_or(default);
        let amount = text.parse().ok().filter(|amount| *amount >= NanoUsd::ZERO);
        amount.ok_or_else(|| (key, format!("{text:?} is no amount of dollars; write for example \"1.00\"")))
    };
    Ok(Billing {
        multipliers: Multipliers {
            free: multiplier("billing.multiplier_free", raw.multiplier_free, 10_000)?,
            managed: multiplier("billing.multiplier_managed", raw.multiplier_managed, 10_300)?,
            byok: multiplier("billing.multiplier_byok", raw.multiplier_byok, 3_000)?,
        },
        free_allowance: dollars("billing.free_allowance", raw.free_allowance.as_deref(), "0")?,
        flush: FlushPolicy {
            at: dollars("billing.flush_at", raw.flush_at.as_deref(), "5")?,
            after_ms: raw.flush_after_s.unwrap_or(60).saturating_mul(1000),
        },
        default_max_output: raw.default_max_output_tokens.unwrap_or(4096),
    })
}

fn limits(raw: &super::raw::RawLimits) -> Result<Limits, Wrong> {
    let mib = |key, value: Option<u32>, default: u32, most: u32| {
        let value = value.unwrap_or(default);
        if (1..=most).contains(&value) {
            Ok(value << 20)
        } else {
            Err((key, format!("{value} is not from 1 to {most}")))
        }
    };
    let streams = raw.streams_per_tunnel.unwrap_or(params::STREAMS_AFTER_HELLO);
    if !(1..=params::STREAMS_AFTER_HELLO).contains(&streams) {
        let most = params::STREAMS_AFTER_HELLO;
        let why = format!("{streams} is not from 1 to {most}: more would let stalled readers block the heartbeat");
        return Err(("limits.streams_per_tunnel", why));
    }
    let memory_mib = raw.memory_mib.unwrap_or(1024);
    if !(1..=1 << 20).contains(&memory_mib) {
        return Err(("limits.memory_mib", format!("{memory_mib} is not from 1 to {}", 1 << 20)));
    }
    Ok(Limits {
        requests_per_minute: raw.requests_per_minute.unwrap_or(100),
        tokens_per_minute: raw.tokens_per_minute.filter(|count| *count > 0),
        requests_at_once: raw.requests_at_once.unwrap_or(50),
        streams_per_tunnel: streams,
        instances_per_device: raw.instances_per_device.unwrap_or(4),
        handshakes_per_second: raw.handshakes_per_second.unwrap_or(20),
        pending_handshakes: raw.pending_handshakes.unwrap_or(1024),
        request_body: mib("limits.request_body_mib", raw.request_body_mib, 32, 1024)?,
        answer_body: mib("limits.answer_body_mib", raw.answer_body_mib, 32, 1024)?,
        bodies_in_memory: mib("limits.bodies_in_memory_mib", raw.bodies_in_memory_mib, 256, 4095)?,
        unread_events: mib("limits.unread_events_mib", raw.unread_events_mib, 8, 1024)? as usize,
        memory: (memory_mib as usize) << 20,
        streams_per_tenant: raw.streams_per_tenant.unwrap_or(1024),
        // A quarter of it all.
        event_logs: mib("limits.event_logs_mib", raw.event_logs_mib, (memory_mib / 4).clamp(1, 4095), 4095)? as usize,
    })
}

fn timeouts(raw: &super::raw::RawTimeouts) -> Result<Timeouts, Wrong> {
    let millis = |key, value: Option<u64>, default: u64| {
        let value = value.unwrap_or(default);
        // A week is longer than anything here should wait, and far from overflowing a clock.
        if (1..=604_800_000).contains(&value) {
            Ok(Duration::from_millis(value))
        } else {
            Err((key, format!("{value} is not from 1 to 604800000 milliseconds")))
        }
    };
    Ok(Timeouts {
        handshake: millis("timeouts.handshake_ms", raw.handshake_ms, 10_000)?,
        hello: millis("timeouts.hello_ms", raw.hello_ms, 10_000)?,
        request_body: millis("timeouts.request_body_ms", raw.request_body_ms, 60_000)?,
        first_event: millis("timeouts.first_event_ms", raw.first_event_ms, 120_000)?,
        between_events: millis("timeouts.between_events_ms", raw.between_events_ms, 60_000)?,
        total: millis("timeouts.total_ms", raw.total_ms, 900_000)?,
        heartbeat: millis("timeouts.heartbeat_ms", raw.heartbeat_ms.map(u64::from), 10_000)?,
        resume_window: millis("timeouts.resume_window_ms", raw.resume_window_ms, 300_000)?,
        keep_answer: millis("timeouts.keep_answer_ms", raw.keep_answer_ms, 86_400_000)?,
        drain: millis("timeouts.drain_ms", raw.drain_ms, 30_000)?,
        expired_grace: millis("timeouts.expired_grace_ms", raw.expired_grace_ms, 86_400_000)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Config, TEMPLATE};
    use super::Multipliers;

    fn error(text: &str) -> String {
        Config::parse(text, "belayd.toml").expect_err(text).to_string()
    }

    #[test]
    fn the_template_is_valid() {
        let config = Config::parse(TEMPLATE, "template").expect("valid");
        assert_eq!(config.billing.multipliers, Multipliers { free: 10_000, managed: 10_300, byok: 3_000 });
        assert!(config.aliases.contains_key("auto"));
    }

    #[test]
    fn errors_say_where_and_what_was_meant() {
        let text = "[listen]\nquic = \"127.0.0.1:0\"\n[limits]\n  reqests_per_minute = 5\n";
        let shown = error(text);
        assert!(shown.starts_with("belayd.toml:4:3:"), "{shown}");
        assert!(shown.contains("did you mean `requests_per_minute`?"), "{shown}");
    }

    #[test]
    fn wrong_values_name_their_key() {
        let provider = "[state]\ndir = \"x\"\n[providers.p]\nkind = \"demo\"\n";
        let model = |price: &str| {
            format!(
                "{provider}[models.m]\nprovider = \"p\"\ncontext_tokens = 9\nmax_output_tokens = 9\nprice = {price}\n"
            )
        };
        for (text, part) in [
            ("", "state.dir"),
            ("[listen]\nquic = \"nowhere\"\n", "listen.quic"),
            ("[state]\ndir = \"x\"\nstore_threads = 0\n", "store_threads"),
            ("[listen]\nthreads = 257\n", "listen.threads"),
            ("[state]\ndir = \"x\"\n[limits]\nstreams_per_tunnel = 500\n", "heartbeat"),
            ("[state]\ndir = \"x\"\n[providers.p]\nkind = \"antropic\"\n", "did you mean `anthropic`?"),
            ("[state]\ndir = \"x\"\n[providers.p]\nkind = \"openai\"\nurl = \"ftp://x\"\n", "url"),
            (
                "[state]\ndir = \"x\"\n[providers.p]\nkind = \"openai\"\nkey_env = \"BELAY_NO_SUCH_VARIABLE\"\n",
                "BELAY_NO_SUCH_VARIABLE",
            ),
            (
                "[state]\ndir = \"x\"\n[providers.p]\nkind = \"openai\"\nca_file = \"/no/such.pem\"\n",
                "ca_file /no/such.pem",
            ),
            (
                "[state]\ndir = \"x\"\n[providers.p]\nkind = \"openai\"\nca_file = \"Cargo.toml\"\n",
                "there is no certificate",
            ),
            ("[state]\ndir = \"x\"\n[aliases]\nauto = \"nothing\"\n", "there is no model"),
            (&model("{ input = \"-1\", output = \"1\" }"), "below zero"),
            (&model("{ input = \"0.0000000001\", output = \"1\" }"), "not an amount"),
        ] {
            let shown = error(text);
            assert!(shown.contains(part), "{shown:?} does not mention {part:?}");
        }
        assert!(Config::parse(&model("{ input = \"3\", output = \"15\" }"), "x").is_ok());
    }
}
