//! Talks to a running VMM over its control socket, and reads what it leaves.

use super::owner::RunDir;
use super::process::Process;
use super::spawn::{Launch, spawn};
use ocs_vmm_spec::control::{MAX_DESCRIPTORS, MAX_LINE_BYTES, Reply, Request};
use ocs_vmm_spec::exit::ExitRecord;
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, BufRead, BufReader, IoSlice, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// Exit records are one sentence.
const MAX_EXIT_RECORD_BYTES: u64 = 64 * 1024;
/// As much of a VMM's log goes into ours when it ends.
const LOG_TAIL_BYTES: u64 = 2048;

/// Runs `act` on a name for `path` that is short enough for `sun_path` (108
/// bytes), however deep the state folder lies.
fn with_short_path<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let folder = open(
        folder,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    act(&Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}

/// Binds and listens at `path`, instead of whatever was there.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    super::durable::remove(path, super::durable::Lasts::ThisBoot)?;
    with_short_path(path, |name| UnixListener::bind(name))
}

/// A connection to the VMM in `run`.
pub fn connect(run: &RunDir) -> io::Result<UnixStream> {
    with_short_path(&run.control_socket(), |name| UnixStream::connect(name))
}

/// One request to the VMM in `run`, one reply within `timeout`. In the request `{"fd": N}`
/// names the `N`th of the descriptors `passed`.
pub fn call(
    run: &RunDir,
    request: &Request,
    passed: &[BorrowedFd<'_>],
    timeout: Duration,
) -> io::Result<Reply> {
    let mut stream = connect(run)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let sent = send_with(&stream, &line, passed)?;
    stream.write_all(line.get(sent..).unwrap_or_default())?;
    let mut reply = String::new();
    BufReader::new(stream)
        .take(MAX_LINE_BYTES as u64)
        .read_line(&mut reply)?;
    Ok(serde_json::from_str(&reply)?)
}

/// Sends the beginning of `line`, and the descriptors with its first byte.
fn send_with(stream: &UnixStream, line: &[u8], passed: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(passed)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let bytes = [IoSlice::new(line)];
    Ok(sendmsg(
        stream,
        &bytes,
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?)
}

/// What is asked of VMMs.
pub trait Vmms: Send + Sync {
    /// Starts one; on error nothing runs.
    fn start(&self, launch: Launch<'_>) -> io::Result<Process>;
    /// One request to the VMM in `run`, with the descriptors that it names.
    fn call(
        &self,
        run: &RunDir,
        request: &Request,
        passed: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> io::Result<Reply>;
}

/// `ocs-vmm` itself.
pub struct OcsVmm;

impl Vmms for OcsVmm {
    fn start(&self, launch: Launch<'_>) -> io::Result<Process> {
        spawn(launch)
    }

    fn call(
        &self,
        run: &RunDir,
        request: &Request,
        passed: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> io::Result<Reply> {
        call(run, request, passed, timeout)
    }
}

/// The VMM's last words, if it had time for any.
#[must_use]
pub fn last_words(run: &RunDir) -> Option<ExitRecord> {
    let mut bytes = Vec::new();
    std::fs::File::open(run.exit_record())
        .ok()?
        .take(MAX_EXIT_RECORD_BYTES)
        .read_to_end(&mut bytes)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The end of what the VMM logged.
#[must_use]
pub fn log_tail(run: &RunDir) -> String {
    let read = || {
        let mut file = std::fs::File::open(run.log())?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
        io::Result::Ok(tail)
    };
    read().map_or_else(
        |e| e.to_string(),
        |t| String::from_utf8_lossy(&t).into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::layout::Layout;

    #[test]
    fn sockets_work_however_deep_the_folder_lies() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a-rather-long-folder-name/".repeat(8));
        let run = RunDir::of(&Layout::new(&deep), "i-0123456789abcdef0");
        run.create().unwrap();
        let listener = listen(&run.control_socket()).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            stream.get_mut().write_all(b"{\"reply\":\"ok\"}\n").unwrap();
            line
        });
        let reply = call(&run, &Request::PowerButton, &[], Duration::from_secs(10)).unwrap();
        assert_eq!(reply, Reply::Ok);
        assert_eq!(server.join().unwrap(), "{\"cmd\":\"power_button\"}\n");
        // Bound again over what is there.
        listen(&run.control_socket()).unwrap();
    }
}
