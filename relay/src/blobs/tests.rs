//! Pieces on a disk, and on one that forgets what was not synced.

use super::disk::{Listed, SystemDisk};
use super::*;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

fn piece(content: &[u8]) -> (Part, Bytes) {
    let size = u32::try_from(content.len()).expect("small");
    (Part { digest: Digest::of(content), size }, Bytes::copy_from_slice(content))
}

/// A disk whose writes and renames are there after a crash only if they were synced. A name is on disk once its
/// directory was synced; what it names, once the file was.
#[derive(Debug, Default)]
pub(crate) struct ForgetfulDisk(Mutex<State>);

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
    pub(crate) fn crash(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.files = state.durable.clone();
        state.synced = state.durable.clone();
    }

    fn fill(&self, after: Option<u32>) {
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

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        self.with(|state| {
            let files = state.files.iter().filter(|(path, _)| path.parent() == Some(dir));
            Ok(files
                .map(|(path, bytes)| Listed {
                    name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                    size: bytes.len() as u64,
                    is_young: true,
                })
                .collect())
        })
    }
}

#[tokio::test]
async fn pieces_are_kept_whole_and_verified() {
    for inline in [true, false] {
        let dir = tempfile::tempdir().expect("made");
        let blobs = Blobs::new(Arc::new(SystemDisk), Random::from_seed(1), inline);
        let (part, bytes) = piece(&b"hello ".repeat(5000));
        let kept = blobs.keep(dir.path(), part, Encoding::PLAIN, bytes.clone()).await.expect("kept");
        assert_eq!(blobs.read(dir.path(), &kept).await.expect("read"), bytes);
        let (encoding, packed) = belay_protocol::packing::pack(&bytes);
        assert_eq!(encoding, Encoding::ZSTD);
        let again = blobs.keep(dir.path(), part, encoding, packed.clone()).await.expect("kept");
        assert_ne!(kept.file, again.file, "a name is used once");
        assert_eq!(blobs.read(dir.path(), &again).await.expect("read"), packed);
        assert_eq!(blobs.plain(dir.path(), &again).await.expect("read"), bytes);
        let other = Part { digest: Digest([7; 32]), ..part };
        for (part, encoding, bytes) in [
            (other, Encoding::PLAIN, bytes.clone()),
            (Part { size: part.size - 1, ..part }, Encoding::PLAIN, bytes.clone()),
            (part, Encoding::ZSTD, bytes.clone()),
            (part, Encoding(7), bytes.clone()),
            (part, Encoding::PLAIN, bytes.slice(1..)),
        ] {
            assert_eq!(blobs.keep(dir.path(), part, encoding, bytes).await, Err(BlobError::Mismatch));
        }
        let files = std::fs::read_dir(dir.path().join(DIR)).expect("read").count();
        assert_eq!(files, 2, "nothing is left of those");
        blobs.remove(dir.path(), vec![kept.file.clone(), kept.file.clone()]).await.expect("removed");
        assert!(matches!(blobs.read(dir.path(), &kept).await, Err(BlobError::Disk(_))));
        blobs.close();
        if !inline {
            assert_eq!(blobs.keep(dir.path(), part, encoding, packed).await, Err(BlobError::Closed));
        }
    }
}

#[tokio::test]
async fn what_had_come_of_a_piece_is_kept_and_goes() {
    let dir = tempfile::tempdir().expect("made");
    let blobs = Blobs::new(Arc::new(SystemDisk), Random::from_seed(1), true);
    let (part, bytes) = piece(&[5; 1000]);
    assert_eq!(blobs.beginning(dir.path(), part.digest, 1).await, Ok(None));
    blobs.keep_beginning(dir.path(), part.digest, bytes.slice(..600)).await.expect("kept");
    blobs.keep_beginning(dir.path(), part.digest, bytes.slice(..400)).await.expect("the longer one stays");
    let known = blobs.beginnings(dir.path()).await.expect("read");
    assert_eq!(known.get(&part.digest.to_string()), Some(&600));
    assert_eq!(blobs.beginning(dir.path(), part.digest, 500).await, Ok(Some(bytes.slice(..500))));
    assert_eq!(blobs.beginning(dir.path(), part.digest, 601).await, Ok(None));
    blobs.forget_beginning(dir.path(), part.digest).await.expect("forgotten");
    assert!(blobs.beginnings(dir.path()).await.expect("read").is_empty());
    // What nobody came back for goes after a day, and what was never finished.
    blobs.keep_beginning(dir.path(), part.digest, bytes.slice(..600)).await.expect("kept");
    let kept = blobs.keep(dir.path(), part, Encoding::PLAIN, bytes).await.expect("kept");
    std::fs::write(dir.path().join(DIR).join(format!("x{TEMPORARY}")), b"half").expect("written");
    assert_eq!(blobs.old(dir.path()).await, Ok(vec![]));
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(200_000);
    for file in std::fs::read_dir(dir.path().join(DIR)).expect("read") {
        let file = std::fs::File::options().write(true).open(file.expect("read").path()).expect("opened");
        file.set_modified(long_ago).expect("set");
    }
    assert_eq!(blobs.old(dir.path()).await, Ok(vec![kept.file]));
    assert_eq!(std::fs::read_dir(dir.path().join(DIR)).expect("read").count(), 1);
}

#[tokio::test]
async fn what_was_kept_survives_a_disk_that_forgets_what_was_not_synced() {
    let disk = Arc::new(ForgetfulDisk::default());
    let blobs = Blobs::new(disk.clone(), Random::from_seed(2), true);
    let dir = Path::new("/t");
    let mut kept = vec![];
    for number in 0..200_u32 {
        let (part, bytes) = piece(format!("piece {number}").repeat(100).as_bytes());
        kept.push((blobs.keep(dir, part, Encoding::PLAIN, bytes.clone()).await.expect("kept"), bytes));
        if number % 7 == 3 {
            disk.crash();
        }
        for (chunk, bytes) in &kept {
            assert_eq!(blobs.plain(dir, chunk).await.as_ref(), Ok(bytes), "piece {number}");
        }
    }
    // The disk does forget: what was only written is gone.
    let digest = kept[0].0.part.digest;
    blobs.keep_beginning(dir, digest, Bytes::from_static(b"half")).await.expect("kept");
    disk.crash();
    assert_eq!(blobs.beginning(dir, digest, 1).await, Ok(None));
}

#[tokio::test]
async fn a_full_disk_is_said_and_loses_nothing() {
    let disk = Arc::new(ForgetfulDisk::default());
    let blobs = Blobs::new(disk.clone(), Random::from_seed(3), true);
    let dir = Path::new("/t");
    let (part, bytes) = piece(&[1; 500]);
    let first = blobs.keep(dir, part, Encoding::PLAIN, bytes.clone()).await.expect("kept");
    disk.fill(Some(0));
    let (other, more) = piece(&[2; 500]);
    assert_eq!(blobs.keep(dir, other, Encoding::PLAIN, more.clone()).await, Err(BlobError::Full));
    assert_eq!(disk.list(&dir.join(DIR)).expect("listed").len(), 1, "nothing is left of it");
    disk.fill(None);
    let second = blobs.keep(dir, other, Encoding::PLAIN, more.clone()).await.expect("there is room again");
    disk.crash();
    assert_eq!(blobs.plain(dir, &first).await, Ok(bytes));
    assert_eq!(blobs.plain(dir, &second).await, Ok(more));
}
