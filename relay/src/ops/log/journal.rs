//! systemd's journal, in its own protocol: each field of a line becomes one of the entry, so that
//! `journalctl -u belayd BELAY_TENANT=acme` finds what concerns a tenant. The entry's text has them too, since `journalctl`
//! shows nothing else unless asked; that is why this is no library's work.

use super::lines::Line;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

const SOCKET: &str = "/run/systemd/journal/socket";
/// An entry's text is cut there: it must fit into a datagram.
const LONGEST: usize = 16 << 10;

/// A way to the journal.
#[derive(Debug)]
pub(super) struct Journal(UnixDatagram);

impl Journal {
    /// The journal, if that is where stderr leads. `None`: it leads elsewhere, or the journal does not listen.
    pub(super) fn behind_stderr() -> Option<Self> {
        let told = std::env::var("JOURNAL_STREAM").ok()?;
        let stderr = std::fs::metadata("/proc/self/fd/2").ok()?;
        if told != format!("{}:{}", stderr.dev(), stderr.ino()) {
            return None;
        }
        Self::at(SOCKET).ok()
    }

    fn at(path: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // A journal that stands still must not hold up a relay.
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    pub(super) fn tell(&self, line: &Line) {
        if self.0.send(&entry(line)).is_err() {
            // A full queue, a journal that was started anew, an entry that is too long: stderr leads there as well.
            let _ = writeln!(io::stderr(), "{} {}: {line}", line.level, line.target);
        }
    }
}

/// An entry as the journal reads it.
fn entry(line: &Line) -> Vec<u8> {
    let priority = match line.level.as_str() {
        "ERROR" => "3",
        "WARN" => "4",
        "INFO" => "6",
        _ => "7",
    };
    let mut entry = vec![];
    put(&mut entry, "PRIORITY", priority);
    put(&mut entry, "SYSLOG_IDENTIFIER", "belayd");
    put(&mut entry, "TARGET", &line.target);
    put(&mut entry, "MESSAGE", &line.to_string());
    for (name, value) in &line.fields {
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
        put(&mut entry, &format!("BELAY_{name}"), value);
    }
    entry
}

fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let mut end = value.len().min(LONGEST);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let value = &value[..end];
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        // Its length stands before what has lines.
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_line_becomes_one_of_the_entry() {
        let dir = tempfile::tempdir().expect("made");
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).expect("bound");
        let line = Line {
            at_ms: 0,
            level: "WARN".into(),
            target: "belay_relay::x".into(),
            message: "it is so".into(),
            fields: vec![("tenant".into(), "acme".into()), ("otel.kind".into(), "two\nlines".into())],
        };
        Journal::at(path.to_str().expect("text")).expect("connected").tell(&line);
        let mut bytes = [0; 4096];
        let len = journal.recv(&mut bytes).expect("received");
        let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
        let expected = "PRIORITY=4\nSYSLOG_IDENTIFIER=belayd\nTARGET=belay_relay::x\nMESSAGE\n\u{28}\0\0\0\0\0\0\0it is so \
            tenant=acme otel.kind=two\nlines\nBELAY_TENANT=acme\nBELAY_OTEL_KIND\n\u{9}\0\0\0\0\0\0\0two\nlines\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_value_is_cut_where_a_letter_ends() {
        let mut entry = vec![];
        put(&mut entry, "A", &"é".repeat(LONGEST));
        assert_eq!(entry.len(), "A=\n".len() + LONGEST);
        assert!(String::from_utf8(entry).is_ok());
    }
}
