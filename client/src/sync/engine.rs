//! One round of sync: read what has changed at the relay, look at what lies here, decide for each item, do it.
//!
//! What is done is noted in the index after it was done; what was done and not noted, since the process died between the
//! two, is found the same on both sides by the next round, and agreed on. A revision is noted before it is sent, so that
//! it is sent by the same name again.

mod act;
mod fetch;

use super::index::{Entry, Index, KindState, Name};
use super::place::{Known, Place, Problem, Scan, Sig, Unknown};
use super::reconcile::{Action, Base, Head, decide};
use super::remote::Remote;
use crate::error::ClientError;
use belay_protocol::item::{ItemKey, ItemKind};
use belay_protocol::message::{Resync, SyncChange, SyncContent};
use belay_transport::env::{Clock, Random};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rounds of one call: what came of a conflict is fetched in the next one.
const ROUNDS: usize = 8;

/// What happens, as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Everything is read anew, and why.
    Resync(Resync),
    /// Something is about to be done.
    Begins(ItemKind, ItemKey, Action),
    /// So many bytes of so many have gone or come.
    Progress(u64, u64),
    /// It was done.
    Done(ItemKind, ItemKey, Action),
    /// Somebody else had changed the item meanwhile: what lay here is kept there (`None`: in the item's log).
    Conflict(ItemKind, ItemKey, Option<ItemKey>),
    /// It was deleted here and edited elsewhere: it stays.
    Kept(ItemKind, ItemKey),
    /// Something stands in the way of one item.
    Problem(ItemKind, Problem),
}

/// Told what happens.
pub type Events<'a> = dyn FnMut(Event) + Send + 'a;

/// What came of a round, for one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Items that went to the relay, deletions included.
    pub pushed: u64,
    /// Items that came here, deletions included.
    pub pulled: u64,
    /// Conflicts.
    pub conflicts: u64,
    /// Items that are being written: to be looked at again.
    pub unsettled: u64,
}

/// What came of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How much, of each kind.
    pub by_kind: BTreeMap<ItemKind, Figures>,
    /// What stands in the way of items.
    pub problems: Vec<(ItemKind, Problem)>,
    /// What would be done, if only that was asked.
    pub planned: Vec<(ItemKind, ItemKey, Action)>,
}

impl Report {
    /// How much, of all kinds.
    #[must_use]
    pub fn total(&self) -> Figures {
        self.by_kind.values().fold(Figures::default(), |sum, one| Figures {
            pushed: sum.pushed + one.pushed,
            pulled: sum.pulled + one.pulled,
            conflicts: sum.conflicts + one.conflicts,
            unsettled: sum.unsettled + one.unsettled,
        })
    }

    fn of(&mut self, kind: ItemKind) -> &mut Figures {
        self.by_kind.entry(kind).or_default()
    }

    /// Adds what an earlier round has done; what stands in the way is as it is now.
    pub(super) fn after(mut self, earlier: &Self) -> Self {
        for (kind, figures) in &earlier.by_kind {
            let of_kind = self.of(*kind);
            of_kind.pushed += figures.pushed;
            of_kind.pulled += figures.pulled;
            of_kind.conflicts += figures.conflicts;
        }
        self
    }
}

/// What keeps the items of this computer and the relay the same.
pub struct Engine<R> {
    remote: R,
    index: Index,
    places: BTreeMap<ItemKind, Box<dyn Place>>,
    entries: BTreeMap<Name, Entry>,
    clock: Arc<dyn Clock>,
    random: Random,
}

impl<R> std::fmt::Debug for Engine<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("index", &self.index).finish_non_exhaustive()
    }
}

/// What lies at each place.
type Scans = BTreeMap<ItemKind, Scan>;

impl<R: Remote> Engine<R> {
    /// One that goes by that index.
    pub fn new(
        remote: R,
        index: Index,
        places: BTreeMap<ItemKind, Box<dyn Place>>,
        clock: Arc<dyn Clock>,
        random: Random,
    ) -> Result<Self, ClientError> {
        let entries = index.entries()?;
        Ok(Self { remote, index, places, entries, clock, random })
    }

    /// What is known.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Brings both sides together. With `dry_run`, only says what would be done.
    pub async fn round(&mut self, dry_run: bool, events: &mut Events<'_>) -> Result<Report, ClientError> {
        let done = self.rounds(dry_run, events).await;
        if done.is_err() {
            // What was not noted did not happen, as far as this computer knows.
            self.index.give_up()?;
            self.entries = self.index.entries()?;
        }
        done
    }

    async fn rounds(&mut self, dry_run: bool, events: &mut Events<'_>) -> Result<Report, ClientError> {
        let mut report = Report::default();
        let mut recovered = vec![];
        if !dry_run {
            recovered = self.tidy();
        }
        for _ in 0..ROUNDS {
            self.pull(events).await?;
            report.problems.clone_from(&recovered);
            let scans = self.scan(&mut report);
            self.note_stamps(&scans)?;
            let actions = self.decide(&scans);
            if dry_run {
                report.planned = actions.into_iter().map(|((kind, key), action)| (kind, key, action)).collect();
                return Ok(report);
            }
            let before = Figures { unsettled: 0, ..report.total() };
            self.act(&scans, actions, &mut report, events).await?;
            // What came of a conflict, or of a deletion that was no use, is fetched by the next one.
            if (Figures { unsettled: 0, ..report.total() }) == before {
                break;
            }
        }
        self.note_kinds(&report)?;
        for (kind, problem) in &report.problems {
            events(Event::Problem(*kind, problem.clone()));
        }
        Ok(report)
    }

    fn tidy(&mut self) -> Vec<(ItemKind, Problem)> {
        let mut told = vec![];
        let entries = &self.entries;
        for (kind, place) in &mut self.places {
            // What the relay has, or had when both agreed, need not come back.
            let is_known = |key: &ItemKey, sig: &Sig| {
                let entry = entries.get(&(*kind, key.clone()));
                let sigs = entry.into_iter().flat_map(|entry| [&entry.base, &entry.head]).flatten();
                sigs.filter_map(|head| head.sig.as_ref()).any(|known| known == sig)
            };
            match place.tidy(&is_known) {
                Ok(recovered) => told.extend(recovered.into_iter().map(|problem| (*kind, problem))),
                Err(error) => tracing::debug!(%error, "cannot tidy a place"),
            }
        }
        told
    }

    /// Reads what has changed at the relay into the index.
    pub async fn pull(&mut self, events: &mut Events<'_>) -> Result<(), ClientError> {
        let mut cursor = self.index.cursor()?;
        loop {
            let (changes, page) = self.remote.pull(&cursor).await?;
            self.index.begin()?;
            if page.resync != Resync::NO {
                events(Event::Resync(page.resync));
                // Where the relay has forgotten, what is not there any more was deleted. Where it remembers less than this
                // computer, it says nothing of what lies here: that counts as new.
                let forgets = page.resync == Resync::TOO_OLD;
                self.index.forget_heads(!forgets)?;
                for entry in self.entries.values_mut() {
                    (entry.head, entry.inline) = (None, None);
                    if !forgets {
                        entry.base = None;
                    }
                }
            }
            for change in changes {
                self.heard(change)?;
            }
            cursor = page.cursor;
            self.index.set_cursor(&cursor)?;
            self.index.commit()?;
            if !page.has_more {
                return Ok(());
            }
        }
    }

    /// Notes what the relay says of an item.
    fn heard(&mut self, change: SyncChange) -> Result<(), ClientError> {
        let Ok(key) = change.key.parse::<ItemKey>() else {
            // Conversations may be called otherwise, and have no place here; anything else has none anywhere.
            return Ok(());
        };
        let name = (change.kind, key);
        let sig = (change.content != SyncContent::NONE).then_some(Sig {
            digest: change.digest,
            size: change.size,
            meta: change.meta,
        });
        let entry = self.entries.entry(name.clone()).or_default();
        // Its answer was lost. One that was in conflict is heard of under the name of its copy, and is answered again.
        let mine = self.index.pending(&name)?.into_iter().find(|mine| mine.revision == change.revision);
        if let Some(mine) = mine {
            entry.base = Some(Base { revision: mine.revision, sig: mine.sig });
            self.index.confirmed(&name)?;
        }
        let is_new = entry.head.as_ref().is_none_or(|head| head.revision != change.revision);
        entry.head = Some(Head { revision: change.revision, sig });
        if is_new {
            // Of kinds that have no place here, nobody will ask for it.
            let is_wanted = change.content == SyncContent::INLINE && self.places.contains_key(&name.0);
            entry.inline = is_wanted.then_some(change.inline);
        }
        if entry.head.as_ref().map(|head| head.revision) == entry.base.as_ref().map(|base| base.revision) {
            entry.inline = None;
        }
        entry.modified_ms = change.modified_ms;
        entry.conflict_of = change.conflict_of;
        self.index.put(&name, entry)
    }

    fn scan(&mut self, report: &mut Report) -> Scans {
        let mut scans = Scans::new();
        report.by_kind.values_mut().for_each(|figures| figures.unsettled = 0);
        for (kind, place) in &mut self.places {
            match place.scan(&known(&self.entries, *kind)) {
                Ok(scan) => {
                    let unsettled = scan.unknown.values().filter(|why| **why == Unknown::Unsettled).count();
                    report.of(*kind).unsettled += unsettled as u64;
                    report.problems.extend(scan.problems.iter().map(|problem| (*kind, problem.clone())));
                    scans.insert(*kind, scan);
                }
                Err(error) => {
                    report.problems.push((*kind, Problem { key: String::new(), why: error.to_string() }));
                }
            }
        }
        scans
    }

    /// Notes what files look like that were touched and are what they were: they need not be read again.
    fn note_stamps(&mut self, scans: &Scans) -> Result<(), ClientError> {
        let mut touched = vec![];
        for (kind, scan) in scans {
            for (key, local) in &scan.items {
                let name = (*kind, key.clone());
                let Some(entry) = self.entries.get(&name) else { continue };
                let is_same = entry.base.as_ref().and_then(|base| base.sig.as_ref()) == Some(&local.sig);
                if is_same && entry.stamp.as_ref() != Some(&local.stamp) {
                    touched.push((name, local.stamp.clone()));
                }
            }
        }
        if touched.is_empty() {
            return Ok(());
        }
        self.index.begin()?;
        for (name, stamp) in touched {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.stamp = Some(stamp);
                self.index.put(&name, entry)?;
            }
        }
        self.index.commit()
    }

    fn decide(&self, scans: &Scans) -> Vec<(Name, Action)> {
        let mut actions = vec![];
        for (kind, scan) in scans {
            let of_kind = |name: &Name| name.0 == *kind;
            let known = self.entries.keys().filter(|name| of_kind(name)).map(|name| name.1.clone());
            let keys: std::collections::BTreeSet<_> = known.chain(scan.items.keys().cloned()).collect();
            for key in keys {
                if scan.unknown.contains_key(&key) {
                    continue;
                }
                let local = scan.items.get(&key).map(|local| &local.sig);
                let name = (*kind, key);
                let entry = self.entries.get(&name);
                let (base, head) = (entry.and_then(|e| e.base.as_ref()), entry.and_then(|e| e.head.as_ref()));
                // What lies here may be half of what came, if the process died between two files.
                let half = base.zip(head).and_then(|(base, head)| base.sig.as_ref().zip(head.sig.as_ref()));
                let local = match (local, half) {
                    (Some(local), Some((base, head))) if is_mixture(local, base, head) => Some(base),
                    (local, _) => local,
                };
                match decide(base, local, head) {
                    Action::Nothing => {}
                    action => actions.push((name, action)),
                }
            }
        }
        // What comes first makes room for names that go, and pushes are decided on what is newest.
        actions.sort_by_key(|(_, action)| match action {
            Action::Agree => 0,
            Action::Remove => 1,
            Action::Fetch => 2,
            _ => 3,
        });
        actions
    }

    /// Notes when what went and came, and what waits.
    fn note_kinds(&mut self, report: &Report) -> Result<(), ClientError> {
        let now_ms = self.clock.now_ms();
        let kinds: Vec<_> = self.places.keys().copied().collect();
        for kind in kinds {
            let known = self.index.kind(kind)?;
            let problems = report.problems.iter().filter(|(of, _)| *of == kind).count() as u64;
            let at = |when: u64, what: u64| if what > 0 { now_ms } else { when };
            let Figures { pushed, pulled, unsettled, .. } = report.by_kind.get(&kind).copied().unwrap_or_default();
            let state = KindState {
                pushed_ms: at(known.pushed_ms, pushed),
                pulled_ms: at(known.pulled_ms, pulled),
                pending: unsettled,
                problems,
            };
            self.index.set_kind(kind, state)?;
        }
        Ok(())
    }
}

/// What was known of items of a kind when they were looked at last.
fn known(entries: &BTreeMap<Name, Entry>, kind: ItemKind) -> Known {
    let of_kind = entries.iter().filter(|((of, _), _)| *of == kind);
    let known = of_kind
        .filter_map(|((_, key), entry)| Some((key.clone(), (entry.stamp.clone()?, entry.base.as_ref()?.sig.clone()?))));
    known.collect()
}

/// One half of it is of one, the other of the other.
fn is_mixture(local: &Sig, base: &Sig, head: &Sig) -> bool {
    let content = |a: &Sig, b: &Sig| a.digest == b.digest && a.size == b.size;
    local != base
        && local != head
        && (content(local, base) && local.meta == head.meta || content(local, head) && local.meta == base.meta)
}
