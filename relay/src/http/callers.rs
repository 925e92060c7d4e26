//! Callers that have shown who they are, and how they are cut off.
//!
//! A key is looked up in central once a minute, not at every request: its hash stands here meanwhile, with what it
//! may be used for. Only a whole and right key is ever found here, so a wrong one and an unknown one are looked
//! up alike. Whoever revokes a key or suspends a tenant takes it out of here, and cancels what runs under it.

use crate::store::central::keys::KeyScope;
use belay_protocol::id::{DeviceId, TenantId};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A caller is looked up anew after so long: its last use is noted then.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// So many are known at once; of more, those of the last minute are forgotten.
const MOST: usize = 10_000;

/// Who a caller is, and what it may do.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) tenant: TenantId,
    /// Stands for the caller where a tunnel has a device.
    pub(crate) device: DeviceId,
    /// The API key's id, if it came with one.
    pub(crate) key: Option<String>,
    pub(crate) scopes: Vec<KeyScope>,
    /// When its credential ends, milliseconds since 1970.
    pub(crate) expires_ms: Option<u64>,
    /// Cancelled when it loses its access.
    pub(crate) revoked: CancellationToken,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    since: Instant,
}

#[derive(Debug)]
struct Access {
    tenant: TenantId,
    key: Option<String>,
    token: CancellationToken,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<[u8; 32], Entry>,
    /// What ends a caller's access, for as long as the process lives: what it has begun may outlast its entry.
    revoked: HashMap<DeviceId, Access>,
    /// Rises whenever somebody loses access: what was looked up before may not be true any more.
    losses: u64,
}

/// Callers over HTTP, by the SHA-256 of what they show.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    inner: Mutex<Inner>,
}

impl Callers {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caller with that credential, if it has shown it lately.
    pub(crate) fn find(&self, hash: &[u8; 32], now_ms: u64) -> Option<Known> {
        let inner = self.inner();
        let entry = inner.entries.get(hash)?;
        let is_fresh = entry.since.elapsed() < KNOWN_FOR && entry.known.expires_ms.is_none_or(|end| end > now_ms);
        is_fresh.then(|| entry.known.clone())
    }

    /// To be asked before a credential is looked up, and given back with what was found.
    pub(crate) fn losses(&self) -> u64 {
        self.inner().losses
    }

    /// Remembers what was looked up. False: somebody has lost access meanwhile, and it may be this one.
    pub(crate) fn remember(&self, hash: [u8; 32], known: &mut Known, losses: u64) -> bool {
        let mut inner = self.inner();
        if inner.losses != losses {
            return false;
        }
        let (tenant, key) = (known.tenant.clone(), known.key.clone());
        let fresh = || Access { tenant, key, token: CancellationToken::new() };
        known.revoked = inner.revoked.entry(known.device.clone()).or_insert_with(fresh).token.clone();
        if inner.entries.len() >= MOST {
            inner.entries.retain(|_, entry| entry.since.elapsed() < KNOWN_FOR);
            if inner.entries.len() >= MOST {
                inner.entries.clear();
            }
        }
        inner.entries.insert(hash, Entry { known: known.clone(), since: Instant::now() });
        true
    }

    /// Cuts off whoever came with that key.
    pub(crate) fn close_key(&self, id: &str) {
        self.close(|_, key| key == Some(id));
    }

    /// Cuts off all callers of a tenant.
    pub(crate) fn close_tenant(&self, tenant: &TenantId) {
        self.close(|of, _| of == tenant);
    }

    /// Forgets whoever came with a token, so that it is looked at anew; what runs goes on.
    pub(crate) fn close_tokens(&self) {
        let mut inner = self.inner();
        inner.losses += 1;
        inner.entries.retain(|_, entry| entry.known.key.is_some());
    }

    fn close(&self, is_meant: impl Fn(&TenantId, Option<&str>) -> bool) {
        let mut inner = self.inner();
        inner.losses += 1;
        inner.entries.retain(|_, entry| !is_meant(&entry.known.tenant, entry.known.key.as_deref()));
        inner.revoked.retain(|_, access| {
            let goes = is_meant(&access.tenant, access.key.as_deref());
            if goes {
                access.token.cancel();
            }
            !goes
        });
    }
}

/// The device that stands for an API key. No enrolled one has an underscore in its name.
#[must_use]
pub(crate) fn device_of_key(id: &str) -> Option<DeviceId> {
    format!("key_{id}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(key: &str, expires_ms: Option<u64>) -> Known {
        Known {
            tenant: "acme".parse().expect("name"),
            device: device_of_key(key).expect("name"),
            key: Some(key.into()),
            scopes: vec![KeyScope::Read],
            expires_ms,
            revoked: CancellationToken::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_known_is_so_for_a_minute_and_not_beyond_a_revocation() {
        let callers = Callers::default();
        let (mut a, mut b) = (known("a", None), known("b", Some(2000)));
        let losses = callers.losses();
        assert!(callers.remember([1; 32], &mut a, losses) && callers.remember([2; 32], &mut b, losses));
        // Looked up anew, it is the same caller: what it began before ends with it.
        let mut again = known("a", None);
        assert!(callers.remember([1; 32], &mut again, losses));
        assert!(callers.find(&[1; 32], 1000).is_some() && callers.find(&[2; 32], 1999).is_some());
        assert!(callers.find(&[2; 32], 2000).is_none(), "it has ended");
        let before = callers.losses();
        callers.close_key("a");
        assert!(a.revoked.is_cancelled() && again.revoked.is_cancelled() && callers.find(&[1; 32], 1000).is_none());
        assert!(!callers.remember([1; 32], &mut a, before), "looked up before it was revoked");
        tokio::time::advance(KNOWN_FOR).await;
        assert!(callers.find(&[2; 32], 1000).is_none(), "to be looked up anew");
        callers.close_tenant(&b.tenant);
        assert!(b.revoked.is_cancelled());
    }

    #[test]
    fn what_is_known_is_bounded() {
        let callers = Callers::default();
        for number in 0..MOST + 5 {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            callers.remember(hash, &mut known("a", None), 0);
        }
        assert!(callers.inner().entries.len() <= MOST);
    }
}
