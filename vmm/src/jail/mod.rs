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
//! Each wall stands without the others: `node/tests/jail.rs` runs hostile code in the
//! place of a device behind all of them, and behind all but the filters.

mod namespace;
mod seccomp;

pub use namespace::leave_host;
pub use seccomp::{confine_disk, confine_events, confine_nursery, confine_vcpu};

use rustix::process::{Resource, Rlimit, setrlimit};
use std::io;

/// The console ring and the exit record are the only files that are written.
const MAX_FILE_BYTES: u64 = 2 << 20;
/// Descriptors: 28 devices with queues and vectors, clients, and the fixed ones.
const MAX_FILES: u64 = 512;

/// For the whole process, before threads exist and after memory does.
pub fn limit_files() -> io::Result<()> {
    for (resource, limit) in [
        (Resource::Fsize, MAX_FILE_BYTES),
        (Resource::Nofile, MAX_FILES),
    ] {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
}
