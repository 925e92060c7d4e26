//! `belay models`.

use super::{Global, print_json};
use belay_http::models::offer_json;
use belay_protocol::message::ModelOffer;
use belay_protocol::money::NanoUsd;
use belay_protocol::table;

pub(super) async fn models(global: &Global) -> anyhow::Result<()> {
    let client = global.client()?;
    let answer = client.models(global.wait()).await;
    client.close().await;
    let offers = answer?;
    if global.json {
        let list: Vec<_> = offers.iter().map(offer_json).collect();
        return print_json(&list);
    }
    let price = |price: Option<NanoUsd>| price.map_or_else(|| "no price".into(), |price| price.to_string());
    let row = |offer: &ModelOffer| {
        vec![
            offer.name.clone(),
            format!("{}/{}", offer.provider, offer.model),
            offer.context_tokens.to_string(),
            offer.max_output_tokens.to_string(),
            price(offer.input),
            price(offer.output),
        ]
    };
    let rows: Vec<Vec<String>> = offers.iter().map(row).collect();
    let header = ["MODEL", "STANDS FOR", "CONTEXT", "OUTPUT", "INPUT/MTOK", "OUTPUT/MTOK"];
    print!("{}", table::render(&header, &[2, 3, 4, 5], &rows));
    Ok(())
}
