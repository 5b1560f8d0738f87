//! Network namespaces that live as long as a file is mounted on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::fstatfs;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::error::{FabricError, file, system};

/// Magic number of the namespaces' file system (`NSFS_MAGIC` of linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Opens the namespace that is mounted on `path`; makes a new one if there is none.
pub(super) fn ensure(path: &Path) -> Result<OwnedFd, FabricError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(file("create folder", parent))?;
    }
    if let Some(namespace) = find(path)? {
        return Ok(namespace);
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(file("create", path))?;
    make(|| mount_bind(OURS, path).map_err(io::Error::from))
        .map_err(file("mount a network namespace on", path))?;
    find(path)?.ok_or_else(|| {
        file("find a network namespace on", path)(io::Error::from(io::ErrorKind::NotFound))
    })
}

/// A new namespace without a name, which lives as long as somebody has it open.
pub(super) fn unnamed() -> Result<OwnedFd, FabricError> {
    make(|| File::open(OURS).map(OwnedFd::from)).map_err(system("make a network namespace"))
}

/// The calling thread's namespace.
const OURS: &str = "/proc/thread-self/ns/net";

/// Does something in a new namespace, on a thread of its own.
fn make<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: only this thread, which was made for it, leaves its namespace;
                // its descriptors stay shared.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
                work()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Opens the namespace that is mounted on `path`, if one is.
pub(super) fn find(path: &Path) -> Result<Option<OwnedFd>, FabricError> {
    let opened = match File::open(path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file("open", path)(error)),
    };
    let status = fstatfs(&opened)
        .map_err(io::Error::from)
        .map_err(file("look at", path))?;
    Ok((status.f_type == NSFS_MAGIC).then(|| opened.into()))
}

/// Unmounts `path` and removes it.
pub(super) fn remove(path: &Path) -> Result<(), FabricError> {
    while find(path)?.is_some() {
        unmount(path, UnmountFlags::DETACH)
            .map_err(io::Error::from)
            .map_err(file("unmount", path))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Does something in a namespace, on a thread of its own.
pub(super) fn within<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, FabricError> + Send,
) -> Result<T, FabricError> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
                    .map_err(io::Error::from)
                    .map_err(system("enter a network namespace"))?;
                work()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether this kernel speaks IPv6.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Writes a sysctl of the thread's namespace.
pub(super) fn sysctl(name: &str, value: &str) -> Result<(), FabricError> {
    let path = Path::new("/proc/sys/net").join(name);
    match fs::write(&path, value) {
        // A kernel without IPv6 has no switch to turn it off.
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6") => Ok(()),
        other => other.map_err(file("write", &path)),
    }
}
