//! What takes bytes from strangers, fed by libFuzzer.
//!
//! The targets are a program of their own (`tests/fuzz`), built with the instrumentation that shows the fuzzer which
//! branches an input has taken. What was found interesting stays below `target/fuzz/corpus`: the next run begins there.

use crate::run::{ends, id_of};
use anyhow::{Context, ensure};
use belay_protocol::codec::Message;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Ack, Cancel, Failed, FailureCode, Hello, Resume};
use belay_tests::fault::Fault;
use belay_tests::python::target_dir;
use belay_tests::synced::adapter;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The targets.
pub(crate) const TARGETS: [&str; 6] = ["frame", "codec", "sse", "dialects", "safetensors", "config"];

/// What shows libFuzzer where an input goes. All of them are flags of the stable compiler.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// The longest input.
const LONGEST: &str = "-max_len=16384";
/// An input that takes longer, in seconds, or more memory, in MiB, is a finding.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=2048"];

/// Runs a target for so many seconds: first what was found before, then on from what is known to get somewhere. Errors: it
/// cannot be run.
pub(crate) fn run(program: &Path, name: &str, seconds: u64, seed: Option<u64>) -> anyhow::Result<Fault> {
    let dir = target_dir().join("fuzz");
    let (corpus, seeds, found) = (dir.join("corpus").join(name), dir.join("seeds").join(name), dir.join("found"));
    for dir in [&corpus, &seeds, &found] {
        fs::create_dir_all(dir)?;
    }
    for (number, seed) in begin_with(name)?.iter().enumerate() {
        fs::write(seeds.join(number.to_string()), seed)?;
    }
    let log = dir.join(format!("{name}.log"));
    let output = File::create(&log)?;
    let target = || -> anyhow::Result<Command> {
        let mut command = Command::new(program);
        command.env("BELAY_FUZZ", name).args(LIMITS).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(output.try_clone()?);
        Ok(command)
    };
    let again = |input: &Path| eprintln!("  again: BELAY_FUZZ={name} {} {}", program.display(), input.display());
    let (fault, bar) = (format!("fuzz-{name}"), "no input breaks a promise");
    for entry in fs::read_dir(&found)? {
        let input = entry?.path();
        let is_ours = input.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}-")));
        if is_ours && ends(target()?.arg(&input), Duration::from_secs(60))? != Some(true) {
            eprintln!("fuzz-{name}: what was found before still breaks it; its output: {}", log.display());
            again(&input);
            return Ok(Fault::failed(&fault, "found before"));
        }
    }
    let mut command = target()?;
    command.arg(LONGEST).arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
    if let Some(seed) = seed {
        command.arg(format!("-seed={}", seed % (1 << 31)));
    }
    command.arg(format!("-artifact_prefix={}/{name}-", found.display())).arg(&corpus).arg(&seeds);
    let succeeded = ends(&mut command, Duration::from_secs(seconds * 2 + 120))?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let last = |word: &str| {
        let after = said.rsplit_once(word)?.1.trim_start();
        after.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    let tried = last("stat::number_of_executed_units:").unwrap_or(0);
    let branches = last(" cov: ").map(|covered| format!("{covered} branches taken")).unwrap_or_default();
    if succeeded == Some(true) && tried > 0 {
        return Ok(Fault::kept(&fault, tried, bar).worst(branches));
    }
    eprintln!("fuzz-{name} failed; its output: {}", log.display());
    if let Some((_, input)) = said.rsplit_once("Test unit written to ") {
        again(Path::new(input.lines().next().unwrap_or_default()));
    }
    Ok(Fault { tried, ..Fault::failed(&fault, branches) })
}

/// The program of the targets, instrumented, and what tells it from others. Errors: it cannot be built.
pub(crate) fn program() -> anyhow::Result<(PathBuf, String)> {
    let dir = &target_dir().join("fuzz");
    let rustc = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let version = String::from_utf8_lossy(&rustc.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not say its host")?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The same versions as everything else; what libFuzzer needs comes on top.
    fs::copy(here.join("../Cargo.lock"), here.join("fuzz/Cargo.lock")).context("cannot copy Cargo.lock")?;
    let mut cargo = Command::new(env!("CARGO"));
    // With a target named, build scripts and macros are not instrumented.
    cargo.args(["build", "--release", "--target", host, "--target-dir"]).arg(dir);
    cargo.env("RUSTFLAGS", FLAGS).current_dir(here.join("fuzz"));
    ensure!(cargo.status()?.success(), "the fuzz targets cannot be built (see above; they need a C++ compiler)");
    let program = dir.join(host).join("release/belay-fuzz");
    let id = id_of(&program)?;
    Ok((program, id))
}

/// Inputs that get somewhere.
fn begin_with(name: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let id = RequestId([7; 16]);
    let hello = Hello {
        min_minor: 0,
        max_minor: 1,
        capabilities: 3,
        client_name: "belay 1".into(),
        instance_id: belay_protocol::id::InstanceId([1; 16]),
        path_generation: 2,
        extensions: vec![],
    };
    let failed = Failed {
        code: FailureCode::LIMIT,
        message: "no".into(),
        remedy: "wait".into(),
        request_id: Some(id),
        retry_after_ms: Some(5),
        missing: None,
    };
    let frames = [
        hello.to_frame()?,
        failed.to_frame()?,
        Cancel { reason: "enough".into() }.to_frame()?,
        Ack { next: 9, end: true }.to_frame()?,
        Resume { request_id: id, next: 3 }.to_frame()?,
    ];
    Ok(match name {
        "frame" => vec![[&[5][..], &frames.concat()].concat(), [&[200][..], &frames[0]].concat()],
        "codec" => vec![vec![0; 40], [&[0, 0][..], &hello.encode_body()?].concat()],
        "sse" => STREAMS.iter().flat_map(|text| (0..4).map(|whose| [&[7, whose], text.as_bytes()].concat())).collect(),
        "dialects" => BODIES.iter().map(|(whose, text)| [&[*whose], text.as_bytes()].concat()).collect(),
        "safetensors" => {
            let (weights, config) = adapter(1000, 1);
            let at = u16::try_from(weights.len().min(4000))?.to_le_bytes();
            vec![[&at[..], &[0, 0], &weights[..weights.len().min(4000)], config.as_bytes()].concat()]
        }
        _ => {
            let text = belay_relay::config::TEMPLATE;
            let said: String =
                text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
            let meant: String = text.lines().map(|line| format!("{}\n", line.trim_start_matches("# "))).collect();
            vec![said.into_bytes(), meant.into_bytes()]
        }
    })
}

/// By whose they are: belay's own prompt, Chat Completions, Responses, Messages.
const BODIES: [(u8, &str); 6] = [
    (0, r#"{"query":"q","framing":"f","knowledge":[{"source":"s","relevance":0.5,"text":"t"}],"history":[]}"#),
    (
        1,
        r#"{"model":"m","stream":true,"max_completion_tokens":9,"n":2,"stream_options":{"include_usage":false},
          "messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"t"},
          {"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],"tools":[{"type":"function",
          "function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"auto","stop":["x"]}"#,
    ),
    (
        1,
        r#"{"messages":[{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f",
          "arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"r"}],"max_tokens":5,"model":"m"}"#,
    ),
    (
        2,
        r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"t"}]},{"type":"function_call",
          "call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"o"}],
          "instructions":"i","max_output_tokens":7,"stream":true,"tools":[{"type":"function","name":"f"}]}"#,
    ),
    (
        3,
        r#"{"model":"m","max_tokens":9,"system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral"}}],
          "messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"r"}]}],
          "tools":[{"name":"f","input_schema":{"type":"object"}}],"thinking":{"type":"enabled","budget_tokens":2048}}"#,
    ),
    (
        3,
        r#"{"messages":[{"role":"user","content":"q"}],"stream":true,"stop_sequences":["a"],"max_tokens":1,"model":"x"}"#,
    ),
];

/// Streams of the APIs.
const STREAMS: [&str; 3] = [
    "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[],\"usage\":{\
     \"prompt_tokens\":3,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":1}}}\n\ndata: [DONE]\n\n",
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":3}}}\n\n\
     event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\
     \"text\":\"a\"}}\r\n\r\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\
     \"usage\":{\"output_tokens\":2}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    ": ping\n\nevent: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n\
     event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":1,\
     \"output_tokens\":2}}}\n\n",
];
