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

use crate::bus::Bus;
use crate::error::{Error, Result, host};
use crate::events::{Epoll, HandlerId};
use crate::irq::{Irqs, share};
use crate::legacy::power::EVENT_PCI;
use crate::legacy::ring::ConsoleRing;
use crate::lifecycle::Lifecycle;
use crate::memory::dirty::BackendLog;
use crate::memory::{self, GuestRam};
use crate::outcome::Outcome;
use crate::pci::root::{Function, Slot};
use crate::virtio::balloon::BalloonModel;
use crate::virtio::block::{BlockStatus, BlockWorker, DiskKind, Look, Nursery, WorkerThread};
use crate::virtio::console::ConsoleModel;
use crate::virtio::hosted::{Driver, Hosted, Model};
use crate::virtio::mmio::VirtioMmio;
use crate::virtio::net::tap::Tap;
use crate::virtio::net::{NetControl, NetWorker, SharedRing, TapRing, tap_error};
use crate::virtio::pci::VirtioPci;
use crate::virtio::rng::RngModel;
use crate::virtio::vsock::VsockModel;
use crate::virtio::{Metrics, VirtioDevice};
use kvm_ioctls::VmFd;
use ocs_vmm_spec::control::{DeviceKind, DeviceState, DeviceStatus};
use ocs_vmm_spec::{Block, Net, Spec, TransmitLimits, Transport};
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
    outcome: Arc<Outcome>,
    /// Signalled when [`Self::tend`] has something to do.
    news: EventFd,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    devices: Vec<Device>,
    balloon: Option<(Hosted<BalloonModel>, Arc<VirtioPci>)>,
    /// Starts the threads of disks, once the machine starts.
    nursery: Option<Nursery>,
}

struct Device {
    id: String,
    kind: DeviceKind,
    slot: Slot,
    /// Those of the start are on the bus before a backend comes.
    when: When,
    state: DeviceState,
    function: Arc<VirtioPci>,
    counters: Vec<Arc<dyn Metrics>>,
    /// What serves it on the event thread.
    handler: Option<HandlerId>,
    net: Option<Arc<NetControl>>,
    disk: Option<Disk>,
}

struct Disk {
    status: BlockStatus,
    /// Until the machine starts.
    worker: Option<BlockWorker>,
    thread: Option<WorkerThread>,
}

/// The host sides of the devices that the event thread serves alone.
pub struct Hosts {
    /// Where console output goes.
    pub ring: ConsoleRing,
    /// What the console reads.
    pub console_input: Option<File>,
    /// Where programs of the host connect.
    pub vsock: Option<UnixListener>,
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
            outcome,
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
        let (device, worker) = NetWorker::new(tap, &self.ring, net)?;
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

    /// Changes what an interface may send.
    pub fn limit_net(&self, id: &str, limits: &TransmitLimits) -> Result<()> {
        let mut inner = self.lock();
        if let Some(net) = &inner.find(DeviceKind::Net, id)?.net {
            net.limit(limits);
        }
        Ok(())
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
        gone.into_iter().for_each(Device::join);
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
                let status = DeviceStatus {
                    kind: device.kind,
                    slot: device.slot.number(),
                    state: device.state,
                    driven: device.function.is_driven(),
                };
                (device.id.clone(), status)
            })
            .collect()
    }

    /// Adds every device's counters to `out`, such as `net.eni-1.rx_frames`.
    pub fn report(&self, out: &mut BTreeMap<String, u64>) {
        let balloon = self.lock().balloon.clone();
        if let Some((balloon, _)) = balloon {
            let refresh = |model: &mut BalloonModel, driver: Option<&mut Driver>| {
                driver.map_or(Ok(()), |driver| model.refresh(driver))
            };
            balloon.with(refresh);
        }
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
            let device = VirtioMmio::new(function, slot, Arc::clone(&self.vm))?;
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

    /// How many devices the guest finds beside PCI.
    pub fn mmio_count(&self) -> usize {
        match self.transport {
            Transport::Pci => 0,
            Transport::Mmio => self.lock().devices.len(),
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

impl Inner {
    /// A place on the bus for a device that is not there yet.
    fn free_slot(&self, id: &str) -> Result<Slot> {
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

    fn find(&mut self, kind: DeviceKind, id: &str) -> Result<&mut Device> {
        self.devices
            .iter_mut()
            .find(|device| device.kind == kind && device.id == id)
            .ok_or_else(|| Error::Device {
                device: id.to_owned(),
                problem: format!("there is no {} device with this id", kind.name()),
            })
    }

    fn retire(&mut self, ejected: &[Slot], epoll: &Epoll) {
        self.devices
            .iter_mut()
            .filter(|device| ejected.contains(&device.slot))
            .for_each(|device| device.retire(epoll));
    }

    /// Starts the threads of disks that have none, if the machine has started.
    fn start_disks(&mut self, outcome: &Arc<Outcome>) -> Result<()> {
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
    fn has_grown(&self) -> bool {
        self.disk.as_ref().is_some_and(|d| d.status.take_grown())
    }

    fn is_missing(&self) -> bool {
        let disk = self.disk.as_ref();
        disk.is_some_and(|disk| !disk.status.ever_connected())
    }

    /// The device is off the bus: ends its use of the guest's memory.
    fn retire(&mut self, epoll: &Epoll) {
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
    fn has_ended(&self) -> bool {
        let thread = self.disk.as_ref().and_then(|disk| disk.thread.as_ref());
        self.state == DeviceState::Gone && thread.is_none_or(WorkerThread::has_ended)
    }

    fn join(self) {
        tracing::info!(device = self.id, "removed");
        if let Some(thread) = self.disk.and_then(|disk| disk.thread) {
            thread.join(Instant::now());
        }
    }
}
