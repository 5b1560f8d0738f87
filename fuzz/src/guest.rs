//! A device that the VMM serves by itself, and a driver that says whatever it likes.

use ocs_vmm::events::Handler;
use ocs_vmm::memory::{self, GuestRam};
use ocs_vmm::virtio::hosted::{Hosted, Model};
use ocs_vmm::virtio::queue::VirtQueue;
use ocs_vmm::virtio::{
    Activation, F_EVENT_IDX, F_VERSION_1, Fault, STATUS_NEEDS_RESET, VirtioDevice,
};
use rustix::event::epoll::EventFlags;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Each queue's table, available and used ring: close together, so that what is changed in them
/// at random is something.
const QUEUE_STEP: u64 = 0x400;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x180;
/// Behind the rings of the device with most queues.
const BUFFERS: u64 = 0x1400;
const BUFFER_BYTES: u64 = 0x4000;
const SIZE: u16 = 16;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
/// `SOURCE_AGAIN` of [`Hosted`]: look at everything.
const EVERYTHING: u32 = u32::MAX;

/// Rings of zeros; buffers of ones, which as numbers of pages mean none: a balloon with the same
/// page over and over would spend the time on giving it back.
static FRESH: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut fresh = vec![0; BUFFERS as usize];
    fresh.resize((BUFFERS + BUFFER_BYTES) as usize, 0xff);
    fresh
});
/// What inputs share, since making it anew takes most of an input's time.
static RAM: LazyLock<GuestRam> = LazyLock::new(|| memory::create(16).expect("memory"));
static KICK: LazyLock<Arc<EventFd>> = LazyLock::new(|| Arc::new(event()));

/// One buffer of a chain: where (of low memory, or far off), how long, its flags.
pub type Part = (u32, u16, u8);
/// What the driver does: offer a chain on a queue with these bytes in its first buffer, after
/// some bytes of the rings were changed.
pub type Turn = (u8, Vec<Part>, Vec<u8>, Vec<(u16, u8)>);

/// The device and its driver's place in each ring.
pub struct Guest<M> {
    pub hosted: Hosted<M>,
    status: Arc<AtomicU8>,
    offered: Vec<u16>,
    next: Vec<u16>,
    taken: Vec<u16>,
}

impl<M: Model> Guest<M> {
    /// With all queues ready.
    pub fn new(model: M, event_idx: bool) -> Self {
        RAM.write_slice(&FRESH, GuestAddress(0)).expect("inside");
        let mut hosted = Hosted::new(model).expect("an eventfd");
        let count = hosted.queue_sizes().len();
        let status = Arc::new(AtomicU8::new(0xf));
        let counters = Arc::default();
        let fault = Fault::new("fuzz".into(), Arc::clone(&status), None, counters);
        let queues = (0..count as u64).map(|index| Some(queue(index, event_idx)));
        let features = F_VERSION_1 | if event_idx { F_EVENT_IDX } else { 0 };
        let activation = Activation {
            ram: RAM.clone(),
            features,
            queues: queues.collect(),
            fault,
        };
        hosted.activate(activation).expect("all queues are there");
        Self {
            hosted,
            status,
            offered: vec![0; count],
            next: vec![0; count],
            taken: vec![0; count],
        }
    }

    /// Has the driver do something, and the device look at it.
    pub fn turn(&mut self, (queue, parts, bytes, patches): &Turn) {
        let index = usize::from(*queue) % self.offered.len();
        if !parts.is_empty() {
            self.offer(index, parts, bytes);
        }
        for (at, value) in patches.iter().take(16) {
            let at = u64::from(*at) % BUFFERS;
            RAM.write_obj(*value, GuestAddress(at)).expect("inside");
        }
        self.ready(index as u32, EventFlags::IN);
    }

    fn offer(&mut self, index: usize, parts: &[Part], bytes: &[u8]) {
        let table = index as u64 * QUEUE_STEP;
        let head = self.next[index];
        for (number, (at, len, flags)) in parts.iter().enumerate().take(usize::from(SIZE)) {
            let place = self.next[index];
            let next = (place + 1) % SIZE;
            // Most lie in the buffers, where bytes are put; some anywhere.
            let at = match at >> 30 {
                0 => BUFFERS + u64::from(*at) % BUFFER_BYTES,
                1 => u64::from(*at),
                _ => u64::from(*at) << 20,
            };
            if number == 0 && at < 15 << 20 {
                let _ = RAM.write_slice(&bytes[..bytes.len().min(4096)], GuestAddress(at));
            }
            let more = if number + 1 < parts.len() { F_NEXT } else { 0 };
            let flags = u16::from(flags & 7) | more;
            let entry = GuestAddress(table + u64::from(place) * 16);
            RAM.write_obj(at, entry).expect("inside");
            // Few are long, which costs more than it shows.
            let len = if flags >> 3 == 31 { *len } else { len & 0x3ff };
            RAM.write_obj(u32::from(len), entry_at(entry, 8))
                .expect("inside");
            RAM.write_obj(flags, entry_at(entry, 12)).expect("inside");
            RAM.write_obj(next, entry_at(entry, 14)).expect("inside");
            self.next[index] = next;
        }
        let slot = u64::from(self.offered[index] % SIZE);
        self.offered[index] = self.offered[index].wrapping_add(1);
        let avail = table + AVAILABLE;
        RAM.write_obj(head, GuestAddress(avail + 4 + slot * 2))
            .expect("inside");
        RAM.write_obj(self.offered[index], GuestAddress(avail + 2))
            .expect("inside");
    }

    /// Something is ready; the device looks again as long as it asks for that, within bounds.
    pub fn ready(&mut self, source: u32, flags: EventFlags) {
        assert!(self.hosted.ready(source, flags), "the loop was ended");
        assert!(self.hosted.ready(EVERYTHING, EventFlags::IN));
    }

    /// The next chain that the device gave back on a queue: its head, and bytes written.
    pub fn take(&mut self, index: usize) -> Option<(u16, u32)> {
        let used = index as u64 * QUEUE_STEP + USED;
        let count: u16 = RAM.read_obj(GuestAddress(used + 2)).expect("inside");
        if count == self.taken[index] {
            return None;
        }
        let slot = u64::from(self.taken[index] % SIZE);
        self.taken[index] = self.taken[index].wrapping_add(1);
        let entry = GuestAddress(used + 4 + slot * 8);
        let head: u32 = RAM.read_obj(entry).expect("inside");
        let written = RAM.read_obj(entry_at(entry, 4)).expect("inside");
        Some((u16::try_from(head).unwrap_or(u16::MAX), written))
    }

    /// What lies in the only buffer of the chain at `head`: where there are more of them, or this
    /// one reaches into the rings, what is written later may lie over what was written first.
    pub fn bytes(&self, index: usize, head: u16, len: usize) -> Option<Vec<u8>> {
        let entry = GuestAddress(index as u64 * QUEUE_STEP + u64::from(head % SIZE) * 16);
        let at: u64 = RAM.read_obj(entry).ok()?;
        let room: u32 = RAM.read_obj(entry_at(entry, 8)).ok()?;
        let flags: u16 = RAM.read_obj(entry_at(entry, 12)).ok()?;
        if at < BUFFERS || flags != F_WRITE || (room as usize) < len {
            return None;
        }
        let mut bytes = vec![0; len];
        RAM.read_slice(&mut bytes, GuestAddress(at)).ok()?;
        Some(bytes)
    }

    /// Did the device give up on the driver?
    pub fn needs_reset(&self) -> bool {
        self.status.load(Ordering::SeqCst) & STATUS_NEEDS_RESET != 0
    }

    /// Whatever happened: the device stands still when asked, its state goes into one like it and
    /// comes out the same, and a reset mends it.
    pub fn end(mut self, like_it: M) {
        self.hosted.pause().expect("models do not fail to stop");
        let saved = self.hosted.save().expect("while paused");
        assert_eq!(saved.queues.is_none(), self.needs_reset());
        let mut other = Hosted::new(like_it).expect("an eventfd");
        other.load(&saved.own).expect("what was saved loads");
        assert_eq!(other.save().expect("again").own, saved.own);
        self.hosted.resume();
        self.ready(EVERYTHING, EventFlags::IN);
        self.hosted.reset();
        assert!(self.hosted.save().expect("after a reset").queues.is_none());
    }
}

fn entry_at(entry: GuestAddress, offset: u64) -> GuestAddress {
    GuestAddress(entry.0 + offset)
}

fn queue(index: u64, event_idx: bool) -> VirtQueue {
    let at = |offset: u64| Some((index * QUEUE_STEP + offset) as u32);
    let mut queue = Queue::new(SIZE).expect("a power of two");
    queue.set_desc_table_address(at(0), Some(0));
    queue.set_avail_ring_address(at(AVAILABLE), Some(0));
    queue.set_used_ring_address(at(USED), Some(0));
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    // One of them interrupts.
    let call = (index == 0).then(|| KICK.try_clone().expect("a descriptor"));
    VirtQueue::new(queue, RAM.clone(), Arc::clone(&KICK), call)
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd")
}
