//! What KVM counts of a vCPU (Linux, `Documentation/virt/kvm/api.rst`, `KVM_GET_STATS_FD`).
//!
//! The descriptor is opened before the vCPU runs and read when somebody asks: counting costs
//! an idle machine nothing.

use kvm_ioctls::VcpuFd;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// `struct kvm_stats_header`: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
const HEADER_WORDS: usize = 6;
/// `struct kvm_stats_desc` up to its name; `offset` is its third word.
const DESC_BYTES: usize = 16;
/// A kernel's list is some dozens of entries of 64 bytes.
const MAX_DESC_BYTES: usize = 64 << 10;

/// Counters shown, by KVM's name: exits in all and by kind, faults that mapped a page, and
/// instructions that KVM emulated.
const SHOWN: [&str; 9] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "irq_exits",
    "irq_window_exits",
    "signal_exits",
    "pf_taken",
    "insn_emulation",
];

/// A vCPU's counters.
pub struct Stats(File);

impl Stats {
    /// Those of `vcpu`; `None` where KVM has none to show.
    pub fn of(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the command has no argument and yields a new descriptor, or fails.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor is new and nobody else's.
        Some(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Adds them to `sums`, as `kvm.exits` and so on.
    pub fn add_to(&self, sums: &mut BTreeMap<String, u64>) -> io::Result<()> {
        let mut header = [0u8; 4 * HEADER_WORDS];
        self.0.read_exact_at(&mut header, 0)?;
        let word = |index: usize| word(&header, 4 * index);
        let (name_bytes, count) = (word(1) as usize, word(2) as usize);
        let (descs_at, data_at) = (u64::from(word(4)), u64::from(word(5)));
        let desc_bytes = DESC_BYTES.saturating_add(name_bytes);
        let len = desc_bytes.saturating_mul(count);
        if len > MAX_DESC_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut descs = vec![0u8; len];
        self.0.read_exact_at(&mut descs, descs_at)?;
        for desc in descs.chunks_exact(desc_bytes) {
            let (desc, name) = desc.split_at(DESC_BYTES);
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let Some(shown) = SHOWN.iter().find(|shown| shown.as_bytes() == name) else {
                continue;
            };
            let mut value = [0; 8];
            let at = data_at + u64::from(self::word(desc, 8));
            self.0.read_exact_at(&mut value, at)?;
            *sums.entry(format!("kvm.{shown}")).or_default() += u64::from_le_bytes(value);
        }
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_that_never_ran_has_counted_nothing() {
        let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut sums = BTreeMap::from([("kvm.exits".to_owned(), 3)]);
        Stats::of(&vcpu).unwrap().add_to(&mut sums).unwrap();
        assert_eq!(sums["kvm.exits"], 3);
        assert_eq!(sums["kvm.io_exits"], 0);
        assert_eq!(sums.len(), SHOWN.len());
    }
}
