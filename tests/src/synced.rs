//! Devices with synced folders.

use crate::relay::{PATIENCE, TestClient, TestRelay};
use belay_client::sync::config::SyncConfig;
use belay_client::sync::engine::{Engine, Event, Report};
use belay_client::sync::index::Index;
use belay_client::sync::remote::Tunnelled;
use belay_transport::env::Env;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// A device whose folders are synced by rounds that a test asks for.
#[derive(Debug)]
pub struct Synced {
    /// Its client.
    pub client: TestClient,
    /// What it syncs.
    pub config: SyncConfig,
    home: TempDir,
}

impl Synced {
    /// A new device of `acme` with a folder of documents, one of adapters, and a settings file, all empty.
    pub async fn enrol(relay: &TestRelay) -> Self {
        Self::of(relay.client().await)
    }

    /// The same for a client that is there.
    #[must_use]
    pub fn of(client: TestClient) -> Self {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| Some(home.path().join(name));
        let mut config = SyncConfig::default();
        config.settings = at("config/settings.json");
        config.knowledge = at("knowledge");
        config.adapters = at("adapters");
        config.ignore = vec!["*.skip".into()];
        config.set_up(&Env::system().random).unwrap();
        Self { client, config, home }
    }

    /// Where everything of it lies.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.client.client.identity().device.to_string()
    }

    /// A document's path.
    #[must_use]
    pub fn document(&self, key: &str) -> PathBuf {
        self.config.knowledge.as_ref().unwrap().join(key)
    }

    /// Writes a document that looks as if it had been there for a while.
    pub fn write(&self, key: &str, content: impl AsRef<[u8]>) {
        write_settled(&self.document(key), content.as_ref());
    }

    /// A document's content.
    #[must_use]
    pub fn read(&self, key: &str) -> Option<String> {
        std::fs::read(self.document(key)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// All documents, without belay's own files.
    #[must_use]
    pub fn documents(&self) -> BTreeMap<String, Vec<u8>> {
        files(self.config.knowledge.as_ref().unwrap())
    }

    /// What the settings file says.
    #[must_use]
    pub fn settings(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.config.settings.as_ref().unwrap()).unwrap()).unwrap()
    }

    /// Writes the settings file.
    pub fn set(&self, value: &serde_json::Value) {
        write_settled(self.config.settings.as_ref().unwrap(), value.to_string().as_bytes());
    }

    /// Writes an adapter.
    pub fn write_adapter(&self, name: &str, weights: &[u8], config: &str) {
        let folder = self.config.adapters.as_ref().unwrap().join(name);
        write_settled(&folder.join("adapter_model.safetensors"), weights);
        write_settled(&folder.join("adapter_config.json"), config.as_bytes());
    }

    /// What syncs it.
    #[must_use]
    pub fn engine(&self) -> Engine<Tunnelled<'_>> {
        let env = Env::system();
        let index = Index::open(&self.home.path().join("sync.db")).unwrap();
        let remote = Tunnelled { client: &self.client.client, within: PATIENCE };
        Engine::new(remote, index, self.config.places().unwrap(), env.clock, env.random).unwrap()
    }

    /// Brings both sides together, and what was told.
    pub async fn sync(&self) -> (Report, Vec<Event>) {
        let mut events = vec![];
        let mut engine = self.engine();
        let mut note = |event| events.push(event);
        let round = engine.round(false, &mut note);
        let report = tokio::time::timeout(PATIENCE * 4, round).await.expect("a round ends").unwrap();
        (report, events)
    }

    /// The same, where nothing may stand in the way.
    pub async fn sync_all(&self) -> Report {
        let (report, _) = self.sync().await;
        assert_eq!((&report.problems, report.total().unsettled), (&vec![], 0));
        report
    }
}

/// Writes a file with a time that is long enough ago to count as whole.
pub fn write_settled(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(10)).unwrap();
}

/// All files below a folder, without belay's own.
#[must_use]
pub fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() && entry.file_name() != ".belay" {
                folders.push(path);
            } else if kind.is_file() {
                let key = path.strip_prefix(root).unwrap().display().to_string();
                files.insert(key, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// What lies in belay's own directory of a folder, beside its marker.
#[must_use]
pub fn leftovers(root: &Path) -> Vec<String> {
    let own = std::fs::read_dir(root.join(".belay")).unwrap();
    own.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).filter(|name| name != "folder").collect()
}

/// A safetensors file of about so many bytes, and the configuration that goes with it.
#[must_use]
pub fn adapter(bytes: usize, seed: u64) -> (Vec<u8>, String) {
    let rank = 8;
    let half = (bytes / 2 / (rank * 2)).max(1);
    let size = half * rank * 2;
    let tensor = |from: usize| serde_json::json!({ "dtype": "F16", "data_offsets": [from, from + size] });
    let mut header = serde_json::json!({ "a.lora_A.weight": tensor(0), "a.lora_B.weight": tensor(size) });
    header["a.lora_A.weight"]["shape"] = serde_json::json!([rank, half]);
    header["a.lora_B.weight"]["shape"] = serde_json::json!([half, rank]);
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&noise(size * 2, seed));
    let config = serde_json::json!({ "peft_type": "LORA", "base_model_name_or_path": "llama-3", "r": rank });
    (file, config.to_string())
}

/// Bytes that do not compress.
#[must_use]
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
