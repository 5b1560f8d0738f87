//! What lies at the 8086's reset vector: a machine without firmware has to put it there itself.
//!
//! Linux restarts a machine of hardware-reduced ACPI through EFI, and where there is none through
//! the BIOS: it goes back to real mode and jumps to `f000:fff0`, past the reset register and the
//! keyboard controller (`arch/x86/kernel/reboot.c`). Whatever it finds there, it runs.

use super::write;
use crate::error::Result;
use crate::layout;
use crate::legacy::power;
use crate::memory::GuestRam;

/// Writes the reset value to the reset port, and waits.
pub fn write_vector(ram: &GuestRam) -> Result<()> {
    let [low, high] = power::RESET_PORT.to_le_bytes();
    // mov dx, port; mov al, value; out dx, al; again: cli; hlt; jmp again
    let code = [
        0xba,
        low,
        high,
        0xb0,
        power::RESET_VALUE,
        0xee,
        0xfa,
        0xf4,
        0xeb,
        0xfc,
    ];
    const { assert!(layout::RESET_VECTOR + 16 == layout::HIGH_RAM) };
    write(ram, &code, layout::RESET_VECTOR)
}
