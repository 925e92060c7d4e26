//! Names of tenants, devices, instances and requests.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// A name with characters outside `a-z 0-9 - _`, or empty, or above 64 bytes.
    #[error("{0:?} is not a name: use 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit")]
    Name(String),
    /// Not 32 hexadecimal digits (dashes are ignored).
    #[error("{0:?} is not an id of 32 hexadecimal digits")]
    Hex(String),
    /// Not a session's name.
    #[error(
        "{0:?} does not name a session: use 1 to 128 bytes of text, without control characters and without blanks at \
         its ends"
    )]
    Session(String),
}

/// Checks a tenant's or device's name: they become file names and parts of URIs.
fn check_name(text: &str) -> Result<(), IdError> {
    let ok = (1..=64).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        && text.as_bytes()[0].is_ascii_alphanumeric();
    if ok { Ok(()) } else { Err(IdError::Name(text.chars().take(80).collect())) }
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> { check_name(&text)?; Ok(Self(text)) }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> { Self::try_from(text.to_owned()) }
        }
        impl From<$name> for String {
            fn from(id: $name) -> Self { id.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
    };
}

name_id! {
    /// Who pays. 1 to 64 of `a-z 0-9 - _`; also the name of the tenant's directory.
    TenantId
}
name_id! {
    /// One enrolled computer; unique on a relay.
    DeviceId
}

/// Names a conversation session within its tenant: 1 to 128 bytes of text without control characters, and
/// without blanks at its ends. Whoever begins a session chooses it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

/// The most bytes of a session's id.
pub const MAX_SESSION_ID: usize = 128;

impl SessionId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SessionId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let is_named = (1..=MAX_SESSION_ID).contains(&text.len()) && text.trim() == text;
        if is_named && !text.chars().any(char::is_control) {
            Ok(Self(text))
        } else {
            Err(IdError::Session(text.chars().take(80).collect()))
        }
    }
}

impl FromStr for SessionId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// In quotes: it may have blanks.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub [u8; 16]);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let wrong = || IdError::Hex(text.chars().take(80).collect());
                let digits: Vec<u8> = text
                    .bytes()
                    .filter(|b| *b != b'-')
                    .map(|b| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or_else(wrong))
                    .collect::<Result<_, _>>()?;
                if digits.len() != 32 { return Err(wrong()); }
                let mut id = [0u8; 16];
                for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
                    *byte = pair[0] << 4 | pair[1];
                }
                Ok(Self(id))
            }
        }
    };
}

hex_id! {
    /// Names one escalation for ever. Made once by the client; a retry carries it again.
    RequestId
}
hex_id! {
    /// One running client of a device.
    InstanceId
}
hex_id! {
    /// One message of a session, for ever. Made once by whoever adds it; a retry carries it again.
    MessageId
}

hex_id! {
    /// One revision of an item, for ever. Made once by whoever pushes it; a retry carries it again.
    RevisionId
}
hex_id! {
    /// Who holds a lock.
    LockToken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_named_by_text() {
        for good in ["a", "Reise nach Köln", "sess_1/2 (b)", "日本", &"x".repeat(MAX_SESSION_ID)] {
            assert_eq!(good.parse::<SessionId>().map(String::from).as_deref(), Ok(good));
        }
        for bad in ["", " ", " a", "a\n", "a\tb", "\u{7f}", &"x".repeat(MAX_SESSION_ID + 1)] {
            assert!(matches!(bad.parse::<SessionId>(), Err(IdError::Session(_))), "{bad:?}");
        }
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "acme", "team-7_x", "0"] {
            assert!(good.parse::<TenantId>().is_ok(), "{good}");
        }
        let long = "a".repeat(65);
        for bad in ["", "-a", "_a", "A", "a/b", "..", "a b", "é", long.as_str(), "a\0"] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hex_ids_round_trip() {
        let id = RequestId([0xab; 16]);
        assert_eq!(id.to_string().parse::<RequestId>(), Ok(id));
        assert_eq!("abababab-abab-abab-abab-abababababab".parse::<RequestId>(), Ok(id));
        assert!("ab".parse::<RequestId>().is_err());
        assert!("zz".repeat(16).parse::<RequestId>().is_err());
    }
}
