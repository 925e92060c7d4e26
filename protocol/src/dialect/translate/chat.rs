//! OpenAI Chat Completions: requests; `answers` has the rest.

mod answers;

pub(super) use answers::{Reader, provider_error, text, whole, write_event, write_whole};

use super::asked::{Asked, Choice, Image, Part, Role, Tool, Turn};
use super::fields::Fields;
use super::{Sending, Untranslatable};
use crate::message::Dialect;
use serde_json::{Map, Value, json};

const SAMPLING: &str = "the other API has no such sampling";

/// Reads a request.
pub(super) fn read(body: &Value, to: Dialect) -> Result<Asked, Untranslatable> {
    let mut fields = Fields::of(body, "", to)?;
    let mut asked = Asked::default();
    // The relay sets these itself, or they change nothing that is sent.
    fields.pass(&["model", "stream_options"]);
    fields.only("n", &[json!(1)], "it gives one answer")?;
    fields.only("store", &[json!(false)], "it keeps nothing")?;
    fields.only("logprobs", &[json!(false)], "it tells no probabilities")?;
    fields.only("frequency_penalty", &[json!(0), json!(0.0)], SAMPLING)?;
    fields.only("presence_penalty", &[json!(0), json!(0.0)], SAMPLING)?;
    fields.only("response_format", &[json!({ "type": "text" })], "ask for the form in words, or with a tool")?;
    fields.only("service_tier", &[json!("auto"), json!("default")], "")?;
    fields.only("modalities", &[json!(["text"])], "")?;
    asked.stream = fields.flag("stream")?.unwrap_or(false);
    asked.max_output = fields.count("max_tokens")?;
    asked.max_output = fields.count("max_completion_tokens")?.or(asked.max_output);
    asked.temperature = fields.number("temperature")?;
    if asked.temperature.as_ref().and_then(Value::as_f64).is_some_and(|value| value > 1.0) {
        return Err(fields.refused("temperature", "it goes up to 1 there"));
    }
    asked.top_p = fields.number("top_p")?;
    asked.user = fields.text("user")?.map(str::to_owned);
    asked.stop = match fields.take("stop") {
        None => vec![],
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|one| one.as_str().map(str::to_owned)).collect::<Option<_>>();
            texts.ok_or_else(|| fields.malformed("stop", "a string or a list of strings"))?
        }
        Some(_) => return Err(fields.malformed("stop", "a string or a list of strings")),
    };
    for (number, tool) in fields.list("tools")?.iter().enumerate() {
        asked.tools.push(read_tool(tool, format!("tools[{number}]"), to)?);
    }
    asked.choice = read_choice(&mut fields)?;
    asked.parallel = fields.flag("parallel_tool_calls")?;
    for (number, message) in fields.list("messages")?.iter().enumerate() {
        read_message(&mut asked, message, format!("messages[{number}]"), to)?;
    }
    fields.end()?;
    Ok(asked)
}

/// A tool, its function in a field of its own or not.
pub(super) fn read_tool(tool: &Value, path: String, to: Dialect) -> Result<Tool, Untranslatable> {
    let mut outer = Fields::of(tool, path.clone(), to)?;
    outer.only("type", &[json!("function")], "only functions can be")?;
    let inner = outer.take("function");
    let mut fields = match inner {
        Some(function) => {
            outer.end()?;
            Fields::of(function, format!("{path}.function"), to)?
        }
        None => outer,
    };
    let made = Tool {
        name: fields.must_text("name")?.to_owned(),
        description: fields.text("description")?.map(str::to_owned),
        schema: fields.take("parameters").cloned().unwrap_or_else(|| json!({ "type": "object", "properties": {} })),
        strict: fields.flag("strict")?,
    };
    fields.end()?;
    Ok(made)
}

pub(super) fn read_choice(fields: &mut Fields<'_>) -> Result<Option<Choice>, Untranslatable> {
    let wrong = |fields: &Fields<'_>| fields.refused("tool_choice", "only auto, none, required or one function can be");
    match fields.take("tool_choice") {
        None => Ok(None),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(Some(Choice::Auto)),
            "none" => Ok(Some(Choice::None)),
            "required" => Ok(Some(Choice::Any)),
            _ => Err(wrong(fields)),
        },
        Some(value) => {
            let name = value.pointer("/function/name").or_else(|| value.get("name")).and_then(Value::as_str);
            match name.filter(|_| value.get("type").is_some_and(|kind| kind == "function")) {
                Some(name) => Ok(Some(Choice::Tool(name.to_owned()))),
                None => Err(wrong(fields)),
            }
        }
    }
}

fn read_message(asked: &mut Asked, message: &Value, path: String, to: Dialect) -> Result<(), Untranslatable> {
    let mut fields = Fields::of(message, path.clone(), to)?;
    let role = fields.must_text("role")?;
    match role {
        "system" | "developer" => {
            if !asked.turns.is_empty() {
                return Err(fields.refused("role", "instructions stand before all turns there"));
            }
            for part in read_content(&mut fields, &path, to)? {
                match part {
                    Part::Text(text) => asked.instruct(text),
                    _ => return Err(fields.refused("content", "instructions are text")),
                }
            }
        }
        "user" => {
            let parts = read_content(&mut fields, &path, to)?;
            asked.push(Role::User, parts);
        }
        "assistant" => {
            // What it thought is of no use to another model.
            fields.pass(&["annotations", "reasoning_content", "reasoning"]);
            let mut parts = read_content(&mut fields, &path, to)?;
            if let Some(words) = fields.text("refusal")? {
                parts.push(Part::Text(words.to_owned()));
            }
            for (number, call) in fields.list("tool_calls")?.iter().enumerate() {
                let mut call = Fields::of(call, format!("{path}.tool_calls[{number}]"), to)?;
                call.only("type", &[json!("function")], "only functions can be")?;
                call.pass(&["index"]);
                let id = call.must_text("id")?.to_owned();
                let function = call.take("function").ok_or_else(|| call.malformed("function", "an object"))?;
                call.end()?;
                let mut function = Fields::of(function, format!("{path}.tool_calls[{number}].function"), to)?;
                let (name, arguments) = (function.must_text("name")?, function.text("arguments")?.unwrap_or("{}"));
                parts.push(Part::Call { id, name: name.to_owned(), arguments: arguments.to_owned() });
                function.end()?;
            }
            asked.push(Role::Assistant, parts);
        }
        "tool" => {
            let id = fields.must_text("tool_call_id")?.to_owned();
            let text = texts(&fields, read_content(&mut Fields::of(message, path.clone(), to)?, &path, to)?)?;
            fields.pass(&["content"]);
            asked.push(Role::User, vec![Part::Result { id, text, is_error: false }]);
        }
        _ => return Err(fields.refused("role", "there is no such role there")),
    }
    fields.end()
}

/// Content that may only be text.
fn texts(fields: &Fields<'_>, parts: Vec<Part>) -> Result<String, Untranslatable> {
    let text = |part| match part {
        Part::Text(text) => Ok(text),
        _ => Err(fields.refused("content", "what tools answer is text there")),
    };
    parts.into_iter().map(text).collect()
}

fn read_content(fields: &mut Fields<'_>, path: &str, to: Dialect) -> Result<Vec<Part>, Untranslatable> {
    let list = match fields.take("content") {
        None => return Ok(vec![]),
        Some(Value::String(text)) => return Ok(if text.is_empty() { vec![] } else { vec![Part::Text(text.clone())] }),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(fields.malformed("content", "a string or a list")),
    };
    let mut parts = vec![];
    for (number, part) in list.iter().enumerate() {
        let mut part = Fields::of(part, format!("{path}.content[{number}]"), to)?;
        match part.must_text("type")? {
            "text" => parts.push(Part::Text(part.must_text("text")?.to_owned())),
            "refusal" => parts.push(Part::Text(part.must_text("refusal")?.to_owned())),
            "image_url" => {
                let image = part.take("image_url").ok_or_else(|| part.malformed("image_url", "an object"))?;
                let mut image = Fields::of(image, format!("{path}.content[{number}].image_url"), to)?;
                image.only("detail", &[json!("auto"), json!("low"), json!("high")], "")?;
                let url = image.must_text("url")?;
                let found =
                    Image::from_url(url).ok_or_else(|| image.malformed("url", "a data: URL in base64, or https:"))?;
                parts.push(Part::Image(found));
                image.end()?;
            }
            _ => return Err(part.refused("type", "only text and images can be")),
        }
        part.end()?;
    }
    Ok(parts)
}

/// Writes a request.
pub(super) fn write(asked: &Asked, sending: &Sending<'_>) -> Value {
    let mut messages = vec![];
    if !asked.system.is_empty() {
        messages.push(json!({ "role": "system", "content": asked.system.join("\n\n") }));
    }
    asked.turns.iter().for_each(|turn| write_turn(turn, &mut messages));
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            body.insert(name.to_owned(), value);
        }
    };
    put("model", sending.model.into());
    put("messages", messages.into());
    put(sending.cap_field, sending.cap.or(asked.max_output).into());
    if asked.stream {
        put("stream", true.into());
        put("stream_options", json!({ "include_usage": true }));
    }
    put("temperature", asked.temperature.clone().into());
    put("top_p", asked.top_p.clone().into());
    put("user", asked.user.clone().into());
    put("reasoning_effort", asked.effort.clone().into());
    if !asked.stop.is_empty() {
        put("stop", json!(asked.stop));
    }
    if !asked.tools.is_empty() {
        let tools: Vec<Value> = asked.tools.iter().map(write_tool).collect();
        put("tools", tools.into());
        put("parallel_tool_calls", asked.parallel.into());
    }
    put(
        "tool_choice",
        match &asked.choice {
            None => Value::Null,
            Some(Choice::Auto) => "auto".into(),
            Some(Choice::None) => "none".into(),
            Some(Choice::Any) => "required".into(),
            Some(Choice::Tool(name)) => json!({ "type": "function", "function": { "name": name } }),
        },
    );
    Value::Object(body)
}

fn write_tool(tool: &Tool) -> Value {
    let mut function = json!({ "name": tool.name, "parameters": tool.schema });
    if let Some(description) = &tool.description {
        function["description"] = description.clone().into();
    }
    if let Some(strict) = tool.strict {
        function["strict"] = strict.into();
    }
    json!({ "type": "function", "function": function })
}

fn write_turn(turn: &Turn, messages: &mut Vec<Value>) {
    let (mut content, mut calls): (Vec<Value>, Vec<Value>) = (vec![], vec![]);
    for part in &turn.parts {
        match part {
            Part::Text(text) => content.push(json!({ "type": "text", "text": text })),
            Part::Image(image) => content.push(json!({ "type": "image_url", "image_url": { "url": image.url() } })),
            Part::Call { id, name, arguments } => {
                calls.push(
                    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }),
                );
            }
            Part::Result { id, text, is_error } => {
                let text = if *is_error { format!("Error: {text}") } else { text.clone() };
                messages.push(json!({ "role": "tool", "tool_call_id": id, "content": text }));
            }
        }
    }
    // Text alone is a string: not every compatible server takes lists.
    let content = match content.as_slice() {
        [] => Value::Null,
        [one] if one["type"] == "text" => one["text"].clone(),
        _ => content.into(),
    };
    match turn.role {
        Role::User if content.is_null() => {}
        Role::User => messages.push(json!({ "role": "user", "content": content })),
        Role::Assistant => {
            let mut message = json!({ "role": "assistant", "content": content });
            if !calls.is_empty() {
                message["tool_calls"] = calls.into();
            }
            messages.push(message);
        }
    }
}
