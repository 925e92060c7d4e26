//! What is signed with comes to its end: another authority, and another master key, take the place of the first.

use crate::keys::belayd_with;
use crate::raw::Device;
use belay_client::escalation::{Answer, EscalationRequest};
use belay_client::state::StateDir;
use belay_client::{Client, ClientError, Options, enrol};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{Dialect, Outcome, RenewAnswer, RenewRequest};
use belay_relay::admin::audit::AuditQuery;
use belay_relay::authority::Step;
use belay_tests::procs::{Belayd, Ran};
use belay_tests::relay::{PATIENCE, TestRelay, eventually};
use belay_transport::env::Env;
use std::path::Path;
use std::time::Duration;

/// A computer that has joined, and whose files a test can put back.
struct Computer {
    state: StateDir,
    home: tempfile::TempDir,
}

impl Computer {
    async fn join(relay: &TestRelay) -> Self {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::at(home.path());
        enrol::join(&Env::system(), &state, &relay.invite("acme").await, "desk").await.unwrap();
        Self { state, home }
    }

    fn start(&self) -> Client {
        let (identity, key) = self.state.load().unwrap();
        let options = Options { state: Some(self.state.clone()), ..Options::default() };
        Client::start(Env::system(), identity, &key, options).unwrap()
    }

    /// Brings a tunnel up, asks, and closes it.
    async fn asks(&self, patience: Duration) -> Result<(), ClientError> {
        let client = self.start();
        let asked = async {
            let body = serde_json::to_vec(&Prompt::new("hello")).unwrap();
            let request = EscalationRequest::new(client.request_id(), Dialect::PROMPT, "auto", body);
            client.escalate(request, patience).await?.collect().await
        };
        let answer = asked.await;
        client.close().await;
        assert_eq!(answer?.end.unwrap().outcome, Outcome::COMPLETE);
        Ok(())
    }
}

/// A certificate's fingerprint, as an operator sees it.
fn hex_of(der: &[u8]) -> String {
    belay_certs::sha256(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn renewed(device: &Device) -> RenewAnswer {
    let tunnel = device.tunnel().await;
    let mut stream = tunnel.peer.open(StreamKind::Enrol).await;
    stream.send(&RenewRequest { csr_der: device.request() }).await;
    stream.finish();
    stream.expect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_takes_over_and_nobody_who_is_there_or_comes_back_notices() {
    let relay = TestRelay::start("[providers.demo]\nkind = \"demo\"\npace_ms = 20\n").await;
    let admin = relay.relay().admin();
    let asks = async |computer: &Computer| computer.asks(PATIENCE).await.unwrap();
    // One that stands through all of it, with a stream in it; one that is away, and stays so.
    let (stands, away, late) =
        (Computer::join(&relay).await, Computer::join(&relay).await, Computer::join(&relay).await);
    let told = Device::enrol(&relay).await;
    let client = stands.start();
    let body = serde_json::to_vec(&Prompt::new("a long answer")).unwrap();
    let request = EscalationRequest::new(client.request_id(), Dialect::PROMPT, "auto", body);
    let mut answer = client.escalate(request, PATIENCE).await.unwrap();
    let unused = relay.invite("acme").await;
    let refused = |error: &dyn std::fmt::Display, words: &str| {
        assert!(error.to_string().contains(words), "{error}");
    };
    for (step, words) in [(Step::Switch, "no authority is prepared"), (Step::Retire, "no former authority")] {
        refused(&admin.change_authority(step, false).await.unwrap_err(), words);
    }
    let first = admin.authority().await.unwrap().fingerprint;
    let prepared = admin.change_authority(Step::Prepare, false).await.unwrap();
    assert_eq!((&prepared.fingerprint, prepared.next.as_ref().unwrap().devices_waiting), (&first, 4));
    refused(&admin.change_authority(Step::Prepare, false).await.unwrap_err(), "prepared already");
    refused(&admin.change_authority(Step::Switch, false).await.unwrap_err(), "4 of the devices have not been told");
    let answered = renewed(&told).await;
    let next = admin.authority().await.unwrap().next.unwrap();
    assert_eq!(next.devices_waiting, 3);
    assert_eq!((hex_of(&answered.ca_der), hex_of(&answered.next_ca_der)), (first.clone(), next.fingerprint.clone()));

    let switched = admin.change_authority(Step::Switch, true).await.unwrap();
    assert_eq!(switched.fingerprint, next.fingerprint);
    assert_eq!(switched.former.as_ref().map(|former| former.devices_waiting), Some(4));
    // Those that trust only the former one come back all the same, over QUIC.
    asks(&away).await;
    let before = away.state.load().unwrap().0;
    assert_eq!(hex_of(&before.ca_der.0), first);
    // Whoever renews trusts the new one, and is signed by it.
    let answered = renewed(&told).await;
    assert_eq!((hex_of(&answered.ca_der), answered.next_ca_der.len()), (next.fingerprint.clone(), 0));
    // An invite of before names an authority that does not stand any more.
    let home = tempfile::tempdir().unwrap();
    let error = enrol::join(&Env::system(), &StateDir::at(home.path()), &unused, "late").await.unwrap_err();
    refused(&error, "is not the one that the invite names; ask for a new invite");
    asks(&Computer::join(&relay).await).await;
    // The stream and its tunnel have seen nothing.
    let mut events = 0;
    let end = loop {
        match answer.next().await.unwrap() {
            Some(Answer::End(end)) => break end,
            Some(Answer::Event(_)) => events += 1,
            Some(other) => assert!(!matches!(other, Answer::Interrupted { .. }), "{other:?}"),
            None => panic!("no end"),
        }
    };
    assert!(events > 10 && end.outcome == Outcome::COMPLETE, "{events} {end:?}");
    assert_eq!(client.status().borrow().reconnects, 0);
    client.close().await;

    // The same after a restart, and over TCP where there is no UDP.
    let relay = relay.restart().await;
    asks(&away).await;
    let admin = relay.relay().admin();
    refused(&admin.change_authority(Step::Prepare, false).await.unwrap_err(), "retire it first");
    let waiting = "3 of the devices have a certificate of the former authority";
    refused(&admin.change_authority(Step::Retire, false).await.unwrap_err(), waiting);
    let retired = admin.change_authority(Step::Retire, true).await.unwrap();
    assert!(retired.former.is_none());
    // Only now is one that never came back left behind.
    let error = late.asks(Duration::from_secs(3)).await.unwrap_err();
    refused(&error, "its certificate authority has become another while this computer was away");
    relay.verify().await;
    relay.stop().await;
    drop(late.home);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_computer_renews_into_the_next_authority_by_itself() {
    let relay = TestRelay::start("[timeouts]\ndevice_certificate_ms = 10000\n").await;
    let computer = Computer::join(&relay).await;
    let client = computer.start();
    client.tunnel(PATIENCE).await.unwrap();
    let admin = relay.relay().admin();
    let prepared = admin.change_authority(Step::Prepare, false).await.unwrap().next.unwrap().fingerprint;
    let waiting = async || admin.authority().await.unwrap().next.unwrap().devices_waiting;
    eventually("the computer is told", async || waiting().await == 0).await;
    eventually("it keeps that", async || !computer.state.load().unwrap().0.next_ca_der.0.is_empty()).await;
    let switched = admin.change_authority(Step::Switch, false).await.unwrap();
    assert_eq!(switched.fingerprint, prepared);
    let signed = async || admin.authority().await.unwrap().former.unwrap().devices_waiting;
    eventually("it is signed by the new one", async || signed().await == 0).await;
    eventually("it trusts that one only", async || computer.state.load().unwrap().0.next_ca_der.0.is_empty()).await;
    admin.change_authority(Step::Retire, false).await.unwrap();
    assert_eq!(client.status().borrow().reconnects, 0);
    client.close().await;
    computer.asks(PATIENCE).await.unwrap();
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn computers_that_are_there_are_asked_to_renew_and_need_not_wait_for_their_time() {
    // By themselves, they would come in forty minutes.
    let relay = TestRelay::start("[timeouts]\ndevice_certificate_ms = 3600000\nheartbeat_ms = 100\n").await;
    let computers = [Computer::join(&relay).await, Computer::join(&relay).await];
    let clients = computers.each_ref().map(Computer::start);
    for client in &clients {
        client.tunnel(PATIENCE).await.unwrap();
    }
    let admin = relay.relay().admin();
    admin.change_authority(Step::Prepare, false).await.unwrap();
    let waiting = async || admin.authority().await.unwrap().next.unwrap().devices_waiting;
    eventually("they are told", async || waiting().await == 0).await;
    let switched = admin.change_authority(Step::Switch, false).await.unwrap().fingerprint;
    let signed = async || admin.authority().await.unwrap().former.unwrap().devices_waiting;
    eventually("they are signed by the new one", async || signed().await == 0).await;
    let trusts = |computer: &Computer| hex_of(&computer.state.load().unwrap().0.ca_der.0);
    eventually("they keep that", async || computers.iter().all(|computer| trusts(computer) == switched)).await;
    admin.change_authority(Step::Retire, false).await.unwrap();
    // Once for each step, though steps and certificates may be of the same second.
    let entries =
        admin.audit(AuditQuery { after: 0, tenant: None, from_ms: 0, until_ms: u64::MAX >> 1 }).await.unwrap();
    let renewals = entries.iter().filter(|entry| entry.action == "device.renew").count();
    assert_eq!(renewals, 4);
    for client in clients {
        assert_eq!(client.status().borrow().reconnects, 0);
        client.close().await;
    }
    for computer in &computers {
        computer.asks(PATIENCE).await.unwrap();
    }
    relay.stop().await;
}

fn refused(ran: &Ran, code: i32, words: &str) {
    assert_eq!(ran.code, Some(code), "{} {}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
}

const CONFIG: &str =
    "[providers.demo]\nkind = \"demo\"\n[providers.own]\nkind = \"openai\"\nurl = \"http://127.0.0.1:1\"\n";

#[test]
fn all_books_come_under_another_master_key_and_a_relay_with_the_old_one_does_not_start() {
    let mut relay = Belayd::start(CONFIG).unwrap();
    for tenant in ["acme", "globex"] {
        relay.run(&["tenant", "create", tenant, "--credit", "5"]).unwrap();
    }
    let (shown, ok) = belayd_with(&relay, &["provider-key", "set", "acme", "own"], "sk-planted\n");
    assert!(ok, "{shown}");
    let rotate = ["master-key", "rotate"];
    refused(&relay.command(&rotate).unwrap(), 77, "in use");
    assert!(relay.terminate().unwrap().success());
    let key = relay.state().join("master.key");
    let first = std::fs::read(&key).unwrap();
    let did = relay.run(&rotate).unwrap();
    assert_eq!((did["tenants"].as_u64(), did["anew"]["provider_keys"].as_u64()), (Some(2), Some(1)));
    let second = std::fs::read(&key).unwrap();
    assert!(second != first && second.len() == 32 && !relay.state().join("master.key.next").exists());
    let clean = |relay: &Belayd| {
        for book in relay.run(&["ledger", "verify"]).unwrap().as_array().unwrap() {
            assert_eq!(book["problems"].as_array().unwrap().len(), 0, "{book}");
        }
    };
    clean(&relay);

    // The old one, and one that is nobody's.
    for wrong in [&first[..], &[7; 32][..]] {
        std::fs::write(&key, wrong).unwrap();
        let words = "is not the master key that the books of this relay are under";
        refused(&relay.command(&["serve"]).unwrap(), 77, words);
        refused(&relay.command(&rotate).unwrap(), 77, "bring the right file back");
    }
    // Nor where nothing says which one is right but the books themselves.
    let name = relay.state().join("master.id");
    let named = std::fs::read(&name).unwrap();
    std::fs::remove_file(&name).unwrap();
    for command in [&["serve"][..], &rotate] {
        refused(&relay.command(command).unwrap(), 77, "the book of acme is not under this master key");
        assert!(!name.exists(), "a wrong key claims nothing");
    }
    std::fs::write(&key, &second).unwrap();
    relay.restart().unwrap();
    assert_eq!(std::fs::read(&name).unwrap(), named);
    relay.run(&["provider-key", "list", "acme"]).unwrap();
    let backup = relay.dir().join("backup");
    let at = backup.to_str().unwrap();
    relay.run(&["backup", at]).unwrap();

    // To a place of the operator's own; broken off at any book, and done again.
    assert!(relay.terminate().unwrap().success());
    let elsewhere = relay.dir().join("new.key");
    let to = ["master-key", "rotate", "--to", elsewhere.to_str().unwrap()];
    let book = relay.state().join("tenants/globex");
    std::fs::rename(&book, relay.dir().join("away")).unwrap();
    std::fs::write(&book, "no directory").unwrap();
    // A book that stands in the way is found before anything has changed.
    refused(&relay.command(&to).unwrap(), 77, "the book of globex is not under this master key");
    assert_eq!(std::fs::read(&name).unwrap(), named);
    std::fs::remove_file(&book).unwrap();
    std::fs::rename(relay.dir().join("away"), &book).unwrap();
    let did = relay.run(&to).unwrap();
    assert_eq!((did["tenants"].as_u64(), did["anew"]["provider_keys"].as_u64()), (Some(2), Some(1)));
    assert_eq!(did["to_place"].as_str().map(Path::new), Some(elsewhere.as_path()));
    refused(&relay.command(&["serve"]).unwrap(), 77, "bring the right file back");
    std::fs::copy(&elsewhere, &key).unwrap();
    // As one that was broken off at its very end has left it, and in its middle: done again, it is through.
    let done = String::from_utf8(std::fs::read(&name).unwrap()).unwrap();
    let broken_off = format!("rotating {} {done}", String::from_utf8(named).unwrap());
    std::fs::write(&name, &broken_off).unwrap();
    refused(&relay.command(&["serve"]).unwrap(), 77, "a change of the master key was broken off");
    refused(&relay.command(&["backup", at]).unwrap(), 77, "finish it first");
    std::fs::write(&key, &second).unwrap();
    refused(&relay.command(&rotate).unwrap(), 77, "is not the key that the rotation which was broken off was to");
    let did = relay.run(&to).unwrap();
    // What was brought over the first time is not done again.
    assert_eq!((did["tenants"].as_u64(), did["anew"]["provider_keys"].as_u64()), (Some(2), Some(0)));
    std::fs::copy(&elsewhere, &key).unwrap();
    std::fs::write(&name, &broken_off).unwrap();
    relay.run(&rotate).unwrap();
    // A book of before cannot be brought back beside those of after.
    std::fs::remove_dir_all(&book).unwrap();
    refused(&relay.command(&["restore", at, "--tenant", "globex"]).unwrap(), 77, "under another master key");
    relay.restart().unwrap();
}
