//! Power: ACPI's reduced-hardware sleep and reset registers, the keyboard
//! controller's reset line, and the power button.
//!
//! | port | access | meaning |
//! |---|---|---|
//! | 0x64 | write 0xfe | reset (i8042), reads 0 |
//! | 0x600 | write | `SLEEP_CONTROL_REG`: `SLP_TYP` in bits 2–4, `SLP_EN` bit 5; type 5 is off |
//! | 0x601 | read | `SLEEP_STATUS_REG`, always 0 |
//! | 0x602 | write 1 | `RESET_REG` |
//! | 0x603 | read | events since the last read, cleared by it; bit 0: power button, bit 1: PCI hot-plug, bit 2: generation id |
//!
//! An event sets its bit and raises GSI 5 (edge). The DSDT's generic event device
//! turns the first into `Notify(PWRB, 0x80)`, which a stock kernel's `button` driver
//! reports as the power key; for the second see [`crate::pci::hotplug`].

use crate::lifecycle::Lifecycle;
use crate::persist::State;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use vmm_sys_util::eventfd::EventFd;

/// The keyboard controller's command port.
pub const I8042_PORT: u16 = 0x64;
/// `SLEEP_CONTROL_REG` (ACPI 6.5 §4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// `SLEEP_STATUS_REG`.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// `RESET_REG` (§4.8.3.6).
pub const RESET_PORT: u16 = 0x602;
/// Event bits, cleared by reading.
pub const EVENT_PORT: u16 = 0x603;
/// What resets when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// The sleep type that `\_S5` names.
pub const S5_SLEEP_TYPE: u8 = 5;
/// [`EVENT_PORT`]: the power button was pressed.
pub const EVENT_BUTTON: u8 = 1;
/// [`EVENT_PORT`]: the generation id is new ([`crate::boot::generation`]).
pub const EVENT_GENERATION: u8 = 4;
/// [`EVENT_PORT`]: the registers of [`crate::pci::hotplug`] have news.
pub const EVENT_PCI: u8 = 2;

const SLEEP_ENABLE: u8 = 1 << 5;
const I8042_RESET: u8 = 0xfe;

/// What the guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// ACPI S5.
    Off,
    /// A reset, by whichever register.
    Reset,
}

/// The registers.
pub struct Power {
    events: AtomicU8,
    line: EventFd,
}

impl Power {
    /// `line` raises [`crate::layout::EVENT_GSI`].
    pub fn new(line: EventFd) -> Self {
        Self {
            events: AtomicU8::new(0),
            line,
        }
    }

    /// Tells the guest of an event: [`EVENT_BUTTON`] or [`EVENT_PCI`].
    pub fn raise(&self, event: u8) -> io::Result<()> {
        self.events.fetch_or(event, Ordering::SeqCst);
        self.line.write(1)
    }

    /// A guest's read.
    pub fn read(&self, port: u16) -> u8 {
        if port == EVENT_PORT {
            self.events.swap(0, Ordering::SeqCst)
        } else {
            0
        }
    }

    /// A guest's write; sleep states other than S5 do not exist.
    pub fn write(&self, port: u16, value: u8) -> Option<PowerRequest> {
        match port {
            SLEEP_CONTROL_PORT
                if value & SLEEP_ENABLE != 0 && value >> 2 & 0x7 == S5_SLEEP_TYPE =>
            {
                Some(PowerRequest::Off)
            }
            RESET_PORT if value == RESET_VALUE => Some(PowerRequest::Reset),
            I8042_PORT if value == I8042_RESET => Some(PowerRequest::Reset),
            _ => None,
        }
    }
}

/// Events that the guest has not read.
const STATE_VERSION: u16 = 1;

impl Lifecycle for Power {
    fn save(&self) -> Result<State, String> {
        State::encode(STATE_VERSION, &self.events.load(Ordering::SeqCst))
    }

    fn load(&self, state: &State) -> Result<(), String> {
        let events: u8 = state.decode(STATE_VERSION)?;
        self.events.store(events, Ordering::SeqCst);
        if events != 0 {
            self.line.write(1).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_do_what_the_tables_say_and_no_more() {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let power = Power::new(line.try_clone().unwrap());
        assert_eq!(
            power.write(SLEEP_CONTROL_PORT, 0x34),
            Some(PowerRequest::Off)
        );
        assert_eq!(power.write(SLEEP_CONTROL_PORT, 5 << 2), None);
        assert_eq!(power.write(SLEEP_CONTROL_PORT, 0x20 | 3 << 2), None);
        assert_eq!(power.write(RESET_PORT, 1), Some(PowerRequest::Reset));
        assert_eq!(power.write(I8042_PORT, 0xfe), Some(PowerRequest::Reset));
        assert_eq!(power.write(I8042_PORT, 0xd1), None);
        assert!(line.read().is_err(), "nothing may interrupt yet");
        power.raise(EVENT_BUTTON).unwrap();
        assert_eq!(line.read().unwrap(), 1);
        power.raise(EVENT_PCI).unwrap();
        assert_eq!(power.read(EVENT_PORT), EVENT_BUTTON | EVENT_PCI);
        assert_eq!(power.read(EVENT_PORT), 0);
    }

    #[test]
    fn an_unread_event_round_trips_and_interrupts_again() {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let fresh = Power::new(line.try_clone().unwrap());
        let pressed = Power::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        pressed.raise(EVENT_BUTTON).unwrap();
        crate::lifecycle::assert_round_trip(&pressed, &fresh);
        assert!(line.read().is_ok());
    }
}
