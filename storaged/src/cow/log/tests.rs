use super::*;
use crate::cow::map::GRAIN_BYTES;

const BOOT: BootId = BootId([7; 16]);

fn layers() -> Vec<LayerRef> {
    let layer = |file: &str| LayerRef {
        file: file.into(),
        key: None,
    };
    vec![layer("image"), layer("top")]
}

fn change(first: u64, count: u64, place: u8) -> Entry {
    Entry::Change {
        first,
        count,
        place: Place(place),
    }
}

/// A file with four frames: two changes, a commit of the first, one more change.
fn file() -> (Vec<u8>, Vec<usize>) {
    let mut map = Map::new(100 * GRAIN_BYTES);
    map.set(0, 50, Place(1));
    let (mut bytes, mut tail) = checkpoint(BOOT, 100 * GRAIN_BYTES, &layers(), &map);
    let mut ends = vec![bytes.len()];
    assert_eq!(recover(&bytes, Trust::Committed).unwrap().tail, tail);
    let mut buffer = Vec::new();
    for entries in [
        &[change(1, 2, 2), change(60, 1, 2)][..],
        &[change(4, 1, 0)],
        &[Entry::Commit(1)],
        &[change(70, 3, 2)],
    ] {
        tail = frame(tail, entries, &mut buffer);
        bytes.extend(&buffer);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn places(map: &Map) -> Vec<(u64, u64, u8)> {
    map.runs().map(|(a, n, p)| (a, n, p.0)).collect()
}

#[test]
fn storaged_s_death_loses_nothing_and_the_host_s_what_was_not_committed() {
    let (bytes, _) = file();
    let all = recover(&bytes, Trust::Since(BOOT)).unwrap();
    assert_eq!(
        places(&all.map),
        [
            (0, 1, 1),
            (1, 2, 2),
            (3, 1, 1),
            (4, 1, 0),
            (5, 45, 1),
            (50, 10, 0),
            (60, 1, 2),
            (61, 9, 0),
            (70, 3, 2),
            (73, 27, 0)
        ]
    );
    assert_eq!((all.tail.seq, all.committed), (5, 1));
    assert_eq!(all.tail.at, bytes.len() as u64);
    assert_eq!((all.size_bytes, all.layers), (100 * GRAIN_BYTES, layers()));
    for trust in [Trust::Committed, Trust::Since(BootId([8; 16]))] {
        let some = recover(&bytes, trust).unwrap();
        assert_eq!(
            places(&some.map),
            [
                (0, 1, 1),
                (1, 2, 2),
                (3, 47, 1),
                (50, 10, 0),
                (60, 1, 2),
                (61, 39, 0)
            ]
        );
        assert_eq!(some.reverted, [(4, 1), (70, 3)]);
    }
}

#[test]
fn every_prefix_and_every_flipped_byte_end_the_log_at_a_frame() {
    let (bytes, ends) = file();
    for len in 0..bytes.len() {
        let got = recover(&bytes[..len], Trust::Since(BOOT));
        let whole = ends.iter().filter(|end| **end <= len).count();
        match got {
            Ok(got) => assert_eq!(got.tail.at as usize, ends[whole - 1]),
            Err(_) => assert_eq!(whole, 0),
        }
    }
    for at in 0..bytes.len() {
        let mut torn = bytes.clone();
        torn[at] ^= 0x40;
        let whole = ends.iter().filter(|end| **end <= at).count();
        match recover(&torn, Trust::Since(BOOT)) {
            Ok(got) => assert_eq!(got.tail.at as usize, ends[whole - 1], "byte {at}"),
            Err(_) => assert_eq!(whole, 0, "byte {at}"),
        }
    }
}

#[test]
fn names_that_leave_the_folder_are_no_layers() {
    for name in ["", "../x", "a/b", ".."] {
        let layers = [LayerRef {
            file: name.into(),
            key: None,
        }];
        let (bytes, _) = checkpoint(BOOT, GRAIN_BYTES, &layers, &Map::new(GRAIN_BYTES));
        assert!(matches!(
            recover(&bytes, Trust::Committed),
            Err(LogError::Layers)
        ));
    }
}
