//! What hostile code tries, and what must stop it.

use super::Orders;
use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixStream};

pub(super) type Attempt = fn(&Orders) -> io::Result<()>;

/// What stops an attempt beside the filter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Walls {
    /// Namespaces, uid, capabilities and limits.
    All,
    /// Landlock, where the kernel has it.
    Landlock,
    /// Nothing: it reaches what any process of the host's users may.
    Filter,
}

impl Walls {
    pub(super) fn hold_alone(self) -> bool {
        match self {
            Self::All => true,
            Self::Landlock => {
                const VERSION: u32 = 1;
                // SAFETY: with this flag the call takes no attribute and yields a number.
                let abi = unsafe {
                    let none = std::ptr::null::<u8>();
                    libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION)
                };
                abi >= 4
            }
            Self::Filter => false,
        }
    }
}

/// Every attempt by name.
pub(super) const ATTEMPTS: &[(&str, Walls, Attempt)] = &[
    (
        "list the root folder",
        Walls::All,
        |_| match fs::read_dir("/")?.next() {
            None => Err(io::Error::other("it is empty")),
            Some(_) => Ok(()),
        },
    ),
    ("read the host's secret", Walls::All, |o| {
        fs::read(&o.secret_file).map(drop)
    }),
    ("read /etc/passwd", Walls::All, |_| {
        fs::read("/etc/passwd").map(drop)
    }),
    ("read /proc", Walls::All, |_| {
        fs::read("/proc/self/maps").map(drop)
    }),
    ("write a file", Walls::All, |_| fs::write("/x", "x")),
    ("open /dev/kvm", Walls::All, |_| {
        File::open("/dev/kvm").map(drop)
    }),
    ("walk up from a folder's descriptor", Walls::Landlock, |o| {
        open_at(o.folder, c"../../../../../../etc/passwd")
    }),
    (
        "open a file in a folder's descriptor",
        Walls::Landlock,
        |o| open_at(o.folder, c"secret"),
    ),
    (
        "leave the tree through a folder's descriptor",
        Walls::Landlock,
        |o| {
            // SAFETY: a descriptor's number; no memory.
            check(unsafe { libc::fchdir(o.folder) })?;
            fs::read("secret").map(drop)
        },
    ),
    ("open by handle", Walls::All, |_| {
        let handle = [8u32, 1, 2, 0];
        // SAFETY: the handle is valid memory of the size that it states.
        check(unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                libc::AT_FDCWD,
                &raw const handle,
                0,
            )
        })
    }),
    ("make a device node", Walls::All, |_| {
        // SAFETY: a C string.
        check(unsafe { libc::mknod(c"/null".as_ptr(), libc::S_IFCHR | 0o666, 0x103) })
    }),
    ("mount", Walls::All, |_| {
        // SAFETY: C strings.
        check(unsafe {
            libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                c"proc".as_ptr(),
                0,
                std::ptr::null(),
            )
        })
    }),
    ("chroot", Walls::All, |_| {
        // SAFETY: a C string.
        check(unsafe { libc::chroot(c"/".as_ptr()) })
    }),
    ("a new mount namespace", Walls::All, |_| {
        // SAFETY: a flag.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })
    }),
    ("the network namespace of the victim", Walls::All, |o| {
        let pidfd = pidfd_open(o.victim_pid)?;
        // SAFETY: a descriptor and a flag.
        check(unsafe { libc::setns(pidfd.as_raw_fd(), libc::CLONE_NEWNET) })
    }),
    ("become root", Walls::All, |_| {
        // SAFETY: numbers.
        check(unsafe { libc::setuid(0) })
    }),
    ("take capabilities", Walls::All, |_| {
        let (header, sets) = ([0x2008_0522u32, 0], [[1u32 << 21; 3], [0; 3]]);
        // SAFETY: header and sets as version 3 of capset(2) reads them.
        check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })
    }),
    ("raise a limit", Walls::All, |_| {
        let limit = libc::rlimit {
            rlim_cur: 1 << 20,
            rlim_max: 1 << 20,
        };
        // SAFETY: the struct lives over the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
    }),
    ("run a program", Walls::All, |_| {
        std::process::Command::new("/bin/true").status().map(drop)
    }),
    ("ptrace the victim", Walls::All, |o| {
        let null = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: no memory is passed.
        check(unsafe { libc::ptrace(libc::PTRACE_ATTACH, o.victim_pid, null, null) })
    }),
    ("read the victim's memory", Walls::All, |o| {
        let mut byte = 0u8;
        let here = libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        let there = libc::iovec {
            iov_base: o.secret_at as *mut _,
            iov_len: 1,
        };
        // SAFETY: one local byte is written at most.
        let read = unsafe {
            libc::process_vm_readv(o.victim_pid, &raw const here, 1, &raw const there, 1, 0)
        };
        check(i64::try_from(read).unwrap())
    }),
    ("hold the victim", Walls::All, |o| {
        pidfd_open(o.victim_pid).map(drop)
    }),
    ("kill the victim", Walls::All, |o| {
        // SAFETY: numbers.
        check(unsafe { libc::kill(o.victim_pid, libc::SIGKILL) })
    }),
    ("kill everybody", Walls::All, |_| {
        // SAFETY: numbers. In a PID namespace of one's own there is nobody else.
        check(unsafe { libc::kill(-1, libc::SIGKILL) })
    }),
    ("stop the victim by thread", Walls::All, |o| {
        // SAFETY: numbers.
        check(unsafe { libc::syscall(libc::SYS_tgkill, o.victim_pid, o.victim_pid, libc::SIGSTOP) })
    }),
    ("the scheduling of the victim", Walls::All, |o| {
        // SAFETY: numbers.
        check(unsafe { libc::setpriority(libc::PRIO_PROCESS, o.victim_pid.unsigned_abs(), 19) })
    }),
    ("connect to the node's socket", Walls::All, |o| {
        UnixStream::connect(&o.node_socket).map(drop)
    }),
    ("connect to an abstract socket", Walls::All, |o| {
        let address = net::SocketAddr::from_abstract_name(&o.abstract_name)?;
        UnixStream::connect_addr(&address).map(drop)
    }),
    ("connect over TCP", Walls::All, |o| {
        TcpStream::connect(o.tcp).map(drop)
    }),
    ("send a datagram", Walls::All, |o| {
        UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", o.tcp).map(drop)
    }),
    ("listen on TCP", Walls::Landlock, |_| {
        TcpListener::bind("0.0.0.0:8000").map(drop)
    }),
    ("a packet socket", Walls::All, |_| {
        socket(libc::AF_PACKET, libc::SOCK_RAW)
    }),
    ("the host's shared memory", Walls::All, |o| {
        // SAFETY: numbers.
        check(unsafe { libc::shmget(o.shm_key, 4096, 0) })
    }),
    ("the host's name", Walls::All, |_| {
        // SAFETY: a string and its length.
        check(unsafe { libc::sethostname(c"x".as_ptr(), 1) })
    }),
    ("load a BPF program", Walls::All, |_| {
        // SAFETY: a null attribute of no bytes.
        check(unsafe { libc::syscall(libc::SYS_bpf, 5, std::ptr::null::<u8>(), 0) })
    }),
    ("look at the kernel's log", Walls::Filter, |_| {
        let mut byte = 0;
        // SAFETY: one byte of room.
        check(unsafe { libc::klogctl(3, &raw mut byte, 1) })
    }),
    ("a vsock socket", Walls::Filter, |_| {
        socket(libc::AF_VSOCK, libc::SOCK_STREAM)
    }),
    ("a socket of any kind", Walls::Filter, |_| {
        socket(libc::AF_UNIX, libc::SOCK_STREAM)
    }),
    ("code of its own", Walls::Filter, |_| {
        let (length, protection) = (4096, libc::PROT_READ | libc::PROT_EXEC);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new private mapping anywhere.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        check(if at == libc::MAP_FAILED { -1 } else { 0 })
    }),
    ("a process of its own", Walls::Filter, |_| {
        // SAFETY: the child ends at once, without a destructor.
        match unsafe { libc::fork() } {
            // SAFETY: ends the child.
            0 => unsafe { libc::_exit(0) },
            pid => check(pid),
        }
    }),
    ("a user namespace", Walls::Filter, |_| {
        // SAFETY: a flag.
        check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })
    }),
    ("io_uring", Walls::Filter, |_| {
        let mut parameters = [0u8; 120];
        // SAFETY: 120 zero bytes are an io_uring_params.
        check(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) })
    }),
    ("a memfd to run", Walls::Filter, |_| {
        // Memory without a name is some threads' need; to run it is nobody's.
        // SAFETY: C strings, and lists of no pointers.
        check(unsafe {
            let fd = libc::memfd_create(c"x".as_ptr(), 0);
            let none = std::ptr::null::<*const libc::c_char>();
            let empty = libc::AT_EMPTY_PATH;
            libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), none, none, empty)
        })
    }),
    ("a KVM of its own", Walls::Filter, |_| {
        const KVM_CREATE_VM: libc::c_ulong = 0xae01;
        // SAFETY: standard error is no KVM.
        check(unsafe { libc::ioctl(2, KVM_CREATE_VM, 0) })
    }),
];

fn check(result: impl Into<i64>) -> io::Result<()> {
    if result.into() < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn open_at(folder: RawFd, path: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: a C string.
    check(unsafe { libc::openat(folder, path.as_ptr(), libc::O_RDONLY) })
}

fn socket(family: i32, kind: i32) -> io::Result<()> {
    // SAFETY: numbers; the descriptor ends with the process.
    check(unsafe { libc::socket(family, kind, 0) })
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    check(fd)?;
    // SAFETY: the call made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) })
}
