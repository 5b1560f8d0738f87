//! One storaged takes over from another under load.

mod common;

use common::host::*;
use common::*;
use ocs_storaged_api::{ErrorCode, Request, VolumeKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A guest that writes and reads back without a pause, and what it saw.
struct Worker {
    guest: Guest,
    rounds: u64,
    stalls: Vec<Duration>,
}

impl Worker {
    fn new(guest: Guest) -> Self {
        Self {
            guest,
            rounds: 0,
            stalls: Vec::new(),
        }
    }

    /// Eight writes of 4 KiB at once, read back in one; every error or wrong byte panics.
    fn round(&mut self) {
        self.rounds += 1;
        let base = (self.rounds % 16) << 16;
        for slot in 0..8 {
            let bytes = pattern(self.rounds * 8 + slot as u64, 4096);
            self.guest
                .bytes(Guest::data_at(slot), 4096)
                .copy_from_slice(&bytes);
            let sector = (base + slot as u64 * 4096) / 512;
            self.guest.submit(slot, T_OUT, sector, 4096);
        }
        self.await_done(8);
        self.guest.submit(0, T_IN, base / 512, 8 * 4096);
        self.await_done(1);
        for slot in 0..8 {
            let got = self.guest.bytes(Guest::data_at(0) + slot * 4096, 4096);
            assert_eq!(got, pattern(self.rounds * 8 + slot, 4096));
        }
    }

    fn await_done(&mut self, mut left: usize) {
        let began = Instant::now();
        while left > 0 {
            for (_, status) in self.guest.poll() {
                assert_eq!(status, 0);
                left -= 1;
            }
            assert!(began.elapsed() < PATIENCE, "a request is lost");
            std::thread::sleep(NAP);
        }
        self.stalls.push(began.elapsed());
    }
}

/// Between two looks of a guest at its rings.
const NAP: Duration = Duration::from_micros(50);

/// How long each of a thread's naps took, which is what the host's scheduler adds to any
/// guest's stall.
fn naps(stop: &AtomicBool) -> Vec<Duration> {
    let mut naps = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        std::thread::sleep(NAP);
        naps.push(began.elapsed());
    }
    naps
}

/// Prints how many took less than each bound, and the longest.
fn histogram(of: &str, times: &[Duration]) {
    let bounds = [1, 2, 5, 10, 15].into_iter().chain((20..=100).step_by(5));
    let mut counts = Vec::new();
    let mut from = Duration::ZERO;
    for to_ms in bounds.chain([u64::MAX]) {
        let to = Duration::from_millis(to_ms);
        let count = times.iter().filter(|t| from <= **t && **t < to).count();
        if count > 0 && to_ms < u64::MAX {
            counts.push(format!("<{to_ms}: {count}"));
        } else if count > 0 {
            counts.push(format!("more: {count}"));
        }
        from = to;
    }
    let longest = times.iter().max().copied().unwrap_or_default();
    eprintln!("{of} in ms, {}; longest {longest:?}", counts.join(", "));
}

#[test]
fn an_upgrade_under_load_keeps_connections_and_loses_nothing() {
    let mut host = Host::new();
    let kinds = [VolumeKind::Persistent, VolumeKind::Ephemeral];
    let mut workers = Vec::new();
    for (n, kind) in kinds.into_iter().enumerate() {
        let name = format!("vol-{n}");
        host.put(&name, 4 << 20, kind, None).unwrap();
        let socket = format!("{n}.sock");
        let listener = host.listen(&socket);
        host.attach(&name, &socket).unwrap();
        let mut guest = Guest::new();
        guest.attach(accept(&listener));
        workers.push((Worker::new(guest), listener));
    }
    host.put("vol-idle", 1 << 20, VolumeKind::Persistent, None)
        .unwrap();
    let _idle = host.listen("idle.sock");
    host.attach("vol-idle", "idle.sock").unwrap();
    let upgrades = if std::env::var_os("OCS_LONG").is_some() {
        50
    } else {
        3
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter_mut()
            .map(|(worker, _)| {
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        worker.round();
                    }
                })
            })
            .collect();
        let noise = scope.spawn(|| naps(&stop));
        for _ in 0..upgrades {
            std::thread::sleep(Duration::from_millis(150));
            let mut old = host.upgrade();
            let status = wait("the old one's end", || old.0.try_wait().unwrap());
            assert!(status.success(), "{status}");
        }
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|t| t.join().unwrap());
        histogram("the host's own", &noise.join().unwrap());
    });
    for (worker, listener) in &mut workers {
        assert!(worker.rounds > upgrades as u64);
        // The same connection still answers, and none was made anew.
        assert_eq!(worker.guest.config(8).len(), 8);
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "connected again");
        histogram("a guest's stalls", &worker.stalls);
    }
    assert_eq!(host.list().iter().filter(|v| v.connected).count(), 2);
    // Who is not root nor storaged itself may not ask; what is no storaged is refused.
    let refused = host.ask(&Request::HandOver { form: 99 });
    assert_eq!(refused, Err(ErrorCode::Invalid));
    host.crash();
    assert_eq!(host.list().len(), 3);
}

#[test]
fn a_successor_that_dies_half_way_leaves_everything_served() {
    let host = Host::new();
    host.put("vol-1", 1 << 20, VolumeKind::Persistent, None)
        .unwrap();
    let listener = host.listen("blk.sock");
    host.attach("vol-1", "blk.sock").unwrap();
    let mut guest = Guest::new();
    guest.attach(accept(&listener));
    assert_eq!(guest.write_at(0, &[7; 4096]), 0);
    let mut stream =
        std::os::unix::net::UnixStream::connect(host.dir.path().join("control.sock")).unwrap();
    let ask = serde_json::to_vec(&Request::HandOver {
        form: ocs_storaged_api::HAND_OVER,
    });
    std::io::Write::write_all(&mut stream, &ask.unwrap()).unwrap();
    std::io::Write::write_all(&mut stream, b"\n").unwrap();
    let mut some = [0; 16];
    std::io::Read::read_exact(&mut stream, &mut some).unwrap();
    drop(stream);
    // The old one connects again, as after a restart.
    guest.attach(accept(&listener));
    assert_eq!(guest.read_at(0, 4096), [7; 4096]);
    host.put("vol-2", 1 << 20, VolumeKind::Persistent, None)
        .unwrap();
}
