//! The kinds of stream, and the one-byte preface that names them.

use crate::error::ProtocolError;

/// What a stream is for. Its number is the stream's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StreamKind {
    /// Hello, heartbeats, go-away. Exactly one per tunnel, opened first.
    Control = 0x01,
    /// Enrolment with an invite (no certificate needed), and leaving.
    Enrol = 0x02,
    /// One LLM request.
    Escalate = 0x03,
    /// Balance, usage, statements, records, where to pay.
    Billing = 0x04,
    /// Conversation sessions.
    Session = 0x05,
    /// Sync of items, and locks.
    Sync = 0x06,
    /// Content-addressed bytes.
    Blob = 0x07,
    /// Live changes of items.
    Feed = 0x08,
}

impl StreamKind {
    /// Every kind, for tests and metrics.
    pub const ALL: [Self; 8] =
        [Self::Control, Self::Enrol, Self::Escalate, Self::Billing, Self::Session, Self::Sync, Self::Blob, Self::Feed];

    /// The preface byte.
    #[must_use]
    pub const fn to_wire(self) -> u8 {
        self as u8
    }

    /// Reads a preface byte. Errors: `UnknownStreamKind`.
    pub fn from_wire(byte: u8) -> Result<Self, ProtocolError> {
        Self::ALL.into_iter().find(|kind| kind.to_wire() == byte).ok_or(ProtocolError::UnknownStreamKind(byte))
    }

    /// The kind's name in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Enrol => "enrol",
            Self::Escalate => "escalate",
            Self::Billing => "billing",
            Self::Session => "session",
            Self::Sync => "sync",
            Self::Blob => "blob",
            Self::Feed => "feed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_a_kind_or_a_typed_error() {
        for byte in 0..=u8::MAX {
            match StreamKind::from_wire(byte) {
                Ok(kind) => assert_eq!(kind.to_wire(), byte),
                Err(error) => assert_eq!(error, ProtocolError::UnknownStreamKind(byte)),
            }
        }
    }
}
