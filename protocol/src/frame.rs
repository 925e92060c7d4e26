//! Frames: `len u32 LE | type u16 LE | flags u8 | 0`, then `len` bytes of body.
//!
//! All wire numbers live in [`FrameType`]; a retired one stays, marked. [`FrameDecoder`] turns
//! chunks of bytes, cut anywhere, into frames: a frame that lies whole in one chunk is a slice of
//! it, only a frame that straddles chunks is copied. Nothing is buffered for a frame before its
//! announced length has been checked against the maximum of its type, and the encoder checks the
//! same maximum.

use crate::error::ProtocolError;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes in a frame header.
pub const HEADER_LEN: usize = 8;
/// Flag bit 0: the receiver must know this type or reset the stream.
pub const FLAG_REQUIRED: u8 = 0b0000_0001;
/// The largest body of an unknown optional frame that is skipped, in bytes.
pub const MAX_SKIPPED: u32 = 1 << 20;
/// The largest raw chunk or event payload, in bytes, without its fixed header.
pub const MAX_CHUNK: usize = 256 << 10;
/// Bytes of the fixed header of a raw body.
pub const RAW_HEADER_LEN: usize = 8;

/// What a frame's body may weigh, by class.
mod max {
    pub(super) const SMALL: u32 = 4 << 10;
    pub(super) const CONTROL: u32 = 64 << 10;
    pub(super) const REQUEST: u32 = 1 << 20;
    pub(super) const RAW: u32 = (super::MAX_CHUNK + super::RAW_HEADER_LEN) as u32;
}

macro_rules! frame_types {
    ($($(#[$doc:meta])* $name:ident = $wire:literal, $max:ident;)*) => {
        /// Every frame type with its wire number and the maximum of its body.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum FrameType { $($(#[$doc])* $name = $wire,)* }
        impl FrameType {
            /// Every type that this version knows.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
            /// The type of a wire number, if this version knows it.
            #[must_use]
            pub const fn from_wire(wire: u16) -> Option<Self> {
                match wire { $($wire => Some(Self::$name),)* _ => None }
            }
            /// The most bytes that a body of this type may have.
            #[must_use]
            pub const fn max_body(self) -> u32 {
                match self { $(Self::$name => max::$max,)* }
            }
            /// The type's name in errors and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

frame_types! {
    /// Client's first frame on the control stream. Frozen for ever.
    Hello = 0x0001, SMALL;
    /// Relay's answer to `Hello`. Frozen for ever.
    HelloAck = 0x0002, SMALL;
    /// Client to relay, every heartbeat interval.
    Heartbeat = 0x0003, CONTROL;
    /// Relay's answer to a `Heartbeat`.
    HeartbeatAck = 0x0004, CONTROL;
    /// Relay: no new streams here, come back later.
    GoAway = 0x0005, SMALL;
    /// Relay: is anybody there? Optional and empty; that its packet is acknowledged is the answer.
    Probe = 0x0006, SMALL;
    /// Client without a certificate: an invite and a CSR.
    EnrolRequest = 0x0010, CONTROL;
    /// Relay: the certificate.
    EnrolAnswer = 0x0011, CONTROL;
    /// Client: revoke this device, its user leaves.
    LeaveRequest = 0x0012, SMALL;
    /// Relay: done.
    LeaveAnswer = 0x0013, SMALL;
    /// Client: a CSR for a certificate in place of the one that it has.
    RenewRequest = 0x0014, CONTROL;
    /// Relay: the certificate.
    RenewAnswer = 0x0015, CONTROL;
    /// Client: one LLM request; its body follows in `BodyChunk`s.
    EscalateRequest = 0x0020, REQUEST;
    /// Raw: a piece of the request body, after its offset.
    BodyChunk = 0x0021, RAW;
    /// Relay: the provider answered with this status and these headers.
    ResponseHead = 0x0022, REQUEST;
    /// Raw: one server-sent event, after its number.
    Event = 0x0023, RAW;
    /// Raw: a piece of an answer that is not streamed, after its number.
    AnswerChunk = 0x0024, RAW;
    /// Relay: the request is over and settled.
    End = 0x0025, CONTROL;
    /// Relay: the operation failed and nothing was charged.
    Failed = 0x0026, CONTROL;
    /// Client: stop the request and settle what was produced.
    Cancel = 0x0027, SMALL;
    /// Client: everything below this number has arrived.
    Ack = 0x0028, SMALL;
    /// Client: go on with a request that was sent before, on another stream.
    Resume = 0x0029, SMALL;
    /// Client: what is my balance?
    BalanceRequest = 0x0040, SMALL;
    /// Relay: balance and what is held of it.
    Balance = 0x0041, SMALL;
    /// Client: what was used?
    UsageRequest = 0x0042, SMALL;
    /// Relay: a sum of usage.
    UsageGroup = 0x0043, SMALL;
    /// Relay: the end of a list.
    Done = 0x0044, SMALL;
    /// Client: the entries of the book, please.
    StatementRequest = 0x0045, SMALL;
    /// Relay: one entry.
    StatementLine = 0x0046, CONTROL;
    /// Client: usage outside of the relay, to be charged.
    RecordRequest = 0x0047, CONTROL;
    /// Client: how can money be added?
    TopUpRequest = 0x0048, SMALL;
    /// Relay: at this page.
    TopUp = 0x0049, SMALL;
    /// Client: hand usage to central now.
    FlushRequest = 0x004a, SMALL;
    /// Relay: done.
    Flushed = 0x004b, SMALL;
    /// Client: which models are there?
    ModelsRequest = 0x004c, SMALL;
    /// Relay: this one.
    ModelOffer = 0x004d, SMALL;
    /// Client: what is this session, and what was said in it?
    SessionGet = 0x0060, SMALL;
    /// Relay: this.
    Session = 0x0061, REQUEST;
    /// Relay: a message; its text follows in `BodyChunk`s.
    SessionMessage = 0x0062, SMALL;
    /// Client: a message to be added; its text follows in `BodyChunk`s.
    SessionAdd = 0x0063, SMALL;
    /// Relay: it was.
    SessionAdded = 0x0064, SMALL;
    /// Client: change its title, model or context.
    SessionUpdate = 0x0065, REQUEST;
    /// Client: delete it, take that back, or clear it.
    SessionAct = 0x0066, SMALL;
    /// Client: which sessions are there?
    SessionList = 0x0067, SMALL;
    /// Relay: this one.
    SessionRow = 0x0068, SMALL;
    /// Client: where was this said?
    SessionSearch = 0x0069, SMALL;
    /// Relay: here.
    SessionHit = 0x006a, CONTROL;
    /// Relay: the end of a page of sessions.
    SessionsDone = 0x006b, SMALL;
    /// Client: a revision of an item.
    SyncPush = 0x0080, REQUEST;
    /// Relay: what became of it.
    SyncPushed = 0x0081, SMALL;
    /// Client: what has changed?
    SyncPull = 0x0082, SMALL;
    /// Relay: this.
    SyncChange = 0x0083, REQUEST;
    /// Relay: the end of a page of changes.
    SyncPage = 0x0084, SMALL;
    /// Client: what is in this revision?
    SyncGet = 0x0085, SMALL;
    /// Relay: this, or these parts.
    SyncGot = 0x0086, REQUEST;
    /// Client: what was this item?
    SyncLog = 0x0087, SMALL;
    /// Relay: this.
    SyncRevision = 0x0088, SMALL;
    /// Client: what is there?
    SyncStatusRequest = 0x0089, SMALL;
    /// Relay: so much of a kind.
    SyncKindStatus = 0x008a, SMALL;
    /// Relay: so much in all.
    SyncStatus = 0x008b, SMALL;
    /// Client: a lock, please.
    SyncLock = 0x008c, SMALL;
    /// Relay: here it is.
    SyncLocked = 0x008d, SMALL;
    /// Client: the lock is given back.
    SyncUnlock = 0x008e, SMALL;
    /// Relay: it is free.
    SyncUnlocked = 0x008f, SMALL;
    /// Client: content in these parts will come.
    BlobBegin = 0x0090, REQUEST;
    /// Relay: of which these are needed.
    BlobNeeded = 0x0091, REQUEST;
    /// Client: a part; its bytes follow in `BodyChunk`s.
    BlobPut = 0x0092, SMALL;
    /// Relay: it is on disk.
    BlobStored = 0x0093, SMALL;
    /// Client: this part, please.
    BlobGet = 0x0094, SMALL;
    /// Relay: here it is; its bytes follow in `BodyChunk`s.
    BlobPart = 0x0095, SMALL;
    /// Relay: the end of a log.
    SyncLogDone = 0x0096, SMALL;
}

impl FrameType {
    /// The wire number.
    #[must_use]
    pub const fn to_wire(self) -> u16 {
        self as u16
    }

    /// Sent without the required bit: who does not know it, skips it.
    #[must_use]
    pub const fn is_optional(self) -> bool {
        matches!(self, Self::Probe)
    }
}

/// One frame as received. The body may be a slice of the buffer that it arrived in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: FrameType,
    /// The body, without the header.
    pub body: Bytes,
}

/// A header that has passed all checks.
#[derive(Debug, Clone, Copy)]
struct Header {
    /// `None`: an unknown optional frame, to be skipped.
    kind: Option<FrameType>,
    len: u32,
}

impl Header {
    fn parse(raw: [u8; HEADER_LEN]) -> Result<Self, ProtocolError> {
        let len = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        let wire = u16::from_le_bytes([raw[4], raw[5]]);
        let (flags, reserved) = (raw[6], raw[7]);
        if flags & !FLAG_REQUIRED != 0 || reserved != 0 {
            return Err(ProtocolError::ReservedBits { flags, reserved });
        }
        let kind = FrameType::from_wire(wire);
        if kind.is_none() && flags & FLAG_REQUIRED != 0 {
            return Err(ProtocolError::UnknownRequired(wire));
        }
        let max = kind.map_or(MAX_SKIPPED, FrameType::max_body);
        if len > max {
            return Err(ProtocolError::FrameTooLarge { kind: wire, len, max });
        }
        Ok(Self { kind, len })
    }
}

/// Turns chunks of bytes into frames. Call [`push`](Self::push) with what arrived, then
/// [`next`](Self::next) until it gives `None`. After an error the decoder stays in error.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    /// What arrived last and is not consumed yet.
    chunk: Bytes,
    /// The beginning of a frame that did not end in the chunk it began in.
    partial: BytesMut,
    /// Bytes of an unknown optional frame that are still to be skipped.
    skip: usize,
    failed: Option<ProtocolError>,
    /// The types that are taken; `None`: all.
    only: Option<&'static [FrameType]>,
}

impl FrameDecoder {
    /// A decoder at the beginning of a stream of frames.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes frames of these types alone. Any other is an error as soon as its header is there: nothing
    /// of it is buffered.
    pub fn take_only(&mut self, types: &'static [FrameType]) {
        self.only = Some(types);
    }

    fn check(&self, kind: FrameType) -> Result<(), ProtocolError> {
        match self.only {
            Some(types) if !types.contains(&kind) => {
                let expected = types.first().map_or("nothing", |kind| kind.name());
                Err(ProtocolError::Unexpected { got: kind.name(), expected })
            }
            _ => Ok(()),
        }
    }

    /// Takes bytes in. Everything pushed before must have been drained with `next`; if it was
    /// not, the rest is joined by a copy.
    pub fn push(&mut self, chunk: Bytes) {
        if self.failed.is_some() {
            return;
        }
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(self.chunk.len() + chunk.len());
            joined.put(std::mem::take(&mut self.chunk));
            joined.put(chunk);
            self.chunk = joined.freeze();
        }
    }

    /// Takes back what was pushed and not looked at.
    pub(crate) fn take_unread(&mut self) -> Bytes {
        std::mem::take(&mut self.chunk)
    }

    /// True if the stream may end here: no frame has begun.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        self.chunk.is_empty() && self.partial.is_empty() && self.skip == 0
    }

    /// Bytes held for frames that are not complete.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.chunk.len() + self.partial.capacity()
    }

    /// The next whole frame, or `None` until more bytes are pushed.
    ///
    /// Errors: `ReservedBits`, `UnknownRequired`, `FrameTooLarge`.
    #[expect(clippy::should_implement_trait, reason = "a fallible pull, not an iterator: it goes on after None")]
    pub fn next(&mut self) -> Result<Option<Frame>, ProtocolError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let next = self.advance();
        if let Err(error) = &next {
            self.failed = Some(error.clone());
            self.chunk = Bytes::new();
            self.partial = BytesMut::new();
        }
        next
    }

    fn advance(&mut self) -> Result<Option<Frame>, ProtocolError> {
        loop {
            let skipped = self.skip.min(self.chunk.len());
            self.chunk.advance(skipped);
            self.skip -= skipped;
            if self.skip > 0 || self.chunk.is_empty() {
                return Ok(None);
            }
            let found = if self.partial.is_empty() { self.whole()? } else { self.straddling()? };
            match found {
                Step::Frame(frame) => return Ok(Some(frame)),
                Step::Again => {}
                Step::NeedMore => return Ok(None),
            }
        }
    }

    /// Tries to take a frame that lies whole in the chunk.
    fn whole(&mut self) -> Result<Step, ProtocolError> {
        let Some(raw) = self.chunk.first_chunk::<HEADER_LEN>() else {
            return Ok(self.keep_partial());
        };
        let header = Header::parse(*raw)?;
        let Some(kind) = header.kind else {
            self.chunk.advance(HEADER_LEN);
            self.skip = header.len as usize;
            return Ok(Step::Again);
        };
        self.check(kind)?;
        if self.chunk.len() < HEADER_LEN + header.len as usize {
            return Ok(self.keep_partial());
        }
        self.chunk.advance(HEADER_LEN);
        let body = self.chunk.split_to(header.len as usize);
        Ok(Step::Frame(Frame { kind, body }))
    }

    fn keep_partial(&mut self) -> Step {
        self.partial.extend_from_slice(&self.chunk);
        self.chunk = Bytes::new();
        Step::NeedMore
    }

    /// Goes on with a frame that began in an earlier chunk.
    fn straddling(&mut self) -> Result<Step, ProtocolError> {
        self.fill_partial(HEADER_LEN);
        let Some(raw) = self.partial.first_chunk::<HEADER_LEN>() else {
            return Ok(Step::NeedMore);
        };
        let header = Header::parse(*raw)?;
        let Some(kind) = header.kind else {
            self.partial = BytesMut::new();
            self.skip = header.len as usize;
            return Ok(Step::Again);
        };
        self.check(kind)?;
        let whole = HEADER_LEN + header.len as usize;
        self.fill_partial(whole);
        if self.partial.len() < whole {
            return Ok(Step::NeedMore);
        }
        let mut frame = std::mem::take(&mut self.partial);
        frame.advance(HEADER_LEN);
        Ok(Step::Frame(Frame { kind, body: frame.freeze() }))
    }

    /// Copies from the chunk until `partial` holds `len` bytes or the chunk is empty.
    fn fill_partial(&mut self, len: usize) {
        let missing = len.saturating_sub(self.partial.len()).min(self.chunk.len());
        self.partial.extend_from_slice(&self.chunk[..missing]);
        self.chunk.advance(missing);
    }
}

enum Step {
    Frame(Frame),
    Again,
    NeedMore,
}

/// Writes a header into `out`. Errors: `FrameTooLarge`, by the same maximum as the decoder's.
pub fn put_header(out: &mut BytesMut, kind: FrameType, len: usize) -> Result<(), ProtocolError> {
    let max = kind.max_body();
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    if len > max {
        return Err(ProtocolError::FrameTooLarge { kind: kind.to_wire(), len, max });
    }
    out.put_u32_le(len);
    out.put_u16_le(kind.to_wire());
    out.put_u8(if kind.is_optional() { 0 } else { FLAG_REQUIRED });
    out.put_u8(0);
    Ok(())
}

/// A whole frame with that body in one buffer. Errors: `FrameTooLarge`.
pub fn frame(kind: FrameType, body: &[u8]) -> Result<Bytes, ProtocolError> {
    let mut out = BytesMut::with_capacity(HEADER_LEN + body.len());
    put_header(&mut out, kind, body.len())?;
    out.put_slice(body);
    Ok(out.freeze())
}

/// Raw bodies: a `u64` LE (an event's number, a chunk's offset), then bytes as they are.
pub mod raw {
    use super::{Bytes, BytesMut, FrameType, HEADER_LEN, ProtocolError, RAW_HEADER_LEN, put_header};
    use bytes::{Buf, BufMut};

    /// Splits a raw body into its number and its payload. Errors: `Malformed` if it is too short.
    pub fn split(kind: FrameType, mut body: Bytes) -> Result<(u64, Bytes), ProtocolError> {
        if body.len() < RAW_HEADER_LEN {
            return Err(ProtocolError::Malformed {
                kind: kind.name(),
                why: format!("{} bytes, shorter than its header", body.len()),
            });
        }
        let number = body.get_u64_le();
        Ok((number, body))
    }

    /// Makes frame and raw headers out of one shared buffer, so that a token costs no allocation.
    #[derive(Debug, Default)]
    pub struct PrefixPool {
        buffer: BytesMut,
    }

    impl PrefixPool {
        const BLOCK: usize = 4096;

        /// The sixteen bytes before a raw payload of `payload_len` bytes. Errors: `FrameTooLarge`.
        pub fn prefix(&mut self, kind: FrameType, number: u64, payload_len: usize) -> Result<Bytes, ProtocolError> {
            let len = HEADER_LEN + RAW_HEADER_LEN;
            if self.buffer.capacity() < len {
                self.buffer = BytesMut::with_capacity(Self::BLOCK);
            }
            put_header(&mut self.buffer, kind, RAW_HEADER_LEN + payload_len)?;
            self.buffer.put_u64_le(number);
            Ok(self.buffer.split_to(len).freeze())
        }
    }
}
