//! Sync, blob and feed streams by hand: what is refused, what is answered.

use crate::raw::{Device, Ended, Stream, Tunnel, body_chunk, soon};
use belay_protocol::codec::Message;
use belay_protocol::error::StreamCode;
use belay_protocol::id::{LockToken, MessageId, RevisionId};
use belay_protocol::item::{Digest, ItemKey, ItemKind, Part, Parts};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    BlobBegin, BlobGet, BlobNeeded, BlobPart, BlobPut, BlobStored, Encoding, Failed, FailureCode, PushOutcome,
    SessionAdd, SessionRole, SyncChange, SyncContent, SyncGet, SyncGot, SyncLock, SyncLocked, SyncPage, SyncPull,
    SyncPush, SyncPushed, SyncUnlock, SyncUnlocked,
};
use belay_tests::relay::TestRelay;
use belay_tests::synced::{adapter, noise};
use std::time::{Duration, Instant};

pub(crate) fn revision(number: u8) -> RevisionId {
    RevisionId([number; 16])
}

pub(crate) fn key(text: &str) -> ItemKey {
    text.parse().unwrap()
}

pub(crate) fn text(number: u8, parent: Option<u8>, name: &str, content: &str) -> SyncPush {
    SyncPush {
        revision: revision(number),
        parent: parent.map(revision),
        kind: ItemKind::DOCUMENT,
        key: key(name),
        content: SyncContent::INLINE,
        modified_ms: 1,
        size: content.len() as u64,
        digest: Digest::of(content.as_bytes()),
        inline: content.as_bytes().to_vec(),
        meta: String::new(),
        earlier: None,
    }
}

pub(crate) fn pull(cursor: &str) -> SyncPull {
    SyncPull { cursor: cursor.into(), limit: 0 }
}

/// Content of two parts.
pub(crate) fn two_parts() -> (Vec<u8>, Parts) {
    let content = noise(60_000, 3);
    let part = |bytes: &[u8]| Part { digest: Digest::of(bytes), size: u32::try_from(bytes.len()).unwrap() };
    let parts = Parts::new(content.chunks(30_000).map(part).collect()).unwrap();
    (content, parts)
}

pub(crate) fn in_parts(number: u8, name: &str, parts: &Parts) -> SyncPush {
    let (content, size, digest) = (SyncContent::PARTS, parts.size(), parts.digest());
    SyncPush { content, size, digest, inline: vec![], ..text(number, None, name, "") }
}

pub(crate) fn begin(number: u8, parts: &Parts) -> BlobBegin {
    BlobBegin { revision: revision(number), kind: ItemKind::DOCUMENT, parts: parts.to_bytes() }
}

pub(crate) fn put(number: u8, part: u32, offset: u32, len: usize) -> BlobPut {
    let len = u32::try_from(len).unwrap();
    BlobPut { revision: revision(number), part, offset, encoding: Encoding::PLAIN, len }
}

pub(crate) async fn send_part(stream: &mut Stream, put: &BlobPut, bytes: &[u8]) {
    stream.send(put).await;
    stream.write(&body_chunk(0, bytes)).await;
}

pub(crate) async fn asks<M: Message>(tunnel: &Tunnel, kind: StreamKind, request: &M) -> Ended {
    let mut stream = tunnel.peer.open(kind).await;
    stream.send(request).await;
    stream.finish();
    stream.ended().await
}

/// Sends the content of [`two_parts`] and pushes it.
pub(crate) async fn upload(tunnel: &Tunnel, number: u8, name: &str) -> Parts {
    let (content, parts) = two_parts();
    let mut stream = tunnel.peer.open(StreamKind::Blob).await;
    stream.send(&begin(number, &parts)).await;
    let BlobNeeded { needed } = stream.expect().await;
    for line in needed.chunks(8) {
        let place = u32::from(line[0]);
        let from = place as usize * 30_000;
        send_part(&mut stream, &put(number, place, 0, 30_000), &content[from..from + 30_000]).await;
        let BlobStored { part } = stream.expect().await;
        assert_eq!(part, place);
    }
    let mut stream = tunnel.peer.open(StreamKind::Sync).await;
    stream.send(&in_parts(number, name, &parts)).await;
    let pushed: SyncPushed = stream.expect().await;
    assert_eq!(pushed.outcome, PushOutcome::ACCEPTED);
    parts
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_are_answered_in_order_and_one_that_fails_fails_alone() {
    let relay = TestRelay::start("").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let mut stream = tunnel.peer.open(StreamKind::Sync).await;
    let good = |number| text(number, None, &format!("f{number}"), "x");
    let mut wrong = vec![
        SyncPush { size: 2, ..good(1) },
        SyncPush { digest: Digest([0; 32]), ..good(2) },
        SyncPush { meta: "{}".into(), ..good(3) },
        SyncPush { kind: ItemKind::ADAPTER, meta: "x".repeat(65_537), ..good(11) },
        SyncPush { kind: ItemKind::HISTORY, ..good(4) },
        SyncPush { kind: ItemKind(99), ..good(5) },
        SyncPush { kind: ItemKind::SETTING, ..good(6) },
        SyncPush { kind: ItemKind::ADAPTER, ..good(7) },
        SyncPush { content: SyncContent::NONE, ..good(8) },
        SyncPush { size: 1 << 40, content: SyncContent::PARTS, inline: vec![], ..good(9) },
    ];
    let large = "y".repeat(40_000);
    wrong.push(text(10, None, "large", &large));
    for (at, one) in wrong.iter().enumerate() {
        stream.send(one).await;
        stream.send(&good(100 + u8::try_from(at).unwrap())).await;
    }
    for at in 0..wrong.len() {
        let failed: Failed = stream.expect().await;
        assert_eq!(failed.code, FailureCode::INVALID_REQUEST, "{at}: {}", failed.message);
        assert!(!failed.remedy.is_empty());
        let pushed: SyncPushed = stream.expect().await;
        assert_eq!(
            (pushed.revision, pushed.outcome),
            (revision(100 + u8::try_from(at).unwrap()), PushOutcome::ACCEPTED)
        );
    }
    for (one, code) in [
        (SyncPush { content: SyncContent::PARTS, ..good(20) }, FailureCode::NOT_FOUND),
        (SyncPush { content: SyncContent::EARLIER, earlier: Some(revision(99)), ..good(21) }, FailureCode::NOT_FOUND),
        (text(100, None, "f100", "other"), FailureCode::CONFLICT),
    ] {
        stream.send(&one).await;
        let failed: Failed = stream.expect().await;
        assert_eq!(failed.code, code, "{}", failed.message);
    }
    // The same stream serves other requests, too.
    stream.send(&pull("")).await;
    for _ in 0..wrong.len() {
        let _: SyncChange = stream.expect().await;
    }
    let page: SyncPage = stream.expect().await;
    assert_eq!((page.changes, page.has_more), (wrong.len() as u64, false));
    // Content from nowhere fails like others; a key that is none ends the stream.
    stream.send(&SyncPush { content: SyncContent(9), ..good(30) }).await;
    assert_eq!(stream.expect::<Failed>().await.code, FailureCode::INVALID_REQUEST);
    let mut stream = tunnel.peer.open(StreamKind::Sync).await;
    let mut frame = good(31).to_frame().unwrap().to_vec();
    let at = frame.windows(3).position(|bytes| bytes == b"f31").unwrap();
    frame[at..at + 3].copy_from_slice(b"../");
    stream.write(&frame).await;
    let failed = stream.is_refused(FailureCode::MALFORMED, StreamCode::MALFORMED, "a hostile key").await;
    assert!(failed.message.contains("cannot be synced"), "{}", failed.message);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_verified_resumed_and_served() {
    let relay = TestRelay::start("").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let (content, parts) = two_parts();
    let mut stream = tunnel.peer.open(StreamKind::Blob).await;
    send_part(&mut stream, &put(1, 0, 0, 30_000), &content[..30_000]).await;
    let failed: Failed = stream.expect().await;
    assert_eq!(failed.code, FailureCode::NOT_FOUND, "nothing was announced: {}", failed.message);
    for (announced, code) in [
        (BlobBegin { parts: vec![1; 35], ..begin(1, &parts) }, FailureCode::INVALID_REQUEST),
        (BlobBegin { parts: vec![], ..begin(1, &parts) }, FailureCode::INVALID_REQUEST),
        (BlobBegin { kind: ItemKind::SETTING, ..begin(1, &parts) }, FailureCode::INVALID_REQUEST),
        (BlobBegin { kind: ItemKind::HISTORY, ..begin(1, &parts) }, FailureCode::INVALID_REQUEST),
    ] {
        stream.send(&announced).await;
        let failed: Failed = stream.expect().await;
        assert_eq!(failed.code, code, "{}", failed.message);
    }
    stream.send(&begin(1, &parts)).await;
    let BlobNeeded { needed } = stream.expect().await;
    assert_eq!(needed, [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let mut wrong = content[..30_000].to_vec();
    wrong[7] ^= 1;
    for (put, bytes) in [
        (put(1, 0, 0, 30_000), &wrong[..]),
        (put(1, 0, 0, 29_999), &content[..29_999]),
        (put(1, 1, 0, 30_000), &content[..30_000]),
        (BlobPut { encoding: Encoding::ZSTD, ..put(1, 0, 0, 30_000) }, &content[..30_000]),
        (BlobPut { encoding: Encoding(7), ..put(1, 0, 0, 30_000) }, &content[..30_000]),
    ] {
        send_part(&mut stream, &put, bytes).await;
        let failed: Failed = stream.expect().await;
        assert_eq!(failed.code, FailureCode::INVALID_REQUEST, "{}", failed.message);
    }
    for (put, bytes) in [(put(1, 9, 0, 10), &content[..10]), (put(1, 0, 500, 29_500), &content[500..30_000])] {
        send_part(&mut stream, &put, bytes).await;
        let failed: Failed = stream.expect().await;
        assert_eq!(failed.code, FailureCode::NOT_FOUND, "{}", failed.message);
    }
    let there = async || {
        let ended = asks(&tunnel, StreamKind::Blob, &begin(1, &parts)).await;
        let BlobNeeded { needed } = BlobNeeded::from_frame(&ended.frames[0]).unwrap();
        u32::from_le_bytes(needed[4..8].try_into().unwrap())
    };
    // A stream with half of a part stays open, as after a lost tunnel. It ends when the same is announced again, and what
    // it has read by then is kept.
    for (from, until) in [(0, 20_000), (20_000, 25_000)] {
        belay_tests::relay::eventually("what came is kept", async || {
            let mut half = tunnel.peer.open(StreamKind::Blob).await;
            half.send(&put(1, 0, from, 30_000 - from as usize)).await;
            half.write(&body_chunk(0, &content[from as usize..until])).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            there().await == u32::try_from(until).unwrap()
        })
        .await;
    }
    send_part(&mut stream, &put(1, 0, 25_000, 5_000), &content[25_000..30_000]).await;
    assert_eq!(stream.expect::<BlobStored>().await.part, 0);
    let (encoding, packed) = (Encoding::PLAIN, &content[30_000..]);
    send_part(&mut stream, &BlobPut { encoding, ..put(1, 1, 0, packed.len()) }, packed).await;
    assert_eq!(stream.expect::<BlobStored>().await.part, 1);
    // What is there already is taken without being kept twice.
    send_part(&mut stream, &put(1, 1, 0, 30_000), &content[30_000..]).await;
    assert_eq!(stream.expect::<BlobStored>().await.part, 1);
    let pushed = asks(&tunnel, StreamKind::Sync, &in_parts(1, "large", &parts)).await;
    assert_eq!(SyncPushed::from_frame(&pushed.frames[0]).unwrap().outcome, PushOutcome::ACCEPTED);
    let got = asks(&tunnel, StreamKind::Sync, &SyncGet { revision: revision(1) }).await;
    assert_eq!(SyncGot::from_frame(&got.frames[0]).unwrap().parts, parts.to_bytes());
    for (offset, wanted) in [(0, &content[..30_000]), (29_000, &content[29_000..30_000]), (30_000, &[][..])] {
        let ended = asks(&tunnel, StreamKind::Blob, &BlobGet { digest: parts.all()[0].digest, offset }).await;
        let part = BlobPart::from_frame(&ended.frames[0]).unwrap();
        assert_eq!((part.size, part.len as usize), (30_000, wanted.len()));
        let bytes: Vec<u8> = ended.frames[1..].iter().flat_map(|frame| frame.body[8..].to_vec()).collect();
        assert_eq!(bytes, wanted);
    }
    asks(&tunnel, StreamKind::Blob, &BlobGet { digest: parts.all()[0].digest, offset: 30_001 })
        .await
        .is_failed(FailureCode::INVALID_REQUEST);
    // More than a part can have is not even begun.
    let mut stream = tunnel.peer.open(StreamKind::Blob).await;
    stream.send(&put(1, 0, 0, 2 << 20)).await;
    stream.is_refused(FailureCode::MALFORMED, StreamCode::MALFORMED, "too long").await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_looked_at_by_the_relay_too() {
    let relay = TestRelay::start("").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let (weights, config) = adapter(100_000, 1);
    let mut hostile = weights.clone();
    hostile[0] ^= 0x40;
    for (number, weights, meta, wanted) in [
        (1, &weights, config.as_str(), None),
        (2, &hostile, config.as_str(), Some("weights")),
        (3, &weights, "{}", Some("adapter_config.json")),
        (4, &weights, &config.replace("\"r\":8", "\"r\":4"), Some("do not fit")),
    ] {
        let part = |bytes: &[u8]| Part { digest: Digest::of(bytes), size: u32::try_from(bytes.len()).unwrap() };
        let parts = Parts::new(weights.chunks(1 << 20).map(part).collect()).unwrap();
        let mut stream = tunnel.peer.open(StreamKind::Blob).await;
        stream.send(&BlobBegin { kind: ItemKind::ADAPTER, ..begin(number, &parts) }).await;
        let BlobNeeded { needed } = stream.expect().await;
        if !needed.is_empty() {
            send_part(&mut stream, &put(number, 0, 0, weights.len()), weights).await;
            let _: BlobStored = stream.expect().await;
        }
        let push =
            SyncPush { kind: ItemKind::ADAPTER, meta: meta.into(), ..in_parts(number, &format!("a{number}"), &parts) };
        let ended = asks(&tunnel, StreamKind::Sync, &push).await;
        match wanted {
            None => assert_eq!(SyncPushed::from_frame(&ended.frames[0]).unwrap().outcome, PushOutcome::ACCEPTED),
            Some(why) => {
                let failed = ended.is_failed(FailureCode::INVALID_REQUEST);
                assert!(failed.message.contains(why), "{why}: {}", failed.message);
            }
        }
    }
    let feed = asks(&tunnel, StreamKind::Sync, &pull("")).await;
    assert_eq!(feed.frames.len(), 2, "nothing is left of what was refused");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_kept_and_locks_are_one_holders() {
    let relay = TestRelay::start("[limits]\nsync_mib = 1\nrequests_per_minute = 1000\n").await;
    let tunnel = Device::enrol(&relay).await.tunnel().await;
    let parts = |seed: u8| {
        let part = |number: u8| Part { digest: Digest([seed + number; 32]), size: 300_000 };
        Parts::new((0..3).map(part).collect()).unwrap()
    };
    let first = asks(&tunnel, StreamKind::Blob, &begin(1, &parts(1))).await;
    assert_eq!(BlobNeeded::from_frame(&first.frames[0]).unwrap().needed.len(), 24);
    let failed = asks(&tunnel, StreamKind::Blob, &begin(2, &parts(9))).await.is_failed(FailureCode::LIMIT);
    assert!(failed.message.contains("1800900 of 1048576 bytes"), "{}", failed.message);
    assert!(failed.remedy.contains("limits.sync_mib"));
    let mut full = vec![];
    for number in 10..20 {
        full = asks(&tunnel, StreamKind::Sync, &text(number, None, &format!("f{number}"), &"x".repeat(30_000)))
            .await
            .frames;
    }
    assert_eq!(Failed::from_frame(&full[0]).unwrap().code, FailureCode::LIMIT);
    let lock = |token: u8| SyncLock { key: key("k"), token: LockToken([token; 16]) };
    let held = asks(&tunnel, StreamKind::Sync, &lock(1)).await;
    let SyncLocked { fence, expires_in_ms } = SyncLocked::from_frame(&held.frames[0]).unwrap();
    assert_eq!((fence, expires_in_ms), (1, 30_000));
    let failed = asks(&tunnel, StreamKind::Sync, &lock(2)).await.is_failed(FailureCode::CONFLICT);
    assert!(failed.retry_after_ms.is_some_and(|ms| (20_000..=30_000).contains(&ms)), "{failed:?}");
    let unlock = |token: u8| SyncUnlock { key: key("k"), token: LockToken([token; 16]) };
    asks(&tunnel, StreamKind::Sync, &unlock(2)).await.is_failed(FailureCode::NOT_FOUND);
    let freed = asks(&tunnel, StreamKind::Sync, &unlock(1)).await;
    assert_eq!(SyncUnlocked::from_frame(&freed.frames[0]), Ok(SyncUnlocked { was_expired: false }));
    let held = asks(&tunnel, StreamKind::Sync, &lock(2)).await;
    assert_eq!(SyncLocked::from_frame(&held.frames[0]).unwrap().fence, 2);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_tells_others_within_a_second_and_ends_with_access() {
    let relay = TestRelay::start("").await;
    let (writer, reader) = (Device::enrol(&relay).await, Device::enrol(&relay).await);
    let (tunnel, other) = (writer.tunnel().await, reader.tunnel().await);
    asks(&tunnel, StreamKind::Sync, &text(1, None, "before", "x")).await;
    let mut feed = other.peer.open(StreamKind::Feed).await;
    feed.send(&pull("")).await;
    feed.finish();
    assert_eq!(feed.expect::<SyncChange>().await.key, "before");
    assert!(!feed.expect::<SyncPage>().await.has_more);
    for number in 2..6 {
        let began = Instant::now();
        asks(&tunnel, StreamKind::Sync, &text(number, None, &format!("f{number}"), "x")).await;
        let change: SyncChange = feed.expect().await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!((change.key, change.device.unwrap().to_string()), (format!("f{number}"), writer.id.clone()));
        assert_eq!(feed.expect::<SyncPage>().await.changes, 1);
    }
    // What is said in a conversation is a change.
    let session = SessionAdd {
        session: "trip".parse().unwrap(),
        message_id: MessageId([1; 16]),
        role: SessionRole::USER,
        model: String::new(),
        text_len: 2,
    };
    let mut stream = tunnel.peer.open(StreamKind::Session).await;
    stream.send(&session).await;
    stream.write(&body_chunk(0, b"hi")).await;
    assert_eq!(feed.expect::<SyncChange>().await.kind, ItemKind::HISTORY);
    let _: SyncPage = feed.expect().await;
    relay.relay().admin().revoke(&reader.id.parse().unwrap(), "test").await.unwrap();
    soon("the end of the feed", other.peer.closed()).await;
    // A relay that goes down ends feeds at once, and does not wait for them.
    let mut feed = tunnel.peer.open(StreamKind::Feed).await;
    feed.send(&pull("")).await;
    feed.finish();
    while SyncPage::from_frame(&feed.frame().await).is_err() {}
    let ending = tokio::spawn(async move { feed.ended().await });
    let began = Instant::now();
    relay.stop().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    ending.await.unwrap().is_failed(FailureCode::DRAINING);
}
