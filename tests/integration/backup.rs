//! Backups: taken while the relay works, proven, brought back by the rules.

use belay_protocol::message::Outcome;
use belay_tests::procs::{Belayd, Ran};
use belay_tests::relay::PATIENCE;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const CONFIG: &str = "[providers.demo]\nkind = \"demo\"\npace_ms = 1\n[models.demo]\nprovider = \"demo\"\n\
    context_tokens = 32000\nmax_output_tokens = 4096\nprice = { input = \"3\", output = \"15\" }\n[aliases]\nauto = \"demo\"\n\
    [limits]\nrequests_per_minute = 100000\n";

fn belay(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(belay_tests::procs::binary("belay"));
    command.env("BELAY_HOME", home).env_remove("RUST_LOG").args(args).stdin(Stdio::null());
    command
}

fn did(home: &Path, args: &[&str]) -> Value {
    let ran = belay_tests::procs::run(belay(home, &["--json"]).args(args)).unwrap();
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
    ran.stdout
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok())
        .unwrap_or_else(|| serde_json::from_str(&ran.stdout).unwrap_or(Value::Null))
}

fn join(relay: &Belayd, home: &Path, tenant: &str) {
    let invite = relay.run(&["invite", tenant]).unwrap()["invite"].as_str().unwrap().to_owned();
    did(home, &["join", &invite]);
}

fn code(ran: &Ran, wanted: i32, words: &str) {
    assert_eq!(ran.code, Some(wanted), "{} {}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
}

fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else if !path.ends_with("lock") {
            all.insert(path);
        }
    }
    all
}

/// Asks again and again until it is told to stop.
fn busy(home: &Path) -> Child {
    let ask = format!(
        "while :; do {:?} ask --max-tokens 5 hello > /dev/null || exit 1; done",
        belay_tests::procs::binary("belay")
    );
    Command::new("sh")
        .arg("-c")
        .arg(ask)
        .env("BELAY_HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_node_comes_back_with_all_that_it_had() {
    let mut relay = Belayd::start(CONFIG).unwrap();
    let homes = tempfile::tempdir().unwrap();
    let home = |name: &str| homes.path().join(name);
    for tenant in ["acme", "globex"] {
        relay.run(&["tenant", "create", tenant, "--credit", "5"]).unwrap();
        join(&relay, &home(tenant), tenant);
    }
    let ended = did(&home("acme"), &["ask", "--session", "plans", "--max-tokens", "20", "hello"]);
    assert_eq!(ended["end"]["outcome"].as_str().unwrap_or("complete"), Outcome::COMPLETE.name());
    let notes = home("notes");
    std::fs::create_dir_all(&notes).unwrap();
    std::fs::write(notes.join("large.txt"), "a long document of which no line is like another: ".repeat(20_000))
        .unwrap();
    did(&home("acme"), &["sync", "folders", "--knowledge", notes.to_str().unwrap()]);
    did(&home("acme"), &["sync", "--once"]);
    let dir = relay.dir().join("backup");
    let at = dir.to_str().unwrap().to_owned();

    // Taken while somebody works; everything is there, and proven.
    let mut working = busy(&home("globex"));
    let first = relay.run(&["backup", &at]).unwrap();
    assert_eq!((first["taken"]["databases"].as_u64(), first["has_master_key"].as_bool()), (Some(3), Some(true)));
    assert!(first["taken"]["pieces_copied"].as_u64().unwrap() > 0, "{first}");
    let proven = relay.run(&["verify-backup", &at]).unwrap();
    assert_eq!(proven["checked"]["problems"], serde_json::json!([]), "{proven}");
    assert_eq!(proven["checked"]["with_master_key"], true);
    assert_eq!(working.try_wait().unwrap(), None, "a request failed");
    working.kill().unwrap();
    working.wait().unwrap();

    // The next one copies only what has changed, and leaves nothing of the one before that it does not need.
    did(&home("globex"), &["ask", "--max-tokens", "5", "hello"]);
    let until = Instant::now() + PATIENCE;
    loop {
        let next = relay.run(&["backup", &at]).unwrap();
        assert_eq!(next["taken"]["pieces_copied"], 0, "{next}");
        // Central is written to by the audit log, which knows of every backup.
        if next["taken"]["copied"] == 1 {
            break;
        }
        assert!(Instant::now() < until, "what nobody writes to is copied again and again: {next}");
    }
    did(&home("globex"), &["ask", "--max-tokens", "5", "hello"]);
    let before = relay.run(&["backup", &at]).unwrap();
    assert!(before["taken"]["copied"].as_u64().unwrap() < 3, "{before}");
    std::fs::write(dir.join("README"), "not of the backup").unwrap();
    let last = relay.run(&["backup", &at]).unwrap();
    let kept = files(&dir);
    assert!(kept.contains(&dir.join("README")));
    assert_eq!(kept.iter().filter(|path| path.extension().is_some_and(|ext| ext == "db")).count(), 3, "{kept:?}");
    let tenants = relay.run(&["tenant", "list"]).unwrap();
    // Nothing of it lies in the state any more.
    assert!(files(&relay.dir().join("state")).iter().all(|path| !path.starts_with(relay.dir().join("state/copies"))));

    // A node that is there, or that runs, is not written over.
    code(&relay.command(&["restore", &at]).unwrap(), 77, "in use");
    relay.terminate().unwrap();
    code(&relay.command(&["restore", &at]).unwrap(), 77, "move it away");
    code(&relay.command(&["restore", &at, "--tenant", "acme"]).unwrap(), 77, "can be read");
    // One tenant's book is lost: that one comes back, and what is damaged is kept aside.
    let book = relay.dir().join("state/tenants/acme/tenant.db");
    std::fs::write(&book, "no database").unwrap();
    let one = relay.run(&["restore", &at, "--tenant", "acme"]).unwrap();
    assert_eq!(one["restored"][0]["tenant"], "acme", "{one}");
    assert!(files(book.parent().unwrap()).iter().any(|path| path.display().to_string().contains("damaged-")));
    relay.restart().unwrap();
    assert_eq!(relay.run(&["tenant", "list"]).unwrap(), tenants);
    let checked = relay.command(&["ledger", "verify"]).unwrap();
    assert_eq!(checked.code, Some(0), "{}", checked.stdout);
    relay.terminate().unwrap();

    // The whole node is lost.
    std::fs::remove_dir_all(relay.dir().join("state")).unwrap();
    let back = relay.run(&["restore", &at]).unwrap();
    assert_eq!((back["restored"].as_array().map(Vec::len), &back["made_ms"]), (Some(2), &last["made_ms"]));
    relay.restart().unwrap();
    assert_eq!(relay.run(&["tenant", "list"]).unwrap(), tenants);
    relay.run(&["ledger", "verify"]).unwrap();
    // A book that is lost with what was charged since the backup comes back without those requests, and without that money.
    did(&home("acme"), &["ask", "--max-tokens", "20", "a later one"]);
    let balance = |relay: &Belayd| {
        let all = relay.run(&["tenant", "list"]).unwrap();
        all.as_array().unwrap().iter().find(|one| one["id"] == "acme").unwrap()["balance_nano_usd"].as_i64().unwrap()
    };
    let left = balance(&relay);
    relay.terminate().unwrap();
    std::fs::write(&book, "no database").unwrap();
    let one = relay.run(&["restore", &at, "--tenant", "acme"]).unwrap();
    assert_eq!(one["restored"][0]["lost"]["requests"], 1, "{one}");
    relay.restart().unwrap();
    assert_eq!(balance(&relay), left);
    let checked = relay.command(&["ledger", "verify"]).unwrap();
    assert_eq!(checked.code, Some(0), "{}", checked.stdout);
    // Devices need no invite, sessions and documents are there, and money goes on.
    did(&home("acme"), &["ask", "--session", "plans", "--max-tokens", "20", "and again"]);
    let shown = did(&home("acme"), &["sessions", "show", "plans"]).to_string();
    assert!(shown.contains("hello") && shown.contains("and again"), "{shown}");
    let elsewhere = home("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    join(&relay, &home("second"), "acme");
    did(&home("second"), &["sync", "folders", "--knowledge", elsewhere.to_str().unwrap()]);
    did(&home("second"), &["sync", "--once"]);
    assert_eq!(std::fs::read(elsewhere.join("large.txt")).unwrap(), std::fs::read(notes.join("large.txt")).unwrap());
    // The first one's folder is what it was, too.
    did(&home("acme"), &["sync", "--once"]);
    assert!(notes.join("large.txt").exists());
    relay.run(&["ledger", "verify"]).unwrap();
    assert_eq!(relay.run(&["usage"]).unwrap().as_array().map(Vec::len), Some(2));
}

#[test]
fn what_is_wrong_with_a_backup_is_found() {
    let mut relay = Belayd::start(CONFIG).unwrap();
    relay.run(&["tenant", "create", "acme", "--credit", "5"]).unwrap();
    let homes = tempfile::tempdir().unwrap();
    join(&relay, homes.path(), "acme");
    let notes = tempfile::tempdir().unwrap();
    std::fs::write(notes.path().join("large.txt"), (0..40_000).map(|n| format!("{n} ")).collect::<String>()).unwrap();
    did(homes.path(), &["sync", "folders", "--knowledge", notes.path().to_str().unwrap()]);
    did(homes.path(), &["sync", "--once"]);
    let dir = relay.dir().join("backup");
    let at = dir.to_str().unwrap().to_owned();
    relay.terminate().unwrap();
    // A relay that does not run has its files copied by the command itself.
    relay.run(&["backup", &at]).unwrap();
    assert!(files(&dir).iter().all(|path| {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
        mode & 0o077 == 0
    }));
    let whole: Vec<(PathBuf, Vec<u8>)> =
        files(&dir).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    assert!(whole.iter().any(|(path, _)| path.display().to_string().contains("blobs/")), "{whole:?}");
    let verify = |relay: &Belayd| relay.command(&["verify-backup", &at]).unwrap();
    code(&verify(&relay), 0, "");
    for (path, bytes) in &whole {
        // A byte in the middle, half of it, and nothing.
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        for change in [Some(flipped), Some(bytes[..bytes.len() / 2].to_vec()), None] {
            match &change {
                Some(change) => std::fs::write(path, change).unwrap(),
                None => std::fs::remove_file(path).unwrap(),
            }
            let ran = verify(&relay);
            // The manifest's own bytes may change without changing what they say; then all else is as it was.
            if path.ends_with("backup.json") && change.is_some_and(|change| change.len() == bytes.len()) {
                assert!(matches!(ran.code, Some(0 | 1)), "{}", ran.stderr);
            } else {
                assert_eq!(ran.code, Some(1), "{path:?}: {} {}", ran.stdout, ran.stderr);
            }
            std::fs::write(path, bytes).unwrap();
        }
    }
    code(&verify(&relay), 0, "");
    // One that would write elsewhere is none.
    let text = std::fs::read_to_string(dir.join("backup.json")).unwrap();
    let piece = text
        .lines()
        .map(|line| line.trim().trim_matches([',', '"']))
        .find(|line| line.len() > 64 && line.contains('-'))
        .unwrap();
    for (from, to) in [(piece, "../../../../elsewhere"), ("endpoint.keys", "../elsewhere"), ("central-", "../central-")]
    {
        std::fs::write(dir.join("backup.json"), text.replacen(from, to, 1)).unwrap();
        let ran = verify(&relay);
        assert!(
            ran.code == Some(1) && ran.stderr.contains("no file of a backup"),
            "{to}: {} {}",
            ran.stdout,
            ran.stderr
        );
    }
    std::fs::write(dir.join("backup.json"), text).unwrap();
    // A first backup that was broken off before it was named is done again in the same place.
    let broken = relay.dir().join("broken");
    std::fs::create_dir_all(broken.join("tenants/acme")).unwrap();
    for left in ["central-1.db", "tenants/acme/book-1.db"] {
        std::fs::write(broken.join(left), "half").unwrap();
    }
    let into = broken.to_str().unwrap();
    relay.run(&["backup", into]).unwrap();
    relay.run(&["verify-backup", into]).unwrap();
    assert!(!broken.join("central-1.db").exists() && !broken.join("tenants/acme/book-1.db").exists());

    // What has rotted in a backup is copied anew by the next one.
    let (copied, bytes) = whole.iter().find(|(path, _)| path.display().to_string().contains("/book-")).unwrap();
    std::fs::write(copied, &bytes[..bytes.len() / 2]).unwrap();
    code(&verify(&relay), 1, "");
    relay.run(&["backup", &at]).unwrap();
    code(&verify(&relay), 0, "");
    let whole: Vec<(PathBuf, Vec<u8>)> =
        files(&dir).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();

    // A book that is lost does not take the place of its copy, nor does one that was made in its place.
    let state = relay.dir().join("state");
    let book = state.join("tenants/acme/tenant.db");
    let (aside, away) = (book.with_extension("away"), relay.dir().join("away"));
    std::fs::rename(&book, &aside).unwrap();
    assert_ne!(relay.command(&["backup", &at]).unwrap().code, Some(0));
    code(&verify(&relay), 0, "");
    relay.restart().unwrap();
    let listed = relay.run(&["tenant", "list"]).unwrap();
    let problem = listed[0]["problem"].as_str().unwrap_or_default();
    assert!(problem.contains("restore --tenant"), "a lost book is not made anew: {listed}");
    assert!(!book.exists());
    relay.terminate().unwrap();
    std::fs::rename(&aside, &book).unwrap();
    std::fs::rename(state.join("tenants/acme"), &away).unwrap();
    relay.restart().unwrap();
    relay.run(&["tenant", "list"]).unwrap();
    code(&relay.command(&["backup", &at]).unwrap(), 77, "come less far");
    code(&verify(&relay), 0, "");
    relay.terminate().unwrap();
    relay.run(&["restore", &at, "--tenant", "acme"]).unwrap();
    std::fs::remove_dir_all(state.join("tenants/acme")).unwrap();
    std::fs::rename(&away, state.join("tenants/acme")).unwrap();

    // Where other things lie, nothing is taken away.
    let other = relay.dir().join("other");
    std::fs::create_dir_all(other.join("blobs")).unwrap();
    std::fs::write(other.join("blobs/precious"), "precious").unwrap();
    code(&relay.command(&["backup", other.to_str().unwrap()]).unwrap(), 77, "not empty");
    for inside in [relay.dir().to_owned(), state.clone(), state.join("backup")] {
        code(&relay.command(&["backup", inside.to_str().unwrap()]).unwrap(), 77, "must not lie in each other");
    }
    assert!(other.join("blobs/precious").exists());
    // Books without central are a state all the same.
    std::fs::remove_file(state.join("central.db")).unwrap();
    code(&relay.command(&["restore", &at]).unwrap(), 77, "move it away");

    // A damaged one is not brought back.
    std::fs::remove_dir_all(relay.dir().join("state")).unwrap();
    let (path, bytes) = whole.iter().find(|(path, _)| path.display().to_string().contains("blobs/")).unwrap();
    std::fs::write(path, "damaged").unwrap();
    code(&relay.command(&["restore", &at]).unwrap(), 77, "damaged");
    std::fs::write(path, bytes).unwrap();
    assert!(!relay.dir().join("state/central.db").exists());
    code(&relay.command(&["restore", &at]).unwrap(), 0, "");
    code(&relay.command(&["verify-backup", "nowhere"]).unwrap(), 1, "no backup");
}
