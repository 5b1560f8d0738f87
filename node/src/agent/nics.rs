//! Hot-plug: the interfaces of a running VMM become those that are desired.
//!
//! ```text
//!  in    tap ─▶ packet path, responder ─▶ add_net ─▶ plugged ─▶ owner.json
//!  out   packet path ─▶ owner.json ─▶ remove_net ─▶ the guest lets go ─▶ address freed
//! ```
//! A tap dies with the descriptor that the VMM holds, so `owner.json` names one only
//! while the VMM has it. An interface of the VMM that `owner.json` does not name was
//! being plugged when the node died: it goes, and comes anew.

use super::error::{Doing, EffectError};
use super::hotplug::{self, HOT_PLUG};
use super::ledger::Record;
use super::machine::Machine;
use super::owner::{Owner, RunDir};
use crate::responder::record;
use ocs_node_api as api;
use ocs_vmm_spec as spec;
use ocs_vmm_spec::control::{DeviceKind, DeviceState, Request};
use std::os::fd::{AsFd, OwnedFd};

impl Machine {
    /// Makes it so; an error is tried again.
    pub(super) fn converge_nics(
        &self,
        desired: &api::Instance,
        dir: &RunDir,
        owner: &mut Owner,
    ) -> Result<(), EffectError> {
        let enis: Vec<String> = desired
            .network_interfaces
            .iter()
            .map(|eni| eni.id.clone())
            .collect();
        let (protocol, devices) = self.devices(dir)?;
        if protocol < HOT_PLUG {
            let same = enis.len() == owner.taps.len()
                && enis.iter().all(|eni| owner.taps.contains_key(eni));
            return if same {
                Ok(())
            } else {
                Err(hotplug::too_old())
            };
        }
        let nics = devices
            .iter()
            .filter(|(_, device)| device.kind == DeviceKind::Net);
        for (id, _) in nics {
            let unknown = !owner.taps.contains_key(id);
            if unknown || !enis.contains(id) {
                let force = unknown || desired.force_detach.contains(id);
                self.unplug_nic(dir, owner, id, force)?;
            }
        }
        owner.taps.retain(|eni, _| devices.contains_key(eni));
        let record = self.readdress(&desired.id, &enis)?;
        for eni in &desired.network_interfaces {
            if !owner.taps.contains_key(&eni.id) {
                self.plug_nic(desired, eni, &record, dir, owner)?;
            }
        }
        Ok(())
    }

    /// The ledger's page with a service address for each of `enis` and no other; what
    /// the responder was told of others is taken back first.
    fn readdress(&self, id: &str, enis: &[String]) -> Result<Record, EffectError> {
        let gone = || EffectError::Transient("the ledger's page is gone".to_owned());
        let before = self.ledger.get(id).ok_or_else(gone)?;
        for (eni, address) in &before.service_addresses {
            if !enis.contains(eni) {
                record::Record::remove(&self.config.layout.responder(), *address)
                    .doing("the responder's record")?;
            }
        }
        self.ledger.allot(id, enis, |_| ()).doing("ledger")
    }

    fn plug_nic(
        &self,
        desired: &api::Instance,
        eni: &api::NetworkInterface,
        record: &Record,
        dir: &RunDir,
        owner: &mut Owner,
    ) -> Result<(), EffectError> {
        let tap = self.make_tap(eni, record, owner)?;
        self.plug(desired, record, owner);
        self.board.settle()?;
        self.tell_responder(desired, record)?;
        let net = net(eni, spec::Source::Fd(0))?;
        self.ask_vmm(dir, &Request::AddNet { net }, &[tap.as_fd()])?;
        self.await_device(dir, &eni.id, |nic| {
            nic.is_some_and(|nic| nic.state == DeviceState::Plugged)
        })?;
        dir.set_owner(owner).doing("owner.json")
    }

    fn unplug_nic(
        &self,
        dir: &RunDir,
        owner: &mut Owner,
        eni: &str,
        force: bool,
    ) -> Result<(), EffectError> {
        if owner.taps.remove(eni).is_some() {
            dir.set_owner(owner).doing("owner.json")?;
        }
        let id = eni.to_owned();
        self.ask_vmm(dir, &Request::RemoveNet { id, force }, &[])?;
        self.await_device(dir, eni, |nic| nic.is_none())?;
        self.board.network().collect_garbage()
    }

    /// An ENI's tap, which `owner` names from now on.
    pub(super) fn make_tap(
        &self,
        eni: &api::NetworkInterface,
        record: &Record,
        owner: &mut Owner,
    ) -> Result<OwnedFd, EffectError> {
        let address = record.service_addresses.get(&eni.id).copied();
        let missing = || EffectError::Transient(format!("{} has no service address", eni.id));
        let [_, _, high, low] = address.ok_or_else(missing)?.octets();
        let name = format!("t{}-{high:02x}{low:02x}", record.slot);
        let (fd, ifindex) = self.board.network().create_tap(&name)?;
        owner.taps.insert(eni.id.clone(), ifindex);
        Ok(fd)
    }
}

/// An ENI as the VMM is told of it.
pub(super) fn net(
    eni: &api::NetworkInterface,
    tap: spec::Source,
) -> Result<spec::Net, EffectError> {
    Ok(spec::Net {
        id: eni.id.clone(),
        tap,
        mac: eni.mac.to_lowercase(),
        mtu: u16::try_from(eni.mtu)
            .map_err(|_| EffectError::Permanent(format!("{}: MTU {}", eni.id, eni.mtu)))?,
        transmit: spec::TransmitLimits::default(),
        // What a guest leaves to others, the packet path keeps, and the VMM sees to it that no
        // harm is asked for.
        offloads: true,
    })
}
