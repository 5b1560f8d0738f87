//! What CPUID answers: the host's, as KVM can virtualise it, with this machine's
//! topology and hypervisor leaves.
//!
//! Intel SDM vol. 2A CPUID; AMD APM vol. 3 appendix E; KVM's
//! Documentation/virt/kvm/x86/cpuid.rst. Leaf 0x4000_0010 is VMware's timing leaf
//! (<https://lkml.org/lkml/2008/10/1/246>), which stock kernels and the probe read.

mod template;

use crate::error::{Error, Result, kvm};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use ocs_vmm_spec::{Cpu, Spec};

/// KVM's local APIC timers count at 1 GHz.
const APIC_BUS_KHZ: u32 = 1_000_000;
const HYPERVISOR_BASE: u32 = 0x4000_0000;
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
const TSC_DEADLINE: u32 = 1 << 24;
/// PerfCtrExtCore, PerfCtrExtNB, PerfCtrExtLLC.
const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
/// PDCM: performance capabilities MSR.
const PERFORMANCE_MSR: u32 = 1 << 15;
const HYPERVISOR_PRESENT: u32 = 1 << 31;
const HYPER_THREADING: u32 = 1 << 28;
/// Leaf 0xb: the subleaf describes threads, or cores.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// Can this host show the CPU of a snapshot on `vcpu`, which has never run?
pub(super) fn check(
    kvm_fd: &Kvm,
    vcpu: &VcpuFd,
    wanted: &[kvm_cpuid_entry2],
) -> std::result::Result<(), String> {
    let host = host(kvm_fd, vcpu).map_err(|e| e.to_string())?;
    template::missing(wanted, &host)
        .map_err(|lacks| format!("needs {}, which this host lacks", lacks.0))
}

/// What `vcpu` shows when it is told to show all: a KVM without hardware virtualisation (PVM)
/// shows more than it says that it supports, for it cannot hide it.
fn host(kvm_fd: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>> {
    let supported = kvm_fd
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm("say which CPUID it supports"))?;
    vcpu.set_cpuid2(&supported).map_err(kvm("set CPUID"))?;
    let shown = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm("say which CPUID it shows"))?;
    Ok(shown.as_slice().to_vec())
}

/// The answers for CPU `index` of the single-threaded cores, in one socket, of `spec`.
pub(super) fn build(kvm_fd: &Kvm, vcpu: &VcpuFd, index: u8, spec: &Spec) -> Result<CpuId> {
    let count = spec.vcpus;
    let tsc_khz = vcpu.get_tsc_khz().unwrap_or(0);
    let supported = match spec.cpu {
        Cpu::Host => kvm_fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("say which CPUID it supports"))?
            .as_slice()
            .to_vec(),
        _ => host(kvm_fd, vcpu)?,
    };
    let deadline_timer = kvm_fd.check_extension(Cap::TscDeadlineTimer);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .into_iter()
        .filter(|entry| {
            !matches!(entry.function, 0xb | 0x1f) && entry.function != HYPERVISOR_TIMING
        })
        .collect();
    template::apply(spec.cpu, &mut entries, spec.memory_mib << 20)
        .map_err(|lacks| Error::Cpu(lacks.0))?;
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
            entry.ecx = entry.ecx & !PERFORMANCE_MSR | HYPERVISOR_PRESENT;
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
        // No performance counters, Intel's or AMD's.
        0xa | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => entry.ecx &= !AMD_COUNTERS,
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

    fn spec(cpu: Cpu) -> Spec {
        let json = serde_json::json!({
            "version": 1, "id": "t", "vcpus": 3, "memory_mib": 64, "cpu": cpu,
            "boot": {"kernel": {"fd": 3}}, "serial": {"ring": {"fd": 4}, "capacity_bytes": 4096},
        });
        Spec::parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_template_is_shown_with_this_machines_topology_and_no_counters() {
        let kvm_fd = Kvm::new().unwrap();
        let vm = kvm_fd.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let cpuid = match build(&kvm_fd, &vcpu, 2, &spec(Cpu::X8664V3)) {
            Ok(cpuid) => cpuid,
            // Then it is the host that lacks something, and says what.
            Err(error) => {
                assert!(
                    error.to_string().starts_with("cpu: this host lacks "),
                    "{error}"
                );
                return;
            }
        };
        let one = leaf(&cpuid, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (2, 3));
        assert_ne!(one.ecx & (1 << 28), 0, "AVX");
        assert_eq!(leaf(&cpuid, 7, 0).ebx & (1 << 16), 0, "AVX512F");
        assert_eq!(&leaf(&cpuid, 0x8000_0002, 0).eax.to_le_bytes(), b"OCS ");
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & AMD_COUNTERS, 0);
        check(&kvm_fd, &vcpu, cpuid.as_slice()).unwrap();
        vcpu.set_cpuid2(&cpuid).unwrap();
    }

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
        let vcpu = kvm_fd.create_vm().unwrap().create_vcpu(0).unwrap();
        let cpuid = build(&kvm_fd, &vcpu, 2, &spec(Cpu::Host)).unwrap();
        let one = leaf(&cpuid, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (2, 3));
        assert_ne!(one.ecx & HYPERVISOR_PRESENT, 0);
        let cores = leaf(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.edx), (2, 3, 2));
        let timing = leaf(&cpuid, HYPERVISOR_TIMING, 0);
        assert_eq!(
            (timing.eax, timing.ebx),
            (vcpu.get_tsc_khz().unwrap(), APIC_BUS_KHZ)
        );
        assert_eq!(leaf(&cpuid, HYPERVISOR_BASE, 0).eax, HYPERVISOR_TIMING);
    }
}
