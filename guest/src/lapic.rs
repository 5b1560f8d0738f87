//! The local APIC by its memory window (xAPIC, Intel SDM vol. 3 ch. 11), which is
//! mapped for ring 3: a one-shot timer and what MSI-X needs to reach this processor.
//! EOI is written by the stub.

use crate::hal::Mmio;
use crate::{clock, ring0};

const BASE: u64 = 0xfee0_0000;
const ID: usize = 0x20;
const SPURIOUS: usize = 0xf0;
const LVT_TIMER: usize = 0x320;
const LVT_LINT0: usize = 0x350;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

const PIC_1_MASK: u16 = 0x21;
const PIC_2_MASK: u16 = 0xa1;

const MASKED: u32 = 1 << 16;
const ENABLED: u32 = 1 << 8;
const SPURIOUS_VECTOR: u32 = 63;
const TIMER_VECTOR: u32 = 32;
const DIVIDE_BY_128: u32 = 0b1010;

/// What [`start_count`] counts: every 128th tick of the bus.
pub const DIVISOR: u32 = 128;

/// Vectors from here to 62 are free for devices.
pub const FIRST_DEVICE_VECTOR: u8 = 33;

const fn window() -> Mmio {
    // SAFETY: the local APIC's page in xAPIC mode, which is always mapped.
    unsafe { Mmio::new(BASE, 0x1000) }
}

/// Enables the APIC with the timer as its only local source. The legacy interrupt
/// controllers, which firmware may have left ticking, are masked and cut off, in this
/// order: a request of theirs that is pending when LINT0 goes would find no vector. The
/// APIC's enable comes before its LVT, which is masked while it is off (SDM vol. 3
/// §11.4.7.2).
pub fn init(legacy_pic: bool) {
    if legacy_pic {
        ring0::out8(PIC_1_MASK, 0xff);
        ring0::out8(PIC_2_MASK, 0xff);
    }
    let apic = window();
    apic.write32(SPURIOUS, ENABLED | SPURIOUS_VECTOR);
    apic.write32(LVT_LINT0, MASKED);
    apic.write32(DIVIDE, DIVIDE_BY_128);
    apic.write32(LVT_TIMER, TIMER_VECTOR);
}

/// This processor's id, the destination of its MSI-X messages.
pub fn id() -> u8 {
    window().read32(ID).to_be_bytes()[0]
}

/// Starts counting down from `count`; 0 stops.
pub fn start_count(count: u32) {
    window().write32(DIVIDE, DIVIDE_BY_128);
    window().write32(INITIAL_COUNT, count);
}

/// What is left of the count.
pub fn current_count() -> u32 {
    window().read32(CURRENT_COUNT)
}

/// Arms the timer to interrupt in `delay_us`, or as far ahead as it can count.
pub fn arm(delay_us: u64) {
    let ticks = u128::from(delay_us) * u128::from(clock::bus_khz()) / 1000 / u128::from(DIVISOR);
    let count = u32::try_from(ticks).unwrap_or(u32::MAX).max(1);
    window().write32(INITIAL_COUNT, count);
}

/// No interrupt from the timer.
pub fn disarm() {
    window().write32(INITIAL_COUNT, 0);
}
