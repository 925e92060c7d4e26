//! API keys: `bly_live_<id>_<secret><checksum>`, for callers over HTTP.
//!
//! The id names the key to people, the checksum tells a mistyped key from a wrong one, and of the whole only a SHA-256 is
//! kept, by which it is found: one that is not there is missed in the same time, whether its id is known or not, and an
//! index over hashes tells a guesser nothing that helps towards 256 random bits. What is of another form may be a key of
//! the deployment before.

use crate::store::StoreError;
use crate::store::central::keys::{self, ApiKey, KeyScope};
use crate::store::executor::{Db, Store};
use belay_certs::sha256;
use belay_protocol::id::TenantId;
use belay_transport::env::Env;
use data_encoding::{BASE32_NOPAD, Encoding};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

const PREFIX: &str = "bly_live_";
const ID_LEN: usize = 12;
const SECRET_LEN: usize = 52;
const CHECKSUM_LEN: usize = 6;

/// Why a key gives no access. The words are for operators: a caller from outside is to hear no more than
/// that the key gives none.
#[derive(Debug, Error)]
pub enum KeyRefusal {
    /// It was mistyped or cut.
    #[error("this is no API key of belay: it is not of the form bly_live_ID_SECRET, or was mistyped or cut")]
    Malformed,
    /// Nobody has it.
    #[error("this API key is not known")]
    Unknown,
    /// It was revoked.
    #[error("this API key was revoked")]
    Revoked,
    /// It has ended.
    #[error("this API key has expired")]
    Expired,
    /// Its tenant is suspended.
    #[error("the tenant of this API key is suspended")]
    Suspended,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A key that was just made. It is shown once and never again.
#[derive(Debug)]
pub struct NewKey {
    /// What is known of it.
    pub key: ApiKey,
    /// The whole key.
    pub secret: SecretString,
}

/// The API keys of a relay.
#[derive(Debug, Clone)]
pub struct ApiKeys {
    store: Store,
    env: Env,
}

fn lower_base32(bytes: &[u8]) -> String {
    let encoding: &Encoding = &BASE32_NOPAD;
    encoding.encode(bytes).to_ascii_lowercase()
}

fn checksum(before: &str) -> String {
    lower_base32(&sha256(before.as_bytes()))[..CHECKSUM_LEN].to_owned()
}

/// Whether a text is a whole key of belay's.
fn is_own(text: &str) -> bool {
    let Some((id, rest)) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')) else { return false };
    let is_whole = id.len() == ID_LEN && rest.len() == SECRET_LEN + CHECKSUM_LEN && text.is_ascii();
    is_whole && checksum(&text[..text.len() - CHECKSUM_LEN]) == text[text.len() - CHECKSUM_LEN..]
}

impl ApiKeys {
    /// Keys in a store.
    #[must_use]
    pub fn new(store: Store, env: Env) -> Self {
        Self { store, env }
    }

    /// Makes a key. `None`: there is no such tenant.
    pub async fn create(
        &self,
        tenant: TenantId,
        label: String,
        scopes: Vec<KeyScope>,
        expires_ms: Option<u64>,
    ) -> Result<Option<NewKey>, StoreError> {
        let (id, secret): ([u8; 8], [u8; 32]) = (self.env.random.bytes(), self.env.random.bytes());
        let id = lower_base32(&id)[..ID_LEN].to_owned();
        let before = format!("{PREFIX}{id}_{}", lower_base32(&secret));
        let whole = format!("{before}{}", checksum(&before));
        let created_ms = self.env.clock.now_ms();
        let key = ApiKey { id, tenant, label, scopes, created_ms, expires_ms, last_used_ms: None, revoked_ms: None };
        let (row, hash) = (key.clone(), sha256(whole.as_bytes()));
        let made = self.store.run(Db::Central, move |connection| keys::create(connection, &row, hash)).await?;
        Ok(made.then(|| NewKey { key, secret: whole.into() }))
    }

    /// All keys, or those of one tenant.
    pub async fn list(&self, tenant: Option<TenantId>) -> Result<Vec<ApiKey>, StoreError> {
        self.store.run(Db::Central, move |connection| keys::list(connection, tenant.as_ref())).await
    }

    /// Revokes a key, at once. False if there is none.
    pub async fn revoke(&self, id: String) -> Result<bool, StoreError> {
        let now_ms = self.env.clock.now_ms();
        self.store.run(Db::Central, move |connection| keys::revoke(connection, &id, now_ms)).await
    }

    /// Whose key it is, and what it may be used for. Notes its use. Errors: all of [`KeyRefusal`].
    ///
    /// What has not the form of a key of belay's may be one that came over from another deployment.
    pub async fn authenticate(&self, key: &SecretString) -> Result<ApiKey, KeyRefusal> {
        let text = key.expose_secret();
        let (is_own, hash, now_ms) = (is_own(text), sha256(text.as_bytes()), self.env.clock.now_ms());
        let found = self
            .store
            .run(Db::Central, move |connection| {
                let found = keys::find(connection, &hash)?;
                if let Some((key, ..)) = &found
                    && key.revoked_ms.is_none()
                {
                    keys::used(connection, &key.id, now_ms)?;
                }
                Ok::<_, StoreError>(found)
            })
            .await?;
        let refusal = if is_own { KeyRefusal::Unknown } else { KeyRefusal::Malformed };
        let (key, suspended) = found.ok_or(refusal)?;
        if key.revoked_ms.is_some() {
            return Err(KeyRefusal::Revoked);
        }
        if key.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
            return Err(KeyRefusal::Expired);
        }
        if suspended {
            return Err(KeyRefusal::Suspended);
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_mistyped_or_cut_is_told_apart() {
        let before = format!("{PREFIX}{}_{}", "a".repeat(ID_LEN), "b".repeat(SECRET_LEN));
        let whole = format!("{before}{}", checksum(&before));
        assert!(is_own(&whole));
        for at in PREFIX.len()..whole.len() {
            let mut typed = whole.clone().into_bytes();
            typed[at] = if typed[at] == b'z' { b'y' } else { b'z' };
            let typed = String::from_utf8(typed).expect("ascii");
            assert!(!is_own(&typed), "{typed}");
        }
        for cut in 0..whole.len() {
            assert!(!is_own(&whole[..cut]));
        }
        assert!(!is_own("sk-ant-something"));
        assert!(!is_own("bly_live_ääää_ö"));
    }
}
