//! The rules for providers.

use super::check::Keys;
use super::raw::{RawProvider, nearest};
use crate::pricing::Catalogue;
use crate::providers::addresses::refused;
use belay_protocol::message::Dialect;
use secrecy::{ExposeSecret, SecretString};
use std::path::Path;
use std::time::Duration;

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
    /// Its name in the catalogue of prices.
    pub prices: Option<String>,
    /// Callers may name any of its models.
    pub any_model: bool,
    /// Its name may lead to an address that is not public.
    pub private: bool,
    /// It is told where a request stands in a trace (`traceparent`).
    pub trace_context: bool,
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

impl ProviderConfig {
    /// Whether both have the same key.
    pub(crate) fn has_key_of(&self, other: &Self) -> bool {
        self.key.expose_secret() == other.key.expose_secret()
    }

    /// Whether what is made of either is the same. The files of authorities are not compared: naming some means no.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let of = |one: &Self| (one.kind, one.url.clone(), one.pace, one.private, one.trace_context);
        of(self) == of(other) && self.has_key_of(other) && self.authorities.is_none() && other.authorities.is_none()
    }
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

/// A provider as it is used. Errors: what is wrong, and what to write.
pub(super) fn provider(raw: &RawProvider, keys: Keys, catalogue: &Catalogue) -> Result<ProviderConfig, String> {
    let (kind, default_url) = match raw.kind.as_str() {
        "anthropic" => (ProviderKind::Anthropic, "https://api.anthropic.com"),
        "openai" => (ProviderKind::OpenAi, "https://api.openai.com"),
        "demo" => (ProviderKind::Demo, ""),
        other => {
            let hint = nearest(other, ["anthropic", "openai", "demo"].into_iter());
            let hint = hint.map(|hint| format!(" (did you mean `{hint}`?)")).unwrap_or_default();
            return Err(format!("kind {other:?} is none of anthropic, openai, demo{hint}"));
        }
    };
    let url = raw.url.as_deref().unwrap_or(default_url).trim_end_matches('/').to_owned();
    if kind != ProviderKind::Demo {
        let parsed = reqwest::Url::parse(&url).map_err(|error| format!("url {url:?}: {error}"))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
            return Err(format!("url {url:?} is not an http or https address"));
        }
        if let Some(why) = refused(&parsed).filter(|_| !raw.private) {
            return Err(format!("url {url:?}: {why}"));
        }
    }
    let key = match (&raw.key_env, &raw.key_file) {
        (Some(_), Some(_)) => return Err("has both key_env and key_file; keep one".into()),
        _ if keys == Keys::Leave => String::new(),
        (Some(name), None) => {
            std::env::var(name).map_err(|_| format!("key_env: the environment variable {name} is not set"))?
        }
        (None, Some(path)) => {
            std::fs::read_to_string(path).map_err(|error| format!("key_file {}: {error}", path.display()))?
        }
        (None, None) => String::new(),
    };
    let key = key.trim().to_owned();
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("the key has characters that cannot stand in a header".into());
    }
    let authorities = raw.ca_file.as_deref().map(authorities).transpose()?;
    Ok(ProviderConfig {
        kind,
        authorities,
        key: key.into(),
        pace: Duration::from_millis(raw.pace_ms.unwrap_or(25)),
        prices: listed(raw, &url, kind, catalogue)?,
        any_model: raw.any_model,
        private: raw.private,
        trace_context: raw.trace_context,
        url,
    })
}

/// Where its models are in the catalogue of prices: where it says, or by the address of its API.
fn listed(raw: &RawProvider, url: &str, kind: ProviderKind, catalogue: &Catalogue) -> Result<Option<String>, String> {
    let Some(name) = &raw.prices else {
        let found = (kind != ProviderKind::Demo).then(|| catalogue.at_address(url)).flatten();
        return Ok(found.map(|provider| provider.id.clone()));
    };
    if catalogue.provider(name).is_none() {
        let known = catalogue.providers().iter().map(|provider| provider.id.as_str());
        let hint = nearest(name, known).map(|hint| format!(" (did you mean `{hint}`?)")).unwrap_or_default();
        return Err(format!("prices {name:?} are not in the catalogue{hint}; see: belayd prices list --catalogue"));
    }
    Ok(Some(name.clone()))
}

/// The certificates in a file.
fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, String> {
    let wrong = |why: String| format!("ca_file {}: {why}", path.display());
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() {
        return Err(wrong("there is no certificate in PEM in it".into()));
    }
    Ok(found)
}
