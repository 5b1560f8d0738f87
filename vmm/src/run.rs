//! From a spec to an exit record: the life of the process.
//!
//! ```text
//!  main thread: open ─▶ jail ─▶ build ─▶ spawn disks ─▶ (load snapshot) ─▶ vCPUs ─▶ event loop
//!               ─▶ stop all ─▶ record
//! ```

use crate::builder::{Built, Files, build};
use crate::control::ControlServer;
use crate::cpu::{self, GateState};
use crate::error::{Error, Result, host};
use crate::events::{Epoll, EventLoop, Handler, HandlerId};
use crate::irq::borrow;
use crate::jail;
use crate::machine::Machine;
use crate::snapshot::incoming::Incoming;
use crate::snapshot::restore::Loading;
use crate::snapshot::worker::Jobs;
use crate::virtio::block::Nursery;
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
const SOURCE_NEWS: u32 = 2;

/// How long block backends, all together, may take to let their rings go at the end.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Runs the machine of `spec` to its end and says how it ended.
pub fn run(spec: &Spec, started_ns: u64) -> Result<ExitRecord> {
    let signals = block_signals().map_err(host("block signals"))?;
    ignore_file_limit();
    jail::share_heap().map_err(host("keep one heap"))?;
    let files = Files::open(spec)?;
    // The kernel's image is the tenant's: whatever it does to its parser happens in the jail.
    jail::leave_host(spec.jail).map_err(|source| Error::Jail { source })?;
    let mut events = EventLoop::new()?;
    let built = build(spec, files, &events.epoll(), started_ns)?;
    jail::limit_files().map_err(host("limit its files"))?;
    run_built(built, &mut events, signals)
}

fn run_built(built: Built, events: &mut EventLoop, signals: OwnedFd) -> Result<ExitRecord> {
    let machine = Arc::new(built.machine);
    let epoll = events.epoll();
    let lifecycle = Lifecycle {
        machine: Arc::clone(&machine),
        ended: built.ended,
        news: built.news,
        signals,
    };
    let id = epoll.new_id();
    lifecycle
        .watch(&epoll, id)
        .map_err(host("watch the machine"))?;
    epoll.push(id, Box::new(lifecycle));
    let id = epoll.new_id();
    if let Some(listener) = built.control {
        let jobs = Jobs::start(Arc::clone(&machine), jail::confine_state)?;
        let server =
            ControlServer::new(Arc::clone(&machine), jobs, Arc::clone(&epoll), id, listener)?;
        epoll.push(id, Box::new(server));
    }

    let ran = (|| {
        let nursery = Nursery::spawn(jail::confine_nursery, jail::confine_disk)?;
        machine.devices.start(nursery)?;
        if let Some(loading) = built.loading {
            go_on(&machine, loading, built.incoming)?;
        }
        for (index, vcpu) in (0u8..).zip(machine.vcpus()) {
            machine.add_vcpu(cpu::spawn(
                index,
                Arc::clone(vcpu),
                Arc::clone(&machine.bus),
                Arc::clone(&machine.gate),
                Arc::clone(&machine.outcome),
                jail::confine_vcpu,
            )?);
        }
        let missing = machine.devices.missing_disks();
        if !missing.is_empty() {
            tracing::info!(disks = ?missing, "waiting for block backends");
        }
        machine.run_if_ready();
        jail::confine_events().map_err(host("confine the event thread"))?;
        events.run()
    })();

    machine.stop_vcpus();
    machine.devices.stop(Instant::now() + LAST_ANSWER_LIMIT);
    ran?;
    let mut record = machine.outcome.record().cloned().unwrap_or(ExitRecord {
        reason: ExitReason::Error,
        message: "the event loop ended without a cause".to_owned(),
        transmit_credits: None,
    });
    record.transmit_credits = machine.devices.transmit_credits();
    Ok(record)
}

/// Continues the machine that a snapshot's files hold, or that comes from another process.
fn go_on(machine: &Machine, loading: Loading, incoming: Option<Incoming>) -> Result<()> {
    match incoming {
        None => machine.load(loading, true)?,
        Some(mut incoming) => {
            let handed_on = incoming.hand_on(machine).map_err(Error::from);
            let loaded = handed_on.and_then(|()| machine.load(loading, false));
            incoming.settle(loaded)?;
        }
    }
    machine.wake();
    Ok(())
}

/// Ends the loop at the machine's end, tends the devices, and starts the vCPUs when the
/// disks are there.
struct Lifecycle {
    machine: Arc<Machine>,
    ended: EventFd,
    news: EventFd,
    signals: OwnedFd,
}

impl Lifecycle {
    fn watch(&self, epoll: &Epoll, id: HandlerId) -> io::Result<()> {
        let edge = EventFlags::IN | EventFlags::ET;
        epoll.add(id, SOURCE_ENDED, borrow(&self.ended), EventFlags::IN)?;
        epoll.add(id, SOURCE_SIGNAL, self.signals.as_fd(), EventFlags::IN)?;
        epoll.add(id, SOURCE_NEWS, borrow(&self.news), edge)
    }
}

impl Handler for Lifecycle {
    fn ready(&mut self, source: u32, _flags: EventFlags) -> bool {
        match source {
            SOURCE_NEWS => {
                self.machine.devices.tend();
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
