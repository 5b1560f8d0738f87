//! From a spec to an exit record: the life of the process.
//!
//! ```text
//!  main thread: build ─▶ confine ─▶ spawn vCPUs, disks ─▶ event loop ─▶ stop all ─▶ record
//! ```

use crate::builder::{Built, build};
use crate::control::ControlServer;
use crate::cpu::{self, GateState};
use crate::error::{Result, host};
use crate::events::{EventLoop, Handler};
use crate::irq::borrow;
use crate::jail;
use crate::machine::Machine;
use crate::virtio::block::WorkerThread;
use ocs_vmm_spec::Spec;
use ocs_vmm_spec::exit::{ExitReason, ExitRecord};
use rustix::event::epoll::EventFlags;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

const SOURCE_ENDED: u32 = 0;
const SOURCE_SIGNAL: u32 = 1;
const SOURCE_DISK: u32 = 2;

/// How long block backends, all together, may take to let their rings go at the end.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Runs the machine of `spec` to its end and says how it ended.
pub fn run(spec: &Spec, started_ns: u64) -> Result<ExitRecord> {
    let signals = block_signals().map_err(host("block signals"))?;
    ignore_file_limit();
    let built = build(spec, started_ns)?;
    jail::confine_process().map_err(host("drop privileges"))?;
    run_built(built, signals)
}

fn run_built(built: Built, signals: OwnedFd) -> Result<ExitRecord> {
    let machine = Arc::new(built.machine);
    let mut events = EventLoop::new()?;
    let epoll = events.epoll();
    let lifecycle = Lifecycle {
        machine: Arc::clone(&machine),
        ended: built.ended,
        disk_connected: built.disk_connected,
        signals,
    };
    lifecycle
        .watch(&events)
        .map_err(host("watch the machine"))?;
    events.push(Box::new(lifecycle));
    for (worker, kicks) in built.nets {
        worker.watch(&epoll, events.next_id(), &kicks)?;
        events.push(Box::new(worker));
    }
    if let Some(listener) = built.control {
        let id = events.next_id();
        let server = ControlServer::new(Arc::clone(&machine), epoll, id, listener)?;
        events.push(Box::new(server));
    }

    let mut disks: Vec<WorkerThread> = Vec::new();
    let ran = (|| {
        for worker in built.disks {
            disks.push(worker.spawn(Arc::clone(&machine.outcome), jail::confine_disk)?);
        }
        for (index, vcpu) in (0u8..).zip(built.vcpus) {
            machine.add_vcpu(cpu::spawn(
                index,
                vcpu,
                Arc::clone(&machine.bus),
                Arc::clone(&machine.gate),
                Arc::clone(&machine.outcome),
                jail::confine_vcpu,
            )?);
        }
        let missing = machine.missing_disks();
        if !missing.is_empty() {
            tracing::info!(disks = ?missing, "waiting for block backends");
        }
        machine.run_if_ready();
        jail::confine_events().map_err(host("confine the event thread"))?;
        events.run()
    })();

    machine.stop_vcpus();
    let deadline = Instant::now() + LAST_ANSWER_LIMIT;
    disks.iter().for_each(WorkerThread::ask_to_stop);
    for disk in disks {
        disk.join(deadline);
    }
    ran?;
    Ok(machine.outcome.record().cloned().unwrap_or(ExitRecord {
        reason: ExitReason::Error,
        message: "the event loop ended without a cause".to_owned(),
    }))
}

/// Ends the loop at the machine's end, and starts the vCPUs when the disks are there.
struct Lifecycle {
    machine: Arc<Machine>,
    ended: EventFd,
    disk_connected: EventFd,
    signals: OwnedFd,
}

impl Lifecycle {
    fn watch(&self, events: &EventLoop) -> io::Result<()> {
        let (epoll, id) = (events.epoll(), events.next_id());
        let edge = EventFlags::IN | EventFlags::ET;
        epoll.add(id, SOURCE_ENDED, borrow(&self.ended), EventFlags::IN)?;
        epoll.add(id, SOURCE_SIGNAL, self.signals.as_fd(), EventFlags::IN)?;
        epoll.add(id, SOURCE_DISK, borrow(&self.disk_connected), edge)
    }
}

impl Handler for Lifecycle {
    fn ready(&mut self, source: u32, _flags: EventFlags) -> bool {
        match source {
            SOURCE_DISK => {
                if self.machine.gate.state() == GateState::Held {
                    self.machine.run_if_ready();
                }
                true
            }
            SOURCE_SIGNAL => {
                self.machine
                    .outcome
                    .end(ExitReason::Stopped, "stopped by signal".to_owned());
                false
            }
            _ => false,
        }
    }
}

/// Turns SIGTERM and SIGINT into a descriptor, for all threads to come.
fn block_signals() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data that sigemptyset initialises; the calls get valid pointers;
    // the descriptor that signalfd returns is new and ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A log that has grown to the limit of a file takes no more; that is no reason to end.
fn ignore_file_limit() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Writes the exit record over whatever `file` holds.
pub fn write_record(file: &mut std::fs::File, record: &ExitRecord) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(record)?;
    bytes.push(b'\n');
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(&bytes)
}
