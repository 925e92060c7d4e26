//! Node programs with pinned packages, in folders below `target/`.

use crate::python::{once, require_all, run, target_dir};
use std::fs;
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
    once(&dir, package, || {
        fs::copy(package, dir.join("package.json")).map_err(|error| error.to_string())?;
        let mut npm = Command::new("npm");
        run(npm.args(["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"]).current_dir(&dir))
    })?;
    Ok(dir)
}
