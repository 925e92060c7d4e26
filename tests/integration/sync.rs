//! Sync between devices: folders that become the same, over a real tunnel.

use belay_client::sync::engine::Event;
use belay_client::sync::place::Problem;
use belay_protocol::item::{ItemKey, ItemKind};
use belay_protocol::message::RevisionState;
use belay_tests::relay::{PATIENCE, TestRelay};
use belay_tests::synced::{Synced, adapter, leftovers, noise, write_settled};
use serde_json::json;
use std::fs;

fn key(text: &str) -> ItemKey {
    text.parse().unwrap()
}

/// Rounds on all until nobody has anything to do.
async fn settle(devices: &[&Synced]) {
    for _ in 0..10 {
        let mut quiet = true;
        for device in devices {
            let report = device.sync_all().await;
            quiet &= report.total().pushed + report.total().pulled == 0;
        }
        if quiet {
            return;
        }
    }
    panic!("the devices do not come to rest");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_device_has_the_other_gets() {
    let relay = TestRelay::start("").await;
    let (a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    a.write("plan.md", "# Plan\n");
    a.write("notes/2026/idea ü.txt", "an idea");
    a.write("empty.md", "");
    a.write("large.pdf", noise(3 << 20, 1));
    a.write("text.log", "the same words again and again\n".repeat(5000));
    a.write("draft.skip", "is ignored");
    a.write(".hidden", "is not");
    let (weights, config) = adapter(3 << 20, 2);
    a.write_adapter("style/v1", &weights, &config);
    a.set(&json!({ "theme": "dark", "editor": { "font": 12, "list": [1, 2.5, null] } }));
    let report = a.sync_all().await;
    assert_eq!((report.total().pushed, report.total().pulled), (9, 0));
    let report = b.sync_all().await;
    assert_eq!((report.total().pushed, report.total().pulled), (0, 9));
    let mut wanted = a.documents();
    wanted.remove("draft.skip").unwrap();
    assert_eq!(b.documents(), wanted);
    assert_eq!(b.settings(), a.settings());
    let of = |device: &Synced| belay_tests::synced::files(device.config.adapters.as_ref().unwrap());
    assert_eq!(of(&a), of(&b));
    settle(&[&a, &b]).await;
    // Edits, a deletion and a rename go the other way.
    b.write("plan.md", "# Plan\n\n1. Go\n");
    fs::remove_file(b.document("empty.md")).unwrap();
    fs::rename(b.document("notes/2026/idea ü.txt"), b.document("idea.txt")).unwrap();
    b.set(&json!({ "editor": { "font": 14, "list": [1, 2.5, null] }, "new": true }));
    settle(&[&b, &a]).await;
    assert_eq!(a.read("plan.md").unwrap(), "# Plan\n\n1. Go\n");
    assert_eq!((a.read("empty.md"), a.read("notes/2026/idea ü.txt")), (None, None));
    assert!(!a.document("notes").exists(), "folders that are left empty go");
    assert_eq!(a.read("idea.txt").unwrap(), "an idea");
    assert_eq!(a.settings(), json!({ "editor": { "font": 14, "list": [1, 2.5, null] }, "new": true }));
    for device in [&a, &b] {
        assert_eq!(leftovers(device.config.knowledge.as_ref().unwrap()), Vec::<String>::new());
        assert_eq!(leftovers(device.config.adapters.as_ref().unwrap()), Vec::<String>::new());
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_of_two_devices_both_stay() {
    let relay = TestRelay::start("").await;
    let (a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    a.write("a.md", "one");
    a.write("gone.md", "one");
    a.set(&json!({ "theme": "light", "font": 1 }));
    settle(&[&a, &b]).await;
    a.write("a.md", "of a");
    b.write("a.md", "of b");
    a.set(&json!({ "theme": "dark", "font": 1 }));
    b.set(&json!({ "theme": "blue", "font": 2 }));
    fs::remove_file(a.document("gone.md")).unwrap();
    b.write("gone.md", "edited");
    a.sync_all().await;
    let (report, events) = b.sync().await;
    assert_eq!((report.total().conflicts, report.problems), (2, vec![]));
    let copies: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Conflict(kind, key, copy) => Some((*kind, key.clone(), copy.clone())),
            _ => None,
        })
        .collect();
    let copy = copies.iter().find_map(|(kind, _, copy)| (*kind == ItemKind::DOCUMENT).then(|| copy.clone()).flatten());
    let copy = copy.expect("a copy").to_string();
    assert!(copy.starts_with(&format!("a (conflict {} 20", b.name())) && copy.ends_with(").md"), "{copy}");
    assert!(copies.contains(&(ItemKind::SETTING, key("theme"), None)));
    settle(&[&a, &b]).await;
    for device in [&a, &b] {
        assert_eq!(device.read("a.md").unwrap(), "of a");
        assert_eq!(device.read(&copy).unwrap(), "of b");
        assert_eq!(device.read("gone.md").unwrap(), "edited", "an edit beats a deletion");
        assert_eq!(device.settings(), json!({ "theme": "dark", "font": 2 }));
    }
    // The other value of the setting can be had.
    let log = a.client.client.sync_log(ItemKind::SETTING, &key("theme"), PATIENCE).await.unwrap();
    let other = log.iter().find(|row| row.state == RevisionState::CONFLICT).expect("kept");
    assert_eq!(other.device.to_string(), b.name());
    let head = log.iter().find(|row| row.state == RevisionState::CURRENT).map(|row| row.revision);
    let client = &a.client.client;
    client.sync_restore((ItemKind::SETTING, &key("theme")), other.revision, head, PATIENCE).await.unwrap().unwrap();
    settle(&[&a, &b]).await;
    assert_eq!(b.settings()["theme"], "blue");
    // A deletion that meets an edit that came first.
    a.write("a.md", "again");
    a.sync_all().await;
    fs::remove_file(b.document("a.md")).unwrap();
    let (_, events) = b.sync().await;
    settle(&[&a, &b]).await;
    assert_eq!(b.read("a.md").unwrap(), "again", "{events:?}");
    // The conflict is settled by deleting the copy.
    fs::remove_file(a.document(&copy)).unwrap();
    settle(&[&a, &b]).await;
    assert_eq!(b.read(&copy), None);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_synced_is_said_and_the_rest_goes_on() {
    let relay = TestRelay::start("").await;
    let (mut a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    a.write("good.md", "good");
    a.write("what?.md", "a name that not all have");
    a.write("aux.md", "reserved");
    std::os::unix::fs::symlink("/etc/passwd", a.document("link.md")).unwrap();
    std::os::unix::fs::symlink("/etc", a.document("folder")).unwrap();
    a.write_adapter("pickle", b"\x80\x02}q\x00(X\x05\x00\x00\x00", "{}");
    let (weights, config) = adapter(100_000, 1);
    a.write_adapter("cut", &weights[..weights.len() - 1], &config);
    a.write_adapter("rank", &weights, &config.replace("\"r\":8", "\"r\":16"));
    a.write_adapter("fine", &weights, &config);
    let lonely = a.config.adapters.as_ref().unwrap().join("lonely/adapter_model.safetensors");
    write_settled(&lonely, &weights);
    write_settled(&a.config.adapters.as_ref().unwrap().join("old/pytorch_model.bin"), b"PK\x03\x04");
    let (report, _) = a.sync().await;
    let said = |part: &str, why: &str| {
        let fits = |(_, Problem { key, why: said }): &(ItemKind, Problem)| key.contains(part) && said.contains(why);
        assert!(report.problems.iter().any(fits), "{part}: {why} is missing in {:#?}", report.problems);
    };
    said("what?.md", "rename it, or ignore it");
    said("aux.md", "reserved on Windows");
    said("link.md", "links are not followed");
    said("folder", "links are not followed");
    said("cut", "the data has 99999 bytes");
    said("pickle", "can run code");
    said("rank", "of rank 8, the configuration says 16");
    said("lonely", "adapter_config.json is missing");
    said("pytorch_model.bin", "may be a pickle");
    assert_eq!(report.problems.len(), 9);
    b.sync_all().await;
    assert_eq!(b.documents().into_keys().collect::<Vec<_>>(), ["good.md"]);
    assert!(b.config.adapters.as_ref().unwrap().join("fine/adapter_config.json").exists());
    // Something that was synced and is out of sight now is not deleted.
    a.config.ignore = vec!["good*".into()];
    a.sync().await;
    b.sync_all().await;
    assert_eq!(b.read("good.md").unwrap(), "good");
    // A folder that is not there deletes nothing.
    fs::rename(a.config.knowledge.as_ref().unwrap(), a.home().join("elsewhere")).unwrap();
    fs::create_dir(a.config.knowledge.as_ref().unwrap()).unwrap();
    let (report, _) = a.sync().await;
    assert!(
        report.problems.iter().any(|(_, problem)| problem.why.contains("connect its disk")),
        "{:?}",
        report.problems
    );
    b.sync_all().await;
    assert_eq!(b.read("good.md").unwrap(), "good");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_being_written_waits() {
    let relay = TestRelay::start("").await;
    let (a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    fs::write(a.document("new.md"), "just now").unwrap();
    let (report, _) = a.sync().await;
    assert_eq!((report.total().pushed, report.total().unsettled), (0, 1), "it was written a moment ago");
    // One that looks old, but that somebody has open for writing.
    a.write("open.md", "half");
    let mut child = std::process::Command::new("sh");
    child.args(["-c", "exec 3>>\"$0\"; echo ready; read line"]).arg(a.document("open.md"));
    child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    write_settled(&a.document("new.md"), b"just now");
    let (report, _) = a.sync().await;
    assert_eq!((report.total().pushed, report.total().unsettled), (1, 1));
    drop(child.stdin.take());
    child.wait().unwrap();
    write_settled(&a.document("open.md"), b"whole");
    a.sync_all().await;
    b.sync_all().await;
    assert_eq!((b.read("new.md").unwrap(), b.read("open.md").unwrap()), ("just now".into(), "whole".into()));
    // What arrives does not replace what somebody is writing.
    a.write("new.md", "from a");
    a.sync_all().await;
    let mut child = std::process::Command::new("sh");
    child.args(["-c", "exec 3>>\"$0\"; echo ready; read line; echo more >&3"]).arg(b.document("new.md"));
    child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = child.spawn().unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let (report, _) = b.sync().await;
    assert_eq!((report.total().pulled, b.read("new.md").unwrap()), (0, "just now".into()));
    drop(child.stdin.take());
    child.wait().unwrap();
    write_settled(&b.document("new.md"), b"just now, and more");
    settle(&[&b, &a]).await;
    let documents = a.documents();
    assert_eq!(documents.len(), 3, "both stay: {:?}", documents.keys());
    assert_eq!(documents, b.documents());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_a_large_document_sends_little_and_the_same_again_nothing() {
    let relay = TestRelay::start("").await;
    let (a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    let mut content = noise(10 << 20, 5);
    a.write("large.bin", &content);
    settle(&[&a, &b]).await;
    let sent = async || a.client.client.tunnel(PATIENCE).await.unwrap().connection().traffic().bytes_sent;
    let received = async || b.client.client.tunnel(PATIENCE).await.unwrap().connection().traffic().bytes_received;
    content.insert(5 << 20, b'!');
    a.write("large.bin", &content);
    let before = sent().await;
    a.sync_all().await;
    let edit = sent().await - before;
    assert!(edit < 200 << 10, "an edit of a byte sent {edit} bytes");
    let before = received().await;
    b.sync_all().await;
    let edit = received().await - before;
    // The list of parts is what most of it is.
    assert!(edit < 200 << 10, "an edit of a byte received {edit} bytes");
    assert_eq!(b.documents(), a.documents());
    a.write("copy/of it.bin", &content);
    let before = sent().await;
    a.sync_all().await;
    let again = sent().await - before;
    assert!(again < 64 << 10, "the same content again sent {again} bytes");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_changes_nothing_and_a_lost_index_deletes_nothing() {
    let relay = TestRelay::start("").await;
    let (a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    a.write("a.md", "a");
    let planned = a.engine().round(true, &mut |_| {}).await.unwrap().planned;
    assert_eq!(planned, [(ItemKind::DOCUMENT, key("a.md"), belay_client::sync::reconcile::Action::Push)]);
    b.sync_all().await;
    assert!(b.documents().is_empty());
    a.sync_all().await;
    b.write("b.md", "b");
    settle(&[&b, &a]).await;
    fs::remove_file(a.home().join("sync.db")).unwrap();
    fs::remove_file(a.document("b.md")).unwrap();
    settle(&[&a, &b]).await;
    assert_eq!(a.documents(), b.documents());
    assert_eq!(b.documents().len(), 2, "without an index nothing is known to have been deleted");
    relay.stop().await;
}
