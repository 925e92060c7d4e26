//! The exclusive lock of a state directory: two `belayd` on one directory are impossible.

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, openat, statat};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
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

/// Holds the lock until it is dropped; the kernel releases it when the process dies. What root has made in a state
/// directory of somebody else's is given to that user then: the relay must be able to read it.
#[derive(Debug)]
pub struct StateLock {
    /// Whose files are given back.
    state: Option<PathBuf>,
    file: Option<File>,
}

impl Drop for StateLock {
    fn drop(&mut self) {
        let Some(dir) = self.state.as_ref().filter(|_| rustix::process::geteuid().is_root()) else { return };
        let given = open_dir(CWD, dir.as_os_str()).and_then(|fd| {
            let owner = fstat(&fd)?;
            if owner.st_uid == 0 { Ok(()) } else { give(&fd, (owner.st_uid, owner.st_gid)) }
        });
        if let Err(error) = given {
            warn!(%error, "what was made in the state directory belongs to root, and not to its owner");
        }
        drop(self.file.take());
    }
}

fn open_dir(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Gives everything below a directory that is root's to a user and group. The user may change what lies there meanwhile:
/// so no link is followed, and nothing is given that has another name elsewhere.
fn give(dir: &OwnedFd, (user, group): (u32, u32)) -> rustix::io::Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if [&b"."[..], b".."].contains(&name.to_bytes()) {
            continue;
        }
        let found = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_dir = FileType::from_raw_mode(found.st_mode).is_dir();
        if found.st_uid == 0 && (is_dir || found.st_nlink == 1) {
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
            chownat(dir, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if is_dir {
            give(&open_dir(dir, name)?, (user, group))?;
        }
    }
    Ok(())
}

impl StateLock {
    /// Takes the lock of a state directory without waiting. Errors: `InUse`, `Io`.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let mut lock = Self::of(dir)?;
        lock.state = Some(dir.to_owned());
        Ok(lock)
    }

    /// The same of a directory of another kind, whose files stay whose they are.
    pub fn of(dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: dir.display().to_string(), source };
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        options.mode(0o600).custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0));
        let file = options.open(dir.join("lock")).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { state: None, file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(LockError::InUse(dir.display().to_string())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    #[test]
    fn what_root_makes_is_given_to_the_owner_and_nothing_that_a_link_names() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("made");
        let (state, other) = (dir.path().join("state"), dir.path().join("other"));
        std::fs::create_dir_all(state.join("deep")).expect("made");
        chown(&state, Some(65_534), Some(65_534)).expect("given");
        std::fs::create_dir(&other).expect("made");
        std::fs::write(other.join("file"), "root's").expect("written");
        std::fs::hard_link(other.join("file"), state.join("hard")).expect("linked");
        symlink(&other, state.join("soft")).expect("linked");
        let lock = StateLock::acquire(&state).expect("free");
        assert!(matches!(StateLock::acquire(&state), Err(LockError::InUse(_))));
        std::fs::write(state.join("deep/book"), "made by root").expect("written");
        drop(lock);
        let owner = |path: PathBuf| std::fs::symlink_metadata(path).expect("there").uid();
        assert_eq!(owner(state.join("deep/book")), 65_534);
        assert_eq!((owner(other.clone()), owner(other.join("file"))), (0, 0));
        // Another kind of directory stays whose it is.
        std::fs::write(state.join("deep/more"), "made by root").expect("written");
        drop(StateLock::of(&state).expect("free"));
        assert_eq!(owner(state.join("deep/more")), 0);
        // Nor is a link followed to make the lock.
        std::fs::remove_file(state.join("lock")).expect("removed");
        symlink(other.join("new"), state.join("lock")).expect("linked");
        assert!(matches!(StateLock::acquire(&state), Err(LockError::Io { .. })));
        assert!(!other.join("new").exists());
    }
}
