//! The document of the HTTP side as a page for people: made once, at the start, from the document itself. It runs
//! nothing and loads nothing but its style.

use serde_json::Value;
use std::fmt::Write as _;

/// Its style.
pub(super) const STYLE: &str = include_str!("page.css");
/// What it may load.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The page.
#[must_use]
pub(super) fn page(document: &Value) -> String {
    let mut out = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>belay: HTTP</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"stylesheet\" href=\"/docs.css\"></head><body><main>\n",
    );
    // Writing to a text cannot fail.
    let _ = writeln!(
        out,
        "<h1>belay</h1><p>{}</p><p>Callers show a key: <code>Authorization: Bearer bly_live_…</code>. For programs: \
         <a href=\"/openapi.json\">openapi.json</a>.</p>",
        escape(text(document, "/info/description"))
    );
    let tags = document["tags"].as_array().map(Vec::as_slice).unwrap_or_default();
    for tag in tags {
        let name = tag["name"].as_str().unwrap_or_default();
        let _ = writeln!(out, "<h2>{}</h2><p>{}</p>", escape(name), escape(text(tag, "/description")));
        for (path, method, operation) in operations(document, name) {
            operation_into(&mut out, document, (path, method), operation);
        }
    }
    out + "</main></body></html>\n"
}

/// The operations of a tag: path, method, what is said of it.
fn operations<'a>(document: &'a Value, tag: &'a str) -> impl Iterator<Item = (&'a str, &'a str, &'a Value)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    let all = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().into_iter().flatten();
        methods.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    });
    all.filter(move |(.., operation)| operation["tags"][0] == tag)
}

fn operation_into(out: &mut String, document: &Value, (path, method): (&str, &str), operation: &Value) {
    let _ = writeln!(
        out,
        "<section><h3><code>{} {}</code></h3><p>{} {}</p>",
        method.to_uppercase(),
        escape(path),
        escape(text(operation, "/summary")),
        escape(text(operation, "/description"))
    );
    let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = parameters.iter().map(|parameter| Row {
        name: text(parameter, "/name"),
        kind: kind(document, &parameter["schema"]),
        is_needed: parameter["required"] == true,
        about: text(parameter, "/description"),
    });
    table(out, "In the address", rows.collect());
    let body = schema_of(document, operation.pointer("/requestBody/content/application~1json/schema"));
    table(out, "Body (JSON)", fields(document, body));
    if let Some(example) = body.get("example").or_else(|| body.pointer("/examples/0")) {
        let _ = writeln!(out, "<pre>{}</pre>", escape(&example.to_string()));
    }
    let answer = schema_of(document, operation.pointer("/responses/200/content/application~1json/schema"));
    table(out, "Answer (JSON)", fields(document, answer));
    let codes = operation["responses"].as_object().into_iter().flatten().filter(|(code, _)| *code != "200");
    let refused: Vec<String> = codes
        .map(|(code, response)| format!("{code} {}", text(response, "/description").trim_end_matches('.')))
        .collect();
    if !refused.is_empty() {
        let _ = write!(out, "<details><summary>Refusals</summary><ul>");
        for line in refused {
            let _ = write!(out, "<li>{}</li>", escape(&line));
        }
        *out += "</ul></details>\n";
    }
    *out += "</section>\n";
}

/// A line of a table.
struct Row<'a> {
    name: &'a str,
    kind: String,
    is_needed: bool,
    about: &'a str,
}

fn table(out: &mut String, title: &str, rows: Vec<Row<'_>>) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(out, "<h4>{title}</h4><table>");
    for row in rows {
        let needed = if row.is_needed { " <b>needed</b>" } else { "" };
        let _ = write!(
            out,
            "<tr><td><code>{}</code></td><td>{}{needed}</td><td>{}</td></tr>",
            escape(row.name),
            escape(&row.kind),
            escape(row.about)
        );
    }
    *out += "</table>\n";
}

/// The fields of a schema, with those of the schemas that it is made of.
fn fields<'a>(document: &'a Value, schema: &'a Value) -> Vec<Row<'a>> {
    let parts = schema["allOf"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut all: Vec<Row<'a>> =
        parts.iter().flat_map(|part| fields(document, schema_of(document, Some(part)))).collect();
    let needed = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    let properties = schema["properties"].as_object().into_iter().flatten();
    all.extend(properties.map(|(name, field)| Row {
        name,
        kind: kind(document, field),
        is_needed: needed.iter().any(|needed| needed == name),
        about: text(field, "/description"),
    }));
    all
}

/// A schema, or the one that it names.
fn schema_of<'a>(document: &'a Value, schema: Option<&'a Value>) -> &'a Value {
    let Some(schema) = schema else { return &Value::Null };
    match schema["$ref"].as_str().and_then(|name| document.pointer(name.trim_start_matches('#'))) {
        Some(named) => named,
        None => schema,
    }
}

/// What a field is, in a word or two.
fn kind(document: &Value, schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        let named = schema_of(document, Some(schema));
        return match named["type"].as_str() {
            Some("object") | None => name.rsplit('/').next().unwrap_or_default().to_owned(),
            Some(plain) => plain.to_owned(),
        };
    }
    for among in ["oneOf", "anyOf"] {
        if let Some(some) = schema[among].as_array() {
            let named = some.iter().filter(|one| one["type"] != "null").map(|one| kind(document, one));
            return named.collect::<Vec<_>>().join(" or ");
        }
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => format!("list of {}", kind(document, &schema["items"])),
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            names.collect::<Vec<_>>().join(" or ")
        }
        _ => "any".to_owned(),
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_document_says_is_text_and_never_markup() {
        let document = json!({
            "info": { "description": "a <b>& \"c\"" },
            "tags": [{ "name": "t", "description": "d" }],
            "paths": { "/x/{y}": { "post": {
                "tags": ["t"], "summary": "<script>", "parameters": [{ "name": "y", "required": true, "schema": { "type": "string" } }],
                "requestBody": { "content": { "application/json": { "schema": { "$ref": "#/components/schemas/B" } } } },
                "responses": { "200": {}, "404": { "description": "There is none." } },
            } } },
            "components": { "schemas": { "B": {
                "type": "object", "required": ["f"],
                "properties": { "f": { "type": ["string", "null"] }, "g": { "type": "array", "items": { "type": "integer" } } },
            } } },
        });
        let page = page(&document);
        for part in [
            "a &lt;b&gt;&amp; &quot;c&quot;",
            "POST /x/{y}",
            "&lt;script&gt;",
            "<td><code>f</code></td><td>string <b>needed</b></td>",
            "list of integer",
            "404 There is none",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
}
