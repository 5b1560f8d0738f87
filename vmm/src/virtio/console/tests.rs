//! A driver of the console.

use super::*;
use crate::legacy::ring::{ConsoleRing, MappedRing};
use crate::virtio::VirtioDevice;
use crate::virtio::hosted::Hosted;
use crate::virtio::hosted::tests::{Guest, keeps_the_contract, kick, settle};
use ocs_vmm_spec::console::{self, RingWriter};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

fn ring() -> (ConsoleRing, File) {
    let file = tempfile::tempfile().unwrap();
    let writer = RingWriter::open(file.try_clone().unwrap(), 4096).unwrap();
    (ConsoleRing::new(MappedRing::new(writer).unwrap()), file)
}

#[test]
fn it_keeps_the_contract() {
    keeps_the_contract(|| ConsoleModel::new(ring().0, None));
}

#[test]
fn output_of_any_size_ends_in_the_ring() {
    let (ring, file) = ring();
    let mut hosted = Hosted::new(ConsoleModel::new(ring, None)).unwrap();
    let mut guest = Guest::attach(&mut hosted, 0);
    guest.offer(1, &[b"hello ", b"world\n"], &[]);
    kick(&mut hosted, 1);
    assert_eq!(guest.take(1), Some(0));
    assert_eq!(console::read(&file).unwrap().0, b"hello world\n");
    let long: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    guest.offer(1, &[&long], &[]);
    kick(&mut hosted, 1);
    assert_eq!(console::read(&file).unwrap().0, long[long.len() - 4096..]);
    assert!(hosted.write_config(8, &[b'!', 0, 0, 0]));
    assert!(console::read(&file).unwrap().0.ends_with(b"!"));
    assert!(!hosted.write_config(0, &[1]));
}

#[test]
fn input_waits_for_buffers_and_ends_with_its_writer() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let input = File::from(OwnedFd::from(ours));
    let mut hosted = Hosted::new(ConsoleModel::new(ring().0, Some(input))).unwrap();
    let mut guest = Guest::attach(&mut hosted, 0);
    theirs.write_all(b"one two").unwrap();
    settle(&mut hosted);
    let at = guest.offer(0, &[], &[2, 2]);
    kick(&mut hosted, 0);
    assert_eq!(
        (guest.take(0), guest.bytes(at, 4)),
        (Some(4), b"one ".to_vec())
    );
    let at = guest.offer(0, &[], &[64]);
    kick(&mut hosted, 0);
    assert_eq!(
        (guest.take(0), guest.bytes(at, 3)),
        (Some(3), b"two".to_vec())
    );
    guest.offer(0, &[], &[64]);
    kick(&mut hosted, 0);
    assert_eq!(guest.take(0), None);
    drop(theirs);
    settle(&mut hosted);
    assert!(!guest.needs_reset());
}
