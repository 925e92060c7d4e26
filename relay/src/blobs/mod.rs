//! The bytes of content that does not fit into a row: pieces of at most 1 MiB, each in a file of its own below its
//! tenant's directory, named for its hash and never by a name that was used before.
//!
//! A piece is verified, written to a temporary file, synced, renamed, and its directory synced, before the row that
//! makes it known is committed. Pieces that wait together share the syncs. What a device had sent of a piece when its
//! tunnel was lost is kept beside them, and need not be sent again. All of it runs on threads of its own, or on the
//! calling thread in a simulation.

pub mod disk;
mod threads;

use self::disk::Disk;
use self::threads::{Job, Threads, Write};
use crate::store::sync::Chunk;
use belay_protocol::item::{Digest, Part};
use belay_protocol::message::Encoding;
use belay_protocol::packing::unpack_part;
use belay_transport::env::Random;
use bytes::Bytes;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::oneshot;

/// Directory of pieces, in a tenant's.
pub(crate) const DIR: &str = "blobs";
/// Names of files that are not pieces yet.
const TEMPORARY: &str = ".new";
/// Names of beginnings of pieces.
const BEGINNING: &str = ".part";

/// Why a piece was not kept or read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BlobError {
    /// Its bytes are not what its hash says. Blame: the sender.
    #[error("the bytes do not have that hash, or not that size")]
    Mismatch,
    /// There is no room on the disk.
    #[error("the relay's disk is full")]
    Full,
    /// The disk failed.
    #[error("the relay's disk failed: {0}")]
    Disk(String),
    /// A piece is not what it was when it was kept.
    #[error("the piece {0} is gone or damaged")]
    Damaged(String),
    /// The relay is going down.
    #[error("the relay is going down")]
    Closed,
}

impl From<io::Error> for BlobError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Disk(error.to_string()),
        }
    }
}

/// Where pieces are kept. Clones share it.
#[derive(Debug, Clone)]
pub struct Blobs {
    threads: Arc<Threads>,
    random: Random,
}

impl Blobs {
    /// On that disk. `inline`: everything on the calling thread.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, random: Random, inline: bool) -> Self {
        Self { threads: Arc::new(Threads::start(disk, inline)), random }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Disk) -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, BlobError> {
        let (sender, receiver) = oneshot::channel();
        self.threads.run(Job::Other(Box::new(move |disk| {
            // Whoever asked may have gone.
            let _ = sender.send(work(disk));
        })));
        receiver.await.unwrap_or(Err(BlobError::Closed))
    }

    /// Keeps a piece in a tenant's directory. It is on disk when this returns, and not known yet: if no row names its
    /// file, it goes.
    ///
    /// Errors: `Mismatch`, `Full`, `Disk`.
    pub async fn keep(
        &self,
        tenant_dir: &Path,
        part: Part,
        encoding: Encoding,
        bytes: Bytes,
    ) -> Result<Chunk, BlobError> {
        let random: [u8; 8] = self.random.bytes();
        let file = format!("{}-{:016x}", part.digest, u64::from_be_bytes(random));
        let (sender, done) = oneshot::channel();
        let write = Write { dir: tenant_dir.join(DIR), name: file.clone(), part, encoding, bytes, done: sender };
        self.threads.run(Job::Keep(Box::new(write)));
        done.await.unwrap_or(Err(BlobError::Closed))?;
        Ok(Chunk { part, encoding, file })
    }

    /// The bytes of a piece as they are kept, if they are still what they were. Errors: `Damaged`.
    pub async fn read(&self, tenant_dir: &Path, chunk: &Chunk) -> Result<Bytes, BlobError> {
        Ok(self.verified(tenant_dir, chunk).await?.0)
    }

    /// The bytes of a piece. Errors: `Damaged`.
    pub async fn plain(&self, tenant_dir: &Path, chunk: &Chunk) -> Result<Bytes, BlobError> {
        Ok(self.verified(tenant_dir, chunk).await?.1)
    }

    async fn verified(&self, tenant_dir: &Path, chunk: &Chunk) -> Result<(Bytes, Bytes), BlobError> {
        let (path, chunk) = (tenant_dir.join(DIR).join(&chunk.file), chunk.clone());
        self.run(move |disk| {
            let kept: Bytes = match disk.read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BlobError::Damaged(chunk.file)),
                other => other?.into(),
            };
            match unpack_part(chunk.encoding, kept.clone(), &chunk.part) {
                Some(plain) => Ok((kept, plain)),
                None => Err(BlobError::Damaged(chunk.file)),
            }
        })
        .await
    }

    /// Keeps the beginning of a piece whose sender is gone. It may be lost.
    pub async fn keep_beginning(&self, tenant_dir: &Path, digest: Digest, bytes: Bytes) -> Result<(), BlobError> {
        let dir = tenant_dir.join(DIR);
        self.run(move |disk| {
            disk.make_dir(&dir)?;
            let (new, path) = (dir.join(format!("{digest}{BEGINNING}{TEMPORARY}")), dir.join(beginning(digest)));
            if disk.size(&path)?.is_some_and(|size| size >= bytes.len() as u64) {
                return Ok(());
            }
            disk.write_loosely(&new, &bytes)?;
            Ok(disk.rename(&new, &path)?)
        })
        .await
    }

    /// How many bytes there are of the beginnings of these pieces.
    pub async fn beginnings(&self, tenant_dir: &Path, pieces: Vec<Digest>) -> Result<Vec<u64>, BlobError> {
        let dir = tenant_dir.join(DIR);
        self.run(move |disk| {
            let sizes = pieces.iter().map(|digest| Ok(disk.size(&dir.join(beginning(*digest)))?.unwrap_or(0)));
            sizes.collect()
        })
        .await
    }

    /// The first bytes of the beginning of a piece, if there are so many.
    pub async fn beginning(&self, tenant_dir: &Path, digest: Digest, len: usize) -> Result<Option<Bytes>, BlobError> {
        let path = tenant_dir.join(DIR).join(beginning(digest));
        self.run(move |disk| match disk.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
            Ok(bytes) => Ok((bytes.len() >= len).then(|| Bytes::from(bytes).slice(..len))),
        })
        .await
    }

    /// Forgets the beginning of a piece.
    pub async fn forget_beginning(&self, tenant_dir: &Path, digest: Digest) -> Result<(), BlobError> {
        let path = tenant_dir.join(DIR).join(beginning(digest));
        self.run(move |disk| Ok(disk.remove(&path)?)).await
    }

    /// Removes files that no row names.
    pub async fn remove(&self, tenant_dir: &Path, files: Vec<String>) -> Result<(), BlobError> {
        let dir = tenant_dir.join(DIR);
        self.run(move |disk| {
            for file in &files {
                disk.remove(&dir.join(file))?;
            }
            Ok(())
        })
        .await
    }

    /// Removes all files.
    pub async fn remove_all(&self, tenant_dir: &Path) -> Result<(), BlobError> {
        let dir = tenant_dir.join(DIR);
        self.run(move |disk| {
            for file in disk.list(&dir)? {
                disk.remove(&dir.join(&file.name))?;
            }
            Ok(())
        })
        .await
    }

    /// Names of files that are older than a day; temporary ones and beginnings that are, are removed.
    pub async fn old(&self, tenant_dir: &Path) -> Result<Vec<String>, BlobError> {
        let dir = tenant_dir.join(DIR);
        self.run(move |disk| {
            let mut old = vec![];
            for file in disk.list(&dir)?.into_iter().filter(|file| !file.is_young) {
                if file.name.ends_with(TEMPORARY) || file.name.ends_with(BEGINNING) {
                    disk.remove(&dir.join(&file.name))?;
                } else {
                    old.push(file.name);
                }
            }
            Ok(old)
        })
        .await
    }

    /// Finishes what waits, and ends the threads. Blocks.
    pub fn close(&self) {
        self.threads.close();
    }
}

fn beginning(digest: Digest) -> PathBuf {
    PathBuf::from(format!("{digest}{BEGINNING}"))
}

#[cfg(test)]
mod tests;
