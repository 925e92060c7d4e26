//! Content of files: read piece by piece, arriving piece by piece, put into its place.

use super::disk::{ARRIVING, Root, is_as_expected, look, stamp};
use super::place::{Content, Local, PlaceError, Source, Staged, Stamp};
use belay_protocol::item::{Digest, ItemKind, Part, Parts};
use bytes::{Bytes, BytesMut};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Whether a new file may come there now.
pub(super) fn is_ready(root: &Root, at: &Path, expected: Option<&Stamp>) -> Result<(), PlaceError> {
    match expected {
        Some(expected) => is_as_expected(at, expected).map(|_| ()),
        None => {
            root.make_way(at)?;
            match std::fs::symlink_metadata(at) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Ok(meta) if meta.is_dir() => Err(PlaceError::Taken(format!(
                    "{} is a folder here, with files that are not synced in it; remove or rename it",
                    at.display()
                ))),
                _ => Err(PlaceError::Taken(format!("{} is there already, and is something else", at.display()))),
            }
        }
    }
}

/// A file with that content, in belay's own directory, on disk.
pub(super) fn new_file(root: &Root, content: Content, modified_ms: u64) -> Result<PathBuf, PlaceError> {
    let path = match content {
        Content::Bytes(bytes) => root.write_new(&bytes)?,
        Content::File(path) => path,
    };
    // It says when the content was made; nothing goes by it. One in the future would confuse programs here.
    let at = std::time::UNIX_EPOCH + Duration::from_millis(modified_ms);
    if let Ok(file) = File::options().write(true).open(&path)
        && file.metadata().and_then(|meta| meta.modified()).is_ok_and(|now| at < now)
    {
        let _ = file.set_modified(at);
    }
    Ok(path)
}

/// A file that is read piece by piece.
struct FileSource(File);

impl Source for FileSource {
    fn read(&mut self, offset: u64, len: u32) -> io::Result<Bytes> {
        let mut bytes = BytesMut::zeroed(len as usize);
        self.0.seek(SeekFrom::Start(offset))?;
        self.0.read_exact(&mut bytes)?;
        Ok(bytes.freeze())
    }
}

/// Opens a file that looks as it did.
pub(super) fn open_file(path: &Path, expected: &Stamp) -> Result<Box<dyn Source>, PlaceError> {
    if stamp(&look(path)?) != *expected {
        return Err(PlaceError::Changed);
    }
    let file = File::open(path).map_err(|error| PlaceError::io("cannot read it", error))?;
    Ok(Box::new(FileSource(file)))
}

/// The parts of a file, if it is what was looked at.
pub(super) fn file_parts(kind: ItemKind, path: &Path, local: &Local) -> Result<Parts, PlaceError> {
    let file = File::open(path).map_err(|error| PlaceError::io("cannot read it", error))?;
    let parts = belay_protocol::cut::parts(kind, local.sig.size, io::BufReader::new(file));
    let parts = parts.map_err(|error| PlaceError::io("cannot read it", error))?;
    if parts.digest() == local.sig.digest { Ok(parts) } else { Err(PlaceError::Changed) }
}

/// Content that arrives in a file of belay's own directory.
struct StagedFile {
    file: File,
    path: PathBuf,
    /// There was nothing before: no part need be looked for.
    is_new: bool,
}

/// Room for content: what arrived of it before a crash is there still.
pub(super) fn stage(root: &Root, digest: Digest, size: u64) -> Result<Box<dyn Staged>, PlaceError> {
    let path = root.own().join(format!("{ARRIVING}{digest}"));
    let failed = |error| PlaceError::io("cannot make room for it", error);
    let is_new = !path.exists();
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    file.set_len(size).map_err(failed)?;
    Ok(Box::new(StagedFile { file, path, is_new }))
}

impl Staged for StagedFile {
    fn has(&mut self, offset: u64, part: &Part) -> bool {
        if self.is_new {
            return false;
        }
        let mut bytes = vec![0; part.size as usize];
        let read = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(&mut bytes));
        read.is_ok() && Digest::of(&bytes) == part.digest
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn into_content(self: Box<Self>) -> Content {
        Content::File(self.path)
    }
}
