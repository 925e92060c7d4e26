//! A settings file: a JSON object, whose keys are items each. The order of its keys, and how values are written, stays.

use super::disk::{Root, modified_ms, stamp};
use super::place::{Content, Known, Local, Place, PlaceError, Problem, Scan, Sig, Source, Staged, Stamp, Unknown};
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKey, KeyError, Parts};
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
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

/// A value as it is written, without the blanks between its parts: that is what both sides compare, and what is sent.
fn canonical(raw: &RawValue) -> Vec<u8> {
    let (mut bytes, mut in_text, mut escaped) = (vec![], false, false);
    for byte in raw.get().bytes() {
        if !in_text && byte.is_ascii_whitespace() {
            continue;
        }
        in_text ^= byte == b'"' && !escaped;
        escaped = in_text && byte == b'\\' && !escaped;
        bytes.push(byte);
    }
    bytes
}

/// What a key of a path may not have, and a settings file's key may.
const NOT_IN_KEYS: &AsciiSet =
    &CONTROLS.add(b'%').add(b'\\').add(b':').add(b'*').add(b'?').add(b'"').add(b'<').add(b'>').add(b'|').add(b' ');

/// The item of a key of the file.
fn item_of(name: &str) -> Result<ItemKey, KeyError> {
    utf8_percent_encode(name, NOT_IN_KEYS).to_string().parse()
}

/// The key in the file that an item has.
fn name_of(key: &ItemKey) -> String {
    percent_decode_str(key.as_str()).decode_utf8_lossy().into_owned()
}

/// A settings file.
#[derive(Debug)]
pub struct Settings {
    path: PathBuf,
    root: Root,
}

impl Settings {
    /// The file at a path.
    pub fn new(path: &Path, mark: &str) -> Self {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self { path: path.to_owned(), root: Root::new(folder, mark) }
    }

    /// Makes the file if it is not there. Errors: it is there and makes no sense.
    pub fn set_up(&self) -> Result<(), PlaceError> {
        self.root.set_up()?;
        if fs::symlink_metadata(&self.path).is_err() {
            let new = self.root.write_new(b"{}\n")?;
            self.root.replace(&new, &self.path, None)?;
        }
        self.read().map(|_| ())
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
        let name = name_of(key);
        let there = object.0.iter().find(|(there, _)| *there == name).map(|(_, value)| canonical(value));
        if there.map(|bytes| Digest::of(&bytes)) != expected.map(|local| local.sig.digest) {
            return Err(PlaceError::Changed);
        }
        change(&mut object.0)?;
        let text = object.text().map_err(|error| PlaceError::Unfit(error.to_string()))?;
        let new = self.root.write_new(text.as_bytes())?;
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
            let key = match item_of(&name) {
                Ok(key) => key,
                Err(error) => {
                    problem(error.why.into());
                    continue;
                }
            };
            let bytes = canonical(&value);
            if bytes.len() <= INLINE_BYTES {
                let sig = Sig { digest: Digest::of(&bytes), size: bytes.len() as u64, meta: String::new() };
                scan.items.insert(key, Local { sig, stamp: Stamp::default(), modified_ms });
            } else {
                problem(format!("it has {} bytes, at most {INLINE_BYTES} are synced", bytes.len()));
                scan.unknown.insert(key, Unknown::Hidden);
            }
        }
        Ok(scan)
    }

    fn open(&mut self, key: &ItemKey, local: &Local) -> Result<Box<dyn Source>, PlaceError> {
        let (object, ..) = self.read()?;
        let name = name_of(key);
        let value = object.0.iter().find(|(there, _)| *there == name).ok_or(PlaceError::Changed)?;
        let bytes = canonical(&value.1);
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
            let name = name_of(key);
            match object.iter_mut().find(|(there, _)| *there == name) {
                Some((_, there)) => *there = value,
                None => object.push((name, value)),
            }
            Ok(())
        })?;
        Ok(Stamp::default())
    }

    fn remove(&mut self, key: &ItemKey, expected: &Local) -> Result<(), PlaceError> {
        self.change(key, Some(expected), |object| {
            let gone = name_of(key);
            object.retain(|(name, _)| *name != gone);
            Ok(())
        })
    }

    fn set_aside(&mut self, _: &ItemKey, _: &ItemKey, _: &Local) -> Result<Stamp, PlaceError> {
        Err(PlaceError::Taken("a setting has no other name".into()))
    }

    fn ready(&mut self, _: &ItemKey, _: Option<&Local>) -> Result<(), PlaceError> {
        self.root.check()
    }

    fn tidy(&mut self, _: &dyn Fn(&ItemKey, &Sig) -> bool) -> Result<Vec<Problem>, PlaceError> {
        self.root.check()?;
        self.root.tidy(|_, _| false)
    }
}
