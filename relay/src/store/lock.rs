//! The exclusive lock of a state directory: two `belayd` on one directory are impossible.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use thiserror::Error;

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

/// Holds the lock until it is dropped; the kernel releases it when the process dies.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
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
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::InUse(dir.display().to_string())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}
