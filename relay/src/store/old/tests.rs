//! Exports of both kinds, and what is found in them.

use super::*;
use std::fs;
use std::path::Path;

const SQL: &str = "CREATE TABLE Users (ID INTEGER, email TEXT, avatar BLOB);
    INSERT INTO Users VALUES (1, 'a@x', x'00'), (2, 'b@x', NULL);
    CREATE TABLE billing_ledger (user_id TEXT, amount_cents REAL, type TEXT);
    INSERT INTO billing_ledger VALUES ('1', 2.5, 'topup'), (1, 1, 'usage'), ('3', 9, 'usage');
    CREATE TABLE cache (x);";

fn export(dir: &Path, sql: &str) -> [PathBuf; 2] {
    let (dump, file) = (dir.join("dump.sql"), dir.join("file.sqlite"));
    fs::write(&dump, sql).expect("written");
    let connection = Connection::open(&file).expect("made");
    connection.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).expect("made");
    [dump, file]
}

#[test]
fn a_dump_and_a_file_say_the_same() {
    let dir = tempfile::tempdir().expect("made");
    for path in export(dir.path(), SQL) {
        let old = Old::open(Some(&path), &[]).expect("read");
        assert_eq!(old.users().expect("read"), ["1", "2"]);
        assert_eq!(old.unknown().tables, ["cache"]);
        assert_eq!(old.unknown().columns, ["Users.avatar"]);
        let rows = old.all(&BILLING_LEDGER, "1").expect("read");
        let amounts =
            rows.iter().map(|row| row.amount(Field::Amount, None).expect("an amount").expect("there").nearest());
        let amounts: Vec<i64> = amounts.map(|nano| nano.expect("fits").0).collect();
        assert_eq!(amounts, [25_000_000, 10_000_000], "an id is an id, whatever its type");
        assert_eq!(old.strays(&BILLING_LEDGER).expect("read"), 1);
        assert_eq!(old.count(&BILLING_LEDGER).expect("read"), 3);
        let kinds = old.kinds(&BILLING_LEDGER, Field::Kind, Field::Amount).expect("read");
        assert_eq!(kinds, [("topup".to_owned(), 1, 0), ("usage".to_owned(), 2, 0)]);
        assert!(old.sample(&BILLING_LEDGER, Field::Amount).expect("read").is_some());
        assert!(old.sample(&USAGE_RECORDS, Field::Cost).expect("read").is_none());
    }
}

#[test]
fn pages_come_in_order_and_each_row_once() {
    let dir = tempfile::tempdir().expect("made");
    let rows: String = (0..25).map(|at| format!("INSERT INTO usage_records VALUES ('{at}', 'u');")).collect();
    let sql = format!(
        "CREATE TABLE users (id TEXT); INSERT INTO users VALUES ('u');
         CREATE TABLE usage_records (id TEXT, user_id TEXT); {rows}"
    );
    let old = Old::open(Some(&export(dir.path(), &sql)[0]), &[]).expect("read");
    let (mut after, mut ids) = (i64::MIN, vec![]);
    loop {
        let page = old.rows(&USAGE_RECORDS, "u", (after, 10)).expect("read");
        let Some((last, _)) = page.last() else { break };
        after = *last;
        ids.extend(page.into_iter().map(|(_, row)| row.text(Field::Id).expect("an id")));
    }
    assert_eq!(ids, (0..25).map(|at| at.to_string()).collect::<Vec<_>>());
}

#[test]
fn entries_of_a_key_value_store_stand_for_rows() {
    let dir = tempfile::tempdir().expect("made");
    let (list, object) = (dir.path().join("list.json"), dir.path().join("object.json"));
    let entries = serde_json::json!([
        { "key": "user:u1", "value": { "email": "a@x" } },
        { "key": "apikey:00ff", "value": "{\"user_id\":\"u1\",\"scopes\":[\"read\"]}" },
        { "key": "session:u1:s1", "value": { "title": "T", "messages": [] } },
        { "key": "settings:u1:theme", "value": "dark" },
        { "key": "settings:u1", "value": "eyJhIjoxfQ==", "base64": true },
        { "key": "rate:1", "value": "5" },
        { "key": "rate:2", "value": "5" },
        { "key": "session:broken", "value": "text" },
        { "key": "session:token-1", "value": { "user_id": "u1", "csrf": "x" } },
        { "key": "user:u1:limits", "value": { "email": "no" } },
        { "key": "user:by-email", "value": { "u1": 1 } },
        { "key": "a-secret-without-a-colon", "value": "x" },
        { "key": "image:1", "value": "/w==", "base64": true },
    ]);
    fs::write(&list, entries.to_string()).expect("written");
    fs::write(&object, "{\"user:u2\": {\"email\": \"b@x\"}}").expect("written");
    let old = Old::open(None, &[list.clone(), object]).expect("read");
    assert_eq!(old.users().expect("read"), ["u1", "u2"]);
    assert_eq!(old.all(&USERS, "u1").expect("read")[0].text(Field::Email).as_deref(), Some("a@x"));
    assert_eq!(old.all(&API_KEYS, "u1").expect("read")[0].text(Field::Hash).as_deref(), Some("00ff"));
    assert_eq!(old.all(&CHAT_SESSIONS, "u1").expect("read")[0].text(Field::Id).as_deref(), Some("s1"));
    let settings = old.all(&USER_SETTINGS, "u1").expect("read");
    assert_eq!(settings[0].json(Field::Value), Some("dark".into()));
    assert_eq!(settings[1].json(Field::All), Some(serde_json::json!({ "a": 1 })));
    let entries = [("rate", 2), ("session", 2), ("user", 2), ("", 1), ("image", 1)];
    assert_eq!(old.unknown().entries, entries.map(|(name, count)| (name.to_owned(), count)));
    // Pages of entries, too.
    let first = old.rows(&USER_SETTINGS, "u1", (i64::MIN, 1)).expect("read");
    let second = old.rows(&USER_SETTINGS, "u1", (first[0].0, 5)).expect("read");
    assert_eq!((first.len(), second.len()), (1, 1));
    for (text, part) in [("[1]", "\"key\" and \"value\""), ("5", "neither a list"), ("{", "EOF")] {
        fs::write(&list, text).expect("written");
        let error = Old::open(None, std::slice::from_ref(&list)).expect_err(part).to_string();
        assert!(error.contains(part) && error.contains("list.json"), "{error}");
    }
}

#[test]
fn tables_of_every_kind_are_read_whole() {
    let dir = tempfile::tempdir().expect("made");
    let sql =
        "CREATE TABLE usage_records (id TEXT REFERENCES nowhere(x), user_id TEXT REFERENCES users(id), rowid TEXT);
        INSERT INTO usage_records VALUES ('1', 'u', NULL), ('2', 'u', 'x'), ('3', 'gone', 'y');
        CREATE TABLE api_keys (id TEXT PRIMARY KEY, user_id TEXT, key_hash TEXT) WITHOUT ROWID;
        INSERT INTO api_keys VALUES ('b', 'u', '2'), ('a', 'u', '1');
        CREATE TABLE users (id TEXT); INSERT INTO users VALUES ('u'), (NULL), (x'FF');
        CREATE TABLE \"old users\" (id);";
    for path in export(dir.path(), sql) {
        let old = Old::open(Some(&path), &[]).expect("read");
        assert_eq!(old.users().expect("read"), ["u"]);
        assert_eq!(old.strays(&USERS).expect("counted"), 2);
        assert_eq!(old.all(&USAGE_RECORDS, "u").expect("read").len(), 2);
        assert_eq!(old.strays(&USAGE_RECORDS).expect("counted"), 1);
        assert_eq!(old.all(&API_KEYS, "u").expect("read").len(), 2);
    }
    let path = dir.path().join("file.sqlite");
    fs::write(dir.path().join("file.sqlite-wal"), "x").expect("written");
    let error = Old::open(Some(&path), &[]).expect_err("a log").to_string();
    assert!(error.contains("wal_checkpoint"), "{error}");
}

#[test]
fn messages_belong_to_whose_session_it_is() {
    let dir = tempfile::tempdir().expect("made");
    let sql = "CREATE TABLE users (id TEXT); INSERT INTO users VALUES ('u'), ('v');
        CREATE TABLE chat_sessions (id TEXT, user_id TEXT);
        INSERT INTO chat_sessions VALUES ('1', 'u'), ('1', 'v'), ('2', 'u'), ('3', 'gone');
        CREATE TABLE chat_messages (session_id TEXT, content TEXT);
        INSERT INTO chat_messages VALUES ('1', 'a'), ('2', 'b'), ('3', 'c'), ('4', 'd');";
    let old = Old::open(Some(&export(dir.path(), sql)[0]), &[]).expect("read");
    assert_eq!(old.shared_sessions().expect("read"), HashSet::from(["1".to_owned()]));
    assert_eq!(old.strays(&CHAT_MESSAGES).expect("counted"), 2, "of one who is gone, and of none");
}

#[test]
fn what_is_no_export_is_named() {
    let dir = tempfile::tempdir().expect("made");
    let path = dir.path().join("x");
    for (text, part) in [
        ("", "nobody in the export"),
        ("CREATE TABLE users (id);", "nobody in the export"),
        ("CREATE TABLE users (id); CREATE TABLE api_keys (id);", "it has none of the columns user_id"),
        ("SELECT 1", "nobody in the export"),
        ("CREATE TABLE users (", "x:1: "),
    ] {
        fs::write(&path, text).expect("written");
        let error = Old::open(Some(&path), &[]).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = Old::open(Some(&dir.path().join("none")), &[]).expect_err("not there").to_string();
    assert!(error.contains("cannot read") && error.contains("none"), "{error}");
    fs::write(&path, b"SQLite format 3\0and then something else").expect("written");
    assert!(Old::open(Some(&path), &[]).expect_err("no database").to_string().contains("as a database"));
}
