//! Pieces on a disk.

use super::disk::SystemDisk;
use super::*;

fn piece(content: &[u8]) -> (Part, Bytes) {
    let size = u32::try_from(content.len()).expect("small");
    (Part { digest: Digest::of(content), size }, Bytes::copy_from_slice(content))
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
        assert_eq!(blobs.read(dir.path(), &kept).await, Err(BlobError::Damaged(kept.file.clone())));
        std::fs::write(dir.path().join(DIR).join(&again.file), b"other bytes").expect("written");
        assert_eq!(blobs.read(dir.path(), &again).await, Err(BlobError::Damaged(again.file)));
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
    let beginnings = async || blobs.beginnings(dir.path(), vec![part.digest, Digest([9; 32])]).await;
    assert_eq!(beginnings().await, Ok(vec![600, 0]));
    assert_eq!(blobs.beginning(dir.path(), part.digest, 500).await, Ok(Some(bytes.slice(..500))));
    assert_eq!(blobs.beginning(dir.path(), part.digest, 601).await, Ok(None));
    blobs.forget_beginning(dir.path(), part.digest).await.expect("forgotten");
    assert_eq!(beginnings().await, Ok(vec![0, 0]));
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
