//! The exclusive lock of a state directory: two `belayd` on one directory are impossible.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use thiserror::Error;
use tracing::warn;

/// Why the state directory could not be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process has it.
    #[error("the state directory {0} is in use by a running belayd")]
    InUse(String),
    /// The lock file could not be opened.
    #[error("cannot lock the state directory {path}")]
    Io {
        /// Which directory.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Holds the lock until it is dropped; the kernel releases it when the process dies. What root has made in a directory of
/// somebody else's is given to that user then: the relay must be able to read it.
#[derive(Debug)]
pub struct StateLock {
    dir: PathBuf,
    _file: File,
}

impl Drop for StateLock {
    fn drop(&mut self) {
        let Ok(owner) = std::fs::metadata(&self.dir) else { return };
        if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
            return;
        }
        if let Err(error) = give(&self.dir, (owner.uid(), owner.gid())) {
            warn!(%error, "what was made in the state directory belongs to root, and not to its owner");
        }
    }
}

/// Gives everything below a directory that is root's to a user and group.
fn give(dir: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.uid() == 0 {
            lchown(entry.path(), Some(user), Some(group))?;
        }
        if found.is_dir() {
            give(&entry.path(), (user, group))?;
        }
    }
    Ok(())
}

impl StateLock {
    /// Takes the lock of `dir` without waiting. Errors: `InUse`, `Io`.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: dir.display().to_string(), source };
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(dir.join("lock")).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::InUse(dir.display().to_string())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}
