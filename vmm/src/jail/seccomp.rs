//! A system-call filter for each kind of thread: what is not listed kills the process.
//!
//! | thread | beyond memory, locks and its own end |
//! |---|---|
//! | vCPU | `ioctl` for KVM's run, its own registers, routes, irqfd and ioeventfd; eventfds |
//! | disk | accept, send and receive on Unix sockets; the inflight region |
//! | nursery | what disks may, and starting their threads |
//! | state | `ioctl` that reads KVM's state and dirty logs; the files of a snapshot; kicks |
//! | events | epoll, the taps' ring, the control socket, the exit record, signalling vCPUs, hanging up on backends; for hot-plug eventfds and timers, places in the ring, `ioctl` for taps and KVM's irqfd and ioeventfd |
//!
//! No thread may open a file, make a socket, start a program or map code.

use crate::virtio::net::REGISTER_FILES_UPDATE;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::io;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_SET_REGS: u64 = 0x4090_ae82;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
const KVM_SET_SREGS: u64 = 0x4138_ae84;
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;
const KVM_IRQFD: u64 = 0x4020_ae76;
const KVM_IOEVENTFD: u64 = 0x4040_ae79;

const TUNGETIFF: u64 = 0x8004_54d2;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;

/// What saving a machine asks of KVM, and its dirty logs.
const KVM_READS: [u64; 20] = [
    0xae03,      // CHECK_EXTENSION
    0xaea3,      // GET_TSC_KHZ
    0xaead,      // KVMCLOCK_CTRL
    0xc004_ae02, // GET_MSR_INDEX_LIST
    0xc008_ae91, // GET_CPUID2
    0xc008_ae88, // GET_MSRS
    0xc208_ae62, // GET_IRQCHIP
    0x8030_ae7c, // GET_CLOCK
    0x8004_ae98, // GET_MP_STATE
    KVM_GET_REGS,
    KVM_GET_SREGS,
    0x8188_aea6,   // GET_XCRS
    0x9000_aea4,   // GET_XSAVE
    0x9000_aecf,   // GET_XSAVE2
    0x8080_aea1,   // GET_DEBUGREGS
    0x8400_ae8e,   // GET_LAPIC
    0x8040_ae9f,   // GET_VCPU_EVENTS
    0x4010_ae42,   // GET_DIRTY_LOG
    0x4020_ae46,   // SET_USER_MEMORY_REGION
    libc::FIONBIO, // the socket of a migration
];

/// What the runtime itself needs in any thread.
const COMMON: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// For a vCPU thread.
pub fn confine_vcpu() -> io::Result<()> {
    let mut rules = common()?;
    allow(&mut rules, &[libc::SYS_poll, libc::SYS_ppoll]);
    rules.insert(
        libc::SYS_ioctl,
        one_of(
            1,
            &[
                KVM_RUN,
                KVM_GET_REGS,
                // Where the guest begins, known once its disk was read.
                KVM_SET_REGS,
                KVM_GET_SREGS,
                KVM_SET_SREGS,
                KVM_SET_GSI_ROUTING,
                KVM_IRQFD,
                KVM_IOEVENTFD,
            ],
        )?,
    );
    duplicate(&mut rules)?;
    apply(rules)
}

/// For a disk's thread.
pub fn confine_disk() -> io::Result<()> {
    apply(disk()?)
}

/// For the thread that starts those of disks: they inherit its filter, then add their own.
pub fn confine_nursery() -> io::Result<()> {
    let mut rules = disk()?;
    allow(
        &mut rules,
        &[libc::SYS_clone3, libc::SYS_clone, libc::SYS_seccomp],
    );
    let commands = [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS]
        .map(|command| u64::from(command.unsigned_abs()));
    rules.insert(libc::SYS_prctl, one_of(0, &commands)?);
    apply(rules)
}

fn disk() -> io::Result<Rules> {
    let mut rules = common()?;
    allow(
        &mut rules,
        &[
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_accept4,
            libc::SYS_getsockopt,
            libc::SYS_setsockopt,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_recvmsg,
            libc::SYS_recvfrom,
            libc::SYS_fstat,
            libc::SYS_statx,
            libc::SYS_pwrite64,
        ],
    );
    rules.insert(libc::SYS_ioctl, one_of(1, &[libc::FIONBIO])?);
    duplicate(&mut rules)?;
    Ok(rules)
}

/// For the event thread, when all others exist.
pub fn confine_events() -> io::Result<()> {
    let mut rules = common()?;
    allow(
        &mut rules,
        &[
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_pwait2,
            libc::SYS_epoll_ctl,
            libc::SYS_io_uring_enter,
            libc::SYS_timerfd_create,
            libc::SYS_timerfd_settime,
            libc::SYS_accept4,
            libc::SYS_recvmsg,
            libc::SYS_recvfrom,
            libc::SYS_readv,
            libc::SYS_pread64,
            libc::SYS_sendto,
            libc::SYS_getsockopt,
            libc::SYS_eventfd2,
            libc::SYS_shutdown,
            libc::SYS_lseek,
            libc::SYS_memfd_create,
            libc::SYS_ftruncate,
        ],
    );
    // The ring is there, and restricted; a tap may take a place in it, nothing else.
    rules.insert(
        libc::SYS_io_uring_register,
        one_of(1, &[REGISTER_FILES_UPDATE.into()])?,
    );
    let commands = [
        libc::FIONBIO,
        TUNGETIFF,
        TUNSETOFFLOAD,
        TUNSETVNETHDRSZ,
        KVM_SET_GSI_ROUTING,
        KVM_IRQFD,
        KVM_IOEVENTFD,
    ];
    rules.insert(libc::SYS_ioctl, one_of(1, &commands)?);
    kick(&mut rules)?;
    duplicate(&mut rules)?;
    apply(rules)
}

/// For the thread that stops, saves and moves the machine.
pub fn confine_state() -> io::Result<()> {
    let mut rules = common()?;
    allow(
        &mut rules,
        &[
            libc::SYS_pwrite64,
            libc::SYS_lseek,
            libc::SYS_ftruncate,
            libc::SYS_fdatasync,
            libc::SYS_fstat,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_recvmsg,
            libc::SYS_recvfrom,
            libc::SYS_setsockopt,
            libc::SYS_memfd_create,
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_statx,
        ],
    );
    kick(&mut rules)?;
    let limit = u64::from(libc::RLIMIT_FSIZE);
    let own_files = condition(1, SeccompCmpOp::Eq, limit)?;
    rules.insert(libc::SYS_prlimit64, vec![rule(own_files)?]);
    rules.insert(
        libc::SYS_setrlimit,
        vec![rule(condition(0, SeccompCmpOp::Eq, limit)?)?],
    );
    rules.insert(libc::SYS_ioctl, one_of(1, &KVM_READS)?);
    duplicate(&mut rules)?;
    apply(rules)
}

fn common() -> io::Result<Rules> {
    let mut rules = Rules::new();
    allow(&mut rules, COMMON);
    // Memory, but never code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let exec = u64::from(libc::PROT_EXEC.unsigned_abs());
        let no_code = condition(2, SeccompCmpOp::MaskedEq(exec), 0)?;
        rules.insert(call, vec![rule(no_code)?]);
    }
    Ok(rules)
}

fn allow(rules: &mut Rules, calls: &[i64]) {
    rules.extend(calls.iter().map(|call| (*call, Vec::new())));
}

/// The kick, to threads of this process alone.
fn kick(rules: &mut Rules) -> io::Result<()> {
    let own = u64::from(std::process::id());
    let kick = u64::from(vmm_sys_util::signal::SIGRTMIN().unsigned_abs());
    let to_us = [
        condition(0, SeccompCmpOp::Eq, own)?,
        condition(2, SeccompCmpOp::Eq, kick)?,
    ];
    let to_us = SeccompRule::new(to_us.to_vec()).map_err(io::Error::other)?;
    rules.insert(libc::SYS_tgkill, vec![to_us]);
    Ok(())
}

/// Second descriptors of what is open already.
fn duplicate(rules: &mut Rules) -> io::Result<()> {
    let commands = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_GETFD,
        // Memory shared with a backend is sealed: dirty logs, bounce regions.
        libc::F_ADD_SEALS,
    ]
    .map(|command| u64::from(command.unsigned_abs()));
    rules.insert(libc::SYS_fcntl, one_of(1, &commands)?);
    Ok(())
}

fn one_of(argument: u8, values: &[u64]) -> io::Result<Vec<SeccompRule>> {
    values
        .iter()
        .map(|value| rule(condition(argument, SeccompCmpOp::Eq, *value)?))
        .collect()
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    // The kernel looks at the low half of a command or protection.
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        .map_err(io::Error::other)
}

fn rule(condition: SeccompCondition) -> io::Result<SeccompRule> {
    SeccompRule::new(vec![condition]).map_err(io::Error::other)
}

fn apply(rules: Rules) -> io::Result<()> {
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )
    .map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const CHILD: &str = "OCS_VMM_SECCOMP_CHILD";

    /// Runs one forbidden act under each filter, in a process of its own: this test
    /// starts itself again.
    #[test]
    fn forbidden_calls_kill() {
        if let Ok(kind) = std::env::var(CHILD) {
            rustix::thread::set_no_new_privs(true).unwrap();
            let (confine, act) = kind.split_once(' ').unwrap();
            match confine {
                "vcpu" => confine_vcpu().unwrap(),
                "disk" => confine_disk().unwrap(),
                "state" => confine_state().unwrap(),
                "nursery" => confine_nursery().unwrap(),
                _ => confine_events().unwrap(),
            }
            match act {
                "open" => drop(std::fs::File::open("/")),
                "socket" => drop(std::os::unix::net::UnixDatagram::unbound()),
                "code" => drop(map_code()),
                // SAFETY: a KVM command on a closed descriptor.
                "ioctl" => drop(unsafe { libc::ioctl(-1, 0xae01) }),
                // A ring of its own would pass every filter by.
                "ring" => drop(io_uring::IoUring::new(1)),
                _ => {}
            }
            // SAFETY: ends the process without the test harness's own clean-up.
            unsafe { libc::_exit(0) };
        }
        for confine in ["vcpu", "disk", "state", "nursery", "events"] {
            for act in ["nothing", "open", "socket", "code", "ioctl", "ring"] {
                let status = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "jail::seccomp::tests::forbidden_calls_kill"])
                    .env(CHILD, format!("{confine} {act}"))
                    .output()
                    .unwrap()
                    .status;
                if act == "nothing" {
                    assert!(status.success(), "{confine}: {status}");
                } else {
                    assert_eq!(
                        status.signal(),
                        Some(libc::SIGSYS),
                        "{confine} {act}: {status}"
                    );
                }
            }
        }
    }

    fn map_code() -> *mut libc::c_void {
        // SAFETY: a new private mapping anywhere.
        unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        }
    }
}
