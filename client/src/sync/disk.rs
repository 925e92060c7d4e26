//! Files of synced folders: what they look like, and how they are replaced without a moment in which an edit could be
//! lost.
//!
//! A file that is replaced or removed is first moved out of the way, then looked at: only if it is what was expected it
//! goes, else it comes back. So whatever somebody saves between two looks stays.

use super::place::{PlaceError, Problem, Stamp};
use super::written::is_written;
use belay_protocol::item::ItemKey;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Belay's own directory in a synced folder.
pub(super) const OWN: &str = ".belay";
/// In it: says that this is the folder that was set up.
const MARKER: &str = "folder";
/// In it: beginnings of names of files that are not in their places yet, or not any more. The latter go on with where
/// they were.
const NEW: &str = "new-";
const OLD: &str = "old-";
/// In it: beginning of names of content that arrives.
pub(super) const ARRIVING: &str = "arriving-";
/// Counts names of this process.
static FRESH: AtomicU64 = AtomicU64::new(0);
/// How long content that arrives is kept for its next part.
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
    /// What its marker says: another folder that was set up, or this one by another home, says something else.
    mark: String,
}

impl Root {
    pub(super) fn new(path: &Path, mark: &str) -> Self {
        Self { path: path.to_owned(), mark: mark.to_owned() }
    }

    /// Makes the folder if it is not there, and marks it.
    pub(super) fn set_up(&self) -> Result<(), PlaceError> {
        let own = self.own();
        fs::create_dir_all(&own).map_err(|error| PlaceError::io(format!("cannot make {}", own.display()), error))?;
        // What arrives lies there before it has its place, and the permissions of what it replaces.
        #[cfg(unix)]
        let _ = fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let marker = own.join(MARKER);
        let text = format!(
            "{}\nThis folder is synced by belay. Without this file, belay takes it for another one, and stops.\n",
            self.mark
        );
        fs::write(&marker, text).map_err(|error| PlaceError::io(format!("cannot write {}", marker.display()), error))
    }

    pub(super) fn own(&self) -> PathBuf {
        self.path.join(OWN)
    }

    /// Errors: `Missing`, so that nothing in it counts as deleted.
    pub(super) fn check(&self) -> Result<(), PlaceError> {
        let marker = fs::read_to_string(self.own().join(MARKER)).unwrap_or_default();
        if marker.lines().next() == Some(&self.mark) {
            return Ok(());
        }
        let path = self.path.display();
        Err(PlaceError::Missing(format!(
            "{path} is not there, or is not the folder that was set up (by {OWN}/{MARKER} in it); connect its disk, or \
             set it up anew: belay sync folders, with its path"
        )))
    }

    /// Where an item lies.
    pub(super) fn file(&self, key: &ItemKey) -> PathBuf {
        let mut path = self.path.clone();
        path.extend(key.as_str().split('/'));
        path
    }

    /// A name in belay's own directory that nothing has.
    fn fresh(&self, what: &str, was: &str) -> PathBuf {
        loop {
            let count = FRESH.fetch_add(1, Ordering::Relaxed);
            let path = self.own().join(format!("{what}{}-{count}{was}", std::process::id()));
            if fs::symlink_metadata(&path).is_err() {
                return path;
            }
        }
    }

    /// Writes bytes to a new file in belay's own directory; they are on disk when this returns.
    pub(super) fn write_new(&self, bytes: &[u8]) -> Result<PathBuf, PlaceError> {
        let path = self.fresh(NEW, "");
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

    /// A name for a file that is moved out of the way, which says where it was.
    fn aside(&self, at: &Path) -> PathBuf {
        let below = at.strip_prefix(&self.path).unwrap_or(at).to_string_lossy();
        let mut was: String = percent_encoding::utf8_percent_encode(&below, AS_NAME).to_string();
        // A very long one comes back under its last letters.
        while was.len() > 200 {
            was.remove(0);
        }
        self.fresh(OLD, &format!("~{was}"))
    }

    /// Puts a new file into its place, where there is what was expected (`None`: nothing). If that is not so, content
    /// that arrived is kept for the next time.
    pub(super) fn replace(&self, new: &Path, at: &Path, expected: Option<&Stamp>) -> Result<Metadata, PlaceError> {
        let put = match expected {
            None => no_clobber(new, at),
            Some(expected) => self.exchange(new, at, expected),
        };
        if put.is_err() && new.file_name().is_some_and(|name| name.to_string_lossy().starts_with(NEW)) {
            let _ = fs::remove_file(new);
        }
        put?;
        sync_dir(at.parent());
        fs::symlink_metadata(at).map_err(|error| PlaceError::io("cannot look at it", error))
    }

    fn exchange(&self, new: &Path, at: &Path, expected: &Stamp) -> Result<(), PlaceError> {
        let before = is_as_expected(at, expected)?;
        // Who may read it, and whether it runs, is this computer's business.
        let _ = fs::set_permissions(new, before.permissions());
        #[cfg(target_os = "linux")]
        {
            // Under this name from now on, since it will be what lay there: only what is known to be that goes.
            let old = self.aside(at);
            fs::rename(new, &old).map_err(|error| PlaceError::io("cannot move it", error))?;
            if swap(&old, at).is_ok() {
                if identity(&look(&old)?) == identity(&before) {
                    return fs::remove_file(&old).map_err(|error| PlaceError::io("cannot remove what it was", error));
                }
                swap(&old, at).map_err(|error| PlaceError::io("cannot put it back", error))?;
                let _ = fs::rename(&old, new);
                return Err(PlaceError::Changed);
            }
            fs::rename(&old, new).map_err(|error| PlaceError::io("cannot move it", error))?;
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
        let old = self.aside(at);
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
        let before = is_as_expected(at, expected)?;
        let old = self.move_away(at, &before)?;
        fs::remove_file(&old).map_err(|error| PlaceError::io("cannot remove it", error))?;
        sync_dir(at.parent());
        self.prune(at);
        Ok(())
    }

    /// Puts new files together into a folder that is not there, all of them at once.
    pub(super) fn put_folder(&self, files: &[(PathBuf, &str)], at: &Path) -> Result<(), PlaceError> {
        let new = self.fresh(NEW, "");
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

    /// Removes what is left of arrivals that are over. Of files that a process that died had moved out of the way,
    /// `is_known` says of each, by the place that it had, whether it is not needed; the others come back.
    pub(super) fn tidy(&self, mut is_known: impl FnMut(&Path, &str) -> bool) -> Result<Vec<Problem>, PlaceError> {
        let failed = |error| PlaceError::io(format!("cannot look at {}", self.own().display()), error);
        let mut told = vec![];
        let entries = match fs::read_dir(self.own()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(told),
            other => other.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
            if name.starts_with(NEW) || name.starts_with(ARRIVING) && age.is_some_and(|age| age > KEPT) {
                if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(failed)?;
            } else if let Some((_, was)) = name.strip_prefix(OLD).and_then(|name| name.split_once('~')) {
                let was = percent_encoding::percent_decode_str(was).decode_utf8_lossy().into_owned();
                if is_known(&path, &was) {
                    fs::remove_file(path).map_err(failed)?;
                } else {
                    told.push(self.bring_back(&path, &was)?);
                }
            }
        }
        Ok(told)
    }

    /// Puts a file that was moved out of the way beside where it was.
    fn bring_back(&self, path: &Path, was: &str) -> Result<Problem, PlaceError> {
        let key = was.parse::<ItemKey>().or_else(|_| "recovered".parse());
        let key = key.map_err(|error| PlaceError::Unfit(error.to_string()))?;
        let mut number = 1;
        loop {
            let to = key.beside("recovered", number);
            let at = self.file(&to);
            match self.make_way(&at).and_then(|()| no_clobber(path, &at)) {
                Ok(()) => {
                    let why = format!("a process that died had moved it; what it was is now {to}");
                    return Ok(Problem { key: was.to_owned(), why });
                }
                Err(PlaceError::Taken(_)) if number < 1000 => number += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

/// What may not stand in a file's name.
const AS_NAME: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%').add(b'/').add(b'~');

/// What a file is, if it looks as it did and nobody is writing to it. Errors: `Changed`.
pub(super) fn is_as_expected(at: &Path, expected: &Stamp) -> Result<Metadata, PlaceError> {
    let meta = look(at)?;
    if stamp(&meta) != *expected || is_written(at) {
        return Err(PlaceError::Changed);
    }
    Ok(meta)
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
