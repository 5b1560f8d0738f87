//! The control socket: one JSON request a line in, one reply a line out.

use crate::volumes::Volumes;
use ocs_storaged_api::{ErrorCode, HAND_OVER, Reply, Request};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A longer line ends the connection.
pub const MAX_LINE_BYTES: u64 = 16 * 1024;
/// Further connections are closed at once.
pub const MAX_CONNECTIONS: usize = 32;

/// What the next storaged takes over.
pub struct Held {
    /// The lock on the folder.
    pub lock: File,
    /// The control socket.
    pub listener: UnixListener,
}

/// Serves for ever; peers of other uids than `allowed` are hung up on.
pub fn serve(held: &Arc<Held>, volumes: &Arc<Volumes>, allowed: &[u32]) -> io::Error {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match held.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return error,
        };
        let uid = socket_peercred(&stream).map(|peer| peer.uid.as_raw());
        let Some(uid) = uid.ok().filter(|uid| allowed.contains(uid)) else {
            tracing::warn!("control connection of a foreign uid refused");
            continue;
        };
        let own = uid == 0 || uid == rustix::process::getuid().as_raw();
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("more than {MAX_CONNECTIONS} control connections");
            continue;
        }
        let (volumes, counted) = (Arc::clone(volumes), Arc::clone(&open));
        let held = own.then(|| Arc::clone(held));
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                if let Err(error) = converse(stream, &volumes, held.as_deref()) {
                    tracing::debug!(%error, "control connection ended");
                }
                counted.fetch_sub(1, Ordering::Relaxed);
            });
        if let Err(error) = thread {
            open.fetch_sub(1, Ordering::Relaxed);
            tracing::error!(%error, "control connection not served");
        }
    }
}

/// What a peer sends: bytes, and with a request that works on a file that file.
struct Input {
    stream: UnixStream,
    file: Option<File>,
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(into)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(&self.stream, &mut parts, &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.file = files.map(File::from).last();
            }
        }
        Ok(got.bytes)
    }
}

/// Answers requests; the one to hand over only where `held` may be given.
fn converse(stream: UnixStream, volumes: &Volumes, held: Option<&Held>) -> io::Result<()> {
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(Input { stream, file: None });
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut input)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        let whole = line.last() == Some(&b'\n');
        if let Ok(Request::HandOver { form: HAND_OVER }) = serde_json::from_slice(&line)
            && let Some(held) = held
        {
            return hand_over(output, volumes, held);
        }
        let reply = match serde_json::from_slice::<Request>(&line) {
            _ if !whole => invalid(format!("a line is longer than {MAX_LINE_BYTES} bytes")),
            Ok(request) => volumes.handle(&request, input.get_mut().file.take()),
            Err(error) => invalid(format!("not a request: {error}")),
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        output.write_all(&text)?;
        if !whole {
            return Ok(());
        }
    }
}

/// Ends this process once another serves everything.
fn hand_over(stream: UnixStream, volumes: &Volumes, held: &Held) -> io::Result<()> {
    tracing::info!("another storaged takes over");
    volumes.hand_over(stream, &held.lock, &held.listener)?;
    tracing::info!("handed over");
    std::process::exit(0);
}

fn invalid(message: String) -> Reply {
    Reply::Error {
        code: ErrorCode::Invalid,
        message,
    }
}
