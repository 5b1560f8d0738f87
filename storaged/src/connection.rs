//! Runs one session on a connected socket: from its beginning, or from where another
//! process laid it down.

use crate::memory::Trust;
use crate::session::{Frozen, Record, Served, Session};
use crate::shard::Shard;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::{BackendReqHandler, Error};

/// `VHOST_USER_GET_FEATURES` and its kin.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
/// Version 1 of the message format.
const VERSION: u32 = 1;
/// Request, flags, size.
const HEADER_BYTES: usize = 12;

/// How a session ended without an error.
pub enum Ended {
    /// The peer hung up.
    Disconnected,
    /// It was told to; the peer still waits on the socket.
    Frozen(Box<Frozen>),
}

/// A session to be served.
pub struct Connection<'a> {
    /// The peer.
    pub stream: UnixStream,
    /// Where its queues run.
    pub shard: Shard,
    /// What it is served.
    pub served: Served,
    /// Which memory is accepted.
    pub trust: Trust,
    /// True from the peer's first good message to the end.
    pub connected: &'a AtomicBool,
}

/// Serves until the peer hangs up or errs; returns once nothing is in flight.
pub fn serve(
    stream: UnixStream,
    shard: Shard,
    served: Served,
    trust: Trust,
    connected: &AtomicBool,
) -> Result<(), Error> {
    let connection = Connection {
        stream,
        shard,
        served,
        trust,
        connected,
    };
    connection.run(None, None).map(drop)
}

impl Connection<'_> {
    /// Serves on from what was `frozen`, if anything, until the peer hangs up or errs
    /// or `told` is readable: then the session is laid down.
    pub fn run(
        self,
        frozen: Option<Box<Frozen>>,
        told: Option<BorrowedFd<'_>>,
    ) -> Result<Ended, Error> {
        let session = Session::new(self.shard, self.served, self.trust);
        let session = Arc::new(Mutex::new(session));
        let locked = || session.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = self.stream.try_clone().map_err(Error::SocketError)?;
        let began = match frozen {
            None => Ok(BackendReqHandler::from_stream(
                self.stream,
                Arc::clone(&session),
            )),
            Some(frozen) => prime(self.stream, &session, &frozen.record).and_then(|handler| {
                let talked = frozen.record.features != 0;
                self.connected.store(talked, Ordering::Relaxed);
                locked().thaw(*frozen).map(|()| handler)
            }),
        };
        let outcome = began.and_then(|mut handler| {
            loop {
                if let Some(told) = told
                    && is_told(&socket, told)
                {
                    let frozen = locked().freeze()?;
                    break Ok(Ended::Frozen(Box::new(frozen)));
                }
                match handler.handle_request() {
                    Ok(()) => self.connected.store(true, Ordering::Relaxed),
                    Err(Error::Disconnected) => break Ok(Ended::Disconnected),
                    Err(error) => break Err(error),
                }
            }
        });
        self.connected.store(false, Ordering::Relaxed);
        locked().end();
        outcome
    }
}

/// Waits for a message or for `told`; is it the latter?
fn is_told(stream: &UnixStream, told: BorrowedFd<'_>) -> bool {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(told, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return true,
            Ok(_) if !fds[0].revents().is_empty() => return false,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// A handler of messages that knows the features that were agreed on before. The crate
/// keeps them for itself, so it is told them again, over a socket of our own whose
/// place the peer's then takes.
fn prime(
    stream: UnixStream,
    session: &Arc<Mutex<Session>>,
    record: &Record,
) -> Result<BackendReqHandler<Mutex<Session>>, Error> {
    let (ours, mut theirs) = UnixStream::pair().map_err(Error::SocketError)?;
    let mut handler = BackendReqHandler::from_stream(ours, Arc::clone(session));
    for (request, value) in [
        (GET_FEATURES, None),
        (SET_FEATURES, Some(record.features)),
        (GET_PROTOCOL_FEATURES, None),
        (SET_PROTOCOL_FEATURES, Some(record.protocol_features)),
    ] {
        let value = value.map(u64::to_ne_bytes);
        let body = value.as_ref().map_or(&[][..], |v| &v[..]);
        let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
        for word in [request, VERSION, body.len() as u32] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(body);
        theirs.write_all(&message).map_err(Error::SocketError)?;
        handler.handle_request()?;
        if body.is_empty() {
            let mut reply = [0; HEADER_BYTES + 8];
            theirs.read_exact(&mut reply).map_err(Error::SocketError)?;
        }
    }
    // SAFETY: both numbers are open descriptors of sockets; `handler` goes on owning
    // its number, which names the peer's connection from here on.
    let moved = unsafe { libc::dup3(stream.as_raw_fd(), handler.as_raw_fd(), libc::O_CLOEXEC) };
    if moved < 0 {
        return Err(Error::SocketError(std::io::Error::last_os_error()));
    }
    Ok(handler)
}
