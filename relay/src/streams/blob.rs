//! Blob streams: parts of content, in both directions.

use super::answer::{NoAnswer, end, taken};
use super::escalate::next_piece;
use super::sync::{room, told};
use super::{Intake, first_frame};
use crate::escalate::{Caller, ClientStream};
use crate::ops::memory::{BodyBudget, BodyPermit};
use crate::sync::Sync;
use belay_protocol::codec::Message;
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{Frame, FrameType};
use belay_protocol::item::{MAX_PART, PIECE};
use belay_protocol::message::{BlobBegin, BlobGet, BlobNeeded, BlobPart, BlobPut, BlobStored, Encoding, FailureCode};
use belay_protocol::stream::{FrameReader, StreamError};
use belay_transport::params::PRIORITY_BULK;
use bytes::BytesMut;
use std::future::pending;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long the next piece of a part, or the next request, may take to arrive.
const NEXT: Duration = Duration::from_secs(60);
/// How long a part waits for memory.
const ROOM: Duration = Duration::from_secs(30);

/// Serves one blob stream: any number of requests, answered in order. `intake` bounds the arrival of the first.
pub async fn serve(sync: &Sync, budget: &BodyBudget, caller: &Caller, intake: &Intake, mut stream: ClientStream) {
    let Some(first) = first_frame(intake, &mut stream, FrameType::BlobGet).await else { return };
    stream.writer.set_priority(PRIORITY_BULK);
    let served = requests(sync, budget, (caller, intake), first, &mut stream).await;
    end(&mut stream, served).await;
}

async fn requests(
    sync: &Sync,
    budget: &BodyBudget,
    (caller, intake): (&Caller, &Intake),
    first: Frame,
    stream: &mut ClientStream,
) -> Result<(), NoAnswer> {
    let broken = |error: ProtocolError| NoAnswer::from(StreamError::from(error));
    let mut next = Some(first);
    while let Some(frame) = next {
        // An idle stream takes nothing, and one tenant's leave room for others'.
        let room = room(budget, caller).await?;
        let answered = match frame.kind {
            FrameType::BlobPut => {
                let put = BlobPut::from_frame(&frame).map_err(broken)?;
                receive(sync, budget, caller, &put, stream).await
            }
            FrameType::BlobBegin => {
                let begin = BlobBegin::from_frame(&frame).map_err(broken)?;
                announced(sync, caller, &begin, stream).await
            }
            _ => {
                let get = BlobGet::from_frame(&frame).map_err(broken)?;
                send(sync, caller, &get, stream).await
            }
        };
        told(answered, &mut stream.writer)?;
        taken(&mut stream.writer).await?;
        drop(room);
        next = match intake.within_time(NEXT, stream.reader.frame()).await {
            Ok(frame) => frame?,
            Err((failure, _)) => return Err(NoAnswer::Failed(Box::new(failure))),
        };
    }
    Ok(())
}

async fn announced(sync: &Sync, caller: &Caller, begin: &BlobBegin, stream: &mut ClientStream) -> Result<(), NoAnswer> {
    let needed = sync.begin(&caller.tenant, begin.revision, begin.kind, &begin.parts).await?;
    let bytes = needed.iter().flat_map(|(place, there)| [place.to_le_bytes(), there.to_le_bytes()].concat());
    Ok(stream.writer.queue(&BlobNeeded { needed: bytes.collect() })?)
}

/// Receives a part, keeps it, and says so. What has come of it when its sender goes is kept, too.
async fn receive(
    sync: &Sync,
    budget: &BodyBudget,
    caller: &Caller,
    put: &BlobPut,
    stream: &mut ClientStream,
) -> Result<(), NoAnswer> {
    // Compressed bytes may be a little more than plain ones.
    if put.len > MAX_PART + 4096 {
        return Err(StreamError::from(ProtocolError::Malformed {
            kind: FrameType::BlobPut.name(),
            why: format!("{} bytes of a part, at most {MAX_PART} are allowed", put.len),
        })
        .into());
    }
    let expected = sync.expected(&caller.tenant, put.revision, put.part).await;
    // Nobody is noted as a sender of what was never announced.
    let sending = expected.is_ok().then(|| sync.sending(&caller.tenant, put.revision));
    let superseded = async {
        match &sending {
            Some(sending) => sending.stop.cancelled().await,
            None => pending().await,
        }
    };
    let mut permit = budget.body(&caller.tenant);
    let (mut body, is_plain) = (BytesMut::new(), put.encoding == Encoding::PLAIN);
    let had_beginning = put.offset > 0;
    let mut refusal = None;
    if let (Ok((part, false)), true) = (&expected, had_beginning) {
        match sync.beginning(&caller.tenant, part.digest, put.offset as usize).await {
            Ok(beginning) if is_plain => body.extend_from_slice(&beginning),
            Ok(_) => {
                let message = "only plain parts go on in their middle";
                refusal = Some(NoAnswer::because(FailureCode::INVALID_REQUEST, message, "send the whole part"));
            }
            Err(error) => refusal = Some(error.into()),
        }
    }
    let whole = body.len() + put.len as usize;
    let arrived = tokio::select! {
        // A sender that is back announces first, and what it had sent must be put away by then.
        biased;
        () = superseded => Err(NoAnswer::because(
            FailureCode::CANCELLED, "the content was announced anew", "send what is needed then",
        )),
        arrived = arrive(&mut stream.reader, &mut body, whole, &mut permit) => arrived,
    };
    let (part, is_there) = expected.map_err(NoAnswer::from)?;
    match arrived {
        Ok(()) => {}
        Err(NoAnswer::Stream(StreamError::Protocol(error))) => return Err(StreamError::from(error).into()),
        Err(gone) => {
            if is_plain && refusal.is_none() && !is_there && !body.is_empty() {
                sync.interrupted(&caller.tenant, part.digest, body.freeze()).await?;
            }
            // The rest of the part would come next: there is nothing to go on with.
            return Err(match gone {
                NoAnswer::Failed(_) => NoAnswer::Gone,
                gone => gone,
            });
        }
    }
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    if !is_there {
        let bytes = (put.encoding, body.freeze());
        sync.keep(&caller.tenant, put.revision, part, bytes, had_beginning).await?;
    }
    Ok(stream.writer.queue(&BlobStored { part: put.part })?)
}

/// Reads until there are `whole` bytes.
async fn arrive(
    reader: &mut FrameReader,
    body: &mut BytesMut,
    whole: usize,
    permit: &mut BodyPermit,
) -> Result<(), NoAnswer> {
    let began = body.len();
    while body.len() < whole {
        let (at, len) = (body.len() - began, whole - began);
        let Ok(piece) = timeout(NEXT, next_piece(reader, at, len)).await else {
            return Err(NoAnswer::because(FailureCode::TIMED_OUT, "a part did not arrive in time", "send it again"));
        };
        let piece = piece?;
        if !permit.grow(body.len() + piece.len(), Instant::now() + ROOM).await {
            return Err(NoAnswer::because(FailureCode::OVERLOADED, "the relay has no memory left", "try again later"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(())
}

async fn send(sync: &Sync, caller: &Caller, get: &BlobGet, stream: &mut ClientStream) -> Result<(), NoAnswer> {
    let (chunk, mut bytes) = sync.part(&caller.tenant, get.digest).await?;
    if get.offset as usize > bytes.len() {
        let message = format!("the part has {} bytes, and none at {}", bytes.len(), get.offset);
        return Err(NoAnswer::because(FailureCode::INVALID_REQUEST, message, "ask from its beginning"));
    }
    let bytes = bytes.split_off(get.offset as usize);
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    stream.writer.queue(&BlobPart { size: chunk.part.size, encoding: chunk.encoding, len })?;
    Ok(stream.writer.queue_chunks_of(PIECE, bytes)?)
}
