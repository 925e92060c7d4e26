//! `belay join` and `belay logout`.

use super::exit::Usage;
use super::{Global, print_json};
use belay_certs::invite::Invite;
use belay_client::{ClientError, enrol};
use belay_protocol::error::CloseCode;
use belay_transport::env::Env;
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// The join string that `belayd invite` printed
    invite: String,
    /// What to call this computer (default: its host name)
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct LogoutArgs {
    /// Forget the identity without telling the relay
    #[arg(long)]
    offline: bool,
}

pub(super) async fn join(global: &Global, args: &JoinArgs) -> anyhow::Result<()> {
    let invite = Invite::decode(&args.invite).map_err(|error| Usage(error.to_string()))?;
    let state = global.state()?;
    let label = args.label.clone().unwrap_or_else(host_name);
    let identity = enrol::join(&Env::system(), &state, &invite, &label).await?;
    if global.json {
        return print_json(&serde_json::json!({
            "tenant": identity.tenant,
            "device": identity.device,
            "addresses": identity.addresses,
            "expires_ms": identity.expires_ms,
            "home": state.path(),
        }));
    }
    println!("joined as {} of tenant {}", identity.device, identity.tenant);
    println!("next: belay ask \"Why is the sky blue?\"");
    Ok(())
}

pub(super) async fn logout(global: &Global, args: &LogoutArgs) -> anyhow::Result<()> {
    let state = global.state()?;
    let (identity, _) = state.load()?;
    let mut revoked = false;
    if !args.offline {
        let client = global.client()?;
        let left = client.leave("belay logout", global.wait()).await;
        client.close().await;
        revoked = match left {
            Ok(_) => true,
            // It is out already: nothing is left but to forget.
            Err(ClientError::Closed(code)) if ClientError::is_final(code) && code != CloseCode::VERSION => false,
            Err(error) => {
                return Err(anyhow::Error::new(error)
                    .context("the relay was not told; try again, or forget the identity alone with --offline"));
            }
        };
    }
    state.forget()?;
    if global.json {
        return print_json(&serde_json::json!({ "device": identity.device, "revoked": revoked, "forgotten": true }));
    }
    let told = if revoked { "revoked at the relay and forgotten here" } else { "forgotten here" };
    println!("device {} is {told}", identity.device);
    Ok(())
}

fn host_name() -> String {
    let from_file = std::fs::read_to_string("/etc/hostname").ok();
    let from_environment = || std::env::var("COMPUTERNAME").or_else(|_| std::env::var("HOSTNAME")).ok();
    let name = from_file.or_else(from_environment).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "computer".into() } else { name.chars().take(64).collect() }
}
