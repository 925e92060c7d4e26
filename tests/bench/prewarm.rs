//! The first token after a pause, cold and pre-warmed: the provider's connection has been closed
//! meanwhile, and a new one takes TCP's and TLS's handshakes.

use crate::report::{Report, Samples, us};
use crate::scene::{self, escalate};
use anyhow::{Context, ensure};
use belay_certs::ca::Authority;
use belay_certs::{issue, tls};
use belay_client::{Client, Options};
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::procs::Belayd;
use belay_tests::tcp_link::TcpLink;
use belay_transport::env::Env;
use bytes::Bytes;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// The figures that come from here.
pub(crate) const NAMES: [&str; 2] = ["cold_first_token", "prewarmed_first_token"];

const WITHIN: Duration = Duration::from_secs(10);

/// So many cold and as many pre-warmed first tokens, in turn. Each pre-warming comes from a tunnel of
/// its own: a tunnel may ask for it every five seconds.
pub(crate) async fn measure(rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let provider = FakeProvider::start().await?;
    let dir = tempfile::tempdir()?;
    let tls_address = serve_tls(dir.path(), provider.address()).await?;
    // Breaks the relay's connections, as a provider does with those that stand idle.
    let link = TcpLink::start((Ipv4Addr::LOCALHOST, 0).into(), tls_address).await?;
    let url = format!("https://localhost:{}", link.address().port());
    let ca_file = dir.path().join("ca.pem");
    let belayd = Belayd::start(&scene::config_for(&url, &format!("ca_file = {ca_file:?}\n")))?;
    let (identity, key) = scene::join(&belayd, None).await?;
    let script = Script { stamp: true, pace_ms: 1, ..Script::tokens(2) };
    let [mut cold, mut warm] = [Samples::default(), Samples::default()];
    for _ in 0..rounds {
        let options = Options { prewarm_model: "bench".into(), ..Options::default() };
        let client = Client::start(Env::system(), identity.clone(), &key, options)?;
        client.tunnel(WITHIN).await?;
        for (prewarmed, samples) in [(false, &mut cold), (true, &mut warm)] {
            link.cut();
            provider.wait_until("the relay is gone", WITHIN, |counts| counts.connections_open == 0).await;
            if prewarmed {
                let before = provider.counts().requests;
                client.prewarm();
                provider.wait_until("the relay has asked", WITHIN, |counts| counts.requests > before).await;
                // Its answer goes back to the pool a moment later.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let connections = link.connections();
            let seen = escalate(&client, Bytes::from(scene::body(&script))).await?;
            let fresh = link.connections() > connections;
            ensure!(fresh != prewarmed, "prewarmed: {prewarmed}, and a connection was made: {fresh}");
            samples.push(seen.first_ns);
        }
        client.close().await;
    }
    let cold_p50 = us(cold.percentile(50));
    report.times("cold_first_token", &cold);
    report.times("prewarmed_first_token", &warm).against(cold_p50);
    Ok(())
}

/// TLS before `plain`, with a certificate of the authority that is made in `dir`.
async fn serve_tls(dir: &Path, plain: SocketAddr) -> anyhow::Result<SocketAddr> {
    let env = Env::system();
    let authority = Authority::load_or_create(dir, env.clock.now_ms())?;
    let (certificate, key) = issue::server(&authority, &["localhost"], env.random.bytes(), env.clock.now_ms())?;
    let config = rustls::ServerConfig::builder_with_provider(tls::crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr().context("no address")?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                socket.set_nodelay(true)?;
                let mut client = acceptor.accept(socket).await?;
                let mut server = TcpStream::connect(plain).await?;
                server.set_nodelay(true)?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok(address)
}
