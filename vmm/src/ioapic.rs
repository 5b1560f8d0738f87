//! The IOAPIC (Intel 82093AA): turns a device's line into a message to the local APICs, which
//! are KVM's.
//!
//! ```text
//!  guest ─ select, window ─▶ redirection entry ─▶ route of the pin's GSI (an MSI)
//!  eventfd ── irqfd, while the entry is not masked ──▶ GSI ─▶ local APIC
//! ```
//! Ours and not KVM's, because Linux sets up every pin that there is, at ten accesses each: KVM's
//! has 24, this one those up to the last that something is on. No PIC comes with it either. All
//! lines are edges (ACPI says so); an entry that asks for a level gets edges. What is signalled
//! while the entry is masked is delivered when it no longer is.

use crate::error::Result;
use crate::irq::{Gsi, Irqs, Msi, new_event, share};
use crate::lifecycle::Lifecycle;
use crate::persist::State;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Register select, and the selected register.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Indirect registers: identification, version, arbitration; then two for each pin.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_ENTRY: u8 = 0x10;
/// That of the 82093AA: without an EOI register, which no edge needs.
const VERSION_NUMBER: u32 = 0x11;
const ID_BITS: u32 = 0x0f00_0000;

/// Of a redirection entry: what a guest may write, all but delivery status and remote IRR.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
const MASKED: u64 = 1 << 16;
const LOGICAL: u64 = 1 << 11;
/// Vector and delivery mode, which a message's data has in the same place.
const DATA: u64 = 0x7ff;
const DESTINATION_SHIFT: u32 = 56;
/// Messages to local APICs (Intel SDM vol. 3 §11.11.1).
const MESSAGE_BASE: u64 = 0xfee0_0000;
const MESSAGE_DESTINATION_SHIFT: u32 = 12;
const MESSAGE_LOGICAL: u64 = 1 << 2;

/// The controller.
pub struct Ioapic {
    irqs: Arc<Irqs>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    select: u8,
    id: u32,
    pins: Vec<Pin>,
}

/// One line.
struct Pin {
    entry: u64,
    gsi: Gsi,
    /// Any of them raises it.
    events: Vec<EventFd>,
    /// KVM listens to so many of them: none while the entry is masked, else all that it took.
    attached: usize,
}

impl Ioapic {
    /// Without pins yet.
    pub fn new(irqs: Arc<Irqs>) -> Self {
        Self {
            irqs,
            inner: Mutex::default(),
        }
    }

    /// A new eventfd that raises `pin` (edge), before the guest runs.
    pub fn line(&self, pin: u8) -> Result<EventFd> {
        let event = new_event()?;
        self.connect(pin, share(&event)?);
        Ok(event)
    }

    /// Lets `event` raise `pin`, too, before the guest runs.
    pub fn connect(&self, pin: u8, event: EventFd) {
        let mut inner = self.lock();
        let count = inner.pins.len().max(usize::from(pin) + 1);
        inner.pins.resize_with(count, || Pin {
            entry: MASKED,
            gsi: self.irqs.allocate(),
            events: Vec::new(),
            attached: 0,
        });
        inner.pins[usize::from(pin)].events.push(event);
    }

    /// A guest's load at `offset` of the page at [`crate::layout::IOAPIC`].
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        let value = match offset {
            SELECT => inner.select.into(),
            WINDOW => inner.register(),
            _ => 0,
        };
        data.fill(0);
        for (slot, byte) in data.iter_mut().zip(value.to_le_bytes()) {
            *slot = byte;
        }
    }

    /// A guest's store; the window takes whole registers only.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        match (offset, data) {
            (SELECT, [select, ..]) => inner.select = *select,
            (WINDOW, [a, b, c, d]) => {
                self.write_register(&mut inner, u32::from_le_bytes([*a, *b, *c, *d]))
            }
            _ => {}
        }
    }

    fn write_register(&self, inner: &mut Inner, value: u32) {
        if inner.select == ID {
            inner.id = value & ID_BITS;
            return;
        }
        let Some((index, is_high)) = inner.selected() else {
            return;
        };
        let pin = &mut inner.pins[index];
        let value = u64::from(value);
        let entry = if is_high {
            pin.entry & u64::from(u32::MAX) | value << 32
        } else {
            pin.entry & !u64::from(u32::MAX) | value
        };
        pin.entry = entry & WRITABLE;
        if let Err(error) = pin.update(&self.irqs) {
            tracing::warn!(%error, pin = index, "KVM refused an interrupt line");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The pin whose entry is selected, and whether its high half is.
    fn selected(&self) -> Option<(usize, bool)> {
        let at = usize::from(self.select.checked_sub(FIRST_ENTRY)?);
        (at / 2 < self.pins.len()).then_some((at / 2, at % 2 == 1))
    }

    fn register(&self) -> u32 {
        let last = u32::try_from(self.pins.len().saturating_sub(1)).unwrap_or(0);
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_NUMBER | last << 16,
            _ => self.selected().map_or(0, |(index, is_high)| {
                let entry = self.pins[index].entry >> if is_high { 32 } else { 0 };
                u32::try_from(entry & u64::from(u32::MAX)).unwrap_or(0)
            }),
        }
    }
}

impl Pin {
    /// What the entry sends.
    fn message(&self) -> Msi {
        let destination = self.entry >> DESTINATION_SHIFT;
        let logical = if self.entry & LOGICAL == 0 {
            0
        } else {
            MESSAGE_LOGICAL
        };
        Msi {
            address: MESSAGE_BASE | destination << MESSAGE_DESTINATION_SHIFT | logical,
            data: u32::try_from(self.entry & DATA).unwrap_or(0),
        }
    }

    /// Makes KVM's view match the entry; what KVM refused is tried again the next time.
    fn update(&mut self, irqs: &Irqs) -> std::result::Result<(), kvm_ioctls::Error> {
        if self.entry & MASKED != 0 {
            while let Some(last) = self.attached.checked_sub(1) {
                irqs.detach(&self.events[last], self.gsi)?;
                self.attached = last;
            }
            return Ok(());
        }
        irqs.route(self.gsi, self.message())?;
        for event in &self.events[self.attached..] {
            irqs.attach(event, self.gsi)?;
            self.attached += 1;
        }
        Ok(())
    }
}

const STATE_VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct IoapicState {
    select: u8,
    id: u32,
    entries: Vec<u64>,
}

impl Lifecycle for Ioapic {
    fn save(&self) -> std::result::Result<State, String> {
        let inner = self.lock();
        let state = IoapicState {
            select: inner.select,
            id: inner.id,
            entries: inner.pins.iter().map(|pin| pin.entry).collect(),
        };
        State::encode(STATE_VERSION, &state)
    }

    fn load(&self, state: &State) -> std::result::Result<(), String> {
        let state: IoapicState = state.decode(STATE_VERSION)?;
        let mut inner = self.lock();
        if state.entries.len() != inner.pins.len() {
            return Err(format!(
                "has {} pins, and this machine {}",
                state.entries.len(),
                inner.pins.len()
            ));
        }
        inner.select = state.select;
        inner.id = state.id & ID_BITS;
        for (pin, entry) in inner.pins.iter_mut().zip(state.entries) {
            pin.entry = entry & WRITABLE;
            pin.update(&self.irqs)
                .map_err(|e| format!("cannot have its lines: {e}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
