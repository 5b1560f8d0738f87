//! Hot-plug: how a guest hears that a device came or shall go, and lets it go.
//!
//! ```text
//!  add ──▶ slot's bit in ARRIVED ─┐
//!                                 ├─▶ EVENT_PCI, GSI 5 ──▶ guest reads ARRIVED, LEAVING
//!  remove ▶ slot's bit in LEAVING ┘                          │ Notify(slot, 1 or 3)
//!  device is gone ◀── event thread ◀── EJECT ◀── _EJ0 ◀──────┘
//! ```
//! | port | access | meaning |
//! |---|---|---|
//! | 0x608–0x60b | read | slots to look at again, one bit each; a byte is cleared by reading it |
//! | 0x60c–0x60f | read | slots that the guest is asked to let go, likewise |
//! | 0x610–0x613 | write | slots that the guest lets go |
//!
//! This is what ACPI calls hot-plug by AML (`Notify` with bus check and eject request,
//! `_EJ0`; ACPI 6.5 §5.6.6, §6.3.3), driven by the generic event device, as QEMU and
//! Cloud Hypervisor do it. Native PCI Express hot-plug was the other choice: it wants a
//! root port, and so a bus, a bridge window and seconds of button and link delays, for
//! each slot, where this wants three registers and works on the root bus. Debian's
//! kernels have both built in (`HOTPLUG_PCI_ACPI`).
//!
//! A guest can only let go what it was asked for: an attachment is its owner's to end.

use super::root::Slot;
use crate::lifecycle::Lifecycle;
use crate::persist::State;
use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::sync::PoisonError;
use vmm_sys_util::eventfd::EventFd;

/// The first register.
pub const FIRST_PORT: u16 = 0x608;
/// The last byte of the last register.
pub const LAST_PORT: u16 = 0x613;

const ARRIVED: u32 = FIRST_PORT as u32;
const LEAVING: u32 = ARRIVED + 4;
const EJECT: u32 = ARRIVED + 8;

/// Also their state in a snapshot.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Bits {
    /// Not read yet.
    arrived: u32,
    /// Not read yet.
    leaving: u32,
    /// Asked for and not let go yet.
    asked: u32,
    /// Let go, for the event thread to clean up.
    ejected: u32,
}

/// The registers.
pub struct Hotplug {
    bits: Mutex<Bits>,
    /// Signalled when a slot was let go.
    ejected: EventFd,
}

impl Hotplug {
    /// `ejected` is signalled when the guest let a slot go.
    pub fn new(ejected: EventFd) -> Self {
        Self {
            bits: Mutex::default(),
            ejected,
        }
    }

    /// Makes the guest look at `slot` when it is interrupted next.
    pub fn announce(&self, slot: Slot) {
        self.lock().arrived |= slot.bit();
    }

    /// Asks the guest for `slot` when it is interrupted next.
    pub fn ask_for(&self, slot: Slot) {
        let mut bits = self.lock();
        bits.asked |= slot.bit();
        bits.leaving |= slot.bit();
    }

    /// Is there something that the guest has not read?
    pub fn is_unread(&self) -> bool {
        let bits = self.lock();
        bits.arrived | bits.leaving != 0
    }

    /// Slots let go since the last call, or taken from the guest with `by_force`.
    pub fn take_ejected(&self, by_force: Option<Slot>) -> Vec<Slot> {
        let mut bits = self.lock();
        if let Some(slot) = by_force {
            bits.ejected |= slot.bit();
            bits.asked &= !slot.bit();
            bits.leaving &= !slot.bit();
        }
        let ejected = std::mem::take(&mut bits.ejected);
        Slot::all()
            .filter(|slot| ejected & slot.bit() != 0)
            .collect()
    }

    /// A guest's read.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let mut bits = self.lock();
        for (byte, port) in data.iter_mut().zip(u32::from(port)..) {
            let shift = 8 * (port % 4);
            let register = match port & !3 {
                ARRIVED => &mut bits.arrived,
                LEAVING => &mut bits.leaving,
                _ => {
                    *byte = 0;
                    continue;
                }
            };
            let mask = 0xff << shift;
            *byte = u8::try_from((*register & mask) >> shift).unwrap_or(0);
            *register &= !mask;
        }
    }

    /// A guest's write; the slots that it let go and that must leave the bus now.
    pub fn write(&self, port: u16, data: &[u8]) -> Vec<Slot> {
        let mut let_go = 0;
        for (byte, port) in data.iter().zip(u32::from(port)..) {
            if port & !3 == EJECT {
                let_go |= u32::from(*byte) << (8 * (port % 4));
            }
        }
        let mut bits = self.lock();
        let let_go = let_go & bits.asked;
        if let_go == 0 {
            return Vec::new();
        }
        bits.asked &= !let_go;
        bits.ejected |= let_go;
        drop(bits);
        // A full counter already means "ejected".
        let _ = self.ejected.write(1);
        Slot::all()
            .filter(|slot| let_go & slot.bit() != 0)
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Bits> {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of [`Bits`].
const STATE_VERSION: u16 = 1;

impl Lifecycle for Hotplug {
    fn save(&self) -> Result<State, String> {
        State::encode(STATE_VERSION, &*self.lock())
    }

    fn load(&self, state: &State) -> Result<(), String> {
        *self.lock() = state.decode(STATE_VERSION)?;
        // Whatever was let go is cleaned up by whoever the event wakes.
        self.ejected.write(1).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: usize) -> Slot {
        Slot::all().nth(number - 1).unwrap()
    }

    fn word(hotplug: &Hotplug, port: u16) -> u32 {
        let mut data = [0xff; 4];
        hotplug.read(port, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn what_the_guest_has_not_read_round_trips() {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let used = Hotplug::new(event());
        let slot = Slot::all().next().unwrap();
        used.announce(slot);
        used.ask_for(slot);
        crate::lifecycle::assert_round_trip(&used, &Hotplug::new(event()));
    }

    #[test]
    fn what_is_read_is_cleared_and_only_what_is_asked_for_goes() {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let hotplug = Hotplug::new(event.try_clone().unwrap());
        hotplug.announce(slot(31));
        hotplug.announce(slot(2));
        hotplug.ask_for(slot(9));
        assert!(hotplug.is_unread());
        // A byte at a time, as the probe reads, or all four, as AML does.
        let mut byte = [0];
        hotplug.read(FIRST_PORT + 3, &mut byte);
        assert_eq!(byte, [0x80]);
        assert_eq!(word(&hotplug, FIRST_PORT), 1 << 2);
        assert_eq!(word(&hotplug, FIRST_PORT + 4), 1 << 9);
        assert_eq!(word(&hotplug, FIRST_PORT), 0);
        assert_eq!(word(&hotplug, FIRST_PORT + 8), 0);
        assert!(!hotplug.is_unread());

        assert_eq!(
            hotplug.write(FIRST_PORT + 8, &0xffff_fdffu32.to_le_bytes()),
            []
        );
        assert_eq!(hotplug.write(FIRST_PORT, &[0xff; 4]), []);
        assert!(event.read().is_err(), "nothing was let go");
        assert_eq!(hotplug.write(FIRST_PORT + 9, &[2]), [slot(9)]);
        assert_eq!(event.read().unwrap(), 1);
        assert_eq!(hotplug.write(FIRST_PORT + 9, &[2]), [], "only once");
        assert_eq!(hotplug.take_ejected(Some(slot(4))), [slot(4), slot(9)]);
        assert_eq!(hotplug.take_ejected(None), []);
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let hotplug = Hotplug::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        hotplug.ask_for(slot(31));
        hotplug.read(LAST_PORT, &mut [0; 8]);
        assert_eq!(
            hotplug.write(LAST_PORT, &[0x80, 1, 1, 1, 1, 1, 1, 1]),
            [slot(31)]
        );
        hotplug.read(u16::MAX, &mut [0; 4]);
        assert_eq!(hotplug.write(u16::MAX, &[1; 4]), []);
    }
}
