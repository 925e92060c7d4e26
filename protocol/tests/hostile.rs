//! What a hostile or broken peer can send: every byte string is a frame, a typed error, or waits
//! for more. Nothing panics, nothing is buffered before its length was checked, and both sides
//! draw the line at the same byte.
//!
//! How much memory a body may take is tested in `allocation.rs`, under a counting allocator.

mod every;

use belay_protocol::codec::Message;
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{
    FLAG_REQUIRED, Frame, FrameDecoder, FrameType, HEADER_LEN, MAX_CHUNK, MAX_SKIPPED, RAW_HEADER_LEN, frame, raw,
};
use belay_protocol::id::{DeviceId, InstanceId, LockToken, MessageId, RequestId, RevisionId, SessionId, TenantId};
use belay_protocol::item::{Digest, ItemKey, ItemKind};
use belay_protocol::message as m;
use belay_protocol::money::NanoUsd;
use bytes::Bytes;
use every::decode;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use std::fmt::Debug;

/// What the decoder may hold of a frame whose header it has not accepted: the header, and what a
/// growing buffer rounds it up to.
const HEADER_ROOM: usize = 64;

/// No frame type has this number.
const UNKNOWN: u16 = 0xfffe;

/// A failure prints its seed and keeps it beside this file.
fn config() -> ProptestConfig {
    let failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("regressions")) as Box<_>);
    ProptestConfig { failure_persistence, ..ProptestConfig::default() }
}

fn header(len: u32, wire: u16, flags: u8, reserved: u8) -> Vec<u8> {
    let mut out = len.to_le_bytes().to_vec();
    out.extend(wire.to_le_bytes());
    out.extend([flags, reserved]);
    out
}

fn is_raw(kind: FrameType) -> bool {
    matches!(kind, FrameType::BodyChunk | FrameType::Event | FrameType::AnswerChunk)
}

// Strategies.

fn any_type() -> impl Strategy<Value = FrameType> {
    proptest::sample::select(FrameType::ALL.to_vec())
}

/// Random bytes in which the codec's marks of long integers are as common as they are rare by chance.
fn tricky_bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![3 => any::<u8>(), 2 => 248..=255u8, 2 => 0..=4u8], 0..most)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,12}", vec(any::<char>(), 0..300).prop_map(|chars| chars.into_iter().collect())]
}

fn tenant() -> impl Strategy<Value = TenantId> {
    "[a-z0-9][a-z0-9_-]{0,63}".prop_map(|text| text.parse().expect("a name"))
}

fn device() -> impl Strategy<Value = DeviceId> {
    "[a-z0-9][a-z0-9_-]{0,63}".prop_map(|text| text.parse().expect("a name"))
}

fn request_id() -> impl Strategy<Value = RequestId> {
    any::<[u8; 16]>().prop_map(RequestId)
}

fn money() -> impl Strategy<Value = NanoUsd> {
    prop_oneof![any::<i64>(), -300..300i64, Just(i64::MIN), Just(i64::MAX)].prop_map(NanoUsd)
}

/// Numbers around the borders of the variable-length encoding, and any others.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..300u64,
        Just(u64::from(u16::MAX)),
        Just(1 << 16),
        Just(u64::from(u32::MAX)),
        Just(1 << 32)
    ]
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    vec((text(), text()), 0..6)
}

/// At the most 20 × (3 + 3 + 60) bytes: with the other fields still a `Hello`.
fn extensions() -> impl Strategy<Value = Vec<m::Extension>> {
    vec((any::<u16>(), vec(any::<u8>(), 0..60)), 0..20)
        .prop_map(|list| list.into_iter().map(|(kind, value)| m::Extension { kind, value }).collect())
}

prop_compose! {
    fn hello()(
        (min_minor, max_minor) in any::<(u16, u16)>(),
        capabilities in number(),
        client_name in text(),
        instance_id in any::<[u8; 16]>(),
        path_generation in number(),
        extensions in extensions(),
    ) -> m::Hello {
        let instance_id = InstanceId(instance_id);
        m::Hello { min_minor, max_minor, capabilities, client_name, instance_id, path_generation, extensions }
    }
}

prop_compose! {
    fn hello_ack()(
        (minor, heartbeat_interval_ms) in any::<(u16, u32)>(),
        (capabilities, relay_time_ms) in (number(), number()),
        relay_name in text(),
        (tenant, device) in (tenant(), device()),
        extensions in extensions(),
    ) -> m::HelloAck {
        m::HelloAck {
            minor, capabilities, relay_name, tenant, device, heartbeat_interval_ms, relay_time_ms, extensions,
        }
    }
}

prop_compose! {
    fn heartbeat()(
        (sequence, sent_at_us) in (number(), number()),
        round_trip_us in any::<Option<u32>>(),
        extensions in extensions(),
    ) -> m::Heartbeat {
        m::Heartbeat { sequence, sent_at_us, round_trip_us, extensions }
    }
}

prop_compose! {
    fn enrol_request()(
        secret in vec(any::<u8>(), 0..64),
        csr_der in vec(any::<u8>(), 0..2000),
        device_label in text(),
    ) -> m::EnrolRequest {
        m::EnrolRequest { secret, csr_der, device_label }
    }
}

prop_compose! {
    fn enrol_answer()(
        (tenant, device) in (tenant(), device()),
        certificate_der in vec(any::<u8>(), 0..1000),
        ca_der in vec(any::<u8>(), 0..1000),
        expires_ms in number(),
    ) -> m::EnrolAnswer {
        m::EnrolAnswer { tenant, device, certificate_der, ca_der, expires_ms }
    }
}

prop_compose! {
    fn renew_answer()(
        certificate_der in vec(any::<u8>(), 0..1000),
        ca_der in vec(any::<u8>(), 0..1000),
        next_ca_der in vec(any::<u8>(), 0..1000),
        expires_ms in number(),
    ) -> m::RenewAnswer {
        m::RenewAnswer { certificate_der, ca_der, next_ca_der, expires_ms }
    }
}

prop_compose! {
    fn escalate_request()(
        request_id in request_id(),
        session_id in option::of(text()),
        (operation, dialect) in any::<(u16, u16)>(),
        model in text(),
        (stream, may_reduce_output) in any::<(bool, bool)>(),
        (max_output_tokens, deadline_ms) in any::<(Option<u32>, Option<u32>)>(),
        cost_cap in option::of(money()),
        headers in headers(),
        body_len in any::<u32>(),
        extensions in extensions(),
    ) -> m::EscalateRequest {
        let (operation, dialect) = (m::Operation(operation), m::Dialect(dialect));
        m::EscalateRequest {
            request_id, session_id, operation, dialect, model, stream, max_output_tokens, may_reduce_output, cost_cap,
            deadline_ms, headers, body_len, extensions,
        }
    }
}

prop_compose! {
    fn response_head()(
        request_id in request_id(),
        (status, dialect, content) in any::<(u16, u16, u16)>(),
        headers in headers(),
        stream in any::<bool>(),
        (provider, model) in (text(), text()),
        max_output_tokens in any::<u32>(),
        held in money(),
        first_event in number(),
    ) -> m::ResponseHead {
        let (dialect, content) = (m::Dialect(dialect), m::Content(content));
        m::ResponseHead {
            request_id, status, headers, dialect, stream, provider, model, max_output_tokens, held, content, first_event,
        }
    }
}

prop_compose! {
    fn end()(
        request_id in request_id(),
        outcome in any::<u16>(),
        (message, provider, model) in (text(), text(), text()),
        usage in vec((any::<u16>(), number()), 0..20),
        (cost, balance) in (money(), money()),
        estimated in any::<bool>(),
        events in number(),
        (first_event_ms, total_ms) in any::<(Option<u32>, u32)>(),
    ) -> m::End {
        let line = |(kind, units)| m::UsageLine { kind: m::UnitKind(kind), units };
        m::End {
            request_id, outcome: m::Outcome(outcome), message, provider, model,
            usage: usage.into_iter().map(line).collect(),
            cost, balance, estimated, events, first_event_ms, total_ms,
        }
    }
}

prop_compose! {
    fn failed()(
        code in any::<u16>(),
        (message, remedy) in (text(), text()),
        request_id in option::of(request_id()),
        retry_after_ms in option::of(number()),
        missing in option::of(money()),
    ) -> m::Failed {
        m::Failed { code: m::FailureCode(code), message, remedy, request_id, retry_after_ms, missing }
    }
}

prop_compose! {
    fn balance()(
        tenant in tenant(),
        (balance, credits, held, charged, ceiling) in (money(), money(), money(), money(), money()),
        open_holds in any::<u32>(),
        pays_with in any::<u16>().prop_map(m::PaysWith),
    ) -> m::Balance {
        m::Balance { tenant, balance, credits, held, open_holds, charged, pays_with, ceiling }
    }
}

prop_compose! {
    fn usage_group()(
        name in text(),
        (requests, estimated, input, output) in (number(), number(), number(), number()),
        (cache_read, cache_write, reasoning) in (number(), number(), number()),
        cost in money(),
    ) -> m::UsageGroup {
        m::UsageGroup { name, requests, estimated, input, output, cache_read, cache_write, reasoning, cost }
    }
}

prop_compose! {
    fn statement_line()(
        (entry, at_ms) in (number(), number()),
        (kind, from, to) in (text(), text(), text()),
        (amount, balance) in (money(), money()),
        request_id in option::of(request_id()),
        (model, operation, note) in (text(), text(), text()),
    ) -> m::StatementLine {
        m::StatementLine { entry, at_ms, kind, from, to, amount, balance, request_id, model, operation, note }
    }
}

fn model_offer() -> impl Strategy<Value = m::ModelOffer> {
    let price = || option::of(money());
    let names = (text(), text(), text());
    (names, any::<u16>(), any::<u32>(), any::<u32>(), price(), price()).prop_map(
        |((name, provider, model), dialect, context_tokens, max_output_tokens, input, output)| {
            let dialect = m::Dialect(dialect);
            m::ModelOffer { name, provider, model, dialect, context_tokens, max_output_tokens, input, output }
        },
    )
}

fn session() -> impl Strategy<Value = SessionId> {
    "[a-zäöü0-9][a-zß0-9 _/-]{0,40}[a-z0-9]".prop_map(|text| text.parse().expect("a name"))
}

fn rid() -> impl Strategy<Value = RevisionId> {
    any::<[u8; 16]>().prop_map(RevisionId)
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn item_key() -> impl Strategy<Value = ItemKey> {
    "[a-zäöü0-9][a-zß0-9 _-]{0,20}[a-z0-9](/[a-wyz][a-z0-9]{4,9}){0,3}"
        .prop_filter_map("a key", |text| text.parse::<ItemKey>().ok())
}

fn message_id() -> impl Strategy<Value = MessageId> {
    any::<[u8; 16]>().prop_map(MessageId)
}

fn knowledge() -> impl Strategy<Value = Vec<m::SessionKnowledge>> {
    let piece = (text(), option::of(0.0..1.0_f64), text());
    vec(piece.prop_map(|(source, relevance, text)| m::SessionKnowledge { source, relevance, text }), 0..4)
}

fn constraints() -> impl Strategy<Value = Vec<String>> {
    vec(text(), 0..4)
}

prop_compose! {
    fn session_row()(
        session in session(),
        (title, model) in (text(), text()),
        (created_ms, updated_ms, messages) in (number(), number(), number()),
        cost in money(),
        deleted_ms in option::of(number()),
    ) -> m::SessionRow {
        m::SessionRow { session, title, model, created_ms, updated_ms, messages, cost, deleted_ms }
    }
}

prop_compose! {
    fn session_message()(
        (number, at_ms) in (number(), number()),
        message_id in message_id(),
        (role, outcome, text_len) in any::<(u16, u16, u32)>(),
        device in device(),
        request_id in option::of(request_id()),
        model in text(),
        cost in money(),
    ) -> m::SessionMessage {
        let (role, outcome) = (m::SessionRole(role), m::Outcome(outcome));
        m::SessionMessage { number, message_id, role, at_ms, device, request_id, outcome, model, cost, text_len }
    }
}

prop_compose! {
    fn session_update()(
        session in session(),
        (title, model, framing) in (option::of(text()), option::of(text()), option::of(text())),
        (sets_knowledge, sets_constraints) in any::<(bool, bool)>(),
        knowledge in knowledge(),
        constraints in constraints(),
    ) -> m::SessionUpdate {
        m::SessionUpdate { session, title, model, framing, sets_knowledge, sets_constraints, knowledge, constraints }
    }
}

prop_compose! {
    fn record_request()(
        request_id in request_id(),
        class in any::<u16>().prop_map(m::UsageClass),
        model in text(),
        usage in vec((any::<u16>(), number()), 0..6),
    ) -> m::RecordRequest {
        let usage = usage.into_iter().map(|(kind, units)| m::UsageLine { kind: m::UnitKind(kind), units }).collect();
        m::RecordRequest { request_id, class, model, usage }
    }
}

/// A valid frame of any type, whole.
fn any_frame() -> BoxedStrategy<Bytes> {
    fn whole<M: Message + Debug>(message: impl Strategy<Value = M> + 'static) -> BoxedStrategy<Bytes> {
        message.prop_map(|message| message.to_frame().expect("within its limit")).boxed()
    }
    fn chunk(kind: FrameType) -> BoxedStrategy<Bytes> {
        vec(any::<u8>(), RAW_HEADER_LEN..300).prop_map(move |body| frame(kind, &body).expect("small")).boxed()
    }
    // Texts of up to 300 characters of four bytes fit every type.
    let of_type = |kind: FrameType| match kind {
        FrameType::Hello => whole(hello()),
        FrameType::HelloAck => whole(hello_ack()),
        FrameType::Heartbeat => whole(heartbeat()),
        FrameType::HeartbeatAck => whole((number(), any::<(u32, u32)>(), extensions()).prop_map(
            |(number, (held_us, relay_round_trip_us), extensions)| m::HeartbeatAck {
                sequence: number,
                echo_us: number,
                held_us,
                relay_round_trip_us,
                extensions,
            },
        )),
        FrameType::GoAway => {
            whole((any::<(u32, u32)>(), text()).prop_map(|((reconnect_after_ms, spread_ms), reason)| m::GoAway {
                reconnect_after_ms,
                spread_ms,
                reason,
            }))
        }
        FrameType::Probe => whole(any::<u8>().prop_map(|reserved| m::Probe { reserved })),
        FrameType::EnrolRequest => whole(enrol_request()),
        FrameType::EnrolAnswer => whole(enrol_answer()),
        FrameType::LeaveRequest => whole(text().prop_map(|reason| m::LeaveRequest { reason })),
        FrameType::LeaveAnswer => whole(device().prop_map(|device| m::LeaveAnswer { device })),
        FrameType::RenewRequest => whole(vec(any::<u8>(), 0..1000).prop_map(|csr_der| m::RenewRequest { csr_der })),
        FrameType::RenewAnswer => whole(renew_answer()),
        FrameType::EscalateRequest => whole(escalate_request()),
        FrameType::ResponseHead => whole(response_head()),
        FrameType::End => whole(end()),
        FrameType::Failed => whole(failed()),
        FrameType::Cancel => whole(text().prop_map(|reason| m::Cancel { reason })),
        FrameType::Ack => whole((number(), any::<bool>()).prop_map(|(next, end)| m::Ack { next, end })),
        FrameType::Resume => {
            whole((request_id(), number()).prop_map(|(request_id, next)| m::Resume { request_id, next }))
        }
        FrameType::BalanceRequest => whole(any::<u8>().prop_map(|reserved| m::BalanceRequest { reserved })),
        FrameType::Balance => whole(balance()),
        FrameType::UsageRequest => {
            whole(any::<(u16, u32, u32, u16)>().prop_map(|(period, from_day, until_day, by)| m::UsageRequest {
                period: m::UsagePeriod(period),
                from_day,
                until_day,
                by: m::UsageBy(by),
            }))
        }
        FrameType::UsageGroup => whole(usage_group()),
        FrameType::Done => whole((number(), any::<(u32, u32)>()).prop_map(|(rows, (from_day, until_day))| m::Done {
            rows,
            from_day,
            until_day,
        })),
        FrameType::StatementRequest => {
            whole((number(), any::<(u32, u32)>()).prop_map(|(after, (from_day, until_day))| m::StatementRequest {
                from_day,
                until_day,
                after,
            }))
        }
        FrameType::StatementLine => whole(statement_line()),
        FrameType::RecordRequest => whole(record_request()),
        FrameType::TopUpRequest => whole(money().prop_map(|amount| m::TopUpRequest { amount })),
        FrameType::TopUp => whole(text().prop_map(|url| m::TopUp { url })),
        FrameType::FlushRequest => whole(any::<u8>().prop_map(|reserved| m::FlushRequest { reserved })),
        FrameType::Flushed => {
            whole((number(), money()).prop_map(|(waiting_rows, waiting)| m::Flushed { waiting_rows, waiting }))
        }
        FrameType::ModelsRequest => whole(any::<u8>().prop_map(|reserved| m::ModelsRequest { reserved })),
        FrameType::ModelOffer => whole(model_offer()),
        FrameType::SessionGet => {
            whole((session(), number(), any::<u32>()).prop_map(|(session, after, last)| m::SessionGet {
                session,
                after,
                last,
            }))
        }
        FrameType::Session => whole((session_row(), text(), knowledge(), constraints()).prop_map(
            |(row, framing, knowledge, constraints)| m::Session {
                row,
                context: m::SessionContext { framing, knowledge, constraints },
            },
        )),
        FrameType::SessionMessage => whole(session_message()),
        FrameType::SessionAdd => whole((session(), message_id(), any::<(u16, u32)>(), text()).prop_map(
            |(session, message_id, (role, text_len), model)| m::SessionAdd {
                session,
                message_id,
                role: m::SessionRole(role),
                model,
                text_len,
            },
        )),
        FrameType::SessionAdded => whole(number().prop_map(|number| m::SessionAdded { number })),
        FrameType::SessionUpdate => whole(session_update()),
        FrameType::SessionAct => whole(
            (session(), any::<u16>()).prop_map(|(session, deed)| m::SessionAct { session, deed: m::SessionDeed(deed) }),
        ),
        FrameType::SessionList => {
            whole((any::<bool>(), text(), any::<u32>()).prop_map(|(deleted, cursor, limit)| m::SessionList {
                deleted,
                cursor,
                limit,
            }))
        }
        FrameType::SessionRow => whole(session_row()),
        FrameType::SessionSearch => {
            whole((text(), text(), any::<u32>()).prop_map(|(query, cursor, limit)| m::SessionSearch {
                query,
                cursor,
                limit,
            }))
        }
        FrameType::SessionHit => {
            whole((session_row(), number(), text()).prop_map(|(row, message, snippet)| m::SessionHit {
                row,
                message,
                snippet,
            }))
        }
        FrameType::SessionsDone => {
            whole((number(), text()).prop_map(|(rows, cursor)| m::SessionsDone { rows, cursor }))
        }
        FrameType::SyncPush => whole(
            (
                (rid(), option::of(rid()), any::<u16>(), item_key(), any::<u16>()),
                (number(), number(), digest(), vec(any::<u8>(), 0..40), text(), option::of(rid())),
            )
                .prop_map(
                    |((revision, parent, kind, key, content), (modified_ms, size, digest, inline, meta, earlier))| {
                        m::SyncPush {
                            revision,
                            parent,
                            kind: ItemKind(kind),
                            key,
                            content: m::SyncContent(content),
                            modified_ms,
                            size,
                            digest,
                            inline,
                            meta,
                            earlier,
                        }
                    },
                ),
        ),
        FrameType::SyncPushed => whole((rid(), any::<u16>(), rid(), number(), option::of(item_key())).prop_map(
            |(revision, outcome, head, number, copy)| m::SyncPushed {
                revision,
                outcome: m::PushOutcome(outcome),
                head,
                number,
                copy,
            },
        )),
        FrameType::SyncPull => whole((text(), any::<u32>()).prop_map(|(cursor, limit)| m::SyncPull { cursor, limit })),
        FrameType::SyncChange => whole(
            (
                (number(), any::<u16>(), text(), rid(), any::<u16>(), option::of(device())),
                (number(), number(), number(), digest(), vec(any::<u8>(), 0..40), text(), text()),
            )
                .prop_map(
                    |(
                        (number, kind, key, revision, content, device),
                        (at_ms, modified_ms, size, digest, inline, meta, conflict_of),
                    )| m::SyncChange {
                        number,
                        kind: ItemKind(kind),
                        key,
                        revision,
                        content: m::SyncContent(content),
                        device,
                        at_ms,
                        modified_ms,
                        size,
                        digest,
                        inline,
                        meta,
                        conflict_of,
                    },
                ),
        ),
        FrameType::SyncPage => {
            whole((number(), text(), any::<bool>(), any::<u16>()).prop_map(|(changes, cursor, has_more, resync)| {
                m::SyncPage { changes, cursor, has_more, resync: m::Resync(resync) }
            }))
        }
        FrameType::SyncGet => whole(rid().prop_map(|revision| m::SyncGet { revision })),
        FrameType::SyncGot => {
            whole((any::<u16>(), number(), vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..40)).prop_map(
                |(content, size, inline, parts)| m::SyncGot { content: m::SyncContent(content), size, inline, parts },
            ))
        }
        FrameType::SyncLog => {
            whole((any::<u16>(), item_key()).prop_map(|(kind, key)| m::SyncLog { kind: ItemKind(kind), key }))
        }
        FrameType::SyncRevision => whole(
            (
                rid(),
                option::of(rid()),
                any::<u16>(),
                any::<u16>(),
                device(),
                number(),
                option::of(number()),
                number(),
                digest(),
            )
                .prop_map(
                    |(revision, parent, state, content, device, at_ms, replaced_ms, size, digest)| m::SyncRevision {
                        revision,
                        parent,
                        state: m::RevisionState(state),
                        content: m::SyncContent(content),
                        device,
                        at_ms,
                        replaced_ms,
                        size,
                        digest,
                    },
                ),
        ),
        FrameType::SyncStatusRequest => whole(any::<u8>().prop_map(|reserved| m::SyncStatusRequest { reserved })),
        FrameType::SyncKindStatus => whole((any::<u16>(), number(), number(), number(), number()).prop_map(
            |(kind, items, conflicts, bytes, changed_ms)| m::SyncKindStatus {
                kind: ItemKind(kind),
                items,
                conflicts,
                bytes,
                changed_ms,
            },
        )),
        FrameType::SyncStatus => {
            whole((number(), number(), text()).prop_map(|(used, quota, cursor)| m::SyncStatus { used, quota, cursor }))
        }
        FrameType::SyncLock => {
            whole((item_key(), rid()).prop_map(|(key, token)| m::SyncLock { key, token: LockToken(token.0) }))
        }
        FrameType::SyncLocked => {
            whole((number(), number()).prop_map(|(fence, expires_in_ms)| m::SyncLocked { fence, expires_in_ms }))
        }
        FrameType::SyncUnlock => {
            whole((item_key(), rid()).prop_map(|(key, token)| m::SyncUnlock { key, token: LockToken(token.0) }))
        }
        FrameType::SyncUnlocked => whole(any::<bool>().prop_map(|was_expired| m::SyncUnlocked { was_expired })),
        FrameType::BlobBegin => {
            whole((rid(), any::<u16>(), vec(any::<u8>(), 0..40)).prop_map(|(revision, kind, parts)| m::BlobBegin {
                revision,
                kind: ItemKind(kind),
                parts,
            }))
        }
        FrameType::BlobNeeded => whole(vec(any::<u8>(), 0..40).prop_map(|needed| m::BlobNeeded { needed })),
        FrameType::BlobPut => whole((rid(), any::<u32>(), any::<u32>(), any::<u16>(), any::<u32>()).prop_map(
            |(revision, part, offset, encoding, len)| m::BlobPut {
                revision,
                part,
                offset,
                encoding: m::Encoding(encoding),
                len,
            },
        )),
        FrameType::BlobStored => whole(any::<u32>().prop_map(|part| m::BlobStored { part })),
        FrameType::BlobGet => {
            whole((digest(), any::<u32>()).prop_map(|(digest, offset)| m::BlobGet { digest, offset }))
        }
        FrameType::BlobPart => {
            whole((any::<u32>(), any::<u16>(), any::<u32>()).prop_map(|(size, encoding, len)| m::BlobPart {
                size,
                encoding: m::Encoding(encoding),
                len,
            }))
        }
        FrameType::SyncLogDone => whole(number().prop_map(|revisions| m::SyncLogDone { revisions })),
        FrameType::BodyChunk | FrameType::Event | FrameType::AnswerChunk => chunk(kind),
    };
    proptest::strategy::Union::new(FrameType::ALL.iter().map(|kind| of_type(*kind))).boxed()
}

/// An unknown optional frame, to be skipped.
fn unknown_frame() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..600).prop_map(|body| {
        let len = u32::try_from(body.len()).expect("small");
        [header(len, UNKNOWN, 0, 0), body].concat().into()
    })
}

// Round trips.

fn round_trip<M: Message + PartialEq + Debug>(message: &M) -> Result<(), TestCaseError> {
    let encoded = message.to_frame().expect("within its limit");
    let mut decoder = FrameDecoder::new();
    decoder.push(encoded.clone());
    let received = decoder.next().expect("valid").expect("whole");
    prop_assert!(decoder.is_at_boundary());
    let decoded = M::from_frame(&received);
    prop_assert_eq!(decoded.as_ref(), Ok(message));
    // One value has one encoding: what is kept with the ledger can be compared by its bytes.
    prop_assert_eq!(decoded.expect("just compared").to_frame().expect("within its limit"), encoded);
    Ok(())
}

macro_rules! round_trips {
    ($($test:ident: $strategy:expr;)*) => {
        proptest! {
            #![proptest_config(config())]
            $(
            #[test]
            fn $test(message in $strategy) {
                round_trip(&message)?;
            }
            )*
        }
    };
}

round_trips! {
    hello_round_trips: hello();
    hello_ack_round_trips: hello_ack();
    heartbeat_round_trips: heartbeat();
    enrol_request_round_trips: enrol_request();
    enrol_answer_round_trips: enrol_answer();
    escalate_request_round_trips: escalate_request();
    response_head_round_trips: response_head();
    end_round_trips: end();
    failed_round_trips: failed();
    balance_round_trips: balance();
}

// Nothing panics.

/// Feeds bytes to a decoder and reads every frame that comes out, until an error or the end.
fn drain(decoder: &mut FrameDecoder) -> Result<Vec<Frame>, ProtocolError> {
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next()? {
        // What the body means is another matter; it must only not panic.
        let _ = decode(frame.kind, &frame.body);
        frames.push(frame);
    }
    Ok(frames)
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn any_body_is_a_message_or_an_error(kind in any_type(), body in tricky_bytes(400)) {
        let _ = decode(kind, &body);
    }

    #[test]
    fn any_stream_is_frames_or_an_error(bytes in tricky_bytes(400), at in any::<prop::sample::Index>()) {
        let mut decoder = FrameDecoder::new();
        decoder.push(Bytes::copy_from_slice(&bytes));
        let _ = drain(&mut decoder);
        let (head, tail) = bytes.split_at(at.index(bytes.len() + 1));
        let mut decoder = FrameDecoder::new();
        for part in [head, tail] {
            decoder.push(Bytes::copy_from_slice(part));
            let _ = drain(&mut decoder);
        }
    }

    #[test]
    fn a_cut_message_is_an_error(whole in any_frame()) {
        let mut decoder = FrameDecoder::new();
        decoder.push(whole);
        let whole = decoder.next().expect("valid").expect("whole");
        for len in 0..whole.body.len() {
            let cut = decode(whole.kind, &whole.body[..len]);
            if is_raw(whole.kind) {
                prop_assert_eq!(cut.is_ok(), len >= RAW_HEADER_LEN);
            } else {
                prop_assert!(matches!(cut, Err(ProtocolError::Malformed { .. })), "cut at {}: {:?}", len, cut);
            }
        }
    }

    #[test]
    fn bytes_left_over_are_an_error(whole in any_frame(), extra in any::<u8>()) {
        let mut decoder = FrameDecoder::new();
        decoder.push(whole);
        let whole = decoder.next().expect("valid").expect("whole");
        let longer = [&whole.body[..], &[extra]].concat();
        prop_assert_eq!(decode(whole.kind, &longer).is_ok(), is_raw(whole.kind));
    }

    #[test]
    fn flipped_bytes_are_frames_or_an_error(
        whole in any_frame(),
        flips in vec((any::<prop::sample::Index>(), 1..=u8::MAX), 1..9),
        in_body in any::<bool>(),
    ) {
        let mut bytes = whole.to_vec();
        for (at, mask) in flips {
            // In a small body most flips of the whole frame would only ever hit the header.
            let from = if in_body && bytes.len() > HEADER_LEN { HEADER_LEN } else { 0 };
            let at = from + at.index(bytes.len() - from);
            bytes[at] ^= mask;
        }
        let mut decoder = FrameDecoder::new();
        decoder.push(bytes.into());
        let _ = drain(&mut decoder);
    }
}

// The decoder.

proptest! {
    #![proptest_config(config())]
    /// Chunks cut anywhere give the same frames as the whole, and what is not complete waits.
    #[test]
    fn cuts_change_nothing(
        frames in vec(prop_oneof![5 => any_frame(), 1 => unknown_frame()], 1..6),
        sizes in vec(prop_oneof![1..10usize, 1..700usize], 1..40),
    ) {
        let bytes = Bytes::from(frames.concat());
        let mut decoder = FrameDecoder::new();
        decoder.push(bytes.clone());
        let whole = drain(&mut decoder).expect("valid");
        prop_assert!(decoder.is_at_boundary());

        let mut decoder = FrameDecoder::new();
        let mut cut = Vec::new();
        let mut rest = bytes;
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            decoder.push(rest.split_to((*size).min(rest.len())));
            cut.extend(drain(&mut decoder).expect("valid"));
        }
        prop_assert_eq!(cut, whole);
        prop_assert!(decoder.is_at_boundary());
        prop_assert_eq!(decoder.buffered(), 0);
    }

    /// Chunks that were not drained in between are joined, and give the same frames too.
    #[test]
    fn undrained_chunks_are_joined(frames in vec(any_frame(), 1..5), size in 1..200usize) {
        let bytes = Bytes::from(frames.concat());
        let mut decoder = FrameDecoder::new();
        for chunk in bytes.chunks(size) {
            decoder.push(Bytes::copy_from_slice(chunk));
        }
        prop_assert_eq!(drain(&mut decoder).expect("valid").len(), frames.len());
        prop_assert!(decoder.is_at_boundary());
    }

    /// A frame that has begun is not the end of the stream, wherever it is cut.
    #[test]
    fn a_stream_must_not_end_within_a_frame(
        whole in prop_oneof![any_frame(), unknown_frame()],
        at in any::<prop::sample::Index>(),
    ) {
        let cut = 1 + at.index(whole.len() - 1);
        let mut decoder = FrameDecoder::new();
        decoder.push(whole.slice(..cut));
        prop_assert_eq!(decoder.next(), Ok(None));
        prop_assert!(!decoder.is_at_boundary());
    }

    #[test]
    fn an_announced_length_above_the_maximum_is_refused(
        kind in any_type(), above in 1..u32::MAX, flags in 0..=1u8, step in 1..=HEADER_LEN,
    ) {
        let len = kind.max_body().saturating_add(above);
        let error = refusal(&header(len, kind.to_wire(), flags, 0), step)?;
        prop_assert_eq!(error, ProtocolError::FrameTooLarge { kind: kind.to_wire(), len, max: kind.max_body() });
    }

    #[test]
    fn an_unknown_required_frame_is_refused(
        wire in any::<u16>().prop_filter("unknown", |wire| FrameType::from_wire(*wire).is_none()),
        len in any::<u32>(),
        step in 1..=HEADER_LEN,
    ) {
        let error = refusal(&header(len, wire, FLAG_REQUIRED, 0), step)?;
        prop_assert_eq!(error, ProtocolError::UnknownRequired(wire));
    }

    /// Whatever else the header says: a later version that gives these bits a meaning must not be
    /// half understood.
    #[test]
    fn reserved_bits_are_refused(
        (len, wire, flags, reserved) in any::<(u32, u16, u8, u8)>(),
        known in any_type(), use_known in any::<bool>(), step in 1..=HEADER_LEN,
    ) {
        prop_assume!(flags & !FLAG_REQUIRED != 0 || reserved != 0);
        let wire = if use_known { known.to_wire() } else { wire };
        let error = refusal(&header(len, wire, flags, reserved), step)?;
        prop_assert_eq!(error, ProtocolError::ReservedBits { flags, reserved });
    }
}

/// Feeds a header in steps, expects it to be refused with its last byte and without any of its
/// body, and that the decoder then stays in error and holds nothing, whatever else arrives.
fn refusal(header: &[u8], step: usize) -> Result<ProtocolError, TestCaseError> {
    let mut decoder = FrameDecoder::new();
    let mut refused = None;
    for chunk in header.chunks(step) {
        prop_assert!(refused.is_none(), "refused before the header was whole");
        decoder.push(Bytes::copy_from_slice(chunk));
        refused = decoder.next().err();
        prop_assert!(decoder.buffered() <= HEADER_ROOM, "{} bytes are held", decoder.buffered());
    }
    let Some(error) = refused else {
        return Err(TestCaseError::fail("not refused"));
    };
    for _ in 0..4 {
        decoder.push(Bytes::from_static(&[0; 4096]));
        prop_assert_eq!(decoder.next(), Err(error.clone()));
        prop_assert_eq!(decoder.buffered(), 0);
    }
    Ok(error)
}

#[test]
fn an_unknown_optional_frame_is_skipped_without_being_held() {
    let next = m::Ack { next: 7, end: false }.to_frame().expect("small");
    for len in [0, 1, 4096, MAX_SKIPPED] {
        for size in [1000, 64 << 10] {
            let body = vec![0xfb; len as usize];
            let bytes = Bytes::from([&header(len, UNKNOWN, 0, 0)[..], &body, &next].concat());
            let mut decoder = FrameDecoder::new();
            let mut frames = Vec::new();
            let mut rest = bytes;
            while !rest.is_empty() {
                decoder.push(rest.split_to(size.min(rest.len())));
                frames.extend(drain(&mut decoder).expect("valid"));
                assert!(decoder.buffered() <= HEADER_ROOM, "{} bytes of {len} are held", decoder.buffered());
            }
            assert_eq!(frames.len(), 1);
            assert_eq!(m::Ack::from_frame(&frames[0]), Ok(m::Ack { next: 7, end: false }));
            assert!(decoder.is_at_boundary());
        }
    }
}

#[test]
fn skipping_has_its_limit_too() {
    let mut decoder = FrameDecoder::new();
    decoder.push(header(MAX_SKIPPED + 1, UNKNOWN, 0, 0).into());
    let error = ProtocolError::FrameTooLarge { kind: UNKNOWN, len: MAX_SKIPPED + 1, max: MAX_SKIPPED };
    assert_eq!(decoder.next(), Err(error));
}

#[test]
fn a_frame_that_is_not_complete_is_held_no_larger_than_twice_what_arrived() {
    for kind in FrameType::ALL {
        let mut decoder = FrameDecoder::new();
        decoder.push(header(kind.max_body(), kind.to_wire(), FLAG_REQUIRED, 0).into());
        assert_eq!(decoder.next(), Ok(None));
        assert!(decoder.buffered() <= HEADER_ROOM, "{}: {} bytes are held", kind.name(), decoder.buffered());
        let mut arrived = HEADER_LEN;
        for _ in 0..3 {
            decoder.push(Bytes::from_static(&[0; 1000]));
            assert_eq!(decoder.next(), Ok(None));
            arrived += 1000;
            assert!(decoder.buffered() <= 2 * arrived, "{}: {} bytes are held", kind.name(), decoder.buffered());
        }
    }
}

// The border between what may be sent and what may not is the same on both sides.

#[test]
fn frames_agree_on_the_maximum_of_every_type() {
    for kind in FrameType::ALL {
        let max = kind.max_body() as usize;
        let most = frame(*kind, &vec![0xfb; max]).expect("the maximum itself");
        let mut decoder = FrameDecoder::new();
        decoder.push(most);
        assert_eq!(decoder.next().map(|frame| frame.map(|frame| frame.body.len())), Ok(Some(max)), "{}", kind.name());

        let len = kind.max_body() + 1;
        let too_large = ProtocolError::FrameTooLarge { kind: kind.to_wire(), len, max: kind.max_body() };
        assert_eq!(frame(*kind, &vec![0; max + 1]), Err(too_large.clone()));
        let mut decoder = FrameDecoder::new();
        decoder.push(header(len, kind.to_wire(), FLAG_REQUIRED, 0).into());
        assert_eq!(decoder.next(), Err(too_large));
    }
    let mut pool = raw::PrefixPool::default();
    assert!(pool.prefix(FrameType::Event, 0, MAX_CHUNK).is_ok());
    assert!(pool.prefix(FrameType::Event, 0, MAX_CHUNK + 1).is_err());
}

/// `build` gives a message whose body grows by exactly one byte with each unit of its argument.
fn agree_on_the_maximum<M: Message + PartialEq + Debug>(build: impl Fn(usize) -> M) {
    let max = M::TYPE.max_body() as usize;
    // Above 250 and below 65,536 a length takes three bytes, above that five.
    let some = max - 300;
    let overhead = build(some).encode_body().expect("below the maximum").len() - some;
    let most = build(max - overhead);
    let body = most.encode_body().expect("the maximum itself");
    assert_eq!(body.len(), max, "{}", M::TYPE.name());
    // Not assert_eq: a message of a megabyte helps nobody.
    let decoded = M::decode_body(&body).unwrap_or_else(|error| panic!("exactly the maximum: {error}"));
    assert!(decoded == most, "{}: a body of exactly the maximum reads as something else", M::TYPE.name());

    let above = build(max - overhead + 1);
    let refused = above.encode_body().map(|body| body.len());
    assert!(matches!(refused, Err(ProtocolError::Unencodable { .. })), "{}: {refused:?}", M::TYPE.name());
}

/// A body one byte above the maximum that would be valid otherwise: a text (or bytes) that fills
/// what `before` and `after` leave.
fn refuse_above_the_maximum<M: Message + Debug>(before: &[u8], after: &[u8]) {
    let max = M::TYPE.max_body() as usize;
    let body_of = |total: usize| {
        let long = |value: usize| u32::try_from(value).expect("small").to_le_bytes();
        let len = total - before.len() - after.len() - 5;
        [before, &[252], &long(len), &vec![b'x'; len], after].concat()
    };
    M::decode_body(&body_of(max)).expect("a body of exactly the maximum");
    let above = M::decode_body(&body_of(max + 1));
    assert!(matches!(above, Err(ProtocolError::Malformed { .. })), "{}", M::TYPE.name());
}

fn x(len: usize) -> String {
    "x".repeat(len)
}

fn filler(len: usize) -> Vec<m::Extension> {
    vec![m::Extension { kind: 1, value: vec![7; len] }]
}

const REQUEST: RequestId = RequestId([9; 16]);

#[test]
fn messages_of_the_tunnel_agree_on_the_maximum() {
    agree_on_the_maximum(|len| m::Hello {
        min_minor: 0,
        max_minor: 0,
        capabilities: 0,
        client_name: String::new(),
        instance_id: InstanceId([0; 16]),
        path_generation: 0,
        extensions: filler(len),
    });
    agree_on_the_maximum(|len| m::HelloAck {
        minor: 0,
        capabilities: 0,
        relay_name: x(len),
        tenant: "t".parse().expect("a name"),
        device: "d".parse().expect("a name"),
        heartbeat_interval_ms: 0,
        relay_time_ms: 0,
        extensions: vec![],
    });
    agree_on_the_maximum(|len| m::Heartbeat {
        sequence: 1,
        sent_at_us: 0,
        round_trip_us: None,
        extensions: filler(len),
    });
    agree_on_the_maximum(|len| m::HeartbeatAck {
        sequence: 1,
        echo_us: 0,
        held_us: 0,
        relay_round_trip_us: 0,
        extensions: filler(len),
    });
    agree_on_the_maximum(|len| m::GoAway { reconnect_after_ms: 0, spread_ms: 0, reason: x(len) });
    agree_on_the_maximum(|len| m::EnrolRequest { secret: vec![], csr_der: vec![7; len], device_label: String::new() });
    agree_on_the_maximum(|len| m::EnrolAnswer {
        tenant: "t".parse().expect("a name"),
        device: "d".parse().expect("a name"),
        certificate_der: vec![7; len],
        ca_der: vec![],
        expires_ms: 0,
    });
    agree_on_the_maximum(|len| m::LeaveRequest { reason: x(len) });
    agree_on_the_maximum(|len| m::RenewRequest { csr_der: vec![7; len] });
    agree_on_the_maximum(|len| m::RenewAnswer {
        certificate_der: vec![7; len],
        ca_der: vec![],
        next_ca_der: vec![],
        expires_ms: 0,
    });
    agree_on_the_maximum(|len| m::Cancel { reason: x(len) });
}

#[test]
fn messages_of_a_request_agree_on_the_maximum() {
    let request = |headers: Vec<(String, String)>, model: String| m::EscalateRequest {
        request_id: REQUEST,
        session_id: None,
        operation: m::Operation::CHAT,
        dialect: m::Dialect::PROMPT,
        model,
        stream: true,
        max_output_tokens: Some(1),
        may_reduce_output: false,
        cost_cap: None,
        deadline_ms: None,
        headers,
        body_len: 0,
        extensions: vec![],
    };
    agree_on_the_maximum(|len| request(vec![], x(len)));
    // Many small parts, the case in which counting decoded sizes differs most from counting bytes.
    agree_on_the_maximum(|len| request(vec![(String::new(), String::new()); 100], x(len)));
    agree_on_the_maximum(|len| m::ResponseHead {
        request_id: REQUEST,
        status: 200,
        headers: vec![(x(len), String::new())],
        dialect: m::Dialect::PROMPT,
        stream: true,
        provider: String::new(),
        model: String::new(),
        max_output_tokens: 0,
        held: NanoUsd::ZERO,
        content: m::Content::LIVE,
        first_event: 0,
    });
    agree_on_the_maximum(|len| m::End {
        request_id: REQUEST,
        outcome: m::Outcome::COMPLETE,
        message: x(len),
        provider: String::new(),
        model: String::new(),
        usage: m::UnitKind::ALL.iter().map(|kind| m::UsageLine { kind: *kind, units: 0 }).collect(),
        cost: NanoUsd::ZERO,
        balance: NanoUsd::ZERO,
        estimated: false,
        events: 0,
        first_event_ms: None,
        total_ms: 0,
    });
    agree_on_the_maximum(|len| m::Failed {
        code: m::FailureCode::INTERNAL,
        message: String::new(),
        remedy: x(len),
        request_id: None,
        retry_after_ms: None,
        missing: None,
    });
}

#[test]
fn bodies_above_the_maximum_are_refused_by_the_codec_itself() {
    refuse_above_the_maximum::<m::LeaveRequest>(&[], &[]);
    refuse_above_the_maximum::<m::Cancel>(&[], &[]);
    refuse_above_the_maximum::<m::GoAway>(&[0, 0], &[]);
    refuse_above_the_maximum::<m::EnrolRequest>(&[0], &[0]);
    refuse_above_the_maximum::<m::Heartbeat>(&[0, 0, 0, 1, 1], &[]);
    refuse_above_the_maximum::<m::Hello>(&[&[0; 20][..], &[0, 1, 1]].concat(), &[]);
    refuse_above_the_maximum::<m::Failed>(&[1], &[0, 0, 0, 0]);
}

/// Lists have a maximum of elements, the same for both sides: an element costs more in memory than
/// on the wire. `empty` is a body whose list, at `at`, is empty; `element` is the smallest one.
fn agree_on_the_list<M: Message + Debug>(
    most: usize,
    empty: &[u8],
    at: usize,
    element: &[u8],
    build: impl Fn(usize) -> M,
) {
    let body_of = |count: usize| {
        let count_bytes = u16::try_from(count).expect("small").to_le_bytes();
        let head: Vec<u8> = if count < 251 { vec![count_bytes[0]] } else { [&[251][..], &count_bytes].concat() };
        [&empty[..at], &head, &element.repeat(count), &empty[at + 1..]].concat()
    };
    let name = M::TYPE.name();
    assert_eq!(build(most).encode_body().expect("the most elements"), body_of(most), "{name}");
    assert!(M::decode_body(&body_of(most)).is_ok(), "{name}");
    assert!(matches!(build(most + 1).encode_body(), Err(ProtocolError::Unencodable { .. })), "{name}");
    assert!(matches!(M::decode_body(&body_of(most + 1)), Err(ProtocolError::Malformed { .. })), "{name}");
}

#[test]
fn both_sides_agree_on_the_most_elements_of_a_list() {
    let hello = |count| m::Hello {
        min_minor: 0,
        max_minor: 0,
        capabilities: 0,
        client_name: String::new(),
        instance_id: InstanceId([0; 16]),
        path_generation: 0,
        extensions: vec![m::Extension { kind: 0, value: vec![] }; count],
    };
    agree_on_the_list(64, &[0; 22], 21, &[0, 0], hello);
    let request = |headers, extensions| m::EscalateRequest {
        request_id: RequestId([0; 16]),
        session_id: None,
        operation: m::Operation(0),
        dialect: m::Dialect(0),
        model: String::new(),
        stream: false,
        max_output_tokens: None,
        may_reduce_output: false,
        cost_cap: None,
        deadline_ms: None,
        headers: vec![(String::new(), String::new()); headers],
        body_len: 0,
        extensions: vec![m::Extension { kind: 0, value: vec![] }; extensions],
    };
    agree_on_the_list(256, &[0; 28], 25, &[0, 0], |count| request(count, 0));
    agree_on_the_list(64, &[0; 28], 27, &[0, 0], |count| request(0, count));
    let end = |count| m::End {
        request_id: RequestId([0; 16]),
        outcome: m::Outcome(0),
        message: String::new(),
        provider: String::new(),
        model: String::new(),
        usage: vec![m::UsageLine { kind: m::UnitKind(0), units: 0 }; count],
        cost: NanoUsd::ZERO,
        balance: NanoUsd::ZERO,
        estimated: false,
        events: 0,
        first_event_ms: None,
        total_ms: 0,
    };
    agree_on_the_list(64, &[0; 27], 20, &[0, 0], end);
}

#[test]
fn values_that_mean_nothing_are_refused() {
    // A bool and an option's tag are 0 or 1.
    assert!(m::Ack::decode_body(&[0, 1]).is_ok());
    assert!(m::Ack::decode_body(&[0, 2]).is_err());
    assert!(m::Heartbeat::decode_body(&[0, 0, 2, 0, 0]).is_err());
    // 254 and 255 begin no integer of this protocol, and a number must fit its type.
    for mark in [254, 255] {
        assert!(m::Ack::decode_body(&[mark, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }
    assert!(m::Failed::decode_body(&[252, 1, 0, 0, 0, 0, 0, 0, 0, 0]).is_err(), "a u16 written as u32");
    // Texts are UTF-8 and names are names.
    assert!(m::Cancel::decode_body(&[1, 0xff]).is_err());
    assert!(m::LeaveAnswer::decode_body(b"\x01a").is_ok());
    for name in [&b"\x00"[..], b"\x01A", b"\x02..", b"\x03a/b", b"\x02-a"] {
        assert!(m::LeaveAnswer::decode_body(name).is_err());
    }
    let long = [&[65][..], &[b'a'; 65]].concat();
    assert!(m::LeaveAnswer::decode_body(&long[..]).is_err());
}

#[test]
fn an_integer_in_more_bytes_than_it_needs_still_reads() {
    // Nobody may send it, but refusing it is not promised: bytes are compared where it matters.
    assert_eq!(m::Ack::decode_body(&[251, 5, 0, 0]), Ok(m::Ack { next: 5, end: false }));
}
