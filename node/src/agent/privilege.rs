//! The node's own privileges: root, with the capabilities that its work takes and no way to others.

use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use std::io;

/// What each is for is in [`keep_needed`].
fn needed() -> CapabilitySet {
    // Run directories, sockets and records that belong to other users.
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        // VMMs: their user, group and limits; their bounding set; their end; whose
        // nonce /proc/PID/environ shows.
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::SYS_RESOURCE
        | CapabilitySet::SETPCAP
        | CapabilitySet::KILL
        | CapabilitySet::SYS_PTRACE
        // Namespaces, mounts, taps, programs and maps.
        | CapabilitySet::SYS_ADMIN
        | CapabilitySet::NET_ADMIN
        | CapabilitySet::BPF
        | CapabilitySet::PERFMON
}

/// Drops every capability but those that the node's work takes, for good. For the
/// calling thread and those it starts from now on: call it before there are any.
pub fn keep_needed() -> io::Result<()> {
    let needed = needed();
    for capability in CapabilitySet::all().difference(needed).iter() {
        match remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not know.
            Err(rustix::io::Errno::INVAL) => {}
            other => other?,
        }
    }
    let now = rustix::thread::capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: now.effective & needed,
            permitted: now.permitted & needed,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_is_gone() {
        // Capabilities belong to a thread: this test's alone.
        std::thread::spawn(|| {
            keep_needed().unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let set = |name: &str| {
                let line = status.lines().find(|l| l.starts_with(name)).unwrap();
                u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
            };
            for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
                assert_eq!(set(name) & !needed().bits(), 0, "{name}");
            }
            assert_eq!(set("CapInh:"), 0);
            assert_ne!(set("CapEff:") & CapabilitySet::SYS_ADMIN.bits(), 0);
        })
        .join()
        .unwrap();
    }
}
