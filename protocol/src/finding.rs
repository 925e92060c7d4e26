//! What a look for trouble finds, of both programs: what was found, how bad it is, and what to do.

use crate::table;
use serde::{Deserialize, Serialize};

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, and may not much longer or not well.
    Warn,
    /// It does not work.
    Bad,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// How it is.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What to do; empty: nothing.
    pub remedy: String,
}

impl Finding {
    /// Something that is as it should be.
    pub fn good(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), health: Health::Good, found: found.into(), remedy: String::new() }
    }

    /// Something to look after.
    pub fn warn(what: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), health: Health::Warn, found: found.into(), remedy: remedy.into() }
    }

    /// Something that does not work.
    pub fn bad(what: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), health: Health::Bad, found: found.into(), remedy: remedy.into() }
    }
}

/// The worst of them.
#[must_use]
pub fn worst(findings: &[Finding]) -> Health {
    findings.iter().map(|finding| finding.health).max().unwrap_or(Health::Good)
}

/// A table of them, and below it what to do.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    let word = |health: Health| match health {
        Health::Good => "ok",
        Health::Warn => "warn",
        Health::Bad => "BAD",
    };
    let row = |finding: &Finding| vec![word(finding.health).to_owned(), finding.what.clone(), finding.found.clone()];
    let mut text = table::render(&["", "WHAT", "FOUND"], &[], &findings.iter().map(row).collect::<Vec<_>>());
    for finding in findings.iter().filter(|finding| !finding.remedy.is_empty()) {
        text += &format!("{}: {}\n", finding.what, finding.remedy);
    }
    text
}
