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
use std::sync::{Arc, OnceLock};

const BYTES: u64 = 1 << 16;
const USER: u64 = 1 << 32;
const SIZE: u16 = 16;

/// A guest's memory and a frontend's in-flight region, which inputs share: making them
/// anew takes most of an input's time.
struct Kept {
    memory: Memory,
    guest: Mapping,
    region: Arc<Inflight>,
    tracked: Mapping,
}

fn kept() -> &'static Kept {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    KEPT.get_or_init(|| {
        let file = sealed_memfd("fuzz", BYTES).unwrap();
        let mut memory = Memory::default();
        let region = Region::new(0, USER, BYTES, &file, 0, Trust::SealedOnly).unwrap();
        memory.add(region).unwrap();
        let guest = Mapping::new(&file, 0, BYTES, Trust::SealedOnly).unwrap();
        let (region, file) = Inflight::create(1, SIZE).unwrap();
        let tracked = Mapping::new(&file, 0, 4096, Trust::SealedOnly).unwrap();
        Kept {
            memory,
            guest,
            region: Arc::new(region),
            tracked,
        }
    })
}

/// Puts `bytes` at the start of `map`, cut at `most`, and zeros up to there.
fn fill(map: &Mapping, bytes: &[u8], most: usize) {
    let len = bytes.len().min(most);
    let to = map.at(0, most as u64).unwrap();
    // SAFETY: the range is mapped for ever, and no queue runs over it now.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len);
        to.add(len).write_bytes(0, most - len);
    }
}

fuzz_target!(|data: (Vec<u8>, Vec<u8>, u16, bool, Vec<bool>)| {
    let (rings, tracked, base, event_idx, ends) = data;
    let kept = kept();
    fill(&kept.guest, &rings, BYTES as usize);
    let memory = &kept.memory;
    let inflight = (!tracked.is_empty()).then(|| {
        // A header of 16 bytes, then 16 for each head.
        fill(&kept.tracked, &tracked, 16 + 16 * usize::from(SIZE));
        kept.region.queue(0).unwrap()
    });
    // Side by side, so that short inputs fill them.
    let at = Addresses {
        desc: USER,
        avail: USER + 0x100,
        used: USER + 0x140,
    };
    let (mut queue, replay) =
        Queue::start(memory, u32::from(SIZE), &at, base, event_idx, inflight).unwrap();
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
                if queue.chain(head, memory, &mut chain).is_err() {
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
