//! The rules for models, their prices, and the names that stand for them.

use super::Config;
use super::check::unknown;
use super::raw::{RawModel, RawPrice, RawTier};
use super::routes::Route;
use super::upstream::ProviderConfig;
use crate::pricing::{Catalogue, PriceLine, PriceList, PriceSet, PriceTier, Source};
use belay_protocol::calendar;
use belay_protocol::message::{ModelOffer, UnitKind};
use belay_protocol::money::NanoUsd;
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// It sees images.
    pub images: bool,
    /// It calls tools.
    pub tools: bool,
    /// Its prices; `None`: nobody knows them, and it is refused.
    pub prices: Option<PriceList>,
    /// Who says so.
    pub priced_by: Option<Source>,
}

/// The most input of a model of which nobody says how much it takes: more than those of today take.
const UNKNOWN_CONTEXT: u32 = 1_000_000;
/// Catalogues whose models refuse the older name of the output cap.
const NEWER_CAP: [&str; 2] = ["openai", "azure"];

/// Where prices are looked for that a model does not name itself.
pub(super) struct Prices<'a> {
    pub(super) catalogue: &'a Catalogue,
    pub(super) default: Option<&'a PriceList>,
}

/// A model with its prices. Errors: what is wrong, and what to write.
pub(super) fn model(
    key: &str,
    raw: &RawModel,
    providers: &BTreeMap<String, ProviderConfig>,
    prices: &Prices<'_>,
) -> Result<Model, String> {
    let provider = providers.get(&raw.provider).ok_or_else(|| unknown("provider", &raw.provider, providers.keys()))?;
    if raw.max_output_tokens == Some(0) || raw.context_tokens == Some(0) {
        return Err("context_tokens and max_output_tokens must be at least 1".into());
    }
    if let Some(field) = &raw.cap_field
        && !matches!(field.as_str(), "max_tokens" | "max_completion_tokens")
    {
        return Err(format!("cap_field {field:?} is neither max_tokens nor max_completion_tokens"));
    }
    let name = raw.name.as_deref().unwrap_or(key);
    let mut model = unlisted(&raw.provider, provider, name, prices);
    model.context_tokens = raw.context_tokens.unwrap_or(model.context_tokens);
    model.images = raw.images.unwrap_or(true);
    model.tools = raw.tools.unwrap_or(true);
    model.max_output_tokens = raw.max_output_tokens.unwrap_or(model.context_tokens);
    if let Some(field) = &raw.cap_field {
        model.cap_field.clone_from(field);
    }
    if let Some(list) = named(raw)? {
        (model.prices, model.priced_by) = (Some(list), Some(Source::Config));
    }
    Ok(model)
}

/// A model of a provider of which the configuration says nothing.
fn unlisted(provider_name: &str, provider: &ProviderConfig, name: &str, prices: &Prices<'_>) -> Model {
    let listed = provider.prices.as_deref().and_then(|id| prices.catalogue.find(id, name));
    let found = listed.and_then(|model| model.price_list()).map(|list| (list, Source::Catalogue));
    // A model that is priced by what nobody counts here has no price by tokens either.
    let by_default = prices.default.filter(|_| listed.is_none_or(|model| model.unpriced.is_none()));
    let priced = found.or_else(|| by_default.map(|list| (list.clone(), Source::Default)));
    let context_tokens = listed.and_then(|model| model.context).unwrap_or(UNKNOWN_CONTEXT);
    let newer = provider.prices.as_deref().is_some_and(|id| NEWER_CAP.contains(&id));
    let (prices, priced_by) = priced.unzip();
    Model {
        provider: provider_name.to_owned(),
        name: name.to_owned(),
        context_tokens,
        max_output_tokens: context_tokens,
        cap_field: if newer { "max_completion_tokens" } else { "max_tokens" }.to_owned(),
        images: true,
        tools: true,
        prices,
        priced_by,
    }
}

impl Config {
    /// The models that a name stands for, the first choice first: a model, an alias, a provider's own name
    /// of a model, or any model of a provider that offers all of its own. Errors: there is none; what there is.
    pub fn resolve(&self, name: &str) -> Result<Vec<Arc<Model>>, String> {
        let name = if name.is_empty() { "auto" } else { name };
        if let Some(route) = self.aliases.get(name) {
            return Ok(route.targets.iter().filter_map(|target| self.models.get(&target.model).cloned()).collect());
        }
        let own = self.models.get(name).or_else(|| self.models.values().find(|model| model.name == name));
        if let Some(model) = own {
            return Ok(vec![Arc::clone(model)]);
        }
        self.any(name).map(|model| vec![Arc::new(model)]).ok_or_else(|| {
            let open = self.providers.iter().filter(|(_, provider)| provider.any_model);
            let open = open.map(|(provider, _)| format!("{provider}/MODEL"));
            let named = self.aliases.keys().chain(self.models.keys());
            let shown: String = name.chars().take(80).collect();
            let unknown = unknown("model", &shown, named.clone());
            let known: Vec<String> = named.cloned().chain(open).collect();
            format!("{unknown} on this relay; it has {}", known.join(", "))
        })
    }

    /// What an alias stands for; `None` for any other name.
    #[must_use]
    pub fn route(&self, name: &str) -> Option<&Route> {
        self.aliases.get(if name.is_empty() { "auto" } else { name })
    }

    /// What can be asked, aliases first: each name with the model that is asked first for it, and its prices
    /// now.
    #[must_use]
    pub fn offers(&self, now_ms: u64) -> Vec<ModelOffer> {
        let aliases = self.aliases.keys();
        let models = self.models.keys().filter(|name| !self.aliases.contains_key(*name));
        let offer = |name: &String| {
            let model = self.resolve(name).ok()?.into_iter().next()?;
            let prices = model.prices.as_ref().and_then(|list| list.at(now_ms));
            let price = |kind| prices.and_then(|prices| prices.named(kind)).map(NanoUsd);
            Some(ModelOffer {
                name: name.clone(),
                provider: model.provider.clone(),
                model: model.name.clone(),
                dialect: self.providers[&model.provider].kind.dialect(),
                context_tokens: model.context_tokens,
                max_output_tokens: model.max_output_tokens,
                input: price(UnitKind::INPUT),
                output: price(UnitKind::OUTPUT),
            })
        };
        aliases.chain(models).filter_map(offer).collect()
    }

    /// A model that only its provider names: `provider/model`, or the model alone where the catalogue has it.
    fn any(&self, name: &str) -> Option<Model> {
        let prices = Prices { catalogue: self.catalogue(), default: self.billing.default_price.as_ref() };
        let mut open = self.providers.iter().filter(|(_, provider)| provider.any_model);
        if let Some((first, rest)) = name.split_once('/')
            && let Some(provider) = self.providers.get(first).filter(|provider| provider.any_model)
        {
            return Some(self.own_or_unlisted(first, provider, rest, &prices));
        }
        let (key, provider) = open.find(|(_, provider)| {
            provider.prices.as_deref().is_some_and(|id| self.catalogue().find(id, name).is_some())
        })?;
        Some(self.own_or_unlisted(key, provider, name, &prices))
    }

    /// What the operator says of a model holds for it under each of its names.
    fn own_or_unlisted(&self, key: &str, provider: &ProviderConfig, name: &str, prices: &Prices<'_>) -> Model {
        let listed = |name: &str| {
            let id = provider.prices.as_deref()?;
            prices.catalogue.find(id, name).map(|model| model.id.as_str())
        };
        let own = |by: &dyn Fn(&Model) -> bool| self.models.values().find(|model| model.provider == key && by(model));
        if let Some(own) = own(&|model| model.name.eq_ignore_ascii_case(name)) {
            return Model::clone(own);
        }
        // A dated version, say, of a model that is configured.
        match own(&|model| listed(name).is_some_and(|found| listed(&model.name) == Some(found))) {
            Some(own) => Model { name: name.to_owned(), ..Model::clone(own) },
            None => unlisted(key, provider, name, prices),
        }
    }
}

/// The prices that a model names itself, with those of later days.
fn named(raw: &RawModel) -> Result<Option<PriceList>, String> {
    let Some(first) = &raw.price else {
        let without = "price_from says how a price changes; name the present one as price";
        return if raw.price_from.is_empty() { Ok(None) } else { Err(without.into()) };
    };
    let mut sets = vec![set(first)?];
    for (day, raw) in &raw.price_from {
        let from = calendar::parse_day(day).ok_or_else(|| {
            format!("price_from {day:?} is no date; write for example [models.NAME.price_from.2026-12-01]")
        })?;
        sets.push(PriceSet { from_ms: Some(calendar::day_start_ms(from)), ..set(raw)? });
    }
    sets[1..].sort_by_key(|set| set.from_ms);
    Ok(Some(PriceList(sets)))
}

/// Prices as they are named in the configuration. Errors: what is wrong with them.
pub(super) fn set(raw: &RawPrice) -> Result<PriceSet, String> {
    Ok(PriceSet { from_ms: None, hours: None, lines: prices(raw)?, tiers: tiers(&raw.tiers)? })
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
        .map(|(kind, text)| Ok(PriceLine { kind, nano_per_million: price_of(kind, text)?.0 }))
        .collect()
}

/// What a million units cost. Errors: it is no price.
pub(super) fn price_of(kind: UnitKind, text: &str) -> Result<NanoUsd, String> {
    let amount: NanoUsd = text.parse().map_err(|error| format!("price of {kind}: {error}"))?;
    if amount.is_negative() {
        return Err(format!("price of {kind}: {text:?} is below zero"));
    }
    Ok(amount)
}
