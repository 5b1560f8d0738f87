//! A blocking client of the control socket.

use crate::{ErrorCode, Reply, Request};
use std::io::{BufRead, BufReader, Write};
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
