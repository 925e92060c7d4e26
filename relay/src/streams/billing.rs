//! Billing streams: balance, usage, statements, records, and where to pay.

use super::answer::{NoAnswer, end, taken};
use super::{Intake, fail, refuse};
use crate::escalate::{Caller, ClientStream, Escalator};
use crate::store::StoreError;
use crate::store::books::Days;
use crate::store::ledger::standing::Tier;
use crate::store::ledger::statement::Line;
use crate::store::ledger::usage::{Group, Grouping};
use crate::stripe::CheckoutError;
use belay_protocol::calendar;
use belay_protocol::codec::Message;
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{Frame, FrameType, frame};
use belay_protocol::message::{
    Balance, BalanceRequest, Done, FailureCode, FlushRequest, Flushed, ModelsRequest, PaysWith, RecordRequest,
    StatementLine, StatementRequest, TopUp, TopUpRequest, UsageBy, UsageGroup, UsagePeriod, UsageRequest,
};
use belay_protocol::money::NanoUsd;
use belay_transport::params::PRIORITY_BULK;

/// The largest number of a day that makes sense: it is in the year 4700.
const LAST_DAY: u32 = 1_000_000;

/// What a stream asks for.
enum Asked {
    Balance,
    Usage(UsageRequest),
    Statement(StatementRequest),
    Record(RecordRequest),
    TopUp(TopUpRequest),
    Flush,
    Models,
}

impl Asked {
    fn read(frame: Option<Frame>) -> Result<Self, ProtocolError> {
        let frame = frame.ok_or(ProtocolError::Truncated(FrameType::BalanceRequest.name()))?;
        match frame.kind {
            FrameType::UsageRequest => UsageRequest::from_frame(&frame).map(Self::Usage),
            FrameType::StatementRequest => StatementRequest::from_frame(&frame).map(Self::Statement),
            FrameType::RecordRequest => RecordRequest::from_frame(&frame).map(Self::Record),
            FrameType::TopUpRequest => TopUpRequest::from_frame(&frame).map(Self::TopUp),
            FrameType::FlushRequest => FlushRequest::from_frame(&frame).map(|_| Self::Flush),
            FrameType::ModelsRequest => ModelsRequest::from_frame(&frame).map(|_| Self::Models),
            _ => BalanceRequest::from_frame(&frame).map(|_| Self::Balance),
        }
    }
}

/// Serves one billing stream. `intake` bounds the request's arrival.
pub async fn serve(escalator: &Escalator, caller: &Caller, intake: &Intake, mut stream: ClientStream) {
    let asked = match intake.within(stream.reader.frame()).await {
        Ok(read) => read.and_then(|frame| Ok(Asked::read(frame)?)),
        Err((failure, code)) => return fail(&mut stream, failure, code).await,
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => return refuse(&mut stream, &error).await,
    };
    stream.writer.set_priority(PRIORITY_BULK);
    let answered = answer(escalator, caller, asked, &mut stream).await;
    end(&mut stream, answered).await;
}

async fn answer(
    escalator: &Escalator,
    caller: &Caller,
    asked: Asked,
    stream: &mut ClientStream,
) -> Result<(), NoAnswer> {
    let writer = &mut stream.writer;
    match asked {
        Asked::Balance => writer.queue(&balance(escalator, caller).await?)?,
        Asked::Usage(request) => {
            let (days, by) = understood(request, escalator.env.clock.now_ms())?;
            let groups = escalator.tenants.books().usage(&caller.tenant, days, by).await?;
            for group in &groups {
                writer.queue(&row(group))?;
            }
            writer.queue(&done(groups.len() as u64, days))?;
        }
        Asked::Statement(request) => statement(escalator, caller, request, stream).await?,
        Asked::Record(request) => match escalator.record(caller, &request).await {
            Ok(settled) => writer.queue_raw(frame(FrameType::End, &settled.end_bytes)?),
            Err(failed) => return Err(NoAnswer::Failed(Box::new(failed))),
        },
        Asked::TopUp(request) => {
            may_ask(escalator, caller)?;
            writer.queue(&TopUp { url: pay_at(escalator, caller, request.amount).await? })?;
        }
        Asked::Flush => {
            may_ask(escalator, caller)?;
            let pending = escalator.tenants.flush_one(&caller.tenant).await?;
            writer.queue(&Flushed { waiting_rows: unsigned(pending.rows), waiting: pending.cost })?;
        }
        Asked::Models => {
            let offers = escalator.config().offers(escalator.env.clock.now_ms());
            for offer in &offers {
                writer.queue(offer)?;
            }
            writer.queue(&done(offers.len() as u64, (0, 0)))?;
        }
    }
    Ok(())
}

/// Errors: the device has asked for such things too often.
fn may_ask(escalator: &Escalator, caller: &Caller) -> Result<(), NoAnswer> {
    escalator.chores.take(&caller.device, escalator.env.clock.now_ms()).map_err(NoAnswer::Failed)
}

/// The page to pay at: Stripe's, or the operator's. Errors: there is none.
async fn pay_at(escalator: &Escalator, caller: &Caller, amount: NanoUsd) -> Result<String, NoAnswer> {
    if let Some(stripe) = &escalator.stripe {
        return match stripe.checkout(&caller.tenant, amount).await {
            Ok(url) => Ok(url),
            Err(CheckoutError::Amount(message)) => Err(invalid(message)),
            Err(CheckoutError::Store(error)) => Err(error.into()),
            Err(CheckoutError::Api(error)) => {
                tracing::warn!(%error, "no page to pay at");
                let message = "the payment service cannot be reached, or refuses";
                Err(NoAnswer::because(FailureCode::STORE_UNAVAILABLE, message, "try again in a moment"))
            }
        };
    }
    match &escalator.config().billing.topup_url {
        Some(url) => Ok(page_for(url, caller, amount)),
        None => {
            let tenant = &caller.tenant;
            let remedy = format!("ask the operator of the relay, who does it with: belayd tenant credit {tenant} 20");
            Err(NoAnswer::because(FailureCode::UNSUPPORTED, "money is added by the operator of this relay", &remedy))
        }
    }
}

/// The page to pay at, for that tenant and amount where its address has room for them.
fn page_for(url: &str, caller: &Caller, amount: NanoUsd) -> String {
    let dollars = if amount > NanoUsd::ZERO { amount.to_string().replace('$', "") } else { String::new() };
    url.replace("{tenant}", caller.tenant.as_str()).replace("{amount}", &dollars)
}

async fn balance(escalator: &Escalator, caller: &Caller) -> Result<Balance, StoreError> {
    let summary = escalator.tenants.books().summary(&caller.tenant).await?;
    Ok(Balance {
        tenant: caller.tenant.clone(),
        balance: summary.balance,
        credits: summary.credits,
        held: summary.held,
        open_holds: summary.open_holds,
        charged: summary.charged,
        pays_with: match summary.terms.tier {
            Tier::Free => PaysWith::FREE,
            Tier::Managed => PaysWith::MANAGED,
            Tier::Byok => PaysWith::BYOK,
        },
        ceiling: summary.terms.ceiling,
    })
}

/// The days and the grouping that are meant. Errors: a code that this relay does not know.
fn understood(request: UsageRequest, now_ms: u64) -> Result<(Days, Grouping), NoAnswer> {
    let today = calendar::day(now_ms);
    let days = match request.period {
        UsagePeriod::DAY => (today, today + 1),
        UsagePeriod::WEEK => (today - 6, today + 1),
        UsagePeriod::MONTH => {
            let month = calendar::month(now_ms);
            (calendar::day(calendar::month_start_ms(month)), calendar::day(calendar::month_start_ms(month + 1)))
        }
        UsagePeriod::EVER => (0, i64::from(LAST_DAY)),
        UsagePeriod::DAYS => named_days(request.from_day, request.until_day)?,
        other => return Err(invalid(format!("there is no period {}", other.0))),
    };
    let by = match request.by {
        UsageBy::TOTAL => Grouping::All,
        UsageBy::DAY => Grouping::Day,
        UsageBy::MONTH => Grouping::Month,
        UsageBy::MODEL => Grouping::Model,
        UsageBy::DEVICE => Grouping::Device,
        UsageBy::KEY => Grouping::Key,
        UsageBy::CLASS => Grouping::Class,
        other => return Err(invalid(format!("usage is not told apart by {}", other.0))),
    };
    Ok((days, by))
}

fn named_days(from: u32, until: u32) -> Result<Days, NoAnswer> {
    if from >= until || until > LAST_DAY {
        return Err(invalid(format!("the days from {from} up to {until} are none")));
    }
    Ok((from.into(), until.into()))
}

fn invalid(message: String) -> NoAnswer {
    NoAnswer::because(FailureCode::INVALID_REQUEST, message, "see PROTOCOL.md, or use a newer relay")
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn done(rows: u64, days: Days) -> Done {
    let day = |day: i64| u32::try_from(day).unwrap_or(0);
    Done { rows, from_day: day(days.0), until_day: day(days.1) }
}

fn row(group: &Group) -> UsageGroup {
    let totals = &group.totals;
    UsageGroup {
        name: group.name.clone(),
        requests: unsigned(totals.requests),
        estimated: unsigned(totals.estimated),
        input: unsigned(totals.input),
        output: unsigned(totals.output),
        cache_read: unsigned(totals.cache_read),
        cache_write: unsigned(totals.cache_write),
        reasoning: unsigned(totals.reasoning),
        cost: NanoUsd(totals.cost_nano),
    }
}

/// Sends the book page by page: the next is read once the client has taken the one before.
async fn statement(
    escalator: &Escalator,
    caller: &Caller,
    request: StatementRequest,
    stream: &mut ClientStream,
) -> Result<(), NoAnswer> {
    let days = named_days(request.from_day, request.until_day)?;
    let (mut after, mut rows) = (i64::try_from(request.after).unwrap_or(i64::MAX), 0);
    loop {
        let page = escalator.tenants.books().entries(&caller.tenant, days, after).await?;
        let Some(last) = page.last() else { break };
        after = last.entry;
        rows += page.len() as u64;
        for line in page {
            stream.writer.queue(&entry(line))?;
        }
        taken(&mut stream.writer).await?;
    }
    stream.writer.queue(&done(rows, days))?;
    Ok(())
}

fn entry(line: Line) -> StatementLine {
    StatementLine {
        entry: unsigned(line.entry),
        at_ms: unsigned(line.at_ms),
        kind: line.kind,
        from: line.from,
        to: line.to,
        amount: NanoUsd(line.amount_nano_usd),
        balance: NanoUsd(line.balance_nano_usd),
        request_id: line.request_id.and_then(|id| id.parse().ok()),
        model: line.model.unwrap_or_default(),
        operation: line.operation.unwrap_or_default(),
        note: line.note.unwrap_or_default(),
    }
}
