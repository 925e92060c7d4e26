//! `belayd support-bundle`: what somebody needs who is to help, in one text that can be read before it is sent.
//!
//! There is no secret in it: keys, tokens and passwords are masked in the configuration, comments are left out, and logs,
//! metrics and status never have any. It names tenants, devices and addresses.

use super::admin::connect;
use super::doctor::look;
use super::{Global, print_json, table};
use anyhow::Context;
use belay_protocol::finding::render;
use belay_relay::admin::service::Status;
use belay_transport::env::{Clock, SystemClock};
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use toml::Value;

/// Words of keys whose values are secrets, unless they only say where one lies.
const SECRET: [&str; 5] = ["key", "secret", "token", "password", "credential"];
/// Ends of keys that say where a secret lies.
const PLACES: [&str; 2] = ["_file", "_env"];
/// Settings of a unit that may hold a secret.
const TELLING: [&str; 4] = ["Environment", "SetCredential", "Exec", "PassEnvironment"];
/// Lines of the log.
const LOG_LINES: &str = "2000";

#[derive(Debug, Args)]
pub(super) struct SupportArgs {
    /// Where to (default: belayd-support.txt); "-" is stdout
    #[arg(value_name = "FILE")]
    path: Option<PathBuf>,
}

pub(super) async fn bundle(global: &Global, args: SupportArgs) -> anyhow::Result<()> {
    let path = args.path.unwrap_or_else(|| PathBuf::from("belayd-support.txt"));
    let text = text(global).await;
    if path.as_os_str() == "-" {
        print!("{text}");
        return Ok(());
    }
    belay_certs::file::write_private(&path, text.as_bytes())?;
    if global.json {
        return print_json(&serde_json::json!({ "written": path, "bytes": text.len() }));
    }
    println!("wrote {}: {} lines of text; read it before you send it", path.display(), text.lines().count());
    Ok(())
}

async fn text(global: &Global) -> String {
    let mut bundle = String::new();
    // Writing to a text cannot fail.
    let mut section = |name: &str, text: &str| {
        let _ = write!(bundle, "== {name}\n{}\n\n", text.trim_end());
    };
    let version = format!("belayd {}, {}", env!("CARGO_PKG_VERSION"), table::time(SystemClock.now_ms()));
    section("version", &version);
    section("machine", &said("uname", &["-srm"]));
    section("system", &std::fs::read_to_string("/etc/os-release").unwrap_or_default());
    let knobs = ["rmem_max", "wmem_max"].map(|name| {
        let value = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap_or_default();
        format!("net.core.{name} = {}", value.trim())
    });
    section("kernel", &knobs.join("\n"));
    let findings = look(global).await;
    section("doctor", &findings.map_or_else(|error| format!("{error:#}"), |findings| render(&findings)));
    section("configuration", &configuration(global).unwrap_or_else(|error| format!("{error:#}")));
    match connect(global) {
        Ok(client) => {
            let status: Result<Status, _> = client.get("/status").await;
            let shown = match &status {
                Ok(status) => serde_json::to_string_pretty(status).unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            section("status", &shown);
            section("metrics", &client.text("/metrics").await.unwrap_or_else(|error| error.to_string()));
        }
        Err(error) => section("status", &format!("{error:#}")),
    }
    section("unit", &without_values(&said("systemctl", &["cat", "--no-pager", "belayd.service", "belayd.socket"])));
    section("log", &said("journalctl", &["-u", "belayd", "--no-pager", "-n", LOG_LINES, "-o", "short-iso"]));
    bundle
}

/// A unit without what its drop-ins may say of secrets.
fn without_values(unit: &str) -> String {
    let masked = |line: &str| match line.trim_start().split_once('=') {
        Some((name, _)) if TELLING.iter().any(|telling| name.trim_end().starts_with(telling)) => {
            format!("{name}=****")
        }
        _ => line.to_owned(),
    };
    // A line that goes on belongs to the one before.
    let whole = unit.replace("\\\n", " ");
    whole.lines().map(masked).collect::<Vec<_>>().join("\n")
}

/// What a program says; what kept it from saying anything.
fn said(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).stdin(Stdio::null()).output() {
        Ok(ran) => format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr)),
        Err(error) => format!("{program}: {error}"),
    }
}

/// The configuration without its comments and secrets.
fn configuration(global: &Global) -> anyhow::Result<String> {
    let text =
        std::fs::read_to_string(&global.config).with_context(|| format!("cannot read {}", global.config.display()))?;
    // The error of a text that is no TOML shows a line of it.
    let mut table: toml::Table = text.parse().ok().context("it is no TOML; belayd config check says where")?;
    mask(&mut table);
    Ok(toml::to_string(&table)?)
}

fn mask(table: &mut toml::Table) {
    for (key, value) in table.iter_mut() {
        let is_secret = SECRET.iter().any(|word| key.contains(word)) && !PLACES.iter().any(|end| key.ends_with(end));
        mask_value(value, is_secret);
    }
}

fn mask_value(value: &mut Value, is_secret: bool) {
    match value {
        Value::Table(table) => mask(table),
        Value::Array(values) => values.iter_mut().for_each(|value| mask_value(value, is_secret)),
        Value::String(text) if is_secret => "****".clone_into(text),
        Value::String(text) => *text = without_secrets(text),
        _ => {}
    }
}

/// An address without what may be a secret in it: a user's name and password, and everything after a question mark.
fn without_secrets(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (rest, query) = match rest.split_once('?') {
        Some((rest, _)) => (rest, "?****"),
        None => (rest, ""),
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match host.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://****@{host}{path}{query}"),
        None => format!("{scheme}://{host}{path}{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_drop_in_sets_is_masked() {
        let unit = "[Service]\nEnvironment=KEY=sk-1 \\\n  OTHER=sk-2\nSetCredential=key:sk-3\nUser=belayd\nExecStartPre=x sk-4\n";
        let shown = without_values(unit);
        assert!(
            !shown.contains("sk-") && shown.contains("User=belayd") && shown.contains("Environment=****"),
            "{shown}"
        );
    }

    #[test]
    fn secrets_of_a_configuration_are_masked_and_where_they_lie_is_not() {
        let text = "[providers.one]\nurl = \"https://user:pass@host/v1?sig=abc\"\nkey_file = \"/etc/key\"\nkey = \"sk-1\"\n\
            [billing]\ntopup_url = \"https://pay.example.org/?token=abc\"\n[[jwt]]\nsecrets = [\"one\", \"two\"]\n";
        let mut table: toml::Table = text.parse().expect("TOML");
        mask(&mut table);
        let shown = toml::to_string(&table).expect("TOML");
        for secret in ["user", "pass", "abc", "sk-1", "one\"", "two"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        assert!(shown.contains("/etc/key") && shown.contains("https://****@host/v1?****"), "{shown}");
    }
}
