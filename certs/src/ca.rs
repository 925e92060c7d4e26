//! The relay's own certificate authority.

use crate::issue::BACKDATED;
use crate::{CertError, file, sha256};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::Path;
use std::time::Duration;
use time::{Duration as SignedDuration, OffsetDateTime};

const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";
const LIFETIME: Duration = Duration::from_secs(3650 * 86_400);

/// A certificate authority with its key. Ed25519: small, and its signatures have one length.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// Makes a new authority, valid for ten years from `now_ms`.
    pub fn create(now_ms: u64) -> Result<Self, CertError> {
        let make = |source| CertError::Make { operation: "make the authority", source };
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "belay relay authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let (not_before, not_after) = validity(now_ms, LIFETIME);
        params.not_before = not_before;
        params.not_after = not_after;
        let certificate = params.self_signed(&key).map_err(make)?.der().clone();
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(make)?;
        Ok(Self { issuer, certificate })
    }

    /// Reads the authority from `dir`, or makes one there if there is none.
    pub fn load_or_create(dir: &Path, now_ms: u64) -> Result<Self, CertError> {
        file::create_private_dir(dir)?;
        let (certificate_path, key_path) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
        if key_path.exists() && certificate_path.exists() {
            return Self::from_pem(&file::read(&certificate_path)?, &file::read(&key_path)?);
        }
        if certificate_path.exists() {
            // A new authority would lock every enrolled device out without a word.
            return Err(CertError::Invalid {
                what: "the authority's directory",
                why: format!("{CERTIFICATE_FILE} is there but {KEY_FILE} is not; restore it from a backup"),
            });
        }
        let authority = Self::create(now_ms)?;
        // The certificate is written last: a key without it is a half-made authority nobody knows.
        file::write_private(&key_path, authority.issuer.key().serialize_pem().as_bytes())?;
        file::write_private(&certificate_path, pem("CERTIFICATE", &authority.certificate).as_bytes())?;
        Ok(authority)
    }

    fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, CertError> {
        let invalid = |what| move |why: String| CertError::Invalid { what, why };
        let certificate = CertificateDer::from_pem_slice(certificate)
            .map_err(|error| invalid("the authority's certificate")(error.to_string()))?;
        let key_text = std::str::from_utf8(key).map_err(|error| invalid("the authority's key")(error.to_string()))?;
        let key = KeyPair::from_pem(key_text).map_err(|error| invalid("the authority's key")(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| invalid("the authority's certificate")(error.to_string()))?;
        Ok(Self { issuer, certificate })
    }

    /// The authority's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the certificate: what invites carry and clients pin.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

/// From a while before `now_ms`, for clocks that are off, to `lifetime` after it.
pub(crate) fn validity(now_ms: u64, lifetime: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let signed = |duration: Duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    let now = OffsetDateTime::UNIX_EPOCH + signed(Duration::from_millis(now_ms));
    (now.saturating_sub(signed(BACKDATED)), now.saturating_add(signed(lifetime)))
}

/// DER as PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_survives_on_disk_with_tight_modes() {
        let dir = std::env::temp_dir().join(format!("belay-ca-{}", std::process::id()));
        let first = Authority::load_or_create(&dir, 1_700_000_000_000).expect("made");
        let second = Authority::load_or_create(&dir, 1_700_000_000_000).expect("read");
        assert_eq!(first.fingerprint(), second.fingerprint());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
            assert_eq!(mode(&dir), 0o700);
            assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
        }
        std::fs::remove_file(dir.join(KEY_FILE)).expect("removed");
        assert!(Authority::load_or_create(&dir, 0).is_err(), "a lost key is not replaced in silence");
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
