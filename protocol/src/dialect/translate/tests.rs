//! What is carried over, what is refused, and that nothing is lost on the way there and back.

mod order;

use super::asked::{Choice, Image, Part, Role, Tool, Turn};
use super::said::{Block, Delta, Said, Stop, Usage, Writer};
use super::*;
use proptest::prelude::*;

const SENDING: Sending<'_> = Sending { model: "m", cap: Some(9), cap_field: "max_completion_tokens" };

fn carried(from: Dialect, to: Dialect, body: &Value) -> Value {
    let asked = request(from, to, body.to_string().as_bytes()).expect("carried");
    serde_json::from_slice(&write(&asked, to, &SENDING)).expect("json")
}

fn refusal(from: Dialect, to: Dialect, body: &Value) -> String {
    match request(from, to, body.to_string().as_bytes()) {
        Err(error) => error.to_string(),
        Ok(asked) => panic!("carried: {body}: {asked:?}"),
    }
}

#[test]
fn a_chat_becomes_messages() {
    let tool = json!({ "type": "function", "function": { "name": "f", "description": "d", "parameters": { "a": 1 } } });
    let call = json!({ "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } });
    let body = json!({
        "model": "x", "stream": true, "max_tokens": 50, "temperature": 0.5, "stop": "END", "user": "u", "n": 1,
        "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false, "seed": null,
        "messages": [
            { "role": "system", "content": "s" },
            { "role": "user", "content": [
                { "type": "text", "text": "t" },
                { "type": "image_url", "image_url": { "url": "data:image/png;base64,aGk=" } },
            ] },
            { "role": "assistant", "content": null, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "c1", "content": "r" },
            { "role": "user", "content": "more" },
        ],
    });
    let source = json!({ "type": "base64", "media_type": "image/png", "data": "aGk=" });
    let expected = json!({
        "model": "m", "max_tokens": 9, "stream": true, "temperature": 0.5, "stop_sequences": ["END"],
        "metadata": { "user_id": "u" }, "system": [{ "type": "text", "text": "s" }],
        "tools": [{ "name": "f", "description": "d", "input_schema": { "a": 1 } }],
        "tool_choice": { "type": "any", "disable_parallel_tool_use": true },
        "messages": [
            { "role": "user", "content": [{ "type": "text", "text": "t" }, { "type": "image", "source": source }] },
            { "role": "assistant", "content": [{ "type": "tool_use", "id": "c1", "name": "f", "input": { "x": 1 } }] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "c1", "content": "r" },
                { "type": "text", "text": "more" },
            ] },
        ],
    });
    assert_eq!(carried(Dialect::OPENAI_CHAT, Dialect::ANTHROPIC, &body), expected);
}

#[test]
fn messages_become_a_chat() {
    let body = json!({
        "model": "x", "stream": true, "max_tokens": 50, "stop_sequences": ["END"], "metadata": { "user_id": "u" },
        "system": [{ "type": "text", "text": "s", "cache_control": { "type": "ephemeral" } }],
        "thinking": { "type": "enabled", "budget_tokens": 20_000 },
        "tools": [{ "name": "f", "input_schema": { "a": 1 } }],
        "tool_choice": { "type": "tool", "name": "f", "disable_parallel_tool_use": true },
        "messages": [
            { "role": "user", "content": "t" },
            { "role": "assistant", "content": [
                { "type": "text", "text": "look" },
                { "type": "tool_use", "id": "c1", "name": "f", "input": { "x": 1 } },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "c1", "content": [{ "type": "text", "text": "r" }], "is_error": true },
                { "type": "image", "source": { "type": "url", "url": "https://x/y.png" } },
            ] },
        ],
    });
    let call = json!({ "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } });
    let expected = json!({
        "model": "m", "max_completion_tokens": 9, "stream": true, "stream_options": { "include_usage": true },
        "stop": ["END"], "user": "u", "reasoning_effort": "high", "parallel_tool_calls": false,
        "tools": [{ "type": "function", "function": { "name": "f", "parameters": { "a": 1 } } }],
        "tool_choice": { "type": "function", "function": { "name": "f" } },
        "messages": [
            { "role": "system", "content": "s" },
            { "role": "user", "content": "t" },
            { "role": "assistant", "content": "look", "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "c1", "content": "Error: r" },
            { "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "https://x/y.png" } }] },
        ],
    });
    assert_eq!(carried(Dialect::ANTHROPIC, Dialect::OPENAI_CHAT, &body), expected);
}

#[test]
fn responses_become_either() {
    let body = json!({
        "model": "x", "instructions": "s", "store": false, "include": [], "text": { "format": { "type": "text" } },
        "tools": [{ "type": "function", "name": "f", "parameters": { "a": 1 }, "strict": true }],
        "input": [
            { "role": "user", "content": [
                { "type": "input_text", "text": "t" },
                { "type": "input_image", "image_url": "https://x/y.png", "detail": "auto" },
            ] },
            { "type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed" },
            { "type": "function_call_output", "call_id": "c1", "output": "r" },
        ],
    });
    let chat = carried(Dialect::OPENAI_RESPONSES, Dialect::OPENAI_CHAT, &body);
    assert_eq!(chat["messages"][0], json!({ "role": "system", "content": "s" }));
    assert_eq!(chat["messages"][1]["content"][1]["image_url"]["url"], "https://x/y.png");
    assert_eq!(chat["messages"][2]["tool_calls"][0]["id"], "c1");
    assert_eq!(chat["messages"][3], json!({ "role": "tool", "tool_call_id": "c1", "content": "r" }));
    assert_eq!(chat["tools"][0]["function"], json!({ "name": "f", "parameters": { "a": 1 }, "strict": true }));
    let claude = carried(Dialect::OPENAI_RESPONSES, Dialect::ANTHROPIC, &body);
    assert_eq!(claude["messages"][2]["content"][0]["type"], "tool_result");
    let as_chat = responses_as_chat("gpt", body.to_string().as_bytes()).expect("carried");
    assert_eq!(serde_json::from_slice::<Value>(&as_chat).expect("json")["model"], "gpt");
    assert!(is_responses_body(body.to_string().as_bytes()));
    for other in [json!({ "messages": [], "input": "x" }), json!({ "messages": [] }), json!({}), json!([])] {
        assert!(!is_responses_body(other.to_string().as_bytes()), "{other}");
    }
}

#[test]
fn what_cannot_be_carried_is_named() {
    use Dialect as D;
    let chat = |more: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "t" }] });
        body.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        body
    };
    for (field, more) in [
        ("of_tomorrow", json!({ "of_tomorrow": 1 })),
        ("seed", json!({ "seed": 1 })),
        ("n", json!({ "n": 2 })),
        ("logprobs", json!({ "logprobs": true })),
        ("response_format", json!({ "response_format": { "type": "json_object" } })),
        ("temperature", json!({ "temperature": 1.5 })),
        ("reasoning_effort", json!({ "reasoning_effort": "low" })),
        ("tools[0].type", json!({ "tools": [{ "type": "custom", "custom": { "name": "x" } }] })),
        (
            "tools[0].function.of_tomorrow",
            json!({ "tools": [{ "type": "function", "function": { "name": "x", "of_tomorrow": 1 } }] }),
        ),
        ("messages[0].name", json!({ "messages": [{ "role": "user", "content": "t", "name": "n" }] })),
        (
            "messages[0].content[0].type",
            json!({ "messages": [{ "role": "user", "content": [{ "type": "input_audio", "input_audio": {} }] }] }),
        ),
        (
            "messages[1].role",
            json!({ "messages": [{ "role": "user", "content": "t" }, { "role": "system", "content": "s" }] }),
        ),
    ] {
        let words = refusal(D::OPENAI_CHAT, D::ANTHROPIC, &chat(more));
        assert!(
            words.starts_with(&format!("{field} cannot be carried over to a model of the anthropic API")),
            "{words}"
        );
    }
    for (field, more) in [
        ("top_k", json!({ "top_k": 4 })),
        ("of_tomorrow", json!({ "of_tomorrow": 1 })),
        ("tools[0].type", json!({ "tools": [{ "type": "bash_20250124", "name": "bash" }] })),
        ("metadata.more", json!({ "metadata": { "more": 1 } })),
        ("stop_sequences", json!({ "stop_sequences": ["a", "b", "c", "d", "e"] })),
        (
            "messages[0].content[0].type",
            json!({ "messages": [{ "role": "user", "content": [{ "type": "document", "source": {} }] }] }),
        ),
        (
            "messages[0].content[0].type",
            json!({ "messages": [{ "role": "assistant", "content": [{ "type": "thinking", "thinking": "x", "signature": "s" }] }] }),
        ),
        (
            "messages[0].content[0].content[0].type",
            json!({ "messages": [{ "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "c", "content": [{ "type": "image" }] }] }] }),
        ),
    ] {
        let words = refusal(D::ANTHROPIC, D::OPENAI_CHAT, &chat(more));
        assert!(
            words.starts_with(&format!("{field} cannot be carried over to a model of the openai_chat API")),
            "{words}"
        );
    }
    for (field, body) in [
        ("previous_response_id", json!({ "input": "t", "previous_response_id": "r" })),
        ("store", json!({ "input": "t", "store": true })),
        ("reasoning.effort", json!({ "input": "t", "reasoning": { "effort": "low" } })),
        ("text.format", json!({ "input": "t", "text": { "format": { "type": "json_object" } } })),
        ("input[0].type", json!({ "input": [{ "type": "item_reference", "id": "x" }] })),
        (
            "input[0].content[0].type",
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_file", "file_id": "x" }] }] }),
        ),
    ] {
        let words = refusal(D::OPENAI_RESPONSES, D::ANTHROPIC, &body);
        assert!(words.starts_with(&format!("{field} cannot be carried")), "{words}");
    }
    assert_eq!(refusal(D::ANTHROPIC, D::OPENAI_CHAT, &json!({ "messages": 7 })), "messages must be a list");
    assert!(matches!(request(D::OPENAI_CHAT, D::OPENAI_CHAT, b"{}"), Err(Untranslatable::Pair { .. })));
    assert!(request(D::OPENAI_CHAT, D::ANTHROPIC, b"nothing").is_err());
}

#[test]
fn errors_keep_their_words_and_take_the_callers_form() {
    let answers = Answers::new(Dialect::ANTHROPIC, Dialect::OPENAI_CHAT, "m", 1, true);
    let body = json!({ "type": "error", "error": { "type": "overloaded_error", "message": "busy" } });
    let told: Value = serde_json::from_slice(&answers.refusal(529, body.to_string().as_bytes())).expect("json");
    assert_eq!(told["error"]["message"], "busy");
    let told: Value = serde_json::from_slice(&answers.refusal(500, b"<html>")).expect("json");
    assert_eq!((&told["error"]["message"], &told["error"]["type"]), (&json!("<html>"), &json!("api_error")));
    let mut answers = Answers::new(Dialect::OPENAI_CHAT, Dialect::ANTHROPIC, "m", 1, true);
    let events = answers.event(b"data: {\"error\":{\"type\":\"server_error\",\"message\":\"down\"}}\n\n");
    assert_eq!(
        events,
        [Bytes::from_static(
            b"event: error\ndata: {\"error\":{\"message\":\"down\",\"type\":\"server_error\"},\"type\":\"error\"}\n\n"
        )]
    );
    assert!(answers.event(b"data: [DONE]\n\n").is_empty(), "it is over");
    assert!(answers.whole(b"{}").is_err());
}

fn word() -> impl Strategy<Value = String> {
    "[a-zé🪢\"\\\\ \n]{1,12}"
}

fn part(role: Role) -> BoxedStrategy<Part> {
    let text = word().prop_map(Part::Text);
    let image = prop_oneof![
        Just(Image::Url("https://x/y.png".into())),
        Just(Image::Base64 { media_type: "image/png".into(), data: "aGk=".into() }),
    ];
    match role {
        Role::User => prop_oneof![text, image.prop_map(Part::Image)].boxed(),
        Role::Assistant => text.boxed(),
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let turn = prop_oneof![Just(Role::User), Just(Role::Assistant)]
        .prop_flat_map(|role| proptest::collection::vec(part(role), 1..4).prop_map(move |parts| Turn { role, parts }));
    let tool = (word(), proptest::option::of(word()), proptest::option::of(any::<bool>())).prop_map(
        |(name, description, strict)| Tool { name, description, schema: json!({ "type": "object" }), strict },
    );
    let choice = prop_oneof![Just(Choice::Auto), Just(Choice::None), Just(Choice::Any), word().prop_map(Choice::Tool)];
    (
        proptest::collection::vec(turn, 1..6),
        proptest::collection::vec(tool, 1..3),
        proptest::option::of(choice),
        proptest::collection::vec(word(), 0..4),
        any::<bool>(),
        proptest::option::of(word()),
    )
        .prop_map(|(turns, tools, choice, stop, stream, user)| {
            let mut asked = Asked { tools, choice, stop, stream, user, max_output: Some(9), ..Asked::default() };
            asked.system.push("s".into());
            turns.into_iter().for_each(|turn| asked.push(turn.role, turn.parts));
            // A call and its answer, as they stand in every long conversation.
            asked.push(
                Role::Assistant,
                vec![Part::Call { id: "c".into(), name: "f".into(), arguments: "{\"x\":1}".into() }],
            );
            asked.push(Role::User, vec![Part::Result { id: "c".into(), text: "r".into(), is_error: false }]);
            asked
        })
}

fn delta() -> impl Strategy<Value = Delta> {
    prop_oneof![
        4 => word().prop_map(Delta::Text),
        1 => (word(), word()).prop_map(|(id, name)| Delta::Call { key: 0, id, name }),
        1 => Just(Delta::Ping),
    ]
}

/// Reads what was written.
fn read_back(dialect: Dialect, events: &[Bytes]) -> Said {
    let mut reader = match dialect {
        Dialect::ANTHROPIC => Reader::Anthropic(anthropic::Reader::default()),
        _ => Reader::Chat(chat::Reader::default()),
    };
    let mut said = Said::default();
    for event in events {
        if let Ok(data) = serde_json::from_slice::<Value>(&SseEvent::parse(event).data) {
            reader.event(&data).iter().for_each(|delta| {
                said.add(delta);
            });
        }
    }
    said
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_it_was_meant(asked in asked()) {
        for (dialect, other) in [(Dialect::OPENAI_CHAT, Dialect::ANTHROPIC), (Dialect::ANTHROPIC, Dialect::OPENAI_CHAT)] {
            let written = write(&asked, dialect, &SENDING);
            let read = request(dialect, other, &written).expect("its own form");
            // Chat joins the text of a turn's parts no more than messages do; system blocks it does.
            prop_assert_eq!(&read, &asked, "{:?}", String::from_utf8_lossy(&written));
        }
    }

    #[test]
    fn a_stream_says_what_the_pieces_said_and_so_does_the_whole(
        pieces in proptest::collection::vec(delta(), 0..20),
        stop in prop_oneof![Just(Stop::End), Just(Stop::Length), Just(Stop::Calls)],
    ) {
        let mut deltas = vec![Delta::Begin("id1".into())];
        for (key, piece) in (0..).zip(pieces) {
            let Delta::Call { id, name, .. } = piece else {
                deltas.push(piece);
                continue;
            };
            // Ids are the calls' own.
            deltas.push(Delta::Call { key, id: format!("{id}{key}"), name });
            deltas.extend(["{\"x\":", "1}"].map(|part| Delta::Arguments { key, more: part.into() }));
            deltas.push(Delta::CallEnd { key });
        }
        let usage = Usage { input: 5, cache_read: 3, output: 7, ..Usage::default() };
        deltas.extend([Delta::Usage(usage), Delta::Stop(stop)]);
        let mut expected = Said::default();
        deltas.iter().for_each(|delta| { expected.add(delta); });
        for dialect in [Dialect::OPENAI_CHAT, Dialect::ANTHROPIC] {
            let mut writer = Writer::new(dialect, "m", 1, true);
            let mut events = writer.events(deltas.clone());
            events.extend(writer.events(vec![Delta::Done]));
            let read = read_back(dialect, &events);
            // Chat has one text, whatever stands between its pieces.
            let shape = |said: &Said| -> (String, Vec<Block>) {
                let text = said.blocks.iter().filter_map(|block| match block { Block::Text(text) => Some(text.as_str()), _ => None }).collect();
                (text, said.blocks.iter().filter(|block| matches!(block, Block::Call { .. })).cloned().collect())
            };
            prop_assert_eq!(shape(&read), shape(&expected));
            prop_assert_eq!((&read.id, read.stop, read.usage), (&expected.id, expected.stop, expected.usage));
            if dialect == Dialect::ANTHROPIC {
                prop_assert_eq!(&read.blocks, &expected.blocks);
                let opened = events.iter().filter(|event| event.starts_with(b"event: content_block_start")).count();
                let closed = events.iter().filter(|event| event.starts_with(b"event: content_block_stop")).count();
                prop_assert_eq!((opened, closed), (expected.blocks.len(), expected.blocks.len()));
            }
            let whole = Writer::new(dialect, "m", 1, true).whole(deltas.clone());
            let again = match dialect { Dialect::ANTHROPIC => anthropic::whole(&whole), _ => chat::whole(&whole) };
            let mut said = Said::default();
            again.expect("its own form").iter().for_each(|delta| { said.add(delta); });
            prop_assert_eq!(shape(&said), shape(&expected));
        }
        // Events of responses are numbered without a gap, and the last one has everything.
        let mut writer = Writer::new(Dialect::OPENAI_RESPONSES, "m", 1, true);
        let mut events = writer.events(deltas.clone());
        events.extend(writer.events(vec![Delta::Done]));
        let numbered: Vec<Value> = events.iter().filter_map(|event| serde_json::from_slice(&SseEvent::parse(event).data).ok()).collect();
        for (number, event) in numbered.iter().enumerate() {
            prop_assert_eq!(&event["sequence_number"], &json!(number));
        }
        let last = &numbered[numbered.len() - 1]["response"];
        prop_assert_eq!(last["output"].as_array().map(Vec::len), Some(expected.blocks.len()));
        prop_assert_eq!(&last["usage"]["input_tokens"], &json!(8));
    }

    #[test]
    fn no_event_makes_a_reader_panic(text in "\\PC{0,200}", kind in "[a-z_]{0,20}") {
        for (provider, caller) in [(Dialect::ANTHROPIC, Dialect::OPENAI_CHAT), (Dialect::OPENAI_CHAT, Dialect::OPENAI_RESPONSES)] {
            let mut answers = Answers::new(provider, caller, "m", 1, false);
            answers.event(format!("data: {text}\n\n").as_bytes());
            for data in [json!({ "type": kind, "delta": text }), json!({ "choices": text }), json!({ "choices": [{ "delta": kind }] })] {
                answers.event(format!("data: {data}\n\n").as_bytes());
                let _ = answers.whole(data.to_string().as_bytes());
            }
        }
    }
}
