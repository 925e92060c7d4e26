//! The Debian packages, installed in machines with a real systemd: what an operator and a user do with them.

use crate::programs::{exits, one_json, until};
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::nspawn::{Bind, Machine};
use belay_tests::packages::{Packages, packages};
use belay_tests::procs::Ran;
use serde_json::Value;
use std::net::{TcpListener, UdpSocket};

/// A machine with a Debian on it that nothing of ours was ever installed on.
struct Node {
    machine: Machine,
    port: u16,
    _files: tempfile::TempDir,
}

impl Node {
    /// `offset` tells machines apart that run at once.
    fn boot(packages: &Packages, offset: u16) -> Option<Self> {
        let first = 12_000 + u16::try_from(std::process::id() % 7_000).unwrap() + offset;
        let is_free = |port: &u16| UdpSocket::bind(("::", *port)).is_ok() && TcpListener::bind(("::", *port)).is_ok();
        let port = (first..20_000).find(is_free).unwrap();
        let files = tempfile::tempdir().unwrap();
        // What the machine shares with this computer is its network, so its port is another one.
        let socket =
            format!("[Socket]\nListenDatagram=\nListenStream=\nListenDatagram=[::]:{port}\nListenStream=[::]:{port}\n");
        std::fs::create_dir(files.path().join("socket")).unwrap();
        std::fs::write(files.path().join("socket/test.conf"), socket).unwrap();
        let binds = [
            Bind::read(packages.belayd.parent().unwrap(), "/packages"),
            Bind::read(files.path().join("socket"), "/etc/systemd/system/belayd.socket.d"),
            Bind::write(files.path(), "/shared"),
            // Containers are often told not to start services; this one is a machine.
            Bind::read("/usr/bin/true", "/usr/sbin/policy-rc.d"),
        ];
        Machine::boot_whole(&binds).map(|machine| Self { machine, port, _files: files })
    }

    fn sh(&self, script: &str) -> Ran {
        self.machine.root(&["sh", "-c", script])
    }

    /// Runs a script that must succeed; what it printed.
    #[track_caller]
    fn did(&self, script: &str) -> String {
        let ran = self.sh(script);
        assert_eq!(ran.code, Some(0), "{script}: {} {}\n{}", ran.stdout, ran.stderr, self.log());
        ran.stdout
    }

    fn log(&self) -> String {
        self.sh("journalctl -u belayd --no-pager -n 30").stdout
    }

    fn of(&self, name: &str) -> String {
        self.sh(&format!("systemctl show --value -p {name} belayd")).stdout.trim().to_owned()
    }

    fn install(&self, package: &str) -> Ran {
        self.sh(&format!("DEBIAN_FRONTEND=noninteractive dpkg -i {package}"))
    }

    /// What an operator writes into the configuration that came with the package.
    fn configure(&self, provider: &str) {
        let port = self.port;
        let toml = "/etc/belayd/belayd.toml";
        // Lines that stand in it, with what is to be named put in.
        self.did(&format!(
            "sed -i 's|^public = .*|public = [\"127.0.0.1:{port}\"]|; s|^quic = .*|quic = \"[::]:{port}\"|; \
             s|^# \\[providers.openai\\]|[providers.openai]\\nany_model = true\\nprices = \"openai\"\\nurl = \"{provider}/v1\"|; \
             s|^# kind = \"openai\"|kind = \"openai\"|; s|^# key_file = \"/etc/belayd/openai.key\"|key_file = \"/etc/belayd/openai.key\"|' {toml}"
        ));
        self.did("printf sk-planted-1234567890 | install -m 400 -o belayd /dev/stdin /etc/belayd/openai.key");
        self.did("belayd config check");
    }

    fn belay(&self, command: &str) -> Value {
        let ran = self.sh(&format!("BELAY_HOME=/root/desk belay --json {command}"));
        assert_eq!(ran.code, Some(0), "{command}: {} {}\n{}", ran.stdout, ran.stderr, self.log());
        ran.stdout
            .lines()
            .last()
            .and_then(|line| serde_json::from_str(line).ok())
            .unwrap_or_else(|| one_json(&ran.stdout))
    }

    fn tenant(&self) -> Value {
        one_json(&self.did("belayd --json tenant list"))[0].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_operator_comes_from_the_package_to_an_answer_and_back_from_a_lost_disk() {
    let Some(packages) = packages() else { return };
    let Some(node) = Node::boot(&packages, 0) else { return };
    let Some(desk) = Node::boot(&packages, 40) else { return };
    let provider = FakeProvider::start().await.unwrap();
    provider.set_script(Script::tokens(20));
    let url = provider.url();
    tokio::task::spawn_blocking(move || way(&node, &desk, &url)).await.unwrap();
    assert!(provider.counts().requests >= 2);
}

fn way(node: &Node, desk: &Node, provider: &str) {
    let installed = node.install("/packages/belayd_*.deb");
    exits(&installed, 0);
    assert!(installed.stderr.contains("belayd config check && systemctl start belayd"), "{}", installed.stderr);
    // Nothing starts that nobody has configured.
    assert_eq!((node.of("ActiveState"), node.of("UnitFileState")), ("inactive".into(), "enabled".into()));
    node.did("belayd config check");
    node.configure(provider);
    node.did("sed -i 's|^# listen = \"127.0.0.1:9470\"|listen = \"127.0.0.1:0\"|' /etc/belayd/belayd.toml");
    node.did("systemctl start belayd");
    assert_eq!(node.of("ActiveState"), "active");
    node.did("belayd tenant create acme --credit 5");
    let invite = one_json(&node.did("belayd --json invite acme"))["invite"].as_str().unwrap().to_owned();

    exits(&desk.install("/packages/belay_*.deb"), 0);
    desk.belay(&format!("join {invite}"));
    let ask = |question: &str| {
        let answer = desk.belay(&format!("ask --model openai/gpt-5-mini --session plans --max-tokens 50 '{question}'"));
        assert!(answer["text"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
    };
    ask("hello");
    desk.did("mkdir -p /root/notes && seq 1 20000 > /root/notes/numbers.txt && echo 'a note' > /root/notes/note.md");
    desk.belay("sync folders --knowledge /root/notes");
    desk.belay("sync --once");
    // The metrics, by the token, where the start's line says.
    let metrics = node.did(
        "url=$(journalctl -u belayd --no-pager -o cat | sed -n 's/^metrics: \\(http[^ ]*\\) .*/\\1/p' | tail -1); \
         curl -sf -H \"Authorization: Bearer $(cat /var/lib/belayd/admin.token)\" $url",
    );
    assert!(metrics.contains("belay_tunnels"), "{metrics}");
    node.did("belayd backup /var/backups/belayd && belayd verify-backup /var/backups/belayd");
    let before = (node.tenant(), desk.belay("balance"), desk.belay("sessions list"));

    // The disk is lost.
    node.did("systemctl stop belayd && find /var/lib/belayd -mindepth 1 -delete");
    let restored = node.did("belayd restore /var/backups/belayd && systemctl start belayd");
    assert!(restored.contains("1 tenants"), "{restored}");
    let after = (node.tenant(), desk.belay("balance"), desk.belay("sessions list"));
    assert_eq!(after, before);
    ask("hello again");
    assert_eq!(one_json(&node.did("belayd --json device list")).as_array().unwrap().len(), 1);
    let session = desk.belay("sessions list");
    assert_eq!(session[0]["messages"].as_u64(), Some(4), "{session}");
    // Its documents reach another computer.
    let other = one_json(&node.did("belayd --json invite acme"))["invite"].as_str().unwrap().to_owned();
    desk.did(&format!(
        "export BELAY_HOME=/root/other; belay join {other} && mkdir /root/copy && \
        belay sync folders --knowledge /root/copy && belay sync --once && diff -r /root/notes /root/copy -x '.belay*'"
    ));
    // What root does to a relay that does not run leaves it files that it can use.
    node.did("belayd ledger verify && systemctl stop belayd && belayd ledger verify && belayd master-key rotate");
    assert_eq!(node.did("find /var/lib/belayd ! -user belayd").trim(), "");
    node.did("systemctl start belayd && belayd ledger verify");
    ask("under another key");
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_are_installed_upgraded_removed_and_purged_as_debian_does() {
    let Some(packages) = packages() else { return };
    let Some(node) = Node::boot(&packages, 80) else { return };
    let provider = FakeProvider::start().await.unwrap();
    provider.set_script(Script::tokens(5));
    let url = provider.url();
    tokio::task::spawn_blocking(move || life(&node, &url)).await.unwrap();
}

fn life(node: &Node, provider: &str) {
    let file = |path: &str| node.sh(&format!("test -e {path}")).code == Some(0);
    exits(&node.install("/packages/belayd_*.deb /packages/belay_*.deb"), 0);
    for path in [
        "/usr/share/man/man1/belayd.1.gz",
        "/usr/share/man/man1/belayd-tenant-create.1.gz",
        "/usr/share/man/man1/belay-ask.1.gz",
        "/usr/share/bash-completion/completions/belayd",
        "/usr/share/zsh/vendor-completions/_belay",
        "/usr/share/fish/vendor_completions.d/belay.fish",
        "/usr/share/doc/belayd/copyright",
        "/usr/share/doc/belayd/changelog.Debian.gz",
        "/usr/lib/systemd/user/belay.service",
    ] {
        assert!(file(path), "{path}");
    }
    let licences = node.did("zcat /usr/share/doc/belayd/licences.gz");
    assert!(licences.contains("quinn 0.11") && licences.contains("Apache License"), "{licences}");
    // Pages that can be read, and completions that a shell takes.
    let page = node.did("man --warnings -l /usr/share/man/man1/belayd-invite.1.gz 2>&1 | col -b");
    assert!(page.contains("join string") && !page.contains("warning"), "{page}");
    node.did("bash -c '. /usr/share/bash-completion/completions/belayd'");
    node.did("systemd-analyze verify --man=no belayd.service belayd.socket && XDG_RUNTIME_DIR=/run systemd-analyze verify --user --man=no belay.service");

    node.configure(provider);
    node.did("systemctl start belayd && belayd tenant create acme --credit 5");
    let invite = one_json(&node.did("belayd --json invite acme"))["invite"].as_str().unwrap().to_owned();
    node.belay(&format!("join {invite}"));
    let ask = || node.belay("ask --model openai/gpt-5-mini --max-tokens 10 hello")["text"].clone();
    assert_ne!(ask(), Value::Null);

    // The next version: what runs is restarted, the sockets stay, and what the operator has written stays.
    let process = node.of("MainPID");
    let socket = || node.did("systemctl show --value -p ActiveEnterTimestampMonotonic belayd.socket");
    let opened = socket();
    node.did(
        "cd /shared && dpkg-deb -R /packages/belayd_*.deb next && sed -i 's/^Version: .*/Version: 9.0.0-1/' next/DEBIAN/control \
         && dpkg-deb -b -Znone next next.deb",
    );
    exits(&node.install("/shared/next.deb"), 0);
    until("the next version", || node.of("MainPID") != process && node.of("ActiveState") == "active");
    assert_eq!(socket(), opened);
    assert_ne!(ask(), Value::Null);
    assert!(node.did("cat /etc/belayd/belayd.toml").contains("any_model = true"));

    // Removed: nothing runs, nothing is lost.
    exits(&node.sh("DEBIAN_FRONTEND=noninteractive dpkg -r belayd"), 0);
    assert!(!file("/usr/bin/belayd") && file("/var/lib/belayd/central.db") && file("/etc/belayd/belayd.toml"));
    assert_eq!(node.of("ActiveState"), "inactive");
    exits(&node.install("/packages/belayd_*.deb"), 0);
    node.did("systemctl start belayd");
    assert_ne!(ask(), Value::Null);

    // Purged: the configuration goes, and the books only if somebody has said so.
    let purged = node.sh("DEBIAN_FRONTEND=noninteractive dpkg -P belayd");
    exits(&purged, 0);
    assert!(purged.stderr.contains("/var/lib/belayd is left: it has the books"), "{} {}", purged.stdout, purged.stderr);
    assert!(file("/var/lib/belayd/central.db") && !file("/etc/belayd/belayd.toml") && file("/etc/belayd/openai.key"));
    exits(&node.install("/packages/belayd_*.deb"), 0);
    node.did("echo 'belayd belayd/remove-state boolean true' | debconf-set-selections");
    exits(&node.sh("DEBIAN_FRONTEND=noninteractive dpkg -P belayd"), 0);
    assert!(!file("/var/lib/belayd"));
    exits(&node.sh("DEBIAN_FRONTEND=noninteractive dpkg -P belay"), 0);
    assert!(!file("/usr/bin/belay"));
}
