//! What `belayd config init` writes.

use super::environment::Environment;

const DEMO_MODEL: &str = r#"[models.demo]
provider = "demo"
name = "demo-1"
context_tokens = 32000
max_output_tokens = 4096
price = { input = "0.50", output = "1.50" }
"#;

/// A commented configuration that works as it is.
pub const TEMPLATE: &str = r#"# Configuration of belayd, the belay relay.
# Every key is shown with its default unless it says otherwise. Check with: belayd config check

# "development", "staging" or "production". Staging refuses key files that everybody can read and secrets that stand in
# examples; production also refuses the demo provider, plain HTTP that other machines can reach or that leads to a
# provider elsewhere, and keys for tests.
environment = "development"

[listen]
# Where QUIC (UDP) listens.
quic = "0.0.0.0:4433"
# Whether TCP listens on the same address, for clients whose network lets no UDP through. Turn it off
# where another server has that port.
tcp = true
# The addresses that invites carry, for the clients to dial. Name the public ones, for example
# ["relay.example.org:4433"]. Empty: the address that is listened on.
public = []
# Threads that serve tunnels and providers. 0: half of the cores, at least one; the store's threads and
# the kernel have use for the others, and a token that stays on one thread costs a quarter less.
threads = 0

# Where programs of this machine find the operator's side over TCP, with metrics for Prometheus (docs/METRICS.md). Whoever
# asks shows the token that is in admin.token in the state directory. Off unless an address of 127.0.0.1 is named.
[admin]
# listen = "127.0.0.1:9470"

# For callers without a tunnel: OpenAI's and Anthropic's APIs, belay's own, payments. Off unless an address is
# named; they show API keys (belayd key create).
[http]
# listen = "0.0.0.0:8443"
# "files": the certificate and key below, in PEM. "own": a certificate of the relay's own authority, for the names
# below. "off": plain HTTP, for this machine or behind a proxy; the default where only this machine gets there.
# tls = "files"
# cert_file = "/etc/belayd/cert.pem"
# key_file = "/etc/belayd/key.pem"
names = []
# Origins whose pages may ask, for example ["https://app.example.org"].
origins = []
connections = 4096
connections_per_address = 256
# Keys and tokens from one address that are looked up in a second; a right one is, once a minute.
look_ups_per_second = 100
# Addresses of proxies before the relay: where their callers come from is what they say in x-forwarded-for.
trusted_proxies = []
# A connection that is idle, or a request whose head takes so long, is closed; a caller that takes nothing of its
# answer for so long has left; a stream without news gives a sign of life.
idle_s = 60
patience_s = 60
keep_alive_s = 15

# Tokens (JWT) of an identity provider are taken beside API keys: signed with the issuer's key ("EdDSA" or "RS256"),
# from one PEM file (key_file) or a set of keys (jwks_file); both are read again when they change. They say who pays (tenant_claim),
# what for (scope: read write escalate admin), sub, iat and exp.
# [[jwt]]
# issuer = "https://id.example.org"
# audience = "belay"
# algorithm = "EdDSA"
# jwks_file = "/etc/belayd/jwks.json"
# tenant_claim = "tenant"
# longest_s = 86400

[state]
# Everything that the relay remembers is below this directory: its authority, the central database,
# a directory per tenant. It must be there for this relay alone.
dir = "belay-state"
# The master key: 32 random bytes, with which the books' checkpoints are signed. Made at the first start as
# master.key in the state directory; keep it elsewhere to have the books protected from whoever can write
# that directory.
# master_key_file = "/etc/belayd/master.key"
# A file of that size is kept there. When the disk is nearly full it goes: what runs is settled in its room, and nothing
# new begins until somebody has made more.
reserve_mib = 64
# Threads that write to SQLite.
store_threads = 4
# A tenant's file that nobody used for so many seconds is closed.
idle_close_s = 60

[log]
# "human" or "json".
format = "human"
# In the form of RUST_LOG, which wins where it is set. No level ever shows keys or prompts.
filter = "info"

# Spans of requests (client, relay, provider; OpenTelemetry) for a collector that speaks OTLP over HTTP. Off unless its
# address is named, without the path. Headers for it, such as a key, are a line each in a file: name: value. Of requests
# whose caller says nothing of it, this part is kept, from 0 to 1.
[traces]
# endpoint = "http://127.0.0.1:4318"
# headers_file = "/etc/belayd/traces.headers"
# ratio = 1.0

[billing]
# Applied to every price line of a request, in basis points (10000 charges the provider's price itself),
# by what the tenant pays with: an allowance every month and nothing beyond it ("free"), its balance
# ("managed"), or its own provider keys and a licence to the relay ("byok").
multiplier_free = 10000
multiplier_managed = 10300
multiplier_byok = 3000
# And for usage that its computers record (below, recorded).
multiplier_local = 10000
multiplier_knowledge = 13000
# What a tenant of the free tier has in a calendar month (UTC), in dollars.
free_allowance = "0"
# Each tenant's usage is handed to the central database when so many dollars of it wait, or the oldest has
# waited for so long; and when the relay stops.
flush_at = "5.00"
flush_after_s = 60
# The output cap where a caller names none (the model's own ceiling and the balance may lower it).
default_max_output_tokens = 4096
# A page where tenants can pay; without it, only the operator adds money (belayd tenant credit). {tenant} and
# {amount} (in dollars, or nothing) are filled in.
# topup_url = "https://pay.example.org/?tenant={tenant}&amount={amount}"
# What public providers charge comes with the relay (belayd prices list --catalogue). A newer list, made
# with relay/prices/convert.py, is named here.
# prices_file = "/etc/belayd/prices.json"
# For models that have no price of their own, neither below nor in that list. Without it, they are refused.
# default_price = { input = "5", output = "25" }

# Payments by Stripe, where tenants can pay by themselves (belay topup 20): checkout pages, webhooks (sent to
# /webhooks/stripe of the HTTP side: checkout.session.completed, payment_intent.succeeded and .payment_failed,
# charge.refunded, refund.created, .updated and .failed, charge.dispute.created, .closed, .funds_withdrawn and
# .funds_reinstated, invoice.paid), top-ups by themselves, and a meter for tenants that pay later (those with a ceiling,
# for what they are below zero; its values are nano-dollars). Secrets of webhooks are a line each; two are good while one
# takes the place of the other. Both can come from the environment: key_env, webhook_secret_env.
# [stripe]
# key_file = "/etc/belayd/stripe.key"
# webhook_secrets_file = "/etc/belayd/stripe-webhook.secrets"
# success_url = "https://example.org/paid"
# cancel_url = "https://example.org/"
# meter_event = "belay_usage"
# How old a webhook may be, and how often top-ups and meters are looked at. url and private are for tests of it.
# tolerance_s = 300
# look_every_s = 30
# url = "https://api.stripe.com"
# private = false

[limits]
# Per tenant; a tenant's own budgets come before them (belayd budget set). Tokens in and out; 0: as many
# as can be paid.
requests_per_minute = 100
tokens_per_minute = 0
requests_at_once = 50
streams_per_tunnel = 128
streams_per_tenant = 1024
instances_per_device = 4
handshakes_per_second = 20
pending_handshakes = 1024
request_body_mib = 32
answer_body_mib = 32
bodies_in_memory_mib = 256
# Events of one answer that its reader has not acknowledged, and of all answers together. At the
# first limit, the answer's provider is not read; at the second, those that wait for a reader go first.
unread_events_mib = 8
event_logs_mib = 256
# What clients may make the relay use in all: tunnels, requests, bodies, events. Above it, new tunnels
# and requests are refused as overloaded; those that run go on. event_logs_mib is a quarter of it unless
# it is named.
memory_mib = 1024
# So much of a session goes with its next request, if the model has room for it; the oldest is left out.
session_history_tokens = 32000
# What a tenant's sessions may take on disk. Above it, nothing is added to them.
sessions_mib = 1024
# What a tenant's settings, documents and adapters may take, with what they were in the last 30 days.
sync_mib = 10240

[timeouts]
handshake_ms = 10000
hello_ms = 10000
request_body_ms = 60000
first_event_ms = 120000
between_events_ms = 60000
total_ms = 900000
heartbeat_ms = 10000
# How long a request goes on when its reader has lost the connection, and how long a finished answer
# waits for a reader to come back.
resume_window_ms = 300000
keep_answer_ms = 86400000
drain_ms = 30000
# How long a device's certificate holds (it is renewed by itself when two thirds of that are over), and how long after its
# end it can still be renewed, and nothing else be done with it: computers sleep for weeks.
device_certificate_ms = 2592000000
expired_grace_ms = 2592000000

# Providers. kind is "anthropic", "openai" (and everything compatible with it) or "demo".
# Keys come from the environment (key_env) or from a file that only belayd can read (key_file). A
# provider whose certificate no public authority has signed names those that may in a PEM file (ca_file).
# Its prices are found by its address; for another address name its place in the list (prices). With
# any_model, callers may name any of its models, as "provider/model", and not only those below. A name that leads
# to an address that is not public is not asked, unless private = true; an address that is written here is meant. With
# trace_context = true it is told where a request stands in a trace (the header traceparent). url is the address of its
# API, with or without /v1; without it, the provider's own. The demo provider says a word every pace_ms.
[providers.demo]
kind = "demo"

# [providers.anthropic]
# kind = "anthropic"
# key_env = "ANTHROPIC_API_KEY"
# prices = "anthropic"
# any_model = false

# [providers.openai]
# kind = "openai"
# key_file = "/etc/belayd/openai.key"
# url = "https://api.openai.com/v1"
# private = false
# trace_context = false

# Models by the name that callers use. What is not said is taken from the list of prices: context_tokens,
# price, and for cap_field what the provider takes; max_output_tokens is then as large as the context. A
# price that is named here counts alone; price_from holds later ones by the day (UTC) on which they begin.
# Prices are dollars per million tokens, as text: input, output,
# cache_read, cache_write_5m, cache_write_1h, input_audio, output_audio, input_image, output_image; those
# that are not named are the same as input's or output's. thousand_calls is what a thousand requests cost
# on top. tiers holds other prices for requests with more input tokens than "above".
[models.demo]
provider = "demo"
name = "demo-1"
context_tokens = 32000
max_output_tokens = 4096
price = { input = "0.50", output = "1.50" }

# [models.claude-sonnet-4-5]
# provider = "anthropic"
# context_tokens = 200000
# max_output_tokens = 64000
# [models.claude-sonnet-4-5.price]
# input = "3"
# output = "15"
# cache_read = "0.30"
# cache_write_5m = "3.75"
# cache_write_1h = "6"
# tiers = [{ above = 200000, input = "6", output = "22.50", cache_read = "0.60", cache_write_5m = "7.50", cache_write_1h = "12" }]

# [models.claude-sonnet-4-5.price_from.2027-01-01]
# input = "2.50"
# output = "12.50"

# [models.gpt-5]
# provider = "openai"
# max_output_tokens = 128000
# images = true
# tools = true

# What is charged for usage that a tenant's computers record: inference on their own (local, free unless a
# price is named here) and indexing, embedding and search of knowledge (knowledge, refused without one).
# [recorded.local]
# price = { input = "0", output = "0" }
# [recorded.knowledge]
# price = { input = "0.10", output = "0" }
# [recorded.knowledge.models]
# nomic-embed-text = { input = "0.02", output = "0" }

# Other names for models. "auto" is what a client asks for when its user names nothing. Of several models
# the first that fits the request (its length, images, tools) and answers serves; money is set aside for the
# dearest. Models with weights share the requests; the others come after them.
[aliases]
auto = "demo"
# claude = "claude-sonnet-4-5"
# gpt = "gpt-5"
# best = ["claude-sonnet-4-5", "gpt-5"]
# shared = [{ model = "gpt-5", weight = 3 }, { model = "claude-sonnet-4-5", weight = 1 }, "demo"]
# By rules: "order" (as they stand) or "cheapest" for the request at hand, and none whose million tokens
# cost more than so many dollars.
# [aliases.frugal]
# models = ["claude-sonnet-4-5", "gpt-5"]
# prefer = "cheapest"
# max_input = "3"
# max_output = "15"

# When all that may serve a request have failed for a reason that may pass (429, 5xx, unreachable), they are
# asked again so often, before the first byte of an answer, and not where a provider wants a longer wait.
[retries]
rounds = 1
longest_wait_ms = 5000
"#;

/// A configuration as it is written for the units in `systemd/`: where they keep its state, and what their socket listens on.
#[must_use]
pub fn for_units(text: &str) -> String {
    let text = text.replacen("quic = \"0.0.0.0:4433\"", "quic = \"[::]:4433\"", 1);
    text.replacen("dir = \"belay-state\"", "dir = \"/var/lib/belayd\"", 1)
}

/// The template for an environment: what is refused there is left out, for the operator to fill in.
#[must_use]
pub fn template(environment: Environment) -> String {
    let named = format!("environment = \"{environment}\"");
    let text = TEMPLATE.replacen("environment = \"development\"", &named, 1);
    if environment != Environment::Production {
        return text;
    }
    // The demo provider, its model and its name stand in blocks of their own.
    let demo = ["[providers.demo]\nkind = \"demo\"\n", DEMO_MODEL, "auto = \"demo\"\n"];
    demo.into_iter().fold(text, |text, block| {
        let commented: String = block.lines().map(|line| format!("# {line}\n")).collect();
        text.replacen(block, &commented, 1)
    })
}
