//! From one storaged to the next, without a guest noticing more than a pause.
//!
//! ```text
//!  new: lock is held ─▶ hand_over ─────▶ old: takes no more requests
//!       table, shards ◀─ Begin ───────── lock, control socket
//!       thaw, serve   ◀─ Session ─────── (volume by volume) drain, freeze
//!                     ◀─ End ───────────
//!       Done ─────────────────────────▶  exits, touching nothing
//! ```
//! A volume pauses from its freeze to its thaw. If the new one dies meanwhile, the old
//! one connects to every VMM again; if the old one does, so does the new one: the
//! in-flight regions make either whole.

use crate::session::{Frozen, Record};
use ocs_storaged_api::{HAND_OVER, Request};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// Descriptors of one message: `SCM_MAX_FD` of Linux.
const MAX_FILES: usize = 253;
/// A longer message is none of ours.
const MAX_BYTES: usize = 1 << 20;
/// Neither side waits longer for the other.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the old one says.
#[derive(Serialize, Deserialize)]
enum Message {
    /// With the lock and the control socket.
    Begin,
    /// With the connection and the session's descriptors.
    Session { volume: String, record: Record },
    /// That was all.
    End,
}

/// A volume's connection, laid down.
pub struct Moved {
    /// To its VMM.
    pub stream: UnixStream,
    /// The session on it.
    pub frozen: Box<Frozen>,
}

/// The new one's side.
pub struct Taking {
    stream: UnixStream,
    held: Option<(File, UnixListener)>,
}

/// Asks the storaged that serves `control` for all that it has.
pub fn take(control: &Path) -> io::Result<Taking> {
    let mut stream = UnixStream::connect(control)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&Request::HandOver { form: HAND_OVER })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let (message, mut files) = receive(&stream)?;
    let (listener, lock) = (files.pop(), files.pop());
    match (message, lock, listener) {
        (Message::Begin, Some(lock), Some(listener)) => Ok(Taking {
            stream,
            held: Some((lock.into(), listener.into())),
        }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl Taking {
    /// The lock on the folder and the control socket, once.
    pub fn held(&mut self) -> io::Result<(File, UnixListener)> {
        self.held
            .take()
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The next volume's connection; `None` after the last.
    pub fn receive(&mut self) -> io::Result<Option<(String, Moved)>> {
        let (message, mut files) = receive(&self.stream)?;
        match message {
            Message::Session { volume, record } if !files.is_empty() => {
                let stream = UnixStream::from(files.remove(0));
                let frozen = Box::new(Frozen { record, files });
                Ok(Some((volume, Moved { stream, frozen })))
            }
            Message::End => Ok(None),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Everything is served here now.
    pub fn done(mut self) -> io::Result<()> {
        self.stream.write_all(b"!")
    }
}

/// The old one's side.
pub struct Giving(UnixStream);

impl Giving {
    /// Begins, on the connection that asked.
    pub fn begin(stream: UnixStream, lock: &File, listener: &UnixListener) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        send(&stream, &Message::Begin, &[lock.as_fd(), listener.as_fd()])?;
        Ok(Self(stream))
    }

    /// Gives one volume's connection.
    pub fn give(&self, volume: &str, moved: Moved) -> io::Result<()> {
        let Frozen { record, files } = *moved.frozen;
        let mut fds = vec![moved.stream.as_fd()];
        fds.extend(files.iter().map(AsFd::as_fd));
        let volume = volume.to_owned();
        send(&self.0, &Message::Session { volume, record }, &fds)
    }

    /// Ends; returns once the new one serves everything.
    pub fn end(mut self) -> io::Result<()> {
        send(&self.0, &Message::End, &[])?;
        self.0.read_exact(&mut [0])
    }
}

fn send(stream: &UnixStream, message: &Message, fds: &[std::os::fd::BorrowedFd]) -> io::Result<()> {
    if fds.len() > MAX_FILES {
        return Err(io::Error::other("more descriptors than fit a message"));
    }
    let bytes = serde_json::to_vec(message)?;
    let head = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_ne_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(&head)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    let mut stream = stream;
    stream.write_all(&head[sent..])?;
    stream.write_all(&bytes)
}

fn receive(mut stream: &UnixStream) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut head = [0u8; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut head)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?
    .bytes;
    let files: Vec<OwnedFd> = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect(),
            _ => Vec::new(),
        })
        .collect();
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(&mut head[got..])?;
    let len = u32::from_ne_bytes(head) as usize;
    if len > MAX_BYTES {
        // A refusal is a line of text.
        return Err(io::Error::other("the running storaged does not hand over"));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok((serde_json::from_slice(&bytes)?, files))
}
