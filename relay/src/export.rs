//! Everything that a relay knows of a tenant, in files that people and programs can read: for a tenant that asks for it, or
//! leaves. Read from copies of the databases, as they were at one moment.

use crate::backup::BackupError;
use crate::blobs::DIR;
use crate::store::central::{self, audit, keys};
use crate::store::ledger::{statement, usage};
use crate::store::sessions::{self, find};
use crate::store::sync::{Content, chunk, feed, revision};
use crate::store::{Connection, StoreError, copy};
use crate::streams::session::{message, shown};
use belay_protocol::id::TenantId;
use belay_protocol::item::{ItemKind, Part};
use belay_protocol::message::SyncChange;
use belay_protocol::packing::unpack_part;
use belay_protocol::transcript;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::ErrorKind::{AlreadyExists, IsADirectory, NotADirectory};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// What was written.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Exported {
    /// Lines of the book.
    pub entries: u64,
    /// Sessions, deleted ones that can be restored included.
    pub sessions: u64,
    /// Documents, adapters and settings.
    pub items: u64,
}

/// Beyond every day.
const EVER: i64 = 1_000_000;

/// Where a tenant's things lie: copies of central and of its book, and its own directory, with the pieces of its content.
#[derive(Debug)]
pub struct Copies<'a> {
    /// Of central.
    pub central: &'a Path,
    /// Of its book.
    pub book: &'a Path,
    /// Its directory in the state directory.
    pub tenant_dir: &'a Path,
}

/// Writes all of a tenant into an empty or new directory. Errors: `Refused`, if something is there.
pub fn export(dir: &Path, tenant: &TenantId, copies: &Copies<'_>) -> Result<Exported, BackupError> {
    belay_certs::file::create_private_dir(dir)?;
    if fs::read_dir(dir).map_err(BackupError::file("read", dir))?.next().is_some() {
        return Err(BackupError::Refused(format!("{} is not empty; name a new directory", dir.display())));
    }
    let (central, book) = (copy::open(copies.central)?, copy::open(copies.book)?);
    let to = Target { dir };
    to.json("tenant.json", &central::tenant(&central, tenant)?)?;
    to.json("devices.json", &central::devices(&central, Some(tenant))?)?;
    to.json("keys.json", &keys::list(&central, Some(tenant))?)?;
    to.json("usage.json", &usage::report(&book, 0, EVER, usage::Grouping::Day)?)?;
    to.lines("audit.jsonl", |after| {
        let page = audit::page(&central, after, Some(tenant), (0, u64::MAX >> 1))?;
        let last = page.last().map(|entry| entry.id);
        Ok((page, last))
    })?;
    let entries = to.lines("book.jsonl", |after| {
        let page = statement::page(&book, after, i64::MAX)?;
        let last = page.last().map(|line| line.entry);
        Ok((page, last))
    })?;
    Ok(Exported { entries, sessions: conversations(&to, &book)?, items: items(&to, &book, copies.tenant_dir)? })
}

/// The directory that is written to.
struct Target<'a> {
    dir: &'a Path,
}

impl Target<'_> {
    /// A file below it, whose name leads nowhere else.
    fn file(&self, name: &str) -> Result<(PathBuf, BufWriter<File>), BackupError> {
        let path = self.dir.join(name);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create(&path));
        let file = match made {
            Ok(file) => file,
            // One document is called as the folder of another: it lies beside, with its whole name.
            Err(error) if matches!(error.kind(), IsADirectory | NotADirectory | AlreadyExists) => {
                let path = self.dir.join(format!("{}.beside", name.replace('/', "%2F")));
                File::create(&path).map_err(BackupError::file("write", &path))?
            }
            Err(error) => return Err(BackupError::file("write", &path)(error)),
        };
        Ok((path, BufWriter::new(file)))
    }

    fn bytes(
        &self,
        name: &str,
        pieces: impl IntoIterator<Item = Result<Bytes, BackupError>>,
    ) -> Result<(), BackupError> {
        let (path, mut file) = self.file(name)?;
        for piece in pieces {
            file.write_all(&piece?).map_err(BackupError::file("write", &path))?;
        }
        file.flush().map_err(BackupError::file("write", &path))
    }

    fn json(&self, name: &str, value: &impl Serialize) -> Result<(), BackupError> {
        let text = serde_json::to_vec_pretty(value)
            .map_err(|error| BackupError::Refused(format!("cannot write {name}: {error}")))?;
        self.bytes(name, [Ok(Bytes::from(text))])
    }

    /// A line of JSON for each of what comes in pages, each after the last one's number.
    fn lines<T: Serialize>(
        &self,
        name: &str,
        mut page: impl FnMut(i64) -> Result<(Vec<T>, Option<i64>), StoreError>,
    ) -> Result<u64, BackupError> {
        let (path, mut file) = self.file(name)?;
        let (mut after, mut count) = (0, 0);
        loop {
            let (rows, last) = page(after)?;
            let Some(last) = last else { break };
            after = last;
            for row in rows {
                let text = serde_json::to_string(&row)
                    .map_err(|error| BackupError::Refused(format!("cannot write {name}: {error}")))?;
                writeln!(file, "{text}").map_err(BackupError::file("write", &path))?;
                count += 1;
            }
        }
        file.flush().map_err(BackupError::file("write", &path))?;
        Ok(count)
    }
}

/// A file for each conversation, numbered, since their names may be no file's.
fn conversations(to: &Target<'_>, book: &Connection) -> Result<u64, BackupError> {
    let mut count = 0;
    for deleted in [false, true] {
        let mut cursor = String::new();
        // A cursor that a page has given is none that could be wrong.
        while let Ok(page) = find::list(book, deleted, &cursor, 0)? {
            for stored in page.rows {
                count += 1;
                let row = stored.row;
                let session = shown((stored.clone(), sessions::context(book, &stored)?));
                let (mut said, mut after) = (vec![], 0);
                loop {
                    let messages = find::messages(book, row, after)?;
                    let Some(last) = messages.last() else { break };
                    after = last.number;
                    said.extend(messages.into_iter().map(message));
                }
                let said = said.iter().map(|(message, text)| (message, text.as_str()));
                to.json(&format!("sessions/{count:06}.json"), &transcript::json(&session, said))?;
            }
            if page.next.is_empty() {
                break;
            }
            cursor = page.next;
        }
    }
    Ok(count)
}

/// Documents and adapters as the files that they are, settings as one.
fn items(to: &Target<'_>, book: &Connection, tenant_dir: &Path) -> Result<u64, BackupError> {
    let (mut cursor, mut count, mut settings) = (String::new(), 0, Map::new());
    loop {
        let page = feed::page(book, &cursor, 0)?;
        for change in page.changes {
            count += u64::from(item(to, book, tenant_dir, change, &mut settings)?);
        }
        cursor = page.cursor;
        if !page.has_more {
            break;
        }
    }
    to.json("settings.json", &settings)?;
    Ok(count)
}

/// One of them; false: it is deleted, or a conversation.
fn item(
    to: &Target<'_>,
    book: &Connection,
    tenant_dir: &Path,
    change: SyncChange,
    settings: &mut Map<String, Value>,
) -> Result<bool, BackupError> {
    if change.kind == ItemKind::HISTORY {
        return Ok(false);
    }
    let Some(stored) = revision(book, change.revision)? else { return Ok(false) };
    let pieces: Vec<Part> = match stored.content {
        Content::None => return Ok(false),
        Content::Inline(bytes) if change.kind == ItemKind::SETTING => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let value = serde_json::from_str(&text).unwrap_or(json!(text));
            settings.insert(change.key, value);
            return Ok(true);
        }
        Content::Inline(bytes) => {
            to.bytes(&name(&change), [Ok(bytes.into())])?;
            return meta(to, &change).map(|()| true);
        }
        Content::Parts(parts) => parts.all().to_vec(),
    };
    let piece = |part: Part| -> Result<Bytes, BackupError> {
        let gone = || BackupError::Refused(format!("a piece of {} is gone or damaged", change.key));
        let kept = chunk(book, part.digest)?.ok_or_else(gone)?;
        let path = tenant_dir.join(DIR).join(&kept.file);
        let bytes = fs::read(&path).map_err(BackupError::file("read", &path))?;
        unpack_part(kept.encoding, bytes.into(), &part).ok_or_else(gone)
    };
    to.bytes(&name(&change), pieces.into_iter().map(piece))?;
    meta(to, &change).map(|()| true)
}

/// Keys are paths that lead nowhere else: that was seen to when they were pushed.
fn name(change: &SyncChange) -> String {
    match change.kind {
        ItemKind::ADAPTER => format!("adapters/{}/adapter_model.safetensors", change.key),
        _ => format!("documents/{}", change.key),
    }
}

fn meta(to: &Target<'_>, change: &SyncChange) -> Result<(), BackupError> {
    if change.kind != ItemKind::ADAPTER {
        return Ok(());
    }
    let name = format!("adapters/{}/adapter_config.json", change.key);
    to.bytes(&name, [Ok(Bytes::from(change.meta.clone()))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_is_called_as_the_folder_of_another_lies_beside() {
        let dir = tempfile::tempdir().expect("made");
        let to = Target { dir: dir.path() };
        let write = |name: &str| to.bytes(name, [Ok(Bytes::copy_from_slice(name.as_bytes()))]).expect("written");
        ["documents/a/b", "documents/a", "documents/c", "documents/c/d"].into_iter().for_each(write);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("there");
        assert_eq!(read("documents/a/b"), "documents/a/b");
        assert_eq!(read("documents%2Fa.beside"), "documents/a");
        assert_eq!(read("documents/c"), "documents/c");
        assert_eq!(read("documents%2Fc%2Fd.beside"), "documents/c/d");
    }
}
