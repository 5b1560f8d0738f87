//! One CPU for a whole fleet: what of the host's CPUID a template keeps, needs and replaces.
//!
//! A template is a table. A bit that it *needs* is there on every host that may run it, or the
//! machine is refused with the feature's name. A bit that it neither needs nor *keeps* is
//! hidden. Identity, caches and address width are replaced, so that they are the same on all
//! hosts of one vendor. What is kept as the host has it is what a guest must know to be safe:
//! which side channels the CPU and its microcode close.
//!
//! The levels are those of the x86-64 psABI (System V ABI, AMD64 supplement §3.1.1), with what
//! every server CPU of that level has beside them: AES and PCLMULQDQ from v2 on, RDRAND, RDSEED,
//! ADX, SMEP, SMAP and FSGSBASE at v3 (Intel from Broadwell, AMD from Zen).

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use ocs_vmm_spec::Cpu;

/// A register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// What is to become of one register of one leaf and subleaf.
struct Row {
    leaf: (u32, u32),
    register: Register,
    /// Must be set on the host, and is shown.
    needs: u32,
    /// Shown as the host has it.
    keeps: u32,
}

const fn row(leaf: u32, subleaf: u32, register: Register, needs: u32, keeps: u32) -> Row {
    Row {
        leaf: (leaf, subleaf),
        register,
        needs,
        keeps,
    }
}

/// FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, PGE, CMOV, PAT, CLFSH, MMX, FXSR, SSE, SSE2.
const BASELINE_EDX: u32 = 0x0789_abfd & !(1 << 2) | 1 << 2;
/// SSE3, PCLMULQDQ, SSSE3, CX16, SSE4.1, SSE4.2, POPCNT, AES.
const V2_ECX: u32 = 1 | 1 << 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 25;
/// FMA, MOVBE, XSAVE, AVX, F16C, RDRAND.
const V3_ECX: u32 = V2_ECX | 1 << 12 | 1 << 22 | 1 << 26 | 1 << 28 | 1 << 29 | 1 << 30;
/// x2APIC, TSC deadline, OSXSAVE, hypervisor: KVM's own, on every host.
const KVM_ECX: u32 = 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31;
/// MTRR, MCE, MCA, HTT (set by the topology): harmless where missing.
const KVM_EDX: u32 = 1 << 7 | 1 << 12 | 1 << 14 | 1 << 28;
/// FSGSBASE, BMI1, AVX2, SMEP, BMI2, RDSEED, ADX, SMAP.
const V3_7_EBX: u32 = 1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 18 | 1 << 19 | 1 << 20;
/// MD_CLEAR, SPEC_CTRL, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
const SAFETY_7_EDX: u32 = 1 << 10 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;
/// SYSCALL, NX, LM.
const LONG_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 29;
/// IBPB, IBRS, STIBP, IBRS always on, STIBP always on, SSBD, VIRT_SSBD, SSB_NO, PSFD.
const SAFETY_AMD_EBX: u32 =
    1 << 12 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 24 | 1 << 25 | 1 << 26 | 1 << 28;
/// kvm-clock (both), no I/O delay, steal time, PV EOI, unhalt, TLB flush, IPIs, poll control,
/// sched yield, stable clock.
const PARAVIRTUAL: u32 =
    1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 24;

const COMMON: &[Row] = &[
    row(0x1, 0, Edx, BASELINE_EDX, KVM_EDX),
    row(0x6, 0, Eax, 0, 1 << 2),
    row(0x7, 0, Edx, 0, SAFETY_7_EDX),
    row(0x4000_0001, 0, Eax, 0, PARAVIRTUAL),
    row(0x4000_0001, 0, Edx, 0, 0),
    row(0x8000_0001, 0, Edx, LONG_EDX, BASELINE_EDX),
    // Invariant TSC.
    row(0x8000_0007, 0, Edx, 0, 1 << 8),
    row(0x8000_0008, 0, Ebx, 0, SAFETY_AMD_EBX),
    // LFENCE serialises.
    row(0x8000_0021, 0, Eax, 0, 1 << 2),
];
const V2: &[Row] = &[
    row(0x1, 0, Ecx, V2_ECX, KVM_ECX & !(1 << 27)),
    // LAHF.
    row(0x8000_0001, 0, Ecx, 1, 0),
];
const V3: &[Row] = &[
    row(0x1, 0, Ecx, V3_ECX, KVM_ECX),
    row(0x7, 0, Ebx, V3_7_EBX, 0),
    // x87, SSE, AVX.
    row(0xd, 0, Eax, 7, 0),
    // XSAVEOPT.
    row(0xd, 1, Eax, 1, 0),
    row(0xd, 2, Eax, 0, u32::MAX),
    row(0xd, 2, Ebx, 0, u32::MAX),
    // LAHF, LZCNT.
    row(0x8000_0001, 0, Ecx, 1 | 1 << 5, 0),
];

/// Leaves that say nothing of features, or that the machine makes itself.
const UNTOUCHED: [u32; 11] = [
    0x0,
    0x4,
    0xb,
    0x4000_0000,
    0x4000_0010,
    0x8000_0000,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_001d,
    0x8000_001e,
];

/// A feature that the host lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lacks(pub String);

/// Makes `entries`, what the host supports, into what `cpu` says.
pub(super) fn apply(
    cpu: Cpu,
    entries: &mut Vec<kvm_cpuid_entry2>,
    memory_bytes: u64,
) -> Result<(), Lacks> {
    let (level, name): (&[Row], &[u8]) = match cpu {
        Cpu::Host => return Ok(()),
        Cpu::X8664V2 => (V2, b"OCS x86-64-v2"),
        Cpu::X8664V3 => (V3, b"OCS x86-64-v3"),
    };
    let rows = || COMMON.iter().chain(level);
    for row in rows().filter(|row| row.needs != 0) {
        let host = entries
            .iter()
            .find(|entry| (entry.function, entry.index) == row.leaf)
            .map_or(0, |entry| get(entry, row.register));
        let missing = row.needs & !host;
        if missing != 0 {
            return Err(Lacks(describe(row.leaf, row.register, missing)));
        }
    }
    let amd = entries
        .iter()
        .any(|entry| entry.function == 0 && entry.ebx == u32::from_le_bytes(*b"Auth"));
    // Caches are described below, in the vendor's way.
    entries.retain(|entry| !matches!(entry.function, 0x2 | 0x4 | 0x8000_001d));
    for entry in entries.iter_mut() {
        if UNTOUCHED.contains(&entry.function) {
            continue;
        }
        let identity = entry.ebx;
        for register in [Eax, Ebx, Ecx, Edx] {
            let shown = rows()
                .filter(|row| row.leaf == (entry.function, entry.index))
                .filter(|row| row.register == register)
                .fold(0, |bits, row| bits | row.needs | row.keeps);
            *get_mut(entry, register) &= shown;
        }
        match (entry.function, entry.index) {
            (0x1, _) => {
                // Broadwell or Zen; CLFLUSH of 64 bytes.
                entry.eax = if amd { 0x0080_0f12 } else { 0x0003_06d4 };
                entry.ebx = identity & 0xffff_0000 | 8 << 8;
            }
            (0xd, 0) if cpu == Cpu::X8664V3 => (entry.ebx, entry.ecx) = (832, 832),
            (0x8000_0001, _) => entry.eax = if amd { 0x0080_0f12 } else { 0 },
            (0x8000_0008, _) => entry.eax = 48 << 8 | physical_bits(memory_bytes),
            _ => {}
        }
    }
    caches(entries, amd);
    brand(entries, name);
    Ok(())
}

/// Every host has 39 bits; a machine that needs more is not for every host.
fn physical_bits(memory_bytes: u64) -> u32 {
    if memory_bytes < 1 << 38 { 39 } else { 46 }
}

/// 32 KiB of each first level, 256 KiB of second, 8 MiB of third, in 64-byte lines; the bits that
/// say who shares them are the topology's.
fn caches(entries: &mut Vec<kvm_cpuid_entry2>, amd: bool) {
    const DATA: u32 = 1;
    const CODE: u32 = 2;
    const UNIFIED: u32 = 3;
    let levels = [
        (DATA, 1, 8, 64),
        (CODE, 1, 8, 64),
        (UNIFIED, 2, 8, 512),
        (UNIFIED, 3, 16, 8192),
    ];
    for (index, (kind, level, ways, sets)) in (0u32..).zip(levels) {
        entries.push(kvm_cpuid_entry2 {
            function: if amd { 0x8000_001d } else { 0x4 },
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: kind | level << 5 | 1 << 8,
            ebx: 63 | (ways - 1) << 22,
            ecx: sets - 1,
            ..Default::default()
        });
    }
}

/// Puts `name` into the three leaves of the brand string.
fn brand(entries: &mut Vec<kvm_cpuid_entry2>, name: &[u8]) {
    let mut text = [0u8; 48];
    for (slot, byte) in text.iter_mut().zip(name) {
        *slot = *byte;
    }
    entries.retain(|entry| !(0x8000_0002..=0x8000_0004).contains(&entry.function));
    let words: Vec<u32> = text
        .chunks_exact(4)
        .map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]))
        .collect();
    for (function, leaf) in (0x8000_0002..).zip(words.chunks_exact(4)) {
        entries.push(kvm_cpuid_entry2 {
            function,
            eax: leaf[0],
            ebx: leaf[1],
            ecx: leaf[2],
            edx: leaf[3],
            ..Default::default()
        });
    }
}

/// Features that a snapshot's CPU has and this host does not, by name.
pub(super) fn missing(wanted: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Result<(), Lacks> {
    const FEATURES: [(u32, u32, Register, u32); 9] = [
        // But OSXSAVE, which follows CR4, and what KVM adds.
        (0x1, 0, Ecx, !KVM_ECX),
        (0x1, 0, Edx, !KVM_EDX),
        (0x7, 0, Ebx, u32::MAX),
        // But OSPKE, which follows CR4.
        (0x7, 0, Ecx, !(1 << 4)),
        (0x7, 0, Edx, u32::MAX),
        (0xd, 0, Eax, u32::MAX),
        (0xd, 1, Eax, u32::MAX),
        (0x8000_0001, 0, Ecx, u32::MAX),
        (0x8000_0001, 0, Edx, u32::MAX),
    ];
    for (function, index, register, mask) in FEATURES {
        let find = |entries: &[kvm_cpuid_entry2]| {
            entries
                .iter()
                .find(|entry| (entry.function, entry.index) == (function, index))
                .map_or(0, |entry| get(entry, register))
        };
        let bits = find(wanted) & !find(host) & mask;
        if bits != 0 {
            return Err(Lacks(describe((function, index), register, bits)));
        }
    }
    Ok(())
}

/// Bit 0 upwards; the empty have no name that anyone knows.
const NAMES: &[((u32, u32), Register, u32, &str)] = &[
    ((0x1, 0), Ecx, 12, "FMA"),
    ((0x1, 0), Ecx, 13, "CMPXCHG16B"),
    ((0x1, 0), Ecx, 20, "SSE4.2"),
    ((0x1, 0), Ecx, 22, "MOVBE"),
    ((0x1, 0), Ecx, 23, "POPCNT"),
    ((0x1, 0), Ecx, 25, "AES"),
    ((0x1, 0), Ecx, 26, "XSAVE"),
    ((0x1, 0), Ecx, 28, "AVX"),
    ((0x1, 0), Ecx, 29, "F16C"),
    ((0x1, 0), Ecx, 30, "RDRAND"),
    ((0x7, 0), Ebx, 0, "FSGSBASE"),
    ((0x7, 0), Ebx, 3, "BMI1"),
    ((0x7, 0), Ebx, 5, "AVX2"),
    ((0x7, 0), Ebx, 7, "SMEP"),
    ((0x7, 0), Ebx, 8, "BMI2"),
    ((0x7, 0), Ebx, 16, "AVX512F"),
    ((0x7, 0), Ebx, 18, "RDSEED"),
    ((0x7, 0), Ebx, 19, "ADX"),
    ((0x7, 0), Ebx, 20, "SMAP"),
    ((0xd, 1), Eax, 0, "XSAVEOPT"),
    ((0x8000_0001, 0), Ecx, 5, "LZCNT"),
];

/// The lowest of `bits`, by name where it has one.
fn describe(leaf: (u32, u32), register: Register, bits: u32) -> String {
    let bit = bits.trailing_zeros();
    let place = format!("CPUID leaf {:#x}.{} {register:?} bit {bit}", leaf.0, leaf.1);
    match NAMES
        .iter()
        .find(|name| (name.0, name.1, name.2) == (leaf, register, bit))
    {
        Some((_, _, _, name)) => format!("{name} ({place})"),
        None => place,
    }
}

fn get(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Eax => entry.eax,
        Ebx => entry.ebx,
        Ecx => entry.ecx,
        Edx => entry.edx,
    }
}

fn get_mut(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Eax => &mut entry.eax,
        Ebx => &mut entry.ebx,
        Ecx => &mut entry.ecx,
        Edx => &mut entry.edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    /// A host that has everything, with a tail of its own in each register.
    fn rich(own: u32) -> Vec<kvm_cpuid_entry2> {
        let all = u32::MAX;
        vec![
            leaf(0, 0, [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            leaf(1, 0, [0x000c_06f2 ^ own, 0x0102_0800, all, all]),
            leaf(4, 0, [0x1c00_4121, own, own, own]),
            leaf(7, 0, [2, all, all, all]),
            leaf(7, 1, [own; 4]),
            leaf(0xd, 0, [0x2e7, 0xa88 + own, 0xa88, 0]),
            leaf(0xd, 1, [0x1f, own, 0, 0]),
            leaf(0x14, 0, [own; 4]),
            leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, all, all]),
            leaf(0x8000_0002, 0, [own; 4]),
            leaf(0x8000_0008, 0, [0x3934 + own, all, own, own]),
        ]
    }

    #[test]
    fn two_hosts_show_one_cpu() {
        for cpu in [Cpu::X8664V2, Cpu::X8664V3] {
            let [mut one, mut other] = [rich(0), rich(0x11)];
            apply(cpu, &mut one, 1 << 30).unwrap();
            apply(cpu, &mut other, 1 << 30).unwrap();
            assert_eq!(one, other, "{cpu:?}");
            let find = |function, index| {
                *one.iter()
                    .find(|e| (e.function, e.index) == (function, index))
                    .unwrap()
            };
            let avx = find(1, 0).ecx >> 28 & 1;
            assert_eq!(avx, u32::from(cpu == Cpu::X8664V3));
            assert_eq!(find(7, 0).ebx >> 16 & 1, 0, "AVX512 is of no level here");
            assert_eq!(find(0xd, 0).eax, if avx == 1 { 7 } else { 0 });
            assert_eq!(&find(0x8000_0002, 0).eax.to_le_bytes(), b"OCS ");
            assert_eq!(find(4, 3).eax >> 5 & 7, 3);
        }
    }

    #[test]
    fn a_host_without_a_feature_is_refused_by_its_name() {
        let mut host = rich(0);
        host[3].ebx &= !(1 << 5);
        let lacks = apply(Cpu::X8664V3, &mut host.clone(), 1 << 30).unwrap_err();
        assert_eq!(lacks.0, "AVX2 (CPUID leaf 0x7.0 Ebx bit 5)");
        apply(Cpu::X8664V2, &mut host.clone(), 1 << 30).unwrap();
        assert_eq!(missing(&rich(0), &host).unwrap_err(), lacks);
        missing(&host, &rich(0)).unwrap();
    }
}
