//! What any reverse proxy must do, and nothing else: hyper in front, hyper-util's pooled client
//! behind, bodies streamed through. Its figures are what a relay is to be compared with.

use hyper::body::Incoming;
use hyper::http::uri::{Authority, Scheme};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rusqlite::Connection;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;

/// What a commit is made in, if each request makes one.
type Book = Option<Arc<Mutex<Connection>>>;

/// Starts the proxy on a free port. It ends with the process. With a `book`, it makes a durable commit there before it
/// passes a request on, at once and on the thread that has the request: nobody can have it for less.
pub(crate) async fn start(upstream: SocketAddr, book: Option<PathBuf>) -> anyhow::Result<SocketAddr> {
    let book: Book = book.as_deref().map(open_book).transpose()?.map(|book| Arc::new(Mutex::new(book)));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let authority: Authority = upstream.to_string().parse()?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let (client, authority, book) = (client.clone(), authority.clone(), book.clone());
            let service = service_fn(move |request| {
                if let Some(book) = &book {
                    let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
                    commit(&mut book).expect("the bench's own book");
                }
                pass_on(client.clone(), authority.clone(), request)
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(address)
}

async fn pass_on(
    client: Client<HttpConnector, Incoming>,
    authority: Authority,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, Error> {
    let (mut head, body) = request.into_parts();
    let mut uri = head.uri.into_parts();
    (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(authority));
    // Scheme, authority and the path of a valid URI make a valid URI.
    head.uri = Uri::from_parts(uri).unwrap_or_default();
    client.request(Request::from_parts(head, body)).await
}

/// A database as the relay's books are.
pub(crate) fn open_book(path: &Path) -> anyhow::Result<Connection> {
    let book = Connection::open(path)?;
    book.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;
         CREATE TABLE entry (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL, note TEXT NOT NULL) STRICT;
         CREATE TABLE balance (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL) STRICT;
         INSERT INTO balance VALUES (1, 0);",
    )?;
    Ok(book)
}

/// The same with a log that has all the room it will need.
pub(crate) fn open_placed(path: &Path) -> anyhow::Result<Connection> {
    let book = open_book(path)?;
    book.execute_batch(
        "CREATE TABLE room (bytes BLOB); INSERT INTO room VALUES (zeroblob(64 << 20)); DROP TABLE room;
         PRAGMA wal_checkpoint(RESTART);",
    )?;
    Ok(book)
}

/// One durable commit, as small as one of the relay's can be.
pub(crate) fn commit(book: &mut Connection) -> rusqlite::Result<()> {
    let transaction = book.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction.prepare_cached("INSERT INTO entry (amount, note) VALUES (?1, 'bench')")?.execute([17])?;
    transaction.prepare_cached("UPDATE balance SET amount = amount - ?1 WHERE id = 1")?.execute([17])?;
    transaction.commit()
}
