//! `belayd ledger estimated` and `belayd ledger reconcile`: through the admin socket.

use super::admin::connect;
use super::money::day;
use super::{Global, print_json, table};
use anyhow::{Context, bail};
use belay_protocol::calendar;
use belay_protocol::id::TenantId;
use belay_protocol::message::UnitKind;
use belay_protocol::money::NanoUsd;
use belay_relay::admin::reconcile::{Compared, EstimatedInfo, Reconcile};
use belay_relay::reconcile::{ProviderUsage, Tokens};
use belay_transport::env::{Clock, SystemClock};
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct EstimatedArgs {
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<TenantId>,
    /// The first day, as 2026-11-01 (default: all)
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<i64>,
    /// The last day (default: today)
    #[arg(long, value_name = "DAY", value_parser = day)]
    until: Option<i64>,
}

#[derive(Debug, Args)]
pub(super) struct ReconcileArgs {
    /// The provider's name in the configuration
    provider: String,
    /// The CSV of usage that the provider offers
    file: PathBuf,
    /// Correct the charges that were made by estimate; without it, differences are shown only
    #[arg(long)]
    apply: bool,
    /// Correct too on days that are not over, and where the provider counts less than it had told before
    #[arg(long, requires = "apply")]
    force: bool,
    /// The file's name of a column: day, model, input, output, cache_read or cache_write
    #[arg(long = "column", value_name = "KIND=NAME", value_parser = column)]
    columns: Vec<(Column, String)>,
    /// The file's input counts what was read from and written to a cache too (as OpenAI's does)
    #[arg(long)]
    input_includes_cache: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    Day,
    Model,
    Input,
    Output,
    CacheRead,
    CacheWrite,
}

/// The names under which providers have them.
const KNOWN: [(Column, &[&str]); 6] = [
    (Column::Day, &["day", "date", "usage_date_utc", "usage_date", "timestamp"]),
    (Column::Model, &["model", "model_version", "snapshot_id", "model_permaslug"]),
    (Column::Input, &["input", "input_tokens", "usage_input_tokens_no_cache", "prompt_tokens", "tokens_prompt"]),
    (Column::Output, &["output", "output_tokens", "usage_output_tokens", "completion_tokens", "tokens_completion"]),
    (
        Column::CacheRead,
        &[
            "cache_read",
            "cache_read_input_tokens",
            "usage_input_tokens_cache_read",
            "input_cached_tokens",
            "cached_tokens",
        ],
    ),
    (
        Column::CacheWrite,
        &[
            "cache_write",
            "cache_creation_input_tokens",
            "usage_input_tokens_cache_write_5m",
            "usage_input_tokens_cache_write_1h",
        ],
    ),
];

fn column(text: &str) -> Result<(Column, String), String> {
    let (kind, name) = text.split_once('=').ok_or("write KIND=NAME, for example day=usage_date")?;
    let kind = match kind {
        "day" => Column::Day,
        "model" => Column::Model,
        "input" => Column::Input,
        "output" => Column::Output,
        "cache_read" => Column::CacheRead,
        "cache_write" => Column::CacheWrite,
        other => {
            return Err(format!("{other:?} is none of day, model, input, output, cache_read, cache_write"));
        }
    };
    Ok((kind, name.to_owned()))
}

pub(super) async fn estimated(global: &Global, args: EstimatedArgs) -> anyhow::Result<()> {
    let client = connect(global)?;
    let until = args.until.unwrap_or_else(|| calendar::day(SystemClock.now_ms())) + 1;
    let of = args.tenant.map(|tenant| format!("&tenant={tenant}")).unwrap_or_default();
    let path = format!("/estimated?from={}&until={until}{of}", args.from.unwrap_or(0));
    let found: Vec<EstimatedInfo> = client.get(&path).await?;
    if global.json {
        return print_json(&found);
    }
    if found.is_empty() {
        println!("no charges by estimate");
        return Ok(());
    }
    let row = |info: &EstimatedInfo| {
        let units = |kind| {
            let lines = info.charge.usage.iter().filter(|line| line.kind == kind);
            lines.map(|line| line.units).sum::<u64>().to_string()
        };
        vec![
            table::time(u64::try_from(info.charge.at_ms).unwrap_or(0)),
            info.tenant.to_string(),
            format!("{}/{}", info.charge.provider, info.charge.model),
            info.request.clone(),
            units(UnitKind::INPUT),
            units(UnitKind::OUTPUT),
            info.charge.cost.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    table::print(&["TIME", "TENANT", "MODEL", "REQUEST", "INPUT", "OUTPUT", "CHARGED"], &[4, 5, 6], &rows);
    Ok(())
}

pub(super) async fn reconcile(global: &Global, args: ReconcileArgs) -> anyhow::Result<()> {
    let usage = read(&args)?;
    let body = Reconcile { provider: args.provider, usage, apply: args.apply, force: args.force };
    let compared: Vec<Compared> = connect(global)?.post("/reconcile", &body).await?;
    if global.json {
        return print_json(&compared);
    }
    let row = |line: &Compared| {
        let pair = |theirs: u64, ours: u64| {
            if theirs == ours {
                ours.to_string()
            } else {
                format!("{ours} ({:+})", i128::from(theirs) - i128::from(ours))
            }
        };
        let (theirs, ours) = (line.theirs, line.ours);
        let money = match line.difference_nano_usd {
            0 => "-".into(),
            nano => NanoUsd(nano).to_string(),
        };
        vec![
            calendar::day_text(line.day),
            line.model.clone(),
            pair(theirs.input, ours.input),
            pair(theirs.cache_read + theirs.cache_write, ours.cache_read + ours.cache_write),
            pair(theirs.output, ours.output),
            line.estimated.to_string(),
            line.corrected.to_string(),
            money,
        ]
    };
    let rows: Vec<Vec<String>> = compared.iter().map(row).collect();
    let header = ["DAY", "MODEL", "INPUT", "CACHED", "OUTPUT", "ESTIMATED", "CORRECTED", "CHARGED MORE"];
    table::print(&header, &[2, 3, 4, 5, 6, 7], &rows);
    println!("tokens by the books; in brackets what the provider counts more or less");
    for line in &compared {
        if let Some(why) = &line.left {
            println!("{} {}: not corrected: {why}", calendar::day_text(line.day), line.model);
        }
    }
    if !args.apply && compared.iter().any(|line| line.estimated > 0) {
        println!("charges by estimate are corrected with --apply");
    }
    Ok(())
}

/// Reads the file, a row per day and model and possibly more of them.
fn read(args: &ReconcileArgs) -> anyhow::Result<Vec<ProviderUsage>> {
    let path: &Path = &args.file;
    let unreadable = || format!("cannot read {}", path.display());
    let mut reader = csv::Reader::from_path(path).with_context(unreadable)?;
    let header = reader.headers().with_context(unreadable)?.clone();
    let places = places(&header, &args.columns)?;
    let mut usage: BTreeMap<(i64, String), Tokens> = BTreeMap::new();
    for (number, record) in reader.records().enumerate() {
        let record = record.with_context(|| format!("{} cannot be read", path.display()))?;
        let at =
            |column| places.iter().filter(move |(known, _)| *known == column).filter_map(|(_, at)| record.get(*at));
        let line = number + 2;
        let text = at(Column::Day).next().unwrap_or_default();
        let Some(day) = text.get(..10).and_then(calendar::parse_day) else {
            bail!("{}:{line}: {text:?} is no day; write for example 2026-11-01", path.display());
        };
        let sum = |column| {
            at(column).try_fold(0_u64, |sum, text| {
                let units = if text.is_empty() { Ok(0) } else { text.parse::<u64>() };
                let units = units.ok().and_then(|units| sum.checked_add(units));
                units.with_context(|| format!("{}:{line}: {text:?} is no number of tokens", path.display()))
            })
        };
        let (cache_read, cache_write) = (sum(Column::CacheRead)?, sum(Column::CacheWrite)?);
        let mut input = sum(Column::Input)?;
        if args.input_includes_cache {
            input = input.saturating_sub(cache_read.saturating_add(cache_write));
        }
        let tokens = Tokens { input, output: sum(Column::Output)?, cache_read, cache_write };
        let model = at(Column::Model).next().unwrap_or_default().to_owned();
        usage.entry((day, model)).or_default().add(tokens);
    }
    Ok(usage.into_iter().map(|((day, model), tokens)| ProviderUsage { day, model, tokens }).collect())
}

/// Which column is what.
fn places(header: &csv::StringRecord, named: &[(Column, String)]) -> anyhow::Result<Vec<(Column, usize)>> {
    let mut places = vec![];
    for (column, known) in KNOWN {
        let own: Vec<&str> = named.iter().filter(|(kind, _)| *kind == column).map(|(_, name)| name.as_str()).collect();
        let names = if own.is_empty() { known } else { own.as_slice() };
        let found = header
            .iter()
            .enumerate()
            .filter(|(_, name)| names.iter().any(|known| name.trim().eq_ignore_ascii_case(known)));
        let before = places.len();
        places.extend(found.map(|(at, _)| (column, at)));
        // Writes to a cache come in two kinds that add up; of all else there is one.
        if places.len() > before + 1 && own.is_empty() && column != Column::CacheWrite {
            let found: Vec<&str> = places[before..].iter().filter_map(|(_, at)| header.get(*at)).collect();
            bail!("the columns {} could all be meant; name one with --column", found.join(", "));
        }
        let is_there = places.iter().any(|(found, _)| *found == column);
        if !is_there && (!own.is_empty() || !matches!(column, Column::CacheRead | Column::CacheWrite)) {
            let have: Vec<&str> = header.iter().collect();
            bail!("there is no column {}; the file has {}. Name it with --column", names.join(" or "), have.join(", "));
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(file: PathBuf, includes: bool) -> ReconcileArgs {
        ReconcileArgs {
            provider: "p".into(),
            file,
            apply: false,
            force: false,
            columns: vec![],
            input_includes_cache: includes,
        }
    }

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("made");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    #[test]
    fn the_files_of_providers_are_understood() {
        let anthropic = written(
            "usage_date_utc,model_version,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,\
             usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens\n\
             2026-11-24,claude-x,100,3,4,50,20\n2026-11-24,claude-x,1,0,0,0,1\n",
        );
        let tokens = Tokens { input: 101, output: 21, cache_read: 50, cache_write: 7 };
        let read_in = read(&args(anthropic.path().into(), false)).expect("read");
        assert_eq!(read_in, [ProviderUsage { day: 20_781, model: "claude-x".into(), tokens }]);
        let openai =
            written("date,model,input_tokens,input_cached_tokens,output_tokens\n2026-11-24T00:00:00Z,gpt,100,40,5\n");
        let tokens = Tokens { input: 60, output: 5, cache_read: 40, cache_write: 0 };
        let read_in = read(&args(openai.path().into(), true)).expect("read");
        assert_eq!(read_in, [ProviderUsage { day: 20_781, model: "gpt".into(), tokens }]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        for (text, part) in [
            ("date,model,input_tokens\n", "no column output or output_tokens"),
            ("date,model,input_tokens,output_tokens\nyesterday,m,1,1\n", ":2: \"yesterday\" is no day"),
            ("date,model,input_tokens,output_tokens\n2026-11-24,m,1.5,1\n", ":2: \"1.5\" is no number"),
        ] {
            let file = written(text);
            let error = read(&args(file.path().into(), false)).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
