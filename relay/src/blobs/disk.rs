//! What pieces of content need of a disk. Behind a trait, so that a test can own one that forgets what was not synced,
//! and an object store can stand in later.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A disk. All of it blocks.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Makes a directory that nobody else can read, with those above it, if it is not there; its name is on disk then.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// Writes files anew, and returns once their bytes are on disk; their names need not be.
    fn write(&self, files: &[(PathBuf, &[u8])]) -> Vec<io::Result<()>>;
    /// Writes a file that may be lost.
    fn write_loosely(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Gives a file another name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Returns once the names in a directory are on disk.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// A whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Removes a file; that there is none is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// A file's bytes; `None`: there is none.
    fn size(&self, path: &Path) -> io::Result<Option<u64>>;
    /// The files of a directory, and whether they were written in the last day; empty: there is no
    /// such directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>>;
}

/// A file in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// It was written in the last day.
    pub is_young: bool,
}

/// The machine's own.
#[derive(Debug, Default)]
pub struct SystemDisk;

const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

impl Disk for SystemDisk {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        belay_certs::file::create_private_dir(dir).map_err(io::Error::other)
    }

    fn write(&self, files: &[(PathBuf, &[u8])]) -> Vec<io::Result<()>> {
        // All of them are written before the first is waited for: the disk has more to choose from.
        let written = files.iter().map(|(path, bytes)| {
            let mut file = create(path)?;
            file.write_all(bytes)?;
            Ok(file)
        });
        let written: Vec<io::Result<File>> = written.collect();
        written.into_iter().map(|file| file?.sync_data()).collect()
    }

    fn write_loosely(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        create(path)?.write_all(bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some(other?.len())),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            other => other?,
        };
        let mut files = vec![];
        for entry in entries {
            let entry = entry?;
            // One that has gone meanwhile is none.
            let Ok(meta) = entry.metadata() else { continue };
            let is_young = meta.modified().ok().and_then(|at| at.elapsed().ok()).is_none_or(|age| age < DAY);
            if meta.is_file() {
                files.push(Listed { name: entry.file_name().to_string_lossy().into_owned(), is_young });
            }
        }
        Ok(files)
    }
}
