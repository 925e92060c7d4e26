//! Disks that lie in a synced folder: what was on one that is not there now was not deleted.

use super::place::Problem;
use belay_protocol::item::ItemKey;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use tracing::warn;

/// Where they are noted, in belay's own directory of the folder: a line each, as keys are written.
const FILE: &str = "disks";

/// The disks in a folder on which something was synced.
#[derive(Debug)]
pub(super) struct Mounts {
    root: PathBuf,
    file: PathBuf,
    known: BTreeSet<String>,
}

impl Mounts {
    /// Those that were noted for the folder at `root`, whose own directory is `own`.
    pub(super) fn of(root: &Path, own: &Path) -> Self {
        let file = own.join(FILE);
        let known = fs::read_to_string(&file).unwrap_or_default();
        let known = known.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        Self { root: root.to_owned(), file, known }
    }

    /// Takes note of the disks that files lie on.
    pub(super) fn note(&mut self, files: &BTreeMap<ItemKey, (PathBuf, Metadata)>) {
        let Some(own) = device(&self.root) else { return };
        let mut devices = HashMap::new();
        let before = self.known.len();
        for (key, (_, meta)) in files {
            if device_of(meta).is_none_or(|device| device == own) || self.known.iter().any(|disk| is_below(key, disk)) {
                continue;
            }
            let folders = key.as_str().match_indices('/').map(|(at, _)| &key.as_str()[..at]);
            let mut folders = folders.map(|folder| (folder, self.root.join(folder)));
            let first = folders.find(|(_, path)| {
                let found = devices.entry(path.clone()).or_insert_with(|| device(path));
                found.is_some_and(|device| device != own)
            });
            self.known.extend(first.map(|(folder, _)| folder.to_owned()));
        }
        if self.known.len() != before {
            let lines: String = self.known.iter().map(|disk| format!("{disk}\n")).collect();
            // It is noted at the next look; until then, what is on it counts as any other file.
            if let Err(error) = belay_certs::file::write_private(&self.file, lines.as_bytes()) {
                warn!(%error, "cannot note a disk in a synced folder");
            }
        }
    }

    /// Those that are not there, where something of another disk, or nothing, is in their place.
    pub(super) fn gone(&self) -> Vec<&str> {
        let Some(own) = device(&self.root) else { return vec![] };
        let is_gone = |disk: &&str| device(&self.root.join(disk)).is_none_or(|device| device == own);
        self.known.iter().map(String::as_str).filter(is_gone).collect()
    }

    /// What a user is told of one that is gone.
    pub(super) fn problem(&self, disk: &str) -> Problem {
        let why = format!(
            "the disk that was mounted there is gone; what was on it is left as it is. If it is not to come back, remove \
             its line in {}",
            self.file.display()
        );
        Problem { key: disk.to_owned(), why }
    }
}

/// Whether an item lies on a disk that is mounted there.
pub(super) fn is_below(key: &ItemKey, disk: &str) -> bool {
    key.as_str().strip_prefix(disk).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn device(path: &Path) -> Option<u64> {
    device_of(&fs::metadata(path).ok()?)
}

#[cfg(unix)]
fn device_of(meta: &Metadata) -> Option<u64> {
    Some(std::os::unix::fs::MetadataExt::dev(meta))
}

#[cfg(not(unix))]
fn device_of(_: &Metadata) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_was_noted_and_is_only_a_folder_now_is_gone() {
        let dir = tempfile::tempdir().expect("made");
        let own = dir.path().join(".belay");
        fs::create_dir_all(&own).expect("made");
        fs::create_dir_all(dir.path().join("work")).expect("made");
        fs::write(own.join(FILE), "work\nusb/one\n").expect("written");
        let mut mounts = Mounts::of(dir.path(), &own);
        assert_eq!(mounts.gone(), ["usb/one", "work"]);
        let key = |text: &str| text.parse::<ItemKey>().expect("a key");
        assert!(is_below(&key("work/plan.md"), "work") && !is_below(&key("workshop/plan.md"), "work"));
        // Files of the folder's own disk make no other.
        fs::write(dir.path().join("a.md"), "a").expect("written");
        let meta = fs::metadata(dir.path().join("a.md")).expect("there");
        mounts.note(&BTreeMap::from([(key("a.md"), (dir.path().join("a.md"), meta))]));
        assert_eq!(fs::read_to_string(own.join(FILE)).expect("read"), "work\nusb/one\n");
    }
}
