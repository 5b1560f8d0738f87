//! A device of a shard: its queues, and the requests that must wait for others.

use super::bounce::Bounce;
use super::slot::Slot;
use super::{Call, QueueStart};
use crate::cow::head::Head;
use crate::dirty::QueueLog;
use crate::disk::{Backing, Disk};
use crate::memory::Memory;
use crate::queue::{Descriptor, Queue, QueueError};
use crate::request::{self, Kind, Limits, STATUS_IOERR, Segment};
use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// A queue that runs.
pub struct Running {
    /// Its rings.
    pub queue: Queue,
    /// Which start this is; completions of an older one are stale.
    pub generation: u32,
    /// Signalled by the driver.
    pub kick: File,
    /// Interrupts the driver.
    pub call: Option<Call>,
    /// Tells the frontend that the queue is broken.
    pub err: Option<Call>,
    /// Writes to `call` since one was last confirmed.
    pub calls: u32,
    /// A write to `call` that is to be confirmed is on the ring.
    pub call_busy: bool,
    /// Another is due after it.
    pub call_again: bool,
    /// In its device's list of ready queues.
    pub ready: bool,
    /// In the shard's list of queues that were found empty.
    pub parked: bool,
    /// Has staged completions.
    pub touched: bool,
    /// In flight when their server died, to be served again before anything else.
    replay: VecDeque<u16>,
    /// Popped and not completed.
    pub outstanding: usize,
    /// The driver broke it; nothing more is popped.
    pub broken: bool,
    /// Told once `outstanding` is zero; nothing more is popped.
    pub stopping: Option<Sender<Option<u16>>>,
    dsync: bool,
    zeroes: bool,
    log: Option<QueueLog>,
    // Behind `queue`, whose pointers lie in it.
    memory: Arc<Memory>,
}

impl Running {
    /// Starts a queue.
    pub fn new(start: QueueStart, generation: u32) -> Result<Self, QueueError> {
        let (queue, replay) = Queue::start(
            &start.memory,
            start.size,
            &start.addresses,
            start.base,
            start.event_idx,
            start.inflight,
        )?;
        Ok(Self {
            queue,
            generation,
            replay: replay.into(),
            kick: start.kick,
            call: start.call,
            err: start.err,
            calls: 0,
            call_busy: false,
            call_again: false,
            ready: false,
            parked: false,
            touched: false,
            outstanding: 0,
            broken: false,
            stopping: None,
            dsync: !start.flush,
            zeroes: start.zeroes,
            log: start.log,
            memory: start.memory,
        })
    }

    /// Notes what the chain at `head` gave to write, before its completion is shown.
    pub fn log_chain(&self, head: u16, scratch: &mut Scratch) {
        let Some(log) = &self.log else {
            return;
        };
        // One that its driver broke meanwhile is its driver's loss.
        if self
            .queue
            .chain(head, &self.memory, &mut scratch.chain)
            .is_ok()
        {
            for part in scratch.chain.iter().filter(|part| part.writable) {
                log.log.mark(part.addr, u64::from(part.len));
            }
        }
    }

    /// Notes that the used ring was written.
    pub fn log_used(&self) {
        if let Some(log) = &self.log
            && let Some(used) = log.used
        {
            log.log.mark(used, self.queue.used_bytes());
        }
    }

    /// The next chain to serve.
    pub fn next_head(&mut self) -> Result<Option<u16>, QueueError> {
        match self.replay.pop_front() {
            Some(head) => Ok(Some(head)),
            None => self.queue.pop(),
        }
    }

    /// Is there one?
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.replay.is_empty() || self.queue.has_more()
    }

    /// May another chain be popped?
    #[must_use]
    pub fn accepts(&self) -> bool {
        !self.broken && self.stopping.is_none()
    }

    /// Fills `slot` from the chain at `head`. An error means that the queue is broken.
    pub fn load(
        &self,
        head: u16,
        disk: &Disk,
        slot: &mut Slot,
        scratch: &mut Scratch,
    ) -> Result<(), LoadError> {
        self.queue.chain(head, &self.memory, &mut scratch.chain)?;
        let limits = Limits {
            size_bytes: disk.size_bytes,
            read_only: disk.read_only,
            zeroes: self.zeroes,
        };
        let read = |addr: u64, into: &mut [u8]| {
            let from = self.memory.translate(addr, into.len() as u64);
            if let Some(from) = from {
                // SAFETY: `translate` checked the whole range; the guest may race
                // and then has chosen the bytes itself.
                unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
            }
            from.is_some()
        };
        let parsed = request::parse(&scratch.chain, &limits, &mut scratch.segments, read)?;
        slot.status = self
            .memory
            .translate(parsed.status, 1)
            .ok_or(LoadError::Status(parsed.status))?;
        slot.head = head;
        slot.kind = parsed.kind;
        slot.data_bytes = parsed.data_bytes;
        slot.dsync = self.dsync;
        if !self.gather(&scratch.segments, &mut slot.iovecs) {
            slot.kind = Kind::Refuse(STATUS_IOERR);
        }
        Ok(())
    }

    /// Translates `segments`, joining neighbours; false if one is out of memory.
    fn gather(&self, segments: &[Segment], iovecs: &mut Vec<libc::iovec>) -> bool {
        iovecs.clear();
        for segment in segments {
            let len = segment.len as usize;
            let Some(host) = self.memory.translate(segment.addr, u64::from(segment.len)) else {
                return false;
            };
            match iovecs.last_mut() {
                Some(last) if last.iov_base as usize + last.iov_len == host as usize => {
                    last.iov_len += len;
                }
                _ => iovecs.push(libc::iovec {
                    iov_base: host.cast(),
                    iov_len: len,
                }),
            }
        }
        true
    }
}

/// Why a chain breaks its queue.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The chain is malformed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// It is no block request.
    #[error(transparent)]
    Frame(#[from] request::FrameError),
    /// Its status byte is outside of memory.
    #[error("the status byte at {0:#x} is not in shared memory")]
    Status(u64),
}

/// Buffers reused from request to request.
#[derive(Default)]
pub struct Scratch {
    chain: Vec<Descriptor>,
    segments: Vec<Segment>,
}

/// Devices whose backing is in memory are served at once, the others by the ring; each
/// kind takes turns among its own, since only the latter wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Nothing, or a file in RAM.
    Memory,
    /// A file on a disk.
    Disk,
}

/// Windows of an encrypted device by size, 768 KiB in all; a piece that finds none waits.
const LARGE_WINDOWS: u16 = 8;
const SMALL_WINDOWS: u16 = 64;

/// A device.
pub struct Device {
    /// What it serves.
    pub disk: Arc<Disk>,
    /// How it is served.
    pub lane: Lane,
    /// Which device of this index it is.
    pub generation: u32,
    /// By queue index.
    pub queues: Vec<Option<Running>>,
    /// Queues that may have something, in turn.
    pub ready: VecDeque<u16>,
    /// The request of which pieces are still to begin.
    pub cut: Option<usize>,
    /// A piece that waits for a window or for an exclusive one.
    pub waiting: Option<usize>,
    /// Cost of its pieces on the ring.
    pub held: u64,
    /// When it used the disk last.
    pub used_ns: u64,
    /// Holds its share of the disk, and waits for some of it.
    pub full: bool,
    /// Waits for its limits, until a time.
    pub asleep: bool,
    /// Since when it has begun nothing, while it waits for its limits.
    pub since_ns: u64,
    /// Windows for encryption.
    pub bounce: Bounce,
    /// The map of a volume with layers.
    pub head: Option<Box<Head>>,
    /// An exclusive piece runs.
    pub exclusive: bool,
    /// Pieces begun and not completed.
    pub running: usize,
    /// Told once nothing runs.
    pub removing: Option<Sender<()>>,
}

impl Device {
    /// A device without running queues.
    pub fn new(disk: Arc<Disk>, generation: u32) -> std::io::Result<Self> {
        let (encrypted, lane) = match disk.backing.file() {
            Some(file) if file.inline => (file.key.is_some(), Lane::Memory),
            Some(file) => (file.key.is_some(), Lane::Disk),
            None => (false, Lane::Memory),
        };
        let head = match &disk.backing {
            // One device at a time: two could not agree on what they claim.
            Backing::Layered(layered) => Some(layered.take()?),
            Backing::File(_) | Backing::Null => None,
        };
        Ok(Self {
            head,
            generation,
            lane,
            queues: (0..disk.queues).map(|_| None).collect(),
            ready: VecDeque::with_capacity(usize::from(disk.queues)),
            cut: None,
            waiting: None,
            held: 0,
            used_ns: 0,
            full: false,
            asleep: false,
            since_ns: 0,
            bounce: if encrypted {
                Bounce::new(LARGE_WINDOWS, SMALL_WINDOWS)?
            } else {
                Bounce::none()
            },
            exclusive: false,
            running: 0,
            removing: None,
            disk,
        })
    }

    /// Has it work that it has not begun?
    #[must_use]
    pub fn has_more(&self) -> bool {
        let offers = |running: &Running| running.accepts() && running.has_more();
        self.cut.is_some() || self.queues.iter().flatten().any(offers)
    }

    /// Takes what `piece` needs to begin: `None` if it must wait.
    pub fn admit(&mut self, piece: &Slot) -> Option<Option<u16>> {
        let exclusive = piece.needs_exclusive(&self.disk);
        if self.exclusive || (exclusive && self.running > 0) {
            return None;
        }
        let window = match piece.window_bytes(&self.disk) {
            0 => None,
            bytes => Some(self.bounce.take(bytes)?),
        };
        self.exclusive = exclusive;
        self.running += 1;
        Some(window)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let (Backing::Layered(layered), Some(head)) = (&self.disk.backing, self.head.take()) {
            layered.give_back(head);
        }
    }
}
