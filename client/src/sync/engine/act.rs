//! Doing what was decided: what lies here goes to the relay, and what became of it is noted.

use super::{Engine, Event, Events, Report, Scans};
use crate::error::ClientError;
use crate::sync::index::{Entry, Name, Pending};
use crate::sync::place::{Local, Place, PlaceError, Problem};
use crate::sync::reconcile::{Action, Base};
use crate::sync::remote::{Remote, TransferError, is_about_the_item};
use belay_protocol::id::RevisionId;
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKey};
use belay_protocol::message::{Failed, PushOutcome, SyncContent, SyncPush, SyncPushed};
use bytes::Bytes;

/// Pushes that are sent together, and their bytes.
const TOGETHER: usize = 256;
const BYTES_TOGETHER: usize = 4 << 20;

/// Why an action was not done.
pub(super) enum Undone {
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

pub(super) fn words(failed: &Failed) -> String {
    if failed.remedy.is_empty() { failed.message.clone() } else { format!("{}; {}", failed.message, failed.remedy) }
}

impl<R: Remote> Engine<R> {
    pub(super) async fn act(
        &mut self,
        scans: &Scans,
        actions: Vec<(Name, Action)>,
        report: &mut Report,
        events: &mut Events<'_>,
    ) -> Result<(), ClientError> {
        let local = |name: &Name| scans.get(&name.0).and_then(|scan| scan.items.get(&name.1));
        let (agreed, actions): (Vec<_>, Vec<_>) = actions.into_iter().partition(|(_, action)| *action == Action::Agree);
        self.index.begin()?;
        agreed.iter().try_for_each(|(name, _)| self.agree(name, local(name)))?;
        self.index.commit()?;
        // What is small does not wait for what is large.
        let is_large = |(name, action): &(Name, Action)| match action {
            Action::Push => local(name).is_some_and(|local| local.sig.size > INLINE_BYTES as u64),
            Action::Fetch => self.entries.get(name).is_some_and(|entry| entry.inline.is_none()),
            _ => false,
        };
        let (large, small): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_large);
        let (mut batch, mut bytes) = (vec![], 0);
        for (name, action) in small {
            if !matches!(action, Action::Push | Action::Delete) {
                self.act_on(name, action, local, report, events).await?;
                continue;
            }
            let local = local(&name);
            bytes += local.map_or(0, |local| local.sig.size as usize);
            batch.push((name, local));
            if batch.len() >= TOGETHER || bytes >= BYTES_TOGETHER {
                self.push_small(std::mem::take(&mut batch), report, events).await?;
                bytes = 0;
            }
        }
        self.push_small(batch, report, events).await?;
        for (name, action) in large {
            self.act_on(name, action, local, report, events).await?;
        }
        Ok(())
    }

    /// Does one thing by itself.
    async fn act_on<'s>(
        &mut self,
        name: Name,
        action: Action,
        local: impl Fn(&Name) -> Option<&'s Local>,
        report: &mut Report,
        events: &mut Events<'_>,
    ) -> Result<(), ClientError> {
        let local = local(&name);
        events(Event::Begins(name.0, name.1.clone(), action));
        let done = match action {
            Action::Push => self.push_large(&name, local, report, events).await,
            Action::Fetch => self.fetch(&name, local, report, events).await,
            _ => self.remove(&name, local, report),
        };
        match done {
            // A push says itself what became of it.
            Ok(()) if action == Action::Push => {}
            Ok(()) => events(Event::Done(name.0, name.1, action)),
            Err(undone) => self.undone(&name, undone, report)?,
        }
        Ok(())
    }

    pub(super) fn undone(&mut self, name: &Name, undone: Undone, report: &mut Report) -> Result<(), ClientError> {
        match undone {
            Undone::Fatal(error) => return Err(error),
            Undone::Item(why) => report.problems.push((name.0, Problem { key: name.1.to_string(), why })),
            Undone::Again => report.of(name.0).unsettled += 1,
        }
        Ok(())
    }

    /// Both sides have the same.
    pub(super) fn agree(&mut self, name: &Name, local: Option<&Local>) -> Result<(), ClientError> {
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
    fn revision(&self, name: &Name, local: Option<&Local>) -> Result<Pending, ClientError> {
        let sig = local.map(|local| &local.sig);
        let modified_ms = local.map_or_else(|| self.clock.now_ms(), |local| local.modified_ms);
        let parent = self.entries.get(name).and_then(|entry| entry.base.as_ref()).map(|base| base.revision);
        let noted = self.index.pending(name)?;
        if let Some(noted) = noted.into_iter().find(|one| one.sig.as_ref() == sig && one.parent == parent) {
            return Ok(noted);
        }
        let pending = Pending { revision: RevisionId(self.random.bytes()), parent, sig: sig.cloned(), modified_ms };
        self.index.push(name, &pending)?;
        Ok(pending)
    }

    fn message(&self, (kind, key): &Name, pending: &Pending, content: SyncContent) -> SyncPush {
        let sig = pending.sig.clone();
        let (digest, size, meta) =
            sig.map_or((Digest([0; 32]), 0, String::new()), |sig| (sig.digest, sig.size, sig.meta));
        SyncPush {
            revision: pending.revision,
            parent: pending.parent,
            kind: *kind,
            key: key.clone(),
            content,
            modified_ms: pending.modified_ms,
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
                Err(undone) => self.undone(&name, undone, report)?,
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
            let done = match answer {
                Ok(pushed) => self.pushed(&name, local, &pushed, report, events),
                Err(failed) => Err(ClientError::Failed(failed).into()),
            };
            if let Err(undone) = done {
                told = told.and(self.undone(&name, undone, report));
            }
        }
        self.index.commit()?;
        told
    }

    fn small_message(&mut self, name: &Name, local: Option<&Local>) -> Result<SyncPush, Undone> {
        let Some(local) = local else {
            let pending = self.revision(name, None)?;
            return Ok(self.message(name, &pending, SyncContent::NONE));
        };
        let mut source = self.place(name)?.open(&name.1, local)?;
        let size = u32::try_from(local.sig.size).unwrap_or(u32::MAX);
        let bytes = if size == 0 { Bytes::new() } else { source.read(0, size).map_err(|_| Undone::Again)? };
        if Digest::of(&bytes) != local.sig.digest {
            return Err(Undone::Again);
        }
        let pending = self.revision(name, Some(local))?;
        Ok(SyncPush { inline: bytes.into(), ..self.message(name, &pending, SyncContent::INLINE) })
    }

    pub(super) fn place(&mut self, name: &Name) -> Result<&mut Box<dyn Place>, Undone> {
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
        let pending = self.revision(name, Some(local))?;
        let size = local.sig.size;
        let mut progress = |done: u64| events(Event::Progress(done, size));
        self.remote.upload(pending.revision, name.0, &parts, &mut *source, &mut progress).await?;
        let push = self.message(name, &pending, SyncContent::PARTS);
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
        report.of(name.0).pushed += 1;
        let mut entry = self.entries.get(name).cloned().unwrap_or_default();
        let mut aside = Ok(());
        match pushed.outcome {
            PushOutcome::KEPT => {
                // Nothing lies here; the edit comes.
                (entry.base, entry.stamp) = (None, None);
                events(Event::Kept(name.0, name.1.clone()));
            }
            PushOutcome::CONFLICT => {
                report.of(name.0).conflicts += 1;
                events(Event::Conflict(name.0, name.1.clone(), pushed.copy.clone()));
                // What lies here is at the relay; what is there comes.
                entry.base = Some(Base { revision: pushed.revision, sig });
                entry.stamp = stamp;
                if let (Some(copy), Some(local)) = (&pushed.copy, local) {
                    aside = self.set_aside(name, copy, (local, pushed.revision), &mut entry);
                }
            }
            _ => {
                let action = if sig.is_some() { Action::Push } else { Action::Delete };
                events(Event::Done(name.0, name.1.clone(), action));
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
        // Noted whatever became of the file: what was pushed is at the relay.
        self.index.put(name, &entry)?;
        self.entries.insert(name.clone(), entry);
        self.index.confirmed(name)?;
        aside
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
}
