//! The devices on the bus: made at start, added and taken while the guest runs.
//!
//! ```text
//!         backend connected        asked to go         let go, or taken by force
//!  Waiting ─────────────▶ Plugged ───────────▶ Leaving ─────────────┐
//!     └───────── remove ──────┴─────────────────────────────────────┴▶ Gone ─ thread ended ─▶ forgotten
//! ```
//! A disk that is added later goes on the bus when its backend first connects: before
//! that it has neither size nor features. Those of the spec are on the bus from the
//! start, and the machine waits for them instead.
//!
//! Adding and removing happen on the event thread. A guest lets a slot go on a vCPU
//! thread ([`crate::bus::Bus`]), which only takes the function off the bus and signals
//! [`Devices::tend`].

mod hosted;
mod inner;

pub use hosted::Hosts;

use crate::bus::Bus;
use crate::error::{Error, Result, host};
use crate::events::Epoll;
use crate::irq::{Irqs, share};
use crate::legacy::power::EVENT_PCI;
use crate::lifecycle::Lifecycle;
use crate::memory::dirty::BackendLog;
use crate::memory::{self, GuestRam};
use crate::outcome::Outcome;
use crate::pci::root::{Function, Slot};
use crate::virtio::VirtioDevice;
use crate::virtio::block::{BlockWorker, DiskKind, Look, Nursery, WorkerThread};
use crate::virtio::changes::Changes;
use crate::virtio::mmio::VirtioMmio;
use crate::virtio::net::tap::Tap;
use crate::virtio::net::{NetWorker, SharedLine, SharedRing, TapRing, tap_error};
use crate::virtio::pci::VirtioPci;
use inner::{Device, Disk, Inner};
use kvm_ioctls::VmFd;
use ocs_vmm_spec::control::{DeviceKind, DeviceState, DeviceStatus, NET_OFFLOADS};
use ocs_vmm_spec::{Block, Net, TransmitLimits, Transport};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use vmm_sys_util::eventfd::EventFd;

/// All devices, and what making one takes.
pub struct Devices {
    /// How the guest reaches them.
    pub transport: Transport,
    vm: Arc<VmFd>,
    irqs: Arc<Irqs>,
    ram: GuestRam,
    bus: Arc<Bus>,
    epoll: Arc<Epoll>,
    ring: SharedRing,
    line: SharedLine,
    outcome: Arc<Outcome>,
    changes: Arc<Changes>,
    /// Signalled when [`Self::tend`] has something to do.
    news: EventFd,
    inner: Mutex<Inner>,
}

/// Is the guest running, or is it yet to find all that there is?
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Part of the spec.
    Start,
    /// Part of the spec of a machine that goes on: it is loaded before the guest runs.
    Restored,
    /// By the control socket.
    Later,
}

impl Devices {
    /// No devices yet, to be served by the calling thread; `news` is what [`Self::tend`] is
    /// called for.
    pub fn new(
        vm: Arc<VmFd>,
        irqs: Arc<Irqs>,
        ram: GuestRam,
        bus: Arc<Bus>,
        epoll: Arc<Epoll>,
        outcome: Arc<Outcome>,
        news: EventFd,
    ) -> Result<Self> {
        Ok(Self {
            transport: Transport::Pci,
            vm,
            irqs,
            ram,
            bus,
            epoll,
            ring: TapRing::new().map_err(host("make an io_uring for taps"))?,
            line: SharedLine::default(),
            outcome,
            changes: Arc::new(Changes::new()?),
            news,
            inner: Mutex::default(),
        })
    }

    /// Adds an interface.
    pub fn add_net(&self, net: &Net, tap: File, when: When) -> Result<()> {
        self.check_hot_plug(&net.id, when)?;
        let mut inner = self.lock();
        let slot = inner.free_slot(&net.id)?;
        let tap = Tap::new(tap).map_err(|e| tap_error(&net.id, &e))?;
        let (device, worker) = NetWorker::new(tap, &self.ring, &self.line, net)?;
        let function = self.function(&net.id, Box::new(device), slot, when)?;
        let handler = self.epoll.new_id();
        worker.watch(&self.epoll, handler, function.kicks())?;
        inner.devices.push(Device {
            id: net.id.clone(),
            kind: DeviceKind::Net,
            slot,
            when,
            state: DeviceState::Plugged,
            counters: vec![worker.metrics(), function.metrics()],
            function,
            handler: Some(handler),
            net: Some(worker.control()),
            disk: None,
        });
        self.epoll.push(handler, Box::new(worker));
        self.plug(&inner, slot, when)
    }

    /// Adds a disk.
    pub fn add_block(&self, block: &Block, listener: UnixListener, when: When) -> Result<()> {
        self.check_hot_plug(&block.id, when)?;
        let mut inner = self.lock();
        let slot = inner.free_slot(&block.id)?;
        let news = share(&self.news)?;
        let kind = DiskKind {
            bounced: !memory::is_shared(&self.ram),
            restored: when == When::Restored,
        };
        let (device, worker) = BlockWorker::new(block, listener, kind, news)?;
        let status = device.status();
        let function = self.function(&block.id, Box::new(device), slot, when)?;
        inner.devices.push(Device {
            id: block.id.clone(),
            kind: DeviceKind::Block,
            slot,
            when,
            state: DeviceState::Waiting,
            counters: vec![worker.metrics(), function.metrics()],
            function,
            handler: None,
            net: None,
            disk: Some(Disk {
                status,
                worker: Some(worker),
                thread: None,
            }),
        });
        if when != When::Later {
            self.plug(&inner, slot, when)?;
        }
        let started = inner.start_disks(&self.outcome);
        if started.is_err() {
            inner.devices.pop();
        }
        started
    }

    /// Has a disk of the spec read before the machine may run.
    pub fn look_first(&self, id: &str, look: Look) -> Result<()> {
        let mut inner = self.lock();
        let disk = inner.find(DeviceKind::Block, id)?.disk.as_mut();
        if let Some(worker) = disk.and_then(|disk| disk.worker.as_mut()) {
            worker.look_first(look);
        }
        Ok(())
    }

    /// Changes what an interface may send; without an id, what all of them may together.
    pub fn limit_net(&self, id: Option<&str>, limits: &TransmitLimits) -> Result<()> {
        let Some(id) = id else {
            self.line.limit(limits);
            return Ok(());
        };
        let mut inner = self.lock();
        if let Some(net) = &inner.find(DeviceKind::Net, id)?.net {
            net.limit(limits);
        }
        Ok(())
    }

    /// What is left of the credits that all interfaces share, in bytes, if there are such.
    pub fn transmit_credits(&self) -> Option<u64> {
        self.line.credits()
    }

    /// Offers an interface's driver no offloads any more.
    pub fn withdraw_offloads(&self, id: &str) -> Result<()> {
        let mut inner = self.lock();
        let device = inner.find(DeviceKind::Net, id)?;
        if device.function.withdraw(NET_OFFLOADS) {
            return Ok(());
        }
        Err(Error::Device {
            device: id.to_owned(),
            problem: "has no driver that declined offloads".to_owned(),
        })
    }

    /// What happens to devices.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// Begins to take a device away: once the guest let it go, or at once with `force`.
    /// Asking again reminds the guest.
    pub fn remove(&self, kind: DeviceKind, id: &str, force: bool) -> Result<()> {
        self.check_hot_plug(id, When::Later)?;
        let mut inner = self.lock();
        let device = inner.find(kind, id)?;
        let slot = device.slot;
        match device.state {
            DeviceState::Gone => {}
            DeviceState::Waiting => {
                device.retire(&self.epoll);
                self.bus.pci.remove(slot);
            }
            DeviceState::Plugged | DeviceState::Leaving => {
                device.state = DeviceState::Leaving;
                if force {
                    self.bus.pci.remove(slot);
                    let ejected = self.bus.hotplug.take_ejected(Some(slot));
                    inner.retire(&ejected, &self.epoll);
                    self.bus.hotplug.announce(slot);
                } else {
                    self.bus.hotplug.ask_for(slot);
                }
                self.interrupt();
            }
        }
        self.news.write(1).map_err(host("clean up"))
    }

    /// Plugs in disks whose backend came, tells drivers of those that have grown, cleans up
    /// behind those that went.
    pub fn tend(&self) {
        let mut inner = self.lock();
        let ejected = self.bus.hotplug.take_ejected(None);
        inner.retire(&ejected, &self.epoll);
        let came: Vec<Slot> = inner
            .devices
            .iter_mut()
            .filter(|device| device.state == DeviceState::Waiting && !device.is_missing())
            .filter_map(|device| {
                device.state = DeviceState::Plugged;
                self.changes.note();
                (device.when == When::Later).then_some(device.slot)
            })
            .collect();
        for slot in came {
            if let Err(error) = self.plug(&inner, slot, When::Later) {
                tracing::error!(%error, "a device cannot be plugged in");
            }
        }
        let (gone, left) = std::mem::take(&mut inner.devices)
            .into_iter()
            .partition(Device::has_ended);
        inner.devices = left;
        let grown = inner.devices.iter().filter(|device| device.has_grown());
        let grown: Vec<_> = grown.map(|device| Arc::clone(&device.function)).collect();
        drop(inner);
        grown.iter().for_each(|function| function.announce_config());
        for device in gone {
            device.join();
            self.changes.note();
        }
    }

    /// Interrupts the guest again if it has not read what it was told: an edge is lost on a
    /// guest that has not set its interrupt controller up yet.
    pub fn remind(&self) {
        if self.bus.hotplug.is_unread() {
            self.interrupt();
        }
    }

    /// From now on disks are served, each by a thread of its own.
    pub fn start(&self, nursery: Nursery) -> Result<()> {
        let mut inner = self.lock();
        inner.nursery = Some(nursery);
        inner.start_disks(&self.outcome)
    }

    /// Ends the disks' threads; backends have until `deadline` to let their rings go.
    pub fn stop(&self, deadline: Instant) {
        let mut inner = self.lock();
        let disks = std::mem::take(&mut inner.devices);
        inner.nursery = None;
        drop(inner);
        let threads: Vec<WorkerThread> = disks
            .into_iter()
            .filter_map(|device| device.disk?.thread)
            .collect();
        threads.iter().for_each(WorkerThread::ask_to_stop);
        for thread in threads {
            thread.join(deadline);
        }
    }

    /// Disks of the spec whose backend has never connected.
    pub fn missing_disks(&self) -> Vec<String> {
        self.lock()
            .devices
            .iter()
            .filter(|device| device.when != When::Later && device.is_missing())
            .filter(|device| device.state == DeviceState::Waiting)
            .map(|device| device.id.clone())
            .collect()
    }

    /// Disks by id: is a backend connected now?
    pub fn block_connected(&self) -> BTreeMap<String, bool> {
        self.lock()
            .devices
            .iter()
            .filter_map(|device| {
                let connected = device.disk.as_ref()?.status.connected();
                Some((device.id.clone(), connected))
            })
            .collect()
    }

    /// Tells all devices, those too that are not on the bus yet, where to note what is written.
    pub fn log_dirty(&self, log: &Arc<BackendLog>) {
        for device in &self.lock().devices {
            if let Err(error) = device.function.log_dirty(Some(log)) {
                tracing::warn!(device = device.id, error, "a device does not log");
            }
        }
    }

    /// The id of the device in this slot.
    pub fn id_at(&self, slot: u8) -> Option<String> {
        let inner = self.lock();
        let device = inner.devices.iter().find(|d| d.slot.number() == slot)?;
        Some(device.id.clone())
    }

    /// Devices by id.
    pub fn status(&self) -> BTreeMap<String, DeviceStatus> {
        self.lock()
            .devices
            .iter()
            .map(|device| {
                let features = device.function.driven_with();
                let status = DeviceStatus {
                    kind: device.kind,
                    slot: device.slot.number(),
                    state: device.state,
                    driven: features.is_some(),
                    features: features.unwrap_or(0),
                };
                (device.id.clone(), status)
            })
            .collect()
    }

    /// Adds every device's counters to `out`, such as `net.eni-1.rx_frames`.
    pub fn report(&self, out: &mut BTreeMap<String, u64>) {
        self.refresh_balloon();
        for device in &self.lock().devices {
            let prefix = match device.kind.name() {
                only if only == device.id => only.to_owned(),
                kind => format!("{kind}.{}", device.id),
            };
            for counters in &device.counters {
                counters.report(&prefix, out);
            }
        }
    }

    fn function(
        &self,
        id: &str,
        device: Box<dyn VirtioDevice>,
        slot: Slot,
        when: When,
    ) -> Result<Arc<VirtioPci>> {
        let function = VirtioPci::new(
            id,
            device,
            // A running guest may have laid other BARs there.
            (when != When::Later && self.transport == Transport::Pci).then(|| slot.initial_bar()),
            self.ram.clone(),
            Arc::clone(&self.vm),
            Arc::clone(&self.irqs),
            Arc::clone(&self.changes),
        )?;
        Ok(Arc::new(function))
    }

    /// Puts the device of `slot` on the bus, and tells a guest that may run.
    fn plug(&self, inner: &Inner, slot: Slot, when: When) -> Result<()> {
        let Some(device) = inner.devices.iter().find(|device| device.slot == slot) else {
            return Ok(());
        };
        if self.transport == Transport::Mmio {
            let function = Arc::clone(&device.function);
            let device = VirtioMmio::new(function, slot, &self.bus.ioapic)?;
            self.bus.mmio.insert(device);
            return Ok(());
        }
        let function: Arc<dyn Function> = Arc::<VirtioPci>::clone(&device.function);
        self.bus.pci.insert(slot, function);
        if when == When::Later {
            self.bus.hotplug.announce(slot);
            self.interrupt();
        }
        Ok(())
    }

    /// How many devices the guest finds, if it has no PCI.
    pub fn without_pci(&self) -> Option<usize> {
        match self.transport {
            Transport::Pci => None,
            Transport::Mmio => Some(self.lock().devices.len()),
        }
    }

    /// Only a bus has slots.
    fn check_hot_plug(&self, id: &str, when: When) -> Result<()> {
        if when != When::Later || self.transport == Transport::Pci {
            return Ok(());
        }
        Err(Error::Device {
            device: id.to_owned(),
            problem: "transport mmio has no hot-plug".to_owned(),
        })
    }

    fn interrupt(&self) {
        if let Err(error) = self.bus.power.raise(EVENT_PCI) {
            tracing::error!(%error, "the guest cannot be told of a device");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
