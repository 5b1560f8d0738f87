mod arithmetic;

use super::*;
use crate::memory;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 8;

struct Driver {
    ram: GuestRam,
    queue: VirtQueue,
    call: EventFd,
}

/// A ready queue whose rings are where they are in all of these tests.
fn rings(size: u16) -> Queue {
    let mut queue = Queue::new(size).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(TABLE))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(AVAIL))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    queue
}

fn driver() -> Driver {
    let ram = memory::create(16).unwrap();
    let queue = rings(SIZE);
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    Driver {
        queue: VirtQueue::new(
            queue,
            ram.clone(),
            Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            Some(call.try_clone().unwrap()),
        ),
        ram,
        call,
    }
}

impl Driver {
    fn describe(&self, table: u64, index: u64, at: u64, len: u32, flags: u16, next: u16) {
        let descriptor = Descriptor::new(at, len, flags, next);
        self.ram
            .write_obj(descriptor, GuestAddress(table + index * 16))
            .unwrap();
    }

    fn offer(&self, heads: &[u16]) {
        for (slot, head) in (0u64..).zip(heads) {
            self.ram
                .write_obj(*head, GuestAddress(AVAIL + 4 + slot * 2))
                .unwrap();
        }
        let count = u16::try_from(heads.len()).unwrap();
        self.ram.write_obj(count, GuestAddress(AVAIL + 2)).unwrap();
    }

    fn pop(&mut self) -> Result<(Option<u16>, usize, usize), QueueError> {
        let mut buffers = Buffers::default();
        let head = self.queue.pop(&mut buffers)?;
        Ok((head, buffers.readable_bytes(), buffers.writable_bytes()))
    }
}

#[test]
fn a_chain_with_an_indirect_part_is_gathered_whole() {
    let mut driver = driver();
    driver.describe(TABLE, 2, 0x8000, 12, F_NEXT, 5);
    driver.describe(TABLE, 5, 0x9000, 32, F_INDIRECT, 0);
    driver.describe(0x9000, 0, 0xa000, 100, F_NEXT, 1);
    driver.describe(0x9000, 1, 0xb000, 7, F_WRITE, 0);
    driver.offer(&[2]);
    assert_eq!(driver.pop().unwrap(), (Some(2), 112, 7));
    assert_eq!(driver.pop().unwrap(), (None, 0, 0));
    driver.queue.undo_pop();
    assert_eq!(driver.pop().unwrap(), (Some(2), 112, 7));
}

#[test]
fn every_broken_chain_is_an_error() {
    type Setup = fn(&Driver);
    let cases: [(&str, Setup); 9] = [
        ("is outside a table of 8", |d| {
            d.describe(TABLE, 0, 0x8000, 1, F_NEXT, 8)
        }),
        ("more than 8 descriptors", |d| {
            d.describe(TABLE, 0, 0x8000, 1, F_NEXT, 0)
        }),
        ("0 bytes at 0x8000", |d| {
            d.describe(TABLE, 0, 0x8000, 0, 0, 0)
        }),
        ("16 bytes at 0xfffff8", |d| {
            d.describe(TABLE, 0, (16 << 20) - 8, 16, 0, 0)
        }),
        ("at 0xfffffffffffffff0", |d| {
            d.describe(TABLE, 0, u64::MAX - 15, 4096, 0, 0)
        }),
        ("4294967295 bytes", |d| {
            d.describe(TABLE, 0, 0, u32::MAX, 0, 0)
        }),
        ("out of order", |d| {
            d.describe(TABLE, 0, 0x8000, 1, F_WRITE | F_NEXT, 1);
            d.describe(TABLE, 1, 0x8000, 1, 0, 0);
        }),
        ("out of order", |d| {
            d.describe(TABLE, 0, 0x9000, 16, F_INDIRECT, 0);
            d.describe(0x9000, 0, 0x9000, 16, F_INDIRECT, 0);
        }),
        ("17 bytes at 0x9000", |d| {
            d.describe(TABLE, 0, 0x9000, 17, F_INDIRECT, 0)
        }),
    ];
    for (expected, setup) in cases {
        let mut driver = driver();
        setup(&driver);
        driver.offer(&[0]);
        let error = driver.pop().unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_wild_head_or_available_index_is_an_error() {
    let mut driver = driver();
    driver.offer(&[SIZE]);
    assert!(matches!(driver.pop(), Err(QueueError::Index { .. })));
    driver
        .ram
        .write_obj(SIZE + 2, GuestAddress(AVAIL + 2))
        .unwrap();
    assert!(matches!(driver.pop(), Err(QueueError::Available(_))));
}

#[test]
fn the_driver_is_interrupted_unless_it_asked_not_to_be() {
    let mut driver = driver();
    driver.describe(TABLE, 0, 0x8000, 1, F_WRITE, 0);
    driver.offer(&[0, 0]);
    driver.pop().unwrap();
    driver.queue.push(0, 1).unwrap();
    assert!(driver.queue.notify().unwrap());
    assert_eq!(driver.call.read().unwrap(), 1);
    driver
        .ram
        .write_obj(AVAIL_F_NO_INTERRUPT, GuestAddress(AVAIL))
        .unwrap();
    assert!(!driver.queue.notify().unwrap());
    assert!(driver.call.read().is_err());
    assert!(matches!(
        driver.queue.push(SIZE, 1),
        Err(QueueError::Used(_))
    ));
}
