//! The items of a device, in memory; they outlive its process.

use super::{World, lock};
use belay_client::sync::cut;
use belay_client::sync::place::{Content, Known, Local, Place, PlaceError, Problem, Scan, Sig, Source, Staged, Stamp};
use belay_protocol::item::{Digest, ItemKey, ItemKind, Part, Parts};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) content: Bytes,
    stamp: u64,
}

/// The documents, or the settings, of a device; they outlive its process.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub(super) files: BTreeMap<ItemKey, File>,
    stamps: u64,
    /// Content that arrives, by its digest.
    pub(super) arriving: BTreeMap<Digest, Vec<u8>>,
    /// What the user wrote and has not overwritten or deleted himself.
    pub(super) written: BTreeMap<ItemKey, Digest>,
}

pub(super) fn sig(content: &Bytes) -> Sig {
    cut::sig(ItemKind::DOCUMENT, content.len() as u64, &content[..], String::new()).unwrap()
}

impl Documents {
    pub(super) fn set(&mut self, key: &ItemKey, content: Bytes) -> u64 {
        self.stamps += 1;
        self.files.insert(key.clone(), File { content, stamp: self.stamps });
        self.stamps
    }

    pub(super) fn write(&mut self, key: &ItemKey, content: Bytes) {
        self.written.insert(key.clone(), sig(&content).digest);
        self.set(key, content);
    }

    pub(super) fn delete(&mut self, key: &ItemKey) {
        self.files.remove(key);
        self.written.remove(key);
    }

    pub(super) fn rename(&mut self, from: &ItemKey, to: &ItemKey) {
        let Some(file) = self.files.get(from).cloned() else { return };
        let written = self.written.get(from).copied();
        self.delete(from);
        self.set(to, file.content);
        match written {
            Some(digest) => self.written.insert(to.clone(), digest),
            None => self.written.remove(to),
        };
    }
}

pub(super) struct SimPlace {
    pub(super) kind: ItemKind,
    pub(super) world: Arc<World>,
    pub(super) documents: Arc<Mutex<Documents>>,
}

struct InMemory(Bytes);

impl Source for InMemory {
    fn read(&mut self, offset: u64, len: u32) -> std::io::Result<Bytes> {
        let from = usize::try_from(offset).unwrap();
        Ok(self.0.slice(from..from + len as usize))
    }
}

struct Arriving {
    digest: Digest,
    pub(super) world: Arc<World>,
    pub(super) documents: Arc<Mutex<Documents>>,
}

impl Staged for Arriving {
    fn has(&mut self, offset: u64, part: &Part) -> bool {
        let documents = lock(&self.documents);
        let from = usize::try_from(offset).unwrap();
        let there = documents.arriving.get(&self.digest).and_then(|bytes| bytes.get(from..from + part.size as usize));
        there.is_some_and(|bytes| Digest::of(bytes) == part.digest)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.world.step();
        let mut documents = lock(&self.documents);
        let from = usize::try_from(offset).unwrap();
        let arriving = documents.arriving.get_mut(&self.digest).unwrap();
        arriving[from..from + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn into_content(self: Box<Self>) -> Content {
        let bytes = lock(&self.documents).arriving.get(&self.digest).cloned().unwrap_or_default();
        Content::Bytes(bytes.into())
    }
}

impl SimPlace {
    /// The content of a file that is as it was.
    fn content(&self, key: &ItemKey, local: &Local) -> Result<Bytes, PlaceError> {
        match lock(&self.documents).files.get(key) {
            Some(file) if file.stamp.to_string() == local.stamp.0 => Ok(file.content.clone()),
            _ => Err(PlaceError::Changed),
        }
    }
}

impl Place for SimPlace {
    fn scan(&mut self, known: &Known) -> Result<Scan, PlaceError> {
        self.world.step();
        let mut scan = Scan::default();
        for (key, file) in &lock(&self.documents).files {
            let stamp = Stamp(file.stamp.to_string());
            let sig = match known.get(key) {
                Some((then, sig)) if *then == stamp => sig.clone(),
                _ => sig(&file.content),
            };
            scan.items.insert(key.clone(), Local { sig, stamp, modified_ms: 0 });
        }
        Ok(scan)
    }

    fn open(&mut self, key: &ItemKey, local: &Local) -> Result<Box<dyn Source>, PlaceError> {
        self.world.step();
        Ok(Box::new(InMemory(self.content(key, local)?)))
    }

    fn parts(&mut self, key: &ItemKey, local: &Local) -> Result<Parts, PlaceError> {
        let content = self.content(key, local)?;
        Ok(belay_protocol::cut::parts(ItemKind::DOCUMENT, content.len() as u64, &content[..]).unwrap())
    }

    fn stage(&mut self, digest: Digest, size: u64) -> Result<Box<dyn Staged>, PlaceError> {
        let size = usize::try_from(size).unwrap();
        lock(&self.documents).arriving.entry(digest).or_default().resize(size, 0);
        Ok(Box::new(Arriving { digest, world: self.world.clone(), documents: self.documents.clone() }))
    }

    fn put(
        &mut self,
        key: &ItemKey,
        content: Content,
        sig: &Sig,
        expected: Option<&Local>,
        _: u64,
    ) -> Result<Stamp, PlaceError> {
        self.world.step();
        let Content::Bytes(bytes) = content else { panic!("everything is in memory") };
        let stamp = {
            let mut documents = lock(&self.documents);
            let there = documents.files.get(key).map(|file| file.stamp.to_string());
            if there.as_ref() != expected.map(|local| &local.stamp.0) {
                return Err(PlaceError::Changed);
            }
            assert_eq!(self::sig(&bytes), *sig, "what arrives is what was announced");
            documents.arriving.remove(&sig.digest);
            documents.set(key, bytes)
        };
        self.world.step();
        Ok(Stamp(stamp.to_string()))
    }

    fn remove(&mut self, key: &ItemKey, expected: &Local) -> Result<(), PlaceError> {
        self.world.step();
        self.content(key, expected)?;
        lock(&self.documents).files.remove(key);
        self.world.step();
        Ok(())
    }

    fn set_aside(&mut self, key: &ItemKey, to: &ItemKey, expected: &Local) -> Result<Stamp, PlaceError> {
        self.world.step();
        let content = self.content(key, expected)?;
        let stamp = {
            let mut documents = lock(&self.documents);
            if documents.files.contains_key(to) || self.kind == ItemKind::SETTING {
                return Err(PlaceError::Taken("taken".into()));
            }
            documents.files.remove(key);
            documents.set(to, content)
        };
        self.world.step();
        Ok(Stamp(stamp.to_string()))
    }

    fn ready(&mut self, key: &ItemKey, expected: Option<&Local>) -> Result<(), PlaceError> {
        match expected {
            Some(local) => self.content(key, local).map(|_| ()),
            None => Ok(()),
        }
    }

    fn tidy(&mut self, _: &dyn Fn(&ItemKey, &Sig) -> bool) -> Result<Vec<Problem>, PlaceError> {
        Ok(vec![])
    }
}
