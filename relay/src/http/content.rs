//! Content in parts, on its way through the relay's own blob streams.

use super::Http;
use super::access::Admitted;
use super::inside::{answer, broken, chunks, open};
use belay_http::refusal::Refusal;
use belay_protocol::cut::parts;
use belay_protocol::id::RevisionId;
use belay_protocol::item::{Digest, ItemKind, Part, Parts};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{BlobBegin, BlobGet, BlobNeeded, BlobPart, BlobPut, BlobStored, Encoding};
use belay_protocol::packing::unpack_part;
use belay_protocol::pipe::Side;
use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio_util::sync::ReusableBoxFuture;

/// Keeps content under a revision that is to be pushed; its digest.
pub(super) async fn upload(
    http: &Http,
    admitted: &Admitted,
    (revision, kind): (RevisionId, ItemKind),
    content: Bytes,
) -> Result<Digest, Refusal> {
    let parts = parts(kind, content.len() as u64, &content[..])
        .map_err(|error| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "limit", error.to_string()))?;
    let mut side = open(&http.shared, &admitted.caller, StreamKind::Blob);
    let begin = BlobBegin { revision, kind, parts: parts.to_bytes() };
    side.writer.send(&begin).await.map_err(|error| broken(&error))?;
    let needed: BlobNeeded = answer(&mut side.reader).await?;
    let begins: Vec<usize> = parts
        .all()
        .iter()
        .scan(0, |at, part| {
            let begin = *at;
            *at += part.size as usize;
            Some(begin)
        })
        .collect();
    // Four bytes of its place, and four of how much is there: with the whole at hand, nothing is left out.
    for place in needed.needed.chunks_exact(8) {
        let place = u32::from_le_bytes([place[0], place[1], place[2], place[3]]);
        let (Some(part), Some(begin)) = (parts.all().get(place as usize), begins.get(place as usize)) else { continue };
        let put = BlobPut { revision, part: place, offset: 0, encoding: Encoding::PLAIN, len: part.size };
        side.writer.queue(&put).map_err(|error| broken(&error.into()))?;
        let bytes = content.slice(*begin..begin + part.size as usize);
        side.writer.queue_chunks(bytes).map_err(|error| broken(&error.into()))?;
        side.writer.flush().await.map_err(|error| broken(&error))?;
        let _stored: BlobStored = answer(&mut side.reader).await?;
    }
    Ok(parts.digest())
}

/// Content as the body of an answer: a part at a time, each verified before a byte of it goes out.
pub(super) struct Content {
    /// `None` once all of it has gone out.
    next: Option<ReusableBoxFuture<'static, Step>>,
}

type Step = (Reading, Result<Option<Bytes>, Refusal>);

struct Reading {
    side: Side,
    left: VecDeque<Part>,
}

async fn step(mut reading: Reading) -> Step {
    let part = match reading.left.pop_front() {
        None => Ok(None),
        Some(part) => read(&mut reading.side, part).await.map(Some),
    };
    (reading, part)
}

async fn read(side: &mut Side, part: Part) -> Result<Bytes, Refusal> {
    side.writer.send(&BlobGet { digest: part.digest, offset: 0 }).await.map_err(|error| broken(&error))?;
    let head: BlobPart = answer(&mut side.reader).await?;
    let packed = chunks(&mut side.reader, head.len as usize).await?;
    unpack_part(head.encoding, packed, &part).ok_or_else(|| {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "internal", format!("the part {} is damaged", part.digest))
    })
}

impl Content {
    pub(super) fn new(http: &Http, admitted: &Admitted, list: &[u8]) -> Result<Self, Refusal> {
        let parts = Parts::from_bytes(list)
            .map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "internal", error.to_string()))?;
        let side = open(&http.shared, &admitted.caller, StreamKind::Blob);
        let left = parts.all().iter().copied().collect();
        Ok(Self { next: Some(ReusableBoxFuture::new(step(Reading { side, left }))) })
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let Some(next) = &mut self.next else { return Poll::Ready(None) };
        let (reading, part) = ready!(next.poll(cx));
        match part {
            Ok(Some(bytes)) => {
                next.set(step(reading));
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Ok(None) => {
                self.next = None;
                Poll::Ready(None)
            }
            // The status has gone out: the caller sees a body that is cut.
            Err(refusal) => {
                self.next = None;
                Poll::Ready(Some(Err(std::io::Error::other(refusal.words()))))
            }
        }
    }
}
