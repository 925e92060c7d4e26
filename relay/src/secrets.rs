//! The relay's master key, and the keys that are derived from it, one for each purpose.

use crate::store::ledger::provider_keys::SealedKey;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use belay_certs::{CertError, file};
use belay_protocol::id::TenantId;
use belay_transport::env::Random;
use secrecy::{ExposeSecret, SecretString};
use std::path::Path;

/// File of the master key in the state directory, where the configuration names no other.
pub const MASTER_KEY: &str = "master.key";
const LEN: usize = 32;

/// The key from which all others are derived. It seals what nobody may read, and what nobody may
/// change unseen; it is not in the files that it protects.
#[derive(Clone)]
pub struct MasterKey(Prk);

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey(****)")
    }
}

struct Derived;

impl KeyType for Derived {
    fn len(&self) -> usize {
        LEN
    }
}

impl MasterKey {
    /// Reads the key; makes it, if `random` is given and the file is not there. Errors: an unreadable
    /// file, or one that does not have 32 bytes.
    pub fn load(path: &Path, random: Option<&Random>) -> Result<Self, CertError> {
        let bytes = match (file::read(path), random) {
            (Err(CertError::File { source, .. }), Some(random)) if source.kind() == std::io::ErrorKind::NotFound => {
                let bytes: [u8; LEN] = random.bytes();
                file::write_private(path, &bytes)?;
                bytes.to_vec()
            }
            (read, _) => read?,
        };
        if bytes.len() != LEN {
            let why =
                format!("{} has {} bytes instead of {LEN}; bring the right file back", path.display(), bytes.len());
            return Err(CertError::Invalid { what: "the master key", why });
        }
        Ok(Self(Salt::new(HKDF_SHA256, b"belay master key").extract(&bytes)))
    }

    /// A name for it that gives nothing of it away.
    #[must_use]
    pub fn id(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.derive("name")[..8])
    }

    /// The key for one purpose.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> [u8; LEN] {
        let mut key = [0; LEN];
        let info = [purpose.as_bytes()];
        let derived = self.0.expand(&info, Derived).and_then(|okm| okm.fill(&mut key));
        // A hash's own length can always be derived.
        debug_assert!(derived.is_ok());
        key
    }
}

/// Seals the keys that tenants have for providers: AES-256-GCM under a key of its own, bound to tenant and
/// provider, so that a sealed key is of no use anywhere else.
#[derive(Clone)]
pub struct KeySealer(std::sync::Arc<LessSafeKey>);

impl std::fmt::Debug for KeySealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySealer(****)")
    }
}

fn bound_to(tenant: &TenantId, provider: &str) -> Aad<Vec<u8>> {
    // A tenant's name has no zero byte.
    Aad::from([tenant.as_str().as_bytes(), b"\0", provider.as_bytes()].concat())
}

impl KeySealer {
    /// The sealer of a relay. Errors: the cipher is not there.
    pub fn new(master: &MasterKey) -> Result<Self, CertError> {
        let key = UnboundKey::new(&AES_256_GCM, &master.derive("provider keys"));
        let key = key.map_err(|Unspecified| CertError::Invalid { what: "AES-256-GCM", why: "not available".into() })?;
        Ok(Self(std::sync::Arc::new(LessSafeKey::new(key))))
    }

    /// Seals a key. Errors: it is gigabytes long.
    pub fn seal(
        &self,
        tenant: &TenantId,
        provider: &str,
        key: &SecretString,
        random: &Random,
    ) -> Result<SealedKey, CertError> {
        let nonce: [u8; 12] = random.bytes();
        let mut sealed = key.expose_secret().as_bytes().to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound_to(tenant, provider), &mut sealed)
            .map_err(|Unspecified| CertError::Invalid { what: "a key", why: "too long to be sealed".into() })?;
        Ok(SealedKey { nonce, sealed })
    }

    /// Opens one for a call. `None`: it was sealed under another master key, for somebody else, or changed.
    #[must_use]
    pub fn open(&self, tenant: &TenantId, provider: &str, key: &SealedKey) -> Option<SecretString> {
        let mut bytes = key.sealed.clone();
        let nonce = Nonce::assume_unique_for_key(key.nonce);
        let opened = self.0.open_in_place(nonce, bound_to(tenant, provider), &mut bytes).ok()?;
        std::str::from_utf8(opened).ok().map(SecretString::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_key_is_made_once_and_every_purpose_has_its_own() {
        let dir = tempfile::tempdir().expect("made");
        let path = dir.path().join(MASTER_KEY);
        assert!(MasterKey::load(&path, None).is_err());
        let made = MasterKey::load(&path, Some(&Random::from_seed(1))).expect("made");
        let again = MasterKey::load(&path, Some(&Random::from_seed(2))).expect("read");
        assert_eq!(made.derive("a"), again.derive("a"));
        assert_ne!(made.derive("a"), made.derive("b"));
        std::fs::write(&path, [1; 31]).expect("written");
        let error = MasterKey::load(&path, None).expect_err("too short");
        assert!(error.to_string().contains("31 bytes"), "{error}");
    }

    #[test]
    fn a_sealed_key_opens_for_its_own_tenant_and_provider_only() {
        let dir = tempfile::tempdir().expect("made");
        let random = Random::from_seed(3);
        let sealer = |name: &str| {
            KeySealer::new(&MasterKey::load(&dir.path().join(name), Some(&random)).expect("made")).expect("made")
        };
        let (one, other) = (sealer("one"), sealer("other"));
        let tenant = |name: &str| name.parse::<TenantId>().expect("valid");
        let sealed = one.seal(&tenant("acme"), "openai", &"sk-secret".into(), &random).expect("sealed");
        assert!(!sealed.sealed.windows(6).any(|part| part == b"secret"));
        let opened = one.open(&tenant("acme"), "openai", &sealed).expect("opens");
        assert_eq!(opened.expose_secret(), "sk-secret");
        assert!(one.open(&tenant("acme"), "anthropic", &sealed).is_none());
        assert!(one.open(&tenant("other"), "openai", &sealed).is_none());
        assert!(other.open(&tenant("acme"), "openai", &sealed).is_none());
        let mut changed = sealed.clone();
        changed.sealed[0] ^= 1;
        assert!(one.open(&tenant("acme"), "openai", &changed).is_none());
        assert_ne!(
            one.seal(&tenant("acme"), "openai", &"sk-secret".into(), &random).expect("sealed").nonce,
            sealed.nonce
        );
    }
}
