//! Backups and what happens beside them: books that are sealed while others are copied, and usage that central has and
//! the backup has not.

use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use belay_relay::backup::take::{Copied, CopyRequest, Source, take};
use belay_relay::backup::{BackupError, Manifest, check, restore};
use belay_relay::store::ledger::money::Operation;
use belay_tests::relay::{TestRelay, eventually, tenant};
use std::path::Path;
use tokio::task::JoinSet;

/// Entries from one checkpoint to the next.
const EVERY: u64 = 1024;

/// Copies of a relay, and after each book so many entries that it is sealed anew.
struct Busy<'a> {
    relay: &'a TestRelay,
    entries: u64,
}

/// So many entries in the book of `acme`.
async fn grow(relay: &TestRelay, entries: u64) {
    let mut left = JoinSet::new();
    for _ in 0..entries {
        let admin = relay.relay().admin().clone();
        left.spawn(async move { admin.operate(&tenant("acme"), Operation::Credit, NanoUsd(1), None, None).await });
        if left.len() == 64 {
            left.join_next().await.unwrap().unwrap().unwrap();
        }
    }
    for done in left.join_all().await {
        done.unwrap();
    }
    relay.relay().admin().flush(&tenant("acme")).await.unwrap();
}

impl Source for Busy<'_> {
    async fn tenants(&self) -> Result<Vec<TenantId>, BackupError> {
        Ok(self.relay.relay().admin().tenants().await.unwrap().into_iter().map(|tenant| tenant.id).collect())
    }

    async fn copy(&self, request: CopyRequest) -> Result<Copied, BackupError> {
        let is_book = request.tenant.is_some();
        let copied = self.relay.relay().admin().copy(request).await.unwrap();
        if is_book && self.entries > 0 {
            grow(self.relay, self.entries).await;
        }
        Ok(copied)
    }
}

async fn backup(relay: &TestRelay, dir: &Path, entries: u64, now_ms: u64) -> Manifest {
    let source = Busy { relay, entries };
    take(&source, &relay.state(), dir, now_ms, |_, _| {}).await.unwrap().0
}

fn proven(dir: &Path) {
    let (_, checked) = check::check(dir, None).unwrap();
    assert_eq!(checked.problems, Vec::<String>::new());
    assert!(checked.with_master_key);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_that_is_sealed_while_the_others_are_copied_is_no_problem_of_its_backup() {
    let relay = TestRelay::start("").await;
    let at = tempfile::tempdir().unwrap();
    grow(&relay, EVERY / 4).await;
    let first = backup(&relay, at.path(), EVERY, 1).await;
    assert!(first.tenants[&tenant("acme")].sealed.is_some(), "{first:?}");
    proven(at.path());
    // The next one copies what was sealed since, and then what was not.
    let second = backup(&relay, at.path(), EVERY, 2).await;
    assert!(second.tenants[&tenant("acme")].sealed > first.tenants[&tenant("acme")].sealed);
    proven(at.path());
    // The node comes back without what was sealed after its copy, and knows nothing of it.
    let relay = relay
        .restart_after(|state| {
            std::fs::remove_dir_all(state).unwrap();
            belay_certs::file::create_private_dir(state).unwrap();
            restore::node(at.path(), &second, state, &state.join("master.key"), 3).unwrap();
        })
        .await;
    relay.verify().await;
    grow(&relay, EVERY).await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_that_has_lost_what_central_has_of_the_same_life_is_whole_at_once() {
    let relay = TestRelay::start("").await;
    let at = tempfile::tempdir().unwrap();
    let client = relay.client().await;
    let admin = |relay: &TestRelay| relay.relay().admin().clone();
    client.ask("one").await;
    admin(&relay).flush(&tenant("acme")).await.unwrap();
    let manifest = backup(&relay, at.path(), 0, 1).await;
    for question in ["two", "three"] {
        client.ask(question).await;
    }
    eventually("all is settled", async || admin(&relay).status().running_requests == 0).await;
    admin(&relay).flush(&tenant("acme")).await.unwrap();
    let balance = relay.balance("acme").await;
    let relay = relay
        .restart_after(|state| {
            std::fs::write(state.join("tenants/acme/tenant.db"), "no database").unwrap();
            let restored = restore::tenant(at.path(), &manifest, state, &tenant("acme"), 2).unwrap();
            assert_eq!(restored.lost.requests, 2, "{restored:?}");
        })
        .await;
    assert_eq!(relay.balance("acme").await, balance);
    relay.verify().await;
    // A backup of it is as good as any.
    backup(&relay, at.path(), 0, 3).await;
    proven(at.path());
    client.ask("four").await;
    relay.verify().await;
    relay.stop().await;
}
