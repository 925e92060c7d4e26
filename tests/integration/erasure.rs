//! A tenant asks what is known of it, and then to be forgotten.

use crate::programs::{belay, belayd, demo_config, exits, one_json, run};
use belay_tests::procs::Belayd;
use serde_json::Value;
use std::path::Path;

const WORD: &str = "Ptarmigan";

fn did(home: &Path, args: &[&str]) -> String {
    let ran = run(&mut belay(home, args));
    exits(&ran, 0);
    ran.stdout
}

/// Files below a directory in which a text stands.
fn with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(with(&path, text));
        } else if std::fs::read(&path).unwrap_or_default().windows(text.len()).any(|bytes| bytes == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn everything_of_a_tenant_is_handed_over_and_then_its_words_are_gone() {
    let config = demo_config(1).replacen("[listen]\nquic = \"127.0.0.1:0\"\n", "", 1);
    let mut relay = Belayd::start(&config).unwrap();
    let homes = tempfile::tempdir().unwrap();
    let home = |name: &str| homes.path().join(name);
    for tenant in ["acme", "globex"] {
        relay.run(&["tenant", "create", tenant, "--credit", "5"]).unwrap();
        let invite = relay.run(&["invite", tenant]).unwrap()["invite"].as_str().unwrap().to_owned();
        did(&home(tenant), &["join", &invite, "--label", WORD]);
        did(&home(tenant), &["ask", "--session", "birds", "--max-tokens", "30", &format!("What does a {WORD} eat?")]);
        // Of either kind: in the database, and in files beside it.
        let notes = home(&format!("{tenant}-notes"));
        std::fs::create_dir_all(notes.join("deep")).unwrap();
        std::fs::write(notes.join("small.md"), format!("a small note on the {WORD}")).unwrap();
        std::fs::write(notes.join("deep/large.txt"), format!("{WORD} {tenant}\n").repeat(20_000)).unwrap();
        std::fs::create_dir_all(home(&format!("{tenant}-settings"))).unwrap();
        let settings = home(&format!("{tenant}-settings")).join("settings.json");
        std::fs::write(&settings, format!("{{\"bird\": \"{WORD}\"}}")).unwrap();
        did(
            &home(tenant),
            &["sync", "folders", "--knowledge", notes.to_str().unwrap(), "--settings", settings.to_str().unwrap()],
        );
        did(&home(tenant), &["sync", "--once"]);
    }
    relay.run(&["tenant", "label", "acme", &format!("{WORD} Inc")]).unwrap();
    let key = relay.run(&["key", "create", "acme", "--label", WORD]).unwrap();
    assert!(key["secret"].is_string());

    let dir = homes.path().join("handed-over");
    let at = dir.to_str().unwrap();
    let exported = relay.run(&["tenant", "export", "acme", at]).unwrap();
    assert_eq!(exported["exported"]["sessions"], 1, "{exported}");
    assert_eq!(exported["exported"]["items"], 3, "{exported}");
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(read("documents/small.md"), format!("a small note on the {WORD}"));
    assert_eq!(read("documents/deep/large.txt"), format!("{WORD} acme\n").repeat(20_000));
    assert_eq!(one_json(&read("settings.json"))["bird"], WORD);
    let session = one_json(&read("sessions/000001.json"));
    assert_eq!(session["said"][0]["text"].as_str(), Some(&*format!("What does a {WORD} eat?")));
    assert_eq!(session["said"].as_array().unwrap().len(), 2);
    assert_eq!(one_json(&read("tenant.json"))["label"].as_str(), Some(&*format!("{WORD} Inc")));
    assert_eq!(one_json(&read("devices.json"))[0]["label"], WORD);
    let book: Vec<Value> = read("book.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(book.len() as u64 == exported["exported"]["entries"].as_u64().unwrap() && book.len() > 2, "{book:?}");
    assert!(read("audit.jsonl").contains("tenant.create") && read("usage.json").contains("cost"));
    assert!(with(&dir, "globex").is_empty());
    assert_eq!(std::fs::read_dir(relay.state().join("copies")).unwrap().count(), 0, "copies are taken away");
    let again = relay.command(&["tenant", "export", "acme", at]).unwrap();
    exits(&again, 77);
    assert!(again.stderr.contains("is not empty"), "{}", again.stderr);

    // Not by a slip of the finger; and then for ever.
    let slip = relay.command(&["tenant", "erase", "acme", "--confirm", "globex"]).unwrap();
    exits(&slip, 77);
    let erased = relay.run(&["tenant", "erase", "acme", "--confirm", "acme"]).unwrap();
    assert_eq!((&erased["sessions"], &erased["messages"]), (&1.into(), &2.into()), "{erased}");
    relay.run(&["tenant", "erase", "acme", "--confirm", "acme"]).unwrap();
    let off = relay.command(&["tenant", "suspend", "acme", "--off"]).unwrap();
    exits(&off, 77);
    assert!(off.stderr.contains("was erased"), "{}", off.stderr);
    for again in [
        &["tenant", "label", "acme", "Back"][..],
        &["tenant", "credit", "acme", "5"],
        &["tenant", "grant", "acme", "5"],
        &["tenant", "terms", "acme", "--tier", "free"],
        &["invite", "acme"],
        &["key", "create", "acme"],
        &["budget", "set", "acme", "--month", "5"],
    ] {
        let ran = relay.command(again).unwrap();
        exits(&ran, 77);
        assert!(ran.stderr.contains("was erased"), "{again:?}: {}", ran.stderr);
    }
    relay.run(&["tenant", "suspend", "acme"]).unwrap();
    let ran = run(&mut belay(&home("acme"), &["ask", "hello"]));
    exits(&ran, 77);
    let devices = relay.run(&["device", "list", "--tenant", "acme"]).unwrap();
    assert_eq!((devices[0]["label"].as_str(), devices[0]["revoked_ms"].is_u64()), (Some(""), true), "{devices}");
    // The book is whole, and a neighbour has everything.
    let verified = relay.run(&["ledger", "verify"]).unwrap();
    for book in verified.as_array().unwrap() {
        assert_eq!(book["problems"], serde_json::json!([]), "{book}");
    }
    assert!(did(&home("globex"), &["sessions", "export", "birds"]).contains(WORD));
    did(&home("globex"), &["ask", "--session", "birds", "--max-tokens", "5", "And then?"]);
    let audit = relay.command(&["audit"]).unwrap().stdout;
    assert!(audit.contains("tenant.erase") && audit.contains("tenant.export"), "{audit}");
    assert!(!relay.command(&["audit"]).unwrap().stdout.contains(&format!("{WORD} Inc")), "the log has no labels");
    relay.terminate().unwrap();
    // In no file of it is a word left; what a computer is called stands in its number, as the book has it.
    let left = with(&relay.state().join("tenants/acme"), WORD);
    assert_eq!(left, Vec::<String>::new());
    let central = std::fs::read(relay.state().join("central.db")).unwrap();
    let label = format!("{WORD} Inc");
    assert!(!central.windows(label.len()).any(|bytes| bytes == label.as_bytes()), "central still has its label");
    assert!(!with(&relay.state().join("tenants/globex"), WORD).is_empty(), "what is searched for can be found");
    // Also while the relay does not run.
    let other = homes.path().join("other");
    let ran = run(&mut belayd(&relay.config_path(), &["tenant", "export", "globex", other.to_str().unwrap()]));
    exits(&ran, 0);
    assert!(ran.stdout.contains("globex: entries of its book"), "{}", ran.stdout);
}
