//! `belay sync` as its users have it.

use crate::programs::{DEADLINE, Running, Site, belay, exits, one_json, run};
use belay_tests::fault::{Fault, scaled};
use belay_tests::python::require_all;
use belay_tests::synced::{adapter, files, leftovers, noise, write_settled};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// A joined computer with a folder of documents, one of adapters, and settings.
struct Computer {
    home: PathBuf,
    root: PathBuf,
}

impl Computer {
    fn join(site: &Site, name: &str) -> Self {
        let home = site.join(name, "acme");
        let root = site.home(&format!("{name}-files"));
        let computer = Self { home, root };
        let (knowledge, adapters, settings) =
            (computer.at("notes"), computer.at("adapters"), computer.at("config/s.json"));
        let told = computer.text(&[
            "folders",
            "--knowledge",
            knowledge.to_str().unwrap(),
            "--adapters",
            adapters.to_str().unwrap(),
            "--settings",
            settings.to_str().unwrap(),
        ]);
        assert!(told.ends_with("to sync them: belay sync\n"), "{told}");
        computer
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn write(&self, key: &str, content: impl AsRef<[u8]>) {
        write_settled(&self.at("notes").join(key), content.as_ref());
    }

    fn read(&self, key: &str) -> Option<String> {
        fs::read_to_string(self.at("notes").join(key)).ok()
    }

    fn sync(&self, args: &[&str]) -> Command {
        belay(&self.home, &[&["sync"], args].concat())
    }

    #[track_caller]
    fn text(&self, args: &[&str]) -> String {
        let ran = run(&mut self.sync(args));
        exits(&ran, 0);
        assert_eq!(ran.stderr, "", "{args:?}");
        ran.stdout
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let ran = run(self.sync(args).arg("--json"));
        exits(&ran, 0);
        one_json(&ran.stdout)
    }
}

#[track_caller]
fn soon(what: &str, mut came: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !came() {
        assert!(Instant::now() < deadline, "{what} did not come true in time");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn folders_are_set_up_synced_shown_and_restored() {
    let site = Site::start(1);
    let none = site.join("none", "acme");
    let ran = run(&mut belay(&none, &["sync"]));
    exits(&ran, 2);
    assert!(ran.stderr.contains("nothing is set up to be synced"), "{}", ran.stderr);
    let (a, b) = (Computer::join(&site, "laptop"), Computer::join(&site, "desk"));
    a.write("plan.md", "one");
    a.write("sub/idea.md", "idea");
    let (weights, config) = adapter(200_000, 1);
    write_settled(&a.at("adapters/style/adapter_model.safetensors"), &weights);
    write_settled(&a.at("adapters/style/adapter_config.json"), config.as_bytes());
    write_settled(&a.at("config/s.json"), br#"{"theme":"dark"}"#);
    let planned = a.text(&["--once", "--dry-run"]);
    assert_eq!(planned, "would send: theme\nwould send: plan.md\nwould send: sub/idea.md\nwould send: style\n");
    let sent = a.text(&["--once"]);
    assert!(sent.ends_with("4 sent, 0 received\n"), "{sent}");
    assert!(sent.contains("sent      sub/idea.md\n"), "{sent}");
    assert_eq!(a.text(&["--once"]), "both sides are the same\n");
    let received = run(b.sync(&["--once"]).arg("--json"));
    exits(&received, 0);
    let lines: Vec<Value> = received.stdout.lines().map(one_json).collect();
    assert_eq!(lines.last().unwrap()["totals"]["received"], 4);
    assert!(lines.contains(&json!({ "event": "done", "kind": "document", "item": "plan.md", "action": "receive" })));
    assert_eq!((b.read("plan.md").unwrap(), b.read("sub/idea.md").unwrap()), ("one".into(), "idea".into()));
    let status = b.json(&["status"]);
    let kinds = status["kinds"].as_array().unwrap();
    let figures: Vec<_> =
        kinds.iter().map(|kind| (kind["kind"].as_str().unwrap(), kind["items"].as_u64().unwrap())).collect();
    assert_eq!(figures, [("setting", 1), ("document", 2), ("adapter", 1)]);
    assert!(kinds.iter().all(|kind| kind["last_pulled_ms"].as_u64().unwrap() > 0 && kind["pending"] == 0));
    assert_eq!(status["quota_bytes"], 10_u64 << 30);
    b.write("plan.md", "two");
    b.write("more.md", "more");
    assert_eq!(b.json(&["status"])["kinds"][1]["pending"], 2);
    let table = b.text(&["status"]);
    let header = "KIND      ITEMS  SIZE  ";
    assert!(
        table.starts_with("KIND") && table.contains("PENDING") && table.contains("of 10.00 GiB"),
        "{header}{table}"
    );
    b.text(&["--once"]);
    // What it was, and back to it.
    let log = b.json(&["log", "plan.md"]);
    assert_eq!(log.as_array().unwrap().len(), 2);
    assert!(log[0]["device"].as_str().unwrap().starts_with("desk-"), "{log}");
    assert_eq!((&log[0]["state"], &log[1]["state"]), (&json!("current"), &json!("replaced")));
    assert!(b.text(&["log", "plan.md"]).starts_with("REVISION      TIME"), "{}", b.text(&["log", "plan.md"]));
    let told = b.text(&["restore", "plan.md"]);
    assert!(told.starts_with("plan.md is again what it was in "), "{told}");
    b.text(&["--once"]);
    assert_eq!(b.read("plan.md").unwrap(), "one");
    let second = log[0]["revision"].as_str().unwrap();
    b.text(&["restore", "plan.md", "--to", &second[..8]]);
    b.text(&["--once"]);
    assert_eq!(b.read("plan.md").unwrap(), "two");
    for (args, code, part) in [
        (&["restore", "plan.md", "--to", "zz"][..], 2, "no earlier revision of plan.md begins with zz"),
        (&["log", "never.md"], 77, "there is no such item"),
        (&["log", "../x"], 2, "leads out of its folder"),
        (&["--once", "status"], 2, "for belay sync itself"),
        (&["lock", "x", "--", "no-such-program"], 1, "cannot run no-such-program"),
        (&["lock", "x", "--", "false"], 1, "false failed"),
        (&["lock", "x", "--", "sh", "-c", "exit 42"], 42, "sh failed"),
        (&["lock", "x", "--", "sh", "-c", "kill -TERM $$"], 143, "sh failed"),
    ] {
        let ran = run(&mut b.sync(args));
        exits(&ran, code);
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    let locked = run(&mut a.sync(&["lock", "index", "--", "sh", "-c", "echo fence $BELAY_FENCE"]));
    exits(&locked, 0);
    assert!(locked.stdout.starts_with("fence "), "{}", locked.stdout);
    // Something that stands in the way is said, and the code says so, too.
    a.write("what?.md", "x");
    let ran = run(&mut a.sync(&["--once"]));
    exits(&ran, 1);
    assert!(ran.stdout.contains("problem   what?.md: it has one of"), "{}", ran.stdout);
    assert!(ran.stderr.contains("1 items were not synced"), "{}", ran.stderr);
    let told = a.text(&["folders", "--remove", "adapters", "--ignore", "what*"]);
    assert!(told.contains("adapters   -") && told.contains("ignored    what*"), "{told}");
    a.text(&["--once"]);
    assert!(a.at("adapters/style/adapter_config.json").exists(), "what is there stays");
}

#[test]
fn followers_see_each_others_changes_and_a_pause_is_one() {
    let site = Site::start(1);
    let (a, b) = (Computer::join(&site, "laptop"), Computer::join(&site, "desk"));
    let first = Running::start(&mut a.sync(&[]), "");
    let second = Running::start(&mut b.sync(&[]), "");
    first.wait_for("the first round", |text| text.contains("both sides are the same"));
    second.wait_for("the first round", |text| text.contains("both sides are the same"));
    fs::create_dir_all(a.at("notes/deep")).unwrap();
    fs::write(a.at("notes/deep/new.md"), "hello").unwrap();
    soon("it arrives", || b.read("deep/new.md").as_deref() == Some("hello"));
    fs::write(b.at("notes/deep/new.md"), "hello, too").unwrap();
    soon("it comes back", || a.read("deep/new.md").as_deref() == Some("hello, too"));
    fs::write(a.at("config/s.json"), r#"{ "theme": "dark" }"#).unwrap();
    soon("a setting arrives", || fs::read_to_string(b.at("config/s.json")).unwrap().contains("dark"));
    fs::remove_file(a.at("notes/deep/new.md")).unwrap();
    soon("it goes", || b.read("deep/new.md").is_none());
    // Only one at a time, and the running one knows how it stands.
    let ran = run(&mut a.sync(&["--once"]));
    exits(&ran, 64);
    assert!(ran.stderr.contains("another belay sync runs"), "{}", ran.stderr);
    assert_eq!(a.json(&["status"])["running"], true);
    a.text(&["pause"]);
    fs::write(a.at("notes/later.md"), "later").unwrap();
    first.wait_for("the pause", |text| text.contains("paused"));
    assert_eq!(b.read("later.md"), None);
    a.text(&["resume"]);
    soon("what was written meanwhile arrives", || b.read("later.md").as_deref() == Some("later"));
    // The relay goes and comes back.
    for running in [&first, &second] {
        running.signal(Signal::TERM);
    }
    exits(&first.end(), 0);
    let ended = second.end();
    exits(&ended, 0);
    assert!(ended.stdout.contains("received  deep/new.md\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("removed   deep/new.md, which was deleted elsewhere\n"), "{}", ended.stdout);
}

/// A computer is killed in the middle of its work, again and again; a relay, too.
#[test]
fn what_was_acknowledged_survives_kills_of_either_side() {
    let usual = usize::try_from(scaled(24, 200)).unwrap();
    let uploads: usize = std::env::var("BELAY_UPLOADS").map_or(usual, |text| text.parse().unwrap());
    // A killed client has a tunnel still, for a while.
    let config = crate::programs::demo_config(1).replace("[limits]", "[limits]\ninstances_per_device = 64");
    let mut site = Site::with(&config, &[]);
    let (a, b) = (Computer::join(&site, "laptop"), Computer::join(&site, "desk"));
    let mut random = 1_u64;
    let mut below = |most: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % most
    };
    for number in 0..uploads {
        let size = 100_000 + usize::try_from(below(2_000_000)).unwrap();
        a.write(&format!("f{}/n{number}.bin", number % 5), noise(size, number as u64));
        let running = Running::start(&mut a.sync(&["--once"]), "");
        std::thread::sleep(std::time::Duration::from_millis(below(250)));
        if number % 2 == 0 {
            running.signal(Signal::KILL);
            let _ = running.end();
        } else {
            site.relay.kill9().unwrap();
            site.relay.restart().unwrap();
            let _ = running.end();
        }
    }
    a.text(&["--once"]);
    b.text(&["--once"]);
    let (sent, received) = (files(&a.at("notes")), files(&b.at("notes")));
    assert_eq!(sent.len(), uploads, "nothing was doubled: {:?}", sent.keys());
    assert!(sent == received, "{:?} and {:?}", sent.keys(), received.keys());
    assert_eq!(leftovers(&b.at("notes")), Vec::<String>::new());
    // Killed while it receives, a computer goes on where it was.
    let c = Computer::join(&site, "third");
    for _ in 0..8 {
        let running = Running::start(&mut c.sync(&["--once"]), "");
        std::thread::sleep(std::time::Duration::from_millis(20 + below(150)));
        running.signal(Signal::KILL);
        let _ = running.end();
    }
    c.text(&["--once"]);
    assert!(files(&c.at("notes")) == sent);
    assert_eq!(leftovers(&c.at("notes")), Vec::<String>::new());
    a.text(&["--once"]);
    assert_eq!(files(&a.at("notes")).len(), uploads);
    Fault::kept("sync-killed", uploads as u64, "what was acknowledged is there, once").tell();
}

/// Runs a script that may mount, in a namespace of its own: `$1` is the folder, `$2` is `belay`, the others follow. `None`
/// where the system grants no namespaces.
fn with_mounts(script: &str, folder: &Path, others: &[&Path]) -> Option<belay_tests::procs::Ran> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(folder);
    command.arg(belay_tests::procs::binary("belay")).args(others);
    let ran = run(&mut command);
    if ran.code == Some(1) && ran.stderr.contains("unshare") {
        assert!(!require_all(), "no namespaces: {}", ran.stderr);
        eprintln!("SKIPPED: no namespaces here: {}", ran.stderr);
        return None;
    }
    exits(&ran, 0);
    Some(ran)
}

/// A computer whose disk is full says so, loses nothing, and goes on when there is room. The small disk is a memory file
/// system in a namespace of its own.
#[test]
fn a_full_disk_of_a_computer_is_said_and_loses_nothing() {
    let site = Site::start(1);
    let (a, b) = (Computer::join(&site, "laptop"), Computer::join(&site, "desk"));
    a.write("small.md", "small");
    a.write("large.bin", noise(3 << 20, 1));
    a.text(&["--once"]);
    let notes = b.at("notes");
    // Mounts, syncs with too little room, makes room, syncs again, and copies out what is there.
    let script = "set -e; mount -t tmpfs -o size=1m tmpfs \"$1\"; mkdir \"$1/.belay\"; cp \"$5\" \"$1/.belay/folder\"
        \"$2\" --home \"$3\" sync --once && exit 9
        ls -A \"$1\"; ls \"$1/.belay\"; mount -o remount,size=8m \"$1\"
        \"$2\" --home \"$3\" sync --once; ls \"$1/.belay\"; cp \"$1/large.bin\" \"$1/small.md\" \"$4\"";
    let out = site.home("out");
    fs::create_dir_all(&out).unwrap();
    let marker = site.home("marker");
    fs::copy(notes.join(".belay/folder"), &marker).unwrap();
    let Some(ran) = with_mounts(script, &notes, &[&b.home, &out, &marker]) else { return };
    assert!(ran.stdout.contains("large.bin: this computer's disk is full; free some space"), "{}", ran.stdout);
    assert!(ran.stdout.contains("received  small.md"), "what there is room for comes: {}", ran.stdout);
    assert!(ran.stdout.contains("received  large.bin"), "{}", ran.stdout);
    assert_eq!(fs::read(out.join("large.bin")).unwrap(), noise(3 << 20, 1));
    assert_eq!(fs::read(out.join("small.md")).unwrap(), b"small");
}

/// What lies on a disk that is mounted in a folder is not deleted when it is unmounted.
#[test]
fn what_lies_on_a_disk_that_is_gone_was_not_deleted() {
    let site = Site::start(1);
    let (a, b) = (Computer::join(&site, "laptop"), Computer::join(&site, "desk"));
    a.write("own.md", "on the folder's own disk");
    a.text(&["--once"]);
    let script = "set -e; mkdir \"$1/stick\"; mount -t tmpfs tmpfs \"$1/stick\"; mkdir \"$1/stick/deep\"
        echo plan > \"$1/stick/plan.md\"; echo more > \"$1/stick/deep/more.md\"
        \"$2\" --home \"$3\" sync --once; umount \"$1/stick\"
        \"$2\" --home \"$3\" sync --once || echo it says so";
    let Some(ran) = with_mounts(script, &a.at("notes"), &[&a.home]) else { return };
    assert!(ran.stdout.contains("sent      stick/deep/more.md"), "{}", ran.stdout);
    assert!(ran.stdout.contains("stick: the disk that was mounted there is gone"), "{}", ran.stdout);
    // Nothing of it went away, here or elsewhere.
    b.text(&["--once"]);
    assert_eq!(fs::read_to_string(b.at("notes").join("stick/plan.md")).unwrap(), "plan\n");
    // A line that is taken out means that it was meant.
    fs::write(a.at("notes").join(".belay/disks"), "").unwrap();
    a.text(&["--once"]);
    b.text(&["--once"]);
    assert!(!b.at("notes").join("stick/plan.md").exists() && b.at("notes").join("own.md").exists());
}

#[test]
fn long_transfers_show_their_progress_on_a_terminal_and_nowhere_else() {
    let site = Site::start(1);
    let (a, b) = (Computer::join(&site, "laptop"), Computer::join(&site, "desk"));
    a.write("long.bin", noise(48 << 20, 1));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("pty/chat.py");
    let on_terminal = |computer: &Computer| {
        let mut command = Command::new("python3");
        crate::programs::clean(&mut command);
        command.arg(&script).arg("[]").arg(belay_tests::procs::binary("belay"));
        command.arg("--home").arg(&computer.home).args(["sync", "--once"]);
        let ran = run(&mut command);
        exits(&ran, 0);
        ran.stdout
    };
    for (shown, end) in [(on_terminal(&a), "1 sent, 0 received"), (on_terminal(&b), "0 sent, 1 received")] {
        assert!(shown.contains("of 48.00 MiB") && shown.contains("long.bin"), "{shown:?}");
        assert!(shown.trim_end().ends_with(end), "{shown:?}");
    }
    a.write("again.bin", noise(8 << 20, 2));
    let piped = run(&mut a.sync(&["--once"]));
    exits(&piped, 0);
    assert_eq!((piped.stdout.as_str(), piped.stderr.as_str()), ("sent      again.bin\n1 sent, 0 received\n", ""));
}

/// As somebody whom the system does not let read everything.
#[test]
fn what_cannot_be_read_is_said_and_not_taken_for_deleted() {
    let site = Site::start(1);
    let (a, b) = (Computer::join(&site, "laptop"), Computer::join(&site, "desk"));
    for key in ["open.md", "shut.md", "folder/in.md"] {
        a.write(key, key);
    }
    a.text(&["--once"]);
    b.text(&["--once"]);
    a.write("shut.md", "changed");
    for path in ["shut.md", "folder"] {
        fs::set_permissions(a.at("notes").join(path), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let mut command = a.sync(&["--once"]);
    let out = site.home("out");
    if rustix::process::geteuid().is_root() {
        // Somebody else, whose all of it is, with a program that he can reach.
        fs::create_dir_all(&out).unwrap();
        let program = out.join("belay");
        fs::copy(belay_tests::procs::binary("belay"), &program).unwrap();
        let mut owned = Command::new("chown");
        exits(&run(owned.args(["-R", "12345:12345"]).args([&a.home, &a.root, &out])), 0);
        for above in out.ancestors().skip(1).take(1).chain(a.home.ancestors().skip(1).take(1)) {
            fs::set_permissions(above, fs::Permissions::from_mode(0o755)).unwrap();
        }
        command = Command::new("setpriv");
        crate::programs::clean(&mut command);
        command.args(["--reuid=12345", "--regid=12345", "--clear-groups"]).arg(program);
        command.arg("--home").arg(&a.home).args(["sync", "--once"]);
    }
    let ran = run(&mut command);
    exits(&ran, 1);
    assert!(ran.stdout.contains("problem   shut.md: cannot read it: Permission denied"), "{}", ran.stdout);
    assert!(ran.stdout.contains("folder: Permission denied"), "{}", ran.stdout);
    b.text(&["--once"]);
    assert_eq!(
        (b.read("shut.md").unwrap(), b.read("folder/in.md").unwrap()),
        ("shut.md".into(), "folder/in.md".into())
    );
    for path in ["shut.md", "folder"] {
        fs::set_permissions(a.at("notes").join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    a.text(&["--once"]);
    b.text(&["--once"]);
    assert_eq!(b.read("shut.md").unwrap(), "changed");
}
