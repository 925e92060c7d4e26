//! A book by sums: what the real one is held against.

use std::collections::{BTreeMap, BTreeSet};

/// A grant: when it ends, and its place among all.
pub(super) type Grant = (u64, usize);

/// The reference: sums by hand.
#[derive(Debug, Default)]
pub(super) struct Reference {
    pub(super) prepaid: i64,
    pub(super) ceiling: i64,
    /// What is left of grants, by their end and their order.
    pub(super) grants: BTreeMap<Grant, i64>,
    pub(super) granted: usize,
    /// Held by request: in all, and of it by grant.
    pub(super) held: BTreeMap<u8, (i64, BTreeMap<Grant, i64>)>,
    pub(super) settled: BTreeMap<u8, Vec<u8>>,
    /// What was charged, borne and held of settled requests, and whether by an estimate that stands.
    pub(super) ends: BTreeMap<u8, (i64, i64, i64, bool)>,
    /// What they have used of grants.
    pub(super) used: BTreeMap<u8, BTreeMap<Grant, i64>>,
    pub(super) charged: i64,
    pub(super) absorbed: i64,
    pub(super) handed: BTreeMap<i64, i64>,
    /// Ids that records have.
    pub(super) recorded: BTreeSet<u8>,
}

impl Reference {
    pub(super) fn credits(&self) -> i64 {
        self.grants.values().sum()
    }

    pub(super) fn available(&self) -> i64 {
        self.credits() + (self.prepaid + self.ceiling).max(0)
    }

    pub(super) fn expire(&mut self, now_ms: u64) {
        self.grants.iter_mut().filter(|((end, _), _)| *end <= now_ms).for_each(|(_, left)| *left = 0);
    }

    pub(super) fn hold(&mut self, id: u8, amount: i64) {
        let mut wanted = amount.min(self.credits());
        self.prepaid -= amount - wanted;
        let mut drawn = BTreeMap::new();
        for (grant, left) in &mut self.grants {
            let taken = wanted.min(*left);
            *left -= taken;
            wanted -= taken;
            if taken > 0 {
                drawn.insert(*grant, taken);
            }
        }
        self.held.insert(id, (amount, drawn));
    }

    /// Ends a hold: of it, `used` is gone.
    pub(super) fn release(&mut self, id: u8, used: i64) {
        let (amount, drawn) = self.held.remove(&id).expect("held");
        let from_credits: i64 = drawn.values().sum();
        self.prepaid += amount - from_credits - (used - used.min(from_credits));
        self.used.insert(id, drawn);
        self.keep_used(id, used.min(from_credits));
    }

    /// Of what a request has of grants, `used` is gone and the rest goes back.
    pub(super) fn keep_used(&mut self, id: u8, mut used: i64) {
        for (grant, taken) in self.used.get_mut(&id).expect("settled") {
            let gone = (*taken).min(used);
            used -= gone;
            *self.grants.get_mut(grant).expect("granted") += *taken - gone;
            *taken = gone;
        }
    }

    pub(super) fn settle(&mut self, id: u8, cost: i64, estimated: bool, end: Vec<u8>) {
        let held = self.held[&id].0;
        let settled = cost.min(held);
        self.release(id, settled);
        let excess = (cost - settled).min((self.prepaid + self.ceiling).max(0));
        self.prepaid -= excess;
        self.charged += settled + excess;
        self.absorbed += cost - settled - excess;
        self.settled.insert(id, end);
        self.ends.insert(id, (settled + excess, cost - settled - excess, held, estimated));
    }

    /// True if there was anything to correct.
    pub(super) fn correct(&mut self, id: u8, cost: i64, now_ms: u64) -> bool {
        let funds = (self.prepaid + self.ceiling).max(0);
        let Some(end) = self.ends.get(&id).copied().filter(|end| end.3) else { return false };
        self.expire(now_ms);
        let (charged, borne, held, _) = end;
        let before = charged + borne;
        let cost = cost.min(before.max(held));
        let (by_balance, by_credits, bears) = if cost <= before {
            let unborne = (before - cost).min(borne);
            let back = before - cost - unborne;
            let used: i64 = self.used[&id].values().sum();
            let credits_back = used - used.min(charged - back);
            self.keep_used(id, used - credits_back);
            (credits_back - back, -credits_back, -unborne)
        } else {
            let more = cost - before;
            let by_credits = more.min(self.credits());
            let by_balance = (more - by_credits).min(funds);
            let mut wanted = by_credits;
            for left in self.grants.values_mut() {
                let taken = wanted.min(*left);
                *left -= taken;
                wanted -= taken;
            }
            (by_balance, by_credits, more - by_balance - by_credits)
        };
        let paid = by_balance + by_credits;
        self.ends.insert(id, (charged + paid, borne + bears, held, false));
        self.prepaid -= by_balance;
        self.charged += paid;
        self.absorbed += bears;
        true
    }
}
