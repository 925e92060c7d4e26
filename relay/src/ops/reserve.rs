//! Room on the disk for what must still be written when there is no other.
//!
//! A file in the state directory takes it up. When the disk is nearly full the file goes: what runs is settled in its room,
//! and nothing new begins until somebody has made more.

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::{debug, info, warn};

/// The file's name in the state directory.
const FILE: &str = "reserve";
/// With less than this the disk is as good as full.
const LOW: u64 = 16 << 20;
/// So much is to be free beside the reserve before it is taken up.
const ROOM: u64 = 64 << 20;

/// The reserve of a state directory.
#[derive(Debug)]
pub(crate) struct Reserve {
    dir: PathBuf,
    size: u64,
    is_short: AtomicBool,
    is_possible: AtomicBool,
}

impl Reserve {
    /// One of that size; 0: none is kept, and a full disk is noticed all the same.
    pub(crate) fn of(state: &Path, size: u64) -> Self {
        // One that was given before a restart is still needed.
        let was_given = fs::metadata(state.join(FILE)).is_ok_and(|meta| meta.len() == 0);
        let (is_short, is_possible) = (AtomicBool::new(was_given), AtomicBool::new(true));
        Self { dir: state.to_owned(), size, is_short, is_possible }
    }

    /// The disk is nearly full: nothing new may begin.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Looks at the disk.
    pub(crate) fn look(&self) {
        match statvfs(&self.dir) {
            Ok(found) => self.judge(found.f_bavail.saturating_mul(found.f_frsize)),
            Err(error) => debug!(%error, "cannot look how full the disk is"),
        }
    }

    fn judge(&self, free: u64) {
        let has_room = free >= self.size + ROOM;
        if self.is_short() && has_room {
            self.is_short.store(false, Ordering::Relaxed);
            info!(free_mib = free >> 20, "the disk has room again: new requests are taken");
        }
        if !self.is_short() && free < LOW {
            self.is_short.store(true, Ordering::Relaxed);
            self.give();
            warn!(
                free_mib = free >> 20,
                reserve_mib = self.size >> 20,
                "the disk is nearly full: new requests are refused, and what runs is settled in the reserve; make room"
            );
        }
        if !self.is_short() && has_room && self.kept() < self.size && self.is_possible.load(Ordering::Relaxed) {
            self.take();
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    fn kept(&self) -> u64 {
        fs::metadata(self.path()).map_or(0, |meta| meta.len())
    }

    /// Takes the room under another name: one that is there and empty was given.
    fn take(&self) {
        let coming = self.path().with_extension("new");
        let take = || -> io::Result<()> {
            belay_certs::file::write_private(&coming, b"").map_err(io::Error::other)?;
            let file = File::options().write(true).open(&coming)?;
            fallocate(&file, FallocateFlags::empty(), 0, self.size)?;
            fs::rename(&coming, self.path())
        };
        if let Err(error) = take() {
            let _ = fs::remove_file(&coming);
            // Not all file systems can, and it is no better the next time.
            self.is_possible.store(false, Ordering::Relaxed);
            warn!(%error, "no reserve can be kept on this disk");
        }
    }

    fn give(&self) {
        match File::options().write(true).open(self.path()).and_then(|file| file.set_len(0)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => warn!(%error, "cannot give up the reserve"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_when_the_disk_is_full_and_taken_again_when_there_is_room() {
        let dir = tempfile::tempdir().expect("made");
        let size = 1 << 20;
        let reserve = Reserve::of(dir.path(), size);
        reserve.judge(size + ROOM - 1);
        assert_eq!((reserve.kept(), reserve.is_short()), (0, false), "it would take what others need");
        reserve.judge(size + ROOM);
        assert_eq!((reserve.kept(), reserve.is_short()), (size, false));
        reserve.judge(LOW);
        assert_eq!((reserve.kept(), reserve.is_short()), (size, false));
        reserve.judge(LOW - 1);
        assert_eq!((reserve.kept(), reserve.is_short()), (0, true));
        assert!(Reserve::of(dir.path(), size).is_short(), "a restart does not forget it");
        // What it gave is no reason to begin anything.
        reserve.judge(LOW + size);
        assert_eq!((reserve.kept(), reserve.is_short()), (0, true));
        reserve.judge(size + ROOM);
        assert_eq!((reserve.kept(), reserve.is_short()), (size, false));
    }
}
