//! Hot-plug: the disks of a running VMM become those that are desired.
//!
//! ```text
//!  in    owner.json ─▶ socket ─▶ storaged attaches ─▶ add_block ─▶ plugged
//!  out   remove_block ─▶ the guest lets go ─▶ storaged detaches ─▶ owner.json
//! ```
//! `owner.json` names a volume as long as it may be attached, so that whatever cuts
//! this off is made good by the next try, or by the end of the run.

use super::error::{Doing, EffectError};
use super::hotplug::{self, HOT_PLUG};
use super::launch::serial;
use super::machine::Machine;
use super::owner::{Owner, RunDir};
use ocs_node_api as api;
use ocs_vmm_spec as spec;
use ocs_vmm_spec::control::{DeviceState, Request};
use std::collections::BTreeSet;
use std::os::fd::AsFd;

impl Machine {
    /// Makes it so; an error is tried again.
    pub(super) fn converge_disks(
        &self,
        desired: &api::Instance,
        dir: &RunDir,
        owner: &mut Owner,
    ) -> Result<(), EffectError> {
        let wanted: BTreeSet<&str> = desired
            .attachments
            .iter()
            .map(|attachment| attachment.volume_id.as_str())
            .collect();
        let (protocol, devices) = self.devices(dir)?;
        let same = wanted
            .iter()
            .copied()
            .eq(owner.volumes.iter().map(String::as_str));
        if protocol < HOT_PLUG {
            return if same {
                Ok(())
            } else {
                Err(hotplug::too_old())
            };
        }
        let parting: Vec<String> = owner
            .volumes
            .iter()
            .filter(|volume| !wanted.contains(volume.as_str()))
            .cloned()
            .collect();
        for volume in parting {
            let force = desired.force_detach.contains(&volume);
            self.unplug_disk(dir, owner, &volume, force)?;
        }
        for attachment in &desired.attachments {
            let there = devices.contains_key(&serial(&attachment.volume_id));
            if !there || !owner.volumes.contains(&attachment.volume_id) {
                self.plug_disk(dir, owner, attachment)?;
            }
        }
        Ok(())
    }

    fn plug_disk(
        &self,
        dir: &RunDir,
        owner: &mut Owner,
        attachment: &api::Attachment,
    ) -> Result<(), EffectError> {
        let volume = &attachment.volume_id;
        let index = match owner.plugged.get(volume) {
            Some(index) => *index,
            None => (0..)
                .find(|index| !dir.block_socket(*index).exists())
                .unwrap_or_default(),
        };
        owner.volumes.insert(volume.clone());
        owner.plugged.insert(volume.clone(), index);
        dir.set_owner(owner).doing("owner.json")?;
        let path = dir.block_socket(index);
        let listener = self.listen_at(&path)?;
        self.blocks.attach(volume, &path, attachment.read_only)?;
        let serial = serial(volume);
        let block = spec::Block {
            id: serial.clone(),
            listener: spec::Source::Fd(0),
            backend_uid: self.config.storaged_uid(),
            queues: 1,
        };
        self.ask_vmm(dir, &Request::AddBlock { block }, &[listener.as_fd()])?;
        self.await_device(dir, &serial, |disk| {
            disk.is_some_and(|disk| disk.state == DeviceState::Plugged)
        })
    }

    fn unplug_disk(
        &self,
        dir: &RunDir,
        owner: &mut Owner,
        volume: &str,
        force: bool,
    ) -> Result<(), EffectError> {
        let id = serial(volume);
        if self.devices(dir)?.1.contains_key(&id) {
            self.ask_vmm(
                dir,
                &Request::RemoveBlock {
                    id: id.clone(),
                    force,
                },
                &[],
            )?;
            self.await_device(dir, &id, |disk| disk.is_none())?;
        }
        self.blocks.detach(volume)?;
        if let Some(index) = owner.plugged.remove(volume) {
            // Its number is free for the next one.
            let _ = std::fs::remove_file(dir.block_socket(index));
        }
        owner.volumes.remove(volume);
        dir.set_owner(owner).doing("owner.json")
    }
}
