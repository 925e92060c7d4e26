//! A disk in memory, for what the relay keeps beside its databases.

use belay_relay::blobs::disk::{Disk, Listed};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A disk whose writes and renames are there after a crash only if they were synced. A name is on disk once its
/// directory was synced; what it names, once the file was.
#[derive(Debug, Default)]
pub struct ForgetfulDisk(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// As programs see it.
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// As it will be after a crash.
    durable: BTreeMap<PathBuf, Vec<u8>>,
    /// Contents that were synced, by the name that they had then.
    synced: BTreeMap<PathBuf, Vec<u8>>,
    /// Operations until the disk has no room.
    full_after: Option<u32>,
}

impl ForgetfulDisk {
    /// The machine loses power: what was not synced is gone.
    pub fn crash(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.files = state.durable.clone();
        state.synced = state.durable.clone();
    }

    /// There is no room after so many writes; `None`: there is.
    pub fn fill(&self, after: Option<u32>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).full_after = after;
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_one(state: &mut State, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if let Some(left) = &mut state.full_after {
            if *left == 0 {
                // As much as there was room for.
                state.files.insert(path.to_owned(), bytes[..bytes.len() / 2].to_vec());
                return Err(io::ErrorKind::StorageFull.into());
            }
            *left -= 1;
        }
        state.files.insert(path.to_owned(), bytes.to_vec());
        Ok(())
    }
}

impl Disk for ForgetfulDisk {
    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, files: &[(PathBuf, &[u8])]) -> Vec<io::Result<()>> {
        let write = |(path, bytes): &(PathBuf, &[u8])| {
            self.with(|state| {
                Self::write_one(state, path, bytes)?;
                state.synced.insert(path.clone(), bytes.to_vec());
                Ok(())
            })
        };
        files.iter().map(write).collect()
    }

    fn write_loosely(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.with(|state| Self::write_one(state, path, bytes))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|state| {
            let bytes = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.files.insert(to.to_owned(), bytes);
            if let Some(synced) = state.synced.remove(from) {
                state.synced.insert(to.to_owned(), synced);
            }
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.with(|state| {
            state.durable.retain(|path, _| path.parent() != Some(dir));
            for path in state.files.keys().filter(|path| path.parent() == Some(dir)) {
                // A name without its content: an empty file.
                state.durable.insert(path.clone(), state.synced.get(path).cloned().unwrap_or_default());
            }
            Ok(())
        })
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.with(|state| state.files.get(path).cloned().ok_or(io::ErrorKind::NotFound.into()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|state| {
            state.files.remove(path);
            Ok(())
        })
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        self.with(|state| Ok(state.files.get(path).map(|bytes| bytes.len() as u64)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        self.with(|state| {
            let files = state.files.iter().filter(|(path, _)| path.parent() == Some(dir));
            Ok(files
                .map(|(path, _)| Listed {
                    name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                    is_young: true,
                })
                .collect())
        })
    }
}
