//! The registers of the boot CPU at the entry point.

use crate::boot::Entry;
use crate::error::{Result, kvm};
use crate::layout;
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use std::os::fd::AsRawFd;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS reads as one.
const RFLAGS: u64 = 2;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Enabled, write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Sets the MSRs that firmware would have set. KVM's reset values serve for the rest.
pub(super) fn set_msrs(vcpu: &VcpuFd) -> Result<()> {
    for (index, data) in [
        (MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ] {
        let msrs = Msrs::from_entries(&[kvm_msr_entry {
            index,
            data,
            ..Default::default()
        }])
        .map_err(|_| kvm("hold an MSR")(kvm_ioctls::Error::new(libc::E2BIG)))?;
        vcpu.set_msrs(&msrs).map_err(kvm("set MSRs"))?;
    }
    Ok(())
}

/// `_IOW(KVMIO, 0x9c, __u64)`: IA32_MCG_CAP.
const KVM_X86_SETUP_MCE: libc::c_ulong = 0x4008_ae9c;
/// One bank, the least that there may be. KVM's 32 cost a kernel's start some 190 exits, and
/// nobody here reports a machine check to a guest.
static MCE_BANKS: u64 = 1;

/// Shows the guest few banks of machine checks, before it or a snapshot sets them.
pub(super) fn shorten_machine_checks(vcpu: &VcpuFd) {
    // SAFETY: the command reads the 64 bits that it is given.
    let set = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_X86_SETUP_MCE, &raw const MCE_BANKS) };
    if set != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "KVM shows machine checks as it likes");
    }
}

/// Sets general and system registers for `entry`.
pub(super) fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<()> {
    let mut sregs = vcpu.get_sregs().map_err(kvm("read system registers"))?;
    let long = matches!(entry, Entry::Linux64 { .. });
    let data = segment(DATA, 0x3, false, false);
    sregs.cs = segment(CODE, 0xb, true, long);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: TASK,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = GDT_BYTES - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    if long {
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    } else {
        sregs.cr0 = CR0_PE | CR0_ET;
        sregs.cr3 = 0;
        sregs.cr4 = 0;
        sregs.efer = 0;
    }
    vcpu.set_sregs(&sregs)
        .map_err(kvm("set system registers"))?;

    let mut regs = kvm_regs {
        rflags: RFLAGS,
        ..Default::default()
    };
    match entry {
        Entry::Pvh { ip } => {
            regs.rip = ip;
            regs.rbx = layout::PVH_START_INFO;
        }
        Entry::Linux64 { ip } => {
            regs.rip = ip;
            regs.rsi = layout::ZERO_PAGE;
            regs.rsp = layout::BOOT_STACK;
        }
    }
    vcpu.set_regs(&regs).map_err(kvm("set registers"))
}

/// Bytes of [`gdt`].
const GDT_BYTES: u16 = 48;

/// The descriptor table that the segment registers were loaded from, so that a
/// guest that reloads one finds it.
pub fn gdt(entry: Entry) -> [u8; GDT_BYTES as usize] {
    const FLAT_CODE_32: u64 = 0x00cf_9b00_0000_ffff;
    const FLAT_CODE_64: u64 = 0x00af_9b00_0000_ffff;
    const FLAT_DATA: u64 = 0x00cf_9300_0000_ffff;
    const TASK_STATE: u64 = 0x0000_8b00_0000_0067;
    let code = match entry {
        Entry::Pvh { .. } => FLAT_CODE_32,
        Entry::Linux64 { .. } => FLAT_CODE_64,
    };
    let mut table = [0; GDT_BYTES as usize];
    let entries = [0, 0, code, FLAT_DATA, TASK_STATE, 0];
    for (slot, entry) in table.chunks_exact_mut(8).zip(entries) {
        slot.copy_from_slice(&entry.to_le_bytes());
    }
    table
}

fn segment(selector: u16, type_: u8, code: bool, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!(code && long)),
        s: 1,
        l: u8::from(code && long),
        g: 1,
        ..Default::default()
    }
}
