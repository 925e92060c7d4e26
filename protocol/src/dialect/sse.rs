//! Server-sent events: cutting a byte stream into events, and reading one event.
//!
//! [`SseSplitter`] takes chunks cut anywhere (inside a UTF-8 sequence, between CR and LF) and gives
//! the events' exact bytes, blank line included. An event that lies whole in one chunk is a slice
//! of it. A byte order mark at the beginning is dropped, as the standard says.

use bytes::{Buf, Bytes, BytesMut};
use std::borrow::Cow;
use thiserror::Error;

/// An event grew above the limit before its blank line came. Blame: the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a server-sent event is above {max} bytes")]
pub struct EventTooLarge {
    /// The limit in bytes.
    pub max: usize,
}

/// Cuts a byte stream into events.
#[derive(Debug)]
pub struct SseSplitter {
    chunk: Bytes,
    /// The beginning of an event that did not end in the chunk it began in.
    partial: BytesMut,
    max: usize,
    state: Scan,
    /// The previous event ended in a CR: an LF that follows belongs to it.
    after_cr: bool,
    at_start: bool,
}

/// How far the scanner is on its way to a blank line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scan {
    /// Inside a line that has content.
    Line,
    /// At the beginning of a line.
    LineStart,
    /// After a CR that ended a line with content: an LF may still belong to it.
    Cr,
    /// After the CR of the blank line, where lines end in CR LF: its LF is to come. Readers that look for
    /// the bytes CR LF CR LF would miss the end without it.
    BlankCr,
}

impl SseSplitter {
    /// A splitter whose events may have at most `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            chunk: Bytes::new(),
            partial: BytesMut::new(),
            max,
            state: Scan::LineStart,
            after_cr: false,
            at_start: true,
        }
    }

    /// Takes bytes in; drain with [`next`](Self::next) before the next push.
    pub fn push(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            let mut joined = BytesMut::from(&self.chunk[..]);
            joined.extend_from_slice(&chunk);
            self.chunk = joined.freeze();
        }
    }

    /// The next whole event with its blank line, or `None` until more is pushed.
    #[expect(clippy::should_implement_trait, reason = "a fallible pull, not an iterator: it goes on after None")]
    pub fn next(&mut self) -> Result<Option<Bytes>, EventTooLarge> {
        loop {
            self.skip_leftovers();
            if self.chunk.is_empty() {
                return Ok(None);
            }
            let Some(len) = self.find_end() else {
                if self.partial.len() + self.chunk.len() > self.max {
                    return Err(EventTooLarge { max: self.max });
                }
                self.partial.extend_from_slice(&self.chunk);
                self.chunk = Bytes::new();
                return Ok(None);
            };
            if self.partial.len() + len > self.max {
                return Err(EventTooLarge { max: self.max });
            }
            self.after_cr = len > 0 && self.chunk[len - 1] == b'\r';
            let tail = self.chunk.split_to(len);
            let event = if self.partial.is_empty() {
                tail
            } else {
                self.partial.extend_from_slice(&tail);
                std::mem::take(&mut self.partial).freeze()
            };
            // Blank lines between events are nobody's event.
            if event.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
                return Ok(Some(event));
            }
        }
    }

    /// What is left at the end of the stream: an event without its blank line, which the standard
    /// says to discard.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.partial
    }

    /// Drops an LF that belongs to the previous event's last CR, and a byte order mark.
    fn skip_leftovers(&mut self) {
        if self.after_cr && !self.chunk.is_empty() {
            if self.chunk[0] == b'\n' {
                self.chunk.advance(1);
            }
            self.after_cr = false;
        }
        if self.at_start && !self.chunk.is_empty() && self.partial.is_empty() {
            const MARK: &[u8] = b"\xef\xbb\xbf";
            if self.chunk.starts_with(MARK) {
                self.chunk.advance(MARK.len());
            }
            self.at_start = false;
        }
    }

    /// The length, from the chunk's beginning, of the rest of the event that ends in it.
    fn find_end(&mut self) -> Option<usize> {
        let bytes = &self.chunk[..];
        let mut at = 0;
        while at < bytes.len() {
            match (self.state, bytes[at]) {
                (Scan::Line, _) => {
                    let found = memchr::memchr2(b'\r', b'\n', &bytes[at..])?;
                    at += found;
                    self.state = if bytes[at] == b'\r' { Scan::Cr } else { Scan::LineStart };
                }
                (Scan::Cr, b'\n') => self.state = Scan::LineStart,
                (Scan::BlankCr, next) => {
                    self.state = Scan::LineStart;
                    return Some(usize::from(next == b'\n'));
                }
                (Scan::LineStart, b'\r') if at + 1 == bytes.len() => self.state = Scan::BlankCr,
                (Scan::LineStart | Scan::Cr, b'\r') | (Scan::LineStart, b'\n') => {
                    self.state = Scan::LineStart;
                    // A CR LF in the same chunk ends the event together.
                    let end = at + 1;
                    let with_lf = bytes[at] == b'\r' && bytes.get(end) == Some(&b'\n');
                    return Some(if with_lf { end + 1 } else { end });
                }
                (Scan::LineStart | Scan::Cr, _) => self.state = Scan::Line,
            }
            at += 1;
        }
        None
    }
}

/// The fields of one event.
#[derive(Debug, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// The `event` field, empty if there is none.
    pub name: &'a [u8],
    /// The `data` lines, joined with LF. Empty for a comment.
    pub data: Cow<'a, [u8]>,
}

impl<'a> SseEvent<'a> {
    /// Reads one event's bytes. Never fails: what is not a field is ignored, as the standard says.
    #[must_use]
    pub fn parse(event: &'a [u8]) -> Self {
        let mut name: &[u8] = b"";
        let mut data: Option<Cow<'a, [u8]>> = None;
        for line in lines(event) {
            let (field, value) = match memchr::memchr(b':', line) {
                Some(colon) => (&line[..colon], &line[colon + 1..]),
                None => (line, &b""[..]),
            };
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match field {
                b"event" => name = value,
                b"data" => match &mut data {
                    None => data = Some(Cow::Borrowed(value)),
                    Some(joined) => {
                        let joined = joined.to_mut();
                        joined.push(b'\n');
                        joined.extend_from_slice(value);
                    }
                },
                _ => {}
            }
        }
        Self { name, data: data.unwrap_or(Cow::Borrowed(b"")) }
    }
}

/// The lines of an event, ended by CR LF, LF or CR.
fn lines(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        let ending = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = &rest[(end + ending).min(rest.len())..];
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split_all(chunks: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        let mut splitter = SseSplitter::new(1 << 16);
        let mut events = Vec::new();
        for chunk in chunks {
            splitter.push(Bytes::from(chunk));
            while let Some(event) = splitter.next().expect("within the limit") {
                events.push(event.to_vec());
            }
        }
        events
    }

    fn datas(events: &[Vec<u8>]) -> Vec<Vec<u8>> {
        events.iter().map(|event| SseEvent::parse(event).data.into_owned()).collect()
    }

    #[test]
    fn events_keep_their_exact_bytes() {
        let text = b"event: a\ndata: 1\n\n: ping\n\ndata: {\"x\":\"\xc3\xa9\"}\ndata: 2\n\n";
        let events = split_all([text.to_vec()]);
        assert_eq!(events.concat(), text);
        assert_eq!(datas(&events), [b"1".to_vec(), b"".to_vec(), b"{\"x\":\"\xc3\xa9\"}\n2".to_vec()]);
    }

    #[test]
    fn an_event_in_one_chunk_is_a_slice_of_it() {
        let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\n");
        let mut splitter = SseSplitter::new(100);
        splitter.push(chunk.clone());
        let event = splitter.next().expect("fits").expect("whole");
        assert_eq!(event.as_ptr(), chunk.as_ptr());
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut splitter = SseSplitter::new(10);
        splitter.push(Bytes::from_static(b"data: 123456789"));
        assert_eq!(splitter.next(), Err(EventTooLarge { max: 10 }));
    }

    proptest! {
        /// Whatever line ending, and wherever it is cut, the same data comes out.
        #[test]
        fn any_cut_gives_the_same_events(
            payloads in proptest::collection::vec("[^\\r\\n]{0,20}", 1..8),
            ending in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
            cuts in proptest::collection::vec(0usize..400, 0..12),
        ) {
            let text: String = payloads.iter().map(|p| format!("event: e{ending}data: {p}{ending}{ending}")).collect();
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks = cuts.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec());
            let expected: Vec<Vec<u8>> = payloads.iter().map(|p| p.as_bytes().to_vec()).collect();
            let events = split_all(chunks);
            prop_assert_eq!(datas(&events), expected);
            // A lone CR is the end of a blank line at once, whatever follows; all else keeps its bytes.
            prop_assert_eq!(events.concat(), bytes);
        }

        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = SseEvent::parse(&bytes);
            let _ = split_all([bytes]);
        }
    }
}
