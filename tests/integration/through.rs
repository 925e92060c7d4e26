//! Commands that go through the client that runs in the background.

use crate::background::{Ends, UP, ask, said};
use crate::programs::{DEADLINE, Running, Site, belay, exits, one_json, run};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

const QUESTION: &str = "Why is the sky blue?";

/// The tunnels that the relay has.
fn tunnels(site: &Site) -> Vec<Value> {
    site.relay.run(&["status"]).unwrap()["tunnels"].as_array().unwrap().clone()
}

/// Waits for the client in the background to have its tunnel.
fn up(site: &Site, home: &Path) -> (Ends, String) {
    let up = said(home, &UP);
    let ends = Ends(i32::try_from(up["process"].as_i64().unwrap()).unwrap());
    let began = Instant::now();
    while tunnels(site).is_empty() {
        assert!(began.elapsed() < DEADLINE, "no tunnel");
        std::thread::sleep(Duration::from_millis(5));
    }
    (ends, up["listening"].as_str().unwrap().to_owned())
}

fn charged(site: &Site) -> i64 {
    site.tenant("acme")["charged_nano_usd"].as_i64().unwrap()
}

/// An answer in the middle, and how much of it was printed.
fn asking(home: &Path) -> (Running, usize) {
    let asked = Running::start(&mut belay(home, &["ask", QUESTION]), "");
    let seen = asked.wait_for("some text", |text| text.len() > 20).len();
    (asked, seen)
}

#[test]
fn commands_share_the_tunnel_that_is_there() {
    let site = Site::start(1);
    let home = site.join("desk", "acme");
    let alone = run(&mut belay(&home, &["ask", QUESTION]));
    exits(&alone, 0);
    let (_ends, address) = up(&site, &home);
    let first = tunnels(&site)[0].clone();
    assert!(first["instance"].is_string() && first["since_ms"].is_number(), "{first}");
    let before = said(&home, &["balance"]);
    for _ in 0..3 {
        let ran = run(&mut belay(&home, &["ask", QUESTION]));
        exits(&ran, 0);
        assert_eq!(ran.stdout, alone.stdout);
    }
    assert_ne!(said(&home, &["balance"]), before);
    assert_eq!(said(&home, &["usage"])["total"]["requests"], 4);
    for command in [&["models"][..], &["statement"], &["record", "local", "--model", "m", "--input", "5"]] {
        exits(&run(&mut belay(&home, command)), 0);
    }
    // A refusal of the relay comes through as it is.
    exits(&run(&mut belay(&home, &["topup"])), 77);
    // It was that tunnel all the time: the relay has seen no other.
    let there = tunnels(&site);
    assert_eq!(there.len(), 1, "{there:?}");
    for field in ["instance", "since_ms"] {
        assert_eq!(there[0][field], first[field], "{there:?}");
    }
    // And that is what is shown.
    let status = said(&home, &["status"]);
    assert_eq!((&status["path"], &status["gateway"]["listen"]), (&json!("quic"), &json!(address)));
    let shown = run(&mut belay(&home, &["status"]));
    assert!(shown.stdout.contains(&format!("gateway      http://{address}, process ")), "{}", shown.stdout);
    let watched = Running::start(&mut belay(&home, &["status", "--watch"]), "");
    watched.wait_for("its state", |text| text.contains("up since") && text.contains("quic"));
    watched.interrupt();
    exits(&watched.end(), 0);
    let ran = run(&mut belay(&home, &["status", "--watch", "--loaded-model", "x"]));
    exits(&ran, 2);
    assert!(ran.stderr.contains("belay up --loaded-model"), "{}", ran.stderr);
    // Nobody else gets in.
    assert!(ask(&address, "GET /belay/tunnel", "").starts_with("HTTP/1.1 403"));
    assert!(ask(&address, "GET /belay/tunnel", "").contains("state may use its tunnel"));
    site.books_are_clean();
}

#[test]
fn an_answer_goes_on_when_the_one_in_the_background_ends_is_killed_or_hangs() {
    let site = Site::start(20);
    let home = site.join("desk", "acme");
    let alone = run(&mut belay(&home, &["ask", QUESTION]));
    exits(&alone, 0);
    let one = charged(&site);
    for how in ["down", "kill", "stop"] {
        let (ends, _) = up(&site, &home);
        let (asked, seen) = asking(&home);
        assert_eq!(tunnels(&site).len(), 1);
        match how {
            "down" => exits(&run(&mut belay(&home, &["down"])), 0),
            "kill" => ends.signal(Signal::KILL),
            _ => ends.signal(Signal::STOP),
        }
        asked.wait_for("more", |text| text.len() > seen + 200);
        let ran = asked.end();
        exits(&ran, 0);
        assert_eq!(ran.stdout, alone.stdout, "after {how}");
        ends.signal_if_there(Signal::KILL);
        // The relay learns of a killed one after a while.
        let began = Instant::now();
        while !tunnels(&site).is_empty() {
            assert!(began.elapsed() < DEADLINE, "a dead tunnel stays");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert_eq!(charged(&site), 4 * one, "four answers, each charged once");
    assert_eq!(said(&home, &["usage"])["total"]["requests"], 4);
    site.books_are_clean();
}

#[test]
fn a_killed_command_comes_back_for_its_answer_and_a_cancelled_one_ends() {
    let site = Site::start(20);
    let home = site.join("desk", "acme");
    let alone = run(&mut belay(&home, &["ask", QUESTION]));
    let (_ends, _) = up(&site, &home);
    let (asked, seen) = asking(&home);
    asked.signal(Signal::KILL);
    drop(asked);
    let rest = run(&mut belay(&home, &["ask", "--resume"]));
    exits(&rest, 0);
    assert!(
        alone.stdout.ends_with(&rest.stdout) && rest.stdout.len() + seen / 2 < alone.stdout.len() + 60,
        "{}",
        rest.stdout
    );
    let (asked, _) = asking(&home);
    asked.interrupt();
    let ran = asked.end();
    exits(&ran, 1);
    assert!(ran.stderr.contains("not complete (cancelled)"), "{}", ran.stderr);
    assert_eq!(tunnels(&site).len(), 1);
    site.books_are_clean();
}

#[test]
fn without_a_tunnel_a_command_says_so_and_a_revoked_computer_is_told() {
    let mut site = Site::start(1);
    let home = site.join("desk", "acme");
    let (_ends, address) = up(&site, &home);
    // Logged out through the tunnel that is there; the one in the background ends by itself.
    let ran = run(&mut belay(&home, &["--json", "logout"]));
    exits(&ran, 0);
    assert_eq!(one_json(&ran.stdout)["revoked"], true);
    let began = Instant::now();
    while TcpStream::connect(&address).is_ok() {
        assert!(began.elapsed() < DEADLINE, "it goes on without an identity");
        std::thread::sleep(Duration::from_millis(20));
    }
    let other = site.join("other", "acme");
    let (_ends, _) = up(&site, &other);
    site.relay.terminate().unwrap();
    let ran = run(&mut belay(&other, &["--wait", "3", "balance"]));
    exits(&ran, 69);
    assert!(ran.stderr.contains("belay up runs here and has no tunnel"), "{}", ran.stderr);
}
