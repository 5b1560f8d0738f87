//! One stream between a port of the guest's and a program of the host's.
//!
//! ```text
//!               guest's RESPONSE
//!  Requested ────────────────────▶ Open ─ either side's end ─▶ half open ─▶ removed, RST to the guest
//! ```
//! *Credit* (§5.10.6.3). What the guest may send is [`BUFFER_BYTES`] less what it sent and we have
//! not passed on. What we may send is what its own buffer has room for. Counters are modulo 2³².

use super::packet::{Header, NO_MORE_RECEIVED, NO_MORE_SENT, Operation};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// What is held for a program that does not read: the credit of the guest.
pub const BUFFER_BYTES: u32 = 64 * 1024;
/// The guest is told of its credit when this much more than it knows is free.
const UPDATE_BYTES: u32 = BUFFER_BYTES / 4;

/// What a connection has to tell the guest, beside data; the most urgent first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// "Connect to me."
    pub request: bool,
    /// "Connected."
    pub response: bool,
    /// Will send or receive no more.
    pub shutdown: bool,
    /// How much may be sent.
    pub credit: bool,
}

/// One connection.
pub struct Connection {
    /// The program's stream, non-blocking.
    pub stream: UnixStream,
    /// Its event source.
    pub source: u32,
    /// Both sides agreed.
    pub open: bool,
    /// What to tell the guest.
    pub pending: Pending,
    /// The stream may have something to read.
    pub readable: bool,
    /// The program has closed both directions.
    pub hung_up: bool,
    /// Bytes from the guest that the stream has not taken.
    held: VecDeque<u8>,
    /// Bytes passed on to the program since the start.
    forwarded: u32,
    /// What the guest was last told of that.
    told: u32,
    /// Bytes received from the guest since the start.
    received: u32,
    /// Bytes sent to the guest since the start.
    sent: u32,
    peer_buffer_bytes: u32,
    peer_forwarded: u32,
    /// The program will send no more, and the guest was told or will be.
    program_done: bool,
    /// The guest will send no more; the stream is told once nothing is held.
    guest_done: bool,
    /// The guest takes no more.
    guest_deaf: bool,
}

/// The connection is over: the guest gets a reset.
#[derive(Debug, PartialEq, Eq)]
pub struct Over;

impl Connection {
    /// One that is to be requested, or (with the guest's request) answered.
    pub fn new(stream: UnixStream, source: u32, request: Option<&Header>) -> Self {
        let mut connection = Self {
            stream,
            source,
            open: request.is_some(),
            pending: Pending {
                request: request.is_none(),
                response: request.is_some(),
                ..Pending::default()
            },
            readable: true,
            hung_up: false,
            held: VecDeque::new(),
            forwarded: 0,
            told: 0,
            received: 0,
            sent: 0,
            peer_buffer_bytes: 0,
            peer_forwarded: 0,
            program_done: false,
            guest_done: false,
            guest_deaf: false,
        };
        if let Some(request) = request {
            connection.learn_credit(request);
        }
        connection
    }

    /// Every packet says how much the guest can take.
    pub fn learn_credit(&mut self, header: &Header) {
        self.peer_buffer_bytes = header.buffer_bytes;
        self.peer_forwarded = header.forwarded;
    }

    /// What may be sent to the guest now. A guest that claims to have taken more than it was sent
    /// gets nothing.
    pub fn peer_credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer_bytes.saturating_sub(in_flight)
    }

    /// Does the connection have something for the guest?
    pub fn has_news(&self) -> bool {
        self.pending != Pending::default() || self.wants_to_read()
    }

    /// May data be read from the stream, to be sent to the guest?
    pub fn wants_to_read(&self) -> bool {
        self.open
            && self.readable
            && !self.program_done
            && !self.guest_deaf
            && self.peer_credit() > 0
    }

    /// The numbers of the header of any packet to the guest, who then knows them.
    pub fn tell_credit(&mut self) -> (u32, u32) {
        self.pending.credit = false;
        self.told = self.forwarded;
        (BUFFER_BYTES, self.forwarded)
    }

    /// Writes the line that tells the program that it is connected.
    pub fn greet(&mut self, port: u32) -> Result<(), Over> {
        let line = format!("OK {port}\n");
        match self.stream.write(line.as_bytes()) {
            Ok(count) if count == line.len() => Ok(()),
            _ => Err(Over),
        }
    }

    /// Data from the guest. More than its credit ends the connection.
    pub fn take(&mut self, data: &[u8]) -> Result<(), Over> {
        let unread = self.received.wrapping_sub(self.forwarded);
        let len = u32::try_from(data.len()).map_err(|_| Over)?;
        if self.guest_done || len > BUFFER_BYTES.saturating_sub(unread) {
            return Err(Over);
        }
        self.received = self.received.wrapping_add(len);
        self.held.extend(data);
        self.flush()
    }

    /// Passes on what is held, as far as the stream takes it.
    pub fn flush(&mut self) -> Result<(), Over> {
        while !self.held.is_empty() {
            let (first, _) = self.held.as_slices();
            match self.stream.write(first) {
                Ok(0) => return Err(Over),
                Ok(count) => {
                    self.held.drain(..count);
                    let passed = u32::try_from(count).unwrap_or(u32::MAX);
                    self.forwarded = self.forwarded.wrapping_add(passed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Over),
            }
        }
        if self.forwarded.wrapping_sub(self.told) >= UPDATE_BYTES {
            self.pending.credit = true;
        }
        if self.guest_done && self.held.is_empty() {
            if self.guest_deaf {
                return Err(Over);
            }
            // A stream that is gone already has nothing left to be told.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Reads data for the guest; `None` when there is none now.
    pub fn read(&mut self, into: &mut [u8]) -> Result<Option<usize>, Over> {
        loop {
            match self.stream.read(into) {
                Ok(0) => {
                    self.program_done = true;
                    self.pending.shutdown = true;
                    return Ok(None);
                }
                Ok(count) => {
                    let sent = u32::try_from(count).unwrap_or(u32::MAX);
                    self.sent = self.sent.wrapping_add(sent);
                    return Ok(Some(count));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(None);
                }
                Err(_) => return Err(Over),
            }
        }
    }

    /// The flags of a shutdown that is to be told.
    pub fn shutdown_flags(&self) -> u32 {
        if self.hung_up {
            return NO_MORE_SENT | NO_MORE_RECEIVED;
        }
        // A program that only stopped sending may still read.
        NO_MORE_SENT
    }

    /// The guest will send or receive no more.
    pub fn guest_shuts_down(&mut self, flags: u32) -> Result<(), Over> {
        self.guest_done |= flags & NO_MORE_SENT != 0;
        self.guest_deaf |= flags & NO_MORE_RECEIVED != 0;
        if self.guest_deaf {
            // An error means that the stream has ended anyway.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush()
    }

    /// What to tell the guest next, beside data.
    pub fn operation(&mut self) -> Option<Operation> {
        let pending = &mut self.pending;
        let take = |flag: &mut bool| std::mem::take(flag);
        if take(&mut pending.request) {
            Some(Operation::Request)
        } else if take(&mut pending.response) {
            Some(Operation::Response)
        } else if take(&mut pending.shutdown) {
            Some(Operation::Shutdown)
        } else if take(&mut pending.credit) {
            Some(Operation::CreditUpdate)
        } else {
            None
        }
    }
}
