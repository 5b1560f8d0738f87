//! Interrupts: messages to the local APICs, raised by eventfds (irqfd), so that any process can
//! interrupt the guest. A vector of MSI-X sends one ([`crate::pci::msix`]), and so does a pin of
//! the IOAPIC ([`crate::ioapic`]).
//!
//! ```text
//!  eventfd ── irqfd ──▶ GSI ── route ──▶ MSI address + data
//! ```

use crate::error::{Result, host};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A global system interrupt: KVM's index of one route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gsi(pub u32);

/// What a vector of a device sends when it fires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// The VM's routing table.
pub struct Irqs {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

#[derive(Default)]
struct Routes {
    /// What each message-signalled GSI sends.
    messages: Vec<Msi>,
    /// Released by devices that went.
    free: Vec<Gsi>,
    /// While a snapshot is loaded: events to attach once all routes are known.
    deferred: Option<Vec<(EventFd, Gsi)>>,
}

impl Irqs {
    /// For a VM whose local APICs are KVM's.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            routes: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects routes and attachments until [`Self::settle`]: each change of the table that
    /// KVM hears of costs a grace period, and a restored machine changes many at once.
    pub fn defer(&self) {
        self.lock().deferred.get_or_insert_default();
    }

    /// Tells KVM what was collected.
    pub fn settle(&self) -> std::result::Result<(), kvm_ioctls::Error> {
        let mut routes = self.lock();
        let Some(deferred) = routes.deferred.take() else {
            return Ok(());
        };
        if !deferred.is_empty() {
            self.commit(&routes)?;
        }
        for (event, gsi) in deferred {
            self.vm.register_irqfd(&event, gsi.0)?;
        }
        Ok(())
    }

    /// Reserves a GSI for one message-signalled interrupt.
    pub fn allocate(&self) -> Gsi {
        let mut routes = self.lock();
        if let Some(gsi) = routes.free.pop() {
            return gsi;
        }
        routes.messages.push(Msi::default());
        let index = u32::try_from(routes.messages.len() - 1).unwrap_or(u32::MAX);
        Gsi(index)
    }

    /// Gives a GSI back that no event raises any more.
    pub fn release(&self, gsi: Gsi) {
        let mut routes = self.lock();
        if let Some(slot) = routes.messages.get_mut(index_of(gsi)) {
            *slot = Msi::default();
            routes.free.push(gsi);
        }
    }

    /// Sets what `gsi` sends; no call to KVM where nothing changes.
    pub fn route(&self, gsi: Gsi, message: Msi) -> std::result::Result<(), kvm_ioctls::Error> {
        let mut routes = self.lock();
        let Some(slot) = routes.messages.get_mut(index_of(gsi)) else {
            return Err(kvm_ioctls::Error::new(libc::EINVAL));
        };
        if *slot == message {
            return Ok(());
        }
        let before = std::mem::replace(slot, message);
        if routes.deferred.is_some() {
            return Ok(());
        }
        self.commit(&routes).inspect_err(|_| {
            // KVM has the table as it was.
            if let Some(slot) = routes.messages.get_mut(index_of(gsi)) {
                *slot = before;
            }
        })
    }

    /// Lets `event` raise `gsi`. An event signalled before fires at once.
    pub fn attach(&self, event: &EventFd, gsi: Gsi) -> std::result::Result<(), kvm_ioctls::Error> {
        if let Some(deferred) = &mut self.lock().deferred {
            let event = event
                .try_clone()
                .map_err(|e| kvm_ioctls::Error::new(e.raw_os_error().unwrap_or(libc::EMFILE)))?;
            deferred.push((event, gsi));
            return Ok(());
        }
        self.vm.register_irqfd(event, gsi.0)
    }

    /// Ends that; later signals stay in `event`, as a pending bit would.
    pub fn detach(&self, event: &EventFd, gsi: Gsi) -> std::result::Result<(), kvm_ioctls::Error> {
        self.vm.unregister_irqfd(event, gsi.0)
    }

    fn commit(&self, routes: &Routes) -> std::result::Result<(), kvm_ioctls::Error> {
        let mut entries: Vec<kvm_irq_routing_entry> = Vec::new();
        for (gsi, message) in (0..).zip(&routes.messages) {
            if *message == Msi::default() {
                continue;
            }
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            let low = message.address & u64::from(u32::MAX);
            entry.u.msi.address_lo = u32::try_from(low).unwrap_or_default();
            entry.u.msi.address_hi = u32::try_from(message.address >> 32).unwrap_or_default();
            entry.u.msi.data = message.data;
            entries.push(entry);
        }
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
        self.vm.set_gsi_routing(&routing)
    }
}

/// Its place among the messages; a GSI is made by [`Irqs::allocate`] alone.
fn index_of(gsi: Gsi) -> usize {
    gsi.0 as usize
}

/// A non-blocking eventfd.
pub fn new_event() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("make an eventfd"))
}

/// An eventfd as a descriptor to watch.
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event`, whose lifetime the result carries.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// A second descriptor of the same eventfd.
pub fn share(event: &EventFd) -> Result<EventFd> {
    event.try_clone().map_err(host("duplicate an eventfd"))
}
