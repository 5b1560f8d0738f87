//! `ocs-vmm`: one process, one microVM.
//!
//! ```text
//!   spec ─▶ builder.rs ─▶ machine.rs ◀─ control.rs (socket)      run.rs ─▶ exit record
//!                           │ devices.rs: what is on the bus, now
//!      vCPU threads      event thread            one thread a disk
//!      cpu/run.rs        events.rs               virtio/block/worker.rs
//!         │ exits           │ tap, kicks            │ vhost-user
//!      bus.rs ─▶ legacy/, pci/ ─▶ virtio/pci ─▶ virtio/net, virtio/block
//!                                   │                │
//!                          memory/: one sealed memfd, shared with backends,
//!                                   or a snapshot's file, mapped privately
//! ```
//!
//! # The manual
//!
//! | to learn | read |
//! |---|---|
//! | what a machine is and does, state by state | [`machine`], [`run`] |
//! | how parts stop, are saved, loaded and go on | [`lifecycle`], [`persist`] |
//! | how guest memory is made, shared and watched | [`memory`], [`memory::dirty`] |
//! | snapshots, clones, migration | [`snapshot`] |
//! | how a virtio device lives, and where to add one | [`virtio`] |
//! | what the guest finds at start | [`boot`], [`layout`] |
//! | how it is interrupted | [`irq`], [`ioapic`], [`pci::msix`] |
//! | what the process gives up | [`jail`] |
//!
//! # Threads
//!
//! ```text
//!            control socket, signals, taps                          backend (vhost-user)
//!                      │                                                  │
//!   ┌──────────────────▼─────────┐   jobs, replies   ┌─────────┐   ┌──────▼──────┐
//!   │ event thread               │◀─────────────────▶│ state   │   │ a thread    │
//!   │ epoll; never blocks        │                   │ thread  │   │ a disk      │
//!   └───────┬────────────▲───────┘                   └────┬────┘   └──▲───────┬──┘
//!       plug│            │kick                  pause, save│     wishes│       │rests
//!           │        ┌───┴──────────────────────────┐      │          │       │
//!           └───────▶│ a thread a vCPU: KVM_RUN,    │◀─────┴──────────┘       │
//!                    │ exits; waits only at the gate│◀── interrupts (irqfd) ──┘
//!                    └──────────────────────────────┘
//! ```
//! A vCPU thread runs the guest and answers register accesses; it takes a device's register lock
//! and never waits for I/O. The event thread moves frames and serves control. A disk's thread
//! speaks vhost-user and may wait for its backend. The state thread does what stops the whole
//! machine or takes long. Locks are taken in this order: the machine's list of devices, a
//! function's registers, what a device shares with its thread; none is held over a wait but by
//! the state thread, while every vCPU stands still.
//!
//! # Trust
//!
//! The guest is hostile: whatever it writes into memory, queues or registers,
//! its device stops (`NEEDS_RESET`, counted) and the process goes on. Nothing is
//! opened after [`builder::build`].
//!
//! Start reading at [`run::run`].

pub mod boot;
pub mod builder;
pub mod bus;
pub mod control;
pub mod cpu;
pub mod devices;
mod error;
pub mod events;
mod inherit;
pub mod ioapic;
pub mod irq;
pub mod jail;
pub mod kvm_state;
pub mod layout;
pub mod legacy;
pub mod lifecycle;
pub mod machine;
pub mod memory;
pub mod outcome;
pub mod pci;
pub mod persist;
pub mod run;
pub mod snapshot;
pub mod virtio;

pub use error::{Error, Result};

use ocs_vmm_spec::exit::{ExitReason, ExitRecord};
use ocs_vmm_spec::{Source, Spec};

/// Reads a spec, runs its machine, writes its exit record, and says how it ended.
///
/// The record's file stays open until the process ends: its lock is how a restarted
/// caller knows that the VMM is dead.
pub fn serve(json: &[u8]) -> (ExitRecord, Option<std::fs::File>) {
    let started_ns = cpu::monotonic_ns();
    let (mut file, ended) = match exit_record_file(json) {
        Ok(file) => (file, Spec::parse(json).map_err(Error::from)),
        Err(error) => (None, Err(error)),
    };
    let record = ended
        .and_then(|spec| run::run(&spec, started_ns))
        .unwrap_or_else(|error| ExitRecord {
            transmit_credits: None,
            reason: ExitReason::Error,
            message: error.to_string(),
        });
    if let Some(file) = &mut file
        && let Err(error) = run::write_record(file, &record)
    {
        tracing::error!(%error, "the exit record cannot be written");
    }
    (record, file)
}

/// Opens the exit record first, even of a spec that is refused for another field.
fn exit_record_file(json: &[u8]) -> Result<Option<std::fs::File>> {
    let source = serde_json::from_slice::<serde_json::Value>(json)
        .ok()
        .and_then(|value| value.get("exit_record").cloned())
        .and_then(|value| serde_json::from_value::<Option<Source>>(value).ok())
        .flatten();
    match source {
        Some(source) => inherit::read_write("exit_record", &source).map(Some),
        None => Ok(None),
    }
}
