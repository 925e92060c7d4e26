//! The dispatch journal: beside a tenant's book, appended without fsync.
//!
//! It says of every open hold whether its provider was called and how far the answer had come. It
//! survives SIGKILL at no cost, since the kernel has what was written; after power loss it is not
//! believed (the hold names the machine's boot it was made in). Records have a fixed size and a
//! checksum; a torn or foreign record is skipped. Once it is long, it is written anew with what the
//! running requests have noted last.

use belay_protocol::dialect::usage::ToldInput;
use belay_protocol::id::RequestId;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tracing::warn;

const RECORD_LEN: usize = 72;
const MAGIC: u8 = 0xb2;
const FILE: &str = "dispatch.journal";
/// A journal longer than this is written anew.
const LONGEST: u64 = 1 << 20;

/// How far a request had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Events or chunks received from the provider.
    pub events: u64,
    /// Bytes of output text received.
    pub output_bytes: u64,
    /// Input tokens, if the provider has told them.
    pub told_input: Option<ToldInput>,
    /// Which of the request's offers runs, by its place.
    pub offer: u8,
}

/// A tenant's journal, for appending. Each append takes a couple of microseconds and never blocks on the
/// disk.
#[derive(Debug)]
pub struct Journal(Mutex<Written>);

#[derive(Debug)]
struct Written {
    path: PathBuf,
    file: File,
    /// Bytes of whole records.
    len: u64,
    /// Above this it is written anew.
    longest: u64,
    /// What running requests have noted last.
    running: HashMap<RequestId, Progress>,
}

impl Journal {
    /// Opens the journal in the tenant's directory with what it says of holds that are still open, and no
    /// more: call after recovery has used it.
    pub fn start(dir: &Path, running: HashMap<RequestId, Progress>) -> io::Result<Self> {
        let path = dir.join(FILE);
        let mut written = Written { file: open(&path)?, path, len: 0, longest: LONGEST, running };
        written.begin_anew()?;
        Ok(Self(Mutex::new(written)))
    }

    /// Notes that the provider is being called (before it is), or how far its answer has come.
    pub fn append(&self, request: RequestId, progress: Progress) -> io::Result<()> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = written.file.write_all(&encode(request, progress)) {
            // Half a record must not stand before whole ones.
            let whole = written.len;
            written.file.set_len(whole)?;
            return Err(error);
        }
        written.len += RECORD_LEN as u64;
        written.running.insert(request, progress);
        if written.len > written.longest {
            if let Err(error) = written.begin_anew() {
                // The old one still says all that is to be known.
                warn!(%error, "cannot write a dispatch journal anew");
            }
            // Far enough from what runs that it does not come to this at every note.
            written.longest = written.len + LONGEST;
        }
        Ok(())
    }

    /// The request's hold is resolved: nothing is to be known of it any more.
    pub fn end(&self, request: RequestId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).running.remove(&request);
    }
}

impl Written {
    /// In another file that then takes this one's place: a kill leaves one or the other.
    fn begin_anew(&mut self) -> io::Result<()> {
        let next = self.path.with_extension("next");
        let mut file = open(&next)?;
        file.set_len(0)?;
        let records = self.running.iter().flat_map(|(request, progress)| encode(*request, *progress));
        let records: Vec<u8> = records.collect();
        file.write_all(&records)?;
        std::fs::rename(&next, &self.path)?;
        (self.file, self.len) = (file, records.len() as u64);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
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
    let (mut said, mut rest) = (HashMap::new(), bytes.as_slice());
    while let Some(record) = rest.first_chunk::<RECORD_LEN>() {
        match decode(record) {
            Some((request, progress)) => {
                said.insert(request, progress);
                rest = &rest[RECORD_LEN..];
            }
            // Torn: the next whole one begins somewhere behind it.
            None => rest = &rest[1..],
        }
    }
    Ok(Some(said))
}

fn encode(request: RequestId, progress: Progress) -> [u8; RECORD_LEN] {
    let mut record = [0; RECORD_LEN];
    record[0] = MAGIC;
    record[1] = u8::from(progress.told_input.is_some());
    record[2] = progress.offer;
    record[4..20].copy_from_slice(&request.0);
    let told = progress.told_input.unwrap_or_default();
    let numbers =
        [progress.events, progress.output_bytes, told.input, told.cache_read, told.cache_write_5m, told.cache_write_1h];
    for (at, number) in numbers.into_iter().enumerate() {
        record[20 + 8 * at..28 + 8 * at].copy_from_slice(&number.to_le_bytes());
    }
    let sum = checksum(&record[..68]);
    record[68..].copy_from_slice(&sum.to_le_bytes());
    record
}

fn decode(record: &[u8; RECORD_LEN]) -> Option<(RequestId, Progress)> {
    let number = |at: usize| record[20 + 8 * at..].first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    let sum = record.last_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes))?;
    if record[0] != MAGIC || sum != checksum(&record[..68]) {
        return None;
    }
    let request = RequestId(*record[4..].first_chunk::<16>()?);
    let told =
        ToldInput { input: number(2)?, cache_read: number(3)?, cache_write_5m: number(4)?, cache_write_1h: number(5)? };
    let told_input = (record[1] == 1).then_some(told);
    Some((request, Progress { events: number(0)?, output_bytes: number(1)?, told_input, offer: record[2] }))
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
        let journal = Journal::start(dir.path(), HashMap::new()).expect("made");
        let (a, b) = (RequestId([1; 16]), RequestId([2; 16]));
        let later = Progress { events: 7, output_bytes: 99, told_input: Some(ToldInput::default()), offer: 2 };
        journal.append(a, Progress::default()).expect("written");
        journal.append(b, Progress::default()).expect("written");
        journal.append(a, later).expect("written");
        // A record that is torn, with a whole one behind it, and one more torn by the kill.
        let torn = |bytes: &[u8]| journal.0.lock().expect("alone").file.write_all(bytes).expect("written");
        torn(&encode(b, later)[..20]);
        let c = RequestId([3; 16]);
        journal.append(c, later).expect("written");
        torn(&encode(b, later)[..71]);
        let said = read(dir.path()).expect("read").expect("there");
        assert_eq!(said.get(&a), Some(&later));
        assert_eq!(said.get(&b), Some(&Progress::default()));
        assert_eq!(said.get(&c), Some(&later));
        drop(Journal::start(dir.path(), HashMap::from([(a, later)])).expect("begun anew"));
        assert_eq!(read(dir.path()).expect("read"), Some(HashMap::from([(a, later)])));
        drop(Journal::start(dir.path(), HashMap::new()).expect("begun anew"));
        assert_eq!(read(dir.path()).expect("read"), Some(HashMap::new()));
    }

    #[test]
    fn a_long_journal_is_written_anew_with_what_runs() {
        let dir = tempfile::tempdir().expect("made");
        let journal = Journal::start(dir.path(), HashMap::new()).expect("made");
        let (still, over) = (RequestId([1; 16]), RequestId([2; 16]));
        let noted = |events| Progress { events, ..Progress::default() };
        journal.append(still, noted(5)).expect("written");
        journal.append(over, noted(6)).expect("written");
        journal.end(over);
        let busy = RequestId([3; 16]);
        for events in 0..5 * LONGEST / RECORD_LEN as u64 {
            journal.append(busy, noted(events)).expect("written");
        }
        assert!(std::fs::metadata(dir.path().join(FILE)).expect("there").len() <= 2 * LONGEST);
        let said = read(dir.path()).expect("read").expect("there");
        assert_eq!(said, HashMap::from([(still, noted(5)), (busy, noted(5 * LONGEST / RECORD_LEN as u64 - 1))]));
        assert!(!dir.path().join("dispatch.next").exists());
    }
}
