//! The rules for providers, models and prices.

use super::check::{Keys, Model, ProviderConfig, ProviderKind, unknown};
use super::raw::{RawModel, RawPrice, RawProvider, RawTier, nearest};
use crate::pricing::{PriceLine, PriceTier};
use belay_protocol::message::UnitKind;
use belay_protocol::money::NanoUsd;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// A provider as it is used. Errors: what is wrong, and what to write.
pub(super) fn provider(raw: &RawProvider, keys: Keys) -> Result<ProviderConfig, String> {
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
        url,
        authorities,
        key: key.into(),
        pace: Duration::from_millis(raw.pace_ms.unwrap_or(25)),
    })
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

/// A model with its prices. Errors: what is wrong, and what to write.
pub(super) fn model(key: &str, raw: &RawModel, providers: &BTreeMap<String, ProviderConfig>) -> Result<Model, String> {
    if !providers.contains_key(&raw.provider) {
        return Err(unknown("provider", &raw.provider, providers.keys()));
    }
    if raw.max_output_tokens == 0 || raw.context_tokens == 0 {
        return Err("context_tokens and max_output_tokens must be at least 1".into());
    }
    let cap_field = raw.cap_field.clone().unwrap_or_else(|| "max_tokens".into());
    if !matches!(cap_field.as_str(), "max_tokens" | "max_completion_tokens") {
        return Err(format!("cap_field {cap_field:?} is neither max_tokens nor max_completion_tokens"));
    }
    Ok(Model {
        provider: raw.provider.clone(),
        name: raw.name.clone().unwrap_or_else(|| key.to_owned()),
        context_tokens: raw.context_tokens,
        max_output_tokens: raw.max_output_tokens,
        cap_field,
        prices: prices(&raw.price)?,
        tiers: tiers(&raw.price.tiers)?,
    })
}

type Named<'a> = (UnitKind, Option<&'a String>);

fn prices(raw: &RawPrice) -> Result<Vec<PriceLine>, String> {
    let mut lines = lines([
        (UnitKind::INPUT, Some(&raw.input)),
        (UnitKind::OUTPUT, Some(&raw.output)),
        (UnitKind::CACHE_READ, raw.cache_read.as_ref()),
        (UnitKind::CACHE_WRITE_5M, raw.cache_write_5m.as_ref()),
        (UnitKind::CACHE_WRITE_1H, raw.cache_write_1h.as_ref()),
        (UnitKind::INPUT_AUDIO, raw.input_audio.as_ref()),
        (UnitKind::OUTPUT_AUDIO, raw.output_audio.as_ref()),
        (UnitKind::INPUT_IMAGE, raw.input_image.as_ref()),
        (UnitKind::OUTPUT_IMAGE, raw.output_image.as_ref()),
    ])?;
    // Lines are per million.
    for mut line in self::lines([(UnitKind::CALLS, raw.thousand_calls.as_ref())])? {
        line.nano_per_million =
            line.nano_per_million.checked_mul(1000).ok_or_else(|| format!("price of {}: too large", line.kind))?;
        lines.push(line);
    }
    Ok(lines)
}

fn tiers(raw: &[RawTier]) -> Result<Vec<PriceTier>, String> {
    let mut above = None;
    let mut tiers = vec![];
    for tier in raw {
        if above.is_some_and(|above| tier.above <= above) {
            return Err(format!("price.tiers: above = {} does not come after the tier before it", tier.above));
        }
        above = Some(tier.above);
        let lines = lines([
            (UnitKind::INPUT, tier.input.as_ref()),
            (UnitKind::OUTPUT, tier.output.as_ref()),
            (UnitKind::CACHE_READ, tier.cache_read.as_ref()),
            (UnitKind::CACHE_WRITE_5M, tier.cache_write_5m.as_ref()),
            (UnitKind::CACHE_WRITE_1H, tier.cache_write_1h.as_ref()),
        ])?;
        tiers.push(PriceTier { above: tier.above, lines });
    }
    Ok(tiers)
}

/// Those prices that are named. Errors: one that is no price.
fn lines<'a>(named: impl IntoIterator<Item = Named<'a>>) -> Result<Vec<PriceLine>, String> {
    named
        .into_iter()
        .filter_map(|(kind, text)| Some((kind, text?)))
        .map(|(kind, text)| {
            let amount: NanoUsd = text.parse().map_err(|error| format!("price of {kind}: {error}"))?;
            if amount.is_negative() {
                return Err(format!("price of {kind}: {text:?} is below zero"));
            }
            Ok(PriceLine { kind, nano_per_million: amount.0 })
        })
        .collect()
}
