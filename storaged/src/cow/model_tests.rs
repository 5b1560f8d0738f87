//! The head against a plain array, with requests in flight in any order.

use super::map::{GRAIN_BYTES, Map};
use super::sim::{Kind, Rng, Sim, scattered};
use crate::crypt::{BLOCK_BYTES, Key};

const GRAINS: u64 = 8;
/// The last grain is cut.
const SIZE: u64 = GRAINS * GRAIN_BYTES - 8192;

/// Lower layers with bytes of their own, under their keys.
pub fn volume(keys: Vec<Option<Key>>, rng: &mut Rng) -> (Sim, Vec<u8>) {
    let lower: Vec<Vec<u8>> = (1..keys.len())
        .map(|n| {
            (0..SIZE)
                .map(|at| (at / 4096 % 250) as u8 ^ n as u8)
                .collect()
        })
        .collect();
    let map: Map = scattered(SIZE, lower.len(), rng);
    let sealed = lower.iter().zip(&keys).map(|(bytes, key)| {
        let mut bytes = bytes.clone();
        bytes.resize((GRAINS * GRAIN_BYTES) as usize, 0);
        if let Some(key) = key {
            key.encrypt(&mut bytes, 0);
        }
        bytes
    });
    let sim = Sim::new(SIZE, keys.clone(), sealed.collect(), &map);
    let expected = sim.look(&map);
    (sim, expected)
}

fn combinations() -> Vec<Vec<Option<Key>>> {
    let key = || Some(Key::generate().unwrap());
    let (a, b) = (key(), key());
    vec![
        vec![None, None, None],
        vec![None, a.clone()],
        vec![a.clone(), None, b.clone()],
        vec![a.clone(), a],
    ]
}

/// Random requests, several at once but none on another's bytes, each of whole units.
fn run(seed: u64, keys: Vec<Option<Key>>) {
    let sealed = keys.last().unwrap().is_some();
    // Under a key a slot asks for whole blocks, at most a window at once.
    let unit = if sealed { BLOCK_BYTES as u64 } else { 512 };
    let most = if sealed { 16 } else { 600 };
    let rng = &mut Rng::new(seed);
    let (mut sim, mut expected) = volume(keys.clone(), rng);
    sim.short = (seed.is_multiple_of(3)).then_some(if sealed { 8192 } else { 1024 });
    for round in 0..40u32 {
        let mut taken: Vec<(u64, u64)> = Vec::new();
        let mut reads = Vec::new();
        for _ in 0..=rng.below(12) {
            let len = (1 + rng.below(most)) * unit;
            let offset = rng.below((SIZE - len) / unit) * unit;
            if taken
                .iter()
                .any(|(at, n)| offset < at + n && *at < offset + len)
            {
                continue;
            }
            taken.push((offset, len));
            let range = offset as usize..(offset + len) as usize;
            match rng.below(6) {
                0 | 1 => {
                    let id = sim.submit(Kind::Read, offset, vec![0xee; len as usize], false);
                    reads.push((id, range));
                }
                2 if rng.below(2) == 0 => {
                    sim.submit(Kind::Zero { len }, offset, Vec::new(), false);
                    expected[range].fill(0);
                }
                _ => {
                    let mut bytes = vec![0; len as usize];
                    for (n, sector) in bytes.chunks_mut(512).enumerate() {
                        sector.fill(n as u8 ^ round as u8);
                    }
                    expected[range].copy_from_slice(&bytes);
                    if let Some(key) = keys.last().unwrap() {
                        key.encrypt(&mut bytes, offset / unit);
                    }
                    sim.submit(Kind::Write, offset, bytes, rng.below(8) == 0);
                }
            }
            for _ in 0..rng.below(3) {
                let ready = sim.on_their_way();
                if !ready.is_empty() {
                    sim.step(ready[rng.below(ready.len() as u64) as usize]);
                }
            }
        }
        if rng.below(3) == 0 {
            sim.submit(Kind::Sync, 0, Vec::new(), false);
        }
        sim.finish(rng);
        for (id, range) in reads {
            let request = &mut sim.requests[id];
            if let Some(key) = keys.last().unwrap() {
                key.decrypt(&mut request.bytes, range.start as u64 / unit);
            }
            assert!(
                request.bytes == expected[range.clone()],
                "seed {seed}: {range:?}"
            );
        }
        for request in &sim.requests {
            assert!(
                request.result.is_some_and(|r| r >= 0),
                "seed {seed}: {:?}",
                request.result
            );
        }
        sim.requests.clear();
    }
    let bytes = sim.die(false, rng);
    assert!(bytes == expected, "seed {seed}");
}

#[test]
fn it_equals_an_array_whatever_the_order() {
    let seeds = if std::env::var_os("OCS_LONG").is_some() {
        2000
    } else {
        24
    };
    for (n, keys) in combinations().into_iter().enumerate() {
        for seed in 0..seeds {
            run(seed * 10 + n as u64, keys.clone());
        }
    }
}

#[test]
fn a_discard_frees_and_hides_what_lies_below() {
    let rng = &mut Rng::new(1);
    let (mut sim, _) = volume(vec![None, None], rng);
    sim.submit(Kind::Discard { len: SIZE }, 0, Vec::new(), false);
    sim.finish(rng);
    let bytes = sim.die(false, rng);
    // The last grain is cut, so it cannot go whole.
    let whole = ((GRAINS - 1) * GRAIN_BYTES) as usize;
    assert!(bytes[..whole].iter().all(|b| *b == 0));
}
