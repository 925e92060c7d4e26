//! Samples, figures and how they are shown.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Measured values of one thing, in nanoseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<u64>);

impl Samples {
    pub(crate) fn push(&mut self, ns: u64) {
        self.0.push(ns);
    }

    pub(crate) fn extend(&mut self, ns: impl IntoIterator<Item = u64>) {
        self.0.extend(ns);
    }

    /// The value that so many percent of the samples do not exceed, in nanoseconds; 0 if there are
    /// none.
    pub(crate) fn percentile(&self, percent: usize) -> u64 {
        self.permille(percent * 10)
    }

    /// The same in thousandths.
    pub(crate) fn permille(&self, permille: usize) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * permille).div_ceil(1000).max(1);
        sorted.get(rank - 1).copied().unwrap_or(0)
    }
}

/// What a run comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    Fails,
    Void,
}

/// One figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    name: String,
    value: f64,
    unit: Cow<'static, str>,
    /// What it is held against, in the same unit.
    against: Option<f64>,
    /// `value / against`.
    ratio: Option<f64>,
    /// The most that the ratio may be.
    bar: Option<f64>,
    holds: Option<bool>,
    /// A figure without which nothing else means anything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    condition: bool,
}

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// The figures of an earlier run, a JSON object a line.
    pub(crate) fn read(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let row = |line| serde_json::from_str(line).context("not what --json prints");
        Ok(Self { rows: lines.map(row).collect::<anyhow::Result<_>>()? })
    }

    /// The figure of that name.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.name == name).map(|row| row.value)
    }

    /// A figure for information.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) -> &mut Row {
        let row = Row {
            name: name.into(),
            value,
            unit: unit.into(),
            against: None,
            ratio: None,
            bar: None,
            holds: None,
            condition: false,
        };
        self.rows.push(row);
        // Just pushed.
        self.rows.last_mut().expect("there is a last row")
    }

    /// p50 and p99 of some samples in microseconds; the p50's row can be given a bar.
    pub(crate) fn times(&mut self, name: &str, samples: &Samples) -> &mut Row {
        let at = self.rows.len();
        self.figure(format!("{name}_p50"), us(samples.percentile(50)), "us");
        self.figure(format!("{name}_p99"), us(samples.percentile(99)), "us");
        &mut self.rows[at]
    }

    /// Keeps the figures whose name contains `part`.
    pub(crate) fn only(mut self, part: Option<&str>) -> Self {
        if let Some(part) = part {
            self.rows.retain(|row| row.condition || row.name.contains(part));
        }
        self
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let failed = |condition| self.rows.iter().any(|row| row.condition == condition && row.holds == Some(false));
        match (failed(true), failed(false)) {
            (true, _) => Verdict::Void,
            (_, true) => Verdict::Fails,
            _ => Verdict::Holds,
        }
    }

    #[expect(clippy::print_stdout, reason = "this is the program's answer")]
    pub(crate) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            for row in &self.rows {
                println!("{}", serde_json::to_string(row)?);
            }
            return Ok(());
        }
        let number = |value: Option<f64>, digits| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        let head = ["NAME", "VALUE", "UNIT", "AGAINST", "RATIO", "BAR", "HOLDS"].map(str::to_owned);
        let lines: Vec<[String; 7]> = std::iter::once(head)
            .chain(self.rows.iter().map(|row| {
                let holds = match row.holds {
                    None => "-",
                    Some(true) => "yes",
                    Some(false) if row.condition => "VOID",
                    Some(false) => "NO",
                };
                [
                    row.name.clone(),
                    number(Some(row.value), 1),
                    row.unit.to_string(),
                    number(row.against, 1),
                    number(row.ratio, 2),
                    number(row.bar, 2),
                    holds.to_owned(),
                ]
            }))
            .collect();
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths: [usize; 7] = std::array::from_fn(width);
        for line in &lines {
            let cell = |column: usize| {
                let (text, width) = (&line[column], widths[column]);
                // Words to the left, numbers to the right.
                if matches!(column, 0 | 2 | 6) { format!("{text:<width$}") } else { format!("{text:>width$}") }
            };
            println!("{}", (0..7).map(cell).collect::<Vec<_>>().join("  ").trim_end());
        }
        Ok(())
    }
}

impl Row {
    /// Shows what the figure compares with.
    pub(crate) fn against(&mut self, against: f64) -> &mut Self {
        self.against = Some(against);
        self.ratio = (against > 0.0).then(|| self.value / against);
        self
    }

    /// Holds if the figure is at most `bar` times `against`.
    pub(crate) fn bar(&mut self, against: f64, bar: f64) -> &mut Self {
        self.against(against);
        self.bar = Some(bar);
        self.holds = Some(self.ratio.is_some_and(|ratio| ratio <= bar));
        self
    }

    /// Without it the whole run is void.
    pub(crate) fn condition(&mut self) {
        self.condition = true;
    }
}

/// Nanoseconds as microseconds.
pub(crate) fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}
