//! What takes bytes from strangers, one target each: `BELAY_FUZZ=frame belay-fuzz -max_total_time=60 corpus/frame`.
//!
//! A target does more than not to fall over: what is read is written and read again, what is cut is joined, what is edited
//! is still what it was.
#![no_main]

mod codec;
mod dialects;
mod frames;
mod sse;

use belay_protocol::adapter;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// A target, for bytes.
type Target = fn(&[u8]);

/// All of them, by name.
const TARGETS: [(&str, Target); 6] = [
    ("frame", frames::stream),
    ("codec", codec::body),
    ("sse", sse::stream),
    ("dialects", dialects::bodies),
    ("safetensors", safetensors),
    ("config", config),
];

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let wanted = std::env::var("BELAY_FUZZ").unwrap_or_default();
    let found = TARGETS.into_iter().find(|(name, _)| *name == wanted);
    let names = || TARGETS.map(|(name, _)| name).join(", ");
    found.unwrap_or_else(|| panic!("BELAY_FUZZ={wanted:?} is none of {}", names())).1
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));

/// Two lengths, a file's beginning, its configuration.
fn safetensors(bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return };
    let at = usize::from(u16::from_le_bytes([head[0], head[1]])) % (rest.len() + 1);
    let (start, config) = rest.split_at(at);
    let size = start.len() as u64 + u64::from(u16::from_le_bytes([head[2], head[3]]));
    if let Ok(config) = std::str::from_utf8(config) {
        let _ = adapter::check(start, size, config);
        let _ = adapter::AdapterConfig::parse(config);
    }
}

fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // What is in files, or in the environment, is not the text's.
    if text.contains("_file") || text.contains("_env") {
        return;
    }
    match belay_relay::Config::parse(text, "fuzz") {
        // Whatever is taken can be reloaded into itself, and nothing has changed.
        Ok(config) => {
            let again = belay_relay::Config::parse(text, "fuzz").expect("it was taken before");
            assert_eq!(format!("{config:?}"), format!("{again:?}"));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
