//! The rules of docs/ARCHITECTURE.md and of the house, held by reading manifests and sources.
//!
//! Sources are read without comments and without their unit tests, so that a rule may be spoken of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files above the limit, each with its reason. One that shrinks must leave this list.
const LONG_FILES: [(&str, &str); 4] = [
    ("protocol/src/frame.rs", "every wire number and size in one place"),
    ("protocol/src/message.rs", "every message in one place, so that the wire can be read in one go"),
    ("protocol/src/dialect/body.rs", "one subject; its unit tests are what passes the limit"),
    ("protocol/src/dialect/usage.rs", "one subject; its unit tests are what passes the limit"),
];
const LONGEST_FILE: usize = 400;
/// The library and program crates; the harness (`tests`) may do anything.
const CRATES: [&str; 7] =
    ["protocol", "protocol/transport", "protocol/http", "protocol/traces", "certs", "relay", "client"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

struct Source {
    /// From the workspace's root, with `/`.
    path: String,
    whole: String,
    /// Without comments and unit tests; lines keep their numbers.
    code: String,
}

impl Source {
    fn is_cli(&self) -> bool {
        self.path.contains("/src/cli/") || self.path.ends_with("/src/main.rs")
    }

    /// `path:line: text` of every line of code in which one of the words stands as a word.
    fn lines_with(&self, words: &[&str]) -> Vec<String> {
        let found = self.code.lines().enumerate().filter(|(_, line)| words.iter().any(|word| has_word(line, word)));
        found.map(|(number, line)| format!("{}:{}: {}", self.path, number + 1, line.trim())).collect()
    }
}

/// True if `word` stands in `text` and is no part of a longer identifier.
fn has_word(text: &str, word: &str) -> bool {
    let in_name = |c: char| c.is_alphanumeric() || c == '_';
    let inside = |c: Option<char>, edge: Option<char>| c.is_some_and(in_name) && edge.is_some_and(in_name);
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !inside(before.chars().next_back(), word.chars().next())
            && !inside(after.chars().next(), word.chars().next_back())
    })
}

/// All Rust files below a directory, in order.
fn sources(below: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(below)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let whole = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
                found.push(Source { code: code_of(&path, &whole), path, whole });
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {below}");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Blanks comments, and the unit tests, which stand last in a file or in one of their own.
fn code_of(path: &str, whole: &str) -> String {
    // A module of unit tests in a file of its own.
    if path.ends_with("/tests.rs") {
        return String::new();
    }
    let mut code = String::new();
    let mut lines = whole.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.ends_with('{')) {
            break;
        }
        // "//" after a space or at the beginning is a comment; in "http://" it is not.
        let end = if line.trim_start().starts_with("//") { 0 } else { line.find(" //").unwrap_or(line.len()) };
        code += &line[..end];
        code.push('\n');
    }
    code
}

fn all_sources() -> Vec<Source> {
    CRATES.iter().flat_map(|name| sources(&format!("{name}/src"))).collect()
}

/// Fails with every offending line.
fn none(rule: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{rule}:\n{}", offences.join("\n"));
}

/// The names in a table of a crate's manifest, with what stands there.
fn dependencies(name: &str, table: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
    let mut inside = false;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        if line.starts_with('[') {
            // Also what is for some platforms only: `[target.'cfg(unix)'.dependencies]`.
            inside = line == format!("[{table}]") || line.ends_with(&format!(".{table}]"));
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside) {
            let key = key.trim().split('.').next().unwrap();
            found.insert(key.to_owned(), value.trim().to_owned());
        }
    }
    found
}

fn depends(name: &str, on: &str) -> bool {
    ["dependencies", "build-dependencies"].iter().any(|table| dependencies(name, table).contains_key(on))
}

#[test]
fn crates_depend_on_what_they_may_know() {
    let forbidden: [(&str, &[&str]); 7] = [
        (
            "protocol",
            &[
                "tokio",
                "quinn",
                "quinn-proto",
                "rustls",
                "rusqlite",
                "reqwest",
                "hyper",
                "axum",
                "socket2",
                "rand",
                "belay-transport",
                "belay-certs",
                "belay-relay",
                "belay-client",
                "anyhow",
            ],
        ),
        (
            "protocol/transport",
            &[
                "belay-certs",
                "belay-relay",
                "belay-client",
                "rusqlite",
                "reqwest",
                "hyper",
                "axum",
                "bincode",
                "anyhow",
            ],
        ),
        (
            "protocol/http",
            &[
                "belay-transport",
                "belay-relay",
                "belay-client",
                "rusqlite",
                "reqwest",
                "hyper",
                "axum",
                "quinn",
                "anyhow",
            ],
        ),
        (
            "protocol/traces",
            &["belay-certs", "belay-relay", "belay-client", "rusqlite", "quinn", "axum", "bincode", "anyhow"],
        ),
        (
            "certs",
            &[
                "belay-protocol",
                "belay-transport",
                "belay-relay",
                "belay-client",
                "quinn",
                "tokio",
                "socket2",
                "rusqlite",
                "reqwest",
                "anyhow",
            ],
        ),
        ("relay", &["belay-client", "belay-tests", "bincode"]),
        ("client", &["belay-tests", "bincode", "reqwest", "axum"]),
    ];
    let mut offences = Vec::new();
    for (name, names) in forbidden {
        assert!(depends(name, "serde") || depends(name, "thiserror"), "the manifest of {name} was not read");
        offences.extend(names.iter().filter(|on| depends(name, on)).map(|on| format!("{name} depends on {on}")));
    }
    none("a crate depends on what it must not know", offences);
}

#[test]
fn client_and_relay_do_not_know_each_other() {
    let relay = &dependencies("client", "dependencies")["belay-relay"];
    assert!(relay.contains("optional = true"), "the client's belay-relay must be optional: {relay}");
    assert!(!dependencies("client", "dev-dependencies").contains_key("belay-relay"));
    assert!(!dependencies("relay", "dev-dependencies").contains_key("belay-client"));
    let of_client = sources("client/src");
    let offences = of_client.iter().filter(|source| source.path != "client/src/cli/dev.rs");
    none("only client/src/cli/dev.rs names the relay", offences.flat_map(|s| s.lines_with(&["belay_relay"])).collect());
    let of_relay = sources("relay/src");
    none("the relay does not know the client", of_relay.iter().flat_map(|s| s.lines_with(&["belay_client"])).collect());
    let main = of_client.iter().find(|source| source.path == "client/src/cli/mod.rs").unwrap();
    let guarded = "#[cfg(all(feature = \"dev\", unix))]\nmod dev;";
    assert!(main.code.contains(guarded), "cli/dev.rs stands behind the feature `dev`");
}

#[test]
fn bincode_is_named_in_one_file() {
    let with = all_sources().into_iter().filter(|source| source.path != "protocol/src/codec.rs");
    none("bincode only in protocol/src/codec.rs", with.flat_map(|s| s.lines_with(&["bincode"])).collect());
    let manifests = CRATES.iter().chain(&["tests"]).filter(|name| **name != "protocol" && depends(name, "bincode"));
    none("bincode only in protocol's manifest", manifests.map(ToString::to_string).collect());
}

#[test]
fn the_protocol_knows_no_io() {
    let words = [
        "quinn",
        "quinn_proto",
        "tokio",
        "rusqlite",
        "reqwest",
        "hyper",
        "rustls",
        "rand",
        "std::net",
        "std::time",
        "std::fs",
        "std::process",
        "std::thread",
        "std::env",
        "Instant",
        "SystemTime",
    ];
    none(
        "protocol has no I/O and no clock",
        sources("protocol/src").iter().flat_map(|s| s.lines_with(&words)).collect(),
    );
}

#[test]
fn transport_and_certs_know_only_their_own() {
    let transport = ["belay_certs", "rusqlite", "reqwest", "hyper", "message"];
    let found = sources("protocol/transport/src").into_iter().flat_map(|s| s.lines_with(&transport)).collect();
    none("transport knows no certificates, messages, SQL, HTTP", found);
    let http = ["TcpStream", "TcpListener", "hyper", "axum", "rusqlite", "std::net"];
    none(
        "protocol/http knows no sockets and no server",
        sources("protocol/http/src").into_iter().flat_map(|s| s.lines_with(&http)).collect(),
    );
    let certs = ["quinn", "tokio", "std::net", "socket2", "belay_protocol", "belay_transport"];
    let found = sources("certs/src").into_iter().flat_map(|s| s.lines_with(&certs)).collect();
    none("certs knows no sockets and no protocol", found);
}

#[test]
fn sql_lives_below_the_store() {
    let words = [
        "rusqlite",
        "rusqlite_migration",
        "SELECT ",
        "INSERT INTO",
        "DELETE FROM",
        "UPDATE ",
        "PRAGMA ",
        "CREATE TABLE",
    ];
    // The client has one file with SQL: what it knows of what it syncs.
    let allowed = |path: &str| path.starts_with("relay/src/store/") || path == "client/src/sync/index.rs";
    let outside = all_sources().into_iter().filter(|source| !allowed(&source.path));
    none(
        "SQL only below relay/src/store, and in the client's index",
        outside.flat_map(|s| s.lines_with(&words)).collect(),
    );
    let store = sources("relay/src/store").into_iter();
    let knows = ["quinn", "reqwest", "axum", "hyper"];
    none("the store knows no QUIC and no HTTP", store.flat_map(|s| s.lines_with(&knows)).collect());
}

#[test]
fn stream_handlers_know_neither_quinn_nor_sql() {
    let words = ["quinn", "rusqlite", "reqwest"];
    none("relay/src/streams", sources("relay/src/streams").iter().flat_map(|s| s.lines_with(&words)).collect());
}

#[test]
fn anyhow_and_printing_belong_to_the_command_lines() {
    let libraries = || all_sources().into_iter().filter(|source| !source.is_cli());
    none("anyhow only in cli and main", libraries().flat_map(|s| s.lines_with(&["anyhow"])).collect());
    let prints = ["println!", "print!", "eprintln!", "eprint!", "dbg!", "process::exit"];
    none("libraries do not print or exit", libraries().flat_map(|s| s.lines_with(&prints)).collect());
}

#[test]
fn no_error_says_its_source_twice() {
    // Causes are shown behind their effect, so an effect must not contain them.
    let mut offences = Vec::new();
    for source in all_sources() {
        let lines: Vec<&str> = source.code.lines().collect();
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("#[error(")) {
            let variant = lines[number + 1..].iter().find(|line| !line.trim().is_empty()).unwrap_or(&"");
            let of_tuple = variant.contains("(#[from]") || variant.contains("(#[source]");
            if line.contains("{source}") || of_tuple && line.contains("{0}") {
                offences.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    none("an error's text repeats its source", offences);
}

#[test]
fn time_randomness_and_blocking_come_from_outside() {
    let words = [
        "SystemTime::now",
        "std::time::Instant",
        "Instant::now_std",
        "thread_rng",
        "rand::rng",
        "OsRng",
        "from_os_rng",
        "spawn_blocking",
        "block_in_place",
        "tokio::fs",
    ];
    let libraries = all_sources().into_iter().filter(|source| !source.is_cli());
    // runtime.rs names the type because quinn's trait is written in it; the time comes from tokio.
    let exempt = ["protocol/transport/src/env.rs", "protocol/transport/src/runtime.rs"];
    let offences = libraries.filter(|source| !exempt.contains(&&*source.path));
    none("only env.rs asks the machine", offences.flat_map(|s| s.lines_with(&words)).collect());
}

#[test]
fn every_select_is_biased() {
    let mut offences = Vec::new();
    let mut seen = 0;
    for source in all_sources().iter().filter(|source| !source.is_cli()) {
        let mut lines = source.code.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            if !has_word(line, "select!") {
                continue;
            }
            seen += 1;
            // Comments are blank lines by now.
            let first = lines.by_ref().map(|(_, line)| line.trim()).find(|line| !line.is_empty());
            if first != Some("biased;") {
                offences.push(format!("{}:{}", source.path, number + 1));
            }
        }
    }
    assert!(seen >= 8, "only {seen} select! were found: does this test still read them?");
    none("a select! that is not biased", offences);
}

#[test]
fn no_file_outgrows_a_head() {
    let mut long: BTreeMap<String, usize> = BTreeMap::new();
    for source in all_sources().iter().chain(&sources("tests/src")) {
        let lines = source.whole.lines().count();
        if lines > LONGEST_FILE {
            long.insert(source.path.clone(), lines);
        }
    }
    for (path, reason) in LONG_FILES {
        assert!(!reason.is_empty());
        assert!(long.remove(path).is_some(), "{path} has at most {LONGEST_FILE} lines now: take it off the list");
    }
    let offences = long.iter().map(|(path, lines)| format!("{path}: {lines} lines")).collect();
    none("a file above 400 lines: what is its second subject?", offences);
}

#[test]
fn unit_tests_stand_last() {
    // What this module relies on, or it would not see the code behind them.
    let mut offences = Vec::new();
    for source in all_sources() {
        let Some((_, tests)) = source.whole.split_once("\n#[cfg(test)]\nmod tests {\n") else { continue };
        let behind = tests.split_once("\n}\n").map_or("", |(_, behind)| behind);
        if !behind.trim().is_empty() {
            offences.push(source.path);
        }
    }
    none("code stands behind the unit tests", offences);
}
