//! What a request and a volume cost: no allocation, and memory within bounds.

mod common;

use common::*;
use ocs_storaged::connection;
use ocs_storaged::crypt::Key;
use ocs_storaged::disk::{Backing, Disk, FileBacking};
use ocs_storaged::memory::Trust;
use ocs_storaged::qos::{Qos, now_ns};
use ocs_storaged::session::Served;
use ocs_storaged::shard::Shard;
use ocs_storaged_api::{Limits, Rate, VolumeLimits};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts what threads other than the tests' own allocate.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
thread_local! {
    static OURS: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if !OURS.with(Cell::get) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the system's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SIZE: u64 = 64 << 20;

fn disk(path: &Path, key: Option<Key>, limited: bool) -> Arc<Disk> {
    let limits = VolumeLimits {
        limits: Limits {
            // Low enough to make requests wait now and then.
            iops: limited.then(|| Rate::steady(20_000)),
            ..Limits::default()
        },
        ..VolumeLimits::default()
    };
    std::fs::File::create(path).unwrap().set_len(SIZE).unwrap();
    let backing = Backing::File(FileBacking::open(path, false, key, true).unwrap());
    Arc::new(Disk {
        qos: Arc::new(Qos::new(&limits, None, now_ns())),
        ..Disk::new(SIZE, 1, backing)
    })
}

/// Requests of every kind and of sizes from a sector to four pieces, all slots busy.
fn load(guest: &mut Guest, requests: usize) {
    let (mut begun, mut done, mut at) = (0usize, 0, 7u64);
    let mut submit = |guest: &mut Guest, slot: usize, n: usize| {
        at = at.wrapping_mul(6_364_136_223_846_793_005) + 1;
        let (kind, len) = match n % 8 {
            0 => (T_OUT, 4096),
            1 => (T_IN, 256 * 1024),
            2 => (T_OUT, 512),
            3 => (T_OUT, 100 * 512),
            4 if n % 64 == 4 => (T_FLUSH, 0),
            _ => (T_IN, 4096),
        };
        let sector = (at >> 40) % (SIZE / 512 - 512);
        let sector = if len == 4096 { sector & !7 } else { sector };
        guest.submit(slot, kind, if len == 0 { 0 } else { sector }, len);
    };
    for slot in 0..SLOTS.min(requests) {
        submit(guest, slot, begun);
        begun += 1;
    }
    wait("the load", || {
        for (slot, status) in guest.poll() {
            assert_eq!(status, 0);
            done += 1;
            if begun < requests {
                submit(guest, slot, begun);
                begun += 1;
            }
        }
        (done == requests).then_some(())
    });
}

#[test]
fn a_request_allocates_nothing() {
    OURS.with(|ours| ours.set(true));
    let dir = tempfile::tempdir().unwrap();
    let ram = tempfile::tempdir_in("/dev/shm").unwrap();
    let shard = Shard::spawn("frugal").unwrap();
    for (name, dir, key, limited) in [
        ("disk", &dir, None, false),
        ("disk, limited", &dir, None, true),
        (
            "disk, encrypted",
            &dir,
            Some(Key::generate().unwrap()),
            false,
        ),
        ("ram", &ram, None, false),
    ] {
        let disk = disk(&dir.path().join("disk"), key, limited);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (shard, served) = (shard.clone(), Served::Plain(disk));
        let session = std::thread::spawn(move || {
            let connected = AtomicBool::new(false);
            let _ = connection::serve(theirs, shard, served, Trust::SealedOnly, &connected);
        });
        let mut guest = Guest::new();
        guest.attach(ours);
        // Pools grow to what the load needs, which takes some rounds to be met.
        let rounds = (0..6).map(|_| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            load(&mut guest, 1000);
            ALLOCATIONS.load(Ordering::Relaxed) - before
        });
        let counts: Vec<u64> = rounds.collect();
        assert_eq!(counts.iter().min(), Some(&0), "{name}: {counts:?} a round");
        assert!(counts[3..].iter().sum::<u64>() <= 16, "{name}: {counts:?}");
        guest.frontend = None;
        session.join().unwrap();
    }
}

/// Anonymous memory of a process: all that is not its text or its guests' memory.
fn anonymous_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// 8 MiB, and 1 MiB a volume: ephemeral ones, which need most, after a load each.
#[test]
fn memory_stays_within_its_bounds() {
    use ocs_storaged_api::{Client, Request, VolumeKind, VolumeName};
    OURS.with(|ours| ours.set(true));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("state")).unwrap();
    std::fs::create_dir(at("images")).unwrap();
    let (state, images, control) = (at("state"), at("images"), at("control.sock"));
    let args = [
        "--state",
        path(&state),
        "--images",
        path(&images),
        "--control",
        path(&control),
    ];
    let daemon = Daemon::spawn(&args);
    let mut client = wait("control socket", || {
        Client::connect(&control, PATIENCE).ok()
    });
    let base = anonymous_kib(daemon.0.id());
    assert!(base <= 8 << 10, "{base} KiB without a volume");
    let volumes = 6u64;
    let mut guests = Vec::new();
    for n in 0..volumes {
        let volume = VolumeName(format!("i-{n}-ephemeral0"));
        let listener = std::os::unix::net::UnixListener::bind(at(&format!("{n}.sock"))).unwrap();
        let ask = |client: &mut Client, request| client.call(&request).unwrap();
        ask(
            &mut client,
            Request::PutVolume {
                volume: volume.clone(),
                size_bytes: SIZE,
                kind: VolumeKind::Ephemeral,
                image: None,
                snapshot: None,
                encrypted: false,
            },
        );
        ask(
            &mut client,
            Request::Attach {
                volume,
                socket: at(&format!("{n}.sock")),
                read_only: false,
            },
        );
        let mut guest = Guest::new();
        guest.attach(accept(&listener));
        load(&mut guest, 400);
        guests.push(guest);
        let used = anonymous_kib(daemon.0.id());
        let most = (8 << 10) + ((n + 1) << 10);
        assert!(used <= most, "{used} KiB with {} volumes", n + 1);
    }
}
