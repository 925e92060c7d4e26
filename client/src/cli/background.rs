//! `belay up --background` and `belay down`.

use super::Global;
use anyhow::{Context, bail};
use belay_client::ClientError;
use belay_client::running::Told;
use belay_client::state::StateDir;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a client in the background may take to listen.
const STARTS: Duration = Duration::from_secs(10);
/// How long one may take to end: running answers get a few seconds.
const ENDS: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(20);
/// Of its log, this much is shown if it does not start.
const LOG_SHOWN: usize = 2000;

/// Starts this program again, without a terminal, and returns once it listens.
pub(super) fn start(global: &Global) -> anyhow::Result<()> {
    let state = global.state()?;
    if let Some(told) = state.running()? {
        return show(global, &told, "It runs already:");
    }
    // What cannot work is said here and not in a log.
    state.load()?;
    let log_path = state.log_path();
    let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let arguments = std::env::args_os().skip(1).map(|argument| match argument.to_str() {
        Some("--background") => "--detached".into(),
        _ => argument,
    });
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    detach(&mut command);
    let mut child = command.spawn().context("cannot start in the background")?;
    let until = Instant::now() + STARTS;
    loop {
        if let Some(told) = state.running()? {
            return show(global, &told, "Running in the background:");
        }
        if let Some(status) = child.try_wait()? {
            let said = std::fs::read_to_string(&log_path).unwrap_or_default();
            let from = said.len().saturating_sub(LOG_SHOWN);
            bail!("it ended ({status}): {}", said.get(from..).unwrap_or(&said).trim());
        }
        if Instant::now() > until {
            bail!("it does not listen after {} s; see {}", STARTS.as_secs(), log_path.display());
        }
        std::thread::sleep(LOOK);
    }
}

/// A group of its own: signals of the terminal are not for it.
#[cfg(unix)]
fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

#[cfg(windows)]
fn detach(command: &mut Command) {
    use std::os::windows::process::CommandExt;
    const DETACHED_PROCESS: u32 = 0x8;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    command.creation_flags(DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP);
}

fn show(global: &Global, told: &Told, words: &str) -> anyhow::Result<()> {
    if global.json {
        println!("{}", serde_json::json!({ "listening": told.listen.to_string(), "process": told.process }));
    } else {
        println!("{words} process {}, gateway on http://{}. To end it: belay down", told.process, told.listen);
    }
    Ok(())
}

/// Ends the one that runs.
pub(super) fn down(global: &Global) -> anyhow::Result<()> {
    let state = global.state()?;
    let Some(told) = state.running()? else {
        if state.hold()?.is_none() {
            bail!("belay up is just starting; try again in a moment");
        }
        if global.json {
            println!("{}", serde_json::json!({ "ended": false }));
        } else {
            println!("Nothing runs.");
        }
        return Ok(());
    };
    ask_to_stop(&told).with_context(|| format!("process {} does not answer at {}", told.process, told.listen))?;
    wait_for_end(&state, &told)?;
    if global.json {
        println!("{}", serde_json::json!({ "ended": true, "process": told.process }));
    } else {
        println!("Ended process {}.", told.process);
    }
    Ok(())
}

fn wait_for_end(state: &StateDir, told: &Told) -> anyhow::Result<()> {
    let until = Instant::now() + ENDS;
    while state.hold()?.is_none() {
        if Instant::now() > until {
            bail!("process {} has not ended after {} s", told.process, ENDS.as_secs());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// One small request over loopback, with the secret that only this user can read.
fn ask_to_stop(told: &Told) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&told.listen, STARTS)?;
    stream.set_read_timeout(Some(STARTS))?;
    write!(
        stream,
        "POST /belay/stop HTTP/1.1\r\nHost: {}\r\nbelay-secret: {}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        told.listen, told.secret
    )?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200") {
        return Err(ClientError::State {
            what: "the gateway".into(),
            why: answer.lines().next().unwrap_or("it said nothing").to_owned(),
        }
        .into());
    }
    Ok(())
}
