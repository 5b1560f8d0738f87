//! The shard's loop.

use super::device::{Device, Running, Scratch};
use super::idle::SHOWN_EARLY;
use super::share::Share;
use super::sleep::Sleepers;
use super::slot::Slot;
use super::token::{Place, Token};
use super::window::Window;
use super::{Command, DeviceId, QueueStart};
use crate::disk::Disk;
use crate::qos::Turns;
use crate::queue::QueueError;
use io_uring::register::Restriction;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

const SUBMISSIONS: u32 = 256;
const COMPLETIONS: u32 = 4096;

/// All that a shard's ring may ever do; registering is over once it is enabled.
const OPERATIONS: [u8; 7] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
];
/// Most devices of a shard.
pub const MAX_DEVICES: usize = 4096;

/// A shard's thread.
pub struct Worker {
    pub(super) ring: IoUring,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    pub(super) devices: Vec<Option<Device>>,
    #[expect(
        clippy::vec_box,
        reason = "the kernel reads a slot's window_iov, so it may not move"
    )]
    pub(super) slots: Vec<Box<Slot>>,
    pub(super) free: Vec<usize>,
    /// Devices with work, by [`super::device::Lane`].
    pub(super) turns: [Turns; 2],
    /// Devices that wait for their limits.
    pub(super) sleepers: Sleepers,
    /// The time, once it was needed in a round.
    pub(super) now_ns: Option<u64>,
    pub(super) touched: Vec<(usize, u16)>,
    /// Queues found empty, whose drivers were not told to kick yet.
    pub(super) parked: Vec<(usize, u16)>,
    /// Rounds since their drivers were last told.
    pub(super) looks: u32,
    pub(super) scratch: Scratch,
    /// Confirmations of interrupts that are submitted next.
    pub(super) confirms: usize,
    /// Pieces that wait for the ring.
    pub(super) on_ring: usize,
    /// What they cost, see [`crate::qos::cost`].
    pub(super) on_ring_cost: u64,
    /// What each device may hold of the disk.
    pub(super) share: Share,
    pub(super) window: Window,
    /// With so many operations queued, they are submitted at once.
    pub(super) early: usize,
    /// The disk is fast enough to await several completions at once.
    pub(super) gathers: bool,
    generation: u32,
    ended: bool,
}

impl Worker {
    /// Sets up the ring; in the thread that will run it (`SINGLE_ISSUER`).
    pub fn new(
        commands: Receiver<Command>,
        wake: Arc<OwnedFd>,
        share: Share,
    ) -> std::io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .setup_r_disabled()
            .build(SUBMISSIONS)?;
        let mut allowed = Vec::from(OPERATIONS.map(Restriction::sqe_op));
        allowed.push(Restriction::sqe_flags_allowed(
            squeue::Flags::SKIP_SUCCESS.bits(),
        ));
        ring.submitter().register_restrictions(&mut allowed)?;
        ring.submitter().register_enable_rings()?;
        let mut worker = Self {
            ring,
            commands,
            wake,
            devices: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            turns: Default::default(),
            sleepers: Sleepers::default(),
            now_ns: None,
            touched: Vec::new(),
            parked: Vec::new(),
            looks: 0,
            scratch: Scratch::default(),
            confirms: 0,
            on_ring: 0,
            on_ring_cost: 0,
            share,
            window: Window::default(),
            early: usize::MAX,
            gathers: true,
            generation: 0,
            ended: false,
        };
        worker.watch_wake();
        Ok(worker)
    }

    /// Serves until the last handle is gone.
    pub fn run(mut self) {
        while !self.ended {
            self.dispatch();
            self.publish();
            let outcome = if self.has_work() {
                self.enter(None)
            } else {
                self.idle()
            };
            if let Err(error) = outcome
                && !matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME)
                )
            {
                tracing::error!(%error, "the ring cannot be entered");
                return;
            }
            for reaped in 1.. {
                let done = self.ring.completion().next();
                let Some(done) = done else { break };
                self.completed(&done);
                // Of many, the first ones' drivers offer more while we look at the others.
                if reaped % SHOWN_EARLY == 0 {
                    self.publish();
                    self.dispatch();
                }
            }
            self.wake_sleepers();
            self.publish();
        }
    }

    fn completed(&mut self, done: &cqueue::Entry) {
        match Token::unpack(done.user_data()) {
            Token::Wake => {
                let mut count = [0u8; 8];
                let _ = rustix::io::read(&*self.wake, &mut count);
                if !cqueue::more(done.flags()) {
                    self.watch_wake();
                }
                self.obey();
            }
            Token::Ignore => {}
            Token::Io(slot) => self.advanced(slot as usize, done.result()),
            Token::Kick(place) => {
                if self.at(place).is_some() {
                    self.make_ready(usize::from(place.device), u16::from(place.queue));
                    if !cqueue::more(done.flags()) {
                        self.watch_kick(place);
                    }
                }
            }
            Token::Call(place) => {
                if let Some(running) = self.at(place) {
                    running.call_busy = false;
                    if std::mem::take(&mut running.call_again) {
                        self.call(place);
                    }
                }
            }
        }
    }

    fn obey(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Add(disk, reply)) => {
                    let _ = reply.send(self.add(disk));
                }
                Ok(Command::Start(id, queue, start, reply)) => {
                    let _ = reply.send(self.start(id, queue, *start));
                }
                Ok(Command::Stop(id, queue, reply)) => {
                    match self.running(id, queue) {
                        Some(running) => running.stopping = Some(reply),
                        None => drop(reply.send(None)),
                    }
                    self.settle(id.index, queue);
                }
                Ok(Command::SetCall(id, queue, call)) => {
                    // The old eventfd may still be on the submission queue by number.
                    let _ = self.ring.submit();
                    if let Some(running) = self.running(id, queue) {
                        running.call = call;
                    }
                }
                Ok(Command::Remove(id, reply)) => match self.device(id) {
                    Some(device) => {
                        device.removing = Some(reply);
                        for queue in 0..device.queues.len() {
                            if let Some(running) = &mut device.queues[queue] {
                                running.broken = true;
                            }
                        }
                        self.settle_device(id.index);
                    }
                    None => drop(reply.send(())),
                },
                Ok(Command::LimitsChanged) => self.limits_changed(),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.ended = true;
                    return;
                }
            }
        }
    }

    fn add(&mut self, disk: Arc<Disk>) -> std::io::Result<DeviceId> {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let device = Device::new(disk, generation)?;
        let index = match self.devices.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.devices.len() < MAX_DEVICES => {
                self.devices.push(None);
                self.devices.len() - 1
            }
            None => return Err(std::io::Error::from(std::io::ErrorKind::QuotaExceeded)),
        };
        self.turns[device.lane as usize].join(index, device.disk.qos.weight());
        self.devices[index] = Some(device);
        Ok(DeviceId { index, generation })
    }

    fn start(&mut self, id: DeviceId, queue: u16, start: QueueStart) -> Result<(), QueueError> {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let Some(device) = self.device(id) else {
            return Ok(());
        };
        let Some(place) = device.queues.get_mut(usize::from(queue)) else {
            return Err(QueueError::Index(queue));
        };
        *place = Some(Running::new(start, generation)?);
        self.watch_kick(Place {
            device: id.index as u16,
            queue: queue as u8,
            generation,
        });
        self.make_ready(id.index, queue);
        Ok(())
    }

    /// Ends a queue that is told to stop and has nothing outstanding.
    pub(super) fn settle(&mut self, device: usize, queue: u16) {
        if let Some(running) = self.slot_queue(device, queue)
            && running.outstanding == 0
            && !running.touched
            && let Some(reply) = running.stopping.take()
        {
            let base = running.queue.base();
            self.forget(device, queue);
            let _ = reply.send(Some(base));
        }
        self.settle_device(device);
    }

    /// Drops a device that is told to go and has nothing outstanding.
    fn settle_device(&mut self, device: usize) {
        let Some(dev) = self.devices.get(device).and_then(Option::as_ref) else {
            return;
        };
        let idle = |r: &Running| r.outstanding == 0 && !r.touched;
        if dev.removing.is_none() || !dev.queues.iter().flatten().all(idle) {
            return;
        }
        for queue in 0..dev.queues.len() as u16 {
            self.forget(device, queue);
        }
        self.turns.iter_mut().for_each(|turns| turns.leave(device));
        if let Some(mut dev) = self.devices[device].take()
            && let Some(reply) = dev.removing.take()
        {
            let _ = reply.send(());
        }
    }

    fn forget(&mut self, device: usize, queue: u16) {
        let Some(dev) = self.devices[device].as_mut() else {
            return;
        };
        dev.ready.retain(|ready| *ready != queue);
        if let Some(running) = dev.queues[usize::from(queue)].take() {
            let place = Place {
                device: device as u16,
                queue: queue as u8,
                generation: running.generation,
            };
            let cancel = opcode::PollRemove::new(Token::Kick(place).pack());
            self.push(cancel.build().user_data(Token::Ignore.pack()));
            // The call's eventfd may still be on the submission queue by number.
            let _ = self.ring.submit();
        }
    }

    fn watch_wake(&mut self) {
        let fd = types::Fd(self.wake.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true);
        self.push(poll.build().user_data(Token::Wake.pack()));
    }

    fn watch_kick(&mut self, place: Place) {
        if let Some(running) = self.at(place) {
            let fd = types::Fd(running.kick.as_raw_fd());
            let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true);
            self.push(poll.build().user_data(Token::Kick(place).pack()));
        }
    }

    /// Puts an entry on the submission queue.
    pub(super) fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: what the entry points to (a slot's vectors, guest memory, ONE)
        // outlives the operation: slots and queues are freed on completion only.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            if self.ring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }

    fn device(&mut self, id: DeviceId) -> Option<&mut Device> {
        self.devices
            .get_mut(id.index)?
            .as_mut()
            .filter(|d| d.generation == id.generation)
    }

    fn running(&mut self, id: DeviceId, queue: u16) -> Option<&mut Running> {
        self.device(id)?
            .queues
            .get_mut(usize::from(queue))?
            .as_mut()
    }

    /// A running queue by indices.
    pub(super) fn slot_queue(&mut self, device: usize, queue: u16) -> Option<&mut Running> {
        self.devices
            .get_mut(device)?
            .as_mut()?
            .queues
            .get_mut(usize::from(queue))?
            .as_mut()
    }

    /// A running queue, if it is still this start of it.
    pub(super) fn at(&mut self, place: Place) -> Option<&mut Running> {
        self.slot_queue(usize::from(place.device), u16::from(place.queue))
            .filter(|r| r.generation == place.generation)
    }
}
