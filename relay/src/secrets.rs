//! The relay's master key, and the keys that are derived from it, one for each purpose.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use belay_certs::{CertError, file};
use belay_transport::env::Random;
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
}
