//! `belay ask --session`, `belay sessions` and `belay chat`, as their users have them.

use crate::programs::{DEADLINE, Site, belay, exits, one_json, program, run, run_with};
use belay_tests::procs::Ran;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn json_of(home: &Path, args: &[&str]) -> Value {
    let ran = run(belay(home, args).arg("--json"));
    exits(&ran, 0);
    one_json(&ran.stdout)
}

fn text_of(home: &Path, args: &[&str]) -> String {
    let ran = run(&mut belay(home, args));
    exits(&ran, 0);
    assert_eq!(ran.stderr, "", "{args:?}");
    ran.stdout
}

fn joined(site: &Site) -> PathBuf {
    let home = site.home("laptop");
    exits(&run(&mut belay(&home, &["join", &site.invite("acme")])), 0);
    home
}

fn fails(ran: &Ran, code: i32, part: &str) {
    exits(ran, code);
    assert!(ran.stderr.contains(part), "{part:?} is not in {:?}", ran.stderr);
}

#[test]
fn a_conversation_is_asked_shown_found_exported_and_deleted() {
    let site = Site::start(1);
    let home = joined(&site);
    assert_eq!(text_of(&home, &["sessions", "list"]), "there is no session yet; begin one: belay chat\n");
    let first = json_of(&home, &["ask", "--session", "rome", "Where should we go in Rome?"]);
    assert_eq!((&first["session_messages"], &first["session_left_out"]), (&json!(0), &json!(0)));
    let second = json_of(&home, &["ask", "--session", "rome", "--no-stream", "And in the evening?"]);
    assert_eq!(second["session_messages"], 2);
    let asked = run(&mut belay(&home, &["ask", "--session", "rome", "--history-tokens", "0", "And at night?"]));
    exits(&asked, 0);
    assert!(asked.stderr.contains("4 older messages of the session left out"), "{}", asked.stderr);
    // What is piped in is a message, too.
    exits(&run_with(&mut belay(&home, &["sessions", "add", "notes", "--role", "assistant"]), "Bring an umbrella"), 0);
    exits(
        &run(&mut belay(&home, &["sessions", "set", "rome", "--framing", "warmly", "--constraint", "no museums"])),
        0,
    );
    let list = text_of(&home, &["sessions", "list"]);
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines[0].starts_with("SESSION  TITLE "), "{list}");
    assert!(lines[1].starts_with("rome     Where should we go in Rome?"), "{list}");
    assert_eq!(json_of(&home, &["sessions", "list"])[0]["messages"], 6);
    // By the beginning of its name or title.
    let shown = json_of(&home, &["sessions", "show", "where should"]);
    assert_eq!(shown["said"][0]["text"], "Where should we go in Rome?");
    assert_eq!(shown["said"][1]["text"], first["text"]);
    assert_eq!(shown["context"]["constraints"], json!(["no museums"]));
    let last = text_of(&home, &["sessions", "show", "rome", "--last", "2"]);
    assert!(last.contains("And at night?") && !last.contains("evening"), "{last}");
    exits(&run(&mut belay(&home, &["sessions", "show", "r"])), 0);
    fails(&run(&mut belay(&home, &["sessions", "show", "nothing"])), 77, "there is no session \"nothing\"");
    let found = text_of(&home, &["sessions", "search", "umbr"]);
    assert_eq!(found, "notes  message 1: Bring an umbrella\n");
    assert_eq!(text_of(&home, &["sessions", "search", "nowhere"]), "nothing was found\n");
    exits(&run(&mut belay(&home, &["sessions", "rename", "rome", "A week in Rome"])), 0);
    let markdown = text_of(&home, &["sessions", "export", "A week in Rome"]);
    assert!(markdown.starts_with("# A week in Rome\n"), "{markdown}");
    assert!(markdown.contains("## Framing\n\nwarmly\n") && markdown.contains("And in the evening?"), "{markdown}");
    let file = home.join("rome.json");
    let export = ["sessions", "export", "rome", "--format", "json", "--output", file.to_str().unwrap()];
    assert!(text_of(&home, &export).starts_with("6 messages are in "));
    assert_eq!(one_json(&fs::read_to_string(&file).unwrap())["said"], shown["said"]);
    fails(&run(&mut belay(&home, &export)), 1, "cannot write");
    assert!(text_of(&home, &["sessions", "delete", "rome"]).contains("belay sessions restore \"rome\""));
    fails(&run(&mut belay(&home, &["ask", "--session", "rome", "still?"])), 77, "was deleted");
    assert_eq!(json_of(&home, &["sessions", "list", "--deleted"])[0]["session"], "rome");
    assert_eq!(text_of(&home, &["sessions", "restore", "rome"]), "rome is back, with 6 messages\n");
    exits(&run(&mut belay(&home, &["sessions", "delete", "A week in Rome"])), 0);
    exits(&run(&mut belay(&home, &["sessions", "restore", "A week"])), 0);
    fails(&run(&mut belay(&home, &["sessions", "clear", "ro"])), 77, "there is no session \"ro\"");
    assert_eq!(text_of(&home, &["sessions", "clear", "rome"]), "rome is empty now\n");
    assert_eq!(json_of(&home, &["sessions", "show", "rome"])["said"], json!([]));
    fails(&run(&mut belay(&home, &["sessions", "set", "rome"])), 2, "nothing is to be set");
    fails(&run(&mut belay(&home, &["ask", "--session", " ", "x"])), 2, "does not name a session");
    fails(&run(&mut belay(&home, &["ask", "--history-tokens", "5", "x"])), 2, "--session");
}

#[test]
fn a_chat_reads_lines_from_a_pipe() {
    let site = Site::start(1);
    let home = joined(&site);
    let lines = "Why is the sky blue?\n\n/model nonesuch\nAnd the sea?\n/model auto\nAnd the\\\nsea?\n/cost\n/frob\n/exit\nnot asked\n";
    let ran = run_with(belay(&home, &["chat", "--session", "sky"]).arg("--json"), lines);
    // A script is told that something went wrong.
    fails(&ran, 77, "nonesuch");
    let said: Vec<Value> = ran.stdout.lines().map(one_json).collect();
    assert_eq!(said.len(), 8, "{}", ran.stdout);
    assert_eq!((&said[2]["code"], &said[7]["exit_code"]), (&json!("unknown_model"), &json!(77)));
    assert_eq!((&said[0]["session_messages"], &said[0]["outcome"]), (&json!(0), &json!("complete")));
    assert_eq!(said[1]["note"], "nonesuch answers from now on");
    assert!(said[2]["error"].as_str().unwrap().contains("nonesuch"), "{}", said[2]);
    assert_eq!(said[4]["session_messages"], 2);
    assert_eq!(said[5]["answers"], 2);
    assert_eq!(said[5]["cost_nano_usd"], said[5]["session_cost_nano_usd"]);
    assert_eq!(said[6]["note"], "there is no /frob; /help shows what there is");
    let shown = json_of(&home, &["sessions", "show", "sky"]);
    assert_eq!(shown["said"][2]["text"], "And the\nsea?");
    assert_eq!(shown["said"].as_array().unwrap().len(), 4);
    exits(&run_with(&mut belay(&home, &["chat", "--session", "sky"]), "/cost\n"), 0);
    fails(&run_with(&mut belay(&home, &["chat", "--request-id", &"0".repeat(32)]), ""), 2, "many requests");
}

#[test]
fn ctrl_c_ends_a_chat_that_no_terminal_reads_for() {
    let site = Site::start(1);
    let home = joined(&site);
    let mut command = belay(&home, &["chat", "--session", "sky"]);
    let mut chat = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = chat.stdin.take().unwrap();
    input.write_all(b"/session\n").unwrap();
    // It has read that line, and waits for the next one.
    let mut line = String::new();
    BufReader::new(chat.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "sky\n");
    let pid = Pid::from_raw(i32::try_from(chat.id()).unwrap()).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while chat.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it goes on");
        // Between the two it may be in neither place; then it is told again.
        kill_process(pid, Signal::INT).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(chat.wait().unwrap().code(), Some(130));
    drop(input);
}

#[test]
fn a_chat_on_a_terminal_edits_lines_stops_answers_and_remembers() {
    let site = Site::start(20);
    let home = joined(&site);
    let chat = |steps: Value| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("pty/chat.py");
        let mut command = Command::new("python3");
        crate::programs::clean(&mut command);
        command.arg(script).arg(steps.to_string()).arg(program("belay").get_program());
        command.arg("--home").arg(&home).args(["chat", "--session", "sky"]);
        let ran = run(&mut command);
        exits(&ran, 0);
        ran.stdout
    };
    let shown = chat(json!([
        ["a new session, sky", ""],
        // A slip, taken back; then an answer that is stopped.
        ["> ", "Why is the sky grx\u{7f}een?\r"],
        ["demo provider", "\u{3}"],
        ["cancelled", ""],
        ["> ", "/cost\r"],
        ["1 answer now", ""],
        ["> ", "\u{3}"],
        ["Ctrl-D or /exit leaves", ""],
        ["> ", "\u{4}"],
    ]));
    assert!(shown.contains("go on with: belay chat --session \"sky\""), "{shown}");
    let said = json_of(&home, &["sessions", "show", "sky"])["said"].clone();
    assert_eq!((&said[0]["text"], &said[1]["outcome"]), (&json!("Why is the sky green?"), &json!("cancelled")));
    // Opened again it shows what was said, and the line before is one key away.
    let shown = chat(json!([
        ["Why is the sky green?", ""],
        ["> ", "\u{1b}[A\u{1b}[A\r"],
        ["first token after", ""],
        ["> ", "/exit\r"]
    ]));
    assert!(shown.contains("2 messages"), "{shown}");
    let said = json_of(&home, &["sessions", "show", "sky"])["said"].clone();
    assert_eq!(said[2]["text"], "Why is the sky green?");
    let history = home.join("chat_history");
    assert!(fs::read_to_string(&history).unwrap().contains("/cost"));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        fs::metadata(&history).unwrap().permissions().mode() & 0o077,
        0,
        "what was asked is nobody else's business"
    );
}
