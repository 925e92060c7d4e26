//! A deployment of the kind that Belay takes the place of, as it would be exported: made up from a seed, with what its
//! rows must become.

use crate::synced::adapter;
use belay_certs::sha256;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::{Connection, params};
use std::fs;
use std::path::{Path, PathBuf};

/// One row of usage, as it must be in the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usage {
    /// What it was called.
    pub id: String,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// Which model.
    pub model: String,
    /// Tokens.
    pub input: i64,
    /// Tokens.
    pub output: i64,
    /// What it cost.
    pub cost_nano: i64,
}

/// A user, as it must be in the end.
#[derive(Debug, Clone)]
pub struct User {
    /// The user's id, which is the tenant's.
    pub id: String,
    /// What is left of its money.
    pub balance_nano: i64,
    /// Keys in plain text, and whether they are good.
    pub keys: Vec<(String, bool)>,
    /// Usage.
    pub usage: Vec<Usage>,
    /// Sessions and what was said in them.
    pub sessions: Vec<(String, Vec<String>)>,
    /// Documents by their names.
    pub documents: Vec<(String, Vec<u8>)>,
    /// Settings by their names.
    pub settings: Vec<(String, String)>,
    /// Adapters by their names.
    pub adapters: Vec<(String, Vec<u8>)>,
}

/// A deployment and where its export is.
#[derive(Debug)]
pub struct OldDeployment {
    /// The database.
    pub d1: PathBuf,
    /// The objects.
    pub r2: PathBuf,
    /// Who is in it.
    pub users: Vec<User>,
    connection: Connection,
    random: StdRng,
}

const SCHEMA: &str = "
    CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT, name TEXT, plan TEXT, stripe_customer_id TEXT,
        password_hash TEXT, is_active INTEGER DEFAULT 1, created_at TEXT);
    CREATE TABLE api_keys (id TEXT PRIMARY KEY, user_id TEXT REFERENCES users(id), key_hash TEXT, name TEXT,
        scopes TEXT, created_at TEXT, expires_at TEXT, last_used_at TEXT, revoked_at TEXT);
    CREATE TABLE user_settings (user_id TEXT, key TEXT, value TEXT, updated_at TEXT, PRIMARY KEY (user_id, key));
    CREATE TABLE billing_ledger (id INTEGER PRIMARY KEY, user_id TEXT, type TEXT, amount_cents REAL, created_at TEXT);
    CREATE TABLE usage_records (id TEXT PRIMARY KEY, user_id TEXT, request_id TEXT, provider TEXT, model TEXT,
        input_tokens INTEGER, output_tokens INTEGER, cost_cents REAL, created_at INTEGER);
    CREATE TABLE knowledge_documents (id TEXT PRIMARY KEY, user_id TEXT, title TEXT, content TEXT, r2_key TEXT,
        content_type TEXT, created_at TEXT, updated_at TEXT);
    CREATE TABLE user_loras (id TEXT PRIMARY KEY, user_id TEXT, name TEXT, base_model TEXT, rank INTEGER, r2_key TEXT,
        created_at TEXT);
    CREATE TABLE chat_sessions (id TEXT PRIMARY KEY, user_id TEXT, title TEXT, messages TEXT, pathos_framing TEXT,
        created_at TEXT, updated_at TEXT);
    CREATE TABLE migrations (id INTEGER PRIMARY KEY, name TEXT);";

/// The first moment of all of them: 2025-01-01.
const EPOCH_MS: i64 = 1_735_689_600_000;

fn iso(ms: i64) -> String {
    belay_protocol::calendar::time_text(u64::try_from(ms).unwrap()).replace(' ', "T")
}

impl OldDeployment {
    /// One below `dir`, of so many users with so many rows of usage each, about.
    #[must_use]
    pub fn generate(dir: &Path, seed: u64, users: usize, usage: usize) -> Self {
        eprintln!("an old deployment of {users} users, seed {seed}");
        let (d1, r2) = (dir.join("export.sqlite"), dir.join("objects"));
        fs::create_dir_all(&r2).unwrap();
        let connection = Connection::open(&d1).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode = off; PRAGMA synchronous = off; PRAGMA foreign_keys = off; {SCHEMA}"
            ))
            .unwrap();
        let mut made = Self { d1, r2, users: vec![], connection, random: StdRng::seed_from_u64(seed) };
        made.connection.execute_batch("BEGIN").unwrap();
        for number in 0..users {
            made.user(number);
            made.use_more(number, usage);
        }
        made.connection.execute_batch("COMMIT").unwrap();
        made
    }

    fn user(&mut self, number: usize) {
        let id = format!("user-{number:05}");
        let created = EPOCH_MS + number as i64 * 1000;
        let plan = ["free", "pro", "enterprise", "byok"][self.random.random_range(0..4)];
        self.connection
            .execute(
                "INSERT INTO users VALUES (?1, ?2, ?3, ?4, ?5, 'secret', 1, ?6)",
                params![
                    id,
                    format!("{id}@example.org"),
                    format!("User {number}"),
                    plan,
                    format!("cus_{number}"),
                    iso(created)
                ],
            )
            .unwrap();
        let mut user = User {
            id: id.clone(),
            balance_nano: 0,
            keys: vec![],
            usage: vec![],
            sessions: vec![],
            documents: vec![],
            settings: vec![],
            adapters: vec![],
        };
        for key in 0..self.random.random_range(0..3) {
            let (plain, is_good) = (format!("sk_live_{number}_{key}_{}", self.random.random::<u64>()), key == 0);
            let hash: String = sha256(plain.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
            let revoked = (!is_good).then(|| iso(created + 5000));
            self.connection
                .execute(
                    "INSERT INTO api_keys VALUES (?1, ?2, ?3, 'laptop', '[\"read\",\"escalate\"]', ?4, NULL, NULL, ?5)",
                    params![format!("key-{number}-{key}"), id, hash, iso(created), revoked],
                )
                .unwrap();
            user.keys.push((plain, is_good));
        }
        self.users.push(user);
        for _ in 0..self.random.random_range(1..5) {
            let cents = self.random.random_range(1..1000);
            self.post(number, "topup", f64::from(cents) * 100.0, i64::from(cents) * 1_000_000_000);
        }
        for session in 0..self.random.random_range(0..3) {
            let count = self.random.random_range(1..8);
            self.converse(number, &format!("chat-{number}-{session}"), count);
        }
        for setting in 0..self.random.random_range(0..3) {
            let (name, value) =
                (format!("ui.setting{setting}"), format!("{{\"on\":{}}}", self.random.random::<bool>()));
            self.connection
                .execute("INSERT INTO user_settings VALUES (?1, ?2, ?3, ?4)", params![id, name, value, iso(created)])
                .unwrap();
            self.users[number].settings.push((name, value));
        }
        for document in 0..self.random.random_range(0..2) {
            self.document(number, &format!("doc-{number}-{document}"), &format!("Notes {document}"));
        }
        if number % 500 == 7 {
            self.adapter(number);
        }
    }

    /// An entry of the ledger.
    pub fn post(&mut self, number: usize, kind: &str, cents: f64, nano: i64) {
        let user = &mut self.users[number];
        self.connection
            .execute(
                "INSERT INTO billing_ledger (user_id, type, amount_cents, created_at) VALUES (?1, ?2, ?3, ?4)",
                params![user.id, kind, cents, iso(EPOCH_MS)],
            )
            .unwrap();
        user.balance_nano += if kind == "topup" { nano } else { -nano };
    }

    /// A conversation, or more of one.
    pub fn converse(&mut self, number: usize, id: &str, count: usize) {
        let user = &mut self.users[number];
        if !user.sessions.iter().any(|(known, _)| known == id) {
            user.sessions.push((id.to_owned(), vec![]));
        }
        let (_, said) = user.sessions.iter_mut().find(|(known, _)| known == id).unwrap();
        for _ in 0..count {
            said.push(format!("what {} said in {id}: ä{}", said.len(), self.random.random::<u32>()));
        }
        let messages: Vec<_> = said
            .iter()
            .enumerate()
            .map(|(place, text)| {
                let role = if place % 2 == 0 { "user" } else { "assistant" };
                serde_json::json!({ "role": role, "content": text, "timestamp": EPOCH_MS + place as i64 * 1000 })
            })
            .collect();
        self.connection
            .execute(
                "INSERT INTO chat_sessions VALUES (?1, ?2, ?3, ?4, 'be kind', ?5, ?5)
                 ON CONFLICT DO UPDATE SET messages = excluded.messages",
                params![
                    id,
                    user.id,
                    format!("About {id}"),
                    serde_json::Value::from(messages).to_string(),
                    iso(EPOCH_MS)
                ],
            )
            .unwrap();
    }

    /// A document, small in its row or large as an object.
    pub fn document(&mut self, number: usize, id: &str, title: &str) {
        let is_large = self.random.random_range(0..10) == 0;
        let user = &mut self.users[number];
        let content = format!("{id} {}\n", self.random.random::<u64>()).repeat(if is_large { 4000 } else { 5 });
        let key = is_large.then(|| format!("{}/knowledge/{id}.md", user.id));
        if let Some(key) = &key {
            let path = self.r2.join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &content).unwrap();
        }
        self.connection
            .execute(
                "INSERT INTO knowledge_documents VALUES (?1, ?2, ?3, ?4, ?5, 'text/markdown', ?6, ?6)
                 ON CONFLICT DO UPDATE SET content = excluded.content, r2_key = excluded.r2_key",
                params![id, user.id, title, key.is_none().then_some(&content), key, iso(EPOCH_MS)],
            )
            .unwrap();
        let name = format!("{title}.md");
        user.documents.retain(|(known, _)| *known != name);
        user.documents.push((name, content.into_bytes()));
    }

    fn adapter(&mut self, number: usize) {
        let user = &mut self.users[number];
        let (weights, _) = adapter(100_000, number as u64);
        let key = format!("{}/loras/style.safetensors", user.id);
        fs::create_dir_all(self.r2.join(&key).parent().unwrap()).unwrap();
        fs::write(self.r2.join(&key), &weights).unwrap();
        self.connection
            .execute(
                "INSERT INTO user_loras VALUES (?1, ?2, 'style', 'llama-3', 8, ?3, ?4)",
                params![format!("lora-{number}"), user.id, key, iso(EPOCH_MS)],
            )
            .unwrap();
        user.adapters.push(("style".into(), weights));
    }

    /// More usage of a user, each paid for by an entry of the ledger's.
    pub fn use_more(&mut self, number: usize, count: usize) {
        let mut spent_nano = 0;
        for _ in 0..count {
            let place = self.users[number].usage.len();
            let (input, output) = (self.random.random_range(1..5000), self.random.random_range(1..2000));
            // Cents with decimals, as such deployments compute them.
            let cost_nano = input * 30 + output * 150;
            let model = ["claude-3-opus", "gpt-4"][self.random.random_range(0..2)];
            let usage = Usage {
                id: format!("use-{number}-{place}"),
                at_ms: EPOCH_MS + self.random.random_range(0..30_000_000) * 1000,
                model: model.into(),
                input,
                output,
                cost_nano,
            };
            let provider = if model == "gpt-4" { "openai" } else { "anthropic" };
            self.connection
                .prepare_cached("INSERT INTO usage_records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")
                .unwrap()
                .execute(params![
                    usage.id,
                    self.users[number].id,
                    format!("req-{number}-{place}"),
                    provider,
                    model,
                    input,
                    output,
                    cost_nano as f64 / 1e7,
                    usage.at_ms / 1000,
                ])
                .unwrap();
            spent_nano += cost_nano;
            self.users[number].usage.push(usage);
        }
        if spent_nano > 0 {
            self.post(number, "usage", spent_nano as f64 / 1e7, spent_nano);
        }
    }

    /// Changes the export as one likes.
    pub fn execute(&self, sql: &str) {
        self.connection.execute_batch(sql).unwrap();
    }
}
