//! A client for HTTP/1.1, one request a connection.

use super::Net;
use super::tcp::{Gone, Stream};
use crate::{clock, executor};
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;
use ocs_probe_logic::fold::Outcome;
use ocs_probe_logic::http::{ResponseHead, head_len, parse_response};
use ocs_probe_logic::url::Host;

/// A longer head is refused.
const MAX_HEAD_BYTES: usize = 4096;
const BUFFER_BYTES: usize = 16 << 10;
/// How long a connection may take to end after its answer.
const CLOSE_US: u64 = 1_000_000;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpError {
    /// No connection.
    Connect(Outcome),
    /// Nothing came for too long.
    Timeout,
    /// The connection broke off before the message's end.
    Broken,
    /// The head is not HTTP/1, too long, or announces an encoding.
    BadHead,
    /// The body is larger than the caller takes.
    TooLarge,
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(outcome) => write!(f, "connect-{outcome}"),
            Self::Timeout => f.write_str("timeout"),
            Self::Broken => f.write_str("broken"),
            Self::BadHead => f.write_str("bad-head"),
            Self::TooLarge => f.write_str("too-large"),
        }
    }
}

impl From<Gone> for HttpError {
    fn from(Gone: Gone) -> Self {
        Self::Broken
    }
}

/// A request.
pub struct Request<'a> {
    /// Where to.
    pub server: SocketAddr,
    /// `GET` or `PUT`, without a body.
    pub method: &'a str,
    /// Starts with `/`.
    pub path: &'a str,
    /// Further header lines, each ended by CRLF.
    pub headers: &'a str,
    /// Without a byte for this long it fails.
    pub patience_us: u64,
}

/// What remains of a body to come.
#[derive(Clone, Copy)]
enum Rest {
    Bytes(u64),
    UntilClose,
}

impl Request<'_> {
    /// Sends the request; each piece of the body goes to `sink`.
    pub async fn send(
        &self,
        net: &Rc<Net>,
        mut sink: impl FnMut(&[u8]) -> Result<(), HttpError>,
    ) -> Result<u16, HttpError> {
        let connecting = Stream::connect(net, self.server, BUFFER_BYTES);
        let stream = self
            .patient(connecting)
            .await?
            .map_err(HttpError::Connect)?;
        let head = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{}\r\n",
            self.method,
            self.path,
            Host(self.server.ip()),
            self.headers
        );
        self.patient(stream.send_all(head.as_bytes())).await??;
        let (head, early) = self.head(&stream).await?;
        let mut rest = match head.content_length {
            Some(len) => Rest::Bytes(len),
            None => Rest::UntilClose,
        };
        take(&early, &mut rest, &mut sink)?;
        let mut buffer = [0; 2048];
        while !matches!(rest, Rest::Bytes(0)) {
            match self.patient(stream.recv(&mut buffer)).await? {
                Ok(0) if matches!(rest, Rest::UntilClose) => break,
                Ok(0) | Err(Gone) => return Err(HttpError::Broken),
                Ok(len) => take(&buffer[..len], &mut rest, &mut sink)?,
            }
        }
        executor::spawn(async move { stream.close(CLOSE_US).await });
        Ok(head.status)
    }

    /// The same, collecting a body of at most `limit` bytes.
    pub async fn fetch(&self, net: &Rc<Net>, limit: usize) -> Result<(u16, Vec<u8>), HttpError> {
        let mut body = Vec::new();
        let status = self
            .send(net, |piece| {
                if body.len() + piece.len() > limit {
                    return Err(HttpError::TooLarge);
                }
                body.extend_from_slice(piece);
                Ok(())
            })
            .await?;
        Ok((status, body))
    }

    async fn head(&self, stream: &Stream) -> Result<(ResponseHead, Vec<u8>), HttpError> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            let len = self.patient(stream.recv(&mut buffer)).await??;
            if len == 0 {
                return Err(HttpError::Broken);
            }
            bytes.extend_from_slice(&buffer[..len]);
            if let Some(len) = head_len(&bytes) {
                let early = bytes.split_off(len);
                let head = parse_response(&bytes)
                    .filter(|head| !head.encoded)
                    .ok_or(HttpError::BadHead)?;
                return Ok((head, early));
            }
            if bytes.len() > MAX_HEAD_BYTES {
                return Err(HttpError::BadHead);
            }
        }
    }

    async fn patient<T>(&self, future: impl Future<Output = T>) -> Result<T, HttpError> {
        executor::until(clock::now_us() + self.patience_us, future)
            .await
            .ok_or(HttpError::Timeout)
    }
}

fn take(
    piece: &[u8],
    rest: &mut Rest,
    sink: &mut impl FnMut(&[u8]) -> Result<(), HttpError>,
) -> Result<(), HttpError> {
    let piece = match rest {
        Rest::UntilClose => piece,
        Rest::Bytes(left) => {
            let taken = usize::try_from(*left).map_or(piece.len(), |left| left.min(piece.len()));
            *left -= taken as u64;
            &piece[..taken]
        }
    };
    sink(piece)
}
