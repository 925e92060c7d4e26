//! Sync streams (pushes, pulls, logs, status, locks) and feed streams (pulls that never end).

use super::answer::{NoAnswer, end, taken};
use super::{Intake, fail, failure, first_frame, refuse};
use crate::escalate::{Caller, ClientStream};
use crate::ops::memory::{BodyBudget, BodyPermit};
use crate::store::sync::feed::Page;
use crate::store::sync::push::{Push, Pushed, Source};
use crate::store::sync::{Content, Refusal, Stored};
use crate::sync::{Sync, SyncError};
use belay_protocol::codec::Message;
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{Frame, FrameType};
use belay_protocol::item::Digest;
use belay_protocol::message::{
    FailureCode, SyncContent, SyncGet, SyncGot, SyncLock, SyncLocked, SyncLog, SyncLogDone, SyncPage, SyncPull,
    SyncPush, SyncPushed, SyncStatus, SyncStatusRequest, SyncUnlock, SyncUnlocked,
};
use belay_protocol::stream::{FrameReader, FrameWriter, StreamError};
use belay_transport::params::PRIORITY_BULK;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a stream takes in memory, about: pushes that wait together, or a page.
const STREAM: usize = 2 << 20;
/// The most pushes that share a transaction, and their bytes.
const MAX_TOGETHER: usize = 128;
const MAX_BYTES_TOGETHER: usize = 1 << 20;
/// How long a request waits for memory.
const ROOM: Duration = Duration::from_secs(10);
/// How long a stream may ask for nothing more before it ends.
const IDLE: Duration = Duration::from_secs(60);

/// Serves one sync stream: any number of requests, answered in order. `intake` bounds the arrival of the first.
pub async fn serve(sync: &Sync, budget: &BodyBudget, caller: &Caller, intake: &Intake, mut stream: ClientStream) {
    let Some(first) = first_frame(intake, &mut stream, FrameType::SyncPull).await else { return };
    stream.writer.set_priority(PRIORITY_BULK);
    let served = requests(sync, budget, (caller, intake), first, &mut stream).await;
    end(&mut stream, served).await;
}

/// Memory for a request, of the tenant's share.
pub(super) async fn room(budget: &BodyBudget, caller: &Caller) -> Result<BodyPermit, NoAnswer> {
    let mut room = budget.body(&caller.tenant);
    if room.grow(STREAM, Instant::now() + ROOM).await {
        return Ok(room);
    }
    let mut busy = failure(FailureCode::OVERLOADED, "the relay has no memory left for sync", "try again later");
    busy.retry_after_ms = Some(1000);
    Err(NoAnswer::Failed(Box::new(busy)))
}

async fn requests(
    sync: &Sync,
    budget: &BodyBudget,
    (caller, intake): (&Caller, &Intake),
    first: Frame,
    stream: &mut ClientStream,
) -> Result<(), NoAnswer> {
    let mut next = Some(first);
    while let Some(frame) = next {
        // An idle stream takes nothing, and one tenant's leave room for others'.
        let room = room(budget, caller).await?;
        next = if frame.kind == FrameType::SyncPush {
            pushes(sync, caller, &frame, stream).await?
        } else {
            let answered = answer(sync, caller, &frame, &mut stream.writer).await;
            told(answered, &mut stream.writer)?;
            None
        };
        taken(&mut stream.writer).await?;
        drop(room);
        if next.is_none() {
            next = match intake.within_time(IDLE, stream.reader.frame()).await {
                Ok(frame) => frame?,
                Err((failure, _)) => return Err(NoAnswer::Failed(Box::new(failure))),
            };
        }
    }
    Ok(())
}

/// A request's failure is its answer; the stream goes on.
pub(super) fn told(answered: Result<(), NoAnswer>, writer: &mut FrameWriter) -> Result<(), NoAnswer> {
    match answered {
        Err(NoAnswer::Failed(failed)) => Ok(writer.queue(&*failed)?),
        other => other,
    }
}

/// What has arrived already. `None`: nothing yet.
async fn arrived(reader: &mut FrameReader) -> Result<Option<Option<Frame>>, StreamError> {
    poll_fn(|cx| match reader.poll_frame(cx) {
        Poll::Ready(Ok(frame)) => Poll::Ready(Ok(Some(frame))),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending => Poll::Ready(Ok(None)),
    })
    .await
}

/// Makes the revision that a frame asks for, and those of the frames that have come meanwhile. What comes after them.
async fn pushes(
    sync: &Sync,
    caller: &Caller,
    first: &Frame,
    stream: &mut ClientStream,
) -> Result<Option<Frame>, NoAnswer> {
    let mut together = match read_push(sync, caller, first) {
        Ok(push) => vec![push],
        Err(refusal) => return told(Err(refusal), &mut stream.writer).map(|()| None),
    };
    let (mut bytes, mut after, mut refusal) = (first.body.len(), None, Ok(()));
    while together.len() < MAX_TOGETHER && bytes < MAX_BYTES_TOGETHER {
        match arrived(&mut stream.reader).await? {
            Some(Some(frame)) if frame.kind == FrameType::SyncPush => {
                bytes += frame.body.len();
                match read_push(sync, caller, &frame) {
                    Ok(push) => together.push(push),
                    Err(refused) => {
                        refusal = Err(refused);
                        break;
                    }
                }
            }
            Some(Some(frame)) => {
                after = Some(frame);
                break;
            }
            Some(None) | None => break,
        }
    }
    let names: Vec<_> = together.iter().map(|push| push.revision).collect();
    for (revision, pushed) in names.into_iter().zip(sync.push(&caller.tenant, together).await) {
        let answer = pushed.map_err(NoAnswer::from).and_then(|Pushed { outcome, head, number, copy }| {
            Ok(stream.writer.queue(&SyncPushed { revision, outcome, head, number, copy })?)
        });
        told(answer, &mut stream.writer)?;
    }
    // In its place: after those that came before it.
    told(refusal, &mut stream.writer)?;
    Ok(after)
}

fn read_push(sync: &Sync, caller: &Caller, frame: &Frame) -> Result<Push, NoAnswer> {
    let push = SyncPush::from_frame(frame).map_err(StreamError::from)?;
    let source = match (push.content, push.earlier) {
        (SyncContent::NONE, _) => Source::None,
        (SyncContent::INLINE, _) => Source::Inline(push.inline),
        (SyncContent::PARTS, _) => Source::Upload,
        (SyncContent::EARLIER, Some(earlier)) => Source::Earlier(earlier),
        (other, _) => {
            let message = format!("content is nowhere by {}", other.0);
            return Err(NoAnswer::because(
                FailureCode::INVALID_REQUEST,
                message,
                "see PROTOCOL.md, or use a newer relay",
            ));
        }
    };
    Ok(Push {
        revision: push.revision,
        parent: push.parent,
        kind: push.kind,
        key: push.key,
        source,
        modified_ms: push.modified_ms,
        size: push.size,
        digest: push.digest,
        meta: push.meta,
        device: caller.device.clone(),
        at_ms: sync.now_ms(),
        push: Digest::of(&frame.body),
    })
}

async fn answer(sync: &Sync, caller: &Caller, frame: &Frame, writer: &mut FrameWriter) -> Result<(), NoAnswer> {
    let broken = |error: ProtocolError| NoAnswer::from(StreamError::from(error));
    let tenant = &caller.tenant;
    match frame.kind {
        FrameType::SyncGet => {
            let SyncGet { revision } = SyncGet::from_frame(frame).map_err(broken)?;
            writer.queue(&got(sync.revision(tenant, revision).await?))?;
        }
        FrameType::SyncLog => {
            let SyncLog { kind, key } = SyncLog::from_frame(frame).map_err(broken)?;
            let log = sync.log(tenant, kind, key).await?;
            let revisions = log.len() as u64;
            log.iter().try_for_each(|row| writer.queue(row))?;
            writer.queue(&SyncLogDone { revisions })?;
        }
        FrameType::SyncStatusRequest => {
            SyncStatusRequest::from_frame(frame).map_err(broken)?;
            let (kinds, used, quota, cursor) = sync.status(tenant).await?;
            kinds.iter().try_for_each(|kind| writer.queue(kind))?;
            writer.queue(&SyncStatus { used, quota, cursor })?;
        }
        FrameType::SyncLock => {
            let SyncLock { key, token } = SyncLock::from_frame(frame).map_err(broken)?;
            let fence = sync.lock(tenant, key, token, &caller.device).await?;
            writer.queue(&SyncLocked { fence, expires_in_ms: crate::store::sync::lock::LASTS_MS })?;
        }
        FrameType::SyncUnlock => {
            let SyncUnlock { key, token } = SyncUnlock::from_frame(frame).map_err(broken)?;
            let was_expired = sync.unlock(tenant, key, token).await?;
            writer.queue(&SyncUnlocked { was_expired })?;
        }
        _ => {
            let SyncPull { cursor, limit } = SyncPull::from_frame(frame).map_err(broken)?;
            queue_page(sync.pull(tenant, cursor, limit).await?, writer)?;
        }
    }
    Ok(())
}

fn got(stored: Stored) -> SyncGot {
    let content = stored.content.code();
    let (inline, parts) = match stored.content {
        Content::None => (vec![], vec![]),
        Content::Inline(bytes) => (bytes, vec![]),
        Content::Parts(parts) => (vec![], parts.to_bytes()),
    };
    SyncGot { content, size: stored.size, inline, parts }
}

fn queue_page(page: Page, writer: &mut FrameWriter) -> Result<(), NoAnswer> {
    page.changes.iter().try_for_each(|change| writer.queue(change))?;
    let Page { changes, cursor, has_more, resync } = page;
    Ok(writer.queue(&SyncPage { changes: changes.len() as u64, cursor, has_more, resync })?)
}

/// Serves one feed stream: pages, and further ones when something changes, until the client leaves or `draining`.
pub async fn feed(
    sync: &Sync,
    budget: &BodyBudget,
    caller: &Caller,
    (intake, draining): (&Intake, &CancellationToken),
    mut stream: ClientStream,
) {
    let asked = match intake.within(stream.reader.expect::<SyncPull>()).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => return refuse(&mut stream, &error).await,
        Err((failure, code)) => return fail(&mut stream, failure, code).await,
    };
    stream.writer.set_priority(PRIORITY_BULK);
    let mut changes = sync.watch(&caller.tenant);
    let (mut cursor, mut told) = (asked.cursor, false);
    let served = loop {
        // A page is in memory only while it is taken.
        let charge = match room(budget, caller).await {
            Ok(charge) => charge,
            Err(error) => break Err(error),
        };
        let has_more = match sync.pull(&caller.tenant, cursor.clone(), asked.limit).await {
            Ok(page) => {
                let (is_empty, has_more) = (page.changes.is_empty(), page.has_more);
                cursor.clone_from(&page.cursor);
                // Something else of the tenant was written.
                if !(is_empty && told)
                    && let Err(error) = queue_page(page, &mut stream.writer)
                {
                    break Err(error);
                }
                told = true;
                has_more
            }
            Err(error) => break Err(error.into()),
        };
        if let Err(error) = taken(&mut stream.writer).await {
            break Err(error);
        }
        drop(charge);
        if has_more {
            continue;
        }
        let changed = tokio::select! {
            // Who has gone needs nothing more.
            biased;
            error = poll_fn(|cx| stream.writer.poll_stopped(cx)) => break Err(error.into()),
            () = caller.revoked.cancelled() => {
                break Err(NoAnswer::because(FailureCode::REVOKED, "the device is revoked", "ask the operator"));
            }
            () = draining.cancelled() => {
                break Err(NoAnswer::because(FailureCode::DRAINING, "the relay is going down", "follow on another tunnel"));
            }
            changed = changes.changed() => changed,
        };
        if changed.is_err() {
            break Err(NoAnswer::because(FailureCode::DRAINING, "the relay is going down", "follow on another tunnel"));
        }
    };
    end(&mut stream, served).await;
}

impl From<SyncError> for NoAnswer {
    fn from(error: SyncError) -> Self {
        let because = |code, message: String, remedy: &str| Self::because(code, message, remedy);
        match error {
            SyncError::Store(error) => error.into(),
            SyncError::Invalid(message, remedy) => because(FailureCode::INVALID_REQUEST, message, remedy),
            SyncError::Blob(error) => blob_failed(&error),
            SyncError::Refused(refusal) => {
                let (code, remedy) = match &refusal {
                    Refusal::NotFound(_) => (FailureCode::NOT_FOUND, "look again, it may be gone"),
                    Refusal::Conflict => (FailureCode::CONFLICT, "make a new name for each revision"),
                    Refusal::Mismatch => (FailureCode::INVALID_REQUEST, "announce and push the same"),
                    Refusal::Incomplete(_) => (FailureCode::CONFLICT, "announce it again, and send what is needed"),
                    Refusal::Full { .. } => (
                        FailureCode::LIMIT,
                        "remove something, or have the operator raise limits.sync_mib; old revisions go after 30 days",
                    ),
                    Refusal::TooMany(..) => (FailureCode::LIMIT, "wait until some are over"),
                    Refusal::Locked(ms) => {
                        let mut failed = failure(FailureCode::CONFLICT, refusal.to_string(), "try again later");
                        failed.retry_after_ms = Some(*ms);
                        return Self::Failed(Box::new(failed));
                    }
                };
                because(code, refusal.to_string(), remedy)
            }
        }
    }
}

fn blob_failed(error: &crate::blobs::BlobError) -> NoAnswer {
    use crate::blobs::BlobError;
    let (code, remedy) = match error {
        BlobError::Mismatch => (FailureCode::INVALID_REQUEST, "send the part again"),
        BlobError::Damaged(_) => {
            tracing::error!(%error, "a piece of content is not what it was");
            (FailureCode::NOT_FOUND, "the operator finds it in the log, and can bring it back from a backup")
        }
        BlobError::Full | BlobError::Disk(_) => {
            tracing::warn!(%error, "a piece of content could not be kept or read");
            (FailureCode::STORE_UNAVAILABLE, "try again later; nothing that was there is lost")
        }
        BlobError::Closed => (FailureCode::DRAINING, "try again in a moment"),
    };
    // The operator's log has the rest.
    let message = match error {
        BlobError::Disk(_) => "the relay's disk failed".to_owned(),
        BlobError::Damaged(_) => "a part of it is gone or damaged at the relay".to_owned(),
        error => error.to_string(),
    };
    let mut failed = failure(code, message, remedy);
    if code == FailureCode::STORE_UNAVAILABLE {
        failed.retry_after_ms = Some(10_000);
    }
    NoAnswer::Failed(Box::new(failed))
}
