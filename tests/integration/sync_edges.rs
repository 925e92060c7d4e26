//! What goes wrong around synced folders: another folder in their place, a process that died, a damaged relay.

use belay_client::state::StateDir;
use belay_client::sync::config::SyncConfig;
use belay_client::sync::index::Index;
use belay_client::sync::place::Problem;
use belay_protocol::item::ItemKind;
use belay_tests::relay::TestRelay;
use belay_tests::synced::{Synced, leftovers, noise, write_settled};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn told<'a>(problems: &'a [(ItemKind, Problem)], key: &str) -> &'a str {
    let found = problems.iter().find(|(_, problem)| problem.key == key);
    &found.unwrap_or_else(|| panic!("nothing is said of {key}: {problems:?}")).1.why
}

#[tokio::test(flavor = "multi_thread")]
async fn another_folder_in_its_place_deletes_nothing() {
    let relay = TestRelay::start("").await;
    let (a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    a.write("a.md", "a");
    a.sync_all().await;
    b.sync_all().await;
    // Another synced folder, as another disk would be at the same place.
    let other = Synced::enrol(&relay).await;
    fs::rename(b.config.knowledge.as_ref().unwrap(), b.home().join("aside")).unwrap();
    fs::rename(other.config.knowledge.as_ref().unwrap(), b.config.knowledge.as_ref().unwrap()).unwrap();
    let (report, _) = b.sync().await;
    assert!(told(&report.problems, "").contains("is not the folder that was set up"));
    a.sync_all().await;
    assert_eq!(a.read("a.md").unwrap(), "a");
    relay.stop().await;
}

#[test]
fn places_may_not_lie_in_one_another_nor_where_the_key_is() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path().join("home"));
    fs::create_dir_all(state.path()).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
    let check = |knowledge: &str, adapters: &str| {
        let mut config = SyncConfig::default();
        config.knowledge = Some(dir.path().join(knowledge));
        config.adapters = Some(dir.path().join(adapters));
        config.check(&state).map_err(|error| error.to_string())
    };
    assert_eq!(check("notes", "adapters"), Ok(()));
    for (knowledge, adapters) in [
        ("notes", "notes/adapters"),
        ("home", "a"),
        ("home/notes", "a"),
        ("link/home", "a"),
        ("link", "a"),
        ("a/../home", "b"),
    ] {
        let why = check(knowledge, adapters).expect_err(knowledge);
        assert!(why.contains("lie in one another"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_becomes_a_folder_and_back_and_modes_stay() {
    let relay = TestRelay::start("").await;
    let (a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    a.write("thing", "a file");
    a.write("run.sh", "#!/bin/sh\n");
    a.sync_all().await;
    b.sync_all().await;
    fs::set_permissions(b.document("run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::remove_file(a.document("thing")).unwrap();
    a.write("thing/in.md", "a folder");
    a.write("run.sh", "#!/bin/sh\necho\n");
    a.sync_all().await;
    b.sync_all().await;
    assert_eq!(b.read("thing/in.md").unwrap(), "a folder");
    let mode = fs::metadata(b.document("run.sh")).unwrap().permissions().mode();
    assert_eq!((b.read("run.sh").unwrap().len(), mode & 0o777), (15, 0o750));
    fs::remove_dir_all(b.document("thing")).unwrap();
    b.write("thing", "a file again");
    b.sync_all().await;
    a.sync_all().await;
    assert_eq!(a.documents(), b.documents());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_concerns_its_item_alone() {
    let relay = TestRelay::start("").await;
    let (a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    for (number, name) in ["first.bin", "second.bin"].iter().enumerate() {
        a.write(name, noise(60_000, number as u64));
    }
    a.sync_all().await;
    let blobs = || fs::read_dir(relay.state().join("tenants/acme/blobs")).unwrap();
    let largest =
        blobs().map(|file| file.unwrap().path()).max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    fs::write(&largest, "something else").unwrap();
    a.write("third.md", "third");
    a.sync_all().await;
    b.write("of b.md", "b");
    let (report, _) = b.sync().await;
    assert_eq!((report.problems.len(), report.total().pushed, report.total().pulled), (1, 1, 2));
    assert!(report.problems[0].1.why.contains("gone or damaged at the relay"), "{:?}", report.problems);
    fs::remove_file(&largest).unwrap();
    let (report, _) = b.sync().await;
    assert!(report.problems[0].1.why.contains("gone or damaged at the relay"), "{:?}", report.problems);
    assert_eq!(a.sync_all().await.total().pulled, 1);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_that_died_had_moved_away_comes_back() {
    let relay = TestRelay::start("").await;
    let a = Synced::enrol(&relay).await;
    a.write("sub/a.md", "known");
    a.sync_all().await;
    let own = a.config.knowledge.as_ref().unwrap().join(".belay");
    // Killed between an exchange and its note: the old content, which is known; an edit, which is not; and one that was
    // never in its place.
    write_settled(&own.join("old-1-1~sub%2Fa.md"), b"known");
    write_settled(&own.join("old-1-2~sub%2Fa.md"), b"an edit");
    write_settled(&own.join("new-1-3"), b"half");
    let (report, _) = a.sync().await;
    assert!(told(&report.problems, "sub/a.md").contains("what it was is now sub/a (conflict recovered).md"));
    assert_eq!(a.read("sub/a (conflict recovered).md").unwrap(), "an edit");
    assert_eq!(leftovers(a.config.knowledge.as_ref().unwrap()), Vec::<String>::new());
    assert_eq!((a.documents().len(), a.sync_all().await.total().pushed), (2, 0));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_arrive_as_they_were_written() {
    let relay = TestRelay::start("").await;
    let (a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    let text = r#"{ "files:*": 123456789012345678901234567890, "b": { "z": 1.0, "a": "x  \" y" }, "c": [1, 2] }"#;
    write_settled(a.config.settings.as_ref().unwrap(), text.as_bytes());
    a.sync_all().await;
    b.sync_all().await;
    let there = fs::read_to_string(b.config.settings.as_ref().unwrap()).unwrap();
    for part in [r#""files:*": 123456789012345678901234567890"#, r#""b": {"z":1.0,"a":"x  \" y"}"#, r#""c": [1,2]"#] {
        assert!(there.contains(part), "{part} is not in {there}");
    }
    // Blanks are no change; what makes no sense is said, and nothing is deleted.
    write_settled(b.config.settings.as_ref().unwrap(), text.replace(' ', "").replace("x\\\"y", "x  \\\" y").as_bytes());
    assert_eq!(b.sync_all().await.total().pushed, 0);
    write_settled(b.config.settings.as_ref().unwrap(), b"{ \"b\": ");
    let (report, _) = b.sync().await;
    assert!(told(&report.problems, "").contains("is not whole, or no JSON object"));
    fs::remove_file(b.config.settings.as_ref().unwrap()).unwrap();
    let (report, _) = b.sync().await;
    assert!(told(&report.problems, "").contains("to delete all settings, let it be {}"));
    assert_eq!(a.sync_all().await.total().pulled, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_only_touched_is_read_once_more_and_not_again() {
    let relay = TestRelay::start("").await;
    let a = Synced::enrol(&relay).await;
    a.write("a.md", "a");
    a.sync_all().await;
    let stamp = || {
        let index = Index::open(&a.home().join("sync.db")).unwrap();
        index.entries().unwrap().into_values().next().unwrap().stamp.unwrap()
    };
    let before = stamp();
    a.write("a.md", "a");
    assert_eq!(a.sync_all().await.total().pushed, 0);
    let after = stamp();
    assert_ne!(before, after, "what it looks like now is noted");
    a.sync_all().await;
    assert_eq!(stamp(), after);
    relay.stop().await;
}

/// Where names that differ in case are the same file, a rename of case alone leaves the old name, too. Two names of one
/// file are made by hand here, for want of a file system that ignores case.
#[tokio::test(flavor = "multi_thread")]
async fn a_rename_of_case_alone_is_one() {
    let relay = TestRelay::start("").await;
    let (mut a, b) = (Synced::enrol(&relay).await, Synced::enrol(&relay).await);
    a.write("Plan.md", "plan");
    a.sync_all().await;
    b.sync_all().await;
    fs::rename(a.document("Plan.md"), a.document("plan.md")).unwrap();
    fs::hard_link(a.document("plan.md"), a.document("Plan.md")).unwrap();
    a.config.ignore = vec!["Plan.md".into()];
    a.sync_all().await;
    b.sync_all().await;
    assert_eq!(b.documents().into_keys().collect::<Vec<_>>(), ["plan.md"]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settings_file_has_its_bounds() {
    let relay = TestRelay::start("").await;
    let a = Synced::enrol(&relay).await;
    a.set(&serde_json::json!({ "small": 1, "large": "x".repeat(33 << 10), "deep/../key": 2 }));
    let (report, _) = a.sync().await;
    assert_eq!((report.total().pushed, report.problems.len()), (1, 2));
    assert!(told(&report.problems, "large").contains("at most 32768 are synced"));
    assert!(told(&report.problems, "deep/../key").contains("leads out"));
    a.set(&serde_json::json!({ "large": "x".repeat(16 << 20) }));
    let (report, _) = a.sync().await;
    assert!(told(&report.problems, "").contains("has more than 16777216 bytes"));
    relay.stop().await;
}
