//! The way over: what a deployment of the kind before had is here in the end, row by row, and that once.

use belay_tests::http::HttpCaller;
use belay_tests::old_deployment::{OldDeployment, User};
use belay_tests::procs::{Belayd, Ran, binary};
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A relay's directory without a relay that runs: a configuration, and room for its state.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let config =
            format!("[listen]\nquic = \"127.0.0.1:0\"\n[state]\ndir = {state:?}\n[http]\nlisten = \"127.0.0.1:0\"\n");
        fs::write(dir.path().join("belayd.toml"), config).unwrap();
        Self { dir }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn command(&self, old: &OldDeployment, more: &[&str]) -> Command {
        let mut command = Command::new(binary("belayd"));
        command.env_remove("RUST_LOG").current_dir(self.dir.path()).args(["--config", "belayd.toml", "import", "--d1"]);
        command.arg(&old.d1).arg("--r2").arg(&old.r2).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn import(&self, old: &OldDeployment, more: &[&str]) -> Ran {
        // A large one takes as long as it takes.
        let output = self.command(old, more).spawn().unwrap().wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn report(&self, old: &OldDeployment, more: &[&str]) -> Value {
        let mut args = vec!["--json"];
        args.extend(more);
        let ran = self.import(old, &args);
        let report = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{} {}", ran.stdout, ran.stderr));
        let left = left_out(&report);
        assert_eq!(ran.code, Some(i32::from(left > 0)), "{} {}", ran.stdout, ran.stderr);
        report
    }

    fn database(&self, of: Option<&str>) -> Connection {
        let path = match of {
            None => self.state().join("central.db"),
            Some(tenant) => self.state().join("tenants").join(tenant).join("tenant.db"),
        };
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap()
    }

    /// Everything that is written down, by file and table; times of writing are not of it.
    fn digest(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        let mut names = vec![None];
        let tenants = fs::read_dir(self.state().join("tenants")).unwrap();
        names.extend(tenants.map(|entry| Some(entry.unwrap().file_name().into_string().unwrap())));
        for name in names {
            let database = self.database(name.as_deref());
            let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '%\\_fts%' ESCAPE '\\'";
            let mut tables = database.prepare(sql).unwrap();
            let tables: Vec<String> = tables.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
            for table in tables {
                let mut statement = database.prepare(&format!("SELECT * FROM \"{table}\"")).unwrap();
                let count = statement.column_count();
                let mut rows = statement.query([]).unwrap();
                let mut text = String::new();
                while let Some(row) = rows.next().unwrap() {
                    let cells: Vec<Sql> = (0..count).map(|at| row.get(at).unwrap()).collect();
                    text += &format!("{cells:?}\n");
                }
                let sum = belay_certs::sha256(text.as_bytes());
                found.insert(format!("{name:?} {table}"), u64::from_le_bytes(sum[..8].try_into().unwrap()));
            }
        }
        found
    }
}

fn left_out(report: &Value) -> u64 {
    let tallies = report.as_object().unwrap().values().filter_map(|value| value.get("left_out")?.as_u64());
    tallies.sum()
}

fn tally(report: &Value, what: &str) -> [u64; 4] {
    ["found", "new", "known", "left_out"].map(|name| report[what][name].as_u64().unwrap())
}

fn column<T: rusqlite::types::FromSql>(database: &Connection, sql: &str) -> Vec<T> {
    let mut statement = database.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// What a user has become, row by row.
fn check(node: &Node, central: &Connection, user: &User) {
    let database = node.database(Some(&user.id));
    let balance: Vec<i64> = column(&database, "SELECT balance_nano FROM account WHERE name = 'tenant:prepaid'");
    assert_eq!(balance, [user.balance_nano], "{}", user.id);
    for (what, database, of) in [
        ("imported", &database, "imported_usage"),
        ("central", central, &format!("usage_record WHERE tenant = '{}'", user.id)),
    ] {
        let mut expected = user.usage.clone();
        expected.sort();
        let sql = format!("SELECT at_ms, model, input, output, cost_nano, request_id FROM {of}");
        let mut statement = database.prepare(&sql).unwrap();
        let rows = statement.query_map([], |row| {
            Ok((
                (row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?),
                (row.get::<_, i64>(4)?, row.get::<_, Vec<u8>>(5)?),
            ))
        });
        let mut found: Vec<_> = rows.unwrap().map(Result::unwrap).collect();
        found.sort();
        let mut expected: Vec<_> = expected
            .into_iter()
            .map(|usage| {
                let name = belay_certs::sha256(format!("imported usage\n{}", usage.id).as_bytes())[..16].to_vec();
                ((usage.at_ms, usage.model, usage.input, usage.output), (usage.cost_nano, name))
            })
            .collect();
        expected.sort();
        assert_eq!(found, expected, "{what} of {}", user.id);
    }
    let mut sessions: Vec<(String, Vec<String>)> = vec![];
    for name in column::<String>(&database, "SELECT name FROM session ORDER BY name") {
        let sql = format!(
            "SELECT text FROM message WHERE session = (SELECT id FROM session WHERE name = '{name}') ORDER BY number"
        );
        sessions.push((name, column(&database, &sql)));
    }
    let mut expected = user.sessions.clone();
    expected.sort();
    assert_eq!(sessions, expected, "{}", user.id);
    for (kind, expected) in [
        (1, user.settings.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect::<Vec<_>>()),
        (2, user.documents.clone()),
        (3, user.adapters.clone()),
    ] {
        let sql = "SELECT key, inline, parts FROM sync_item JOIN sync_revision ON sync_revision.id = head
                   WHERE kind = ?1 AND deleted_ms IS NULL AND conflict_of = '' ORDER BY key";
        let mut statement = database.prepare(sql).unwrap();
        let rows = statement.query_map([kind], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<Vec<u8>>>(1)?, row.get::<_, Option<Vec<u8>>>(2)?))
        });
        let found: Vec<(String, Vec<u8>)> = rows
            .unwrap()
            .map(Result::unwrap)
            .map(|(key, inline, parts)| {
                (key, inline.unwrap_or_else(|| content(node, &database, &user.id, &parts.unwrap())))
            })
            .collect();
        let mut expected = expected;
        expected.sort();
        assert!(
            found == expected,
            "kind {kind} of {}: {:?}",
            user.id,
            found.iter().map(|(key, _)| key).collect::<Vec<_>>()
        );
    }
    let sql = format!("SELECT revoked_ms IS NULL FROM api_key WHERE tenant = '{}' ORDER BY created_ms, id", user.id);
    let mut good: Vec<bool> = column(central, &sql);
    let mut expected: Vec<bool> = user.keys.iter().map(|(_, good)| *good).collect();
    good.sort_unstable();
    expected.sort_unstable();
    assert_eq!(good, expected, "{}", user.id);
}

/// What parts make, as they lie on disk.
fn content(node: &Node, database: &Connection, tenant: &str, parts: &[u8]) -> Vec<u8> {
    let mut whole = vec![];
    for part in parts.chunks(36) {
        let (file, encoding): (String, u16) = database
            .query_row("SELECT file, encoding FROM blob_chunk WHERE hash = ?1", [&part[..32]], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        let bytes = fs::read(node.state().join("tenants").join(tenant).join("blobs").join(file)).unwrap();
        if encoding == 0 {
            whole.extend(bytes);
        } else {
            zstd::Decoder::new(bytes.as_slice()).unwrap().read_to_end(&mut whole).unwrap();
        }
    }
    whole
}

fn check_all(node: &Node, old: &OldDeployment) {
    let central = node.database(None);
    old.users.iter().for_each(|user| check(node, &central, user));
    assert_eq!(fs::read_dir(node.state().join("tenants")).unwrap().count(), old.users.len());
}

fn verify(node: &Node) {
    let mut command = Command::new(binary("belayd"));
    let output = command.current_dir(node.dir.path()).args(["ledger", "verify"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// `BELAY_IMPORT_USERS=10000 BELAY_IMPORT_ROWS=100` is the whole proof; a part of it is enough for every day.
#[test]
fn a_deployment_comes_over_row_by_row_and_that_once() {
    let number = |name, default| std::env::var(name).map_or(default, |text: String| text.parse().unwrap());
    let (users, rows) = (number("BELAY_IMPORT_USERS", 120), number("BELAY_IMPORT_ROWS", 60));
    let node = Node::new();
    let mut old = OldDeployment::generate(node.dir.path(), 20_261_127, users, rows);
    // More than one transaction takes.
    old.use_more(3, 9000);
    let dry = node.report(&old, &["--dry-run"]);
    assert!(!node.state().exists(), "a dry run writes nothing");
    let began = std::time::Instant::now();
    let done = node.report(&old, &[]);
    eprintln!("{users} users and {} rows in {:.1} s", done["usage"]["found"], began.elapsed().as_secs_f64());
    let count = |of: &dyn Fn(&User) -> usize| old.users.iter().map(|user| of(user) as u64).sum::<u64>();
    for (what, expected) in [
        ("users", users as u64),
        ("keys", count(&|user| user.keys.len())),
        ("balances", users as u64),
        ("usage", count(&|user| user.usage.len())),
        ("sessions", count(&|user| user.sessions.len())),
        ("messages", count(&|user| user.sessions.iter().map(|(_, said)| said.len()).sum())),
        ("settings", count(&|user| user.settings.len())),
        ("documents", count(&|user| user.documents.len())),
        ("adapters", count(&|user| user.adapters.len())),
    ] {
        assert_eq!(tally(&dry, what), [expected, expected, 0, 0], "{what} {dry}");
        assert_eq!(tally(&done, what), [expected, expected, 0, 0], "{what} {done}");
    }
    let sum: i64 = old.users.iter().map(|user| user.balance_nano).sum();
    assert_eq!(done["balances_nano_usd"], sum);
    assert_eq!(done["unknown"]["tables"], serde_json::json!(["migrations"]));
    assert_eq!(done["unknown"]["columns"], serde_json::json!(["users.password_hash"]));
    check_all(&node, &old);
    verify(&node);
    let before = node.digest();
    let dry = node.report(&old, &["--dry-run"]);
    let again = node.report(&old, &[]);
    for report in [&dry, &again] {
        for what in ["users", "keys", "balances", "usage", "sessions", "messages", "settings", "documents", "adapters"]
        {
            let [found, new, known, left] = tally(report, what);
            assert_eq!((new, known, left), (0, found, 0), "{what} {report}");
        }
    }
    assert!(node.digest() == before, "a second time changes nothing");
    // What has come to it since comes too, and nothing else changes.
    old.use_more(1, 7);
    old.post(2, "topup", 500.0, 5_000_000_000);
    old.converse(4, "chat-4-0", 3);
    old.document(5, "doc-5-0", "Notes 0");
    let more = node.report(&old, &[]);
    assert_eq!(tally(&more, "usage")[1], 7);
    assert_eq!(tally(&more, "balances")[1], 2);
    assert_eq!(tally(&more, "messages")[1], 3);
    assert_eq!(tally(&more, "documents")[1], 1);
    check_all(&node, &old);
    verify(&node);
}

#[test]
fn an_import_that_is_killed_is_finished_by_the_next() {
    let node = Node::new();
    let old = OldDeployment::generate(node.dir.path(), 7, 60, 200);
    let mut kills = 0;
    for wanted in [1, 5, 12, 25, 40] {
        let mut child: Child = node.command(&old, &["--json"]).spawn().unwrap();
        let tenants = node.state().join("tenants");
        // Until so many are there: in the middle of the next.
        let is_there = || fs::read_dir(&tenants).is_ok_and(|dir| dir.count() >= wanted);
        while !is_there() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    eprintln!("killed {kills} times");
    assert!(kills > 2);
    let last = node.report(&old, &[]);
    assert_eq!(tally(&last, "users")[0], 60);
    check_all(&node, &old);
    verify(&node);
}

fn fails(ran: &Ran, parts: &[&str]) {
    assert_ne!(ran.code, Some(0));
    for part in parts {
        assert!(ran.stderr.contains(part) || ran.stdout.contains(part), "{part}: {} {}", ran.stdout, ran.stderr);
    }
}

#[test]
fn what_could_mean_two_things_is_asked_and_what_cannot_come_is_named() {
    let node = Node::new();
    let mut old = OldDeployment::generate(node.dir.path(), 11, 6, 3);
    old.execute("UPDATE billing_ledger SET type = 'refund' WHERE id = 1");
    fails(&node.import(&old, &[]), &["\"refund\" (1 above zero", "--ledger-kind NAME=credit"]);
    let told = node.report(&old, &["--ledger-kind", "refund=credit", "--dry-run"]);
    assert_eq!(left_out(&told), 0, "{told}");
    old.execute("UPDATE billing_ledger SET type = 'topup' WHERE id = 1");
    // A user's own row says something else than its ledger.
    old.execute(
        "ALTER TABLE users ADD COLUMN balance_cents REAL; UPDATE users SET balance_cents = 1 WHERE id = 'user-00002'",
    );
    old.execute("UPDATE api_keys SET key_hash = '$2b$12$bcrypt' WHERE user_id = 'user-00003'");
    old.execute(
        "INSERT INTO knowledge_documents VALUES ('evil', 'user-00004', 'passwd', NULL, '../../../etc/passwd', '', '', '');
         INSERT INTO chat_sessions VALUES ('odd', 'user-00004', 'Odd', '[{\"role\":\"tool\",\"content\":\"x\"}]', '', '', '');
         INSERT INTO usage_records VALUES ('stray', 'nobody', NULL, 'p', 'm', 1, 1, 0.1, 1700000000);
         INSERT INTO usage_records VALUES ('never', 'user-00004', NULL, 'p', 'm', 1, 1, 0.1, 'yesterday');
         INSERT INTO user_loras VALUES ('pickle', 'user-00004', 'p', 'b', 8, 'pickle.bin', '')",
    );
    fs::write(old.r2.join("pickle.bin"), b"\x80\x04\x95pickle").unwrap();
    let report = node.report(&old, &[]);
    let told = report["left"].to_string();
    for part in [
        "the entries of billing_ledger sum to",
        "say which holds with --balances",
        "no SHA-256",
        "is no path below the directory",
        "neither user nor assistant",
        "1 rows are of a user that is not in the export",
        "\\\"yesterday\\\"",
        "pickle",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("sk_live"), "{told}");
    for (what, left) in [("balances", 1), ("documents", 1), ("messages", 1), ("usage", 2), ("adapters", 1)] {
        let [found, new, known, left_out] = tally(&report, what);
        assert_eq!((new + known + left_out, left_out), (found, left), "{what} {report}");
    }
    // Told where balances are, the one that was left comes, too.
    let report = node.report(&old, &["--balances", "ledger"]);
    assert_eq!(tally(&report, "balances"), [6, 1, 5, 0]);
    verify(&node);
    fails(&node.import(&old, &["--only", "nobody"]), &["no user \"nobody\""]);
    // Columns without a unit.
    old.execute("ALTER TABLE usage_records RENAME COLUMN cost_cents TO cost");
    fails(&node.import(&old, &[]), &["nothing says in what", "--money-unit"]);
    let [found, _, known, _] = tally(&node.report(&old, &["--money-unit", "cents", "--balances", "ledger"]), "usage");
    assert_eq!(found - known, 2, "the same money, whoever says in what");
    let empty = node.dir.path().join("empty.sql");
    fs::write(&empty, "CREATE TABLE users (id);").unwrap();
    old.d1 = empty;
    fails(&node.import(&old, &[]), &["nobody in the export"]);
}

/// A dump in SQL and a key-value store, and callers who notice nothing.
#[test]
fn callers_go_on_with_the_keys_that_they_have() {
    let config = "[http]\nlisten = \"127.0.0.1:0\"\n";
    let mut relay = Belayd::start(config).unwrap();
    relay.run(&["tenant", "create", "taken"]).unwrap();
    let dir = relay.dir().to_owned();
    let hash = |key: &str| belay_certs::sha256(key.as_bytes()).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let dump = format!(
        "PRAGMA defer_foreign_keys=TRUE;
CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT, created_at INTEGER, status TEXT);
INSERT INTO \"users\" (\"id\",\"email\",\"created_at\",\"status\") VALUES('Ada Lovelace','ada@example.org',1700000000,'active');
INSERT INTO users VALUES('taken','t@example.org',1700000000,'active'),('gone','g@example.org',1700000000,'suspended');
CREATE TABLE api_keys (id INTEGER PRIMARY KEY, user_id TEXT, key_hash TEXT, revoked INTEGER);
INSERT INTO api_keys VALUES(1,'Ada Lovelace','{}',0),(2,'Ada Lovelace','{}',1),(3,'gone','{}',0);
CREATE TABLE billing_ledger (id INTEGER, user_id TEXT, amount_cents INTEGER, balance_after_cents INTEGER);
INSERT INTO billing_ledger VALUES(1,'Ada Lovelace',2000,2000),(2,'Ada Lovelace',-550,1450);
",
        hash("sk_live.with.dots"),
        hash("sk_live_revoked"),
        hash("sk_live_gone")
    );
    fs::write(dir.join("export.sql"), dump).unwrap();
    let kv = serde_json::json!([
        { "key": format!("apikey:{}", hash("sk_live.with.dots")), "value": "{\"user_id\":\"Ada Lovelace\"}" },
        { "key": "session:Ada Lovelace:s1", "value": { "title": "Engines", "messages": [
            { "role": "user", "content": "What is an engine?" }, { "role": "assistant", "content": "A machine." } ] } },
        { "key": "settings:Ada Lovelace", "value": { "theme": "dark" } },
        { "key": "ratelimit:1.2.3.4", "value": "17" },
    ]);
    fs::write(dir.join("kv.json"), kv.to_string()).unwrap();
    let args = ["import", "--d1", "export.sql", "--kv", "kv.json"].map(OsStr::new);
    let ran = relay.command(&args).unwrap();
    assert_eq!(ran.code, Some(77), "{}", ran.stderr);
    assert!(ran.stderr.contains("stop the relay"), "{}", ran.stderr);
    let ran = relay.command(&[args.as_slice(), &[OsStr::new("--dry-run")]].concat()).unwrap();
    assert!(ran.stdout.contains("belayd is running"), "{}", ran.stdout);
    relay.terminate().unwrap();
    let ran = relay.command(&args).unwrap();
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(tally(&report, "users"), [3, 2, 0, 1], "{report}");
    assert_eq!(tally(&report, "keys"), [3, 3, 0, 0], "{report}");
    assert_eq!(tally(&report, "messages"), [2, 2, 0, 0], "{report}");
    assert_eq!(report["unknown"]["entries"], serde_json::json!([["ratelimit", 1]]));
    assert!(report["left"][0]["why"].as_str().unwrap().contains("did not come from here"), "{report}");
    relay.restart().unwrap();
    let tenants = relay.run(&["tenant", "list"]).unwrap();
    let ada = tenants.as_array().unwrap().iter().find(|tenant| tenant["label"] == "ada@example.org").unwrap();
    assert_eq!(ada["balance_nano_usd"], 14_500_000_000_i64);
    assert!(ada["id"].as_str().unwrap().starts_with("ada-lovelace-"), "{ada}");
    let url = relay.process().hello["http"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let get = |path: &str, key: &str| -> (u16, Value) {
        runtime.block_on(async {
            HttpCaller::json(reqwest::Client::new().get(format!("{url}{path}")).bearer_auth(key)).await
        })
    };
    let (status, balance) = get("/v1/billing/balance", "sk_live.with.dots");
    assert_eq!((status, &balance["balance_nano_usd"]), (200, &14_500_000_000_i64.into()));
    let (status, session) = get("/v1/sessions/get?session_id=s1", "sk_live.with.dots");
    assert_eq!((status, session["said"][1]["text"].as_str()), (200, Some("A machine.")), "{session}");
    let (_, pulled) = get("/v1/sync/settings/pull", "sk_live.with.dots");
    assert_eq!(pulled["items"][0]["key"], "theme", "{pulled}");
    for (key, expected) in
        [("sk_live_revoked", 401), ("sk_live_gone", 403), ("sk_live_unknown", 401), ("sk.unknown.key", 401)]
    {
        assert_eq!(get("/v1/billing/balance", key).0, expected, "{key}");
    }
    // What people call it can be changed, within bounds.
    let name = ada["id"].as_str().unwrap();
    assert_eq!(relay.run(&["tenant", "label", name, "Countess"]).unwrap()["label"], "Countess");
    assert_eq!(relay.run(&["tenant", "create", "acme", "--label", "Acme Inc"]).unwrap()["label"], "Acme Inc");
    for wrong in ["x".repeat(201), "two\nlines".into()] {
        let refused = relay.command(&["tenant", "label", name, &wrong]).unwrap();
        assert_eq!(refused.code, Some(77), "{}", refused.stderr);
        assert!(refused.stderr.contains("a line of at most 200 bytes"), "{}", refused.stderr);
    }
    assert_ne!(relay.command(&["tenant", "label", "nobody", "x"]).unwrap().code, Some(0));
    // It can be revoked like any other.
    let keys = relay.run(&["key", "list"]).unwrap();
    let id =
        keys.as_array().unwrap().iter().find(|key| key["tenant"] == ada["id"] && key["revoked_ms"].is_null()).unwrap();
    relay.run(&["key", "revoke", id["id"].as_str().unwrap()]).unwrap();
    assert_eq!(get("/v1/billing/balance", "sk_live.with.dots").0, 401);
    relay.terminate().unwrap();
}

/// What a dry run says is what is done, also where much is there already.
#[test]
fn what_was_changed_here_stays_and_is_told() {
    let node = Node::new();
    let mut old = OldDeployment::generate(node.dir.path(), 23, 3, 5);
    old.document(0, "doc-x", "Plan");
    old.converse(0, "chat-x", 2);
    node.report(&old, &[]);
    {
        let database = node.database(Some("user-00000"));
        // Somebody has written to the document here, and deleted the conversation.
        database
            .execute_batch(
                "INSERT INTO sync_revision (revision, push, item, parent, number, outcome, content, device, at_ms,
                                            modified_ms, size, digest, inline, parts, meta)
                     SELECT randomblob(16), push, item, revision, number, outcome, content, 'laptop-1', at_ms,
                            modified_ms, size, randomblob(32), inline, parts, meta FROM sync_revision
                     WHERE item = (SELECT id FROM sync_item WHERE key = 'Plan.md');
                 UPDATE sync_item SET head = last_insert_rowid() WHERE key = 'Plan.md';
                 UPDATE session SET deleted_ms = 1900000000000 WHERE name = 'chat-x'",
            )
            .unwrap();
    }
    old.document(0, "doc-x", "Plan");
    old.converse(0, "chat-x", 2);
    let dry = node.report(&old, &["--dry-run"]);
    let done = node.report(&old, &[]);
    for what in ["users", "keys", "usage", "sessions", "messages", "documents"] {
        assert_eq!(tally(&dry, what), tally(&done, what), "{what}");
    }
    assert_eq!(tally(&done, "messages")[1], 0, "it was deleted here");
    let database = node.database(Some("user-00000"));
    let keys: Vec<String> = column(&database, "SELECT key FROM sync_item WHERE key LIKE 'Plan%' ORDER BY key");
    assert_eq!(keys.len(), 2, "{keys:?}");
    assert!(keys.iter().any(|key| key.contains("(conflict imported")), "{keys:?}");
    assert!(Path::new(&old.d1).exists());
}

/// What an export says of access later is followed; what was changed here is not.
#[test]
fn a_later_export_closes_what_was_closed_there() {
    let node = Node::new();
    let mut old = OldDeployment::generate(node.dir.path(), 31, 3, 0);
    let hash = |key: &str| belay_certs::sha256(key.as_bytes()).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (first, second, third) = (hash("sk_first"), hash("sk_second"), hash("sk_third"));
    old.execute(&format!(
        "DELETE FROM api_keys; DELETE FROM users WHERE id = 'user-00002'; UPDATE users SET plan = 'free';
         INSERT INTO api_keys VALUES ('a', 'user-00000', '{first}', 'l', '[\"read\",\"admin\"]', '', '', '', NULL),
             ('b', 'user-00000', '{second}', 'l', NULL, '', '', '', NULL)"
    ));
    old.document(0, "doc-y", "Gone");
    old.converse(0, "chat-y", 2);
    node.report(&old, &[]);
    old.execute(&format!(
        "UPDATE api_keys SET key_hash = '{third}', scopes = '[\"read\"]' WHERE id = 'a'; DELETE FROM api_keys WHERE id = 'b';
         UPDATE users SET plan = 'pro', is_active = 0 WHERE id = 'user-00000';
         ALTER TABLE knowledge_documents ADD COLUMN deleted_at TEXT; ALTER TABLE chat_sessions ADD COLUMN deleted_at TEXT;
         UPDATE knowledge_documents SET deleted_at = '2026-01-01'; UPDATE chat_sessions SET deleted_at = '2026-01-01'"
    ));
    node.report(&old, &["--prefix", "other-"]);
    let central = node.database(None);
    let good: Vec<String> = column(&central, "SELECT scopes FROM api_key WHERE revoked_ms IS NULL");
    assert_eq!(good, ["read"], "the rotated one, and no other");
    let terms: Vec<String> = column(&central, "SELECT tier || suspended FROM tenant WHERE id = 'user-00000'");
    assert_eq!(terms, ["managed1"], "another prefix changes nobody's name");
    let tenants: Vec<i64> = column(&central, "SELECT count(*) FROM tenant");
    assert_eq!(tenants, [2]);
    let database = node.database(Some("user-00000"));
    let live = "SELECT count(*) FROM sync_item WHERE kind = 2 AND deleted_ms IS NULL";
    assert_eq!(column::<i64>(&database, live), [0]);
    assert_eq!(column::<i64>(&database, "SELECT count(*) FROM session WHERE deleted_ms IS NULL"), [0]);
    // What was set right here since is left alone.
    central.execute_batch("UPDATE tenant SET suspended = 0, version = version + 1 WHERE id = 'user-00000'").unwrap();
    node.report(&old, &[]);
    assert_eq!(
        column::<String>(&central, "SELECT tier || suspended FROM tenant WHERE id = 'user-00000'"),
        ["managed0"]
    );
}

#[test]
fn nobody_gets_what_is_somebody_elses() {
    let node = Node::new();
    let old = OldDeployment::generate(node.dir.path(), 37, 2, 0);
    old.execute(
        "UPDATE users SET id = 'acme' WHERE id = 'user-00000'; DELETE FROM api_keys;
         CREATE TABLE chat_messages (session_id TEXT, user_id TEXT, role TEXT, content TEXT);
         DELETE FROM chat_sessions; DELETE FROM billing_ledger; DELETE FROM user_settings; DELETE FROM knowledge_documents;
         INSERT INTO chat_sessions VALUES ('1', 'acme', 'A', '[]', '', '', '');
         INSERT INTO users VALUES ('v', 'v@x', 'V', 'pro', '', '', 1, '');
         INSERT INTO chat_sessions SELECT '1-v', 'v', 'A', '[]', '', '', '';
         INSERT INTO chat_messages VALUES ('1-v', 'acme', 'user', 'a secret'), ('1-v', 'v', 'user', 'mine')",
    );
    let rows: String = (0..4500)
        .map(|at| format!("INSERT INTO usage_records VALUES ('u{at}', 'acme', NULL, 'p', 'm', 1, 1, 100, 1700000000);"))
        .collect();
    old.execute(&rows);
    // A tenant of that name is here already, and did not come from there.
    let first = OldDeployment::generate(&node.dir.path().join("first"), 1, 1, 0);
    first.execute("UPDATE users SET id = 'zoe'; DELETE FROM billing_ledger");
    node.report(&first, &[]);
    node.database(None).execute_batch("INSERT INTO tenant (id, created_ms) VALUES ('acme', 1)").unwrap();
    let report = node.report(&old, &[]);
    assert_eq!(tally(&report, "users")[3], 1, "{report}");
    assert_eq!(report["usage_nano_usd"], 0, "{report}");
    assert!(!node.state().join("tenants/acme").exists(), "nothing of it is written");
    let messages: Vec<String> = column(&node.database(Some("v")), "SELECT text FROM message");
    assert_eq!(messages, ["mine"]);
    verify(&node);
}

#[test]
fn a_setting_comes_as_it_was_written_and_every_change_of_it() {
    let node = Node::new();
    let old = OldDeployment::generate(node.dir.path(), 41, 1, 0);
    old.execute("DELETE FROM user_settings");
    let current = || -> String {
        let sql =
            "SELECT CAST(inline AS TEXT) FROM sync_item JOIN sync_revision ON sync_revision.id = head WHERE kind = 1";
        column(&node.database(Some("user-00000")), sql).remove(0)
    };
    for value in ["true", "false", "true", "1.10", "123456789012345678901234", "{\"a\": 1}"] {
        old.execute(&format!(
            "INSERT OR REPLACE INTO user_settings VALUES ('user-00000', 'x', '{value}', '2026-01-01T00:00:00Z')"
        ));
        let report = node.report(&old, &[]);
        assert_eq!((tally(&report, "settings")[1], current().as_str()), (1, value));
        assert_eq!(tally(&node.report(&old, &[]), "settings")[1], 0);
    }
    old.execute("UPDATE user_settings SET value = ''");
    node.report(&old, &[]);
    assert_eq!(current(), "\"\"");
}
