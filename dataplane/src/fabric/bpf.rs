//! bpf(2) commands for which `aya` has no call.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};

use super::error::{FabricError, file, system};

fn zeroed() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of structures of integers: zeros are valid.
    unsafe { std::mem::zeroed() }
}

/// # Safety
///
/// What the attributes point to must be as `command` wants it, until this returns.
unsafe fn call(command: bpf_cmd, attributes: &bpf_attr) -> io::Result<libc::c_long> {
    let pointer: *const bpf_attr = attributes;
    // SAFETY: the attributes are initialised and as long as said; for the rest the caller
    // vouches.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as u32,
            pointer,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn number(fd: RawFd) -> u32 {
    u32::try_from(fd).unwrap_or(u32::MAX)
}

/// Deletes an element of a map whose keys are of four bytes; an absent one is fine.
pub(super) fn delete_element(map: &MapData, key: u32, name: &str) -> Result<(), FabricError> {
    let mut attributes = zeroed();
    // SAFETY: this member is the one that BPF_MAP_DELETE_ELEM reads.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = number(map.fd().as_fd().as_raw_fd());
    element.key = (&raw const key).addr() as u64;
    // SAFETY: the attributes hold an open map with keys of four bytes and point to one.
    match unsafe { call(bpf_cmd::BPF_MAP_DELETE_ELEM, &attributes) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
            Err(system(format!("delete element {key} of map {name}"))(error))
        }
        _ => Ok(()),
    }
}

/// The value of a map's element whose form is the map's own affair; `None`: there is none.
pub(super) fn look_up(
    map: &MapData,
    key: &[u8],
    name: &'static str,
) -> Result<Option<Vec<u8>>, FabricError> {
    let info = map.info().map_err(super::error::map(name))?;
    if info.key_size() as usize != key.len() {
        return Err(FabricError::Object { kind: "map", name });
    }
    let mut value = vec![0u8; info.value_size() as usize];
    let mut attributes = zeroed();
    // SAFETY: this member is the one that BPF_MAP_LOOKUP_ELEM reads.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = number(map.fd().as_fd().as_raw_fd());
    element.key = key.as_ptr().addr() as u64;
    element.__bindgen_anon_1.value = value.as_mut_ptr().addr() as u64;
    // SAFETY: the attributes hold an open map, and point to a key and to room for a value
    // that are as long as the map says (of no map for each CPU).
    match unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &attributes) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(system(format!("look an element of map {name} up"))(error)),
    }
}

/// Returns once every program that ran at the call has ended: the kernel lets no update of
/// a map of maps return before (its `maybe_wait_bpf_programs`, Linux 4.19).
pub(super) fn wait_for_programs() -> Result<(), FabricError> {
    let failed = || system("wait for running programs");
    let inner = one_element(bpf_map_type::BPF_MAP_TYPE_ARRAY, None).map_err(failed())?;
    let outer = one_element(bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS, Some(&inner));
    let outer = outer.map_err(failed())?;
    let (key, value) = (0u32, number(inner.as_raw_fd()));
    let mut attributes = zeroed();
    // SAFETY: this member is the one that BPF_MAP_UPDATE_ELEM reads.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = number(outer.as_raw_fd());
    element.key = (&raw const key).addr() as u64;
    element.__bindgen_anon_1.value = (&raw const value).addr() as u64;
    // SAFETY: the attributes hold an open map with keys and values of four bytes, and point
    // to one of each.
    unsafe { call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &attributes) }.map_err(failed())?;
    Ok(())
}

/// A map of one element with a key and a value of four bytes.
fn one_element(kind: bpf_map_type, inner: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: this member is the one that BPF_MAP_CREATE reads.
    let form = unsafe { &mut attributes.__bindgen_anon_1 };
    form.map_type = kind as u32;
    form.key_size = 4;
    form.value_size = 4;
    form.max_entries = 1;
    form.inner_map_fd = inner.map_or(0, |inner| number(inner.as_raw_fd()));
    // SAFETY: the attributes hold an open map or none, and point to nothing.
    let fd = unsafe { call(bpf_cmd::BPF_MAP_CREATE, &attributes) }?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a pinned link off its interface, and returns when that is done. To remove the
/// pin alone leaves that to the kernel's leisure.
pub(super) fn detach_link(pin: &Path) -> Result<(), FabricError> {
    let link = open_pin(pin).map_err(file("open", pin))?;
    let mut attributes = zeroed();
    attributes.link_detach.link_fd = number(link.as_raw_fd());
    // SAFETY: the attributes hold an open link.
    unsafe { call(bpf_cmd::BPF_LINK_DETACH, &attributes) }.map_err(file("detach", pin))?;
    Ok(())
}

fn open_pin(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attributes = zeroed();
    attributes.__bindgen_anon_4.pathname = path.as_ptr().addr() as u64;
    // SAFETY: the attributes point to a string that ends in a zero.
    let fd = unsafe { call(bpf_cmd::BPF_OBJ_GET, &attributes) }?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
