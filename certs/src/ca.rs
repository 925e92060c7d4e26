//! The relay's own certificate authority.

use crate::issue::BACKDATED;
use crate::{CertError, file, identity, sha256};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::Path;
use std::time::Duration;
use time::{Duration as SignedDuration, OffsetDateTime};

pub(crate) const CERTIFICATE_FILE: &str = "ca.pem";
pub(crate) const KEY_FILE: &str = "ca.key";
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
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(make)?;
        let certificate = params(&key, now_ms, 1).self_signed(&key).map_err(make)?.der().clone();
        Self::of(certificate, key)
    }

    /// Reads the authority from `dir`, or makes one there if there is none.
    pub fn load_or_create(dir: &Path, now_ms: u64) -> Result<Self, CertError> {
        file::create_private_dir(dir)?;
        let (certificate_path, key_path) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
        if key_path.exists() && certificate_path.exists() {
            return Self::read(&certificate_path, &key_path);
        }
        if certificate_path.exists() {
            // A new authority would lock every enrolled device out without a word.
            return Err(CertError::Invalid {
                what: "the authority's directory",
                why: format!("{CERTIFICATE_FILE} is there but {KEY_FILE} is not; restore it from a backup"),
            });
        }
        if key_path.exists() {
            // Its certificate was never written, or is lost: the key is what devices know it by, and it stays.
            let key = KeyPair::from_pem(&String::from_utf8_lossy(&file::read(&key_path)?)).map_err(make)?;
            let made = params(&key, now_ms, 1).self_signed(&key).map_err(make)?.der().clone();
            let authority = Self::of(made, key)?;
            file::write_private(&certificate_path, pem("CERTIFICATE", &authority.certificate).as_bytes())?;
            return Ok(authority);
        }
        let authority = Self::create(now_ms)?;
        authority.write(&certificate_path, &key_path)?;
        Ok(authority)
    }

    /// Writes certificate and key. The certificate is written last: a key without it is a half-made authority nobody
    /// knows.
    pub(crate) fn write(&self, certificate: &Path, key: &Path) -> Result<(), CertError> {
        file::write_private(key, self.issuer.key().serialize_pem().as_bytes())?;
        file::write_private(certificate, pem("CERTIFICATE", &self.certificate).as_bytes())
    }

    /// Reads certificate and key. Errors: one is not there, or is none, or they are not each other's.
    pub(crate) fn read(certificate: &Path, key: &Path) -> Result<Self, CertError> {
        let invalid = |what, why: String| CertError::Invalid { what, why };
        let certificate = read_certificate(certificate)?;
        let text =
            String::from_utf8(file::read(key)?).map_err(|error| invalid("the authority's key", error.to_string()));
        let key = KeyPair::from_pem(&text?).map_err(|error| invalid("the authority's key", error.to_string()))?;
        if identity::public_key(&certificate).as_deref() != Some(key.der_bytes()) {
            let why = "its key is another one's; bring both files back from one backup".into();
            return Err(invalid("the authority's certificate", why));
        }
        Self::of(certificate, key)
    }

    fn of(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, CertError> {
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| CertError::Invalid { what: "the authority's certificate", why: error.to_string() })?;
        Ok(Self { issuer, certificate })
    }

    /// This authority's word for the key of another: who trusts this one trusts what that one has signed.
    pub(crate) fn vouch_for(&self, other: &Self, now_ms: u64) -> Result<CertificateDer<'static>, CertError> {
        let key = other.issuer.key();
        Ok(params(key, now_ms, 0).signed_by(key, &self.issuer).map_err(make)?.der().clone())
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

fn make(source: rcgen::Error) -> CertError {
    CertError::Make { operation: "make the authority", source }
}

/// What an authority's certificate says, for so many authorities below it.
fn params(key: &KeyPair, now_ms: u64, below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // Two of them are never mistaken for each other.
    let digits = &data_encoding::HEXLOWER.encode(&sha256(key.der_bytes())[..4]);
    params.distinguished_name.push(DnType::CommonName, format!("belay relay authority {digits}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let (not_before, not_after) = validity(now_ms, LIFETIME);
    params.not_before = not_before;
    params.not_after = not_after;
    params
}

/// Reads a certificate. Text before it is passed over.
pub(crate) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, CertError> {
    CertificateDer::from_pem_slice(&file::read(path)?)
        .map_err(|error| CertError::Invalid { what: "the authority's certificate", why: error.to_string() })
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
