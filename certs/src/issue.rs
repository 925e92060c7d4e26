//! Issuing: device keys and requests on the device, certificates at the relay.

use crate::ca::{Authority, validity};
use crate::{CertError, identity};
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use std::time::Duration;

/// How long a device certificate lives unless the operator says otherwise.
pub const DEVICE_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// Certificates begin so long before they are made, for clocks that are off.
pub const BACKDATED: Duration = Duration::from_secs(3600);
/// How long the relay's own server certificate lives.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(397 * 86_400);

/// A device's private key. It never leaves the machine that made it.
pub struct DeviceKey {
    key: KeyPair,
}

impl std::fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceKey(****)")
    }
}

impl DeviceKey {
    /// Makes a new Ed25519 key.
    pub fn generate() -> Result<Self, CertError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)
            .map_err(|source| CertError::Make { operation: "make a device key", source })?;
        Ok(Self { key })
    }

    /// Reads a key from PEM.
    pub fn from_pem(pem: &str) -> Result<Self, CertError> {
        let key = KeyPair::from_pem(pem)
            .map_err(|error| CertError::Invalid { what: "the device key", why: error.to_string() })?;
        Ok(Self { key })
    }

    /// The same key once more. Errors: it does not survive its own text; ours.
    pub fn copy(&self) -> Result<Self, CertError> {
        Self::from_pem(&self.to_pem())
    }

    /// The key as PEM, for a file of mode 0600.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// A request for a certificate, in DER, signed with this key. It names nobody: the relay
    /// decides whose the certificate is.
    pub fn request(&self) -> Result<Vec<u8>, CertError> {
        let make = |source| CertError::Make { operation: "make a certificate request", source };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.key).map_err(make)?.der().to_vec())
    }

    /// The key for rustls.
    pub fn to_rustls(&self) -> Result<PrivateKeyDer<'static>, CertError> {
        PrivateKeyDer::from_pem_slice(self.to_pem().as_bytes())
            .map_err(|error| CertError::Invalid { what: "the device key", why: error.to_string() })
    }
}

/// A certificate that the authority has just signed.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// When it ends, milliseconds since 1970.
    pub expires_ms: u64,
}

/// A verified certificate request: its signature shows that the asker has the key.
pub struct DeviceRequest {
    csr: CertificateSigningRequestParams,
    key_fingerprint: [u8; 32],
}

impl std::fmt::Debug for DeviceRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceRequest")
    }
}

impl DeviceRequest {
    /// Reads a request and checks its signature. Errors: `Invalid`.
    pub fn from_der(der: &[u8]) -> Result<Self, CertError> {
        let invalid = |why: String| CertError::Invalid { what: "the certificate request", why };
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(|error| invalid(error.to_string()))?;
        let key_fingerprint = crate::sha256(rcgen::PublicKeyData::der_bytes(&csr.public_key));
        Ok(Self { csr, key_fingerprint })
    }

    /// SHA-256 of the public key: the same key asks again and gets the same answer.
    #[must_use]
    pub fn key_fingerprint(&self) -> [u8; 32] {
        self.key_fingerprint
    }

    /// Signs a device certificate for `tenant` and `device`. Nothing of the request but its key is
    /// taken over. `serial` must be unique; twelve random bytes will do.
    pub fn issue(
        &self,
        authority: &Authority,
        tenant: &str,
        device: &str,
        serial: [u8; 12],
        (now_ms, lifetime): (u64, Duration),
    ) -> Result<Issued, CertError> {
        let mut params = leaf(device, serial, now_ms, lifetime);
        let uri = Ia5String::try_from(identity::uri(tenant, device))
            .map_err(|source| CertError::Make { operation: "name the device", source })?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params
            .signed_by(&self.csr.public_key, authority.issuer())
            .map_err(|source| CertError::Make { operation: "sign a device certificate", source })?;
        Ok(Issued { certificate: certificate.der().clone(), expires_ms: end_ms(&params) })
    }
}

/// A server certificate of the relay's own for these host names and addresses, and its key, made new at each
/// start; the key stays in memory. Errors: no name, or one that is none.
pub fn server(
    authority: &Authority,
    names: &[&str],
    serial: [u8; 12],
    now_ms: u64,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), CertError> {
    let make = |source| CertError::Make { operation: "make the server certificate", source };
    let key = KeyPair::generate_for(&PKCS_ED25519).map_err(make)?;
    let first = names.first().ok_or(CertError::Invalid { what: "the server's names", why: "there is none".into() })?;
    let mut params = leaf(first, serial, now_ms, SERVER_LIFETIME);
    let alternative = |name: &&str| match name.parse() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(Ia5String::try_from(*name).map_err(make)?)),
    };
    params.subject_alt_names = names.iter().map(alternative).collect::<Result<_, CertError>>()?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, authority.issuer()).map_err(make)?.der().clone();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())
        .map_err(|error| CertError::Invalid { what: "the server key", why: error.to_string() })?;
    Ok((certificate, key))
}

fn leaf(name: &str, serial: [u8; 12], now_ms: u64, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    let (not_before, not_after) = validity(now_ms, lifetime);
    params.not_before = not_before;
    params.not_after = not_after;
    params
}

fn end_ms(params: &CertificateParams) -> u64 {
    u64::try_from(params.not_after.unix_timestamp()).unwrap_or(0).saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::DeviceIdentity;

    const NOW: u64 = 1_790_000_000_000;

    #[test]
    fn a_device_certificate_names_tenant_and_device() {
        let authority = Authority::create(NOW).expect("made");
        let key = DeviceKey::generate().expect("made");
        let request = DeviceRequest::from_der(&key.request().expect("made")).expect("valid");
        let issued = request.issue(&authority, "acme", "laptop-1", [7; 12], (NOW, DEVICE_LIFETIME)).expect("signed");
        let identity = DeviceIdentity::from_certificate(&issued.certificate).expect("valid");
        assert_eq!((identity.tenant.as_str(), identity.device.as_str()), ("acme", "laptop-1"));
        assert_eq!(identity.expires_ms, issued.expires_ms);
        assert_eq!(issued.expires_ms, NOW + 30 * 86_400_000);
    }

    #[test]
    fn a_request_with_a_broken_signature_is_refused() {
        let mut der = DeviceKey::generate().expect("made").request().expect("made");
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(DeviceRequest::from_der(&der).is_err());
        for len in 0..der.len() {
            assert!(DeviceRequest::from_der(&der[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn the_authority_itself_is_no_device() {
        let authority = Authority::create(NOW).expect("made");
        assert!(DeviceIdentity::from_certificate(authority.certificate()).is_err());
        assert!(DeviceIdentity::from_certificate(b"garbage").is_err());
    }
}
