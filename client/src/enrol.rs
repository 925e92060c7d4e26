//! Joining a relay with an invite.

use crate::dial::Dialer;
use crate::error::ClientError;
use crate::state::{Identity, StateDir};
use crate::tunnel::{CALL, read_answer};
use belay_certs::invite::Invite;
use belay_certs::sha256;
use belay_protocol::error::CloseCode;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{EnrolAnswer, EnrolRequest, FailureCode};
use belay_transport::env::Env;
use belay_transport::quic;
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
    let (endpoint, connection) = dialer.dial(&invite.addresses, None).await?;
    let request =
        EnrolRequest { secret: invite.secret.to_vec(), csr_der: key.request()?, device_label: label.to_owned() };
    let answered = timeout(CALL, async {
        let opened = connection.open_bi().await.map_err(|error| ClientError::Lost(quic::lost_why(&error)))?;
        let (mut writer, mut reader) = quic::frames(opened.0, opened.1);
        writer.preface(StreamKind::Enrol);
        writer.send(&request).await?;
        writer.finish();
        read_answer::<EnrolAnswer>(&mut reader).await
    });
    let answer = answered.await.unwrap_or_else(|_| Err(ClientError::Lost("the relay did not answer in time".into())));
    quic::close(&connection, CloseCode::DONE, "enrolled");
    let _ = timeout(std::time::Duration::from_millis(500), endpoint.wait_idle()).await;
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
