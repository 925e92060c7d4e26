//! Node programs with pinned packages, in folders below `target/`.

use crate::python::{require_all, target_dir};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with the packages of `package` (a `package.json`), for programs to be put beside them. `None`,
/// loudly, if it cannot be made and need not be.
#[must_use]
pub fn environment(name: &str, package: &Path) -> Option<PathBuf> {
    match make(name, package) {
        Ok(folder) => Some(folder),
        Err(why) => {
            assert!(!require_all(), "no Node environment {name}: {why}");
            eprintln!("SKIPPED: no Node environment {name}: {why}");
            None
        }
    }
}

fn make(name: &str, package: &Path) -> Result<PathBuf, String> {
    let dir = target_dir().join("node").join(name);
    fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    // Test binaries of several runs may want it at once.
    let lock = File::create(dir.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let wanted = fs::read(package).map_err(|error| error.to_string())?;
    let installed = dir.join("installed.json");
    if fs::read(&installed).is_ok_and(|found| found == wanted) {
        return Ok(dir);
    }
    fs::write(dir.join("package.json"), &wanted).map_err(|error| error.to_string())?;
    let mut command = Command::new("npm");
    command.args(["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"]).current_dir(&dir);
    let output = command.output().map_err(|error| format!("npm: {error}"))?;
    if !output.status.success() {
        return Err(format!("npm install: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    fs::write(&installed, wanted).map_err(|error| error.to_string())?;
    Ok(dir)
}
