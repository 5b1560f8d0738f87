//! What CPUID answers: the host's, as KVM can virtualise it, with this machine's
//! topology and hypervisor leaves.
//!
//! Intel SDM vol. 2A CPUID; AMD APM vol. 3 appendix E; KVM's
//! Documentation/virt/kvm/x86/cpuid.rst. Leaf 0x4000_0010 is VMware's timing leaf
//! (<https://lkml.org/lkml/2008/10/1/246>), which stock kernels and the probe read.

use crate::error::{Result, kvm};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// KVM's local APIC timers count at 1 GHz.
const APIC_BUS_KHZ: u32 = 1_000_000;
const HYPERVISOR_BASE: u32 = 0x4000_0000;
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR_PRESENT: u32 = 1 << 31;
const HYPER_THREADING: u32 = 1 << 28;
/// Leaf 0xb: the subleaf describes threads, or cores.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// The answers for CPU `index` of `count` single-threaded cores in one socket.
pub(super) fn build(kvm_fd: &Kvm, index: u8, count: u8, tsc_khz: u32) -> Result<CpuId> {
    let supported = kvm_fd
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm("say which CPUID it supports"))?;
    let deadline_timer = kvm_fd.check_extension(Cap::TscDeadlineTimer);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .copied()
        .filter(|entry| {
            !matches!(entry.function, 0xb | 0x1f) && entry.function != HYPERVISOR_TIMING
        })
        .collect();
    for entry in &mut entries {
        adapt(entry, index, count, deadline_timer);
    }
    entries.extend(topology(0xb, index, count));
    entries.push(kvm_cpuid_entry2 {
        function: HYPERVISOR_TIMING,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    });
    CpuId::from_entries(&entries)
        .map_err(|_| kvm("hold that many CPUID leaves")(kvm_ioctls::Error::new(libc::E2BIG)))
}

fn adapt(entry: &mut kvm_cpuid_entry2, index: u8, count: u8, deadline_timer: bool) {
    let (apic_id, count) = (u32::from(index), u32::from(count));
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0x0000_ffff | apic_id << 24 | count << 16;
            entry.ecx |= HYPERVISOR_PRESENT;
            if deadline_timer {
                entry.ecx |= TSC_DEADLINE;
            }
            if count > 1 {
                entry.edx |= HYPER_THREADING;
            } else {
                entry.edx &= !HYPER_THREADING;
            }
        }
        // Caches: levels 1 and 2 belong to a core, level 3 to the socket.
        0x4 => {
            let shared = if entry.eax >> 5 & 0x7 >= 3 {
                count - 1
            } else {
                0
            };
            entry.eax = entry.eax & 0x3fff | shared << 14 | (count - 1).min(63) << 26;
        }
        // No performance counters.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        HYPERVISOR_BASE => entry.eax = HYPERVISOR_TIMING,
        0x8000_0008 => {
            entry.ecx = entry.ecx & !0xf0ff | id_bits(count) << 12 | (count - 1);
        }
        0x8000_001d => {
            let shared = if entry.eax >> 5 & 0x7 >= 3 {
                count - 1
            } else {
                0
            };
            entry.eax = entry.eax & 0x3fff | shared << 14;
        }
        0x8000_001e => {
            entry.eax = apic_id;
            entry.ebx = apic_id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

fn topology(function: u32, index: u8, count: u8) -> [kvm_cpuid_entry2; 2] {
    let level = |subleaf, shift, processors, kind| kvm_cpuid_entry2 {
        function,
        index: subleaf,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind | subleaf,
        edx: u32::from(index),
        ..Default::default()
    };
    let count = u32::from(count);
    [
        level(0, 0, 1, LEVEL_THREAD),
        level(1, id_bits(count), count, LEVEL_CORE),
    ]
}

/// Bits that an APIC id needs for `count` processors.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn topology_and_timing_match_the_machine() {
        let kvm_fd = Kvm::new().unwrap();
        let cpuid = build(&kvm_fd, 2, 3, 2_500_000).unwrap();
        let one = leaf(&cpuid, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (2, 3));
        assert_ne!(one.ecx & HYPERVISOR_PRESENT, 0);
        let cores = leaf(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.edx), (2, 3, 2));
        let timing = leaf(&cpuid, HYPERVISOR_TIMING, 0);
        assert_eq!((timing.eax, timing.ebx), (2_500_000, APIC_BUS_KHZ));
        assert_eq!(leaf(&cpuid, HYPERVISOR_BASE, 0).eax, HYPERVISOR_TIMING);
    }
}
