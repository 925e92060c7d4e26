//! Pieces of content on a disk that forgets what was not synced, or has no room.

use belay_protocol::item::{Digest, Part};
use belay_protocol::message::Encoding;
use belay_relay::blobs::disk::Disk;
use belay_relay::blobs::{BlobError, Blobs};
use belay_tests::sim::disk::ForgetfulDisk;
use belay_transport::env::Random;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

fn piece(content: &[u8]) -> (Part, Bytes) {
    let size = u32::try_from(content.len()).unwrap();
    (Part { digest: Digest::of(content), size }, Bytes::copy_from_slice(content))
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
    assert_eq!(disk.list(&dir.join("blobs")).expect("listed").len(), 1, "nothing is left of it");
    disk.fill(None);
    let second = blobs.keep(dir, other, Encoding::PLAIN, more.clone()).await.expect("there is room again");
    disk.crash();
    assert_eq!(blobs.plain(dir, &first).await, Ok(bytes));
    assert_eq!(blobs.plain(dir, &second).await, Ok(more));
}
