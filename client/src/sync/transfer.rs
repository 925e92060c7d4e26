//! Parts of content over blob streams, several at once, and on over the next tunnel where one is lost: the relay says
//! what it has of each part, and so does this side.

use super::place::{PlaceError, Source, Staged};
use super::remote::{Progress, TransferError, Tunnelled, again, ask, coming, exchange};
use crate::error::ClientError;
use crate::tunnel::{Tunnel, read_answer};
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{FrameType, raw};
use belay_protocol::id::RevisionId;
use belay_protocol::item::{Digest, ItemKind, PIECE, Part, Parts};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{BlobBegin, BlobGet, BlobNeeded, BlobPart, BlobPut, BlobStored, Encoding};
use belay_protocol::packing::{pack, unpack_part};
use belay_protocol::stream::{FrameReader, FrameWriter, StreamError};
use bytes::{Bytes, BytesMut};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, mpsc};

/// Streams of one transfer. More would hold more that is lost with a tunnel, fewer would leave a line empty while a part
/// is put on disk.
const STREAMS: usize = 3;
/// Parts of a stream that have not been answered.
const DEPTH: usize = 2;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the same on several streams; the first error ends all.
async fn in_parallel<F>(streams: usize, work: impl Fn() -> F) -> Result<(), TransferError>
where
    F: Future<Output = Result<(), TransferError>>,
{
    match streams {
        0 => Ok(()),
        1 => work().await,
        2 => tokio::try_join!(work(), work()).map(|_| ()),
        _ => tokio::try_join!(work(), work(), work()).map(|_| ()),
    }
}

/// Parts of an upload that are to be sent, each with what the relay has of it.
struct Sending<'a, 'b> {
    revision: RevisionId,
    parts: &'a Parts,
    offsets: &'a [u64],
    waiting: Mutex<VecDeque<(u32, u32)>>,
    source: Mutex<&'a mut dyn Source>,
    /// How much of the content is there, and who is told.
    done: Mutex<(u64, &'a mut Progress<'b>)>,
}

pub(super) fn offsets(parts: &Parts) -> Vec<u64> {
    let ends = parts.all().iter().scan(0, |at, part| {
        let offset = *at;
        *at += u64::from(part.size);
        Some(offset)
    });
    ends.collect()
}

fn read_needed(needed: &[u8]) -> Result<VecDeque<(u32, u32)>, ClientError> {
    let (lines, rest) = needed.as_chunks::<8>();
    if !rest.is_empty() {
        let why = "it ends within a part".into();
        return Err(ProtocolError::Malformed { kind: FrameType::BlobNeeded.name(), why }.into());
    }
    let number = |four: &[u8]| u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    Ok(lines.iter().map(|line| (number(&line[..4]), number(&line[4..]))).collect())
}

pub(super) async fn upload(
    of: Tunnelled<'_>,
    revision: RevisionId,
    kind: ItemKind,
    parts: &Parts,
    source: &mut dyn Source,
    progress: &mut Progress<'_>,
) -> Result<(), TransferError> {
    // A silent path is soon left.
    let _waits = of.client.waits();
    let offsets = offsets(parts);
    let begin = BlobBegin { revision, kind, parts: parts.to_bytes() };
    loop {
        let tunnel = of.tunnel().await?;
        match send_all(&tunnel, &begin, (parts, &offsets), source, progress).await {
            Ok(()) => return Ok(()),
            Err(error) => again(&tunnel, error).await?,
        }
    }
}

/// Asks what is needed, and sends it, over one tunnel.
async fn send_all(
    tunnel: &Tunnel,
    begin: &BlobBegin,
    (parts, offsets): (&Parts, &[u64]),
    source: &mut dyn Source,
    progress: &mut Progress<'_>,
) -> Result<(), TransferError> {
    let BlobNeeded { needed } = ask(tunnel, StreamKind::Blob, begin).await?;
    let waiting = read_needed(&needed)?;
    let missing: u64 = waiting
        .iter()
        .filter_map(|(place, there)| Some(u64::from(parts.all().get(*place as usize)?.size.saturating_sub(*there))))
        .sum();
    let there = parts.size().saturating_sub(missing);
    progress(there);
    let streams = waiting.len().min(STREAMS);
    let sending = Sending {
        revision: begin.revision,
        parts,
        offsets,
        waiting: Mutex::new(waiting),
        source: Mutex::new(source),
        done: Mutex::new((there, progress)),
    };
    in_parallel(streams, || send_parts(&sending, tunnel)).await
}

async fn send_parts(sending: &Sending<'_, '_>, tunnel: &Tunnel) -> Result<(), TransferError> {
    let (mut writer, mut reader) = tunnel.stream(StreamKind::Blob).await?;
    let (sent, mut answers) = mpsc::unbounded_channel();
    let room = Semaphore::new(DEPTH);
    let send = async {
        // Owned, so that the other half learns when there is nothing more.
        let sent = sent;
        while let Ok(permit) = room.acquire().await {
            let Some((place, there)) = lock(&sending.waiting).pop_front() else { break };
            let bytes = queue_part(sending, &mut writer, place, there)?;
            permit.forget();
            let _ = sent.send((place, bytes));
            writer.flush().await.map_err(ClientError::from)?;
        }
        writer.finish();
        Ok::<_, TransferError>(())
    };
    let receive = async {
        while let Some((place, bytes)) = answers.recv().await {
            let BlobStored { part } = coming(read_answer(&mut reader)).await?;
            if part != place {
                let why = format!("part {part} is answered, {place} was sent");
                return Err(ClientError::from(ProtocolError::Malformed { kind: "BlobStored", why }).into());
            }
            room.add_permits(1);
            let (done, progress) = &mut *lock(&sending.done);
            *done += bytes;
            progress(*done);
        }
        Ok::<_, TransferError>(())
    };
    exchange(send, receive).await
}

/// Queues a part, or what the relay does not have of it; returns how many bytes of content that is.
fn queue_part(
    sending: &Sending<'_, '_>,
    writer: &mut FrameWriter,
    place: u32,
    there: u32,
) -> Result<u64, TransferError> {
    let at = place as usize;
    let (Some(part), Some(offset)) = (sending.parts.all().get(at), sending.offsets.get(at)) else {
        let why = format!("part {place} was never announced");
        return Err(ClientError::from(ProtocolError::Malformed { kind: "BlobNeeded", why }).into());
    };
    let plain = lock(&sending.source).read(*offset, part.size).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => PlaceError::Changed,
        _ => PlaceError::io("cannot read it", error),
    })?;
    if Digest::of(&plain) != part.digest {
        return Err(PlaceError::Changed.into());
    }
    let there = if there < part.size { there } else { 0 };
    let (encoding, bytes) = if there > 0 { (Encoding::PLAIN, plain.slice(there as usize..)) } else { pack(&plain) };
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let put = BlobPut { revision: sending.revision, part: place, offset: there, encoding, len };
    writer.queue(&put).map_err(ClientError::from)?;
    writer.queue_chunks_of(PIECE, bytes).map_err(ClientError::from)?;
    Ok(u64::from(part.size - there))
}

/// What has come of a part before its tunnel was lost.
struct Begun {
    encoding: Encoding,
    bytes: BytesMut,
}

struct Receiving<'a, 'b> {
    waiting: Mutex<VecDeque<(u64, Part)>>,
    begun: Mutex<HashMap<Digest, Begun>>,
    staged: Mutex<&'a mut dyn Staged>,
    done: Mutex<(u64, &'a mut Progress<'b>)>,
}

pub(super) async fn download(
    of: Tunnelled<'_>,
    parts: &[(u64, Part)],
    staged: &mut dyn Staged,
    progress: &mut Progress<'_>,
) -> Result<(), TransferError> {
    let _waits = of.client.waits();
    let receiving = Receiving {
        waiting: Mutex::new(parts.iter().copied().collect()),
        begun: Mutex::default(),
        staged: Mutex::new(staged),
        done: Mutex::new((0, progress)),
    };
    loop {
        let tunnel = of.tunnel().await?;
        let streams = lock(&receiving.waiting).len().min(STREAMS);
        match in_parallel(streams, || receive_parts(&receiving, &tunnel)).await {
            Ok(()) => return Ok(()),
            Err(error) => again(&tunnel, error).await?,
        }
    }
}

async fn receive_parts(receiving: &Receiving<'_, '_>, tunnel: &Tunnel) -> Result<(), TransferError> {
    let (mut writer, mut reader) = tunnel.stream(StreamKind::Blob).await?;
    let mut asked = Asked { receiving, parts: VecDeque::new() };
    loop {
        while asked.parts.len() < DEPTH {
            let Some((offset, part)) = lock(&receiving.waiting).pop_front() else { break };
            asked.parts.push_back((offset, part));
            let there = lock(&receiving.begun).get(&part.digest).map_or(0, |begun| begun.bytes.len());
            let get = BlobGet { digest: part.digest, offset: u32::try_from(there).unwrap_or(0) };
            writer.send(&get).await.map_err(ClientError::from)?;
        }
        let Some((offset, part)) = asked.parts.front().copied() else { break };
        let plain = receive_part(receiving, &mut reader, &part).await?;
        lock(&receiving.staged).write(offset, &plain).map_err(|error| PlaceError::io("cannot write it", error))?;
        asked.parts.pop_front();
        let (done, progress) = &mut *lock(&receiving.done);
        *done += plain.len() as u64;
        progress(*done);
    }
    writer.finish();
    Ok(())
}

/// Parts that were asked for: those that have not come are asked for again, over the next tunnel.
struct Asked<'a, 'b, 'c> {
    receiving: &'a Receiving<'b, 'c>,
    parts: VecDeque<(u64, Part)>,
}

impl Drop for Asked<'_, '_, '_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.receiving.waiting);
        self.parts.drain(..).rev().for_each(|part| waiting.push_front(part));
    }
}

/// Reads a part, on from what has come of it before.
async fn receive_part(
    receiving: &Receiving<'_, '_>,
    reader: &mut FrameReader,
    part: &Part,
) -> Result<Bytes, TransferError> {
    let BlobPart { size, encoding, len } = coming(read_answer(reader)).await?;
    let malformed = |why: String| ClientError::from(ProtocolError::Malformed { kind: FrameType::BlobPart.name(), why });
    // Compressed bytes may be a little more than plain ones.
    if size != part.size || len > part.size.saturating_add(4096) {
        return Err(malformed(format!("{len} bytes of a part of {size}, {} were asked for", part.size)).into());
    }
    let mut begun = lock(&receiving.begun).remove(&part.digest).unwrap_or(Begun { encoding, bytes: BytesMut::new() });
    if begun.encoding != encoding && !begun.bytes.is_empty() {
        // It is kept in another form by now: from its beginning, then.
        return Err(ClientError::Lost("a part changed its form".into()).into());
    }
    begun.encoding = encoding;
    let (began, whole) = (begun.bytes.len(), begun.bytes.len() + len as usize);
    while begun.bytes.len() < whole {
        match next_piece(reader, begun.bytes.len() - began, len as usize).await {
            Ok(piece) => begun.bytes.extend_from_slice(&piece),
            Err(error) => {
                lock(&receiving.begun).insert(part.digest, begun);
                return Err(error.into());
            }
        }
    }
    let plain = unpack_part(encoding, begun.bytes.freeze(), part);
    plain.ok_or_else(|| malformed("its bytes do not have its hash".into()).into())
}

async fn next_piece(reader: &mut FrameReader, at: usize, len: usize) -> Result<Bytes, ClientError> {
    let kind = FrameType::BodyChunk;
    let frame = coming(reader.frame()).await?;
    let frame = frame.ok_or_else(|| ClientError::Lost("the relay ended a part before its end".into()))?;
    if frame.kind != kind {
        return Err(ProtocolError::Unexpected { got: frame.kind.name(), expected: kind.name() }.into());
    }
    let (offset, piece) = raw::split(kind, frame.body).map_err(StreamError::from)?;
    if offset != at as u64 || piece.is_empty() || at + piece.len() > len {
        let why = format!("{} bytes at offset {offset} of {len}", piece.len());
        return Err(ProtocolError::Malformed { kind: kind.name(), why }.into());
    }
    Ok(piece)
}
