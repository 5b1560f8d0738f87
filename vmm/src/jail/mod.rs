//! What the process gives up before a guest runs.
//!
//! ```text
//!  caller: uid, namespaces, cgroup ─▶ mod.rs: capabilities, limits ─▶ seccomp.rs: a filter a thread
//! ```
//! The caller has chosen uid, namespaces and cgroup before `execve`; here the VMM
//! drops what it could still have: capabilities, new privileges, core dumps (they
//! would hold guest memory), large files, processes.

mod seccomp;

pub use seccomp::{confine_disk, confine_events, confine_nursery, confine_vcpu};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use std::io;

/// The console ring and the exit record are the only files that are written.
const MAX_FILE_BYTES: u64 = 2 << 20;
/// Descriptors: 28 devices with queues and vectors, clients, and the fixed ones.
const MAX_FILES: u64 = 512;

/// For the whole process, before threads exist and after memory does.
pub fn confine_process() -> io::Result<()> {
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    for (resource, limit) in [
        (Resource::Core, 0),
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
