//! Backups of a node: what they hold, how they are taken, proven and brought back.
//!
//! A backup is a directory. `backup.json` names everything in it and is written last, so that a backup which is not
//! finished is the one before. Databases are copied by the relay that runs, each as it is at one moment, the tenants'
//! before central: so central knows at least what they have handed over. Pieces of content never change under their
//! name; those that are there are not copied again, nor are databases of which nothing was written since.

pub mod check;
pub mod restore;
pub mod take;

use crate::master_key::name_in;
use aws_lc_rs::digest::{Context, SHA256};
use belay_certs::CertError;
use belay_protocol::id::TenantId;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The file that says what a backup is.
pub const MANIFEST: &str = "backup.json";
/// The form of these directories.
const VERSION: u32 = 1;
/// Files of a state directory that are small and hardly ever change, those of the authority first.
const SMALL: [&str; 11] = [
    "ca/ca.pem",
    "ca/ca.key",
    "ca/next.pem",
    "ca/next.key",
    "ca/next-cross.pem",
    "ca/former.pem",
    "ca/cross.pem",
    "endpoint.keys",
    "master.key",
    "master.id",
    "relay.name",
];

/// Directories of these, one for each backup: the next one does not touch those of the one before.
const SMALL_DIRS: &str = "small-";

/// Why a backup was not taken, proven or brought back.
#[derive(Debug, Error)]
pub enum BackupError {
    /// A file or directory cannot be used.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was attempted.
        operation: &'static str,
        /// With which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The same, for private files.
    #[error(transparent)]
    Private(#[from] CertError),
    /// A database cannot be copied or read.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The relay that runs gave no copy.
    #[error(transparent)]
    Relay(#[from] crate::admin::client::ClientError),
    /// The directory holds no backup, or one of another kind.
    #[error("{} holds no backup: {why}", dir.display())]
    NoBackup {
        /// Which directory.
        dir: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It must not be done; why, and what to do.
    #[error("{0}")]
    Refused(String),
}

impl BackupError {
    pub(crate) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { operation, path: path.to_owned(), source }
    }
}

/// What a backup holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// belayd's version.
    pub belayd: String,
    /// When it was finished, milliseconds since 1970.
    pub made_ms: u64,
    /// The relay-wide database.
    pub central: Database,
    /// Every tenant's book and content.
    pub tenants: BTreeMap<TenantId, Book>,
    /// Small files of the state directory, with their SHA-256.
    pub files: BTreeMap<String, String>,
    /// The directory that they are in; empty: the backup's own.
    #[serde(default)]
    small: String,
}

/// A copied database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Database {
    /// Its name in the backup.
    pub file: String,
    /// Its SHA-256.
    pub sha256: String,
    /// What its files were when it was copied; absent: they were just being written.
    pub stamp: Option<String>,
}

/// What a tenant has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Book {
    /// Its database.
    #[serde(flatten)]
    pub database: Database,
    /// Up to which entry central knew it as sealed before it was copied; absent: what central's copy says, which is younger.
    #[serde(default)]
    pub sealed: Option<i64>,
    /// Its pieces of content, by file.
    pub pieces: Vec<String>,
}

impl Manifest {
    /// The manifest of a backup. Errors: there is none, or one of another version.
    pub fn read(dir: &Path) -> Result<Self, BackupError> {
        let none = |why: String| BackupError::NoBackup { dir: dir.to_owned(), why };
        let text = std::fs::read(dir.join(MANIFEST)).map_err(|error| none(format!("{MANIFEST}: {error}")))?;
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| none(format!("{MANIFEST}: {error}")))?;
        if manifest.version != VERSION {
            return Err(none(format!("it is of version {}, this belayd knows {VERSION}", manifest.version)));
        }
        match manifest.stray() {
            Some(name) => Err(none(format!("{MANIFEST} names {name:?}, which is no file of a backup"))),
            None => Ok(manifest),
        }
    }

    /// A name that would lead out of the directory, or is of no file that a backup has.
    fn stray(&self) -> Option<&str> {
        let is_plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\']) && name != "." && name != "..";
        let small = self.files.keys().map(String::as_str).find(|name| !SMALL.contains(name));
        let central = Some(self.central.file.as_str()).filter(|name| !is_plain(name));
        let in_books = self.tenants.iter().find_map(|(tenant, book)| {
            let file = book.database.file.as_str();
            let own = file.strip_prefix(&format!("tenants/{tenant}/")).is_some_and(is_plain);
            let piece = book.pieces.iter().map(String::as_str).find(|piece| !is_plain(piece));
            if own { piece } else { Some(file) }
        });
        let is_small = |dir: &str| dir.is_empty() || is_plain(dir) && dir.starts_with(SMALL_DIRS);
        let dir = Some(self.small.as_str()).filter(|dir| !is_small(dir));
        small.or(central).or(in_books).or(dir)
    }

    /// Where a small file lies.
    fn small(&self, dir: &Path, name: &str) -> PathBuf {
        dir.join(&self.small).join(name)
    }

    /// The name of the master key that it is under, if it says one.
    #[must_use]
    pub fn master_key_name(&self, dir: &Path) -> Option<String> {
        self.files.contains_key("master.id").then(|| name_in(&dir.join(&self.small))).flatten()
    }

    /// True if the key that seals books and providers' keys is in it.
    #[must_use]
    pub fn has_master_key(&self) -> bool {
        self.files.contains_key("master.key")
    }
}

/// The directory of a tenant in a backup, or in a state directory.
fn tenant_dir(dir: &Path, tenant: &TenantId) -> PathBuf {
    dir.join("tenants").join(tenant.as_str())
}

/// SHA-256 of a file, in hexadecimal.
fn hash(path: &Path) -> Result<String, BackupError> {
    let mut file = File::open(path).map_err(BackupError::file("read", path))?;
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(BackupError::file("read", path))? {
            0 => return Ok(HEXLOWER.encode(context.finish().as_ref())),
            len => context.update(&buffer[..len]),
        }
    }
}

/// Copies a file to where none is, private, and on disk when this returns.
fn copy_file(from: &Path, to: &Path) -> Result<(), BackupError> {
    let mut source = File::open(from).map_err(BackupError::file("read", from))?;
    if let Some(dir) = to.parent() {
        belay_certs::file::create_private_dir(dir)?;
    }
    Ok(belay_certs::file::copy_private(&mut source, to)?)
}

/// Moves a file, also to another disk.
fn move_file(from: &Path, to: &Path) -> Result<(), BackupError> {
    if std::fs::rename(from, to).is_ok() {
        return Ok(());
    }
    std::fs::copy(from, to).map_err(BackupError::file("copy to", to))?;
    let synced = File::open(to).and_then(|file| file.sync_all());
    synced.map_err(BackupError::file("write", to))?;
    std::fs::remove_file(from).map_err(BackupError::file("remove", from))
}
