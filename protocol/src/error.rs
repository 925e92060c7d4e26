//! Protocol errors, by who is to blame, and the codes that close streams and connections.

use thiserror::Error;

/// Why bytes could not be understood. Each is the peer's doing: it costs the stream (or the
/// connection, on the control stream) that carried them and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// Blame: peer. The reserved byte or the unknown flag bits of a frame header are not zero.
    #[error("frame header has reserved bits set (flags {flags:#04x}, reserved {reserved:#04x})")]
    ReservedBits {
        /// The flags byte as received.
        flags: u8,
        /// The reserved byte as received.
        reserved: u8,
    },
    /// Blame: version. A frame marked as required has a type that this side does not know.
    #[error("required frame of unknown type {0:#06x}")]
    UnknownRequired(u16),
    /// Blame: version. The first byte of a stream names no stream kind.
    #[error("unknown stream kind {0:#04x}")]
    UnknownStreamKind(u8),
    /// Blame: limit. A frame announces a body above the maximum of its type.
    #[error("frame of type {kind:#06x} announces {len} bytes, at most {max} are allowed")]
    FrameTooLarge {
        /// The frame's type number.
        kind: u16,
        /// The announced body length in bytes.
        len: u32,
        /// The maximum for that type in bytes.
        max: u32,
    },
    /// Blame: peer. A known frame came where it has no meaning.
    #[error("unexpected frame {got}, expected {expected}")]
    Unexpected {
        /// What came.
        got: &'static str,
        /// What could have come.
        expected: &'static str,
    },
    /// Blame: peer. A body did not decode as its type.
    #[error("body of {kind} is malformed: {why}")]
    Malformed {
        /// The frame type's name.
        kind: &'static str,
        /// What was wrong with it.
        why: String,
    },
    /// Blame: peer. The stream ended in the middle of a frame or before the expected frame.
    #[error("stream ended in the middle of {0}")]
    Truncated(&'static str),
    /// Blame: ours. A message that this side built is above its own type's limit.
    #[error("own message {kind} is above its limit: {why}")]
    Unencodable {
        /// The frame type's name.
        kind: &'static str,
        /// What the codec said.
        why: String,
    },
}

impl ProtocolError {
    /// The code with which the stream that carried the bytes is reset.
    #[must_use]
    pub fn stream_code(&self) -> StreamCode {
        match self {
            Self::UnknownRequired(_) | Self::UnknownStreamKind(_) => StreamCode::UNSUPPORTED,
            Self::FrameTooLarge { .. } => StreamCode::LIMIT,
            Self::Unencodable { .. } => StreamCode::INTERNAL,
            _ => StreamCode::MALFORMED,
        }
    }
}

/// Declares a closed-for-meaning, open-for-growth set of numeric codes.
macro_rules! codes {
    ($(#[$doc:meta])* $name:ident($repr:ty) { $($(#[$vdoc:meta])* $konst:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $repr);
        impl $name {
            $($(#[$vdoc])* pub const $konst: Self = Self($value);)*
            /// Every code that this version knows.
            pub const ALL: &'static [Self] = &[$(Self::$konst),*];
            /// The code's stable name, or `unknown` for one from a newer peer.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self.0 { $($value => $text,)* _ => "unknown" }
            }
            /// The code with that stable name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self($value)),)* _ => None }
            }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({:#x})", self.name(), self.0)
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}
pub(crate) use codes;

codes! {
    /// Codes for resetting or stopping one stream.
    StreamCode(u32) {
        /// No error; the sender has no more interest.
        NO_ERROR = 0x00, "no_error";
        /// The peer sent bytes that mean nothing.
        MALFORMED = 0x01, "malformed";
        /// The peer asked for something that this side does not know.
        UNSUPPORTED = 0x02, "unsupported";
        /// A limit was passed.
        LIMIT = 0x03, "limit";
        /// The caller cancelled.
        CANCELLED = 0x04, "cancelled";
        /// A fault of this side.
        INTERNAL = 0x05, "internal";
        /// The peer took too long.
        TIMEOUT = 0x06, "timeout";
        /// The stream is not allowed to this peer (for example before enrolment).
        REFUSED = 0x07, "refused";
        /// Another reader of the same request took over.
        SUPERSEDED = 0x08, "superseded";
        /// The reader leaves and may come back: what is read on this stream goes on as after a lost tunnel.
        DETACHED = 0x09, "detached";
    }
}

codes! {
    /// Codes for closing a connection.
    CloseCode(u32) {
        /// Ended in order by the side that closes.
        DONE = 0x00, "done";
        /// The peer broke the protocol on the control stream.
        PROTOCOL = 0x01, "protocol";
        /// No version in common.
        VERSION = 0x02, "version";
        /// The device was revoked.
        REVOKED = 0x03, "revoked";
        /// The tenant is suspended.
        SUSPENDED = 0x04, "suspended";
        /// The device certificate has expired.
        EXPIRED = 0x05, "expired";
        /// A newer tunnel of the same instance took this one's place.
        REPLACED = 0x06, "replaced";
        /// The relay is shutting down; come back.
        GOING_AWAY = 0x07, "going_away";
        /// Hello or enrolment did not come in time.
        TIMEOUT = 0x08, "timeout";
        /// Too many instances of one device.
        TOO_MANY_INSTANCES = 0x09, "too_many_instances";
        /// No heartbeat arrived for too long.
        DEAD = 0x0a, "dead";
        /// The certificate names a device that this relay does not know.
        UNKNOWN_DEVICE = 0x0b, "unknown_device";
        /// A fault of the closing side.
        INTERNAL = 0x0c, "internal";
        /// The relay has no room; come back later.
        OVERLOADED = 0x0d, "overloaded";
    }
}
