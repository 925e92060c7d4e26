//! What is synced: kinds of items, their keys, and the bytes of their content.
//!
//! A key is checked by whoever sends it and by whoever receives it: it becomes the path of a file on computers
//! that are not the sender's.

use crate::error::codes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

codes! {
    /// What an item is.
    ItemKind(u16) {
        /// One key of the settings; its content is a JSON value.
        SETTING = 1, "setting";
        /// A file of the knowledge folder.
        DOCUMENT = 2, "document";
        /// A LoRA adapter: its content is the safetensors file, its `meta` the `adapter_config.json`.
        ADAPTER = 3, "adapter";
        /// A conversation. It changes by messages (session streams), never by a push.
        HISTORY = 4, "history";
    }
}

impl ItemKind {
    /// The most bytes that the content of such an item may have; 0: it cannot be pushed.
    #[must_use]
    pub fn most_bytes(self) -> u64 {
        match self {
            Self::SETTING => INLINE_BYTES as u64,
            Self::DOCUMENT => 512 << 20,
            Self::ADAPTER => 2 << 30,
            _ => 0,
        }
    }
}

/// Content of at most so many bytes travels in the message itself, larger one in parts.
pub const INLINE_BYTES: usize = 32 << 10;
/// The most bytes of an item's `meta`.
pub const META_BYTES: usize = 64 << 10;
/// The size of an adapter's parts; the last one is shorter.
pub const ADAPTER_PART: u32 = 1 << 20;
/// The fewest bytes of a part that is not the last.
pub const MIN_PART: u32 = 4 << 10;
/// The most bytes of one part.
pub const MAX_PART: u32 = 1 << 20;
/// The most bytes of a part that are sent in one frame: what is lost of it with a tunnel.
pub const PIECE: usize = 32 << 10;
/// The most parts of an item.
pub const MAX_PARTS: usize = 20_000;
/// The most bytes of a key, and of one name in it.
pub const MAX_KEY: usize = 1024;
/// The most bytes of one name in a key.
pub const MAX_NAME: usize = 240;
/// The most names in a key.
pub const MAX_DEPTH: usize = 32;

/// Where documents are cut, by content: smallest, usual and largest part. Larger documents have larger parts, so
/// that none has more than [`MAX_PARTS`].
#[must_use]
pub fn document_parts(size: u64) -> (u32, u32, u32) {
    if size <= 64 << 20 { (4 << 10, 16 << 10, 64 << 10) } else { (32 << 10, 128 << 10, 512 << 10) }
}

/// Why a text is not a key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{key:?} cannot be synced: {why}")]
pub struct KeyError {
    /// The beginning of it.
    pub key: String,
    /// What is wrong, for people.
    pub why: &'static str,
}

/// The name of an item within its kind: for documents a relative path with `/` between its names, for adapters the
/// name of their directory.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ItemKey(String);

impl ItemKey {
    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of a copy that is set aside: `name (conflict LABEL).ext`, and a number where that is taken too.
    #[must_use]
    pub fn beside(&self, label: &str, number: u32) -> Self {
        let (folder, name) = self.0.rsplit_once('/').map_or(("", self.0.as_str()), |(folder, name)| (folder, name));
        let (stem, ending) = match name.rsplit_once('.') {
            Some((stem, ending)) if !stem.is_empty() && ending.len() <= 16 => (stem, format!(".{ending}")),
            _ => (name, String::new()),
        };
        let mark = if number < 2 { format!(" (conflict {label})") } else { format!(" (conflict {label} {number})") };
        let in_folder = |folder: &str| {
            let slash = if folder.is_empty() { "" } else { "/" };
            let before = folder.len() + slash.len();
            let room = MAX_NAME.min(MAX_KEY.saturating_sub(before)).checked_sub(mark.len() + ending.len())?;
            let stem = stem[..stem.floor_char_boundary(room.min(stem.len()))].trim_end();
            let key = format!("{folder}{slash}{stem}{mark}{ending}");
            (!stem.is_empty()).then(|| Self::try_from(key).ok()).flatten()
        };
        // Where the path leaves no room for another name, the copy lies further up.
        let mut folders = std::iter::successors(Some(folder), |folder| {
            (!folder.is_empty()).then(|| folder.rsplit_once('/').map_or("", |(above, _)| above))
        });
        folders.find_map(in_folder).unwrap_or_else(|| Self(format!("conflict {number}")))
    }
}

/// Names that mean devices on Windows, whatever their ending.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

fn why_no_name(name: &str) -> Option<&'static str> {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    let numbered = |prefix: &str| {
        stem.strip_prefix(prefix).is_some_and(|digit| digit.len() == 1 && matches!(digit.as_bytes()[0], b'1'..=b'9'))
    };
    if name.is_empty() {
        Some("it has an empty name in it")
    } else if name == "." || name == ".." {
        Some("it leads out of its folder")
    } else if name.len() > MAX_NAME {
        Some("a name in it has more than 240 bytes")
    } else if name.chars().any(char::is_control) {
        Some("it has control characters")
    } else if name.contains(['\\', ':', '*', '?', '"', '<', '>', '|']) {
        Some("it has one of \\ : * ? \" < > |, which not all computers can have in a file's name")
    } else if name.ends_with('.') || name.ends_with(' ') || name.starts_with(' ') {
        Some("a name in it begins or ends with a blank, or ends with a dot")
    } else if DEVICES.contains(&stem.as_str()) || numbered("com") || numbered("lpt") {
        Some("a name in it is reserved on Windows")
    } else if name.starts_with(".belay") {
        Some("names that begin with .belay are for belay itself")
    } else {
        None
    }
}

impl TryFrom<String> for ItemKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        let why = if text.len() > MAX_KEY {
            Some("it has more than 1024 bytes")
        } else if text.split('/').count() > MAX_DEPTH {
            Some("it has more than 32 names")
        } else {
            text.split('/').find_map(why_no_name)
        };
        match why {
            None => Ok(Self(text)),
            Some(why) => Err(KeyError { key: text.chars().take(80).collect(), why }),
        }
    }
}

impl FromStr for ItemKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::try_from(text.to_owned())
    }
}

impl From<ItemKey> for String {
    fn from(key: ItemKey) -> Self {
        key.0
    }
}

impl fmt::Display for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// That of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A piece of an item's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Part {
    /// Of its bytes.
    pub digest: Digest,
    /// How many there are.
    pub size: u32,
}

/// Why bytes are not a list of parts.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the list of parts is not usable: {0}")]
pub struct PartsError(pub &'static str);

/// The parts of an item, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts(Vec<Part>);

/// Bytes of a part in its list: hash and size.
const PART_BYTES: usize = 36;

impl Parts {
    /// A list. Errors: it has too many parts, or one that is empty or too large.
    pub fn new(parts: Vec<Part>) -> Result<Self, PartsError> {
        if parts.is_empty() || parts.len() > MAX_PARTS {
            return Err(PartsError("it has none, or more than 20000"));
        }
        let (last, others) = parts.split_last().ok_or(PartsError("it has none"))?;
        if last.size == 0
            || last.size > MAX_PART
            || others.iter().any(|part| !(MIN_PART..=MAX_PART).contains(&part.size))
        {
            return Err(PartsError("a part has fewer than 4 KiB and is not the last, or more than 1 MiB"));
        }
        Ok(Self(parts))
    }

    /// Reads a list: for each part its hash and its size, a `u32`, little endian.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PartsError> {
        let (lines, rest) = bytes.as_chunks::<PART_BYTES>();
        if !rest.is_empty() {
            return Err(PartsError("it ends within a part"));
        }
        let read = lines.iter().map(|line| {
            let (mut digest, mut size) = ([0; 32], [0; 4]);
            digest.copy_from_slice(&line[..32]);
            size.copy_from_slice(&line[32..]);
            Part { digest: Digest(digest), size: u32::from_le_bytes(size) }
        });
        Self::new(read.collect())
    }

    /// The list as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * PART_BYTES);
        for part in &self.0 {
            bytes.extend_from_slice(&part.digest.0);
            bytes.extend_from_slice(&part.size.to_le_bytes());
        }
        bytes
    }

    /// Each part.
    #[must_use]
    pub fn all(&self) -> &[Part] {
        &self.0
    }

    /// Bytes of all of them.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.iter().map(|part| u64::from(part.size)).sum()
    }

    /// The digest of content in parts: that of its list.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_paths_that_every_computer_can_have() {
        for good in
            ["a", "notes/2026/plan.md", "ä ö/日本.txt", ".hidden", "a.b.c", &"x".repeat(MAX_NAME), "com10", "comic"]
        {
            assert_eq!(good.parse::<ItemKey>().expect("a key").as_str(), good);
        }
        let deep = vec!["d"; 10_000].join("/");
        let bad = [
            "",
            "/",
            "/etc/passwd",
            "a/",
            "a//b",
            "..",
            "../a",
            "a/../b",
            "a/./b",
            ".",
            "a\0b",
            "a\nb",
            "C:\\x",
            "C:x",
            "a\\b",
            "con",
            "CON.txt",
            "a/nul",
            "lpt1",
            "Com9.log",
            "aux .c",
            "a.",
            "a ",
            " a",
            "a/ b",
            ".belay",
            ".belay-x/a",
            "what?",
            "a*b",
            "a|b",
            &"x".repeat(MAX_NAME + 1),
            &deep,
            &format!("{}a", "long/".repeat(30).repeat(10)),
        ];
        for bad in bad {
            let error = bad.parse::<ItemKey>().expect_err(bad);
            assert!(error.to_string().contains("cannot be synced"), "{error}");
        }
    }

    #[test]
    fn a_copy_is_named_for_where_and_when() {
        let beside = |key: &str, number| key.parse::<ItemKey>().expect("a key").beside("laptop 2026-11-26", number);
        assert_eq!(beside("a/plan.md", 1).as_str(), "a/plan (conflict laptop 2026-11-26).md");
        assert_eq!(beside("plan", 3).as_str(), "plan (conflict laptop 2026-11-26 3)");
        assert_eq!(beside(".env", 1).as_str(), ".env (conflict laptop 2026-11-26)");
        for long in ["x".repeat(MAX_NAME), format!("{}.md", "ü".repeat(110)), format!("{}x", "d/".repeat(31))] {
            let copy = beside(&long[..long.len().min(MAX_NAME)], 12);
            assert!(copy.as_str().parse::<ItemKey>().is_ok(), "{copy}");
        }
        // Where the folder takes all the room that there is.
        for len in 960..=MAX_KEY - 5 {
            let folder = format!("{}/", "d".repeat(200)).repeat(5);
            let key = format!("{}/a.md", &folder[..len.min(folder.len() - 1)]);
            let Ok(key) = key.parse::<ItemKey>() else { continue };
            let copy = key.beside("laptop 2026-11-26", 12);
            assert!(copy.as_str().parse::<ItemKey>().is_ok(), "{copy}");
        }
    }

    #[test]
    fn parts_are_listed_in_order() {
        let parts =
            Parts::new(vec![Part { digest: Digest([1; 32]), size: 4096 }, Part { digest: Digest([2; 32]), size: 9 }]);
        let parts = parts.expect("parts");
        assert_eq!((parts.size(), parts.to_bytes().len()), (4105, 72));
        assert_eq!(Parts::from_bytes(&parts.to_bytes()).as_ref(), Ok(&parts));
        assert_ne!(parts.digest(), Digest::of(b""));
        let mut bytes = parts.to_bytes();
        bytes.pop();
        assert!(Parts::from_bytes(&bytes).is_err() && Parts::from_bytes(&[]).is_err());
        let one = |size| Parts::new(vec![Part { digest: Digest([0; 32]), size }]);
        assert!(one(0).is_err() && one(MAX_PART + 1).is_err() && one(MAX_PART).is_ok());
        let part = |size| Part { digest: Digest([0; 32]), size };
        assert!(
            Parts::new(vec![part(MIN_PART); MAX_PARTS]).is_ok()
                && Parts::new(vec![part(MIN_PART); MAX_PARTS + 1]).is_err()
        );
        assert!(
            Parts::new(vec![part(MIN_PART - 1), part(1)]).is_err() && Parts::new(vec![part(MIN_PART), part(1)]).is_ok()
        );
    }
}
