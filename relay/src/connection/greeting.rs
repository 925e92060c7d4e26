//! Who is at the other end, and its hello.

use crate::escalate::ClientStream;
use belay_certs::identity::DeviceIdentity;
use belay_protocol::MINOR;
use belay_protocol::error::CloseCode;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::Hello;
use belay_transport::connection::Connection;
use belay_transport::params::PRIORITY_CONTROL;
use tracing::debug;

/// A device as its certificate names it.
pub(super) type Identity = (DeviceIdentity, TenantId, DeviceId);

/// Who is at the other end, from the certificate and from nowhere else.
pub(super) fn identity(connection: &Connection) -> Result<Option<Identity>, String> {
    let Some(certificate) = connection.peer_certificate() else { return Ok(None) };
    let identity = DeviceIdentity::from_certificate(&certificate).map_err(|error| error.to_string())?;
    let tenant = identity.tenant.parse().map_err(|error| format!("tenant: {error}"))?;
    let device = identity.device.parse().map_err(|error| format!("device: {error}"))?;
    Ok(Some((identity, tenant, device)))
}

/// The first stream must be the control stream and begin with the hello.
pub(super) async fn hello(connection: &Connection) -> Result<(ClientStream, Hello), CloseCode> {
    let mut stream = ClientStream::from(connection.accept().await.map_err(|_| CloseCode::DONE)?);
    stream.writer.set_priority(PRIORITY_CONTROL);
    match stream.reader.preface().await {
        Ok(StreamKind::Control) => {}
        Ok(_) | Err(_) => return Err(CloseCode::PROTOCOL),
    }
    let hello: Hello = stream.reader.expect().await.map_err(|error| {
        debug!(%error, "no hello");
        CloseCode::PROTOCOL
    })?;
    if hello.min_minor > MINOR || hello.max_minor < hello.min_minor {
        return Err(CloseCode::VERSION);
    }
    Ok((stream, hello))
}
