//! What `belayd config init` writes.

/// A commented configuration that works as it is.
pub const TEMPLATE: &str = r#"# Configuration of belayd, the belay relay.
# Every key is shown with its default unless it says otherwise. Check with: belayd config check

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

[state]
# Everything that the relay remembers is below this directory: its authority, the central database,
# a directory per tenant. It must be there for this relay alone.
dir = "belay-state"
# Threads that write to SQLite.
store_threads = 4
# A tenant's file that nobody used for so many seconds is closed.
idle_close_s = 60

[log]
# "human" or "json".
format = "human"
# In the form of RUST_LOG, which wins where it is set. No level ever shows keys or prompts.
filter = "info"

[billing]
# Applied to every price line; 10000 charges the provider's price itself.
multiplier_basis_points = 10300
# The output cap where a caller names none (the model's own ceiling and the balance may lower it).
default_max_output_tokens = 4096

[limits]
requests_per_minute = 100
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
expired_grace_ms = 86400000

# Providers. kind is "anthropic", "openai" (and everything compatible with it) or "demo".
# Keys come from the environment (key_env) or from a file that only belayd can read (key_file). A
# provider whose certificate no public authority has signed names those that may in a PEM file (ca_file).
[providers.demo]
kind = "demo"

# [providers.anthropic]
# kind = "anthropic"
# key_env = "ANTHROPIC_API_KEY"

# [providers.openai]
# kind = "openai"
# key_file = "/etc/belayd/openai.key"

# Models by the name that callers use. Prices are dollars per million tokens, as text. Prices of
# cached input that are not named are the same as input's.
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
# price = { input = "3", output = "15", cache_read = "0.30", cache_write_5m = "3.75", cache_write_1h = "6" }

# [models.gpt-5]
# provider = "openai"
# context_tokens = 400000
# max_output_tokens = 128000
# cap_field = "max_completion_tokens"
# price = { input = "1.25", output = "10", cache_read = "0.125" }

# Other names for models. "auto" is what a client asks for when its user names nothing.
[aliases]
auto = "demo"
# claude = "claude-sonnet-4-5"
# gpt = "gpt-5"
"#;
