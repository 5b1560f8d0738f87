//! What the process gives up before a guest runs.
//!
//! ```text
//!  caller      uid · cgroup · network and PID namespace · limits on threads
//!     │ execve
//!  namespace.rs  once all files are open: file system, IPC, host name; then capabilities, landlock
//!     │          … kernel image and tables are read in here already …
//!  mod.rs        limits on files
//!  seccomp.rs    a filter a thread
//! ```
//! Each wall stands without the others: `node/tests/jail/` runs hostile code in the
//! place of a device behind all of them, and behind all but the filters.

mod namespace;
mod seccomp;

pub use namespace::leave_host;
pub use seccomp::{confine_disk, confine_events, confine_nursery, confine_state, confine_vcpu};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// The console ring and the exit record are the only files that are written.
const MAX_FILE_BYTES: u64 = 2 << 20;
/// Descriptors: 30 devices with queues and vectors, vsock streams, clients, and the fixed ones.
const MAX_FILES: u64 = 1024;

/// For the whole process, before threads exist: they all allocate from one heap.
///
/// A heap of a thread's own reads `/proc/sys/vm/overcommit_memory` the first time it shrinks
/// (glibc, `check_may_shrink_heap`), which is an end by the filter for a thread that may open
/// nothing.
pub fn share_heap() -> io::Result<()> {
    // SAFETY: it changes a number inside the allocator.
    match unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } {
        1 => Ok(()),
        _ => Err(io::Error::other("the allocator does not take M_ARENA_MAX")),
    }
}

/// For the whole process, before threads exist and after memory does.
pub fn limit_files() -> io::Result<()> {
    // The state thread, which alone may raise it, writes memory files.
    let most = getrlimit(Resource::Fsize).maximum;
    for (resource, limit, most) in [
        (Resource::Fsize, MAX_FILE_BYTES, most),
        (Resource::Nofile, MAX_FILES, Some(MAX_FILES)),
    ] {
        let limit = Rlimit {
            current: Some(limit),
            maximum: most,
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
}

/// Runs `f` while files of `bytes` may be written, with room for a table behind them.
pub fn with_files_of<R>(bytes: u64, f: impl FnOnce() -> R) -> io::Result<R> {
    let limit = |current: u64| {
        let limit = Rlimit {
            current: Some(current),
            maximum: getrlimit(Resource::Fsize).maximum,
        };
        setrlimit(Resource::Fsize, limit)
    };
    // An entry of 16 bytes a page, at most.
    limit(bytes + bytes / 128 + MAX_FILE_BYTES)?;
    let result = f();
    limit(MAX_FILE_BYTES)?;
    Ok(result)
}
