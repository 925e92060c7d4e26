//! Payments by Stripe.

use super::check::{Keys, Wrong};
use super::raw::RawStripe;
use secrecy::{ExposeSecret, SecretString};
use std::path::Path;
use std::time::Duration;

/// How Stripe is reached, and what for.
#[derive(Debug, Clone)]
pub struct Stripe {
    /// Its API.
    pub url: String,
    /// The relay's key there.
    pub key: SecretString,
    /// With which its webhooks are signed; several while one takes the place of another.
    pub webhook_secrets: Vec<SecretString>,
    /// A webhook may be so many seconds old.
    pub tolerance_s: u64,
    /// Where a payer lands who has paid.
    pub success_url: String,
    /// And one who has not.
    pub cancel_url: Option<String>,
    /// The meter for usage of tenants that pay later; `None`: none.
    pub meter_event: Option<String>,
    /// How often top-ups and meters are looked at.
    pub look_every: Duration,
    /// Its name may lead to an address that is not public.
    pub private: bool,
}

impl Stripe {
    /// Whether both would be known by the same keys.
    pub(crate) fn has_keys_of(&self, other: &Self) -> bool {
        let shown = |one: &Self| -> Vec<String> {
            let all = std::iter::once(&one.key).chain(&one.webhook_secrets);
            all.map(|secret| secret.expose_secret().to_owned()).collect()
        };
        shown(self) == shown(other)
    }
}

fn secret(name: &'static str, (env, file): (Option<&str>, Option<&Path>), keys: Keys) -> Result<Option<String>, Wrong> {
    match (env, file) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err((name, "stands there as a file and in the environment; keep one".into())),
        _ if keys == Keys::Leave => Ok(Some(String::new())),
        (Some(env), None) => {
            std::env::var(env).map(Some).map_err(|_| (name, format!("the environment variable {env} is not set")))
        }
        (None, Some(path)) => {
            std::fs::read_to_string(path).map(Some).map_err(|error| (name, format!("{}: {error}", path.display())))
        }
    }
}

pub(super) fn stripe(raw: &RawStripe, keys: Keys) -> Result<Option<Stripe>, Wrong> {
    let key = secret("stripe.key_file", (raw.key_env.as_deref(), raw.key_file.as_deref()), keys)?;
    let Some(key) = key else {
        return match raw.is_empty() {
            true => Ok(None),
            false => Err(("stripe.key_file", "is missing; name key_file or key_env, or leave [stripe] out".into())),
        };
    };
    let webhooks = (raw.webhook_secret_env.as_deref(), raw.webhook_secrets_file.as_deref());
    let webhooks = secret("stripe.webhook_secrets_file", webhooks, keys)?.ok_or_else(|| {
        let why = "is missing; without the secret that webhooks are signed with, no payment is ever credited";
        ("stripe.webhook_secrets_file", why.to_owned())
    })?;
    let webhook_secrets: Vec<SecretString> = webhooks.split_whitespace().map(SecretString::from).collect();
    if keys == Keys::Read && (key.trim().is_empty() || webhook_secrets.is_empty()) {
        return Err(("stripe.key_file", "a secret is empty".into()));
    }
    let url = raw.url.clone().unwrap_or_else(|| "https://api.stripe.com".into());
    let parsed = reqwest::Url::parse(&url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    if parsed.is_none() {
        return Err(("stripe.url", format!("{url:?} is not an http or https address")));
    }
    let success_url = raw.success_url.clone().unwrap_or_default();
    if !success_url.starts_with("https://") && !success_url.starts_with("http://") {
        return Err((
            "stripe.success_url",
            "name the page where payers land, for example \"https://example.org/paid\"".into(),
        ));
    }
    let look = raw.look_every_s.unwrap_or(30);
    if !(1..=86_400).contains(&look) {
        return Err(("stripe.look_every_s", format!("{look} is not from 1 to 86400 seconds")));
    }
    let tolerance_s = raw.tolerance_s.unwrap_or(300);
    if !(10..=3600).contains(&tolerance_s) {
        return Err(("stripe.tolerance_s", format!("{tolerance_s} is not from 10 to 3600 seconds")));
    }
    Ok(Some(Stripe {
        url,
        key: key.trim().into(),
        webhook_secrets,
        tolerance_s,
        success_url,
        cancel_url: raw.cancel_url.clone(),
        meter_event: raw.meter_event.clone(),
        look_every: Duration::from_secs(look),
        private: raw.private,
    }))
}
