//! The join string that an operator hands to a user: where the relay is, how to know it, and a
//! one-time secret.
//!
//! `belay1:` and base64url without padding of: version 1, 32 bytes fingerprint of the authority,
//! 24 bytes secret, count of addresses, each as length and text, first 4 bytes of SHA-256 over all
//! of that.

use crate::{CertError, sha256};
use data_encoding::BASE64URL_NOPAD;

const PREFIX: &str = "belay1:";
const VERSION: u8 = 1;

/// A parsed join string.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    /// SHA-256 of the authority's certificate.
    pub fingerprint: [u8; 32],
    /// Good for one enrolment.
    pub secret: [u8; 24],
    /// `host:port`, at most 255 of at most 255 bytes.
    pub addresses: Vec<String>,
}

impl std::fmt::Debug for Invite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invite").field("secret", &"****").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Invite {
    /// The join string.
    #[must_use]
    pub fn encode(&self) -> String {
        let addresses: Vec<&String> = self.addresses.iter().filter(|address| address.len() <= 255).take(255).collect();
        let short = |len: usize| u8::try_from(len).unwrap_or(u8::MAX);
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.fingerprint);
        bytes.extend_from_slice(&self.secret);
        bytes.push(short(addresses.len()));
        for address in addresses {
            bytes.push(short(address.len()));
            bytes.extend_from_slice(address.as_bytes());
        }
        let sum = sha256(&bytes);
        bytes.extend_from_slice(&sum[..4]);
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }

    /// Reads a join string; white space around it is ignored. Errors: `Invalid`, saying what is
    /// wrong.
    pub fn decode(text: &str) -> Result<Self, CertError> {
        let invalid = |why: &str| CertError::Invalid { what: "the invite", why: why.to_owned() };
        let body = text.trim().strip_prefix(PREFIX).ok_or_else(|| invalid("it does not begin with \"belay1:\""))?;
        let bytes = BASE64URL_NOPAD
            .decode(body.as_bytes())
            .map_err(|_| invalid("it is not complete, or has a character that does not belong; copy it again"))?;
        let Some((content, sum)) = bytes.split_last_chunk::<4>() else { return Err(invalid("it is too short")) };
        if sha256(content)[..4] != *sum {
            return Err(invalid("its checksum does not fit: it was cut or mistyped; copy it again"));
        }
        let mut rest = content;
        let mut take = |len: usize| {
            let (taken, left) = rest.split_at_checked(len).ok_or_else(|| invalid("it is too short"))?;
            rest = left;
            Ok::<_, CertError>(taken)
        };
        if take(1)? != [VERSION] {
            return Err(invalid("it is of a newer version; use a newer belay"));
        }
        let (mut fingerprint, mut secret) = ([0; 32], [0; 24]);
        fingerprint.copy_from_slice(take(32)?);
        secret.copy_from_slice(take(24)?);
        let count = take(1)?[0];
        let mut addresses = Vec::new();
        for _ in 0..count {
            let len = take(1)?[0];
            let address = std::str::from_utf8(take(len.into())?).map_err(|_| invalid("an address is not text"))?;
            addresses.push(address.to_owned());
        }
        if addresses.is_empty() {
            return Err(invalid("it names no address"));
        }
        Ok(Self { fingerprint, secret, addresses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_strings_round_trip_and_damage_is_noticed() {
        let invite = Invite {
            fingerprint: [1; 32],
            secret: [2; 24],
            addresses: vec!["relay.example.org:4433".into(), "[2001:db8::1]:4433".into()],
        };
        let text = invite.encode();
        assert_eq!(Invite::decode(&format!("  {text}\n")).expect("valid"), invite);
        for at in PREFIX.len()..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            assert!(Invite::decode(&String::from_utf8(damaged).expect("ascii")).is_err(), "damage at {at}");
            assert!(Invite::decode(&text[..at]).is_err(), "cut at {at}");
        }
    }
}
