//! virtio-blk on a `virtio_drivers` queue, asynchronous throughout: a request that
//! nobody answers, because its backend is restarting, holds up nobody else.
//!
//! Buffers belong to the disk, never to a task, so a dropped task leaves nothing that
//! the device could still write to.

use super::transport::PciTransport;
use crate::hal::Hal;
use crate::{clock, executor};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use ocs_probe_logic::order::MAX_BENCH_DEPTH;
use virtio_drivers::Error;
use virtio_drivers::device::common::Feature;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};
use zerocopy::{Immutable, IntoBytes};

/// Bytes that one request moves at most.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Requests in flight at most; each has a buffer of [`CHUNK_BYTES`] once it is used.
pub const DEPTH: usize = MAX_BENCH_DEPTH as usize;
const SECTOR_BYTES: u64 = 512;
/// Three descriptors a request.
const QUEUE_SIZE: usize = 128;
/// How long the processor looks at the used ring before it halts: about what waking it by
/// an interrupt costs on a host without hardware virtualisation.
const POLL_US: u64 = 100;
const ID_BYTES: usize = 20;
/// How soon to ask again whether a reset has ended.
const RESET_RETRY_US: u64 = 1_000;

/// Feature bits (virtio 1.3 §5.2.3).
const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
/// What [`PciTransport::new`] should accept.
pub const FEATURES: u64 = READ_ONLY | FLUSH;

/// `struct virtio_blk_req` up to its data (§5.2.6).
#[repr(C)]
#[derive(IntoBytes, Immutable, Default)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
    GetId = 8,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// Status 1 of the device.
    Io,
    /// Status 2.
    Unsupported,
    /// Any other status.
    Status(u8),
    /// The queue refused it.
    Queue(Error),
    /// It lies outside of the disk.
    OutOfRange,
    /// A write to a disk that is read-only.
    ReadOnly,
    /// The disk was taken away.
    Gone,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io => f.write_str("io"),
            Self::Unsupported => f.write_str("unsupported"),
            Self::Status(status) => write!(f, "status-{status}"),
            Self::Queue(error) => write!(f, "queue ({error})"),
            Self::OutOfRange => f.write_str("out-of-range"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::Gone => f.write_str("gone"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Free,
    InFlight(u16),
    Done,
}

struct Slot {
    state: SlotState,
    kind: Kind,
    header: Box<Header>,
    status: Box<[u8; 1]>,
    buffer: Vec<u8>,
    len: usize,
}

/// A block device.
pub struct Disk {
    size_bytes: Cell<u64>,
    /// Whether the device refuses writes.
    pub read_only: bool,
    can_flush: bool,
    gone: Cell<bool>,
    inner: RefCell<Inner>,
}

struct Inner {
    transport: PciTransport,
    queue: VirtQueue<Hal, QUEUE_SIZE>,
    slots: [Slot; DEPTH],
    in_flight: usize,
}

impl Disk {
    /// Brings the device up.
    pub fn new(mut transport: PciTransport) -> Result<Self, Error> {
        transport.begin_init(Feature::VERSION_1);
        let size_bytes = capacity(&transport)?;
        let queue = VirtQueue::new(&mut transport, 0, false, false)?;
        transport.finish_init();
        Ok(Self {
            size_bytes: Cell::new(size_bytes),
            read_only: transport.has(READ_ONLY),
            can_flush: transport.has(FLUSH),
            gone: Cell::new(false),
            inner: RefCell::new(Inner {
                transport,
                queue,
                slots: core::array::from_fn(|_| Slot {
                    state: SlotState::Free,
                    kind: Kind::Flush,
                    header: Box::default(),
                    status: Box::new([0]),
                    buffer: Vec::new(),
                    len: 0,
                }),
                in_flight: 0,
            }),
        })
    }

    /// Capacity, as it was last looked at.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.get()
    }

    /// How often the device said that its configuration changed, modulo 256.
    pub fn generation(&self) -> u32 {
        self.inner.borrow().transport.read_config_generation()
    }

    /// Looks at the capacity again.
    pub fn refresh(&self) {
        if let Ok(size_bytes) = capacity(&self.inner.borrow().transport) {
            self.size_bytes.set(size_bytes);
        }
    }

    /// Takes in what the device has done; true if tasks may see a change.
    pub fn poll(&self) -> bool {
        !self.is_gone() && self.inner.borrow_mut().poll()
    }

    /// Was it taken away?
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Lets the device go: whatever is in flight fails, once the device has stopped.
    pub async fn retire(&self) {
        self.gone.set(true);
        self.status_to(DeviceStatus::empty());
        loop {
            let status = self.inner.borrow().transport.get_status();
            // A device that is off the bus reads as ones.
            if status.is_empty() || status.contains(DeviceStatus::FAILED) {
                break;
            }
            executor::sleep_until(clock::now_us() + RESET_RETRY_US).await;
        }
        for slot in &mut self.inner.borrow_mut().slots {
            if matches!(slot.state, SlotState::InFlight(_)) {
                slot.state = SlotState::Done;
            }
        }
    }

    fn status_to(&self, status: DeviceStatus) {
        self.inner.borrow_mut().transport.set_status(status);
    }

    /// The serial (`VIRTIO_BLK_T_GET_ID`), printable part.
    pub async fn id(&self) -> Result<String, DiskError> {
        let slot = self.start(Kind::GetId, 0, ID_BYTES, |_| {}).await?;
        self.finish(slot, |bytes| {
            bytes
                .iter()
                .take_while(|b| **b != 0)
                .filter(|b| b.is_ascii_graphic())
                .map(|b| char::from(*b))
                .collect()
        })
        .await
    }

    /// Makes what was written durable.
    pub async fn flush(&self) -> Result<(), DiskError> {
        if !self.can_flush {
            return Ok(());
        }
        let slot = self.start(Kind::Flush, 0, 0, |_| {}).await?;
        self.finish(slot, |_| ()).await
    }

    /// Starts writing `len` bytes that `fill` makes.
    pub async fn start_write(
        &self,
        offset_bytes: u64,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<usize, DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.check(offset_bytes, len)?;
        self.start(Kind::Write, offset_bytes, len, fill).await
    }

    /// Starts reading `len` bytes.
    pub async fn start_read(&self, offset_bytes: u64, len: usize) -> Result<usize, DiskError> {
        self.check(offset_bytes, len)?;
        self.start(Kind::Read, offset_bytes, len, |_| {}).await
    }

    /// Waits for a started request and looks at its bytes.
    pub async fn finish<T>(
        &self,
        slot: usize,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, DiskError> {
        executor::wait(|| (self.inner.borrow().slots[slot].state == SlotState::Done).then_some(()))
            .await;
        let mut inner = self.inner.borrow_mut();
        let slot = &mut inner.slots[slot];
        slot.state = SlotState::Free;
        if self.is_gone() {
            return Err(DiskError::Gone);
        }
        match slot.status[0] {
            0 => Ok(look(&slot.buffer[..slot.len])),
            1 => Err(DiskError::Io),
            2 => Err(DiskError::Unsupported),
            other => Err(DiskError::Status(other)),
        }
    }

    fn check(&self, offset_bytes: u64, len: usize) -> Result<(), DiskError> {
        let inside = offset_bytes
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.size_bytes.get());
        let whole = len > 0
            && len <= CHUNK_BYTES
            && offset_bytes.is_multiple_of(SECTOR_BYTES)
            && (len as u64).is_multiple_of(SECTOR_BYTES);
        if inside && whole {
            Ok(())
        } else {
            Err(DiskError::OutOfRange)
        }
    }

    async fn start(
        &self,
        kind: Kind,
        offset_bytes: u64,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<usize, DiskError> {
        let index = executor::wait(|| {
            let inner = self.inner.borrow();
            inner.slots.iter().position(|s| s.state == SlotState::Free)
        })
        .await;
        if self.is_gone() {
            return Err(DiskError::Gone);
        }
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        let slot = &mut inner.slots[index];
        if slot.buffer.len() < len {
            let whole = if len > ID_BYTES { CHUNK_BYTES } else { len };
            slot.buffer = vec![0; whole];
        }
        slot.kind = kind;
        slot.len = len;
        slot.status[0] = 0xff;
        *slot.header = Header {
            kind: kind as u32,
            reserved: 0,
            sector: offset_bytes / SECTOR_BYTES,
        };
        fill(&mut slot.buffer[..len]);
        let token = slot
            .with_buffers(|inputs, outputs| {
                // SAFETY: the buffers are on the heap, owned by this slot, which nobody
                // touches while it is in flight, and the disk is never dropped.
                unsafe { inner.queue.add(inputs, outputs) }
            })
            .map_err(DiskError::Queue)?;
        slot.state = SlotState::InFlight(token);
        inner.in_flight += 1;
        executor::poll_for(POLL_US);
        if inner.queue.should_notify() {
            inner.transport.notify(0);
        }
        Ok(index)
    }
}

/// The configuration's first member (§5.2.4).
fn capacity(transport: &PciTransport) -> Result<u64, Error> {
    let sectors = transport.read_consistent(|| transport.read_config_space::<u64>(0))?;
    Ok(sectors.saturating_mul(SECTOR_BYTES))
}

impl Slot {
    /// The request as the queue wants it: header, data, status.
    fn with_buffers<T>(
        &mut self,
        f: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> T,
    ) -> T {
        let header = self.header.as_bytes();
        let data = &mut self.buffer[..self.len];
        let status = &mut self.status[..];
        match self.kind {
            Kind::Write => f(&[header, data], &mut [status]),
            Kind::Read | Kind::GetId => f(&[header], &mut [data, status]),
            Kind::Flush => f(&[header], &mut [status]),
        }
    }
}

impl Inner {
    fn poll(&mut self) -> bool {
        let mut moved = false;
        while let Some(token) = self.queue.peek_used() {
            let in_flight = SlotState::InFlight(token);
            let Some(slot) = self.slots.iter_mut().find(|s| s.state == in_flight) else {
                panic!("disk: the device completed request {token}, which is not in flight");
            };
            let queue = &mut self.queue;
            // SAFETY: these are the buffers that were added for this token.
            let popped = slot
                .with_buffers(|inputs, outputs| unsafe { queue.pop_used(token, inputs, outputs) });
            if popped.is_err() {
                break;
            }
            slot.state = SlotState::Done;
            self.in_flight -= 1;
            moved = true;
        }
        if moved && self.in_flight > 0 {
            executor::poll_for(POLL_US);
        }
        moved
    }
}

impl Drop for Disk {
    /// Stops the device before its rings and buffers are given back.
    fn drop(&mut self) {
        if !self.is_gone() {
            self.status_to(DeviceStatus::empty());
        }
    }
}
