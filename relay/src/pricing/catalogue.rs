//! The prices of public providers, as data: those of genai-prices, converted to whole nano-dollars by
//! `relay/prices/convert.py`. What a configuration names itself comes before them.

use super::{PriceLine, PriceList, PriceSet, PriceTier};
use belay_protocol::calendar;
use belay_protocol::message::UnitKind;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;

static BUILT_IN: LazyLock<Catalogue> = LazyLock::new(|| {
    // A test reads it.
    Catalogue::parse(include_str!("../../prices/prices.json")).unwrap_or_default()
});

/// Prices of many providers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Where they come from, with its version.
    pub source: String,
    providers: Vec<ListedProvider>,
}

/// A provider's models.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedProvider {
    /// Its name in the catalogue.
    pub id: String,
    /// How the addresses of its API begin, without the scheme.
    #[serde(default)]
    addresses: Vec<String>,
    /// Providers whose models it serves at their prices.
    #[serde(default)]
    fallback: Vec<String>,
    /// The first that matches a name is meant.
    pub models: Vec<ListedModel>,
}

/// A model, and what it costs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedModel {
    /// Its name in the catalogue.
    pub id: String,
    #[serde(rename = "match")]
    rule: Rule,
    /// The most input tokens that it takes, where known.
    pub context: Option<u32>,
    /// What it is priced by that the relay does not count; then it has no prices here.
    pub unpriced: Option<String>,
    prices: Vec<ListedSet>,
}

/// Which names mean a model. Names are compared in lower case.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rule {
    Equals(String),
    StartsWith(String),
    EndsWith(String),
    Contains(String),
    /// `#` stands for a digit.
    Shape(String),
    /// The same for the beginning of a name.
    ShapePrefix(String),
    Or(Vec<Rule>),
    And(Vec<Rule>),
    Not(Box<Rule>),
}

impl Rule {
    fn matches(&self, name: &str) -> bool {
        let fits = |shape: &str| {
            let mut pairs = shape.bytes().zip(name.bytes());
            pairs.all(|(want, have)| want == have || want == b'#' && have.is_ascii_digit())
        };
        match self {
            Self::Equals(text) => name == text,
            Self::StartsWith(text) => name.starts_with(text),
            Self::EndsWith(text) => name.ends_with(text),
            Self::Contains(text) => name.contains(text),
            Self::Shape(shape) => name.len() == shape.len() && fits(shape),
            Self::ShapePrefix(shape) => name.len() >= shape.len() && fits(shape),
            Self::Or(rules) => rules.iter().any(|rule| rule.matches(name)),
            Self::And(rules) => rules.iter().all(|rule| rule.matches(name)),
            Self::Not(rule) => !rule.matches(name),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedSet {
    /// A date.
    from: Option<String>,
    hours: Option<(u32, u32)>,
    lines: BTreeMap<String, i64>,
    #[serde(default)]
    tiers: Vec<ListedTier>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedTier {
    above: u64,
    lines: BTreeMap<String, i64>,
}

const DAY_SECONDS: u32 = 86_400;

impl Catalogue {
    /// The one that comes with the relay.
    #[must_use]
    pub fn built_in() -> &'static Self {
        &BUILT_IN
    }

    /// Reads one in the format of `relay/prices/prices.json`. Errors: what is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let catalogue: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (place, provider) in catalogue.providers.iter().enumerate() {
            if catalogue.providers[..place].iter().any(|other| other.id == provider.id) {
                return Err(format!("the provider {} stands twice in it", provider.id));
            }
            for model in &provider.models {
                model.prices().map_err(|why| format!("model {} of {}: {why}", model.id, provider.id))?;
            }
        }
        Ok(catalogue)
    }

    /// All providers.
    #[must_use]
    pub fn providers(&self) -> &[ListedProvider] {
        &self.providers
    }

    /// One provider.
    #[must_use]
    pub fn provider(&self, id: &str) -> Option<&ListedProvider> {
        self.providers.iter().find(|provider| provider.id == id)
    }

    /// The provider whose API has that address.
    #[must_use]
    pub fn at_address(&self, url: &str) -> Option<&ListedProvider> {
        let (_, address) = url.split_once("://")?;
        let is_there = |prefix: &String| {
            let at = address.find(prefix.as_str());
            at.is_some_and(|at| {
                let (before, rest) = (&address[..at], &address[at + prefix.len()..]);
                // A subdomain's name has no slash, and a longer name is another's.
                (before.is_empty() || before.ends_with('.') && !before.contains('/'))
                    && (rest.is_empty() || rest.starts_with(['/', ':', '?']))
            })
        };
        self.providers.iter().find(|provider| provider.addresses.iter().any(is_there))
    }

    /// A provider's model by the name that its API takes: its own, or one of those it serves for others.
    #[must_use]
    pub fn find(&self, provider: &str, model: &str) -> Option<&ListedModel> {
        let provider = self.provider(provider)?;
        let name = model.to_ascii_lowercase();
        let others = provider.fallback.iter().filter_map(|id| self.provider(id));
        std::iter::once(provider)
            .chain(others)
            .flat_map(|provider| &provider.models)
            .find(|model| model.rule.matches(&name))
    }
}

impl ListedModel {
    /// Its prices. Errors: a kind of unit or a date that there is not.
    fn prices(&self) -> Result<PriceList, String> {
        self.prices.iter().map(ListedSet::read).collect::<Result<_, _>>().map(PriceList)
    }

    /// Its prices; `None` if it has none for its input. Without one for output it makes embeddings only.
    #[must_use]
    pub fn price_list(&self) -> Option<PriceList> {
        let list = self.prices().ok()?;
        let has_input = |set: &PriceSet| set.named(UnitKind::INPUT).is_some();
        (!list.0.is_empty() && list.0.iter().all(has_input)).then_some(list)
    }
}

impl ListedSet {
    fn read(&self) -> Result<PriceSet, String> {
        if !self.tiers.is_sorted_by(|small, large| small.above < large.above) {
            return Err("its tiers do not stand by rising size".into());
        }
        if let Some((start, end)) = self.hours.filter(|(start, end)| *start > DAY_SECONDS || *end > DAY_SECONDS) {
            return Err(format!("{start} to {end} are no seconds of a day"));
        }
        let from = self.from.as_deref().map(|text| calendar::parse_day(text).ok_or(format!("{text:?} is no date")));
        Ok(PriceSet {
            from_ms: from.transpose()?.map(calendar::day_start_ms),
            hours: self.hours,
            lines: lines(&self.lines)?,
            tiers: self
                .tiers
                .iter()
                .map(|tier| Ok(PriceTier { above: tier.above, lines: lines(&tier.lines)? }))
                .collect::<Result<_, String>>()?,
        })
    }
}

fn lines(named: &BTreeMap<String, i64>) -> Result<Vec<PriceLine>, String> {
    let line = |(name, nano): (&String, &i64)| {
        let kind = match name.as_str() {
            "input" => UnitKind::INPUT,
            "output" => UnitKind::OUTPUT,
            "cache_read" => UnitKind::CACHE_READ,
            "cache_write_5m" => UnitKind::CACHE_WRITE_5M,
            "cache_write_1h" => UnitKind::CACHE_WRITE_1H,
            "input_audio" => UnitKind::INPUT_AUDIO,
            "output_audio" => UnitKind::OUTPUT_AUDIO,
            "input_image" => UnitKind::INPUT_IMAGE,
            "output_image" => UnitKind::OUTPUT_IMAGE,
            "calls" => UnitKind::CALLS,
            other => return Err(format!("there is no kind of unit {other:?}")),
        };
        if *nano < 0 {
            return Err(format!("the price of {name} is below zero"));
        }
        Ok(PriceLine { kind, nano_per_million: *nano })
    };
    named.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOLLAR: i64 = 1_000_000_000;

    #[test]
    fn the_built_in_catalogue_is_whole() {
        let text = include_str!("../../prices/prices.json");
        let catalogue = Catalogue::parse(text).expect("valid");
        assert!(catalogue.source.starts_with("genai-prices "));
        assert_eq!(catalogue.providers.len(), 47);
        assert_eq!(catalogue.providers.iter().map(|provider| provider.models.len()).sum::<usize>(), 2267);
        assert_eq!(Catalogue::built_in().providers().len(), 47);
        assert_eq!(catalogue.provider("openai").expect("there").id, "openai");
    }

    #[test]
    fn models_are_found_by_the_names_that_their_api_takes() {
        let catalogue = Catalogue::built_in();
        let price = |provider, model, kind| {
            let list = catalogue.find(provider, model)?.price_list()?;
            list.at(1_795_000_000_000)?.named(kind)
        };
        assert_eq!(price("anthropic", "claude-3-5-haiku-20241022", UnitKind::CACHE_READ), Some(DOLLAR * 8 / 100));
        assert_eq!(price("anthropic", "Claude-Fable-5-20260101", UnitKind::OUTPUT), Some(50 * DOLLAR));
        assert_eq!(price("anthropic", "claude-fable-5-2026010x", UnitKind::OUTPUT), None);
        assert_eq!(
            price("google", "claude-3-opus", UnitKind::INPUT),
            price("anthropic", "claude-3-opus", UnitKind::INPUT)
        );
        assert_eq!(price("openai", "no-such-model", UnitKind::INPUT), None);
        assert_eq!(price("nobody", "gpt-5", UnitKind::INPUT), None);
    }

    #[test]
    fn what_is_wrong_with_a_list_is_named() {
        let list = |models: &str, more: &str| {
            format!(r#"{{"source":"x","providers":[{{"id":"p","models":[{models}]}}{more}]}}"#)
        };
        let model = |prices: &str| format!(r#"{{"id":"m","match":{{"equals":"m"}},"prices":[{prices}]}}"#);
        assert!(Catalogue::parse(&list(&model(r#"{"lines":{"input":1,"output":2}}"#), "")).is_ok());
        for (models, more, part) in [
            (model(r#"{"lines":{"input":1,"thoughts":2}}"#), "", "thoughts"),
            (model(r#"{"from":"soon","lines":{}}"#), "", "\"soon\" is no date"),
            (model(r#"{"hours":[0,86401],"lines":{}}"#), "", "no seconds of a day"),
            (model(r#"{"hours":[86401,1],"lines":{}}"#), "", "no seconds of a day"),
            (
                model(r#"{"lines":{},"tiers":[{"above":5,"lines":{}},{"above":5,"lines":{}}]}"#),
                "",
                "do not stand by rising size",
            ),
            (String::new(), r#",{"id":"p","models":[]}"#, "provider p stands twice"),
        ] {
            let error = Catalogue::parse(&list(&models, more)).expect_err(part);
            assert!(error.contains(part), "{error}");
        }
        for whole in [r#"{"hours":[0,86400],"lines":{}}"#, r#"{"hours":[86400,1],"lines":{}}"#] {
            assert!(Catalogue::parse(&list(&model(whole), "")).is_ok(), "{whole}");
        }
    }

    #[test]
    fn rules_mean_what_they_say() {
        let rule = |json: &str| serde_json::from_str::<Rule>(json).expect("a rule");
        let tts = rule(r#"{"and":[{"starts_with":"g-"},{"not":{"or":[{"ends_with":"-tts"},{"contains":"-tts-"}]}}]}"#);
        assert!(tts.matches("g-pro") && !tts.matches("g-pro-tts") && !tts.matches("g-tts-1") && !tts.matches("h"));
        let shape = rule(r##"{"shape":"a-####"}"##);
        assert!(
            shape.matches("a-2026") && !shape.matches("a-20260") && !shape.matches("a-202") && !shape.matches("a-202x")
        );
        let prefix = rule(r##"{"shape_prefix":"a-#"}"##);
        assert!(prefix.matches("a-1") && prefix.matches("a-1b") && !prefix.matches("a-b") && !prefix.matches("a-"));
    }

    #[test]
    fn providers_are_found_by_their_address() {
        let id = |url| Catalogue::built_in().at_address(url).map(|provider| provider.id.as_str());
        assert_eq!(id("https://api.openai.com"), Some("openai"));
        assert_eq!(id("https://api.openai.com/v1"), Some("openai"));
        assert_eq!(id("https://openrouter.ai/api/v1"), Some("openrouter"));
        assert_eq!(id("https://api.openai.com.example.org"), None);
        assert_eq!(id("https://generativelanguage.googleapis.com/v1beta/openai"), Some("google"));
        assert_eq!(id("https://notgoogleapis.com"), None);
        assert_eq!(id("https://example.org/x.googleapis.com"), None);
        assert_eq!(id("http://127.0.0.1:1"), None);
        assert_eq!(id("api.openai.com"), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = |model: &str| format!(r#"{{"source":"x","providers":[{{"id":"p","models":[{model}]}}]}}"#);
        let wrong = |model: &str| Catalogue::parse(&text(model)).expect_err("wrong");
        let unknown = r#"{"id":"m","match":{"equals":"m"},"prices":[{"lines":{"inptu":1}}]}"#;
        assert!(wrong(unknown).contains("model m of p: there is no kind of unit \"inptu\""), "{}", wrong(unknown));
        let date = r#"{"id":"m","match":{"equals":"m"},"prices":[{"from":"2026-02-30","lines":{"input":1}}]}"#;
        assert!(wrong(date).contains("2026-02-30"), "{}", wrong(date));
        let negative = r#"{"id":"m","match":{"equals":"m"},"prices":[{"lines":{"input":-1}}]}"#;
        assert!(wrong(negative).contains("below zero"), "{}", wrong(negative));
        let free = r#"{"id":"m","match":{"equals":"m"},"prices":[{"lines":{"input":0}}]}"#;
        let free = Catalogue::parse(&text(free)).expect("read");
        assert!(free.find("p", "m").expect("listed").price_list().is_some(), "embeddings have no output");
        let half = r#"{"id":"m","match":{"equals":"m"},"prices":[{"lines":{"output":1}}]}"#;
        let half = Catalogue::parse(&text(half)).expect("read");
        assert!(half.find("p", "m").expect("listed").price_list().is_none());
    }
}
