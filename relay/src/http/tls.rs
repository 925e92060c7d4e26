//! The certificate that callers over HTTP are shown.

use super::Http;
use super::jwt::stamp;
use crate::config::HttpTls;
use belay_certs::identity::ends_ms;
use belay_certs::rollover::Authorities;
use belay_certs::tls::Time;
use belay_certs::{CertError, issue, tls};
use belay_transport::env::Env;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use thiserror::Error;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

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

/// Where certificates come from.
pub(crate) struct Certificates {
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) env: Env,
    pub(crate) time: Time,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}

impl Certificates {
    /// Who signs the relay's own, and with whose word.
    fn signer(&self) -> ([u8; 32], usize) {
        let standing = self.authorities.standing();
        (standing.current.fingerprint(), standing.vouched().len())
    }

    /// What connections are accepted with; `None`: they are plain.
    pub(super) fn acceptor(&self, wanted: &HttpTls) -> Result<Option<Accepts>, TlsError> {
        let Self { authorities, env, time } = self;
        let Some((chain, key)) = chain(wanted, authorities, env)? else { return Ok(None) };
        let ends_ms = chain.first().and_then(|own| ends_ms(own)).unwrap_or(0);
        let config = Arc::new(tls::web(chain, key, &ALPN, Arc::clone(time))?);
        Ok(Some(Accepts { acceptor: TlsAcceptor::from(config), ends_ms }))
    }
}

/// What connections are accepted with.
#[derive(Clone)]
pub(crate) struct Accepts {
    pub(super) acceptor: TlsAcceptor,
    /// When its certificate ends, milliseconds since 1970.
    pub(super) ends_ms: u64,
}

/// Files of the operator's are looked at so often.
const LOOK: Duration = Duration::from_secs(5);
/// A certificate of the relay's own is made anew long before it ends.
const ANEW: Duration = Duration::from_secs(30 * 86_400);

impl Http {
    /// Shows new connections another certificate once the operator's files have changed, and one of the relay's own once
    /// its authority has, and long before it ends. Connections that stand go on.
    pub(crate) async fn watch_certificate(&self, stop: CancellationToken) {
        let stamps = |wanted: &HttpTls| {
            (stamps(wanted), matches!(wanted, HttpTls::Own { .. }).then(|| self.certificates.signer()))
        };
        let mut known = stamps(&self.config().tls);
        let mut made = Instant::now();
        while timeout(LOOK, stop.cancelled()).await.is_err() {
            let wanted = self.config().tls.clone();
            let now = stamps(&wanted);
            if now == known && made.elapsed() < ANEW {
                continue;
            }
            // Once for each state that the files are in.
            (known, made) = (now, Instant::now());
            match self.certificates.acceptor(&wanted) {
                // A reload has put another in its place meanwhile.
                Ok(_) if self.config().tls != wanted => {}
                Ok(acceptor) => {
                    self.show(acceptor);
                    info!("callers over HTTP are shown another certificate from now on");
                }
                Err(error) => {
                    warn!(%error, "the certificate's files have changed and cannot be used; the one before is shown");
                }
            }
        }
    }
}

/// The state that an operator's files are in.
fn stamps(tls: &HttpTls) -> Option<[Option<(SystemTime, u64)>; 2]> {
    match tls {
        HttpTls::Files { cert, key } => Some([cert, key].map(|path| stamp(path))),
        HttpTls::Off | HttpTls::Own { .. } => None,
    }
}

/// A certificate with those that vouch for it, and its key.
type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn chain(wanted: &HttpTls, authorities: &Authorities, env: &Env) -> Result<Option<Chain>, TlsError> {
    Ok(Some(match wanted {
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
            let standing = authorities.standing();
            let (own, key) = issue::server(&standing.current, &names, env.random.bytes(), env.clock.now_ms())?;
            (std::iter::once(own).chain(standing.vouched()).collect(), key)
        }
    }))
}
