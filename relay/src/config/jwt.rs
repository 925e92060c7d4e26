//! Whose signed tokens are taken from callers over HTTP.

use super::check::Wrong;
use super::raw::RawJwt;
use std::path::PathBuf;
use std::time::Duration;

/// Who signs tokens, for whom, and with which keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// `iss`, as it stands in tokens.
    pub issuer: String,
    /// `aud`, one of those that stand in tokens.
    pub audience: String,
    /// How they are signed: fixed, whatever a token says of itself.
    pub algorithm: JwtAlgorithm,
    /// Where the keys are.
    pub keys: JwtKeys,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// Tokens that live longer are not taken.
    pub longest: Duration,
}

/// How tokens are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// Ed25519.
    EdDsa,
    /// RSA with SHA-256.
    Rs256,
}

/// Where the keys of an issuer are. Both are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtKeys {
    /// One public key in PEM.
    Pem(PathBuf),
    /// A set of keys, told apart by their `kid`.
    Jwks(PathBuf),
}

pub(super) fn issuers(raw: Vec<RawJwt>) -> Result<Vec<Issuer>, Wrong> {
    let mut issuers: Vec<Issuer> = vec![];
    for raw in raw {
        let named = |name: &'static str, value: Option<String>| match value {
            Some(text) if !text.trim().is_empty() => Ok(text),
            _ => Err((name, "is missing; every token is checked against it".to_owned())),
        };
        let issuer = named("jwt.issuer", raw.issuer)?;
        if issuers.iter().any(|other| other.issuer == issuer) {
            return Err(("jwt.issuer", format!("{issuer:?} stands there twice")));
        }
        let algorithm = match raw.algorithm.as_deref() {
            Some("EdDSA") => JwtAlgorithm::EdDsa,
            Some("RS256") => JwtAlgorithm::Rs256,
            other => {
                let shown = other.unwrap_or_default();
                return Err(("jwt.algorithm", format!("{shown:?} is neither \"EdDSA\" nor \"RS256\"")));
            }
        };
        let keys = match (raw.key_file, raw.jwks_file) {
            (Some(path), None) => JwtKeys::Pem(path),
            (None, Some(path)) => JwtKeys::Jwks(path),
            _ => return Err(("jwt.key_file", "or jwks_file: name one of the two".into())),
        };
        let longest = raw.longest_s.unwrap_or(86_400);
        if !(60..=31_536_000).contains(&longest) {
            return Err(("jwt.longest_s", format!("{longest} is not from 60 to 31536000 seconds")));
        }
        issuers.push(Issuer {
            issuer,
            audience: named("jwt.audience", raw.audience)?,
            algorithm,
            keys,
            tenant_claim: raw.tenant_claim.unwrap_or_else(|| "tenant".into()),
            longest: Duration::from_secs(longest),
        });
    }
    Ok(issuers)
}
