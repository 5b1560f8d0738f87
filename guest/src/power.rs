//! Power off and reset, by what the FADT names.

use crate::hal::Mmio;
use crate::{console, ring0};
use ocs_probe_logic::acpi::{Acpi, Register};

/// Sleep type of S5 where the DSDT names none: what hardware-reduced machines use.
const USUAL_S5: u8 = 5;

/// Powers off (ACPI 6.5 §4.8.3.7 and §16.1.7) after the last console line is out.
pub fn off(acpi: &Acpi) -> ! {
    const SLEEP_ENABLE: u8 = 1 << 5;
    const PM1_SLEEP_ENABLE: u16 = 1 << 13;
    console::flush();
    if let Some(register) = acpi.sleep_control {
        let kind = acpi.s5.unwrap_or(USUAL_S5) & 7;
        write(register, SLEEP_ENABLE | kind << 2);
    } else if let Some(port) = acpi.pm1a_control {
        let kind = u16::from(acpi.s5.unwrap_or(0) & 7);
        ring0::out16(port, PM1_SLEEP_ENABLE | kind << 10);
    }
    ring0::halt()
}

/// Resets (ACPI 6.5 §4.8.3.6) after the last console line is out.
pub fn reset(acpi: &Acpi) -> ! {
    console::flush();
    if let Some((register, value)) = acpi.reset {
        write(register, value);
    }
    ring0::halt()
}

fn write(register: Register, value: u8) {
    match register {
        Register::Port(port) => ring0::out8(port, value),
        Register::Memory(address) => {
            if address < 1 << 32 {
                // SAFETY: the FADT names a one-byte register there, below 4 GiB.
                unsafe { Mmio::new(address, 1) }.write8(0, value);
            }
        }
    }
}
