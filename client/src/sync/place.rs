//! Where items of a kind lie on this computer: a folder of documents, a folder of adapters, a settings file.
//!
//! The engine knows places by this trait alone, so that a test can own one.

use belay_protocol::item::{Digest, ItemKey, Part, Parts};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use thiserror::Error;

/// What an item's content is, without the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sig {
    /// Of the content, or of the list of its parts.
    pub digest: Digest,
    /// Bytes of content.
    pub size: u64,
    /// What belongs to the content.
    pub meta: String,
}

/// What a file looks like from outside: as long as that is the same, its content is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamp(pub String);

/// An item that lies here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// What it is.
    pub sig: Sig,
    /// What it looks like from outside.
    pub stamp: Stamp,
    /// When it was last changed, by this computer's clock, milliseconds since 1970.
    pub modified_ms: u64,
}

/// Something that stands in the way of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which one, as the user knows it.
    pub key: String,
    /// What, and what to do about it.
    pub why: String,
}

/// What lies at a place.
#[derive(Debug, Default)]
pub struct Scan {
    /// What can be synced.
    pub items: BTreeMap<ItemKey, Local>,
    /// What is there and cannot be read, or is being written: it is neither changed nor gone.
    pub unknown: BTreeMap<ItemKey, Unknown>,
    /// What the user should know.
    pub problems: Vec<Problem>,
}

/// Why it is not known what an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It is being written, or was a moment ago.
    Unsettled,
    /// It is ignored, no file, or unreadable.
    Hidden,
}

/// What was known of items when they were looked at last.
pub type Known = BTreeMap<ItemKey, (Stamp, Sig)>;

/// Why nothing was done at a place, or with an item there.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The place is not there: nothing in it counts as deleted.
    #[error("{0}")]
    Missing(String),
    /// What lies there is not what it was when it was looked at.
    #[error("it changed meanwhile")]
    Changed,
    /// Something else has this name here.
    #[error("{0}")]
    Taken(String),
    /// What arrived cannot lie here, and nothing was changed.
    #[error("{0}")]
    Unfit(String),
    /// There is no room on the disk.
    #[error("this computer's disk is full; free some space, then it goes on")]
    Full,
    /// The disk failed.
    #[error("{what}: {why}")]
    Io {
        /// Doing what, with which file.
        what: String,
        /// In which way.
        why: String,
    },
}

impl PlaceError {
    /// What happened with a file.
    #[must_use]
    pub fn io(what: impl Into<String>, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io { what: what.into(), why: error.to_string() },
        }
    }
}

/// Content that is read piece by piece.
pub trait Source: Send {
    /// Bytes at an offset. Errors: fewer are there.
    fn read(&mut self, offset: u64, len: u32) -> io::Result<Bytes>;
}

/// Content that arrives piece by piece, in any order; what arrived before a crash is still there.
pub trait Staged: Send {
    /// A piece that is there already.
    fn has(&mut self, offset: u64, part: &Part) -> bool;
    /// Puts a piece in its place.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns once all of it is on disk.
    fn sync(&mut self) -> io::Result<()>;
    /// What was put there, for a place to take; a path, for those on a disk.
    fn into_content(self: Box<Self>) -> Content;
}

/// Content to be put into a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Small.
    Bytes(Bytes),
    /// In a file of the place's own, to be moved.
    File(std::path::PathBuf),
}

/// A place.
pub trait Place: Send {
    /// Looks at all that is there. What looks as it did is not read.
    fn scan(&mut self, known: &Known) -> Result<Scan, PlaceError>;
    /// An item's content, to be sent. Errors: `Changed` if it is not what was looked at.
    fn open(&mut self, key: &ItemKey, local: &Local) -> Result<Box<dyn Source>, PlaceError>;
    /// The list of an item's parts.
    fn parts(&mut self, key: &ItemKey, local: &Local) -> Result<Parts, PlaceError>;
    /// Room for content that is about to arrive.
    fn stage(&mut self, digest: Digest, size: u64) -> Result<Box<dyn Staged>, PlaceError>;
    /// Puts content into the item's place, whole or not at all, if what lies there is what was expected
    /// (`None`: nothing). What lies there instead stays, or is set aside. Returns what it looks like now.
    fn put(
        &mut self,
        key: &ItemKey,
        content: Content,
        sig: &Sig,
        expected: Option<&Local>,
        modified_ms: u64,
    ) -> Result<Stamp, PlaceError>;
    /// Removes an item, if it is what was expected.
    fn remove(&mut self, key: &ItemKey, expected: &Local) -> Result<(), PlaceError>;
    /// Gives an item another name, if that is free: what it looks like there.
    fn set_aside(&mut self, key: &ItemKey, to: &ItemKey, expected: &Local) -> Result<Stamp, PlaceError>;
    /// Whether content may be put there now: what lies there is what was expected, and nobody is writing to it. Looked
    /// at before anything is received. Errors: `Changed`, `Taken`.
    fn ready(&mut self, key: &ItemKey, expected: Option<&Local>) -> Result<(), PlaceError>;
    /// Removes what is left of arrivals that are over, and brings back what a process that died had moved out of the
    /// way, unless it is known.
    fn tidy(&mut self, is_known: &dyn Fn(&ItemKey, &Sig) -> bool) -> Result<Vec<Problem>, PlaceError>;
}
