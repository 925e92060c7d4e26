//! Events that wait for a reader, compressed.

use super::log::{EventLog, LogBudget};
use belay_protocol::frame::HEADER_LEN;
use bytes::{Buf, Bytes};
use std::io::{self, Read, Write};
use std::sync::Arc;
use tokio::task::yield_now;

/// Bytes that are worked on before others get their turn.
const SLICE: usize = 64 << 10;
/// zstd's level: the fastest. Events are mostly the same few words, so they shrink to a tenth.
const LEVEL: i32 = 1;

/// The frames of an answer's last events.
#[derive(Debug)]
pub(super) struct Packed {
    /// Number of the first event in it.
    first: u64,
    /// Number of the event after the last one.
    next: u64,
    bytes: Vec<u8>,
    budget: Arc<LogBudget>,
}

impl Packed {
    /// Packs what the log holds. Errors: none that are known for a sink in memory.
    pub(super) async fn of(log: &EventLog, budget: &Arc<LogBudget>) -> io::Result<Self> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
        let mut since = 0;
        for part in log.frames() {
            encoder.write_all(part)?;
            since += part.len();
            if since >= SLICE {
                since = 0;
                yield_now().await;
            }
        }
        let mut bytes = encoder.finish()?;
        bytes.shrink_to_fit();
        budget.take(bytes.len());
        Ok(Self { first: log.first(), next: log.next(), bytes, budget: Arc::clone(budget) })
    }

    /// The number of the first event that is given for a reader that wants `next`.
    pub(super) fn first_for(&self, next: u64) -> u64 {
        next.clamp(self.first, self.next)
    }

    /// The frames from number `next` on, in pieces. Errors: the bytes in memory are damaged.
    pub(super) async fn frames(&self, next: u64) -> io::Result<Vec<Bytes>> {
        let mut decoder = zstd::stream::read::Decoder::new(self.bytes.as_slice())?;
        let mut all = Vec::new();
        loop {
            let before = all.len();
            decoder.by_ref().take(SLICE as u64).read_to_end(&mut all)?;
            if all.len() == before {
                break;
            }
            yield_now().await;
        }
        let mut all = Bytes::from(all);
        for _ in self.first..self.first_for(next) {
            let whole = all.first_chunk::<4>().map(|len| HEADER_LEN + u32::from_le_bytes(*len) as usize);
            let whole = whole.filter(|whole| *whole <= all.len());
            all.advance(whole.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame is cut"))?);
        }
        let mut pieces = Vec::with_capacity(all.len().div_ceil(SLICE));
        while !all.is_empty() {
            pieces.push(all.split_to(SLICE.min(all.len())));
        }
        Ok(pieces)
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::memory::Memory;
    use belay_protocol::frame::{FrameDecoder, FrameType, raw};

    #[tokio::test]
    async fn what_is_packed_comes_out_from_any_number_on() {
        let budget = LogBudget::new(1 << 30, Memory::new(1 << 30));
        let mut log = EventLog::new(64 << 20, Arc::clone(&budget));
        let event = |number: u64| Bytes::from(format!("data: {{\"n\":{number}}}\n\n").repeat(1 + number as usize % 50));
        for number in 0..2000 {
            log.append(FrameType::Event, &event(number)).expect("fits");
        }
        log.acknowledge(100);
        let packed = Packed::of(&log, &budget).await.expect("packed");
        let plain = log.bytes();
        drop(log);
        assert!(budget.used() > 0 && budget.used() * 5 < plain, "{} of {plain}", budget.used());
        for (asked, given) in [(0, 100), (100, 100), (101, 101), (1999, 1999), (2000, 2000), (5000, 2000)] {
            let mut decoder = FrameDecoder::new();
            let mut number = given;
            for piece in packed.frames(asked).await.expect("whole") {
                decoder.push(piece);
                while let Some(frame) = decoder.next().expect("frames") {
                    assert_eq!(raw::split(frame.kind, frame.body), Ok((number, event(number))));
                    number += 1;
                }
            }
            assert_eq!((packed.first_for(asked), number), (given, 2000));
        }
        drop(packed);
        assert_eq!(budget.used(), 0);
    }
}
