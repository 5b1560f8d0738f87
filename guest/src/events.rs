//! ocs-vmm's events (vmm/README.md): an edge on GSI 5, and bits at port 0x603 that reading
//! clears; PCI slots that have news at the ports behind.

use crate::hal::Mmio;
use crate::{executor, lapic, ring0};
use core::ptr::addr_of_mut;
use ocs_probe_logic::acpi::Acpi;

/// The power button was pressed.
pub const BUTTON: u8 = 1;
/// [`slots`] have news.
pub const PCI: u8 = 2;

/// A register with one bit a PCI slot, in four bytes that reading clears.
#[derive(Clone, Copy)]
pub enum Slots {
    /// To look at again.
    Arrived = 0x608,
    /// To let go.
    Leaving = 0x60c,
}

const VMM_OEM_ID: [u8; 6] = *b"OCSVMM";
const GSI: u32 = 5;
const PORT: u16 = 0x603;
const EJECT_PORT: u16 = 0x610;
/// The vector whose handler in stub.S sets [`button_event`].
const VECTOR: u32 = 62;

unsafe extern "C" {
    static mut button_event: u8;
}

/// Routes the interrupt; false on machines without ocs-vmm's events.
pub fn route(acpi: &Acpi) -> bool {
    let Some((io_apic, first_gsi)) = acpi.io_apic.filter(|_| acpi.oem_id == VMM_OEM_ID) else {
        return false;
    };
    redirect(io_apic, GSI.saturating_sub(first_gsi));
    true
}

/// Waits for events. Those from before the interrupt was routed count too.
pub async fn next() -> u8 {
    loop {
        let events = ring0::in8(PORT);
        if events != 0 {
            return events;
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

/// The slots in a register.
pub fn slots(register: Slots) -> impl Iterator<Item = u8> {
    let bytes = core::array::from_fn(|i| ring0::in8(register as u16 + i as u16));
    let bits = u32::from_le_bytes(bytes);
    (0..32).filter(move |slot| bits & 1 << slot != 0)
}

/// Lets a slot go.
pub fn eject(slot: u8) {
    ring0::out8(EJECT_PORT + u16::from(slot / 8), 1 << (slot % 8));
}

/// One redirection entry (82093AA I/O APIC §3.2.4): edge, active high, fixed.
fn redirect(io_apic: u64, input: u32) {
    const SELECT: usize = 0x00;
    const WINDOW: usize = 0x10;
    // SAFETY: the MADT names an I/O APIC there; its address has 32 bits.
    let window = unsafe { Mmio::new(io_apic, 0x20) };
    let register = 0x10 + 2 * input;
    window.write32(SELECT, register + 1);
    window.write32(WINDOW, u32::from(lapic::id()) << 24);
    window.write32(SELECT, register);
    window.write32(WINDOW, VECTOR);
}
