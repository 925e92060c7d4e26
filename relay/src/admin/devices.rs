//! Devices: invites, lists, revocation.

use super::info::{DeviceInfo, InviteInfo};
use super::service::{AdminError, AdminService};
use crate::enrolment::INVITE_LIFETIME_MS;
use crate::store::central;
use crate::store::central::audit::Deed;
use crate::store::executor::Db;
use belay_certs::invite::Invite;
use belay_protocol::id::{DeviceId, TenantId};

impl AdminService {
    /// Makes an invite.
    pub async fn invite(&self, id: &TenantId) -> Result<InviteInfo, AdminError> {
        self.not_erased(id).await?;
        self.asked(Deed::operator("device.invite", Some(id))).await?;
        let Some(secret) = self.enrolment.invite(id).await? else {
            return Err(AdminError::NoTenant(id.clone()));
        };
        let invite = Invite { fingerprint: self.enrolment.fingerprint(), secret, addresses: self.addresses() };
        let expires_ms = self.env.clock.now_ms() + INVITE_LIFETIME_MS;
        Ok(InviteInfo { invite: invite.encode(), tenant: id.clone(), expires_ms })
    }

    /// Where clients are to dial: the configured public addresses, or the one that is listened on.
    fn addresses(&self) -> Vec<String> {
        let config = self.config();
        if !config.public.is_empty() {
            return config.public.clone();
        }
        let mut local = self.local;
        if local.ip().is_unspecified() {
            // Nobody can dial 0.0.0.0; without a public address the relay is for this machine.
            local.set_ip(if local.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
        }
        vec![local.to_string()]
    }

    /// All devices, or those of one tenant.
    pub async fn devices(&self, tenant: Option<TenantId>) -> Result<Vec<DeviceInfo>, AdminError> {
        let devices =
            self.store.run(Db::Central, move |connection| central::devices(connection, tenant.as_ref())).await?;
        let live = self.registry.list();
        let tunnels = |id: &DeviceId| u32::try_from(live.iter().filter(|live| live.device == *id).count()).unwrap_or(0);
        Ok(devices.into_iter().map(|device| DeviceInfo { tunnels: tunnels(&device.id), device }).collect())
    }

    /// Revokes a device; its tunnels close at once.
    pub async fn revoke(&self, id: &DeviceId, why: &str) -> Result<(), AdminError> {
        let deed = Deed::operator("device.revoke", None).on(id.as_str()).with(why);
        if self.enrolment.revoke(id, deed, why).await? { Ok(()) } else { Err(AdminError::NoDevice(id.clone())) }
    }
}
