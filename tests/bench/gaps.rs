//! The gap that a reader sees when its computer's address changes, and when its tunnel is lost.

use crate::report::{Report, Samples};
use crate::scene::{self, Scene};
use anyhow::{Context, bail};
use belay_client::escalation::EscalationRequest;
use belay_client::{Answer, Client, Options};
use belay_protocol::error::CloseCode;
use belay_protocol::message::Dialect;
use belay_tests::fake_provider::Script;
use belay_tests::link::{self, Direction, Link};
use belay_transport::env::Env;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The figures that come from here.
pub(crate) const NAMES: [&str; 3] = ["gap_undisturbed", "gap_address_change", "gap_reconnect"];

const WITHIN: Duration = Duration::from_secs(10);
const PACE_MS: u64 = 5;
/// How long a stream is read after the accident.
const AFTER: Duration = Duration::from_millis(600);

#[derive(Debug, Clone, Copy)]
enum Accident {
    None,
    AddressChange,
    Loss,
}

/// So many accidents of each kind, in turn; the line between has 5 ms each way.
pub(crate) async fn measure(scene: &Scene, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let line = Direction::delay(Duration::from_millis(5));
    let link = Link::start(scene.belayd.address()?, link::seed(), line)?;
    let (mut identity, key) = scene.identity();
    identity.addresses = vec![link.address().to_string()];
    let client = Client::start(Env::system(), identity, key, Options::default())?;
    client.tunnel(WITHIN).await?;
    let mut gaps = [Samples::default(), Samples::default(), Samples::default()];
    for _ in 0..rounds {
        for (accident, gaps) in [Accident::None, Accident::AddressChange, Accident::Loss].into_iter().zip(&mut gaps) {
            gaps.push(u64::try_from(gap(&client, &link, accident).await?.as_nanos())?);
        }
    }
    client.close().await;
    let [undisturbed, change, reconnect] = gaps;
    report.times("gap_undisturbed", &undisturbed);
    report.times("gap_address_change", &change);
    report.times("gap_reconnect", &reconnect);
    Ok(())
}

/// The longest time between two tokens of a stream in which that happens.
async fn gap(client: &Client, link: &Link, accident: Accident) -> anyhow::Result<Duration> {
    let script = Script { stamp: true, pace_ms: PACE_MS, ..Script::tokens(100_000) };
    let request = EscalationRequest::new(client.request_id(), Dialect::OPENAI_CHAT, "bench", scene::body(&script));
    let mut running = client.escalate(request, WITHIN).await?;
    let (happens, happened) = oneshot::channel();
    let tunnel = client.tunnel(WITHIN).await?;
    let reading = async {
        let (mut last, mut longest, mut end) = (None::<Instant>, Duration::ZERO, None);
        let mut happens = Some(happens);
        while end.is_none_or(|end| Instant::now() < end) {
            match running.next().await?.context("the stream ended")? {
                Answer::Event(_) => {
                    let now = Instant::now();
                    if let (Some(last), Some(_)) = (last, end) {
                        longest = longest.max(now - last);
                    }
                    // The first token shows that the stream runs.
                    if let Some(happens) = happens.take() {
                        let _ = happens.send(());
                        end = Some(now + AFTER);
                    }
                    last = Some(now);
                }
                Answer::Failed(failed) => bail!("{}: {}", failed.code, failed.message),
                _ => {}
            }
        }
        anyhow::Ok(longest)
    };
    let breaking = async {
        happened.await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        match accident {
            Accident::None => {}
            Accident::AddressChange => link.change_address()?,
            Accident::Loss => tunnel.connection().close(CloseCode::DEAD, "an accident"),
        }
        anyhow::Ok(())
    };
    let (longest, broken) = tokio::join!(reading, breaking);
    broken?;
    running.cancel("measured").await.ok();
    longest
}
