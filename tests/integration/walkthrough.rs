//! README.md as a reader runs it: the commands are read out of it, so that it cannot drift.
//!
//! What differs from the page, and is replaced in its text: the release build (the harness's
//! programs are put on the PATH instead), `/tmp/belay-demo` (a private directory), the port 4433 (a
//! free one, written into the configuration after `config init`), and what a reader copies from
//! one command into another: the join string and the device's id. `belayd serve` is put in the
//! background. All of these must be on the page, or the test fails.

use crate::background::ask;
use crate::programs::{DEADLINE, Running, clean, exits, one_json, program, run};
use belay_tests::procs::{Ran, binary};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use tempfile::TempDir;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The `sh` blocks of a section of README.md, each as its lines.
fn blocks(section: &str) -> Vec<Vec<String>> {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, rest) = readme.split_once(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("no section {section:?}"));
    let section = rest.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().lines().map(str::to_owned).collect()).collect()
}

/// Where the harness's programs are.
fn bin_dir() -> PathBuf {
    let _ = binary("belay");
    binary("belayd").parent().unwrap().to_owned()
}

/// A shell that a reader types into.
struct Terminal {
    shell: Child,
    answers: Receiver<String>,
    scratch: TempDir,
}

impl Terminal {
    fn open(dir: &Path) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        clean(&mut command);
        command.current_dir(dir).env("HOME", scratch.path());
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(shell.stdout.take().unwrap()).lines();
        let (sender, answers) = channel();
        // Ends with the shell.
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { shell, answers, scratch }
    }

    /// Types a line and waits for its end.
    fn types(&mut self, line: &str) -> Ran {
        let (out, err) = (self.scratch.path().join("out"), self.scratch.path().join("err"));
        // Braces, and not a subshell: what is exported stays.
        let script = format!("{{\n{line}\n}} >{} 2>{} </dev/null\necho $?\n", out.display(), err.display());
        self.shell.stdin.as_mut().unwrap().write_all(script.as_bytes()).unwrap();
        let code = self.answers.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("`{line}` did not end"));
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        Ran { code: code.parse().ok(), stdout: text(&out), stderr: text(&err) }
    }

    /// Types a line that must succeed.
    #[track_caller]
    fn succeeds(&mut self, line: &str) -> Ran {
        let ran = self.types(line);
        assert_eq!(ran.code, Some(0), "$ {line}\n{}\n{}", ran.stdout, ran.stderr);
        ran
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// `belayd serve` in the background of a terminal.
struct Served(rustix::process::Pid);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::KILL);
    }
}

fn is_answer(text: &str) {
    assert!(text.starts_with("Sunlight is a mixture of all colours."), "{text:?}");
    assert!(text.trim_end().ends_with("“les couleurs du soir”, orange and red, remain."), "{text:?}");
}

/// "model, tokens, exact cost, balance, time to first token".
fn is_cost_line(line: &str) {
    let words = ["demo-1 at demo: ", " tokens in, ", " out, cost $0.000", ", balance $4.999", ", first token after "];
    assert!(words.iter().all(|word| line.contains(word)) && line.ends_with(" ms"), "{line:?}");
}

#[test]
fn two_processes_as_in_production() {
    let section = blocks("Two processes, as in production");
    let [relay, tenant, computer, operator] = &section[..] else { panic!("{} blocks", section.len()) };
    let dir = tempfile::tempdir().unwrap();
    let demo = dir.path().join("belay-demo").display().to_string();
    let bins = bin_dir().display().to_string();
    let on_page = |line: &str| line.replace("/tmp/belay-demo", &demo).replace("$PWD/target/release", &bins);

    // First terminal, at the top of the repository.
    let mut first = Terminal::open(&repository());
    let mut served = None;
    let log = dir.path().join("served");
    let mut seen = Vec::new();
    for line in relay {
        match line.as_str() {
            "cargo build --release -p belay-relay -p belay-client" => seen.push("build"),
            "belayd serve" => {
                let path = log.display();
                let pid = first.succeeds(&format!("belayd serve >{path} 2>{path}.err & echo $!")).stdout;
                served = Some(Served(rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap()));
                wait_for_text(&log, "belayd is listening on");
            }
            line => {
                let ran = first.succeeds(&on_page(line));
                if line.starts_with("belayd config init") {
                    seen.push("init");
                    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
                    first
                        .succeeds(&format!("sed -i.bak 's/^quic = .*4433\"/quic = \"127.0.0.1:{port}\"/' belayd.toml"));
                    first.succeeds(&format!("grep -q :{port} belayd.toml"));
                } else if line == "belayd config check" {
                    seen.push("check");
                    assert!(ran.stdout.contains("belayd.toml is valid"), "{}", ran.stdout);
                }
            }
        }
    }
    assert_eq!(seen, ["build", "init", "check"]);
    assert!(served.is_some(), "the page does not serve");

    // Second terminal, in the same directory, with the same PATH.
    let mut second = Terminal::open(Path::new(&demo));
    second.succeeds(&format!("export PATH=\"{bins}:$PATH\""));
    let mut invite = None;
    for line in tenant {
        let ran = second.succeeds(&on_page(line));
        if line.starts_with("belayd invite") {
            assert!(ran.stderr.contains("good for one computer until"), "{}", ran.stderr);
            invite = Some(ran.stdout.trim().to_owned());
        } else {
            assert_eq!(ran.stdout, "tenant acme: balance $5.00\n");
        }
    }
    let invite = invite.expect("the page makes an invite");
    assert!(invite.starts_with("belay1:") && !invite.contains(char::is_whitespace), "{invite:?}");

    let mut asked = 0;
    for line in computer {
        assert!(line.matches("belay1:…").count() == usize::from(line.starts_with("belay join")), "{line}");
        let ran = second.succeeds(&on_page(line).replace("belay1:…", &invite));
        match line.split_whitespace().take(2).collect::<Vec<_>>()[..] {
            ["belay", "join"] => assert!(ran.stdout.contains("of tenant acme"), "{}", ran.stdout),
            ["belay", "status"] => assert!(ran.stdout.contains("up since"), "{}", ran.stdout),
            ["belay", "ask"] => {
                asked += 1;
                is_answer(&ran.stdout);
                is_cost_line(ran.stderr.trim_end());
            }
            ["belay", "balance"] => {
                assert!(ran.stdout.contains("tenant   acme\nbalance  $4.999"), "{}", ran.stdout);
            }
            ["export", _] => {}
            _ => panic!("{line:?} is new on the page: say here what it is to print"),
        }
    }
    assert_eq!(asked, 1);

    let mut revoked = false;
    let mut device: Option<String> = None;
    for line in operator {
        let typed = match (line.contains("laptop-…"), &device) {
            (true, Some(device)) => line.replace("laptop-…", device),
            (true, None) => panic!("the page must list devices before it revokes one"),
            (false, _) => line.clone(),
        };
        let ran = second.succeeds(&on_page(&typed));
        if line == "belayd device list" {
            let row = ran.stdout.lines().nth(1).unwrap();
            device = Some(row.split_whitespace().next().unwrap().to_owned());
            assert!(row.contains("acme") && row.contains("offline"), "{row}");
        } else if line == "belayd ledger verify" {
            let row = ran.stdout.lines().nth(1).unwrap();
            assert!(row.starts_with("acme") && row.ends_with("clean"), "{row}");
        } else if line == "belayd tenant list" {
            assert!(ran.stdout.lines().nth(1).unwrap().starts_with("acme"), "{}", ran.stdout);
        } else {
            assert!(line.starts_with("belayd device revoke"), "{line:?} is new on the page: say here what it prints");
            revoked = true;
        }
    }
    assert!(revoked, "the page does not revoke");
    let out = second.types("belay status");
    exits(&out, 77);
    assert!(out.stderr.contains("revoked"), "{}", out.stderr);

    // What a reader does at the end: Ctrl-C in the first terminal. A job in a shell's background
    // does not hear it, so it is SIGTERM here, which does the same.
    let pid = served.as_ref().unwrap().0;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    first.succeeds(&format!("wait {}", pid.as_raw_nonzero()));
    drop(served);
    assert!(!Path::new(&demo).join("belay-state/admin.sock").exists(), "the admin socket is left behind");
}

/// Waits until a file has a text in it.
fn wait_for_text(path: &Path, text: &str) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !fs::read_to_string(path).unwrap_or_default().contains(text) {
        let error = fs::read_to_string(path.with_extension("err")).unwrap_or_default();
        assert!(std::time::Instant::now() < deadline, "{text:?} did not come: {error}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// The arguments of the page's one command, `cargo run --release -- …`.
fn run_it() -> String {
    let section = blocks("Run it");
    let line = section[0][0].clone();
    line.strip_prefix("cargo run --release -- ").unwrap_or_else(|| panic!("{line:?}")).to_owned()
}

fn in_shell(script: &str, temp: &Path) -> Command {
    let mut command = Command::new("sh");
    clean(&mut command);
    let path = format!("{}:{}", bin_dir().display(), std::env::var("PATH").unwrap());
    command.args(["-c", script]).env("PATH", path).env("TMPDIR", temp);
    command
}

fn is_empty(dir: &Path) {
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn run_it_once() {
    let temp = tempfile::tempdir().unwrap();
    let ran = run(&mut in_shell(&format!("exec belay {} --once", run_it()), temp.path()));
    exits(&ran, 0);
    let (answer, cost) = ran.stdout.trim_end().rsplit_once('\n').unwrap();
    is_answer(answer);
    is_cost_line(cost);
    assert_eq!(ran.stderr, "");
    is_empty(temp.path());
}

#[test]
fn run_it_as_json() {
    let temp = tempfile::tempdir().unwrap();
    let ran = run(&mut in_shell(&format!("exec belay {} --once --json", run_it()), temp.path()));
    exits(&ran, 0);
    let answer = one_json(&ran.stdout);
    is_answer(answer["text"].as_str().unwrap());
    let keys: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    let mut documented = vec![
        "request_id",
        "text",
        "model",
        "provider",
        "usage",
        "cost_nano_usd",
        "balance_nano_usd",
        "estimated",
        "outcome",
        "content",
        "first_token_ms",
        "total_ms",
        "trace_id",
    ];
    documented.sort_unstable();
    assert_eq!(keys, documented);
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no number in {answer}"));
    assert_eq!(answer["request_id"].as_str().unwrap().len(), 32);
    // Nobody has brought a trace of their own.
    assert_eq!(answer["trace_id"], answer["request_id"]);
    assert_eq!((&answer["model"], &answer["provider"]), (&"demo-1".into(), &"demo".into()));
    assert_eq!((&answer["outcome"], &answer["content"]), (&"complete".into(), &"live".into()));
    assert_eq!(answer["estimated"], false);
    // units × price × multiplier, each line rounded up: $0.50 and $1.50 per million, 1.03.
    let line = |units: u64, nano: u64| (units * nano * 103).div_ceil(100);
    let usage = &answer["usage"];
    let cost = line(number(&usage["input_tokens"]), 500) + line(number(&usage["output_tokens"]), 1500);
    assert_eq!(number(&answer["cost_nano_usd"]), cost, "{answer}");
    assert_eq!(number(&answer["balance_nano_usd"]), 5_000_000_000 - cost, "{answer}");
    assert!(number(&answer["first_token_ms"]) <= number(&answer["total_ms"]), "{answer}");
    is_empty(temp.path());
}

#[test]
fn run_it_and_go_on_until_ctrl_c() {
    let temp = tempfile::tempdir().unwrap();
    let script = format!("exec belay {}", run_it());
    let serving = Running::start(&mut in_shell(&script, temp.path()), "");
    let shown = serving.wait_for("the hints", |text| text.contains("Ctrl-C ends it"));
    is_answer(shown.split("\ndemo-1 at demo:").next().unwrap());
    // Programs find the gateway where it says.
    let address = shown.split("OPENAI_BASE_URL=http://").nth(1).unwrap().split('/').next().unwrap();
    let body = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
    let answer = ask(address, "POST /v1/chat/completions", body);
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("demo provider"), "{answer}");
    let hints: Vec<&str> =
        shown.lines().filter_map(|line| line.strip_prefix("  ")).filter(|hint| hint.starts_with("belay")).collect();
    assert_eq!(hints.len(), 3, "{shown}");
    // Each hint is a command that works as it stands.
    let ran: Vec<Ran> = hints.iter().map(|hint| run(&mut in_shell(hint, temp.path()))).collect();
    for ran in &ran {
        exits(ran, 0);
    }
    assert!(hints[0].contains(" ask ") && ran[0].stdout.contains("demo provider"), "{:?}", ran[0]);
    assert!(hints[1].ends_with(" balance") && ran[1].stdout.contains("tenant   dev\nbalance  $4.999"), "{:?}", ran[1]);
    assert!(hints[2].ends_with(" tenant list") && ran[2].stdout.contains("dev "), "{:?}", ran[2]);
    serving.interrupt();
    exits(&serving.end(), 0);
    is_empty(temp.path());
}

#[test]
fn a_sigterm_leaves_nothing_behind_either() {
    let temp = tempfile::tempdir().unwrap();
    let serving = Running::start(program("belay").args(["dev", "hi"]).env("TMPDIR", temp.path()), "");
    serving.wait_for("the hints", |text| text.contains("Ctrl-C ends it"));
    serving.signal(rustix::process::Signal::TERM);
    exits(&serving.end(), 0);
    is_empty(temp.path());
}

#[test]
fn ctrl_c_in_the_middle_of_the_first_answer_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let asking = Running::start(program("belay").args(["dev", "Why is the sky blue?"]).env("TMPDIR", temp.path()), "");
    asking.wait_for("some of the answer", |text| text.contains("molecules"));
    asking.interrupt();
    let ran = asking.end();
    exits(&ran, 1);
    assert!(ran.stdout.contains("cost about $0.000"), "{}", ran.stdout);
    assert!(ran.stderr.contains("cancelled"), "{}", ran.stderr);
    is_empty(temp.path());
}
