//! Frames out of a stream.

use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{Frame, FrameDecoder, HEADER_LEN};
use bytes::Bytes;

/// All frames of a stream that comes in pieces of so many bytes, and how it ended.
fn frames(bytes: &[u8], piece: usize) -> (Vec<Frame>, Result<bool, ProtocolError>) {
    let (mut decoder, mut all) = (FrameDecoder::new(), vec![]);
    for part in bytes.chunks(piece.max(1)) {
        decoder.push(Bytes::copy_from_slice(part));
        loop {
            match decoder.next() {
                Ok(Some(frame)) => all.push(frame),
                Ok(None) => break,
                Err(error) => return (all, Err(error)),
            }
        }
    }
    // No more is held than twice what was given.
    assert!(decoder.buffered() <= bytes.len() * 2 + HEADER_LEN);
    (all, Ok(decoder.is_at_boundary()))
}

/// The first byte says how the rest is cut.
pub(crate) fn stream(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let whole = frames(bytes, bytes.len());
    let cut = frames(bytes, usize::from(*cut));
    let shown = |(all, end): &(Vec<Frame>, Result<bool, ProtocolError>)| {
        (all.iter().map(|frame| (frame.kind, frame.body.clone())).collect::<Vec<_>>(), end.clone())
    };
    assert_eq!(shown(&whole), shown(&cut), "cuts change nothing");
    for frame in whole.0 {
        crate::codec::of(frame.kind, &frame.body);
    }
}
