//! What is synced on this computer: `sync.json` beside its identity.

use super::adapters::Adapters;
use super::folder::Folder;
use super::place::{Place, PlaceError};
use super::settings::Settings;
use crate::error::ClientError;
use crate::state::StateDir;
use belay_certs::file;
use belay_protocol::item::ItemKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FILE: &str = "sync.json";
const INDEX: &str = "sync.db";
const LOCK: &str = "sync.lock";
const PAUSED: &str = "sync.paused";

/// What is synced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncConfig {
    /// The settings file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<PathBuf>,
    /// The folder of documents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knowledge: Option<PathBuf>,
    /// The folder of adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<PathBuf>,
    /// Patterns of files that are ignored, in the syntax of `.gitignore`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

fn unusable(path: &Path, why: impl ToString) -> ClientError {
    ClientError::State { what: path.display().to_string(), why: why.to_string() }
}

impl SyncConfig {
    /// What was set up for a client. Errors: the file makes no sense.
    pub fn load(state: &StateDir) -> Result<Self, ClientError> {
        let path = state.path().join(FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        serde_json::from_slice(&file::read(&path)?).map_err(|error| unusable(&path, error))
    }

    /// Keeps it. Errors: two places lie in one another.
    pub fn save(&self, state: &StateDir) -> Result<(), ClientError> {
        let path = state.path().join(FILE);
        self.check().map_err(|why| unusable(&path, why))?;
        let json = serde_json::to_vec_pretty(self).map_err(|error| unusable(&path, error))?;
        Ok(file::write_private(&path, &json)?)
    }

    fn check(&self) -> Result<(), String> {
        let folders: Vec<&PathBuf> = [&self.knowledge, &self.adapters].into_iter().flatten().collect();
        for (number, folder) in folders.iter().enumerate() {
            for other in folders.iter().skip(number + 1) {
                if folder.starts_with(other) || other.starts_with(folder) {
                    return Err(format!("{} and {} lie in one another", folder.display(), other.display()));
                }
            }
        }
        let settings = self.settings.as_ref().and_then(|path| path.parent());
        if let Some((folder, settings)) =
            settings.and_then(|path| Some((folders.iter().find(|f| path.starts_with(f))?, path)))
        {
            return Err(format!(
                "the settings file in {} lies in the synced folder {}",
                settings.display(),
                folder.display()
            ));
        }
        Ok(())
    }

    /// True if nothing is synced.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.settings.is_none() && self.knowledge.is_none() && self.adapters.is_none()
    }

    /// Makes the places ready: folders that are not there are made, and marked.
    pub fn set_up(&self) -> Result<(), PlaceError> {
        for folder in [&self.knowledge, &self.adapters].into_iter().flatten() {
            Folder::set_up(folder)?;
        }
        self.settings.as_deref().map_or(Ok(()), Settings::set_up)?;
        self.places().map(|_| ())
    }

    /// The places. Errors: a pattern makes no sense.
    pub fn places(&self) -> Result<BTreeMap<ItemKind, Box<dyn Place>>, PlaceError> {
        let mut places: BTreeMap<ItemKind, Box<dyn Place>> = BTreeMap::new();
        if let Some(path) = &self.settings {
            places.insert(ItemKind::SETTING, Box::new(Settings::new(path)));
        }
        if let Some(path) = &self.knowledge {
            places.insert(ItemKind::DOCUMENT, Box::new(Folder::new(path, &self.ignore)?));
        }
        if let Some(path) = &self.adapters {
            places.insert(ItemKind::ADAPTER, Box::new(Adapters::new(path, &self.ignore)?));
        }
        Ok(places)
    }

    /// The paths that are followed.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let settings = self.settings.as_ref().and_then(|path| path.parent()).map(Path::to_owned);
        [self.knowledge.clone(), self.adapters.clone(), settings].into_iter().flatten().collect()
    }
}

/// Where a client keeps its index.
#[must_use]
pub fn index_path(state: &StateDir) -> PathBuf {
    state.path().join(INDEX)
}

/// Nobody else syncs for this client while this lives.
#[derive(Debug)]
pub struct SyncLock(#[expect(dead_code, reason = "it is held, not read")] std::fs::File);

impl SyncLock {
    /// Takes the lock. Errors: another process has it.
    pub fn take(state: &StateDir) -> Result<Self, ClientError> {
        let path = state.path().join(LOCK);
        let open = std::fs::File::options().write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(|error| unusable(&path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(unusable(&path, "another belay sync runs for this computer; end it, or let it do the work"))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(unusable(&path, error)),
        }
    }
}

/// Whether sync is paused.
#[must_use]
pub fn is_paused(state: &StateDir) -> bool {
    state.path().join(PAUSED).exists()
}

/// Pauses sync, or lets it go on; one that runs notices.
pub fn set_paused(state: &StateDir, paused: bool) -> Result<(), ClientError> {
    let path = state.path().join(PAUSED);
    if paused {
        return Ok(file::write_private(&path, b"")?);
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(unusable(&path, error)),
        _ => Ok(()),
    }
}
