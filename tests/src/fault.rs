//! What fault tests find, as lines that the program `faults` gathers.

use serde::{Deserialize, Serialize};

/// Before each line on stderr.
pub const MARK: &str = "FAULT ";

/// How often something is tried: every day, or before a release (`BELAY_SCALE=release`).
#[must_use]
pub fn scaled(every_day: u64, release: u64) -> u64 {
    if std::env::var("BELAY_SCALE").is_ok_and(|scale| scale == "release") { release } else { every_day }
}

/// The seed that was asked for (`BELAY_SEED`), or the usual one.
#[must_use]
pub fn seed(usual: u64) -> u64 {
    std::env::var("BELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(usual)
}

/// What came of a fault that was tried again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its name.
    pub fault: String,
    /// How often.
    pub tried: u64,
    /// What was lost: requests, events or documents. `None`: its test failed before it could tell.
    pub lost: Option<u64>,
    /// And what was there twice, or paid twice.
    pub doubled: Option<u64>,
    /// The worst that was seen, or how its test failed; empty: nothing is measured.
    pub worst: String,
    /// What was promised.
    pub bar: String,
    /// Whether that holds.
    pub holds: bool,
}

impl Fault {
    /// A fault whose test has found all of its promises kept: it would not have come so far otherwise.
    #[must_use]
    pub fn kept(fault: &str, tried: u64, bar: &str) -> Self {
        let (fault, bar, worst) = (fault.to_owned(), bar.to_owned(), String::new());
        Self { fault, tried, lost: Some(0), doubled: Some(0), worst, bar, holds: true }
    }

    /// A fault whose test has failed, in its words.
    #[must_use]
    pub fn failed(fault: &str, why: impl Into<String>) -> Self {
        let (fault, worst, bar) = (fault.to_owned(), why.into(), "see its output".to_owned());
        Self { fault, tried: 0, lost: None, doubled: None, worst, bar, holds: false }
    }

    /// With the worst that was seen.
    #[must_use]
    pub fn worst(mut self, worst: impl Into<String>) -> Self {
        self.worst = worst.into();
        self
    }

    /// Tells the program that gathers them.
    pub fn tell(&self) {
        eprintln!("{MARK}{}", serde_json::to_string(self).expect("texts and numbers"));
    }
}
