// The official Node SDKs, as they are, against a gateway. Prints one JSON object.
//
// Usage: node check.mjs GATEWAY. The provider behind it plays the scripts that stand in the messages.

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const gateway = process.argv[2];
// A relay wants a key of its own; a gateway passes nothing on of what its callers call theirs.
const key = process.argv[3] ?? "callers-own-key";
const checks = {};
let charged = 0;

const check = (name, passed) => {
  if (name in checks) throw new Error(name);
  checks[name] = Boolean(passed);
};
const script = (fields) => "Please. " + JSON.stringify({ fake: fields });
const user = (content) => [{ role: "user", content }];
const event = (value, name) => `${name ? `event: ${name}\n` : ""}data: ${JSON.stringify(value)}\n\n`;
const picture = Buffer.from([0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10]).toString("base64");
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

async function refused(asked) {
  try {
    await asked;
    return undefined;
  } catch (error) {
    return error;
  }
}

async function openai() {
  const client = new OpenAI({ baseURL: `${gateway}/v1`, apiKey: key, maxRetries: 0 });
  const model = "gpt";
  const whole = await client.chat.completions.create({ model, messages: user(script({ tokens: 7 })), max_tokens: 50 });
  charged += 1;
  check("chat", whole.choices[0].message.content.startsWith("belay0 ") && whole.usage.completion_tokens === 7);

  let text = "";
  let usage;
  const stream = await client.chat.completions.create({
    model,
    messages: user(script({ tokens: 40, pace_ms: 2, split: 3 })),
    stream: true,
    stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    text += chunk.choices[0]?.delta.content ?? "";
  }
  charged += 1;
  check("chat stream", usage.completion_tokens === 40 && text.startsWith("belay0 "));

  const parts = [
    { type: "text", text: "What is this?" },
    { type: "image_url", image_url: { url: `data:image/png;base64,${picture}` } },
  ];
  const seen = await client.chat.completions.create({ model, messages: user(parts), max_tokens: 50 });
  charged += 1;
  check("chat image", seen.choices[0].message.content);

  const chunk = (delta, finish_reason = null) =>
    event({ id: "c", object: "chat.completion.chunk", created: 1, model, choices: [{ index: 0, delta, finish_reason }] });
  const called = { index: 0, id: "call_1", type: "function", function: { name: "weather", arguments: '{"city":' } };
  const events = [
    chunk({ role: "assistant", content: null }),
    chunk({ tool_calls: [called] }),
    chunk({ tool_calls: [{ index: 0, function: { arguments: ' "Wien"}' } }] }),
    chunk({}, "tool_calls"),
    event({ id: "c", object: "chat.completion.chunk", created: 1, model, choices: [], usage: { prompt_tokens: 9, completion_tokens: 5, total_tokens: 14 } }),
    "data: [DONE]\n\n",
  ];
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const messages = user(script({ events }));
  const first = await client.chat.completions.stream({ model, messages, tools }).finalChatCompletion();
  charged += 1;
  const call = first.choices[0].message.tool_calls[0];
  check("chat tool call", JSON.parse(call.function.arguments).city === "Wien");
  messages.push(first.choices[0].message);
  messages.push({ role: "tool", tool_call_id: call.id, content: script({ tokens: 3 }) });
  const second = await client.chat.completions.create({ model, messages, tools });
  charged += 1;
  check("chat tool result", second.usage.completion_tokens === 3);

  const response = await client.responses.create({ model, input: script({ tokens: 6 }), max_output_tokens: 50 });
  charged += 1;
  check("responses", response.output_text.startsWith("belay0 ") && response.usage.output_tokens === 6);
  let completed;
  let deltas = "";
  for await (const part of await client.responses.create({ model, input: script({ tokens: 30 }), stream: true })) {
    if (part.type === "response.output_text.delta") deltas += part.delta;
    if (part.type === "response.completed") completed = part.response;
  }
  charged += 1;
  check("responses stream", completed.usage.output_tokens === 30 && deltas.startsWith("belay0 "));

  const found = await client.embeddings.create({ model: "embed", input: ["a", "b"] });
  charged += 1;
  check("embeddings", found.data[0].embedding.length > 0);

  let error = await refused(client.chat.completions.create({ model: "gtp", messages: user("hi") }));
  check("unknown model", error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
  error = await refused(client.chat.completions.create({ model, messages: user(script({ status: 400 })) }));
  check("provider's own refusal", error instanceof OpenAI.BadRequestError && error.requestID);
  const cap = { headers: { "belay-cost-cap": "0.000000001" } };
  error = await refused(client.chat.completions.create({ model, messages: user("hi") }, cap));
  check("cost cap", error?.status === 402 && error.error.belay.missing_nano_usd > 0);
  const cut = await client.chat.completions.create({ model, messages: user(script({ cut_after: 5 })), stream: true });
  charged += 1;
  error = await refused((async () => { for await (const _ of cut); })());
  check("cut stream", error instanceof OpenAI.APIError && /not complete/.test(error.message));

  // The provider refuses twice; the third attempt of the SDK is answered, and paid for, once.
  const tried = await client.chat.completions.create({ model, messages: user(script({ refusals: 2 })) }, { maxRetries: 3 });
  charged += 1;
  check("retries", tried.choices[0].message.content);

  error = await refused(client.chat.completions.create({ model, messages: user(script({ head_ms: 20000 })) }, { timeout: 500 }));
  charged += 1;
  check("timeout", error instanceof OpenAI.APIConnectionTimeoutError);

  const endless = await client.chat.completions.create({ model, messages: user(script({ endless: true, pace_ms: 5 })), stream: true });
  let count = 0;
  for await (const _ of endless) if (++count === 10) break;
  charged += 1;
  check("cancellation", count === 10);

  const names = [];
  for await (const one of client.models.list()) names.push(one.id);
  check("models", names.includes("gpt") && names.includes("auto"));
}

async function anthropic() {
  const client = new Anthropic({ baseURL: gateway, apiKey: key, maxRetries: 0 });
  const model = "claude";
  const whole = await client.messages.create({ model, max_tokens: 50, messages: user(script({ tokens: 7 })) });
  charged += 1;
  check("messages", whole.content[0].text.startsWith("belay0 ") && whole.usage.output_tokens === 7);
  const stream = client.messages.stream({ model, max_tokens: 90, messages: user(script({ tokens: 40, ping_every: 5, split: 3 })) });
  let text = "";
  stream.on("text", (delta) => (text += delta));
  const final = await stream.finalMessage();
  charged += 1;
  check("messages stream", final.usage.output_tokens === 40 && final.content[0].text === text);
  const counted = await client.messages.countTokens({ model, messages: user("how many?") });
  check("count tokens", counted.input_tokens > 0);
  const source = { type: "base64", media_type: "image/png", data: picture };
  const seen = await client.messages.create({ model, max_tokens: 50, messages: user([{ type: "image", source }]) });
  charged += 1;
  check("messages image", seen.content.length > 0);

  const named = (value) => event(value, value.type);
  const message = { id: "msg_1", type: "message", role: "assistant", model, content: [], stop_reason: null, stop_sequence: null, usage: { input_tokens: 9, output_tokens: 1 } };
  const events = [
    named({ type: "message_start", message }),
    named({ type: "content_block_start", index: 0, content_block: { type: "tool_use", id: "toolu_1", name: "weather", input: {} } }),
    named({ type: "content_block_delta", index: 0, delta: { type: "input_json_delta", partial_json: '{"city":' } }),
    named({ type: "content_block_delta", index: 0, delta: { type: "input_json_delta", partial_json: ' "Wien"}' } }),
    named({ type: "content_block_stop", index: 0 }),
    named({ type: "message_delta", delta: { stop_reason: "tool_use", stop_sequence: null }, usage: { output_tokens: 30 } }),
    named({ type: "message_stop" }),
  ];
  const tools = [{ name: "weather", input_schema: parameters }];
  const asked = user(script({ events }));
  const first = await client.messages.stream({ model, max_tokens: 50, messages: asked, tools }).finalMessage();
  charged += 1;
  check("messages tool call", first.content[0].input.city === "Wien" && first.stop_reason === "tool_use");
  asked.push({ role: "assistant", content: first.content });
  asked.push({
    role: "user",
    content: [
      { type: "tool_result", tool_use_id: "toolu_1", content: "sunny" },
      { type: "text", text: script({ tokens: 3 }) },
    ],
  });
  const second = await client.messages.create({ model, max_tokens: 50, messages: asked, tools });
  charged += 1;
  check("messages tool result", second.usage.output_tokens === 3);

  let error = await refused(client.messages.create({ model: "cloude", max_tokens: 50, messages: user("hi") }));
  check("unknown claude", error instanceof Anthropic.NotFoundError && /did you mean `claude`/.test(error.message));
  error = await refused(client.messages.create({ model, max_tokens: 50, messages: user(script({ status: 529 })) }));
  check("overloaded", error?.status === 529);
  const failing = client.messages.stream({ model, max_tokens: 50, messages: user(script({ cut_after: 5 })) });
  error = await refused(failing.finalMessage());
  charged += 1;
  check("claude's cut stream", error instanceof Anthropic.APIError && /not complete/.test(error.message));
}

await openai();
await anthropic();
console.log(JSON.stringify({ checks, charged }));
