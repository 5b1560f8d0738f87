//! Hostile code in the place of a device's thread, behind the walls that a VMM has.
//!
//! ```text
//!  test ── spawn(), as the node does ──▶ this program again, as "ocs-vmm"
//!                                          leave_host, limit_files, a thread ─▶ (filter) ─▶ attempt
//! ```
//! Each attempt is made twice: behind all walls, where the filter ends the process
//! at the first call, and without the filter, where the other walls must hold alone.
//! Outside stand another instance of another user, the node's sockets and shared memory,
//! all of them open to everyone as far as modes go.

mod attempts;

use attempts::ATTEMPTS;
use libtest_mimic::{Arguments, Failed, Trial};
use ocs_node::agent::spawn::{Launch, spawn};
use ocs_vmm::jail;
use ocs_vmm_spec::Jail;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{self, UnixListener};
use std::path::PathBuf;
use std::process::ExitCode;

/// Users of the hostile VMM and of its victim.
const HOSTILE_UID: u32 = 64_101;
const VICTIM_UID: u32 = 64_102;

/// What stands outside, and what to try.
#[derive(Clone, Serialize, Deserialize)]
struct Orders {
    attempt: String,
    /// The thread's filter: `vcpu`, `disk`, `events`, `state`, `nursery`, or none.
    filter: Option<String>,
    victim_pid: i32,
    secret_at: u64,
    node_socket: PathBuf,
    secret_file: PathBuf,
    abstract_name: String,
    tcp: SocketAddr,
    shm_key: i32,
    /// A descriptor of a folder, as a careless caller might leave open.
    folder: RawFd,
}

fn main() -> ExitCode {
    let mut words = std::env::args();
    if words.next().as_deref() == Some("ocs-vmm") {
        return in_the_jail(&words.next_back().unwrap());
    }
    let trials = vec![
        Trial::test("nothing_outside_is_reached_behind_all_walls", || {
            every(&["vcpu", "disk", "events", "state", "nursery"])
        }),
        Trial::test("nothing_outside_is_reached_without_the_filters", || {
            every(&[])
        }),
        Trial::test("the_attempts_succeed_where_there_is_no_jail", outside),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The hostile VMM's life: as `ocs-vmm`'s, up to its first device thread.
fn in_the_jail(spec_fd: &str) -> ExitCode {
    let mut json = String::new();
    // SAFETY: the test handed this descriptor over for the orders.
    let mut spec = unsafe { File::from_raw_fd(spec_fd.parse().unwrap()) };
    spec.read_to_string(&mut json).unwrap();
    let orders: Orders = serde_json::from_str(&json).unwrap();
    jail::leave_host(Jail::Full).unwrap();
    jail::limit_files().unwrap();
    if orders.attempt.is_empty() {
        return wait_for_the_end();
    }
    let device = std::thread::spawn(move || {
        match orders.filter.as_deref() {
            Some("vcpu") => jail::confine_vcpu().unwrap(),
            Some("disk") => jail::confine_disk().unwrap(),
            Some("state") => jail::confine_state().unwrap(),
            Some("nursery") => jail::confine_nursery().unwrap(),
            Some(_) => jail::confine_events().unwrap(),
            None => {}
        }
        let (_, _, attempt) = ATTEMPTS
            .iter()
            .find(|(name, _, _)| *name == orders.attempt)
            .unwrap();
        attempt(&orders)
    });
    match device.join().unwrap() {
        Ok(()) => ExitCode::from(10),
        Err(_) => ExitCode::from(20),
    }
}

/// The victim: says that it is ready, and sleeps.
fn wait_for_the_end() -> ExitCode {
    eprintln!("ready {}", SECRET.as_ptr() as u64);
    loop {
        std::thread::park();
    }
}

/// What an attempt came to.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Done,
    Refused,
    Killed(i32),
    Other(i32),
}

/// The world outside the jail.
struct Outside {
    dir: tempfile::TempDir,
    program: File,
    void: File,
    folder: OwnedFd,
    orders: Orders,
    victim: i32,
    _listeners: (UnixListener, UnixListener, TcpListener),
    shm: i32,
}

static SECRET: [u8; 16] = *b"guest memory....";

impl Outside {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &std::path::Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        open(dir.path(), 0o755);
        let secret_file = dir.path().join("secret");
        fs::write(&secret_file, "secret").unwrap();
        open(&secret_file, 0o644);
        let node_socket = dir.path().join("control.sock");
        let node = UnixListener::bind(&node_socket).unwrap();
        open(&node_socket, 0o777);
        let abstract_name = format!("ocs-jail-{}-{:p}", std::process::id(), &raw const dir);
        let address = net::SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let named = UnixListener::bind_addr(&address).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let shm_key = 0x0c50_0000 | i32::try_from(std::process::id() & 0xffff).unwrap();
        // SAFETY: numbers.
        let shm = unsafe { libc::shmget(shm_key, 4096, libc::IPC_CREAT | 0o666) };
        assert!(shm >= 0, "{}", io::Error::last_os_error());
        let folder: OwnedFd = File::open(dir.path()).unwrap().into();
        let void = empty_network();
        let program = File::open(std::env::current_exe().unwrap()).unwrap();
        let orders = Orders {
            attempt: String::new(),
            filter: None,
            victim_pid: 0,
            secret_at: 0,
            node_socket,
            secret_file,
            abstract_name,
            tcp: tcp.local_addr().unwrap(),
            shm_key,
            folder: folder.as_raw_fd(),
        };
        let mut outside = Self {
            dir,
            program,
            void,
            folder,
            orders,
            victim: 0,
            _listeners: (node, named, tcp),
            shm,
        };
        outside.victim = outside.start(&outside.orders, VICTIM_UID, "victim.log");
        outside.orders.victim_pid = outside.victim;
        let log = outside.dir.path().join("victim.log");
        outside.orders.secret_at = loop {
            let log = fs::read_to_string(&log).unwrap();
            if let Some(at) = log.strip_prefix("ready ").filter(|at| at.ends_with('\n')) {
                break at.trim().parse().unwrap();
            }
            assert!(outside.victim_lives(), "{log}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        outside
    }

    /// Starts this program as the node starts a VMM. Yields its pid.
    fn start(&self, orders: &Orders, uid: u32, log: &str) -> i32 {
        let path = self.dir.path().join("orders");
        fs::write(&path, serde_json::to_vec(orders).unwrap()).unwrap();
        let spec = File::open(&path).unwrap();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join(log))
            .unwrap();
        let inherits = std::slice::from_ref(&self.folder);
        spawn(Launch {
            program: &self.program,
            id: "i-1",
            nonce: "nonce",
            spec: spec.as_fd(),
            inherits,
            uid,
            cgroups: &[],
            netns: Some(&self.void),
            log,
            max_file_bytes: 64 << 20,
            max_threads: 16,
        })
        .unwrap()
        .id()
        .pid
    }

    /// One attempt behind the jail.
    fn attempt(&self, name: &str, filter: Option<&str>) -> End {
        let orders = Orders {
            attempt: name.to_owned(),
            filter: filter.map(str::to_owned),
            ..self.orders.clone()
        };
        wait(self.start(&orders, HOSTILE_UID, "hostile.log"))
    }

    fn victim_lives(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.victim)).unwrap();
        !stat.contains(") Z ") && !stat.contains(") T ")
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // SAFETY: ends a child that nobody has waited for, and an own memory segment.
        unsafe {
            libc::kill(self.victim, libc::SIGKILL);
            libc::shmctl(self.shm, libc::IPC_RMID, std::ptr::null_mut());
        }
        wait(self.victim);
    }
}

fn wait(pid: i32) -> End {
    let mut status = 0;
    // SAFETY: a child of this process; the status is a local.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFSIGNALED(status) {
        return End::Killed(libc::WTERMSIG(status));
    }
    match libc::WEXITSTATUS(status) {
        10 => End::Done,
        20 => End::Refused,
        other => End::Other(other),
    }
}

/// A network namespace with nothing in it, as the node's `void`.
fn empty_network() -> File {
    std::thread::spawn(|| {
        // SAFETY: the flag concerns this thread, which ends.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}

/// Every attempt behind each of `filters`, or, with none, those that must fail without one.
fn every(filters: &[&str]) -> Result<(), Failed> {
    let outside = Outside::new();
    let mut breaches = Vec::new();
    for (name, _, _) in ATTEMPTS {
        for filter in filters {
            // Who starts threads may fork, too: into the same jail, behind the same filter.
            if (*filter, *name) == ("nursery", "a process of its own") {
                continue;
            }
            let end = outside.attempt(name, Some(filter));
            if end != End::Killed(libc::SIGSYS) {
                breaches.push(format!("{filter}: {name}: {end:?}"));
            }
        }
    }
    for (name, walls, _) in ATTEMPTS {
        if !filters.is_empty() || !walls.hold_alone() {
            continue;
        }
        let end = outside.attempt(name, None);
        if end != End::Refused {
            breaches.push(format!("no filter: {name}: {end:?}"));
        }
    }
    if !outside.victim_lives() {
        breaches.push("the victim was ended or stopped".to_owned());
    }
    let log = fs::read_to_string(outside.dir.path().join("hostile.log")).unwrap_or_default();
    if breaches.is_empty() {
        Ok(())
    } else {
        Err(format!("{breaches:#?}\n{log}").into())
    }
}

/// The attempts are real: outside the jail what stands open to everyone is reached.
fn outside() -> Result<(), Failed> {
    let outside = Outside::new();
    let open = [
        "list the root folder",
        "read the host's secret",
        "walk up from a folder's descriptor",
        "open a file in a folder's descriptor",
        "read /etc/passwd",
        "read /proc",
        "run a program",
        "read the victim's memory",
        "hold the victim",
        "connect to the node's socket",
        "connect to an abstract socket",
        "connect over TCP",
        "send a datagram",
        "the host's shared memory",
    ];
    for name in open {
        let (_, _, attempt) = ATTEMPTS.iter().find(|(n, _, _)| *n == name).unwrap();
        attempt(&outside.orders).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}
