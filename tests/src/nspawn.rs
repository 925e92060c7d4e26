//! A small machine with a real systemd, whose `/usr` is this one's: units are tried there as they are.

use crate::procs::Ran;
use crate::python::require_all;
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long it may take to boot, and any command in it.
const PATIENCE: Duration = Duration::from_secs(60);
/// And to clean up.
const CLEANS_UP: Duration = Duration::from_secs(5);

/// What of this computer is seen there, and where.
#[derive(Debug, Clone)]
pub struct Bind {
    /// Here.
    pub from: PathBuf,
    /// There.
    pub to: String,
    /// May be written there.
    pub writable: bool,
}

impl Bind {
    /// To be read.
    pub fn read(from: impl Into<PathBuf>, to: impl Into<String>) -> Self {
        Self { from: from.into(), to: to.into(), writable: false }
    }

    /// To be written too.
    pub fn write(from: impl Into<PathBuf>, to: impl Into<String>) -> Self {
        Self { from: from.into(), to: to.into(), writable: true }
    }
}

/// The user of a machine, number 1000, with a home that lasts as long as the test.
pub const USER: &str = "desk";

/// What a machine has of this computer's disk.
#[derive(Debug, Clone, Copy)]
enum Root {
    OnlyUsr,
    Whole,
}

/// A machine that runs. Ended when dropped.
#[derive(Debug)]
pub struct Machine {
    nspawn: Child,
    leader: u32,
    _files: TempDir,
}

impl Machine {
    /// Boots one, with the network of this computer. `None`, loudly, if that cannot be and need not be.
    #[must_use]
    pub fn boot(binds: &[Bind]) -> Option<Self> {
        Self::boot_from(Root::OnlyUsr, binds)
    }

    /// Boots one that has all of this computer's disk, to install packages on; what it writes goes with it.
    #[must_use]
    pub fn boot_whole(binds: &[Bind]) -> Option<Self> {
        Self::boot_from(Root::Whole, binds)
    }

    fn boot_from(root: Root, binds: &[Bind]) -> Option<Self> {
        if let Err(why) = can_boot() {
            assert!(!require_all(), "no machine: {why}");
            eprintln!("SKIPPED: no machine: {why}");
            return None;
        }
        Some(Self::start(root, binds).unwrap())
    }

    fn start(root: Root, binds: &[Bind]) -> std::io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let files = tempfile::tempdir()?;
        let user = files.path().join("user.conf");
        std::fs::write(&user, format!("u {USER} 1000 - /home/{USER} /bin/sh\n"))?;
        // Its manager without a login: PAM has nothing to say here.
        let manager = files.path().join("manager");
        std::fs::create_dir(&manager)?;
        let lines = "[Service]\nPAMName=\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\nRuntimeDirectory=user/%i\n";
        std::fs::write(manager.join("test.conf"), format!("{lines}RuntimeDirectoryMode=0700\n"))?;
        let name = format!("belay-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut command = match root {
            Root::OnlyUsr => {
                let mut command = Command::new("systemd-nspawn");
                command.args(["-D", "/", "--volatile=yes"]);
                command
            }
            // The root directory itself cannot lie below what is written. Its other name exists for this process and its
            // children only, so that nobody who removes a directory here ever removes what it shows.
            Root::Whole => {
                let seen = files.path().join("root");
                std::fs::create_dir(&seen)?;
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-c"]);
                command
                    .arg("mount --bind / \"$0\" && exec systemd-nspawn -D \"$0\" --volatile=overlay \"$@\"")
                    .arg(seen);
                command
            }
        };
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").args(["--quiet", "-M", &name]);
        command.args(["--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=off", "--timezone=off"]);
        let own =
            [Bind::read(user, "/etc/sysusers.d/test.conf"), Bind::read(manager, "/etc/systemd/system/user@.service.d")];
        for Bind { from, to, writable } in own.iter().chain(binds) {
            let way = if *writable { "--bind" } else { "--bind-ro" };
            command.arg(format!("{way}={}:{to}", from.display()));
        }
        command.args(["/usr/lib/systemd/systemd", "systemd.unit=basic.target"]);
        let nspawn = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut machine = Self { nspawn, leader: 0, _files: files };
        let began = Instant::now();
        while !machine.is_up() {
            assert!(began.elapsed() < PATIENCE, "the machine does not boot");
            assert!(machine.nspawn.try_wait()?.is_none(), "the machine has ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(machine)
    }

    fn is_up(&mut self) -> bool {
        // The last one: nspawn has others in between while it sets the machine up.
        let Some(leader) = self.children().last().copied() else { return false };
        self.leader = leader;
        // It answers once its bus does; what fails to start there, such as a login service, is of no interest.
        ["running", "degraded"].contains(&self.root(&["systemctl", "is-system-running"]).stdout.trim())
    }

    fn children(&self) -> Vec<u32> {
        let parent = self.nspawn.id();
        let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
    }

    /// Runs a command there as root.
    #[must_use]
    pub fn root(&self, command: &[&str]) -> Ran {
        let mut enter = Command::new("nsenter");
        enter.args(["-t", &self.leader.to_string(), "-m", "-u", "-i", "-n", "-p", "-C"]).args(command);
        let output = enter.env_clear().env("PATH", "/usr/bin:/usr/sbin").stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs a command there as the user, with the user's manager.
    #[must_use]
    pub fn user(&self, command: &[&str]) -> Ran {
        let home = format!("HOME=/home/{USER}");
        let as_user =
            ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/user/1000"];
        self.root(&[&as_user[..], &[&home], command].concat())
    }

    /// A property of one of the user's units.
    #[must_use]
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.user(&["systemctl", "--user", "show", "--value", "-p", name, unit]).stdout.trim().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With its first process all others end, and nspawn cleans up.
        for child in self.children() {
            if let Some(child) = i32::try_from(child).ok().and_then(Pid::from_raw) {
                let _ = kill_process(child, Signal::KILL);
            }
        }
        let began = Instant::now();
        while self.nspawn.try_wait().is_ok_and(|status| status.is_none()) {
            if began.elapsed() > CLEANS_UP {
                let _ = self.nspawn.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn can_boot() -> Result<(), String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    for (program, package) in [("systemd-nspawn", "systemd-container"), ("nsenter", "util-linux")] {
        if !std::env::split_paths(&paths).any(|folder| folder.join(program).exists()) {
            return Err(format!("there is no {program}; install Debian's package {package}"));
        }
    }
    match rustix::process::getuid().is_root() {
        true => Ok(()),
        false => Err("only root boots one".into()),
    }
}

/// Gives a folder and all in it to the machine's user.
pub fn give(path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::chown(path, Some(1000), Some(1000))?;
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path())?;
        }
    }
    Ok(())
}
