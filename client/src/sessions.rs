//! Sessions: what was said in them, what goes with their requests, lists, the search.

use crate::client::Client;
use crate::error::ClientError;
use crate::tunnel::{Tunnel, answered, read_answer};
use belay_protocol::codec::Message;
use belay_protocol::error::ProtocolError;
use belay_protocol::frame::{FrameType, raw};
use belay_protocol::id::{MessageId, SessionId};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    Failed, Session, SessionAct, SessionAdd, SessionAdded, SessionDeed, SessionGet, SessionHit, SessionList,
    SessionMessage, SessionRole, SessionRow, SessionSearch, SessionUpdate, SessionsDone,
};
use belay_protocol::stream::FrameReader;
use bytes::{Buf, Bytes, BytesMut};
use std::time::Duration;
use tokio::time::Instant;

/// A message with its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Who said it, when, at which price.
    pub message: SessionMessage,
    /// What was said.
    pub text: String,
}

/// Rows, and where the next page begins; empty: there is none.
pub type Page<T> = (Vec<T>, String);

impl Client {
    /// A page of the sessions (those that were deleted, if wanted), the newest first.
    pub async fn session_list(
        &self,
        deleted: bool,
        cursor: String,
        limit: u32,
        within: Duration,
    ) -> Result<Page<SessionRow>, ClientError> {
        self.page(&SessionList { deleted, cursor, limit }, within).await
    }

    /// A page of what was found: titles first, then what was said last.
    pub async fn session_search(
        &self,
        query: String,
        cursor: String,
        limit: u32,
        within: Duration,
    ) -> Result<Page<SessionHit>, ClientError> {
        self.page(&SessionSearch { query, cursor, limit }, within).await
    }

    async fn page<Q: Message, R: Message>(&self, request: &Q, within: Duration) -> Result<Page<R>, ClientError> {
        let (rows, done) = self.list::<_, _, SessionsDone>(StreamKind::Session, request, within).await?;
        Ok((rows, done.map(|done| done.cursor).unwrap_or_default()))
    }

    /// A session as it is, without what was said in it.
    pub async fn session(&self, session: &SessionId, within: Duration) -> Result<Session, ClientError> {
        self.session_messages(session, (u64::MAX, 0), within, |_| true).await
    }

    /// A session, and its messages above a number one by one, oldest first (`last`: of these only the last so
    /// many; 0: all). Where the tunnel is lost in the middle, it goes on over the next one. `each` says whether
    /// it wants more. `within` is for each tunnel.
    pub async fn session_messages(
        &self,
        session: &SessionId,
        (mut after, mut last): (u64, u32),
        within: Duration,
        mut each: impl FnMut(Said) -> bool,
    ) -> Result<Session, ClientError> {
        let _waits = self.waits();
        loop {
            let tunnel = self.tunnel_until(Instant::now() + within).await?;
            let request = SessionGet { session: session.clone(), after, last };
            let told = read_session(&tunnel, &request, |said| {
                (after, last) = (said.message.number, 0);
                each(said)
            });
            match told.await {
                Err(error) if tunnel.is_over(&error).await => {}
                Err(ClientError::Lost(why)) => return Err(tunnel.lost(why)),
                other => return other,
            }
        }
    }

    /// Adds a message; returns its number. The same id gets the same number for ever.
    pub async fn session_add(
        &self,
        session: &SessionId,
        (message_id, role): (MessageId, SessionRole),
        text: impl Into<Bytes>,
        within: Duration,
    ) -> Result<u64, ClientError> {
        let (text, until) = (text.into(), Instant::now() + within);
        let text_len = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let request = SessionAdd { session: session.clone(), message_id, role, model: String::new(), text_len };
        let _waits = self.waits();
        loop {
            let tunnel = self.tunnel_until(until).await?;
            match send_message(&tunnel, &request, text.clone()).await {
                Ok(SessionAdded { number }) => return Ok(number),
                Err(error) if tunnel.is_over(&error).await && Instant::now() < until => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A new name for a message that is added by hand.
    #[must_use]
    pub fn message_id(&self) -> MessageId {
        let mut id = self.request_id().0;
        // Those of requests have their first bit set.
        id[0] &= 0x7f;
        MessageId(id)
    }

    /// Changes title, model or context. The session is made if it is not there.
    pub async fn session_update(&self, update: &SessionUpdate, within: Duration) -> Result<Session, ClientError> {
        self.call(StreamKind::Session, update, within).await
    }

    /// Deletes, restores or clears a session.
    pub async fn session_act(
        &self,
        session: &SessionId,
        deed: SessionDeed,
        within: Duration,
    ) -> Result<Session, ClientError> {
        self.call(StreamKind::Session, &SessionAct { session: session.clone(), deed }, within).await
    }
}

async fn read_session(
    tunnel: &Tunnel,
    request: &SessionGet,
    mut each: impl FnMut(Said) -> bool,
) -> Result<Session, ClientError> {
    let mut reader = tunnel.ask(StreamKind::Session, request).await?;
    let session: Session = answered(read_answer(&mut reader)).await?;
    loop {
        let cut = || ClientError::Lost("the relay ended the session before its end".into());
        let frame = answered(async { Ok(reader.frame().await?) }).await?.ok_or_else(cut)?;
        match frame.kind {
            FrameType::SessionsDone => return Ok(session),
            FrameType::Failed => return Err(Failed::from_frame(&frame)?.into()),
            _ => {
                let message = SessionMessage::from_frame(&frame)?;
                let text = read_text(&mut reader, message.text_len as usize).await?;
                if !each(Said { message, text }) {
                    return Ok(session);
                }
            }
        }
    }
}

/// Reads a message's text out of its chunks.
async fn read_text(reader: &mut FrameReader, len: usize) -> Result<String, ClientError> {
    let kind = FrameType::BodyChunk;
    let malformed = |why: String| ClientError::from(ProtocolError::Malformed { kind: kind.name(), why });
    let mut text = BytesMut::new();
    while text.len() < len {
        let frame = answered(async { Ok(reader.frame().await?) }).await?;
        let frame = frame.ok_or_else(|| ClientError::Lost("the relay ended a message before its end".into()))?;
        if frame.kind != kind {
            return Err(ProtocolError::Unexpected { got: frame.kind.name(), expected: kind.name() }.into());
        }
        let (offset, chunk) = raw::split(kind, frame.body)?;
        if offset != text.len() as u64 || chunk.is_empty() || text.len() + chunk.remaining() > len {
            return Err(malformed(format!("{} bytes at offset {offset} of {len}", chunk.len())));
        }
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text.into()).map_err(|error| malformed(error.to_string()))
}

async fn send_message(tunnel: &Tunnel, request: &SessionAdd, text: Bytes) -> Result<SessionAdded, ClientError> {
    let added = answered(async {
        let (mut writer, mut reader) = tunnel.stream(StreamKind::Session).await?;
        writer.queue(request)?;
        writer.queue_chunks(text)?;
        // A refusal may come before all of it is taken.
        let sent = writer.flush().await;
        writer.finish();
        match read_answer(&mut reader).await {
            Err(ClientError::Lost(why)) => {
                sent?;
                Err(ClientError::Lost(why))
            }
            other => other,
        }
    });
    added.await.map_err(|error| match error {
        ClientError::Lost(why) => tunnel.lost(why),
        other => other,
    })
}
