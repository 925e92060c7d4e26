//! The objects of the deployment before: a directory, in which a key is a path.

use super::ImportError;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Folders below each other that are looked into.
const DEPTH: usize = 32;

/// A directory of objects.
#[derive(Debug)]
pub(super) struct Objects {
    dir: PathBuf,
    used: HashSet<PathBuf>,
}

impl Objects {
    pub(super) fn open(dir: &Path) -> Result<Self, ImportError> {
        let error = |error| ImportError::Objects { path: dir.into(), error };
        let dir = dir.canonicalize().map_err(error)?;
        if !dir.is_dir() {
            return Err(error(io::Error::other("it is no directory")));
        }
        Ok(Self { dir, used: HashSet::new() })
    }

    /// The file of a key, and its size. Keys were made of what users typed: none leads out of the directory. Errors, for
    /// people.
    pub(super) fn find(&mut self, key: &str) -> Result<(PathBuf, u64), String> {
        let relative = Path::new(key.trim_start_matches('/'));
        if key.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!("its object {key:?} is no path below the directory of objects"));
        }
        let missing = |error: io::Error| format!("its object {key:?} cannot be read: {error}");
        let path = self.dir.join(relative).canonicalize().map_err(missing)?;
        if !path.starts_with(&self.dir) {
            return Err(format!("its object {key:?} is a link that leads out of the directory of objects"));
        }
        let metadata = fs::metadata(&path).map_err(missing)?;
        if !metadata.is_file() {
            return Err(format!("its object {key:?} is no file"));
        }
        self.used.insert(path.clone());
        Ok((path, metadata.len()))
    }

    /// How many files nothing refers to.
    pub(super) fn unused(&self) -> Result<u64, ImportError> {
        let mut unused = 0;
        let mut dirs = vec![(self.dir.clone(), 0)];
        while let Some((dir, depth)) = dirs.pop() {
            let error = |error| ImportError::Objects { path: dir.clone(), error };
            for entry in fs::read_dir(&dir).map_err(error)? {
                let entry = entry.map_err(error)?;
                let kind = entry.file_type().map_err(error)?;
                if kind.is_dir() && depth < DEPTH {
                    dirs.push((entry.path(), depth + 1));
                } else if kind.is_file() && !self.used.contains(&entry.path()) {
                    unused += 1;
                }
            }
        }
        Ok(unused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_leads_out() {
        let dir = tempfile::tempdir().expect("made");
        let (inside, outside) = (dir.path().join("objects"), dir.path().join("secret"));
        fs::create_dir_all(inside.join("u1")).expect("made");
        fs::write(inside.join("u1/doc.md"), "text").expect("written");
        fs::write(inside.join("other"), "text").expect("written");
        fs::write(&outside, "secret").expect("written");
        std::os::unix::fs::symlink(&outside, inside.join("link")).expect("made");
        let mut objects = Objects::open(&inside).expect("opened");
        assert_eq!(objects.find("u1/doc.md").expect("found").1, 4);
        assert_eq!(objects.find("/u1/doc.md").expect("found").1, 4);
        for key in ["../secret", "u1/../../secret", "link", "u1", "", "/", "./u1/doc.md/..", "none"] {
            let error = objects.find(key).expect_err(key);
            assert!(error.contains("its object"), "{error}");
        }
        assert_eq!(objects.unused().expect("counted"), 1, "the other; a link is no file");
    }
}
