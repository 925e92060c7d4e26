//! The client that runs in the background: one per directory of state, found and ended by other commands.
//!
//! It holds a lock for as long as it lives, so a file that a killed one has left says nothing; beside the
//! lock lies where it listens, and the secret that whoever can read this directory may end it with.

use crate::error::ClientError;
use crate::state::StateDir;
use belay_certs::file;
use belay_protocol::id::DeviceId;
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const LOCK_FILE: &str = "up.lock";
const TOLD_FILE: &str = "up.json";
const LOG_FILE: &str = "up.log";

/// What a running client tells others of itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Its process.
    pub process: u32,
    /// Who it is to the relay.
    pub device: DeviceId,
    /// Where its gateway listens.
    pub listen: SocketAddr,
    /// Shown to the gateway by those who may end it.
    pub secret: String,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").field("process", &self.process).field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// Held by the client that runs; let go of by its end, however that comes.
#[derive(Debug)]
pub struct Held {
    _lock: File,
    told: PathBuf,
}

impl Held {
    /// Tells others where it is.
    pub fn tell(&self, told: &Told) -> Result<(), ClientError> {
        let json = serde_json::to_vec(told).map_err(|error| unusable(&self.told, &error))?;
        Ok(file::write_private(&self.told, &json)?)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // What stays says nothing: the lock is free.
        let _ = std::fs::remove_file(&self.told);
    }
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> ClientError {
    ClientError::State { what: path.display().to_string(), why: why.to_string() }
}

impl StateDir {
    /// The place of the one client that runs for this directory. `None`: another has it.
    pub fn hold(&self) -> Result<Option<Held>, ClientError> {
        file::create_private_dir(self.path())?;
        let path = self.path().join(LOCK_FILE);
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = open.map_err(|error| unusable(&path, &error))?;
        match lock.try_lock() {
            Ok(()) => {
                let told = self.path().join(TOLD_FILE);
                // What a killed one has left would be taken for what this one says.
                let _ = std::fs::remove_file(&told);
                Ok(Some(Held { _lock: lock, told }))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(unusable(&path, &error)),
        }
    }

    /// True while a client runs. Those who look do not take each other for one.
    fn is_held(&self) -> Result<bool, ClientError> {
        let path = self.path().join(LOCK_FILE);
        match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(unusable(&path, &error)),
            Ok(lock) => match lock.try_lock_shared() {
                Ok(()) => Ok(false),
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(error)) => Err(unusable(&path, &error)),
            },
        }
    }

    /// What the client that runs has told; `None` if none runs, or it has not said anything yet.
    pub fn running(&self) -> Result<Option<Told>, ClientError> {
        let path = self.path().join(TOLD_FILE);
        if !path.exists() || !self.is_held()? {
            return Ok(None);
        }
        match file::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).map_err(|error| unusable(&path, &error))?)),
            Err(_) if !path.exists() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where a client in the background writes what it has to say.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.path().join(LOG_FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_runs_at_a_time_and_what_a_dead_one_left_says_nothing() {
        let dir = tempfile::tempdir().expect("made");
        let state = StateDir::at(dir.path().join("home"));
        assert_eq!(state.running().expect("read"), None);
        let held = state.hold().expect("free").expect("free");
        let device = "laptop-1".parse().expect("a name");
        let told = Told { process: 7, device, listen: ([127, 0, 0, 1], 4141).into(), secret: "s".into() };
        held.tell(&told).expect("told");
        assert!(state.hold().expect("works").is_none());
        assert_eq!(state.running().expect("read"), Some(told.clone()));
        assert!(!format!("{told:?}").contains("\"s\""));
        drop(held);
        assert_eq!(state.running().expect("read"), None);
        // As a kill leaves it.
        std::fs::write(state.path().join(TOLD_FILE), serde_json::to_vec(&told).expect("json")).expect("written");
        assert_eq!(state.running().expect("read"), None);
        assert!(state.hold().expect("works").is_some());
    }
}
