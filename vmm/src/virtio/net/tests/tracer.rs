//! Counts the system calls that a thread makes, from outside: by ptrace, in a process of
//! its own, since no thread may trace another of its process.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

const TARGET: &str = "OCS_VMM_TRACE_THREAD";
/// Calls that no kernel has: beginning and end of what is counted, a question for the count,
/// and the end.
const BEGIN: i64 = 1_000_001;
const END: i64 = 1_000_002;
const SAY: i64 = 1_000_003;
const DETACH: i64 = 1_000_004;

/// Counts while `act` runs.
pub fn window(traced: bool, act: impl FnOnce()) {
    if traced {
        mark(BEGIN);
    }
    act();
    if traced {
        mark(END);
    }
}

fn mark(number: i64) {
    // SAFETY: a call that the kernel does not know does nothing.
    unsafe { libc::syscall(number) };
}

/// The tracing process.
pub struct Tracer {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Tracer {
    /// Traces the calling thread, by starting the test `name` again.
    pub fn attach(name: &str) -> Self {
        // SAFETY: has no arguments and cannot fail.
        let thread = unsafe { libc::gettid() };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &format!("virtio::net::tests::{name}"),
                "--nocapture",
            ])
            .env(TARGET, thread.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut tracer = Self { child, said };
        tracer.read();
        tracer
    }

    /// What was counted up to now.
    pub fn so_far(&mut self) -> u64 {
        mark(SAY);
        self.read()
    }

    /// What was counted in all.
    pub fn finish(mut self) -> u64 {
        mark(DETACH);
        let count = self.read();
        self.child.wait().unwrap();
        count
    }

    fn read(&mut self) -> u64 {
        loop {
            let mut line = String::new();
            assert!(
                self.said.read_line(&mut line).unwrap() > 0,
                "the tracer ended"
            );
            if let Some((_, count)) = line.split_once("traced ") {
                return count.trim().parse().unwrap();
            }
        }
    }

    /// Is the tracer, if it was started as that; then it never returns.
    pub fn run_if_asked() {
        if let Ok(thread) = std::env::var(TARGET) {
            trace(thread.parse().unwrap());
            std::process::exit(0);
        }
    }
}

fn trace(thread: libc::pid_t) {
    let ask = |request: libc::c_uint, address: usize, data: usize| {
        // SAFETY: the requests below take numbers, or a buffer of the length in `address`.
        let done = unsafe { libc::ptrace(request, thread, address, data) };
        assert!(
            done >= 0,
            "ptrace {request}: {}",
            std::io::Error::last_os_error()
        );
    };
    let good = usize::try_from(libc::PTRACE_O_TRACESYSGOOD).unwrap();
    ask(libc::PTRACE_SEIZE, 0, good);
    ask(libc::PTRACE_INTERRUPT, 0, 0);
    println!("traced 0");
    let (mut count, mut counting) = (0u64, false);
    loop {
        let mut status = 0;
        // SAFETY: waits for the traced thread; the status is ours.
        let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        if waited != thread || libc::WIFEXITED(status) {
            return;
        }
        let mut resume_with = 0;
        if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 {
            match entered(thread) {
                Some(BEGIN) => counting = true,
                Some(END) => counting = false,
                Some(SAY) => println!("traced {count}"),
                Some(DETACH) => {
                    println!("traced {count}");
                    ask(libc::PTRACE_DETACH, 0, 0);
                    return;
                }
                Some(_) if counting => count += 1,
                _ => {}
            }
        } else if status >> 16 == 0 {
            resume_with = usize::try_from(libc::WSTOPSIG(status)).unwrap();
        }
        ask(libc::PTRACE_SYSCALL, 0, resume_with);
    }
}

/// The call that the thread is about to make, unless it stopped elsewhere
/// (`struct ptrace_syscall_info`).
fn entered(thread: libc::pid_t) -> Option<i64> {
    const ENTRY: u8 = 1;
    let mut info = [0u8; 88];
    // SAFETY: the kernel writes at most as many bytes as it is told.
    let len = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            thread,
            info.len(),
            info.as_mut_ptr(),
        )
    };
    assert!(len > 32, "{}", std::io::Error::last_os_error());
    let number = info[24..32].try_into().unwrap();
    (info[0] == ENTRY).then(|| i64::from_le_bytes(number))
}
