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
use belay_transport::connection::Stream;
use belay_transport::env::Env;
use tokio::time::timeout;

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
    let dialed = dialer.dial(&invite.addresses, None, Way::Either { tcp_after: TCP_AFTER }).await?;
    let request =
        EnrolRequest { secret: invite.secret.to_vec(), csr_der: key.request()?, device_label: label.to_owned() };
    let answered = timeout(CALL, async {
        let Stream { mut writer, mut reader, .. } = dialed.connection.open().await.map_err(StreamError::from)?;
        writer.preface(StreamKind::Enrol);
        writer.send(&request).await?;
        writer.finish();
        read_answer::<EnrolAnswer>(&mut reader).await
    });
    let answer = answered.await.unwrap_or_else(|_| Err(ClientError::Lost("the relay did not answer in time".into())));
    dialed.close("enrolled").await;
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
