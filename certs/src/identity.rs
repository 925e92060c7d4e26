//! Who a certificate belongs to: the URI `belay://<tenant>/<device>` in its subject alternative
//! names, and nothing else in it.

use crate::{CertError, sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const SCHEME: &str = "belay://";

/// Tenant and device as a certificate names them. The names are not checked against any list here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// Who pays.
    pub tenant: String,
    /// Which computer.
    pub device: String,
    /// When the certificate begins, milliseconds since 1970.
    pub begins_ms: u64,
    /// When it ends, milliseconds since 1970.
    pub expires_ms: u64,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
}

/// The URI for a certificate.
#[must_use]
pub fn uri(tenant: &str, device: &str) -> String {
    format!("{SCHEME}{tenant}/{device}")
}

/// When a certificate ends, milliseconds since 1970. `None`: it is none.
#[must_use]
pub fn ends_ms(der: &[u8]) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()?.checked_mul(1000)
}

/// The key that a certificate is for. `None`: it is none.
pub(crate) fn public_key(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.public_key().subject_public_key.data.to_vec())
}

/// When a certificate begins, milliseconds since 1970. `None`: it is none.
pub(crate) fn begins_ms(der: &[u8]) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    u64::try_from(certificate.validity().not_before.timestamp()).ok()?.checked_mul(1000)
}

impl DeviceIdentity {
    /// Reads a device certificate that rustls has verified. Errors: `Invalid` unless it has exactly
    /// one belay URI.
    pub fn from_certificate(der: &[u8]) -> Result<Self, CertError> {
        let invalid = |why: String| CertError::Invalid { what: "the device certificate", why };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| invalid(error.to_string()))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| invalid(error.to_string()))?
            .ok_or_else(|| invalid("it has no subject alternative name".into()))?;
        let uris: Vec<&str> = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
                _ => None,
            })
            .collect();
        let [one] = uris[..] else {
            return Err(invalid(format!("it has {} belay URIs instead of one", uris.len())));
        };
        let (tenant, device) = one.split_once('/').ok_or_else(|| invalid("its belay URI names no device".into()))?;
        let validity = certificate.validity();
        let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
        Ok(Self {
            tenant: tenant.to_owned(),
            device: device.to_owned(),
            begins_ms: ms(validity.not_before.timestamp()),
            expires_ms: ms(validity.not_after.timestamp()),
            fingerprint: sha256(der),
        })
    }
}
