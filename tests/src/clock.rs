//! The machine's monotonic clock, comparable between processes.
//!
//! `std::time::Instant` cannot leave its process; `CLOCK_MONOTONIC` in nanoseconds can. A token that
//! carries it in its text tells any reader on the same machine how long it travelled.

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Both are never negative for this clock.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The text of a stamped token: `t` and the time of its sending.
#[must_use]
pub fn stamp() -> String {
    format!("t{}", monotonic_ns())
}

/// All times that stand in a text, or in the raw bytes of events, as [`stamp`] wrote them.
pub fn stamps(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes
        .split(|byte| !byte.is_ascii_alphanumeric())
        .flat_map(|word| word.split(|byte| *byte == b't').skip(1))
        .filter_map(|digits| {
            // Shorter numbers are words of the protocol, such as `t1`.
            let long = digits.len() >= 10 && digits.iter().all(u8::is_ascii_digit);
            long.then(|| {
                digits.iter().fold(0, |sum: u64, digit| sum.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back() {
        let before = monotonic_ns();
        let text = format!("{{\"text\":\"{}{}\"}}", stamp(), stamp());
        let found: Vec<u64> = stamps(text.as_bytes()).collect();
        assert_eq!(found.len(), 2);
        assert!(before <= found[0] && found[0] <= found[1] && found[1] <= monotonic_ns());
        assert_eq!(stamps(b"text t12 chatcmpl-t1234x").count(), 0);
    }
}
