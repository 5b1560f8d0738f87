//! The shard's loop.

use super::device::{Device, Running, Scratch};
use super::slot::{Op, Slot, Step, Vector};
use super::{Call, Command, DeviceId, QueueStart};
use crate::disk::{Backing, Disk, FileBacking, Stats};
use crate::queue::QueueError;
use crate::request::{Kind, STATUS_OK};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

const SUBMISSIONS: u32 = 256;
const COMPLETIONS: u32 = 4096;
/// What is added to a call eventfd.
static ONE: u64 = 1;

/// What a completion belongs to: packed into the ring's 64-bit user data.
#[derive(Clone, Copy)]
enum Token {
    Wake,
    Ignore,
    Io(u32),
    Kick(Place),
    Call(Place),
}

/// A start of a queue.
#[derive(Clone, Copy)]
struct Place {
    device: u16,
    queue: u8,
    generation: u32,
}

impl Token {
    fn pack(self) -> u64 {
        let place = |tag: u64, p: Place| {
            tag << 56
                | u64::from(p.queue) << 48
                | u64::from(p.device) << 32
                | u64::from(p.generation)
        };
        match self {
            Self::Wake => 0,
            Self::Ignore => 1 << 56,
            Self::Io(slot) => 2 << 56 | u64::from(slot),
            Self::Kick(p) => place(3, p),
            Self::Call(p) => place(4, p),
        }
    }

    fn unpack(data: u64) -> Self {
        let place = Place {
            device: (data >> 32) as u16,
            queue: (data >> 48) as u8,
            generation: data as u32,
        };
        match data >> 56 {
            0 => Self::Wake,
            2 => Self::Io(data as u32),
            3 => Self::Kick(place),
            4 => Self::Call(place),
            _ => Self::Ignore,
        }
    }
}

/// Most devices of a shard.
pub const MAX_DEVICES: usize = 4096;

/// A shard's thread.
pub struct Worker {
    ring: IoUring,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    devices: Vec<Option<Device>>,
    #[expect(
        clippy::vec_box,
        reason = "the kernel reads a slot's window_iov, so it may not move"
    )]
    slots: Vec<Box<Slot>>,
    free: Vec<usize>,
    ready: VecDeque<(usize, u16)>,
    touched: Vec<(usize, u16)>,
    scratch: Scratch,
    generation: u32,
    ended: bool,
}

impl Worker {
    /// Sets up the ring; in the thread that will run it (`SINGLE_ISSUER`).
    pub fn new(commands: Receiver<Command>, wake: Arc<OwnedFd>) -> std::io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let mut worker = Self {
            ring,
            commands,
            wake,
            devices: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            touched: Vec::new(),
            scratch: Scratch::default(),
            generation: 0,
            ended: false,
        };
        worker.watch_wake();
        Ok(worker)
    }

    /// Serves until the last handle is gone.
    pub fn run(mut self) {
        while !self.ended {
            for _ in 0..self.ready.len() {
                if let Some((device, queue)) = self.ready.pop_front() {
                    self.serve(device, queue);
                }
            }
            self.publish();
            let wanted = usize::from(self.ready.is_empty());
            if let Err(error) = self.ring.submit_and_wait(wanted)
                && !matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)
                )
            {
                tracing::error!(%error, "the ring cannot be entered");
                return;
            }
            loop {
                let done = self.ring.completion().next();
                let Some(done) = done else { break };
                self.completed(&done);
            }
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
        let (running, replay) = Running::new(start, generation)?;
        *place = Some(running);
        for head in replay {
            if !self.take(id.index, queue, head) {
                break;
            }
        }
        self.watch_kick(Place {
            device: id.index as u16,
            queue: queue as u8,
            generation,
        });
        self.make_ready(id.index, queue);
        Ok(())
    }

    fn make_ready(&mut self, device: usize, queue: u16) {
        let running = self.devices[device]
            .as_mut()
            .and_then(|d| d.queues[usize::from(queue)].as_mut());
        if let Some(running) = running
            && running.accepts()
            && !std::mem::replace(&mut running.ready, true)
        {
            self.ready.push_back((device, queue));
        }
    }

    /// Pops what the driver offers, at most one ring's worth before others' turn.
    fn serve(&mut self, device: usize, queue: u16) {
        let Some(running) = self.slot_queue(device, queue) else {
            return;
        };
        running.ready = false;
        for _ in 0..crate::queue::MAX_QUEUE_SIZE {
            let Some(running) = self.slot_queue(device, queue) else {
                return;
            };
            if !running.accepts() {
                return;
            }
            match running.queue.pop() {
                Ok(Some(head)) => {
                    if !self.take(device, queue, head) {
                        return;
                    }
                }
                Ok(None) => {
                    // Show completions before asking to be told: a driver that
                    // polls then goes on, and its next chain needs no kick.
                    self.publish();
                    let Some(running) = self.slot_queue(device, queue) else {
                        return;
                    };
                    if !running.queue.enable_kicks() {
                        return;
                    }
                }
                Err(error) => return self.broke(device, queue, &error),
            }
        }
        self.make_ready(device, queue);
    }

    /// Begins the request at `head`; false if it broke the queue.
    fn take(&mut self, device: usize, queue: u16, head: u16) -> bool {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Box::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        (slot.device, slot.queue) = (device, queue);
        let Some(dev) = self.devices[device].as_mut() else {
            return false;
        };
        let Some(running) = dev.queues[usize::from(queue)].as_mut() else {
            return false;
        };
        if let Err(error) = running.load(head, &dev.disk, slot, &mut self.scratch) {
            self.free.push(index);
            self.broke(device, queue, &error);
            return false;
        }
        running.outstanding += 1;
        if dev.waiting.is_empty()
            && let Some(window) = dev.admit(slot)
        {
            let step = slot.begin(&dev.disk, &dev.bounce, window);
            self.drive(index, step);
            self.wake_waiting(device);
        } else {
            dev.waiting.push_back(index);
        }
        true
    }

    fn advanced(&mut self, index: usize, result: i32) {
        let slot = &mut self.slots[index];
        let device = slot.device;
        if let Some(dev) = &self.devices[device] {
            let step = slot.advance(&dev.disk, &dev.bounce, result);
            self.drive(index, step);
            self.wake_waiting(device);
        }
    }

    /// Begins waiting requests as far as they can.
    fn wake_waiting(&mut self, device: usize) {
        while let Some(dev) = self.devices[device].as_mut()
            && let Some(&index) = dev.waiting.front()
            && let Some(window) = dev.admit(&self.slots[index])
        {
            dev.waiting.pop_front();
            let step = self.slots[index].begin(&dev.disk, &dev.bounce, window);
            self.drive(index, step);
        }
    }

    /// Runs a request until it waits for the ring or is done.
    fn drive(&mut self, index: usize, mut step: Step) {
        loop {
            let slot = &mut self.slots[index];
            let Some(dev) = &self.devices[slot.device] else {
                return;
            };
            match (step, &dev.disk.backing) {
                (Step::Submit(op), Backing::File(file)) if file.inline => {
                    let result = run(&op, file);
                    step = slot.advance(&dev.disk, &dev.bounce, result);
                }
                (Step::Submit(op), Backing::File(file)) => {
                    let entry = entry(&op, file).user_data(Token::Io(index as u32).pack());
                    return self.push(entry);
                }
                (Step::Submit(_), Backing::Null) => return,
                (Step::Done(status), _) => return self.complete(index, status),
            }
        }
    }

    fn complete(&mut self, index: usize, status: u8) {
        let slot = &mut self.slots[index];
        self.free.push(index);
        let (device, queue) = (slot.device, slot.queue);
        let Some(dev) = self.devices[device].as_mut() else {
            return;
        };
        if let Some(window) = slot.take_window() {
            dev.bounce.give(window);
        }
        dev.exclusive = false;
        dev.running -= 1;
        count(&dev.disk, slot.kind, status);
        let Some(running) = dev.queues[usize::from(queue)].as_mut() else {
            return;
        };
        // SAFETY: `status` was translated in the memory that `running` keeps alive.
        unsafe { slot.status.write_volatile(status) };
        let written = match slot.kind {
            Kind::Read(_) | Kind::GetId if status == STATUS_OK => slot.data_bytes as u32 + 1,
            _ => 1,
        };
        running.queue.push(slot.head, written);
        running.outstanding -= 1;
        if !std::mem::replace(&mut running.touched, true) {
            self.touched.push((device, queue));
        }
    }

    /// Shows staged completions to their drivers and interrupts those that ask.
    fn publish(&mut self) {
        for at in (0..self.touched.len()).rev() {
            let (device, queue) = self.touched[at];
            if let Some(running) = self.slot_queue(device, queue) {
                running.touched = false;
                if running.queue.publish() {
                    let generation = running.generation;
                    self.call(Place {
                        device: device as u16,
                        queue: queue as u8,
                        generation,
                    });
                }
                self.settle(device, queue);
            }
        }
        self.touched.clear();
    }

    fn call(&mut self, place: Place) {
        let Some(running) = self.at(place) else {
            return;
        };
        let Some(call) = &running.call else {
            return;
        };
        if call.plain {
            let _ = rustix::io::write(&call.file, &ONE.to_ne_bytes());
        } else if running.call_busy {
            running.call_again = true;
        } else {
            running.call_busy = true;
            let entry = signal(call).user_data(Token::Call(place).pack());
            self.push(entry);
        }
    }

    fn broke(&mut self, device: usize, queue: u16, error: &dyn std::error::Error) {
        tracing::warn!(device, queue, %error, "queue broken by its driver");
        let Some(dev) = &mut self.devices[device] else {
            return;
        };
        Stats::bump(&dev.disk.stats.errors);
        let Some(running) = &mut dev.queues[usize::from(queue)] else {
            return;
        };
        running.broken = true;
        if let Some(err) = &running.err {
            let entry = signal(err).user_data(Token::Ignore.pack());
            self.push(entry);
        }
    }

    /// Ends a queue that is told to stop and has nothing outstanding.
    fn settle(&mut self, device: usize, queue: u16) {
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

    fn push(&mut self, entry: squeue::Entry) {
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

    fn slot_queue(&mut self, device: usize, queue: u16) -> Option<&mut Running> {
        self.devices
            .get_mut(device)?
            .as_mut()?
            .queues
            .get_mut(usize::from(queue))?
            .as_mut()
    }

    fn at(&mut self, place: Place) -> Option<&mut Running> {
        self.slot_queue(usize::from(place.device), u16::from(place.queue))
            .filter(|r| r.generation == place.generation)
    }
}

/// Adds one to an eventfd, by the ring.
fn signal(call: &Call) -> squeue::Entry {
    let fd = types::Fd(call.file.as_raw_fd());
    opcode::Write::new(fd, (&raw const ONE).cast(), 8).build()
}

fn count(disk: &Disk, kind: Kind, status: u8) {
    let stats = &disk.stats;
    match (status, kind) {
        (STATUS_OK, Kind::Read(_)) => Stats::bump(&stats.reads),
        (STATUS_OK, Kind::Write(_)) => Stats::bump(&stats.writes),
        (STATUS_OK, Kind::Flush) => Stats::bump(&stats.flushes),
        (STATUS_OK, _) => {}
        _ => Stats::bump(&stats.errors),
    }
}

/// The descriptor that serves a transfer.
fn descriptor(file: &FileBacking, direct: bool) -> i32 {
    match &file.direct {
        Some(fd) if direct => fd.as_raw_fd(),
        _ => file.buffered.as_raw_fd(),
    }
}

/// `op` for the ring.
fn entry(op: &Op, file: &FileBacking) -> squeue::Entry {
    let fd = |v: &Vector| types::Fd(descriptor(file, v.direct));
    match op {
        Op::Readv(v) => opcode::Readv::new(fd(v), v.iov, v.count)
            .offset(v.offset)
            .build(),
        Op::Writev(v) => opcode::Writev::new(fd(v), v.iov, v.count)
            .offset(v.offset)
            .rw_flags(if v.dsync { libc::RWF_DSYNC } else { 0 })
            .build(),
        Op::Sync => opcode::Fsync::new(types::Fd(file.buffered.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Op::Allocate { mode, offset, len } => {
            opcode::Fallocate::new(types::Fd(file.buffered.as_raw_fd()), *len)
                .offset(*offset)
                .mode(*mode)
                .build()
        }
    }
}

/// `op` at once, by a system call; bytes or `-errno`.
fn run(op: &Op, file: &FileBacking) -> i32 {
    let fd = file.buffered.as_raw_fd();
    // SAFETY: the vectors point to live memory, as their slot's contract says.
    let result = unsafe {
        match *op {
            Op::Readv(v) => libc::preadv(fd, v.iov, v.count as i32, v.offset as i64),
            Op::Writev(v) => libc::pwritev(fd, v.iov, v.count as i32, v.offset as i64),
            Op::Sync => libc::fdatasync(fd) as isize,
            Op::Allocate { mode, offset, len } => {
                libc::fallocate(fd, mode, offset as i64, len as i64) as isize
            }
        }
    };
    if result < 0 {
        return -std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
    }
    i32::try_from(result).unwrap_or(i32::MAX)
}
