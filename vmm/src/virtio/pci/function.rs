//! A virtio device as a PCI function: registers in, device calls out.

use super::caps::{self, Capabilities};
use super::common::{Action, CommonConfig};
use super::{BAR_BYTES, COMMON, DEVICE, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, NOTIFY_STEP, PAGE};
use crate::error::{Error, Result};
use crate::irq::{Irqs, new_event, share};
use crate::memory::GuestRam;
use crate::pci::config::ConfigSpace;
use crate::pci::msix::Msix;
use crate::pci::root::Function;
use crate::virtio::changes::Changes;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{Activation, Fault, STATUS_NEEDS_RESET, TransportMetrics, VirtioDevice};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

/// No BAR answers here.
const UNMAPPED: u64 = u64::MAX;

/// One function. Registers are behind one lock, which data paths never take.
pub struct VirtioPci {
    id: Arc<str>,
    ram: GuestRam,
    vm: Arc<VmFd>,
    kicks: Vec<Arc<EventFd>>,
    mapped_at: AtomicU64,
    metrics: Arc<TransportMetrics>,
    changes: Arc<Changes>,
    inner: Mutex<Inner>,
}

struct Inner {
    config: ConfigSpace,
    capabilities: Capabilities,
    msix: Msix,
    common: CommonConfig,
    device: Box<dyn VirtioDevice>,
    /// The driver said so.
    ready: bool,
    /// Features of the device that are no longer offered.
    withheld: u64,
    /// Where KVM watches the kicks.
    kicks_at: Option<KicksAt>,
    resetting: bool,
    /// The register for notifications of a transport that has no BAR.
    notify_register: Option<u64>,
    /// That transport's driver has not heard yet of a changed configuration.
    config_changed: bool,
}

/// How a driver's notifications are told apart by queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KicksAt {
    /// By address, in the BAR that begins here.
    Bar(u64),
    /// By the value that is written here.
    Register(u64),
}

impl VirtioPci {
    /// Puts `device` behind a BAR at `base`, or one that the guest places, with one MSI-X
    /// vector a queue and one for configuration changes. `changes` hears of drivers.
    pub fn new(
        id: &str,
        device: Box<dyn VirtioDevice>,
        base: Option<u64>,
        ram: GuestRam,
        vm: Arc<VmFd>,
        irqs: Arc<Irqs>,
        changes: Arc<Changes>,
    ) -> Result<Self> {
        let sizes = device.queue_sizes();
        let vectors = u16::try_from(sizes.len() + 1).unwrap_or(u16::MAX);
        let msix = Msix::new(irqs, vectors)?;
        let mut kicks = Vec::new();
        for _ in sizes {
            kicks.push(Arc::new(new_event()?));
        }
        let common = CommonConfig::new(sizes, vectors).map_err(|e| Error::Device {
            device: id.to_owned(),
            problem: format!("cannot have its queues: {e}"),
        })?;
        let (config, capabilities) = caps::build(device.kind(), base, msix.count());
        Ok(Self {
            id: id.into(),
            ram,
            vm,
            kicks,
            mapped_at: AtomicU64::new(base.unwrap_or(UNMAPPED)),
            metrics: Arc::default(),
            changes,
            inner: Mutex::new(Inner {
                config,
                capabilities,
                msix,
                common,
                device,
                ready: false,
                withheld: 0,
                kicks_at: None,
                resetting: false,
                notify_register: None,
                config_changed: false,
            }),
        })
    }

    /// The eventfds that the driver's notifications signal, by queue.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<TransportMetrics> {
        Arc::clone(&self.metrics)
    }

    /// As the spec calls it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Device type (§5).
    pub fn kind(&self) -> u16 {
        self.lock().device.kind()
    }

    /// The events of all vectors, for a transport that has no vectors.
    pub fn vector_events(&self) -> Result<Vec<EventFd>> {
        let inner = self.lock();
        (0..inner.msix.count())
            .filter_map(|vector| inner.msix.event(vector).map(share))
            .collect()
    }

    /// Another transport serves it, whose driver writes the numbers of queues to `register`, and
    /// which has one interrupt for all vectors.
    pub fn leave_pci(&self, register: u64) {
        self.lock().notify_register = Some(register);
    }

    /// The driver has heard that the configuration changed.
    pub fn acknowledge_config(&self) {
        self.lock().config_changed = false;
    }

    /// Tells the driver that the device's own configuration changed.
    pub fn announce_config(&self) {
        let mut inner = self.lock();
        inner.common.generation = inner.common.generation.wrapping_add(1);
        inner.config_changed = true;
        if let Some(event) = inner.config_event()
            && let Err(error) = event.write(1)
        {
            tracing::debug!(%error, "configuration interrupt lost");
        }
    }

    /// The features that the driver accepted which uses the device, if one does.
    pub fn driven_with(&self) -> Option<u64> {
        let inner = self.lock();
        inner.ready.then_some(inner.common.driver_features)
    }

    /// Offers none of `features` from now on, if a driver is ready that accepted none of them:
    /// before that one may have read the offer, and be about to accept it.
    pub fn withdraw(&self, features: u64) -> bool {
        let mut inner = self.lock();
        let unused = inner.ready && inner.common.driver_features & features == 0;
        if unused {
            inner.withheld |= features;
        }
        unused
    }

    /// Ends all use of the queues, for a function that left the bus.
    pub fn retire(&self) {
        let mut inner = self.lock();
        inner.device.reset();
        self.set_ready(&mut inner, false);
    }

    fn set_ready(&self, inner: &mut Inner, ready: bool) {
        if std::mem::replace(&mut inner.ready, ready) != ready {
            self.changes.note();
        }
        self.watch_kicks(inner);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets KVM watch the notification addresses of a ready driver, where the BAR is now.
    ///
    /// Before that a kick means nothing, and each address that KVM watches costs the
    /// start of the machine a grace period.
    fn watch_kicks(&self, inner: &mut Inner) {
        let place = match inner.notify_register {
            Some(at) => Some(KicksAt::Register(at)),
            None => self.bar().map(KicksAt::Bar),
        };
        let wanted = place.filter(|_| inner.ready);
        let old = std::mem::replace(&mut inner.kicks_at, wanted);
        if wanted == old {
            return;
        }
        let mut done = Ok(());
        for (queue, kick) in (0u32..).zip(&self.kicks) {
            if let Some(old) = old {
                done = done.and(match old.of(queue) {
                    (at, Some(value)) => self.vm.unregister_ioevent(kick, &at, value),
                    (at, None) => self.vm.unregister_ioevent(kick, &at, NoDatamatch),
                });
            }
            if let Some(new) = wanted {
                done = done.and(match new.of(queue) {
                    (at, Some(value)) => self.vm.register_ioevent(kick, &at, value),
                    (at, None) => self.vm.register_ioevent(kick, &at, NoDatamatch),
                });
            }
        }
        if let Err(error) = done {
            // A guest may lay BARs over each other; kicks then reach only one of them.
            tracing::debug!(device = %self.id, %error, "KVM cannot watch the kicks");
            self.bad_access();
        }
    }

    fn bad_access(&self) {
        self.metrics.bad_accesses.fetch_add(1, Ordering::Relaxed);
    }

    fn write_common(&self, inner: &mut Inner, offset: u64, data: &[u8]) {
        let features = inner.features();
        match inner.common.write(offset, data, features) {
            Action::None => {}
            Action::Bad => self.bad_access(),
            Action::Activate => self.activate(inner),
            Action::Reset => {
                inner.device.reset();
                inner.resetting = true;
                self.set_ready(inner, false);
                inner.finish_reset();
            }
        }
    }

    /// Checks the queues and hands them to the device.
    fn activate(&self, inner: &mut Inner) {
        self.metrics.activations.fetch_add(1, Ordering::Relaxed);
        let fault = self.fault(inner);
        let queues = match self.collect_queues(inner) {
            Ok(queues) => queues,
            Err(why) => return fault.raise(&why),
        };
        let activation = Activation {
            ram: self.ram.clone(),
            features: inner.common.driver_features,
            queues,
            fault: fault.clone(),
        };
        self.set_ready(inner, true);
        if let Err(why) = inner.device.activate(activation) {
            fault.raise(&why);
        }
    }

    fn fault(&self, inner: &Inner) -> Fault {
        let config_event = inner
            .config_event()
            .and_then(|event| share(event).ok())
            .map(Arc::new);
        Fault::new(
            Arc::clone(&self.id),
            Arc::clone(&inner.common.status),
            config_event,
            Arc::clone(&self.metrics),
        )
    }

    fn collect_queues(&self, inner: &Inner) -> std::result::Result<Vec<Option<VirtQueue>>, String> {
        let mut queues = Vec::new();
        for (index, (setup, kick)) in inner.common.queues.iter().zip(&self.kicks).enumerate() {
            if !setup.queue.ready() {
                queues.push(None);
                continue;
            }
            if !setup.queue.is_valid(&self.ram) {
                return Err(format!("queue {index} lies outside guest memory"));
            }
            let call = match inner.msix.event(setup.vector) {
                Some(event) => Some(share(event).map_err(|e| e.to_string())?),
                None => None,
            };
            let state = setup.queue.state();
            let queue = virtio_queue::Queue::try_from(state).map_err(|e| e.to_string())?;
            queues.push(Some(VirtQueue::new(
                queue,
                self.ram.clone(),
                Arc::clone(kick),
                call,
            )));
        }
        Ok(queues)
    }

    /// The window in configuration space: which part of the BAR it shows, if it is a valid one.
    fn window(inner: &Inner) -> Option<(u64, usize)> {
        let at = inner.capabilities.window;
        let bar = inner.config.word(at + 4) & 0xff;
        let offset = u64::from(inner.config.word(at + 8));
        let len = inner.config.word(at + 12);
        let valid = bar == 0 && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(u64::from(len));
        valid.then_some((offset, usize::try_from(len).ok()?))
    }
}

impl KicksAt {
    /// The address of notifications for `queue`, and their value if only one is meant.
    fn of(self, queue: u32) -> (IoEventAddress, Option<u32>) {
        match self {
            Self::Bar(at) => {
                let offset = NOTIFY + u64::from(NOTIFY_STEP) * u64::from(queue);
                (IoEventAddress::Mmio(at.wrapping_add(offset)), None)
            }
            Self::Register(at) => (IoEventAddress::Mmio(at), Some(queue)),
        }
    }
}

impl Inner {
    /// What the driver is offered.
    fn features(&self) -> u64 {
        self.device.features() & !self.withheld
    }

    /// What interrupts for a changed configuration.
    fn config_event(&self) -> Option<&EventFd> {
        let vector = match self.notify_register {
            Some(_) => 0,
            None => self.common.config_vector,
        };
        self.msix.event(vector)
    }

    /// Once the device has let go, everything is as after power-on.
    fn finish_reset(&mut self) {
        if self.resetting && self.device.is_reset() {
            self.resetting = false;
            self.common.reset();
            self.msix.clear_pending();
        }
    }
}

impl Function for VirtioPci {
    fn config_read(&self, offset: usize, data: &mut [u8]) {
        let inner = self.lock();
        let window_data = inner.capabilities.window + 16;
        if offset == window_data
            && let Some((at, len)) = Self::window(&inner)
        {
            drop(inner);
            data.fill(0);
            let len = len.min(data.len());
            self.bar_read(at, &mut data[..len]);
            return;
        }
        inner.config.read(offset, data);
    }

    fn config_write(&self, offset: usize, data: &[u8]) {
        let mut inner = self.lock();
        inner.config.write(offset, data);
        if offset == inner.capabilities.window + 16 {
            if let Some((at, len)) = Self::window(&inner) {
                drop(inner);
                self.bar_write(at, &data[..len.min(data.len())]);
            }
            return;
        }
        let control = inner.config.word(inner.capabilities.msix) >> 16;
        if (inner.capabilities.msix..inner.capabilities.msix + 4).contains(&offset) {
            inner
                .msix
                .set_control(u16::try_from(control).unwrap_or_default());
        }
        let bar = inner.config.bar().unwrap_or(UNMAPPED);
        self.mapped_at.store(bar, Ordering::SeqCst);
        self.watch_kicks(&mut inner);
    }

    fn bar(&self) -> Option<u64> {
        let at = self.mapped_at.load(Ordering::Relaxed);
        (at != UNMAPPED).then_some(at)
    }

    fn bar_bytes(&self) -> u64 {
        BAR_BYTES
    }

    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        let mut inner = self.lock();
        data.fill(0);
        let within = offset % PAGE;
        match offset - within {
            COMMON => {
                inner.finish_reset();
                let features = inner.features();
                inner.common.read(within, data, features);
            }
            ISR if within == 0 => {
                // Without INTx only the configuration has something to say here.
                let gave_up = inner.common.status.load(Ordering::SeqCst) & STATUS_NEEDS_RESET != 0;
                let changed = inner.notify_register.is_some() && inner.config_changed;
                data[..1].fill(if gave_up || changed { 2 } else { 0 });
            }
            DEVICE => inner
                .device
                .read_config(usize::try_from(within).unwrap_or(usize::MAX), data),
            MSIX_TABLE => inner.msix.table_read(within, data),
            MSIX_PENDING => inner.msix.pending_read(within, data),
            _ => {}
        }
    }

    fn bar_write(&self, offset: u64, data: &[u8]) {
        let within = offset % PAGE;
        match offset - within {
            COMMON => {
                let mut inner = self.lock();
                inner.finish_reset();
                self.write_common(&mut inner, within, data);
            }
            // Only writes that KVM did not catch come here: through the window, say.
            NOTIFY => {
                let index = usize::try_from(within / u64::from(NOTIFY_STEP)).unwrap_or(usize::MAX);
                match self.kicks.get(index) {
                    Some(kick) => {
                        // A full counter already means "kicked".
                        let _ = kick.write(1);
                    }
                    None => self.bad_access(),
                }
            }
            DEVICE => {
                let at = usize::try_from(within).unwrap_or(usize::MAX);
                if !self.lock().device.write_config(at, data) {
                    self.bad_access();
                }
            }
            MSIX_TABLE => self.lock().msix.table_write(within, data),
            _ => self.bad_access(),
        }
    }
}

mod persist;

#[cfg(test)]
mod tests;
