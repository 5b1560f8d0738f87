//! Entropy, console and balloon under a driver that breaks every rule of rings and chains.
//!
//! The device gives up or goes on; it gives back no more chains than it was offered, and keeps the
//! contract of its life: it stands still, is saved and loaded bit by bit, is mended by a reset.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_fuzz::guest::{Guest, Turn};
use ocs_vmm::legacy::ring::{ConsoleRing, MappedRing};
use ocs_vmm::virtio::VirtioDevice;
use ocs_vmm::virtio::balloon::BalloonModel;
use ocs_vmm::virtio::console::ConsoleModel;
use ocs_vmm::virtio::hosted::Model;
use ocs_vmm::virtio::rng::RngModel;
use ocs_vmm_spec::console::RingWriter;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::sync::LazyLock;

/// What the driver reads or writes of the configuration: where, bytes or nothing.
type Config = (u8, Vec<u8>);

static RING: LazyLock<ConsoleRing> = LazyLock::new(|| {
    let file = File::from(memfd_create("ring", MemfdFlags::CLOEXEC).expect("a memfd"));
    let writer = RingWriter::open(file, 4096).expect("an empty file");
    ConsoleRing::new(MappedRing::new(writer).expect("a mapping"))
});

fuzz_target!(|data: (u8, bool, Vec<Config>, Vec<Turn>)| {
    let (kind, event_idx, config, turns) = data;
    match kind % 3 {
        0 => drive(
            || RngModel::new(1 << 20).expect("a timer"),
            event_idx,
            &config,
            &turns,
        ),
        1 => drive(
            || ConsoleModel::new(RING.clone(), None),
            event_idx,
            &config,
            &turns,
        ),
        _ => drive(|| BalloonModel::new(4), event_idx, &config, &turns),
    }
});

fn drive<M: Model>(make: impl Fn() -> M, event_idx: bool, config: &[Config], turns: &[Turn]) {
    let mut guest = Guest::new(make(), event_idx);
    for (at, bytes) in config.iter().take(8) {
        if bytes.is_empty() {
            guest.hosted.read_config(usize::from(*at), &mut [0; 8]);
        } else {
            guest.hosted.write_config(usize::from(*at), bytes);
        }
    }
    for turn in turns.iter().take(16) {
        guest.turn(turn);
    }
    guest.end(make());
}
