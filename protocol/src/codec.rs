//! Message bodies to bytes and back. The one file that names bincode.
//!
//! bincode 2.0.1, `config::standard()`: little endian, variable-length integers, a limit per type
//! so that a lying length allocates little more than the type's maximum, and all input consumed or
//! it is an error. The bytes are frozen by golden tests, so the crate can be replaced.
//!
//! bincode's limit counts decoded sizes (a length counts eight bytes, whatever it takes on the
//! wire), so it stands half again above the maximum, which is checked on the bytes themselves.
//! Lists are short ([`crate::bounded`]), so that this half is always enough.

use crate::error::ProtocolError;
use crate::frame::{Frame, FrameType, HEADER_LEN, put_header};
use crate::message as m;
use bytes::{BufMut, Bytes, BytesMut};

/// A message: a frame type and a body that the codec understands.
pub trait Message: Sized {
    /// The frame type that carries it.
    const TYPE: FrameType;

    /// The body's bytes. Errors: `Unencodable` above the type's limit.
    fn encode_body(&self) -> Result<Vec<u8>, ProtocolError>;

    /// Reads a body. Errors: `Malformed`, also when bytes are left over.
    fn decode_body(body: &[u8]) -> Result<Self, ProtocolError>;

    /// The whole frame in one buffer.
    fn to_frame(&self) -> Result<Bytes, ProtocolError> {
        let body = self.encode_body()?;
        let mut out = BytesMut::with_capacity(HEADER_LEN + body.len());
        put_header(&mut out, Self::TYPE, body.len())?;
        out.put_slice(&body);
        Ok(out.freeze())
    }

    /// Reads the message out of a frame. Errors: `Unexpected` if the frame is of another type.
    fn from_frame(frame: &Frame) -> Result<Self, ProtocolError> {
        if frame.kind != Self::TYPE {
            return Err(ProtocolError::Unexpected { got: frame.kind.name(), expected: Self::TYPE.name() });
        }
        Self::decode_body(&frame.body)
    }
}

macro_rules! messages {
    ($($name:ident),* $(,)?) => {$(
        impl Message for m::$name {
            const TYPE: FrameType = FrameType::$name;

            fn encode_body(&self) -> Result<Vec<u8>, ProtocolError> {
                const MAX: usize = FrameType::$name.max_body() as usize;
                let config = bincode::config::standard();
                let body = bincode::serde::encode_to_vec(self, config)
                    .map_err(|error| ProtocolError::Unencodable { kind: stringify!($name), why: error.to_string() })?;
                if body.len() > MAX {
                    return Err(ProtocolError::Unencodable {
                        kind: stringify!($name),
                        why: format!("{} bytes, at most {MAX} are allowed", body.len()),
                    });
                }
                Ok(body)
            }

            fn decode_body(body: &[u8]) -> Result<Self, ProtocolError> {
                const MAX: usize = FrameType::$name.max_body() as usize;
                let malformed = |why: String| ProtocolError::Malformed { kind: stringify!($name), why };
                if body.len() > MAX {
                    return Err(malformed(format!("{} bytes, at most {MAX} are allowed", body.len())));
                }
                let config = bincode::config::standard().with_limit::<{ MAX + MAX / 2 }>();
                let (message, used) = bincode::serde::decode_from_slice::<Self, _>(body, config)
                    .map_err(|error| malformed(error.to_string()))?;
                if used != body.len() {
                    return Err(malformed(format!("{} bytes left over", body.len() - used)));
                }
                Ok(message)
            }
        }
    )*};
}

messages!(
    Hello,
    HelloAck,
    Heartbeat,
    HeartbeatAck,
    GoAway,
    Probe,
    EnrolRequest,
    EnrolAnswer,
    LeaveRequest,
    LeaveAnswer,
    RenewRequest,
    RenewAnswer,
    EscalateRequest,
    ResponseHead,
    End,
    Failed,
    Cancel,
    Ack,
    Resume,
    BalanceRequest,
    Balance,
    UsageRequest,
    UsageGroup,
    Done,
    StatementRequest,
    StatementLine,
    RecordRequest,
    TopUpRequest,
    TopUp,
    FlushRequest,
    Flushed,
    ModelsRequest,
    ModelOffer,
    SessionGet,
    Session,
    SessionMessage,
    SessionAdd,
    SessionAdded,
    SessionUpdate,
    SessionAct,
    SessionList,
    SessionRow,
    SessionSearch,
    SessionHit,
    SessionsDone,
    SyncPush,
    SyncPushed,
    SyncPull,
    SyncChange,
    SyncPage,
    SyncGet,
    SyncGot,
    SyncLog,
    SyncRevision,
    SyncLogDone,
    SyncStatusRequest,
    SyncKindStatus,
    SyncStatus,
    SyncLock,
    SyncLocked,
    SyncUnlock,
    SyncUnlocked,
    BlobBegin,
    BlobNeeded,
    BlobPut,
    BlobStored,
    BlobGet,
    BlobPart,
);
