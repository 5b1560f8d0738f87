//! A driver of the balloon.

use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::hosted::Hosted;
use crate::virtio::hosted::tests::{Guest, keeps_the_contract, kick};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const STATISTICS: u64 = 1 << 1;
const REPORTING: u64 = 1 << 5;

fn numbers(pages: impl IntoIterator<Item = u32>) -> Vec<u8> {
    pages.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn blocks(guest: &Guest) -> u64 {
    let region = guest.ram.iter().next().unwrap();
    region
        .file_offset()
        .unwrap()
        .file()
        .metadata()
        .unwrap()
        .blocks()
}

/// Touches the pages from 8 MiB on.
fn fill(guest: &Guest, pages: usize) {
    let bytes = vec![7; pages * 4096];
    guest
        .ram
        .write_slice(&bytes, GuestAddress(8 << 20))
        .unwrap();
}

#[test]
fn it_keeps_the_contract() {
    keeps_the_contract(|| BalloonModel::new(3));
}

#[test]
fn inflated_pages_are_the_hosts_until_they_are_touched() {
    let model = BalloonModel::new(0);
    let metrics = model.metrics();
    let mut hosted = Hosted::new(model).unwrap();
    let mut guest = Guest::attach(&mut hosted, 0);
    fill(&guest, 512);
    let before = blocks(&guest);
    guest.offer(0, &[&numbers((2048..2560).rev())], &[]);
    kick(&mut hosted, 0);
    assert_eq!(guest.take(0), Some(0));
    let freed = (before - blocks(&guest)) * 512;
    // The driver's own rings and numbers took a few.
    assert!(freed >= 500 * 4096, "{freed}");
    assert_eq!(metrics.inflated_bytes.load(Ordering::Relaxed), 512 * 4096);
    assert_eq!(guest.bytes(8 << 20, 4), [0; 4]);
    guest.offer(1, &[&numbers(2048..2060)], &[]);
    kick(&mut hosted, 1);
    assert_eq!(metrics.deflated_bytes.load(Ordering::Relaxed), 12 * 4096);
}

#[test]
fn pages_outside_memory_are_counted_and_too_many_stop_the_device() {
    let model = BalloonModel::new(0);
    let metrics = model.metrics();
    let mut hosted = Hosted::new(model).unwrap();
    let mut guest = Guest::attach(&mut hosted, 0);
    guest.offer(0, &[&numbers([4096, u32::MAX, 4095])], &[]);
    kick(&mut hosted, 0);
    assert!(!guest.needs_reset());
    assert!(metrics.failed_discards.load(Ordering::Relaxed) >= 1);
    guest.offer(0, &[&numbers(0..5000)], &[]);
    kick(&mut hosted, 0);
    assert!(guest.needs_reset());
}

#[test]
fn reported_ranges_go_back_on_either_queue_that_drivers_use() {
    for queue in [3, 4] {
        let model = BalloonModel::new(0);
        let metrics = model.metrics();
        let mut hosted = Hosted::new(model).unwrap();
        let mut guest = Guest::attach(&mut hosted, REPORTING);
        fill(&guest, 512);
        let before = blocks(&guest);
        guest.offer_raw(queue, &[(8 << 20, 1 << 20, 2), (9 << 20, 1 << 20, 2)]);
        kick(&mut hosted, queue);
        assert_eq!(guest.take(queue), Some(0));
        assert!((before - blocks(&guest)) * 512 >= 500 * 4096);
        assert_eq!(metrics.reported_bytes.load(Ordering::Relaxed), 2 << 20);
    }
}

#[test]
fn statistics_are_kept_until_new_ones_are_wanted() {
    let model = BalloonModel::new(0);
    let metrics = model.metrics();
    let mut hosted = Hosted::new(model).unwrap();
    let mut guest = Guest::attach(&mut hosted, STATISTICS);
    let statistic = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let said = [statistic(4, 1234), statistic(5, 9999), statistic(77, 1)].concat();
    guest.offer(2, &[&said], &[]);
    kick(&mut hosted, 2);
    assert_eq!(guest.take(2), None, "it is kept");
    assert_eq!(metrics.guest[4].load(Ordering::Relaxed), 1234);
    hosted
        .with(|model, driver| model.refresh(driver.unwrap()))
        .unwrap();
    assert_eq!(guest.take(2), Some(0));
    // A paused machine holds nothing.
    guest.offer(2, &[&said], &[]);
    kick(&mut hosted, 2);
    hosted.pause().unwrap();
    assert_eq!(guest.take(2), Some(0));
    hosted.resume();
    guest.offer(2, &[&said], &[]);
    kick(&mut hosted, 2);
    guest.offer(2, &[&said], &[]);
    kick(&mut hosted, 2);
    assert!(guest.needs_reset());
}

#[test]
fn a_target_is_seen_and_the_actual_size_is_the_drivers() {
    let mut hosted = Hosted::new(BalloonModel::new(2)).unwrap();
    let word = |hosted: &Hosted<BalloonModel>, at| {
        let mut bytes = [0; 4];
        hosted.read_config(at, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    assert_eq!(word(&hosted, 0), 512);
    assert!(hosted.write_config(4, &77u32.to_le_bytes()));
    assert!(!hosted.write_config(0, &77u32.to_le_bytes()));
    assert_eq!(
        (word(&hosted, 0), word(&hosted, 4), word(&hosted, 8)),
        (512, 77, 0)
    );
    let shrink = |model: &mut BalloonModel, _: Option<&mut _>| {
        model.set_target(1);
        Ok(())
    };
    hosted.with(shrink).unwrap();
    assert_eq!(word(&hosted, 0), 256);
}
