//! What a relay may be careless about: more on a desk than where people pay.

use super::check::{Config, Keys, Wrong};
use super::http::HttpTls;
use super::raw::Raw;
use super::upstream::ProviderKind;
use secrecy::ExposeSecret;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What a relay is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Environment {
    /// Somebody's own machine.
    #[default]
    Development,
    /// As in production, with a demo provider and keys for tests.
    Staging,
    /// Where people pay.
    Production,
}

const NAMES: [(Environment, &str); 3] = [
    (Environment::Development, "development"),
    (Environment::Staging, "staging"),
    (Environment::Production, "production"),
];

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.into_iter().find(|(one, _)| one == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Environment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = NAMES.into_iter().find(|(_, name)| *name == text).map(|(one, _)| one);
        found.ok_or_else(|| format!("{text:?} is none of development, staging, production"))
    }
}

impl Environment {
    pub(super) fn of(text: Option<&str>) -> Result<Self, Wrong> {
        text.map_or(Ok(Self::default()), |text| text.parse().map_err(|why| ("environment", why)))
    }
}

/// The files of a configuration that hold secrets, each with its key.
pub(super) fn files(raw: &Raw) -> Vec<(String, PathBuf)> {
    let providers = raw
        .providers
        .iter()
        .filter_map(|(name, provider)| Some((format!("providers.{name}.key_file"), provider.key_file.clone()?)));
    let own = [
        ("state.master_key_file", raw.state.master_key_file.as_ref()),
        ("http.key_file", raw.http.key_file.as_ref()),
        ("stripe.key_file", raw.stripe.key_file.as_ref()),
        ("stripe.webhook_secrets_file", raw.stripe.webhook_secrets_file.as_ref()),
        ("traces.headers_file", raw.traces.headers_file.as_ref()),
    ];
    let own = own.into_iter().filter_map(|(key, path)| Some((key.to_owned(), path?.clone())));
    own.chain(providers).collect()
}

/// What stands in examples and is nobody's secret.
const EXAMPLES: [&str; 9] =
    ["changeme", "change-me", "secret", "password", "example", "your-key", "your_key", "replace", "xxxx"];
/// How keys begin that move no real money.
const TEST_KEYS: [&str; 3] = ["sk_test_", "rk_test_", "test_"];

/// Errors: which key is wrong for this environment, and what to do.
pub(super) fn check(config: &Config, secrets: &[(String, PathBuf)], keys: Keys) -> Result<(), (String, String)> {
    let environment = config.environment;
    if environment == Environment::Development {
        return Ok(());
    }
    let wrong = |key: String, why: String| Err((key, format!("{why}; that is not for {environment}")));
    for (key, path) in secrets {
        if is_open(path) {
            let shown = path.display();
            return wrong(
                key.clone(),
                format!("{shown} can be read by others than its owner and group (chmod o= {shown})"),
            );
        }
    }
    for (name, provider) in &config.providers {
        let of = |field: &str| format!("providers.{name}.{field}");
        if keys == Keys::Read {
            let secret = provider.key.expose_secret().to_ascii_lowercase();
            if EXAMPLES.iter().any(|example| secret.contains(example)) {
                return wrong(of("key"), "the key is one of an example".into());
            }
            if environment == Environment::Production && TEST_KEYS.iter().any(|test| secret.starts_with(test)) {
                return wrong(of("key"), "the key is one for tests".into());
            }
        }
        if environment < Environment::Production {
            continue;
        }
        if provider.kind == ProviderKind::Demo {
            return wrong(of("kind"), "the demo provider answers with nothing but words of its own".into());
        }
        if is_plain(&provider.url) && !is_near(&provider.url) {
            return wrong(of("url"), format!("{} would carry keys and questions in the clear", provider.url));
        }
    }
    if environment < Environment::Production {
        return Ok(());
    }
    if let Some(stripe) = config.stripe.as_ref().filter(|_| keys == Keys::Read) {
        let secret = stripe.key.expose_secret().to_ascii_lowercase();
        if TEST_KEYS.iter().any(|test| secret.starts_with(test)) {
            return wrong("stripe.key_file".into(), "the key is one for tests".into());
        }
    }
    if let Some(traces) = config.traces.as_ref().filter(|traces| is_plain(&traces.endpoint))
        && !is_near(&traces.endpoint)
    {
        return wrong(
            "traces.endpoint".into(),
            format!("{} would be told in the clear who asks what of whom", traces.endpoint),
        );
    }
    match &config.http {
        Some(http) if http.tls == HttpTls::Off && !http.listen.ip().is_loopback() => {
            wrong("http.tls".into(), format!("{} would be served in the clear to whoever gets there", http.listen))
        }
        _ => Ok(()),
    }
}

/// What goes there can be read on the way.
fn is_plain(url: &str) -> bool {
    reqwest::Url::parse(url).is_ok_and(|url| url.scheme() == "http")
}

/// An address of this machine or its own network.
fn is_near(url: &str) -> bool {
    let parsed = reqwest::Url::parse(url).ok();
    let host = parsed.as_ref().and_then(reqwest::Url::host_str).unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local(),
        Err(_) => host == "localhost",
    }
}

/// True for a file that everybody can read. One that is not there is noticed by whoever needs it.
#[cfg(unix)]
fn is_open(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0)
}

#[cfg(test)]
mod tests {
    use super::super::{Config, template};
    use super::*;

    const DIR: &str = "[state]\ndir = \"x\"\n";

    fn refused(environment: &str, text: &str) -> Option<String> {
        let text = format!("environment = \"{environment}\"\n{DIR}{text}");
        Config::parse(&text, "x").err().map(|error| error.to_string())
    }

    #[test]
    fn each_environment_refuses_what_is_not_for_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str, mode: u32| {
            use std::os::unix::fs::PermissionsExt;
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            path.display().to_string()
        };
        let provider = |key: &str| format!("[providers.p]\nkind = \"openai\"\nkey_file = {key:?}\n");
        let (good, open) = (file("good", "sk-live-1234", 0o640), file("open", "sk-live-1234", 0o644));
        let (example, test) = (file("example", "sk-CHANGEME-1", 0o600), file("test", "sk_test_1", 0o600));
        let demo = "[providers.p]\nkind = \"demo\"\n".to_owned();
        let clear = "[providers.p]\nkind = \"openai\"\nurl = \"http://api.example.org\"\n".to_owned();
        let near = "[providers.p]\nkind = \"openai\"\nurl = \"http://127.0.0.1:11434\"\n".to_owned();
        let plain = "[http]\nlisten = \"0.0.0.0:1\"\ntls = \"off\"\n".to_owned();
        let own = "[http]\nlisten = \"127.0.0.1:1\"\n".to_owned();
        for (text, staging, production) in [
            (provider(&good), None, None),
            (provider(&open), Some("can be read by others"), Some("chmod o=")),
            (provider(&example), Some("one of an example"), Some("one of an example")),
            (provider(&test), None, Some("one for tests")),
            (demo, None, Some("the demo provider")),
            (clear, None, Some("in the clear")),
            (near, None, None),
            (plain, None, Some("in the clear to whoever gets there")),
            (own, None, None),
        ] {
            assert_eq!(refused("development", &text), None, "{text}");
            for (environment, part) in [("staging", staging), ("production", production)] {
                match (refused(environment, &text), part) {
                    (None, None) => {}
                    (Some(said), Some(part)) => assert!(said.contains(part) && said.contains(environment), "{said}"),
                    other => panic!("{environment}: {other:?} for {text}"),
                }
            }
        }
        assert!(refused("prod", "").expect("refused").contains("none of development"));
    }

    #[test]
    fn what_is_written_for_an_environment_is_accepted_by_it() {
        for (environment, name) in NAMES {
            let text = template(environment);
            let config = Config::parse(&text, "x").expect("valid");
            assert_eq!(config.environment, environment);
            assert_eq!(name.parse(), Ok(environment));
            assert_eq!(config.models.is_empty(), environment == Environment::Production, "{text}");
        }
    }
}
