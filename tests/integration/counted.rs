//! Reading answers whose events count.

use belay_client::escalation::EscalationRequest;
use belay_client::{Answer, Client};
use belay_protocol::message::{Content, Dialect, End, Outcome};
use belay_tests::counting::number;
use belay_tests::relay::TestClient;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

pub(crate) const ASK: &str = r#"{"model":"x","stream":true,"messages":[{"role":"user","content":"count"}]}"#;

/// Asks a provider that counts.
pub(crate) fn count(client: &Client) -> EscalationRequest {
    EscalationRequest::new(client.request_id(), Dialect::OPENAI_CHAT, "auto", ASK)
}

/// What a reader has seen.
pub(crate) struct Seen {
    pub(crate) end: End,
    /// How often it was told that nothing comes.
    pub(crate) interruptions: usize,
    /// How often the rest came over another tunnel.
    pub(crate) moves: usize,
    /// Between two events, or the request and the first one.
    pub(crate) longest_gap: Duration,
}

/// Reads a counted answer to its end: every number once and in order. `within` is how long anything may
/// take.
pub(crate) async fn read(client: Arc<TestClient>, request: EscalationRequest, within: Duration) -> Seen {
    let mut running = client.client.escalate(request, within).await.unwrap();
    let (mut next, mut interruptions, mut moves) = (0, 0, 0);
    let (mut last, mut longest_gap) = (Instant::now(), Duration::ZERO);
    loop {
        match timeout(within, running.next()).await.expect("it never hangs").expect("and never fails") {
            Some(Answer::Event(event)) => {
                if let Some(number) = number(&event) {
                    assert_eq!(number, next, "missing, doubled or out of order");
                    next += 1;
                }
                longest_gap = longest_gap.max(last.elapsed());
                last = Instant::now();
            }
            Some(Answer::End(end)) => {
                assert_eq!(end.outcome, Outcome::COMPLETE, "{}", end.message);
                assert_eq!(end.events, next + 1);
                return Seen { end, interruptions, moves, longest_gap };
            }
            Some(Answer::Interrupted { .. }) => interruptions += 1,
            // On the same stream, which was only silent.
            Some(Answer::Resumed { content: Content::LIVE, .. }) => {}
            Some(Answer::Resumed { .. }) => moves += 1,
            Some(Answer::Head(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}
