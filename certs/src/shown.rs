//! The certificate that a server shows, which may become another one while it serves.

use crate::CertError;
use crate::tls::crypto_provider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::{Arc, PoisonError, RwLock};

/// What new connections are shown. Those that stand go on with what they saw.
#[derive(Debug)]
pub struct Shown(RwLock<Arc<CertifiedKey>>);

impl Shown {
    /// A chain, the server's own certificate first, and its key. Errors: the key cannot be used.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Arc<Self>, CertError> {
        Ok(Arc::new(Self(RwLock::new(certified(chain, key)?))))
    }

    /// Another one from now on. Errors: the key cannot be used; then the one before stays.
    pub fn show(&self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<(), CertError> {
        let other = certified(chain, key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = other;
        Ok(())
    }
}

fn certified(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Arc<CertifiedKey>, CertError> {
    let key = crypto_provider().key_provider.load_private_key(key);
    Ok(Arc::new(CertifiedKey::new(chain, key.map_err(|error| CertError::Tls(error.to_string()))?)))
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}
