//! Sessions: what goes with a request and what is kept of it, on several devices; lists, the search; the
//! commands.

use belay_client::ClientError;
use belay_client::escalation::{Collected, EscalationRequest};
use belay_client::sessions::Said;
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::id::{MessageId, SessionId};
use belay_protocol::message::{
    Dialect, FailureCode, Outcome, Session, SessionDeed, SessionKnowledge, SessionRole, SessionUpdate,
};
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, eventually, tenant};
use serde_json::{Value, json};

fn name(text: &str) -> SessionId {
    text.parse().unwrap()
}

/// A relay with the models `small` (a window of 3,000 tokens), `large` and `claude`.
async fn start(provider: &FakeProvider, extra: &str) -> TestRelay {
    let model = |name: &str, kind: &str, context: u32| {
        format!(
            "[providers.{name}]\nkind = \"{kind}\"\nurl = \"{}\"\n[models.{name}]\nprovider = \"{name}\"\n\
             context_tokens = {context}\nmax_output_tokens = 500\nprice = {{ input = \"3\", output = \"15\" }}\n",
            provider.url()
        )
    };
    let aliases = "[aliases]\nauto = \"large\"\n";
    let models =
        [model("small", "openai", 3000), model("large", "openai", 100_000), model("claude", "anthropic", 100_000)];
    TestRelay::start(&(models.concat() + aliases + extra)).await
}

fn asking(client: &TestClient, session: &str, model: &str, question: &str) -> EscalationRequest {
    let body = serde_json::to_vec(&Prompt::new(question)).unwrap();
    let mut request = EscalationRequest::new(client.client.request_id(), Dialect::PROMPT, model, body);
    request.session = Some(name(session));
    request
}

fn header(collected: &Collected, wanted: &str) -> Option<String> {
    let headers = &collected.head.as_ref()?.headers;
    headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone())
}

async fn read(client: &TestClient, session: &str) -> (Session, Vec<Said>) {
    let (mut said, session) = (vec![], name(session));
    let read = client.client.session_messages(&session, (0, 0), PATIENCE, |message| {
        said.push(message);
        true
    });
    (read.await.unwrap(), said)
}

async fn texts(client: &TestClient, session: &str) -> Vec<String> {
    read(client, session).await.1.into_iter().map(|said| said.text).collect()
}

fn code(error: ClientError) -> FailureCode {
    match error {
        ClientError::Failed(failed) => failed.code,
        other => panic!("{other}"),
    }
}

/// What the provider was asked last, without the system's words.
fn conversation(provider: &FakeProvider) -> Vec<(String, String)> {
    let body = provider.last().json();
    let messages = body["messages"].as_array().unwrap().iter();
    let pair = |message: &Value| {
        (message["role"].as_str().unwrap().to_owned(), message["content"].as_str().unwrap().to_owned())
    };
    messages.map(pair).filter(|(role, _)| role != "system").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_on_with_what_was_said_on_any_device_and_at_any_provider() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "").await;
    let (laptop, desk) = (relay.client().await, relay.client().await);
    let first = laptop.send(asking(&laptop, "rome", "", "Where to?")).await;
    assert_eq!((header(&first, "belay-session-messages").as_deref(), first.end.is_some()), (Some("0"), true));
    assert_eq!(conversation(&provider), [("user".into(), "Where to?".into())]);
    let second = desk.send(asking(&desk, "rome", "claude", "And then?")).await;
    assert_eq!(header(&second, "belay-session-messages").as_deref(), Some("2"));
    assert_eq!(header(&second, "belay-session-left-out").as_deref(), Some("0"));
    let so_far = [("user".into(), "Where to?".into()), ("assistant".into(), first.text.clone())];
    assert_eq!(conversation(&provider), [&so_far[..], &[("user".into(), "And then?".into())]].concat());
    // An answer that is not streamed is kept all the same.
    let mut whole = asking(&desk, "rome", "", "And last?");
    whole.stream = false;
    let third = desk.send(whole).await;
    assert_eq!(conversation(&provider).len(), 5);
    let (session, said) = read(&laptop, "rome").await;
    let wanted = ["Where to?", &first.text, "And then?", &second.text, "And last?", &third.text];
    assert_eq!(said.iter().map(|said| said.text.as_str()).collect::<Vec<_>>(), wanted);
    assert!(said.iter().map(|said| said.message.number).eq(1..=6));
    assert_eq!(session.row.title, "Where to?");
    let ends = [first.end, second.end, third.end].map(|end| end.unwrap().cost);
    assert_eq!(session.row.cost, ends[0] + ends[1] + ends[2]);
    assert_eq!(said[3].message.model, "claude/claude");
    assert_eq!(said[3].message.cost, ends[1]);
    assert_ne!(said[0].message.device, said[2].message.device);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn context_and_model_of_a_session_go_with_its_requests() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "").await;
    let client = relay.client().await;
    let set = async |update: SessionUpdate| client.client.session_update(&update, PATIENCE).await.unwrap();
    let nothing = || SessionUpdate::nothing(name("s"));
    set(SessionUpdate { framing: Some("like a friend".into()), model: Some("claude".into()), ..nothing() }).await;
    let piece = SessionKnowledge { source: "notes.md".into(), relevance: Some(0.9), text: "it rains".into() };
    let knowledge = vec![piece.clone()];
    set(SessionUpdate { sets_knowledge: true, knowledge, ..nothing() }).await;
    let session =
        set(SessionUpdate { sets_constraints: true, constraints: vec!["no jargon".into()], ..nothing() }).await;
    assert_eq!((session.context.framing.as_str(), session.context.knowledge), ("like a friend", vec![piece]));
    assert_eq!(session.context.constraints, ["no jargon"]);
    client.send(asking(&client, "s", "", "Why?")).await;
    let body = provider.last().json();
    assert_eq!(provider.last().path, "/v1/messages", "the session's model");
    let system = body["system"].as_str().unwrap();
    for part in ["like a friend", "notes.md", "it rains", "no jargon"] {
        assert!(system.contains(part), "{part} is missing in {system}");
    }
    // What the request says itself comes before what the session says.
    let prompt =
        Prompt { framing: Some("like a judge".into()), constraints: vec!["one line".into()], ..Prompt::new("Why?") };
    let mut request = asking(&client, "s", "large", "");
    request.body = serde_json::to_vec(&prompt).unwrap().into();
    client.send(request).await;
    let body = provider.last().json();
    let system = body["messages"][0]["content"].as_str().unwrap();
    assert!(system.contains("like a judge") && !system.contains("like a friend"), "{system}");
    assert!(system.contains("- no jargon\n- one line"), "{system}");
    assert_eq!(body["model"], "large");
    let wrong = SessionUpdate { title: Some("a\u{7}b".into()), ..nothing() };
    assert_eq!(code(client.client.session_update(&wrong, PATIENCE).await.unwrap_err()), FailureCode::INVALID_REQUEST);
    for long in [
        SessionUpdate { framing: Some("x".repeat(70_000)), ..nothing() },
        SessionUpdate { title: Some("x".repeat(513)), ..nothing() },
        SessionUpdate { model: Some("x".repeat(513)), ..nothing() },
    ] {
        assert_eq!(code(client.client.session_update(&long, PATIENCE).await.unwrap_err()), FailureCode::LIMIT);
    }
    // The longest row there can be is one that a list can show.
    let longest = SessionUpdate {
        title: Some("x".repeat(512)),
        model: Some("y".repeat(512)),
        ..SessionUpdate::nothing(name(&"z".repeat(128)))
    };
    client.client.session_update(&longest, PATIENCE).await.unwrap();
    assert_eq!(client.client.session_list(false, String::new(), 0, PATIENCE).await.unwrap().0.len(), 2);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_long_conversation_the_oldest_is_left_out_and_that_is_told() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "").await;
    let client = relay.client().await;
    let long = "x".repeat(1500);
    for number in 0..20_u8 {
        let role = if number % 2 == 0 { SessionRole::USER } else { SessionRole::ASSISTANT };
        let id = (MessageId([number; 16]), role);
        let text = format!("{number} {long}");
        assert_eq!(client.client.session_add(&name("s"), id, text, PATIENCE).await.unwrap(), u64::from(number) + 1);
    }
    let counts = |collected: &Collected| {
        let number = |name| header(collected, name).unwrap().parse::<u64>().unwrap();
        (number("belay-session-messages"), number("belay-session-left-out"))
    };
    assert_eq!(counts(&client.send(asking(&client, "s", "large", "a")).await), (20, 0));
    // Its window of 3,000 tokens has room for two of these and the pair before, beside the answer.
    let small = client.send(asking(&client, "s", "small", "b")).await;
    assert_eq!(counts(&small), (4, 18));
    assert!(small.end.is_some());
    let sent = conversation(&provider);
    assert_eq!((sent[0].0.as_str(), sent.len()), ("user", 5));
    // As few as the caller wants.
    let mut request = asking(&client, "s", "large", "c");
    request.history_tokens = Some(0);
    assert_eq!(counts(&client.send(request).await), (0, 24));
    assert_eq!(conversation(&provider), [("user".into(), "c".into())]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_answer_is_marked_and_one_that_never_ran_leaves_nothing() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "").await;
    let client = relay.client().await;
    provider.push_script(Script { tokens: 10, cut_after: Some(4), ..Script::default() });
    let cut = client.send(asking(&client, "s", "", "one")).await;
    assert_eq!(cut.end.as_ref().map(|end| end.outcome), Some(Outcome::PROVIDER_FAILED));
    let said = read(&client, "s").await.1;
    assert_eq!((said[1].text.as_str(), said[1].message.outcome), (cut.text.as_str(), Outcome::PROVIDER_FAILED));
    assert!(!cut.text.is_empty());
    provider.push_script(Script::refusal(400, None));
    let refused = client.send(asking(&client, "s", "", "two")).await;
    assert_eq!(refused.failed.map(|failed| failed.code), Some(FailureCode::PROVIDER_REFUSED));
    assert_eq!(texts(&client, "s").await.len(), 2);
    // One that is cancelled keeps what came.
    provider.push_script(Script { endless: true, pace_ms: 2, ..Script::default() });
    let mut running = client.client.escalate(asking(&client, "s", "", "three"), PATIENCE).await.unwrap();
    for _ in 0..5 {
        running.next().await.unwrap();
    }
    drop(running);
    eventually("the cancelled answer is kept", async || texts(&client, "s").await.len() == 4).await;
    let said = read(&client, "s").await.1;
    assert_eq!((said[2].text.as_str(), said[3].message.outcome), ("three", Outcome::CANCELLED));
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_that_speak_at_once_lose_nothing_and_see_one_order() {
    let provider = FakeProvider::start().await.unwrap();
    provider.set_script(Script { tokens: 3, pace_ms: 1, ..Script::default() });
    let relay = start(&provider, "").await;
    let devices = [relay.client().await, relay.client().await];
    let mut running = tokio::task::JoinSet::new();
    for (number, device) in devices.iter().enumerate() {
        for turn in 0..10 {
            let (client, text) = (device.client.clone(), format!("device {number} turn {turn}"));
            let request = asking(device, "s", "", &text);
            running.spawn(async move {
                if turn % 2 == 0 {
                    client.escalate(request, PATIENCE).await.unwrap().collect().await.unwrap();
                } else {
                    let id = (client.message_id(), SessionRole::USER);
                    client.session_add(&name("s"), id, text, PATIENCE).await.unwrap();
                }
            });
        }
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    let (one, other) = (read(&devices[0], "s").await.1, read(&devices[1], "s").await.1);
    assert_eq!(one, other);
    assert_eq!(one.len(), 30);
    for (number, turn) in (0..2).flat_map(|number| (0..10).map(move |turn| (number, turn))) {
        let text = format!("device {number} turn {turn}");
        let at = one.iter().position(|said| said.text == text).expect("is there");
        if turn % 2 == 0 {
            let (asked, answered) = (&one[at].message, &one[at + 1].message);
            assert_eq!(asked.request_id, answered.request_id, "an answer follows its question");
            assert_eq!(answered.role, SessionRole::ASSISTANT);
        }
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_adds_nothing_and_is_the_same_request_however_the_session_has_grown() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "").await;
    let client = relay.client().await;
    let request = asking(&client, "s", "", "once");
    let first = client.send(request.clone()).await;
    client.send(asking(&client, "s", "", "more")).await;
    let again = client.send(request.clone()).await;
    assert_eq!(again.end, first.end);
    assert_eq!((provider.counts().requests, texts(&client, "s").await.len()), (2, 4));
    // In another session it is another request.
    let elsewhere = EscalationRequest { session: Some(name("t")), ..request };
    let failed = client.send(elsewhere).await.failed.expect("a conflict");
    assert_eq!(failed.code, FailureCode::CONFLICT);
    let id = (MessageId([9; 16]), SessionRole::USER);
    let big = "é".repeat(700_000);
    let number = client.client.session_add(&name("s"), id, big.clone(), PATIENCE).await.unwrap();
    assert_eq!(client.client.session_add(&name("s"), id, big.clone(), PATIENCE).await.unwrap(), number);
    assert_eq!(
        code(client.client.session_add(&name("s"), id, "x", PATIENCE).await.unwrap_err()),
        FailureCode::CONFLICT
    );
    assert_eq!(texts(&client, "s").await[4], big, "a long text is whole");
    let huge = vec![b'x'; (4 << 20) + 1];
    let refused = client.client.session_add(&name("s"), (MessageId([8; 16]), SessionRole::USER), huge, PATIENCE).await;
    assert_eq!(code(refused.unwrap_err()), FailureCode::LIMIT);
    // A request's own messages have ids that nobody else can take.
    let taken = client.client.session_add(&name("s"), (MessageId([0x80; 16]), SessionRole::USER), "x", PATIENCE).await;
    assert_eq!(code(taken.unwrap_err()), FailureCode::INVALID_REQUEST);
    assert!(read(&client, "s").await.1[..4].iter().all(|said| said.message.message_id.0[0] >= 0x80));
    let bytes = b"\xff\xfe".to_vec();
    let refused = client.client.session_add(&name("s"), (MessageId([7; 16]), SessionRole::USER), bytes, PATIENCE).await;
    assert_eq!(code(refused.unwrap_err()), FailureCode::INVALID_REQUEST);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_found_cleared_deleted_and_restored() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "").await;
    let client = relay.client().await;
    client.send(asking(&client, "rome", "", "A week in Rome?")).await;
    let sky = asking(&client, "sky", "", "Why is the sky blue?");
    let settled = client.send(sky.clone()).await.end.expect("settled");
    client.send(asking(&client, "tea", "", "Green or black tea?")).await;
    let list = async |deleted: bool, cursor: &str, limit: u32| {
        let (rows, next) = client.client.session_list(deleted, cursor.into(), limit, PATIENCE).await.unwrap();
        (rows.into_iter().map(|row| String::from(row.session)).collect::<Vec<_>>(), next)
    };
    let (first, next) = list(false, "", 2).await;
    assert_eq!(
        (first, list(false, &next, 2).await),
        (vec!["tea".into(), "sky".into()], (vec!["rome".into()], String::new()))
    );
    let wrong = client.client.session_list(false, "zz".into(), 1, PATIENCE).await;
    assert_eq!(code(wrong.unwrap_err()), FailureCode::INVALID_REQUEST);
    let search = async |words: &str| {
        let (hits, _) = client.client.session_search(words.into(), String::new(), 0, PATIENCE).await.unwrap();
        hits.into_iter().map(|hit| (String::from(hit.row.session), hit.message)).collect::<Vec<_>>()
    };
    assert_eq!(search("sky bl").await, [("sky".into(), 0), ("sky".into(), 1)]);
    let act = async |session: &str, deed| client.client.session_act(&name(session), deed, PATIENCE).await;
    act("sky", SessionDeed::DELETE).await.unwrap();
    assert!(search("sky bl").await.is_empty());
    assert_eq!(list(true, "", 0).await.0, ["sky"]);
    let asked = client.send(asking(&client, "sky", "", "And now?")).await;
    assert_eq!(asked.failed.map(|failed| failed.code), Some(FailureCode::DELETED));
    assert_eq!(code(client.client.session(&name("sky"), PATIENCE).await.unwrap_err()), FailureCode::DELETED);
    let again = client.send(sky.clone()).await;
    assert_eq!(again.end, Some(settled), "what was settled has its end for ever");
    assert_eq!(act("sky", SessionDeed::RESTORE).await.unwrap().row.messages, 2);
    assert_eq!(act("tea", SessionDeed::CLEAR).await.unwrap().row.messages, 0);
    assert_eq!(texts(&client, "tea").await, Vec::<String>::new());
    assert_eq!(code(act("none", SessionDeed::DELETE).await.unwrap_err()), FailureCode::NOT_FOUND);
    assert_eq!(code(act("tea", SessionDeed(77)).await.unwrap_err()), FailureCode::INVALID_REQUEST);
    // A body in a provider's own format brings its own conversation.
    let body = json!({"model": "large", "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let mut request = EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "large", body);
    request.session = Some(name("tea"));
    assert_eq!(client.send(request).await.failed.map(|failed| failed.code), Some(FailureCode::UNSUPPORTED));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_survive_a_restart_and_belong_to_their_tenant() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "").await;
    let client = relay.client().await;
    client.send(asking(&client, "secret plans", "", "Where is the treasure?")).await;
    let before = read(&client, "secret plans").await;
    let relay = relay.restart().await;
    assert_eq!(read(&client, "secret plans").await, before);
    relay.relay().admin().create_tenant(tenant("other")).await.unwrap();
    let stranger = relay.client_of("other").await;
    let theirs = stranger.client.session(&name("secret plans"), PATIENCE).await.unwrap_err();
    let nobodys = stranger.client.session(&name("secret flans"), PATIENCE).await.unwrap_err();
    assert_eq!(theirs.to_string().replace("plans", "flans"), nobodys.to_string());
    assert_eq!(code(theirs), FailureCode::NOT_FOUND);
    let found = stranger.client.session_search("treasure".into(), String::new(), 0, PATIENCE).await.unwrap();
    assert_eq!(found, (vec![], String::new()));
    assert_eq!(stranger.client.session_list(false, String::new(), 0, PATIENCE).await.unwrap().0, vec![]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_in_large_texts_holds_nobody_up() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "").await;
    let client = relay.client().await;
    for number in 0..3_u8 {
        let id = (MessageId([number; 16]), SessionRole::USER);
        client.client.session_add(&name("large"), id, "needle ".repeat(500_000), PATIENCE).await.unwrap();
    }
    let searching = client.client.session_search("needle".into(), String::new(), 0, PATIENCE);
    let (found, balance) = tokio::join!(searching, client.client.balance(PATIENCE));
    // A title and three messages.
    assert_eq!((found.unwrap().0.len(), balance.is_ok()), (4, true));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenants_sessions_take_is_bounded() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "[limits]\nsessions_mib = 1\nrequests_per_minute = 100000\n").await;
    let client = relay.client().await;
    let id = (MessageId([1; 16]), SessionRole::USER);
    client.client.session_add(&name("s"), id, "x".repeat(1 << 20), PATIENCE).await.unwrap();
    let more = client.client.session_add(&name("s"), (MessageId([2; 16]), SessionRole::USER), "y", PATIENCE).await;
    assert_eq!(code(more.unwrap_err()), FailureCode::LIMIT);
    let asked = client.send(asking(&client, "s", "", "why?")).await;
    assert_eq!(asked.failed.map(|failed| failed.code), Some(FailureCode::LIMIT));
    assert_eq!(provider.counts().requests, 0);
    client.client.session_act(&name("s"), SessionDeed::CLEAR, PATIENCE).await.unwrap();
    assert!(client.send(asking(&client, "s", "", "why?")).await.end.is_some());
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_bounded_and_what_is_not_kept_of_an_answer_is_said() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "").await;
    let client = relay.client().await;
    // Streamed, 25 tokens of 200,000 bytes; and whole.
    provider.push_script(Script { text: Some("x".repeat(200_000)), ..Script::tokens(25) });
    let streamed = client.send(asking(&client, "s", "", "much?")).await;
    assert_eq!(streamed.text.len(), 5_000_000, "its reader gets all of it");
    let body = json!({
        "choices": [{ "message": { "role": "assistant", "content": "é".repeat(2_500_000) }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 5, "completion_tokens": 7 },
    });
    provider.push_script(Script { body: Some(body.to_string()), ..Script::default() });
    let mut whole = asking(&client, "t", "", "much?");
    whole.stream = false;
    assert_eq!(client.send(whole).await.text.len(), 5_000_000);
    for session in ["s", "t"] {
        let kept = texts(&client, session).await.remove(1);
        let (text, words) = kept.split_at(4 << 20);
        assert_eq!(words, "\n[the rest of this answer is not kept]", "{session}");
        assert!(text.chars().all(|c| matches!(c, 'x' | 'é')));
    }
    let asked = client.send(asking(&client, "u", "", &"x".repeat(4 << 20))).await;
    assert_eq!(asked.failed.map(|failed| failed.code), Some(FailureCode::LIMIT));
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_bounds_the_history_that_goes_along() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = start(&provider, "[limits]\nsession_history_tokens = 40\nrequests_per_minute = 100000\n").await;
    let client = relay.client().await;
    for number in 1..=4_u8 {
        let role = if number % 2 == 1 { SessionRole::USER } else { SessionRole::ASSISTANT };
        client.client.session_add(&name("s"), (MessageId([number; 16]), role), "x".repeat(30), PATIENCE).await.unwrap();
    }
    let mut request = asking(&client, "s", "", "why?");
    // Wanting more than there may be does not help.
    request.history_tokens = Some(1_000_000);
    let asked = client.send(request).await;
    assert_eq!(header(&asked, "belay-session-messages").as_deref(), Some("2"));
    assert_eq!(header(&asked, "belay-session-left-out").as_deref(), Some("2"));
    relay.stop().await;
}
