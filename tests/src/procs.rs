//! Real processes: the built `belayd` and `belay`, as an operator and a user run them.
//!
//! [`binary`] finds (and once builds) them, [`Belayd`] keeps one relay with its directory. Every
//! process is killed when its owner is dropped, also by a panic.

use crate::power::record::recorded;
use anyhow::{Context, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// How long a process may take to start, to answer a command, or to leave.
const DEADLINE: Duration = Duration::from_secs(30);

/// The built executable `name`: from `BELAY_BIN_DIR` if that is set, else from a
/// `cargo build --workspace --bins` with the profile and into the target directory of the running
/// program, which happens once. Panics if it cannot be built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<HashMap<String, PathBuf>> = OnceLock::new();
    if let Some(dir) = std::env::var_os("BELAY_BIN_DIR") {
        let path = Path::new(&dir).join(name);
        assert!(path.is_file(), "BELAY_BIN_DIR has no {}", path.display());
        return path;
    }
    let built = BUILT.get_or_init(|| build().expect("the workspace's programs are built"));
    built.get(name).cloned().unwrap_or_else(|| panic!("the workspace has no program {name}"))
}

fn build() -> anyhow::Result<HashMap<String, PathBuf>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--workspace", "--bins", "--message-format=json"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let (target, profile) = own_build()?;
    cargo.arg("--target-dir").arg(target).arg("--profile").arg(profile);
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::piped()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo build failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let messages = output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let executable = |message: Value| {
        let path = PathBuf::from(message.get("executable")?.as_str()?);
        Some((path.file_stem()?.to_str()?.to_owned(), path))
    };
    Ok(messages.filter_map(executable).collect())
}

/// Target directory and profile of the running program. Errors: it was moved, so nobody knows what it is to
/// be tested or measured with.
fn own_build() -> anyhow::Result<(PathBuf, String)> {
    let exe = std::env::current_exe().context("this program has no path")?;
    let moved = || anyhow!("{} does not lie where cargo has built it; set BELAY_BIN_DIR", exe.display());
    let built = exe.ancestors().find(|dir| dir.join(".fingerprint").is_dir()).with_context(moved)?;
    let profile = match built.file_name().and_then(OsStr::to_str).with_context(moved)? {
        "debug" => "dev",
        name => name,
    };
    Ok((built.parent().with_context(moved)?.to_owned(), profile.to_owned()))
}

/// What a finished command left.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Standard output as JSON. Errors: the command failed, or printed something else.
    pub fn json(&self) -> anyhow::Result<Value> {
        ensure!(self.code == Some(0), "exit code {:?}: {}", self.code, self.stderr.trim());
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}", self.stdout))
    }
}

/// Runs a command to its end. Errors: it cannot be started, or takes longer than the deadline; then
/// it is killed.
pub fn run(command: &mut Command) -> anyhow::Result<Ran> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("cannot run {command:?}"))?;
    let pid = child.id();
    let (sender, ended) = mpsc::channel();
    let waiter = thread::spawn(move || sender.send(child.wait_with_output()));
    let output = match ended.recv_timeout(DEADLINE) {
        Ok(output) => output?,
        Err(_) => {
            signal(pid, Signal::KILL);
            let _ = waiter.join();
            bail!("{command:?} did not end within {DEADLINE:?}");
        }
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let Output { status, stdout, stderr } = output;
    Ok(Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr) })
}

fn signal(pid: u32, signal: Signal) {
    // A process that is gone already needs no signal.
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// A child process that says, in its first line of output, where it listens.
#[derive(Debug)]
pub struct Listening {
    child: Child,
    /// The first line, as JSON.
    pub hello: Value,
}

impl Listening {
    /// Starts a command and waits for its first line, a JSON object. Errors: it cannot be started,
    /// ends or says nothing; whatever went wrong, it is gone then.
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut process = Self { child, hello: Value::Null };
        let stdout = process.child.stdout.take().context("no stdout")?;
        let (sender, lines) = mpsc::sync_channel(1);
        // Ends with the process; reads on so that it can never block on its output.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.try_send(line);
            }
        });
        let line = lines.recv_timeout(DEADLINE).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("{command:?} said nothing within {DEADLINE:?}"),
            RecvTimeoutError::Disconnected => anyhow!("{command:?} ended before it listened"),
        })?;
        process.hello = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        Ok(process)
    }

    /// The address in the first line's `listening`.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        let text = self.hello.get("listening").and_then(Value::as_str).context("no address in the first line")?;
        Ok(text.parse()?)
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Nanoseconds of CPU that its threads have used so far; those of ended threads are not in it.
    pub fn cpu_ns(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            sum += text.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
        }
        Ok(sum)
    }

    /// Bytes of memory that are resident.
    pub fn rss_bytes(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.pid()))?;
        let pages: u64 = text.split_whitespace().nth(1).context("an empty statm")?.parse()?;
        Ok(pages * rustix::param::page_size() as u64)
    }

    /// Threads.
    pub fn threads(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/task", self.pid()))?.count())
    }

    /// Sends a signal.
    pub fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits until it has left. Errors: not within the deadline; then it is killed.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM);
        let pid = self.pid();
        // Someone must reap the child; the alarm ends the wait should it never leave.
        let (left, alarm) = mpsc::channel::<()>();
        let alarm = thread::spawn(move || {
            let late = alarm.recv_timeout(DEADLINE + Duration::from_secs(30)) == Err(RecvTimeoutError::Timeout);
            if late {
                signal(pid, Signal::KILL);
            }
            late
        });
        let status = self.child.wait()?;
        drop(left);
        ensure!(!alarm.join().unwrap_or(false), "process {pid} did not leave after SIGTERM");
        Ok(status)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `belayd` process with a directory of its own, which goes with it.
#[derive(Debug)]
pub struct Belayd {
    dir: TempDir,
    process: Listening,
    env: Vec<(String, String)>,
}

impl Belayd {
    /// Starts a relay on a free port of 127.0.0.1 with those additions to its configuration, in
    /// TOML; `listen.quic` and `state.dir` are filled in unless they stand there.
    pub fn start(additions: &str) -> anyhow::Result<Self> {
        Self::start_with_env(additions, &[])
    }

    /// The same with more environment, for `key_env`.
    pub fn start_with_env(additions: &str, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("belayd-").tempdir()?;
        let state = dir.path().join("state").display().to_string();
        let config = with_key(additions, "listen", "quic", "127.0.0.1:0")?;
        fs::write(dir.path().join("belayd.toml"), with_key(&config, "state", "dir", &state)?)?;
        let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let process = serve(dir.path(), &env)?;
        Ok(Self { dir, process, env })
    }

    /// The same with everything recorded that it does to files. `None`: there is no `strace`.
    pub fn start_recorded(additions: &str, log: &Path) -> anyhow::Result<Option<Self>> {
        let dir = tempfile::Builder::new().prefix("belayd-").tempdir()?;
        let state = dir.path().join("state").display().to_string();
        let config = with_key(additions, "listen", "quic", "127.0.0.1:0")?;
        fs::write(dir.path().join("belayd.toml"), with_key(&config, "state", "dir", &state)?)?;
        Ok(serve_recorded(dir.path(), log)?.map(|process| Self { dir, process, env: vec![] }))
    }

    /// Starts a recorded relay again, once it was killed or has left, with another recording.
    pub fn restart_recorded(&mut self, log: &Path) -> anyhow::Result<()> {
        let path = self.config_path();
        let (config, address) = (fs::read_to_string(&path)?, self.address()?);
        fs::write(&path, config.replace("quic = \"127.0.0.1:0\"", &format!("quic = \"{address}\"")))?;
        self.process = serve_recorded(self.dir.path(), log)?.context("there was strace before")?;
        Ok(())
    }

    /// Starts the relay again, on the same state, once it was killed or has left. It listens where
    /// it listened before.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let path = self.config_path();
        let (config, address) = (fs::read_to_string(&path)?, self.address()?);
        fs::write(&path, config.replace("quic = \"127.0.0.1:0\"", &format!("quic = \"{address}\"")))?;
        self.process = serve(self.dir.path(), &self.env)?;
        Ok(())
    }

    /// Where QUIC listens.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        self.process.address()
    }

    /// The directory: `belayd.toml`, `stderr.log`, `state`, and room for a test's own files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The state directory, unless the additions have named one.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("belayd.toml")
    }

    /// What it has logged so far, all starts together.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr.log")).unwrap_or_default()
    }

    /// The process, for signals and figures.
    #[must_use]
    pub fn process(&self) -> &Listening {
        &self.process
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.process.kill9()
    }

    /// SIGTERM, and waits until it has drained and left.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.terminate()
    }

    /// Runs an operator's command with `--json`, such as `["tenant", "list"]`.
    pub fn run<A: AsRef<OsStr>>(&self, args: &[A]) -> anyhow::Result<Value> {
        self.command(args)?.json()
    }

    /// The same, for commands that are to fail.
    pub fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> anyhow::Result<Ran> {
        run(belayd(self.dir.path()).arg("--json").args(args).envs(self.env.iter().cloned()))
    }
}

fn belayd(dir: &Path) -> Command {
    let mut command = Command::new(binary("belayd"));
    command.env_remove("RUST_LOG").env_remove("BELAYD_CONFIG").current_dir(dir);
    command.arg("--config").arg(dir.join("belayd.toml"));
    command
}

fn serve_recorded(dir: &Path, log: &Path) -> anyhow::Result<Option<Listening>> {
    let stderr = File::options().create(true).append(true).open(dir.join("stderr.log"))?;
    let mut command = belayd(dir);
    command.args(["serve", "--json"]);
    let Some(mut command) = recorded(&command, log) else { return Ok(None) };
    Listening::spawn(command.stdin(Stdio::null()).stderr(stderr)).map(Some)
}

fn serve(dir: &Path, env: &[(String, String)]) -> anyhow::Result<Listening> {
    let log = File::options().create(true).append(true).open(dir.join("stderr.log"))?;
    let mut command = belayd(dir);
    command.args(["serve", "--json"]).envs(env.iter().cloned()).stdin(Stdio::null()).stderr(log);
    Listening::spawn(&mut command).with_context(|| fs::read_to_string(dir.join("stderr.log")).unwrap_or_default())
}

/// Puts `key = "value"` into a section of a configuration unless it is there.
fn with_key(config: &str, section: &str, key: &str, value: &str) -> anyhow::Result<String> {
    let table: toml::Table = config.parse().context("the additions are not TOML")?;
    match table.get(section).map(|section| section.get(key)) {
        Some(Some(_)) => Ok(config.to_owned()),
        Some(None) => {
            let header = format!("[{section}]\n");
            ensure!(config.contains(&header), "write [{section}] on a line of its own");
            Ok(config.replacen(&header, &format!("{header}{key} = {value:?}\n"), 1))
        }
        None => Ok(format!("{config}\n[{section}]\n{key} = {value:?}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_are_completed_and_not_contradicted() {
        let config =
            with_key("[state]\nstore_threads = 2\n[log]\nformat = \"json\"", "state", "dir", "/x").expect("valid");
        let table: toml::Table = config.parse().expect("valid");
        assert_eq!(
            (table["state"]["dir"].as_str(), table["state"]["store_threads"].as_integer()),
            (Some("/x"), Some(2))
        );
        assert_eq!(with_key(&config, "state", "dir", "/y").expect("valid"), config);
        assert!(with_key("a = 1", "listen", "quic", "q").expect("valid").ends_with("[listen]\nquic = \"q\"\n"));
        assert!(with_key("[", "a", "b", "c").is_err());
    }

    #[test]
    fn a_relay_starts_answers_dies_and_comes_back() {
        let mut relay = Belayd::start("[limits]\nrequests_per_minute = 7\n").expect("started");
        let address = relay.address().expect("known");
        relay.run(&["tenant", "create", "acme", "--credit", "5"]).expect("created");
        assert!(relay.process().cpu_ns().expect("told") > 0 && relay.process().rss_bytes().expect("told") > 1 << 20);
        relay.kill9().expect("killed");
        assert_eq!(relay.command(&["status"]).expect("ran").code, Some(69));
        relay.restart().expect("started again");
        assert_eq!(relay.address().expect("known"), address);
        let tenants = relay.run(&["tenant", "list"]).expect("listed");
        assert_eq!(tenants[0]["balance_nano_usd"], 5_000_000_000_u64);
        assert!(relay.terminate().expect("left").success(), "{}", relay.log());
    }
}
