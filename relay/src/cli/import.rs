//! `belayd import`: the way over from the deployment that Belay takes the place of.

use super::exit::Told;
use super::{Global, print_json, table};
use anyhow::bail;
use belay_protocol::money::{NANOS_PER_USD, NanoUsd};
use belay_relay::Config;
use belay_relay::import::report::{Report, Tally};
use belay_relay::import::{BalanceSource, Files, Import, ImportError, Options, Target};
use belay_relay::store::lock::LockError;
use belay_relay::store::old::Unit;
use belay_transport::env::Env;
use clap::Args;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The database of the old deployment: a dump in SQL, or a file of SQLite
    #[arg(long, value_name = "FILE")]
    d1: Option<PathBuf>,
    /// Its key-value store in JSON; may be given more than once
    #[arg(long, value_name = "FILE")]
    kv: Vec<PathBuf>,
    /// Its objects, as files below a directory
    #[arg(long, value_name = "DIR")]
    r2: Option<PathBuf>,
    /// Write nothing; say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Begin the names of all tenants with this
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
    /// Only this user; may be given more than once
    #[arg(long, value_name = "ID")]
    only: Vec<String>,
    /// What money is counted in where a column's name does not say so: nano, micro, cents or usd
    #[arg(long, value_name = "UNIT")]
    money_unit: Option<Unit>,
    /// Where balances are taken from if the export contradicts itself: ledger, users or last
    #[arg(long, value_name = "SOURCE")]
    balances: Option<BalanceSource>,
    /// What entries of the ledger of some kind do to a balance, where amounts have no sign: NAME=credit or NAME=debit
    #[arg(long = "ledger-kind", value_name = "NAME=SIGN", value_parser = ledger_kind)]
    ledger_kinds: Vec<(String, bool)>,
}

fn ledger_kind(text: &str) -> Result<(String, bool), String> {
    let adds = |sign: &str| match sign {
        "credit" => Some(true),
        "debit" => Some(false),
        _ => None,
    };
    let found = text.split_once('=').and_then(|(name, sign)| Some((name.trim().to_lowercase(), adds(sign)?)));
    found.ok_or_else(|| format!("{text:?} is not of the form NAME=credit or NAME=debit"))
}

/// What is told one by one on a terminal; --json has more.
const MOST_TOLD: usize = 20;

pub(super) async fn import(global: &Global, args: ImportArgs) -> anyhow::Result<()> {
    if args.d1.is_none() && args.kv.is_empty() {
        bail!("name an export: --d1 FILE, --kv FILE or both");
    }
    let config = Config::load_without_keys(&global.config)?;
    let files = Files { d1: args.d1, kv: args.kv, r2: args.r2 };
    let options = Options {
        prefix: args.prefix,
        money_unit: args.money_unit,
        balances: args.balances,
        ledger_kinds: args.ledger_kinds,
        only: args.only,
        dry_run: args.dry_run,
    };
    let import = Import::open(&files, options)?;
    let (target, note) = target(&config, args.dry_run)?;
    let mut progress = Progress::new(global);
    let done = import.run(target.clone(), |through, all| progress.show(through, all)).await;
    progress.end();
    target.close();
    let mut report = done?;
    report.notes.extend(note);
    if global.json {
        print_json(&report)?;
    } else {
        print(&report);
    }
    let told = match report.left_out() {
        0 => return Ok(()),
        left if args.dry_run => format!("{left} would be left out; everything else can come over"),
        left => format!("{left} are left out; everything else is here. Mend the export and import it again"),
    };
    Err(Told(told).into())
}

/// Where it is written. A dry run is for every machine: where there is nothing to compare with, everything is new.
fn target(config: &Config, dry_run: bool) -> anyhow::Result<(Target, Option<String>)> {
    let env = Env::system();
    if dry_run {
        return Ok(match Target::look_at(config, &env)? {
            Ok(target) => (target, None),
            Err(why) => (Target::nowhere(config, &env), Some(format!("{why}: what is here already is not looked at"))),
        });
    }
    match Target::open(config, &env) {
        Ok(target) => Ok((target, None)),
        Err(ImportError::Locked(error @ LockError::InUse(_))) => {
            Err(anyhow::Error::from(error)
                .context("stop the relay for the import: systemctl stop belayd.socket belayd"))
        }
        Err(error) => Err(error.into()),
    }
}

/// A line on a terminal that says how far it is.
struct Progress {
    is_shown: bool,
    last: Option<Instant>,
}

impl Progress {
    fn new(global: &Global) -> Self {
        Self { is_shown: std::io::stderr().is_terminal() && !global.json, last: None }
    }

    fn show(&mut self, through: usize, all: usize) {
        let is_due = self.last.is_none_or(|last| last.elapsed() > Duration::from_millis(200));
        if self.is_shown && is_due {
            self.last = Some(Instant::now());
            let percent = through * 100 / all.max(1);
            let _ = write!(std::io::stderr(), "\r\x1b[K{through} of {all} users, {percent} %");
        }
    }

    fn end(&mut self) {
        if self.last.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Sums may be larger than any tenant's money.
fn dollars(nano: i128) -> String {
    match i64::try_from(nano) {
        Ok(nano) => NanoUsd(nano).to_string(),
        Err(_) => format!("${}", nano / i128::from(NANOS_PER_USD)),
    }
}

fn print(report: &Report) {
    let row = |(name, tally): &(&str, Tally)| {
        let Tally { found, new, known, deleted, left_out } = *tally;
        let count = |number: u64| if number == 0 { "-".into() } else { number.to_string() };
        vec![(*name).to_owned(), count(found), count(new), count(known), count(deleted), count(left_out)]
    };
    let rows: Vec<Vec<String>> = report.tallies().iter().map(row).collect();
    let new = if report.dry_run { "WOULD BE NEW" } else { "NEW" };
    table::print(&["WHAT", "FOUND", new, "HERE BEFORE", "DELETED", "LEFT OUT"], &[1, 2, 3, 4, 5], &rows);
    println!("balances sum to {}, usage to {}", dollars(report.balances_nano_usd), dollars(report.usage_nano_usd));
    for left in report.left.iter().take(MOST_TOLD) {
        let place = [left.table, &left.user, &left.id].into_iter().filter(|part| !part.is_empty());
        println!("left out: {}: {}", place.collect::<Vec<_>>().join("/"), left.why);
    }
    let more = report.left.len().saturating_sub(MOST_TOLD) as u64 + report.left_more;
    if more > 0 {
        println!("left out: and {more} more; --json tells the first thousand");
    }
    let unknown = &report.unknown;
    if !unknown.tables.is_empty() {
        println!("tables that have no place here: {}", unknown.tables.join(", "));
    }
    if !unknown.columns.is_empty() {
        println!("columns that have no place here: {}", unknown.columns.join(", "));
    }
    for (prefix, count) in &unknown.entries {
        let of = if prefix.is_empty() { "other kinds".into() } else { format!("{prefix:?}") };
        println!("entries that have no place here: {count} of {of}");
    }
    if report.unused_objects > 0 {
        println!("objects that nothing refers to: {}", report.unused_objects);
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    if report.dry_run {
        println!("nothing was written: this was a dry run");
    }
}
