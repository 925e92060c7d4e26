"""The official Python SDKs, as they are, against a gateway. Prints one JSON object.

Usage: check.py GATEWAY. The provider behind it plays the scripts that stand in the messages.
"""

import base64
import json
import sys
import threading
import time

import anthropic
import openai

GATEWAY = sys.argv[1]
# A relay wants a key of its own; a gateway passes nothing on of what its callers call theirs.
KEY = sys.argv[2] if len(sys.argv) > 2 else "callers-own-key"
PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()
checks = {}
charged = 0


def check(name, passed):
    assert name not in checks, name
    checks[name] = bool(passed)


def script(**fields):
    return "Please. " + json.dumps({"fake": fields})


def user(content):
    return [{"role": "user", "content": content}]


def answered(count=1):
    """So many answers were paid for."""
    global charged
    charged += count


def event(value, name=None):
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n"


TOOL = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def chat(client):
    whole = client.chat.completions.create(model="gpt", messages=user(script(tokens=7)), max_tokens=50)
    answered()
    check("chat", whole.choices[0].message.content.startswith("belay0 ") and whole.usage.completion_tokens == 7)
    raw = client.chat.completions.with_raw_response.create(model="gpt", messages=user("hi"))
    answered()
    check("chat headers", raw.headers["belay-provider"] == "openai" and raw.headers["x-request-id"])
    text, usage, finish = "", None, None
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="gpt", messages=user(script(tokens=40, pace_ms=2, split=3)), stream=True, stream_options=options
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    answered()
    check("chat stream", text.count(" ") >= 24 and usage.completion_tokens == 40 and finish == "stop")
    without = client.chat.completions.create(model="gpt", messages=user("hi"), stream=True)
    check("chat stream without usage", all(chunk.choices for chunk in without))
    answered()
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PICTURE}},
    ]
    seen = client.chat.completions.create(model="gpt", messages=user(parts), max_tokens=50)
    answered()
    check("chat image", seen.choices[0].message.content)


def chat_tools(client):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]

    def chunk(delta, finish=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt", "choices": [choice]})

    def call(**fields):
        return {"tool_calls": [{"index": 0, **fields}]}

    usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    events = [
        chunk({"role": "assistant", "content": None}),
        chunk(call(id="call_1", type="function", function={"name": "weather", "arguments": ""})),
        chunk(call(function={"arguments": '{"city":'})),
        chunk(call(function={"arguments": ' "Wien"}'})),
        chunk({}, "tool_calls"),
        event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt", "choices": [], "usage": usage}),
        "data: [DONE]\n\n",
    ]
    messages = user(script(events=events))
    arguments, name = "", None
    for part in client.chat.completions.create(model="gpt", messages=messages, tools=tools, stream=True):
        for choice in part.choices:
            for piece in choice.delta.tool_calls or []:
                name = piece.function.name or name
                arguments += piece.function.arguments or ""
    answered()
    check("chat tool call", name == "weather" and json.loads(arguments) == {"city": "Wien"})
    called = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    messages.append({"role": "assistant", "content": None, "tool_calls": [called]})
    messages.append({"role": "tool", "tool_call_id": "call_1", "content": script(tokens=3)})
    second = client.chat.completions.create(model="gpt", messages=messages, tools=tools)
    answered()
    check("chat tool result", second.usage.completion_tokens == 3)


def responses(client):
    whole = client.responses.create(model="gpt", input=script(tokens=6), max_output_tokens=50)
    answered()
    check("responses", whole.output_text.startswith("belay0 ") and whole.usage.output_tokens == 6)
    text, completed = "", None
    for part in client.responses.create(model="gpt", input=script(tokens=30, pace_ms=2), stream=True):
        if part.type == "response.output_text.delta":
            text += part.delta
        if part.type == "response.completed":
            completed = part.response
    answered()
    check("responses stream", completed.usage.output_tokens == 30 and completed.output_text == text)
    try:
        client.responses.create(model="gpt", input="and then?", previous_response_id="resp_1")
        check("responses by id", False)
    except openai.BadRequestError as error:
        check("responses by id", "previous_response_id" in str(error))


def embeddings(client):
    found = client.embeddings.create(model="embed", input=["a", "b"])
    answered()
    check("embeddings", len(found.data) >= 1 and len(found.data[0].embedding) > 0)


def openai_errors(client):
    def refused(kind, **fields):
        try:
            client.with_options(max_retries=0).chat.completions.create(**{"model": "gpt", **fields})
        except kind as error:
            return error
        return None

    error = refused(openai.NotFoundError, model="gtp", messages=user("hi"))
    check("unknown model", error and error.code == "model_not_found" and "did you mean `gpt`" in str(error))
    error = refused(openai.BadRequestError, messages=user(script(status=400)))
    check("provider's own refusal", error and error.type == "invalid_request_error" and error.request_id)
    error = refused(openai.RateLimitError, messages=user(script(status=429, headers={"retry-after": "7"})))
    check("provider's own rate limit", error and error.response.headers["retry-after"] == "7")
    error = refused(openai.InternalServerError, messages=user(script(status=500)))
    check("provider's own fault", error)
    error = refused(openai.APIStatusError, messages=user("hi"), extra_headers={"belay-cost-cap": "0.000000001"})
    missing = error and error.body["belay"]["missing_nano_usd"]
    check("cost cap", error and error.status_code == 402 and error.code == "insufficient_quota" and missing > 0)
    error = refused(openai.BadRequestError, messages=user("hi"), extra_body={"service_tier": "priority"})
    check("unpriced field", error and "service_tier" in str(error))
    stream = client.chat.completions.create(model="gpt", messages=user(script(error_after=4)), stream=True)
    answered()
    try:
        list(stream)
        check("error in a stream", False)
    except openai.APIError:
        check("error in a stream", True)
    stream = client.chat.completions.create(model="gpt", messages=user(script(cut_after=5)), stream=True)
    answered()
    try:
        list(stream)
        check("cut stream", False)
    except openai.APIError as error:
        check("cut stream", "not complete" in str(error))


def retries(client):
    # The provider refuses twice; the third attempt of the SDK is answered, and paid for, once.
    before = time.monotonic()
    whole = client.with_options(max_retries=3).chat.completions.create(model="gpt", messages=user(script(refusals=2)))
    answered()
    check("retries", whole.choices[0].message.content and time.monotonic() - before < 20)


def timeouts(client):
    patient = client.with_options(timeout=0.5, max_retries=0)
    try:
        patient.chat.completions.create(model="gpt", messages=user(script(head_ms=20000)))
        check("timeout", False)
    except openai.APITimeoutError:
        check("timeout", True)
    try:
        for _ in patient.chat.completions.create(model="gpt", messages=user(script(tokens=5, first_token_ms=20000)), stream=True):
            pass
        check("timeout in a stream", False)
    except Exception as error:
        check("timeout in a stream", "timed out" in str(error).lower() or "timeout" in type(error).__name__.lower())
    answered(2)


def cancellation(client):
    stream = client.chat.completions.create(model="gpt", messages=user(script(endless=True, pace_ms=5)), stream=True)
    for number, _ in enumerate(stream):
        if number == 10:
            break
    stream.close()
    answered()
    check("cancellation", True)


def messages(client):
    whole = client.messages.create(model="claude", max_tokens=50, messages=user(script(tokens=7)))
    answered()
    check("messages", whole.content[0].text.startswith("belay0 ") and whole.usage.output_tokens == 7)
    check("messages request id", whole._request_id)
    with client.messages.stream(model="claude", max_tokens=90, messages=user(script(tokens=40, ping_every=5, split=3))) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    answered()
    check("messages stream", final.usage.output_tokens == 40 and final.content[0].text == text and final.stop_reason == "end_turn")
    count = client.messages.count_tokens(model="claude", messages=user("how many?"))
    check("count tokens", count.input_tokens > 0)
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    seen = client.messages.create(model="claude", max_tokens=50, messages=user([{"type": "image", "source": source}]))
    answered()
    check("messages image", seen.content)
    cached = [{"type": "text", "text": "be short", "cache_control": {"type": "ephemeral"}}]
    usage = {"input": 3, "cache_read": 100, "cache_write_5m": 20}
    whole = client.messages.create(model="claude", max_tokens=50, system=cached, messages=user(script(tokens=2, usage=usage)))
    answered()
    check("messages cache", whole.usage.cache_read_input_tokens == 100 and whole.usage.cache_creation_input_tokens == 20)


def messages_tools(client):
    tools = [{"name": "weather", "input_schema": TOOL}]
    start = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 1},
    }

    def named(value):
        return event(value, value["type"])

    def block(index, content, deltas):
        yield named({"type": "content_block_start", "index": index, "content_block": content})
        for delta in deltas:
            yield named({"type": "content_block_delta", "index": index, "delta": delta})
        yield named({"type": "content_block_stop", "index": index})

    thinking = [{"type": "thinking_delta", "thinking": "Hm"}, {"type": "signature_delta", "signature": "c2ln"}]
    pieces = [{"type": "input_json_delta", "partial_json": part} for part in ('{"city":', ' "Wien"}')]
    events = [named({"type": "message_start", "message": start})]
    events += block(0, {"type": "thinking", "thinking": "", "signature": ""}, thinking)
    events += block(1, {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}, pieces)
    delta = {"stop_reason": "tool_use", "stop_sequence": None}
    events += [named({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 30}}), named({"type": "message_stop"})]
    asked = user(script(events=events))
    with client.messages.stream(
        model="claude", max_tokens=2048, messages=asked, tools=tools, thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        final = stream.get_final_message()
    answered()
    check("messages thinking", final.content[0].thinking == "Hm" and final.content[0].signature == "c2ln")
    check("messages tool call", final.content[1].input == {"city": "Wien"} and final.stop_reason == "tool_use")
    asked.append({"role": "assistant", "content": [block.model_dump() for block in final.content]})
    result = [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}, {"type": "text", "text": script(tokens=3)}]
    asked.append({"role": "user", "content": result})
    second = client.messages.create(model="claude", max_tokens=50, messages=asked, tools=tools)
    answered()
    check("messages tool result", second.usage.output_tokens == 3)


def anthropic_errors(client):
    def refused(kind, **fields):
        try:
            client.with_options(max_retries=0).messages.create(**{"model": "claude", "max_tokens": 50, **fields})
        except kind as error:
            return error
        return None

    error = refused(anthropic.NotFoundError, model="cloude", messages=user("hi"))
    check("unknown claude", error and "did you mean `claude`" in str(error))
    error = refused(anthropic.APIStatusError, messages=user(script(status=529, headers={"retry-after": "3"})))
    check("overloaded", error and error.status_code == 529 and error.response.headers["retry-after"] == "3")
    error = refused(anthropic.APIStatusError, messages=user("hi"), extra_headers={"belay-cost-cap": "0.000000001"})
    check("claude's cost cap", error and error.status_code == 402 and error.body["error"]["type"] == "billing_error")
    try:
        with client.messages.stream(model="claude", max_tokens=50, messages=user(script(error_after=4))) as stream:
            "".join(stream.text_stream)
        check("error in claude's stream", False)
    except anthropic.APIStatusError:
        check("error in claude's stream", True)
    answered()
    try:
        with client.messages.stream(model="claude", max_tokens=50, messages=user(script(cut_after=5))) as stream:
            "".join(stream.text_stream)
        check("claude's cut stream", False)
    except anthropic.APIError as error:
        check("claude's cut stream", "not complete" in str(error))
    answered()


CLAUDES_CALL = [
    {
        "type": "message_start",
        "message": {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Let me look."}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "content_block_start", "index": 1,
        "content_block": {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
    },
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"city":'}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ' "Wien"}'}},
    {"type": "content_block_stop", "index": 1},
    {
        "type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 30},
    },
    {"type": "message_stop"},
]


def across_to_claude(client):
    """OpenAI's SDK, a model of Anthropic's API."""
    whole = client.chat.completions.create(
        model="claude",
        max_tokens=50,
        stop=["END"],
        messages=[{"role": "system", "content": "be short"}] + user(script(tokens=7, usage={"input": 3, "cache_read": 10})),
    )
    answered()
    usage = whole.usage
    check("across: chat", whole.choices[0].message.content.startswith("belay0 ") and whole.choices[0].finish_reason == "stop")
    check("across: chat usage", (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens) == (13, 7, 10))
    text, usage = "", None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(
        model="claude", messages=user(script(tokens=40, ping_every=7, split=3)), stream=True, stream_options=options
    ):
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    answered()
    check("across: chat stream", text.startswith("belay0 ") and usage.completion_tokens == 40)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]
    asked = user(script(events=[event(one, one["type"]) for one in CLAUDES_CALL]))
    stream = client.chat.completions.stream(model="claude", messages=asked, tools=tools)
    with stream as events:
        for _ in events:
            pass
        first = events.get_final_completion().choices[0]
    answered()
    call = first.message.tool_calls[0]
    check("across: chat tool call", json.loads(call.function.arguments) == {"city": "Wien"} and first.finish_reason == "tool_calls")
    check("across: chat tool text", first.message.content == "Let me look.")
    called = {"id": call.id, "type": "function", "function": {"name": "weather", "arguments": call.function.arguments}}
    asked.append({"role": "assistant", "content": first.message.content, "tool_calls": [called]})
    asked.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    asked += user(script(tokens=3))
    second = client.chat.completions.create(model="claude", messages=asked, tools=tools)
    answered()
    check("across: chat tool result", second.usage.completion_tokens == 3)
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PICTURE}}]
    seen = client.chat.completions.create(model="claude", messages=user(parts), max_tokens=20)
    answered()
    check("across: chat image", seen.choices[0].message.content)
    for field, value in [("logprobs", True), ("seed", 7), ("n", 2), ("response_format", {"type": "json_object"})]:
        try:
            client.chat.completions.create(model="claude", messages=user("hi"), **{field: value})
            check(f"across: {field}", False)
        except openai.BadRequestError as error:
            check(f"across: {field}", field in str(error) and "cannot be carried" in str(error))
    try:
        client.chat.completions.create(model="claude", messages=user(script(status=529)), max_tokens=20)
        check("across: overloaded", False)
    except openai.InternalServerError as error:
        check("across: overloaded", error.status_code == 529 and error.type == "overloaded_error")
    whole = client.responses.create(model="claude", instructions="be short", input=script(tokens=6), max_output_tokens=50)
    answered()
    check("across: responses", whole.output_text.startswith("belay0 ") and whole.usage.output_tokens == 6)
    with client.responses.stream(model="claude", input=asked[0]["content"], tools=[{"type": "function", **tools[0]["function"]}]) as stream:
        kinds = [part.type for part in stream]
        final = stream.get_final_response()
    answered()
    check("across: responses stream", final.output_text == "Let me look." and final.usage.output_tokens == 30)
    check("across: responses call", json.loads(final.output[1].arguments) == {"city": "Wien"} and "response.completed" in kinds)


def across_to_gpt(client):
    """Anthropic's SDK, a model of OpenAI's API."""
    whole = client.messages.create(
        model="gpt", max_tokens=50, system="be short", stop_sequences=["END"], messages=user(script(tokens=7, usage={"input": 3, "cache_read": 10}))
    )
    answered()
    check("across: messages", whole.content[0].text.startswith("belay0 ") and whole.stop_reason == "end_turn")
    check("across: messages usage", (whole.usage.input_tokens, whole.usage.cache_read_input_tokens, whole.usage.output_tokens) == (3, 10, 7))
    with client.messages.stream(model="gpt", max_tokens=90, messages=user(script(tokens=40, split=3))) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    answered()
    check("across: messages stream", final.content[0].text == text and final.usage.output_tokens == 40)
    cut = client.messages.create(model="gpt", max_tokens=5, messages=user(script(tokens=40)))
    answered()
    check("across: messages length", cut.stop_reason == "max_tokens")

    def chunk(delta, finish=None, **more):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt", "choices": [choice], **more})

    def call(index, **fields):
        return {"tool_calls": [{"index": index, **fields}]}

    events = [
        chunk({"role": "assistant", "content": "Let me look."}),
        chunk(call(0, id="call_1", type="function", function={"name": "weather", "arguments": '{"city":'})),
        chunk(call(0, function={"arguments": ' "Wien"}'})),
        chunk(call(1, id="call_2", type="function", function={"name": "weather", "arguments": '{"city": "Graz"}'})),
        chunk({}, "tool_calls", usage={"prompt_tokens": 9, "completion_tokens": 30, "total_tokens": 39}),
        "data: [DONE]\n\n",
    ]
    tools = [{"name": "weather", "description": "says it", "input_schema": TOOL}]
    asked = user(script(events=events))
    with client.messages.stream(model="gpt", max_tokens=90, messages=asked, tools=tools) as stream:
        final = stream.get_final_message()
    answered()
    cities = [block.input["city"] for block in final.content if block.type == "tool_use"]
    check("across: messages tool calls", cities == ["Wien", "Graz"] and final.stop_reason == "tool_use" and final.usage.output_tokens == 30)
    asked.append({"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in final.content]})
    results = [{"type": "tool_result", "tool_use_id": f"call_{number}", "content": "sunny", "is_error": number == 2} for number in (1, 2)]
    asked.append({"role": "user", "content": results + [{"type": "text", "text": script(tokens=3)}]})
    second = client.messages.create(model="gpt", max_tokens=50, messages=asked, tools=tools)
    answered()
    check("across: messages tool results", second.usage.output_tokens == 3)
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    seen = client.messages.create(model="gpt", max_tokens=20, messages=user([{"type": "image", "source": source}]))
    answered()
    check("across: messages image", seen.content[0].text)
    try:
        client.messages.create(model="gpt", max_tokens=20, messages=user("hi"), extra_body={"top_k": 5})
        check("across: top_k", False)
    except anthropic.BadRequestError as error:
        check("across: top_k", "top_k cannot be carried" in str(error))
    try:
        client.messages.create(model="gpt", max_tokens=20, messages=user(script(status=429, headers={"retry-after": "2"})))
        check("across: rate limit", False)
    except anthropic.RateLimitError as error:
        check("across: rate limit", error.response.headers["retry-after"] == "2" and error.body["error"]["type"] == "rate_limit_error")
    try:
        with client.messages.stream(model="gpt", max_tokens=50, messages=user(script(cut_after=5))) as stream:
            "".join(stream.text_stream)
        check("across: cut stream", False)
    except anthropic.APIError as error:
        check("across: cut stream", "not complete" in str(error))
    answered()


def editors(client):
    """Some send a body of the Responses API to the path of Chat Completions, and want chunks of chat."""
    body = {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": script(tokens=9)}]}],
        "tools": [{"type": "function", "name": "weather", "parameters": TOOL}],
    }
    for model in ("gpt", "claude"):
        text = ""
        for chunk in client.chat.completions.create(model=model, messages=openai.omit, extra_body=body, stream=True):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        answered()
        check(f"editors' bodies to {model}", text.startswith("belay0 "))


def models(openai_client, anthropic_client):
    names = {model.id for model in openai_client.models.list()}
    check("models", {"auto", "gpt", "claude"} <= names)
    check("a model", openai_client.models.retrieve("gpt").owned_by == "openai")
    check("claude's models", {"auto", "gpt", "claude"} <= {model.id for model in anthropic_client.models.list()})


def many_at_once(client):
    texts = {}

    def one(number):
        stream = client.chat.completions.create(model="gpt", messages=user(script(tokens=20, pace_ms=5)), stream=True)
        texts[number] = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answered(16)
    check("many at once", len(texts) == 16 and len(set(texts.values())) == 1)


# The key of the caller is nobody's: the gateway does not pass it on.
with_version = openai.OpenAI(base_url=GATEWAY + "/v1", api_key=KEY, max_retries=0)
without_version = openai.OpenAI(base_url=GATEWAY, api_key=KEY, max_retries=0)
claude = anthropic.Anthropic(base_url=GATEWAY, api_key=KEY, max_retries=0)
chat(with_version)
chat_tools(without_version)
responses(with_version)
embeddings(with_version)
openai_errors(with_version)
retries(with_version)
timeouts(with_version)
cancellation(with_version)
messages(claude)
messages_tools(claude)
anthropic_errors(claude)
across_to_claude(with_version)
across_to_gpt(claude)
editors(with_version)
models(with_version, claude)
many_at_once(with_version)
print(json.dumps({"checks": checks, "charged": charged}))
