//! What providers send in another order than a writer can write it, or cut in half, or leave out.

use super::*;

/// What a caller sees of a provider's events.
fn seen(provider: Dialect, caller: Dialect, events: &[Value]) -> Vec<Value> {
    let mut answers = Answers::new(provider, caller, "m", 1, true);
    let one = |event: &Value| answers.event(format!("data: {event}\n\n").as_bytes());
    let mut out: Vec<Bytes> = events.iter().flat_map(one).collect();
    out.extend(answers.end());
    assert!(answers.end().is_empty(), "it ends once");
    out.iter().filter_map(|event| serde_json::from_slice(&SseEvent::parse(event).data).ok()).collect()
}

/// The blocks of a message's events: id, name, and what they say.
fn blocks(events: &[Value]) -> Vec<(String, String, String)> {
    let mut found: Vec<(String, String, String)> = vec![];
    for event in events {
        match event["type"].as_str() {
            Some("content_block_start") => {
                let block = &event["content_block"];
                assert_eq!(event["index"], found.len());
                let text = |name: &str| block[name].as_str().unwrap_or_default().to_owned();
                found.push((text("id"), text("name"), String::new()));
            }
            Some("content_block_delta") => {
                assert_eq!(event["index"], found.len() - 1, "of the block that is open");
                let delta = &event["delta"];
                let more = delta["partial_json"].as_str().or(delta["text"].as_str()).expect("a piece");
                found.last_mut().expect("open").2 += more;
            }
            _ => {}
        }
    }
    found
}

fn chat_calls(pieces: &[Value]) -> Vec<Value> {
    let chunk = |delta: &Value, reason: Value| json!({ "id": "c", "choices": [{ "index": 0, "delta": delta, "finish_reason": reason }] });
    let mut events: Vec<Value> = pieces.iter().map(|piece| chunk(piece, Value::Null)).collect();
    events.push(chunk(&json!({}), "tool_calls".into()));
    events
}

#[test]
fn arguments_of_calls_that_come_in_turns_go_to_their_own_call() {
    let call = |index: u64, id: &str, name: &str, arguments: &str| json!({ "index": index, "id": id, "function": { "name": name, "arguments": arguments } });
    let more = |index: u64, arguments: &str| json!({ "index": index, "function": { "arguments": arguments } });
    let calls = |list: Value| json!({ "tool_calls": list });
    let block = |id: &str, name: &str, input: &str| (id.to_owned(), name.to_owned(), input.to_owned());
    for (pieces, expected) in [
        // Both opened at once, their arguments in turns, and words in between.
        (
            vec![
                calls(json!([call(0, "a", "f", ""), call(1, "b", "g", "")])),
                calls(json!([more(0, "{\"x\":")])),
                calls(json!([more(1, "{\"y\":")])),
                json!({ "content": "words" }),
                calls(json!([more(0, "1}"), more(1, "2}")])),
            ],
            vec![block("a", "f", "{\"x\":1}"), block("b", "g", "{\"y\":2}"), block("", "", "words")],
        ),
        // All with the same index, told apart by their ids.
        (
            vec![calls(json!([call(0, "a", "f", "{}")])), calls(json!([call(0, "b", "f", "{\"y\":2}")]))],
            vec![block("a", "f", "{}"), block("b", "f", "{\"y\":2}")],
        ),
        // Without ids, and without arguments.
        (
            vec![calls(json!([call(0, "", "f", ""), call(1, "", "g", "")]))],
            vec![block("call_1", "f", "{}"), block("call_2", "g", "{}")],
        ),
    ] {
        let events = seen(Dialect::OPENAI_CHAT, Dialect::ANTHROPIC, &chat_calls(&pieces));
        assert_eq!(blocks(&events), expected, "{pieces:?}");
        let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
        assert_eq!(kinds[kinds.len() - 2..], ["message_delta", "message_stop"]);
        let count = |kind: &str| kinds.iter().filter(|one| **one == kind).count();
        assert_eq!(count("content_block_start"), count("content_block_stop"));
        assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "tool_use");
    }
}

#[test]
fn blocks_of_messages_that_overlap_are_calls_of_their_own_in_a_chat() {
    let start = |index: u64, id: &str| {
        let block = json!({ "type": "tool_use", "id": id, "name": "f", "input": {} });
        json!({ "type": "content_block_start", "index": index, "content_block": block })
    };
    let more = |index: u64, json: &str| {
        let delta = json!({ "type": "input_json_delta", "partial_json": json });
        json!({ "type": "content_block_delta", "index": index, "delta": delta })
    };
    let stop = |index: u64| json!({ "type": "content_block_stop", "index": index });
    let events = [
        json!({ "type": "message_start", "message": { "id": "m" } }),
        start(0, "a"),
        start(1, "b"),
        more(0, "{\"x\":"),
        more(1, "{\"y\":2}"),
        more(0, "1}"),
        stop(1),
        stop(0),
        start(2, "c"),
        more(2, ""),
        stop(2),
        json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use" } }),
    ];
    let mut calls: Vec<(String, String)> = vec![];
    let chunks = seen(Dialect::ANTHROPIC, Dialect::OPENAI_CHAT, &events);
    for call in chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0")) {
        let index = usize::try_from(call["index"].as_u64().expect("a number")).expect("small");
        if let Some(id) = call["id"].as_str() {
            assert_eq!(index, calls.len());
            calls.push((id.to_owned(), String::new()));
        }
        calls[index].1 += call["function"]["arguments"].as_str().unwrap_or_default();
    }
    let pair = |id: &str, arguments: &str| (id.to_owned(), arguments.to_owned());
    assert_eq!(calls, [pair("a", "{\"x\":1}"), pair("b", "{\"y\":2}"), pair("c", "{}")]);
    assert_eq!(chunks.iter().rev().find_map(|chunk| chunk["choices"][0]["finish_reason"].as_str()), Some("tool_calls"));
    // Whole answers too have the empty object.
    let block = json!({ "type": "tool_use", "id": "a", "name": "f", "input": {} });
    let whole = json!({ "id": "m", "content": [block], "stop_reason": "tool_use" }).to_string();
    let mut answers = Answers::new(Dialect::ANTHROPIC, Dialect::OPENAI_CHAT, "m", 1, true);
    let answer: Value = serde_json::from_slice(&answers.whole(whole.as_bytes()).expect("carried")).expect("json");
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], "{}");
}

#[test]
fn what_is_cut_in_half_is_shown_and_what_is_no_json_is_an_error() {
    let text = |data: &[u8]| {
        let mut answers = Answers::new(Dialect::OPENAI_CHAT, Dialect::ANTHROPIC, "m", 1, false);
        let events = answers.event(&[b"data: ", data, b"\n\n"].concat());
        let read = |event: &Bytes| serde_json::from_slice::<Value>(&SseEvent::parse(event).data).ok();
        events.iter().filter_map(read).next_back().expect("an event")
    };
    let chunk = |content: &[u8]| [br#"{"choices":[{"delta":{"content":""#, content, br#""}}]}"#].concat();
    for (content, shown) in [
        (&br"a\ud83d"[..], "a\u{fffd}"),
        (br"\udca9\u0041", "\u{fffd}A"),
        (br"\ud83d\udca9 \ud83d", "\u{1f4a9} \u{fffd}"),
        (br"\\ud83d \ud83d", "\\ud83d \u{fffd}"),
        (b"\xf0\x9f", "\u{fffd}"),
    ] {
        assert_eq!(text(&chunk(content))["delta"]["text"], shown);
    }
    assert_eq!(text(b"{\"choices\":")["type"], "error");
    let mut answers = Answers::new(Dialect::OPENAI_CHAT, Dialect::ANTHROPIC, "m", 1, false);
    let failed = answers.whole(br#"{"error":{"message":"out of order"}}"#).expect_err("it failed");
    assert_eq!(failed, "the provider failed: out of order");
}
