//! The floor under every VMM start: the fewest KVM calls that bring an image to
//! its first output. No devices, no threads, no ACPI: what is left is the kernel's.

use anyhow::{Context, Result, bail};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use linux_loader::loader::{Elf, KernelLoader, elf::PvhBootCapability};
use std::fs::File;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const MEMORY_BYTES: usize = 64 << 20;
const SERIAL_PORT: u16 = 0x3f8;
/// `struct hvm_start_info` of the PVH boot ABI, version 1: magic, version, no
/// modules, no command line, no ACPI.
const START_INFO: GuestAddress = GuestAddress(0x6000);
const START_MAGIC: u32 = 0x336e_c578;

/// Starts `probe` and returns at its first write to the serial port.
pub fn run(probe: &Path) -> Result<()> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?;
    let mut image =
        File::open(probe).with_context(|| format!("cannot open {}", probe.display()))?;
    let loaded = Elf::load(&memory, None, &mut image, None)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        bail!("{} has no PVH entry note", probe.display());
    };
    memory.write_obj(START_MAGIC, START_INFO)?;
    memory.write_obj(1u32, GuestAddress(START_INFO.0 + 4))?;

    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    vm.create_irq_chip()?;
    map(&vm, &memory, MEMORY_BYTES as u64)?;
    let mut vcpu = vm.create_vcpu(0)?;
    enter(&kvm, &vcpu, entry.0, START_INFO.0)?;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(SERIAL_PORT, _) => return Ok(()),
            VcpuExit::IoOut(..) => {}
            VcpuExit::IoIn(_, data) => data.fill(0xff),
            VcpuExit::MmioRead(_, data) => data.fill(0),
            VcpuExit::MmioWrite(..) => {}
            exit => bail!("the image ended before its first output: {exit:?}"),
        }
    }
}

/// Gives the VM all of `memory`, which must outlive it.
pub fn map(vm: &VmFd, memory: &GuestMemoryMmap<()>, bytes: u64) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: bytes,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
    };
    // SAFETY: the region is `memory`'s own mapping, which outlives the VM's use of it.
    unsafe { vm.set_user_memory_region(region)? };
    Ok(())
}

/// PVH entry state at `ip`: 32-bit protected mode, flat segments, paging off.
pub fn enter(kvm: &Kvm, vcpu: &VcpuFd, ip: u64, start_info: u64) -> Result<()> {
    let cpuid: CpuId = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    vcpu.set_cpuid2(&cpuid)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cr0 = 0x11;
    sregs.cr4 = 0;
    sregs.efer = 0;
    for (segment, kind, selector) in [
        (&mut sregs.cs, 0xb, 0x8),
        (&mut sregs.ds, 0x3, 0x10),
        (&mut sregs.es, 0x3, 0x10),
        (&mut sregs.ss, 0x3, 0x10),
    ] {
        segment.base = 0;
        segment.limit = 0xffff_ffff;
        segment.selector = selector;
        segment.type_ = kind;
        segment.present = 1;
        segment.dpl = 0;
        segment.db = 1;
        segment.s = 1;
        segment.l = 0;
        segment.g = 1;
    }
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = ip;
    regs.rbx = start_info;
    regs.rflags = 2;
    vcpu.set_regs(&regs)?;
    Ok(())
}
