//! Host programs that have connected and have no connection to the guest yet.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;

/// `ACCEPT 4294967295` and a newline, with some room.
const MAX_LINE_BYTES: usize = 32;

/// What a program asked for in its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To be connected to the guest's port.
    Connect(u32),
    /// To take a connection of the guest's to the host's port.
    Accept(u32),
}

impl Wish {
    /// Reads a line without its newline.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (word, port) = line.trim_end_matches('\r').split_once(' ')?;
        // `parse` alone would take a sign.
        let port = Some(port).filter(|p| p.bytes().all(|byte| byte.is_ascii_digit()))?;
        let port = port.parse().ok()?;
        match word {
            "CONNECT" => Some(Self::Connect(port)),
            "ACCEPT" => Some(Self::Accept(port)),
            _ => None,
        }
    }
}

/// A program that waits.
pub struct Program {
    /// Its stream, non-blocking.
    pub stream: UnixStream,
    line: Vec<u8>,
    /// What it wants, once it has said so.
    pub wish: Option<Wish>,
}

impl Program {
    /// One that has said nothing yet.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            line: Vec::new(),
            wish: None,
        }
    }

    /// Reads what there is of the line: true when it is whole now.
    ///
    /// A byte at a time, since what follows the line belongs to the connection.
    pub fn read_line(&mut self) -> io::Result<bool> {
        let bad = || io::Error::from(ErrorKind::InvalidData);
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte[0] == b'\n' => {
                    self.wish = Some(Wish::parse(&self.line).ok_or_else(bad)?);
                    return Ok(true);
                }
                Ok(_) if self.line.len() >= MAX_LINE_BYTES => return Err(bad()),
                Ok(_) => self.line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// All that wait, by the number of their event source, oldest first.
#[derive(Default)]
pub struct Waiting(BTreeMap<u32, Program>);

impl Waiting {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds one.
    pub fn insert(&mut self, source: u32, program: Program) {
        self.0.insert(source, program);
    }

    /// The one with this source.
    pub fn get_mut(&mut self, source: u32) -> Option<&mut Program> {
        self.0.get_mut(&source)
    }

    /// Takes out the one with this source.
    pub fn remove(&mut self, source: u32) -> Option<Program> {
        self.0.remove(&source)
    }

    /// Takes out the one that has waited longest without saying what for.
    pub fn drop_silent(&mut self) -> bool {
        let silent = self.0.iter().find(|(_, program)| program.wish.is_none());
        let silent = silent.map(|(source, _)| *source);
        silent.and_then(|source| self.0.remove(&source)).is_some()
    }

    /// Takes out the one that has waited longest for a connection to `port`.
    pub fn take_acceptor(&mut self, port: u32) -> Option<(u32, UnixStream)> {
        let wish = Some(Wish::Accept(port));
        let source = self.0.iter().find(|(_, program)| program.wish == wish)?.0;
        let source = *source;
        self.0
            .remove(&source)
            .map(|program| (source, program.stream))
    }

    /// Their sources.
    pub fn sources(&self) -> Vec<u32> {
        self.0.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_say_what_a_program_wants() {
        for (line, wish) in [
            ("CONNECT 5000", Some(Wish::Connect(5000))),
            ("ACCEPT 0\r", Some(Wish::Accept(0))),
            ("ACCEPT 4294967295", Some(Wish::Accept(u32::MAX))),
            ("ACCEPT 4294967296", None),
            ("CONNECT +1", None),
            ("CONNECT", None),
            ("connect 1", None),
            ("", None),
        ] {
            assert_eq!(Wish::parse(line.as_bytes()), wish, "{line:?}");
        }
    }

    #[test]
    fn a_line_comes_in_parts_and_what_follows_stays_in_the_stream() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut program = Program::new(ours);
        theirs.write_all(b"CONN").unwrap();
        assert!(!program.read_line().unwrap());
        theirs.write_all(b"ECT 7\nhello").unwrap();
        assert!(program.read_line().unwrap());
        assert_eq!(program.wish, Some(Wish::Connect(7)));
        let mut rest = [0; 5];
        program.stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.write_all(&[b'A'; 100]).unwrap();
        assert!(Program::new(ours).read_line().is_err());
    }
}
