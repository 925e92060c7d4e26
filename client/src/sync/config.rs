//! What is synced on this computer: `sync.json` beside its identity.

use super::adapters::Adapters;
use super::disk::Root;
use super::folder::Folder;
use super::place::{Place, PlaceError};
use super::settings::Settings;
use crate::error::ClientError;
use crate::state::StateDir;
use belay_certs::file;
use belay_protocol::item::{Digest, ItemKind};
use belay_transport::env::Random;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

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
    /// What the markers of the places say, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    marks: BTreeMap<PathBuf, String>,
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

    /// Whether the places can be synced together. Errors: one lies in another, or in this client's own directory, where
    /// its key is, or has that in it.
    pub fn check(&self, state: &StateDir) -> Result<(), ClientError> {
        let settings = self.settings.as_deref().and_then(Path::parent);
        let places = [self.knowledge.as_deref(), self.adapters.as_deref(), settings, Some(state.path())];
        let places: Vec<(&Path, PathBuf)> = places.into_iter().flatten().map(|path| (path, resolved(path))).collect();
        for (number, (shown, path)) in places.iter().enumerate() {
            for (other_shown, other) in &places[number + 1..] {
                if path.starts_with(other) || other.starts_with(path) {
                    let why = format!("{} and {} lie in one another", shown.display(), other_shown.display());
                    return Err(unusable(&state.path().join(FILE), why));
                }
            }
        }
        Ok(())
    }

    /// Keeps it.
    pub fn save(&self, state: &StateDir) -> Result<(), ClientError> {
        let path = state.path().join(FILE);
        let json = serde_json::to_vec_pretty(self).map_err(|error| unusable(&path, error))?;
        Ok(file::write_private(&path, &json)?)
    }

    /// True if nothing is synced.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.settings.is_none() && self.knowledge.is_none() && self.adapters.is_none()
    }

    /// Makes the places ready: folders that are not there are made, and those that are new here are marked.
    pub fn set_up(&mut self, random: &Random) -> Result<(), PlaceError> {
        let paths = self.paths();
        self.marks.retain(|path, _| paths.contains(path));
        let new: Vec<_> = paths.into_iter().filter(|path| !self.marks.contains_key(path)).collect();
        for path in &new {
            self.marks.insert(path.clone(), Digest::of(&random.bytes::<32>()).to_string());
        }
        if let Some(path) = self.knowledge.as_ref().filter(|path| new.contains(path)) {
            Folder::new(path, self.mark(path), &self.ignore)?.set_up()?;
        }
        if let Some(path) = self.adapters.as_ref().filter(|path| new.contains(path)) {
            Folder::new(path, self.mark(path), &self.ignore)?.set_up()?;
        }
        if let Some(path) = &self.settings {
            Settings::new(path, self.settings_mark()).set_up()?;
        }
        self.places().map(|_| ())
    }

    /// Forgets the mark of a kind's place where the place does not have it any more, so that it is set up anew.
    pub fn forget_if_lost(&mut self, kind: ItemKind) -> bool {
        let path = match kind {
            ItemKind::DOCUMENT => self.knowledge.clone(),
            ItemKind::ADAPTER => self.adapters.clone(),
            _ => self.settings.as_deref().and_then(Path::parent).map(Path::to_owned),
        };
        let Some(path) = path else { return false };
        let is_lost = self.marks.get(&path).is_some_and(|mark| Root::new(&path, mark).check().is_err());
        is_lost && self.marks.remove(&path).is_some()
    }

    fn mark(&self, path: &Path) -> &str {
        self.marks.get(path).map_or("", String::as_str)
    }

    fn settings_mark(&self) -> &str {
        self.settings.as_deref().and_then(Path::parent).map_or("", |folder| self.mark(folder))
    }

    /// The places. Errors: a pattern makes no sense.
    pub fn places(&self) -> Result<BTreeMap<ItemKind, Box<dyn Place>>, PlaceError> {
        let mut places: BTreeMap<ItemKind, Box<dyn Place>> = BTreeMap::new();
        if let Some(path) = &self.settings {
            places.insert(ItemKind::SETTING, Box::new(Settings::new(path, self.settings_mark())));
        }
        if let Some(path) = &self.knowledge {
            places.insert(ItemKind::DOCUMENT, Box::new(Folder::new(path, self.mark(path), &self.ignore)?));
        }
        if let Some(path) = &self.adapters {
            places.insert(ItemKind::ADAPTER, Box::new(Adapters::new(path, self.mark(path), &self.ignore)?));
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

/// A path without links and detours, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    // Of what is not there, `..` can only mean what stands before it.
    let mut there = PathBuf::new();
    for name in path.components() {
        match name {
            Component::ParentDir if !there.exists() => _ = there.pop(),
            name => there.push(name),
        }
    }
    let mut rest = vec![];
    loop {
        if let Ok(real) = there.canonicalize() {
            return rest.iter().rev().fold(real, |path, name| path.join(name));
        }
        match (there.file_name().map(ToOwned::to_owned), there.parent().map(Path::to_owned)) {
            (Some(name), Some(above)) => {
                rest.push(name);
                there = above;
            }
            _ => return path.to_owned(),
        }
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
