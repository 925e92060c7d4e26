//! `belayd prices`: what models cost, by the configuration and the catalogue; no running relay is needed.

use super::{Global, print_json, table};
use anyhow::bail;
use belay_protocol::message::UnitKind;
use belay_protocol::money::NanoUsd;
use belay_relay::Config;
use belay_relay::pricing::{ListedModel, PriceLine, PriceList, PriceSet, Source};
use belay_transport::env::{Clock, SystemClock};
use clap::{Args, Subcommand};
use serde::Serialize;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List what models cost now, in dollars per million tokens
    #[command(
        after_help = "Examples:\n  belayd prices list\n  belayd prices list --catalogue --provider anthropic opus"
    )]
    List(ListArgs),
    /// Show all prices of one model: large inputs, later dates, hours of the day
    #[command(after_help = "Examples:\n  belayd prices show claude\n  belayd prices show anthropic/claude-sonnet-4-5")]
    Show {
        /// A model or alias of the configuration, or a catalogue's provider/model
        model: String,
    },
    /// Check that every configured model has a price, and say where it differs from the catalogue's
    #[command(after_help = "Example:\n  belayd prices check")]
    Check,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only models with this in their name
    #[arg(value_name = "PART")]
    part: Option<String>,
    /// All models of the catalogue, not those of the configuration
    #[arg(long)]
    catalogue: bool,
    /// Only this provider's
    #[arg(long)]
    provider: Option<String>,
}

/// A model's prices, for people and programs.
#[derive(Debug, Serialize)]
struct Priced {
    name: String,
    provider: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    source: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unpriced: Option<String>,
    context_tokens: Option<u32>,
    prices: Option<PriceList>,
}

pub(super) fn run(global: &Global, command: Command) -> anyhow::Result<()> {
    let config = Config::load_without_keys(&global.config)?;
    match command {
        Command::List(args) => list(global, &config, &args),
        Command::Show { model } => show(global, &config, &model),
        Command::Check => check(global, &config),
    }
}

fn configured(config: &Config) -> Vec<Priced> {
    let priced = |(name, model): (&String, &std::sync::Arc<belay_relay::config::Model>)| Priced {
        name: name.clone(),
        provider: model.provider.clone(),
        model: Some(model.name.clone()),
        source: model.priced_by,
        unpriced: None,
        context_tokens: Some(model.context_tokens),
        prices: model.prices.clone(),
    };
    config.models.iter().map(priced).collect()
}

fn listed(provider: &str, model: &ListedModel) -> Priced {
    Priced {
        name: model.id.clone(),
        provider: provider.to_owned(),
        model: None,
        source: Some(Source::Catalogue),
        unpriced: model.unpriced.clone(),
        context_tokens: model.context,
        prices: model.price_list(),
    }
}

fn list(global: &Global, config: &Config, args: &ListArgs) -> anyhow::Result<()> {
    let mut rows = if args.catalogue {
        let providers = config.catalogue().providers().iter();
        providers.flat_map(|provider| provider.models.iter().map(|model| listed(&provider.id, model))).collect()
    } else {
        configured(config)
    };
    rows.retain(|row| {
        args.provider.as_ref().is_none_or(|provider| row.provider == *provider)
            && args.part.as_ref().is_none_or(|part| row.name.contains(part.as_str()))
    });
    if global.json {
        return print_json(&rows);
    }
    if args.catalogue {
        println!("{} of {}", rows.len(), config.catalogue().source);
    }
    let now_ms = SystemClock.now_ms();
    let cells: Vec<Vec<String>> = rows.iter().map(|row| cells(row, now_ms)).collect();
    table::print(
        &["MODEL", "PROVIDER", "INPUT", "OUTPUT", "CACHE READ", "WRITE 5M", "WRITE 1H", "PRICED BY", ""],
        &[2, 3, 4, 5, 6],
        &cells,
    );
    Ok(())
}

fn cells(row: &Priced, now_ms: u64) -> Vec<String> {
    let set = row.prices.as_ref().and_then(|list| list.at(now_ms));
    let price = |kind| set.and_then(|set| set.named(kind)).map_or_else(|| "-".into(), |nano| NanoUsd(nano).to_string());
    let mut notes = vec![];
    if set.is_some_and(|set| !set.tiers.is_empty()) {
        notes.push("dearer when large".to_owned());
    }
    let later = row.prices.iter().flat_map(|list| &list.0).filter_map(|set| set.from_ms).find(|from| *from > now_ms);
    notes.extend(later.map(|from| format!("changes on {}", &table::time(from)[..10])));
    if row.prices.iter().flat_map(|list| &list.0).any(|set| set.hours.is_some()) {
        notes.push("by the hour".into());
    }
    notes.extend(row.unpriced.as_ref().map(|what| format!("not served: priced by {what}")));
    let kinds =
        [UnitKind::INPUT, UnitKind::OUTPUT, UnitKind::CACHE_READ, UnitKind::CACHE_WRITE_5M, UnitKind::CACHE_WRITE_1H];
    let mut cells = vec![row.name.clone(), row.provider.clone()];
    cells.extend(kinds.map(price));
    cells.push(if row.prices.is_some() { source(row.source) } else { "no price" }.to_owned());
    cells.push(notes.join(", "));
    cells
}

fn source(source: Option<Source>) -> &'static str {
    match source {
        Some(Source::Config) => "configuration",
        Some(Source::Catalogue) => "catalogue",
        Some(Source::Default) => "default_price",
        None => "no price",
    }
}

fn show(global: &Global, config: &Config, name: &str) -> anyhow::Result<()> {
    let found: Vec<Priced> = match config.resolve(name) {
        Ok(models) => models
            .iter()
            .map(|model| Priced {
                name: name.to_owned(),
                provider: model.provider.clone(),
                model: Some(model.name.clone()),
                source: model.priced_by,
                unpriced: None,
                context_tokens: Some(model.context_tokens),
                prices: model.prices.clone(),
            })
            .collect(),
        Err(why) => {
            let in_catalogue = name.split_once('/').and_then(|(provider, model)| {
                config.catalogue().find(provider, model).map(|model| listed(provider, model))
            });
            match in_catalogue {
                Some(found) => vec![found],
                None => bail!("{why}; the catalogue has no {name:?} either (belayd prices list --catalogue)"),
            }
        }
    };
    if global.json {
        return print_json(&found);
    }
    for model in found {
        let context = model.context_tokens.map(|tokens| format!(", {tokens} tokens of context")).unwrap_or_default();
        let at = model.model.as_ref().unwrap_or(&model.name);
        println!(
            "{at} of {}{context}; priced by: {}",
            model.provider,
            source(model.source.filter(|_| model.prices.is_some()))
        );
        if let Some(what) = model.unpriced {
            println!("  not served: its provider prices it by {what}, which is not counted");
        }
        for set in model.prices.iter().flat_map(|list| &list.0) {
            print_set(set);
        }
    }
    Ok(())
}

fn print_set(set: &PriceSet) {
    let clock = |second: u32| format!("{:02}:{:02}", second / 3600, second / 60 % 60);
    let mut when = set.from_ms.map(|from| format!("from {}", &table::time(from)[..10])).unwrap_or_default();
    if let Some((start, end)) = set.hours {
        when += &format!("{}{} to {} UTC", if when.is_empty() { "" } else { ", " }, clock(start), clock(end));
    }
    if !when.is_empty() {
        println!("  {when}:");
    }
    let indent = if when.is_empty() { "  " } else { "    " };
    print_lines(indent, &set.lines);
    for tier in &set.tiers {
        println!("{indent}with more than {} input tokens:", tier.above);
        print_lines(&format!("{indent}  "), &tier.lines);
    }
}

fn print_lines(indent: &str, lines: &[PriceLine]) {
    let mut lines = lines.to_vec();
    lines.sort_by_key(|line| line.kind.0);
    for line in lines {
        if line.kind == UnitKind::CALLS {
            println!(
                "{indent}{:<22} {:>12} per thousand",
                line.kind.to_string(),
                NanoUsd(line.nano_per_million / 1000).to_string()
            );
        } else {
            println!(
                "{indent}{:<22} {:>12} per million",
                line.kind.to_string(),
                NanoUsd(line.nano_per_million).to_string()
            );
        }
    }
}

/// What is worth knowing of a model's price.
#[derive(Debug, Serialize)]
struct Finding {
    model: String,
    is_error: bool,
    what: String,
}

fn findings(config: &Config, now_ms: u64) -> Vec<Finding> {
    let mut findings = vec![];
    for (name, model) in &config.models {
        let mut found = |is_error, what| findings.push(Finding { model: name.clone(), is_error, what });
        let id = config.providers[&model.provider].prices.as_deref();
        let catalogued = id.and_then(|id| config.catalogue().find(id, &model.name));
        let Some(own) = model.prices.as_ref().and_then(|list| list.at(now_ms)) else {
            let why = match catalogued.and_then(|model| model.unpriced.as_deref()) {
                Some(what) => format!("no price: its provider prices it by {what}; its requests are refused"),
                None => {
                    format!("no price; its requests are refused. Write [models.{name}.price], or billing.default_price")
                }
            };
            found(true, why);
            continue;
        };
        if model.priced_by == Some(Source::Default) {
            found(false, "has only the default price".into());
        }
        let theirs = catalogued.and_then(ListedModel::price_list);
        let Some(theirs) = theirs.as_ref().and_then(|list| list.at(now_ms)) else { continue };
        for line in theirs.lines.iter().filter(|_| model.priced_by == Some(Source::Config)) {
            let listed = NanoUsd(line.nano_per_million);
            match own.named(line.kind) {
                Some(nano) if nano != line.nano_per_million => {
                    found(false, format!("{} is {}, in the catalogue {listed}", line.kind, NanoUsd(nano)));
                }
                Some(_) => {}
                None => found(false, format!("{} has no price of its own, in the catalogue {listed}", line.kind)),
            }
        }
        if model.priced_by == Some(Source::Config) && own.tiers.is_empty() && !theirs.tiers.is_empty() {
            let above: Vec<String> = theirs.tiers.iter().map(|tier| tier.above.to_string()).collect();
            found(false, format!("the catalogue has other prices above {} input tokens", above.join(" and ")));
        }
    }
    findings
}

fn check(global: &Global, config: &Config) -> anyhow::Result<()> {
    let findings = findings(config, SystemClock.now_ms());
    let missing = findings.iter().filter(|finding| finding.is_error).count();
    if global.json {
        print_json(&findings)?;
    } else {
        for finding in &findings {
            println!("{}: {}", finding.model, finding.what);
        }
        println!("{} models, {missing} without a price; catalogue: {}", config.models.len(), config.catalogue().source);
    }
    if missing > 0 {
        bail!("models without a price: {missing}");
    }
    Ok(())
}
