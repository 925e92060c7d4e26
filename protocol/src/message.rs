//! The messages: plain data, no behaviour beyond convenience.
//!
//! A released body is frozen: a change is a new frame type. Where a set of values will grow, the
//! field is a number with known constants (`codes!`), and messages that open a conversation carry
//! type-length-value extensions, so that growth needs no new type. No recursive types, no
//! collections of zero-sized elements, and every list or byte string goes through [`bounded`].

mod billing;
mod session;
mod sync;

pub use billing::*;
pub use session::*;
pub use sync::*;

use crate::bounded;
use crate::error::codes;
use crate::id::{DeviceId, InstanceId, RequestId, TenantId};
use crate::money::NanoUsd;
use serde::{Deserialize, Serialize};

/// A type-length-value extension; unknown kinds are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// What the value is.
    pub kind: u16,
    /// Its bytes.
    #[serde(with = "bounded::bytes")]
    pub value: Vec<u8>,
}

/// Extensions of [`Hello`].
pub mod hello {
    /// The instance has a tunnel over the other transport, and it stays until the client ends it: its
    /// streams run to their ends there. Without this, the new tunnel takes its place. No value.
    pub const BESIDE: u16 = 1;
}

/// First frame of the control stream, client to relay. Frozen for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest minor version that the client speaks.
    pub min_minor: u16,
    /// Highest minor version that the client speaks.
    pub max_minor: u16,
    /// Capability bits; unknown ones are ignored.
    pub capabilities: u64,
    /// Program and version, for people.
    pub client_name: String,
    /// Which running client of the device this is.
    pub instance_id: InstanceId,
    /// Rises with every tunnel of the instance; the highest wins.
    pub path_generation: u64,
    /// Room for later.
    #[serde(with = "bounded::extensions")]
    pub extensions: Vec<Extension>,
}

/// The relay's answer to [`Hello`]. Frozen for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck {
    /// The minor version that both will speak.
    pub minor: u16,
    /// The relay's capability bits.
    pub capabilities: u64,
    /// Program and version, for people.
    pub relay_name: String,
    /// The tenant, as the certificate says it.
    pub tenant: TenantId,
    /// The device, as the certificate says it.
    pub device: DeviceId,
    /// How often the client is to send a heartbeat, in milliseconds.
    pub heartbeat_interval_ms: u32,
    /// The relay's wall clock, milliseconds since 1970.
    pub relay_time_ms: u64,
    /// Room for later.
    #[serde(with = "bounded::extensions")]
    pub extensions: Vec<Extension>,
}

/// Client to relay: alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts from 1.
    pub sequence: u64,
    /// The sender's own monotonic clock in microseconds, sent back unread.
    pub sent_at_us: u64,
    /// Round trip of the last answered heartbeat in microseconds, if there was one.
    pub round_trip_us: Option<u32>,
    /// Room for device vitals.
    #[serde(with = "bounded::extensions")]
    pub extensions: Vec<Extension>,
}

/// Relay to client: heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// The heartbeat's sequence.
    pub sequence: u64,
    /// The heartbeat's `sent_at_us`, unread.
    pub echo_us: u64,
    /// How long the relay held the heartbeat before answering, in microseconds.
    pub held_us: u32,
    /// The round trip as the relay's transport measures it, in microseconds.
    pub relay_round_trip_us: u32,
    /// Room for the relay's status.
    #[serde(with = "bounded::extensions")]
    pub extensions: Vec<Extension>,
}

/// Relay to client: this tunnel takes no new streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoAway {
    /// Wait at least this long before dialling again, in milliseconds.
    pub reconnect_after_ms: u32,
    /// Then add a random part of this, in milliseconds, so that not all come at once.
    pub spread_ms: u32,
    /// Why, for people.
    pub reason: String,
}

/// Relay to client: is anybody there? Nothing is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Reserved, 0.
    pub reserved: u8,
}

/// Enrol with an invite.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The invite's one-time secret.
    #[serde(with = "bounded::bytes")]
    pub secret: Vec<u8>,
    /// A PKCS#10 request in DER, signed with the device's new key.
    #[serde(with = "bounded::bytes")]
    pub csr_der: Vec<u8>,
    /// How the user calls this computer.
    pub device_label: String,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest").field("secret", &"****").field("device_label", &self.device_label).finish()
    }
}

/// The device's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolAnswer {
    /// Who pays.
    pub tenant: TenantId,
    /// The device's id.
    pub device: DeviceId,
    /// The device certificate in DER.
    #[serde(with = "bounded::bytes")]
    pub certificate_der: Vec<u8>,
    /// The relay's CA certificate in DER; its SHA-256 is the fingerprint in the invite.
    #[serde(with = "bounded::bytes")]
    pub ca_der: Vec<u8>,
    /// When the certificate ends, milliseconds since 1970.
    pub expires_ms: u64,
}

/// Revoke the device that sends this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveRequest {
    /// Why, for the operator's log.
    pub reason: String,
}

/// The device is revoked; the tunnel closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveAnswer {
    /// The device that is no more.
    pub device: DeviceId,
}

/// A new certificate for the device that sends this, over its tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// A PKCS#10 request in DER, signed with the key that the device has.
    #[serde(with = "bounded::bytes")]
    pub csr_der: Vec<u8>,
}

/// The device's new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// The device certificate in DER.
    #[serde(with = "bounded::bytes")]
    pub certificate_der: Vec<u8>,
    /// The CA certificate in DER that the relay's own is signed by.
    #[serde(with = "bounded::bytes")]
    pub ca_der: Vec<u8>,
    /// The one that will take its place, to be trusted as well from now on; empty: none.
    #[serde(with = "bounded::bytes")]
    pub next_ca_der: Vec<u8>,
    /// When the certificate ends, milliseconds since 1970.
    pub expires_ms: u64,
}

codes! {
    /// What an escalation asks the provider for.
    Operation(u16) {
        /// A chat completion, in the dialect's own form.
        CHAT = 1, "chat";
        /// OpenAI Responses.
        RESPONSES = 2, "responses";
        /// Anthropic Messages.
        MESSAGES = 3, "messages";
        /// Embeddings; the body is OpenAI's.
        EMBEDDINGS = 4, "embeddings";
        /// Anthropic's token counting, which costs nothing.
        COUNT_TOKENS = 5, "count_tokens";
    }
}

codes! {
    /// The format of a request body, and of the answer to it.
    Dialect(u16) {
        /// Belay's own prompt (`dialect::prompt`).
        PROMPT = 1, "prompt";
        /// OpenAI Chat Completions.
        OPENAI_CHAT = 2, "openai_chat";
        /// OpenAI Responses.
        OPENAI_RESPONSES = 3, "openai_responses";
        /// Anthropic Messages.
        ANTHROPIC = 4, "anthropic";
    }
}

/// One LLM request. `body_len` bytes of body follow in `BodyChunk` frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscalateRequest {
    /// Made once by the client; the same id with the same body is the same request for ever.
    pub request_id: RequestId,
    /// The conversation session that it goes on with; the bytes of its text are a session name's. It is made
    /// if it is not there.
    pub session_id: Option<String>,
    /// What is asked for.
    pub operation: Operation,
    /// The body's format.
    pub dialect: Dialect,
    /// A model alias or an exact provider model; it wins over the body's own.
    pub model: String,
    /// Answer with events instead of one body.
    pub stream: bool,
    /// The most output tokens wanted. `None`: as the body says, or what is affordable.
    pub max_output_tokens: Option<u32>,
    /// With too little money, a smaller cap is better than a refusal.
    pub may_reduce_output: bool,
    /// Never let this request cost more than this, in nano-USD.
    pub cost_cap: Option<NanoUsd>,
    /// End the request after this long, in milliseconds.
    pub deadline_ms: Option<u32>,
    /// Headers for the provider; only those on the allow-list are passed on.
    #[serde(with = "bounded::headers")]
    pub headers: Vec<(String, String)>,
    /// Bytes of body that follow.
    pub body_len: u32,
    /// Room for later.
    #[serde(with = "bounded::extensions")]
    pub extensions: Vec<Extension>,
}

codes! {
    /// Where the content of an answer comes from.
    Content(u16) {
        /// It is being produced now.
        LIVE = 1, "live";
        /// It is replayed from the event log.
        REPLAYED = 2, "replayed";
        /// It is no longer kept: only `End` follows.
        GONE = 3, "gone";
    }
}

/// The provider has answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseHead {
    /// The request it belongs to.
    pub request_id: RequestId,
    /// The provider's HTTP status.
    pub status: u16,
    /// The provider's headers that are on the allow-list.
    #[serde(with = "bounded::headers")]
    pub headers: Vec<(String, String)>,
    /// The format of the events or of the body that follow.
    pub dialect: Dialect,
    /// Events follow; otherwise answer chunks.
    pub stream: bool,
    /// The provider's name in the relay's configuration.
    pub provider: String,
    /// The provider's model that runs.
    pub model: String,
    /// The output cap that was sent to the provider, in tokens.
    pub max_output_tokens: u32,
    /// The most that this request can cost, in nano-USD; it is held.
    pub held: NanoUsd,
    /// Where the content comes from.
    pub content: Content,
    /// Number of the first event that follows.
    pub first_event: u64,
}

codes! {
    /// What a unit of usage is.
    UnitKind(u16) {
        /// Input tokens that were neither read from nor written to a cache.
        INPUT = 1, "input_tokens";
        /// Output tokens, reasoning included.
        OUTPUT = 2, "output_tokens";
        /// Input tokens read from the provider's cache.
        CACHE_READ = 3, "cache_read_tokens";
        /// Input tokens written to a cache that lives five minutes.
        CACHE_WRITE_5M = 4, "cache_write_5m_tokens";
        /// Input tokens written to a cache that lives an hour.
        CACHE_WRITE_1H = 5, "cache_write_1h_tokens";
        /// Of the output tokens, those that were reasoning; for information, not priced again.
        REASONING = 6, "reasoning_tokens";
        /// Input tokens of sound.
        INPUT_AUDIO = 7, "input_audio_tokens";
        /// Output tokens of sound.
        OUTPUT_AUDIO = 8, "output_audio_tokens";
        /// Input tokens of pictures, where they have a price of their own.
        INPUT_IMAGE = 9, "input_image_tokens";
        /// Output tokens of pictures.
        OUTPUT_IMAGE = 10, "output_image_tokens";
        /// Calls of the provider, where a call has a price.
        CALLS = 11, "calls";
        /// Searches of the web that the provider made.
        WEB_SEARCHES = 12, "web_searches";
    }
}

/// An amount of one kind of unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageLine {
    /// What was used.
    pub kind: UnitKind,
    /// How much of it.
    pub units: u64,
}

impl UsageLine {
    /// So much less of it, if there is so much.
    #[must_use]
    pub fn less(self, units: u64) -> Self {
        Self { units: self.units.saturating_sub(units), ..self }
    }
}

codes! {
    /// How a request that had cost something, or could have, came to its end.
    Outcome(u16) {
        /// The provider said that it was done.
        COMPLETE = 1, "complete";
        /// The caller cancelled, or went away.
        CANCELLED = 2, "cancelled";
        /// The provider failed after it had begun.
        PROVIDER_FAILED = 3, "provider_failed";
        /// A timeout or deadline was reached.
        TIMED_OUT = 4, "timed_out";
        /// The relay died while the request ran; settled by recovery.
        RELAY_DIED = 5, "relay_died";
        /// The device was revoked or the tenant suspended.
        REVOKED = 6, "revoked";
        /// The relay was shut down before the answer was complete.
        DRAINED = 7, "drained";
        /// A limit of the relay was reached.
        LIMIT = 8, "limit";
    }
}

/// The request is over and settled. Its bytes are kept with the ledger for ever, and a repeated
/// request gets exactly them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The request.
    pub request_id: RequestId,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, for people; empty if complete.
    pub message: String,
    /// The provider's name.
    pub provider: String,
    /// The provider's model.
    pub model: String,
    /// What was used.
    #[serde(with = "bounded::usage")]
    pub usage: Vec<UsageLine>,
    /// What was charged, in nano-USD, multiplier included.
    pub cost: NanoUsd,
    /// What the tenant had left right after, in nano-USD; held money is not in it.
    pub balance: NanoUsd,
    /// The provider did not tell the usage: it was estimated from what was seen.
    pub estimated: bool,
    /// How many events or chunks the answer had.
    pub events: u64,
    /// Milliseconds from the hold to the first event, if there was one.
    pub first_event_ms: Option<u32>,
    /// Milliseconds from the hold to the settling.
    pub total_ms: u32,
}

impl End {
    /// Units of one kind; zero if the answer has no line of it.
    #[must_use]
    pub fn units(&self, kind: UnitKind) -> u64 {
        self.usage.iter().filter(|line| line.kind == kind).map(|line| line.units).sum()
    }
}

codes! {
    /// Why an operation failed with nothing charged.
    FailureCode(u16) {
        /// The peer broke the protocol.
        MALFORMED = 1, "malformed";
        /// The request's body or parameters are not acceptable.
        INVALID_REQUEST = 2, "invalid_request";
        /// No such model or alias.
        UNKNOWN_MODEL = 3, "unknown_model";
        /// The model has no price.
        NO_PRICE = 4, "no_price";
        /// The balance, a budget or the cost cap does not cover it.
        PAYMENT_REQUIRED = 5, "payment_required";
        /// Too many requests in this minute, or at once.
        RATE_LIMITED = 6, "rate_limited";
        /// The same request id with another body or from another device.
        CONFLICT = 7, "conflict";
        /// The request has begun and cannot be joined yet.
        IN_PROGRESS = 8, "in_progress";
        /// The provider refused the request; the head and body say how.
        PROVIDER_REFUSED = 9, "provider_refused";
        /// The provider could not be reached or failed before its first event.
        PROVIDER_UNAVAILABLE = 10, "provider_unavailable";
        /// A deadline passed before the first event.
        TIMED_OUT = 11, "timed_out";
        /// The caller cancelled before anything was charged.
        CANCELLED = 12, "cancelled";
        /// The tenant is suspended.
        SUSPENDED = 13, "suspended";
        /// The device is revoked.
        REVOKED = 14, "revoked";
        /// The invite is unknown, used up or too old.
        INVITE_REFUSED = 15, "invite_refused";
        /// A size or count limit was passed.
        LIMIT = 16, "limit";
        /// The relay has no room for new work.
        OVERLOADED = 17, "overloaded";
        /// The relay is going down and takes no new work.
        DRAINING = 18, "draining";
        /// The state could not be written or read; retry with the same id.
        STORE_UNAVAILABLE = 19, "store_unavailable";
        /// The operation or dialect is not served.
        UNSUPPORTED = 20, "unsupported";
        /// A fault of the relay.
        INTERNAL = 21, "internal";
        /// No certificate, or not one for this operation.
        UNAUTHENTICATED = 22, "unauthenticated";
        /// No version in common.
        VERSION = 23, "version";
        /// There is nothing to resume under this id: it never came, or nothing of it was charged.
        UNKNOWN_REQUEST = 24, "unknown_request";
        /// The tenant has nothing of that name.
        NOT_FOUND = 25, "not_found";
        /// It was deleted, and can be restored.
        DELETED = 26, "deleted";
    }
}

/// The operation failed; nothing was charged and the same id may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Which failure, for programs.
    pub code: FailureCode,
    /// What was wrong, for people.
    pub message: String,
    /// What to do about it, for people.
    pub remedy: String,
    /// The request, if one is concerned.
    pub request_id: Option<RequestId>,
    /// Worth trying again after this long, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// How much money is missing, in nano-USD.
    pub missing: Option<NanoUsd>,
}

/// Stop the request; what was produced is settled and `End` follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Why, for the log.
    pub reason: String,
}

/// Everything below `next` has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The number of the next event that the client wants.
    pub next: u64,
    /// `End` has arrived.
    pub end: bool,
}

/// Goes on with a request that was sent before: the first frame of a stream, in place of
/// [`EscalateRequest`] and without a body. It acknowledges everything below `next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The request.
    pub request_id: RequestId,
    /// The number of the next event that the client wants.
    pub next: u64,
}
