//! What an import found, did and left.

use crate::store::old::Unknown;
use serde::Serialize;

/// What is told one by one; what comes on top is only counted.
const MOST_TOLD: usize = 1000;

/// Of one kind of thing: every one that was found is new, was there, had been deleted or is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// In the export.
    pub found: u64,
    /// Came over now.
    pub new: u64,
    /// Came over before.
    pub known: u64,
    /// Was deleted there, and stays so.
    pub deleted: u64,
    /// Cannot come over; see what is left.
    pub left_out: u64,
}

impl Tally {
    /// Adds what another one counts.
    pub(super) fn add(&mut self, more: Self) {
        self.found += more.found;
        self.new += more.new;
        self.known += more.known;
        self.deleted += more.deleted;
        self.left_out += more.left_out;
    }
}

/// Something that cannot come over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Where it is in the export: a table.
    pub table: &'static str,
    /// Whose it is.
    pub user: String,
    /// Which one.
    pub id: String,
    /// Why, and what to do.
    pub why: String,
}

/// What an import found, did and left.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Nothing was written: this is what would be.
    pub dry_run: bool,
    /// Users, each of whom becomes a tenant.
    pub users: Tally,
    /// API keys.
    pub keys: Tally,
    /// Balances.
    pub balances: Tally,
    /// What they sum to, in nano-USD.
    pub balances_nano_usd: i128,
    /// Rows of usage.
    pub usage: Tally,
    /// What those cost that came over, now or before, in nano-USD.
    pub usage_nano_usd: i128,
    /// Conversations.
    pub sessions: Tally,
    /// Their messages.
    pub messages: Tally,
    /// Settings.
    pub settings: Tally,
    /// Documents.
    pub documents: Tally,
    /// Adapters.
    pub adapters: Tally,
    /// What nothing has a place for.
    pub unknown: Unknown,
    /// Files of the objects' directory that nothing refers to.
    pub unused_objects: u64,
    /// What is left out, the first of it.
    pub left: Vec<Left>,
    /// What else is left out.
    pub left_more: u64,
    /// What should be known.
    pub notes: Vec<String>,
}

/// Notes that are told.
const MOST_NOTED: usize = 50;

/// A text that a terminal shows and does not obey.
pub(super) fn plain(text: &str) -> String {
    text.chars().take(400).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl Report {
    /// Tallies by name.
    #[must_use]
    pub fn tallies(&self) -> [(&'static str, Tally); 9] {
        [
            ("users", self.users),
            ("API keys", self.keys),
            ("balances", self.balances),
            ("usage", self.usage),
            ("sessions", self.sessions),
            ("messages", self.messages),
            ("settings", self.settings),
            ("documents", self.documents),
            ("adapters", self.adapters),
        ]
    }

    /// What cannot come over.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.tallies().iter().map(|(_, tally)| tally.left_out).sum()
    }

    /// Notes what is left out. Ids are anybody's words: what a terminal would obey is taken out of them.
    pub(super) fn leave(&mut self, left: Left) {
        let Left { table, user, id, why } = left;
        let left = Left { table, user: plain(&user), id: plain(&id), why: plain(&why) };
        if self.left.len() < MOST_TOLD {
            self.left.push(left);
        } else {
            self.left_more += 1;
        }
    }

    /// Adds what another one counts and tells.
    pub(super) fn add(&mut self, more: Self) {
        let own = [
            &mut self.users,
            &mut self.keys,
            &mut self.balances,
            &mut self.usage,
            &mut self.sessions,
            &mut self.messages,
            &mut self.settings,
            &mut self.documents,
            &mut self.adapters,
        ];
        own.into_iter().zip(more.tallies()).for_each(|(own, (_, tally))| own.add(tally));
        self.balances_nano_usd += more.balances_nano_usd;
        self.usage_nano_usd += more.usage_nano_usd;
        self.left_more += more.left_more;
        for left in more.left {
            self.leave(left);
        }
        for note in more.notes {
            let note = plain(&note);
            if self.notes.len() < MOST_NOTED && !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_has_an_end_and_nothing_that_a_terminal_obeys() {
        let mut report = Report::default();
        for number in 0..MOST_TOLD + 5 {
            let id = format!("\u{1b}[2J{number}");
            report.leave(Left { table: "users", user: "u".into(), id, why: "x".repeat(1000) });
        }
        assert_eq!((report.left.len(), report.left_more), (MOST_TOLD, 5));
        assert!(report.left.iter().all(|left| !left.id.contains('\u{1b}') && left.why.len() == 400));
        let notes = (0..MOST_NOTED + 5).map(|number| number.to_string()).collect();
        report.add(Report { notes, ..Report::default() });
        report.add(Report { notes: vec!["0".into()], ..Report::default() });
        assert_eq!(report.notes.len(), MOST_NOTED);
    }
}
