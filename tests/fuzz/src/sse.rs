//! Server-sent events out of a provider's bytes, and the usage figures in them.

use belay_protocol::dialect::answer::{body_text, event_text};
use belay_protocol::dialect::sse::{SseEvent, SseSplitter};
use belay_protocol::dialect::translate::Answers;
use belay_protocol::dialect::usage::UsageMeter;
use belay_protocol::message::Dialect;
use bytes::Bytes;

/// An event may be so long.
const MOST: usize = 4096;
pub(crate) const DIALECTS: [Dialect; 4] =
    [Dialect::PROMPT, Dialect::OPENAI_CHAT, Dialect::OPENAI_RESPONSES, Dialect::ANTHROPIC];

/// Events of a stream that comes in pieces of so many bytes; and what is left, unless one was too long.
fn events(bytes: &[u8], piece: usize) -> (Vec<Bytes>, Option<Vec<u8>>) {
    let (mut splitter, mut all) = (SseSplitter::new(MOST), vec![]);
    for part in bytes.chunks(piece.max(1)) {
        splitter.push(Bytes::copy_from_slice(part));
        loop {
            match splitter.next() {
                Ok(Some(event)) => all.push(event),
                Ok(None) => break,
                Err(_) => return (all, None),
            }
        }
    }
    let rest = splitter.rest().to_vec();
    (all, Some(rest))
}

/// The first two bytes say how the rest is cut, and whose it is.
pub(crate) fn stream(bytes: &[u8]) {
    let Some(([cut, whose], bytes)) = bytes.split_first_chunk::<2>() else { return };
    let (whole, rest) = events(bytes, bytes.len());
    let (parts, rest_of_parts) = events(bytes, usize::from(*cut));
    if let (Some(rest), Some(rest_of_parts)) = (rest, rest_of_parts) {
        // Nothing is lost, and nothing is moved, but the ends of lines between events and a mark at the beginning.
        let kept = |bytes: &[u8]| bytes.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect::<Vec<u8>>();
        let joined = |events: &[Bytes], rest: &[u8]| kept(&[events.concat(), rest.to_vec()].concat());
        assert_eq!(joined(&whole, &rest), kept(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)));
        assert_eq!(joined(&parts, &rest_of_parts), joined(&whole, &rest));
        let meant = |events: &[Bytes]| events.iter().map(|event| event.trim_ascii_end().to_vec()).collect::<Vec<_>>();
        assert_eq!(meant(&whole), meant(&parts), "cuts change nothing");
    }
    let whose = usize::from(*whose);
    let dialect = DIALECTS[whose % 4];
    let mut meter = UsageMeter::new(dialect);
    let mut answers = [(1, 3), (3, 1), (1, 2), (3, 2)]
        .map(|(provider, caller)| Answers::new(DIALECTS[provider], DIALECTS[caller], "m", 1, whose > 128));
    for event in &whole {
        let parsed = SseEvent::parse(event);
        assert!(parsed.data.len() <= event.len());
        let _ = event_text(dialect, event);
        let _ = meter.event(event);
        for answers in &mut answers {
            for carried in answers.event(event) {
                assert!(carried.ends_with(b"\n\n"), "an event of ours is whole");
            }
        }
    }
    meter.catch_up();
    let _ = meter.overlooked();
    meter.body(bytes);
    let _ = meter.report(bytes.len() as u64);
    let _ = body_text(dialect, bytes);
    for answers in &mut answers {
        let _ = answers.end();
        let _ = answers.whole(bytes);
        let refusal = answers.refusal(400, bytes);
        serde_json::from_slice::<serde_json::Value>(&refusal).expect("a refusal is JSON");
    }
}
