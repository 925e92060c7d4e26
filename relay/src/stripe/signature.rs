//! Whether a webhook is Stripe's: its signature over the very bytes that came.

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

/// Why a webhook is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// The header is missing, or not of the form `t=…,v1=…`.
    #[error("the header stripe-signature is missing or makes no sense")]
    Malformed,
    /// None of its signatures was made with a secret that is known.
    #[error("the signature is not Stripe's: check the webhook's secret")]
    Wrong,
    /// It was made too long ago, or in the future.
    #[error("the webhook was signed too long ago")]
    Stale,
}

/// What a header says: when it was signed, and how. Errors: `Malformed`.
fn read(header: &str) -> Result<(u64, Vec<Vec<u8>>), SignatureError> {
    let (mut at, mut signatures) = (None, vec![]);
    for part in header.split(',') {
        match part.trim().split_once('=') {
            Some(("t", value)) if at.is_none() => {
                at = Some(value.parse::<u64>().map_err(|_| SignatureError::Malformed)?)
            }
            // A second one could be the signed one, or the one that is checked.
            Some(("t", _)) => return Err(SignatureError::Malformed),
            Some(("v1", value)) => signatures.push(HEXLOWER.decode(value.as_bytes()).unwrap_or_default()),
            // Schemes to come, or of old.
            Some(_) => {}
            None => return Err(SignatureError::Malformed),
        }
    }
    let at = at.ok_or(SignatureError::Malformed)?;
    if signatures.is_empty() { Err(SignatureError::Malformed) } else { Ok((at, signatures)) }
}

/// Errors: whatever the body is, it is not signed, or not lately.
pub(super) fn looks_signed(header: &str, (now_ms, tolerance_s): (u64, u64)) -> Result<(), SignatureError> {
    let (at, _) = read(header)?;
    if (now_ms / 1000).abs_diff(at) > tolerance_s { Err(SignatureError::Stale) } else { Ok(()) }
}

/// Checks the header against the body. Several secrets are good while one takes the place of another.
pub(super) fn check(
    header: &str,
    body: &[u8],
    secrets: &[SecretString],
    (now_ms, tolerance_s): (u64, u64),
) -> Result<(), SignatureError> {
    let (at, signatures) = read(header)?;
    let signed = [format!("{at}.").as_bytes(), body].concat();
    let is_signed = secrets.iter().any(|secret| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
        // In constant time.
        signatures.iter().any(|signature| hmac::verify(&key, &signed, signature).is_ok())
    });
    if !is_signed {
        return Err(SignatureError::Wrong);
    }
    // Only now: who cannot sign learns nothing of the clock.
    if (now_ms / 1000).abs_diff(at) > tolerance_s {
        return Err(SignatureError::Stale);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: (u64, u64) = (1_790_000_000_000, 300);

    fn sign(secret: &str, at: u64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        HEXLOWER.encode(hmac::sign(&key, &[format!("{at}.").as_bytes(), body].concat()).as_ref())
    }

    #[test]
    fn only_what_was_signed_lately_with_a_known_secret_is_stripes() {
        let secrets = ["old".into(), "new".into()];
        let check = |header: &str, body: &[u8]| check(header, body, &secrets, NOW);
        let at = NOW.0 / 1000;
        for secret in ["old", "new"] {
            assert_eq!(check(&format!("t={at},v1={}", sign(secret, at, b"body")), b"body"), Ok(()));
        }
        let good = sign("new", at, b"body");
        assert_eq!(check(&format!("v0=aa, t={at}, v1=00, v1={good}"), b"body"), Ok(()), "one of several");
        assert_eq!(check(&format!("t={at},v1={good}"), b"Body"), Err(SignatureError::Wrong));
        assert_eq!(check(&format!("t={},v1={good}", at + 1), b"body"), Err(SignatureError::Wrong));
        assert_eq!(check(&format!("t={at},v1={}", sign("other", at, b"body")), b"body"), Err(SignatureError::Wrong));
        assert_eq!(check(&format!("t={at},v0={good}"), b"body"), Err(SignatureError::Malformed));
        for header in ["", "t=x,v1=00", "v1=00", "t=1,t=2,v1=00", "nonsense"] {
            assert_eq!(check(header, b"body"), Err(SignatureError::Malformed), "{header:?}");
        }
        for (apart, wanted) in [(299, Ok(())), (301, Err(SignatureError::Stale))] {
            for at in [at - apart, at + apart] {
                assert_eq!(check(&format!("t={at},v1={}", sign("new", at, b"body")), b"body"), wanted);
            }
        }
    }
}
