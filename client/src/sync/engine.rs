//! One round of sync: read what has changed at the relay, look at what lies here, decide for each item, do it.
//!
//! What is done is noted in the index after it was done; what was done and not noted, since the process died between the
//! two, is found the same on both sides by the next round, and agreed on. A revision is noted before it is sent, so that
//! it is sent by the same name again.

use super::index::{Entry, Index, KindState, Name, Pending};
use super::place::{Content, Known, Local, Place, PlaceError, Problem, Scan, Sig, Stamp, Unknown};
use super::reconcile::{Action, Base, Head, decide};
use super::remote::{Remote, TransferError};
use super::transfer::offsets;
use crate::error::ClientError;
use belay_protocol::id::RevisionId;
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKey, ItemKind, Parts};
use belay_protocol::message::{
    Failed, FailureCode, PushOutcome, Resync, SyncChange, SyncContent, SyncPush, SyncPushed,
};
use belay_transport::env::{Clock, Random};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Rounds of one call: what came of a conflict is fetched in the next one.
const ROUNDS: usize = 8;
/// Pushes that are sent together, and their bytes.
const TOGETHER: usize = 256;
const BYTES_TOGETHER: usize = 4 << 20;

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

/// What came of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Items that went to the relay, deletions included.
    pub pushed: u64,
    /// Items that came here, deletions included.
    pub pulled: u64,
    /// Conflicts.
    pub conflicts: u64,
    /// What stands in the way of items.
    pub problems: Vec<(ItemKind, Problem)>,
    /// Items that are being written: to be looked at again.
    pub unsettled: u64,
    /// What would be done, if only that was asked.
    pub planned: Vec<(ItemKind, ItemKey, Action)>,
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

/// Why an action was not done.
enum Undone {
    /// Nothing can be done now.
    Fatal(ClientError),
    /// This item cannot; others can.
    Item(String),
    /// It changed meanwhile: the next round looks again.
    Again,
}

impl From<ClientError> for Undone {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Failed(failed) if is_about_the_item(&failed) => Self::Item(words(&failed)),
            error => Self::Fatal(error),
        }
    }
}

impl From<PlaceError> for Undone {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Changed => Self::Again,
            error => Self::Item(error.to_string()),
        }
    }
}

impl From<TransferError> for Undone {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Relay(error) => error.into(),
            TransferError::Place(error) => error.into(),
        }
    }
}

/// The relay would say the same of this item again, and not of others.
fn is_about_the_item(failed: &Failed) -> bool {
    matches!(
        failed.code,
        FailureCode::INVALID_REQUEST | FailureCode::LIMIT | FailureCode::NOT_FOUND | FailureCode::CONFLICT
    )
}

fn words(failed: &Failed) -> String {
    if failed.remedy.is_empty() { failed.message.clone() } else { format!("{}; {}", failed.message, failed.remedy) }
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

    /// Its parts again, for another beginning.
    #[must_use]
    pub fn into_parts(self) -> (Index, BTreeMap<ItemKind, Box<dyn Place>>) {
        (self.index, self.places)
    }

    /// Brings both sides together. With `dry_run`, only says what would be done.
    pub async fn round(&mut self, dry_run: bool, events: &mut Events<'_>) -> Result<Report, ClientError> {
        let mut report = Report::default();
        for place in self.places.values_mut() {
            if let Err(error) = place.tidy() {
                tracing::debug!(%error, "cannot tidy a place");
            }
        }
        for number in 0..ROUNDS {
            self.pull(events).await?;
            report.problems.clear();
            let scans = self.scan(&mut report);
            let actions = self.decide(&scans);
            if dry_run {
                report.planned = actions.into_iter().map(|((kind, key), action)| (kind, key, action)).collect();
                return Ok(report);
            }
            let nothing_to_do = actions.iter().all(|(_, action)| *action == Action::Agree);
            let before = report.problems.len();
            self.act(&scans, actions, &mut report, events).await?;
            let is_last = number + 1 == ROUNDS || report.problems.len() > before && report.conflicts == 0;
            if nothing_to_do || is_last {
                break;
            }
        }
        self.note_kinds(&report)?;
        for (kind, problem) in &report.problems {
            events(Event::Problem(*kind, problem.clone()));
        }
        Ok(report)
    }

    /// Reads what has changed at the relay into the index.
    pub async fn pull(&mut self, events: &mut Events<'_>) -> Result<(), ClientError> {
        let (mut cursor, mut resync) = self.index.cursor()?;
        loop {
            let (changes, page) = self.remote.pull(&cursor).await?;
            if page.resync != Resync::NO {
                events(Event::Resync(page.resync));
                self.index.forget_heads()?;
                for entry in self.entries.values_mut() {
                    (entry.head, entry.inline) = (None, None);
                }
                resync = true;
            }
            self.index.begin()?;
            for change in changes {
                self.heard(change)?;
            }
            cursor = page.cursor;
            resync = resync && page.has_more;
            self.index.set_cursor(&cursor, resync)?;
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
        if let Some(mine) = self.index.pending_of(change.revision)? {
            // Its answer was lost.
            entry.base = Some(Base { revision: mine.revision, sig: mine.sig });
            self.index.confirmed(&name)?;
        }
        let is_new = entry.head.as_ref().is_none_or(|head| head.revision != change.revision);
        entry.head = Some(Head { revision: change.revision, sig });
        if is_new {
            entry.inline = (change.content == SyncContent::INLINE).then_some(change.inline);
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
        report.unsettled = 0;
        for (kind, place) in &mut self.places {
            let of_kind = self.entries.iter().filter(|((of, _), _)| of == kind);
            let known: Known = of_kind
                .filter_map(|((_, key), entry)| {
                    Some((key.clone(), (entry.stamp.clone()?, entry.base.as_ref()?.sig.clone()?)))
                })
                .collect();
            match place.scan(&known) {
                Ok(scan) => {
                    let unsettled = scan.unknown.values().filter(|why| **why == Unknown::Unsettled).count();
                    report.unsettled += unsettled as u64;
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

    async fn act(
        &mut self,
        scans: &Scans,
        actions: Vec<(Name, Action)>,
        report: &mut Report,
        events: &mut Events<'_>,
    ) -> Result<(), ClientError> {
        let local = |name: &Name| scans.get(&name.0).and_then(|scan| scan.items.get(&name.1));
        let mut batch = vec![];
        let mut bytes = 0;
        self.index.begin()?;
        let agreed = actions.iter().filter(|(_, action)| *action == Action::Agree);
        let agreed = agreed.map(|(name, _)| self.agree(name, local(name))).collect::<Result<Vec<_>, _>>();
        self.index.commit()?;
        agreed?;
        for (name, action) in actions.into_iter().filter(|(_, action)| *action != Action::Agree) {
            let local = local(&name);
            let small = local.is_none_or(|local| local.sig.size <= INLINE_BYTES as u64);
            if matches!(action, Action::Push | Action::Delete) && small {
                bytes += local.map_or(0, |local| local.sig.size as usize);
                batch.push((name, local));
                if batch.len() >= TOGETHER || bytes >= BYTES_TOGETHER {
                    self.push_small(std::mem::take(&mut batch), report, events).await?;
                    bytes = 0;
                }
                continue;
            }
            events(Event::Begins(name.0, name.1.clone(), action));
            let done = match action {
                Action::Push => self.push_large(&name, local, report, events).await,
                Action::Fetch => self.fetch(&name, local, report, events).await,
                _ => self.remove(&name, local, report),
            };
            match done {
                Ok(()) => events(Event::Done(name.0, name.1, action)),
                Err(undone) => self.undone(&name, undone, report)?,
            }
        }
        self.push_small(batch, report, events).await
    }

    fn undone(&mut self, name: &Name, undone: Undone, report: &mut Report) -> Result<(), ClientError> {
        match undone {
            Undone::Fatal(error) => return Err(error),
            Undone::Item(why) => report.problems.push((name.0, Problem { key: name.1.to_string(), why })),
            Undone::Again => report.unsettled += 1,
        }
        Ok(())
    }

    /// Both sides have the same.
    fn agree(&mut self, name: &Name, local: Option<&Local>) -> Result<(), ClientError> {
        let Some(entry) = self.entries.get_mut(name) else { return Ok(()) };
        let Some(head) = entry.head.clone() else {
            // Nobody has it any more.
            self.entries.remove(name);
            self.index.confirmed(name)?;
            return self.index.remove(name);
        };
        entry.base = Some(head);
        entry.stamp = local.map(|local| local.stamp.clone());
        entry.inline = None;
        self.index.confirmed(name)?;
        self.index.put(name, entry)
    }

    /// A revision of what lies here: the one that was noted for it before, or a new one.
    fn revision(&self, name: &Name, sig: Option<&Sig>) -> Result<Pending, ClientError> {
        let parent = self.entries.get(name).and_then(|entry| entry.base.as_ref()).map(|base| base.revision);
        let noted = self.index.pending(name)?;
        if let Some(noted) = noted.into_iter().find(|one| one.sig.as_ref() == sig && one.parent == parent) {
            return Ok(noted);
        }
        let pending = Pending { revision: RevisionId(self.random.bytes()), parent, sig: sig.cloned() };
        self.index.push(name, &pending)?;
        Ok(pending)
    }

    fn message(&self, (kind, key): &Name, pending: &Pending, content: SyncContent, local: Option<&Local>) -> SyncPush {
        let sig = pending.sig.clone();
        let (digest, size, meta) =
            sig.map_or((Digest([0; 32]), 0, String::new()), |sig| (sig.digest, sig.size, sig.meta));
        SyncPush {
            revision: pending.revision,
            parent: pending.parent,
            kind: *kind,
            key: key.clone(),
            content,
            modified_ms: local.map_or_else(|| self.clock.now_ms(), |local| local.modified_ms),
            size,
            digest,
            inline: vec![],
            meta,
            earlier: None,
        }
    }

    /// Sends what is small, many at once.
    async fn push_small(
        &mut self,
        batch: Vec<(Name, Option<&Local>)>,
        report: &mut Report,
        events: &mut Events<'_>,
    ) -> Result<(), ClientError> {
        let (mut names, mut pushes) = (vec![], vec![]);
        self.index.begin()?;
        for (name, local) in batch {
            match self.small_message(&name, local) {
                Ok(push) => {
                    pushes.push(push);
                    names.push((name, local));
                }
                Err(undone) => {
                    if let Err(error) = self.undone(&name, undone, report) {
                        self.index.commit()?;
                        return Err(error);
                    }
                }
            }
        }
        self.index.commit()?;
        if pushes.is_empty() {
            return Ok(());
        }
        let answers = self.remote.push(&pushes).await?;
        self.index.begin()?;
        let mut told = Ok(());
        for ((name, local), answer) in names.into_iter().zip(answers) {
            let action = if local.is_some() { Action::Push } else { Action::Delete };
            let done = match answer {
                Ok(pushed) => self.pushed(&name, local, &pushed, report, events),
                Err(failed) => Err(ClientError::Failed(failed).into()),
            };
            match done {
                Ok(()) => events(Event::Done(name.0, name.1, action)),
                Err(undone) => told = told.and(self.undone(&name, undone, report)),
            }
        }
        self.index.commit()?;
        told
    }

    fn small_message(&mut self, name: &Name, local: Option<&Local>) -> Result<SyncPush, Undone> {
        let Some(local) = local else {
            let pending = self.revision(name, None)?;
            return Ok(self.message(name, &pending, SyncContent::NONE, None));
        };
        let mut source = self.place(name)?.open(&name.1, local)?;
        let size = u32::try_from(local.sig.size).unwrap_or(u32::MAX);
        let bytes = if size == 0 { Bytes::new() } else { source.read(0, size).map_err(|_| Undone::Again)? };
        if Digest::of(&bytes) != local.sig.digest {
            return Err(Undone::Again);
        }
        let pending = self.revision(name, Some(&local.sig))?;
        Ok(SyncPush { inline: bytes.into(), ..self.message(name, &pending, SyncContent::INLINE, Some(local)) })
    }

    fn place(&mut self, name: &Name) -> Result<&mut Box<dyn Place>, Undone> {
        self.places.get_mut(&name.0).ok_or_else(|| Undone::Item("there is no place for it here".into()))
    }

    async fn push_large(
        &mut self,
        name: &Name,
        local: Option<&Local>,
        report: &mut Report,
        events: &mut Events<'_>,
    ) -> Result<(), Undone> {
        let Some(local) = local else { return Err(Undone::Again) };
        let place = self.place(name)?;
        let parts = place.parts(&name.1, local)?;
        let mut source = place.open(&name.1, local)?;
        let pending = self.revision(name, Some(&local.sig))?;
        let size = local.sig.size;
        let mut progress = |done: u64| events(Event::Progress(done, size));
        self.remote.upload(pending.revision, name.0, &parts, &mut *source, &mut progress).await?;
        let push = self.message(name, &pending, SyncContent::PARTS, Some(local));
        let answer = self.remote.push(&[push]).await?.pop();
        let pushed = answer.ok_or_else(|| ClientError::Lost("no answer".into()))?;
        let pushed = pushed.map_err(|failed| Undone::from(ClientError::Failed(failed)))?;
        self.pushed(name, Some(local), &pushed, report, events)
    }

    /// Notes what became of a push.
    fn pushed(
        &mut self,
        name: &Name,
        local: Option<&Local>,
        pushed: &SyncPushed,
        report: &mut Report,
        events: &mut Events<'_>,
    ) -> Result<(), Undone> {
        let sig = local.map(|local| local.sig.clone());
        let stamp = local.map(|local| local.stamp.clone());
        report.pushed += 1;
        let mut entry = self.entries.remove(name).unwrap_or_default();
        match pushed.outcome {
            PushOutcome::KEPT => {
                // Nothing lies here; the edit comes.
                (entry.base, entry.stamp) = (None, None);
                events(Event::Kept(name.0, name.1.clone()));
            }
            PushOutcome::CONFLICT => {
                report.conflicts += 1;
                events(Event::Conflict(name.0, name.1.clone(), pushed.copy.clone()));
                // What lies here is at the relay; what is there comes.
                entry.base = Some(Base { revision: pushed.revision, sig });
                entry.stamp = stamp;
                if let (Some(copy), Some(local)) = (&pushed.copy, local) {
                    self.set_aside(name, copy, (local, pushed.revision), &mut entry)?;
                }
            }
            _ => {
                let revision = if pushed.outcome == PushOutcome::SAME { pushed.head } else { pushed.revision };
                let agreed = Base { revision, sig };
                (entry.base, entry.stamp) = (Some(agreed.clone()), stamp);
                // What others have done since is heard of by the feed.
                if entry.head.as_ref().is_none_or(|head| Some(head.revision) != Some(pushed.head)) {
                    entry.head = (pushed.head == revision).then_some(agreed).or(entry.head.take());
                }
                entry.inline = None;
            }
        }
        self.index.put(name, &entry)?;
        self.entries.insert(name.clone(), entry);
        self.index.confirmed(name)?;
        Ok(())
    }

    /// Gives what lies here the name that the relay keeps it under, if that is free here.
    fn set_aside(
        &mut self,
        name: &Name,
        copy: &ItemKey,
        (local, revision): (&Local, RevisionId),
        entry: &mut Entry,
    ) -> Result<(), Undone> {
        let moved = match self.place(name)?.set_aside(&name.1, copy, local) {
            Ok(stamp) => stamp,
            // It comes from the relay under its new name, and what is new comes over this one.
            Err(PlaceError::Taken(_) | PlaceError::Changed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        (entry.base, entry.stamp) = (None, None);
        let agreed = Base { revision, sig: Some(local.sig.clone()) };
        let copy = (name.0, copy.clone());
        // Others may have had it, and changed or deleted it, before its answer came.
        let head = self.entries.get(&copy).and_then(|known| known.head.clone());
        let aside = Entry {
            base: Some(agreed.clone()),
            stamp: Some(moved),
            head: Some(head.unwrap_or(agreed)),
            modified_ms: local.modified_ms,
            conflict_of: name.1.to_string(),
            inline: None,
        };
        self.index.put(&copy, &aside)?;
        self.entries.insert(copy, aside);
        Ok(())
    }

    /// Brings the relay's content here.
    async fn fetch(
        &mut self,
        name: &Name,
        local: Option<&Local>,
        report: &mut Report,
        events: &mut Events<'_>,
    ) -> Result<(), Undone> {
        let entry = self.entries.get(name).cloned().unwrap_or_default();
        let (Some(head), Some(sig)) = (entry.head.clone(), entry.head.as_ref().and_then(|head| head.sig.clone()))
        else {
            return Err(Undone::Again);
        };
        let content = match entry.inline {
            Some(bytes) => Content::Bytes(bytes.into()),
            None => self.receive(name, local, (&head, &sig), events).await?,
        };
        let stamp = self.place(name)?.put(&name.1, content, &sig, local, entry.modified_ms)?;
        self.came(name, head, Some(stamp), report)?;
        Ok(())
    }

    fn came(&mut self, name: &Name, head: Head, stamp: Option<Stamp>, report: &mut Report) -> Result<(), ClientError> {
        report.pulled += 1;
        let entry = self.entries.entry(name.clone()).or_default();
        (entry.base, entry.stamp, entry.inline) = (Some(head), stamp, None);
        self.index.confirmed(name)?;
        self.index.put(name, entry)
    }

    /// Receives content that is not in the index: from the relay, as far as it does not lie here already.
    async fn receive(
        &mut self,
        name: &Name,
        local: Option<&Local>,
        (head, sig): (&Head, &Sig),
        events: &mut Events<'_>,
    ) -> Result<Content, Undone> {
        let got = self.remote.content(head.revision).await?;
        if got.content == SyncContent::INLINE {
            let bytes = Bytes::from(got.inline);
            return if Digest::of(&bytes) == sig.digest { Ok(Content::Bytes(bytes)) } else { Err(broken()) };
        }
        let parts = Parts::from_bytes(&got.parts).map_err(|_| broken())?;
        if parts.digest() != sig.digest || parts.size() != sig.size {
            return Err(broken());
        }
        let place = self.places.get_mut(&name.0).ok_or_else(|| Undone::Item("there is no place for it here".into()))?;
        let mut staged = place.stage(sig.digest, sig.size)?;
        let mut here = Here::look(&mut **place, &name.1, local);
        let (mut there, mut needed) = (0, vec![]);
        for (part, offset) in parts.all().iter().zip(offsets(&parts)) {
            let is_there = staged.has(offset, part) || here.copy(part, offset, &mut *staged)?;
            if is_there { there += u64::from(part.size) } else { needed.push((offset, *part)) }
        }
        let mut progress = |done: u64| events(Event::Progress(there + done, sig.size));
        progress(0);
        self.remote.download(&needed, &mut *staged, &mut progress).await?;
        staged.sync().map_err(|error| PlaceError::io("cannot write it", error))?;
        Ok(staged.into_content())
    }

    fn remove(&mut self, name: &Name, local: Option<&Local>, report: &mut Report) -> Result<(), Undone> {
        if let Some(local) = local {
            self.place(name)?.remove(&name.1, local)?;
        }
        match self.entries.get(name).and_then(|entry| entry.head.clone()) {
            Some(head) => self.came(name, head, None, report)?,
            None => {
                report.pulled += 1;
                self.agree(name, None)?;
            }
        }
        Ok(())
    }

    /// Notes when what went and came, and what waits.
    fn note_kinds(&mut self, report: &Report) -> Result<(), ClientError> {
        let now_ms = self.clock.now_ms();
        let kinds: Vec<_> = self.places.keys().copied().collect();
        for kind in kinds {
            let known = self.index.kind(kind)?;
            let problems = report.problems.iter().filter(|(of, _)| *of == kind).count() as u64;
            let at = |when: u64, what: u64| if what > 0 || when == 0 { now_ms } else { when };
            let state = KindState {
                pushed_ms: at(known.pushed_ms, report.pushed),
                pulled_ms: at(known.pulled_ms, report.pulled),
                pending: report.unsettled,
                problems,
            };
            self.index.set_kind(kind, state)?;
        }
        Ok(())
    }
}

/// One half of it is of one, the other of the other.
fn is_mixture(local: &Sig, base: &Sig, head: &Sig) -> bool {
    let content = |a: &Sig, b: &Sig| a.digest == b.digest && a.size == b.size;
    local != base
        && local != head
        && (content(local, base) && local.meta == head.meta || content(local, head) && local.meta == base.meta)
}

fn broken() -> Undone {
    Undone::Item("the relay's content is not what it says; look at the relay's log".into())
}

/// Parts of what lies here.
struct Here {
    parts: HashMap<Digest, u64>,
    source: Option<Box<dyn super::place::Source>>,
}

impl Here {
    fn look(place: &mut dyn Place, key: &ItemKey, local: Option<&Local>) -> Self {
        let nothing = Self { parts: HashMap::new(), source: None };
        let Some(local) = local.filter(|local| local.sig.size > INLINE_BYTES as u64) else { return nothing };
        let (Ok(parts), Ok(source)) = (place.parts(key, local), place.open(key, local)) else { return nothing };
        let known = parts.all().iter().zip(offsets(&parts)).map(|(part, offset)| (part.digest, offset)).collect();
        Self { parts: known, source: Some(source) }
    }

    /// Copies a part that lies here. False: it does not.
    fn copy(
        &mut self,
        part: &belay_protocol::item::Part,
        to: u64,
        staged: &mut dyn super::place::Staged,
    ) -> Result<bool, PlaceError> {
        let (Some(from), Some(source)) = (self.parts.get(&part.digest), &mut self.source) else { return Ok(false) };
        match source.read(*from, part.size) {
            Ok(bytes) if Digest::of(&bytes) == part.digest => {
                staged.write(to, &bytes).map_err(|error| PlaceError::io("cannot write it", error))?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
