//! Bodies of all types of frames.

use belay_protocol::codec::Message;
use belay_protocol::frame::{FrameType, raw};
use belay_protocol::message as m;
use bytes::Bytes;
use std::fmt::Debug;

/// What is read is written and read again.
fn read<M: Message + PartialEq + Debug>(body: &[u8]) {
    let Ok(message) = M::decode_body(body) else { return };
    let written = message.encode_body().expect("what was read can be written");
    // Numbers may have come in more bytes than they need; never in fewer.
    assert!(written.len() <= body.len());
    // By its bytes: a number that is none is not even itself.
    let again = M::decode_body(&written).expect("what was written can be read");
    assert_eq!(again.encode_body().expect("it was written before"), written, "{message:?}");
}

/// The first two bytes choose the type.
pub(crate) fn body(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first_chunk::<2>() else { return };
    let all = FrameType::ALL;
    of(all[usize::from(u16::from_le_bytes(*kind)) % all.len()], body);
}

macro_rules! readers {
    ($($name:ident)*) => {
        pub(crate) fn of(kind: FrameType, body: &[u8]) {
            match kind {
                $(FrameType::$name => read::<m::$name>(body),)*
                FrameType::BodyChunk | FrameType::Event | FrameType::AnswerChunk => {
                    if let Ok((_, payload)) = raw::split(kind, Bytes::copy_from_slice(body)) {
                        assert!(body.ends_with(&payload));
                    }
                }
            }
        }
    };
}

readers! {
    Hello HelloAck Heartbeat HeartbeatAck GoAway Probe EnrolRequest EnrolAnswer LeaveRequest LeaveAnswer RenewRequest
    RenewAnswer EscalateRequest ResponseHead End Failed Cancel Ack Resume BalanceRequest Balance UsageRequest UsageGroup
    Done StatementRequest StatementLine RecordRequest TopUpRequest TopUp FlushRequest Flushed ModelsRequest ModelOffer
    SessionGet Session SessionMessage SessionAdd SessionAdded SessionUpdate SessionAct SessionList SessionRow
    SessionSearch SessionHit SessionsDone SyncPush SyncPushed SyncPull SyncChange SyncPage SyncGet SyncGot SyncLog
    SyncRevision SyncStatusRequest SyncKindStatus SyncStatus SyncLock SyncLocked SyncUnlock SyncUnlocked BlobBegin
    BlobNeeded BlobPut BlobStored BlobGet BlobPart SyncLogDone
}
