//! Power off, reset and the power button, by what the FADT names.

use crate::hal::Mmio;
use crate::{console, executor, lapic, ring0};
use core::ptr::addr_of_mut;
use ocs_probe_logic::acpi::{Acpi, Register};

/// Sleep type of S5 where the DSDT names none: what hardware-reduced machines use.
const USUAL_S5: u8 = 5;

/// ocs-vmm's power button (vmm/README.md): an edge on GSI 5, and event bits at port
/// 0x603 that reading clears.
const VMM_OEM_ID: [u8; 6] = *b"OCSVMM";
const BUTTON_GSI: u32 = 5;
const BUTTON_PORT: u16 = 0x603;
const BUTTON_PRESSED: u8 = 1;
/// The vector whose handler in stub.S sets [`button_event`].
const BUTTON_VECTOR: u32 = 62;

unsafe extern "C" {
    static mut button_event: u8;
}

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

/// Completes when the power button is pressed; never on machines without ocs-vmm's.
pub async fn button(acpi: &Acpi) {
    let Some((io_apic, first_gsi)) = acpi.io_apic.filter(|_| acpi.oem_id == VMM_OEM_ID) else {
        return core::future::pending().await;
    };
    route(io_apic, BUTTON_GSI.saturating_sub(first_gsi));
    // Presses from before the interrupt was routed count too.
    loop {
        if ring0::in8(BUTTON_PORT) & BUTTON_PRESSED != 0 {
            return;
        }
        executor::wait(|| {
            let event = addr_of_mut!(button_event);
            // SAFETY: one aligned byte, which only the interrupt handler writes besides,
            // and that runs only while ring 3 waits in `idle`.
            unsafe {
                let seen = event.read_volatile() != 0;
                event.write_volatile(0);
                seen.then_some(())
            }
        })
        .await;
    }
}

/// One redirection entry (82093AA I/O APIC §3.2.4): edge, active high, fixed.
fn route(io_apic: u64, input: u32) {
    const SELECT: usize = 0x00;
    const WINDOW: usize = 0x10;
    // SAFETY: the MADT names an I/O APIC there; its address has 32 bits.
    let window = unsafe { Mmio::new(io_apic, 0x20) };
    let register = 0x10 + 2 * input;
    window.write32(SELECT, register + 1);
    window.write32(WINDOW, u32::from(lapic::id()) << 24);
    window.write32(SELECT, register);
    window.write32(WINDOW, BUTTON_VECTOR);
}
