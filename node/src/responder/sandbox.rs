//! What the responder gives up before it meets a guest: every file but the records, core
//! dumps, and every system call that it does not make. It keeps the sockets that it has and
//! makes no others; nothing can be executed or mapped as code.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::set_no_new_privs;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Enters the sandbox, for this thread and all that it starts.
pub fn enter(records: &Path) -> io::Result<()> {
    set_no_new_privs(true)?;
    // Core dumps would hold the tokens' key and user data.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    restrict_files(records).map_err(io::Error::other)?;
    restrict_calls().map_err(io::Error::other)
}

fn restrict_files(records: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new(records)?, AccessFs::ReadFile))?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no Landlock: the file system stays visible");
    }
    Ok(())
}

/// Every other system call fails with EPERM.
fn restrict_calls() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let code = u64::from(libc::PROT_EXEC.unsigned_abs());
        let no_code =
            SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(code), 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![no_code])?]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}

/// The system calls that the responder, tokio and the allocator make, beside `mmap` and
/// `mprotect`.
const CALLS: &[i64] = &[
    // Records, log, descriptors.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    // Sockets there are, those accepted, and the pair that tokio's signals arrive by.
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Memory, threads, time, signals, the end.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_getrandom,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const CHILD: &str = "OCS_RESPONDER_SANDBOX_CHILD";

    /// In a process of its own, since a sandbox has no way out: this test starts itself again.
    #[test]
    fn only_the_records_and_the_sockets_there_are_stay() {
        if let Some(folder) = std::env::var_os(CHILD) {
            return inside(Path::new(&folder));
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("records")).unwrap();
        for file in ["records/one", "other"] {
            std::fs::write(folder.path().join(file), file).unwrap();
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "responder::sandbox::tests::only_the_records_and_the_sockets_there_are_stay",
            ])
            .arg("--nocapture")
            .env(CHILD, folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }

    fn inside(folder: &Path) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let records = folder.join("records");
        enter(&records).unwrap();
        assert_eq!(std::fs::read(records.join("one")).unwrap(), b"records/one");
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        let refused = [
            std::fs::read(folder.join("other")).err(),
            std::fs::write(records.join("two"), "x").err(),
            std::fs::remove_file(records.join("one")).err(),
            std::net::UdpSocket::bind("127.0.0.1:0").err(),
            Command::new("/bin/true").status().err(),
            map_code().err(),
        ];
        for (act, error) in refused.into_iter().enumerate() {
            let kind = error.map(|error| error.kind());
            assert_eq!(kind, Some(io::ErrorKind::PermissionDenied), "{act}");
        }
    }

    fn map_code() -> io::Result<()> {
        // SAFETY: a new private mapping anywhere.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
