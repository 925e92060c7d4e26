//! Anthropic Messages: requests; `answers` has the rest.

mod answers;

pub(super) use answers::{Reader, whole, write_event, write_whole};

use super::asked::{Asked, Choice, Image, Part, Role, Tool, Turn};
use super::fields::Fields;
use super::{Sending, Untranslatable};
use crate::message::Dialect;
use serde_json::{Map, Value, json};

/// Tokens of thought from which on the effort is OpenAI's medium, and high.
const MEDIUM: u32 = 4096;
const HIGH: u32 = 16_384;

/// Reads a request.
pub(super) fn read(body: &Value, to: Dialect) -> Result<Asked, Untranslatable> {
    let mut fields = Fields::of(body, "", to)?;
    let mut asked = Asked::default();
    fields.pass(&["model"]);
    fields.only("service_tier", &[json!("auto"), json!("standard_only")], "")?;
    asked.stream = fields.flag("stream")?.unwrap_or(false);
    asked.max_output = fields.count("max_tokens")?;
    asked.temperature = fields.number("temperature")?;
    asked.top_p = fields.number("top_p")?;
    if let Some(metadata) = fields.take("metadata") {
        let mut metadata = Fields::of(metadata, "metadata", to)?;
        asked.user = metadata.text("user_id")?.map(str::to_owned);
        metadata.end()?;
    }
    for stop in fields.list("stop_sequences")? {
        let stop = stop.as_str().ok_or_else(|| fields.malformed("stop_sequences", "a list of strings"))?;
        asked.stop.push(stop.to_owned());
    }
    if asked.stop.len() > 4 {
        return Err(fields.refused("stop_sequences", "there are at most four there"));
    }
    asked.effort = match fields.take("thinking") {
        None => None,
        Some(thinking) => {
            let mut thinking = Fields::of(thinking, "thinking", to)?;
            let effort = match (thinking.must_text("type")?, thinking.count("budget_tokens")?) {
                ("disabled", _) => None,
                ("enabled", Some(budget)) if budget >= HIGH => Some("high"),
                ("enabled", Some(budget)) if budget < MEDIUM => Some("low"),
                ("enabled" | "adaptive", _) => Some("medium"),
                _ => return Err(thinking.malformed("type", "enabled, adaptive or disabled")),
            };
            thinking.pass(&["display"]);
            thinking.end()?;
            effort.map(str::to_owned)
        }
    };
    match fields.take("system") {
        None => {}
        Some(Value::String(text)) => asked.instruct(text.clone()),
        Some(Value::Array(blocks)) => {
            for (number, block) in blocks.iter().enumerate() {
                asked.instruct(text_block(block, format!("system[{number}]"), to)?);
            }
        }
        Some(_) => return Err(fields.malformed("system", "a string or a list of text blocks")),
    }
    for (number, tool) in fields.list("tools")?.iter().enumerate() {
        let mut tool = Fields::of(tool, format!("tools[{number}]"), to)?;
        tool.only("type", &[json!("custom")], "only tools of the caller's own can be")?;
        tool.pass(&["cache_control"]);
        asked.tools.push(Tool {
            name: tool.must_text("name")?.to_owned(),
            description: tool.text("description")?.map(str::to_owned),
            schema: tool.take("input_schema").cloned().ok_or_else(|| tool.malformed("input_schema", "an object"))?,
            strict: tool.flag("strict")?,
        });
        tool.end()?;
    }
    if let Some(choice) = fields.take("tool_choice") {
        let mut choice = Fields::of(choice, "tool_choice", to)?;
        asked.choice = Some(match choice.must_text("type")? {
            "auto" => Choice::Auto,
            "any" => Choice::Any,
            "none" => Choice::None,
            "tool" => Choice::Tool(choice.must_text("name")?.to_owned()),
            _ => return Err(choice.malformed("type", "auto, any, none or tool")),
        });
        asked.parallel = choice.flag("disable_parallel_tool_use")?.map(|disabled| !disabled);
        choice.end()?;
    }
    for (number, message) in fields.list("messages")?.iter().enumerate() {
        read_message(&mut asked, message, format!("messages[{number}]"), to)?;
    }
    fields.end()?;
    Ok(asked)
}

/// A block that may only be text. Where a cache begins changes nothing that is said.
fn text_block(block: &Value, path: String, to: Dialect) -> Result<String, Untranslatable> {
    let mut block = Fields::of(block, path, to)?;
    block.only("type", &[json!("text")], "it is text there")?;
    block.pass(&["cache_control"]);
    let text = block.must_text("text")?.to_owned();
    block.end()?;
    Ok(text)
}

fn read_message(asked: &mut Asked, message: &Value, path: String, to: Dialect) -> Result<(), Untranslatable> {
    let mut fields = Fields::of(message, path.clone(), to)?;
    let role = match fields.must_text("role")? {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return Err(fields.malformed("role", "user or assistant")),
    };
    let parts = match fields.take("content") {
        Some(Value::String(text)) => vec![Part::Text(text.clone())],
        Some(Value::Array(blocks)) => {
            let read = |(number, block)| read_block(block, format!("{path}.content[{number}]"), to).transpose();
            blocks.iter().enumerate().filter_map(read).collect::<Result<_, _>>()?
        }
        _ => return Err(fields.malformed("content", "a string or a list")),
    };
    asked.push(role, parts);
    fields.end()
}

fn read_block(block: &Value, path: String, to: Dialect) -> Result<Option<Part>, Untranslatable> {
    // A thought that nobody has signed came from a model of the other API, which wants none back.
    let unsigned = block.get("signature").is_none_or(|signature| signature == "");
    if block.get("type").is_some_and(|kind| kind == "thinking") && unsigned {
        return Ok(None);
    }
    let mut fields = Fields::of(block, path.clone(), to)?;
    fields.pass(&["cache_control"]);
    let part = match fields.must_text("type")? {
        "text" => {
            fields.only("citations", &[json!([])], "it has no citations")?;
            Part::Text(fields.must_text("text")?.to_owned())
        }
        "image" => {
            let source = fields.take("source").ok_or_else(|| fields.malformed("source", "an object"))?;
            let mut source = Fields::of(source, format!("{path}.source"), to)?;
            let image = match source.must_text("type")? {
                "base64" => Image::Base64 {
                    media_type: source.must_text("media_type")?.to_owned(),
                    data: source.must_text("data")?.to_owned(),
                },
                "url" => Image::Url(source.must_text("url")?.to_owned()),
                _ => return Err(source.refused("type", "only base64 and url can be")),
            };
            source.end()?;
            Part::Image(image)
        }
        "tool_use" => {
            fields.pass(&["caller"]);
            let arguments = fields.take("input").map_or_else(|| "{}".to_owned(), Value::to_string);
            Part::Call { id: fields.must_text("id")?.to_owned(), name: fields.must_text("name")?.to_owned(), arguments }
        }
        "tool_result" => {
            let text = match fields.take("content") {
                None => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(blocks)) => {
                    let read = |(number, block)| text_block(block, format!("{path}.content[{number}]"), to);
                    blocks.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?.join("\n")
                }
                Some(_) => return Err(fields.malformed("content", "a string or a list")),
            };
            let is_error = fields.flag("is_error")?.unwrap_or(false);
            Part::Result { id: fields.must_text("tool_use_id")?.to_owned(), text, is_error }
        }
        _ => return Err(fields.refused("type", "only text, images, tool calls and their results can be")),
    };
    fields.end()?;
    Ok(Some(part))
}

/// Writes a request.
pub(super) fn write(asked: &Asked, sending: &Sending<'_>) -> Value {
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            body.insert(name.to_owned(), value);
        }
    };
    put("model", sending.model.into());
    put("max_tokens", sending.cap.or(asked.max_output).into());
    if !asked.system.is_empty() {
        let blocks: Vec<Value> = asked.system.iter().map(|text| json!({ "type": "text", "text": text })).collect();
        put("system", blocks.into());
    }
    let turns: Vec<Value> = asked.turns.iter().map(write_turn).collect();
    put("messages", turns.into());
    if asked.stream {
        put("stream", true.into());
    }
    put("temperature", asked.temperature.clone().into());
    put("top_p", asked.top_p.clone().into());
    if !asked.stop.is_empty() {
        put("stop_sequences", json!(asked.stop));
    }
    if let Some(user) = &asked.user {
        put("metadata", json!({ "user_id": user }));
    }
    if !asked.tools.is_empty() {
        let tools: Vec<Value> = asked.tools.iter().map(write_tool).collect();
        put("tools", tools.into());
    }
    let mut choice = match (&asked.choice, asked.parallel) {
        (None, Some(false)) if !asked.tools.is_empty() => json!({ "type": "auto" }),
        (None, _) => Value::Null,
        (Some(Choice::Auto), _) => json!({ "type": "auto" }),
        (Some(Choice::None), _) => json!({ "type": "none" }),
        (Some(Choice::Any), _) => json!({ "type": "any" }),
        (Some(Choice::Tool(name)), _) => json!({ "type": "tool", "name": name }),
    };
    if asked.parallel == Some(false) && choice.is_object() && choice["type"] != "none" {
        choice["disable_parallel_tool_use"] = true.into();
    }
    put("tool_choice", choice);
    Value::Object(body)
}

fn write_tool(tool: &Tool) -> Value {
    let mut made = json!({ "name": tool.name, "input_schema": tool.schema });
    if let Some(description) = &tool.description {
        made["description"] = description.clone().into();
    }
    if let Some(strict) = tool.strict {
        made["strict"] = strict.into();
    }
    made
}

fn write_turn(turn: &Turn) -> Value {
    // What tools have answered stands before all else of a turn.
    let results = turn.parts.iter().filter(|part| matches!(part, Part::Result { .. }));
    let others = turn.parts.iter().filter(|part| !matches!(part, Part::Result { .. }));
    let content: Vec<Value> = results.chain(others).map(write_part).collect();
    let role = match turn.role {
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    json!({ "role": role, "content": content })
}

fn write_part(part: &Part) -> Value {
    match part {
        Part::Text(text) => json!({ "type": "text", "text": text }),
        Part::Image(Image::Base64 { media_type, data }) => {
            json!({ "type": "image", "source": { "type": "base64", "media_type": media_type, "data": data } })
        }
        Part::Image(Image::Url(url)) => json!({ "type": "image", "source": { "type": "url", "url": url } }),
        Part::Call { id, name, arguments } => {
            json!({ "type": "tool_use", "id": id, "name": name, "input": answers::input(arguments) })
        }
        Part::Result { id, text, is_error } => {
            let mut result = json!({ "type": "tool_result", "tool_use_id": id, "content": text });
            if *is_error {
                result["is_error"] = true.into();
            }
            result
        }
    }
}
