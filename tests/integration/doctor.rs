//! `belayd doctor`, `belay doctor` and the support bundle: what is wrong is found, and its remedy told.

use crate::programs::{Running, belay, demo_config, exits, one_json, run, until};
use belay_tests::procs::Belayd;
use belay_tests::tcp_link::TcpLink;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread;

/// A provider that says that to everybody, until the test ends.
fn provider(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(stream, "HTTP/1.1 {answer}content-length: 2\r\nconnection: close\r\n\r\n{{}}");
        }
    });
    address
}

fn found<'a>(looked: &'a Value, what: &str) -> &'a Value {
    let findings = looked["findings"].as_array().unwrap();
    findings.iter().find(|one| one["what"] == what).unwrap_or_else(|| panic!("no {what} in {looked}"))
}

#[track_caller]
fn is(looked: &Value, what: &str, health: &str, words: &str) {
    let finding = found(looked, what);
    assert_eq!(finding["health"], health, "{finding}");
    let text = format!("{} {}", finding["found"], finding["remedy"]);
    assert!(text.contains(words), "{text}");
    assert_eq!(finding["remedy"] == "", health == "good", "{finding}");
}

#[test]
fn what_is_wrong_with_a_node_is_found_and_its_remedy_told() {
    let well = provider("200 OK\r\n");
    let (refuses, ill) = (provider("401 Unauthorized\r\n"), provider("503 Service Unavailable\r\n"));
    let elsewhen = provider("200 OK\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
    let one = |name: &str, at: SocketAddr| format!("[providers.{name}]\nkind = \"openai\"\nurl = \"http://{at}\"\n");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config =
        [one("well", well), one("refuses", refuses), one("ill", ill), one("elsewhen", elsewhen), one("gone", nobody)];
    // A certificate for callers over HTTP that ends in nine days.
    let files = tempfile::tempdir().unwrap();
    let own = rcgen_pair(files.path(), 9);
    let http =
        format!("[http]\nlisten = \"127.0.0.1:0\"\ntls = \"files\"\ncert_file = {:?}\nkey_file = {:?}\n", own.0, own.1);
    let mut relay = Belayd::start(&format!("{}{http}", config.concat())).unwrap();
    let look = |relay: &Belayd, code: i32| {
        let ran = relay.command(&["doctor"]).unwrap();
        exits(&ran, code);
        one_json(&ran.stdout)
    };
    let looked = look(&relay, 1);
    assert_eq!(looked["worst"], "bad");
    is(&looked, "configuration", "good", "is valid for development");
    is(&looked, "relay", "good", "belayd ");
    is(&looked, "reload", "good", "in force");
    is(&looked, "provider well", "good", "takes the relay's key");
    is(&looked, "provider refuses", "bad", "put the right key in place");
    is(&looked, "provider ill", "warn", "503");
    is(&looked, "provider gone", "bad", "does a firewall stand in the way");
    is(&looked, "clock", "warn", "from that of elsewhen");
    is(&looked, "certificate for HTTP", "warn", "put a new certificate in place");
    is(&looked, "authority", "good", "days");
    is(&looked, "backup", "warn", "none was ever taken");
    is(&looked, "disk sync", "good", "ms");
    found(&looked, "UDP buffer");
    found(&looked, "open files");
    found(&looked, "disk");
    let ran = relay.command(&["backup", relay.dir().join("copies").to_str().unwrap()]).unwrap();
    exits(&ran, 0);
    relay.run(&["maintenance", "--reason", "new disk"]).unwrap();
    let written = std::fs::read_to_string(relay.config_path()).unwrap();
    std::fs::write(relay.config_path(), written.replace("kind = \"openai\"", "kind = \"cat\"")).unwrap();
    relay.process().signal(rustix::process::Signal::HUP);
    until("the relay has read it", || relay.log().contains("everything stays as it was"));
    std::fs::write(relay.config_path(), &written).unwrap();
    let looked = look(&relay, 1);
    is(&looked, "backup", "good", "less than a day ago");
    is(&looked, "relay", "warn", "belayd maintenance --off");
    is(&looked, "reload", "warn", "then: belayd reload");
    // In a form for people: a table, and below it what to do.
    let plain = run(std::process::Command::new(belay_tests::procs::binary("belayd"))
        .arg("--config")
        .arg(relay.config_path())
        .arg("doctor"));
    exits(&plain, 1);
    assert!(
        plain.stdout.contains("BAD   provider refuses")
            && plain.stdout.contains("\nprovider refuses: put the right key"),
        "{}",
        plain.stdout
    );
    assert!(plain.stderr.contains("2 of "), "{}", plain.stderr);

    // One that does not run.
    relay.terminate().unwrap();
    let looked = look(&relay, 1);
    is(&looked, "relay", "bad", "journalctl -u belayd");
    is(&looked, "provider refuses", "bad", "put the right key in place");
    is(&looked, "backup", "good", "less than a day ago");
    std::fs::write(relay.config_path(), "[listen]\nquic = 5\n").unwrap();
    is(&look(&relay, 1), "configuration", "bad", "belayd config check");
}

/// A certificate that ends in so many days, and its key.
fn rcgen_pair(dir: &Path, days: u64) -> (std::path::PathBuf, std::path::PathBuf) {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=relay",
    ]);
    openssl.args(["-days", &days.to_string(), "-keyout"]).arg(&key).arg("-out").arg(&cert);
    exits(&run(&mut openssl), 0);
    (cert, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_between_a_computer_and_its_relay_is_found() {
    let mut relay = Belayd::start(&demo_config(1).replacen("[listen]\nquic = \"127.0.0.1:0\"\n", "", 1)).unwrap();
    relay.run(&["tenant", "create", "acme", "--credit", "5"]).unwrap();
    let homes = tempfile::tempdir().unwrap();
    let home = homes.path().join("desk");
    let look = |code: i32| {
        let ran = tokio::task::block_in_place(|| run(&mut belay(&home, &["--json", "doctor"])));
        exits(&ran, code);
        one_json(&ran.stdout)
    };
    is(&look(1), "identity", "bad", "belay join belay1:");
    let invite = relay.run(&["invite", "acme"]).unwrap()["invite"].as_str().unwrap().to_owned();
    exits(&run(&mut belay(&home, &["join", &invite])), 0);
    let looked = look(0);
    for (what, words) in [
        ("identity", " of acme"),
        ("certificate", "days"),
        ("UDP (QUIC)", "from nothing to a tunnel in"),
        ("TCP", "from nothing to a tunnel in"),
        ("MTU", "bytes get through"),
        ("clock", "0.0 s"),
        ("versions", "belayd/"),
        ("belay up", "does not run"),
    ] {
        is(&looked, what, "good", words);
    }
    found(&looked, "path");
    // Where a gate lets TCP through and nothing is to be found over UDP.
    let gate = TcpLink::start("127.0.0.2:0".parse().unwrap(), relay.address().unwrap()).await.unwrap();
    let file = home.join("identity.json");
    let written = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, written.replace(&relay.address().unwrap().to_string(), &gate.address().to_string())).unwrap();
    let looked = look(0);
    is(&looked, "UDP (QUIC)", "warn", "have the network let UDP through");
    is(&looked, "TCP", "good", "reaches the relay");
    std::fs::write(&file, &written).unwrap();
    // One that runs, and is found.
    let up = Running::start(&mut belay(&home, &["up", "--listen", "127.0.0.1:0"]), "");
    up.wait_for("its gateway", |text| text.contains("http://127.0.0.1:"));
    is(&look(0), "belay up", "good", "serves http://127.0.0.1:");
    up.interrupt();
    exits(&up.end(), 0);
    // The relay says no, and then nothing any more.
    let device = relay.run(&["device", "list"]).unwrap()[0]["id"].as_str().unwrap().to_owned();
    relay.run(&["device", "revoke", &device]).unwrap();
    is(&look(1), "UDP (QUIC)", "bad", "the device was revoked");
    relay.terminate().unwrap();
    is(&look(1), "UDP (QUIC)", "bad", "does the relay run");
}

#[test]
fn the_node_can_be_watched_and_its_state_given_to_who_helps() {
    let relay = Belayd::start(&demo_config(1).replacen("[listen]\nquic = \"127.0.0.1:0\"\n", "", 1)).unwrap();
    let mut watch = std::process::Command::new(belay_tests::procs::binary("belayd"));
    let watch = Running::start(watch.arg("--config").arg(relay.config_path()).args(["status", "--watch"]), "");
    watch.wait_for("two looks", |text| text.matches("commits in the last second").count() > 1);
    relay.run(&["maintenance", "--reason", "new disk"]).unwrap();
    watch.wait_for("a change", |text| text.contains("new disk"));
    watch.interrupt();
    exits(&watch.end(), 0);
    let path = relay.dir().join("support.txt");
    exits(&relay.command(&["support-bundle", path.to_str().unwrap()]).unwrap(), 0);
    let text = std::fs::read_to_string(&path).unwrap();
    for part in ["== version\nbelayd ", "== doctor\n", "[providers.demo]", "\"tunnels\"", "belay_tunnels", "== log\n"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}
