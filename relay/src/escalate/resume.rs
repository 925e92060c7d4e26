//! A reader that comes back to its request.

use super::flights::{Attach, NotAttached, ask_again};
use super::{Caller, ClientStream, Escalator, Recorded, failed, finish_stream, refused, send_failed, store_failed};
use crate::store::executor::Db;
use crate::store::ledger::find::{Found, find};
use crate::store::ledger::hold::HoldRefusal;
use belay_protocol::codec::Message;
use belay_protocol::error::StreamCode;
use belay_protocol::frame::{FrameType, frame};
use belay_protocol::id::RequestId;
use belay_protocol::message::{Content, Dialect, Failed, FailureCode, ResponseHead, Resume};
use belay_protocol::money::NanoUsd;
use tracing::{info, warn};

impl Escalator {
    /// Lets a stream read on: from the request's own task if it runs or its answer waits, else from
    /// the book.
    pub async fn resume(&self, caller: &Caller, resume: Resume, stream: ClientStream) {
        self.join(caller, resume.request_id, resume.next, stream).await;
    }

    /// The same, with the number of the next event that is wanted.
    pub(super) async fn join(&self, caller: &Caller, id: RequestId, next: u64, stream: ClientStream) {
        let attach = Attach { stream, next };
        let (mut stream, failure) = match self.flights.attach(&caller.tenant, id, &caller.device, attach) {
            Ok(()) => {
                self.metrics.resumed.inc();
                return;
            }
            Err(NotAttached::Busy(stream)) => (stream, ask_again(id)),
            Err(NotAttached::OtherDevice(stream)) => (stream, unknown(id)),
            Err(NotAttached::Unknown(mut stream)) => match self.look_up(caller, id).await {
                Ok(recorded) => return repeat_end(&mut stream, id, recorded).await,
                Err(failure) => (stream, failure),
            },
        };
        info!(code = %failure.code, "not resumed: {}", failure.message);
        send_failed(&mut stream, &failure).await;
    }

    /// What the book says of a request that has no task.
    async fn look_up(&self, caller: &Caller, id: RequestId) -> Result<Recorded, Failed> {
        // The first look at a tenant resolves what a dead process left.
        self.tenants.handle(&caller.tenant).await.map_err(|error| store_failed(id, &error))?;
        let (db, device) = (Db::Tenant(caller.tenant.clone()), caller.device.clone());
        let found = self.store.run(db, move |connection| find(connection, id, &device)).await;
        match found.map_err(|error| store_failed(id, &error))? {
            Found::Settled { end, provider, model } => {
                let kind = self.config().providers.get(&provider).map(|provider| provider.kind);
                // The provider may have left the configuration; nothing is to be read by it any more.
                let dialect = kind.map_or(Dialect::PROMPT, |kind| kind.dialect());
                Ok(Recorded { dialect, end, provider, model })
            }
            Found::Open => Err(refused(id, &HoldRefusal::InProgress)),
            Found::Nothing => Err(unknown(id)),
        }
    }
}

/// Also for another device's request, of which it is not told.
fn unknown(id: RequestId) -> Failed {
    let message = "there is nothing to resume: the request never came, or nothing of it was charged";
    failed(id, FailureCode::UNKNOWN_REQUEST, message, "send the whole request, with the same id")
}

/// The recorded `End`, byte for byte; the content is gone.
pub(super) async fn repeat_end(stream: &mut ClientStream, request_id: RequestId, recorded: Recorded) {
    let head = ResponseHead {
        request_id,
        status: 200,
        headers: vec![],
        dialect: recorded.dialect,
        stream: false,
        provider: recorded.provider,
        model: recorded.model,
        max_output_tokens: 0,
        held: NanoUsd::ZERO,
        content: Content::GONE,
        first_event: 0,
    };
    let frames = head.to_frame().and_then(|head| Ok((head, frame(FrameType::End, &recorded.end)?)));
    match frames {
        Ok((head, end)) => {
            stream.writer.queue_raw(head);
            stream.writer.queue_raw(end);
            finish_stream(stream, StreamCode::NO_ERROR).await;
        }
        Err(error) => warn!(%error, "cannot repeat an End"),
    }
}
