//! Where a request stands in somebody's trace: the header `traceparent` of W3C Trace Context (level 1).
//!
//! It travels among a request's headers, from a caller to the client, from the client to the relay, and to a
//! provider that is to have it. A request that comes without one has a trace of its own, which is called as the
//! request is: whoever knows the one finds the other.

use crate::id::RequestId;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// The header's name.
pub const TRACEPARENT: &str = "traceparent";

/// Bytes of the form that all versions begin with.
const LEN: usize = 55;

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The trace; not all zeros.
    pub trace: [u8; 16],
    /// The span that what comes next belongs below; not all zeros.
    pub span: [u8; 8],
    /// Whoever began the trace keeps it.
    pub sampled: bool,
}

/// Why a text is no `traceparent`. A request that comes with one is served as if it had none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not 00-<32 hexadecimal digits>-<16>-<2>, none of them all zeros")]
pub struct NoTraceContext;

impl TraceContext {
    /// The trace as text: 32 hexadecimal digits, like those of a [`RequestId`].
    #[must_use]
    pub fn trace_id(&self) -> RequestId {
        RequestId(self.trace)
    }

    /// What a request's trace is called: as its caller's, or as the request is.
    #[must_use]
    pub fn name(place: Option<Self>, request: RequestId) -> RequestId {
        place.map_or(request, |place| place.trace_id())
    }

    /// Of a header's value, if there is one.
    #[must_use]
    pub fn of(value: Option<&[u8]>) -> Option<Self> {
        std::str::from_utf8(value?).ok()?.parse().ok()
    }

    /// The first one among headers.
    #[must_use]
    pub fn among(headers: &[(String, String)]) -> Option<Self> {
        headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(TRACEPARENT))?.1.parse().ok()
    }

    /// As a header.
    #[must_use]
    pub fn header(&self) -> (String, String) {
        (TRACEPARENT.to_owned(), self.to_string())
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-", self.trace_id())?;
        self.span.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.sampled))
    }
}

impl FromStr for TraceContext {
    type Err = NoTraceContext;

    fn from_str(text: &str) -> Result<Self, NoTraceContext> {
        let bytes = text.trim_matches([' ', '\t']).as_bytes();
        let dashes = bytes.len() >= LEN && [2, 35, 52].into_iter().all(|at| bytes[at] == b'-');
        if !dashes {
            return Err(NoTraceContext);
        }
        let (version, trace) = (hex::<1>(&bytes[..2])?, hex::<16>(&bytes[3..35])?);
        let (span, flags) = (hex::<8>(&bytes[36..52])?, hex::<1>(&bytes[53..55])?);
        // Later versions may say more behind another dash; 255 is none.
        let fits = match version {
            [0] => bytes.len() == LEN,
            [255] => false,
            _ => bytes.len() == LEN || bytes[LEN] == b'-',
        };
        if !fits || trace == [0; 16] || span == [0; 8] {
            return Err(NoTraceContext);
        }
        Ok(Self { trace, span, sampled: flags[0] & 1 == 1 })
    }
}

/// Lower case alone, as the header has it.
fn hex<const N: usize>(digits: &[u8]) -> Result<[u8; N], NoTraceContext> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(NoTraceContext),
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_place_in_a_trace_is_read_as_it_is_written() {
        let read: TraceContext = GOOD.parse().expect("good");
        assert_eq!((read.to_string(), read.sampled), (GOOD.to_owned(), true));
        assert_eq!(read.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        let headers = vec![("openai-beta".to_owned(), "x".to_owned()), ("TraceParent".to_owned(), GOOD.to_owned())];
        assert_eq!(TraceContext::among(&headers), Some(read));
        // Flags that are not known are let go; a later version may say more.
        assert!(GOOD.replace("-01", "-03").parse::<TraceContext>().expect("known in part").sampled);
        assert!(GOOD.replacen("00-", "cc-", 1).parse::<TraceContext>().is_ok());
        assert!(format!("{}-more", GOOD.replacen("00-", "01-", 1)).parse::<TraceContext>().is_ok());
    }

    #[test]
    fn what_is_no_place_in_a_trace_is_none() {
        let zeros = |from: &str| GOOD.replace(from, &"0".repeat(from.len()));
        for bad in [
            String::new(),
            GOOD.to_uppercase(),
            GOOD.replacen("00-", "ff-", 1),
            format!("{GOOD}-more"),
            format!("{}more", GOOD.replacen("00-", "01-", 1)),
            GOOD[..54].to_owned(),
            GOOD.replace('b', "g"),
            GOOD.replacen('-', "_", 1),
            zeros("0af7651916cd43dd8448eb211c80319c"),
            zeros("b7ad6b7169203331"),
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(NoTraceContext), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fall_over(text in ".{0,80}", at in 0_usize..56, with in any::<u8>()) {
            let _ = text.parse::<TraceContext>();
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes.insert(at.min(bytes.len()), with);
            if let Ok(read) = String::from_utf8_lossy(&bytes).parse::<TraceContext>() {
                prop_assert_eq!(read.to_string().parse(), Ok(read));
            }
        }
    }
}
