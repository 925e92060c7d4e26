//! How soon the programs are there, and what they hold while nobody wants anything.

use crate::report::{Report, Samples};
use anyhow::{Context, ensure};
use belay_tests::procs::{Belayd, Listening, binary};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The figures that come from here.
pub(crate) const NAMES: [&str; 5] =
    ["relay_ready", "help_printed", "status_printed", "idle_relay_memory", "idle_client_memory"];

/// From the start of `belayd` to the notice that it serves, in microseconds.
const READY_US: f64 = 100_000.0;
/// From the start of `belay` to its output, in microseconds.
const PRINTED_US: f64 = 30_000.0;
/// Resident memory of an idle `belayd` and `belay up`, in MiB.
const RELAY_MIB: f64 = 24.0;
const CLIENT_MIB: f64 = 16.0;

/// How often each is started, and how long both are let be before they are weighed.
#[derive(Debug)]
pub(crate) struct Size {
    pub(crate) starts: usize,
    pub(crate) idle: Duration,
}

const CONFIG: &str = "[providers.demo]\nkind = \"demo\"\n[models.demo]\nprovider = \"demo\"\ncontext_tokens = 32000\n\
    max_output_tokens = 4096\nprice = { input = \"3\", output = \"15\" }\n[aliases]\nauto = \"demo\"\n";

/// Starts them again and again, and lets them be.
pub(crate) async fn measure(size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let mut belayd = Belayd::start(CONFIG)?;
    belayd.run(&["tenant", "create", "acme", "--credit", "5"])?;
    let home = belayd.dir().join("home");
    let invite = belayd.run(&["invite", "acme"])?["invite"].as_str().context("an invite")?.to_owned();
    printed(&home, &["join", &invite])?;
    let mut up = Command::new(binary("belay"));
    let mut up = Listening::spawn(up.arg("--home").arg(&home).args(["--json", "up", "--listen", "127.0.0.1:0"]))?;
    let (mut help, mut status) = (Samples::default(), Samples::default());
    for _ in 0..size.starts {
        help.push(printed(&home, &["--help"])?);
        status.push(printed(&home, &["status"])?);
    }
    // One request, so that what is made when it is needed is there.
    printed(&home, &["ask", "--max-tokens", "3", "hello"])?;
    tokio::time::sleep(size.idle).await;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (relay, client) = (mib(belayd.process().rss_bytes()?), mib(up.rss_bytes()?));
    up.terminate()?;
    belayd.terminate()?;
    let mut ready = Samples::default();
    for _ in 0..size.starts {
        ready.push(ready_after(&belayd)?);
    }
    report.times("relay_ready", &ready).bar(READY_US, 1.0);
    report.times("help_printed", &help).bar(PRINTED_US, 1.0);
    report.times("status_printed", &status).bar(PRINTED_US, 1.0);
    report.figure("idle_relay_memory", relay, "MiB").bar(RELAY_MIB, 1.0);
    report.figure("idle_client_memory", client, "MiB").bar(CLIENT_MIB, 1.0);
    Ok(())
}

/// Nanoseconds from the start of `belay` to its end: what it prints, it prints right before.
fn printed(home: &Path, args: &[&str]) -> anyhow::Result<u64> {
    let mut command = Command::new(binary("belay"));
    command.arg("--home").arg(home).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let ended = command.status()?;
    let took = began.elapsed();
    ensure!(ended.success(), "belay {args:?}: {ended}");
    Ok(u64::try_from(took.as_nanos())?)
}

/// Nanoseconds from the start of `belayd`, on the state that is there, to what it tells a service manager.
fn ready_after(relay: &Belayd) -> anyhow::Result<u64> {
    let path = relay.dir().join("notify");
    let _ = std::fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut command = Command::new(binary("belayd"));
    command.arg("--config").arg(relay.config_path()).arg("serve").env("NOTIFY_SOCKET", &path);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let mut process = command.stdout(Stdio::null()).spawn()?;
    let took = loop {
        let mut said = [0; 4096];
        let len = socket.recv(&mut said);
        match len {
            Ok(len) if said[..len].windows(7).any(|word| word == b"READY=1") => break Ok(began.elapsed()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    process.kill()?;
    process.wait()?;
    Ok(u64::try_from(took?.as_nanos())?)
}
