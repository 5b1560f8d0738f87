//! A running machine: what the control socket and signals act on.
//!
//! ```text
//!            all disks connected               pause
//!  Waiting ───────────────────────▶ Running ◀────────▶ Paused
//!     └──────────────┴───── stop, power-off, reset, error ──┴──▶ Stopping
//! ```

use crate::bus::Bus;
use crate::cpu::{Gate, GateState, VcpuThread};
use crate::devices::{Devices, When};
use crate::error::Result;
use crate::inherit::{self, Passed};
use crate::legacy::power::EVENT_BUTTON;
use crate::memory::GuestRam;
use crate::outcome::Outcome;
use ocs_vmm_spec::control::{DeviceKind, PROTOCOL_VERSION, Reply, Request, RunState};
use ocs_vmm_spec::exit::ExitReason;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

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
    /// Mapped as long as the vCPUs may run.
    ram: GuestRam,
    vcpus: Mutex<Vec<VcpuThread>>,
    paused: AtomicBool,
}

impl Machine {
    /// A machine that waits for its disks.
    pub fn new(
        id: &str,
        ram: GuestRam,
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
            ram,
            vcpus: Mutex::default(),
            paused: AtomicBool::new(false),
        }
    }

    /// Adds a thread that the gate governs.
    pub fn add_vcpu(&self, vcpu: VcpuThread) {
        self.lock_vcpus().push(vcpu);
    }

    /// Answers a control request that came with `passed` descriptors.
    pub fn handle(&self, request: &Request, passed: Passed) -> Reply {
        match request {
            Request::Status => self.status(),
            Request::Metrics => Reply::Metrics {
                counters: self.metrics(),
            },
            Request::Pause => {
                self.paused.store(true, Ordering::SeqCst);
                self.gate.set(GateState::Held);
                self.kick();
                let count = self.lock_vcpus().len();
                self.gate.wait_until_held(count);
                Reply::Ok
            }
            Request::Resume => {
                self.paused.store(false, Ordering::SeqCst);
                self.run_if_ready();
                Reply::Ok
            }
            Request::PowerButton => match self.bus.power.raise(EVENT_BUTTON) {
                Ok(()) => Reply::Ok,
                Err(error) => Reply::Error {
                    message: format!("the power button cannot be pressed: {error}"),
                },
            },
            Request::Stop => {
                self.outcome
                    .end(ExitReason::Stopped, "stopped by request".to_owned());
                Reply::Ok
            }
            Request::AddBlock { .. }
            | Request::AddNet { .. }
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
        match request {
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
            Request::RemoveBlock { id, force } => {
                self.devices.remove(DeviceKind::Block, id, *force)
            }
            Request::RemoveNet { id, force } => self.devices.remove(DeviceKind::Net, id, *force),
            _ => Ok(()),
        }
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
            started_ns: self.started_ns,
            first_run_ns: self.gate.first_run_ns(),
        }
    }

    fn metrics(&self) -> BTreeMap<String, u64> {
        let mut out = BTreeMap::new();
        out.insert(
            "memory.bytes".to_owned(),
            self.ram.iter().map(GuestMemoryRegion::len).sum(),
        );
        self.devices.report(&mut out);
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
