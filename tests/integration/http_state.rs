//! Conversations and items over HTTP, and what another tenant has.

use belay_tests::http::{HTTP, HttpCaller, SCOPES};
use belay_tests::relay::{TestRelay, tenant};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_kept_and_goes_on() {
    let relay = TestRelay::start(HTTP).await;
    let caller = relay.caller().await;
    let post = async |path: &str, body: Value| HttpCaller::good(caller.post(path, &body)).await;
    let add = json!({ "session": "work", "role": "user", "content": "Where is the key?", "message_id": "m-1" });
    let added = post("/v1/sessions/add-message", add.clone()).await;
    assert_eq!((&added["number"], &added["message_id"]), (&json!(1), &json!("m-1")));
    assert_eq!(post("/v1/sessions/add-message", add).await, added, "it is there once");
    let long = "x".repeat(300_000);
    let answer = json!({ "session_id": "work", "role": "assistant", "content": long, "model": "demo/demo-1" });
    assert_eq!(post("/v1/sessions/add-message", answer).await["number"], 2);
    let context = json!({
        "session": "work", "model_preference": "demo",
        "context": { "framing": "short", "knowledge": ["k", { "source": "s", "text": "t" }], "constraints": ["c"] },
    });
    let updated = post("/v1/sessions/update-context", context).await;
    assert_eq!(updated["context"]["framing"], "short", "{updated}");
    // What is not named stays.
    let updated = post("/v1/sessions/update-context", json!({ "session": "work", "title": "Keys" })).await;
    assert_eq!((&updated["title"], &updated["context"]["constraints"]), (&json!("Keys"), &json!(["c"])));
    post("/v1/escalate", json!({ "query": "and now?", "session_id": "work" })).await;
    let session = HttpCaller::good(caller.get("/v1/sessions/get?session=work")).await;
    let messages = session["said"].as_array().unwrap();
    assert_eq!(messages.len(), 4);
    assert_eq!(messages[1]["text"].as_str().unwrap().len(), 300_000, "{}", messages[0]);
    assert_eq!(session["next"], Value::Null);
    let last = HttpCaller::good(caller.get("/v1/sessions/get?session=work&last=1")).await;
    assert_eq!(last["said"][0], messages[3]);
    let listed = HttpCaller::good(caller.get("/v1/sessions/list")).await;
    assert_eq!(listed["sessions"][0]["session"], "work");
    let found = HttpCaller::good(caller.get("/v1/sessions/list?query=where%20key")).await;
    assert_eq!(found["sessions"][0]["snippet"], "Where is the key?");
    let renamed = post("/v1/sessions/rename", json!({ "session": "work", "title": "Doors" })).await;
    assert_eq!(renamed["title"], "Doors");
    let (status, text) = HttpCaller::text(caller.get("/v1/sessions/export?session=work")).await;
    assert!(status == 200 && text.starts_with("# Doors\n"), "{status} {text:.100}");
    let exported = HttpCaller::good(caller.get("/v1/sessions/export?session=work&format=json")).await;
    assert_eq!(exported["said"].as_array().unwrap().len(), 4);
    post("/v1/sessions/delete", json!({ "session": "work" })).await;
    let (status, gone) = HttpCaller::json(caller.get("/v1/sessions/get?session=work")).await;
    assert_eq!((status, &gone["error"]["code"]), (410, &json!("deleted")));
    assert_eq!(HttpCaller::good(caller.get("/v1/sessions/list?deleted=true")).await["sessions"][0]["session"], "work");
    post("/v1/sessions/restore", json!({ "session": "work" })).await;
    assert_eq!(post("/v1/sessions/clear", json!({ "session": "work" })).await["title"], "Doors");
    let cleared = HttpCaller::good(caller.get("/v1/sessions/get?session=work")).await;
    assert_eq!(cleared["said"], json!([]));
    for (path, body) in [
        ("/v1/sessions/rename", json!({ "session": "none", "title": "x" })),
        ("/v1/sessions/delete", json!({ "session": "none" })),
        ("/v1/sessions/clear", json!({ "session": "none" })),
    ] {
        let (status, refused) = HttpCaller::json(caller.post(path, &body)).await;
        assert_eq!((status, &refused["error"]["code"]), (404, &json!("not_found")), "{path}");
    }
    let bad = json!({ "session": "work", "role": "king", "content": "x" });
    assert_eq!(HttpCaller::json(caller.post("/v1/sessions/add-message", &bad)).await.0, 400);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn items_are_pushed_and_pulled_and_nothing_is_overwritten() {
    let relay = TestRelay::start(HTTP).await;
    let caller = relay.caller().await;
    let push = async |kind: &str, item: Value| {
        let answer = HttpCaller::good(caller.post(&format!("/v1/sync/{kind}/push"), &json!({ "items": [item] }))).await;
        answer["results"][0].clone()
    };
    let first =
        push("knowledge", json!({ "key": "notes/plan.md", "content": "one", "revision": "r1", "modified_ms": 5 }))
            .await;
    assert_eq!(first["outcome"], "accepted", "{first}");
    assert_eq!(
        push("knowledge", json!({ "key": "notes/plan.md", "content": "one", "revision": "r1", "modified_ms": 5 }))
            .await,
        first
    );
    let second =
        push("knowledge", json!({ "key": "notes/plan.md", "content": "two", "parent": first["revision"] })).await;
    assert_eq!(second["outcome"], "accepted");
    // Made from what is no longer there.
    let stale =
        push("knowledge", json!({ "key": "notes/plan.md", "content": "three", "parent": first["revision"] })).await;
    assert_eq!(stale["outcome"], "conflict");
    let copy = stale["copy"].as_str().unwrap().to_owned();
    let pulled = HttpCaller::good(caller.get("/v1/sync/knowledge/pull")).await;
    let item = |key: &str| {
        let items = pulled["items"].as_array().unwrap();
        items.iter().find(|item| item["key"] == key).unwrap_or_else(|| panic!("{key}: {pulled}")).clone()
    };
    assert_eq!((&item("notes/plan.md")["content"], &item(&copy)["content"]), (&json!("two"), &json!("three")));
    assert_eq!(item(&copy)["conflict_of"], "notes/plan.md");
    // Large content, as parts; and what is no text.
    let large = "words that come again and again, ".repeat(60_000);
    let pushed = push("knowledge", json!({ "key": "large.txt", "content": large })).await;
    assert_eq!(pushed["outcome"], "accepted", "{pushed}");
    let content = async |revision: &Value| {
        let request = caller.get(&format!("/v1/sync/content?revision={}", revision.as_str().unwrap()));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        (answer.content_length(), answer.bytes().await.unwrap())
    };
    let (length, bytes) = content(&pushed["revision"]).await;
    assert_eq!((length, &bytes[..]), (Some(large.len() as u64), large.as_bytes()));
    let binary = push("knowledge", json!({ "key": "b.bin", "content_base64": "/wD/" })).await;
    assert_eq!(&content(&binary["revision"]).await.1[..], &[0xff, 0, 0xff]);
    // Settings by key.
    push("settings", json!({ "key": "theme", "value": { "dark": true } })).await;
    let settings = HttpCaller::good(caller.get("/v1/sync/settings/pull")).await;
    assert_eq!(settings["items"].as_array().unwrap().len(), 1);
    assert_eq!(settings["items"][0]["value"], json!({ "dark": true }));
    // Only what is new after a cursor.
    let cursor = pulled["cursor"].as_str().unwrap();
    let news = HttpCaller::good(caller.get(&format!("/v1/sync/knowledge/pull?cursor={cursor}"))).await;
    let keys: Vec<&str> = news["items"].as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["large.txt", "b.bin"]);
    assert_eq!((&news["items"][0]["is_large"], &news["items"][1]["content_base64"]), (&json!(true), &json!("/wD/")));
    let one = HttpCaller::good(caller.get("/v1/sync/knowledge/pull?limit=1")).await;
    assert_eq!((one["items"].as_array().unwrap().len(), &one["has_more"]), (1, &json!(true)));
    // History is what conversations say.
    let said = json!({ "key": "talk", "messages": [{ "message_id": "1", "role": "user", "content": "hi" }] });
    assert_eq!(push("history", said.clone()).await["number"], 1);
    assert_eq!(push("history", said).await["number"], 1);
    assert_eq!(HttpCaller::good(caller.get("/v1/sync/history/pull")).await["items"][0]["key"], "talk");
    let gone = push("knowledge", json!({ "key": "b.bin", "deleted": true, "parent": binary["revision"] })).await;
    assert_eq!(gone["outcome"], "accepted");
    let status = HttpCaller::good(caller.get("/v1/sync/status")).await;
    let documents = status["kinds"].as_array().unwrap().iter().find(|kind| kind["kind"] == "knowledge").unwrap();
    assert_eq!((&documents["items"], &documents["conflicts"]), (&json!(3), &json!(1)), "{status}");
    // A computer of the tenant has them by its tunnel.
    let client = relay.client().await;
    let listed = client.client.sync_status(belay_tests::relay::PATIENCE).await.unwrap();
    assert!(listed.1.used > 0);
    for (item, part) in [
        (json!({ "key": "../x", "content": "x" }), "leads out of its folder"),
        (json!({ "key": "x" }), "name one of content"),
        (json!({ "key": "x", "content": "x", "revision": "r" }), "name modified_ms"),
        (json!({ "key": "x", "content": "x", "deleted": true }), "name one of content"),
        (json!({ "key": "x", "content_base64": "%" }), "not base64"),
        (json!({ "key": "x", "content": "x", "parent": "zz" }), "32 hexadecimal digits"),
        (json!({ "key": "x", "value": 1 }), "only settings have a value"),
    ] {
        let refused = push("knowledge", item).await;
        assert_eq!(refused["outcome"], "refused");
        assert!(refused["error"].as_str().unwrap().contains(part), "{refused}");
    }
    assert_eq!(HttpCaller::json(caller.get("/v1/sync/colours/pull")).await.0, 404);
    let pickle = push("lora", json!({ "key": "mine", "content_base64": "gASV", "meta": {} })).await;
    assert_eq!(pickle["outcome"], "refused", "{pickle}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_had_by_one() {
    let relay = TestRelay::start(HTTP).await;
    let (a, b) = (relay.caller().await, relay.caller().await);
    let locked = HttpCaller::good(a.post("/v1/sync/lock", &json!({ "key": "index" }))).await;
    let (status, refused) = HttpCaller::json(b.post("/v1/sync/lock", &json!({ "key": "index" }))).await;
    assert_eq!(status, 409, "{refused}");
    assert!(refused["error"]["retry_after_ms"].as_u64().unwrap() > 0);
    let again = json!({ "key": "index", "token": locked["token"] });
    assert_eq!(HttpCaller::good(a.post("/v1/sync/lock", &again)).await["fence"], locked["fence"]);
    let wrong = json!({ "key": "index", "token": "00".repeat(16) });
    assert_eq!(HttpCaller::json(b.post("/v1/sync/unlock", &wrong)).await.0, 404);
    assert_eq!(HttpCaller::good(a.post("/v1/sync/unlock", &again)).await["was_expired"], false);
    HttpCaller::good(b.post("/v1/sync/lock", &json!({ "key": "index" }))).await;
    relay.stop().await;
}

/// Everything that can be asked about what another tenant has, by its names.
fn questions(revision: &str, token: &str) -> Vec<(&'static str, String, Value)> {
    let get = |path: String| ("GET", path, Value::Null);
    let post = |path: &str, body: Value| ("POST", path.to_owned(), body);
    let mut all = vec![
        get("/v1/billing/balance".into()),
        get("/v1/billing/usage?by=model".into()),
        get("/v1/billing/statement".into()),
        get("/v1/usage?by=device".into()),
        get("/v1/sessions/list".into()),
        get("/v1/sessions/list?query=secret".into()),
        get("/v1/sessions/get?session=secret".into()),
        get("/v1/sessions/export?session=secret".into()),
        get(format!("/v1/sync/content?revision={revision}")),
        post("/v1/sessions/rename", json!({ "session": "secret", "title": "x" })),
        post("/v1/sessions/delete", json!({ "session": "secret" })),
        post("/v1/sessions/restore", json!({ "session": "secret" })),
        post("/v1/sessions/clear", json!({ "session": "secret" })),
        post("/v1/sync/unlock", json!({ "key": "secret", "token": token })),
        post("/v1/sync/knowledge/push", json!({ "items": [{ "key": "x", "content": "../", "parent": "zz" }] })),
    ];
    all.extend(["settings", "knowledge", "lora", "history"].map(|kind| get(format!("/v1/sync/{kind}/pull?cursor="))));
    all
}

async fn ask(caller: &HttpCaller, (method, path, body): &(&'static str, String, Value)) -> (u16, String) {
    let request = if *method == "GET" { caller.get(path) } else { caller.post(path, body) };
    let (status, text) = HttpCaller::text(request).await;
    // A cursor has random numbers of its tenant's file in it, and nothing else.
    let mut json: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    if json.get("cursor").is_some_and(Value::is_string) {
        json["cursor"] = Value::Null;
    }
    (status, json.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_tenant_has_is_not_there() {
    let relay = TestRelay::start(HTTP).await;
    relay.relay().admin().create_tenant(tenant("other")).await.unwrap();
    let (has, other) = (relay.caller().await, relay.caller_of("other", &SCOPES).await);
    let (revision, token) = ("ab".repeat(16), "cd".repeat(16));
    let questions = questions(&revision, &token);
    let mut before = vec![];
    for question in &questions {
        before.push(ask(&other, question).await);
    }
    HttpCaller::good(has.post("/v1/escalate", &json!({ "query": "the secret", "session_id": "secret" }))).await;
    let items = json!({ "items": [{ "key": "secret", "content": "secret", "revision": revision, "modified_ms": 1 }] });
    HttpCaller::good(has.post("/v1/sync/knowledge/push", &items)).await;
    let setting = json!({ "items": [{ "key": "secret", "value": "secret" }] });
    HttpCaller::good(has.post("/v1/sync/settings/push", &setting)).await;
    HttpCaller::good(has.post("/v1/sync/lock", &json!({ "key": "secret", "token": token }))).await;
    for (question, before) in questions.iter().zip(before) {
        assert_eq!(ask(&other, question).await, before, "{question:?}");
    }
    // The same request id is another request.
    let asked = json!({ "query": "hi", "request_id": "r" });
    HttpCaller::good(has.post("/v1/escalate", &asked)).await;
    let (status, refused) = HttpCaller::json(other.post("/v1/escalate", &asked)).await;
    assert_eq!((status, &refused["error"]["code"]), (402, &json!("payment_required")));
    relay.verify().await;
    relay.stop().await;
}
