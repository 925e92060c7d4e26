//! Running `belay` and `belayd` as their users do, for the modules that test the programs.

use belay_tests::procs::{Belayd, Ran, binary};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a program may take for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until a condition holds.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A relay's configuration but for where it listens and keeps its state: the demo provider with
/// that time between two tokens, at prices that make every token count.
pub(crate) fn demo_config(pace_ms: u32) -> String {
    format!(
        "[listen]\nquic = \"127.0.0.1:0\"\n[limits]\nrequests_per_minute = 100000\nrequests_at_once = 1000\nhandshakes_per_second = 10000\n\
         [timeouts]\ndrain_ms = 3000\nheartbeat_ms = 1000\n[providers.demo]\nkind = \"demo\"\npace_ms = {pace_ms}\n{MODEL}"
    )
}

const MODEL: &str = "[models.demo]\nprovider = \"demo\"\nname = \"demo-1\"\ncontext_tokens = 32000\n\
    max_output_tokens = 4096\nprice = { input = \"3\", output = \"15\" }\n[aliases]\nauto = \"demo\"\n";

/// A program with nothing of the tester's own environment that it would heed.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    clean(&mut command);
    command
}

/// Takes away what the programs heed.
pub(crate) fn clean(command: &mut Command) {
    for name in [
        "BELAY_HOME",
        "BELAY_LOG",
        "BELAY_LISTEN",
        "BELAY_TOKEN",
        "BELAYD_CONFIG",
        "RUST_LOG",
        "ANTHROPIC_API_KEY",
        "OPENAI_API_KEY",
    ] {
        command.env_remove(name);
    }
}

/// `belay` with that home and those arguments.
pub(crate) fn belay(home: &Path, args: &[&str]) -> Command {
    let mut command = program("belay");
    command.arg("--home").arg(home).args(args);
    command
}

/// `belayd` with that configuration and those arguments.
pub(crate) fn belayd(config: &Path, args: &[&str]) -> Command {
    let mut command = program("belayd");
    command.arg("--config").arg(config).args(args);
    command
}

/// Runs a command to its end with nothing on stdin.
pub(crate) fn run(command: &mut Command) -> Ran {
    run_with(command, "")
}

/// Runs a command to its end with that on stdin.
pub(crate) fn run_with(command: &mut Command, input: &str) -> Ran {
    Running::start(command, input).end()
}

/// Exactly one JSON value, and nothing else.
#[track_caller]
pub(crate) fn one_json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not one JSON value ({error}): {text:?}"))
}

/// Asserts an exit code, showing what the program said.
#[track_caller]
pub(crate) fn exits(ran: &Ran, code: i32) {
    assert_eq!(ran.code, Some(code), "stdout: {}\nstderr: {}", ran.stdout, ran.stderr);
}

/// What a program has written so far to one of its outputs.
#[derive(Clone, Default)]
struct Heard(Arc<(Mutex<Output>, Condvar)>);

/// What came so far, and whether that is all.
type Output = (Vec<u8>, bool);

impl Heard {
    /// Reads to the end, in a thread of its own.
    fn listen(&self, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        let heard = self.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let read = from.read(&mut buffer).unwrap_or(0);
                let (state, changed) = &*heard.0;
                let mut state = state.lock().unwrap();
                state.0.extend_from_slice(&buffer[..read]);
                state.1 = read == 0;
                changed.notify_all();
                if read == 0 {
                    return;
                }
            }
        })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().0).into_owned()
    }

    /// Waits until the text is as wanted, or ends. Returns whether it is as wanted.
    fn wait(&self, wanted: impl Fn(&str) -> bool) -> bool {
        let (state, changed) = &*self.0;
        let is_wanted = |bytes: &[u8]| wanted(&String::from_utf8_lossy(bytes));
        let waited =
            changed.wait_timeout_while(state.lock().unwrap(), DEADLINE, |(bytes, over)| !*over && !is_wanted(bytes));
        is_wanted(&waited.unwrap().0.0)
    }
}

/// A running program whose output can be followed. Killed when dropped.
pub(crate) struct Running {
    child: Child,
    stdout: Heard,
    stderr: Heard,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts a command with that on stdin.
    pub(crate) fn start(command: &mut Command, input: &str) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdout, stderr) = (Heard::default(), Heard::default());
        let readers = vec![stdout.listen(child.stdout.take().unwrap()), stderr.listen(child.stderr.take().unwrap())];
        // A program that does not read its input may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Self { child, stdout, stderr, readers }
    }

    /// Waits until stdout is as wanted. Panics if it ends otherwise, or after [`DEADLINE`].
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let came = self.stdout.wait(wanted);
        let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
        assert!(came, "{what} did not come\nstdout: {stdout}\nstderr: {stderr}");
        stdout
    }

    /// What a terminal does at Ctrl-C.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits for its end. Panics, killing it, after [`DEADLINE`].
    #[track_caller]
    pub(crate) fn end(mut self) -> Ran {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
            assert!(Instant::now() < deadline, "it did not end\nstdout: {stdout}\nstderr: {stderr}");
            std::thread::sleep(Duration::from_millis(2));
        };
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Ran { code: status.code(), stdout: self.stdout.text(), stderr: self.stderr.text() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A relay with the tenant `acme`, which has $5.00, and homes for computers.
pub(crate) struct Site {
    pub(crate) relay: Belayd,
    homes: TempDir,
}

impl Site {
    /// With the demo provider at that pace.
    pub(crate) fn start(pace_ms: u32) -> Self {
        Self::with(&demo_config(pace_ms), &[])
    }

    pub(crate) fn with(config: &str, env: &[(&str, &str)]) -> Self {
        let relay = Belayd::start_with_env(config, env).unwrap();
        relay.run(&["tenant", "create", "acme", "--credit", "5"]).unwrap();
        Self { relay, homes: tempfile::tempdir().unwrap() }
    }

    /// A directory for a computer's identity, which may not be there yet.
    pub(crate) fn home(&self, name: &str) -> std::path::PathBuf {
        self.homes.path().join(name)
    }

    /// A new join string.
    pub(crate) fn invite(&self, tenant: &str) -> String {
        self.relay.run(&["invite", tenant]).unwrap()["invite"].as_str().unwrap().to_owned()
    }

    /// Joins a computer of a tenant; its home.
    pub(crate) fn join(&self, name: &str, tenant: &str) -> std::path::PathBuf {
        let home = self.home(name);
        exits(&run(&mut belay(&home, &["join", "--label", name, &self.invite(tenant)])), 0);
        home
    }

    /// Runs `belayd` with its configuration, as it is.
    pub(crate) fn belayd(&self, args: &[&str]) -> Ran {
        run(belayd(&self.relay.config_path(), args).current_dir(self.relay.dir()))
    }

    /// What `tenant list` says of a tenant.
    pub(crate) fn tenant(&self, id: &str) -> Value {
        let tenants = self.relay.run(&["tenant", "list"]).unwrap();
        tenants.as_array().unwrap().iter().find(|tenant| tenant["id"] == id).unwrap().clone()
    }

    /// Fails unless every book is clean and no money is held. The relay may be stopped.
    pub(crate) fn books_are_clean(&self) {
        for book in self.relay.run(&["ledger", "verify"]).unwrap().as_array().unwrap() {
            assert_eq!((&book["problems"], &book["open"]), (&serde_json::json!([]), &0.into()), "{book}");
        }
    }
}
