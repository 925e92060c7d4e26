//! The commands of both programs: help, JSON, exit codes, what they refuse and how they say it.

use crate::programs::{Running, Site, belay, belayd, exits, one_json, program, run, run_with};
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::procs::Ran;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

const SKY: &str = "Why is the sky blue?";

/// Asserts that a command fails with that code and says each of the parts on stderr.
#[track_caller]
fn fails(ran: &Ran, code: i32, parts: &[&str]) {
    exits(ran, code);
    for part in parts {
        assert!(ran.stderr.contains(part), "{part:?} is not in {:?}", ran.stderr);
    }
    // What went wrong is said once: a cause that stands in its effect's words is not repeated.
    let said: Vec<&str> = ran.stderr.trim_end().split(": ").collect();
    assert!(!said.windows(2).any(|pair| pair[0] == pair[1]), "said twice: {:?}", ran.stderr);
}

/// Asserts that a command fails with that code and prints one JSON value that says so.
#[track_caller]
fn fails_as_json(ran: &Ran, code: i32) -> Value {
    exits(ran, code);
    let value = one_json(&ran.stdout);
    assert_eq!(value["exit_code"], code, "{value}");
    let error = value["error"].as_str().unwrap();
    assert!(ran.stderr.contains(error), "stdout and stderr differ: {error:?}, {:?}", ran.stderr);
    value
}

#[track_caller]
fn json_of(ran: &Ran) -> Value {
    exits(ran, 0);
    one_json(&ran.stdout)
}

/// The subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return vec![] };
    let names = list.lines().take_while(|line| !line.is_empty());
    // Wrapped lines are indented further.
    let names = names.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()));
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_help_shows_an_example() {
    let mut seen = 0;
    for name in ["belay", "belayd"] {
        let mut paths: Vec<Vec<String>> = vec![vec![]];
        while let Some(path) = paths.pop() {
            let ran = run(program(name).args(&path).arg("--help"));
            exits(&ran, 0);
            assert!(ran.stdout.contains("Example"), "{name} {path:?} --help shows no example:\n{}", ran.stdout);
            assert_eq!(ran.stderr, "");
            assert!(ran.stdout.lines().all(|line| line.len() <= 120), "{}", ran.stdout);
            seen += 1;
            paths.extend(subcommands(&ran.stdout).into_iter().map(|sub| [path.clone(), vec![sub]].concat()));
        }
        let version = run(program(name).arg("--version"));
        exits(&version, 0);
        assert!(version.stdout.starts_with(&format!("{name} ")), "{}", version.stdout);
    }
    assert!(seen >= 24, "only {seen} commands were found");
}

#[test]
fn bad_usage_is_2() {
    for args in [
        &["frobnicate"][..],
        &["ask", "--no-such-flag"],
        &["ask", "--max-tokens", "many", "x"],
        &["join"],
        &["ask", "--cost-cap", "cheap", "x"],
        &["ask", "--request-id", "12", "x"],
        &["ask", "--body", "f"],
        &["ask", "--body", "f", "--dialect", "gemini"],
        &["ask", "--query", "a", "b"],
        &[],
    ] {
        let ran = run(program("belay").args(args));
        exits(&ran, 2);
        assert!(ran.stderr.contains("Usage") || ran.stderr.contains("--help"), "{args:?}: {}", ran.stderr);
    }
    for args in [
        &["frobnicate"][..],
        &["tenant"],
        &["tenant", "create"],
        &["tenant", "create", "No Name"],
        &["invite"],
        &["tenant", "credit", "acme", "much"],
        &["device", "revoke", "../x"],
        &["ledger", "verify", "A"],
        &[],
    ] {
        exits(&run(program("belayd").args(args)), 2);
    }
}

#[test]
fn a_mistyped_join_string_is_bad_usage() {
    let site = Site::start(1);
    let home = site.home("laptop");
    let invite = site.invite("acme");
    let cut = &invite[..invite.len() - 3];
    let other = if invite.ends_with('A') { "B" } else { "A" };
    let mistyped = format!("{}{other}", &invite[..invite.len() - 1]);
    for (text, why) in [(cut, "copy it again"), (&*mistyped, "copy it again"), ("laptop", "belay1:")] {
        let ran = run(&mut belay(&home, &["join", text]));
        fails(&ran, 2, &["invite", why]);
        assert!(!ran.stderr.contains(text) || text == "laptop", "the secret is repeated: {}", ran.stderr);
        fails_as_json(&run(&mut belay(&home, &["join", text, "--json"])), 2);
    }
    // Nothing of it was used up.
    exits(&run(&mut belay(&home, &["join", &invite])), 0);
}

#[test]
fn nothing_to_ask_is_bad_usage() {
    let site = Site::start(1);
    let home = site.join("laptop", "acme");
    fails(&run(&mut belay(&home, &["ask"])), 2, &["nothing is asked", "pipe it in"]);
}

#[test]
fn every_command_prints_one_json_value() {
    let site = Site::start(1);
    let home = site.home("laptop");
    let operator = |args: &[&str]| json_of(&site.belayd(&[args, &["--json"]].concat()));
    let user = |args: &[&str]| json_of(&run(&mut belay(&home, &[args, &["--json"]].concat())));

    assert_eq!(operator(&["config", "init", "other.toml"])["written"], "other.toml");
    let config = operator(&["config", "check"]);
    assert_eq!((&config["valid"], &config["aliases"]["auto"]["targets"][0]["model"]), (&true.into(), &json!("demo")));
    assert_eq!(operator(&["prices", "list"])[0]["name"], "demo");
    assert_eq!(operator(&["prices", "show", "auto"])[0]["source"], "config");
    assert_eq!(operator(&["prices", "check"]), json!([]));
    assert_eq!(operator(&["tenant", "create", "other"])["balance_nano_usd"], 0);
    assert_eq!(operator(&["tenant", "credit", "other", "0.25"])["balance_nano_usd"], 250_000_000);
    assert_eq!(operator(&["tenant", "refund", "other", "0.05"])["balance_nano_usd"], 200_000_000);
    assert_eq!(operator(&["tenant", "chargeback", "other", "0.05"])["balance_nano_usd"], 150_000_000);
    assert_eq!(operator(&["tenant", "grant", "other", "1", "--days", "3"])["credits_nano_usd"], 1_000_000_000);
    let terms = operator(&["tenant", "terms", "other", "--tier", "free", "--ceiling", "2"]);
    assert_eq!((&terms["tier"], &terms["ceiling"]), (&"free".into(), &2_000_000_000_i64.into()));
    let budgets = operator(&["budget", "set", "other", "--month", "50", "--requests-per-minute", "9"]);
    assert_eq!((budgets.as_array().unwrap().len(), operator(&["budget", "list", "other"])), (2, budgets.clone()));
    assert_eq!(operator(&["budget", "set", "other", "--month", "none"]).as_array().unwrap().len(), 1);
    assert_eq!(operator(&["usage", "--by", "model"]), json!([]));
    assert_eq!(operator(&["tenant", "suspend", "other"])["suspended"], true);
    assert_eq!(operator(&["tenant", "suspend", "other", "--off"])["suspended"], false);
    assert_eq!(operator(&["tenant", "list"]).as_array().unwrap().len(), 2);
    assert_eq!(operator(&["device", "list"]), json!([]));
    let invite = operator(&["invite", "acme"]);
    assert_eq!(invite["tenant"], "acme");

    let joined = user(&["join", "--label", "Laptop", invite["invite"].as_str().unwrap()]);
    assert_eq!((&joined["tenant"], &joined["home"]), (&"acme".into(), &home.display().to_string().into()));
    let device = joined["device"].as_str().unwrap();
    let status = user(&["status"]);
    assert_eq!((&status["phase"], &status["device"], &status["path"]), (&"up".into(), &device.into(), &"quic".into()));
    assert!(status["round_trip_us"].as_u64().unwrap() > 0, "{status}");
    assert_eq!(user(&["ask", SKY])["outcome"], "complete");
    assert_eq!(user(&["record", "local", "--model", "m", "--input", "5"])["cost_nano_usd"], 0);
    assert_eq!(user(&["usage", "--by", "class"])["groups"].as_array().unwrap().len(), 2);
    let balance = user(&["balance"]);
    assert_eq!(
        balance["balance_nano_usd"].as_i64().unwrap() + balance["charged_nano_usd"].as_i64().unwrap(),
        5_000_000_000
    );

    let listed = operator(&["device", "list"]);
    assert_eq!((&listed[0]["id"], &listed[0]["label"]), (&device.into(), &"Laptop".into()));
    let node = operator(&["status"]);
    assert_eq!(node["listen"], site.relay.address().unwrap().to_string());
    assert_eq!(operator(&["ledger", "verify"])[0]["settled"], 2);
    assert_eq!(operator(&["ledger", "estimated"]), json!([]));
    assert_eq!(user(&["logout"]), json!({ "device": device, "revoked": true, "forgotten": true }));
    assert_eq!(operator(&["device", "revoke", device])["revoked"], device);
}

#[test]
fn every_failure_prints_one_json_value_too() {
    let mut site = Site::start(1);
    let home = site.join("laptop", "acme");
    let none = site.home("none");
    for command in [&["status"][..], &["balance"], &["ask", "x"], &["logout"]] {
        let ran = run(&mut belay(&none, &[command, &["--json"]].concat()));
        let value = fails_as_json(&ran, 64);
        assert!(value["error"].as_str().unwrap().contains("belay join"), "no remedy: {value}");
    }
    fails_as_json(&site.belayd(&["tenant", "create", "acme", "--json"]), 77);
    fails_as_json(&site.belayd(&["device", "revoke", "nobody", "--json"]), 77);
    fails_as_json(&site.belayd(&["serve", "--json"]), 77);
    site.relay.kill9().unwrap();
    for command in [&["status"][..], &["tenant", "list"], &["device", "list"], &["invite", "acme"]] {
        let value = fails_as_json(&site.belayd(&[command, &["--json"]].concat()), 69);
        assert!(value["error"].as_str().unwrap().contains("belayd serve"), "no remedy: {value}");
    }
    for command in [&["status"][..], &["balance"], &["ask", "x"], &["logout"]] {
        fails_as_json(&run(&mut belay(&home, &[command, &["--json", "--wait", "0"]].concat())), 69);
    }
    let missing = site.home("missing.toml");
    for command in [&["serve"][..], &["config", "check"], &["tenant", "list"], &["ledger", "verify"]] {
        fails_as_json(&run(&mut belayd(&missing, &[command, &["--json"]].concat())), 64);
    }
}

#[test]
fn the_configuration_is_written_once_and_checked_with_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("belayd.toml");
    let file = path.to_str().unwrap();
    let init = |args: &[&str]| run(program("belayd").args(["config", "init"]).args(args).current_dir(dir.path()));
    fails(&run(&mut belayd(&path, &["config", "check"])), 64, &[file, "belayd config init"]);
    exits(&init(&[file]), 0);
    let written = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{written}# mine\n")).unwrap();
    fails(&init(&[file]), 1, &[file, "exists already"]);
    assert!(fs::read_to_string(&path).unwrap().ends_with("# mine\n"), "it was overwritten");
    assert_eq!(init(&["-"]).stdout, written);
    exits(&run(&mut belayd(&path, &["config", "check"])), 0);

    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        run(&mut belayd(&path, &["config", "check"]))
    };
    let at = |line: &str| format!("{file}:{line}: ");
    let hint = "did you mean `requests_per_minute`?";
    let unknown = written.replace("requests_per_minute", "request_per_minute");
    let line = unknown.lines().position(|line| line.starts_with("request_per")).unwrap() + 1;
    fails(&check(&unknown), 64, &[&at(&format!("{line}:1")), hint]);
    fails(&check("[state]\ndir = \"x\"\n[listen]\nquic = 4433\n"), 64, &[&at("4:8"), "string"]);
    fails(&check("[state\n"), 64, &[&at("1:7")]);
    fails(
        &check("[state]\ndir = \"x\"\n[providers.p]\nkind = \"opnai\"\n"),
        64,
        &["providers.p", "did you mean `openai`?"],
    );
    let absent = "[state]\ndir = \"x\"\n[providers.p]\nkind = \"openai\"\nkey_file = \"/nowhere/key\"\n";
    fails(&check(absent), 64, &["key_file", "/nowhere/key"]);
    assert!(!dir.path().join("x").exists(), "a check makes nothing");
}

#[test]
fn operators_need_no_provider_keys() {
    let openai =
        "[providers.openai]\nkind = \"openai\"\nurl = \"http://127.0.0.1:1\"\nkey_env = \"KEY_OF_THE_SERVICE\"\n";
    let config = crate::programs::demo_config(1) + openai;
    let mut site = Site::with(&config, &[("KEY_OF_THE_SERVICE", "sk-1")]);
    // The operator's shell does not have what the service's environment has.
    for args in [
        &["status"][..],
        &["tenant", "list"],
        &["tenant", "credit", "acme", "1"],
        &["invite", "acme"],
        &["device", "list"],
        &["ledger", "verify"],
    ] {
        exits(&site.belayd(args), 0);
    }
    // A check of the whole configuration, and a relay, do need it.
    fails(&site.belayd(&["config", "check"]), 64, &["providers.openai", "KEY_OF_THE_SERVICE", "not set"]);
    assert!(site.relay.terminate().unwrap().success());
    exits(&site.belayd(&["ledger", "verify"]), 0);
    fails(&site.belayd(&["serve"]), 64, &["KEY_OF_THE_SERVICE"]);
}

#[test]
fn a_credit_is_made_once_per_operation() {
    let site = Site::start(1);
    for _ in 0..2 {
        let ran = site.belayd(&["tenant", "credit", "acme", "20", "--operation", "invoice-7", "--note", "paid"]);
        exits(&ran, 0);
        assert_eq!(ran.stdout, "tenant acme: balance $25.00\n");
    }
    let other = site.belayd(&["tenant", "credit", "acme", "21", "--operation", "invoice-7"]);
    fails(&other, 77, &["invoice-7", "$20.00", "$21.00"]);
    fails(&site.belayd(&["tenant", "credit", "acme", "--", "-1"]), 77, &["above zero"]);
    fails(&site.belayd(&["tenant", "credit", "nobody", "1"]), 77, &["no tenant nobody", "belayd tenant list"]);
    // Without a name, every credit is its own.
    for balance in ["26", "27"] {
        assert_eq!(
            site.belayd(&["tenant", "credit", "acme", "1"]).stdout,
            format!("tenant acme: balance ${balance}.00\n")
        );
    }
    site.books_are_clean();
}

#[test]
fn a_tenant_whose_opening_credit_is_refused_is_not_made() {
    let site = Site::start(1);
    for credit in ["--credit=0", "--credit=-1"] {
        fails(&site.belayd(&["tenant", "create", "poor", credit]), 77, &["above zero"]);
    }
    assert_eq!(site.belayd(&["tenant", "create", "poor", "--credit", "1"]).stdout, "tenant poor: balance $1.00\n");
}

#[test]
fn who_is_refused_learns_why() {
    let site = Site::start(1);
    let (laptop, desktop) = (site.join("laptop", "acme"), site.home("desktop"));
    let again = site.invite("acme");
    fails(&run(&mut belay(&laptop, &["join", &again])), 77, &["laptop-", "acme already", "belay logout"]);
    exits(&run(&mut belay(&desktop, &["join", &again])), 0);
    let third = site.home("third");
    let ran = run(&mut belay(&third, &["join", &again, "--json"]));
    assert_eq!(fails_as_json(&ran, 77)["code"], "invite_refused");
    fails(&ran, 77, &["has been used", "belayd invite"]);
    let model = run(&mut belay(&laptop, &["ask", "--model", "gpt-9", "x"]));
    fails(&model, 77, &["gpt-9", "it has auto, demo"]);

    let devices = site.relay.run(&["device", "list"]).unwrap();
    let id = |label: &str| {
        let device =
            devices.as_array().unwrap().iter().find(|device| device["id"].as_str().unwrap().starts_with(label));
        device.unwrap()["id"].as_str().unwrap().to_owned()
    };
    exits(&site.belayd(&["device", "revoke", &id("laptop")]), 0);
    for command in [&["status"][..], &["balance"], &["ask", "x"]] {
        fails(&run(&mut belay(&laptop, command)), 77, &["revoked", "new invite"]);
    }
    // It is out already; what is left is to forget.
    exits(&run(&mut belay(&laptop, &["logout"])), 0);
    fails(&run(&mut belay(&laptop, &["status"])), 64, &["belay join"]);
    for what in [&["device", "revoke", "nobody"][..], &["invite", "nobody"], &["ledger", "verify", "nobody"]] {
        fails(&site.belayd(what), 77, &["there is no", "list"]);
    }
}

#[test]
fn a_book_is_exported_from_a_running_relay_and_from_a_stopped_one() {
    let mut site = Site::start(1);
    let home = site.join("laptop", "acme");
    exits(&run(&mut belay(&home, &["ask", SKY])), 0);
    let export = |site: &Site| {
        let ran = site.belayd(&["ledger", "export", "acme"]);
        exits(&ran, 0);
        ran.stdout
    };
    let running = export(&site);
    let lines: Vec<&str> = running.lines().collect();
    assert!(lines[0].starts_with("entry,at_ms,kind,from,to,amount_nano_usd,"), "{}", lines[0]);
    for (number, kind) in [(1, "credit"), (2, "hold"), (3, "release"), (4, "settle")] {
        assert!(lines[number].starts_with(&format!("{number},")) && lines[number].contains(kind), "{}", lines[number]);
    }
    assert_eq!(lines.len(), 5);
    let none = site.belayd(&["ledger", "export", "acme", "--until", "2020-01-01"]);
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""));
    fails(&site.belayd(&["ledger", "export", "nobody"]), 77, &["no tenant nobody"]);
    site.relay.terminate().unwrap();
    assert_eq!(export(&site), running);
    let json = site.belayd(&["ledger", "export", "acme", "--json"]);
    assert_eq!(json.stdout.lines().count(), 4);
    fails(&site.belayd(&["ledger", "export", "nobody"]), 77, &["no tenant nobody"]);
}

#[test]
fn too_little_money_is_78_and_says_how_much_is_missing() {
    let site = Site::start(1);
    site.relay.run(&["tenant", "create", "poor", "--credit", "0.0001"]).unwrap();
    let home = site.join("laptop", "poor");
    let ran = run(&mut belay(&home, &["ask", "--json", "--max-tokens", "1000", SKY]));
    let value = fails_as_json(&ran, 78);
    assert_eq!(value["code"], "payment_required");
    let missing = value["missing_nano_usd"].as_i64().unwrap();
    // 1000 tokens of output at $15 per million, 1.03, and the input's bound on top.
    assert!(missing > 15_450_000 - 100_000 && missing < 25_000_000, "{missing}");
    let dollars = belay_protocol::money::NanoUsd(missing).to_string();
    fails(&ran, 78, &[&dollars, "is missing", "$0.0001 ", "top up"]);

    let rich = site.join("desktop", "acme");
    let capped = run(&mut belay(&rich, &["ask", "--json", "--cost-cap", "0.001", "--max-tokens", "1000", SKY]));
    assert!(fails_as_json(&capped, 78)["missing_nano_usd"].as_i64().unwrap() > 0);
    let reduced = ["ask", "--json", "--cost-cap", "0.006", "--max-tokens", "1000", "--may-reduce", SKY];
    let reduced = json_of(&run(&mut belay(&rich, &reduced)));
    assert!(reduced["cost_nano_usd"].as_i64().unwrap() <= 6_000_000, "{reduced}");
    site.books_are_clean();
}

#[test]
fn a_suspended_tenant_is_out_until_it_is_let_go_on() {
    let site = Site::start(50);
    let home = site.join("laptop", "acme");
    let watch = Running::start(&mut belay(&home, &["status", "--watch"]), "");
    watch.wait_for("the tunnel", |text| text.contains("up since"));
    let asking = Running::start(&mut belay(&home, &["ask", SKY]), "");
    asking.wait_for("some of the answer", |text| text.contains("mixture"));
    let ran = site.belayd(&["tenant", "suspend", "acme"]);
    assert!(ran.stdout.ends_with(", suspended\n"), "{}", ran.stdout);
    // Live tunnels close, running requests end and are settled.
    watch.wait_for("the tunnel's end", |text| text.contains("suspended"));
    let asked = asking.end();
    assert_ne!(asked.code, Some(0), "{asked:?}");
    let begun = std::time::Instant::now();
    for command in [&["ask", "x"][..], &["balance"], &["status"]] {
        fails(&run(&mut belay(&home, command)), 77, &["suspended", "operator"]);
    }
    assert!(begun.elapsed().as_secs() < 10, "a refusal that stands is waited on");
    assert_eq!(site.tenant("acme")["open_holds"], 0);
    assert!(site.tenant("acme")["charged_nano_usd"].as_i64().unwrap() > 0);
    let off = site.belayd(&["tenant", "suspend", "acme", "--off"]);
    assert!(!off.stdout.contains("suspended"), "{}", off.stdout);
    exits(&run(&mut belay(&home, &["ask", "--max-tokens", "5", "x"])), 0);
    site.books_are_clean();
    watch.interrupt();
    exits(&watch.end(), 0);
}

/// A relay whose provider shows what reaches it.
async fn site_with_fake_provider() -> (FakeProvider, Site) {
    let provider = FakeProvider::start().await.unwrap();
    let url = provider.url();
    let model = |name: &str, provider: &str| {
        format!(
            "[models.{name}]\nprovider = \"{provider}\"\ncontext_tokens = 200000\nmax_output_tokens = 8192\n\
             price = {{ input = \"3\", output = \"15\" }}\n"
        )
    };
    let config = format!(
        "[providers.anthropic]\nkind = \"anthropic\"\nurl = \"{url}\"\n[providers.openai]\nkind = \"openai\"\nurl = \"{url}/v1\"\n\
         {}{}[aliases]\nauto = \"gpt\"\n",
        model("claude", "anthropic"),
        model("gpt", "openai")
    );
    // A process is waited for: not on the runtime's threads.
    let site = tokio::task::spawn_blocking(move || Site::with(&config, &[])).await.unwrap();
    (provider, site)
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_come_from_arguments_pipes_and_files() {
    let (provider, site) = site_with_fake_provider().await;
    let script = Script::tokens(6);
    let answer = script.whole_text(6);
    provider.set_script(script);
    let dir = site.relay.dir().to_owned();
    let file = |name: &str, text: &str| {
        fs::write(dir.join(name), text).unwrap();
        dir.join(name).display().to_string()
    };
    let (notes, history) = (
        file("notes.md", "NOTES-IN-A-FILE"),
        file("talk.json", r#"[{"role":"user","content":"EARLIER"},{"role":"assistant","content":"REPLIED"}]"#),
    );
    let (openai, anthropic) = (
        file("openai.json", r#"{"model":"x","stream":true,"messages":[{"role":"user","content":"OWN-BODY"}]}"#),
        file("anthropic.json", r#"{"model":"x","max_tokens":50,"messages":[{"role":"user","content":"OWN-BODY"}]}"#),
    );
    let knowledge = format!("{notes}=0.9");
    // Arguments, stdin, what must reach the provider.
    let cases: [(&[&str], &str, &[&str]); 8] = [
        (&["AN-ARGUMENT"], "", &["AN-ARGUMENT"]),
        (&[], "PIPED-IN", &["PIPED-IN"]),
        (&["--query", "REVIEW-IT"], "A-DIFF", &["REVIEW-IT", "A-DIFF", "stdin"]),
        (&["--no-stream", "WHOLE"], "", &["WHOLE"]),
        (
            &[
                "--knowledge",
                &knowledge,
                "--framing",
                "FRAMED",
                "--constraint",
                "BE-SHORT",
                "--history",
                &history,
                "NOW",
            ],
            "",
            &["NOTES-IN-A-FILE", "FRAMED", "BE-SHORT", "EARLIER", "REPLIED", "NOW"],
        ),
        (&["--dialect", "openai", "--body", &openai], "", &["OWN-BODY"]),
        (&["--dialect", "openai", "--body", "-"], r#"{"messages":[{"role":"user","content":"OWN"}]}"#, &["OWN"]),
        (&["--dialect", "anthropic", "--model", "claude", "--body", &anthropic], "", &["OWN-BODY"]),
    ];
    tokio::task::block_in_place(|| {
        let home = site.join("laptop", "acme");
        for (args, input, reach) in cases {
            let ran = run_with(&mut belay(&home, &[&["ask"], args].concat()), input);
            exits(&ran, 0);
            assert_eq!(ran.stdout.trim_end_matches('\n'), answer.trim_end_matches('\n'), "{args:?}");
            assert!(ran.stdout.ends_with('\n'), "{args:?}: the last line does not end");
            assert!(ran.stderr.contains(" 6 out, cost $0.00") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
            // Tokens were counted, so the line must not say that there was none.
            assert!(!ran.stderr.contains("no token"), "{args:?}: {}", ran.stderr);
            let body = String::from_utf8(provider.last().body.to_vec()).unwrap();
            for part in reach {
                assert!(body.contains(part), "{args:?}: {part:?} did not reach the provider: {body}");
            }
        }
        let wrong = run_with(&mut belay(&home, &["ask", "--dialect", "openai", "--body", "-"]), "{\"messages\":");
        fails(&wrong, 77, &["not a JSON object"]);
        fails(&run(&mut belay(&home, &["ask", "--knowledge", "/nowhere", "x"])), 1, &["/nowhere", "No such file"]);
    });
    let before = provider.counts().requests;
    provider.set_script(Script {
        body: Some("{\"error\":{\"message\":\"QUOTA-IS-USED-UP\"}}".into()),
        ..Script::refusal(429, None)
    });
    tokio::task::block_in_place(|| {
        let ran = run(&mut belay(&site.home("laptop"), &["ask", "x"]));
        fails(&ran, 77, &["429", "QUOTA-IS-USED-UP"]);
        assert_eq!(ran.stdout, "", "a refusal is no answer");
        site.books_are_clean();
    });
    // What may pass is asked once more.
    assert_eq!(provider.counts().requests, before + 2);
}

#[test]
fn ctrl_c_cancels_and_shows_what_it_cost() {
    let site = Site::start(50);
    let home = site.join("laptop", "acme");
    let asking = Running::start(&mut belay(&home, &["ask", SKY]), "");
    asking.wait_for("some of the answer", |text| text.contains("mixture"));
    asking.interrupt();
    let ran = asking.end();
    fails(&ran, 1, &["demo-1 at demo: ", "cost about $0.000", "balance $4.99", "not complete (cancelled)"]);
    assert!(ran.stdout.starts_with("Sunlight") && !ran.stdout.contains("remain."), "{}", ran.stdout);
    let tenant = site.tenant("acme");
    assert_eq!(tenant["open_holds"], 0);
    let charged = tenant["charged_nano_usd"].as_i64().unwrap();
    assert!(charged > 0 && charged < 1_000_000, "{tenant}");

    // The same as JSON: one object, with the outcome in it. It is known to run once money is held.
    let asking = Running::start(&mut belay(&home, &["ask", "--json", SKY]), "");
    let deadline = std::time::Instant::now() + crate::programs::DEADLINE;
    while site.tenant("acme")["open_holds"] == 0 {
        assert!(std::time::Instant::now() < deadline, "it did not begin");
    }
    asking.interrupt();
    let ran = asking.end();
    exits(&ran, 1);
    let value = one_json(&ran.stdout);
    assert_eq!((&value["outcome"], &value["estimated"]), (&"cancelled".into(), &true.into()), "{value}");
    site.books_are_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_is_heard_however_fast_the_answer_comes() {
    let (provider, site) = site_with_fake_provider().await;
    provider.set_script(Script { endless: true, pace_ms: 1, ..Script::tokens(1) });
    tokio::task::block_in_place(|| {
        let home = site.join("laptop", "acme");
        for _ in 0..10 {
            let asking = Running::start(&mut belay(&home, &["ask", "x"]), "");
            asking.wait_for("some of the answer", |text| text.len() > 100);
            asking.interrupt();
            fails(&asking.end(), 1, &["not complete (cancelled)"]);
        }
        site.books_are_clean();
    });
}

#[test]
fn a_repeated_request_is_charged_once_and_says_so() {
    let site = Site::start(1);
    let home = site.join("laptop", "acme");
    let id = "00112233445566778899aabbccddeeff";
    let ask = |question: &str, json: bool| {
        let args = ["ask", "--request-id", id, question, "--json"];
        run(&mut belay(&home, &args[..args.len() - usize::from(!json)]))
    };
    let first = json_of(&ask(SKY, true));
    let charged = site.tenant("acme")["charged_nano_usd"].clone();
    assert_eq!((&first["request_id"], &first["cost_nano_usd"]), (&id.into(), &charged));
    let second = json_of(&ask(SKY, true));
    assert_eq!((&second["content"], &second["text"]), (&"gone".into(), &"".into()), "{second}");
    for same in ["cost_nano_usd", "balance_nano_usd", "usage", "model", "outcome", "request_id"] {
        assert_eq!(first[same], second[same], "{same}");
    }
    let third = ask(SKY, false);
    exits(&third, 0);
    assert_eq!(third.stdout, "");
    assert!(third.stderr.contains("settled before; its text is no longer kept"), "{}", third.stderr);
    fails(&ask("Something else", false), 77, &["request id", "new request id"]);
    assert_eq!(site.tenant("acme")["charged_nano_usd"], charged, "charged again");
    site.books_are_clean();
}

#[test]
fn a_state_directory_has_one_relay() {
    let site = Site::start(1);
    let second = site.belayd(&["serve"]);
    fails(&second, 77, &["in use by a running belayd", "state"]);
    // The first one goes on, and its admin socket is still its own.
    exits(&site.belayd(&["status"]), 0);
    assert!(site.belayd(&["status"]).stdout.starts_with("belayd 0.1.0 on 127.0.0.1:"), "it answers");
}

#[test]
fn a_newer_schema_is_not_touched() {
    let mut site = Site::start(1);
    let home = site.join("laptop", "acme");
    exits(&run(&mut belay(&home, &["ask", "--max-tokens", "3", "x"])), 0);
    assert!(site.relay.terminate().unwrap().success());
    let state = site.relay.dir().join("state");
    let set = |file: &Path, version: i64| {
        let connection = rusqlite::Connection::open(file).unwrap();
        connection.pragma_update(None, "user_version", version).unwrap();
    };
    let central = state.join("central.db");
    let known = rusqlite::Connection::open(&central).unwrap();
    let known: i64 = known.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    set(&central, 900);
    for command in [&["serve"][..], &["ledger", "verify"]] {
        let ran = site.belayd(command);
        fails(&ran, 77, &["central.db", "schema version 900", "newer belayd"]);
        assert_eq!(ran.stderr.matches("schema version").count(), 1, "{}", ran.stderr);
    }
    set(&central, known);
    // A tenant's file is opened on demand: the relay serves the others.
    set(&state.join("tenants/acme/tenant.db"), 900);
    fails(&site.belayd(&["ledger", "verify"]), 77, &["tenant.db", "schema version 900", "newer belayd"]);
    site.relay.restart().unwrap();
    exits(&run(&mut belay(&home, &["ask", "x"])), 1);
    assert!(site.relay.log().contains("schema version 900"), "{}", site.relay.log());
    set(&state.join("tenants/acme/tenant.db"), 1);
}

#[test]
fn keys_are_for_their_owner_alone() {
    let site = Site::start(1);
    let home = site.join("laptop", "acme");
    exits(&run(&mut belay(&home, &["ask", "--max-tokens", "3", "x"])), 0);
    let state = site.relay.dir().join("state");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert!(fs::metadata(state.join("admin.sock")).unwrap().file_type().is_socket());
    for file in ["admin.sock", "ca/ca.key", "endpoint.keys", "lock", "tenants/acme/dispatch.journal"] {
        assert_eq!(mode(&state.join(file)), 0o600, "{file}");
    }
    for dir in ["", "ca", "tenants", "tenants/acme"] {
        assert_eq!(mode(&state.join(dir)), 0o700, "{dir:?}");
    }
    assert_eq!(mode(&home), 0o700);
    let mut files: Vec<_> = fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    // The request was read to its end: nothing of it is left.
    assert_eq!(files, ["device.key", "identity.json", "last-good", "requests"], "something is left of joining");
    assert_eq!(fs::read_dir(home.join("requests")).unwrap().count(), 0);
    for file in files {
        let wanted = if file == "requests" { 0o700 } else { 0o600 };
        assert_eq!(mode(&home.join(&file)), wanted, "{file:?}");
    }
    // A refused invite leaves no key behind either.
    let (used, other) = (site.invite("acme"), site.home("other"));
    exits(&run(&mut belay(&site.home("third"), &["join", &used])), 0);
    exits(&run(&mut belay(&other, &["join", &used])), 77);
    let left: Vec<_> = fs::read_dir(&other).into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "a refused invite left {left:?}");
}

#[test]
fn the_books_read_the_same_running_and_stopped() {
    let mut site = Site::start(1);
    site.relay.run(&["tenant", "create", "idle"]).unwrap();
    let home = site.join("laptop", "acme");
    for _ in 0..3 {
        exits(&run(&mut belay(&home, &["ask", "--max-tokens", "3", "x"])), 0);
    }
    let look = |site: &Site| {
        let ran = [&["ledger", "verify"][..], &["ledger", "verify", "--json"], &["ledger", "verify", "acme", "--json"]]
            .map(|args| site.belayd(args));
        let unknown = site.belayd(&["ledger", "verify", "nobody"]);
        fails(&unknown, 77, &["there is no tenant nobody"]);
        ran.map(|ran| {
            exits(&ran, 0);
            ran.stdout
        })
    };
    let running = look(&site);
    assert!(site.relay.terminate().unwrap().success());
    assert_eq!(running, look(&site));
    let book = &one_json(&running[2])[0];
    assert_eq!((&book["settled"], &book["open"], &book["problems"]), (&3.into(), &0.into(), &json!([])), "{book}");

    // And what is wrong is found and named, stopped or running.
    let file = site.relay.dir().join("state/tenants/acme/tenant.db");
    let connection = rusqlite::Connection::open(&file).unwrap();
    connection.execute("UPDATE account SET balance_nano = balance_nano + 1 WHERE name = 'tenant:prepaid'", []).unwrap();
    drop(connection);
    let stopped = site.belayd(&["ledger", "verify"]);
    fails(&stopped, 1, &["problems in the books"]);
    assert!(stopped.stdout.contains("acme: account tenant:prepaid shows"), "{}", stopped.stdout);
    site.relay.restart().unwrap();
    let running = site.belayd(&["ledger", "verify"]);
    assert_eq!((running.code, running.stdout), (stopped.code, stopped.stdout));
}

#[test]
fn the_relay_has_as_many_network_threads_as_it_is_told() {
    // A single one is the process's first thread.
    for (threads, workers) in [(1, 0), (3, 3)] {
        let config = crate::programs::demo_config(1).replace("[listen]\n", &format!("[listen]\nthreads = {threads}\n"));
        let site = Site::with(&config, &[]);
        let tasks = fs::read_dir(format!("/proc/{}/task", site.relay.process().pid())).unwrap();
        let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
        assert_eq!(names.filter(|name| name.starts_with("tokio")).count(), workers, "threads = {threads}");
    }
}
