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
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::TcpListener;

/// Starts the proxy on a free port. It ends with the process.
pub(crate) async fn start(upstream: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let authority: Authority = upstream.to_string().parse()?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let (client, authority) = (client.clone(), authority.clone());
            let service = service_fn(move |request| pass_on(client.clone(), authority.clone(), request));
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
