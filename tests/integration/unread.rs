//! What an answer costs the relay that nobody reads: what its events weigh, by which it is limited.

use belay_certs::invite::Invite;
use belay_client::escalation::EscalationRequest;
use belay_client::state::StateDir;
use belay_client::{Client, Options, enrol};
use belay_protocol::message::Dialect;
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::procs::Belayd;
use belay_tests::relay::PATIENCE;
use belay_transport::env::Env;

const STREAMS: u64 = 16;
/// Tokens that are sent one by one before the memory is looked at, all streams together.
const TOKENS: u64 = 24_000;
/// What a token may cost: its event, what stands before it, and its places in the log, twice for the
/// allocator. Each comes in a read of its own, for which at least 8 KiB are made ready.
const EACH: u64 = 1000;
/// Connections, tasks and books.
const REST: u64 = 12 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_come_one_by_one_cost_what_they_weigh() {
    let provider = FakeProvider::start().await.unwrap();
    let config = format!(
        "[listen]\nquic = \"127.0.0.1:0\"\n[providers.fake]\nkind = \"openai\"\nurl = \"{}\"\n\
         [models.m]\nprovider = \"fake\"\ncontext_tokens = 32000\nmax_output_tokens = 4096\n\
         price = {{ input = \"3\", output = \"15\" }}\n",
        provider.url()
    );
    let relay = Belayd::start(&config).unwrap();
    relay.run(&["tenant", "create", "acme", "--credit", "1000"]).unwrap();
    let invite = relay.run(&["invite", "acme"]).unwrap()["invite"].as_str().unwrap().to_owned();
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::at(home.path().join("desk"));
    let identity = enrol::join(&Env::system(), &state, &Invite::decode(&invite).unwrap(), "desk").await.unwrap();
    let (_, key) = state.load().unwrap();
    let client = Client::start(Env::system(), identity, &key, Options::default()).unwrap();
    client.tunnel(PATIENCE).await.unwrap();

    let before = relay.process().rss_bytes().unwrap();
    let script = Script { endless: true, pace_ms: 1, ..Script::default() }.as_message();
    let body = serde_json::json!({ "model": "m", "stream": true, "max_tokens": 4000,
        "messages": [{ "role": "user", "content": script }] })
    .to_string();
    let mut unread = vec![];
    for _ in 0..STREAMS {
        let request = EscalationRequest::new(client.request_id(), Dialect::OPENAI_CHAT, "m", body.clone());
        unread.push(client.escalate(request, PATIENCE).await.unwrap());
    }
    provider.wait_until("tokens flow", PATIENCE * 2, |counts| counts.events >= TOKENS).await;
    let grown = relay.process().rss_bytes().unwrap().saturating_sub(before);
    eprintln!("{TOKENS} tokens that nobody reads: {} KiB more", grown >> 10);
    assert!(grown < TOKENS * EACH + REST, "{grown} bytes for {TOKENS} tokens");
    drop(unread);
    client.close().await;
}
