//! Entries of pinned BPF maps, counted through bpf(2): no tool on PATH does it.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
/// Keys of these types are slots that always exist: `BPF_MAP_TYPE_ARRAY`,
/// `PROG_ARRAY`, `PERCPU_ARRAY`, `RINGBUF` (linux/bpf.h).
const WITHOUT_ENTRIES: [u32; 4] = [2, 3, 6, 27];
/// A map that is written while it is counted could go on for ever.
const MAX_ENTRIES: usize = 1 << 20;
/// More than any kernel that we run on is built for (`CONFIG_NR_CPUS`).
const MAX_CPUS: usize = 8192;

/// `BPF_OBJ_GET`'s part of `union bpf_attr`.
#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `BPF_MAP_LOOKUP_ELEM` and `BPF_MAP_GET_NEXT_KEY`.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

/// `BPF_OBJ_GET_INFO_BY_FD`'s part.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Entries by name of each hash-like map pinned in `folder` or below.
pub fn map_entries(folder: &Path) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    count_in(folder, folder, &mut counts)?;
    Ok(counts)
}

fn count_in(top: &Path, folder: &Path, counts: &mut BTreeMap<String, usize>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            count_in(top, &path, counts)?;
        } else if let Some(count) = count(&path)? {
            let name = path
                .strip_prefix(top)
                .unwrap_or(&path)
                .display()
                .to_string();
            counts.insert(name, count);
        }
    }
    Ok(())
}

/// `None` for what is no map, or no map with entries.
fn count(path: &Path) -> Result<Option<usize>> {
    // A bpffs has files of its own besides what is pinned: maps.debug, progs.debug.
    let Ok(pinned) = open(path) else {
        return Ok(None);
    };
    // A pinned program or link opens too; its name tells it.
    let kind = fs::read_link(format!("/proc/self/fd/{}", pinned.as_raw_fd()))?;
    if kind.as_os_str() != "anon_inode:bpf-map" {
        return Ok(None);
    }
    // struct bpf_map_info begins with type, id, key_size, value_size, max_entries.
    let mut info = [0u32; 5];
    let attr = InfoAttr {
        bpf_fd: raw(&pinned),
        info_len: 20,
        info: info.as_mut_ptr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    if WITHOUT_ENTRIES.contains(&info[0]) {
        return Ok(None);
    }
    let mut key = vec![0u8; info[2] as usize];
    let mut next = key.clone();
    // A per-CPU map gives a value for each possible CPU, each rounded up to 8 bytes.
    let mut value = vec![0u8; (info[3] as usize).next_multiple_of(8) * MAX_CPUS];
    let element = |key: u64, value_or_next_key: u64| ElementAttr {
        map_fd: raw(&pinned),
        padding: 0,
        key,
        value_or_next_key,
        flags: 0,
    };
    let mut count = 0;
    for step in 0..MAX_ENTRIES {
        let from = if step == 0 { 0 } else { key.as_ptr() as u64 };
        match bpf(
            BPF_MAP_GET_NEXT_KEY,
            &element(from, next.as_mut_ptr() as u64),
        ) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            other => other?,
        };
        key.copy_from_slice(&next);
        // A slot of a device map or of a map of maps has a key even while it is empty.
        let held = element(key.as_ptr() as u64, value.as_mut_ptr() as u64);
        count += usize::from(bpf(BPF_MAP_LOOKUP_ELEM, &held).is_ok());
    }
    Ok(Some(count))
}

fn open(path: &Path) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjectAttr {
        pathname: name.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    // SAFETY: BPF_OBJ_GET returned a new descriptor, which nothing else owns (bpf(2)).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` is `command`'s part of union bpf_attr, of the size passed, and the
    // buffers that it points to outlive the call and have the sizes that the kernel
    // takes from the map (bpf(2)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            std::mem::size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
