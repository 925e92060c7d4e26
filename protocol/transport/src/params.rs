//! Transport parameters. quinn's defaults are for bulk between friends; these are for tokens,
//! between strangers.
//!
//! `streams × stream window ≤ the client's connection window`, so that stalled readers can never
//! use up the credit that the heartbeat needs.

use crate::cid::MarkedIds;
use crate::congestion::LowDelay;
use crate::env::Random;
use quinn::crypto::HandshakeTokenKey;
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;

/// Bytes that a peer may have in flight on one stream.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes that a client may have in flight to the relay, all streams together.
pub const RELAY_CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes that the relay may have in flight to a client, all streams together.
pub const CLIENT_CONNECTION_WINDOW: u32 = 32 << 20;
/// Bidirectional streams at once before the hello.
pub const STREAMS_BEFORE_HELLO: u32 = 4;
/// Bidirectional streams at once after the hello, by default.
pub const STREAMS_AFTER_HELLO: u32 = 128;
/// A connection on which nothing arrives for so long is gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a client sends a heartbeat, by default.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// A client is asked to acknowledge at the latest after so many packets.
pub const ACK_EVERY: u32 = 3;
/// What the round trip is taken for before it is measured.
pub const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Kernel buffers wanted for a client's socket, in bytes.
pub const CLIENT_SOCKET_BUFFER: usize = 1 << 20;
/// Kernel buffers wanted for the relay's socket, in bytes.
pub const RELAY_SOCKET_BUFFER: usize = 8 << 20;

/// Priority of the control stream: heartbeats before everything.
pub const PRIORITY_CONTROL: i32 = 10;
/// Priority of token streams.
pub const PRIORITY_TOKENS: i32 = 5;
/// Priority of what nobody reads while it comes: whole answers, and later files.
pub const PRIORITY_BULK: i32 = 0;

const _: () = assert!(STREAMS_AFTER_HELLO as u64 * STREAM_WINDOW as u64 <= CLIENT_CONNECTION_WINDOW as u64);

/// Both sides send by Belay's own congestion control: packets that are lost on a radio link are no sign
/// of a full line, and a full buffer is in the way of tokens. Measured beside quinn's in
/// `docs/BENCHMARKS.md`.
fn common() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .congestion_controller_factory(Arc::new(LowDelay))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .initial_rtt(INITIAL_RTT)
        // A large handshake (certificates, post-quantum key shares) fits; a flood does not.
        .crypto_buffer_size(16 << 10);
    config
}

/// The relay's side.
///
/// Tokens leave as small packets, one after the other: a client that acknowledged every second one
/// would cost the relay as much again as sending them. It is asked to acknowledge every third, or
/// what there is within its usual 25 ms; a gap is still reported at once. More seldom would be cheaper
/// still, but then tokens beside bulk wait for room until an acknowledgement comes.
#[must_use]
pub fn relay() -> Arc<TransportConfig> {
    let mut config = common();
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY)).reordering_threshold(VarInt::from_u32(1));
    config
        .ack_frequency_config(Some(acknowledgements))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_BEFORE_HELLO))
        .receive_window(VarInt::from_u32(RELAY_CONNECTION_WINDOW))
        .send_window(u64::from(CLIENT_CONNECTION_WINDOW) + (1 << 20));
    Arc::new(config)
}

/// The client's side.
#[must_use]
pub fn client() -> Arc<TransportConfig> {
    let mut config = common();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(CLIENT_CONNECTION_WINDOW))
        .send_window(u64::from(RELAY_CONNECTION_WINDOW) + (1 << 20));
    Arc::new(config)
}

/// An endpoint's own settings. With `keys` a restarted endpoint still answers the packets of its
/// past connections with resets that their owners recognise.
#[must_use]
pub fn endpoint(random: &Random, keys: Option<&EndpointKeys>) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    if let Some(keys) = keys {
        config.reset_key(Arc::new(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &keys.reset)));
        // Many clients find out about a restart at once, and each is owed a reset. quinn's default of
        // one in 20 ms would leave most of them to their timeouts, and so would any: what has arrived
        // while the relay was busy counts as one moment (of 2,000 clients' packets, one in ten was
        // answered at one in 1 ms). Loops with other endpoints and floods of answers are no danger:
        // only a packet for one of our own marked ids is answered, with a smaller one.
        config.min_reset_interval(Duration::ZERO);
        let (random, key) = (random.clone(), keys.cid);
        config.cid_generator(move || Box::new(MarkedIds::new(random.clone(), &key)));
    }
    config.rng_seed(Some(random.bytes()));
    config
}

/// Secrets of an endpoint that outlive its process.
#[derive(Clone)]
pub struct EndpointKeys {
    /// Signs stateless resets.
    pub reset: [u8; 32],
    /// Marks our own connection ids.
    pub cid: [u8; 8],
    /// Seals address tokens.
    pub token: [u8; 32],
}

impl std::fmt::Debug for EndpointKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EndpointKeys(****)")
    }
}

impl EndpointKeys {
    /// The key that seals address tokens.
    #[must_use]
    pub fn token_key(&self) -> Arc<dyn HandshakeTokenKey> {
        Arc::new(aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, &[]).extract(&self.token))
    }
}
