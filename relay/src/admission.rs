//! How many handshakes an address may begin.

use crate::ops::rate::Limit;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;

/// Addresses that are remembered for the handshake limit.
const MAX_ADDRESSES: usize = 65_536;

/// What becomes of a first packet, or of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    /// Prove the address first.
    Retry,
    /// Silence.
    Ignore,
}

/// Handshakes per address: so many per second, as many again for those that prove their address,
/// then silence.
#[derive(Debug)]
pub(crate) struct Admission {
    limit: Limit,
    addresses: HashMap<Prefix, Seen>,
    start: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    first_ns: u64,
    proven_ns: u64,
}

/// An IPv4 address, or the /64 of an IPv6 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Prefix {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            // The high half of 128 bits.
            IpAddr::V6(v6) => Self::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

impl Admission {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { limit: Limit::per_second(per_second), addresses: HashMap::new(), start: Instant::now() }
    }

    pub(crate) fn judge(&mut self, address: IpAddr, validated: bool, now: Instant) -> Verdict {
        // Ahead of zero, so that a fresh address differs from one that was seen at the start.
        let now_ns = 1_000_000_000 + u64::try_from(now.duration_since(self.start).as_nanos()).unwrap_or(u64::MAX / 2);
        if self.addresses.len() >= MAX_ADDRESSES {
            self.addresses.retain(|_, seen| seen.first_ns.max(seen.proven_ns) > now_ns);
        }
        if self.addresses.len() >= MAX_ADDRESSES {
            // Too many fresh addresses at once: only those that prove themselves.
            return if validated { Verdict::Accept } else { Verdict::Retry };
        }
        let seen = self.addresses.entry(address.into()).or_default();
        if let Ok(next) = self.limit.take(seen.first_ns, now_ns) {
            seen.first_ns = next;
            return Verdict::Accept;
        }
        match self.limit.take(seen.proven_ns, now_ns) {
            Ok(next) => {
                seen.proven_ns = if validated { next } else { seen.proven_ns };
                if validated { Verdict::Accept } else { Verdict::Retry }
            }
            Err(_) => Verdict::Ignore,
        }
    }
}

/// Connections of strangers, counted by address and all together: what costs a socket and has not said
/// who it is.
#[derive(Debug)]
pub(crate) struct Strangers {
    /// From one address, and in all.
    most: (usize, usize),
    here: Mutex<(HashMap<Prefix, usize>, usize)>,
}

/// A stranger's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    strangers: Arc<Strangers>,
    prefix: Prefix,
}

impl Strangers {
    pub(crate) fn new(from_one_address: usize, in_all: usize) -> Arc<Self> {
        Arc::new(Self { most: (from_one_address, in_all), here: Mutex::default() })
    }

    /// A place for one more, if there is any.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let prefix = Prefix::from(address);
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_address, all) = &mut *here;
        let from_there = by_address.get(&prefix).copied().unwrap_or(0);
        if from_there >= self.most.0 || *all >= self.most.1 {
            return None;
        }
        by_address.insert(prefix, from_there + 1);
        *all += 1;
        Some(Place { strangers: Arc::clone(self), prefix })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut here = self.strangers.here.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_address, all) = &mut *here;
        *all -= 1;
        if let Entry::Occupied(mut count) = by_address.entry(self.prefix) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_address_gets_its_share_then_must_prove_itself_then_meets_silence() {
        let mut admission = Admission::new(20);
        let now = Instant::now();
        let address: IpAddr = "192.0.2.1".parse().expect("address");
        for _ in 0..20 {
            assert_eq!(admission.judge(address, false, now), Verdict::Accept);
        }
        assert_eq!(admission.judge(address, false, now), Verdict::Retry);
        for _ in 0..20 {
            assert_eq!(admission.judge(address, true, now), Verdict::Accept);
        }
        assert_eq!(admission.judge(address, true, now), Verdict::Ignore);
        assert_eq!(admission.judge("192.0.2.2".parse().expect("address"), false, now), Verdict::Accept);
        assert_eq!(admission.judge(address, false, now + Duration::from_secs(1)), Verdict::Accept);
    }

    #[test]
    fn a_whole_v6_network_counts_as_one_address() {
        let mut admission = Admission::new(1);
        let now = Instant::now();
        let judge = |admission: &mut Admission, text: &str| admission.judge(text.parse().expect("address"), false, now);
        assert_eq!(judge(&mut admission, "2001:db8::1"), Verdict::Accept);
        assert_eq!(judge(&mut admission, "2001:db8::ffff"), Verdict::Retry);
        assert_eq!(judge(&mut admission, "2001:db8:0:1::1"), Verdict::Accept);
        assert_eq!(judge(&mut admission, "::ffff:192.0.2.1"), Verdict::Accept);
        assert_eq!(judge(&mut admission, "192.0.2.1"), Verdict::Retry);
    }

    #[test]
    fn the_memory_for_addresses_is_bounded() {
        let mut admission = Admission::new(20);
        let now = Instant::now();
        for number in 0..(MAX_ADDRESSES as u32 + 10) {
            admission.judge(IpAddr::V4(number.into()), false, now);
        }
        assert!(admission.addresses.len() <= MAX_ADDRESSES);
    }

    #[test]
    fn strangers_have_so_many_places_by_address_and_in_all() {
        let strangers = Strangers::new(2, 3);
        let enter = |text: &str| strangers.enter(text.parse().expect("address"));
        let first = enter("192.0.2.1").expect("room");
        let second = enter("192.0.2.1").expect("room");
        assert!(enter("192.0.2.1").is_none(), "its share is used up");
        let third = enter("192.0.2.2").expect("room");
        assert!(enter("192.0.2.3").is_none(), "all places are taken");
        drop(first);
        assert!(enter("192.0.2.1").is_some());
        drop((second, third));
        assert!(strangers.here.lock().expect("sound").0.is_empty());
    }
}
