//! Files of synced folders: what they look like, and how they are replaced without a moment in which an edit could be
//! lost.
//!
//! A file that is replaced or removed is first moved out of the way, then looked at: only if it is what was expected it
//! goes, else it comes back. So whatever somebody saves between two looks stays.

use super::place::{PlaceError, Stamp};
use belay_protocol::item::ItemKey;
use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Belay's own directory in a synced folder.
pub(super) const OWN: &str = ".belay";
/// In it: says that this is the folder that was set up.
const MARKER: &str = "folder";
/// In it: beginnings of names of files that are not in their places yet, or not any more.
const NEW: &str = "new-";
const OLD: &str = "old-";
/// In it: beginning of names of content that arrives.
pub(super) const ARRIVING: &str = "arriving-";
/// Counts names of this process.
static FRESH: AtomicU64 = AtomicU64::new(0);
/// How long content that arrives is kept for its next part, and a file that was moved away by a process that died.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// When a file was changed.
fn nanos(time: io::Result<SystemTime>) -> u128 {
    time.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_nanos())
}

/// The same as long as nobody has touched the file.
pub(super) fn stamp(meta: &Metadata) -> Stamp {
    #[cfg(unix)]
    let touched = {
        use std::os::unix::fs::MetadataExt;
        format!("{}.{}", meta.ctime(), meta.ctime_nsec())
    };
    #[cfg(not(unix))]
    let touched = String::new();
    Stamp(format!("{}|{touched}", identity(meta)))
}

/// The same as long as nobody has written to the file, also under another name.
fn identity(meta: &Metadata) -> String {
    #[cfg(unix)]
    let number = std::os::unix::fs::MetadataExt::ino(meta);
    #[cfg(not(unix))]
    let number = 0;
    format!("{}|{}|{number}", meta.len(), nanos(meta.modified()))
}

pub(super) fn modified_ms(meta: &Metadata) -> u64 {
    u64::try_from(nanos(meta.modified()) / 1_000_000).unwrap_or(0)
}

/// A folder that was set up, and belay's own directory in it.
#[derive(Debug, Clone)]
pub(super) struct Root {
    pub(super) path: PathBuf,
}

impl Root {
    /// Sets a folder up: makes it if it is not there, and marks it.
    pub(super) fn set_up(path: &Path) -> Result<Self, PlaceError> {
        let root = Self { path: path.to_owned() };
        let own = root.own();
        fs::create_dir_all(&own).map_err(|error| PlaceError::io(format!("cannot make {}", own.display()), error))?;
        let marker = own.join(MARKER);
        let text = "This folder is synced by belay. Without this file, belay takes it for another one, and stops.\n";
        fs::write(&marker, text)
            .map_err(|error| PlaceError::io(format!("cannot write {}", marker.display()), error))?;
        Ok(root)
    }

    pub(super) fn own(&self) -> PathBuf {
        self.path.join(OWN)
    }

    /// Errors: `Missing`, so that nothing in it counts as deleted.
    pub(super) fn check(&self) -> Result<(), PlaceError> {
        if self.own().join(MARKER).is_file() {
            return Ok(());
        }
        let path = self.path.display();
        Err(PlaceError::Missing(format!(
            "{path} is not there, or is not the folder that was set up ({OWN}/{MARKER} is missing); connect its disk, or \
             set it up anew: belay sync folders"
        )))
    }

    /// Where an item lies.
    pub(super) fn file(&self, key: &ItemKey) -> PathBuf {
        let mut path = self.path.clone();
        path.extend(key.as_str().split('/'));
        path
    }

    /// A name in belay's own directory that nothing has.
    fn fresh(&self, what: &str) -> PathBuf {
        loop {
            let count = FRESH.fetch_add(1, Ordering::Relaxed);
            let path = self.own().join(format!("{what}{}-{count}", std::process::id()));
            if fs::symlink_metadata(&path).is_err() {
                return path;
            }
        }
    }

    /// Writes bytes to a new file in belay's own directory; they are on disk when this returns.
    pub(super) fn write_new(&self, bytes: &[u8]) -> Result<PathBuf, PlaceError> {
        let path = self.fresh(NEW);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&path);
            PlaceError::io("cannot write it", error)
        })?;
        Ok(path)
    }

    /// Makes the directories above a file. Errors: something that is no directory is in the way; links are not
    /// followed.
    pub(super) fn make_way(&self, file: &Path) -> Result<(), PlaceError> {
        let below = file.strip_prefix(&self.path).unwrap_or(file);
        let mut path = self.path.clone();
        for name in below.parent().into_iter().flat_map(Path::components) {
            path.push(name);
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => {}
                Ok(_) => {
                    let path = path.display();
                    return Err(PlaceError::Taken(format!(
                        "{path} is in the way: it is no folder (links are not followed)"
                    )));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(&path)
                    .map_err(|error| PlaceError::io(format!("cannot make {}", path.display()), error))?,
                Err(error) => return Err(PlaceError::io(format!("cannot look at {}", path.display()), error)),
            }
        }
        Ok(())
    }

    /// Puts a new file into its place, where there is what was expected (`None`: nothing).
    pub(super) fn replace(&self, new: &Path, at: &Path, expected: Option<&Stamp>) -> Result<Metadata, PlaceError> {
        let put = match expected {
            None => no_clobber(new, at),
            Some(expected) => self.exchange(new, at, expected),
        };
        if put.is_err() {
            let _ = fs::remove_file(new);
        }
        put?;
        sync_dir(at.parent());
        fs::symlink_metadata(at).map_err(|error| PlaceError::io("cannot look at it", error))
    }

    /// Puts new files together into a folder that is not there, all of them at once.
    pub(super) fn put_folder(&self, files: &[(PathBuf, &str)], at: &Path) -> Result<(), PlaceError> {
        let new = self.fresh(NEW);
        let failed = |error| PlaceError::io(format!("cannot make {}", at.display()), error);
        fs::create_dir(&new).map_err(failed)?;
        for (file, name) in files {
            fs::rename(file, new.join(name)).map_err(failed)?;
        }
        sync_dir(Some(&new));
        no_clobber(&new, at)?;
        sync_dir(at.parent());
        Ok(())
    }

    fn exchange(&self, new: &Path, at: &Path, expected: &Stamp) -> Result<(), PlaceError> {
        let before = look(at)?;
        if stamp(&before) != *expected || is_being_written(&HashSet::from([at.to_owned()])).contains(at) {
            return Err(PlaceError::Changed);
        }
        #[cfg(target_os = "linux")]
        if swap(new, at).is_ok() {
            // The old file has the new one's name now.
            if identity(&look(new)?) == identity(&before) {
                return fs::remove_file(new).map_err(|error| PlaceError::io("cannot remove what it was", error));
            }
            swap(new, at).map_err(|error| PlaceError::io("cannot put it back", error))?;
            return Err(PlaceError::Changed);
        }
        let old = self.move_away(at, &before)?;
        match no_clobber(new, at) {
            Ok(()) => fs::remove_file(&old).map_err(|error| PlaceError::io("cannot remove what it was", error)),
            Err(error) => {
                let _ = no_clobber(&old, at);
                Err(error)
            }
        }
    }

    /// Moves a file out of the way, if it is what was seen. Where it is now.
    fn move_away(&self, at: &Path, before: &Metadata) -> Result<PathBuf, PlaceError> {
        let old = self.fresh(OLD);
        fs::rename(at, &old).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PlaceError::Changed,
            _ => PlaceError::io("cannot move it", error),
        })?;
        if identity(&look(&old)?) != identity(before) {
            no_clobber(&old, at)?;
            return Err(PlaceError::Changed);
        }
        Ok(old)
    }

    /// Removes a file, if it is what was expected.
    pub(super) fn remove(&self, at: &Path, expected: &Stamp) -> Result<(), PlaceError> {
        let before = look(at)?;
        if stamp(&before) != *expected || is_being_written(&HashSet::from([at.to_owned()])).contains(at) {
            return Err(PlaceError::Changed);
        }
        let old = self.move_away(at, &before)?;
        fs::remove_file(&old).map_err(|error| PlaceError::io("cannot remove it", error))?;
        sync_dir(at.parent());
        self.prune(at);
        Ok(())
    }

    /// Gives a file another name, if that is free.
    pub(super) fn rename(&self, at: &Path, to: &Path, expected: &Stamp) -> Result<Metadata, PlaceError> {
        if stamp(&look(at)?) != *expected {
            return Err(PlaceError::Changed);
        }
        self.make_way(to)?;
        no_clobber(at, to)?;
        sync_dir(to.parent());
        look(to)
    }

    /// Removes directories that a removal has left empty.
    pub(super) fn prune(&self, removed: &Path) {
        let mut dir = removed.parent();
        while let Some(path) = dir.filter(|dir| *dir != self.path && dir.starts_with(&self.path)) {
            // One that is not empty stays.
            if fs::remove_dir(path).is_err() {
                return;
            }
            dir = path.parent();
        }
    }

    /// Removes what is left of arrivals that are over.
    pub(super) fn tidy(&self) -> Result<(), PlaceError> {
        let failed = |error| PlaceError::io(format!("cannot look at {}", self.own().display()), error);
        let entries = match fs::read_dir(self.own()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
            let is_old = age.is_some_and(|age| age > KEPT);
            if name.starts_with(NEW) || is_old && (name.starts_with(OLD) || name.starts_with(ARRIVING)) {
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let path = entry.path();
                if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// What a file is. Errors: `Changed` if there is none any more.
pub(super) fn look(path: &Path) -> Result<Metadata, PlaceError> {
    fs::symlink_metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PlaceError::Changed,
        _ => PlaceError::io(format!("cannot look at {}", path.display()), error),
    })
}

#[cfg(target_os = "linux")]
fn swap(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Gives a file another name, which nothing has. Errors: `Taken`.
fn no_clobber(from: &Path, to: &Path) -> Result<(), PlaceError> {
    let taken = || PlaceError::Taken(format!("{} is there already, and is something else", to.display()));
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => taken(),
        _ => PlaceError::io(format!("cannot put {} into its place", to.display()), error),
    };
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // Not every file system can.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(taken()),
        Err(_) if fs::symlink_metadata(to).is_err() => fs::rename(from, to).map_err(failed),
        Err(_) => Err(taken()),
    }
}

/// A name that is not on disk yet may be lost with power; what it names comes again then.
fn sync_dir(dir: Option<&Path>) {
    #[cfg(unix)]
    if let Some(dir) = dir
        && let Ok(dir) = File::open(dir)
    {
        let _ = dir.sync_all();
    }
    #[cfg(not(unix))]
    let _ = dir;
}

/// Of these files, those that a process of this user has open for writing. Only where the system tells; elsewhere a file
/// counts as written once it has been quiet for a while.
pub(super) fn is_being_written(files: &HashSet<PathBuf>) -> HashSet<PathBuf> {
    let mut open = HashSet::new();
    if files.is_empty() || !cfg!(target_os = "linux") {
        return open;
    }
    let resolved: std::collections::HashMap<PathBuf, &PathBuf> =
        files.iter().filter_map(|file| Some((file.canonicalize().ok()?, file))).collect();
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &str| name != own && name.bytes().all(|byte| byte.is_ascii_digit());
    for process in processes.filter(|entry| entry.file_name().to_str().is_some_and(is_process)) {
        // Those of others cannot be looked at.
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let Some(file) = resolved.get(&target) else { continue };
            let info = process.path().join("fdinfo").join(descriptor.file_name());
            let info = fs::read_to_string(info).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
            // O_WRONLY or O_RDWR.
            if flags & 0o3 != 0 {
                open.insert((*file).clone());
            }
        }
    }
    open
}
