//! No key, token or prompt text is in any log, at any level.
//!
//! Everything secret carries a canary. A relay and a client that log all they can, each in both
//! formats where it has two, go through success and every kind of failure; then everything that
//! they wrote is searched for every canary, as it is and in the forms in which bytes are shown.

use crate::programs::{Running, Site, belay, exits, run, run_with};
use belay_certs::invite::Invite;
use belay_tests::collector::Collector;
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::procs::Ran;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const OPENAI_KEY: &str = "sk-canary-openai-5fGh2Lm9Qx";
const ANTHROPIC_KEY: &str = "sk-canary-anthropic-8Jk3Tz7Wb";
const QUESTION: &str = "canary-question-Zebra41";
const FRAMING: &str = "canary-framing-Walrus52";
const KNOWLEDGE: &str = "canary-knowledge-Ibex63";
const CONSTRAINT: &str = "canary-constraint-Otter74";
const HISTORY: &str = "canary-history-Lemur85";
const OWN_BODY: &str = "canary-body-Tapir96";
const ANSWER: &str = "canary-answer-Quokka07 ";
const PROVIDERS_WORDS: &str = "canary-providers-words-Gecko18";

/// A secret by name, in every form that is looked for.
struct Canary {
    name: String,
    forms: Vec<String>,
}

impl Canary {
    fn text(name: &str, text: &str) -> Self {
        Self::bytes(name, text.trim().as_bytes(), vec![text.trim().to_owned()])
    }

    /// Bytes as hexadecimal, base64 in every alignment, and as Rust shows them.
    fn bytes(name: &str, bytes: &[u8], mut forms: Vec<String>) -> Self {
        let hex = bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        forms.push(hex.to_uppercase());
        forms.push(hex);
        forms.push(format!("{bytes:?}").trim_matches(['[', ']']).to_owned());
        for alphabet in [&STANDARD, &URL] {
            forms.extend((0..3).map(|shift| base64_inside(alphabet, bytes, shift)));
        }
        Self { name: name.to_owned(), forms }
    }
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The digits of base64 that are the same whatever stands before (`shift` bytes) and behind.
fn base64_inside(alphabet: &[u8; 64], bytes: &[u8], shift: usize) -> String {
    let padded: Vec<u8> = std::iter::repeat_n(0, shift).chain(bytes.iter().copied()).collect();
    let whole = padded.chunks_exact(3).flat_map(|three| {
        let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        [18, 12, 6, 0].map(|by| char::from(alphabet[(bits >> by & 63) as usize]))
    });
    // The first group holds what stood before.
    whole.skip(if shift == 0 { 0 } else { 4 }).collect()
}

#[test]
fn a_canary_is_found_in_every_form() {
    let canary = Canary::text("key", OPENAI_KEY);
    // As `base64` and `xxd -p` show it, with something before it.
    for shown in [
        "eyJrZXkiOiJzay1jYW5hcnktb3BlbmFpLTVmR2gyTG05UXgifQ==", // {"key":"sk-canary-openai-5fGh2Lm9Qx"}
        "c2stY2FuYXJ5LW9wZW5haS01ZkdoMkxtOVF4",
        "736b2d63616e6172792d6f70656e61692d35664768324c6d395178",
        "Bearer sk-canary-openai-5fGh2Lm9Qx",
    ] {
        assert!(canary.forms.iter().any(|form| shown.contains(form)), "{shown}: {:?}", canary.forms);
    }
    assert!(canary.forms.iter().all(|form| form.len() > 20), "{:?}", canary.forms);
}

/// Fails with every line of a text in which a canary sits.
fn search(what: &str, text: &str, canaries: &[Canary]) {
    assert!(!text.is_empty(), "{what} is empty: nothing was searched");
    let mut found = Vec::new();
    for canary in canaries {
        for form in &canary.forms {
            for line in text.lines().filter(|line| line.contains(form)).take(3) {
                let at = line.find(form).unwrap_or(0);
                let from = (0..=at.saturating_sub(300)).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
                found.push(format!(
                    "{} as {form:?}:\n  {}",
                    canary.name,
                    line[from..].chars().take(700).collect::<String>()
                ));
            }
        }
    }
    assert!(found.is_empty(), "{what} gives secrets away:\n{}", found.join("\n"));
}

fn config(format: &str, url: &str) -> String {
    let model = |name: &str, provider: &str| {
        format!(
            "[models.{name}]\nprovider = \"{provider}\"\ncontext_tokens = 200000\nmax_output_tokens = 8192\n\
             price = {{ input = \"3\", output = \"15\" }}\n"
        )
    };
    format!(
        "# the key is {OPENAI_KEY}\n[log]\nformat = \"{format}\"\nfilter = \"trace\"\n[retries]\nrounds = 0\n[timeouts]\nheartbeat_ms = 100\n\
         [providers.openai]\nkind = \"openai\"\nurl = \"{url}/v1\"\nkey_env = \"CANARY_OPENAI\"\n\
         [providers.anthropic]\nkind = \"anthropic\"\nurl = \"{url}\"\nkey_env = \"CANARY_ANTHROPIC\"\n\
         {}{}[aliases]\nauto = \"gpt\"\n",
        model("gpt", "openai"),
        model("claude", "anthropic")
    )
}

/// Everything between the PEM lines of a file, as bytes and as it stands there.
fn key_file(name: &str, path: &Path) -> Canary {
    let text = fs::read_to_string(path).unwrap();
    let base64: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    let digit = |byte: u8| u32::try_from(STANDARD.iter().position(|digit| *digit == byte).unwrap_or(0)).unwrap();
    let bytes: Vec<u8> = base64
        .as_bytes()
        .chunks(4)
        .flat_map(|four| four.iter().fold(0, |bits, byte| bits << 6 | digit(*byte)).to_be_bytes()[1..].to_vec())
        .collect();
    // PKCS#8 begins with what every key has; the secret itself stands at a known place behind it.
    let secret = bytes.windows(2).position(|pair| pair == [0x04, 0x20]).map_or(0, |at| at + 2);
    Canary::bytes(name, &bytes[secret..secret + 32], vec![])
}

struct Journey {
    provider: FakeProvider,
    site: Site,
    canaries: Vec<Canary>,
    collector: Collector,
    /// What the client wrote, less the answers on its stdout.
    client_logs: String,
    printed: String,
}

impl Journey {
    /// Runs `belay` with everything logged.
    fn user(&mut self, args: &[&str], input: &str) -> Ran {
        let home = self.site.home("laptop");
        let mut command = belay(&home, args);
        command.env("BELAY_LOG", "trace").env("BELAY_TRACES", self.collector.url());
        let ran = run_with(&mut command, input);
        self.client_logs += &ran.stderr;
        ran
    }

    fn operator(&mut self, args: &[&str]) {
        let ran = self.site.belayd(args);
        exits(&ran, 0);
        self.printed += &ran.stdout;
        self.printed += &ran.stderr;
    }

    fn go(&mut self) {
        let dir = self.site.relay.dir().to_owned();
        let file = |name: &str, text: String| {
            fs::write(dir.join(name), text).unwrap();
            dir.join(name).display().to_string()
        };
        let notes = file("notes.md", format!("Notes: {KNOWLEDGE}"));
        let turns = r#"[{"role":"user","content":"W"},{"role":"assistant","content":"W"}]"#;
        let history = file("talk.json", turns.replace('W', HISTORY));
        let body =
            file("body.json", format!(r#"{{"max_tokens":50,"messages":[{{"role":"user","content":"{OWN_BODY}"}}]}}"#));
        let secret = self.site.invite("acme");
        let invite = Invite::decode(&secret).unwrap();
        self.canaries.push(Canary::text("the join string", &secret));
        self.canaries.push(Canary::bytes("the invite's secret", &invite.secret, vec![]));
        exits(&self.user(&["join", &secret], ""), 0);
        // The same again, and one that is used up: failures show less rather than more.
        exits(&self.user(&["join", &secret], ""), 77);
        let other = self.site.home("other");
        let ran = run(belay(&other, &["join", &secret]).env("BELAY_LOG", "trace"));
        exits(&ran, 77);
        self.client_logs += &ran.stderr;
        let state = dir.join("state");
        self.canaries.push(key_file("the device's key", &self.site.home("laptop").join("device.key")));
        self.canaries.push(key_file("the authority's key", &state.join("ca/ca.key")));
        let endpoint = fs::read(state.join("endpoint.keys")).unwrap();
        self.canaries.push(Canary::bytes("the endpoint's keys", &endpoint[40..], vec![]));
        self.canaries.push(Canary::bytes("the reset key", &endpoint[..32], vec![]));

        let prompt =
            ["--framing", FRAMING, "--knowledge", &notes, "--constraint", CONSTRAINT, "--history", &history, QUESTION];
        for model in ["gpt", "claude"] {
            for extra in [&[][..], &["--no-stream"], &["--json"]] {
                let ran = self.user(&[&["ask", "--model", model][..], extra, &prompt].concat(), "");
                exits(&ran, 0);
                assert!(ran.stdout.contains(ANSWER.trim()), "{}", ran.stdout);
            }
        }
        exits(&self.user(&["ask", "--dialect", "openai", "--body", &body], ""), 0);
        exits(&self.user(&["ask", "--dialect", "anthropic", "--model", "claude", "--body", &body], ""), 0);
        exits(&self.user(&["ask"], QUESTION), 0);
        exits(&self.user(&["ask", "--query", QUESTION], KNOWLEDGE), 0);
        self.failures(&body);
        exits(&self.user(&["status"], ""), 0);
        exits(&self.user(&["balance"], ""), 0);
        for args in [
            &["status", "--json"][..],
            &["status"],
            &["tenant", "list"],
            &["tenant", "list", "--json"],
            &["device", "list", "--json"],
            &["ledger", "verify", "--json"],
            &["audit", "--json"],
            &["authority", "show"],
            &["doctor"],
            &["doctor", "--json"],
            // Metrics, configuration and all else that there is of the kind.
            &["support-bundle", "-"],
        ] {
            self.operator(args);
        }
        exits(&self.user(&["logout"], ""), 0);
    }

    fn failures(&mut self, body: &str) {
        // The caller's own: no such model, no such field, not enough money, a body that is cut.
        exits(&self.user(&["ask", "--model", "none", QUESTION], ""), 77);
        exits(&self.user(&["ask", "--cost-cap", "0.000001", "--max-tokens", "100", QUESTION], ""), 78);
        let cut = &fs::read_to_string(body).unwrap()[..60];
        exits(&self.user(&["ask", "--dialect", "openai", "--body", "-"], cut), 77);
        let number = format!(r#"{{"max_tokens":"{OWN_BODY}","messages":[]}}"#);
        exits(&self.user(&["ask", "--dialect", "openai", "--body", "-"], &number), 77);
        // The provider's: refusals with words, an error after it has begun, garbage, a cut, silence.
        let words = |key: &str| Some(format!(r#"{{"error":{{"message":"{PROVIDERS_WORDS} {key} {QUESTION}"}}}}"#));
        let answering = || Script { text: Some(ANSWER.into()), ..Script::tokens(20) };
        let scripts = [
            (77, Script { body: words(OPENAI_KEY), ..Script::refusal(401, None) }),
            (77, Script { body: words(OPENAI_KEY), ..Script::refusal(500, Some(1)) }),
            (1, Script { error_after: Some(5), ..answering() }),
            (1, Script { garbage_after: Some(5), ..answering() }),
            (1, Script { cut_after: Some(5), ..answering() }),
            (1, Script { die: true, ..answering() }),
        ];
        for (code, script) in scripts {
            for model in ["gpt", "claude"] {
                self.provider.push_script(script.clone());
                let home = self.site.home("laptop");
                let ran = run(belay(&home, &["ask", "--model", model, QUESTION]).env("BELAY_LOG", "trace"));
                // The user is told what the provider said; that is no log.
                let logged = ran.stderr.lines().filter(|line| !line.starts_with("belay: "));
                self.client_logs += &logged.collect::<Vec<_>>().join("\n");
                assert!(ran.code == Some(code) || script.garbage_after.is_some(), "{script:?}: {ran:?}");
            }
        }
        // Cancelled in the middle.
        self.provider.push_script(Script { endless: true, pace_ms: 10, ..answering() });
        let home = self.site.home("laptop");
        let asking = Running::start(belay(&home, &["ask", QUESTION]).env("BELAY_LOG", "trace"), "");
        asking.wait_for("some of the answer", |text| text.matches(ANSWER).count() > 3);
        asking.interrupt();
        let ran = asking.end();
        exits(&ran, 1);
        self.client_logs += &ran.stderr;
    }
}

async fn journey(format: &'static str) -> Journey {
    let provider = FakeProvider::start().await.unwrap();
    provider.set_script(Script { text: Some(ANSWER.into()), ..Script::tokens(20) });
    let (url, collector) = (provider.url(), Collector::start().await);
    tokio::task::block_in_place(|| {
        let keys = [("CANARY_OPENAI", OPENAI_KEY), ("CANARY_ANTHROPIC", ANTHROPIC_KEY)];
        let traces = format!("[traces]\nendpoint = \"{}\"\n", collector.url());
        let site = Site::with(&format!("{}{traces}", config(format, &url)), &keys);
        let canaries = [
            ("the OpenAI key", OPENAI_KEY),
            ("the Anthropic key", ANTHROPIC_KEY),
            ("the question", QUESTION),
            ("the framing", FRAMING),
            ("the knowledge", KNOWLEDGE),
            ("the constraint", CONSTRAINT),
            ("the history", HISTORY),
            ("the caller's own body", OWN_BODY),
            ("the answer", ANSWER),
            ("the provider's words", PROVIDERS_WORDS),
        ];
        let canaries = canaries.map(|(name, text)| Canary::text(name, text)).into();
        let mut journey =
            Journey { provider, site, canaries, collector, client_logs: String::new(), printed: String::new() };
        journey.go();
        assert!(journey.site.relay.terminate().unwrap().success());
        // What the providers got: the canaries were there to be leaked.
        let received = journey.provider.received();
        let with_key = |key: &str| {
            received.iter().any(|one| one.headers.values().any(|value| value.as_bytes().ends_with(key.as_bytes())))
        };
        assert!(with_key(OPENAI_KEY) && with_key(ANTHROPIC_KEY));
        for text in [QUESTION, FRAMING, KNOWLEDGE, CONSTRAINT, HISTORY, OWN_BODY] {
            let got = received.iter().any(|one| String::from_utf8_lossy(&one.body).contains(text));
            assert!(got, "{text} never reached the provider");
        }
        journey
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_logged_for_people() {
    let journey = journey("human").await;
    let log = journey.site.relay.log();
    assert!(log.contains("TRACE") && log.contains("belay_relay") && log.contains("request settled"), "{log}");
    search("belayd's log", &log, &journey.canaries);
    assert!(journey.client_logs.contains("TRACE"), "{}", journey.client_logs);
    // Colours are for terminals, and could stand in the middle of what is searched for.
    assert!(!log.contains('\u{1b}') && !journey.client_logs.contains('\u{1b}'), "colours in a file");
    search("belay's log", &journey.client_logs, &journey.canaries);
    search("what belayd prints", &journey.printed, &journey.canaries);
    for (service, name) in [("belay", "escalate"), ("belayd", "request"), ("belayd", "chat gpt"), ("belayd", "hold")] {
        assert!(!journey.collector.of(service, name).is_empty(), "no {name} of {service} was told");
    }
    assert!(journey.collector.spans().iter().any(|span| span.failed));
    search("what a collector is told", &String::from_utf8_lossy(&journey.collector.bytes()), &journey.canaries);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_logged_for_programs() {
    let journey = journey("json").await;
    let log = journey.site.relay.log();
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(value["level"].is_string() && value["timestamp"].is_string(), "{line}");
    }
    assert!(log.contains("\"TRACE\""), "{log}");
    search("belayd's log", &log, &journey.canaries);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_stays_on_the_relays_disk() {
    let journey = journey("human").await;
    // Keys of its own are the relay's to keep; words, answers and invites are not.
    let own = ["the authority's key", "the endpoint's keys", "the reset key"];
    let canaries: Vec<Canary> = journey.canaries.into_iter().filter(|canary| !own.contains(&&*canary.name)).collect();
    let mut dirs = vec![journey.site.relay.dir().join("state")];
    let mut files = 0;
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if fs::metadata(&path).unwrap().len() > 0 {
                files += 1;
                search(&path.display().to_string(), &String::from_utf8_lossy(&fs::read(&path).unwrap()), &canaries);
                let raw = fs::read(&path).unwrap();
                let text = [QUESTION, ANSWER.trim(), FRAMING, KNOWLEDGE, OPENAI_KEY];
                let in_it = |text: &&str| raw.windows(text.len()).any(|window| window == text.as_bytes());
                assert_eq!(text.iter().find(|text| in_it(text)), None, "{}", path.display());
            }
        }
    }
    assert!(files >= 5, "only {files} files were searched");
}

#[test]
fn a_checked_configuration_does_not_show_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("belayd.toml");
    let key = dir.path().join("key");
    let text =
        config("human", "http://127.0.0.1:1").replace("key_env = \"CANARY_OPENAI\"", &format!("key_file = {key:?}"));
    fs::write(&path, format!("{text}[state]\ndir = \"state\"\n")).unwrap();
    let canaries = [Canary::text("the OpenAI key", OPENAI_KEY), Canary::text("the Anthropic key", ANTHROPIC_KEY)];
    // A good key, one that cannot stand in a header, and one that was pasted into the wrong place.
    for (content, code) in [(OPENAI_KEY.to_owned(), 0), (format!("{OPENAI_KEY} \u{7}é"), 64)] {
        fs::write(&key, content).unwrap();
        for json in [&[][..], &["--json"]] {
            let mut command = crate::programs::belayd(&path, &[&["config", "check"][..], json].concat());
            let ran = run(command.env("CANARY_ANTHROPIC", ANTHROPIC_KEY));
            exits(&ran, code);
            search("config check", &format!("{}{}", ran.stdout, ran.stderr), &canaries);
        }
    }
}
