//! Sizes, counts and times.

use super::check::Wrong;
use super::raw::{RawLimits, RawRetries, RawTimeouts};
use crate::store::ledger::hold::PerMinute;
use belay_certs::issue::DEVICE_LIFETIME;
use belay_transport::params;
use std::time::Duration;

/// Sizes and counts; each has a test that runs into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests per minute and tenant.
    pub requests_per_minute: u32,
    /// Tokens per minute and tenant; `None`: as many as can be paid.
    pub tokens_per_minute: Option<u32>,
    /// Requests at once and tenant.
    pub requests_at_once: u32,
    /// Streams at once in a tunnel after the hello.
    pub streams_per_tunnel: u32,
    /// Tunnels at once of a device.
    pub instances_per_device: u32,
    /// Handshakes per second from one address.
    pub handshakes_per_second: u32,
    /// Handshakes at once.
    pub pending_handshakes: usize,
    /// Bytes of a request body.
    pub request_body: u32,
    /// Bytes of an answer that is not streamed.
    pub answer_body: u32,
    /// Bytes of all request bodies in memory.
    pub bodies_in_memory: u32,
    /// Bytes of events that a reader has not acknowledged.
    pub unread_events: usize,
    /// Bytes that clients may make the relay use, all together.
    pub memory: usize,
    /// Streams at once of a tenant, all its tunnels together.
    pub streams_per_tenant: u32,
    /// Bytes of the events of all requests together.
    pub event_logs: usize,
    /// Tokens of a session's history that go with a request at the most.
    pub session_history_tokens: u32,
    /// Bytes that a tenant's sessions may take.
    pub sessions: u64,
    /// Bytes that what a tenant syncs may take.
    pub sync: u64,
}

impl Limits {
    /// How often a tenant may ask where it has no budget of its own.
    pub(crate) fn per_minute(&self) -> PerMinute {
        PerMinute { requests: self.requests_per_minute, tokens: self.tokens_per_minute }
    }
}

/// Times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first packet to the end of the TLS handshake.
    pub handshake: Duration,
    /// From there to the hello, or to the end of enrolment.
    pub hello: Duration,
    /// From the opening of a stream to the end of the request body.
    pub request_body: Duration,
    /// From the provider's call to its first event.
    pub first_event: Duration,
    /// Between two events.
    pub between_events: Duration,
    /// From the hold to the end.
    pub total: Duration,
    /// Between two heartbeats of a client.
    pub heartbeat: Duration,
    /// How long a request goes on without its reader.
    pub resume_window: Duration,
    /// How long a finished answer waits for its reader.
    pub keep_answer: Duration,
    /// How long running requests may go on after SIGTERM.
    pub drain: Duration,
    /// How long a device's certificate holds.
    pub device_certificate: Duration,
    /// How long after its end a certificate can still be renewed.
    pub expired_grace: Duration,
}

/// When the providers of a request are asked again, before the first byte of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// So often, once all that may serve it have failed for a reason that may pass.
    pub rounds: u32,
    /// Not where a provider wants more time than this.
    pub longest_wait: Duration,
}

pub(super) fn retries(raw: &RawRetries) -> Result<Retries, Wrong> {
    let (rounds, wait) = (raw.rounds.unwrap_or(1), raw.longest_wait_ms.unwrap_or(5_000));
    if rounds > 10 {
        return Err(("retries.rounds", format!("{rounds} is not from 0 to 10")));
    }
    if wait > 600_000 {
        return Err(("retries.longest_wait_ms", format!("{wait} is not from 0 to 600000 milliseconds")));
    }
    Ok(Retries { rounds, longest_wait: Duration::from_millis(wait) })
}

pub(super) fn limits(raw: &RawLimits) -> Result<Limits, Wrong> {
    let mib = |key, value: Option<u32>, default: u32, most: u32| {
        let value = value.unwrap_or(default);
        if (1..=most).contains(&value) {
            Ok(value << 20)
        } else {
            Err((key, format!("{value} is not from 1 to {most}")))
        }
    };
    let streams = raw.streams_per_tunnel.unwrap_or(params::STREAMS_AFTER_HELLO);
    if !(1..=params::STREAMS_AFTER_HELLO).contains(&streams) {
        let most = params::STREAMS_AFTER_HELLO;
        let why = format!("{streams} is not from 1 to {most}: more would let stalled readers block the heartbeat");
        return Err(("limits.streams_per_tunnel", why));
    }
    let memory_mib = raw.memory_mib.unwrap_or(1024);
    if !(1..=1 << 20).contains(&memory_mib) {
        return Err(("limits.memory_mib", format!("{memory_mib} is not from 1 to {}", 1 << 20)));
    }
    // Nobody would get in, and nothing would say why.
    let some = |key, value: Option<u32>, default: u32| match value.unwrap_or(default) {
        0 => Err((key, "0 would let nobody in; leave it out for the default".to_owned())),
        value => Ok(value),
    };
    let pending = raw.pending_handshakes.unwrap_or(1024);
    if !(1..=1 << 20).contains(&pending) {
        return Err(("limits.pending_handshakes", format!("{pending} is not from 1 to {}", 1 << 20)));
    }
    let request_body = mib("limits.request_body_mib", raw.request_body_mib, 32, 1024)?;
    let bodies_in_memory = mib("limits.bodies_in_memory_mib", raw.bodies_in_memory_mib, 256, 4095)?;
    if request_body > bodies_in_memory {
        let why = format!("the largest body would never find room: name at least {}", request_body >> 20);
        return Err(("limits.bodies_in_memory_mib", why));
    }
    Ok(Limits {
        requests_per_minute: raw.requests_per_minute.unwrap_or(100),
        tokens_per_minute: raw.tokens_per_minute.filter(|count| *count > 0),
        requests_at_once: some("limits.requests_at_once", raw.requests_at_once, 50)?,
        streams_per_tunnel: streams,
        instances_per_device: some("limits.instances_per_device", raw.instances_per_device, 4)?,
        handshakes_per_second: some("limits.handshakes_per_second", raw.handshakes_per_second, 20)?,
        pending_handshakes: pending,
        request_body,
        answer_body: mib("limits.answer_body_mib", raw.answer_body_mib, 32, 1024)?,
        bodies_in_memory,
        unread_events: mib("limits.unread_events_mib", raw.unread_events_mib, 8, 1024)? as usize,
        memory: (memory_mib as usize) << 20,
        streams_per_tenant: some("limits.streams_per_tenant", raw.streams_per_tenant, 1024)?,
        // A quarter of it all.
        event_logs: mib("limits.event_logs_mib", raw.event_logs_mib, (memory_mib / 4).clamp(1, 4095), 4095)? as usize,
        session_history_tokens: raw.session_history_tokens.unwrap_or(32_000),
        sessions: u64::from(raw.sessions_mib.unwrap_or(1024)) << 20,
        sync: u64::from(raw.sync_mib.unwrap_or(10_240)) << 20,
    })
}

pub(super) fn timeouts(raw: &RawTimeouts) -> Result<Timeouts, Wrong> {
    let millis = |key, value: Option<u64>, default: u64| {
        let value = value.unwrap_or(default);
        // A week is longer than anything here should wait, and far from overflowing a clock.
        if (1..=604_800_000).contains(&value) {
            Ok(Duration::from_millis(value))
        } else {
            Err((key, format!("{value} is not from 1 to 604800000 milliseconds")))
        }
    };
    // A computer may sleep for long.
    let long = |key, value: Option<u64>, (least, default): (u64, u64)| {
        let value = value.unwrap_or(default);
        if (least..=31_536_000_000).contains(&value) {
            Ok(Duration::from_millis(value))
        } else {
            Err((key, format!("{value} is not from {least} to 31536000000 milliseconds")))
        }
    };
    Ok(Timeouts {
        handshake: millis("timeouts.handshake_ms", raw.handshake_ms, 10_000)?,
        hello: millis("timeouts.hello_ms", raw.hello_ms, 10_000)?,
        request_body: millis("timeouts.request_body_ms", raw.request_body_ms, 60_000)?,
        first_event: millis("timeouts.first_event_ms", raw.first_event_ms, 120_000)?,
        between_events: millis("timeouts.between_events_ms", raw.between_events_ms, 60_000)?,
        total: millis("timeouts.total_ms", raw.total_ms, 900_000)?,
        heartbeat: millis("timeouts.heartbeat_ms", raw.heartbeat_ms.map(u64::from), 10_000)?,
        resume_window: millis("timeouts.resume_window_ms", raw.resume_window_ms, 300_000)?,
        keep_answer: millis("timeouts.keep_answer_ms", raw.keep_answer_ms, 86_400_000)?,
        drain: millis("timeouts.drain_ms", raw.drain_ms, 30_000)?,
        device_certificate: long(
            "timeouts.device_certificate_ms",
            raw.device_certificate_ms,
            (10_000, u64::try_from(DEVICE_LIFETIME.as_millis()).unwrap_or(u64::MAX)),
        )?,
        expired_grace: long("timeouts.expired_grace_ms", raw.expired_grace_ms, (1, 2_592_000_000))?,
    })
}
