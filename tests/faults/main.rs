//! The faults program: everything that is broken on purpose, and what came of it.
//!
//! `cargo run --release -p belay-tests --bin faults -- [--json] [--scale ci|release] [--seed N] [--only NAME] [--fresh]`
//!
//! It runs the fault tests of the integration tests one after the other, as often as the scale says, gathers what they
//! tell, and feeds what takes bytes from strangers with libFuzzer (20 seconds each, or 20 minutes). A fault whose test fails is shown with the command that repeats it, and its output lies below `target/faults`.
//! What is finished is remembered there: a run that was stopped goes on where it was, as long as the tested programs are
//! the same.
//!
//! Exit codes: 0 all promises are kept, 1 one is not.

#![expect(clippy::print_stdout, reason = "a command line prints")]

mod fuzz;
mod run;

use belay_protocol::table;
use belay_tests::fault::Fault;
use clap::{Parser, ValueEnum};
use run::{FAULTS, Runner};
use std::process::ExitCode;

/// Breaks belay in every way that is known, and counts what is lost
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Args {
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// How often each is tried
    #[arg(long, value_enum, default_value_t = Scale::Ci)]
    scale: Scale,
    /// For those that go by chance; each says its own otherwise
    #[arg(long)]
    seed: Option<u64>,
    /// Only faults whose name contains this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Forget what an earlier run of this scale and seed has finished
    #[arg(long)]
    fresh: bool,
}

/// How much is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scale {
    /// As every day.
    Ci,
    /// As before a release.
    Release,
}

impl Scale {
    fn name(self) -> &'static str {
        match self {
            Self::Ci => "ci",
            Self::Release => "release",
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match gather(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn gather(args: &Args) -> anyhow::Result<bool> {
    let mut all: Vec<Fault> = vec![];
    let is_wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let mut runner = Runner::open(args.scale.name(), args.seed, args.fresh, is_wanted)?;
    for name in all_names().filter(|name| is_wanted(name)) {
        let faults = runner.run(&name).unwrap_or_else(|error| {
            eprintln!("{name}: {error:#}");
            vec![Fault::failed(&name, "it cannot be tried")]
        });
        for fault in &faults {
            if args.json {
                println!("{}", serde_json::to_string(fault)?);
            } else {
                eprintln!("{}: {}", fault.fault, if fault.holds { "holds" } else { "DOES NOT HOLD" });
            }
        }
        all.extend(faults);
    }
    if args.only.is_none() && all.iter().all(|fault| fault.holds) {
        runner.finish()?;
    }
    anyhow::ensure!(!all.is_empty(), "no fault has such a name; there are: {}", names());
    if !args.json {
        print!("{}", shown(&all));
    }
    Ok(all.iter().all(|fault| fault.holds))
}

fn names() -> String {
    all_names().collect::<Vec<_>>().join(", ")
}

fn all_names() -> impl Iterator<Item = String> {
    let fuzzed = fuzz::TARGETS.iter().map(|name| format!("fuzz-{name}"));
    FAULTS.iter().map(|(name, _)| (*name).to_owned()).chain(fuzzed)
}

fn shown(all: &[Fault]) -> String {
    let row = |fault: &Fault| {
        let count = |number: u64| number.to_string();
        let known = |number: Option<u64>| number.map_or("?".to_owned(), count);
        let holds = if fault.holds { "yes" } else { "NO" };
        let Fault { fault, tried, lost, doubled, worst, bar, .. } = fault.clone();
        vec![fault, count(tried), known(lost), known(doubled), worst, bar, holds.to_owned()]
    };
    let header = ["FAULT", "TRIED", "LOST", "DOUBLED", "WORST", "BAR", "HOLDS"];
    table::render(&header, &[1, 2, 3], &all.iter().map(row).collect::<Vec<_>>())
}
