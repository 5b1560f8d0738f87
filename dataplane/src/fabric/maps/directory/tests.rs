//! A directory over the kernel's maps against a plain map, with cells so few that keys
//! share them.

use super::*;
use proptest::prelude::*;

const CELLS: u32 = 4;
const ENTRIES: u32 = 12;
const KEYS: u32 = 16;

type Small = Directory<u32, u64>;

fn names() -> Names {
    Names {
        cells: "cells",
        entries: "entries",
        far: "far",
    }
}

fn small() -> Small {
    Directory::new(
        Array::create(CELLS, 0).expect("cells"),
        Array::create(ENTRIES, 0).expect("entries"),
        HashMap::create(KEYS, 0).expect("far"),
        names(),
        |key| key & (CELLS - 1),
    )
}

/// The loader ends, and another finds the maps.
fn successor(before: Small, known: &BTreeMap<u32, u64>) -> Small {
    let Directory {
        cells,
        entries,
        far,
        cell_of,
        ..
    } = before;
    let mut next = Directory::new(cells, entries, far, names(), cell_of);
    next.adopt(known).expect("what was left is found");
    next
}

fn set(directory: &mut Small, key: u32, value: u64) -> Result<(), FabricError> {
    let prepared = directory.prepare(key, value)?;
    directory.publish(key, prepared)
}

#[derive(Clone, Debug)]
enum Step {
    Set(u32, u64),
    /// Written, but nothing leads to it in the end.
    Give(u32),
    Remove(u32),
    /// The loader is killed before a change to its own map is in the directory, too.
    Kill(u32, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || 0..KEYS;
    let step = prop_oneof![
        6 => (key(), any::<u64>()).prop_map(|(key, value)| Step::Set(key, value)),
        1 => key().prop_map(Step::Give),
        4 => key().prop_map(Step::Remove),
        1 => (key(), any::<u64>()).prop_map(|(key, value)| Step::Kill(key, value)),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_a_directory_says_what_a_map_says(steps in steps()) {
        let mut directory = successor(small(), &BTreeMap::new());
        let mut model = BTreeMap::new();
        for step in steps {
            match step {
                Step::Set(key, value) => match set(&mut directory, key, value) {
                    Ok(()) => {
                        model.insert(key, value);
                    }
                    // Entry 0 is nobody's.
                    Err(FabricError::Full { .. }) => {
                        prop_assert_eq!(model.len(), ENTRIES as usize - 1);
                    }
                    Err(error) => return Err(TestCaseError::fail(error.to_string())),
                },
                Step::Give(key) => {
                    if let Ok(prepared) = directory.prepare(key, 1) {
                        directory.discard(prepared);
                    }
                }
                Step::Remove(key) => {
                    directory.remove(&key).expect("removed");
                    model.remove(&key);
                }
                Step::Kill(key, value) => {
                    if model.len() + 1 < ENTRIES as usize - 1 {
                        model.insert(key, value);
                    }
                    directory = successor(directory, &model);
                }
            }
            for key in 0..KEYS {
                prop_assert_eq!(directory.get(&key).expect("read"), model.get(&key).copied(), "{}", key);
            }
        }
    }
}

#[test]
fn an_entry_that_a_program_may_see_is_not_written() {
    let mut directory = successor(small(), &BTreeMap::new());
    set(&mut directory, 1, 10).expect("set");
    let first = directory.places[&1].entry;
    while !directory.free.is_empty() {
        set(&mut directory, 1, 11).expect("set");
        let at = directory.places[&1].entry;
        assert_ne!(at, first, "before programs were waited for");
        assert!(directory.left.contains(&first));
        let Raw(old) = directory.entries.get(&first, 0).expect("read");
        assert_eq!((old.key, old.value), (1, 10));
    }
}
