//! The bytes on the wire, written down. They were made by a second encoder, written from
//! `docs/PROTOCOL.md` and not from the code, so they also hold that page to the truth.
//!
//! A released body is frozen: when a test here fails, the code is wrong and not the bytes. What
//! must change gets a new frame type (and a new line here); nothing here is ever edited.

use belay_protocol::codec::Message;
use belay_protocol::error::{CloseCode, StreamCode};
use belay_protocol::frame::{Frame, FrameDecoder, FrameType, HEADER_LEN, frame, raw};
use belay_protocol::id::{InstanceId, LockToken, MessageId, RequestId, RevisionId};
use belay_protocol::item::{Digest, ItemKind};
use belay_protocol::kind::StreamKind;
use belay_protocol::message as m;
use belay_protocol::money::NanoUsd;
use bytes::{Bytes, BytesMut};
use std::fmt::Debug;

/// One value and its frame's bytes.
struct Golden {
    name: &'static str,
    kind: FrameType,
    /// The frame as this code encodes it.
    encoded: Bytes,
    golden: Vec<u8>,
    /// Whether a received frame is that value.
    check: Box<dyn Fn(&Frame)>,
}

/// `hex` is header and fields, parted by blanks for the reader.
fn message<M: Message + PartialEq + Debug + 'static>(name: &'static str, value: M, hex: &str) -> Golden {
    Golden {
        name,
        kind: M::TYPE,
        encoded: value.to_frame().expect("within its limit"),
        golden: bytes_of(hex),
        check: Box::new(move |frame| assert_eq!(M::from_frame(frame).as_ref(), Ok(&value), "{name}")),
    }
}

fn raw_frame(name: &'static str, kind: FrameType, number: u64, payload: &'static [u8], hex: &str) -> Golden {
    let mut encoded = BytesMut::new();
    let prefix = raw::PrefixPool::default().prefix(kind, number, payload.len()).expect("within its limit");
    encoded.extend_from_slice(&prefix);
    encoded.extend_from_slice(payload);
    let check = move |frame: &Frame| {
        assert_eq!(frame.kind, kind, "{name}");
        let split = raw::split(kind, frame.body.clone());
        assert_eq!(split, Ok((number, Bytes::from_static(payload))), "{name}");
    };
    Golden { name, kind, encoded: encoded.freeze(), golden: bytes_of(hex), check: Box::new(check) }
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).expect("hex");
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

const REVISION: RevisionId = RevisionId(*b"\xc0\xc1\xc2\xc3\xc4\xc5\xc6\xc7\xc8\xc9\xca\xcb\xcc\xcd\xce\xcf");
const PARENT: RevisionId = RevisionId(*b"\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xdb\xdc\xdd\xde\xdf");
const TOKEN: LockToken = LockToken(*b"\xe0\xe1\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea\xeb\xec\xed\xee\xef");
const DIGEST: Digest = Digest(*b" !\"#$%&'()*+,-./0123456789:;<=>?");
const MESSAGE: MessageId = MessageId(*b"\xb0\xb1\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xbb\xbc\xbd\xbe\xbf");
const REQUEST: RequestId = RequestId(*b"\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab\xac\xad\xae\xaf");

fn extension(kind: u16, value: &[u8]) -> m::Extension {
    m::Extension { kind, value: value.to_vec() }
}

fn header(name: &str, value: &str) -> (String, String) {
    (name.into(), value.into())
}

fn hello() -> Vec<Golden> {
    vec![
        message(
            "Hello, all zero",
            m::Hello {
                min_minor: 0,
                max_minor: 0,
                capabilities: 0,
                client_name: String::new(),
                instance_id: InstanceId([0; 16]),
                path_generation: 0,
                extensions: vec![],
            },
            "16000000 0100 0100  00 00 00 00 00000000000000000000000000000000 00 00",
        ),
        message(
            "Hello",
            m::Hello {
                min_minor: 0,
                max_minor: 300,
                capabilities: 1 << 63 | 1,
                client_name: "belay 0.1.0".into(),
                instance_id: InstanceId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
                path_generation: 70_000,
                extensions: vec![extension(1, &[0xaa, 0xbb]), extension(1000, &[])],
            },
            "37000000 0100 0100  00 fb2c01 fd0100000000000080 0b62656c617920302e312e30
             000102030405060708090a0b0c0d0e0f fc70110100 02 0102aabb fbe80300",
        ),
        message(
            "HelloAck",
            m::HelloAck {
                minor: 0,
                capabilities: 5,
                relay_name: "belayd 0.1.0".into(),
                tenant: "acme".parse().expect("a name"),
                device: "laptop-1".parse().expect("a name"),
                heartbeat_interval_ms: 10_000,
                relay_time_ms: 1_790_000_000_123,
                extensions: vec![extension(7, &[0xff])],
            },
            "2d000000 0200 0100  00 05 0c62656c61796420302e312e30 0461636d65 086c6170746f702d31
             fb1027 fd7b6c50c4a0010000 01 0701ff",
        ),
    ]
}

fn control() -> Vec<Golden> {
    vec![
        message(
            "Heartbeat, the first",
            m::Heartbeat { sequence: 1, sent_at_us: 0, round_trip_us: None, extensions: vec![] },
            "04000000 0300 0100  01 00 00 00",
        ),
        message(
            "Heartbeat",
            m::Heartbeat {
                sequence: 250,
                sent_at_us: 251,
                round_trip_us: Some(65_536),
                extensions: vec![extension(3, b"ok")],
            },
            "0f000000 0300 0100  fa fbfb00 01fc00000100 01 03026f6b",
        ),
        message(
            "HeartbeatAck",
            m::HeartbeatAck {
                sequence: 250,
                echo_us: 251,
                held_us: 255,
                relay_round_trip_us: 65_535,
                extensions: vec![],
            },
            "0b000000 0400 0100  fa fbfb00 fbff00 fbffff 00",
        ),
        message(
            "GoAway",
            m::GoAway { reconnect_after_ms: 2000, spread_ms: 5000, reason: "restart".into() },
            "0e000000 0500 0100  fbd007 fb8813 0772657374617274",
        ),
        message("Probe", m::Probe { reserved: 0 }, "01000000 0600 0000  00"),
    ]
}

fn enrolment() -> Vec<Golden> {
    vec![
        message(
            "EnrolRequest",
            m::EnrolRequest {
                secret: (0..24).collect(),
                csr_der: vec![0x30, 3, 2, 1, 0],
                device_label: "Zoë's laptop".into(),
            },
            "2d000000 1000 0100  18000102030405060708090a0b0c0d0e0f1011121314151617 053003020100
             0d5a6fc3ab2773206c6170746f70",
        ),
        message(
            "EnrolAnswer",
            m::EnrolAnswer {
                tenant: "acme".parse().expect("a name"),
                device: "laptop-1".parse().expect("a name"),
                certificate_der: vec![0x30, 1],
                ca_der: vec![0x30, 2],
                expires_ms: 1_792_592_000_000,
            },
            "1d000000 1100 0100  0461636d65 086c6170746f702d31 023001 023002 fd0034cf5ea1010000",
        ),
        message("LeaveRequest", m::LeaveRequest { reason: "sold".into() }, "05000000 1200 0100  04736f6c64"),
        message(
            "LeaveAnswer",
            m::LeaveAnswer { device: "laptop-1".parse().expect("a name") },
            "09000000 1300 0100  086c6170746f702d31",
        ),
        message("RenewRequest", m::RenewRequest { csr_der: vec![0x30, 1, 0] }, "04000000 1400 0100  03300100"),
        message(
            "RenewAnswer",
            m::RenewAnswer {
                certificate_der: vec![0x30, 1],
                ca_der: vec![0x30, 2],
                next_ca_der: vec![],
                expires_ms: 1_792_592_000_000,
            },
            "10000000 1500 0100  023001 023002 00 fd0034cf5ea1010000",
        ),
    ]
}

fn requests() -> Vec<Golden> {
    vec![
        message(
            "EscalateRequest, the least",
            m::EscalateRequest {
                request_id: REQUEST,
                session_id: None,
                operation: m::Operation::CHAT,
                dialect: m::Dialect::PROMPT,
                model: "m".into(),
                stream: false,
                max_output_tokens: None,
                may_reduce_output: false,
                cost_cap: None,
                deadline_ms: None,
                headers: vec![],
                body_len: 0,
                extensions: vec![],
            },
            "1d000000 2000 0100  a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 00 01 01 016d 00 00 00 00 00 00 00 00",
        ),
        message(
            "EscalateRequest",
            m::EscalateRequest {
                request_id: REQUEST,
                session_id: Some("chat-7".into()),
                operation: m::Operation::MESSAGES,
                dialect: m::Dialect::ANTHROPIC,
                model: "claude".into(),
                stream: true,
                max_output_tokens: Some(4096),
                may_reduce_output: true,
                cost_cap: Some(NanoUsd(10_815_000)),
                deadline_ms: Some(120_000),
                headers: vec![header("anthropic-beta", "x"), header("a", "")],
                body_len: 32 << 20,
                extensions: vec![extension(2, &[0, 1])],
            },
            "52000000 2000 0100  a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 0106636861742d37 03 04 06636c61756465
             01 01fb0010 01 01fc300c4a01 01fcc0d40100 02 0e616e7468726f7069632d626574610178 016100
             fc00000002 01 02020001",
        ),
        message("Cancel", m::Cancel { reason: "ctrl-c".into() }, "07000000 2700 0100  066374726c2d63"),
        message("Ack", m::Ack { next: 1 << 32, end: true }, "0a000000 2800 0100  fd0000000001000000 01"),
        message(
            "Resume",
            m::Resume { request_id: REQUEST, next: 251 },
            "13000000 2900 0100  a0a1a2a3a4a5a6a7a8a9aaabacadaeaf fbfb00",
        ),
        raw_frame("BodyChunk", FrameType::BodyChunk, 1 << 18, b"{}", "0a000000 2100 0100  0000040000000000 7b7d"),
    ]
}

fn answers() -> Vec<Golden> {
    vec![
        message(
            "ResponseHead",
            m::ResponseHead {
                request_id: REQUEST,
                status: 200,
                headers: vec![header("request-id", "req_1")],
                dialect: m::Dialect::ANTHROPIC,
                stream: true,
                provider: "anthropic".into(),
                model: "claude-x".into(),
                max_output_tokens: 1024,
                held: NanoUsd(25_500_000),
                content: m::Content::LIVE,
                first_event: 0,
            },
            "42000000 2200 0100  a0a1a2a3a4a5a6a7a8a9aaabacadaeaf c8 01 0a726571756573742d6964057265715f31
             04 01 09616e7468726f706963 08636c617564652d78 fb0004 fcc0320a03 01 00",
        ),
        message(
            "ResponseHead, gone",
            m::ResponseHead {
                request_id: REQUEST,
                status: 200,
                headers: vec![],
                dialect: m::Dialect::PROMPT,
                stream: false,
                provider: "demo".into(),
                model: "demo".into(),
                max_output_tokens: 0,
                held: NanoUsd::ZERO,
                content: m::Content::GONE,
                first_event: 300,
            },
            "24000000 2200 0100  a0a1a2a3a4a5a6a7a8a9aaabacadaeaf c8 00 01 00 0464656d6f 0464656d6f 00 00 03 fb2c01",
        ),
        raw_frame(
            "Event",
            FrameType::Event,
            258,
            b"data: hi\n\n",
            "12000000 2300 0100  0201000000000000 646174613a2068690a0a",
        ),
        raw_frame("AnswerChunk, empty", FrameType::AnswerChunk, 0, b"", "08000000 2400 0100  0000000000000000"),
    ]
}

fn ends() -> Vec<Golden> {
    vec![
        message(
            "End",
            m::End {
                request_id: REQUEST,
                outcome: m::Outcome::COMPLETE,
                message: String::new(),
                provider: "anthropic".into(),
                model: "claude-x".into(),
                usage: vec![
                    m::UsageLine { kind: m::UnitKind::INPUT, units: 1000 },
                    m::UsageLine { kind: m::UnitKind::OUTPUT, units: 500 },
                ],
                cost: NanoUsd(10_815_000),
                balance: NanoUsd(4_989_185_000),
                estimated: false,
                events: 42,
                first_event_ms: Some(350),
                total_ms: 9000,
            },
            "45000000 2500 0100  a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 01 00 09616e7468726f706963 08636c617564652d78
             02 01fbe803 02fbf401 fc300c4a01 fdd0d7c15202000000 00 2a 01fb5e01 fb2823",
        ),
        message(
            "End, estimated",
            m::End {
                request_id: REQUEST,
                outcome: m::Outcome::RELAY_DIED,
                message: "the relay died".into(),
                provider: "demo".into(),
                model: "demo".into(),
                usage: vec![m::UsageLine { kind: m::UnitKind::REASONING, units: 1 << 32 }],
                cost: NanoUsd(1),
                balance: NanoUsd(-1),
                estimated: true,
                events: 0,
                first_event_ms: None,
                total_ms: 0,
            },
            "3b000000 2500 0100  a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 05 0e7468652072656c61792064696564
             0464656d6f 0464656d6f 01 06fd0000000001000000 02 01 01 00 00 00",
        ),
        message(
            "Failed, bare",
            m::Failed {
                code: m::FailureCode::INTERNAL,
                message: String::new(),
                remedy: String::new(),
                request_id: None,
                retry_after_ms: None,
                missing: None,
            },
            "06000000 2600 0100  15 00 00 00 00 00",
        ),
        message(
            "Failed",
            m::Failed {
                code: m::FailureCode::PAYMENT_REQUIRED,
                message: "the balance does not cover it".into(),
                remedy: "top up".into(),
                request_id: Some(REQUEST),
                retry_after_ms: Some(1500),
                missing: Some(NanoUsd(i64::MIN)),
            },
            "45000000 2600 0100  05 1d7468652062616c616e636520646f6573206e6f7420636f766572206974 06746f70207570
             01a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 01fbdc05 01fdffffffffffffffff",
        ),
    ]
}

fn sessions() -> Vec<Golden> {
    let name = |text: &str| text.parse().expect("a name");
    let row = || m::SessionRow {
        session: name("rome"),
        title: "A week in Rome".into(),
        model: "claude".into(),
        created_ms: 1_790_000_000_000,
        updated_ms: 1_790_000_060_000,
        messages: 300,
        cost: NanoUsd(10_815_000),
        deleted_ms: None,
    };
    let piece = |source: &str, relevance, text: &str| m::SessionKnowledge {
        source: source.into(),
        relevance,
        text: text.into(),
    };
    let knowledge = || vec![piece("notes.md", Some(0.5), "it rains"), piece("b", None, "")];
    vec![
        message(
            "SessionGet",
            m::SessionGet { session: name("rome"), after: 300, last: 4 },
            "09000000 6000 0100  04726f6d65 fb2c01 04",
        ),
        message(
            "Session",
            m::Session {
                row: row(),
                context: m::SessionContext {
                    framing: "warmly".into(),
                    knowledge: knowledge(),
                    constraints: vec!["no jargon".into(), "short".into()],
                },
            },
            "6e000000 6100 0100  04726f6d65 0e41207765656b20696e20526f6d65 06636c61756465 fd006c50c4a0010000 \
             fd605651c4a0010000 fb2c01 fc300c4a01 00 067761726d6c79 \
             02086e6f7465732e6d6401000000000000e03f086974207261696e7301620000 \
             02096e6f206a6172676f6e0573686f7274",
        ),
        message(
            "SessionMessage",
            m::SessionMessage {
                number: 251,
                message_id: MESSAGE,
                role: m::SessionRole::ASSISTANT,
                at_ms: 1_790_000_000_000,
                device: "laptop".parse().expect("a name"),
                request_id: Some(REQUEST),
                outcome: m::Outcome::CANCELLED,
                model: "anthropic/claude-x".into(),
                cost: NanoUsd(10_815_000),
                text_len: 70_000,
            },
            "53000000 6200 0100  fbfb00 b0b1b2b3b4b5b6b7b8b9babbbcbdbebf 02 fd006c50c4a0010000 066c6170746f70 \
             01a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 02 12616e7468726f7069632f636c617564652d78 fc300c4a01 \
             fc70110100",
        ),
        message(
            "SessionAdd",
            m::SessionAdd {
                session: name("rome"),
                message_id: MESSAGE,
                role: m::SessionRole::USER,
                model: String::new(),
                text_len: 9,
            },
            "18000000 6300 0100  04726f6d65 b0b1b2b3b4b5b6b7b8b9babbbcbdbebf 01 00 09",
        ),
        message("SessionAdded", m::SessionAdded { number: 251 }, "03000000 6400 0100  fbfb00"),
        message(
            "SessionUpdate",
            m::SessionUpdate {
                title: Some("A week in Rome".into()),
                framing: Some(String::new()),
                sets_knowledge: true,
                knowledge: knowledge(),
                ..m::SessionUpdate::nothing(name("rome"))
            },
            "3b000000 6500 0100  04726f6d65 010e41207765656b20696e20526f6d65 00 0100 01 00 \
             02086e6f7465732e6d6401000000000000e03f086974207261696e7301620000 00",
        ),
        message(
            "SessionAct",
            m::SessionAct { session: name("rome"), deed: m::SessionDeed::RESTORE },
            "06000000 6600 0100  04726f6d65 02",
        ),
        message(
            "SessionList",
            m::SessionList { deleted: true, cursor: "17.4".into(), limit: 20 },
            "07000000 6700 0100  01 0431372e34 14",
        ),
        message(
            "SessionRow",
            m::SessionRow {
                session: name("röm"),
                title: String::new(),
                model: String::new(),
                created_ms: 0,
                updated_ms: 1,
                messages: 0,
                cost: NanoUsd::ZERO,
                deleted_ms: Some(1_790_000_000_000),
            },
            "15000000 6800 0100  0472c3b66d 00 00 00 01 00 00 01fd006c50c4a0010000",
        ),
        message(
            "SessionSearch",
            m::SessionSearch { query: "sky bl".into(), cursor: String::new(), limit: 0 },
            "09000000 6900 0100  06736b7920626c 00 00",
        ),
        message(
            "SessionHit",
            m::SessionHit { row: row(), message: 7, snippet: "the \u{2}sky\u{3} is".into() },
            "44000000 6a00 0100  04726f6d65 0e41207765656b20696e20526f6d65 06636c61756465 fd006c50c4a0010000 \
             fd605651c4a0010000 fb2c01 fc300c4a01 00 07 0c7468652002736b7903206973",
        ),
        message(
            "SessionsDone",
            m::SessionsDone { rows: 20, cursor: "17.4".into() },
            "06000000 6b00 0100  14 0431372e34",
        ),
    ]
}

fn billing() -> Vec<Golden> {
    vec![
        message("BalanceRequest", m::BalanceRequest { reserved: 0 }, "01000000 4000 0100  00"),
        message(
            "Balance",
            m::Balance {
                tenant: "acme".parse().expect("a name"),
                balance: NanoUsd(5_000_000_000),
                credits: NanoUsd(250_000_000),
                held: NanoUsd(-64),
                open_holds: 2,
                charged: NanoUsd(i64::MAX),
                pays_with: m::PaysWith::MANAGED,
                ceiling: NanoUsd(1),
            },
            "20000000 4100 0100  0461636d65 fd00e40b5402000000 fc0065cd1d 7f 02 fdfeffffffffffffff 02 02",
        ),
        message(
            "UsageRequest",
            m::UsageRequest {
                period: m::UsagePeriod::DAYS,
                from_day: 20_000,
                until_day: 20_783,
                by: m::UsageBy::MODEL,
            },
            "08000000 4200 0100  05 fb204e fb2f51 04",
        ),
        message(
            "UsageGroup",
            m::UsageGroup {
                name: "anthropic/claude-x".into(),
                requests: 3,
                estimated: 1,
                input: 1000,
                output: 500,
                cache_read: 250,
                cache_write: 251,
                reasoning: 65_536,
                cost: NanoUsd(10_815_000),
            },
            "29000000 4300 0100  12616e7468726f7069632f636c617564652d78 03 01 fbe803 fbf401 fa fbfb00 fc00000100 fc300c4a01",
        ),
        message(
            "Done",
            m::Done { rows: 1 << 32, from_day: 0, until_day: 20_783 },
            "0d000000 4400 0100  fd0000000001000000 00 fb2f51",
        ),
        message("FlushRequest", m::FlushRequest { reserved: 0 }, "01000000 4a00 0100  00"),
        message("Flushed", m::Flushed { waiting_rows: 300, waiting: NanoUsd(-1) }, "04000000 4b00 0100  fb2c01 01"),
        message("ModelsRequest", m::ModelsRequest { reserved: 0 }, "01000000 4c00 0100  00"),
        message(
            "ModelOffer",
            m::ModelOffer {
                name: "auto".into(),
                provider: "anthropic".into(),
                model: "claude-x".into(),
                dialect: m::Dialect::ANTHROPIC,
                context_tokens: 200_000,
                max_output_tokens: 64_000,
                input: Some(NanoUsd(3_000_000_000)),
                output: None,
            },
            "2c000000 4d00 0100  046175746f 09616e7468726f706963 08636c617564652d78 04 fc400d0300 fb00fa 01fd00bca06501000000 00",
        ),
        message(
            "TopUpRequest",
            m::TopUpRequest { amount: NanoUsd(20_000_000_000) },
            "09000000 4800 0100  fd00902f5009000000",
        ),
        message(
            "TopUp",
            m::TopUp { url: "https://x.example/pay".into() },
            "16000000 4900 0100  1568747470733a2f2f782e6578616d706c652f706179",
        ),
        message(
            "RecordRequest",
            m::RecordRequest {
                request_id: REQUEST,
                class: m::UsageClass::LOCAL,
                model: "llama3".into(),
                usage: vec![
                    m::UsageLine { kind: m::UnitKind::INPUT, units: 1000 },
                    m::UsageLine { kind: m::UnitKind::OUTPUT, units: 251 },
                ],
            },
            "21000000 4700 0100  a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 02 066c6c616d6133 02 01fbe803 02fbfb00",
        ),
    ]
}

fn statements() -> Vec<Golden> {
    vec![
        message(
            "StatementRequest",
            m::StatementRequest { from_day: 20_000, until_day: 20_783, after: 77 },
            "07000000 4500 0100  fb204e fb2f51 4d",
        ),
        message(
            "StatementLine",
            m::StatementLine {
                entry: 78,
                at_ms: 1_795_438_800_000,
                kind: "settle".into(),
                from: "tenant:held".into(),
                to: "relay:revenue".into(),
                amount: NanoUsd(10_815_000),
                balance: NanoUsd(-5),
                request_id: Some(REQUEST),
                model: "anthropic/claude-x".into(),
                operation: String::new(),
                note: String::new(),
            },
            "57000000 4600 0100  4e fd80ec7d08a2010000 06736574746c65 0b74656e616e743a68656c64 0d72656c61793a726576656e7565 fc300c4a01 09 01a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 12616e7468726f7069632f636c617564652d78 00 00",
        ),
        message(
            "StatementLine, credit",
            m::StatementLine {
                entry: 1,
                at_ms: 0,
                kind: "credit".into(),
                from: "relay:funding".into(),
                to: "tenant:prepaid".into(),
                amount: NanoUsd(1),
                balance: NanoUsd(1),
                request_id: None,
                model: String::new(),
                operation: "invoice-7".into(),
                note: "Müll".into(),
            },
            "3a000000 4600 0100  01 00 06637265646974 0d72656c61793a66756e64696e67 0e74656e616e743a70726570616964 02 02 00 00 09696e766f6963652d37 054dc3bc6c6c",
        ),
    ]
}

fn synced() -> Vec<Golden> {
    vec![
        message(
            "SyncPush",
            m::SyncPush {
                revision: REVISION,
                parent: Some(PARENT),
                kind: ItemKind::DOCUMENT,
                key: "a/b.md".parse().expect("a key"),
                content: m::SyncContent::INLINE,
                modified_ms: 1_795_438_800_000,
                size: 2,
                digest: DIGEST,
                inline: b"hi".to_vec(),
                meta: String::new(),
                earlier: None,
            },
            "59000000 8000 0100  c0c1c2c3c4c5c6c7c8c9cacbcccdcecf 01d0d1d2d3d4d5d6d7d8d9dadbdcdddedf 02 06612f622e6d64 01 fd80ec7d08a2010000 02 202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f 026869 00 00",
        ),
        message(
            "SyncPushed",
            m::SyncPushed {
                revision: REVISION,
                outcome: m::PushOutcome::CONFLICT,
                head: PARENT,
                number: 300,
                copy: Some("a/b (conflict x).md".parse().expect("a key")),
            },
            "39000000 8100 0100  c0c1c2c3c4c5c6c7c8c9cacbcccdcecf 03 d0d1d2d3d4d5d6d7d8d9dadbdcdddedf fb2c01 0113612f622028636f6e666c6963742078292e6d64",
        ),
        message(
            "SyncPull",
            m::SyncPull { cursor: "1-300-0".into(), limit: 250 },
            "09000000 8200 0100  07312d3330302d30 fa",
        ),
        message(
            "SyncChange",
            m::SyncChange {
                number: 301,
                kind: ItemKind::ADAPTER,
                key: "style".into(),
                revision: REVISION,
                content: m::SyncContent::PARTS,
                device: Some("laptop".parse().expect("a name")),
                at_ms: 1_795_438_800_000,
                modified_ms: 1_795_438_800_001,
                size: 70_000,
                digest: DIGEST,
                inline: vec![],
                meta: "{}".into(),
                conflict_of: "old".into(),
            },
            "62000000 8300 0100  fb2d01 03 057374796c65 c0c1c2c3c4c5c6c7c8c9cacbcccdcecf 02 01066c6170746f70 fd80ec7d08a2010000 fd81ec7d08a2010000 fc70110100 202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f 00 027b7d 036f6c64",
        ),
        message(
            "SyncPage",
            m::SyncPage { changes: 1, cursor: "1-301-0".into(), has_more: true, resync: m::Resync::TOO_OLD },
            "0b000000 8400 0100  01 07312d3330312d30 01 01",
        ),
        message("SyncGet", m::SyncGet { revision: REVISION }, "10000000 8500 0100  c0c1c2c3c4c5c6c7c8c9cacbcccdcecf"),
        message(
            "SyncGot",
            m::SyncGot {
                content: m::SyncContent::PARTS,
                size: 5,
                inline: vec![],
                parts: [&DIGEST.0[..], &[5, 0, 0, 0]].concat(),
            },
            "28000000 8600 0100  02 05 00 24202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f05000000",
        ),
        message(
            "SyncLog",
            m::SyncLog { kind: ItemKind::SETTING, key: "theme".parse().expect("a key") },
            "07000000 8700 0100  01 057468656d65",
        ),
        message(
            "SyncRevision",
            m::SyncRevision {
                revision: REVISION,
                parent: None,
                state: m::RevisionState::CONFLICT,
                content: m::SyncContent::INLINE,
                device: "laptop".parse().expect("a name"),
                at_ms: 1_795_438_800_000,
                replaced_ms: Some(1_795_438_800_001),
                size: 6,
                digest: DIGEST,
            },
            "4e000000 8800 0100  c0c1c2c3c4c5c6c7c8c9cacbcccdcecf 00 03 01 066c6170746f70 fd80ec7d08a2010000 01fd81ec7d08a2010000 06 202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f",
        ),
        message("SyncStatusRequest", m::SyncStatusRequest { reserved: 0 }, "01000000 8900 0100  00"),
        message(
            "SyncKindStatus",
            m::SyncKindStatus {
                kind: ItemKind::DOCUMENT,
                items: 10_000,
                conflicts: 2,
                bytes: 1 << 32,
                changed_ms: 1_795_438_800_000,
            },
            "17000000 8a00 0100  02 fb1027 02 fd0000000001000000 fd80ec7d08a2010000",
        ),
        message(
            "SyncStatus",
            m::SyncStatus { used: 70_000, quota: 10 << 30, cursor: "1-301-0".into() },
            "16000000 8b00 0100  fc70110100 fd0000008002000000 07312d3330312d30",
        ),
        message(
            "SyncLock",
            m::SyncLock { key: "index".parse().expect("a key"), token: TOKEN },
            "16000000 8c00 0100  05696e646578 e0e1e2e3e4e5e6e7e8e9eaebecedeeef",
        ),
        message("SyncLocked", m::SyncLocked { fence: 251, expires_in_ms: 30_000 }, "06000000 8d00 0100  fbfb00 fb3075"),
        message(
            "SyncUnlock",
            m::SyncUnlock { key: "index".parse().expect("a key"), token: TOKEN },
            "16000000 8e00 0100  05696e646578 e0e1e2e3e4e5e6e7e8e9eaebecedeeef",
        ),
        message("SyncUnlocked", m::SyncUnlocked { was_expired: true }, "01000000 8f00 0100  01"),
        message(
            "BlobBegin",
            m::BlobBegin {
                revision: REVISION,
                kind: ItemKind::ADAPTER,
                parts: [&DIGEST.0[..], &[5, 0, 0, 0]].concat(),
            },
            "36000000 9000 0100  c0c1c2c3c4c5c6c7c8c9cacbcccdcecf 03 24202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f05000000",
        ),
        message(
            "BlobNeeded",
            m::BlobNeeded { needed: vec![1, 0, 0, 0, 5, 0, 0, 0] },
            "09000000 9100 0100  080100000005000000",
        ),
        message(
            "BlobPut",
            m::BlobPut { revision: REVISION, part: 300, offset: 0, encoding: m::Encoding::ZSTD, len: 70_000 },
            "1a000000 9200 0100  c0c1c2c3c4c5c6c7c8c9cacbcccdcecf fb2c01 00 01 fc70110100",
        ),
        message("BlobStored", m::BlobStored { part: 300 }, "03000000 9300 0100  fb2c01"),
        message(
            "BlobGet",
            m::BlobGet { digest: DIGEST, offset: 65_536 },
            "25000000 9400 0100  202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f fc00000100",
        ),
        message(
            "BlobPart",
            m::BlobPart { size: 1_048_576, encoding: m::Encoding::PLAIN, len: 983_040 },
            "0b000000 9500 0100  fc00001000 00 fc00000f00",
        ),
        message("SyncLogDone", m::SyncLogDone { revisions: 3 }, "01000000 9600 0100  03"),
    ]
}

fn all() -> Vec<Golden> {
    [hello(), control(), enrolment(), requests(), answers(), ends(), billing(), statements(), sessions(), synced()]
        .into_iter()
        .flatten()
        .collect()
}

fn check_both_ways(golden: &Golden) {
    assert_eq!(golden.encoded, golden.golden, "{}: what is encoded is not the golden frame", golden.name);
    let mut decoder = FrameDecoder::new();
    decoder.push(Bytes::from(golden.golden.clone()));
    let received = decoder.next().expect("a good frame").expect("a whole frame");
    assert_eq!(received.kind, golden.kind, "{}", golden.name);
    assert!(decoder.is_at_boundary(), "{}: the frame has bytes left over", golden.name);
    (golden.check)(&received);
    let framed = frame(golden.kind, &golden.golden[HEADER_LEN..]).expect("within its limit");
    assert_eq!(framed, golden.golden, "{}: frame() and to_frame() disagree", golden.name);
}

/// Hello and HelloAck are frozen for ever, and not only until the next minor version: they are what
/// two peers say before they know of each other which version they speak. A client from ten years
/// ago must be understood well enough to be told "no version in common" (close code `version`), and
/// a new client must be able to say hello to a relay that was never updated. Were these bytes to
/// move, an old peer would see only a malformed frame, and nobody could tell it what to do. They
/// grow by extensions, never by fields.
#[test]
fn hello_and_its_answer_are_frozen_for_ever() {
    let goldens = hello();
    for kind in [FrameType::Hello, FrameType::HelloAck] {
        assert!(goldens.iter().any(|golden| golden.kind == kind), "{} has no golden bytes", kind.name());
    }
    goldens.iter().for_each(check_both_ways);
}

#[test]
fn every_message_has_its_golden_bytes() {
    all().iter().for_each(check_both_ways);
}

#[test]
fn no_frame_type_is_without_golden_bytes() {
    let goldens = all();
    let missing: Vec<&str> = FrameType::ALL
        .iter()
        .filter(|kind| !goldens.iter().any(|golden| golden.kind == **kind))
        .map(|kind| kind.name())
        .collect();
    assert!(missing.is_empty(), "without golden bytes: {missing:?}");
}

#[test]
fn the_preface_of_every_stream_kind() {
    let golden = [
        (0x01, "control"),
        (0x02, "enrol"),
        (0x03, "escalate"),
        (0x04, "billing"),
        (0x05, "session"),
        (0x06, "sync"),
        (0x07, "blob"),
        (0x08, "feed"),
    ];
    assert_eq!(StreamKind::ALL.map(|kind| (kind.to_wire(), kind.name())), golden);
    for (byte, name) in golden {
        assert_eq!(StreamKind::from_wire(byte).map(StreamKind::name), Ok(name));
    }
}

#[test]
fn the_number_and_maximum_of_every_frame_type() {
    const SMALL: u32 = 4096;
    const CONTROL: u32 = 65_536;
    const REQUEST: u32 = 1_048_576;
    const RAW: u32 = 262_152;
    let golden = [
        (0x0001, "Hello", SMALL),
        (0x0002, "HelloAck", SMALL),
        (0x0003, "Heartbeat", CONTROL),
        (0x0004, "HeartbeatAck", CONTROL),
        (0x0005, "GoAway", SMALL),
        (0x0006, "Probe", SMALL),
        (0x0010, "EnrolRequest", CONTROL),
        (0x0011, "EnrolAnswer", CONTROL),
        (0x0012, "LeaveRequest", SMALL),
        (0x0013, "LeaveAnswer", SMALL),
        (0x0014, "RenewRequest", CONTROL),
        (0x0015, "RenewAnswer", CONTROL),
        (0x0020, "EscalateRequest", REQUEST),
        (0x0021, "BodyChunk", RAW),
        (0x0022, "ResponseHead", REQUEST),
        (0x0023, "Event", RAW),
        (0x0024, "AnswerChunk", RAW),
        (0x0025, "End", CONTROL),
        (0x0026, "Failed", CONTROL),
        (0x0027, "Cancel", SMALL),
        (0x0028, "Ack", SMALL),
        (0x0029, "Resume", SMALL),
        (0x0040, "BalanceRequest", SMALL),
        (0x0041, "Balance", SMALL),
        (0x0042, "UsageRequest", SMALL),
        (0x0043, "UsageGroup", SMALL),
        (0x0044, "Done", SMALL),
        (0x0045, "StatementRequest", SMALL),
        (0x0046, "StatementLine", CONTROL),
        (0x0047, "RecordRequest", CONTROL),
        (0x0048, "TopUpRequest", SMALL),
        (0x0049, "TopUp", SMALL),
        (0x004a, "FlushRequest", SMALL),
        (0x004b, "Flushed", SMALL),
        (0x004c, "ModelsRequest", SMALL),
        (0x004d, "ModelOffer", SMALL),
        (0x0060, "SessionGet", SMALL),
        (0x0061, "Session", REQUEST),
        (0x0062, "SessionMessage", SMALL),
        (0x0063, "SessionAdd", SMALL),
        (0x0064, "SessionAdded", SMALL),
        (0x0065, "SessionUpdate", REQUEST),
        (0x0066, "SessionAct", SMALL),
        (0x0067, "SessionList", SMALL),
        (0x0068, "SessionRow", SMALL),
        (0x0069, "SessionSearch", SMALL),
        (0x006a, "SessionHit", CONTROL),
        (0x006b, "SessionsDone", SMALL),
        (0x0080, "SyncPush", REQUEST),
        (0x0081, "SyncPushed", SMALL),
        (0x0082, "SyncPull", SMALL),
        (0x0083, "SyncChange", REQUEST),
        (0x0084, "SyncPage", SMALL),
        (0x0085, "SyncGet", SMALL),
        (0x0086, "SyncGot", REQUEST),
        (0x0087, "SyncLog", SMALL),
        (0x0088, "SyncRevision", SMALL),
        (0x0089, "SyncStatusRequest", SMALL),
        (0x008a, "SyncKindStatus", SMALL),
        (0x008b, "SyncStatus", SMALL),
        (0x008c, "SyncLock", SMALL),
        (0x008d, "SyncLocked", SMALL),
        (0x008e, "SyncUnlock", SMALL),
        (0x008f, "SyncUnlocked", SMALL),
        (0x0090, "BlobBegin", REQUEST),
        (0x0091, "BlobNeeded", REQUEST),
        (0x0092, "BlobPut", SMALL),
        (0x0093, "BlobStored", SMALL),
        (0x0094, "BlobGet", SMALL),
        (0x0095, "BlobPart", SMALL),
        (0x0096, "SyncLogDone", SMALL),
    ];
    let known: Vec<_> = FrameType::ALL.iter().map(|kind| (kind.to_wire(), kind.name(), kind.max_body())).collect();
    assert_eq!(known, golden);
}

/// A stranger writes a client from that page: it must name every number.
const PAGE: &str = include_str!("../../docs/PROTOCOL.md");

fn page_has(row: &str) -> bool {
    PAGE.lines().any(|line| line.starts_with(row))
}

#[test]
fn the_page_has_every_frame_type_with_its_maximum_and_its_fields() {
    for kind in FrameType::ALL {
        let (wire, name) = (kind.to_wire(), kind.name());
        let digits = kind.max_body().to_string();
        let (thousands, rest) = digits.split_at(digits.len() - 3);
        let max =
            if thousands.len() > 3 { format!("1,{},{rest}", &thousands[1..]) } else { format!("{thousands},{rest}") };
        let row = PAGE.lines().find(|line| line.starts_with(&format!("| `{wire:#06x}` | {name} | ")));
        assert!(row.is_some_and(|row| row.ends_with(&format!(" | {max} |"))), "{name}: {row:?}, maximum {max}");
        assert!(page_has(&format!("### {name} (`{wire:#06x}`)")), "{name} has no section");
    }
    for kind in StreamKind::ALL {
        assert!(page_has(&format!("| `{:#04x}` | {} | ", kind.to_wire(), kind.name())), "{}", kind.name());
    }
}

/// A set's codes are exactly `golden`, names read back, and a number from a newer peer is no error.
macro_rules! golden_codes {
    ($($test:ident: $set:path, $newer:literal, [$(($number:literal, $name:literal)),* $(,)?];)*) => {$(
        #[test]
        fn $test() {
            use $set as Code;
            let known: Vec<_> = Code::ALL.iter().map(|code| (code.0, code.name())).collect();
            assert_eq!(known, [$(($number, $name)),*]);
            for code in Code::ALL {
                assert_eq!(Code::from_name(code.name()), Some(*code));
            }
            assert_eq!(Code::from_name("unknown"), None);
            let heading = stringify!($set).rsplit([' ', ':']).next().expect("a name");
            let section = PAGE.split(&format!("\n### {heading}\n")).nth(1).expect("a section of PROTOCOL.md");
            let section = section.split("\n##").next().expect("its text");
            for code in Code::ALL {
                let row = format!("| {} | `{}` | ", code.0, code.name());
                assert!(section.lines().any(|line| line.starts_with(&row)), "PROTOCOL.md has no {row}");
            }
            assert_eq!(section.lines().filter(|line| line.starts_with("| ")).count(), Code::ALL.len() + 1);
            assert_eq!(Code($newer).name(), "unknown");
        }
    )*};
}

golden_codes! {
    stream_codes: StreamCode, 0xffff_ffff, [
        (0x00, "no_error"),
        (0x01, "malformed"),
        (0x02, "unsupported"),
        (0x03, "limit"),
        (0x04, "cancelled"),
        (0x05, "internal"),
        (0x06, "timeout"),
        (0x07, "refused"),
        (0x08, "superseded"),
        (0x09, "detached"),
    ];
    close_codes: CloseCode, 0xffff_ffff, [
        (0x00, "done"),
        (0x01, "protocol"),
        (0x02, "version"),
        (0x03, "revoked"),
        (0x04, "suspended"),
        (0x05, "expired"),
        (0x06, "replaced"),
        (0x07, "going_away"),
        (0x08, "timeout"),
        (0x09, "too_many_instances"),
        (0x0a, "dead"),
        (0x0b, "unknown_device"),
        (0x0c, "internal"),
        (0x0d, "overloaded"),
    ];
    failure_codes: m::FailureCode, 0xffff, [
        (1, "malformed"),
        (2, "invalid_request"),
        (3, "unknown_model"),
        (4, "no_price"),
        (5, "payment_required"),
        (6, "rate_limited"),
        (7, "conflict"),
        (8, "in_progress"),
        (9, "provider_refused"),
        (10, "provider_unavailable"),
        (11, "timed_out"),
        (12, "cancelled"),
        (13, "suspended"),
        (14, "revoked"),
        (15, "invite_refused"),
        (16, "limit"),
        (17, "overloaded"),
        (18, "draining"),
        (19, "store_unavailable"),
        (20, "unsupported"),
        (21, "internal"),
        (22, "unauthenticated"),
        (23, "version"),
        (24, "unknown_request"),
        (25, "not_found"),
        (26, "deleted"),
    ];
    unit_kinds: m::UnitKind, 0xffff, [
        (1, "input_tokens"),
        (2, "output_tokens"),
        (3, "cache_read_tokens"),
        (4, "cache_write_5m_tokens"),
        (5, "cache_write_1h_tokens"),
        (6, "reasoning_tokens"),
        (7, "input_audio_tokens"),
        (8, "output_audio_tokens"),
        (9, "input_image_tokens"),
        (10, "output_image_tokens"),
        (11, "calls"),
        (12, "web_searches"),
    ];
    operations: m::Operation, 0xffff, [
        (1, "chat"),
        (2, "responses"),
        (3, "messages"),
        (4, "embeddings"),
        (5, "count_tokens"),
    ];
    dialects: m::Dialect, 0xffff, [
        (1, "prompt"),
        (2, "openai_chat"),
        (3, "openai_responses"),
        (4, "anthropic"),
    ];
    outcomes: m::Outcome, 0xffff, [
        (1, "complete"),
        (2, "cancelled"),
        (3, "provider_failed"),
        (4, "timed_out"),
        (5, "relay_died"),
        (6, "revoked"),
        (7, "drained"),
        (8, "limit"),
    ];
    contents: m::Content, 0xffff, [
        (1, "live"),
        (2, "replayed"),
        (3, "gone"),
    ];
    pays_with: m::PaysWith, 0xffff, [
        (1, "free"),
        (2, "managed"),
        (3, "byok"),
    ];
    usage_classes: m::UsageClass, 0xffff, [
        (1, "cloud"),
        (2, "local"),
        (3, "knowledge"),
    ];
    usage_periods: m::UsagePeriod, 0xffff, [
        (1, "day"),
        (2, "week"),
        (3, "month"),
        (4, "all"),
        (5, "days"),
    ];
    usage_groupings: m::UsageBy, 0xffff, [
        (1, "all"),
        (2, "day"),
        (3, "month"),
        (4, "model"),
        (5, "device"),
        (6, "key"),
        (7, "class"),
    ];
    session_roles: m::SessionRole, 0xffff, [
        (1, "user"),
        (2, "assistant"),
    ];
    session_deeds: m::SessionDeed, 0xffff, [
        (1, "delete"),
        (2, "restore"),
        (3, "clear"),
    ];
    item_kinds: belay_protocol::item::ItemKind, 0xffff, [
        (1, "setting"),
        (2, "document"),
        (3, "adapter"),
        (4, "history"),
    ];
    sync_contents: m::SyncContent, 0xffff, [
        (0, "none"),
        (1, "inline"),
        (2, "parts"),
        (3, "earlier"),
    ];
    push_outcomes: m::PushOutcome, 0xffff, [
        (1, "accepted"),
        (2, "same"),
        (3, "conflict"),
        (4, "kept"),
    ];
    resyncs: m::Resync, 0xffff, [
        (0, "no"),
        (1, "too_old"),
        (2, "other_epoch"),
    ];
    encodings: m::Encoding, 0xffff, [
        (0, "plain"),
        (1, "zstd"),
    ];
    revision_states: m::RevisionState, 0xffff, [
        (1, "current"),
        (2, "replaced"),
        (3, "conflict"),
    ];
}
