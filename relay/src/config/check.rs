//! The rules, and the checked configuration that the rest of the relay sees.

use super::billing::{Billing, billing};
use super::environment::{self, Environment};
use super::http::{Http, http};
use super::limits::{Limits, Retries, Timeouts, limits, retries, timeouts};
use super::models::{Model, Prices, model};
use super::raw::{Raw, nearest};
use super::routes::{Route, route};
use super::stripe::{Stripe, stripe};
use super::traces::traces;
use super::upstream::{ProviderConfig, provider};
use crate::ops::log::LogFormat;
use crate::pricing::Catalogue;
use crate::secrets::MASTER_KEY;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
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
    /// What it may be careless about.
    pub environment: Environment,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Over TCP as well, for clients whose UDP does not get through.
    pub tcp: bool,
    /// Where callers without a tunnel are served, if they are.
    pub http: Option<Http>,
    /// Where this machine's programs find the operator's side over TCP, if they do; its socket is there always.
    pub admin: Option<SocketAddr>,
    /// Payments by Stripe, if there are.
    pub stripe: Option<Stripe>,
    /// The addresses that invites carry; empty: the one that is listened on.
    pub public: Vec<String>,
    /// Threads that serve tunnels and providers.
    pub network_threads: usize,
    /// Everything that the relay remembers is below this directory.
    pub state_dir: PathBuf,
    /// What is kept free on its disk for what runs, in bytes.
    pub reserve: u64,
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
    /// Where spans of requests go, if they go anywhere.
    pub traces: Option<belay_traces::Settings>,
    /// What is charged.
    pub billing: Billing,
    /// Sizes and counts.
    pub limits: Limits,
    /// Times.
    pub timeouts: Timeouts,
    /// Providers by name.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// Models by the name that callers use.
    pub models: BTreeMap<String, Arc<Model>>,
    /// Names that stand for models; of several, the first that answers serves.
    pub aliases: BTreeMap<String, Route>,
    /// When a provider is asked again.
    pub retries: Retries,
    /// In place of the catalogue of prices that comes with the relay.
    pub(super) own_catalogue: Option<Arc<Catalogue>>,
    /// Where it stands; `None`: nowhere.
    pub(super) file: Option<PathBuf>,
    /// Every key that is set, with its value in words that differ where values do.
    pub(super) written: BTreeMap<String, String>,
}

impl Config {
    /// What public providers charge.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        self.own_catalogue.as_deref().unwrap_or_else(|| Catalogue::built_in())
    }
}

/// Whether provider keys are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    Read,
    Leave,
}

pub(super) fn check(raw: Raw, name: &str, keys: Keys) -> Result<Config, ConfigError> {
    let wrong = |key: &str, why: String| ConfigError::Value { name: name.to_owned(), key: key.to_owned(), why };
    let environment = Environment::of(raw.environment.as_deref()).map_err(|(key, why)| wrong(key, why))?;
    let secrets = environment::files(&raw);
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
    let reserve = raw.state.reserve_mib.unwrap_or(64);
    if reserve > 1 << 20 {
        return Err(wrong("state.reserve_mib", format!("{reserve} is not from 0 to {}", 1 << 20)));
    }
    let reserve = u64::from(reserve) << 20;
    let store_threads = raw.state.store_threads.unwrap_or(4);
    if !(1..=64).contains(&store_threads) {
        return Err(wrong("state.store_threads", format!("{store_threads} is not from 1 to 64")));
    }
    let own_catalogue = match &raw.billing.prices_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
            let read = text.and_then(|text| Catalogue::parse(&text));
            Some(Arc::new(read.map_err(|why| wrong("billing.prices_file", format!("{}: {why}", path.display())))?))
        }
        None => None,
    };
    let catalogue = own_catalogue.as_deref().unwrap_or_else(|| Catalogue::built_in());
    let billing = billing(&raw.billing, &raw.recorded).map_err(|(key, why)| wrong(key, why))?;
    let prices = Prices { catalogue, default: billing.default_price.as_ref() };
    let providers = raw
        .providers
        .iter()
        .map(|(key, raw)| {
            Ok((key.clone(), provider(raw, keys, catalogue).map_err(|why| wrong(&format!("providers.{key}"), why))?))
        })
        .collect::<Result<BTreeMap<_, _>, ConfigError>>()?;
    let models = raw
        .models
        .iter()
        .map(|(key, raw)| {
            let model = model(key, raw, &providers, &prices).map_err(|why| wrong(&format!("models.{key}"), why))?;
            Ok((key.clone(), Arc::new(model)))
        })
        .collect::<Result<BTreeMap<_, _>, ConfigError>>()?;
    let mut aliases = BTreeMap::new();
    for (alias, targets) in raw.aliases {
        let key = format!("aliases.{alias}");
        if models.contains_key(&alias) {
            return Err(wrong(&key, "is the name of a model as well; choose another alias".into()));
        }
        let targets = route(targets, &models).map_err(|why| wrong(&key, why))?;
        aliases.insert(alias, targets);
    }
    let limits = limits(&raw.limits).map_err(|(key, why)| wrong(key, why))?;
    let timeouts = timeouts(&raw.timeouts).map_err(|(key, why)| wrong(key, why))?;
    let config = Config {
        environment,
        listen,
        tcp: raw.listen.tcp.unwrap_or(true),
        admin: raw.admin.listen.as_deref().map(admin).transpose().map_err(|why| wrong("admin.listen", why))?,
        stripe: stripe(&raw.stripe, keys).map_err(|(key, why)| wrong(key, why))?,
        http: http(raw.http, raw.jwt).map_err(|(key, why)| wrong(key, why))?,
        public: raw.listen.public,
        network_threads,
        master_key: raw.state.master_key_file.unwrap_or_else(|| state_dir.join(MASTER_KEY)),
        state_dir,
        reserve,
        store_threads,
        idle_close: Duration::from_secs(raw.state.idle_close_s.unwrap_or(60)),
        log_format: raw.log.format,
        log_filter: raw.log.filter.unwrap_or_else(|| "info".into()),
        traces: traces(&raw.traces, keys).map_err(|(key, why)| wrong(key, why))?,
        billing,
        limits,
        timeouts,
        providers,
        models,
        aliases,
        retries: retries(&raw.retries).map_err(|(key, why)| wrong(key, why))?,
        own_catalogue,
        file: None,
        written: BTreeMap::new(),
    };
    environment::check(&config, &secrets, keys).map_err(|(key, why)| wrong(&key, why))?;
    Ok(config)
}

/// Errors: it is no address, or one that other machines reach.
fn admin(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| format!("{text:?} is not an address; write for example \"127.0.0.1:9470\""))?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "{address} can be reached by other machines, and whoever is here moves money; name an address of 127.0.0.1, and \
             reach it over SSH"
        ));
    }
    Ok(address)
}

pub(super) fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a String>) -> String {
    let hint = nearest(name, known.map(String::as_str)).map(|hint| format!(" (did you mean `{hint}`?)"));
    format!("there is no {what} {name:?}{}", hint.unwrap_or_default())
}

/// Which key, and what is wrong with its value.
pub(super) type Wrong = (&'static str, String);

#[cfg(test)]
mod tests {
    use super::super::{Config, TEMPLATE};
    use crate::store::ledger::hold::Multipliers;
    use belay_protocol::message::UnitKind;

    const DIR: &str = "[state]\ndir = \"x\"\n";
    const DEMO: &str = "[providers.d]\nkind = \"demo\"\n[models.demo]\nprovider = \"d\"\n";
    const ONE: &str = "price = { input = \"3\", output = \"15\" }\n";

    /// A model whose price changes on that day.
    fn later(first: &str, day: &str) -> String {
        format!(
            "{DIR}[providers.p]\nkind = \"demo\"\n[models.m]\nprovider = \"p\"\n{first}\
             [models.m.price_from.{day}]\ninput = \"1\"\noutput = \"2\"\n"
        )
    }

    #[test]
    fn a_price_changes_on_its_day() {
        let config = Config::parse(&later(ONE, "2026-12-01"), "x").expect("valid");
        let list = config.models["m"].prices.as_ref().expect("priced");
        let input = |at_ms| list.at(at_ms).and_then(|set| set.named(UnitKind::INPUT));
        let day_ms = 1_796_083_200_000;
        assert_eq!((input(day_ms - 1), input(day_ms)), (Some(3_000_000_000), Some(1_000_000_000)));
    }

    #[test]
    fn another_catalogue_takes_the_place_of_the_built_in_one() {
        let file = tempfile::NamedTempFile::new().expect("made");
        let text = r#"{"source":"mine 1","providers":[{"id":"p","addresses":["p.example"],"models":[
            {"id":"m","match":{"equals":"m"},"context":77,"prices":[{"lines":{"input":5,"output":6}}]}]}]}"#;
        std::fs::write(file.path(), text).expect("written");
        let config = format!(
            "{DIR}[billing]\nprices_file = {:?}\n[providers.x]\nkind = \"openai\"\nurl = \"https://p.example/v1\"\n\
             any_model = true\n",
            file.path()
        );
        let config = Config::parse(&config, "x").expect("valid");
        let models = config.resolve("x/m").expect("found");
        assert_eq!((models[0].context_tokens, models[0].prices.is_some()), (77, true));
        assert_eq!(config.resolve("m").expect("found by its name alone"), models);
        assert!(config.resolve("x/n").expect("its provider may have it")[0].prices.is_none());
    }

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
            (&format!("{DIR}[aliases]\nauto = []\n"), "1 to 8 models"),
            (&format!("{DIR}[aliases]\nauto = 5\n"), "a model's name, a list of them, or a table"),
            (&format!("{DIR}{DEMO}[aliases]\nauto = [{{ model = \"demo\", weight = 0 }}]\n"), "weight 0 is not from 1"),
            (
                &format!("{DIR}{DEMO}[aliases.auto]\nmodels = [\"demo\"]\nprefer = \"best\"\n"),
                "neither order nor cheapest",
            ),
            (&format!("{DIR}{DEMO}[aliases.auto]\nmodels = [\"demo\"]\nmax_input = \"-1\"\n"), "below zero"),
            (
                &format!(
                    "{DIR}{DEMO}[aliases.auto]\nmodels = [{{ model = \"demo\", weight = 1 }}]\nprefer = \"cheapest\"\n"
                ),
                "weights mean nothing",
            ),
            (&format!("{DIR}[retries]\nrounds = 11\n"), "is not from 0 to 10"),
            (&format!("{DIR}[billing]\nprices_file = \"/no/such.json\"\n"), "/no/such.json"),
            (&format!("{DIR}[billing]\ntopup_url = \"http://x\"\n"), "no https address"),
            (&format!("{DIR}[recorded.local]\nprice = {{ input = \"-1\", output = \"0\" }}\n"), "below zero"),
            (&format!("{DIR}[providers.p]\nkind = \"openai\"\nprices = \"opnai\"\n"), "did you mean `openai`?"),
            (&later("", "2026-12-01"), "name the present one as price"),
            (&later(ONE, "2026-13-01"), "is no date"),
            (&model("{ input = \"-1\", output = \"1\" }"), "below zero"),
            (&model("{ input = \"0.0000000001\", output = \"1\" }"), "not an amount"),
        ] {
            let shown = error(text);
            assert!(shown.contains(part), "{shown:?} does not mention {part:?}");
        }
        assert!(Config::parse(&model("{ input = \"3\", output = \"15\" }"), "x").is_ok());
    }
}
