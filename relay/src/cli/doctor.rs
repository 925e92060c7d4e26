//! `belayd doctor`: what may be wrong with this node, and what to do.

use super::backup::stopped;
use super::exit::Told;
use super::{Global, print_json};
use belay_protocol::finding::{render, worst};
use belay_relay::Config;
use belay_relay::admin::client::{AdminClient, ClientError};
use belay_relay::admin::doctor::BACKED_UP;
use belay_relay::doctor::{self, Finding, Health};
use belay_relay::store::central::audit::last;
use belay_relay::store::executor::Db;
use belay_transport::env::{Clock, SystemClock};
use std::path::Path;
use std::process::{Command, Stdio};

/// Where a unit may lie, first where an operator puts it.
const UNITS: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// The score that the unit has as it comes (the lower, the more confined).
const UNIT_SCORE: f64 = 1.1;

pub(super) async fn doctor(global: &Global) -> anyhow::Result<()> {
    let findings = look(global).await?;
    if global.json {
        print_json(&serde_json::json!({ "worst": worst(&findings), "findings": findings }))?;
    } else {
        print!("{}", render(&findings));
    }
    let bad = findings.iter().filter(|finding| finding.health == Health::Bad).count();
    if bad > 0 {
        return Err(Told(format!("{bad} of {} findings are bad", findings.len())).into());
    }
    Ok(())
}

pub(super) async fn look(global: &Global) -> anyhow::Result<Vec<Finding>> {
    let config = match Config::load_without_keys(&global.config) {
        Ok(config) => config,
        Err(error) => {
            let remedy = "put it right, and look again: belayd config check names what is wrong, one thing at a time";
            return Ok(vec![Finding::bad("configuration", error.to_string(), remedy)]);
        }
    };
    let valid = format!("{} is valid for {}", global.config.display(), config.environment);
    let mut findings = vec![Finding::good("configuration", valid)];
    let inside: Result<Vec<Finding>, ClientError> = AdminClient::new(&config.state_dir)?.get("/doctor").await;
    match inside {
        Ok(inside) => findings.extend(inside),
        Err(ClientError::NotRunning { .. }) => {
            let remedy = "systemctl start belayd, or belayd serve; if it does not stay up: journalctl -u belayd";
            findings.push(Finding::bad("relay", "it does not run", remedy));
            findings.extend(at_rest(global, &config).await);
        }
        Err(error) => findings.push(Finding::bad("relay", error.to_string(), "see its log")),
    }
    if config.state_dir.exists() {
        findings.push(doctor::disk(&config.state_dir));
        findings.push(doctor::sync_time(&config.state_dir));
    } else {
        let found = format!("{} is not there; the first start makes it", config.state_dir.display());
        findings.push(Finding::good("state", found));
    }
    findings.extend(unit());
    Ok(findings)
}

/// What can be seen of a relay that does not run.
async fn at_rest(global: &Global, config: &Config) -> Vec<Finding> {
    let mut findings = vec![];
    match Config::load(&global.config) {
        Ok(config) => match belay_relay::providers::configured(&config) {
            Ok(providers) => findings.extend(doctor::providers(&providers, &SystemClock).await),
            Err(error) => {
                findings.push(Finding::bad("providers", error, "install certificates of authorities, or name ca_file"))
            }
        },
        Err(error) => {
            let remedy = "keys that only the service has are looked at once it runs";
            findings.push(Finding::warn("providers", error.to_string(), remedy));
        }
    }
    // One that never ran has nothing to look at.
    if config.state_dir.join("central.db").exists() {
        match stopped(config) {
            Ok((store, _lock)) => {
                let backup = store.run(Db::Central, |connection| last(connection, BACKED_UP)).await;
                match backup {
                    Ok(last_ms) => findings.push(doctor::backup(last_ms, SystemClock.now_ms())),
                    Err(error) => {
                        let remedy = "bring it back from a backup: belayd restore DIR";
                        findings.push(Finding::bad("central database", format!("{error:#}"), remedy));
                    }
                }
                store.close();
            }
            Err(error) => findings.push(Finding::bad(
                "state",
                format!("{error:#}"),
                "end the process that has it (fuser shows which), or start the relay that it is",
            )),
        }
    }
    findings
}

/// How confined the service is, if it is one.
fn unit() -> Option<Finding> {
    let path = UNITS.iter().map(|dir| Path::new(dir).join("belayd.service")).find(|path| path.exists())?;
    let mut analyze = Command::new("systemd-analyze");
    let ran =
        analyze.args(["security", "--offline=true", "--no-pager"]).arg(path).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&ran.stdout);
    let line = text.lines().find(|line| line.contains("Overall exposure level"))?;
    let score: f64 = line.split(':').nth(1)?.split_whitespace().next()?.parse().ok()?;
    let found = format!("exposure {score} of 10 (the lower, the better)");
    Some(if score <= UNIT_SCORE {
        Finding::good("unit", found)
    } else {
        let remedy = "a drop-in takes away what the unit forbids: systemctl cat belayd";
        Finding::warn("unit", found, remedy)
    })
}
