//! A peer that speaks the protocol by hand: it connects with or without a certificate, from any
//! address of 127.0.0.0/8, over a socket that may fail on purpose; it opens streams, writes any
//! bytes, and reads what the relay says. Every wait has a deadline.

use belay_certs::ca::Authority;
use belay_certs::invite::Invite;
use belay_certs::issue::{DeviceKey, DeviceRequest};
use belay_certs::tls::{self, system_time};
use belay_client::escalation::{Collected, EscalationRequest};
use belay_client::state::StateDir;
use belay_client::{Client, enrol};
use belay_protocol::codec::Message;
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::error::{CloseCode, StreamCode};
use belay_protocol::frame::{Frame, FrameType};
use belay_protocol::id::{InstanceId, RequestId};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    Balance, BalanceRequest, Dialect, End, EscalateRequest, Failed, FailureCode, Heartbeat, HeartbeatAck, Hello,
    HelloAck, Operation, Outcome,
};
use belay_protocol::money::NanoUsd;
use belay_protocol::stream::{FrameReader, FrameWriter, StreamError};
use belay_protocol::{ALPN, MINOR, RELAY_SERVER_NAME};
use belay_relay::store::ledger::money;
use belay_tests::relay::{PATIENCE, TestRelay, eventually, tenant};
use belay_transport::env::{Env, KernelNet, Net, Random, Side};
use belay_transport::{params, quic};
use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Connecting, Connection, ConnectionError, Endpoint, TokioRuntime, UdpPoller};
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Where peers come from unless a test says otherwise.
pub(crate) const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Waits for something. Panics, naming it, after [`PATIENCE`].
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come in time"))
}

/// Fails unless something took as long as a limit says, and at most a second longer.
pub(crate) fn took(what: &str, since: Instant, limit: Duration) {
    let elapsed = since.elapsed();
    let slack = Duration::from_secs(1);
    assert!((limit..limit + slack).contains(&elapsed), "{what} took {elapsed:?}, the limit is {limit:?}");
}

/// What a future gives at once, if it is ready.
pub(crate) async fn now<F: Future>(future: F) -> Option<F::Output> {
    timeout(Duration::ZERO, future).await.ok()
}

/// The authority of a relay, to make certificates that it would not make.
pub(crate) fn authority(relay: &TestRelay) -> Authority {
    Authority::load_or_create(&relay.state().join("ca"), 0).unwrap()
}

/// A client that trusts the relay and shows no certificate.
pub(crate) fn nobody(relay: &TestRelay) -> rustls::ClientConfig {
    anonymous(authority(relay).fingerprint())
}

/// A client that trusts the authority with that fingerprint and shows no certificate.
pub(crate) fn anonymous(fingerprint: [u8; 32]) -> rustls::ClientConfig {
    tls::enrolling_client(fingerprint, ALPN, system_time()).unwrap()
}

/// An enrolled device, or what claims to be one.
pub(crate) struct Device {
    pub(crate) tenant: String,
    pub(crate) id: String,
    /// Where its relay is.
    relay: SocketAddr,
    /// The authority that it trusts.
    pub(crate) trusts: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: DeviceKey,
}

impl Device {
    /// Enrols a new device of `acme`.
    pub(crate) async fn enrol(relay: &TestRelay) -> Self {
        Self::join(&relay.invite("acme").await).await
    }

    /// Enrols a new device with an invite.
    pub(crate) async fn join(invite: &Invite) -> Self {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::at(home.path());
        let identity = enrol::join(&Env::system(), &state, invite, "raw").await.unwrap();
        let (_, key) = state.load().unwrap();
        Self {
            relay: identity.addresses[0].parse().unwrap(),
            tenant: identity.tenant.to_string(),
            id: identity.device.to_string(),
            trusts: identity.ca_der.0.into(),
            certificate: identity.certificate_der.0.into(),
            key,
        }
    }

    /// A new key with a certificate for that device, as `signer` would have made it at `now_ms`.
    pub(crate) fn certified(&self, signer: &Authority, tenant: &str, id: &str, now_ms: u64) -> Self {
        let key = DeviceKey::generate().unwrap();
        let request = DeviceRequest::from_der(&key.request().unwrap()).unwrap();
        let issued = request.issue(signer, tenant, id, [7; 12], (now_ms, belay_certs::issue::DEVICE_LIFETIME)).unwrap();
        Self {
            tenant: tenant.into(),
            id: id.into(),
            certificate: issued.certificate,
            key,
            relay: self.relay,
            trusts: self.trusts.clone(),
        }
    }

    /// The same device with a certificate as `signer` would have made it for its key at `now_ms`.
    pub(crate) fn aged(&self, signer: &Authority, now_ms: u64) -> Self {
        let request = DeviceRequest::from_der(&self.request()).unwrap();
        let made = (now_ms, belay_certs::issue::DEVICE_LIFETIME);
        let issued = request.issue(signer, &self.tenant, &self.id, [8; 12], made).unwrap();
        let (tenant, id, trusts) = (self.tenant.clone(), self.id.clone(), self.trusts.clone());
        Self { tenant, id, trusts, certificate: issued.certificate, key: self.key.copy().unwrap(), relay: self.relay }
    }

    /// A request for a certificate, signed with its key.
    pub(crate) fn request(&self) -> Vec<u8> {
        self.key.request().unwrap()
    }

    /// Its side of TLS.
    pub(crate) fn tls(&self) -> rustls::ClientConfig {
        self.tls_with(ALPN)
    }

    /// The same for another protocol.
    pub(crate) fn tls_with(&self, alpn: &[u8]) -> rustls::ClientConfig {
        tls::enrolled_client(
            std::slice::from_ref(&self.trusts),
            self.certificate.clone(),
            &self.key,
            alpn,
            system_time(),
        )
        .unwrap()
    }

    /// A connection before its hello.
    pub(crate) async fn connect(&self) -> Peer {
        Peer::connect(self.relay, HOME, self.tls()).await.unwrap()
    }

    /// A tunnel of a new instance.
    pub(crate) async fn tunnel(&self) -> Tunnel {
        let peer = self.connect().await;
        let control = peer.hello(&hello(rand::random(), 1)).await;
        Tunnel { peer, control }
    }
}

/// The hello of an instance.
pub(crate) fn hello(instance: [u8; 16], generation: u64) -> Hello {
    Hello {
        min_minor: 0,
        max_minor: MINOR,
        capabilities: 0,
        client_name: "raw".into(),
        instance_id: InstanceId(instance),
        path_generation: generation,
        extensions: vec![],
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) connection: Connection,
    _endpoint: Endpoint,
}

/// A connection after its hello.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) peer: Peer,
    pub(crate) control: Stream,
}

impl Tunnel {
    /// Sends a heartbeat and checks its answer.
    pub(crate) async fn beat(&mut self, sequence: u64) {
        let start = Instant::now();
        let heartbeat = heartbeat(sequence);
        self.control.send(&heartbeat).await;
        let ack: HeartbeatAck = self.control.expect().await;
        assert_eq!((ack.sequence, ack.echo_us), (sequence, heartbeat.sent_at_us));
        assert!(u128::from(ack.held_us) <= start.elapsed().as_micros());
    }
}

/// A heartbeat whose clock says something odd.
pub(crate) fn heartbeat(sequence: u64) -> Heartbeat {
    Heartbeat { sequence, sent_at_us: sequence * 1_000_003, round_trip_us: None, extensions: vec![] }
}

/// Begins a handshake over a socket with faults.
pub(crate) fn knock(
    to: SocketAddr,
    from: Ipv4Addr,
    tls: rustls::ClientConfig,
    faults: Faults,
) -> (Endpoint, Connecting) {
    let inner = KernelNet.bind_udp((from, 0).into(), Side::Client).unwrap();
    let socket = Arc::new(FaultySocket { inner, faults, said: 0.into(), heard: 0.into() });
    let config = params::endpoint(&Random::from_os(), None);
    let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime)).unwrap();
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(params::client());
    let connecting = endpoint.connect_with(config, to, RELAY_SERVER_NAME).unwrap();
    (endpoint, connecting)
}

impl Peer {
    /// Shakes hands.
    pub(crate) async fn connect(
        to: SocketAddr,
        from: Ipv4Addr,
        tls: rustls::ClientConfig,
    ) -> Result<Self, ConnectionError> {
        let (endpoint, connecting) = knock(to, from, tls, Faults::none());
        Ok(Self::of(endpoint, soon("the handshake", connecting).await?))
    }

    /// A connection that is there.
    pub(crate) fn of(endpoint: Endpoint, connection: Connection) -> Self {
        Self { connection, _endpoint: endpoint }
    }

    /// Opens a stream without writing to it.
    pub(crate) async fn open_bare(&self) -> Stream {
        Stream::new(soon("a stream", self.connection.open_bi()).await.unwrap())
    }

    /// Opens a stream if the relay lets it be opened right now.
    pub(crate) async fn open_now(&self) -> Option<Stream> {
        now(self.connection.open_bi()).await.map(|opened| Stream::new(opened.unwrap()))
    }

    /// Opens a stream with that first byte.
    pub(crate) async fn open_with(&self, preface: u8) -> Stream {
        let mut stream = self.open_bare().await;
        stream.write(&[preface]).await;
        stream
    }

    /// Opens a stream of a kind.
    pub(crate) async fn open(&self, kind: StreamKind) -> Stream {
        self.open_with(kind.to_wire()).await
    }

    /// Says hello and returns the control stream.
    pub(crate) async fn hello(&self, hello: &Hello) -> Stream {
        let mut control = self.open(StreamKind::Control).await;
        control.send(hello).await;
        let _: HelloAck = control.expect().await;
        control
    }

    /// Asks for the balance: the proof that the tunnel works.
    pub(crate) async fn balance(&self) -> Balance {
        let mut stream = self.open(StreamKind::Billing).await;
        stream.send(&BalanceRequest { reserved: 0 }).await;
        stream.finish();
        stream.expect().await
    }

    /// Sends a request with a question and returns its stream.
    pub(crate) async fn ask(&self, request: EscalateRequest, question: &str) -> Stream {
        let body = prompt(question);
        let mut stream = self.open(StreamKind::Escalate).await;
        stream.send(&EscalateRequest { body_len: u32::try_from(body.len()).unwrap(), ..request }).await;
        stream.write(&body_chunk(0, &body)).await;
        stream
    }

    /// Waits until the relay closes the connection.
    pub(crate) async fn closed(&self) -> CloseCode {
        let error = soon("the close", self.connection.closed()).await;
        quic::close_code(&error).unwrap_or_else(|| panic!("ended without a close code: {error}"))
    }
}

/// A stream, as bytes and as frames.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) writer: FrameWriter,
    pub(crate) reader: FrameReader,
    finished: bool,
}

/// How the relay ended a stream.
#[derive(Default)]
pub(crate) struct Ended {
    /// All frames that came.
    pub(crate) frames: Vec<Frame>,
    /// The code of the reset, if it was one.
    pub(crate) reset: Option<StreamCode>,
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.frames.iter().map(|frame| frame.kind).collect();
        write!(f, "{kinds:?}, failed {:?}, reset {:?}", self.failed(), self.reset)
    }
}

impl Ended {
    /// The typed failure, if one came.
    pub(crate) fn failed(&self) -> Option<Failed> {
        self.last(FrameType::Failed)
    }

    /// The end of a settled request. Panics if there is none.
    pub(crate) fn end(&self) -> End {
        self.last(FrameType::End).unwrap_or_else(|| panic!("no End, but {self:?}"))
    }

    fn last<M: Message>(&self, kind: FrameType) -> Option<M> {
        self.frames.last().filter(|frame| frame.kind == kind).map(|frame| M::from_frame(frame).unwrap())
    }

    /// Fails unless the relay answered with this failure and ended the stream in order.
    pub(crate) fn is_failed(&self, failure: FailureCode) -> Failed {
        assert_eq!(self.reset, None);
        let failed = self.failed().unwrap_or_else(|| panic!("no failure, but {self:?}"));
        assert_eq!(failed.code, failure, "{}", failed.message);
        failed
    }
}

impl Stream {
    fn new((send, recv): (quinn::SendStream, quinn::RecvStream)) -> Self {
        let (writer, reader) = quic::frames(send, recv);
        Self { writer, reader, finished: false }
    }

    /// Writes bytes. A relay that no longer wants them is no failure: the answer tells why.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = self.try_write(bytes).await;
    }

    /// Writes bytes.
    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.writer.queue_raw(Bytes::copy_from_slice(bytes));
        soon("room to write", self.writer.flush()).await
    }

    /// Writes a message.
    pub(crate) async fn send<M: Message>(&mut self, message: &M) {
        self.write(&message.to_frame().unwrap()).await;
    }

    /// Says that nothing more comes.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
        self.writer.finish();
    }

    /// The next frame.
    pub(crate) async fn frame(&mut self) -> Frame {
        soon("a frame", self.reader.frame()).await.unwrap().expect("a frame before the end")
    }

    /// The next frame as a message.
    pub(crate) async fn expect<M: Message>(&mut self) -> M {
        M::from_frame(&self.frame().await).unwrap()
    }

    /// Fails unless the relay answers with this failure, ends its side in order, and stops the
    /// other with that code.
    pub(crate) async fn is_refused(&mut self, failure: FailureCode, code: StreamCode, case: &str) -> Failed {
        let ended = self.ended().await;
        let failed = ended.failed().unwrap_or_else(|| panic!("{case}: no failure, but {ended:?}"));
        assert_eq!((failed.code, ended.reset), (failure, None), "{case}: {}", failed.message);
        if !self.finished {
            assert_eq!(self.stopped().await, code, "{case}");
        }
        failed
    }

    /// Waits until the relay stops what is written here.
    pub(crate) async fn stopped(&mut self) -> StreamCode {
        match soon("the stop", poll_fn(|cx| self.writer.poll_stopped(cx))).await {
            StreamError::Peer(code) => code,
            error => panic!("not stopped: {error}"),
        }
    }

    /// Reads to the end of the stream.
    pub(crate) async fn ended(&mut self) -> Ended {
        let mut ended = Ended::default();
        loop {
            match soon("the end of the stream", self.reader.frame()).await {
                Ok(Some(frame)) => ended.frames.push(frame),
                Ok(None) => return ended,
                Err(StreamError::Peer(code)) => return Ended { reset: Some(code), ..ended },
                Err(error) => panic!("the stream broke: {error}"),
            }
        }
    }
}

/// A frame with any header and body.
pub(crate) fn raw_frame(len: u32, kind: u16, flags: u8, reserved: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&[flags, reserved]);
    bytes.extend_from_slice(body);
    bytes
}

/// A required frame of a known type with any body.
pub(crate) fn frame_of(kind: FrameType, body: &[u8]) -> Vec<u8> {
    raw_frame(u32::try_from(body.len()).unwrap(), kind.to_wire(), 1, 0, body)
}

/// A piece of a request body.
pub(crate) fn body_chunk(offset: u64, bytes: &[u8]) -> Vec<u8> {
    frame_of(FrameType::BodyChunk, &[&offset.to_le_bytes(), bytes].concat())
}

/// A request for a streamed answer to a prompt.
pub(crate) fn request(body_len: usize) -> EscalateRequest {
    EscalateRequest {
        request_id: RequestId(rand::random()),
        session_id: None,
        operation: Operation::CHAT,
        dialect: Dialect::PROMPT,
        model: "auto".into(),
        stream: true,
        max_output_tokens: None,
        may_reduce_output: false,
        cost_cap: None,
        deadline_ms: None,
        headers: vec![],
        body_len: u32::try_from(body_len).unwrap(),
        extensions: vec![],
    }
}

/// The body of a prompt.
pub(crate) fn prompt(question: &str) -> Vec<u8> {
    serde_json::to_vec(&Prompt::new(question)).unwrap()
}

/// Gives a tenant many dollars more.
pub(crate) async fn credit(relay: &TestRelay, id: &str) {
    relay
        .relay()
        .admin()
        .operate(&tenant(id), money::Operation::Credit, NanoUsd(10_000_000_000_000), None, None)
        .await
        .unwrap();
}

/// Waits until no money is held, and fails unless the books are clean then.
pub(crate) async fn books_are_clean(relay: &TestRelay) {
    eventually("the last hold is resolved", async || {
        relay.relay().admin().verify(None).await.unwrap().iter().all(|book| book.report.open == 0)
    })
    .await;
    relay.verify().await;
}

/// What goes wrong at a socket.
pub(crate) struct Faults {
    /// So many datagrams are sent, then none.
    pub(crate) says: usize,
    /// So many datagrams, or trains of them, are received, then none.
    pub(crate) hears: usize,
    /// What becomes of a datagram that is sent.
    pub(crate) bend: Box<dyn Fn(Vec<u8>) -> Vec<u8> + Send + Sync>,
}

impl Faults {
    /// A good socket.
    pub(crate) fn none() -> Self {
        Self::after(usize::MAX, usize::MAX)
    }

    /// A socket that goes mute and deaf after so many datagrams.
    pub(crate) fn after(says: usize, hears: usize) -> Self {
        Self { says, hears, bend: Box::new(|datagram| datagram) }
    }
}

struct FaultySocket {
    inner: Arc<dyn AsyncUdpSocket>,
    faults: Faults,
    said: AtomicUsize,
    heard: AtomicUsize,
}

impl fmt::Debug for FaultySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultySocket")
    }
}

impl AsyncUdpSocket for FaultySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.said.fetch_add(1, Ordering::Relaxed) >= self.faults.says {
            return Ok(());
        }
        let contents = (self.faults.bend)(transmit.contents.to_vec());
        let (destination, ecn, src_ip) = (transmit.destination, transmit.ecn, transmit.src_ip);
        self.inner.try_send(&Transmit { destination, ecn, contents: &contents, segment_size: None, src_ip })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = ready!(self.inner.poll_recv(cx, &mut buffers[..1], &mut meta[..1]))?;
            if self.heard.fetch_add(1, Ordering::Relaxed) < self.faults.hears {
                return Poll::Ready(Ok(received));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    // The kernel may hand over several datagrams as one, whoever wraps the socket.
    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Somebody else's client, who asks and asks and must not notice what a test does meanwhile.
pub(crate) struct Bystander {
    stop: CancellationToken,
    answers: watch::Receiver<u64>,
    asking: JoinHandle<()>,
}

impl Bystander {
    /// Starts to ask.
    pub(crate) fn start(client: Arc<Client>) -> Self {
        let stop = CancellationToken::new();
        let (count, answers) = watch::channel(0);
        let asking = tokio::spawn(ask_until(client, stop.clone(), count));
        Self { stop, answers, asking }
    }

    /// Waits until it has had so many answers.
    pub(crate) async fn answered(&self, answers: u64) {
        let _ = self.answers.clone().wait_for(|count| *count >= answers).await;
    }

    /// Stops after the answer that is running. Fails unless all answers were complete and came
    /// through one tunnel; tells how many there were.
    pub(crate) async fn stop(self) -> u64 {
        self.stop.cancel();
        soon("the bystander's last answer", self.asking).await.unwrap();
        *self.answers.borrow()
    }
}

async fn ask_until(client: Arc<Client>, stop: CancellationToken, answers: watch::Sender<u64>) {
    let mut first = None;
    while !stop.is_cancelled() {
        let answer = soon("the bystander's answer", ask(&client, "Why is the sky blue?")).await;
        let end = answer.end.expect("the bystander's request is settled");
        assert_eq!(end.outcome, Outcome::COMPLETE, "{}", end.message);
        assert_eq!(&answer.text, first.get_or_insert_with(|| answer.text.clone()));
        answers.send_modify(|count| *count += 1);
    }
    assert_eq!(client.status().borrow().reconnects, 0, "the bystander lost its tunnel");
}

async fn ask(client: &Client, question: &str) -> Collected {
    let request = EscalationRequest::new(client.request_id(), Dialect::PROMPT, "auto", prompt(question));
    client.escalate(request, PATIENCE).await.unwrap().collect().await.unwrap()
}
