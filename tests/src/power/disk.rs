//! A disk that keeps what it was told to sync, and what else it likes.

use super::record::{Op, Step};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What a disk writes at once, whole or not at all.
const SECTOR: usize = 512;

/// A change of a file's content.
#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

#[derive(Debug, Clone, Default)]
struct File {
    now: Vec<u8>,
    kept: Vec<u8>,
    /// What is not synced, each with the number of its step.
    pending: Vec<(usize, Change)>,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(usize),
}

type Names = BTreeMap<PathBuf, Node>;

/// A change of names in one directory.
#[derive(Debug, Clone)]
enum Naming {
    Put(PathBuf, Node),
    Drop(PathBuf),
    /// Within a directory: the one name and the other are never both there, nor neither.
    Move(PathBuf, PathBuf),
}

impl Naming {
    /// The directory whose syncing keeps it.
    fn dir(&self) -> PathBuf {
        let (Self::Put(path, _) | Self::Drop(path) | Self::Move(path, _)) = self;
        path.parent().map(Path::to_owned).unwrap_or_default()
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Put(path, node) => drop(names.insert(path.clone(), *node)),
            Self::Drop(path) => drop(names.remove(path)),
            Self::Move(from, to) => {
                let moved: Vec<PathBuf> = names.keys().filter(|path| path.starts_with(from)).cloned().collect();
                for path in moved {
                    let node = names.remove(&path).expect("just found");
                    let under = path.strip_prefix(from).expect("just filtered");
                    names.insert(if under == Path::new("") { to.clone() } else { to.join(under) }, node);
                }
            }
        }
    }
}

/// The disk below a directory that is there already.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    files: Vec<File>,
    now: Names,
    kept: Names,
    pending: Vec<(usize, Naming)>,
    /// Steps so far.
    at: usize,
}

/// How much of what was not synced a cut leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mercy {
    None,
    All,
    /// The first so many changes.
    Order,
    /// Any of them, and any sectors of those.
    Chance,
}

impl Disk {
    /// Does one step.
    pub fn step(&mut self, step: &Step) {
        let at = self.at;
        self.at += 1;
        match &step.op {
            Op::Create(path) => {
                self.files.push(File::default());
                self.name(at, Naming::Put(path.clone(), Node::File(self.files.len() - 1)));
            }
            Op::Mkdir(path) => self.name(at, Naming::Put(path.clone(), Node::Dir)),
            Op::Rename(from, to) if from.parent() == to.parent() => {
                self.name(at, Naming::Move(from.clone(), to.clone()));
            }
            // Two directories, and each is kept for itself: it may be found under both names, or under neither.
            Op::Rename(from, to) => {
                let node = *self.now.get(from).expect("what is moved is there");
                assert!(matches!(node, Node::File(_)), "a directory that is moved to another is not modelled");
                self.name(at, Naming::Put(to.clone(), node));
                self.name(at, Naming::Drop(from.clone()));
            }
            Op::Unlink(path) | Op::Rmdir(path) => self.name(at, Naming::Drop(path.clone())),
            Op::Write(path, place, bytes) => {
                let place = usize::try_from(*place).expect("small files");
                self.change(at, path, Change::Write(place, bytes.clone()));
            }
            Op::Resize(path, len) => self.change(at, path, Change::Resize(usize::try_from(*len).expect("small files"))),
            Op::Sync(path, began) => {
                // Of one whose name is gone meanwhile, nobody asks.
                let Some(Node::File(file)) = self.now.get(path) else { return };
                let file = &mut self.files[*file];
                let later = file.pending.split_off(file.pending.partition_point(|(number, _)| number < began));
                for (_, change) in std::mem::replace(&mut file.pending, later) {
                    apply(&mut file.kept, &change);
                }
            }
            Op::SyncDir(path, began) => {
                let pending = std::mem::take(&mut self.pending);
                for (number, naming) in pending {
                    if number < *began && naming.dir() == *path {
                        naming.apply(&mut self.kept);
                    } else {
                        self.pending.push((number, naming));
                    }
                }
            }
        }
    }

    fn name(&mut self, at: usize, naming: Naming) {
        naming.apply(&mut self.now);
        self.pending.push((at, naming));
    }

    fn change(&mut self, at: usize, path: &Path, change: Change) {
        let Some(Node::File(file)) = self.now.get(path) else { panic!("{} is not there", path.display()) };
        let file = &mut self.files[*file];
        apply(&mut file.now, &change);
        file.pending.push((at, change));
    }

    /// What is there, as the program sees it: for a recording to be compared with what it is of.
    #[must_use]
    pub fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let file = |(path, node): (&PathBuf, &Node)| match node {
            Node::File(file) => Some((path.clone(), self.files[*file].now.clone())),
            Node::Dir => None,
        };
        self.now.iter().filter_map(file).collect()
    }

    /// Writes what the cut of power leaves, for that seed, into a directory that stands for `below`.
    pub fn cut(&self, seed: u64, below: &Path, into: &Path) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut names = self.kept.clone();
        match mercy(&mut random) {
            Mercy::None => {}
            Mercy::All => self.pending.iter().for_each(|(_, naming)| naming.apply(&mut names)),
            // As a file system with one journal does.
            Mercy::Order => {
                let first = random.random_range(0..=self.pending.len());
                self.pending[..first].iter().for_each(|(_, naming)| naming.apply(&mut names));
            }
            // Each directory has come as far as it likes.
            Mercy::Chance => {
                let mut dirs: BTreeMap<PathBuf, Vec<&Naming>> = BTreeMap::new();
                for (_, naming) in &self.pending {
                    dirs.entry(naming.dir()).or_default().push(naming);
                }
                for of_dir in dirs.values() {
                    let first = random.random_range(0..=of_dir.len());
                    of_dir[..first].iter().for_each(|naming| naming.apply(&mut names));
                }
            }
        }
        fs::create_dir_all(into).unwrap();
        for (path, node) in &names {
            let Ok(under) = path.strip_prefix(below) else { continue };
            let target = into.join(under);
            // Where a directory is lost, so is what is in it.
            if target.parent().is_none_or(|parent| !parent.is_dir()) {
                continue;
            }
            match node {
                Node::Dir => drop(fs::create_dir(&target)),
                Node::File(file) => fs::write(&target, self.files[*file].after(&mut random)).unwrap(),
            }
        }
    }
}

fn mercy(random: &mut StdRng) -> Mercy {
    [Mercy::None, Mercy::All, Mercy::Order, Mercy::Chance, Mercy::Chance][random.random_range(0..5)]
}

impl File {
    fn after(&self, random: &mut StdRng) -> Vec<u8> {
        let mut content = self.kept.clone();
        let mercy = mercy(random);
        let first = random.random_range(0..=self.pending.len());
        for (number, (_, change)) in self.pending.iter().enumerate() {
            match mercy {
                Mercy::None => break,
                Mercy::All => apply(&mut content, change),
                Mercy::Order if number < first => apply(&mut content, change),
                Mercy::Order => {
                    torn(&mut content, change, random);
                    break;
                }
                Mercy::Chance => match random.random_range(0..3) {
                    0 => {}
                    1 => apply(&mut content, change),
                    _ => torn(&mut content, change, random),
                },
            }
        }
        content
    }
}

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Resize(len) => content.resize(*len, 0),
        Change::Write(at, bytes) => {
            let end = at + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*at..end].copy_from_slice(bytes);
        }
    }
}

/// Some sectors of it. A file may have its new length before it has what is there.
fn torn(content: &mut Vec<u8>, change: &Change, random: &mut StdRng) {
    let Change::Write(at, bytes) = change else { return };
    let end = at + bytes.len();
    if content.len() < end && random.random_bool(0.5) {
        content.resize(end, 0);
    }
    let mut done = 0;
    while done < bytes.len() {
        let place = at + done;
        let piece = (SECTOR - place % SECTOR).min(bytes.len() - done);
        if random.random_bool(0.5) {
            apply(content, &Change::Write(place, bytes[done..done + piece].to_vec()));
        }
        done += piece;
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::steps;
    use super::*;
    use std::collections::BTreeSet;

    const LOG: &str = r#"7 mkdir("/s", 0700) = 0
7 openat(AT_FDCWD</>, "/s/a", O_RDWR|O_CREAT, 0600) = 3</s/a>
7 write(3</s/a>, "one", 3) = 3
8 pwrite64(3</s/a>, "TWO", 3, 3 <unfinished ...>
7 fdatasync(3</s/a> <unfinished ...>
8 <... pwrite64 resumed>) = 3
7 <... fdatasync resumed>) = 0
7 openat(AT_FDCWD</>, "/s", O_RDONLY) = 4</s>
7 openat(AT_FDCWD</>, "/elsewhere", O_RDWR|O_CREAT, 0600) = 5</elsewhere>
7 write(5</elsewhere>, "no", 2) = 2
7 fsync(4</s>) = 0
7 rename("/s/a", "/s/b") = 0
7 +++ exited with 0 +++
"#;

    /// As strace writes it with `-xx`: the texts above are for people.
    fn hexed(log: &str) -> Vec<u8> {
        let hex = |text: &str| text.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        let mut out = String::new();
        let (mut quoted, mut named, mut part) = (false, false, String::new());
        for c in log.chars() {
            match c {
                '"' => {
                    if quoted {
                        out += &hex(&part);
                        part.clear();
                    }
                    quoted = !quoted;
                    out.push(c);
                }
                '<' if !quoted && !out.ends_with(' ') => {
                    named = true;
                    out.push(c);
                }
                '>' if named => {
                    out += &hex(&std::mem::take(&mut part));
                    named = false;
                    out.push(c);
                }
                _ if quoted || named => part.push(c),
                _ => out.push(c),
            }
        }
        out.into_bytes()
    }

    fn played(steps: &[Step]) -> Disk {
        let mut disk = Disk::default();
        steps.iter().for_each(|step| disk.step(step));
        disk
    }

    fn left(disk: &Disk, seed: u64) -> BTreeMap<String, String> {
        let dir = tempfile::tempdir().expect("made");
        disk.cut(seed, Path::new("/s"), dir.path());
        let file = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.expect("read");
            let text = String::from_utf8_lossy(&fs::read(entry.path()).expect("read")).into_owned();
            (entry.file_name().to_string_lossy().into_owned(), text)
        };
        fs::read_dir(dir.path()).expect("read").map(file).collect()
    }

    #[test]
    fn a_recording_is_read_with_threads_that_overlap() {
        let steps = steps(&hexed(LOG), Path::new("/s"));
        let path = PathBuf::from;
        let ops: Vec<Op> = steps.iter().map(|step| step.op.clone()).collect();
        assert_eq!(
            ops,
            [
                Op::Mkdir(path("/s")),
                Op::Create(path("/s/a")),
                Op::Write(path("/s/a"), 0, b"one".to_vec()),
                Op::Write(path("/s/a"), 3, b"TWO".to_vec()),
                // It began before the second write was over.
                Op::Sync(path("/s/a"), 3),
                Op::SyncDir(path("/s"), 5),
                Op::Rename(path("/s/a"), path("/s/b")),
            ]
        );
        assert!(steps.is_sorted_by_key(|step| step.ends));
        let disk = played(&steps);
        assert_eq!(disk.contents(), BTreeMap::from([(path("/s/b"), b"oneTWO".to_vec())]));
    }

    #[test]
    fn what_was_synced_is_there_and_of_the_rest_anything_may_be() {
        let steps = steps(&hexed(LOG), Path::new("/s"));
        let disk = played(&steps);
        let seen: BTreeSet<_> = (0..400).map(|seed| left(&disk, seed)).collect();
        let one = |name: &str, text: &str| BTreeMap::from([(name.to_owned(), text.to_owned())]);
        // The name it had when its directory was synced, or the one that it got; with the second write, without it, or
        // with its length alone.
        let texts = ["one", "oneTWO", "one\0\0\0"];
        let all = ["a", "b"].into_iter().flat_map(|name| texts.map(|text| one(name, text)));
        assert_eq!(seen, all.collect());
        // Before the directory was synced there may be nothing at all.
        let before = played(&steps[..5]);
        assert!((0..100).any(|seed| left(&before, seed).is_empty()));
        assert!((0..100).any(|seed| !left(&before, seed).is_empty()));
    }

    #[test]
    fn a_write_is_torn_between_sectors_only() {
        let mut content = vec![b'.'; 2000];
        let change = Change::Write(500, vec![b'x'; 1000]);
        let mut random = StdRng::seed_from_u64(1);
        let mut seen = BTreeSet::new();
        for _ in 0..200 {
            content.truncate(2000);
            content.fill(b'.');
            torn(&mut content, &change, &mut random);
            let borders: Vec<usize> = (1..2000).filter(|at| content[*at] != content[*at - 1]).collect();
            assert!(borders.iter().all(|at| at % SECTOR == 0 || [500, 1500].contains(at)), "{borders:?}");
            seen.insert(borders);
        }
        // Three pieces: 12 bytes, a sector, 476 bytes.
        assert_eq!(seen.len(), 8);
    }
}
