//! The dispatch journal: beside a tenant's book, appended without fsync.
//!
//! It says of every open hold whether its provider was called and how far the answer had come. It
//! survives SIGKILL at no cost, since the kernel has what was written; after power loss it is not
//! believed (the hold names the machine's boot it was made in). Records have a fixed size and a
//! checksum; a torn or foreign record is skipped.

use belay_protocol::id::RequestId;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

const RECORD_LEN: usize = 48;
const MAGIC: u8 = 0xb1;
const FILE: &str = "dispatch.journal";

/// How far a request had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Events or chunks received from the provider.
    pub events: u64,
    /// Bytes of output text received.
    pub output_bytes: u64,
    /// Input tokens, if the provider has told them.
    pub told_input: Option<u64>,
    /// Which of the request's offers runs, by its place.
    pub offer: u8,
}

/// The open journal of a tenant. Appending takes a couple of microseconds and never blocks on the
/// disk.
#[derive(Debug)]
pub struct Journal {
    file: File,
}

impl Journal {
    /// Opens the journal in the tenant's directory, emptied: call after recovery has used it.
    pub fn start(dir: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(dir.join(FILE))?;
        file.set_len(0)?;
        Ok(Self { file })
    }

    /// Notes that the provider is being called (before it is), or how far its answer has come.
    pub fn append(&self, request: RequestId, progress: Progress) -> io::Result<()> {
        // One write call with O_APPEND: records of concurrent requests do not mix.
        (&self.file).write_all(&encode(request, progress))
    }
}

/// What a journal said of each request, last record wins. `None`: there is no journal, so that
/// nothing can be concluded from what it does not say.
pub fn read(dir: &Path) -> io::Result<Option<HashMap<RequestId, Progress>>> {
    let mut bytes = Vec::new();
    match File::open(dir.join(FILE)) {
        Ok(mut file) => file.read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(bytes.chunks_exact(RECORD_LEN).filter_map(decode).collect()))
}

fn encode(request: RequestId, progress: Progress) -> [u8; RECORD_LEN] {
    let mut record = [0; RECORD_LEN];
    record[0] = MAGIC;
    record[1] = u8::from(progress.told_input.is_some());
    record[2] = progress.offer;
    record[4..20].copy_from_slice(&request.0);
    record[20..28].copy_from_slice(&progress.events.to_le_bytes());
    record[28..36].copy_from_slice(&progress.output_bytes.to_le_bytes());
    record[36..44].copy_from_slice(&progress.told_input.unwrap_or(0).to_le_bytes());
    let sum = checksum(&record[..44]);
    record[44..].copy_from_slice(&sum.to_le_bytes());
    record
}

fn decode(record: &[u8]) -> Option<(RequestId, Progress)> {
    let number = |at: usize| record[at..].first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    let sum = record[44..].first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes))?;
    if record[0] != MAGIC || sum != checksum(&record[..44]) {
        return None;
    }
    let request = RequestId(*record[4..].first_chunk::<16>()?);
    let told_input = if record[1] == 1 { Some(number(36)?) } else { None };
    Some((request, Progress { events: number(20)?, output_bytes: number(28)?, told_input, offer: record[2] }))
}

/// FNV-1a: tells a torn record from a whole one; it need not resist an attacker.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_record_of_each_request_counts() {
        let dir = tempfile::tempdir().expect("made");
        assert_eq!(read(dir.path()).expect("read"), None);
        let journal = Journal::start(dir.path()).expect("made");
        let (a, b) = (RequestId([1; 16]), RequestId([2; 16]));
        let later = Progress { events: 7, output_bytes: 99, told_input: Some(0), offer: 2 };
        journal.append(a, Progress::default()).expect("written");
        journal.append(b, Progress::default()).expect("written");
        journal.append(a, later).expect("written");
        // A record torn by the kill, and one that is damaged.
        (&journal.file).write_all(&encode(b, later)[..20]).expect("written");
        let said = read(dir.path()).expect("read").expect("there");
        assert_eq!(said.get(&a), Some(&later));
        assert_eq!(said.get(&b), Some(&Progress::default()));
        drop(Journal::start(dir.path()).expect("emptied"));
        assert_eq!(read(dir.path()).expect("read"), Some(HashMap::new()));
    }
}
