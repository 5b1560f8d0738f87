//! What storaged keeps of volumes: a map with its log, and the table.
//!
//! A log that is cut or damaged anywhere gives the state after an unbroken prefix of its
//! frames. Whatever is recovered from any bytes is a map that can be written, read and
//! gone on with.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_storaged::cow::log::{
    BootId, Entry, HEADER_BYTES, LayerRef, MAX_ENTRIES, Recovered, Tail, Trust, checkpoint, frame,
    recover,
};
use ocs_storaged::cow::map::{GRAIN_BYTES, Map, Place};
use ocs_storaged::volumes::table::Contents;

const BOOT: BootId = BootId([7; 16]);
const MOST_FRAMES: usize = 16;
/// Grains of a disk whose states are told apart one by one.
const GRAINS: u64 = 100;

/// First grain, how many, where: and all frames' changes, each with a commit or not.
type Change = (u8, u8, u8);
type Frames = Vec<(Vec<Change>, bool)>;

/// A checkpoint's parts, any bytes, sealed so that they are looked at.
type Parts = (u64, Vec<u8>, Vec<u8>, Vec<u8>);

fn runs(map: &Map) -> Vec<(u64, u64, Place)> {
    map.runs().collect()
}

fn layers(count: u8) -> Vec<LayerRef> {
    let layer = |n| LayerRef {
        file: format!("{n}.layer"),
        key: None,
    };
    (0..count).map(layer).collect()
}

/// Anything recovered is a whole map, and goes on.
fn check(bytes: &[u8], found: &Recovered) {
    assert!(found.tail.at as usize <= bytes.len());
    let known = |place: Place| place.index().is_none_or(|at| at < found.layers.len());
    assert!(found.map.runs().all(|(_, _, place)| known(place)));
    let (again, _) = checkpoint(found.boot, found.size_bytes, &found.layers, &found.map);
    let again = recover(&again, Trust::Committed).unwrap();
    assert!(again.layers == found.layers && runs(&again.map) == runs(&found.map));
    let mut more = Vec::new();
    let change = Entry::Change {
        first: 0,
        count: 1,
        place: Place::layer(found.layers.len() - 1),
    };
    let next = frame(found.tail, &[change], &mut more);
    let mut longer = bytes[..found.tail.at as usize].to_vec();
    longer.extend(more);
    let longer = recover(&longer, Trust::Since(found.boot)).unwrap();
    assert_eq!(longer.tail, next);
}

/// A header that vouches for `parts`, and the rest.
fn seal(parts: &Parts) -> Vec<u8> {
    let (size, json, chunks, log) = parts;
    let body = [&json[..], chunks].concat();
    let mut bytes = b"OCSMAP1\n".to_vec();
    bytes.extend(BOOT.0);
    for word in [*size, json.len() as u64, chunks.len() as u64] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    bytes.resize(HEADER_BYTES - 4, 0);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend(body);
    bytes.extend(log);
    bytes
}

/// Writes a log, damages it, and reads the state before the damage.
fn damaged(of: u8, frames: &Frames, at: u16, flip: u8) {
    let count = of % 8 + 1;
    let size = GRAINS * GRAIN_BYTES;
    let map = Map::new(size);
    let (mut bytes, start) = checkpoint(BOOT, size, &layers(count), &map);
    // The state behind each frame, with all of it and with what is committed.
    let mut states: Vec<(Tail, u64)> = vec![(start, 0)];
    let mut changes: Vec<(u64, Entry)> = Vec::new();
    let mut buffer = Vec::new();
    for (entries, commits) in frames.iter().take(MOST_FRAMES) {
        let (tail, mut committed) = states[states.len() - 1];
        let entries: Vec<Entry> = if *commits {
            committed = tail.seq - 1;
            vec![Entry::Commit(committed)]
        } else {
            let entry = |(first, count, place): &Change| Entry::Change {
                first: u64::from(*first),
                count: u64::from(*count) + 1,
                place: Place(*place),
            };
            entries.iter().take(MAX_ENTRIES).map(entry).collect()
        };
        if entries.is_empty() {
            continue;
        }
        changes.extend(entries.iter().map(|entry| (tail.seq, *entry)));
        let next = frame(tail, &entries, &mut buffer);
        bytes.extend(&buffer);
        states.push((next, committed));
    }
    let log = bytes.len() - start.at as usize;
    let at = start.at as usize + usize::from(at) % (log + 1);
    if flip == 0 {
        bytes.truncate(at);
    } else if at < bytes.len() {
        bytes[at] ^= flip;
    }
    let whole = |(tail, _): &&(Tail, u64)| tail.at as usize <= at;
    let (tail, committed) = *states.iter().rev().find(whole).unwrap();
    for (trust, through) in [
        (Trust::Since(BOOT), tail.seq),
        (Trust::Committed, committed + 1),
    ] {
        let found = recover(&bytes, trust).unwrap();
        assert_eq!((found.tail, found.committed), (tail, committed));
        let mut map = Map::new(size);
        for (seq, entry) in &changes {
            if let Entry::Change {
                first,
                count,
                place,
            } = entry
                && *seq < through
                && place.0 <= count_of(&found)
            {
                map.set(*first, *count, *place);
            }
        }
        assert!(runs(&found.map) == runs(&map));
    }
}

fn count_of(found: &Recovered) -> u8 {
    found.layers.len() as u8
}

fuzz_target!(|data: (u8, Frames, u16, u8, Parts, bool)| {
    let (of, frames, at, flip, parts, raw) = data;
    match (frames.is_empty(), raw) {
        (false, _) => damaged(of, &frames, at, flip),
        (true, true) => {
            let bytes = seal(&parts);
            for trust in [Trust::Since(BOOT), Trust::Committed] {
                if let Ok(found) = recover(&bytes, trust) {
                    check(&bytes, &found);
                }
            }
        }
        (true, false) => {
            let (_, json, _, bytes) = &parts;
            let _ = recover(bytes, Trust::Committed);
            if let Ok(table) = Contents::decode(json) {
                let again = Contents::decode(&table.encode().unwrap());
                assert!(again.is_ok_and(|again| again == table));
            }
        }
    }
});
