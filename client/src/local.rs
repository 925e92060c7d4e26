//! Finding the way through the client that runs in the background: over loopback to its gateway, with the
//! secret that whoever can read its directory may show.

use crate::running::Told;
use crate::status::TunnelStatus;
use belay_transport::tcp::TcpConnection;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// A program on this computer that has not answered after this is not waited for.
const ANSWERS: Duration = Duration::from_secs(1);
/// The longest head of an answer.
const HEAD: usize = 4096;
/// How long to wait for more of a head that came in pieces.
const MORE: Duration = Duration::from_millis(1);

/// What a client that runs tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its tunnel.
    pub tunnel: TunnelStatus,
    /// Its gateway.
    pub gateway: RunningGateway,
}

/// A gateway of a client that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningGateway {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its process.
    pub process: u32,
}

impl Told {
    /// A connection to the client that runs, over which streams can be opened as to a relay. Errors: it does
    /// not answer, or does not let us in.
    pub(crate) async fn connect(&self) -> io::Result<TcpConnection> {
        let connect = async {
            let headers = "Connection: Upgrade\r\nUpgrade: belay\r\n";
            let socket = self.ask("/belay/tunnel", "HTTP/1.1", headers, "101").await?;
            TcpConnection::connect_local(socket).await
        };
        timeout(ANSWERS, connect).await?
    }

    /// How it is.
    pub async fn status(&self) -> io::Result<Running> {
        let ask = async {
            let socket = self.ask("/belay/status", "HTTP/1.0", "", "200").await?;
            let mut body = String::new();
            socket.take(1 << 20).read_to_string(&mut body).await?;
            Ok(serde_json::from_str(&body)?)
        };
        timeout(ANSWERS, ask).await?
    }

    /// How it is, whenever that changes.
    pub async fn changes(&self) -> io::Result<Changes> {
        let socket = timeout(ANSWERS, self.ask("/belay/events", "HTTP/1.0", "", "200")).await??;
        Ok(Changes { lines: BufReader::new(socket).lines() })
    }

    /// Asks for a path, and reads the head of the answer. Errors: it has another status.
    async fn ask(&self, path: &str, version: &str, headers: &str, status: &str) -> io::Result<TcpStream> {
        let mut address = self.listen;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        let mut socket = TcpStream::connect(address).await?;
        let secret = &self.secret;
        let head = format!("GET {path} {version}\r\nHost: {address}\r\nbelay-secret: {secret}\r\n{headers}\r\n");
        socket.write_all(head.as_bytes()).await?;
        let head = read_head(&mut socket).await?;
        match head.strip_prefix(version).is_some_and(|rest| rest.trim_start().starts_with(status)) {
            true => Ok(socket),
            false => Err(io::Error::other(format!("it answers {:?}", head.lines().next().unwrap_or_default()))),
        }
    }
}

/// The states of a client that runs, as they come.
#[derive(Debug)]
pub struct Changes {
    lines: Lines<BufReader<TcpStream>>,
}

impl Changes {
    /// The next one; `None` once it has ended.
    pub async fn next(&mut self) -> io::Result<Option<Running>> {
        let mut is_status = false;
        while let Some(line) = self.lines.next_line().await? {
            match line.split_once(": ") {
                Some(("event", name)) => is_status = name == "status",
                Some(("data", data)) if is_status => return Ok(Some(serde_json::from_str(data)?)),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// The head of an answer, and nothing of what follows it.
async fn read_head(socket: &mut TcpStream) -> io::Result<String> {
    let mut seen = vec![0; HEAD];
    let length = loop {
        let length = socket.peek(&mut seen).await?;
        let ends = seen[..length].windows(4).position(|four| four == b"\r\n\r\n");
        match ends {
            Some(at) => break at + 4,
            None if length == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            None if length == HEAD => return Err(io::Error::other("the head of its answer is too long")),
            // What is here already does not wake anybody again.
            None => sleep(MORE).await,
        }
    };
    seen.truncate(length);
    socket.read_exact(&mut seen).await?;
    String::from_utf8(seen).map_err(io::Error::other)
}
