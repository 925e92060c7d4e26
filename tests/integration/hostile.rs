//! Ten thousand hostile streams and a thousand hostile handshakes against a `belayd` of its own
//! process, while one good client keeps asking: its answers are all complete, the books stay clean
//! and the process does not grow.
//!
//! Everything follows from one seed, which is printed; `BELAY_SEED` repeats it.

use crate::raw::{
    Bystander, Device, Faults, Peer, Stream, Tunnel, anonymous, body_chunk, hello, knock, prompt, raw_frame, request,
    soon,
};
use belay_certs::ca::Authority;
use belay_certs::invite::Invite;
use belay_client::state::StateDir;
use belay_client::{Client, Options, enrol};
use belay_protocol::codec::Message;
use belay_protocol::error::StreamCode;
use belay_protocol::frame::FrameType;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{BalanceRequest, Dialect, EnrolRequest, EscalateRequest, FailureCode};
use belay_tests::fault::Fault;
use belay_tests::procs::Belayd;
use belay_transport::env::{Clock, Env, SystemClock};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Short patience, so that what stalls ends soon, and room for all that is asked.
const CONFIG: &str = r#"
[limits]
requests_per_minute = 1000000
requests_at_once = 1000
handshakes_per_second = 100000
[timeouts]
handshake_ms = 1000
hello_ms = 300
request_body_ms = 500
heartbeat_ms = 60000
[providers.demo]
kind = "demo"
pace_ms = 2
[models.demo]
provider = "demo"
context_tokens = 32000
max_output_tokens = 4096
price = { input = "3", output = "15" }
[aliases]
auto = "demo"
"#;
/// What the process may have grown by at the end.
const GROWTH: u64 = 64 << 20;
/// Streams, and handshakes, that are under way at once.
const AT_ONCE: usize = 64;
const TUNNELS: usize = 4;
const STREAMS: usize = 10_000;
const HANDSHAKES: usize = 1000;

/// The relay under attack, and somebody who must not notice.
struct Target {
    relay: Belayd,
    bystander: Bystander,
    rss_before: u64,
    seed: u64,
    since: Instant,
}

impl Target {
    async fn start() -> Self {
        let seed = std::env::var("BELAY_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
        eprintln!("BELAY_SEED={seed}");
        let relay = Belayd::start(CONFIG).unwrap();
        relay.run(&["tenant", "create", "acme", "--credit", "1000000"]).unwrap();
        let client = good_client(&invite(&relay)).await;
        let bystander = Bystander::start(Arc::new(client));
        soon("the first answers", bystander.answered(3)).await;
        let rss_before = relay.process().rss_bytes().unwrap();
        Self { relay, bystander, rss_before, seed, since: Instant::now() }
    }

    fn address(&self) -> SocketAddr {
        self.relay.address().unwrap()
    }

    /// Ends the test: the good client noticed nothing, memory and books are as they should be.
    async fn must_be_well(mut self) {
        let answers = self.bystander.stop().await;
        let rss = self.relay.process().rss_bytes().unwrap();
        let (before, after) = (self.rss_before >> 10, rss >> 10);
        eprintln!(
            "{answers} good answers in {:?}; {before} KiB resident before, {after} KiB after",
            self.since.elapsed()
        );
        assert!(answers > 3);
        assert!(rss < self.rss_before + GROWTH, "grew from {} to {rss} bytes", self.rss_before);
        let books = self.relay.run(&["ledger", "verify"]).unwrap();
        assert_eq!(books[0]["problems"], serde_json::json!([]), "{books}");
        assert_eq!(books[0]["open"], 0, "{books}");
        assert!(!self.relay.log().contains("panicked"), "{}", self.relay.log());
        assert!(self.relay.terminate().unwrap().success());
    }
}

fn invite(relay: &Belayd) -> Invite {
    let info = relay.run(&["invite", "acme"]).unwrap();
    Invite::decode(info["invite"].as_str().unwrap()).unwrap()
}

async fn good_client(invite: &Invite) -> Client {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::at(home.path());
    enrol::join(&Env::system(), &state, invite, "good").await.unwrap();
    let (identity, key) = state.load().unwrap();
    Client::start(Env::system(), identity, &key, Options::default()).unwrap()
}

fn random_bytes(rng: &mut StdRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(1..=most)];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn flip_bits(rng: &mut StdRng, bytes: &mut [u8]) {
    for _ in 0..rng.random_range(1..=8) {
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << rng.random_range(0..8);
    }
}

// --- streams ---------------------------------------------------------------------------------

/// What a hostile stream does after its bytes.
#[derive(Debug, Clone, Copy)]
enum Then {
    Finish,
    Reset,
    Wait,
}

fn on(kind: StreamKind, frames: &[&[u8]]) -> Vec<u8> {
    [&[kind.to_wire()], &frames.concat()[..]].concat()
}

fn escalation(dialect: Dialect, body: &[u8]) -> Vec<u8> {
    let request = EscalateRequest { dialect, ..request(body.len()) };
    let mut frames = request.to_frame().unwrap().to_vec();
    for (number, chunk) in body.chunks(256 << 10).enumerate() {
        frames.extend(body_chunk((number as u64) << 18, chunk));
    }
    on(StreamKind::Escalate, &[&frames])
}

/// A stream as a good client would write it, but for leaving.
fn valid(rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..4) {
        0 => on(StreamKind::Billing, &[&BalanceRequest { reserved: 0 }.to_frame().unwrap()]),
        1 => {
            let request = EnrolRequest { secret: vec![1; 24], csr_der: vec![2; 200], device_label: "evil".into() };
            on(StreamKind::Enrol, &[&request.to_frame().unwrap()])
        }
        2 => escalation(Dialect::PROMPT, &prompt("Hi")),
        _ => escalation(
            Dialect::OPENAI_CHAT,
            br#"{"model":"demo","stream":true,"max_tokens":4,"messages":[{"role":"user","content":"Hi"}]}"#,
        ),
    }
}

/// A header that lies about what follows.
fn lying_length(rng: &mut StdRng) -> Vec<u8> {
    let kind = FrameType::ALL[rng.random_range(0..FrameType::ALL.len())];
    let len = match rng.random_range(0..4) {
        0 => rng.random(),
        1 => kind.max_body(),
        2 => kind.max_body() + 1,
        _ => rng.random_range(0..1000),
    };
    let body = random_bytes(rng, 600);
    on(any_kind(rng), &[&raw_frame(len, kind.to_wire(), 1, 0, &body)])
}

/// Any kind that the relay serves beside the control stream.
fn any_kind(rng: &mut StdRng) -> StreamKind {
    [StreamKind::Enrol, StreamKind::Escalate, StreamKind::Billing][rng.random_range(0..3)]
}

/// A body that is sent well and says strange things.
fn odd_body(rng: &mut StdRng) -> Vec<u8> {
    let depth = 1 << rng.random_range(4..18);
    let body = match rng.random_range(0..8) {
        0 => "[".repeat(depth).into_bytes(),
        1 => format!("{{\"query\":{}", "{\"query\":".repeat(depth / 8)).into_bytes(),
        2 => format!("{{\"messages\":{}1{}}}", "[".repeat(depth / 2), "]".repeat(depth / 2)).into_bytes(),
        3 => format!("{{{}\"query\":\"Hi\"}}", "\"query\":\"Hi\",".repeat(depth / 16)).into_bytes(),
        4 => format!("{{\"query\":\"{}\"}}", "\\u0000\\ud800".repeat(depth / 16)).into_bytes(),
        5 => {
            let number = ["1e400", "-0", "4294967296", "1e-999", "99999999999999999999", "NaN"][rng.random_range(0..6)];
            let body = "{\"model\":\"demo\",\"stream\":true,\"messages\":[],\"n\":#,\"max_tokens\":#,\"seed\":#}";
            body.replace('#', number).into_bytes()
        }
        6 => [b"{\"query\":\"".to_vec(), random_bytes(rng, 2000), b"\"}".to_vec()].concat(),
        _ => random_bytes(rng, depth),
    };
    let dialect = [Dialect::PROMPT, Dialect::OPENAI_CHAT, Dialect::ANTHROPIC, Dialect(999)][rng.random_range(0..4)];
    escalation(dialect, &body)
}

/// The bytes of one hostile stream; at least one, or it would never be announced.
fn hostile_bytes(rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..6) {
        0 => random_bytes(rng, 3000),
        1 => on(any_kind(rng), &[&random_bytes(rng, 3000)]),
        2 => {
            let mut bytes = valid(rng);
            flip_bits(rng, &mut bytes);
            bytes
        }
        3 => lying_length(rng),
        4 => odd_body(rng),
        _ => {
            // Cut, and perhaps with the beginning of another one behind it.
            let mut bytes = valid(rng);
            bytes.truncate(rng.random_range(1..=bytes.len()));
            if rng.random() {
                bytes.extend(valid(rng));
            }
            bytes
        }
    }
}

/// Does it, and says in a word how the relay took it.
async fn strike(peer: Arc<Peer>, bytes: Vec<u8>, then: Then) -> String {
    let mut stream = peer.open_bare().await;
    stream.write(&bytes).await;
    match then {
        Then::Finish => stream.finish(),
        Then::Reset => return "left".into(),
        Then::Wait => {}
    }
    verdict(&mut stream).await
}

/// How the relay ended a stream. Panics if it was by a fault of its own.
async fn verdict(stream: &mut Stream) -> String {
    let ended = stream.ended().await;
    assert_ne!(ended.reset, Some(StreamCode::INTERNAL));
    match (ended.failed(), ended.reset) {
        (Some(failed), _) => {
            assert!(failed.code != FailureCode::INTERNAL && failed.code.name() != "unknown", "{failed:?}");
            failed.code.name().into()
        }
        (None, Some(code)) => format!("reset: {code}"),
        (None, None) => "answered".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_hostile_streams_cost_nobody_but_themselves() {
    let _turn = crate::MACHINE.lock().await;
    let target = Target::start().await;
    let mut storms = JoinSet::new();
    for number in 0..TUNNELS {
        let tunnel = Device::join(&invite(&target.relay)).await.tunnel().await;
        let rng = StdRng::seed_from_u64(target.seed.wrapping_add(number as u64));
        storms.spawn(storm(tunnel, rng));
    }
    let mut verdicts = BTreeMap::<String, usize>::new();
    while let Some(storm) = storms.join_next().await {
        for (verdict, count) in storm.unwrap() {
            *verdicts.entry(verdict).or_default() += count;
        }
    }
    eprintln!("{verdicts:?}");
    assert_eq!(verdicts.values().sum::<usize>(), STREAMS);
    for all_of_them in ["malformed", "limit", "unsupported", "timed_out", "invalid_request", "answered", "left"] {
        assert!(verdicts.contains_key(all_of_them), "none was {all_of_them}");
    }
    target.must_be_well().await;
    Fault::kept("hostile-streams", STREAMS as u64, "each costs its sender only").tell();
}

/// Hostile streams on one tunnel, which must outlive them.
async fn storm(tunnel: Tunnel, mut rng: StdRng) -> BTreeMap<String, usize> {
    let Tunnel { peer, control: _control } = tunnel;
    let peer = Arc::new(peer);
    let mut verdicts = BTreeMap::new();
    let mut strikes = JoinSet::new();
    for _ in 0..STREAMS / TUNNELS {
        if strikes.len() == AT_ONCE {
            let verdict: String = strikes.join_next().await.unwrap().unwrap();
            *verdicts.entry(verdict).or_default() += 1;
        }
        let then = [Then::Finish, Then::Finish, Then::Reset, Then::Wait][rng.random_range(0..4)];
        strikes.spawn(strike(Arc::clone(&peer), hostile_bytes(&mut rng), then));
    }
    for verdict in strikes.join_all().await {
        *verdicts.entry(verdict).or_default() += 1;
    }
    peer.balance().await;
    verdicts
}

// --- handshakes ------------------------------------------------------------------------------

/// Who pretends to shake hands, and how badly.
struct Mob {
    target: SocketAddr,
    anonymous: rustls::ClientConfig,
    /// Certificates that must not get in.
    wrong: Vec<rustls::ClientConfig>,
    /// A device that gets in and then misbehaves.
    traitor: rustls::ClientConfig,
    rng: StdRng,
}

impl Mob {
    fn any_address(&mut self) -> Ipv4Addr {
        Ipv4Addr::new(127, 9, self.rng.random(), self.rng.random_range(1..255))
    }

    /// Datagrams that are no QUIC, or only look like it.
    fn garbage(&mut self) {
        let socket = UdpSocket::bind((self.any_address(), 0)).unwrap();
        for _ in 0..self.rng.random_range(1..4) {
            let mut datagram = random_bytes(&mut self.rng, 1500);
            if self.rng.random() {
                // A long header of version 1 with the length of an Initial.
                datagram.resize(1200, 0);
                let first = 0xc0 | datagram[0] & 0x3f;
                datagram[..6].copy_from_slice(&[first, 0, 0, 0, 1, 8]);
            }
            socket.send_to(&datagram, self.target).unwrap();
        }
    }

    /// Faults at the socket: datagrams cut or flipped, or silence in the middle of the handshake.
    fn faults(&mut self) -> Faults {
        let seed = self.rng.random();
        if self.rng.random() {
            return Faults::after(self.rng.random_range(1..6), self.rng.random_range(0..3));
        }
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        let bend = move |mut datagram: Vec<u8>| {
            let mut rng = rng.lock().unwrap();
            if rng.random() {
                datagram.truncate(rng.random_range(1..=datagram.len()));
            } else {
                flip_bits(&mut rng, &mut datagram);
            }
            datagram
        };
        Faults { bend: Box::new(bend), ..Faults::none() }
    }

    /// What stands on the first stream instead of a good hello.
    fn first_words(&mut self) -> Vec<u8> {
        if self.rng.random() {
            return hostile_bytes(&mut self.rng);
        }
        let mut bytes = on(StreamKind::Control, &[&hello(self.rng.random(), 1).to_frame().unwrap()]);
        flip_bits(&mut self.rng, &mut bytes);
        bytes.truncate(self.rng.random_range(1..=bytes.len()));
        bytes
    }

    /// One hostile handshake: at once, or as a task that ends when its client has given up.
    fn knock(&mut self, tasks: &mut JoinSet<()>) {
        let (tls, faults) = match self.rng.random_range(0..5) {
            0 => return self.garbage(),
            1 => (self.anonymous.clone(), self.faults()),
            2 => (self.wrong[self.rng.random_range(0..self.wrong.len())].clone(), Faults::none()),
            3 => (self.anonymous.clone(), Faults::none()),
            _ => (self.traitor.clone(), Faults::none()),
        };
        let words = self.first_words();
        let (endpoint, connecting) = knock(self.target, self.any_address(), tls, faults);
        tasks.spawn(async move {
            let intrude = async {
                let peer = Peer::of(endpoint, connecting.await.ok()?);
                let (mut send, _recv) = peer.connection.open_bi().await.ok()?;
                send.write_all(&words).await.ok()?;
                Some(peer.connection.closed().await)
            };
            let _ = timeout(Duration::from_secs(1), intrude).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_hostile_handshakes_keep_nobody_out() {
    let _turn = crate::MACHINE.lock().await;
    let target = Target::start().await;
    let device = Device::join(&invite(&target.relay)).await;
    let now_ms = SystemClock.now_ms();
    let stranger = Authority::create(now_ms).unwrap();
    let ours = Authority::load_or_create(&target.relay.dir().join("state/ca"), 0).unwrap();
    let months_ago = now_ms - 90 * 86_400_000;
    let wrong = [
        device.certified(&stranger, &device.tenant, &device.id, now_ms),
        device.certified(&ours, &device.tenant, &device.id, months_ago),
        device.certified(&ours, &device.tenant, "nobody", now_ms),
    ];
    let mut mob = Mob {
        target: target.address(),
        anonymous: anonymous(ours.fingerprint()),
        wrong: wrong.iter().map(Device::tls).collect(),
        traitor: Device::join(&invite(&target.relay)).await.tls(),
        rng: StdRng::seed_from_u64(target.seed),
    };
    let mut tasks = JoinSet::new();
    for number in 0..HANDSHAKES {
        while tasks.len() >= AT_ONCE {
            tasks.join_next().await.unwrap().unwrap();
        }
        mob.knock(&mut tasks);
        if number % 100 == 0 {
            // Whoever is good gets in at any time.
            device.tunnel().await.peer.balance().await;
        }
    }
    tasks.join_all().await;
    target.must_be_well().await;
}
