//! Flow tables as they were before loader and programs shared their memory.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};
use ocs_dataplane::shared::flow::BUCKET_WORDS;
use ocs_dataplane::shared::layout::MAX_SLOTS;

type Table = Array<MapData, [u64; BUCKET_WORDS]>;
type Tables = ArrayOfMaps<MapData, Table>;

/// Pins such tables in place of those at `pin`, with what they hold.
pub fn replace(pin: &Path, buckets: usize) {
    let buckets = u32::try_from(buckets).expect("a few buckets");
    let tables = tables_of(MapData::from_pin(pin).expect("tables"));
    let mut copies = tables_of(outer(buckets));
    for slot in 0..tables.len() {
        let from = match tables.get(&slot, 0) {
            Ok(table) => table,
            Err(MapError::KeyNotFound) => continue,
            Err(error) => panic!("slot {slot}: {error}"),
        };
        let mut to = table(buckets);
        for index in 0..buckets {
            let bucket = from.get(&index, 0).expect("a bucket");
            to.set(index, bucket, 0).expect("room for it");
        }
        copies.set(slot, &to, 0).expect("room for a table");
    }
    std::fs::remove_file(pin).expect("a pin");
    copies.pin(pin).expect("a place for a pin");
}

fn table(buckets: u32) -> Table {
    Table::create(buckets, 0).expect("a table")
}

fn tables_of(data: MapData) -> Tables {
    let map = Map::from_map_data(data).expect("a kind of map that is known");
    Tables::try_from(map).expect("a map of maps")
}

/// A map of such tables.
fn outer(buckets: u32) -> MapData {
    let array = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let bytes = u32::try_from(8 * BUCKET_WORDS).expect("a few bytes");
    let form = aya_obj::Map::new_from_params(array, 4, bytes, buckets, 0);
    let inner = MapData::create(form, "table", None).expect("a table");
    let inner = inner.fd().as_fd().as_raw_fd();
    // SAFETY: `bpf_attr` is a union of structures of integers: zeros are valid.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: this member is the one that BPF_MAP_CREATE reads.
    let form = unsafe { &mut attributes.__bindgen_anon_1 };
    form.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
    form.key_size = 4;
    form.value_size = 4;
    form.max_entries = u32::try_from(MAX_SLOTS).expect("a few slots");
    form.inner_map_fd = u32::try_from(inner).expect("an open map");
    // SAFETY: the attributes hold an open map and point to nothing.
    let made = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_CREATE as u32,
            &raw const attributes,
            size_of::<bpf_attr>(),
        )
    };
    let made = RawFd::try_from(made).expect("a descriptor");
    assert!(made >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just given us this descriptor.
    let made = unsafe { OwnedFd::from_raw_fd(made) };
    MapData::from_fd(made).expect("a map")
}
