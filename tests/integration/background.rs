//! `belay up`, in the foreground and in the background, and its end.

use crate::programs::{Running, Site, belay, exits, one_json, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) fn said(home: &Path, args: &[&str]) -> Value {
    let ran = run(&mut belay(home, &[&["--json"], args].concat()));
    exits(&ran, 0);
    one_json(&ran.stdout)
}

/// A request over loopback; the answer, head and all.
pub(crate) fn ask(address: &str, request: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = body.len();
    let head =
        format!("{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn until_streaming(address: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    while !ask(address, "GET /belay/requests", "").contains("\"state\":\"streaming\"") {
        assert!(Instant::now() < until, "no stream runs");
    }
}

/// Ends the process should a test fail before it does.
pub(crate) struct Ends(pub(crate) i32);

impl Ends {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.0).unwrap(), signal).unwrap();
    }

    pub(crate) fn signal_if_there(&self, signal: Signal) {
        let _ = kill_process(Pid::from_raw(self.0).unwrap(), signal);
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.signal_if_there(Signal::KILL);
    }
}

pub(crate) const UP: [&str; 4] = ["up", "--background", "--listen", "127.0.0.1:0"];

#[test]
fn one_runs_in_the_background_and_is_found_and_ended() {
    let site = Site::start(1);
    let ran = run(&mut belay(&site.home("nobody"), &UP));
    exits(&ran, 64);
    let home = site.join("desk", "acme");
    assert_eq!(said(&home, &["down"]), json!({ "ended": false }));
    let up = said(&home, &UP);
    let process = up["process"].as_i64().unwrap();
    let ends = Ends(i32::try_from(process).unwrap());
    let address = up["listening"].as_str().unwrap();
    let body = json!({ "model": "auto", "messages": [{ "role": "user", "content": "hi" }] }).to_string();
    let answer = ask(address, "POST /v1/chat/completions", &body);
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("belay-cost: $"), "{answer}");
    assert_eq!(said(&home, &UP)["process"], process, "it runs already");
    let ran = run(&mut belay(&home, &["up", "--listen", "127.0.0.1:0"]));
    exits(&ran, 1);
    assert!(ran.stderr.contains(&format!("process {process} runs already")) && ran.stderr.contains("belay down"));
    // Nobody else may end it.
    for secret in ["", "belay-secret: guess\r\n"] {
        let request = format!("POST /belay/stop HTTP/1.1\r\nHost: {address}\r\n{secret}Connection: close\r\n\r\n");
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    // A terminal that closes takes it not along.
    ends.signal(Signal::HUP);
    assert!(ask(address, "GET /belay/status", "").contains("\"phase\":\"up\""));
    assert_eq!(said(&home, &["down"]), json!({ "ended": true, "process": process }));
    assert!(TcpStream::connect(address).is_err());
    assert_eq!(said(&home, &["down"]), json!({ "ended": false }));
    // One that was killed leaves nothing in the way.
    let up = said(&home, &UP);
    let ends = Ends(i32::try_from(up["process"].as_i64().unwrap()).unwrap());
    ends.signal(Signal::KILL);
    let until = Instant::now() + Duration::from_secs(20);
    while said(&home, &["down"]) != json!({ "ended": false }) {
        assert!(Instant::now() < until, "a dead one is in the way");
    }
    site.books_are_clean();
}

#[test]
fn in_the_foreground_it_says_what_is_needed_and_ends_in_order() {
    let site = Site::start(20);
    let home = site.join("desk", "acme");
    for (args, words) in [
        (&["up", "--listen", "0.0.0.0:0"][..], "set --token"),
        (&["up", "--listen", "127.0.0.1:0", "--token", " "], "--token is empty"),
    ] {
        let ran = run(&mut belay(&home, args));
        exits(&ran, 2);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ran = run(&mut belay(&home, &["up", "--listen", &taken.local_addr().unwrap().to_string()]));
    exits(&ran, 1);
    assert!(ran.stderr.contains("choose another --listen"), "{}", ran.stderr);
    let up = Running::start(&mut belay(&home, &["up", "--listen", "127.0.0.1:0"]), "");
    let told = up.wait_for("the tunnel", |text| text.contains("Tunnel: up over quic"));
    let address = told.split("OPENAI_BASE_URL=http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    // A stream that runs has a few seconds, and is settled.
    let body =
        json!({ "model": "auto", "stream": true, "messages": [{ "role": "user", "content": "hi" }] }).to_string();
    let asked = std::thread::spawn({
        let address = address.clone();
        move || ask(&address, "POST /v1/chat/completions", &body)
    });
    until_streaming(&address);
    up.interrupt();
    exits(&up.end(), 0);
    assert!(asked.join().unwrap().contains("data: [DONE]"), "it was not cut");
    site.books_are_clean();
}

#[test]
fn a_stream_goes_on_when_the_computer_has_slept() {
    // The relay gives a silent tunnel up after four seconds.
    let site = Site::start(50);
    let home = site.join("laptop", "acme");
    let body =
        json!({ "model": "auto", "stream": true, "messages": [{ "role": "user", "content": "hi" }] }).to_string();
    let up = Running::start(&mut belay(&home, &["up", "--listen", "127.0.0.1:0"]), "");
    let told = up.wait_for("the tunnel", |text| text.contains("Tunnel: up over quic"));
    let address = told.split("OPENAI_BASE_URL=http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let words = |answer: &str| answer.matches("\"content\":").count();
    let whole = words(&ask(&address, "POST /v1/chat/completions", &body));
    let asked = std::thread::spawn({
        let address = address.clone();
        move || ask(&address, "POST /v1/chat/completions", &body)
    });
    until_streaming(&address);
    up.signal(Signal::STOP);
    let until = Instant::now() + Duration::from_secs(20);
    while !site.relay.run(&["status"]).unwrap()["tunnels"].as_array().unwrap().is_empty() {
        assert!(Instant::now() < until, "the relay keeps a tunnel that sleeps");
        std::thread::sleep(Duration::from_millis(100));
    }
    up.signal(Signal::CONT);
    let answer = asked.join().unwrap();
    assert!(answer.contains("data: [DONE]") && !answer.contains("\"error\""), "{answer}");
    assert_eq!(words(&answer), whole, "nothing twice, nothing missing");
    up.interrupt();
    exits(&up.end(), 0);
    site.books_are_clean();
}
