//! All types of frames, for tests that go through them.

use belay_protocol::codec::Message;
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{FrameType, raw};
use belay_protocol::message as m;
use bytes::Bytes;

/// Reads a body as its type; the match holds every type, so a new one must be added here.
pub(crate) fn decode(kind: FrameType, body: &[u8]) -> Result<(), ProtocolError> {
    fn read<M: Message>(body: &[u8]) -> Result<(), ProtocolError> {
        M::decode_body(body).map(|_| ())
    }
    match kind {
        FrameType::Hello => read::<m::Hello>(body),
        FrameType::HelloAck => read::<m::HelloAck>(body),
        FrameType::Heartbeat => read::<m::Heartbeat>(body),
        FrameType::HeartbeatAck => read::<m::HeartbeatAck>(body),
        FrameType::GoAway => read::<m::GoAway>(body),
        FrameType::Probe => read::<m::Probe>(body),
        FrameType::EnrolRequest => read::<m::EnrolRequest>(body),
        FrameType::EnrolAnswer => read::<m::EnrolAnswer>(body),
        FrameType::LeaveRequest => read::<m::LeaveRequest>(body),
        FrameType::LeaveAnswer => read::<m::LeaveAnswer>(body),
        FrameType::RenewRequest => read::<m::RenewRequest>(body),
        FrameType::RenewAnswer => read::<m::RenewAnswer>(body),
        FrameType::EscalateRequest => read::<m::EscalateRequest>(body),
        FrameType::ResponseHead => read::<m::ResponseHead>(body),
        FrameType::End => read::<m::End>(body),
        FrameType::Failed => read::<m::Failed>(body),
        FrameType::Cancel => read::<m::Cancel>(body),
        FrameType::Ack => read::<m::Ack>(body),
        FrameType::Resume => read::<m::Resume>(body),
        FrameType::BalanceRequest => read::<m::BalanceRequest>(body),
        FrameType::Balance => read::<m::Balance>(body),
        FrameType::UsageRequest => read::<m::UsageRequest>(body),
        FrameType::UsageGroup => read::<m::UsageGroup>(body),
        FrameType::Done => read::<m::Done>(body),
        FrameType::StatementRequest => read::<m::StatementRequest>(body),
        FrameType::StatementLine => read::<m::StatementLine>(body),
        FrameType::RecordRequest => read::<m::RecordRequest>(body),
        FrameType::TopUpRequest => read::<m::TopUpRequest>(body),
        FrameType::TopUp => read::<m::TopUp>(body),
        FrameType::FlushRequest => read::<m::FlushRequest>(body),
        FrameType::Flushed => read::<m::Flushed>(body),
        FrameType::ModelsRequest => read::<m::ModelsRequest>(body),
        FrameType::ModelOffer => read::<m::ModelOffer>(body),
        FrameType::SessionGet => read::<m::SessionGet>(body),
        FrameType::Session => read::<m::Session>(body),
        FrameType::SessionMessage => read::<m::SessionMessage>(body),
        FrameType::SessionAdd => read::<m::SessionAdd>(body),
        FrameType::SessionAdded => read::<m::SessionAdded>(body),
        FrameType::SessionUpdate => read::<m::SessionUpdate>(body),
        FrameType::SessionAct => read::<m::SessionAct>(body),
        FrameType::SessionList => read::<m::SessionList>(body),
        FrameType::SessionRow => read::<m::SessionRow>(body),
        FrameType::SessionSearch => read::<m::SessionSearch>(body),
        FrameType::SessionHit => read::<m::SessionHit>(body),
        FrameType::SessionsDone => read::<m::SessionsDone>(body),
        FrameType::SyncPush => read::<m::SyncPush>(body),
        FrameType::SyncPushed => read::<m::SyncPushed>(body),
        FrameType::SyncPull => read::<m::SyncPull>(body),
        FrameType::SyncChange => read::<m::SyncChange>(body),
        FrameType::SyncPage => read::<m::SyncPage>(body),
        FrameType::SyncGet => read::<m::SyncGet>(body),
        FrameType::SyncGot => read::<m::SyncGot>(body),
        FrameType::SyncLog => read::<m::SyncLog>(body),
        FrameType::SyncRevision => read::<m::SyncRevision>(body),
        FrameType::SyncStatusRequest => read::<m::SyncStatusRequest>(body),
        FrameType::SyncKindStatus => read::<m::SyncKindStatus>(body),
        FrameType::SyncStatus => read::<m::SyncStatus>(body),
        FrameType::SyncLock => read::<m::SyncLock>(body),
        FrameType::SyncLocked => read::<m::SyncLocked>(body),
        FrameType::SyncUnlock => read::<m::SyncUnlock>(body),
        FrameType::SyncUnlocked => read::<m::SyncUnlocked>(body),
        FrameType::BlobBegin => read::<m::BlobBegin>(body),
        FrameType::BlobNeeded => read::<m::BlobNeeded>(body),
        FrameType::BlobPut => read::<m::BlobPut>(body),
        FrameType::BlobStored => read::<m::BlobStored>(body),
        FrameType::BlobGet => read::<m::BlobGet>(body),
        FrameType::BlobPart => read::<m::BlobPart>(body),
        FrameType::SyncLogDone => read::<m::SyncLogDone>(body),
        FrameType::BodyChunk | FrameType::Event | FrameType::AnswerChunk => {
            raw::split(kind, Bytes::copy_from_slice(body)).map(|_| ())
        }
    }
}
