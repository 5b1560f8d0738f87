//! Virtual CPUs.
//!
//! ```text
//!  cpuid.rs  what the guest may know of the CPU      (before the first run)
//!  state.rs  registers at the entry point
//!  run.rs    one thread per vCPU: gate → KVM_RUN → dispatch exit → …
//!  stats.rs  what KVM counts of it
//!  persist.rs  all registers, while the thread stands at the gate
//! ```

mod cpuid;
mod persist;
mod run;
mod state;
mod stats;

pub use run::{Gate, GateState, VcpuThread, monotonic_ns, spawn};
pub use state::gdt;

use crate::boot::Entry;
use crate::error::{Result, kvm};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use ocs_vmm_spec::Spec;
use stats::Stats;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A vCPU, shared between its thread and whoever saves or loads it. The thread holds the lock
/// but while it stands at a gate that is not open.
pub struct Vcpu {
    fd: Mutex<VcpuFd>,
    /// Where it enters the guest, if that is known only once the gate opens.
    entry: Option<Arc<OnceLock<Entry>>>,
    kvm: Arc<Kvm>,
    vm: Arc<VmFd>,
    stats: Option<Stats>,
}

impl Vcpu {
    fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it learn where it begins only when the guest starts?
    pub fn begins_late(&self) -> bool {
        self.entry.is_some()
    }

    /// Adds what KVM counted, while the vCPU may run.
    pub fn count(&self, sums: &mut BTreeMap<String, u64>) {
        if let Some(stats) = &self.stats
            && let Err(error) = stats.add_to(sums)
        {
            tracing::debug!(%error, "KVM's counters cannot be read");
        }
    }
}

/// Turns performance counters off where KVM can: they leak, and none is promised in CPUID.
pub fn without_pmu(vm: &VmFd) -> Result<()> {
    use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
    let known = vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if known.cast_unsigned() & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let off = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&off)
        .map_err(kvm("turn performance counters off"))
}

/// How a machine begins.
#[derive(Clone)]
pub enum Start {
    /// The boot CPU begins here.
    At(Entry),
    /// It begins where this says once the gate opens: somebody is still to read the disk.
    Late(Arc<OnceLock<Entry>>),
    /// It goes on as a snapshot says.
    Loaded,
}

/// Makes vCPU `index` of `spec`, ready to run (the boot CPU) or to wait for INIT and SIPI (the
/// others), or for a snapshot to be loaded.
pub fn create(
    kvm_fd: &Arc<Kvm>,
    vm: &Arc<VmFd>,
    index: u8,
    spec: &Spec,
    start: &Start,
) -> Result<Vcpu> {
    let vcpu = vm
        .create_vcpu(u64::from(index))
        .map_err(kvm("create a vCPU"))?;
    state::shorten_machine_checks(&vcpu);
    if !matches!(start, Start::Loaded) {
        let cpuid = cpuid::build(kvm_fd, &vcpu, index, spec)?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm("set CPUID"))?;
        state::set_msrs(&vcpu)?;
    }
    let mut late = None;
    match start {
        Start::At(entry) if index == 0 => state::set_entry(&vcpu, *entry)?,
        Start::Late(entry) if index == 0 => late = Some(Arc::clone(entry)),
        _ => {}
    }
    Ok(Vcpu {
        stats: Stats::of(&vcpu),
        fd: Mutex::new(vcpu),
        entry: late,
        kvm: Arc::clone(kvm_fd),
        vm: Arc::clone(vm),
    })
}
