//! One stream of a connection: its kind is read, and it goes to the handler of that kind.

use super::Shared;
use crate::escalate::{Caller, ClientStream};
use crate::streams::{self, Intake};
use belay_protocol::error::StreamCode;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::FailureCode;
use tracing::{Instrument, Span};

/// Reads what kind a stream is of. `None`: it was none, and has been told so.
async fn kind_of(intake: &Intake, stream: &mut ClientStream, span: &Span) -> Option<StreamKind> {
    match intake.within(stream.reader.preface()).instrument(span.clone()).await {
        Ok(Ok(kind)) => {
            span.record("kind", kind.name());
            return Some(kind);
        }
        Ok(Err(error)) => streams::refuse(stream, &error).instrument(span.clone()).await,
        Err((failure, code)) if failure.code == FailureCode::DRAINING => {
            streams::fail(stream, failure, code).instrument(span.clone()).await;
        }
        Err((_, code)) => {
            stream.writer.reset(code);
            stream.reader.stop(code);
        }
    }
    None
}

/// Serves a stream of a device whose certificate has ended: it can renew it, or leave, and nothing else.
pub(super) async fn renew_only(shared: &Shared, caller: &Caller, mut stream: ClientStream, span: Span) {
    let intake = Intake::new(shared.escalator.config().timeouts.hello, shared.escalator.draining.clone());
    let Some(kind) = kind_of(&intake, &mut stream, &span).await else { return };
    if kind == StreamKind::Enrol {
        return streams::enrol::serve(&shared.enrolment, Some(caller), &intake, stream).instrument(span).await;
    }
    let message = "the certificate of this device has ended";
    let remedy = "renew it over this tunnel, as belay does by itself";
    let failure = streams::failure(FailureCode::UNAUTHENTICATED, message, remedy);
    streams::fail(&mut stream, failure, StreamCode::REFUSED).instrument(span).await;
}

/// Serves one stream after the control stream.
pub(crate) async fn serve_stream(shared: &Shared, caller: Option<&Caller>, mut stream: ClientStream, span: Span) {
    let intake = Intake::new(shared.escalator.config().timeouts.hello, shared.escalator.draining.clone());
    let Some(kind) = kind_of(&intake, &mut stream, &span).await else { return };
    shared.escalator.metrics.stream(kind.name());
    let most = shared.escalator.config().limits.streams_per_tenant;
    let permit = caller.map(|caller| shared.registry.stream(&caller.tenant, most));
    if let Some(None) = permit {
        let message = format!("{most} streams of this tenant are open");
        let mut failure = streams::failure(FailureCode::LIMIT, message, "wait until one has ended");
        failure.retry_after_ms = Some(1000);
        return streams::fail(&mut stream, failure, StreamCode::LIMIT).instrument(span).await;
    }
    if let (StreamKind::Escalate, Some(caller)) = (kind, caller) {
        // Large: kept off the stack of the task that dispatches. It enters its own spans, one at a
        // time: every poll of the token path pays for each span that it is in.
        return Box::pin(streams::escalate::serve(&shared.escalator, &shared.bodies, caller, stream, &span)).await;
    }
    serve_small(shared, caller, kind, stream, &intake).instrument(span).await;
}

/// Serves a stream of any kind but escalate.
async fn serve_small(
    shared: &Shared,
    caller: Option<&Caller>,
    kind: StreamKind,
    mut stream: ClientStream,
    intake: &Intake,
) {
    match (kind, caller) {
        (StreamKind::Enrol, caller) => streams::enrol::serve(&shared.enrolment, caller, intake, stream).await,
        (_, None) => {
            let message = "a connection without a certificate can only enrol";
            let failure = streams::failure(FailureCode::UNAUTHENTICATED, message, "enrol first: belay join <invite>");
            streams::fail(&mut stream, failure, StreamCode::REFUSED).await;
        }
        (StreamKind::Billing, Some(caller)) => {
            streams::billing::serve(&shared.escalator, caller, intake, stream).await;
        }
        (StreamKind::Session, Some(caller)) => {
            let room = (&shared.escalator.memory, &shared.bodies);
            streams::session::serve(&shared.sessions, room, caller, intake, stream).await;
        }
        (StreamKind::Sync, Some(caller)) => {
            streams::sync::serve(&shared.sync, &shared.bodies, caller, intake, stream).await;
        }
        (StreamKind::Blob, Some(caller)) => {
            // Large: kept off the stack of the task that dispatches.
            Box::pin(streams::blob::serve(&shared.sync, &shared.bodies, caller, intake, stream)).await;
        }
        (StreamKind::Feed, Some(caller)) => {
            let until = (intake, &shared.escalator.draining);
            streams::sync::feed(&shared.sync, &shared.bodies, caller, until, stream).await;
        }
        (kind @ (StreamKind::Control | StreamKind::Escalate), Some(_)) => {
            let message = format!("streams of kind {} are not served here", kind.name());
            let failure = streams::failure(FailureCode::UNSUPPORTED, message, "use a newer relay");
            streams::fail(&mut stream, failure, StreamCode::UNSUPPORTED).await;
        }
    }
}
