//! Fields whose length a peer announces: byte strings and lists.
//!
//! serde's own lists reserve up to a megabyte for a length that is only claimed. Here a list has a
//! maximum, the same for both sides, and a byte string is read as one piece, so that reading a body
//! never holds more than about twice the maximum of its type (`tests/allocation.rs`).
//!
//! For use with `#[serde(with = "…")]`. The bytes on the wire are those of a plain list.

use crate::message::{Extension, SessionKnowledge, UsageLine};
use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use serde::ser::{Error as _, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;

/// The most extensions in a message.
pub const MAX_EXTENSIONS: usize = 64;
/// The most headers in a request or in the head of an answer.
pub const MAX_HEADERS: usize = 256;
/// The most lines of usage in an `End`.
pub const MAX_USAGE_LINES: usize = 64;
/// The most pieces of knowledge, and the most constraints, in a session's context.
pub const MAX_CONTEXT: usize = 256;

struct ListVisitor<T>(usize, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at the most {} elements", self.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let len = list.size_hint().unwrap_or(0);
        if len > self.0 {
            return Err(A::Error::custom(format_args!("{len} elements, at the most {} are allowed", self.0)));
        }
        let mut items = Vec::with_capacity(len);
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(items)
    }
}

macro_rules! lists {
    ($($name:ident: $item:ty, $most:expr;)*) => {$(
        pub(crate) mod $name {
            use super::*;

            pub(crate) fn serialize<S: Serializer>(items: &[$item], serializer: S) -> Result<S::Ok, S::Error> {
                if items.len() > $most {
                    let error = format_args!("{} {}, at the most {} are allowed", items.len(), stringify!($name), $most);
                    return Err(S::Error::custom(error));
                }
                items.serialize(serializer)
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<$item>, D::Error> {
                deserializer.deserialize_seq(ListVisitor($most, PhantomData))
            }
        }
    )*};
}

lists! {
    extensions: Extension, MAX_EXTENSIONS;
    headers: (String, String), MAX_HEADERS;
    usage: UsageLine, MAX_USAGE_LINES;
    knowledge: SessionKnowledge, MAX_CONTEXT;
    constraints: String, MAX_CONTEXT;
}

pub(crate) mod bytes {
    use super::*;

    struct BytesVisitor;

    impl Visitor<'_> for BytesVisitor {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }
    }

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_byte_buf(BytesVisitor)
    }
}
