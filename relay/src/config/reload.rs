//! What of a configuration takes effect while the relay runs, and what only at its next start.

use super::check::{Keys, check};
use super::raw;
use super::{Config, ConfigError, Http, HttpTls};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Keys, or the beginnings of keys, that are read at the start and never again: sockets, threads, files that are open, and
/// what counts connections.
const AT_START: [&str; 19] = [
    "admin.listen",
    "environment",
    "http.connections",
    "http.connections_per_address",
    "http.listen",
    "http.look_ups_per_second",
    "limits.bodies_in_memory_mib",
    "limits.handshakes_per_second",
    "limits.pending_handshakes",
    "limits.request_body_mib",
    "listen.quic",
    "listen.tcp",
    "listen.threads",
    "log.format",
    "state.",
    "stripe.",
    "timeouts.device_certificate_ms",
    "timeouts.expired_grace_ms",
    "traces.",
];

/// The keys in which two configurations differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// They hold from now on.
    pub applied: Vec<String>,
    /// They hold from the next start on.
    pub needs_restart: Vec<String>,
}

impl Config {
    /// Reads the file anew. Errors: those of [`load`](Self::load); it came from no file.
    pub fn load_again(&self) -> Result<Self, ConfigError> {
        let Some(file) = &self.file else {
            let source = std::io::Error::other("this relay was not started from a file");
            return Err(ConfigError::Unreadable { path: "that there is not".into(), source });
        };
        let (text, name) = (super::read(file)?, file.display().to_string());
        let mut raw = raw::parse(&text, &name)?;
        // The rules that hold are those of the environment that it was started in.
        raw.environment = Some(self.environment.to_string());
        let new = check(raw, &name, Keys::Read)?;
        Ok(Self { written: raw::written(&text), file: self.file.clone(), ..new })
    }

    /// What is to be in force while the process that runs under `self` goes on, once `new` is what is written; and in which
    /// keys they differ.
    pub(crate) fn changed_to(&self, mut new: Self) -> (Self, Difference) {
        let mut difference = Difference::default();
        let protection = |config: &Self| config.http.as_ref().map(|http| http.tls == HttpTls::Off);
        let other_port = protection(self) != protection(&new);
        let at_start = |key: &str| {
            let is_meant = |start: &str| key == start || start.ends_with('.') && key.starts_with(start);
            // The port is there or not, plain or not, for as long as the process lives.
            AT_START.into_iter().any(is_meant) || other_port && (key == "jwt" || key.starts_with("http."))
        };
        let keys: BTreeSet<String> = self.written.keys().chain(new.written.keys()).cloned().collect();
        for key in keys {
            let known = self.written.get(&key);
            if known == new.written.get(&key) {
                continue;
            }
            if !at_start(&key) {
                difference.applied.push(key);
                continue;
            }
            // What it says is not in force, and is told again next time.
            match known {
                Some(value) => new.written.insert(key.clone(), value.clone()),
                None => new.written.remove(&key),
            };
            difference.needs_restart.push(key);
        }
        // A secret may have changed where the key that says where it is has not.
        for (name, provider) in &new.providers {
            let is_new = self.providers.get(name).is_some_and(|known| !known.has_key_of(provider));
            let prefix = format!("providers.{name}.");
            if is_new && !difference.applied.iter().any(|key| key.starts_with(&prefix)) {
                difference.applied.push(format!("{prefix}key"));
            }
        }
        let other_traces = match (&self.traces, &new.traces) {
            (Some(known), Some(wanted)) => !known.is_same(wanted),
            _ => false,
        };
        if other_traces && !difference.needs_restart.iter().any(|key| key.starts_with("traces.")) {
            difference.needs_restart.push("traces.headers_file".into());
        }
        let other_stripe = match (&self.stripe, &new.stripe) {
            (Some(known), Some(wanted)) => !known.has_keys_of(wanted),
            _ => false,
        };
        if other_stripe && !difference.needs_restart.iter().any(|key| key.starts_with("stripe.")) {
            difference.needs_restart.push("stripe.key_file, stripe.webhook_secrets_file".into());
        }
        let prices = "billing.prices_file".to_owned();
        if self.own_catalogue != new.own_catalogue && !difference.applied.contains(&prices) {
            difference.applied.push(prices);
        }
        difference.applied.sort_unstable();
        let http = match (&self.http, new.http) {
            (Some(old), Some(new)) if !other_port => Some(Http {
                listen: old.listen,
                connections: old.connections,
                connections_per_address: old.connections_per_address,
                look_ups_per_second: old.look_ups_per_second,
                ..new
            }),
            (old, _) => old.clone(),
        };
        let mut limits = new.limits;
        limits.bodies_in_memory = self.limits.bodies_in_memory;
        limits.handshakes_per_second = self.limits.handshakes_per_second;
        limits.pending_handshakes = self.limits.pending_handshakes;
        // Who may have how much of the room for bodies was reckoned by it.
        limits.request_body = self.limits.request_body;
        let merged = Self {
            environment: self.environment,
            listen: self.listen,
            tcp: self.tcp,
            http,
            admin: self.admin,
            stripe: self.stripe.clone(),
            network_threads: self.network_threads,
            state_dir: self.state_dir.clone(),
            reserve: self.reserve,
            master_key: self.master_key.clone(),
            store_threads: self.store_threads,
            idle_close: self.idle_close,
            log_format: self.log_format,
            traces: self.traces.clone(),
            limits,
            ..new
        };
        (merged, difference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TEMPLATE;

    #[test]
    fn every_change_is_applied_or_waits_for_a_start_and_says_which() {
        let old = Config::parse(TEMPLATE, "old").expect("valid");
        let text = format!(
            "{}\n",
            TEMPLATE
                .replace("requests_per_minute = 100", "requests_per_minute = 7")
                .replace("0.0.0.0:4433", "0.0.0.0:4434")
        );
        let new = Config::parse(&text, "new").expect("valid");
        let (now, difference) = old.changed_to(new);
        assert_eq!(difference.applied, ["limits.requests_per_minute"]);
        assert_eq!(difference.needs_restart, ["listen.quic"]);
        assert_eq!((now.limits.requests_per_minute, now.listen), (7, old.listen));
        let (_, again) = now.changed_to(Config::parse(&text, "new").expect("valid"));
        assert_eq!(again, Difference { applied: vec![], needs_restart: vec!["listen.quic".into()] });
    }

    #[test]
    fn a_port_is_plain_or_not_for_as_long_as_it_is_open() {
        let text = |http: &str| format!("[state]\ndir = \"x\"\n[http]\nlisten = \"127.0.0.1:0\"\n{http}");
        let config = |http: &str| Config::parse(&text(http), "x").expect("valid");
        let (plain, own) = (config("idle_s = 5\n"), config("tls = \"own\"\nidle_s = 6\n"));
        let (now, difference) = plain.changed_to(own.clone());
        assert_eq!(difference.needs_restart, ["http.idle_s", "http.tls"]);
        assert_eq!((difference.applied, &now.http), (vec![], &plain.http));
        let (now, difference) = own.changed_to(config("tls = \"own\"\nnames = [\"a.example\"]\n"));
        assert_eq!(difference.applied, ["http.idle_s", "http.names"]);
        assert_eq!(now.http.expect("there").tls, HttpTls::Own { names: vec!["a.example".into()] });
        let (now, difference) = plain.changed_to(Config::parse("[state]\ndir = \"x\"\n", "x").expect("valid"));
        assert_eq!(difference.needs_restart, ["http.idle_s", "http.listen"]);
        assert_eq!(now.http, plain.http);
    }
}
