//! A virtqueue, and an in-flight region, as a driver and a frontend wrote them.
//!
//! No head is given out twice while it is served, chains are bounded, and what comes out of
//! the in-flight region is served once.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_storaged::inflight::Region as Inflight;
use ocs_storaged::memory::{Mapping, Memory, Region, Trust, sealed_memfd};
use ocs_storaged::queue::{Addresses, MAX_CHAIN, Queue};
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const BYTES: u64 = 1 << 16;
const USER: u64 = 1 << 32;
const SIZE: u16 = 16;

fuzz_target!(|data: (Vec<u8>, Vec<u8>, u16, bool, Vec<bool>)| {
    let (rings, tracked, base, event_idx, ends) = data;
    let file = sealed_memfd("fuzz", BYTES).unwrap();
    let len = rings.len().min(BYTES as usize);
    file.write_all_at(&rings[..len], 0).unwrap();
    let mut memory = Memory::default();
    let region = Region::new(0, USER, BYTES, &file, 0, Trust::SealedOnly).unwrap();
    memory.add(region).unwrap();
    let inflight = (!tracked.is_empty()).then(|| {
        let (region, file) = Inflight::create(1, SIZE).unwrap();
        let map = Mapping::new(&file, 0, 4096, Trust::SealedOnly).unwrap();
        // A header of 16 bytes, then 16 for each head.
        for (at, byte) in tracked.iter().enumerate().take(16 + 16 * usize::from(SIZE)) {
            // SAFETY: inside the mapping just made, which nothing else uses yet.
            unsafe { map.at(at as u64, 1).unwrap().write(*byte) };
        }
        Arc::new(region).queue(0).unwrap()
    });
    let at = Addresses {
        desc: USER,
        avail: USER + 0x400,
        used: USER + 0x800,
    };
    let (mut queue, replay) =
        Queue::start(&memory, u32::from(SIZE), &at, base, event_idx, inflight).unwrap();
    let mut served: BTreeSet<u16> = replay.iter().copied().collect();
    assert_eq!(served.len(), replay.len(), "a head comes back twice");
    let mut chain = Vec::new();
    let mut ends = ends.into_iter();
    loop {
        match queue.pop() {
            Ok(Some(head)) => {
                assert!(
                    head < SIZE && served.insert(head),
                    "{head} is served already"
                );
                if queue.chain(head, &memory, &mut chain).is_err() {
                    break;
                }
                assert!(chain.len() <= MAX_CHAIN);
            }
            Ok(None) | Err(_) => break,
        }
        if ends.next().unwrap_or(true)
            && let Some(head) = served.pop_first()
        {
            queue.push(head, 1);
            queue.publish();
        }
    }
    while let Some(head) = served.pop_first() {
        queue.push(head, 0);
    }
    queue.publish();
    queue.enable_kicks();
});
