//! The relay as the engine knows it.

use super::place::{PlaceError, Source, Staged};
use crate::client::Client;
use crate::error::ClientError;
use crate::tunnel::{Tunnel, read_answer};
use belay_protocol::codec::Message;
use belay_protocol::id::RevisionId;
use belay_protocol::item::{ItemKind, Part, Parts};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    Failed, FailureCode, SyncChange, SyncGet, SyncGot, SyncPage, SyncPull, SyncPush, SyncPushed,
};
use belay_protocol::stream::{FrameReader, FrameWriter};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, timeout};

/// Why content did not go or come.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The relay, or the way to it.
    #[error(transparent)]
    Relay(#[from] ClientError),
    /// This computer's side of it.
    #[error(transparent)]
    Place(#[from] PlaceError),
}

/// A push's answer, or its failure.
pub type Answer = Result<SyncPushed, Box<Failed>>;

/// Told how many bytes of content have gone or come.
pub type Progress<'a> = dyn FnMut(u64) + Send + 'a;

/// What the engine asks of a relay.
pub trait Remote: Sync {
    /// A page of changes after a cursor.
    fn pull(&self, cursor: &str) -> impl Future<Output = Result<(Vec<SyncChange>, SyncPage), ClientError>> + Send;
    /// Makes revisions; what became of each, in order.
    fn push(&self, pushes: &[SyncPush]) -> impl Future<Output = Result<Vec<Answer>, ClientError>> + Send;
    /// The content of a revision, or its parts.
    fn content(&self, revision: RevisionId) -> impl Future<Output = Result<SyncGot, ClientError>> + Send;
    /// Sends the parts of a revision that the relay does not have.
    fn upload(
        &self,
        revision: RevisionId,
        kind: ItemKind,
        parts: &Parts,
        source: &mut dyn Source,
        progress: &mut Progress<'_>,
    ) -> impl Future<Output = Result<(), TransferError>> + Send;
    /// Receives parts, each to be put at its offset.
    fn download(
        &self,
        parts: &[(u64, Part)],
        staged: &mut dyn Staged,
        progress: &mut Progress<'_>,
    ) -> impl Future<Output = Result<(), TransferError>> + Send;
}

/// The relay at the other end of a client's tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Tunnelled<'a> {
    /// The client.
    pub client: &'a Client,
    /// How long to wait for a tunnel.
    pub within: Duration,
}

impl Tunnelled<'_> {
    /// The tunnel that is up.
    pub(super) async fn tunnel(&self) -> Result<Arc<Tunnel>, ClientError> {
        self.client.tunnel_until(Instant::now() + self.within).await
    }
}

/// What was not done over a tunnel is done again over the next one, if it was the tunnel that failed. Errors: it was not.
pub(super) async fn again(tunnel: &Tunnel, error: TransferError) -> Result<(), TransferError> {
    match error {
        TransferError::Relay(error) if tunnel.is_over(&error).await => Ok(()),
        TransferError::Relay(ClientError::Failed(failed)) if failed.code == FailureCode::DRAINING => Ok(()),
        TransferError::Relay(ClientError::Lost(why)) => Err(tunnel.lost(why).into()),
        other => Err(other),
    }
}

fn relay(error: TransferError) -> ClientError {
    match error {
        TransferError::Relay(error) => error,
        TransferError::Place(error) => ClientError::State { what: "a synced item".into(), why: error.to_string() },
    }
}

impl Remote for Tunnelled<'_> {
    async fn pull(&self, cursor: &str) -> Result<(Vec<SyncChange>, SyncPage), ClientError> {
        let request = SyncPull { cursor: cursor.to_owned(), limit: 0 };
        let (changes, page) = self.client.list(StreamKind::Sync, &request, self.within).await?;
        Ok((changes, page.ok_or_else(|| ClientError::Lost("the relay ended a page before its end".into()))?))
    }

    async fn push(&self, pushes: &[SyncPush]) -> Result<Vec<Answer>, ClientError> {
        // Every revision has its name: what was answered on a tunnel that is lost is answered the same again.
        loop {
            let tunnel = self.tunnel().await?;
            let pushed = async {
                let (writer, reader) = tunnel.stream(StreamKind::Sync).await?;
                push_all(writer, reader, pushes).await
            };
            match pushed.await {
                Ok(answers) => return Ok(answers),
                Err(error) => again(&tunnel, error.into()).await.map_err(relay)?,
            }
        }
    }

    async fn content(&self, revision: RevisionId) -> Result<SyncGot, ClientError> {
        let _waits = self.client.waits();
        loop {
            let tunnel = self.tunnel().await?;
            match ask(&tunnel, StreamKind::Sync, &SyncGet { revision }).await {
                Ok(got) => return Ok(got),
                Err(error) => again(&tunnel, error.into()).await.map_err(relay)?,
            }
        }
    }

    async fn upload(
        &self,
        revision: RevisionId,
        kind: ItemKind,
        parts: &Parts,
        source: &mut dyn Source,
        progress: &mut Progress<'_>,
    ) -> Result<(), TransferError> {
        super::transfer::upload(*self, revision, kind, parts, source, progress).await
    }

    async fn download(
        &self,
        parts: &[(u64, Part)],
        staged: &mut dyn Staged,
        progress: &mut Progress<'_>,
    ) -> Result<(), TransferError> {
        super::transfer::download(*self, parts, staged, progress).await
    }
}

/// The relay would say the same of this item again, and not of others.
pub(super) fn is_about_the_item(failed: &Failed) -> bool {
    matches!(
        failed.code,
        FailureCode::INVALID_REQUEST | FailureCode::LIMIT | FailureCode::NOT_FOUND | FailureCode::CONFLICT
    )
}

/// How long nothing at all may come. Lists and contents are large, and lines slow: as long as something comes, or goes,
/// it may take its time; a dead tunnel is noticed elsewhere.
const SILENT: Duration = Duration::from_secs(120);

/// What comes, if something does.
pub(super) async fn coming<T, E: Into<ClientError>>(
    coming: impl Future<Output = Result<T, E>>,
) -> Result<T, ClientError> {
    match timeout(SILENT, coming).await {
        Ok(came) => came.map_err(Into::into),
        Err(_) => Err(ClientError::Lost(format!("nothing came for {} s", SILENT.as_secs()))),
    }
}

/// One request, one answer, either of which may be large.
pub(super) async fn ask<Q: Message, A: Message>(
    tunnel: &Tunnel,
    kind: StreamKind,
    request: &Q,
) -> Result<A, ClientError> {
    let (mut writer, mut reader) = tunnel.stream(kind).await?;
    let send = async {
        writer.send(request).await?;
        writer.finish();
        Ok(())
    };
    exchange(send, coming(read_answer(&mut reader))).await
}

/// Sends pushes without waiting for the answers between them.
async fn push_all(
    mut writer: FrameWriter,
    mut reader: FrameReader,
    pushes: &[SyncPush],
) -> Result<Vec<Answer>, ClientError> {
    let send = async {
        for push in pushes {
            writer.queue(push)?;
            if writer.queued() > 256 << 10 {
                writer.flush().await?;
            }
        }
        writer.flush().await?;
        writer.finish();
        Ok::<_, ClientError>(())
    };
    let receive = async {
        let mut answers = vec![];
        while answers.len() < pushes.len() {
            match coming(read_answer::<SyncPushed>(&mut reader)).await {
                Ok(pushed) => answers.push(Ok(pushed)),
                // Said of this push; the stream goes on.
                Err(ClientError::Failed(failed)) if is_about_the_item(&failed) => answers.push(Err(failed)),
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    };
    exchange(send, receive).await
}

/// Sends and receives at the same time. What is received tells more: a refusal comes before the stream that it stops. Once
/// that has failed, nothing more is sent.
pub(super) async fn exchange<T, E>(
    send: impl Future<Output = Result<(), E>>,
    receive: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::pin!(send, receive);
    let mut sent = None;
    let received = loop {
        tokio::select! {
            biased;
            received = &mut receive => break received,
            ended = &mut send, if sent.is_none() => sent = Some(ended),
        }
    };
    match (received, sent) {
        (Err(error), _) => Err(error),
        (Ok(_), Some(Err(error))) => Err(error),
        (Ok(answer), _) => Ok(answer),
    }
}
