//! A folder of adapters: each directory with an `adapter_model.safetensors` and an `adapter_config.json` is an item, its
//! path the key. The weights are the item's content, the configuration its `meta`. Other files stay where they are.

use super::cut;
use super::disk::{Root, look, modified_ms, stamp};
use super::files::{file_parts, is_ready, new_file, open_file, stage};
use super::folder::Folder;
use super::place::{Content, Known, Local, Place, PlaceError, Problem, Scan, Sig, Source, Staged, Stamp, Unknown};
use super::written::is_being_written;
use belay_protocol::adapter::{self, HEADER_REGION};
use belay_protocol::item::{Digest, ItemKey, ItemKind, META_BYTES, Parts};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
/// What other programs call weights that run code when they are loaded.
const PICKLES: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];

/// A folder of adapters.
#[derive(Debug)]
pub struct Adapters {
    root: Root,
    /// Knows which files there are, and which are ignored.
    files: Folder,
    /// What a scan has cut, so that what goes now is not read once more for it.
    cut: HashMap<Digest, Parts>,
}

impl Adapters {
    /// The folder at a path; see [`Folder::new`].
    pub fn new(path: &Path, mark: &str, patterns: &[String]) -> Result<Self, PlaceError> {
        Ok(Self { root: Root::new(path, mark), files: Folder::new(path, mark, patterns)?, cut: HashMap::new() })
    }

    fn weights(&self, key: &ItemKey) -> PathBuf {
        self.root.file(key).join(WEIGHTS)
    }

    fn config(&self, key: &ItemKey) -> PathBuf {
        self.root.file(key).join(CONFIG)
    }

    /// What both files look like. Errors: `Changed` if one is gone.
    fn stamps(&self, key: &ItemKey) -> Result<(Stamp, Stamp), PlaceError> {
        Ok((stamp(&look(&self.weights(key))?), stamp(&look(&self.config(key))?)))
    }

    /// Reads and checks an adapter.
    fn read(&mut self, key: &ItemKey) -> Result<Local, PlaceError> {
        let (weights, config) = (self.weights(key), self.config(key));
        let before = self.stamps(key)?;
        let meta = look(&weights)?;
        cut::fits(ItemKind::ADAPTER, meta.len())?;
        let read = |error: io::Error| PlaceError::io("cannot read it", error);
        let mut text = String::new();
        File::open(&config)
            .and_then(|file| file.take(META_BYTES as u64 + 1).read_to_string(&mut text))
            .map_err(|error| PlaceError::io(format!("cannot read its {CONFIG}"), error))?;
        if text.len() > META_BYTES {
            return Err(PlaceError::Unfit(format!("its {CONFIG} has more than {META_BYTES} bytes")));
        }
        let mut start = vec![];
        File::open(&weights).and_then(|file| file.take(HEADER_REGION).read_to_end(&mut start)).map_err(read)?;
        adapter::check(&start, meta.len(), &text).map_err(|error| PlaceError::Unfit(error.to_string()))?;
        let file = File::open(&weights).map_err(read)?;
        let cut = cut::sig_and_parts(ItemKind::ADAPTER, meta.len(), file, text);
        let (sig, parts) = cut.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => PlaceError::Changed,
            _ => read(error),
        })?;
        if self.stamps(key)? != before {
            return Err(PlaceError::Changed);
        }
        self.cut.extend(parts.map(|parts| (sig.digest, parts)));
        Ok(Local { sig, stamp: joined(&before), modified_ms: modified_ms(&meta) })
    }
}

fn joined((weights, config): &(Stamp, Stamp)) -> Stamp {
    Stamp(format!("{} {}", weights.0, config.0))
}

fn split(stamp: &Stamp) -> Result<(Stamp, Stamp), PlaceError> {
    let (weights, config) = stamp.0.split_once(' ').ok_or(PlaceError::Changed)?;
    Ok((Stamp(weights.into()), Stamp(config.into())))
}

/// The adapter that a file belongs to, and its name in it.
fn belongs(file: &ItemKey) -> Option<(ItemKey, &str)> {
    let (folder, name) = file.as_str().rsplit_once('/')?;
    Some((folder.parse().ok()?, name))
}

impl Place for Adapters {
    fn scan(&mut self, known: &Known) -> Result<Scan, PlaceError> {
        self.root.check()?;
        let mut scan = Scan::default();
        self.cut.clear();
        let files = self.files.look(&mut scan)?;
        // What is out of sight there is a file; what is known here is an adapter.
        let hidden: Vec<ItemKey> = std::mem::take(&mut scan.unknown).into_keys().collect();
        let mut adapters: BTreeMap<ItemKey, [bool; 2]> = BTreeMap::new();
        for file in files.keys() {
            match belongs(file) {
                Some((key, WEIGHTS)) => adapters.entry(key).or_default()[0] = true,
                Some((key, CONFIG)) => adapters.entry(key).or_default()[1] = true,
                _ if PICKLES.iter().any(|ending| file.as_str().ends_with(ending)) => {
                    let why =
                        "it may be a pickle, which can run code: save the adapter as safetensors, or ignore the file";
                    scan.problems.push(Problem { key: file.to_string(), why: why.into() });
                }
                None if file.as_str().ends_with(".safetensors") => {
                    let why = format!("an adapter is a directory with {WEIGHTS} and {CONFIG}; put it into one");
                    scan.problems.push(Problem { key: file.to_string(), why });
                }
                _ => {}
            }
        }
        let whole = adapters.iter().filter(|(_, has)| **has == [true, true]).map(|(key, _)| key.clone());
        let whole: Vec<_> = whole.collect();
        let paths = whole.iter().flat_map(|key| [self.weights(key), self.config(key)]).collect::<HashSet<_>>();
        let open = is_being_written(&paths);
        for (key, has) in adapters {
            let result = if has != [true, true] {
                let missing = if has[0] { CONFIG } else { WEIGHTS };
                Err(PlaceError::Unfit(format!("its {missing} is missing")))
            } else if open.contains(&self.weights(&key)) || open.contains(&self.config(&key)) {
                Err(PlaceError::Changed)
            } else {
                match (known.get(&key), self.stamps(&key)) {
                    (Some((then, sig)), Ok(now)) if *then == joined(&now) => {
                        let modified_ms = look(&self.weights(&key)).map_or(0, |meta| modified_ms(&meta));
                        Ok(Local { sig: sig.clone(), stamp: then.clone(), modified_ms })
                    }
                    _ if !self.is_quiet(&key, &files) => Err(PlaceError::Changed),
                    _ => self.read(&key),
                }
            };
            match result {
                Ok(local) => {
                    scan.items.insert(key, local);
                }
                Err(PlaceError::Changed) => {
                    scan.unknown.insert(key, Unknown::Unsettled);
                }
                Err(error) => {
                    scan.problems.push(Problem { key: key.to_string(), why: error.to_string() });
                    scan.unknown.insert(key, Unknown::Hidden);
                }
            }
        }
        for file in hidden {
            if let Some((key, WEIGHTS | CONFIG)) = belongs(&file) {
                scan.unknown.entry(key).or_insert(Unknown::Hidden);
            }
        }
        let missing: Vec<ItemKey> = known.keys().filter(|key| !scan.items.contains_key(*key)).cloned().collect();
        self.files.on_gone_disks(missing.iter(), &mut scan);
        for key in known.keys() {
            let is_there =
                [self.weights(key), self.config(key)].iter().any(|path| std::fs::symlink_metadata(path).is_ok());
            if is_there && !scan.items.contains_key(key) {
                scan.unknown.entry(key.clone()).or_insert(Unknown::Hidden);
            }
        }
        Ok(scan)
    }

    fn open(&mut self, key: &ItemKey, local: &Local) -> Result<Box<dyn Source>, PlaceError> {
        let (weights, config) = split(&local.stamp)?;
        if stamp(&look(&self.config(key))?) != config {
            return Err(PlaceError::Changed);
        }
        open_file(&self.weights(key), &weights)
    }

    fn parts(&mut self, key: &ItemKey, local: &Local) -> Result<Parts, PlaceError> {
        match self.cut.get(&local.sig.digest) {
            Some(parts) => Ok(parts.clone()),
            None => file_parts(ItemKind::ADAPTER, &self.weights(key), local),
        }
    }

    fn stage(&mut self, digest: Digest, size: u64) -> Result<Box<dyn Staged>, PlaceError> {
        self.root.check()?;
        stage(&self.root, digest, size)
    }

    fn put(
        &mut self,
        key: &ItemKey,
        content: Content,
        sig: &Sig,
        expected: Option<&Local>,
        modified_ms: u64,
    ) -> Result<Stamp, PlaceError> {
        self.root.check()?;
        let start = match &content {
            Content::Bytes(bytes) => bytes.to_vec(),
            Content::File(path) => {
                let mut start = vec![];
                let read = File::open(path).and_then(|file| file.take(HEADER_REGION).read_to_end(&mut start));
                read.map_err(|error| PlaceError::io("cannot read what arrived", error))?;
                start
            }
        };
        if let Err(error) = adapter::check(&start, sig.size, &sig.meta) {
            if let Content::File(path) = &content {
                let _ = std::fs::remove_file(path);
            }
            return Err(PlaceError::Unfit(format!("what arrived is no adapter: {error}")));
        }
        let (weights, config) = (self.weights(key), self.config(key));
        let before = expected.map(|local| split(&local.stamp)).transpose()?;
        let new = new_file(&self.root, content, modified_ms)?;
        let folder = self.root.file(key);
        if before.is_none() && std::fs::symlink_metadata(&folder).is_err() {
            self.root.make_way(&folder)?;
            let (new, text) = ((new, WEIGHTS), (self.root.write_new(sig.meta.as_bytes())?, CONFIG));
            self.root.put_folder(&[new, text], &folder)?;
            return Ok(joined(&self.stamps(key)?));
        }
        self.root.make_way(&weights)?;
        // Should the process die between the two, half of what lies there is new: the next round knows both halves.
        let text = self.root.write_new(sig.meta.as_bytes())?;
        let config = self.root.replace(&text, &config, before.as_ref().map(|(_, config)| config))?;
        let weights = self.root.replace(&new, &weights, before.as_ref().map(|(weights, _)| weights))?;
        Ok(joined(&(stamp(&weights), stamp(&config))))
    }

    fn remove(&mut self, key: &ItemKey, expected: &Local) -> Result<(), PlaceError> {
        self.root.check()?;
        let (weights, config) = split(&expected.stamp)?;
        if self.stamps(key)? != (weights.clone(), config.clone()) {
            return Err(PlaceError::Changed);
        }
        self.root.remove(&self.weights(key), &weights)?;
        self.root.remove(&self.config(key), &config)
    }

    fn set_aside(&mut self, key: &ItemKey, to: &ItemKey, expected: &Local) -> Result<Stamp, PlaceError> {
        self.root.check()?;
        let (weights, config) = split(&expected.stamp)?;
        let config = self.root.rename(&self.config(key), &self.config(to), &config)?;
        let weights = self.root.rename(&self.weights(key), &self.weights(to), &weights)?;
        self.root.prune(&self.weights(key));
        Ok(joined(&(stamp(&weights), stamp(&config))))
    }

    fn ready(&mut self, key: &ItemKey, expected: Option<&Local>) -> Result<(), PlaceError> {
        self.root.check()?;
        let stamps = expected.map(|local| split(&local.stamp)).transpose()?;
        is_ready(&self.root, &self.weights(key), stamps.as_ref().map(|(weights, _)| weights))?;
        is_ready(&self.root, &self.config(key), stamps.as_ref().map(|(_, config)| config))
    }

    fn tidy(&mut self, _: &dyn Fn(&ItemKey, &Sig) -> bool) -> Result<Vec<Problem>, PlaceError> {
        self.root.check()?;
        // Half an adapter is known by nobody: it comes back, and the user says what it is.
        self.root.tidy(|_, _| false)
    }
}

impl Adapters {
    /// Whether both files have been as they are for long enough.
    fn is_quiet(&mut self, key: &ItemKey, files: &BTreeMap<ItemKey, (PathBuf, std::fs::Metadata)>) -> bool {
        let name = |file: &str| format!("{key}/{file}").parse::<ItemKey>().ok();
        [WEIGHTS, CONFIG].into_iter().all(|file| {
            name(file).is_some_and(|file| files.get(&file).is_some_and(|(_, meta)| self.files.settled(&file, meta)))
        })
    }
}
