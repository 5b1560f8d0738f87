//! A blocking client of the control socket.

use crate::{ErrorCode, Reply, Request};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection to storaged.
pub struct Client {
    stream: BufReader<UnixStream>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// storaged is away; its state is unknown, ask again.
    #[error("storaged does not answer: {0}")]
    Transport(#[from] std::io::Error),
    /// The reply was not understood.
    #[error("storaged's reply is not valid: {0}")]
    Protocol(#[from] serde_json::Error),
    /// storaged refused; nothing changed.
    #[error("storaged refused ({code:?}): {message}")]
    Refused {
        /// What kind of refusal.
        code: ErrorCode,
        /// storaged's sentence.
        message: String,
    },
}

impl Client {
    /// Connects; every later call waits at most `timeout`.
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// One request, one reply; a refusal is an error.
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        self.answer()
    }

    /// As [`Self::call`], with the file that the request works on.
    pub fn call_on(
        &mut self,
        request: &Request,
        file: BorrowedFd<'_>,
    ) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let files = [file];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        let socket = self.stream.get_ref().as_fd();
        let bytes = [IoSlice::new(&line)];
        let sent = sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL)
            .map_err(std::io::Error::from)?;
        self.stream.get_mut().write_all(&line[sent..])?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Reply, ClientError> {
        let mut reply = String::new();
        if self.stream.read_line(&mut reply)? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_str(&reply)? {
            Reply::Error { code, message } => Err(ClientError::Refused { code, message }),
            reply => Ok(reply),
        }
    }
}
