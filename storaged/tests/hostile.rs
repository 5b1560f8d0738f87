//! Hostile guests and hostile frontends: an error status, a stopped queue or a
//! closed connection each, and service for everyone else.

mod common;

use common::*;
use ocs_storaged::connection;
use ocs_storaged::disk::{Backing, Disk, FileBacking};
use ocs_storaged::memory::{Memory, Region, Trust, sealed_memfd};
use ocs_storaged::queue::Addresses;
use ocs_storaged::session::Served;
use ocs_storaged::shard::{QueueStart, Shard};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn null_disk() -> Arc<Disk> {
    Arc::new(Disk::new(1 << 20, 2, Backing::Null))
}

/// A guest on a shard of this process.
struct Rig {
    guest: Guest,
    stream: Option<std::thread::JoinHandle<()>>,
    disk: Arc<Disk>,
}

/// A disk whose requests pass through the ring.
fn slow_disk() -> Arc<Disk> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let backing = FileBacking::open(file.path(), false, None, true).unwrap();
    Arc::new(Disk::new(1 << 20, 2, Backing::File(backing)))
}

impl Rig {
    fn new() -> Self {
        Self::on(null_disk())
    }

    fn on(disk: Arc<Disk>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let served = Served::Plain(Arc::clone(&disk));
        let shard = Shard::spawn("rig").unwrap();
        let thread = std::thread::spawn(move || {
            let connected = AtomicBool::new(false);
            let _ = connection::serve(theirs, shard, served, Trust::SealedOnly, &connected);
        });
        let mut guest = Guest::new();
        guest.attach(ours);
        Self {
            guest,
            stream: Some(thread),
            disk,
        }
    }

    fn errors(&self) -> u64 {
        self.disk.stats.errors.load(Ordering::Relaxed)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.guest.frontend = None;
        // A session that panicked or hangs is what these tests look for.
        self.stream.take().unwrap().join().unwrap();
    }
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Writes a read request's header.
fn header(guest: &Guest, kind: u32, sector: u64) {
    guest.write(HEADERS, kind.to_le());
    guest.write(HEADERS + 8, sector.to_le());
    guest.write(HEADERS + 32, 0xffu8);
}

#[test]
fn a_malformed_chain_stops_its_queue_and_is_counted() {
    let out = MEMORY_BYTES + 4096;
    type Case = (&'static str, fn(&mut Guest, u64));
    let cases: [Case; 12] = [
        ("loop", |g, _| {
            g.descriptor(0, HEADERS, 16, NEXT, 1);
            g.descriptor(1, DATA, 512, NEXT | WRITE, 1);
            g.offer(0);
        }),
        ("next out of the table", |g, _| {
            g.descriptor(0, HEADERS, 16, NEXT, QUEUE);
            g.offer(0);
        }),
        ("head out of the table", |g, _| g.offer(QUEUE)),
        ("status out of memory", |g, out| {
            g.descriptor(0, HEADERS, 16, NEXT, 1);
            g.descriptor(1, out, 1, WRITE, 0);
            g.offer(0);
        }),
        ("status address wraps", |g, _| {
            g.descriptor(0, HEADERS, 16, NEXT, 1);
            g.descriptor(1, u64::MAX, 2, WRITE, 0);
            g.offer(0);
        }),
        ("no status", |g, _| {
            g.descriptor(0, HEADERS, 16, 0, 0);
            g.offer(0);
        }),
        ("empty status", |g, _| {
            g.descriptor(0, HEADERS, 16, NEXT, 1);
            g.descriptor(1, HEADERS + 32, 0, WRITE, 0);
            g.offer(0);
        }),
        ("readable behind writable", |g, _| {
            g.descriptor(0, HEADERS + 32, 1, NEXT | WRITE, 1);
            g.descriptor(1, HEADERS, 16, 0, 0);
            g.offer(0);
        }),
        ("longer than 4 GiB", |g, _| {
            g.descriptor(0, HEADERS, 16, NEXT, 1);
            g.descriptor(1, DATA, u32::MAX, NEXT | WRITE, 2);
            g.descriptor(2, HEADERS + 32, 1, WRITE, 0);
            g.offer(0);
        }),
        ("nested indirect", |g, _| {
            g.descriptor(0, DATA, 16, INDIRECT, 0);
            g.write(DATA, (DATA + 64).to_le());
            g.write(DATA + 8, 16u32.to_le());
            g.write(DATA + 12, INDIRECT.to_le());
            g.offer(0);
        }),
        ("indirect of odd length", |g, _| {
            g.descriptor(0, DATA, 17, INDIRECT, 0);
            g.offer(0);
        }),
        ("indirect out of memory", |g, out| {
            g.descriptor(0, out, 48, INDIRECT, 0);
            g.offer(0);
        }),
    ];
    for (name, case) in cases {
        let mut rig = Rig::new();
        header(&rig.guest, T_IN, 0);
        case(&mut rig.guest, out);
        wait(name, || rig.guest.err.read().ok());
        assert_eq!(rig.errors(), 1, "{name}");
        assert!(rig.guest.poll().is_empty(), "{name}");
    }
}

#[test]
fn a_jumping_index_and_a_busy_head_stop_the_queue() {
    let rig = Rig::new();
    rig.guest.write(AVAIL + 2, QUEUE + 1);
    rig.guest.kick.write(1).unwrap();
    wait("jump", || (rig.errors() == 1).then_some(()));
    // Twice the same head in one batch: the disk is slow enough to hold the first.
    let mut rig = Rig::on(slow_disk());
    header(&rig.guest, T_OUT, 0);
    rig.guest.descriptor(0, HEADERS, 16, NEXT, 1);
    rig.guest.descriptor(1, DATA, 1 << 20, NEXT, 2);
    rig.guest.descriptor(2, HEADERS + 32, 1, WRITE, 0);
    rig.guest.write(AVAIL + 4, [0u16; 2]);
    rig.guest.write(AVAIL + 2, 2u16);
    rig.guest.kick.write(1).unwrap();
    wait("busy head", || (rig.errors() == 1).then_some(()));
    rig.guest.claim(0);
    assert_eq!(wait("the first", || rig.guest.poll().pop()), (0, 0));
}

#[test]
fn a_bad_request_in_a_good_chain_gets_a_status() {
    let mut rig = Rig::new();
    let mut expect = |name: &str, status: u8, make: &dyn Fn(&mut Guest)| {
        make(&mut rig.guest);
        rig.guest.claim(0);
        rig.guest.offer(0);
        let done = wait(name, || rig.guest.poll().pop());
        assert_eq!(done, (0, status), "{name}");
    };
    expect("header of 15 bytes", 1, &|g| {
        header(g, T_IN, 0);
        g.descriptor(0, HEADERS, 15, NEXT, 1);
        g.descriptor(1, HEADERS + 32, 1, WRITE, 0);
    });
    expect("header out of memory", 1, &|g| {
        header(g, T_IN, 0);
        g.descriptor(0, MEMORY_BYTES - 8, 16, NEXT, 1);
        g.descriptor(1, HEADERS + 32, 1, WRITE, 0);
    });
    expect("data out of memory", 1, &|g| {
        header(g, T_IN, 0);
        g.descriptor(0, HEADERS, 16, NEXT, 1);
        g.descriptor(1, MEMORY_BYTES - 256, 512, NEXT | WRITE, 2);
        g.descriptor(2, HEADERS + 32, 1, WRITE, 0);
    });
    expect("sector overflow", 1, &|g| {
        header(g, T_IN, u64::MAX / 512 + 1);
        g.descriptor(0, HEADERS, 16, NEXT, 1);
        g.descriptor(1, DATA, 512, NEXT | WRITE, 2);
        g.descriptor(2, HEADERS + 32, 1, WRITE, 0);
    });
    expect("discard with a flag", 2, &|g| {
        header(g, T_DISCARD, 0);
        g.write(DATA, [0u8; 8]);
        g.write(DATA + 8, [8u32.to_le(), 1u32.to_le()]);
        g.descriptor(0, HEADERS, 16, NEXT, 1);
        g.descriptor(1, DATA, 16, NEXT, 2);
        g.descriptor(2, HEADERS + 32, 1, WRITE, 0);
    });
    expect("split header, status behind data", 0, &|g| {
        header(g, T_IN, 0);
        g.descriptor(0, HEADERS, 5, NEXT, 1);
        g.descriptor(1, HEADERS + 5, 11, NEXT, 2);
        g.descriptor(2, HEADERS + 32 - 512, 513, WRITE, 0);
    });
    expect("indirect", 0, &|g| {
        header(g, T_IN, 0);
        g.descriptor(100, HEADERS, 16, NEXT, 1);
        g.descriptor(101, DATA, 512, NEXT | WRITE, 2);
        g.descriptor(102, HEADERS + 32, 1, WRITE, 0);
        g.descriptor(0, DESC + 1600, 48, INDIRECT, 0);
    });
}

/// Runs one queue over arbitrary memory; it must stop when told.
fn run_queue(shard: &Shard, memory: &[u8], avail: u16) {
    let file = sealed_memfd("fuzz", 1 << 16).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, memory, 0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &avail.to_le_bytes(), 0x102).unwrap();
    let mut map = Memory::default();
    let region = Region::new(0, 1 << 32, 1 << 16, &file, 0, Trust::SealedOnly).unwrap();
    map.add(region).unwrap();
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    // SAFETY: a descriptor just duplicated for this file alone.
    let kick = unsafe { File::from_raw_fd(libc::dup(kick.as_raw_fd())) };
    let device = shard.add(null_disk()).unwrap();
    let start = QueueStart {
        memory: Arc::new(map),
        size: 16,
        addresses: Addresses {
            desc: 1 << 32,
            avail: (1 << 32) + 0x100,
            used: (1 << 32) + 0x140,
        },
        base: 0,
        event_idx: true,
        flush: true,
        zeroes: true,
        inflight: None,
        log: None,
        kick,
        call: None,
        err: None,
    };
    shard.start(device, 0, start).unwrap();
    shard.stop(device, 0).unwrap();
    shard.remove(device).unwrap();
}

/// What the fuzzer found worth keeping, as a guest's memory: its target looks at the
/// queue alone, this at the shard that runs it.
#[test]
fn fuzz_virtqueues() {
    let shard = Shard::spawn("fuzz").unwrap();
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/virtqueue");
    let mut ran = 0;
    for input in std::fs::read_dir(corpus).unwrap() {
        let mut memory = std::fs::read(input.unwrap().path()).unwrap();
        memory.resize(0x200, 0);
        // The used ring is ours to begin.
        memory[0x142..0x144].fill(0);
        // Headers lie over the table too; one type in their place makes requests of it.
        for kind in [T_IN, T_OUT, T_FLUSH, T_DISCARD, T_WRITE_ZEROES] {
            memory.truncate(0x200);
            memory.extend_from_slice(&kind.to_le_bytes());
            run_queue(&shard, &memory, ran % 18);
            ran += 1;
        }
    }
    assert!(ran > 100, "{corpus} has few inputs");
}
