//! Devices that the event thread serves alone: made at start, there to the end.

use super::inner::Device;
use super::{Devices, When};
use crate::error::{Error, Result};
use crate::events::HandlerId;
use crate::legacy::ring::ConsoleRing;
use crate::virtio::Metrics;
use crate::virtio::balloon::BalloonModel;
use crate::virtio::console::ConsoleModel;
use crate::virtio::hosted::{Driver, Hosted, Model};
use crate::virtio::pci::VirtioPci;
use crate::virtio::rng::RngModel;
use crate::virtio::vsock::VsockModel;
use ocs_vmm_spec::Spec;
use ocs_vmm_spec::control::{DeviceKind, DeviceState};
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

/// The host sides of the devices that the event thread serves alone.
pub struct Hosts {
    /// Where console output goes.
    pub ring: ConsoleRing,
    /// What the console reads.
    pub console_input: Option<File>,
    /// Where programs of the host connect.
    pub vsock: Option<UnixListener>,
}

impl Devices {
    /// Asks a guest's balloon for new statistics.
    pub(super) fn refresh_balloon(&self) {
        let balloon = self.lock().balloon.clone();
        if let Some((balloon, _)) = balloon {
            let refresh = |model: &mut BalloonModel, driver: Option<&mut Driver>| {
                driver.map_or(Ok(()), |driver| model.refresh(driver))
            };
            balloon.with(refresh);
        }
    }

    /// Asks the guest for `target_mib` of its memory.
    pub fn set_balloon(&self, target_mib: u32) -> Result<()> {
        let Some((balloon, function)) = self.lock().balloon.clone() else {
            return Err(Error::Device {
                device: ocs_vmm_spec::BALLOON.to_owned(),
                problem: "this machine has none".to_owned(),
            });
        };
        balloon.with(|model, _| {
            model.set_target(target_mib);
            Ok(())
        });
        function.announce_config();
        Ok(())
    }

    /// Adds the devices of `spec` that the event thread serves alone.
    pub fn add_hosted(&self, spec: &Spec, hosts: Hosts) -> Result<()> {
        if let Some(rng) = &spec.rng {
            let (model, handler) = (RngModel::new(rng.bytes_per_s)?, self.epoll.new_id());
            model.watch(&self.epoll, handler)?;
            let metrics = model.metrics();
            self.host(DeviceKind::Rng, handler, model, metrics)?;
        }
        if spec.console.is_some() {
            let model = ConsoleModel::new(hosts.ring, hosts.console_input);
            let handler = self.epoll.new_id();
            model.watch(&self.epoll, handler)?;
            let metrics = model.metrics();
            self.host(DeviceKind::Console, handler, model, metrics)?;
        }
        if let Some(balloon) = &spec.balloon {
            let (model, handler) = (BalloonModel::new(balloon.target_mib), self.epoll.new_id());
            let metrics = model.metrics();
            let hosted = self.host(DeviceKind::Balloon, handler, model, metrics)?;
            self.lock().balloon = Some(hosted);
        }
        if let (Some(vsock), Some(listener)) = (&spec.vsock, hosts.vsock) {
            let mut model = VsockModel::new(vsock.guest_cid, listener, vsock.uid);
            let handler = self.epoll.new_id();
            model.watch(Arc::clone(&self.epoll), handler)?;
            let metrics = model.metrics();
            self.host(DeviceKind::Vsock, handler, model, metrics)?;
        }
        Ok(())
    }

    fn host<M: Model>(
        &self,
        kind: DeviceKind,
        handler: HandlerId,
        model: M,
        metrics: Arc<dyn Metrics>,
    ) -> Result<(Hosted<M>, Arc<VirtioPci>)> {
        let id = kind.name();
        let mut inner = self.lock();
        let slot = inner.free_slot(id)?;
        let hosted = Hosted::new(model)?;
        let function = self.function(id, Box::new(hosted.clone()), slot, When::Start)?;
        hosted.watch(&self.epoll, handler, function.kicks())?;
        inner.devices.push(Device {
            id: id.to_owned(),
            kind,
            slot,
            when: When::Start,
            state: DeviceState::Plugged,
            counters: vec![metrics, function.metrics()],
            function: Arc::clone(&function),
            handler: Some(handler),
            net: None,
            disk: None,
        });
        self.epoll.push(handler, Box::new(hosted.clone()));
        self.plug(&inner, slot, When::Start)?;
        Ok((hosted, function))
    }
}
