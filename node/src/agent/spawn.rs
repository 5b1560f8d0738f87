//! Starts an `ocs-vmm`: a session, a PID namespace, cgroups and a user of its own, and no
//! descriptor but those named. It has one capability, `CAP_SYS_ADMIN`, to leave the
//! host's file system with before it looks at anything of a tenant's, and no way to others.
//!
//! It outlives the node: no parent-death signal, no pipe to us. The program is
//! executed by descriptor, since its user may not be able to walk the path to it.

use super::process::{NONCE_VARIABLE, Process};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::{CString, c_char};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const SYS_ADMIN_BIT: u32 = 1 << CAP_SYS_ADMIN;
/// Descriptors that one VMM may have open.
const MAX_DESCRIPTORS: u64 = 1024;

/// One VMM to start.
pub struct Launch<'a> {
    /// `ocs-vmm`, open.
    pub program: &'a File,
    /// The instance.
    pub id: &'a str,
    /// The run's nonce.
    pub nonce: &'a str,
    /// The spec, open for reading.
    pub spec: BorrowedFd<'a>,
    /// What it inherits besides the spec, under the same numbers.
    pub inherits: &'a [OwnedFd],
    /// Its user and group.
    pub uid: u32,
    /// `cgroup.procs` of its groups.
    pub cgroups: &'a [File],
    /// The network namespace it is confined to.
    pub netns: Option<&'a File>,
    /// Standard error.
    pub log: File,
    /// Largest file it may write: the guest's memory is one.
    pub max_file_bytes: u64,
    /// Threads it may have.
    pub max_threads: u64,
}

/// Starts it. On success the VMM has been executed; on error nothing runs.
pub fn spawn(launch: Launch<'_>) -> io::Result<Process> {
    let keep: Vec<RawFd> = launch
        .inherits
        .iter()
        .map(AsRawFd::as_raw_fd)
        .chain([launch.spec.as_raw_fd()])
        .collect();
    let joins: Vec<RawFd> = launch.cgroups.iter().map(AsRawFd::as_raw_fd).collect();
    let netns = launch.netns.map(AsRawFd::as_raw_fd);
    let program = launch.program.as_raw_fd();
    let uid = launch.uid;
    let limits = [
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (libc::RLIMIT_FSIZE, launch.max_file_bytes),
        (libc::RLIMIT_NPROC, launch.max_threads),
    ];
    let exec = Exec::new(
        &["ocs-vmm", "--spec-fd", &launch.spec.as_raw_fd().to_string()],
        &[
            format!("{NONCE_VARIABLE}={}", launch.nonce),
            format!("OCS_INSTANCE={}", launch.id),
        ],
    )?;
    let mut command = Command::new("ocs-vmm");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(launch.log);
    // SAFETY: the closure runs between fork and exec and makes system calls
    // alone: no allocation, no lock; all it reads was made before the fork.
    unsafe {
        command.pre_exec(move || {
            descriptors(&keep)?;
            for join in &joins {
                write_zero(*join)?;
            }
            check(libc::setsid())?;
            if let Some(netns) = netns {
                check(libc::setns(netns, libc::CLONE_NEWNET))?;
            }
            for (resource, value) in limits {
                set_limit(resource, value)?;
            }
            become_user(uid)?;
            Err(exec.run(program))
        });
    }
    let pid = in_new_pid_namespace(move || Ok(command.spawn()?.id()))?;
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // The child is ours and unreaped, so its number is still its own.
    Process::open_pid(pid)?.ok_or_else(|| io::Error::other(format!("process {pid} is gone")))
}

/// Runs `fork` where its child becomes the first process of a PID namespace. The number that it
/// yields is ours, since a process is numbered in every namespace above its own; so adoption
/// by number, start time and pidfd does not notice.
fn in_new_pid_namespace<T: Send>(fork: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        // The namespace of children to come belongs to a thread; this one has no others.
        scope
            .spawn(|| {
                // SAFETY: the flag unshares neither descriptors nor memory.
                unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
                fork()
            })
            .join()
            .map_err(|_| io::Error::other("the thread that starts a VMM panicked"))?
    })
}

/// What `execveat` wants, made before the fork.
struct Exec {
    _strings: Vec<CString>,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
}

// SAFETY: the pointers are into the heap blocks of `_strings`, which the value
// owns and never changes.
unsafe impl Send for Exec {}
// SAFETY: as above; nothing is written through them.
unsafe impl Sync for Exec {}

impl Exec {
    fn new(arguments: &[&str], environment: &[String]) -> io::Result<Self> {
        let mut strings = Vec::new();
        for text in arguments {
            strings.push(CString::new(*text)?);
        }
        for text in environment {
            strings.push(CString::new(text.as_str())?);
        }
        let pointers = |strings: &[CString]| {
            strings
                .iter()
                .map(|s| s.as_ptr())
                .chain([std::ptr::null()])
                .collect::<Vec<_>>()
        };
        Ok(Self {
            arguments: pointers(&strings[..arguments.len()]),
            environment: pointers(&strings[arguments.len()..]),
            _strings: strings,
        })
    }

    /// Returns only where it failed.
    fn run(&self, program: RawFd) -> io::Error {
        // SAFETY: both lists end in null and point to C strings that live in
        // `self`; the path is an empty C string, as AT_EMPTY_PATH wants.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                program,
                c"".as_ptr(),
                self.arguments.as_ptr(),
                self.environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        io::Error::last_os_error()
    }
}

/// Every descriptor from 3 up closes at exec, but for `keep`.
fn descriptors(keep: &[RawFd]) -> io::Result<()> {
    // SAFETY: only flags of our own descriptors change.
    check(unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) })?;
    for fd in keep {
        // SAFETY: as above.
        check(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
    }
    Ok(())
}

fn write_zero(fd: RawFd) -> io::Result<()> {
    // SAFETY: the buffer is one byte of static memory.
    let written = unsafe { libc::write(fd, c"0".as_ptr().cast(), 1) };
    if written == 1 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn set_limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: the struct lives over the call.
    check(unsafe { libc::setrlimit(resource, &raw const limit) })
}

/// Leaves root for good: bounding set emptied, groups, user, no_new_privs. Of the
/// capabilities one outlives exec, in the ambient set (capabilities(7)); the VMM drops it.
fn become_user(uid: u32) -> io::Result<()> {
    let mut capability = 0;
    let_inherit()?;
    // SAFETY: plain calls on numbers; they change this process alone.
    unsafe {
        // EINVAL ends the list: the first number that this kernel has no capability for.
        while libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) == 0 {
            capability += 1;
        }
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(uid, uid, uid))?;
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0))?;
        check(libc::setresuid(uid, uid, uid))?;
        keep_sys_admin()?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        libc::umask(0o077);
    }
    Ok(())
}

/// The three sets of the calling thread as capset(2) version 3 lays them out: effective,
/// permitted and inheritable of capabilities 0–31, then of the rest.
type Sets = [[u32; 3]; 2];
const CAPABILITY_VERSION_3: [u32; 2] = [0x2008_0522, 0];

/// Makes `CAP_SYS_ADMIN` inheritable; the bounding set must still hold it.
fn let_inherit() -> io::Result<()> {
    let mut sets: Sets = [[0; 3]; 2];
    // SAFETY: header and sets have the layout that version 3 of the call reads and fills.
    let got = unsafe {
        let header = CAPABILITY_VERSION_3.as_ptr();
        libc::syscall(libc::SYS_capget, header, sets.as_mut_ptr())
    };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    sets[0][2] |= SYS_ADMIN_BIT;
    set_capabilities(&sets)
}

/// Keeps `CAP_SYS_ADMIN` alone, over exec too.
fn keep_sys_admin() -> io::Result<()> {
    set_capabilities(&[[SYS_ADMIN_BIT; 3], [0; 3]])?;
    let raise = libc::PR_CAP_AMBIENT_RAISE;
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, CAP_SYS_ADMIN, 0, 0) })
}

fn set_capabilities(sets: &Sets) -> io::Result<()> {
    // SAFETY: header and sets have the layout that version 3 of the call reads.
    let set = unsafe {
        let header = CAPABILITY_VERSION_3.as_ptr();
        libc::syscall(libc::SYS_capset, header, sets.as_ptr())
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
