//! Tokens that an operator's identity provider has signed.
//!
//! A token names its issuer, who must be configured; its key and algorithm are that issuer's, whatever the token says
//! of itself. Every claim is needed and checked: issuer, audience, subject, tenant, scopes, when it was made, from
//! when and until when it holds. Keys are read again when their file changes.

use super::callers::Known;
use crate::config::{Issuer, JwtAlgorithm, JwtKeys};
use crate::store::central::keys::KeyScope;
use belay_certs::sha256;
use belay_protocol::id::TenantId;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How far the clocks of two machines may be apart, in seconds.
const LEEWAY_S: u64 = 30;
/// A file of keys is looked at so often at the most.
const LOOK: Duration = Duration::from_secs(5);
/// Keys of one issuer at the most.
const MOST_KEYS: usize = 64;

/// Why the keys of an issuer cannot be used.
#[derive(Debug, Error)]
#[error("the keys of the issuer {issuer} in {}: {why}", path.display())]
pub struct JwtKeysError {
    /// Whose.
    pub issuer: String,
    /// Where they should be.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
}

/// All issuers.
#[derive(Debug)]
pub(super) struct Tokens {
    issuers: Vec<Trusted>,
}

#[derive(Debug)]
struct Trusted {
    config: Issuer,
    keys: Mutex<Keys>,
}

struct Keys {
    /// By `kid`; a key from a PEM file has none, and serves every token.
    all: Vec<(Option<String>, DecodingKey)>,
    /// What the file was when they were read.
    stamp: Option<(SystemTime, u64)>,
    looked: Instant,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.all.len())
    }
}

/// What every token must say; unknown claims are passed over, as the standard wants.
#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    exp: u64,
    iat: u64,
    nbf: Option<u64>,
    scope: String,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// The beginning of a token: which key made it.
#[derive(Debug, Deserialize)]
struct Head {
    kid: Option<String>,
}

impl Tokens {
    /// Reads the keys of all issuers. Errors: one cannot be used.
    pub(super) fn load(issuers: &[Issuer]) -> Result<Self, JwtKeysError> {
        let trusted = issuers.iter().map(|config| {
            let keys = Keys { all: read(config)?, stamp: stamp(path(config)), looked: Instant::now() };
            Ok(Trusted { config: config.clone(), keys: Mutex::new(keys) })
        });
        Ok(Self { issuers: trusted.collect::<Result<_, _>>()? })
    }

    /// Looks now and then whether keys have changed, and reads them anew. True: some were, so what was good may be so no
    /// more.
    pub(super) fn read_anew(&self) -> bool {
        // Each is looked at.
        self.issuers.iter().filter(|trusted| trusted.read_anew()).count() > 0
    }

    /// Whose token this is. `None`: nobody's, for whatever reason.
    pub(super) fn verify(&self, token: &str, now_ms: u64) -> Option<Known> {
        let (head, body) = unverified(token)?;
        let trusted =
            self.issuers.iter().find(|trusted| body.get("iss").is_some_and(|iss| *iss == trusted.config.issuer))?;
        let config = &trusted.config;
        let key = trusted.key(head.kid.as_deref())?;
        let mut validation = Validation::new(algorithm(config.algorithm));
        validation.set_issuer(&[&config.issuer]);
        validation.set_audience(&[&config.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // By the relay's own clock, below.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let claims = decode::<Claims>(token, &key, &validation).ok()?.claims;
        let now = now_ms / 1000;
        let holds = now < claims.exp.saturating_add(LEEWAY_S)
            && claims.iat <= now + LEEWAY_S
            && claims.nbf.is_none_or(|from| from <= now + LEEWAY_S)
            && claims.exp >= claims.iat
            && claims.exp - claims.iat <= config.longest.as_secs();
        if !holds || claims.sub.is_empty() {
            return None;
        }
        let tenant: TenantId = claims.others.get(&config.tenant_claim)?.as_str()?.parse().ok()?;
        let scopes = claims.scope.split_whitespace().filter_map(|scope| scope.parse::<KeyScope>().ok()).collect();
        let named = HEXLOWER.encode(&sha256(format!("{}\n{}", claims.iss, claims.sub).as_bytes())[..16]);
        Some(Known {
            tenant,
            // No enrolled one has an underscore in its name.
            device: format!("jwt_{named}").parse().ok()?,
            key: None,
            scopes,
            expires_ms: Some(claims.exp.saturating_add(LEEWAY_S).saturating_mul(1000)),
            revoked: CancellationToken::new(),
        })
    }
}

/// What a token says of itself before anybody has looked at its signature.
fn unverified(token: &str) -> Option<(Head, Map<String, Value>)> {
    let mut parts = token.split('.');
    let (head, body) = (parts.next()?, parts.next()?);
    let read = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).ok();
    Some((serde_json::from_slice(&read(head)?).ok()?, serde_json::from_slice(&read(body)?).ok()?))
}

impl Trusted {
    fn read_anew(&self) -> bool {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.looked.elapsed() < LOOK {
            return false;
        }
        keys.looked = Instant::now();
        let now = stamp(path(&self.config));
        if now == keys.stamp {
            return false;
        }
        match read(&self.config) {
            Ok(all) => {
                info!(issuer = self.config.issuer, keys = all.len(), "the keys for tokens were read anew");
                (keys.all, keys.stamp) = (all, now);
                true
            }
            // Those that were there go on: a file may be half written.
            Err(error) => {
                warn!(%error, "the keys for tokens cannot be read; those before are used");
                false
            }
        }
    }

    /// The key of that name; of a PEM file, the one there is.
    fn key(&self, kid: Option<&str>) -> Option<DecodingKey> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let found = keys.all.iter().find(|(name, _)| name.is_none() || name.as_deref() == kid);
        found.map(|(_, key)| key.clone())
    }
}

fn path(config: &Issuer) -> &Path {
    match &config.keys {
        JwtKeys::Pem(path) | JwtKeys::Jwks(path) => path,
    }
}

/// What a file is known by: when it was written, and how long it is.
pub(super) fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

fn algorithm(of: JwtAlgorithm) -> Algorithm {
    match of {
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
        JwtAlgorithm::Rs256 => Algorithm::RS256,
    }
}

fn read(config: &Issuer) -> Result<Vec<(Option<String>, DecodingKey)>, JwtKeysError> {
    let path = path(config);
    let wrong = |why: String| JwtKeysError { issuer: config.issuer.clone(), path: path.to_owned(), why };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let told = |error: jsonwebtoken::errors::Error| wrong(error.to_string());
    if let JwtKeys::Pem(_) = config.keys {
        let key = match config.algorithm {
            JwtAlgorithm::EdDsa => DecodingKey::from_ed_pem(&bytes),
            JwtAlgorithm::Rs256 => DecodingKey::from_rsa_pem(&bytes),
        };
        return Ok(vec![(None, key.map_err(told)?)]);
    }
    let set: JwkSet = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let mut keys = vec![];
    for jwk in &set.keys {
        let (wanted, fits) = match (config.algorithm, &jwk.algorithm) {
            (JwtAlgorithm::EdDsa, AlgorithmParameters::OctetKeyPair(_)) => (KeyAlgorithm::EdDSA, true),
            (JwtAlgorithm::Rs256, AlgorithmParameters::RSA(_)) => (KeyAlgorithm::RS256, true),
            (_, _) => (KeyAlgorithm::RS256, false),
        };
        // A key for something else, or one that no token could name.
        let is_ours = fits && jwk.common.key_algorithm.is_none_or(|of| of == wanted);
        let Some(kid) = jwk.common.key_id.clone().filter(|_| is_ours) else { continue };
        keys.push((Some(kid), DecodingKey::from_jwk(jwk).map_err(told)?));
    }
    if keys.is_empty() || keys.len() > MOST_KEYS {
        return Err(wrong(format!(
            "there are {} keys with a kid for this algorithm, not 1 to {MOST_KEYS}",
            keys.len()
        )));
    }
    Ok(keys)
}
