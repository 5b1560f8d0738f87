//! Out of the host's file system, for good.
//!
//! ```text
//!  unshare(mount, IPC, UTS) ─▶ empty read-only tmpfs ─▶ pivot_root, old root let go
//!        ─▶ no_new_privs, no capability, no core dump ─▶ landlock: no path, no port, no signal
//! ```
//! The network and PID namespaces are the caller's to choose: a process that has
//! started cannot change its own PID namespace, and one empty network namespace
//! serves all VMMs of a host.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use ocs_vmm_spec::Jail;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, chdir, getegid, geteuid, pivot_root, set_dumpable_behavior,
    setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capabilities, clear_ambient_capability_set,
    set_capabilities, set_no_new_privs, unshare_unsafe,
};
use std::io;

/// Every host has it; what is mounted there is seen by this process alone.
const ANY_FOLDER: &str = "/dev";
/// How the empty tree is mounted, at first and when it becomes read-only.
const INERT: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// For the whole process, while it has one thread, when everything it will ever need is open.
///
/// Takes `CAP_SYS_ADMIN`, which the caller leaves to this program as an ambient
/// capability, or else a user namespace of its own.
pub fn leave_host(jail: Jail) -> io::Result<()> {
    if jail == Jail::Full {
        enter_empty_tree()?;
    }
    set_no_new_privs(true)?;
    // A core would hold guest memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    clear_ambient_capability_set()?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    restrict_paths().map_err(io::Error::other)
}

fn enter_empty_tree() -> io::Result<()> {
    if !capabilities(None)?
        .effective
        .contains(CapabilitySet::SYS_ADMIN)
    {
        own_user_namespace()?;
    }
    let away = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: none of these flags unshares descriptors or memory.
    unsafe { unshare_unsafe(away) }?;
    // Nothing that happens here may show outside, or the other way round.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    mount(
        "none",
        ANY_FOLDER,
        "tmpfs",
        INERT,
        c"size=4k,nr_inodes=1,mode=0555",
    )?;
    chdir(ANY_FOLDER)?;
    // The old root comes to lie over the new one, where it can be let go by the same name.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    mount_remount("/", INERT | MountFlags::RDONLY, "")?;
    Ok(())
}

/// A namespace in which this process may do the above, under its own user's number.
fn own_user_namespace() -> io::Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: the flag unshares neither descriptors nor memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Landlock without a single rule: where the kernel has it, not even a descriptor of a
/// folder opens anything, no TCP port is reached, and no process outside is signalled.
fn restrict_paths() -> Result<(), landlock::RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::info!("this kernel has no Landlock: the jail has a wall less");
    }
    Ok(())
}
