//! The thread of one vCPU.
//!
//! ```text
//!          ┌────────── Paused: wait on the gate ◀─┐
//!  spawn ──┤                                      │ kick (signal + immediate_exit)
//!          └─▶ Running: KVM_RUN ─ exit ─▶ Bus ────┤
//!                                                 └─▶ Stopping: thread ends
//! ```
//! A vCPU never blocks on I/O: exits end in register models; data moves on other threads.

use super::Vcpu;
use super::state::set_entry;
use crate::boot::Entry;
use crate::bus::Bus;
use crate::error::{Result, host};
use crate::legacy::power::PowerRequest;
use crate::outcome::{LastWord, Outcome};
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use ocs_vmm_spec::exit::ExitReason;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// What all vCPU threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateState {
    /// Wait.
    Held,
    /// Run the guest.
    Open,
    /// End.
    Closed,
}

/// Holds, releases and ends the vCPU threads.
pub struct Gate {
    inner: Mutex<GateInner>,
    changed: Condvar,
    /// The state is `Open`: what a vCPU looks at after each exit, without the lock that all
    /// vCPUs share. Changed under it, and before a kick, so a kicked thread sees the change.
    open: AtomicBool,
    first_run_ns: AtomicU64,
}

struct GateInner {
    state: GateState,
    waiting: usize,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            inner: Mutex::new(GateInner {
                state: GateState::Held,
                waiting: 0,
            }),
            changed: Condvar::new(),
            open: AtomicBool::new(false),
            first_run_ns: AtomicU64::new(0),
        }
    }
}

impl Gate {
    /// The state now.
    pub fn state(&self) -> GateState {
        self.lock().state
    }

    /// `CLOCK_MONOTONIC` when a vCPU was first let run, 0 before.
    pub fn first_run_ns(&self) -> u64 {
        self.first_run_ns.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, GateInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state; a closed gate stays closed. The caller kicks the threads.
    pub fn set(&self, state: GateState) {
        let mut inner = self.lock();
        if inner.state == GateState::Closed {
            return;
        }
        if state == GateState::Open {
            let _ = self.first_run_ns.compare_exchange(
                0,
                monotonic_ns(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
        inner.state = state;
        self.open.store(state == GateState::Open, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Waits until `count` threads stand still at a held gate.
    pub fn wait_until_held(&self, count: usize) {
        let mut inner = self.lock();
        while inner.state == GateState::Held && inner.waiting < count {
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Passes an open gate (true), waits at a held one, turns back at a closed one.
    fn pass(&self) -> bool {
        let mut inner = self.lock();
        if inner.state == GateState::Held {
            inner.waiting += 1;
            self.changed.notify_all();
            while inner.state == GateState::Held {
                inner = self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            inner.waiting -= 1;
        }
        inner.state == GateState::Open
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// A running vCPU thread.
pub struct VcpuThread {
    handle: JoinHandle<()>,
}

impl VcpuThread {
    /// Makes the thread look at the gate, out of `KVM_RUN` if need be.
    pub fn kick(&self) {
        if let Err(error) = self.handle.kill(SIGRTMIN()) {
            tracing::error!(%error, "a vCPU thread cannot be signalled");
        }
    }

    /// Waits for its end.
    pub fn join(self) {
        if self.handle.join().is_err() {
            tracing::error!("a vCPU thread panicked");
        }
    }
}

thread_local! {
    static RUN: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// Asks KVM_RUN to return at once, now or when next entered: a signal that comes
/// just before the ioctl is not lost.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: the pointer is this thread's own mapping of its vCPU, set after creation and
        // cleared before the vCPU is dropped; a byte store is async-signal-safe.
        unsafe { (&raw mut (*run).immediate_exit).write_volatile(1) };
    }
}

/// Starts the thread of vCPU `index`, which first waits at the gate.
pub fn spawn(
    index: u8,
    vcpu: Arc<Vcpu>,
    bus: Arc<Bus>,
    gate: Arc<Gate>,
    outcome: Arc<Outcome>,
    prepare: fn() -> std::io::Result<()>,
) -> Result<VcpuThread> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(host("handle the kick signal"))?;
    let handle = std::thread::Builder::new()
        .name(format!("vcpu{index}"))
        .stack_size(256 * 1024)
        .spawn(move || {
            // Dropped in reverse order: the cause is known before others turn back.
            let _closed = CloseGate(Arc::clone(&gate));
            let _word = LastWord::new(Arc::clone(&outcome), format!("vCPU {index}"));
            if let Err(error) = prepare() {
                outcome.end(
                    ExitReason::Error,
                    format!("vCPU {index}: cannot be confined: {error}"),
                );
                return;
            }
            run(index, &vcpu, &bus, &gate, &outcome);
        })
        .map_err(host("start a vCPU thread"))?;
    Ok(VcpuThread { handle })
}

/// Closes the gate when a vCPU's thread ends: a machine that lost one does not go on, and
/// who waits for it at the gate must not wait for ever.
struct CloseGate(Arc<Gate>);

impl Drop for CloseGate {
    fn drop(&mut self) {
        self.0.set(GateState::Closed);
    }
}

/// What an entry into the guest led to.
enum Step {
    /// An access that a device answered; KVM finishes the instruction at the next entry.
    Access,
    /// Nothing: a kick, a halt.
    Quiet,
    /// The end of the machine.
    End(ExitReason, String),
}

fn run(index: u8, vcpu: &Vcpu, bus: &Bus, gate: &Gate, outcome: &Outcome) {
    let mut fd = vcpu.lock();
    RUN.set(std::ptr::from_mut(fd.get_kvm_run()));
    let mut entry = vcpu.entry.as_deref();
    loop {
        fd.set_kvm_immediate_exit(0);
        let step = if gate.is_open() {
            // The gate may have opened before this thread first looked at it.
            if let Some(entry) = entry.take()
                && let Err(problem) = begin(&fd, entry)
            {
                outcome.end(ExitReason::Error, problem);
                break;
            }
            step(&mut fd, bus)
        } else {
            let step = complete(&mut fd, bus);
            drop(fd);
            let open = gate.pass();
            fd = vcpu.lock();
            if !open {
                break;
            }
            step
        };
        if let Step::End(reason, message) = step {
            outcome.end(reason, format!("vCPU {index}: {message}"));
            break;
        }
    }
    RUN.set(std::ptr::null_mut());
}

/// Sets the registers of a boot CPU that waited for its disk.
fn begin(vcpu: &VcpuFd, entry: &OnceLock<Entry>) -> std::result::Result<(), String> {
    let Some(entry) = entry.get() else {
        return Err("boot.disk: was taken away before its kernel was read".to_owned());
    };
    set_entry(vcpu, *entry).map_err(|error| error.to_string())
}

/// Lets KVM finish the instruction whose access was answered last, without running the guest:
/// until then its registers are those of the middle of an instruction.
fn complete(vcpu: &mut VcpuFd, bus: &Bus) -> Step {
    loop {
        vcpu.set_kvm_immediate_exit(1);
        // An instruction may have several accesses.
        match step(vcpu, bus) {
            Step::Access => {}
            other => return other,
        }
    }
}

/// One entry into the guest.
fn step(vcpu: &mut VcpuFd, bus: &Bus) -> Step {
    let failed = |what: String| Step::End(ExitReason::Error, what);
    match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => bus.port_read(port, data),
        Ok(VcpuExit::IoOut(port, data)) => {
            return match bus.port_write(port, data) {
                None => Step::Access,
                Some(PowerRequest::Off) => Step::End(
                    ExitReason::GuestShutdown,
                    "the guest powered off".to_owned(),
                ),
                Some(PowerRequest::Reset) => Step::End(
                    ExitReason::GuestReset,
                    "the guest asked for a reset".to_owned(),
                ),
            };
        }
        Ok(VcpuExit::MmioRead(address, data)) => bus.mmio_read(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => bus.mmio_write(address, data),
        Ok(VcpuExit::Shutdown) => {
            return Step::End(
                ExitReason::GuestReset,
                "the guest reset by triple fault".to_owned(),
            );
        }
        Ok(VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen) => return Step::Quiet,
        Ok(VcpuExit::InternalError) => return failed(internal_error(vcpu)),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return failed(format!(
                "cannot enter the guest (reason {reason:#x}, CPU {cpu})"
            ));
        }
        Ok(other) => return failed(format!("unexpected exit {other:?}")),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Step::Quiet,
        Err(error) => return failed(format!("KVM_RUN failed: {error}")),
    }
    Step::Access
}

/// Says where and on which bytes KVM's emulator stopped.
fn internal_error(vcpu: &mut VcpuFd) -> String {
    /// KVM_INTERNAL_ERROR_EMULATION with KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
    /// flags, then a count and up to 15 bytes.
    const FLAG_BYTES: u64 = 1;
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    let mut bytes = Vec::new();
    if internal.ndata >= 3 && internal.data[0] & FLAG_BYTES != 0 {
        let packed: Vec<u8> = internal.data[1..3]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let count = usize::from(packed[0]).min(15);
        bytes.extend_from_slice(&packed[1..=count]);
    }
    let at = vcpu.get_regs().map_or(0, |regs| regs.rip);
    format!(
        "KVM gave up on the guest (suberror {}) at {at:#x}, instruction {bytes:02x?}",
        internal.suberror
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ioapic::Ioapic;
    use crate::irq::Irqs;
    use crate::legacy::power::Power;
    use crate::legacy::ring::{ConsoleRing, MappedRing};
    use crate::legacy::rtc::Rtc;
    use crate::legacy::serial::SerialPort;
    use crate::pci::hotplug::Hotplug;
    use crate::pci::root::PciRoot;
    use ocs_vmm_spec::console::RingWriter;
    use vmm_sys_util::eventfd::EventFd;

    fn bus() -> Arc<Bus> {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        let ring = RingWriter::open(tempfile::tempfile().unwrap(), 4096).unwrap();
        let ring = ConsoleRing::new(MappedRing::new(ring).unwrap());
        Arc::new(Bus {
            ioapic: Ioapic::new(Arc::new(Irqs::new(Arc::new(vm)))),
            serial: SerialPort::new(ring, event()),
            rtc: Rtc::default(),
            power: Power::new(event()),
            pci: PciRoot::default(),
            mmio: Default::default(),
            hotplug: Hotplug::new(event()),
            metrics: Default::default(),
        })
    }

    #[test]
    fn a_lost_vcpu_ends_the_machine_and_nobody_waits_for_it() {
        for prepare in [
            (|| Err(std::io::Error::other("no filter"))) as fn() -> std::io::Result<()>,
            || panic!("as a bug would"),
        ] {
            let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
            let vcpu = Arc::new(Vcpu {
                fd: Mutex::new(vm.create_vcpu(0).unwrap()),
                entry: None,
                kvm: Arc::new(kvm_ioctls::Kvm::new().unwrap()),
                vm: Arc::new(vm),
                stats: None,
            });
            let ended = EventFd::new(0).unwrap();
            let outcome = Arc::new(Outcome::new(ended.try_clone().unwrap()));
            let gate = Arc::new(Gate::default());
            let (bus, shared) = (bus(), Arc::clone(&gate));
            let thread = spawn(0, vcpu, bus, shared, Arc::clone(&outcome), prepare).unwrap();
            gate.wait_until_held(1);
            assert_eq!(gate.state(), GateState::Closed);
            ended.read().unwrap();
            let record = outcome.record().unwrap();
            assert_eq!(record.reason, ExitReason::Error);
            assert!(record.message.starts_with("vCPU 0: "), "{record:?}");
            thread.join();
        }
    }
}
