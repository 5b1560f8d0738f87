//! Time since boot, by the time-stamp counter.
//!
//! Its frequency comes from CPUID 0x40000010 (EAX: TSC in kHz, EBX: local APIC bus in
//! kHz), which ocs-vmm and other hypervisors supply and stub.S asks for, else from the
//! PIT (10 ms), else from CPUID 0x16 (base frequency).

use crate::global::Global;
use crate::{lapic, ring0};
use core::arch::x86_64::{__cpuid, _rdtsc};
use core::ptr::addr_of;

#[derive(Clone, Copy)]
struct Rates {
    boot_tsc: u64,
    tsc_khz: u32,
    bus_khz: u32,
}

/// KVM's local APIC bus, and what is assumed of anything that nothing tells of.
const USUAL_KHZ: u32 = 1_000_000;

static RATES: Global<Rates> = Global::new(Rates {
    boot_tsc: 0,
    tsc_khz: USUAL_KHZ,
    bus_khz: USUAL_KHZ,
});

unsafe extern "C" {
    static boot_tsc: u64;
    static hypervisor_khz: [u32; 2];
}

/// Finds the frequencies. Before, time runs at 1 GHz.
pub fn init() {
    // SAFETY: stub.S wrote this aligned word before ring 3 began, and nobody writes it again.
    let start = unsafe { addr_of!(boot_tsc).read_volatile() };
    let (tsc_khz, bus_khz) = by_hypervisor()
        .or_else(by_pit)
        .or_else(by_base_frequency)
        .unwrap_or((USUAL_KHZ, USUAL_KHZ));
    RATES.with(|rates| {
        *rates = Rates {
            boot_tsc: start,
            tsc_khz,
            bus_khz,
        }
    });
}

fn by_hypervisor() -> Option<(u32, u32)> {
    // SAFETY: as for `boot_tsc` in `init`.
    let [tsc_khz, bus_khz] = unsafe { addr_of!(hypervisor_khz).read_volatile() };
    (tsc_khz != 0 && bus_khz != 0).then_some((tsc_khz, bus_khz))
}

/// Channel 2 in mode 0 counts 11,932 periods of 1.193182 MHz: 10.0001 ms. `None` where
/// no PIT answers.
fn by_pit() -> Option<(u32, u32)> {
    const MOST_POLLS: u32 = 100_000;
    if ring0::in8(0x61) == 0xff {
        return None;
    }
    ring0::out8(0x61, (ring0::in8(0x61) & !2) | 1);
    ring0::out8(0x43, 0xb0);
    ring0::out8(0x42, 0x9c);
    ring0::out8(0x42, 0x2e);
    lapic::start_count(u32::MAX);
    // SAFETY: every x86-64 processor has the instruction.
    let start = unsafe { _rdtsc() };
    for _ in 0..MOST_POLLS {
        if ring0::in8(0x61) & 0x20 != 0 {
            break;
        }
    }
    // SAFETY: as above.
    let ticks = unsafe { _rdtsc() }.wrapping_sub(start);
    let counted = u32::MAX - lapic::current_count();
    lapic::start_count(0);
    let per_ms = |n: u64| u32::try_from(n / 10).unwrap_or(u32::MAX).max(1);
    Some((
        per_ms(ticks),
        per_ms(u64::from(counted) * u64::from(lapic::DIVISOR)),
    ))
}

fn by_base_frequency() -> Option<(u32, u32)> {
    if __cpuid(0).eax < 0x16 {
        return None;
    }
    let base_mhz = __cpuid(0x16).eax & 0xffff;
    (base_mhz != 0).then_some((base_mhz * 1000, USUAL_KHZ))
}

/// Microseconds since the first instruction.
pub fn now_us() -> u64 {
    let rates = RATES.with(|rates| *rates);
    // SAFETY: every x86-64 processor has the instruction.
    let ticks = unsafe { _rdtsc() }.wrapping_sub(rates.boot_tsc);
    let us = u128::from(ticks) * 1000 / u128::from(rates.tsc_khz);
    u64::try_from(us).unwrap_or(u64::MAX)
}

/// Frequency of the time-stamp counter.
pub fn tsc_khz() -> u32 {
    RATES.with(|rates| rates.tsc_khz)
}

/// Frequency of the local APIC's timer before its divider.
pub fn bus_khz() -> u32 {
    RATES.with(|rates| rates.bus_khz)
}

/// Bits that differ from boot to boot, for port numbers and transaction ids only.
pub fn entropy() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { _rdtsc() }.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
