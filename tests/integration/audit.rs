//! The audit log: whoever changes access or money is named, and nothing is taken out of it.

use belay_tests::procs::{Belayd, binary, run};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const CONFIG: &str = "[http]\nlisten = \"127.0.0.1:0\"\n[providers.demo]\nkind = \"demo\"\n[models.demo]\nprovider = \"demo\"\n\
    context_tokens = 32000\nmax_output_tokens = 4096\nprice = { input = \"3\", output = \"15\" }\n";

fn lines(relay: &Belayd, args: &[&str]) -> Vec<Value> {
    let ran = relay.command(&[&["audit"], args].concat()).unwrap();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn told(entry: &Value) -> String {
    let word = |name: &str| entry[name].as_str().unwrap().to_owned();
    format!("{} {} {} {} {}", word("actor"), word("action"), word("tenant"), word("subject"), word("detail"))
}

fn belay(home: &Path, args: &[&str]) {
    let ran = run(Command::new(binary("belay")).env("BELAY_HOME", home).args(args)).unwrap();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn whoever_changes_access_or_money_is_named() {
    let mut relay = Belayd::start(CONFIG).unwrap();
    let ran = |args: &[&str]| relay.run(args).unwrap();
    ran(&["tenant", "create", "acme", "--credit", "5"]);
    ran(&["tenant", "create", "globex"]);
    ran(&["tenant", "refund", "acme", "1", "--operation", "back-1"]);
    ran(&["tenant", "suspend", "globex"]);
    ran(&["budget", "set", "acme", "--month", "50"]);
    let home = tempfile::tempdir().unwrap();
    let invite = ran(&["invite", "acme"])["invite"].as_str().unwrap().to_owned();
    belay(home.path(), &["join", &invite]);
    let device = ran(&["device", "list"])[0]["id"].as_str().unwrap().to_owned();
    let key = ran(&["key", "create", "acme", "--label", "ci", "--scope", "read", "--scope", "admin"]);
    let (id, secret) = (key["id"].as_str().unwrap().to_owned(), key["secret"].as_str().unwrap().to_owned());
    let http = relay.process().hello["http"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let asked = client.post(format!("{http}/v1/billing/topup")).bearer_auth(&secret);
        let asked = asked.body("{\"amount_nano_usd\":2000000000,\"operation\":\"gift\"}").send().await.unwrap();
        assert_eq!(asked.status(), 200, "{}", asked.text().await.unwrap());
    });
    belay(home.path(), &["logout"]);
    ran(&["key", "revoke", &id]);
    ran(&["device", "revoke", &device, "--why", "sold"]);
    ran(&["reload"]);
    // What is refused was asked for all the same.
    assert_eq!(relay.command(&["key", "revoke", "nobody"]).unwrap().code, Some(77));

    let all = lines(&relay, &[]);
    let seen: Vec<String> = all.iter().map(told).collect();
    let by_device = format!("device:{device}");
    let wanted = [
        "operator tenant.create acme".to_owned(),
        "operator money.credit acme opening-acme $5.00".into(),
        "operator tenant.create globex".into(),
        "operator money.refund acme back-1 $1.00".into(),
        "operator tenant.suspend globex".into(),
        "operator budget.set acme tenant".into(),
        "operator device.invite acme".into(),
        format!("{by_device} device.enrol acme {device}"),
        "operator key.create acme  read admin".into(),
        format!("key:{id} money.credit acme http gift $2.00"),
        format!("{by_device} device.leave acme {device}"),
        format!("operator key.revoke acme {id}"),
        format!("operator device.revoke acme {device} sold"),
        "operator config.reload".into(),
        "operator key.revoke  nobody".into(),
    ];
    assert_eq!(seen.len(), wanted.len(), "{seen:#?}");
    for (seen, wanted) in seen.iter().zip(&wanted) {
        assert!(seen.starts_with(wanted.as_str()), "{seen:?} is not {wanted:?}");
    }
    let ids: Vec<i64> = all.iter().map(|entry| entry["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (1..=all.len() as i64).collect::<Vec<_>>());
    let text = serde_json::to_string(&all).unwrap();
    assert!(!text.contains(&secret) && !text.contains(&invite), "a secret is in it");
    // Of one tenant; of days that are not yet.
    assert!(lines(&relay, &["--tenant", "globex"]).iter().all(|entry| entry["tenant"] == "globex"));
    assert_eq!(lines(&relay, &["--tenant", "globex"]).len(), 2);
    assert!(lines(&relay, &["--from", "2999-01-01"]).is_empty());

    // It outlives the process, and nothing is taken out of it or changed.
    relay.kill9().unwrap();
    let central = rusqlite::Connection::open(relay.dir().join("state/central.db")).unwrap();
    for sql in ["DELETE FROM audit WHERE id = 1", "UPDATE audit SET detail = '' WHERE id = 1"] {
        let error = central.execute(sql, []).unwrap_err().to_string();
        assert!(error.contains("append only"), "{error}");
    }
    drop(central);
    relay.restart().unwrap();
    assert_eq!(lines(&relay, &[]), all);
}
