//! OpenAI Responses: requests; `answers` has the rest. No provider is asked in it for a caller of another
//! API, so it is only read as a request and only written as an answer.

mod answers;

pub(super) use answers::{write_event, write_whole};

use super::Untranslatable;
use super::asked::{Asked, Image, Part, Role};
use super::chat::{read_choice, read_tool};
use super::fields::Fields;
use crate::message::Dialect;
use serde_json::{Value, json};

/// Reads a request.
pub(super) fn read(body: &Value, to: Dialect) -> Result<Asked, Untranslatable> {
    let mut fields = Fields::of(body, "", to)?;
    let mut asked = Asked::default();
    // Hints for a cache, and what the relay sets itself.
    fields.pass(&["model", "stream_options", "prompt_cache_key", "safety_identifier"]);
    fields.only("store", &[json!(false)], "it keeps nothing; say store: false")?;
    fields.only("background", &[json!(false)], "")?;
    fields.only("truncation", &[json!("disabled")], "it does not cut what is too long")?;
    fields.only("service_tier", &[json!("auto"), json!("default")], "")?;
    fields.only("include", &[json!([]), json!(["reasoning.encrypted_content"])], "it has nothing of the kind")?;
    if let Some(text) = fields.take("text") {
        let mut text = Fields::of(text, "text", to)?;
        text.only("format", &[json!({ "type": "text" })], "ask for the form in words, or with a tool")?;
        text.only("verbosity", &[json!("medium")], "say it in words")?;
        text.end()?;
    }
    if let Some(reasoning) = fields.take("reasoning") {
        let mut reasoning = Fields::of(reasoning, "reasoning", to)?;
        reasoning.only("summary", &[json!("auto")], "it gives no summaries")?;
        asked.effort = reasoning.text("effort")?.map(str::to_owned);
        if asked.effort.is_some() && to == Dialect::ANTHROPIC {
            return Err(reasoning.refused("effort", "how much it thinks is said in tokens there"));
        }
        reasoning.end()?;
    }
    asked.stream = fields.flag("stream")?.unwrap_or(false);
    asked.max_output = fields.count("max_output_tokens")?;
    asked.temperature = fields.number("temperature")?;
    if to == Dialect::ANTHROPIC && asked.temperature.as_ref().and_then(Value::as_f64).is_some_and(|value| value > 1.0) {
        return Err(fields.refused("temperature", "it goes up to 1 there"));
    }
    asked.top_p = fields.number("top_p")?;
    asked.user = fields.text("user")?.map(str::to_owned);
    asked.instruct(fields.text("instructions")?.unwrap_or_default());
    for (number, tool) in fields.list("tools")?.iter().enumerate() {
        asked.tools.push(read_tool(tool, format!("tools[{number}]"), to)?);
    }
    asked.choice = read_choice(&mut fields)?;
    asked.parallel = fields.flag("parallel_tool_calls")?;
    match fields.take("input") {
        None => {}
        Some(Value::String(text)) => asked.push(Role::User, vec![Part::Text(text.clone())]),
        Some(Value::Array(items)) => {
            for (number, item) in items.iter().enumerate() {
                read_item(&mut asked, item, format!("input[{number}]"), to)?;
            }
        }
        Some(_) => return Err(fields.malformed("input", "a string or a list")),
    }
    fields.end()?;
    Ok(asked)
}

fn read_item(asked: &mut Asked, item: &Value, path: String, to: Dialect) -> Result<(), Untranslatable> {
    // A thought that is readable came from here, or is of no use to another model.
    let is_sealed = item.get("encrypted_content").is_some_and(|sealed| !sealed.is_null());
    if item.get("type").is_some_and(|kind| kind == "reasoning") && !is_sealed {
        return Ok(());
    }
    let mut fields = Fields::of(item, path.clone(), to)?;
    fields.pass(&["id", "status"]);
    match fields.text("type")?.unwrap_or("message") {
        "message" => {
            let role = fields.must_text("role")?;
            let parts = read_content(&mut fields, &path, to)?;
            match role {
                "user" => asked.push(Role::User, parts),
                "assistant" => asked.push(Role::Assistant, parts),
                "system" | "developer" => {
                    if !asked.turns.is_empty() {
                        return Err(fields.refused("role", "instructions stand before all turns there"));
                    }
                    for part in parts {
                        match part {
                            Part::Text(text) => asked.instruct(text),
                            _ => return Err(fields.refused("content", "instructions are text")),
                        }
                    }
                }
                _ => return Err(fields.refused("role", "there is no such role there")),
            }
        }
        "function_call" => {
            let (id, name) = (fields.must_text("call_id")?.to_owned(), fields.must_text("name")?.to_owned());
            let arguments = fields.text("arguments")?.unwrap_or("{}").to_owned();
            asked.push(Role::Assistant, vec![Part::Call { id, name, arguments }]);
        }
        "function_call_output" => {
            let id = fields.must_text("call_id")?.to_owned();
            let text = match fields.take("output") {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(parts)) => {
                    let text = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_owned);
                    let texts: Option<Vec<String>> = parts.iter().map(text).collect();
                    texts.ok_or_else(|| fields.refused("output", "what tools answer is text there"))?.concat()
                }
                _ => return Err(fields.malformed("output", "a string or a list")),
            };
            asked.push(Role::User, vec![Part::Result { id, text, is_error: false }]);
        }
        _ => return Err(fields.refused("type", "only messages, function calls and their outputs can be")),
    }
    fields.end()
}

fn read_content(fields: &mut Fields<'_>, path: &str, to: Dialect) -> Result<Vec<Part>, Untranslatable> {
    let list = match fields.take("content") {
        Some(Value::String(text)) => return Ok(vec![Part::Text(text.clone())]),
        Some(Value::Array(list)) => list,
        _ => return Err(fields.malformed("content", "a string or a list")),
    };
    let mut parts = vec![];
    for (number, part) in list.iter().enumerate() {
        let mut part = Fields::of(part, format!("{path}.content[{number}]"), to)?;
        match part.must_text("type")? {
            "input_text" | "output_text" | "text" => {
                part.only("annotations", &[json!([])], "it has no annotations")?;
                part.only("logprobs", &[json!([])], "")?;
                parts.push(Part::Text(part.must_text("text")?.to_owned()));
            }
            "refusal" => parts.push(Part::Text(part.must_text("refusal")?.to_owned())),
            "input_image" => {
                part.only("detail", &[json!("auto"), json!("low"), json!("high")], "")?;
                let url = part.must_text("image_url")?;
                let image = Image::from_url(url);
                parts.push(Part::Image(
                    image.ok_or_else(|| part.malformed("image_url", "a data: URL in base64, or https:"))?,
                ));
            }
            _ => return Err(part.refused("type", "only text and images can be")),
        }
        part.end()?;
    }
    Ok(parts)
}
