//! What decoding may cost in memory: whatever a body says of itself, reading it never holds more
//! than [`FACTOR`] times the maximum of its type. Without that, a frame of ten bytes could ask for
//! a megabyte, on each of a hundred streams of each of a thousand tunnels.
//!
//! The counting allocator comes from a crate, since this workspace forbids unsafe code. It counts
//! per thread, and a buffer that grows counts with its old and its new size at once.

mod every;

use allocation_counter::measure;
use belay_protocol::frame::{FLAG_REQUIRED, FrameDecoder, FrameType, HEADER_LEN, RAW_HEADER_LEN, frame, raw};
use bytes::Bytes;
use every::decode;

/// Decoding a body holds at most this many times the maximum of its type: the body's own content
/// once more, and as much again for the room that lists and their elements take.
const FACTOR: u64 = 2;

/// Assembling a frame out of small chunks holds at most this many times its size: a buffer that
/// doubles, at the moment when its content moves.
const ASSEMBLY_FACTOR: u64 = 3;

/// Room for an error's text.
const ERROR_ROOM: u64 = 512;

/// A body of fields at their least: every prefix of it leads up to another length or number.
fn least(kind: FrameType) -> Vec<u8> {
    match kind {
        FrameType::Hello => [&[0; 20][..], &[0, 0]].concat(),
        FrameType::HelloAck => b"\x00\x00\x00\x01t\x01d\x00\x00\x00".to_vec(),
        FrameType::Heartbeat => vec![0; 4],
        FrameType::HeartbeatAck => vec![0; 5],
        FrameType::GoAway | FrameType::EnrolRequest => vec![0; 3],
        FrameType::EnrolAnswer => b"\x01t\x01d\x00\x00\x00".to_vec(),
        FrameType::LeaveRequest | FrameType::RenewRequest | FrameType::Cancel | FrameType::BalanceRequest => vec![0],
        FrameType::RenewAnswer => vec![0; 4],
        FrameType::LeaveAnswer => b"\x01d".to_vec(),
        FrameType::EscalateRequest => [&[0; 16][..], &[0; 12]].concat(),
        FrameType::ResponseHead => [&[0; 16][..], &[0; 10]].concat(),
        FrameType::End => [&[0; 16][..], &[0; 11]].concat(),
        FrameType::Failed => vec![0; 6],
        FrameType::Ack => vec![0; 2],
        FrameType::Probe => vec![0],
        FrameType::Resume => vec![0; 17],
        FrameType::Balance => b"\x01t\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        FrameType::UsageRequest => vec![0; 4],
        FrameType::UsageGroup => vec![0; 9],
        FrameType::Done | FrameType::StatementRequest => vec![0; 3],
        FrameType::StatementLine => vec![0; 11],
        FrameType::RecordRequest => [&[0; 16][..], &[0; 3]].concat(),
        FrameType::TopUpRequest | FrameType::TopUp | FrameType::FlushRequest | FrameType::ModelsRequest => vec![0],
        FrameType::ModelOffer => vec![0; 8],
        FrameType::SessionGet => b"\x01s\x00\x00".to_vec(),
        FrameType::SessionRow => b"\x01s\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        FrameType::Session => b"\x01s\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        FrameType::SessionHit => b"\x01s\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        FrameType::SessionMessage => [&[0; 17][..], b"\x00\x00\x01d\x00\x00\x00\x00\x00"].concat(),
        FrameType::SessionAdd => [b"\x01s", &[0; 16][..], &[0; 3]].concat(),
        FrameType::SessionAdded => vec![0],
        FrameType::SessionUpdate => b"\x01s\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        FrameType::SessionAct => b"\x01s\x00".to_vec(),
        FrameType::SessionList | FrameType::SessionSearch => vec![0; 3],
        FrameType::SessionsDone => vec![0; 2],
        FrameType::Flushed => vec![0; 2],
        FrameType::SyncPush => b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01k\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        FrameType::SyncPushed => vec![0; 35],
        FrameType::SyncPull => vec![0; 2],
        FrameType::SyncChange => vec![0; 59],
        FrameType::SyncPage => vec![0; 4],
        FrameType::SyncGet => vec![0; 16],
        FrameType::SyncGot => vec![0; 4],
        FrameType::SyncLog => b"\x00\x01k".to_vec(),
        FrameType::SyncRevision => b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01k\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        FrameType::SyncStatusRequest => vec![0; 1],
        FrameType::SyncKindStatus => vec![0; 5],
        FrameType::SyncStatus => vec![0; 3],
        FrameType::SyncLock => b"\x01k\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        FrameType::SyncLocked => vec![0; 2],
        FrameType::SyncUnlock => b"\x01k\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        FrameType::SyncUnlocked => vec![0; 1],
        FrameType::BlobBegin => vec![0; 18],
        FrameType::BlobNeeded => vec![0; 1],
        FrameType::BlobPut => vec![0; 20],
        FrameType::BlobStored => vec![0; 1],
        FrameType::BlobGet => vec![0; 33],
        FrameType::BlobPart => vec![0; 3],
        FrameType::SyncLogDone => vec![0; 1],
        FrameType::BodyChunk | FrameType::Event | FrameType::AnswerChunk => vec![0; 8],
    }
}

/// Lengths and counts that a liar would write.
fn lies(max: u64) -> Vec<Vec<u8>> {
    let long = |mark: u8, value: u64, width: usize| [&[mark][..], &value.to_le_bytes()[..width]].concat();
    let mut lies = vec![
        vec![250],
        long(251, u64::from(u16::MAX), 2),
        long(252, u64::from(u32::MAX), 4),
        long(253, 1 << 63, 8),
        long(253, u64::MAX, 8),
        long(253, (1 << 63) - 1, 8),
        long(253, u64::MAX / 32, 8),
    ];
    // Just below, at and above every border that a check could stand at.
    for border in [64, 256, 1000, max / 48, max / 32, max / 8, max / 2, max, 3 * max / 2, 2 * max, 8 * max, 1 << 20] {
        lies.extend([border.saturating_sub(1), border, border + 1].map(|value| long(253, value, 8)));
    }
    lies
}

/// Asserts the bound for one body, and tells whether it was valid.
fn bounded(kind: FrameType, body: &[u8], what: &str) -> bool {
    let max = u64::from(kind.max_body());
    assert!(body.len() as u64 <= max, "a longer body never reaches the codec");
    let mut valid = false;
    let held = measure(|| valid = decode(kind, body).is_ok());
    assert!(
        held.bytes_max <= FACTOR * max + ERROR_ROOM,
        "{}: {what}: a body of {} bytes made the codec hold {}, the type's maximum is {max}",
        kind.name(),
        body.len(),
        held.bytes_max,
    );
    valid
}

#[test]
fn lying_lengths_cost_no_more_than_the_maximum() {
    for kind in FrameType::ALL {
        let least = least(*kind);
        let valid = decode(*kind, &least).is_ok();
        assert!(valid, "{}: the body that the lies begin with must itself be valid", kind.name());
        let max = kind.max_body() as usize;
        for cut in 0..least.len() {
            for lie in lies(max as u64) {
                let head = [&least[..cut], &lie].concat();
                bounded(*kind, &head, &format!("{lie:?} at {cut}, then nothing"));
                for filler in [0, 1, 2] {
                    let mut body = head.clone();
                    body.resize(max, filler);
                    bounded(*kind, &body, &format!("{lie:?} at {cut}, then {filler}s up to the maximum"));
                }
            }
        }
    }
}

/// Lists of the smallest elements: there the value in memory is largest beside its bytes.
#[test]
fn lists_of_nothings_cost_no_more_than_the_maximum() {
    for kind in FrameType::ALL {
        let least = least(*kind);
        let max = kind.max_body() as usize;
        for cut in 0..least.len() {
            for count in (0..=max).step_by((max / 97).max(1)).chain(0..=300) {
                let count = u32::try_from(count).expect("small");
                let mut body = [&least[..cut], &[252], &count.to_le_bytes()].concat();
                // The elements, a byte each per field, and the fields behind the list.
                body.resize((body.len() + 2 * count as usize + least.len() - cut - 1).min(max), 0);
                bounded(*kind, &body, &format!("{count} elements at {cut}"));
            }
        }
    }
}

#[test]
fn honest_bodies_of_the_maximum_cost_no_more_either() {
    for (kind, before, after) in [
        (FrameType::LeaveRequest, 0, 0),
        (FrameType::RenewRequest, 0, 0),
        (FrameType::RenewAnswer, 0, 3),
        (FrameType::Cancel, 0, 0),
        (FrameType::GoAway, 2, 0),
        (FrameType::EnrolRequest, 1, 1),
        (FrameType::EnrolRequest, 2, 0),
        (FrameType::Failed, 1, 4),
        (FrameType::EscalateRequest, 19, 8),
        (FrameType::End, 17, 9),
    ] {
        let max = kind.max_body() as usize;
        let len = u32::try_from(max - before - after - 5).expect("small");
        let text = vec![b'x'; len as usize];
        let body = [&vec![0; before][..], &[252], &len.to_le_bytes(), &text, &vec![0; after]].concat();
        assert_eq!(body.len(), max);
        assert!(bounded(kind, &body, "one long text"), "{}: a body of exactly the maximum is valid", kind.name());
    }
}

#[test]
fn a_frame_that_arrives_in_drops_costs_a_small_multiple_of_its_size() {
    for kind in FrameType::ALL {
        let whole = frame(*kind, &vec![0; kind.max_body() as usize]).expect("the maximum itself");
        for drop in [1000, 1200, 4096, 60_000] {
            let held = measure(|| {
                let mut decoder = FrameDecoder::new();
                let mut frames = 0;
                for chunk in whole.chunks(drop) {
                    // A slice of the shared buffer, as a transport hands it over: no allocation.
                    decoder.push(whole.slice_ref(chunk));
                    while decoder.next().expect("valid").is_some() {
                        frames += 1;
                    }
                }
                assert_eq!(frames, 1);
            });
            let most = ASSEMBLY_FACTOR * whole.len() as u64 + ERROR_ROOM;
            assert!(held.bytes_max <= most, "{} in drops of {drop}: {} bytes", kind.name(), held.bytes_max);
        }
    }
}

#[test]
fn an_announcement_alone_costs_nothing() {
    for kind in FrameType::ALL {
        let len = kind.max_body().to_le_bytes();
        let header = [&len[..], &kind.to_wire().to_le_bytes(), &[FLAG_REQUIRED, 0]].concat();
        let chunk = Bytes::from(header);
        let held = measure(|| {
            let mut decoder = FrameDecoder::new();
            decoder.push(chunk.clone());
            assert_eq!(decoder.next(), Ok(None));
        });
        assert!(held.bytes_max <= 64, "{}: {} bytes for a header", kind.name(), held.bytes_max);
    }
}

/// A token costs no allocation: its frame is a slice of what arrived, and so is its payload.
#[test]
fn a_whole_raw_frame_is_not_copied() {
    for kind in [FrameType::Event, FrameType::AnswerChunk, FrameType::BodyChunk] {
        let chunk = Bytes::from(frame(kind, &[7; 5000]).expect("small").to_vec());
        let address = chunk.as_ptr();
        // Sharing a buffer for the first time costs its reference count; that is not the frame's.
        let shared = chunk.clone();
        let held = measure(|| {
            let mut decoder = FrameDecoder::new();
            decoder.push(shared);
            let frame = decoder.next().expect("valid").expect("whole");
            let (_, payload) = raw::split(kind, frame.body).expect("long enough");
            assert_eq!(payload.as_ptr() as usize, address as usize + HEADER_LEN + RAW_HEADER_LEN);
        });
        assert_eq!(held.count_total, 0, "{}", kind.name());
    }
}
