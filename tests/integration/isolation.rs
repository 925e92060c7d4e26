//! What one tenant has is not there for others: every operation of session, sync, blob, billing and escalate streams.

use crate::raw::{Device, Ended, Tunnel, body_chunk, prompt, request};
use crate::sync_wire::{asks, begin, in_parts, key, pull, put, revision, send_part, text, two_parts, upload};
use belay_protocol::codec::Message;
use belay_protocol::error::StreamCode;
use belay_protocol::frame::FrameType;
use belay_protocol::id::{LockToken, MessageId, RequestId};
use belay_protocol::item::ItemKind;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    BalanceRequest, BlobGet, EscalateRequest, FlushRequest, ModelsRequest, RecordRequest, Resume, SessionAct,
    SessionAdd, SessionDeed, SessionGet, SessionList, SessionRole, SessionSearch, StatementRequest, SyncContent,
    SyncGet, SyncGot, SyncLock, SyncLog, SyncPush, SyncStatusRequest, SyncUnlock, TopUpRequest, UnitKind, UsageBy,
    UsageClass, UsageLine, UsagePeriod, UsageRequest,
};
use belay_protocol::money::NanoUsd;
use belay_tests::relay::TestRelay;
use bytes::Bytes;

/// Every operation that names something is asked twice by a tenant that has nothing of it: before another tenant has
/// it, and after. The answers are the same, byte for byte.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_tenant_has_is_not_there() {
    let relay = TestRelay::start("").await;
    relay.relay().admin().create_tenant("other".parse().unwrap()).await.unwrap();
    let owner = Device::enrol(&relay).await.tunnel().await;
    for tenant in ["maker", "third"] {
        relay.relay().admin().create_tenant(tenant.parse().unwrap()).await.unwrap();
    }
    let stranger = Device::join(&relay.invite("other").await).await.tunnel().await;
    let third = Device::join(&relay.invite("third").await).await.tunnel().await;
    let (_, parts) = two_parts();
    let session = || "trip".parse().unwrap();
    let asked = async || {
        let mut answers = vec![];
        let mut note = |what: &'static str, ended: Ended| answers.push(told(what, ended));
        let (on_session, on_sync, on_blob) = (StreamKind::Session, StreamKind::Sync, StreamKind::Blob);
        note("get", asks(&stranger, on_session, &SessionGet { session: session(), after: 0, last: 0 }).await);
        for deed in [SessionDeed::DELETE, SessionDeed::RESTORE, SessionDeed::CLEAR] {
            note("act", asks(&stranger, on_session, &SessionAct { session: session(), deed }).await);
        }
        let list = SessionList { deleted: false, cursor: String::new(), limit: 0 };
        note("list", asks(&stranger, on_session, &list).await);
        let search = SessionSearch { query: "Rome".into(), cursor: String::new(), limit: 0 };
        note("search", asks(&stranger, on_session, &search).await);
        note("revision", asks(&stranger, on_sync, &SyncGet { revision: revision(1) }).await);
        note("log", asks(&stranger, on_sync, &SyncLog { kind: ItemKind::DOCUMENT, key: key("a") }).await);
        note("pull", asks(&stranger, on_sync, &pull("")).await);
        note("status", asks(&stranger, on_sync, &SyncStatusRequest { reserved: 0 }).await);
        let earlier = SyncPush {
            content: SyncContent::EARLIER,
            earlier: Some(revision(1)),
            size: 0,
            inline: vec![],
            ..text(50, Some(1), "a", "")
        };
        note("earlier", asks(&stranger, on_sync, &earlier).await);
        note("push in parts", asks(&stranger, on_sync, &in_parts(3, "b", &parts)).await);
        let delete = SyncPush { content: SyncContent::NONE, size: 0, inline: vec![], ..text(51, Some(1), "a", "") };
        note("delete", asks(&stranger, on_sync, &delete).await);
        note("unlock", asks(&stranger, on_sync, &SyncUnlock { key: key("k"), token: LockToken([1; 16]) }).await);
        for part in parts.all() {
            note("part", asks(&stranger, on_blob, &BlobGet { digest: part.digest, offset: 0 }).await);
        }
        let mut stream = stranger.peer.open(on_blob).await;
        send_part(&mut stream, &put(3, 0, 0, 3), b"abc").await;
        stream.finish();
        note("put", stream.ended().await);
        note("balance", asks(&stranger, StreamKind::Billing, &BalanceRequest { reserved: 0 }).await);
        let usage = UsageRequest { period: UsagePeriod::MONTH, from_day: 0, until_day: 0, by: UsageBy::MODEL };
        note("usage", asks(&stranger, StreamKind::Billing, &usage).await);
        let statement = StatementRequest { from_day: 0, until_day: 0, after: 0 };
        note("statement", asks(&stranger, StreamKind::Billing, &statement).await);
        note("flush", asks(&stranger, StreamKind::Billing, &FlushRequest { reserved: 0 }).await);
        let resume = Resume { request_id: RequestId([7; 16]), next: 0 };
        note("resume", asks(&stranger, StreamKind::Escalate, &resume).await);
        answers
    };
    let before = asked().await;
    let made = makes(&Device::join(&relay.invite("maker").await).await.tunnel().await).await;
    // Everything that was asked for comes to be.
    let mut stream = owner.peer.open(StreamKind::Session).await;
    stream.send(&said()).await;
    stream.write(&body_chunk(0, b"To Rome")).await;
    stream.finish();
    assert_eq!(stream.ended().await.failed(), None);
    asks(&owner, StreamKind::Sync, &text(1, None, "a", "of the owner")).await;
    upload(&owner, 2, "b").await;
    asks(&owner, StreamKind::Blob, &begin(3, &parts)).await;
    asks(&owner, StreamKind::Sync, &SyncLock { key: key("k"), token: LockToken([1; 16]) }).await;
    let asked_for = EscalateRequest { request_id: RequestId([7; 16]), ..request(prompt("Why?").len()) };
    let mut answer = owner.peer.ask(asked_for, "Why?").await;
    answer.finish();
    answer.ended().await.end();
    let after = asked().await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before, after, "{} tells of another tenant", before.0);
    }
    // What makes something under the owner's names: to the one tenant before the owner had it, to the other after.
    for (before, (what, frames, reset)) in made.iter().zip(makes(&third).await) {
        // Each is told its own name, of as many letters.
        let frames = frames.into_iter().map(|(kind, body)| (kind, renamed(&body, b"third", b"maker")));
        assert_eq!(*before, (what, frames.collect(), reset), "{what} tells of another tenant");
    }
    let ended = asks(&owner, StreamKind::Sync, &SyncGet { revision: revision(1) }).await;
    assert_eq!(SyncGot::from_frame(&ended.frames[0]).unwrap().inline, b"of the owner");
    relay.stop().await;
}

/// An answer as bytes.
type Told = (&'static str, Vec<(FrameType, Bytes)>, Option<StreamCode>);

fn told(what: &'static str, ended: Ended) -> Told {
    (what, ended.frames.into_iter().map(|frame| (frame.kind, frame.body)).collect(), ended.reset)
}

fn renamed(body: &[u8], from: &[u8], to: &[u8]) -> Bytes {
    let mut body = body.to_vec();
    while let Some(at) = body.windows(from.len()).position(|window| window == from) {
        body[at..at + to.len()].copy_from_slice(to);
    }
    body.into()
}

/// Makes something under names that the owner uses too.
async fn makes(tunnel: &Tunnel) -> Vec<Told> {
    let (_, parts) = two_parts();
    let mut answers = vec![];
    let mut stream = tunnel.peer.open(StreamKind::Session).await;
    stream.send(&said()).await;
    stream.write(&body_chunk(0, b"To Rome")).await;
    stream.finish();
    answers.push(told("add a message", stream.ended().await));
    let push = text(1, None, "a", "of a stranger");
    answers.push(told("push", asks(tunnel, StreamKind::Sync, &push).await));
    answers.push(told("begin", asks(tunnel, StreamKind::Blob, &begin(3, &parts)).await));
    let lock = SyncLock { key: key("k"), token: LockToken([2; 16]) };
    answers.push(told("lock", asks(tunnel, StreamKind::Sync, &lock).await));
    let record = RecordRequest {
        request_id: RequestId([7; 16]),
        class: UsageClass::LOCAL,
        model: "llama3".into(),
        usage: vec![UsageLine { kind: UnitKind::INPUT, units: 10 }],
    };
    answers.push(told("record", asks(tunnel, StreamKind::Billing, &record).await));
    answers.push(told("top up", asks(tunnel, StreamKind::Billing, &TopUpRequest { amount: NanoUsd(1) }).await));
    answers.push(told("models", asks(tunnel, StreamKind::Billing, &ModelsRequest { reserved: 0 }).await));
    // A request of the owner's name, and in a session of its: not known, not joined, not in conflict; it is refused for
    // what this tenant lacks.
    let asked = EscalateRequest {
        request_id: RequestId([7; 16]),
        session_id: Some("trip".into()),
        ..request(prompt("Why?").len())
    };
    let mut answer = tunnel.peer.ask(asked, "Why?").await;
    answer.finish();
    answers.push(told("escalate", answer.ended().await));
    answers
}

/// A message that the owner adds, too.
fn said() -> SessionAdd {
    SessionAdd {
        session: "trip".parse().unwrap(),
        message_id: MessageId([1; 16]),
        role: SessionRole::USER,
        model: String::new(),
        text_len: 7,
    }
}
