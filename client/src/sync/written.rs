//! Which files are being written at the moment, where the system tells.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long it is believed which files are open for writing, where many are looked at.
const BELIEVED: Duration = Duration::from_millis(100);

/// What was open for writing when that was looked at last.
static OPEN: Mutex<Option<(Instant, HashSet<PathBuf>)>> = Mutex::new(None);

/// Of these files, those that a process of this user has open for writing. Only where the system tells; elsewhere a file
/// counts as written once it has been quiet for a while.
pub(super) fn is_being_written(files: &HashSet<PathBuf>) -> HashSet<PathBuf> {
    if files.is_empty() || !cfg!(target_os = "linux") {
        return HashSet::new();
    }
    let now = open_for_writing();
    let written = files.iter().filter(|file| file.canonicalize().is_ok_and(|file| now.contains(&file))).cloned();
    let written = written.collect();
    *OPEN.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), now));
    written
}

/// The same of one file, where many are looked at one after the other.
pub(super) fn is_written(file: &Path) -> bool {
    let known = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    match &*known {
        Some((since, open)) if since.elapsed() < BELIEVED => file.canonicalize().is_ok_and(|file| open.contains(&file)),
        _ => {
            drop(known);
            !is_being_written(&HashSet::from([file.to_owned()])).is_empty()
        }
    }
}

/// A new round begins: what was open then says nothing.
pub(super) fn look_anew() {
    *OPEN.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// All files that a process of this user has open for writing.
fn open_for_writing() -> HashSet<PathBuf> {
    let mut open = HashSet::new();
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &str| name != own && name.bytes().all(|byte| byte.is_ascii_digit());
    for process in processes.filter(|entry| entry.file_name().to_str().is_some_and(is_process)) {
        // Those of others cannot be looked at.
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            // Sockets, pipes and the like have no path.
            if !target.is_absolute() {
                continue;
            }
            let info = process.path().join("fdinfo").join(descriptor.file_name());
            let info = fs::read_to_string(info).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
            // O_WRONLY or O_RDWR.
            if flags & 0o3 != 0 {
                open.insert(target);
            }
        }
    }
    open
}
