//! A driver for models: rings in guest memory, chains in and out.

use super::*;
use crate::memory;
use crate::virtio::STATUS_NEEDS_RESET;
use std::sync::atomic::{AtomicU8, Ordering};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
/// Each queue's table, available and used ring.
const QUEUE_STEP: u64 = 0x4000;
const BUFFERS: u64 = 0x10_0000;
/// Queues have this size, or less where the device has less.
const SIZE: u16 = 64;

/// A guest with a driver of one device.
pub(crate) struct Guest {
    pub ram: GuestRam,
    pub status: Arc<AtomicU8>,
    calls: Vec<EventFd>,
    queues: Vec<Ring>,
    next_buffer: u64,
}

#[derive(Clone, Copy, Default)]
struct Ring {
    size: u16,
    offered: u16,
    taken: u16,
    next_descriptor: u16,
}

impl Guest {
    /// Makes all queues of `hosted` ready.
    pub fn attach<M: Model>(hosted: &mut Hosted<M>, features: u64) -> Self {
        let ram = memory::create_in_small_pages(16);
        let status = Arc::new(AtomicU8::new(0xf));
        let sizes: Vec<u16> = hosted.queue_sizes().iter().map(|s| SIZE.min(*s)).collect();
        let mut queues = Vec::new();
        let mut calls = Vec::new();
        for (index, size) in (0u64..).zip(&sizes) {
            let at = 0x1000 + index * QUEUE_STEP;
            let mut queue = Queue::new(*size).unwrap();
            queue.set_desc_table_address(Some(u32::try_from(at).unwrap()), Some(0));
            queue.set_avail_ring_address(Some(u32::try_from(at + 0x1000).unwrap()), Some(0));
            queue.set_used_ring_address(Some(u32::try_from(at + 0x2000).unwrap()), Some(0));
            queue.set_ready(true);
            let call = new_event().unwrap();
            let kick = Arc::new(new_event().unwrap());
            queues.push(Some(VirtQueue::new(
                queue,
                ram.clone(),
                kick,
                Some(call.try_clone().unwrap()),
            )));
            calls.push(call);
        }
        let fault = Fault::new("test".into(), Arc::clone(&status), None, Arc::default());
        hosted
            .activate(Activation {
                ram: ram.clone(),
                features,
                queues,
                fault,
            })
            .unwrap();
        Self {
            ram,
            status,
            calls,
            queues: sizes
                .iter()
                .map(|size| Ring {
                    size: *size,
                    ..Ring::default()
                })
                .collect(),
            next_buffer: BUFFERS,
        }
    }

    /// Offers one chain on queue `index`: readable parts, then rooms to write. Yields where the
    /// first of the rooms (or, without any, of the parts) lies.
    pub fn offer(&mut self, index: usize, readable: &[&[u8]], writable: &[u32]) -> u64 {
        let mut parts = Vec::new();
        for part in readable {
            let at = self.next_buffer;
            self.ram.write_slice(part, GuestAddress(at)).unwrap();
            parts.push((at, u32::try_from(part.len()).unwrap(), 0));
            self.next_buffer += part.len() as u64;
        }
        for room in writable {
            parts.push((self.next_buffer, *room, F_WRITE));
            self.next_buffer += u64::from(*room);
        }
        if self.next_buffer > 14 << 20 {
            self.next_buffer = BUFFERS;
        }
        self.offer_raw(index, &parts);
        let first = parts.iter().find(|part| part.2 == F_WRITE);
        first.or(parts.first()).map_or(0, |part| part.0)
    }

    /// Offers a chain of buffers that are where they are.
    pub fn offer_raw(&mut self, index: usize, parts: &[(u64, u32, u16)]) {
        let table = 0x1000 + index as u64 * QUEUE_STEP;
        let ring = &mut self.queues[index];
        let head = ring.next_descriptor;
        for (i, (at, len, flags)) in parts.iter().enumerate() {
            let last = i + 1 == parts.len();
            let next = (ring.next_descriptor + 1) % ring.size;
            let flags = flags | if last { 0 } else { F_NEXT };
            let place = GuestAddress(table + u64::from(ring.next_descriptor) * 16);
            let descriptor = Descriptor::new(*at, *len, flags, next);
            self.ram.write_obj(descriptor, place).unwrap();
            ring.next_descriptor = next;
        }
        let slot = u64::from(ring.offered % ring.size);
        let avail = table + 0x1000;
        self.ram
            .write_obj(head, GuestAddress(avail + 4 + slot * 2))
            .unwrap();
        ring.offered = ring.offered.wrapping_add(1);
        self.ram
            .write_obj(ring.offered, GuestAddress(avail + 2))
            .unwrap();
    }

    /// The next chain that the device gave back: the bytes it says it wrote.
    pub fn take(&mut self, index: usize) -> Option<u32> {
        let used = 0x1000 + index as u64 * QUEUE_STEP + 0x2000;
        let ring = &mut self.queues[index];
        let count: u16 = self.ram.read_obj(GuestAddress(used + 2)).unwrap();
        if count == ring.taken {
            return None;
        }
        let slot = u64::from(ring.taken % ring.size);
        ring.taken = ring.taken.wrapping_add(1);
        let written = self.ram.read_obj(GuestAddress(used + 8 + slot * 8));
        Some(written.unwrap())
    }

    /// Memory of the guest.
    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Was the driver interrupted for queue `index` since the last look?
    pub fn interrupted(&self, index: usize) -> bool {
        self.calls[index].read().is_ok()
    }

    /// Did the device give up?
    pub fn needs_reset(&self) -> bool {
        self.status.load(Ordering::SeqCst) & STATUS_NEEDS_RESET != 0
    }
}

/// A kick of queue `index`.
pub(crate) fn kick<M: Model>(hosted: &mut Hosted<M>, index: usize) {
    let source = u32::try_from(index).unwrap();
    assert!(hosted.ready(source, EventFlags::IN), "the loop was ended");
}

/// Lets the device look at everything until it has nothing to do.
pub(crate) fn settle<M: Model>(hosted: &mut Hosted<M>) {
    for _ in 0..100 {
        assert!(hosted.ready(SOURCE_AGAIN, EventFlags::IN));
        if hosted.again.read().is_err() {
            return;
        }
    }
    panic!("the device never rests");
}

/// What every model owes: its state round-trips, and a driver that breaks the rules of a ring
/// is stopped and comes back with a reset.
pub(crate) fn keeps_the_contract<M: Model>(mut make: impl FnMut() -> M) {
    let mut hosted = Hosted::new(make()).unwrap();
    let mut guest = Guest::attach(&mut hosted, 0);
    hosted.pause().unwrap();
    let saved = hosted.save().unwrap();
    assert_eq!(
        saved.queues.as_ref().map(Vec::len),
        Some(hosted.queue_sizes().len())
    );
    let mut fresh = Hosted::new(make()).unwrap();
    fresh.load(&saved.own).unwrap();
    assert_eq!(fresh.save().unwrap().own, saved.own);
    assert!(fresh.load(&[&saved.own[..], &[0]].concat()).is_err());
    hosted.resume();
    settle(&mut hosted);

    // A chain that leaves memory.
    guest.offer_raw(0, &[(u64::MAX - 4096, 64, F_WRITE)]);
    kick(&mut hosted, 0);
    assert!(guest.needs_reset());
    kick(&mut hosted, 0);
    hosted.reset();
    let guest = Guest::attach(&mut hosted, 0);
    settle(&mut hosted);
    assert!(!guest.needs_reset());
    assert!(
        hosted
            .activate(Activation {
                ram: guest.ram.clone(),
                features: 0,
                queues: Vec::new(),
                fault: Fault::new("test".into(), Arc::default(), None, Arc::default()),
            })
            .is_err()
    );
}
