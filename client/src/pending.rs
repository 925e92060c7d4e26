//! Requests whose end this computer has not seen: what a restarted client needs to go on with them.
//!
//! One file a request, named by its id, in `requests/` of the client's state: the number of the next
//! event that is wanted, in twenty digits, then a line of JSON. The number is written over before the
//! relay is told, so it is never behind what the relay has forgotten. It survives the death of the
//! process, not of the machine: it is not synced. No word of a question or an answer is in
//! these files.

use crate::error::ClientError;
use belay_certs::file;
use belay_protocol::id::RequestId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The digits of the largest number, so that it never changes its length.
const DIGITS: usize = 20;
/// The relay keeps nothing that is older than a day; a day more forgives a clock.
const KEPT_MS: u64 = 2 * 24 * 3600 * 1000;

/// A request whose end was not seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PendingRequest {
    /// The request.
    pub request_id: RequestId,
    /// The model that was asked for.
    pub model: String,
    /// When it was sent, milliseconds since 1970.
    pub started_ms: u64,
    /// The number of the next event that is wanted.
    pub next: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    model: String,
    started_ms: u64,
}

/// The directory of a client's requests.
#[derive(Debug, Clone)]
pub struct Pending {
    dir: PathBuf,
}

impl Pending {
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// All of them, the newest first. Files that are damaged or too old are removed.
    pub fn list(&self, now_ms: u64) -> Result<Vec<PendingRequest>, ClientError> {
        let mut found = vec![];
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(unusable(&self.dir, &error)),
        };
        for entry in entries.flatten() {
            // A name that is no id is a file that is just being written.
            if entry.file_name().to_str().is_none_or(|name| name.parse::<RequestId>().is_err()) {
                continue;
            }
            match read(&entry.path()) {
                Some(request) if request.started_ms.saturating_add(KEPT_MS) > now_ms => found.push(request),
                // Another client may have removed it meanwhile.
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        found.sort_by_key(|request| (std::cmp::Reverse(request.started_ms), request.request_id));
        Ok(found)
    }

    /// A request is about to be sent.
    pub(crate) fn begin(&self, id: RequestId, model: &str, now_ms: u64) -> Result<Record, ClientError> {
        file::create_private_dir(&self.dir)?;
        let path = self.path(id);
        let header = serde_json::to_string(&Header { model: model.to_owned(), started_ms: now_ms })
            .map_err(|error| unusable(&path, &error))?;
        file::write_private(&path, format!("{:0DIGITS$}\n{header}\n", 0).as_bytes())?;
        self.record(path, 0)
    }

    /// A request that was sent before. `None`: nothing is known of it here.
    pub(crate) fn open(&self, id: RequestId) -> Result<Option<Record>, ClientError> {
        let path = self.path(id);
        read(&path).map(|request| self.record(path, request.next)).transpose()
    }

    fn record(&self, path: PathBuf, next: u64) -> Result<Record, ClientError> {
        let file = File::options().write(true).open(&path).map_err(|error| unusable(&path, &error))?;
        Ok(Record { file, path, next })
    }

    fn path(&self, id: RequestId) -> PathBuf {
        self.dir.join(id.to_string())
    }
}

fn read(path: &Path) -> Option<PendingRequest> {
    let request_id = path.file_name()?.to_str()?.parse().ok()?;
    let text = fs::read_to_string(path).ok()?;
    let (next, header) = text.split_once('\n')?;
    let header: Header = serde_json::from_str(header).ok()?;
    Some(PendingRequest { request_id, model: header.model, started_ms: header.started_ms, next: next.parse().ok()? })
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> ClientError {
    ClientError::State { what: path.display().to_string(), why: error.to_string() }
}

/// The file of one request.
#[derive(Debug)]
pub(crate) struct Record {
    file: File,
    path: PathBuf,
    next: u64,
}

impl Record {
    /// The number of the next event that is wanted, as it stands in the file.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Everything below `next` has been read.
    pub(crate) fn note(&mut self, next: u64) -> Result<(), ClientError> {
        if next == self.next {
            return Ok(());
        }
        let written =
            self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(format!("{next:0DIGITS$}").as_bytes()));
        written.map_err(|error| unusable(&self.path, &error))?;
        self.next = next;
        Ok(())
    }

    /// The end was seen.
    pub(crate) fn forget(self) {
        // What cannot be removed is found to be too old one day.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_client_finds_its_requests_and_how_far_they_were_read() {
        let home = tempfile::tempdir().expect("made");
        let pending = Pending::at(home.path().join("requests"));
        assert_eq!(pending.list(0).expect("empty"), vec![]);
        let (old, new) = (RequestId([1; 16]), RequestId([2; 16]));
        let mut record = pending.begin(old, "auto", 1000).expect("written");
        for next in [1, 2, 300, u64::MAX] {
            record.note(next).expect("written");
        }
        drop(record);
        let record = pending.begin(new, "claude", 2000).expect("written");
        let found = pending.list(3000).expect("read");
        let short = |request: &PendingRequest| (request.request_id, request.model.clone(), request.next);
        assert_eq!(
            found.iter().map(short).collect::<Vec<_>>(),
            [(new, "claude".into(), 0), (old, "auto".into(), u64::MAX)]
        );
        assert_eq!(pending.open(old).expect("read").map(|record| record.next()), Some(u64::MAX));
        record.forget();
        assert!(pending.open(new).expect("none").is_none());
        fs::write(home.path().join("requests").join(RequestId([3; 16]).to_string()), "rubbish").expect("written");
        assert_eq!(pending.list(1000 + KEPT_MS).expect("read"), vec![]);
        assert_eq!(fs::read_dir(home.path().join("requests")).expect("read").count(), 0);
    }
}
