//! Limits, seen by a guest: on a shard of this process, over a real socket.
//!
//! What may be done in a time is bounded from above without slack, since a loaded
//! machine only does less; precision is for `cargo xtask bench qos` and, on a clock of
//! its own, for the unit tests.

mod common;

use common::*;
use ocs_storaged::connection;
use ocs_storaged::disk::{Backing, Disk, FileBacking};
use ocs_storaged::memory::Trust;
use ocs_storaged::qos::{Group, Qos, now_ns};
use ocs_storaged::session::Served;
use ocs_storaged::shard::Shard;
use ocs_storaged_api::{Limits, Rate, VolumeLimits};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn limits(iops: Option<u64>, bytes: Option<u64>) -> VolumeLimits {
    VolumeLimits {
        limits: Limits {
            iops: iops.map(Rate::steady),
            bytes: bytes.map(Rate::steady),
            io_bytes: None,
        },
        ..VolumeLimits::default()
    }
}

const BYTES: u64 = 1 << 30;

/// A guest with a disk on `shard`.
struct Rig {
    guest: Guest,
    disk: Arc<Disk>,
    session: Option<std::thread::JoinHandle<()>>,
    at: u64,
}

impl Rig {
    fn new(shard: &Shard, qos: Qos) -> Self {
        Self::of(shard, qos, Backing::Null)
    }

    fn of(shard: &Shard, qos: Qos, backing: Backing) -> Self {
        let disk = Arc::new(Disk {
            qos: Arc::new(qos),
            ..Disk::new(BYTES, 1, backing)
        });
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (shard, served) = (shard.clone(), Served::Plain(Arc::clone(&disk)));
        let session = std::thread::spawn(move || {
            let connected = AtomicBool::new(false);
            let _ = connection::serve(theirs, shard, served, Trust::SealedOnly, &connected);
        });
        let mut guest = Guest::new();
        guest.attach(ours);
        Self {
            guest,
            disk,
            session: Some(session),
            at: 0,
        }
    }

    /// A random read of `len` in `slot`.
    fn submit(&mut self, slot: usize, len: usize) {
        self.at = self.at.wrapping_mul(6_364_136_223_846_793_005) + 1;
        self.guest.submit(slot, T_IN, self.at >> 44, len);
    }

    /// Keeps `depth` reads going for `time`; how many completed, and in what time.
    fn run(&mut self, depth: usize, len: usize, time: Duration) -> (u64, f64) {
        let start = Instant::now();
        (0..depth).for_each(|slot| self.submit(slot, len));
        let mut done = 0;
        while start.elapsed() < time {
            for (slot, status) in self.guest.poll() {
                assert_eq!(status, 0);
                done += 1;
                self.submit(slot, len);
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        (done, start.elapsed().as_secs_f64())
    }

    fn throttled(&self) -> u64 {
        self.disk.stats.throttled.load(Ordering::Relaxed)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.guest.frontend = None;
        self.session.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_guest_gets_its_rate_and_no_more() {
    let shard = Shard::spawn("qos").unwrap();
    let time = Duration::from_millis(600);
    for (iops, bytes, len, per_s) in [
        (Some(50), None, 4096, 50.0),
        (Some(2000), None, 512, 2000.0),
        (None, Some(1 << 20), 65_536, 16.0),
        (None, Some(64 << 20), 256 << 10, 256.0),
    ] {
        let mut rig = Rig::new(&shard, Qos::new(&limits(iops, bytes), None, now_ns()));
        let (done, seconds) = rig.run(16, len, time);
        let most = per_s * seconds + per_s / 25.0 + 2.0;
        assert!(done as f64 <= most, "{done} of {most} in {seconds} s");
        assert!(done as f64 >= per_s * seconds / 4.0, "{done} of {most}");
        // A wait a request at most: the shard slept instead of asking again and again.
        let waits = rig.throttled();
        assert!(waits > 0 && waits <= done + 2, "{waits} waits for {done}");
    }
}

#[test]
fn a_change_reaches_requests_that_wait() {
    let shard = Shard::spawn("qos").unwrap();
    let mut rig = Rig::new(&shard, Qos::new(&limits(Some(1), None), None, now_ns()));
    // At one a second the last of them would come after half a minute.
    let mut left = SLOTS;
    (0..SLOTS).for_each(|slot| rig.submit(slot, 4096));
    wait("a wait", || (rig.throttled() > 0).then_some(()));
    let start = Instant::now();
    rig.disk
        .qos
        .change(&VolumeLimits::default(), None, now_ns());
    shard.limits_changed().unwrap();
    wait("all", || {
        left -= rig.guest.poll().len();
        (left == 0).then_some(())
    });
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_group_is_shared_evenly_by_guests_on_different_shards() {
    let shards = [
        Shard::spawn("qos-0").unwrap(),
        Shard::spawn("qos-1").unwrap(),
    ];
    let group = Arc::new(Group::new(&limits(Some(400), None).limits, now_ns()));
    let mut rigs: Vec<_> = (0..4)
        .map(|n| {
            let qos = Qos::new(&VolumeLimits::default(), Some(Arc::clone(&group)), now_ns());
            Rig::new(&shards[n % 2], qos)
        })
        .collect();
    let start = Instant::now();
    for rig in &mut rigs {
        (0..4).for_each(|slot| rig.submit(slot, 4096));
    }
    let mut done = [0u64; 4];
    while start.elapsed() < Duration::from_secs(1) {
        for (rig, done) in rigs.iter_mut().zip(&mut done) {
            for (slot, _) in rig.guest.poll() {
                *done += 1;
                rig.submit(slot, 4096);
            }
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    let seconds = start.elapsed().as_secs_f64();
    let sum: u64 = done.iter().sum();
    assert!(sum as f64 <= 400.0 * seconds + 20.0, "{done:?}");
    let (least, greatest) = (done.iter().min().unwrap(), done.iter().max().unwrap());
    assert!(*least * 10 >= *greatest * 7, "{done:?}");
}

/// How many requests of a guest that always has 32 of 256 KiB under way complete while
/// another one waits for a read of 4 KiB: the median of some reads.
fn overtaken(mut small: Rig, mut large: Rig) -> u64 {
    let (flooded, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..SLOTS).for_each(|slot| large.submit(slot, DATA_BYTES));
            while !over.load(Ordering::Relaxed) {
                for (slot, status) in large.guest.poll() {
                    assert_eq!(status, 0);
                    large.submit(slot, DATA_BYTES);
                    flooded.fetch_add(1, Ordering::Relaxed);
                }
                std::hint::spin_loop();
            }
        });
        let ahead = |than: u64| (flooded.load(Ordering::Relaxed) > than).then_some(());
        wait("the flood", || ahead(SLOTS as u64));
        let read = |_| {
            let before = flooded.load(Ordering::Relaxed);
            small.submit(0, 4096);
            let (_, status) = wait("a read beside the flood", || small.guest.poll().pop());
            assert_eq!(status, 0);
            flooded.load(Ordering::Relaxed) - before
        };
        let mut counts: Vec<u64> = (0..31).map(read).collect();
        over.store(true, Ordering::Relaxed);
        counts.sort_unstable();
        counts[counts.len() / 2]
    })
}

#[test]
fn a_small_read_in_memory_is_not_overtaken_by_one_that_never_pauses() {
    let shard = Shard::spawn("qos").unwrap();
    let free = || Qos::default();
    let count = overtaken(Rig::new(&shard, free()), Rig::new(&shard, free()));
    assert!(count <= 64, "{count} requests overtook a read");
}

/// On a disk that two shards share, of which each knows but its own devices' turns.
#[test]
fn a_small_read_does_not_wait_for_all_that_a_neighbour_has_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let shards = Shard::spawn_all(2).unwrap();
    let rig = |n: usize| {
        let file = dir.path().join(format!("{n}"));
        std::fs::write(&file, vec![7; 64 << 20]).unwrap();
        let disk = std::fs::File::options().write(true).open(&file).unwrap();
        disk.set_len(BYTES).unwrap();
        let backing = FileBacking::open(&file, false, None, true).unwrap();
        Rig::of(&shards[n], Qos::default(), Backing::File(backing))
    };
    let count = overtaken(rig(0), rig(1));
    assert!(count <= 4, "{count} requests of 256 KiB overtook a read");
}

/// Many capped volumes beside one another, each its own session on two shards.
#[test]
fn a_crowd_of_capped_volumes_each_gets_its_own() {
    let crowd = if std::env::var_os("OCS_LONG").is_some() {
        200
    } else {
        24
    };
    let shards = [
        Shard::spawn("qos-0").unwrap(),
        Shard::spawn("qos-1").unwrap(),
    ];
    let cap = limits(Some(500), None);
    let mut rigs: Vec<_> = (0..crowd)
        .map(|n| Rig::new(&shards[n % 2], Qos::new(&cap, None, now_ns())))
        .collect();
    let start = Instant::now();
    for rig in &mut rigs {
        (0..32).for_each(|slot| rig.submit(slot, 4096));
    }
    let mut done = vec![0u64; crowd];
    while start.elapsed() < Duration::from_secs(1) {
        for (rig, done) in rigs.iter_mut().zip(&mut done) {
            for (slot, _) in rig.guest.poll() {
                *done += 1;
                rig.submit(slot, 4096);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let most = 500.0 * start.elapsed().as_secs_f64() + 21.0;
    let (least, greatest) = (done.iter().min().unwrap(), done.iter().max().unwrap());
    assert!(*greatest as f64 <= most, "{greatest} of {most}");
    assert!(*least * 10 >= *greatest * 9, "{done:?}");
}
