//! A running machine: what the control socket and signals act on.
//!
//! ```text
//!            all disks connected               pause
//!  Waiting ───────────────────────▶ Running ◀────────▶ Paused
//!     └──────────────┴───── stop, power-off, reset, error ──┴──▶ Stopping
//! ```
//! To pause is to stop vCPUs first and then every part ([`crate::lifecycle`]); to resume goes the
//! other way. Both may wait for a disk's backend, so the state thread does them
//! ([`crate::snapshot::worker`]).

use crate::boot::generation;
use crate::bus::Bus;
use crate::cpu::{Gate, GateState, Vcpu, VcpuThread};
use crate::devices::{Devices, When};
use crate::error::{Error, Result, host, kvm};
use crate::inherit::{self, Passed};
use crate::irq::Irqs;
use crate::kvm_state::Clock;
use crate::legacy::power::{EVENT_BUTTON, EVENT_GENERATION};
use crate::lifecycle::Lifecycle;
use crate::memory::dirty::BackendLog;
use crate::memory::{self, GuestRam};
use crate::outcome::Outcome;
use crate::snapshot::SnapshotError;
use crate::snapshot::restore::Loading;
use kvm_ioctls::VmFd;
use ocs_vmm_spec::Balloon;
use ocs_vmm_spec::control::{DeviceKind, PROTOCOL_VERSION, Reply, Request, RunState};
use ocs_vmm_spec::exit::ExitReason;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What KVM holds of the machine.
pub struct Vm {
    /// The VM itself.
    pub fd: Arc<VmFd>,
    /// Mapped as long as the vCPUs may run.
    pub ram: GuestRam,
    /// Its interrupts.
    pub irqs: Arc<Irqs>,
    /// In order.
    pub vcpus: Vec<Arc<Vcpu>>,
}

/// Everything that acts on the machine as a whole.
pub struct Machine {
    /// The instance's id.
    pub id: String,
    /// Addresses and what answers there.
    pub bus: Arc<Bus>,
    /// What is on the PCI bus.
    pub devices: Devices,
    /// Holds and releases the vCPUs.
    pub gate: Arc<Gate>,
    /// How it ended.
    pub outcome: Arc<Outcome>,
    /// When the process began.
    pub started_ns: u64,
    vm: Vm,
    /// Where backends note what they write, while somebody wants to know.
    log: Mutex<Option<Arc<BackendLog>>>,
    vcpus: Mutex<Vec<VcpuThread>>,
    paused: AtomicBool,
}

impl Machine {
    /// A machine that waits for its disks.
    pub fn new(
        id: &str,
        vm: Vm,
        bus: Arc<Bus>,
        devices: Devices,
        gate: Arc<Gate>,
        outcome: Arc<Outcome>,
        started_ns: u64,
    ) -> Self {
        Self {
            id: id.to_owned(),
            bus,
            devices,
            gate,
            outcome,
            started_ns,
            vm,
            log: Mutex::default(),
            vcpus: Mutex::default(),
            paused: AtomicBool::new(false),
        }
    }

    /// Guest memory.
    pub fn ram(&self) -> &GuestRam {
        &self.vm.ram
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm.fd
    }

    /// How many vCPUs there are.
    pub fn vcpu_count(&self) -> u8 {
        u8::try_from(self.vm.vcpus.len()).unwrap_or(u8::MAX)
    }

    /// vCPUs in order.
    pub fn vcpus(&self) -> &[Arc<Vcpu>] {
        &self.vm.vcpus
    }

    /// Calls `f` with every part by its section's name, in the order in which they are stopped,
    /// saved and loaded: interrupt controllers before what interrupts, the clock last, so that
    /// it stands still for no longer than it must.
    pub fn with_parts<R>(&self, f: impl FnOnce(&[(String, &dyn Lifecycle)]) -> R) -> R {
        let clock = Clock(Arc::clone(&self.vm.fd));
        let (functions, on_mmio) = (self.bus.pci.functions(), self.bus.mmio.functions());
        let mut parts: Vec<(String, &dyn Lifecycle)> =
            vec![("ioapic".to_owned(), &self.bus.ioapic)];
        for (index, vcpu) in self.vm.vcpus.iter().enumerate() {
            parts.push((format!("cpu.{index}"), vcpu.as_ref()));
        }
        let fixed: [(&str, &dyn Lifecycle); 5] = [
            ("serial", &self.bus.serial),
            ("rtc", &self.bus.rtc),
            ("power", &self.bus.power),
            ("hotplug", &self.bus.hotplug),
            ("pci", &self.bus.pci),
        ];
        parts.extend(fixed.map(|(name, part)| (name.to_owned(), part)));
        for (slot, function) in &functions {
            parts.push((format!("pci.{slot}"), function.as_ref()));
        }
        for (number, function) in &on_mmio {
            parts.push((format!("mmio.{number}"), function.as_ref()));
        }
        parts.push(("clock".to_owned(), &clock));
        f(&parts)
    }

    /// Is it held by [`Self::pause`]?
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Stops vCPUs, then everything else; idempotent. On an error the machine goes on if it ran.
    pub fn pause(&self) -> std::result::Result<(), SnapshotError> {
        let was_paused = self.paused.swap(true, Ordering::SeqCst);
        self.gate.set(GateState::Held);
        self.kick();
        let count = self.lock_vcpus().len();
        self.gate.wait_until_held(count);
        let stopped = self.with_parts(|parts| {
            parts.iter().try_for_each(|(name, part)| {
                part.pause().map_err(|problem| SnapshotError::Part {
                    part: self.part_name(name),
                    problem,
                })
            })
        });
        if stopped.is_err() && !was_paused {
            self.resume();
        }
        stopped
    }

    /// Lets everything go on, vCPUs last; idempotent.
    pub fn resume(&self) {
        self.with_parts(|parts| parts.iter().for_each(|(_, part)| part.resume()));
        self.paused.store(false, Ordering::SeqCst);
        self.run_if_ready();
    }

    /// Makes a machine that was built but never ran into the one that `loading` holds: a clone,
    /// with an identity of its own, or the same machine, moved.
    pub fn load(&self, loading: Loading, clone: bool) -> Result<()> {
        self.vm.irqs.defer();
        loading.load(self)?;
        self.vm
            .irqs
            .settle()
            .map_err(kvm("route the interrupts of a snapshot"))?;
        if clone {
            generation::renew(&self.vm.ram)?;
            self.bus
                .power
                .raise(EVENT_GENERATION)
                .map_err(host("tell the guest that it is a clone"))?;
        }
        Ok(())
    }

    /// Lets the parts of a loaded machine go on; its vCPUs come later.
    pub fn wake(&self) {
        self.with_parts(|parts| parts.iter().for_each(|(_, part)| part.resume()));
    }

    /// Can this machine be saved?
    pub fn check_savable(&self) -> std::result::Result<(), SnapshotError> {
        let begins_late = self.vm.vcpus.iter().any(|vcpu| vcpu.begins_late());
        if begins_late && self.gate.first_run_ns() == 0 {
            return Err(SnapshotError::Part {
                part: "boot.disk".to_owned(),
                problem: "is not read yet".to_owned(),
            });
        }
        Ok(())
    }

    /// While paused: other processes log what they write from now on, or no longer. Devices that
    /// come later log, too.
    pub fn log_devices(
        &self,
        log: Option<&Arc<BackendLog>>,
    ) -> std::result::Result<(), SnapshotError> {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = log.map(Arc::clone);
        self.with_parts(|parts| {
            parts.iter().try_for_each(|(name, part)| {
                part.log_dirty(log).map_err(|problem| SnapshotError::Part {
                    part: self.part_name(name),
                    problem,
                })
            })
        })
    }

    /// A part by the name that its owner gave it.
    fn part_name(&self, section: &str) -> String {
        let number = |bus: &str| section.strip_prefix(bus).and_then(|s| s.parse().ok());
        let slot = number("pci.").or_else(|| number("mmio."));
        let id = slot.and_then(|slot: u8| self.devices.id_at(slot));
        id.unwrap_or_else(|| section.to_owned())
    }

    /// Adds a thread that the gate governs.
    pub fn add_vcpu(&self, vcpu: VcpuThread) {
        self.lock_vcpus().push(vcpu);
    }

    /// Answers a control request that came with `passed` descriptors.
    pub fn handle(&self, request: &Request, passed: Passed) -> Reply {
        match request {
            // Who has to wait does so before: `crate::control`.
            Request::Status | Request::AwaitChange { .. } => self.status(),
            Request::Metrics => Reply::Metrics {
                counters: self.metrics(),
            },
            // The state thread's: `crate::control` does not bring them here.
            Request::Pause
            | Request::Resume
            | Request::Snapshot { .. }
            | Request::Migrate { .. } => Reply::Error {
                message: "is not answered at once".to_owned(),
            },
            Request::Balloon { target_mib } => {
                let set = Balloon::check_target(*target_mib, memory::bytes(&self.vm.ram) >> 20)
                    .map_err(Error::from)
                    .and_then(|()| self.devices.set_balloon(*target_mib));
                match set {
                    Ok(()) => Reply::Ok,
                    Err(error) => Reply::Error {
                        message: error.to_string(),
                    },
                }
            }
            Request::PowerButton => match self.bus.power.raise(EVENT_BUTTON) {
                Ok(()) => Reply::Ok,
                Err(error) => Reply::Error {
                    message: format!("the power button cannot be pressed: {error}"),
                },
            },
            Request::WithdrawOffloads { id } => match self.devices.withdraw_offloads(id) {
                Ok(()) => Reply::Ok,
                Err(error) => Reply::Error {
                    message: error.to_string(),
                },
            },
            Request::Stop => {
                self.outcome
                    .end(ExitReason::Stopped, "stopped by request".to_owned());
                Reply::Ok
            }
            Request::AddBlock { .. }
            | Request::AddNet { .. }
            | Request::LimitNet { .. }
            | Request::RemoveBlock { .. }
            | Request::RemoveNet { .. } => match self.hot_plug(request, passed) {
                Ok(()) => Reply::Ok,
                Err(error) => Reply::Error {
                    message: error.to_string(),
                },
            },
        }
    }

    fn hot_plug(&self, request: &Request, mut passed: Passed) -> Result<()> {
        // A device that comes has no driver and no backend yet, so the log is there in time.
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let done: Result<()> = match request {
            Request::AddBlock { block } => {
                block.check("block")?;
                let listener = passed.take("block.listener", &block.listener)?;
                let listener = inherit::as_listener("block.listener", listener)?;
                self.devices.add_block(block, listener, When::Later)
            }
            Request::AddNet { net } => {
                net.check("net")?;
                let tap = passed.take("net.tap", &net.tap)?;
                self.devices.add_net(net, tap.into(), When::Later)
            }
            Request::LimitNet { id, transmit } => {
                transmit.check("transmit")?;
                self.devices.limit_net(id.as_deref(), transmit)
            }
            Request::RemoveBlock { id, force } => {
                self.devices.remove(DeviceKind::Block, id, *force)
            }
            Request::RemoveNet { id, force } => self.devices.remove(DeviceKind::Net, id, *force),
            _ => Ok(()),
        };
        done?;
        if let Some(log) = log.as_ref() {
            self.devices.log_dirty(log);
        }
        Ok(())
    }

    /// Lets the vCPUs run, unless a disk is missing or the machine is paused: a disk
    /// without a backend has neither size nor features to show to a driver.
    pub fn run_if_ready(&self) {
        if self.devices.missing_disks().is_empty() && !self.paused.load(Ordering::SeqCst) {
            self.gate.set(GateState::Open);
        }
    }

    /// Ends the vCPU threads.
    pub fn stop_vcpus(&self) {
        self.gate.set(GateState::Closed);
        self.kick();
        let vcpus = std::mem::take(&mut *self.lock_vcpus());
        for vcpu in vcpus {
            vcpu.join();
        }
    }

    fn status(&self) -> Reply {
        self.devices.remind();
        // Counted before they are looked at: what comes between is seen twice, not never.
        let changes = self.devices.changes().count();
        let state = match self.gate.state() {
            _ if self.outcome.record().is_some() => RunState::Stopping,
            GateState::Open => RunState::Running,
            GateState::Held if !self.devices.missing_disks().is_empty() => RunState::Waiting,
            GateState::Held => RunState::Paused,
            GateState::Closed => RunState::Stopping,
        };
        Reply::Status {
            protocol: PROTOCOL_VERSION,
            id: self.id.clone(),
            state,
            block_connected: self.devices.block_connected(),
            devices: self.devices.status(),
            changes,
            started_ns: self.started_ns,
            first_run_ns: self.gate.first_run_ns(),
        }
    }

    fn metrics(&self) -> BTreeMap<String, u64> {
        let mut out = BTreeMap::new();
        out.insert("memory.bytes".to_owned(), memory::bytes(&self.vm.ram));
        self.devices.report(&mut out);
        self.vm.vcpus.iter().for_each(|vcpu| vcpu.count(&mut out));
        let (bus, serial) = (&self.bus.metrics, self.bus.serial.metrics());
        for (name, counter) in [
            ("cpu.port_exits", &bus.port_exits),
            ("cpu.mmio_exits", &bus.mmio_exits),
            ("cpu.unclaimed_accesses", &bus.unclaimed),
            ("serial.written_bytes", &serial.written_bytes),
            ("serial.lost_bytes", &serial.lost_bytes),
        ] {
            out.insert(name.to_owned(), counter.load(Ordering::Relaxed));
        }
        out
    }

    fn kick(&self) {
        for vcpu in self.lock_vcpus().iter() {
            vcpu.kick();
        }
    }

    fn lock_vcpus(&self) -> std::sync::MutexGuard<'_, Vec<VcpuThread>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
