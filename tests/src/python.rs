//! Python programs with pinned packages, in virtual environments below `target/`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// True where a test that cannot run must fail instead of being skipped.
#[must_use]
pub fn require_all() -> bool {
    std::env::var("BELAY_REQUIRE_ALL").is_ok_and(|value| value == "1")
}

/// The interpreter of an environment with the packages of `requirements`. `None`, loudly, if it
/// cannot be made and need not be.
#[must_use]
pub fn environment(name: &str, requirements: &Path) -> Option<PathBuf> {
    match make(name, requirements) {
        Ok(python) => Some(python),
        Err(why) => {
            assert!(!require_all(), "no Python environment {name}: {why}");
            eprintln!("SKIPPED: no Python environment {name}: {why}");
            None
        }
    }
}

fn make(name: &str, requirements: &Path) -> Result<PathBuf, String> {
    let dir = target_dir().join("python").join(name);
    let python = dir.join("venv/bin/python");
    once(&dir, requirements, || {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(dir.join("venv")))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--no-deps", "-r"]).arg(requirements))
    })?;
    Ok(python)
}

/// Makes what a list of packages names in a folder, unless that very list was made there before.
pub(crate) fn once(dir: &Path, list: &Path, make: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    fs::create_dir_all(dir).map_err(text)?;
    // Test binaries of several runs may want it at once.
    let lock = File::create(dir.join("lock")).map_err(text)?;
    lock.lock().map_err(text)?;
    let wanted = fs::read(list).map_err(text)?;
    let made = dir.join("made");
    if fs::read(&made).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    make()?;
    fs::write(&made, wanted).map_err(text)
}

/// Runs a command to its end. Errors: it failed, and what it said.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Cargo's target directory: the test binary lies in `<target>/<profile>/deps`.
#[must_use]
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let profile = exe.ancestors().find(|dir| dir.join("deps").is_dir()).unwrap();
    profile.parent().unwrap().to_owned()
}
