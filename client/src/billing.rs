//! Billing: balance, usage, statements, records.

use crate::client::Client;
use crate::error::ClientError;
use belay_protocol::calendar;
use belay_protocol::codec::Message;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    Balance, BalanceRequest, Done, End, FlushRequest, Flushed, ModelOffer, ModelsRequest, RecordRequest, StatementLine,
    StatementRequest, TopUp, TopUpRequest, UsageBy, UsageGroup, UsagePeriod, UsageRequest,
};
use belay_protocol::money::NanoUsd;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// Which days usage is asked of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// By the relay's calendar.
    Period(UsagePeriod),
    /// From the first up to, not including, the last, days since 1970.
    Days(u32, u32),
}

/// Usage, and the days that it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The sums.
    pub groups: Vec<UsageGroup>,
    /// The first day, days since 1970.
    pub from_day: u32,
    /// The one after the last.
    pub until_day: u32,
}

impl Client {
    /// The tenant's balance.
    pub async fn balance(&self, within: Duration) -> Result<Balance, ClientError> {
        self.call(StreamKind::Billing, &BalanceRequest { reserved: 0 }, within).await
    }

    /// What was used, told apart by something.
    pub async fn usage(&self, span: Span, by: UsageBy, within: Duration) -> Result<Usage, ClientError> {
        let (period, from_day, until_day) = match span {
            Span::Period(period) => (period, 0, 0),
            Span::Days(from, until) => (UsagePeriod::DAYS, from, until),
        };
        let request = UsageRequest { period, from_day, until_day, by };
        let (groups, done) = self.list(StreamKind::Billing, &request, within).await?;
        let (from_day, until_day) = done.map_or((0, 0), |Done { from_day, until_day, .. }| (from_day, until_day));
        Ok(Usage { groups, from_day, until_day })
    }

    /// The models that can be asked, aliases first.
    pub async fn models(&self, within: Duration) -> Result<Vec<ModelOffer>, ClientError> {
        Ok(self.list::<_, _, Done>(StreamKind::Billing, &ModelsRequest { reserved: 0 }, within).await?.0)
    }

    /// A short list: where the tunnel is lost in the middle, it is asked for again over the next one.
    pub(crate) async fn list<Q: Message, A: Message, D: Message>(
        &self,
        kind: StreamKind,
        request: &Q,
        within: Duration,
    ) -> Result<(Vec<A>, Option<D>), ClientError> {
        let until = Instant::now() + within;
        loop {
            let tunnel = self.tunnel_until(until).await?;
            let mut rows = vec![];
            let told = tunnel.list(kind, request, |row| {
                rows.push(row);
                true
            });
            match told.await {
                Ok(done) => return Ok((rows, done)),
                Err(error) if tunnel.is_over(&error).await && Instant::now() < until => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The entries of the tenant's book of some days, one by one. Where the tunnel is lost in the middle,
    /// it goes on over the next one. `each` says whether it wants more. Returns how many there were.
    /// `within` is for each tunnel.
    pub async fn statement(
        &self,
        (from_day, until_day): (u32, u32),
        within: Duration,
        mut each: impl FnMut(StatementLine) -> bool,
    ) -> Result<u64, ClientError> {
        let _waits = self.waits();
        let (mut after, mut rows) = (0, 0);
        loop {
            let tunnel = self.tunnel_until(Instant::now() + within).await?;
            let request = StatementRequest { from_day, until_day, after };
            let told = tunnel.list::<_, _, Done>(StreamKind::Billing, &request, |line: StatementLine| {
                after = line.entry;
                rows += 1;
                each(line)
            });
            match told.await {
                Ok(_) => return Ok(rows),
                Err(error) if tunnel.is_over(&error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Records usage outside of the relay; it is charged at the relay's price. The same id gets the same
    /// answer for ever.
    pub async fn record(&self, record: &RecordRequest, within: Duration) -> Result<End, ClientError> {
        self.call(StreamKind::Billing, record, within).await
    }

    /// Where money can be added.
    pub async fn top_up(&self, amount: NanoUsd, within: Duration) -> Result<TopUp, ClientError> {
        self.call(StreamKind::Billing, &TopUpRequest { amount }, within).await
    }

    /// Has usage handed to the relay's central database now.
    pub async fn flush(&self, within: Duration) -> Result<Flushed, ClientError> {
        self.call(StreamKind::Billing, &FlushRequest { reserved: 0 }, within).await
    }
}

/// A balance for programs.
#[must_use]
pub fn balance_json(balance: &Balance) -> Value {
    json!({
        "tenant": balance.tenant,
        "pays_with": balance.pays_with.name(),
        "balance_nano_usd": balance.balance.0,
        "credits_nano_usd": balance.credits.0,
        "ceiling_nano_usd": balance.ceiling.0,
        "held_nano_usd": balance.held.0,
        "open_holds": balance.open_holds,
        "charged_nano_usd": balance.charged.0,
    })
}

/// Usage for programs: its sum, and what it is told apart by.
#[must_use]
pub fn usage_json(total: &Usage, by: UsageBy, usage: &Usage) -> Value {
    json!({
        "from": calendar::day_text(total.from_day.into()),
        "until": calendar::day_text(i64::from(total.until_day) - 1),
        "total": group_json(total.groups.first().unwrap_or(&UsageGroup::default())),
        "by": by.name(),
        "groups": usage.groups.iter().map(group_json).collect::<Vec<_>>(),
    })
}

fn group_json(group: &UsageGroup) -> Value {
    json!({
        "name": group.name,
        "requests": group.requests,
        "estimated": group.estimated,
        "input_tokens": group.input,
        "output_tokens": group.output,
        "cache_read_tokens": group.cache_read,
        "cache_write_tokens": group.cache_write,
        "reasoning_tokens": group.reasoning,
        "cost_nano_usd": group.cost.0,
    })
}
