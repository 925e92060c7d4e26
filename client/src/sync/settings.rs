//! A settings file: a JSON object, whose keys are items each. The order of its keys, and how values are written, stays.

use super::disk::{Root, look, modified_ms, stamp};
use super::place::{Content, Known, Local, Place, PlaceError, Problem, Scan, Sig, Source, Staged, Stamp, Unknown};
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKey, Parts};
use bytes::Bytes;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The most bytes of a settings file.
const MAX_FILE: u64 = 16 << 20;

/// The keys of an object with their values, as they stand in the file.
#[derive(Debug, Default)]
struct Object(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a setting under each key")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let (mut object, mut seen) = (vec![], HashSet::new());
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
                    }
                    object.push((key, value));
                }
                Ok(Object(object))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

impl Object {
    fn text(&self) -> Result<String, serde_json::Error> {
        if self.0.is_empty() {
            return Ok("{}\n".into());
        }
        let mut lines = vec![];
        for (key, value) in &self.0 {
            lines.push(format!("  {}: {}", serde_json::to_string(key)?, value.get()));
        }
        Ok(format!("{{\n{}\n}}\n", lines.join(",\n")))
    }
}

/// A value in the one form that both sides compare.
fn canonical(raw: &RawValue) -> Result<Vec<u8>, serde_json::Error> {
    let value: Value = serde_json::from_str(raw.get())?;
    let mut bytes = vec![];
    value.serialize(&mut serde_json::Serializer::new(&mut bytes))?;
    Ok(bytes)
}

/// A settings file.
#[derive(Debug)]
pub struct Settings {
    path: PathBuf,
    root: Root,
}

impl Settings {
    /// The file at a path.
    pub fn new(path: &Path) -> Self {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self { path: path.to_owned(), root: Root { path: folder.to_owned() } }
    }

    /// Makes the file if it is not there.
    pub fn set_up(path: &Path) -> Result<(), PlaceError> {
        let settings = Self::new(path);
        Root::set_up(&settings.root.path)?;
        if fs::symlink_metadata(path).is_err() {
            let new = settings.root.write_new(b"{}\n")?;
            settings.root.replace(&new, path, None)?;
        }
        settings.read().map(|_| ())
    }

    /// What stands in the file, what it looks like, and when it was changed.
    fn read(&self) -> Result<(Object, Stamp, u64), PlaceError> {
        let shown = self.path.display();
        let meta = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let why = format!("{shown} is not there; to delete all settings, let it be {{}}");
                return Err(PlaceError::Missing(why));
            }
            other => other.map_err(|error| PlaceError::io(format!("cannot look at {shown}"), error))?,
        };
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.is_symlink()) {
            return Err(PlaceError::Unfit(format!(
                "{shown} is a link, and links are not followed; name the file itself"
            )));
        }
        let mut text = String::new();
        let read = File::open(&self.path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
        read.map_err(|error| PlaceError::io(format!("cannot read {shown}"), error))?;
        if text.len() as u64 > MAX_FILE {
            return Err(PlaceError::Unfit(format!("{shown} has more than {MAX_FILE} bytes")));
        }
        let object = serde_json::from_str(&text)
            .map_err(|error| PlaceError::Unfit(format!("{shown} is not whole, or no JSON object: {error}")))?;
        Ok((object, stamp(&meta), modified_ms(&meta)))
    }

    /// Changes the file, if a key has the value that is expected.
    fn change(
        &self,
        key: &ItemKey,
        expected: Option<&Local>,
        change: impl FnOnce(&mut Vec<(String, Box<RawValue>)>) -> Result<(), PlaceError>,
    ) -> Result<(), PlaceError> {
        let (mut object, before, _) = self.read()?;
        let there = object.0.iter().find(|(name, _)| name == key.as_str()).map(|(_, value)| canonical(value));
        let there = there.transpose().map_err(|error| PlaceError::Unfit(error.to_string()))?;
        if there.map(|bytes| Digest::of(&bytes)) != expected.map(|local| local.sig.digest) {
            return Err(PlaceError::Changed);
        }
        change(&mut object.0)?;
        let text = object.text().map_err(|error| PlaceError::Unfit(error.to_string()))?;
        let new = self.root.write_new(text.as_bytes())?;
        if let Ok(meta) = fs::metadata(&self.path) {
            let _ = fs::set_permissions(&new, meta.permissions());
        }
        self.root.replace(&new, &self.path, Some(&before))?;
        Ok(())
    }
}

/// A value in memory.
struct InMemory(Bytes);

impl Source for InMemory {
    fn read(&mut self, offset: u64, len: u32) -> io::Result<Bytes> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let until = from.saturating_add(len as usize);
        if until > self.0.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.0.slice(from..until))
    }
}

impl Place for Settings {
    fn scan(&mut self, _: &Known) -> Result<Scan, PlaceError> {
        self.root.check()?;
        let (object, _, modified_ms) = self.read()?;
        let mut scan = Scan::default();
        for (name, value) in object.0 {
            let mut problem = |why: String| scan.problems.push(Problem { key: name.clone(), why });
            let key = match name.parse::<ItemKey>() {
                Ok(key) => key,
                Err(error) => {
                    problem(error.why.into());
                    continue;
                }
            };
            match canonical(&value) {
                Ok(bytes) if bytes.len() <= INLINE_BYTES => {
                    let sig = Sig { digest: Digest::of(&bytes), size: bytes.len() as u64, meta: String::new() };
                    scan.items.insert(key, Local { sig, stamp: Stamp::default(), modified_ms });
                }
                Ok(bytes) => {
                    problem(format!("it has {} bytes, at most {INLINE_BYTES} are synced", bytes.len()));
                    scan.unknown.insert(key, Unknown::Hidden);
                }
                Err(error) => {
                    problem(error.to_string());
                    scan.unknown.insert(key, Unknown::Hidden);
                }
            }
        }
        Ok(scan)
    }

    fn open(&mut self, key: &ItemKey, local: &Local) -> Result<Box<dyn Source>, PlaceError> {
        let (object, ..) = self.read()?;
        let value = object.0.iter().find(|(name, _)| name == key.as_str()).ok_or(PlaceError::Changed)?;
        let bytes = canonical(&value.1).map_err(|error| PlaceError::Unfit(error.to_string()))?;
        if Digest::of(&bytes) == local.sig.digest {
            Ok(Box::new(InMemory(bytes.into())))
        } else {
            Err(PlaceError::Changed)
        }
    }

    fn parts(&mut self, _: &ItemKey, _: &Local) -> Result<Parts, PlaceError> {
        Err(PlaceError::Unfit("a setting has no parts".into()))
    }

    fn stage(&mut self, _: Digest, size: u64) -> Result<Box<dyn Staged>, PlaceError> {
        Err(PlaceError::Unfit(format!("a setting of {size} bytes arrives; at most {INLINE_BYTES} are allowed")))
    }

    fn put(
        &mut self,
        key: &ItemKey,
        content: Content,
        _: &Sig,
        expected: Option<&Local>,
        _: u64,
    ) -> Result<Stamp, PlaceError> {
        let Content::Bytes(bytes) = content else { return Err(PlaceError::Unfit("a setting came as a file".into())) };
        let unfit = |_| PlaceError::Unfit("what arrived is no JSON value".into());
        let value: Box<RawValue> = serde_json::from_slice(&bytes).map_err(unfit)?;
        self.change(key, expected, |object| {
            match object.iter_mut().find(|(name, _)| name == key.as_str()) {
                Some((_, there)) => *there = value,
                None => object.push((key.to_string(), value)),
            }
            Ok(())
        })?;
        Ok(Stamp::default())
    }

    fn remove(&mut self, key: &ItemKey, expected: &Local) -> Result<(), PlaceError> {
        self.change(key, Some(expected), |object| {
            object.retain(|(name, _)| name != key.as_str());
            Ok(())
        })
    }

    fn set_aside(&mut self, _: &ItemKey, _: &ItemKey, _: &Local) -> Result<Stamp, PlaceError> {
        Err(PlaceError::Taken("a setting has no other name".into()))
    }

    fn tidy(&mut self) -> Result<(), PlaceError> {
        look(&self.path).map(|_| ())?;
        self.root.tidy()
    }
}
