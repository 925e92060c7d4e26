//! The certificate that callers over HTTP are shown.

use crate::config::HttpTls;
use belay_certs::ca::Authority;
use belay_certs::tls::Time;
use belay_certs::{CertError, issue, tls};
use belay_transport::env::Env;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

/// HTTP/2 first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why there is no certificate to show.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file of the operator's cannot be read as PEM.
    #[error("cannot use {}: {why}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate and the key do not fit, or cannot be made.
    #[error(transparent)]
    Cert(#[from] CertError),
}

/// The configuration for TLS; `None`: there is to be none.
pub(super) fn config(
    wanted: &HttpTls,
    authority: &Authority,
    env: &Env,
    time: Time,
) -> Result<Option<Arc<ServerConfig>>, TlsError> {
    let (chain, key) = match wanted {
        HttpTls::Off => return Ok(None),
        HttpTls::Files { cert, key } => {
            let file = |path: &PathBuf, error: rustls::pki_types::pem::Error| TlsError::File {
                path: path.clone(),
                why: error.to_string(),
            };
            let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect);
            let chain: Vec<_> = chain.map_err(|error| file(cert, error))?;
            if chain.is_empty() {
                return Err(TlsError::File { path: cert.clone(), why: "there is no certificate in it".into() });
            }
            (chain, PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, error))?)
        }
        HttpTls::Own { names } => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let (own, key) = issue::server(authority, &names, env.random.bytes(), env.clock.now_ms())?;
            (vec![own, authority.certificate().clone()], key)
        }
    };
    Ok(Some(Arc::new(tls::web(chain, key, &ALPN, time)?)))
}
