//! The relay's connection ids: random, and marked as its own.
//!
//! A restarted relay answers packets of its past connections with resets, and must tell them from
//! noise. So an id carries a mark that only the keeper of the key can make. Its random part is long:
//! quinn's own generator has one of three bytes, so that of ten thousand clients of a killed relay
//! thirty would send their packets to an id that the restarted relay has given to somebody else
//! meanwhile, and get no reset until their idle timeout.

use crate::env::Random;
use aws_lc_rs::hmac;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use std::time::Duration;

const RANDOM: usize = 7;
const MARK: usize = 5;

/// Makes and recognises ids of twelve bytes.
pub(crate) struct MarkedIds {
    random: Random,
    key: hmac::Key,
}

impl MarkedIds {
    pub(crate) fn new(random: Random, key: &[u8]) -> Self {
        Self { random, key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    fn mark(&self, random: &[u8]) -> hmac::Tag {
        hmac::sign(&self.key, random)
    }
}

impl ConnectionIdGenerator for MarkedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let random: [u8; RANDOM] = self.random.bytes();
        let mut id = [0; RANDOM + MARK];
        id[..RANDOM].copy_from_slice(&random);
        id[RANDOM..].copy_from_slice(&self.mark(&random).as_ref()[..MARK]);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let ours = id.len() == RANDOM + MARK && self.mark(&id[..RANDOM]).as_ref()[..MARK] == id[RANDOM..];
        if ours { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        RANDOM + MARK
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_later_generator_with_the_same_key_recognises_the_ids_of_an_earlier_one() {
        let mut before = MarkedIds::new(Random::from_seed(1), b"key");
        let after = MarkedIds::new(Random::from_seed(2), b"key");
        let stranger = MarkedIds::new(Random::from_seed(2), b"another");
        let ids: Vec<_> = (0..10_000).map(|_| before.generate_cid()).collect();
        assert!(ids.iter().all(|id| after.validate(id).is_ok()));
        assert!(ids.iter().all(|id| stranger.validate(id).is_err()));
        assert!(after.validate(&ConnectionId::new(&[0; 12])).is_err());
        assert!(after.validate(&ConnectionId::new(&ids[0][..11])).is_err());
    }

    #[test]
    fn the_ids_of_two_lives_of_a_relay_do_not_meet() {
        let mut ids = HashSet::new();
        for life in 0..2 {
            let mut generator = MarkedIds::new(Random::from_seed(life), b"key");
            ids.extend((0..100_000).map(|_| generator.generate_cid()));
        }
        assert_eq!(ids.len(), 200_000);
    }
}
