//! Opens what the spec names: a path by hand, a descriptor from the node.
//!
//! Everything is opened here, before the first vCPU runs; afterwards the VMM
//! opens nothing.

use crate::error::{Error, Result};
use ocs_vmm_spec::Source;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Mode of a file made here: a console may show secrets.
const PRIVATE: u32 = 0o600;

/// Opens for reading.
pub fn read(field: &str, source: &Source) -> Result<File> {
    open(field, source, |path| File::open(path))
}

/// Opens for reading and writing, creating the file where it is missing.
pub fn read_write(field: &str, source: &Source) -> Result<File> {
    open(field, source, |path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE)
            .open(path)
    })
}

/// Opens a device node.
pub fn device(field: &str, source: &Source) -> Result<File> {
    open(field, source, |path| {
        OpenOptions::new().read(true).write(true).open(path)
    })
}

/// Opens for reading what may have nothing to read yet, non-blocking.
pub fn input(field: &str, source: &Source) -> Result<File> {
    let file = open(field, source, |path| {
        OpenOptions::new()
            .read(true)
            // So that a FIFO has a writer, and no end, before somebody writes.
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
    })?;
    set_nonblocking(&file).map_err(fail(field, describe(source)))?;
    Ok(file)
}

/// Takes or binds a listening Unix socket, non-blocking.
pub fn listener(field: &str, source: &Source) -> Result<UnixListener> {
    let fail = fail(field, describe(source));
    let fd = match source {
        Source::Path(path) => UnixListener::bind(path).map(OwnedFd::from),
        Source::Fd(fd) => take(*fd),
    };
    checked_listener(fd.map_err(&fail)?).map_err(fail)
}

/// A passed descriptor as a listening Unix socket, non-blocking.
pub fn as_listener(field: &str, fd: OwnedFd) -> Result<UnixListener> {
    checked_listener(fd).map_err(fail(field, "the passed descriptor".to_owned()))
}

fn checked_listener(fd: OwnedFd) -> io::Result<UnixListener> {
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    if !rustix::net::sockopt::socket_acceptconn(&listener)? {
        return Err(io::Error::other("the socket does not listen"));
    }
    Ok(listener)
}

/// Takes a connected Unix socket, or connects to one.
pub fn connected(field: &str, source: &Source) -> Result<UnixStream> {
    let stream = match source {
        Source::Path(path) => UnixStream::connect(path),
        Source::Fd(fd) => take(*fd).map(UnixStream::from),
    };
    stream.map_err(fail(field, describe(source)))
}

/// Descriptors that came with a control request, each taken once.
#[derive(Default)]
pub struct Passed(Vec<Option<OwnedFd>>);

impl From<Vec<OwnedFd>> for Passed {
    fn from(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }
}

impl Passed {
    /// The descriptor that `source` names by its place in the message.
    pub fn take(&mut self, field: &str, source: &Source) -> Result<OwnedFd> {
        let refuse = |why: &str| fail(field, describe(source))(io::Error::other(why));
        let Source::Fd(place) = source else {
            return Err(refuse("a running VMM opens nothing: pass a descriptor"));
        };
        usize::try_from(*place)
            .ok()
            .and_then(|place| self.0.get_mut(place)?.take())
            .ok_or_else(|| refuse("no such descriptor came with the request"))
    }
}

/// Takes a tap by descriptor, or opens one by name.
pub fn tap(
    field: &str,
    source: &Source,
    open_by_name: fn(&Path) -> io::Result<File>,
) -> Result<File> {
    open(field, source, open_by_name)
}

fn open(field: &str, source: &Source, by_path: impl Fn(&Path) -> io::Result<File>) -> Result<File> {
    let file = match source {
        Source::Path(path) => by_path(path),
        Source::Fd(fd) => take(*fd).map(File::from),
    };
    file.map_err(fail(field, describe(source)))
}

fn fail(field: &str, what: String) -> impl Fn(io::Error) -> Error {
    move |source| Error::Open {
        field: field.to_owned(),
        what: what.clone(),
        source,
    }
}

fn describe(source: &Source) -> String {
    match source {
        Source::Path(path) => path.display().to_string(),
        Source::Fd(fd) => format!("descriptor {fd}"),
    }
}

/// Takes ownership of an inherited descriptor, which must be open and not one of
/// the standard three.
fn take(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not an inherited descriptor",
        ));
    }
    // SAFETY: F_GETFD reads a flag of a descriptor number; an unused number gives EBADF.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above), was handed to this process for this
    // purpose, and the spec check makes sure that no two fields name the same number.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)?;
    Ok(owned)
}

/// The user of a Unix socket's other end. Its process id is not asked for: in a PID
/// namespace of ours that of a peer outside is 0, which `rustix` cannot represent.
pub fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
    // SAFETY: both pointers are to locals of the sizes that SO_PEERCRED (socket(7)) fills.
    let failed = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(peer.uid)
}

/// Sets `O_NONBLOCK`.
pub fn set_nonblocking(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK)?)
}
