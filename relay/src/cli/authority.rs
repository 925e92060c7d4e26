//! `belayd authority`.

use super::admin::connect;
use super::{Global, print_json};
use belay_protocol::calendar;
use belay_relay::admin::authority::TakeStep;
use belay_relay::authority::{AuthorityInfo, OtherAuthority, Step};
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(super) enum AuthorityCommand {
    /// Show who signs, until when, and which devices a change waits for
    #[command(after_help = "Example:\n  belayd authority show --json")]
    Show,
    /// Make the next authority; devices are told of it as they renew their certificates
    #[command(after_help = "Example:\n  belayd authority prepare")]
    Prepare,
    /// Let the next authority sign from now on; tunnels stay up
    #[command(after_help = "Example:\n  belayd authority switch")]
    Switch(Force),
    /// Trust the former authority no more
    #[command(after_help = "Example:\n  belayd authority retire")]
    Retire(Force),
}

#[derive(Debug, Args)]
pub(super) struct Force {
    /// Though devices are not ready for it
    #[arg(long)]
    force: bool,
}

pub(super) async fn authority(global: &Global, command: AuthorityCommand) -> anyhow::Result<()> {
    let client = connect(global)?;
    let step = match &command {
        AuthorityCommand::Show => None,
        AuthorityCommand::Prepare => Some((Step::Prepare, false)),
        AuthorityCommand::Switch(args) => Some((Step::Switch, args.force)),
        AuthorityCommand::Retire(args) => Some((Step::Retire, args.force)),
    };
    let info: AuthorityInfo = match step {
        None => client.get("/authority").await?,
        Some((step, force)) => client.post("/authority", &TakeStep { step, force }).await?,
    };
    if global.json {
        return print_json(&info);
    }
    let day = |ms: u64| calendar::day_text(calendar::day(ms));
    println!("authority  {}, until {}", short(&info.fingerprint), day(info.ends_ms));
    let other = |what: &str, other: &OtherAuthority, since: &str, waits: &str| {
        let OtherAuthority { fingerprint, since_ms, devices_waiting } = other;
        println!("{what:<9}  {}, {since} {}; {devices_waiting} {waits}", short(fingerprint), day(*since_ms));
    };
    if let Some(next) = &info.next {
        other("next", next, "prepared on", "of the devices have not been told of it");
    }
    if let Some(former) = &info.former {
        other("former", former, "replaced on", "of the devices have no other certificate yet");
    }
    match (step, &info) {
        (Some((Step::Prepare, _)), _) => {
            println!("devices are told of it when they renew their certificates; then: belayd authority switch");
        }
        (Some((Step::Switch, _)), _) => {
            println!("invites that were not used are void; make new ones");
            println!("once all devices have renewed their certificates: belayd authority retire");
        }
        _ => {}
    }
    Ok(())
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}
