//! The Debian packages, made as `systemd/packages` makes them, of the programs under test.

use crate::procs::binary;
use crate::python::{once, require_all, run, target_dir};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the script needs, in the versions that it was written for.
const TOOLS: [(&str, &str, &[&str]); 2] =
    [("cargo-deb", "3.8.0", &[]), ("cargo-about", "0.9.3", &["--features", "cli"])];

/// Both packages.
#[derive(Debug)]
pub struct Packages {
    /// Of the relay.
    pub belayd: PathBuf,
    /// Of the client.
    pub belay: PathBuf,
    // Nobody makes them anew while they are used.
    _lock: File,
}

/// Makes the packages. `None`, loudly, if they cannot be made and need not be.
#[must_use]
pub fn packages() -> Option<Packages> {
    match make() {
        Ok(packages) => Some(packages),
        Err(why) => {
            assert!(!require_all(), "no packages: {why}");
            eprintln!("SKIPPED: no packages: {why}");
            None
        }
    }
}

fn make() -> Result<Packages, String> {
    let text = |error: std::io::Error| error.to_string();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tools = target_dir().join("tools");
    let list = root.join("tests/src/packages.rs");
    if !TOOLS.iter().all(|(name, version, _)| is_there(name, version)) {
        once(&tools, &list, || TOOLS.iter().try_for_each(|tool| install(&tools, *tool)))?;
    }
    let lock = File::create(target_dir().join("packages.lock")).map_err(text)?;
    lock.lock().map_err(text)?;
    let programs = binary("belayd");
    let path = std::env::join_paths(
        [tools.join("bin")].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    let mut script = Command::new("bash");
    script.arg(root.join("systemd/packages")).arg(programs.parent().unwrap_or(Path::new(".")));
    run(script.env("PATH", path.map_err(|error| error.to_string())?).env_remove("CARGO_TARGET_DIR"))?;
    let made = fs::read_dir(root.join("target/packages")).map_err(text)?;
    let made: Vec<PathBuf> = made.flatten().map(|entry| entry.path()).collect();
    let named = |prefix: &str| {
        let is_it = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        made.iter().find(is_it).cloned().ok_or_else(|| format!("the script made no {prefix}"))
    };
    Ok(Packages { belayd: named("belayd_")?, belay: named("belay_")?, _lock: lock })
}

fn is_there(name: &str, version: &str) -> bool {
    let said = Command::new(name).arg("--version").stdin(Stdio::null()).output();
    said.is_ok_and(|said| said.status.success() && String::from_utf8_lossy(&said.stdout).contains(version))
}

fn install(tools: &Path, (name, version, features): (&str, &str, &[&str])) -> Result<(), String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["install", "--locked", "--quiet", name, "--version", version, "--root"]).arg(tools).args(features);
    // Not into the target directory of the workspace, whose lock a test run may hold.
    run(cargo.env_remove("CARGO_TARGET_DIR"))
}
