//! `systemd/belayd.service` and its socket in a real systemd: started by nothing special, killed, stuck, stopped.

use crate::programs::{belay, demo_config, exits, one_json, run, until};
use belay_relay::ops::vitals::{Stuck, Vitals};
use belay_relay::store::StoreError;
use belay_relay::store::executor::Db;
use belay_tests::http::HTTP;
use belay_tests::nspawn::{Bind, Machine};
use belay_tests::procs::{Ran, binary};
use belay_tests::relay::{PATIENCE, TestRelay};
use std::collections::HashSet;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const PROGRAM: &str = "/opt/belayd";

/// A machine with the relay's units, and the port that its socket has.
struct Node {
    machine: Machine,
    port: u16,
    _files: tempfile::TempDir,
}

impl Node {
    fn boot() -> Option<Self> {
        // The machine has this computer's network. Below the ports that the system gives to whoever asks for any: one of
        // those could be somebody's until the machine is up.
        let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
        let is_free = |port: &u16| UdpSocket::bind(("::", *port)).is_ok() && TcpListener::bind(("::", *port)).is_ok();
        let mut free = (first..32_000).filter(is_free);
        let (port, second) = (free.next().unwrap(), free.next().unwrap());
        let files = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        // What a machine with a package has, but for where the program is and how long a watchdog's test may take.
        write(
            "service/test.conf",
            &format!(
                "[Service]\nExecStart=\nExecStart={PROGRAM} serve --config /etc/belayd/belayd.toml\nExecReload=\nExecReload={PROGRAM} reload --config /etc/belayd/belayd.toml\nWatchdogSec=3\nTimeoutAbortSec=1\n"
            ),
        );
        let socket = |port: u16| {
            format!("[Socket]\nListenDatagram=\nListenStream=\nListenDatagram=[::]:{port}\nListenStream=[::]:{port}\n")
        };
        write("socket/test.conf", &socket(port));
        // A second one beside it, from the template.
        write("socket2/test.conf", &socket(second));
        write(
            "service2/test.conf",
            &format!("[Service]\nExecStart=\nExecStart={PROGRAM} serve --config /etc/belayd/%i.toml\nExecReload=\n"),
        );
        let listen = format!("quic = \"[::]:{port}\"\npublic = [\"127.0.0.1:{port}\"]\n");
        let config = demo_config(100).replacen("drain_ms = 3000", "drain_ms = 30000", 1);
        let config = config.replacen("quic = \"127.0.0.1:0\"\n", &listen, 1);
        write("etc/belayd.toml", &format!("{config}[state]\ndir = \"/var/lib/belayd\"\n"));
        let other = config.replace(&port.to_string(), &second.to_string());
        write("etc/second.toml", &format!("{other}[state]\ndir = \"/var/lib/belayd/second\"\n"));
        write("etc/wrong.toml", "[listen]\nquic = 5\n");
        let unit = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(name);
        let binds = [
            Bind::read(binary("belayd"), PROGRAM),
            Bind::read(unit("belayd.service"), "/etc/systemd/system/belayd.service"),
            Bind::read(unit("belayd.socket"), "/etc/systemd/system/belayd.socket"),
            Bind::read(unit("belayd.sysusers"), "/etc/sysusers.d/belayd.conf"),
            Bind::read(unit("belayd.tmpfile"), "/etc/tmpfiles.d/belayd.conf"),
            Bind::read(files.path().join("service"), "/etc/systemd/system/belayd.service.d"),
            Bind::read(files.path().join("socket"), "/etc/systemd/system/belayd.socket.d"),
            Bind::read(unit("belayd@.service"), "/etc/systemd/system/belayd@.service"),
            Bind::read(unit("belayd@.socket"), "/etc/systemd/system/belayd@.socket"),
            Bind::read(files.path().join("service2"), "/etc/systemd/system/belayd@second.service.d"),
            Bind::read(files.path().join("socket2"), "/etc/systemd/system/belayd@second.socket.d"),
            Bind::write(files.path().join("etc"), "/etc/belayd"),
            Bind::read("/etc/ssl", "/etc/ssl"),
        ];
        Machine::boot(&binds).map(|machine| Self { machine, port, _files: files })
    }

    fn systemctl(&self, args: &[&str]) -> Ran {
        self.machine.root(&[&["systemctl"], args].concat())
    }

    fn of(&self, name: &str) -> String {
        self.systemctl(&["show", "--value", "-p", name, "belayd"]).stdout.trim().to_owned()
    }

    fn belayd(&self, args: &[&str]) -> Ran {
        self.machine.root(&[&[PROGRAM, "--config", "/etc/belayd/belayd.toml"], args].concat())
    }

    /// Packets that every endpoint answers, each with a name of its own; how many answers come.
    fn asked(&self, count: u16) -> usize {
        let mut sockets = vec![];
        for first in (0..count).step_by(100) {
            // Few enough for the answers to have room until they are read.
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(("127.0.0.1", self.port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            let numbers = first..count.min(first + 100);
            for number in numbers.clone() {
                let mut packet = vec![0; 1200];
                packet[0] = 0xc0;
                packet[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
                packet[5] = 8;
                packet[6..8].copy_from_slice(&number.to_be_bytes());
                packet[14] = 8;
                packet[15..17].copy_from_slice(&number.to_be_bytes());
                socket.send(&packet).unwrap();
            }
            sockets.push((socket, numbers.len()));
        }
        let answers = |(socket, wanted): (UdpSocket, usize)| {
            let (mut names, mut answer) = (HashSet::new(), [0; 1500]);
            while names.len() < wanted {
                match socket.recv(&mut answer) {
                    // The names are told back.
                    Ok(len) if len > 8 && answer[1..5] == [0; 4] => names.insert(answer[6..8].to_vec()),
                    Ok(_) => false,
                    Err(_) => break,
                };
            }
            names.len()
        };
        sockets.into_iter().map(answers).sum()
    }
}

#[test]
fn the_node_serves_outlives_kills_and_ends_in_order() {
    let Some(node) = Node::boot() else { return };
    // Nothing to say about any of them, and little about how it is confined.
    let units = ["belayd.service", "belayd.socket", "belayd@second.service", "belayd@second.socket"];
    let verified = node.machine.root(&[&["systemd-analyze", "verify", "--man=no"][..], &units].concat());
    assert_eq!((verified.code, verified.stdout.as_str(), verified.stderr.as_str()), (Some(0), "", ""));
    let rated =
        node.machine.root(&["systemd-analyze", "security", "--offline=true", "/etc/systemd/system/belayd.service"]);
    let line = rated.stdout.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_default().to_owned();
    let score: f64 =
        line.split(':').nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect(&rated.stdout);
    eprintln!("{line}");
    assert!(score <= 1.1, "{}", rated.stdout);

    let started = node.systemctl(&["start", "belayd"]);
    let log = || node.machine.root(&["journalctl", "-u", "belayd", "--no-pager", "-n", "30"]).stdout;
    assert_eq!(started.code, Some(0), "{}", log());
    assert_eq!(node.of("ActiveState"), "active");
    assert!(node.of("StatusText").contains("0 tunnels"), "{}", node.of("StatusText"));
    let state = node.machine.root(&["stat", "-c", "%U %a", "/var/lib/belayd"]).stdout;
    assert_eq!(state.trim(), "belayd 700");
    assert_eq!(node.asked(50), 50);

    // Another one beside it, with a state of its own.
    exits(&node.systemctl(&["start", "belayd@second"]), 0);
    let second = node.machine.root(&[PROGRAM, "--config", "/etc/belayd/second.toml", "--json", "tenant", "list"]);
    assert_eq!(one_json(&second.stdout), serde_json::json!([]));
    exits(&node.systemctl(&["stop", "belayd@second"]), 0);

    // Somebody uses it.
    exits(&node.belayd(&["tenant", "create", "acme", "--credit", "5"]), 0);
    let invite = one_json(&node.belayd(&["--json", "invite", "acme"]).stdout)["invite"].as_str().unwrap().to_owned();
    let home = tempfile::tempdir().unwrap();
    exits(&run(&mut belay(home.path(), &["join", &invite])), 0);
    exits(&run(&mut belay(home.path(), &["ask", "--max-tokens", "3", "hello"])), 0);

    // Another configuration takes effect in the process that runs; one that is wrong is refused, and told.
    let process = node.of("MainPID");
    let copy = |from: &str, to: &str| {
        let path = |name: &str| format!("/etc/belayd/{name}.toml");
        exits(&node.machine.root(&["cp", &path(from), &path(to)]), 0);
    };
    copy("belayd", "good");
    exits(&node.systemctl(&["reload", "belayd"]), 0);
    copy("wrong", "belayd");
    assert_ne!(node.systemctl(&["reload", "belayd"]).code, Some(0));
    assert!(log().contains("exit"), "{}", log());
    copy("good", "belayd");
    exits(&node.machine.root(&["kill", "-HUP", &process]), 0);
    until("a second reload", || log().matches("the configuration was read anew").count() == 2);
    assert_eq!((node.of("MainPID"), node.of("ActiveState")), (process, "active".to_owned()));
    exits(&run(&mut belay(home.path(), &["ask", "--max-tokens", "3", "hello still"])), 0);

    // What comes while it is dead waits, to the last packet.
    let process = node.of("MainPID");
    // As many as the buffer has that the kernel grants to a machine without rights over the network; elsewhere it is the
    // 16 MiB of the unit.
    let count = 150;
    exits(&node.machine.root(&["kill", "-KILL", &process]), 0);
    assert_eq!(node.asked(count), usize::from(count), "datagrams were lost");
    until("the next one", || node.of("NRestarts") == "1" && node.of("ActiveState") == "active");
    exits(&run(&mut belay(home.path(), &["ask", "--max-tokens", "3", "hello again"])), 0);

    // One that is stuck is killed, and there is another.
    let process = node.of("MainPID");
    exits(&node.machine.root(&["kill", "-STOP", &process]), 0);
    until("a watchdog", || node.of("NRestarts") == "2" && node.of("ActiveState") == "active");
    assert_ne!(node.of("MainPID"), process);
    exits(&run(&mut belay(home.path(), &["ask", "--max-tokens", "3", "and again"])), 0);
    // It is fed for longer than it waits.
    let (process, fed) = (node.of("MainPID"), || node.of("WatchdogTimestampMonotonic").parse::<u64>().unwrap());
    let first = fed();
    until("two of its times", || fed() > first + 6_000_000);
    assert_eq!((node.of("MainPID"), node.of("NRestarts")), (process, "2".to_owned()));

    // What runs may end, also if that takes longer than a watchdog waits.
    let mut asking = belay(home.path(), &["--json", "ask", "--max-tokens", "300", &"word ".repeat(400)]);
    let asking = asking.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("its request", || node.of("StatusText").contains("1 running request"));
    let began = Instant::now();
    exits(&node.systemctl(&["stop", "belayd"]), 0);
    eprintln!("drained for {:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
    let answer = asking.wait_with_output().unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    assert_eq!((node.of("Result"), node.of("ExecMainStatus")), ("success".into(), "0".into()));
    exits(&node.belayd(&["ledger", "verify"]), 0);

    // A configuration that is wrong is not tried again.
    exits(&node.machine.root(&["cp", "/etc/belayd/wrong.toml", "/etc/belayd/belayd.toml"]), 0);
    assert_ne!(node.systemctl(&["start", "belayd"]).code, Some(0));
    assert_eq!((node.of("ExecMainStatus"), node.of("NRestarts")), ("64".into(), "0".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_makes_no_progress_is_named() {
    let relay = TestRelay::start(HTTP).await;
    let vitals = relay.relay().vitals();
    vitals.check(PATIENCE).await.unwrap();
    // A worker that has something long to do answers once that is over.
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let mut begun = Some(begun);
    let long = vitals.store.run(Db::Central, move |_| {
        let _ = begun.take().map(|begun| begun.send(()));
        let _ = ends.recv_timeout(Duration::from_secs(30));
        Ok::<_, StoreError>(())
    });
    let long = tokio::spawn(long);
    has_begun.await.unwrap();
    let stuck = vitals.check(Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(stuck, Stuck::Store { stuck: 1, all } if all > 1), "{stuck}");
    end.send(()).unwrap();
    long.await.unwrap().unwrap();
    vitals.check(PATIENCE).await.unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let elsewhere = Vitals { http: Some(nobody), ..vitals.clone() };
    assert_eq!(elsewhere.check(Duration::from_millis(500)).await, Err(Stuck::Http(nobody)));
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = Vitals { quic: silent.local_addr().unwrap(), ..vitals.clone() };
    assert_eq!(silent.check(Duration::from_millis(500)).await, Err(Stuck::Endpoint(silent.quic)));
    relay.stop().await;
    assert!(vitals.check(Duration::from_millis(500)).await.is_err());
}

#[test]
fn the_template_is_the_service_with_a_name() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(name);
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let named = |line: &String| {
        let line = line.replace("belayd@%i.", "belayd.").replace("/etc/belayd/%i.toml", "/etc/belayd/belayd.toml");
        line.replace("belayd/%i", "belayd").replace(" %i", "")
    };
    let (service, template) = (read("belayd.service"), read("belayd@.service"));
    assert_eq!(template.iter().map(named).collect::<Vec<_>>(), service);
    let mut socket = read("belayd.socket");
    // Which addresses, a drop-in says.
    socket.retain(|line| !line.starts_with("Listen"));
    assert_eq!(read("belayd@.socket").iter().map(named).collect::<Vec<_>>(), socket);
}
