//! Billing streams: the balance.

use super::{Intake, fail, failure, refuse};
use crate::escalate::{Caller, ClientStream, finish_stream};
use crate::tenants::Tenants;
use belay_protocol::error::StreamCode;
use belay_protocol::message::{Balance, BalanceRequest, FailureCode};
use tracing::warn;

/// Serves one billing stream. `intake` bounds the request's arrival.
pub async fn serve(tenants: &Tenants, caller: &Caller, intake: &Intake, mut stream: ClientStream) {
    match intake.within(stream.reader.expect::<BalanceRequest>()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return refuse(&mut stream, &error).await,
        Err((failure, code)) => return fail(&mut stream, failure, code).await,
    }
    let summary = match tenants.books().summary(&caller.tenant).await {
        Ok(summary) => summary,
        Err(error) => {
            warn!(%error, "cannot read a balance");
            let failure = failure(FailureCode::STORE_UNAVAILABLE, "the relay could not read its books", "try again");
            return fail(&mut stream, failure, StreamCode::INTERNAL).await;
        }
    };
    let balance = Balance {
        tenant: caller.tenant.clone(),
        balance: summary.balance,
        held: summary.held,
        open_holds: summary.open_holds,
        charged: summary.charged,
    };
    if stream.writer.queue(&balance).is_ok() {
        finish_stream(&mut stream, StreamCode::NO_ERROR).await;
    }
}
