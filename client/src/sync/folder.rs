//! A folder of documents: each file is an item, its path the key.

use super::cut;
use super::disk::{OWN, Root, look, modified_ms, stamp};
use super::files::{file_parts, is_ready, new_file, open_file, stage};
use super::mounts::{Mounts, is_below};
use super::place::{Content, Known, Local, Place, PlaceError, Problem, Scan, Sig, Source, Staged, Stamp, Unknown};
use super::written::{is_being_written, look_anew};
use belay_protocol::item::{Digest, ItemKey, ItemKind, MAX_DEPTH, Parts};
use ignore::WalkBuilder;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Patterns of files that programs leave for a moment, or that belong to one computer. `.belayignore` files, in the same
/// syntax, can take them back.
const IGNORED: &[&str] = &[
    "*~",
    ".*.sw?",
    ".#*",
    "#*#",
    "*.tmp",
    "*.part",
    "*.partial",
    "*.crdownload",
    "~$*",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    ".git/",
];
/// Files in the folder that say what is ignored.
const IGNORE_FILE: &str = ".belayignore";
/// A file that was changed so recently may be in the middle of being written.
const QUIET: Duration = Duration::from_millis(500);

/// A folder of documents.
#[derive(Debug)]
pub struct Folder {
    root: Root,
    ignored: Gitignore,
    /// Files that were not quiet when they were looked at last, and since when they look as they do.
    restless: HashMap<ItemKey, (Stamp, Instant)>,
    mounts: Mounts,
}

impl Folder {
    /// The folder at a path, known by its mark, with patterns of what is ignored in the syntax of `.gitignore`. Errors: a pattern makes no
    /// sense.
    pub fn new(path: &Path, mark: &str, patterns: &[String]) -> Result<Self, PlaceError> {
        let mut builder = GitignoreBuilder::new(path);
        for pattern in IGNORED.iter().copied().chain(patterns.iter().map(String::as_str)) {
            builder
                .add_line(None, pattern)
                .map_err(|error| PlaceError::Unfit(format!("the pattern {pattern:?} makes no sense: {error}")))?;
        }
        let ignored = builder.build().map_err(|error| PlaceError::Unfit(error.to_string()))?;
        let root = Root::new(path, mark);
        let mounts = Mounts::of(&root.path, &root.own());
        Ok(Self { root, ignored, restless: HashMap::new(), mounts })
    }

    /// Makes the folder ready to be synced.
    pub fn set_up(&self) -> Result<(), PlaceError> {
        self.root.set_up()
    }

    /// Every file that is not ignored, with its key.
    fn walk(&self, scan: &mut Scan) -> BTreeMap<ItemKey, (PathBuf, Metadata)> {
        let (ignored, root) = (self.ignored.clone(), self.root.path.clone());
        let mut walk = WalkBuilder::new(&self.root.path);
        walk.standard_filters(false)
            .follow_links(false)
            .max_depth(Some(MAX_DEPTH + 1))
            .add_custom_ignore_filename(IGNORE_FILE);
        walk.filter_entry(move |entry| {
            let is_dir = entry.file_type().is_some_and(|kind| kind.is_dir());
            entry.path() == root
                || entry.file_name() != OWN
                    && entry.file_name() != IGNORE_FILE
                    && !ignored.matched(entry.path(), is_dir).is_ignore()
        });
        let mut files = BTreeMap::new();
        for entry in walk.build() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    scan.problems.push(Problem { key: String::new(), why: error.to_string() });
                    continue;
                }
            };
            let is_dir = entry.file_type().is_some_and(|kind| kind.is_dir());
            if is_dir && entry.depth() > MAX_DEPTH {
                let below = entry.path().strip_prefix(&self.root.path).unwrap_or(entry.path());
                let why = format!("it lies below {MAX_DEPTH} folders: what is in it is not synced");
                scan.problems.push(Problem { key: below.display().to_string(), why });
            }
            let Some(kind) = entry.file_type().filter(|kind| !kind.is_dir()) else { continue };
            let below = entry.path().strip_prefix(&self.root.path).unwrap_or(entry.path());
            let names: Option<Vec<&str>> = below.components().map(|name| name.as_os_str().to_str()).collect();
            let shown = below.display().to_string();
            let mut problem = |why: String| scan.problems.push(Problem { key: shown.clone(), why });
            let Some(key) = names.map(|names| names.join("/")) else {
                problem("its name is not text that all computers can read; rename it".into());
                continue;
            };
            let key = match key.parse::<ItemKey>() {
                Ok(key) => key,
                Err(error) => {
                    problem(format!("{}; rename it, or ignore it", error.why));
                    continue;
                }
            };
            if !kind.is_file() {
                problem(
                    if kind.is_symlink() { "it is a link, and links are not followed" } else { "it is no file" }.into(),
                );
                scan.unknown.insert(key, Unknown::Hidden);
                continue;
            }
            match entry.metadata() {
                Ok(meta) => {
                    files.insert(key, (entry.into_path(), meta));
                }
                // Gone since the folder was listed, or not to be looked at.
                Err(error) => {
                    if error.io_error().is_none_or(|error| error.kind() != io::ErrorKind::NotFound) {
                        problem(error.to_string());
                        scan.unknown.insert(key, Unknown::Hidden);
                    }
                }
            }
        }
        files
    }

    /// Every file that is not ignored, if the folder is there.
    pub(super) fn look(&mut self, scan: &mut Scan) -> Result<BTreeMap<ItemKey, (PathBuf, Metadata)>, PlaceError> {
        self.root.check()?;
        look_anew();
        let files = self.walk(scan);
        // A disk that went away while it was read has left fewer files than there are.
        self.root.check()?;
        self.restless.retain(|key, _| files.contains_key(key));
        // As they are noted now: somebody may have taken one out.
        self.mounts = Mounts::of(&self.root.path, &self.root.own());
        self.mounts.note(&files);
        Ok(files)
    }

    /// Of what is known and not there: what lies on a disk that is gone is only out of sight.
    pub(super) fn on_gone_disks<'a>(&self, missing: impl Iterator<Item = &'a ItemKey>, scan: &mut Scan) {
        let gone = self.mounts.gone();
        let mut told = BTreeSet::new();
        for key in missing {
            if let Some(disk) = gone.iter().find(|disk| is_below(key, disk)) {
                scan.unknown.insert(key.clone(), Unknown::Hidden);
                told.insert(*disk);
            }
        }
        scan.problems.extend(told.into_iter().map(|disk| self.mounts.problem(disk)));
    }

    /// Whether a file has been as it is for long enough to be whole.
    pub(super) fn settled(&mut self, key: &ItemKey, meta: &Metadata) -> bool {
        self.is_settled(key, meta, Instant::now())
    }

    fn is_settled(&mut self, key: &ItemKey, meta: &Metadata, now: Instant) -> bool {
        // By this computer's clock, where the file system's agrees with it; else by whether it stays as it is.
        let age = meta.modified().ok().and_then(|at| at.elapsed().ok());
        let stamp = stamp(meta);
        let since = match self.restless.get(key) {
            Some((known, since)) if *known == stamp => *since,
            _ => {
                self.restless.insert(key.clone(), (stamp, now));
                now
            }
        };
        let is_settled = now.duration_since(since) >= QUIET || age.is_some_and(|age| age > QUIET * 4);
        if is_settled {
            self.restless.remove(key);
        }
        is_settled
    }

    /// What became of items that were known and were not seen: gone, or only out of sight.
    fn missing(&self, known: &Known, seen: &BTreeMap<ItemKey, (PathBuf, Metadata)>, scan: &mut Scan) {
        for key in known
            .keys()
            .filter(|key| !seen.contains_key(key) && !scan.unknown.contains_key(key))
            .cloned()
            .collect::<Vec<_>>()
        {
            let is_gone = match std::fs::symlink_metadata(self.root.file(&key)) {
                Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
                // A folder in its place; or the same file under a name that differs in case, which is the one that counts.
                Ok(meta) if meta.is_dir() => true,
                Ok(meta) => seen.values().any(|(_, other)| is_same_file(&meta, other)),
            };
            if !is_gone {
                scan.unknown.insert(key, Unknown::Hidden);
            }
        }
    }

    fn read_sig(&self, path: &Path, meta: &Metadata) -> Result<Sig, PlaceError> {
        cut::fits(ItemKind::DOCUMENT, meta.len())?;
        let file = File::open(path).map_err(|error| PlaceError::io("cannot read it", error))?;
        let sig = cut::sig(ItemKind::DOCUMENT, meta.len(), io::BufReader::new(file), String::new());
        let sig = sig.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => PlaceError::Changed,
            _ => PlaceError::io("cannot read it", error),
        })?;
        if stamp(&look(path)?) == stamp(meta) { Ok(sig) } else { Err(PlaceError::Changed) }
    }
}

#[cfg(unix)]
fn is_same_file(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same_file(a: &Metadata, b: &Metadata) -> bool {
    a.len() == b.len() && a.modified().ok() == b.modified().ok() && a.created().ok() == b.created().ok()
}

impl Place for Folder {
    fn scan(&mut self, known: &Known) -> Result<Scan, PlaceError> {
        let mut scan = Scan::default();
        let files = self.look(&mut scan)?;
        let now = Instant::now();
        let mut changed = vec![];
        for (key, (path, meta)) in &files {
            match known.get(key) {
                Some((then, sig)) if *then == stamp(meta) => {
                    let local = Local { sig: sig.clone(), stamp: then.clone(), modified_ms: modified_ms(meta) };
                    scan.items.insert(key.clone(), local);
                }
                _ if self.is_settled(key, meta, now) => changed.push((key, path, meta)),
                _ => {
                    scan.unknown.insert(key.clone(), Unknown::Unsettled);
                }
            }
        }
        let open = is_being_written(&changed.iter().map(|(_, path, _)| (*path).clone()).collect::<HashSet<_>>());
        for (key, path, meta) in changed {
            if open.contains(path) {
                scan.unknown.insert(key.clone(), Unknown::Unsettled);
                continue;
            }
            match self.read_sig(path, meta) {
                Ok(sig) => {
                    let local = Local { sig, stamp: stamp(meta), modified_ms: modified_ms(meta) };
                    scan.items.insert(key.clone(), local);
                }
                Err(PlaceError::Changed) => {
                    scan.unknown.insert(key.clone(), Unknown::Unsettled);
                }
                Err(error) => {
                    scan.problems.push(Problem { key: key.to_string(), why: error.to_string() });
                    scan.unknown.insert(key.clone(), Unknown::Hidden);
                }
            }
        }
        self.on_gone_disks(known.keys().filter(|key| !files.contains_key(key)), &mut scan);
        self.missing(known, &files, &mut scan);
        Ok(scan)
    }

    fn open(&mut self, key: &ItemKey, local: &Local) -> Result<Box<dyn Source>, PlaceError> {
        open_file(&self.root.file(key), &local.stamp)
    }

    fn parts(&mut self, key: &ItemKey, local: &Local) -> Result<Parts, PlaceError> {
        file_parts(ItemKind::DOCUMENT, &self.root.file(key), local)
    }

    fn stage(&mut self, digest: Digest, size: u64) -> Result<Box<dyn Staged>, PlaceError> {
        self.root.check()?;
        stage(&self.root, digest, size)
    }

    fn put(
        &mut self,
        key: &ItemKey,
        content: Content,
        _: &Sig,
        expected: Option<&Local>,
        modified_ms: u64,
    ) -> Result<Stamp, PlaceError> {
        self.root.check()?;
        let at = self.root.file(key);
        self.root.make_way(&at)?;
        let new = new_file(&self.root, content, modified_ms)?;
        let meta = self.root.replace(&new, &at, expected.map(|local| &local.stamp))?;
        Ok(stamp(&meta))
    }

    fn remove(&mut self, key: &ItemKey, expected: &Local) -> Result<(), PlaceError> {
        self.root.check()?;
        self.root.remove(&self.root.file(key), &expected.stamp)
    }

    fn set_aside(&mut self, key: &ItemKey, to: &ItemKey, expected: &Local) -> Result<Stamp, PlaceError> {
        self.root.check()?;
        Ok(stamp(&self.root.rename(&self.root.file(key), &self.root.file(to), &expected.stamp)?))
    }

    fn ready(&mut self, key: &ItemKey, expected: Option<&Local>) -> Result<(), PlaceError> {
        self.root.check()?;
        is_ready(&self.root, &self.root.file(key), expected.map(|local| &local.stamp))
    }

    fn tidy(&mut self, is_known: &dyn Fn(&ItemKey, &Sig) -> bool) -> Result<Vec<Problem>, PlaceError> {
        self.root.check()?;
        self.root.tidy(|path, was| {
            let there = look(path).and_then(|meta| self.read_sig(path, &meta));
            was.parse().is_ok_and(|key| there.is_ok_and(|there| is_known(&key, &there)))
        })
    }
}
