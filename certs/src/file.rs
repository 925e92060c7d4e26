//! Files that hold secrets: made with mode 0600 in directories of mode 0700, replaced atomically.

use crate::CertError;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How the names of files end that are being written.
const TEMPORARY: &str = ".tmp";
/// One that was last written to so long ago is written by nobody.
const STALE: Duration = Duration::from_secs(60);
/// So many directories are remembered as durable.
const MOST_KNOWN: usize = 4096;

/// Writes a file that only its owner can read: temporary file, fsync, rename, fsync the directory.
pub fn write_private(path: &Path, mut contents: &[u8]) -> Result<(), CertError> {
    copy_private(&mut contents, path)
}

/// The same with all that `contents` gives, however much it is.
pub fn copy_private(contents: &mut impl Read, path: &Path) -> Result<(), CertError> {
    let failed = |source| CertError::File { operation: "write", path: path.display().to_string(), source };
    let temporary = temporary(path);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary).map_err(failed)?;
    let written = std::io::copy(contents, &mut file).and_then(|_| file.sync_all());
    written.and_then(|()| fs::rename(&temporary, path)).map_err(|error| {
        // What is left of it is of no use to anybody.
        let _ = fs::remove_file(&temporary);
        failed(error)
    })?;
    // A bare name's parent is empty.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    sync_directory(dir.unwrap_or(Path::new("."))).map_err(failed)
}

/// A name beside a file that nobody else uses: two processes may write the same file at once.
fn temporary(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    path.with_file_name(format!(".{name}.{}-{count}-{now:x}{TEMPORARY}", std::process::id()))
}

/// Whether a file is what a crash left of one that was being written.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

/// Removes what crashes have left in a directory of files that were being written. One that is younger than a minute may
/// be written just now.
pub fn sweep(dir: &Path) {
    let left = |entry: &fs::DirEntry| {
        let age = entry.metadata().ok().filter(fs::Metadata::is_file)?.modified().ok()?.elapsed().ok()?;
        (age > STALE && is_temporary(entry.file_name().to_str()?)).then(|| entry.path())
    };
    // Where it cannot be, nothing is lost.
    for path in fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| left(&entry)) {
        let _ = fs::remove_file(path);
    }
}

/// Lets a file take the place of another, whose owner it has then, as far as that may be given; durable when this returns.
pub fn take_place(from: &Path, to: &Path) -> Result<(), CertError> {
    let failed = |source| CertError::File { operation: "write", path: to.display().to_string(), source };
    #[cfg(unix)]
    if let Ok(old) = fs::metadata(to) {
        use std::os::unix::fs::MetadataExt;
        // Only root can, and only root has to.
        let _ = std::os::unix::fs::chown(from, Some(old.uid()), Some(old.gid()));
    }
    fs::rename(from, to).map_err(failed)?;
    sync_directory(to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))).map_err(failed)
}

/// Makes a directory, and what is missing above it, that only its owner can enter; durable when this returns: what is
/// synced in a directory whose own name is not would be lost with it.
pub fn create_private_dir(path: &Path) -> Result<(), CertError> {
    let failed = |source| CertError::File { operation: "create directory", path: path.display().to_string(), source };
    let mut unsynced: Vec<&Path> =
        path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()).collect();
    if unsynced.is_empty() {
        // Somebody has made it, and may not have got so far as to sync its name: another thread, or a process that was
        // killed in between. Once is enough.
        if known_durable().contains(path) {
            return Ok(());
        }
        unsynced.push(path);
    }
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    for dir in unsynced.into_iter().rev() {
        match builder.create(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made.map_err(failed)?,
        }
        let above = dir.parent().filter(|above| !above.as_os_str().is_empty());
        match sync_directory(above.unwrap_or(Path::new("."))) {
            // It may be entered and written to, and not read: then nobody can do more.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
            synced => synced.map_err(failed)?,
        }
    }
    let mut known = known_durable();
    if known.len() >= MOST_KNOWN {
        // They are synced once more, and known again.
        known.clear();
    }
    known.insert(path.to_owned());
    Ok(())
}

/// Directories whose names this process knows to be on disk.
fn known_durable() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static KNOWN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>, CertError> {
    fs::read(path).map_err(|source| CertError::File { operation: "read", path: path.display().to_string(), source })
}

/// Makes renames in a directory durable, where the platform can.
pub(crate) fn sync_directory(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn what_a_crash_left_is_swept_and_what_is_being_written_is_not() {
        let dir = tempfile::tempdir().expect("made");
        let make = |name: &str, age: Duration| {
            let file = File::create(dir.path().join(name)).expect("made");
            file.set_modified(SystemTime::now() - age).expect("set");
        };
        let hour = Duration::from_secs(3600);
        make(".key.pem.7-0-1a.tmp", hour);
        make(".key.pem.8-0-1b.tmp", Duration::ZERO);
        make("key.pem", hour);
        make("notes.tmp", hour);
        fs::create_dir(dir.path().join(".dir.tmp")).expect("made");
        sweep(dir.path());
        let left: BTreeSet<_> =
            fs::read_dir(dir.path()).expect("read").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, [".dir.tmp", ".key.pem.8-0-1b.tmp", "key.pem", "notes.tmp"].map(Into::into).into());
        sweep(&dir.path().join("missing"));
    }
}
