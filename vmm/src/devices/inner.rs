//! The list of devices, and one entry of it.

use super::When;
use crate::error::{Error, Result};
use crate::events::{Epoll, HandlerId};
use crate::outcome::Outcome;
use crate::pci::root::Slot;
use crate::virtio::Metrics;
use crate::virtio::balloon::BalloonModel;
use crate::virtio::block::{BlockStatus, BlockWorker, Nursery, WorkerThread};
use crate::virtio::hosted::Hosted;
use crate::virtio::net::NetControl;
use crate::virtio::pci::VirtioPci;
use ocs_vmm_spec::control::{DeviceKind, DeviceState};
use std::sync::Arc;
use std::time::Instant;

#[derive(Default)]
pub(super) struct Inner {
    pub devices: Vec<Device>,
    pub balloon: Option<(Hosted<BalloonModel>, Arc<VirtioPci>)>,
    /// Starts the threads of disks, once the machine starts.
    pub nursery: Option<Nursery>,
}

pub(super) struct Device {
    pub id: String,
    pub kind: DeviceKind,
    pub slot: Slot,
    /// Those of the start are on the bus before a backend comes.
    pub when: When,
    pub state: DeviceState,
    pub function: Arc<VirtioPci>,
    pub counters: Vec<Arc<dyn Metrics>>,
    /// What serves it on the event thread.
    pub handler: Option<HandlerId>,
    pub net: Option<Arc<NetControl>>,
    pub disk: Option<Disk>,
}

pub(super) struct Disk {
    pub status: BlockStatus,
    /// Until the machine starts.
    pub worker: Option<BlockWorker>,
    pub thread: Option<WorkerThread>,
}

impl Inner {
    /// A place on the bus for a device that is not there yet.
    pub fn free_slot(&self, id: &str) -> Result<Slot> {
        let refuse = |problem: &str| Error::Device {
            device: id.to_owned(),
            problem: problem.to_owned(),
        };
        if self.devices.iter().any(|device| device.id == id) {
            return Err(refuse("there is a device with this id"));
        }
        Slot::all()
            .find(|slot| self.devices.iter().all(|device| device.slot != *slot))
            .ok_or_else(|| refuse("the bus has no free slot"))
    }

    pub fn find(&mut self, kind: DeviceKind, id: &str) -> Result<&mut Device> {
        self.devices
            .iter_mut()
            .find(|device| device.kind == kind && device.id == id)
            .ok_or_else(|| Error::Device {
                device: id.to_owned(),
                problem: format!("there is no {} device with this id", kind.name()),
            })
    }

    pub fn retire(&mut self, ejected: &[Slot], epoll: &Epoll) {
        self.devices
            .iter_mut()
            .filter(|device| ejected.contains(&device.slot))
            .for_each(|device| device.retire(epoll));
    }

    /// Starts the threads of disks that have none, if the machine has started.
    pub fn start_disks(&mut self, outcome: &Arc<Outcome>) -> Result<()> {
        let Some(nursery) = &self.nursery else {
            return Ok(());
        };
        for disk in self.devices.iter_mut().filter_map(|d| d.disk.as_mut()) {
            if let Some(worker) = disk.worker.take() {
                disk.thread = Some(nursery.start(worker, Arc::clone(outcome))?);
            }
        }
        Ok(())
    }
}

impl Device {
    /// Is it a disk whose driver is to be told that it is larger?
    pub fn has_grown(&self) -> bool {
        self.disk.as_ref().is_some_and(|d| d.status.take_grown())
    }

    pub fn is_missing(&self) -> bool {
        let disk = self.disk.as_ref();
        disk.is_some_and(|disk| !disk.status.ever_connected())
    }

    /// The device is off the bus: ends its use of the guest's memory.
    pub fn retire(&mut self, epoll: &Epoll) {
        self.state = DeviceState::Gone;
        self.function.retire();
        if let Some(handler) = self.handler.take() {
            epoll.remove(handler);
        }
        if let Some(thread) = self.disk.as_ref().and_then(|disk| disk.thread.as_ref()) {
            thread.ask_to_stop();
        }
    }

    /// Is nothing left of it but its entry?
    pub fn has_ended(&self) -> bool {
        let thread = self.disk.as_ref().and_then(|disk| disk.thread.as_ref());
        self.state == DeviceState::Gone && thread.is_none_or(WorkerThread::has_ended)
    }

    pub fn join(self) {
        tracing::info!(device = self.id, "removed");
        if let Some(thread) = self.disk.and_then(|disk| disk.thread) {
            thread.join(Instant::now());
        }
    }
}
