//! What storaged gives up before it meets a guest: new privileges, core dumps,
//! every file but its own folder and the images, every system call that it does not
//! make. What its rings may do is restricted where they are made, since seccomp does
//! not see it.
//!
//! Landlock does not reach connects to sockets by path; there the sockets' own
//! permissions decide.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::path::Path;

/// Enters the sandbox; for this thread and all that it starts. `control` is the
/// folder of the control socket, which is removed at the end.
pub fn enter(state: &Path, images: &Path, control: &Path) -> anyhow::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let abi = ABI::V5;
    let own = AccessFs::from_all(abi) & !AccessFs::Execute;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new(state)?, own))?
        .add_rule(PathBeneath::new(
            PathFd::new(images)?,
            AccessFs::ReadFile | AccessFs::ReadDir,
        ))?
        .add_rule(PathBeneath::new(
            PathFd::new(control)?,
            AccessFs::RemoveFile,
        ))?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no Landlock: the file system stays visible");
    }
    restrict_calls()
}

/// Every other system call fails with EPERM.
fn restrict_calls() -> anyhow::Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, vec![])).collect();
    for (call, argument, allowed) in ARGUMENTS {
        let rule = |allow: &Allow| {
            let (op, value) = match *allow {
                Allow::Value(value) => (SeccompCmpOp::Eq, value),
                Allow::Masked(mask, value) => (SeccompCmpOp::MaskedEq(mask), value),
            };
            let condition = SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, op, value)?;
            SeccompRule::new(vec![condition])
        };
        let allowed = allowed.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
        rules.insert(*call, allowed);
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    // clone3 hides its flags from a filter; without it the C library falls back to clone.
    let unknown = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter = SeccompFilter::new(unknown, SeccompAction::Allow, absent, arch)?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    rules.insert(libc::SYS_clone3, vec![]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}

/// What an argument may be.
enum Allow {
    Value(u64),
    /// These bits have that value.
    Masked(u64, u64),
}

/// Calls with an argument that decides: which one, and what it may be.
const ARGUMENTS: &[(i64, u8, &[Allow])] = &[
    (libc::SYS_socket, 0, &[Allow::Value(libc::AF_UNIX as u64)]),
    (
        libc::SYS_socketpair,
        0,
        &[Allow::Value(libc::AF_UNIX as u64)],
    ),
    (
        libc::SYS_setsockopt,
        2,
        &[
            Allow::Value(libc::SO_RCVTIMEO as u64),
            Allow::Value(libc::SO_SNDTIMEO as u64),
        ],
    ),
    (libc::SYS_ioctl, 1, &[Allow::Value(libc::FICLONE)]),
    (
        libc::SYS_fcntl,
        1,
        &[
            Allow::Value(libc::F_GETFL as u64),
            Allow::Value(libc::F_SETFL as u64),
            Allow::Value(libc::F_GETFD as u64),
            Allow::Value(libc::F_DUPFD_CLOEXEC as u64),
            Allow::Value(libc::F_GET_SEALS as u64),
            Allow::Value(libc::F_ADD_SEALS as u64),
        ],
    ),
    // Nothing may be executed that was not from the start.
    (
        libc::SYS_mmap,
        2,
        &[Allow::Masked(libc::PROT_EXEC as u64, 0)],
    ),
    (
        libc::SYS_mprotect,
        2,
        &[Allow::Masked(libc::PROT_EXEC as u64, 0)],
    ),
    (
        libc::SYS_clone,
        0,
        &[Allow::Masked(
            libc::CLONE_THREAD as u64,
            libc::CLONE_THREAD as u64,
        )],
    ),
    (
        libc::SYS_prctl,
        0,
        &[Allow::Value(libc::PR_SET_NAME as u64)],
    ),
    // Reading limits only.
    (libc::SYS_prlimit64, 2, &[Allow::Value(0)]),
];

/// The further calls that storaged, its threads and its allocator make.
const CALLS: &[i64] = &[
    // Volumes, table, descriptors.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_copy_file_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_dup3,
    libc::SYS_getdents64,
    libc::SYS_readlink,
    // Sockets.
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    // Rings and shared memory.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_eventfd2,
    libc::SYS_memfd_create,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_brk,
    libc::SYS_getrandom,
    // Threads, time, signals, the end.
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_tgkill,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
