//! Counts a process's system calls from outside, by the tracepoint of their entry.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};

const TRACEPOINT: u32 = 2;
/// `PERF_ATTR_SIZE_VER0`.
const ATTRIBUTE_BYTES: u32 = 64;
const ID: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id";

/// A counter of all threads that the process had when it was made.
pub struct Syscalls(Vec<File>);

impl Syscalls {
    /// Counts from now on.
    pub fn of(pid: u32) -> Result<Self> {
        let id =
            std::fs::read_to_string(ID).with_context(|| format!("{ID}: is tracefs mounted?"))?;
        let id: u64 = id.trim().parse()?;
        let mut counters = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread: i32 = task?.file_name().to_string_lossy().parse()?;
            // struct perf_event_attr: type and size, config, and nothing else asked for.
            let mut attributes = [0u64; ATTRIBUTE_BYTES as usize / 8];
            attributes[0] = u64::from(TRACEPOINT) | u64::from(ATTRIBUTE_BYTES) << 32;
            attributes[1] = id;
            // SAFETY: the attributes are as long as they say, and the result is checked.
            let fd =
                unsafe { libc::syscall(libc::SYS_perf_event_open, &attributes, thread, -1, -1, 0) };
            if fd < 0 {
                return Err(std::io::Error::last_os_error()).context("perf_event_open");
            }
            // SAFETY: a new descriptor that nothing else owns.
            let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
            counters.push(File::from(fd));
        }
        Ok(Self(counters))
    }

    /// How many there were so far.
    pub fn count(&self) -> Result<u64> {
        let mut sum = 0;
        for mut counter in &self.0 {
            let mut value = [0; 8];
            counter.read_exact(&mut value)?;
            sum += u64::from_ne_bytes(value);
        }
        Ok(sum)
    }
}
