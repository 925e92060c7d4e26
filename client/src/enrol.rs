//! Joining a relay with an invite.

use crate::dial::{Dialer, Way};
use crate::error::ClientError;
use crate::fallback::TCP_AFTER;
use crate::state::{Identity, StateDir};
use crate::tunnel::{CALL, read_answer};
use belay_certs::invite::Invite;
use belay_certs::sha256;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{EnrolAnswer, EnrolRequest, FailureCode};
use belay_protocol::stream::StreamError;
use belay_transport::connection::{Path, Stream};
use belay_transport::env::Env;
use std::time::Duration;
use tokio::time::timeout;

/// How long an answer may take over QUIC; over TCP it is asked for once more.
const CALL_OVER_QUIC: Duration = Duration::from_secs(5);

/// Enrols this computer and keeps the identity. A repeated attempt with the same invite gets the
/// same certificate, so a lost answer can be asked for again.
///
/// Errors: `AlreadyJoined`, `Unreachable`, `Failed` with `invite_refused`.
pub async fn join(env: &Env, state: &StateDir, invite: &Invite, label: &str) -> Result<Identity, ClientError> {
    if state.is_joined() {
        let (identity, _) = state.load()?;
        return Err(ClientError::AlreadyJoined {
            device: identity.device.to_string(),
            tenant: identity.tenant.to_string(),
        });
    }
    let digest = sha256(&invite.secret);
    let key = state.pending_key(digest)?;
    let dialer = Dialer::enrolling(env, invite.fingerprint)?;
    let request =
        EnrolRequest { secret: invite.secret.to_vec(), csr_der: key.request()?, device_label: label.to_owned() };
    let way = Way::Either { quic_after: Duration::ZERO, tcp_after: TCP_AFTER };
    let answer = match ask(&dialer, invite, way, &request).await {
        // A network may let a handshake through and nothing after it. The same request gets the same answer.
        (Err(ClientError::Lost(_)), Some(Path::Quic)) => ask(&dialer, invite, Way::Tcp, &request).await.0,
        (answer, _) => answer,
    };
    if let Err(ClientError::Failed(failed)) = &answer
        && failed.code == FailureCode::INVITE_REFUSED
    {
        // This invite will never lead to a certificate for that key.
        state.forget_pending(digest)?;
    }
    let answer = answer?;
    if sha256(&answer.ca_der) != invite.fingerprint {
        let why = "the relay sent another authority than the invite names".into();
        return Err(ClientError::State { what: "the relay's answer".into(), why });
    }
    let identity = Identity::new(answer, invite.addresses.clone());
    state.save(&identity, &key, digest)?;
    Ok(identity)
}

/// Asks once; over what, if there was a connection.
async fn ask(
    dialer: &Dialer,
    invite: &Invite,
    way: Way,
    request: &EnrolRequest,
) -> (Result<EnrolAnswer, ClientError>, Option<Path>) {
    let dialed = match dialer.dial(&invite.addresses, None, way).await {
        Ok(dialed) => dialed,
        Err(error) => return (Err(error), None),
    };
    let path = dialed.connection.path();
    let patience = if path == Path::Quic { CALL_OVER_QUIC } else { CALL };
    let answered = timeout(patience, async {
        let Stream { mut writer, mut reader, .. } = dialed.connection.open().await.map_err(StreamError::from)?;
        writer.preface(StreamKind::Enrol);
        writer.send(request).await?;
        writer.finish();
        read_answer::<EnrolAnswer>(&mut reader).await
    });
    let answer = answered.await.unwrap_or_else(|_| Err(ClientError::Lost("the relay did not answer in time".into())));
    dialed.close("enrolled").await;
    (answer, Some(path))
}
