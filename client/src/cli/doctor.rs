//! `belay doctor`.

use super::exit::Sick;
use super::{Global, print_json};
use belay_client::doctor::look;
use belay_protocol::finding::{Health, render, worst};
use belay_transport::env::Env;

pub(super) async fn doctor(global: &Global) -> anyhow::Result<()> {
    let findings = look(&Env::system(), &global.state()?).await;
    if global.json {
        print_json(&serde_json::json!({ "worst": worst(&findings), "findings": findings }))?;
    } else {
        print!("{}", render(&findings));
    }
    match findings.iter().filter(|finding| finding.health == Health::Bad).count() {
        0 => Ok(()),
        bad => Err(Sick { bad, all: findings.len() }.into()),
    }
}
