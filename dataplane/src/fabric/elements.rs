//! Deleting elements of maps for which `aya` has no such call: arrays of maps and of
//! devices.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_cmd};

use super::error::{FabricError, system};

/// Deletes an element; an absent one is fine.
pub(super) fn delete(map: &MapData, key: u32, name: &str) -> Result<(), FabricError> {
    // SAFETY: `bpf_attr` is a union of structures of integers: zeros are valid.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: this member is the one that BPF_MAP_DELETE_ELEM reads.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = u32::try_from(map.fd().as_fd().as_raw_fd()).unwrap_or(u32::MAX);
    element.key = (&raw const key).addr() as u64;
    // SAFETY: the attributes hold an open map with keys of four bytes and point to such a
    // key; both live until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_DELETE_ELEM,
            &raw const attributes,
            size_of::<bpf_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOENT) {
        return Ok(());
    }
    Err(system(format!("delete element {key} of map {name}"))(error))
}
