//! `belay balance`.

use super::{Global, print_json};

pub(super) async fn balance(global: &Global) -> anyhow::Result<()> {
    let client = global.client()?;
    let answer = client.balance(global.wait()).await;
    client.close().await;
    let balance = answer?;
    if global.json {
        return print_json(&serde_json::json!({
            "tenant": balance.tenant,
            "balance_nano_usd": balance.balance.0,
            "held_nano_usd": balance.held.0,
            "open_holds": balance.open_holds,
            "charged_nano_usd": balance.charged.0,
        }));
    }
    println!("tenant   {}", balance.tenant);
    println!("balance  {}", balance.balance);
    println!("held     {} by {} running requests", balance.held, balance.open_holds);
    println!("charged  {} so far", balance.charged);
    Ok(())
}
