//! A driver that asks for entropy, modestly and not.

use super::*;
use crate::virtio::hosted::Hosted;
use crate::virtio::hosted::tests::{Guest, keeps_the_contract, kick, settle};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[test]
fn it_keeps_the_contract() {
    keeps_the_contract(|| RngModel::new(1024).unwrap());
}

#[test]
fn requests_are_filled_with_bytes_that_differ() {
    let mut hosted = Hosted::new(RngModel::new(1 << 20).unwrap()).unwrap();
    let mut guest = Guest::attach(&mut hosted, 0);
    let one = guest.offer(0, &[], &[40, 24]);
    let two = guest.offer(0, &[], &[64]);
    kick(&mut hosted, 0);
    assert_eq!((guest.take(0), guest.take(0)), (Some(64), Some(64)));
    assert_ne!(guest.bytes(one, 64), guest.bytes(two, 64));
    assert!(guest.bytes(one + 40, 24).iter().any(|byte| *byte != 0));
    assert!(guest.interrupted(0));
}

#[test]
fn a_greedy_guest_gets_its_rate_and_no_more() {
    const PER_S: u32 = 64 << 10;
    let model = RngModel::new(PER_S).unwrap();
    let metrics = model.metrics();
    let mut hosted = Hosted::new(model).unwrap();
    let mut guest = Guest::attach(&mut hosted, 0);
    let begin = Instant::now();
    let mut got = 0u64;
    while begin.elapsed() < Duration::from_millis(300) {
        guest.offer(0, &[], &[4096]);
        settle(&mut hosted);
        got += std::iter::from_fn(|| guest.take(0))
            .map(u64::from)
            .sum::<u64>();
        std::thread::sleep(Duration::from_millis(5));
    }
    let allowed = f64::from(PER_S) * (1.0 + begin.elapsed().as_secs_f64());
    assert!(got as f64 <= allowed, "{got} of {allowed}");
    assert!(got >= u64::from(PER_S) / 2, "{got}");
    assert!(metrics.throttled.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_request_without_room_stops_the_device() {
    let mut hosted = Hosted::new(RngModel::new(1024).unwrap()).unwrap();
    let mut guest = Guest::attach(&mut hosted, 0);
    guest.offer(0, &[b"readable"], &[]);
    kick(&mut hosted, 0);
    assert!(guest.needs_reset());
}
