use super::*;
use crate::memory::{self, GuestRam};
use proptest::prelude::*;
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// From the rings of one of the guest's queues to those of the next.
const QUEUE_STEP: u32 = 0x1_0000;
const DISK_BYTES: usize = 1 << 20;
const GUEST_RING: u16 = 8;
const DESC: u64 = 0x1000;
const GUEST_AVAIL: u64 = 0x2000;
const GUEST_USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS_AT: u64 = 0x5000;
const BUFFER: u64 = 0x10_0000;

/// A guest with one request at a time, and a backend with a disk in memory.
struct Rig {
    ram: GuestRam,
    queues: Vec<(u16, VirtQueue)>,
    bounce: Bounce,
    disk: Vec<u8>,
    asked: u16,
}

impl Rig {
    fn new() -> Self {
        Self::with_queues(1, GUEST_RING)
    }

    fn with_queues(count: u16, size: u16) -> Self {
        let ram = memory::create(16).unwrap();
        let queue = |index: u16| {
            let at = |address: u64| Some(address as u32 + QUEUE_STEP * u32::from(index));
            let mut queue = Queue::new(size).unwrap();
            queue.set_size(size);
            queue.set_desc_table_address(at(DESC), None);
            queue.set_avail_ring_address(at(GUEST_AVAIL), None);
            queue.set_used_ring_address(at(GUEST_USED), None);
            queue.set_ready(true);
            let kick = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
            (index, VirtQueue::new(queue, ram.clone(), kick, None))
        };
        Self {
            queues: (0..count).map(queue).collect(),
            ram,
            bounce: Bounce::new().unwrap(),
            disk: (0..DISK_BYTES).map(|i| (i / 512) as u8).collect(),
            asked: 0,
        }
    }

    /// Serves all that the region's ring holds; the number of pieces.
    fn serve(&mut self) -> usize {
        let map = &self.bounce.map;
        let word = |at: usize| map.get_ref::<u16>(at).unwrap().load();
        let long = |at: usize| map.get_ref::<u32>(at).unwrap().load();
        let (mut pieces, mut used) = (0, word(USED + 2));
        while used != word(AVAIL + 2) {
            let head = usize::from(word(AVAIL + 4 + 2 * (usize::from(used) % RING)));
            let mut chain = Vec::new();
            let mut index = head;
            loop {
                let at = index * 16;
                chain.push((long(at) as usize, long(at + 8) as usize, word(at + 12)));
                if word(at + 12) & F_NEXT == 0 {
                    break;
                }
                index = usize::from(word(at + 14));
            }
            let header = chain[0].0;
            let (kind, sector) = (long(header), long(header + 8) as usize);
            let mut status = S_OK;
            for &(at, bytes, flags) in &chain[1..chain.len() - 1] {
                assert!(bytes <= DATA_BYTES);
                let data = map.get_slice(at, bytes).unwrap();
                let place = sector * 512..sector * 512 + bytes;
                match (kind, flags & F_WRITE != 0) {
                    (T_IN, true) if place.end <= DISK_BYTES => data.copy_from(&self.disk[place]),
                    (T_OUT, false) if place.end <= DISK_BYTES => {
                        data.copy_to(&mut self.disk[place]);
                    }
                    (8, true) => data.copy_from(b"vol1"),
                    _ => status = S_IOERR,
                }
            }
            let last = chain.last().unwrap().0;
            map.get_ref::<u8>(last).unwrap().store(status);
            let entry = USED + 4 + 8 * (usize::from(used) % RING);
            map.get_ref::<u32>(entry).unwrap().store(head as u32);
            used = used.wrapping_add(1);
            map.get_ref::<u16>(USED + 2).unwrap().store(used);
            pieces += 1;
        }
        pieces
    }

    /// Asks with data cut as `parts` says; status, used length, pieces.
    fn ask(&mut self, kind: u32, sector: u64, parts: &[u32], reads: bool) -> (u8, u32, usize) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&sector.to_le_bytes());
        self.ram.write_slice(&header, GuestAddress(HEADER)).unwrap();
        self.ram.write_obj(0xffu8, GuestAddress(STATUS_AT)).unwrap();
        let mut all = vec![(HEADER, 16u32, 0u16)];
        let mut at = BUFFER;
        for bytes in parts {
            all.push((at, *bytes, if reads { F_WRITE } else { 0 }));
            at += u64::from(*bytes);
        }
        all.push((STATUS_AT, 1, F_WRITE));
        let count = all.len();
        for (index, (at, bytes, flags)) in all.into_iter().enumerate() {
            let next = if index + 1 < count { F_NEXT } else { 0 };
            let mut entry = at.to_le_bytes().to_vec();
            entry.extend_from_slice(&bytes.to_le_bytes());
            entry.extend_from_slice(&(flags | next).to_le_bytes());
            entry.extend_from_slice(&(index as u16 + 1).to_le_bytes());
            let place = GuestAddress(DESC + 16 * index as u64);
            self.ram.write_slice(&entry, place).unwrap();
        }
        let slot = u64::from(self.asked % GUEST_RING);
        let ring = GuestAddress(GUEST_AVAIL + 4 + 2 * slot);
        self.ram.write_obj(0u16, ring).unwrap();
        self.asked += 1;
        let index = GuestAddress(GUEST_AVAIL + 2);
        self.ram.write_obj(self.asked, index).unwrap();
        let mut pieces = 0;
        self.bounce.pump(&mut self.queues, true).unwrap();
        while !self.bounce.is_idle() {
            pieces += self.serve();
            self.bounce.pump(&mut self.queues, true).unwrap();
        }
        let used: u16 = self.ram.read_obj(GuestAddress(GUEST_USED + 2)).unwrap();
        assert_eq!(used, self.asked);
        let entry = GUEST_USED + 4 + 8 * slot;
        let written = self.ram.read_obj(GuestAddress(entry + 4)).unwrap();
        let status = self.ram.read_obj(GuestAddress(STATUS_AT)).unwrap();
        (status, written, pieces)
    }

    fn buffer(&self, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.ram
            .read_slice(&mut data, GuestAddress(BUFFER))
            .unwrap();
        data
    }
}

#[test]
fn a_large_request_goes_in_pieces_and_odd_ones_whole() {
    let mut rig = Rig::new();
    let (status, written, pieces) = rig.ask(T_IN, 3, &[1000, 200_000, 3_800], true);
    assert_eq!((status, written, pieces), (S_OK, 204_801, 4));
    assert_eq!(rig.buffer(204_800), rig.disk[3 * 512..][..204_800]);

    let (status, written, pieces) = rig.ask(8, 0, &[20], true);
    assert_eq!((status, written, pieces), (S_OK, 21, 1));
    assert_eq!(&rig.buffer(4), b"vol1");
    // A flush has no data; this backend knows none, and says so only for data.
    assert_eq!(rig.ask(4, 0, &[], false), (S_OK, 1, 1));
    // Beyond the disk: the piece that fails ends the request.
    let (status, written, pieces) = rig.ask(T_IN, 1920, &[128 << 10], true);
    assert_eq!((status, written, pieces), (S_IOERR, 1, 2));
    // No backend sees what cannot be cut.
    assert_eq!(rig.ask(T_IN, 0, &[65_537], true), (S_IOERR, 1, 0));
    assert_eq!(rig.ask(11, 0, &[65_552], false), (S_IOERR, 1, 0));
    assert!(rig.bounce.is_idle());
}

/// Two queues with more than fits: neither starves the other, and each gets back its own.
#[test]
fn queues_take_turns_and_get_back_their_own() {
    const EACH: u16 = 32;
    let mut rig = Rig::with_queues(2, EACH);
    for queue in 0..2u64 {
        let at = |address: u64| GuestAddress(address + queue * u64::from(QUEUE_STEP));
        for (index, (to, bytes, flags)) in [
            (HEADER, 16u32, F_NEXT),
            (BUFFER, 512, F_NEXT | F_WRITE),
            (STATUS_AT, 1, F_WRITE),
        ]
        .into_iter()
        .enumerate()
        {
            let mut entry = at(to).0.to_le_bytes().to_vec();
            entry.extend_from_slice(&bytes.to_le_bytes());
            entry.extend_from_slice(&flags.to_le_bytes());
            entry.extend_from_slice(&(index as u16 + 1).to_le_bytes());
            let place = at(DESC + 16 * index as u64);
            rig.ram.write_slice(&entry, place).unwrap();
        }
        // The queue's number as the sector.
        rig.ram.write_obj(queue, at(HEADER + 8)).unwrap();
        // The same chain every time: the ring's zeros name it.
        rig.ram.write_obj(EACH, at(GUEST_AVAIL + 2)).unwrap();
    }
    rig.bounce.pump(&mut rig.queues, true).unwrap();
    let of = |queue: usize| {
        let slots = rig.bounce.slots.iter().flatten();
        slots.filter(|request| request.queue == queue).count()
    };
    assert_eq!([of(0), of(1)], [SLOTS / 2; 2]);
    while !rig.bounce.is_idle() {
        rig.serve();
        rig.bounce.pump(&mut rig.queues, true).unwrap();
    }
    for queue in 0..2u64 {
        let at = |address: u64| GuestAddress(address + queue * u64::from(QUEUE_STEP));
        let used: u16 = rig.ram.read_obj(at(GUEST_USED + 2)).unwrap();
        let byte: u8 = rig.ram.read_obj(at(BUFFER)).unwrap();
        assert_eq!((used, u64::from(byte)), (EACH, queue));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    /// A disk behind the region is the disk itself, however requests are cut.
    #[test]
    fn data_arrives_as_it_was_sent(
        requests in proptest::collection::vec(
            (any::<bool>(), 0u64..1900, 1u32..140, 1u32..9000, any::<u8>()), 1..12),
    ) {
        let mut rig = Rig::new();
        let mut model = rig.disk.clone();
        for (reads, sector, sectors, cut, fill) in requests {
            let bytes = sectors * 512;
            let cut = cut.min(bytes - 1);
            let at = sector as usize * 512;
            let data = vec![fill; bytes as usize];
            rig.ram.write_slice(&data, GuestAddress(BUFFER)).unwrap();
            let kind = if reads { T_IN } else { T_OUT };
            let (status, _, _) = rig.ask(kind, sector, &[cut, bytes - cut], reads);
            let inside = at + bytes as usize <= DISK_BYTES;
            prop_assert_eq!(status, if inside { S_OK } else { S_IOERR });
            if reads && inside {
                prop_assert_eq!(rig.buffer(bytes as usize), &model[at..at + bytes as usize]);
            } else if !reads {
                // As a disk may, this one keeps the pieces before the one that failed.
                let whole = if inside { bytes as usize } else { (DISK_BYTES - at) / DATA_BYTES * DATA_BYTES };
                model[at..at + whole].fill(fill);
            }
            prop_assert_eq!(&rig.disk, &model);
        }
    }
}
