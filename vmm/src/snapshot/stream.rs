//! What two VMMs say to each other during a migration: frames over a Unix socket.
//!
//! ```text
//!  source                                        destination
//!  Hello (format, vCPUs, memory) ───────────────▶ makes shared memory
//!         ◀──────────────────────────────── Accept
//!  Pages* ──────────────────────────────────────▶ writes them
//!  (paused) Pages*, Region*, State ─────────────▶ loads the machine
//!         ◀──────────────────────────────── Loaded
//!  Go ──────────────────────────────────────────▶ runs
//!  (ends)
//! ```
//! Until `Go` is sent the source may resume; after it, it never does. `Refused` with a sentence
//! may come in place of any answer. A frame is: magic, kind, count of descriptors, length,
//! CRC-32 of the body, body.

use crate::persist::checksum;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const MAGIC: u32 = u32::from_le_bytes(*b"OCSG");
const HEADER_BYTES: usize = 16;
/// A state, at most; pages come in smaller frames.
const MAX_BODY_BYTES: usize = crate::persist::MAX_BYTES;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Source: who is coming.
    Hello = 1,
    /// Destination: there is room.
    Accept = 2,
    /// Source: an offset (8 bytes) and pages.
    Pages = 3,
    /// Source: a disk's in-flight region, with its descriptor.
    Region = 4,
    /// Source: the state; the last before the answer.
    State = 5,
    /// Destination: all is loaded.
    Loaded = 6,
    /// Source: it is yours.
    Go = 7,
    /// Either: no, and why.
    Refused = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Hello,
            Self::Accept,
            Self::Pages,
            Self::Region,
            Self::State,
            Self::Loaded,
            Self::Go,
            Self::Refused,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// A frame received.
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its body.
    pub body: Vec<u8>,
    /// What came with it.
    pub fd: Option<OwnedFd>,
}

/// One end of the conversation.
pub struct Channel(UnixStream);

impl Channel {
    /// Over `stream`; a peer that neither reads nor writes for `patience` is given up.
    pub fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self(stream))
    }

    /// Sends a frame whose body is the concatenation of `parts`.
    pub fn send(&mut self, kind: Kind, parts: &[&[u8]]) -> io::Result<()> {
        let header = header(kind, 0, parts)?;
        self.0.write_all(&header)?;
        parts.iter().try_for_each(|part| self.0.write_all(part))
    }

    /// Sends a frame with a descriptor.
    pub fn send_with(&mut self, kind: Kind, body: &[u8], fd: impl AsFd) -> io::Result<()> {
        let header = header(kind, 1, &[body])?;
        let fds = [fd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(
            &self.0,
            &[IoSlice::new(&header)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        self.0.write_all(&header[sent..])?;
        self.0.write_all(body)
    }

    /// The next frame; [`Kind::Refused`] is an error with the peer's words.
    pub fn receive(&mut self) -> io::Result<Frame> {
        let mut header = [0; HEADER_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut header)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?
        .bytes;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut fd = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fd = fds.last();
            }
        }
        self.0.read_exact(&mut header[received..])?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let kind = Kind::from_byte(header[4]).filter(|_| word(0) == MAGIC);
        let kind = kind.ok_or_else(|| invalid("the peer does not speak this protocol"))?;
        let len = usize::try_from(word(8)).unwrap_or(usize::MAX);
        if len > MAX_BODY_BYTES {
            return Err(invalid("the peer sent a frame of too many bytes"));
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body)?;
        if checksum(&[&body]) != word(12) {
            return Err(invalid("a frame does not match its checksum"));
        }
        if usize::from(header[5]) != usize::from(fd.is_some()) {
            return Err(invalid("a frame came without its descriptor"));
        }
        if kind == Kind::Refused {
            let words: String = String::from_utf8_lossy(&body).chars().take(400).collect();
            return Err(io::Error::other(format!("the peer refused: {words}")));
        }
        Ok(Frame { kind, body, fd })
    }

    /// The next frame, which must be of `kind`.
    pub fn expect(&mut self, kind: Kind) -> io::Result<Frame> {
        let frame = self.receive()?;
        if frame.kind != kind {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the peer sent {:?} in place of {kind:?}", frame.kind),
            ));
        }
        Ok(frame)
    }
}

fn header(kind: Kind, fds: u8, parts: &[&[u8]]) -> io::Result<[u8; HEADER_BYTES]> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len).map_err(io::Error::other)?;
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4] = kind as u8;
    header[5] = fds;
    header[8..12].copy_from_slice(&len.to_le_bytes());
    header[12..].copy_from_slice(&checksum(parts).to_le_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Channel, Channel) {
        let (a, b) = UnixStream::pair().unwrap();
        let patience = Duration::from_secs(20);
        let channel = |stream| Channel::new(stream, patience).unwrap();
        (channel(a), channel(b))
    }

    #[test]
    fn frames_arrive_whole_with_their_descriptors() {
        let (mut a, mut b) = pair();
        a.send(Kind::Pages, &[b"12345678", b"page"]).unwrap();
        a.send_with(Kind::Region, b"disk", io::stderr()).unwrap();
        let pages = b.expect(Kind::Pages).unwrap();
        assert_eq!(pages.body, b"12345678page");
        assert!(pages.fd.is_none());
        let region = b.receive().unwrap();
        assert_eq!(
            (region.kind, &region.body[..]),
            (Kind::Region, &b"disk"[..])
        );
        assert!(region.fd.is_some());
        b.send(Kind::Refused, &[b"no room"]).unwrap();
        let words = a.expect(Kind::Accept).map(|_| ()).unwrap_err().to_string();
        assert_eq!(words, "the peer refused: no room");
    }

    #[test]
    fn garbage_and_ends_are_errors() {
        let (mut a, mut b) = pair();
        a.0.write_all(&[7; 40]).unwrap();
        assert!(b.receive().is_err());
        let (mut a, mut b) = pair();
        let mut frame = header(Kind::State, 0, &[b"abc"]).unwrap().to_vec();
        frame.extend_from_slice(b"abd");
        a.0.write_all(&frame).unwrap();
        assert!(b.receive().is_err());
        let (mut a, mut b) = pair();
        let mut long = header(Kind::State, 0, &[]).unwrap();
        long[8..12].fill(0xff);
        a.0.write_all(&long).unwrap();
        assert!(b.receive().is_err());
        let (a, mut b) = pair();
        drop(a);
        assert!(b.receive().is_err());
    }
}
