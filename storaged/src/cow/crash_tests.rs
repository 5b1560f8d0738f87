//! Every instant is a good one to die: simulated deaths of storaged and of the host.
//!
//! Each block of a volume has a set of admissible contents: what the last completed
//! flush made durable, and whatever was written since. After a death a block must
//! hold one of them, and after storaged's alone the newest that completed (or what
//! was on its way).

use super::model_tests::volume;
use super::sim::{Kind, Rng};
use std::collections::BTreeMap;

const UNIT: u64 = 4096;

/// What one block may hold.
#[derive(Clone, Default)]
struct Block {
    /// Contents by when they were written: number and tag; zero is what lay below.
    writes: Vec<(u64, u8)>,
    /// Of those, the last that completed.
    completed: u64,
    /// Of those, the last that is durable.
    durable: u64,
}

/// Runs `rounds` lives of one volume.
fn lives(seed: u64, rounds: u32) -> u64 {
    let rng = &mut Rng::new(seed);
    let (mut sim, first) = volume(vec![None, None, None], rng);
    let size = sim.size_bytes;
    let mut now: Vec<u8> = first;
    let mut deaths = 0;
    for _ in 0..rounds {
        let mut blocks: BTreeMap<u64, Block> = BTreeMap::new();
        let mut flushes: Vec<(usize, BTreeMap<u64, u64>)> = Vec::new();
        let mut writes: Vec<(usize, u64, u64, u64)> = Vec::new();
        let mut busy: BTreeMap<u64, usize> = BTreeMap::new();
        let mut clock = 0;
        for _ in 0..rng.below(60) {
            match rng.below(5) {
                0 => {
                    let seen = blocks.iter().map(|(b, s)| (*b, s.completed)).collect();
                    flushes.push((sim.submit(Kind::Sync, 0, Vec::new(), false), seen));
                }
                1..=3 => {
                    let most = if rng.below(4) == 0 { 40 } else { 4 };
                    let count = 1 + rng.below(most);
                    let block = rng.below(size / UNIT - count);
                    if busy.keys().any(|b| (block..block + count).contains(b)) {
                        continue;
                    }
                    clock += 1;
                    let zero = rng.below(6) == 0;
                    let tag = if zero {
                        0
                    } else {
                        1 + (rng.next_u32() % 255) as u8
                    };
                    let len = count * UNIT;
                    let id = if zero {
                        sim.submit(Kind::Zero { len }, block * UNIT, Vec::new(), false)
                    } else {
                        sim.submit(Kind::Write, block * UNIT, vec![tag; len as usize], false)
                    };
                    for b in block..block + count {
                        blocks.entry(b).or_default().writes.push((clock, tag));
                        busy.insert(b, id);
                    }
                    writes.push((id, block, count, clock));
                }
                _ => {}
            }
            for _ in 0..rng.below(6) {
                let ready = sim.on_their_way();
                if ready.is_empty() {
                    break;
                }
                sim.step(ready[rng.below(ready.len() as u64) as usize]);
                // What has completed counts from now on, flushes after writes.
                for (id, block, count, when) in &writes {
                    if sim.requests[*id].result.is_some() {
                        for b in *block..*block + *count {
                            if busy.get(&b) == Some(id) {
                                busy.remove(&b);
                                blocks.get_mut(&b).unwrap().completed = *when;
                            }
                        }
                    }
                }
                for (id, seen) in &flushes {
                    if sim.requests[*id].result == Some(0) {
                        for (b, when) in seen {
                            let state = blocks.get_mut(b).unwrap();
                            state.durable = state.durable.max(*when);
                        }
                    }
                }
            }
        }
        let host = rng.below(2) == 0;
        let before = std::mem::replace(&mut now, sim.die(host, rng));
        deaths += 1;
        for at in (0..size).step_by(UNIT as usize) {
            let range = at as usize..(at + UNIT) as usize;
            let (old, new) = (&before[range.clone()], &now[range]);
            let Some(state) = blocks.get(&(at / UNIT)) else {
                assert!(old == new, "seed {seed}: untouched block {}", at / UNIT);
                continue;
            };
            let floor = if host { state.durable } else { state.completed };
            // Sector by sector, for that is what may be torn; all since the floor may be.
            for (n, sector) in new.chunks(super::sim::SECTOR).enumerate() {
                let was = &old[n * super::sim::SECTOR..(n + 1) * super::sim::SECTOR];
                let admissible = (floor == 0 && sector == was)
                    || state
                        .writes
                        .iter()
                        .any(|(when, tag)| *when >= floor && sector.iter().all(|b| b == tag));
                assert!(
                    admissible,
                    "seed {seed}, host {host}: block {} holds {:?} of {:?} since {floor}",
                    at / UNIT,
                    &sector[..2],
                    state.writes
                );
            }
        }
        // A host that died keeps what it has from now on; storaged's death kept all
        // that completed, but the page cache is not the disk yet.
        if !host {
            sim.submit(Kind::Sync, 0, Vec::new(), false);
            sim.finish(rng);
            sim.requests.clear();
        }
    }
    deaths
}

#[test]
fn no_death_loses_what_was_flushed_or_corrupts_the_map() {
    let seeds = if std::env::var_os("OCS_LONG").is_some() {
        4000
    } else {
        20
    };
    let deaths: u64 = (0..seeds).map(|seed| lives(seed, 8)).sum();
    assert_eq!(deaths, seeds * 8);
}
