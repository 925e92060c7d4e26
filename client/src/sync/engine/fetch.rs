//! Bringing here what the relay has.

use super::act::{Undone, words};
use super::{Engine, Event, Events, Report};
use crate::error::ClientError;
use crate::sync::index::Name;
use crate::sync::place::{Content, Local, Place, PlaceError, Sig, Source, Staged, Stamp};
use crate::sync::reconcile::Head;
use crate::sync::remote::Remote;
use crate::sync::transfer::offsets;
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKey, Part, Parts};
use belay_protocol::message::{FailureCode, SyncContent};
use bytes::Bytes;
use std::collections::HashMap;

impl<R: Remote> Engine<R> {
    /// Brings the relay's content here.
    pub(super) async fn fetch(
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
        self.place(name)?.ready(&name.1, local)?;
        let content = match entry.inline {
            Some(bytes) if Digest::of(&bytes) != sig.digest => return Err(broken()),
            Some(bytes) => Content::Bytes(bytes.into()),
            None => self.receive(name, local, (&head, &sig), events).await.map_err(of_the_item)?,
        };
        let stamp = self.place(name)?.put(&name.1, content, &sig, local, entry.modified_ms)?;
        self.came(name, head, Some(stamp), report)?;
        Ok(())
    }

    pub(super) fn came(
        &mut self,
        name: &Name,
        head: Head,
        stamp: Option<Stamp>,
        report: &mut Report,
    ) -> Result<(), ClientError> {
        report.of(name.0).pulled += 1;
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

    pub(super) fn remove(&mut self, name: &Name, local: Option<&Local>, report: &mut Report) -> Result<(), Undone> {
        if let Some(local) = local {
            self.place(name)?.remove(&name.1, local)?;
        }
        match self.entries.get(name).and_then(|entry| entry.head.clone()) {
            Some(head) => self.came(name, head, None, report)?,
            None => {
                report.of(name.0).pulled += 1;
                self.agree(name, None)?;
            }
        }
        Ok(())
    }
}

/// What the relay cannot give of one item, or gives wrongly, is nothing that others have to do with.
fn of_the_item(undone: Undone) -> Undone {
    match undone {
        Undone::Fatal(ClientError::Failed(failed)) if failed.code == FailureCode::STORE_UNAVAILABLE => {
            Undone::Item(words(&failed))
        }
        Undone::Fatal(ClientError::Protocol(error)) => Undone::Item(error.to_string()),
        other => other,
    }
}

fn broken() -> Undone {
    Undone::Item("the relay's content is not what it says; look at the relay's log".into())
}

/// Parts of what lies here.
struct Here {
    parts: HashMap<Digest, u64>,
    source: Option<Box<dyn Source>>,
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
    fn copy(&mut self, part: &Part, to: u64, staged: &mut dyn Staged) -> Result<bool, PlaceError> {
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
