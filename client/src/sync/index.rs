//! What this computer knows of what is synced, in a SQLite file of its own: what it and the relay agreed on last, what
//! the relay says, what was on its way.
//!
//! The index decides nothing by itself. If it is lost, everything is read anew, and what lies here and at the relay
//! with the same content is agreed on; nothing is deleted by it.

use super::place::{Sig, Stamp};
use super::reconcile::{Base, Head};
use crate::error::ClientError;
use belay_protocol::id::RevisionId;
use belay_protocol::item::{Digest, ItemKey, ItemKind};
use rusqlite::{Connection, OptionalExtension, Row, params};
use rusqlite_migration::{M, Migrations};
use std::collections::BTreeMap;
use std::path::Path;

const SCHEMA: &str = include_str!("index.sql");

/// What is known of an item.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// What both agreed on last.
    pub base: Option<Base>,
    /// What the file looked like then.
    pub stamp: Option<Stamp>,
    /// What the relay says.
    pub head: Option<Head>,
    /// The relay's content, where it is small and does not lie here yet.
    pub inline: Option<Vec<u8>>,
    /// When the relay's content was last changed, by the clock of the computer that did.
    pub modified_ms: u64,
    /// The item that this one is a conflict copy of; empty: none.
    pub conflict_of: String,
}

/// A revision that the relay has not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its name.
    pub revision: RevisionId,
    /// The one that it was made from.
    pub parent: Option<RevisionId>,
    /// Its content; `None`: a deletion.
    pub sig: Option<Sig>,
    /// When that was last changed here.
    pub modified_ms: u64,
}

/// What is told of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KindState {
    /// When something was last pushed, milliseconds since 1970; 0: never.
    pub pushed_ms: u64,
    /// When something last came.
    pub pulled_ms: u64,
    /// Items that wait to be sent or to come.
    pub pending: u64,
    /// Items that something stands in the way of.
    pub problems: u64,
}

/// Where an item is: its kind and its key.
pub type Name = (ItemKind, ItemKey);

/// The index.
#[derive(Debug)]
pub struct Index {
    connection: Connection,
}

fn failed(error: &dyn std::fmt::Display) -> ClientError {
    let why = format!("{error}; if that stays so, remove sync.db: what lies here and at the relay is then read anew");
    ClientError::State { what: "the index of synced items".into(), why }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A revision and what it has, in four columns from `at` on.
fn read_head(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Head>> {
    let Some(revision) = row.get::<_, Option<[u8; 16]>>(at)? else { return Ok(None) };
    let sig = match row.get::<_, Option<[u8; 32]>>(at + 1)? {
        None => None,
        Some(digest) => Some(Sig { digest: Digest(digest), size: unsigned(row.get(at + 2)?), meta: row.get(at + 3)? }),
    };
    Ok(Some(Head { revision: RevisionId(revision), sig }))
}

type Columns = (Option<[u8; 16]>, Option<[u8; 32]>, Option<i64>, Option<String>);

fn columns(head: Option<&Head>) -> Columns {
    let sig = head.and_then(|head| head.sig.as_ref());
    (
        head.map(|head| head.revision.0),
        sig.map(|sig| sig.digest.0),
        sig.map(|sig| signed(sig.size)),
        sig.map(|sig| sig.meta.clone()),
    )
}

impl Index {
    /// Opens the index, and makes it if it is not there.
    pub fn open(path: &Path) -> Result<Self, ClientError> {
        Self::with(Connection::open(path).map_err(|error| failed(&error))?)
    }

    fn with(mut connection: Connection) -> Result<Self, ClientError> {
        let setup = |connection: &Connection| -> rusqlite::Result<()> {
            connection.pragma_update(None, "journal_mode", "wal")?;
            // Power loss may take the last seconds: they are read and agreed on again.
            connection.pragma_update(None, "synchronous", "normal")?;
            connection.busy_timeout(std::time::Duration::from_secs(5))
        };
        setup(&connection).map_err(|error| failed(&error))?;
        let migrations = [M::up(SCHEMA)];
        Migrations::from_slice(&migrations).to_latest(&mut connection).map_err(|error| failed(&error))?;
        Ok(Self { connection })
    }

    /// Begins to write many things at once.
    pub fn begin(&self) -> Result<(), ClientError> {
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| failed(&error))
    }

    /// Whatever was begun and not ended, was not.
    pub fn give_up(&self) -> Result<(), ClientError> {
        if self.connection.is_autocommit() {
            return Ok(());
        }
        self.connection.execute_batch("ROLLBACK").map_err(|error| failed(&error))
    }

    /// Ends it.
    pub fn commit(&self) -> Result<(), ClientError> {
        self.connection.execute_batch("COMMIT").map_err(|error| failed(&error))
    }

    /// All that is known.
    pub fn entries(&self) -> Result<BTreeMap<Name, Entry>, ClientError> {
        let read = || -> rusqlite::Result<Vec<(u16, String, Entry)>> {
            let sql = "SELECT kind, key, base_revision, base_digest, base_size, base_meta, head_revision, head_digest,
                              head_size, head_meta, stamp, head_inline, head_modified_ms, conflict_of FROM item";
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| {
                let entry = Entry {
                    base: read_head(row, 2)?,
                    head: read_head(row, 6)?,
                    stamp: row.get::<_, Option<String>>(10)?.map(Stamp),
                    inline: row.get(11)?,
                    modified_ms: unsigned(row.get(12)?),
                    conflict_of: row.get(13)?,
                };
                Ok((row.get(0)?, row.get(1)?, entry))
            })?;
            rows.collect()
        };
        let mut entries = BTreeMap::new();
        for (kind, key, entry) in read().map_err(|error| failed(&error))? {
            entries.insert((ItemKind(kind), key.parse().map_err(|error| failed(&error))?), entry);
        }
        Ok(entries)
    }

    /// Notes what is known of an item.
    pub fn put(&self, (kind, key): &Name, entry: &Entry) -> Result<(), ClientError> {
        let write = || -> rusqlite::Result<()> {
            let (base, head) = (columns(entry.base.as_ref()), columns(entry.head.as_ref()));
            let sql = "INSERT OR REPLACE INTO item (kind, key, base_revision, base_digest, base_size, base_meta,
                           head_revision, head_digest, head_size, head_meta, stamp, head_inline, head_modified_ms,
                           conflict_of)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
            self.connection.prepare_cached(sql)?.execute(params![
                kind.0,
                key.as_str(),
                base.0,
                base.1,
                base.2,
                base.3,
                head.0,
                head.1,
                head.2,
                head.3,
                entry.stamp.as_ref().map(|stamp| &stamp.0),
                entry.inline,
                signed(entry.modified_ms),
                entry.conflict_of,
            ])?;
            Ok(())
        };
        write().map_err(|error| failed(&error))
    }

    /// Forgets an item.
    pub fn remove(&self, (kind, key): &Name) -> Result<(), ClientError> {
        let write = || -> rusqlite::Result<()> {
            self.connection
                .prepare_cached("DELETE FROM item WHERE kind = ?1 AND key = ?2")?
                .execute(params![kind.0, key.as_str()])?;
            Ok(())
        };
        write().map_err(|error| failed(&error))
    }

    /// Revisions of an item that the relay has not confirmed, the newest last.
    pub fn pending(&self, (kind, key): &Name) -> Result<Vec<Pending>, ClientError> {
        let read = || -> rusqlite::Result<Vec<Pending>> {
            let sql = "SELECT revision, digest, size, meta, parent, modified_ms FROM push WHERE kind = ?1 AND key = ?2";
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement.query_map(params![kind.0, key.as_str()], |row| {
                let head = read_head(row, 0)?;
                let parent = row.get::<_, Option<[u8; 16]>>(4)?.map(RevisionId);
                let modified_ms = unsigned(row.get(5)?);
                Ok(head.map(|head| Pending { revision: head.revision, parent, sig: head.sig, modified_ms }))
            })?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().flatten().collect())
        };
        read().map_err(|error| failed(&error))
    }

    /// Notes a revision before it is sent, so that it is sent by the same name after a crash.
    pub fn push(&self, (kind, key): &Name, pending: &Pending) -> Result<(), ClientError> {
        let write = || -> rusqlite::Result<()> {
            let head = Head { revision: pending.revision, sig: pending.sig.clone() };
            let (revision, digest, size, meta) = columns(Some(&head));
            let sql = "INSERT OR REPLACE INTO push (revision, kind, key, parent, digest, size, meta, modified_ms)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            self.connection.prepare_cached(sql)?.execute(params![
                revision,
                kind.0,
                key.as_str(),
                pending.parent.map(|parent| parent.0),
                digest,
                size,
                meta,
                signed(pending.modified_ms),
            ])?;
            Ok(())
        };
        write().map_err(|error| failed(&error))
    }

    /// The relay has confirmed what there is of an item: nothing is on its way.
    pub fn confirmed(&self, (kind, key): &Name) -> Result<(), ClientError> {
        let write = || -> rusqlite::Result<()> {
            self.connection
                .prepare_cached("DELETE FROM push WHERE kind = ?1 AND key = ?2")?
                .execute(params![kind.0, key.as_str()])?;
            Ok(())
        };
        write().map_err(|error| failed(&error))
    }

    /// Where the feed is read on.
    pub fn cursor(&self) -> Result<String, ClientError> {
        self.connection.query_row("SELECT cursor FROM state", [], |row| row.get(0)).map_err(|error| failed(&error))
    }

    /// Notes where the feed is read on.
    pub fn set_cursor(&self, cursor: &str) -> Result<(), ClientError> {
        self.connection.execute("UPDATE state SET cursor = ?1", [cursor]).map_err(|error| failed(&error))?;
        Ok(())
    }

    /// Forgets what the relay said, and if wanted what was agreed on: everything will be read anew.
    pub fn forget_heads(&self, and_bases: bool) -> Result<(), ClientError> {
        if and_bases {
            let sql = "UPDATE item SET base_revision = NULL, base_digest = NULL, base_size = NULL, base_meta = NULL";
            self.connection.execute_batch(&format!("{sql}; DELETE FROM push")).map_err(|error| failed(&error))?;
        }
        self.connection
            .execute(
                "UPDATE item SET head_revision = NULL, head_digest = NULL, head_size = NULL, head_meta = NULL,
                          head_inline = NULL",
                [],
            )
            .map_err(|error| failed(&error))?;
        Ok(())
    }

    /// Forgets what was agreed on of a kind: its place is another one now.
    pub fn forget_bases(&self, kind: ItemKind) -> Result<(), ClientError> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            // The relay's content, where it was in the index, is not any more: it comes again.
            transaction.execute("DELETE FROM item WHERE kind = ?1", [kind.0])?;
            transaction.execute("DELETE FROM push WHERE kind = ?1", [kind.0])?;
            transaction.execute("UPDATE state SET cursor = ''", [])?;
            transaction.commit()
        };
        write().map_err(|error| failed(&error))
    }

    /// What is told of a kind.
    pub fn kind(&self, kind: ItemKind) -> Result<KindState, ClientError> {
        self.connection
            .query_row("SELECT pushed_ms, pulled_ms, pending, problems FROM kind WHERE kind = ?1", [kind.0], |row| {
                Ok(KindState {
                    pushed_ms: unsigned(row.get(0)?),
                    pulled_ms: unsigned(row.get(1)?),
                    pending: unsigned(row.get(2)?),
                    problems: unsigned(row.get(3)?),
                })
            })
            .optional()
            .map(Option::unwrap_or_default)
            .map_err(|error| failed(&error))
    }

    /// Notes what is told of a kind.
    pub fn set_kind(&self, kind: ItemKind, state: KindState) -> Result<(), ClientError> {
        self.connection
            .execute(
                "INSERT OR REPLACE INTO kind (kind, pushed_ms, pulled_ms, pending, problems) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    kind.0,
                    signed(state.pushed_ms),
                    signed(state.pulled_ms),
                    signed(state.pending),
                    signed(state.problems)
                ],
            )
            .map_err(|error| failed(&error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_known_again() {
        let dir = tempfile::tempdir().expect("made");
        let path = dir.path().join("sync.db");
        let name: Name = (ItemKind::DOCUMENT, "a/b.md".parse().expect("a key"));
        let sig = Sig { digest: Digest([3; 32]), size: 12, meta: "m".into() };
        let entry = Entry {
            base: Some(Base { revision: RevisionId([1; 16]), sig: Some(sig.clone()) }),
            stamp: Some(Stamp("s".into())),
            head: Some(Head { revision: RevisionId([2; 16]), sig: None }),
            inline: Some(b"x".to_vec()),
            modified_ms: 7,
            conflict_of: "a".into(),
        };
        let pending = Pending {
            revision: RevisionId([4; 16]),
            parent: Some(RevisionId([1; 16])),
            sig: Some(sig),
            modified_ms: 5,
        };
        let kind = KindState { pushed_ms: 1, pulled_ms: 2, pending: 3, problems: 4 };
        {
            let index = Index::open(&path).expect("opened");
            index.begin().expect("begun");
            index.put(&name, &entry).expect("noted");
            index.push(&name, &pending).expect("noted");
            index.set_cursor("1-2-0").expect("noted");
            index.set_kind(ItemKind::DOCUMENT, kind).expect("noted");
            index.commit().expect("committed");
        }
        let index = Index::open(&path).expect("opened");
        assert_eq!(index.entries().expect("read"), BTreeMap::from([(name.clone(), entry)]));
        assert_eq!(index.pending(&name).expect("read"), vec![pending]);
        assert_eq!(index.cursor().expect("read"), "1-2-0");
        assert_eq!(index.kind(ItemKind::DOCUMENT).expect("read"), kind);
        assert_eq!(index.kind(ItemKind::ADAPTER).expect("read"), KindState::default());
        index.confirmed(&name).expect("noted");
        index.forget_heads(false).expect("noted");
        assert_eq!(index.pending(&name).expect("read"), vec![]);
        assert_eq!(index.entries().expect("read")[&name].head, None);
        index.remove(&name).expect("noted");
        assert!(index.entries().expect("read").is_empty());
    }
}
