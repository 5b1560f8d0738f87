//! The data path over a real socket, against `ocs-storaged serve`.

mod common;

use common::*;
use std::os::unix::fs::FileExt;

fn file(dir: &std::path::Path, size: u64) -> std::path::PathBuf {
    let path = dir.join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

#[test]
fn a_file_is_read_written_flushed_and_identified() {
    let dir = tempfile::tempdir().unwrap();
    let disk = file(dir.path(), 8 << 20);
    let (_daemon, socket) = serve(dir.path(), &["--file", path(&disk)]);
    let mut guest = Guest::new();
    guest.attach(connect(&socket));
    let config = guest.config(60);
    assert_eq!(config[..8], (8u64 << 11).to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(
        config[24..28],
        [3, 0, 8, 0],
        "physical blocks of 4096 bytes"
    );
    for (offset, len) in [
        (0, 4096),
        (4096, 65536),
        (512, 512),
        ((8 << 20) - 512, 512),
        (1536, 200 * 512),
    ] {
        let bytes = pattern(offset + 1, len);
        assert_eq!(guest.write_at(offset, &bytes), 0);
        assert_eq!(guest.read_at(offset, len), bytes, "{len} bytes at {offset}");
    }
    assert_eq!(guest.run(T_FLUSH, 0, 0), 0);
    let mut direct = vec![0; 200 * 512];
    std::fs::File::open(&disk)
        .unwrap()
        .read_exact_at(&mut direct, 1536)
        .unwrap();
    assert_eq!(direct, pattern(1537, 200 * 512));
    assert_eq!(guest.run(T_GET_ID, 0, 20), 0);
    assert_eq!(guest.bytes(Guest::data_at(0), 6), b"disk\0\0");
    assert_eq!(guest.zeroes(T_WRITE_ZEROES, 4096, 8192, true), 0);
    assert_eq!(guest.read_at(4096, 8192), vec![0; 8192]);
    assert_eq!(guest.zeroes(T_WRITE_ZEROES, 16384, 4096, false), 0);
    assert_eq!(guest.read_at(16384, 4096), vec![0; 4096]);
    assert_eq!(guest.zeroes(T_DISCARD, 20480, 4096, false), 0);
    // Past the end, odd length, unknown type: an error status each, and service goes on.
    assert_eq!(guest.run(T_IN, 8 << 11, 512), 1);
    assert_eq!(guest.run(T_IN, u64::MAX, 512), 1);
    assert_eq!(guest.run(T_OUT, 0, 100), 1);
    assert_eq!(guest.run(99, 0, 512), 2);
    assert_eq!(guest.read_at(512, 512).len(), 512);
}

#[test]
fn many_requests_in_flight_complete_once_each_and_interrupt() {
    let dir = tempfile::tempdir().unwrap();
    let disk = file(dir.path(), 8 << 20);
    let (_daemon, socket) = serve(dir.path(), &["--file", path(&disk)]);
    let mut guest = Guest::new();
    guest.attach(connect(&socket));
    for round in 0..8u64 {
        for kind in [T_OUT, T_IN] {
            for slot in 0..SLOTS {
                let at = Guest::data_at(slot);
                let fill = if kind == T_OUT {
                    pattern(round * 100 + slot as u64, 8192)
                } else {
                    vec![0; 8192]
                };
                guest.bytes(at, 8192).copy_from_slice(&fill);
                guest.submit(slot, kind, slot as u64 * 16, 8192);
            }
            let mut done = 0;
            wait("all", || {
                done += guest
                    .poll()
                    .iter()
                    .filter(|(_, status)| *status == 0)
                    .count();
                (done == SLOTS).then_some(())
            });
        }
        for slot in 0..SLOTS {
            assert_eq!(
                guest.bytes(Guest::data_at(slot), 8192),
                pattern(round * 100 + slot as u64, 8192)
            );
        }
    }
    assert!(guest.call.read().unwrap() > 0);
}

#[test]
fn null_and_ram_backings_and_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let (_daemon, socket) = serve(dir.path(), &["--size-bytes", "1048576"]);
    let mut guest = Guest::new();
    guest.attach(connect(&socket));
    assert_eq!(guest.write_at(0, &[7; 4096]), 0);
    assert_eq!(guest.read_at(0, 4096), [0; 4096]);

    let ram = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = file(ram.path(), 1 << 20);
    let (_daemon, socket) = serve(ram.path(), &["--file", path(&disk)]);
    let mut guest = Guest::new();
    guest.attach(connect(&socket));
    assert_eq!(guest.write_at(8192, &[9; 8192]), 0);
    assert_eq!(guest.read_at(8192, 8192), [9; 8192]);
    assert_eq!(guest.zeroes(T_WRITE_ZEROES, 8192, 4096, false), 0);
    assert_eq!(guest.read_at(8192, 4096), [0; 4096]);

    let (_daemon, socket) = serve(dir.path(), &["--file", path(&disk), "--read-only"]);
    let mut guest = Guest::new();
    guest.attach(connect(&socket));
    assert_eq!(guest.read_at(12288, 4096), [9; 4096]);
    assert_eq!(guest.write_at(12288, &[1; 4096]), 1);
}

#[test]
fn the_bench_client_works() {
    use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};
    let dir = tempfile::tempdir().unwrap();
    let disk = file(dir.path(), 1 << 20);
    let (_daemon, socket) = serve(
        dir.path(),
        &["--file", path(&disk), "--allow-unsealed-memory"],
    );
    drop(connect(&socket));
    let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
    let mut transport: Box<VirtioBlkTransport> =
        Box::new(VhostUser::new(path(&socket), features.bits() | 1 << 12).unwrap());
    let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 2, 128).unwrap();
    let file = ocs_storaged::memory::sealed_memfd("data", 8192).unwrap();
    // SAFETY: the memfd is sealed and ours.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    transport
        .map_mem_region(map.as_ptr() as usize, 8192, fd, 0)
        .unwrap();
    for (index, queue) in queues.iter_mut().enumerate() {
        let notify = transport.get_submission_notifier(index);
        let done = |queue: &mut VirtioBlkQueue<u64>| {
            notify.notify().unwrap();
            wait("completion", || queue.completions().next()).ret
        };
        map[..4096].fill(index as u8 + 1);
        let (write, read) = map.split_at_mut(4096);
        queue.write(4096, write, 1).unwrap();
        assert_eq!(done(queue), 0);
        queue.read(4096, read, 2).unwrap();
        assert_eq!(done(queue), 0);
        assert_eq!(map[4096..], [index as u8 + 1; 4096]);
    }
}
