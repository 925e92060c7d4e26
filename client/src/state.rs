//! Where the client keeps its identity: a directory of mode 0700 with `identity.json` and
//! `device.key` (mode 0600), `BELAY_HOME` or the platform's place for application data. Beside them
//! lie the relay's address that answered last and the requests whose end was not seen.

use crate::error::ClientError;
use crate::pending::Pending;
use belay_certs::file;
use belay_certs::issue::DeviceKey;
use belay_protocol::id::{DeviceId, TenantId};
use etcetera::{BaseStrategy, choose_base_strategy};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const IDENTITY_FILE: &str = "identity.json";
const KEY_FILE: &str = "device.key";
const LAST_GOOD_FILE: &str = "last-good";
const REQUESTS_DIR: &str = "requests";
const VERSION: u32 = 1;

/// Who this computer is to its relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    version: u32,
    /// Who pays.
    pub tenant: TenantId,
    /// This computer.
    pub device: DeviceId,
    /// Where the relay is, `host:port`.
    pub addresses: Vec<String>,
    /// The relay's authority, DER in hexadecimal.
    pub ca_der: HexBytes,
    /// One that will take its place and is trusted as well; empty: none.
    #[serde(default)]
    pub next_ca_der: HexBytes,
    /// The device certificate, DER in hexadecimal.
    pub certificate_der: HexBytes,
    /// When the certificate ends, milliseconds since 1970.
    pub expires_ms: u64,
}

/// Bytes that are text in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HexBytes(pub Vec<u8>);

impl TryFrom<String> for HexBytes {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pairs = text.as_bytes().chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err("odd number of hexadecimal digits".into());
        }
        let bytes = pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect::<Option<_>>();
        bytes.map(Self).ok_or_else(|| "not hexadecimal".into())
    }
}

impl From<HexBytes> for String {
    fn from(bytes: HexBytes) -> Self {
        bytes.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The client's directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// A certain directory.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// `BELAY_HOME`, or the platform's place. Errors: there is no home directory.
    pub fn from_environment() -> Result<Self, ClientError> {
        if let Some(home) = std::env::var_os("BELAY_HOME").filter(|home| !home.is_empty()) {
            return Ok(Self::at(home));
        }
        let strategy = choose_base_strategy()
            .map_err(|error| ClientError::State { what: "the home directory".into(), why: error.to_string() })?;
        Ok(Self::at(strategy.data_dir().join("belay")))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identity and its key. Errors: `NotJoined`, `State`, `Cert`.
    pub fn load(&self) -> Result<(Identity, DeviceKey), ClientError> {
        let path = self.path.join(IDENTITY_FILE);
        if !path.exists() {
            return Err(ClientError::NotJoined(path));
        }
        let unusable = |why: String| ClientError::State { what: path.display().to_string(), why };
        let identity: Identity =
            serde_json::from_slice(&file::read(&path)?).map_err(|error| unusable(error.to_string()))?;
        if identity.version != VERSION {
            return Err(unusable(format!("it is of version {}, this belay knows {VERSION}", identity.version)));
        }
        let key = file::read(&self.path.join(KEY_FILE))?;
        let key = String::from_utf8(key).map_err(|error| unusable(error.to_string()))?;
        Ok((identity, DeviceKey::from_pem(&key)?))
    }

    /// True if this computer has joined.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.path.join(IDENTITY_FILE).exists()
    }

    /// The key for an enrolment with that invite: the one of an attempt whose answer was lost, or
    /// a new one that is on disk before it is used.
    pub fn pending_key(&self, invite_digest: [u8; 32]) -> Result<DeviceKey, ClientError> {
        file::create_private_dir(&self.path)?;
        let path = self.pending_path(invite_digest);
        if path.exists() {
            let text = String::from_utf8_lossy(&file::read(&path)?).into_owned();
            return Ok(DeviceKey::from_pem(&text)?);
        }
        let key = DeviceKey::generate()?;
        file::write_private(&path, key.to_pem().as_bytes())?;
        Ok(key)
    }

    fn pending_path(&self, invite_digest: [u8; 32]) -> PathBuf {
        let name: String = invite_digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        self.path.join(format!("pending-{name}.key"))
    }

    /// Forgets the key of an enrolment that the relay has refused.
    pub fn forget_pending(&self, invite_digest: [u8; 32]) -> Result<(), ClientError> {
        remove(&self.pending_path(invite_digest))
    }

    /// Keeps a new identity; `identity.json` is written last, so that a crash leaves either none or
    /// a whole one.
    pub fn save(&self, identity: &Identity, key: &DeviceKey, invite_digest: [u8; 32]) -> Result<(), ClientError> {
        let json = json(identity)?;
        file::write_private(&self.path.join(KEY_FILE), key.to_pem().as_bytes())?;
        file::write_private(&self.path.join(IDENTITY_FILE), &json)?;
        remove(&self.pending_path(invite_digest))
    }

    /// Keeps a certificate that was renewed, unless this computer is somebody else by now.
    pub fn save_renewed(&self, identity: &Identity) -> Result<(), ClientError> {
        // Somebody else's, or a younger one of another process, stays.
        let stays = |known: &Identity| known.device != identity.device || known.expires_ms > identity.expires_ms;
        if !self.is_joined() || stays(&self.load()?.0) {
            return Ok(());
        }
        Ok(file::write_private(&self.path.join(IDENTITY_FILE), &json(identity)?)?)
    }

    /// Removes what was being written here when a process was killed.
    pub fn sweep(&self) {
        file::sweep(&self.path);
        file::sweep(&self.path.join(REQUESTS_DIR));
    }

    /// The requests whose end was not seen.
    #[must_use]
    pub fn pending(&self) -> Pending {
        Pending::at(self.path.join(REQUESTS_DIR))
    }

    /// The relay's address that answered last.
    #[must_use]
    pub fn last_good(&self) -> Option<SocketAddr> {
        std::fs::read_to_string(self.path.join(LAST_GOOD_FILE)).ok()?.trim().parse().ok()
    }

    /// Remembers the relay's address that answered.
    pub fn remember_good(&self, address: SocketAddr) -> Result<(), ClientError> {
        Ok(file::write_private(&self.path.join(LAST_GOOD_FILE), address.to_string().as_bytes())?)
    }

    /// Forgets the identity and its key, and what was remembered of the relay.
    pub fn forget(&self) -> Result<(), ClientError> {
        remove(&self.path.join(LAST_GOOD_FILE))?;
        // All of them are too old by then.
        self.pending().list(u64::MAX)?;
        remove(&self.path.join(IDENTITY_FILE))?;
        remove(&self.path.join(KEY_FILE))
    }
}

fn json(identity: &Identity) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec_pretty(identity)
        .map_err(|error| ClientError::State { what: IDENTITY_FILE.into(), why: error.to_string() })
}

fn remove(path: &Path) -> Result<(), ClientError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ClientError::State { what: path.display().to_string(), why: error.to_string() })
        }
        _ => Ok(()),
    }
}

impl Identity {
    /// The authorities that this computer takes a relay from.
    #[must_use]
    pub(crate) fn authorities(&self) -> Vec<CertificateDer<'static>> {
        let all = [&self.ca_der, &self.next_ca_der].into_iter().filter(|der| !der.0.is_empty());
        all.map(|der| CertificateDer::from(der.0.clone())).collect()
    }

    /// What an enrolment gave.
    #[must_use]
    pub fn new(answer: belay_protocol::message::EnrolAnswer, addresses: Vec<String>) -> Self {
        Self {
            version: VERSION,
            tenant: answer.tenant,
            device: answer.device,
            addresses,
            ca_der: HexBytes(answer.ca_der),
            next_ca_der: HexBytes::default(),
            certificate_der: HexBytes(answer.certificate_der),
            expires_ms: answer.expires_ms,
        }
    }
}
