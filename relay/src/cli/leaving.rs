//! `belayd tenant export` and `erase`: for a tenant that asks what is known of it, or leaves.

use super::backup::{Copier, whole};
use super::{Global, print_json};
use belay_protocol::id::TenantId;
use belay_relay::Config;
use belay_relay::admin::client::{AdminClient, ClientError};
use belay_relay::admin::doctor::Taken;
use belay_relay::backup::take::{CopyRequest, Source};
use belay_relay::export::{self, Copies};
use belay_relay::store::erase::Erased;
use belay_relay::store::executor::tenant_dir;
use std::path::{Path, PathBuf};

/// A copy that goes when nobody needs it any more.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) async fn export(global: &Global, id: &TenantId, dir: &Path) -> anyhow::Result<()> {
    let config = Config::load_without_keys(&global.config)?;
    let copier = Copier::of(&config).await?;
    if !copier.tenants().await?.contains(id) {
        return Err(ClientError::Refused(format!("there is no tenant {id}; see: belayd tenant list")).into());
    }
    let copy = async |tenant: Option<TenantId>| -> anyhow::Result<Temporary> {
        let copied = copier.copy(CopyRequest { tenant, known: None }).await?;
        let file = copied.file.ok_or_else(|| ClientError::Answer("the relay copied nothing".into()))?;
        Ok(Temporary(file))
    };
    let (book, central) = (copy(Some(id.clone())).await?, copy(None).await?);
    let tenant_dir = tenant_dir(&config.state_dir, id);
    let copies = Copies { central: &central.0, book: &book.0, tenant_dir: &tenant_dir };
    let exported = export::export(dir, id, &copies)?;
    copier.tell(Taken::Export { tenant: id.clone(), dir: whole(dir)? }).await?;
    if global.json {
        return print_json(&serde_json::json!({ "written": dir, "exported": exported }));
    }
    println!(
        "{}: entries of its book {}, sessions {}, documents, adapters and settings {}; in {}",
        id,
        exported.entries,
        exported.sessions,
        exported.items,
        dir.display()
    );
    Ok(())
}

pub(super) async fn erase(
    global: &Global,
    client: &AdminClient,
    id: &TenantId,
    confirm: &TenantId,
) -> anyhow::Result<()> {
    if id != confirm {
        let why = format!("nothing was erased: --confirm {confirm} is not the tenant {id}");
        return Err(ClientError::Refused(why).into());
    }
    let erased: Erased = client.post_long(&format!("/tenants/{id}/erase"), &()).await?;
    if global.json {
        return print_json(&erased);
    }
    println!(
        "{id}: erased {} sessions with {} messages, {} synced items, {} provider keys, and the names of its devices and keys",
        erased.sessions, erased.messages, erased.items, erased.provider_keys
    );
    println!("its book stays: belayd ledger export {id}");
    println!("elsewhere: backups from before (take a new one, and remove them), its customer at the payment provider");
    Ok(())
}
