//! `systemd/belay.service` in a real systemd, as a user who is nobody special.

use crate::background::ask;
use crate::programs::{DEADLINE, Site, belay, exits, run};
use belay_tests::nspawn::{Bind, Machine, USER, give};
use belay_tests::procs::binary;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Waits for something to be so.
fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where the gateway of that process listens.
fn listens(state: &Path, process: &str) -> Option<String> {
    let told: Value = serde_json::from_slice(&std::fs::read(state.join("up.json")).ok()?).ok()?;
    // Both numbers are those of the machine.
    (told["process"].as_u64() == process.parse().ok()).then(|| told["listen"].as_str().unwrap().to_owned())
}

/// A property of the unit.
fn of(machine: &Machine, name: &str) -> String {
    machine.property("belay", name)
}

#[test]
fn the_user_unit_serves_comes_back_ends_in_order_and_does_not_insist() {
    let site = Site::start(1);
    let home = site.home("desk");
    let state = home.join(".local/share/belay");
    std::fs::create_dir_all(home.join(".config")).unwrap();
    std::fs::create_dir_all(home.join(".local/bin")).unwrap();
    std::fs::write(home.join(".config/belay.env"), "BELAY_LISTEN=127.0.0.1:0\n").unwrap();
    std::fs::copy(binary("belay"), home.join(".local/bin/belay")).unwrap();
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/belay.service");
    give(&home).unwrap_or_else(|error| eprintln!("this is not root: {error}"));
    let binds = [Bind::read(unit, "/etc/systemd/user/belay.service"), Bind::write(&home, format!("/home/{USER}"))];
    let Some(machine) = Machine::boot(&binds) else { return };
    let ran = machine.root(&["systemctl", "start", "user@1000.service"]);
    exits(&ran, 0);

    // One that has not joined is told so, and not asked again.
    exits(&machine.user(&["systemctl", "--user", "start", "belay"]), 0);
    until("its end", || of(&machine, "ActiveState") == "failed");
    assert_eq!((of(&machine, "ExecMainStatus"), of(&machine, "NRestarts")), ("64".into(), "0".into()));

    exits(&run(&mut belay(&state, &["join", &site.invite("acme")])), 0);
    give(&home).unwrap();
    exits(&machine.user(&["systemctl", "--user", "start", "belay"]), 0);
    let serves = || {
        let process = of(&machine, "MainPID");
        until("its gateway", || listens(&state, &process).is_some());
        (listens(&state, &process).unwrap(), process)
    };
    let (address, process) = serves();
    let body = json!({ "model": "auto", "messages": [{ "role": "user", "content": "hi" }] }).to_string();
    let answer = ask(&address, "POST /v1/chat/completions", &body);
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("belay-cost: $"), "{answer}");
    // It is confined: nothing but its own directory can be written.
    let mounts = machine.root(&["cat", &format!("/proc/{process}/mountinfo")]).stdout;
    let options = |point: &str| {
        let line = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some(point));
        line.unwrap_or_else(|| panic!("{point} is not among {mounts}")).split(' ').nth(5).unwrap().to_owned()
    };
    assert!(options("/").starts_with("ro"), "{mounts}");
    assert!(options(&format!("/home/{USER}/.local/share/belay")).starts_with("rw"), "{mounts}");
    let status = machine.root(&["cat", &format!("/proc/{process}/status")]).stdout;
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");

    // Killed, it is back in seconds.
    exits(&machine.root(&["kill", "-KILL", &process]), 0);
    until("the next one", || of(&machine, "NRestarts") == "1" && of(&machine, "ActiveState") == "active");
    let (address, _) = serves();
    assert!(ask(&address, "GET /belay/status", "").starts_with("HTTP/1.1 200 OK"));
    // Stopped, it ends in order.
    exits(&machine.user(&["systemctl", "--user", "stop", "belay"]), 0);
    assert_eq!((of(&machine, "Result"), of(&machine, "ExecMainStatus")), ("success".into(), "0".into()));
    assert!(!state.join("up.json").exists());

    // A revoked one does not insist.
    exits(&machine.user(&["systemctl", "--user", "start", "belay"]), 0);
    serves();
    let device = site.relay.run(&["device", "list"]).unwrap()[0]["id"].as_str().unwrap().to_owned();
    site.relay.run(&["device", "revoke", &device]).unwrap();
    until("its end", || of(&machine, "ActiveState") == "failed");
    assert_eq!((of(&machine, "ExecMainStatus"), of(&machine, "NRestarts")), ("77".into(), "0".into()));
    site.books_are_clean();
}
