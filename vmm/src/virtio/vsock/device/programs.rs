//! Programs of the host: who is heard, and what becomes of their wishes.

use super::super::VsockMetrics;
use super::super::connection::Connection;
use super::super::host::{Program, Wish};
use super::{FIRST_PORT, MAX_CONNECTIONS, MAX_WAITING, VsockModel};
use crate::inherit;
use crate::virtio::hosted::{Driver, End, OWN_SOURCE};
use rustix::event::epoll::EventFlags;
use std::os::unix::net::UnixStream;

/// Programs accepted before others get their turn.
const ACCEPTS: usize = 16;

impl VsockModel {
    pub(super) fn accept(&mut self, driver: Option<&Driver>) -> End {
        let active = driver.is_some();
        for _ in 0..ACCEPTS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return End::Dry,
                Err(error) => {
                    tracing::debug!(%error, "a vsock program was lost");
                    return End::Dry;
                }
            };
            match self.admit(stream) {
                Ok(source) => self.hear(source, EventFlags::IN, active),
                Err(error) => {
                    VsockMetrics::add(&self.metrics.refused_programs, 1);
                    tracing::debug!(%error, "a vsock program was turned away");
                }
            }
        }
        End::Spent
    }

    fn admit(&mut self, stream: UnixStream) -> std::io::Result<u32> {
        let refuse = |why: &str| Err(std::io::Error::other(why.to_owned()));
        if inherit::peer_uid(&stream)? != self.uid {
            return refuse("it is another user's");
        }
        if self.waiting.len() >= MAX_WAITING && !self.waiting.drop_silent() {
            return refuse("too many wait");
        }
        stream.set_nonblocking(true)?;
        let source = self.new_source();
        if let Some((epoll, handler)) = &self.watcher {
            let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll.add(*handler, source, &stream, all)?;
        }
        self.waiting.insert(source, Program::new(stream));
        Ok(source)
    }

    fn new_source(&mut self) -> u32 {
        loop {
            // Below the loop's own numbers, which begin at the top.
            self.next_source = (self.next_source + 1) & 0x3fff_ffff;
            let source = self.next_source.max(OWN_SOURCE + 1);
            self.next_source = source;
            if self.waiting.get_mut(source).is_none() && !self.by_source.contains_key(&source) {
                return source;
            }
        }
    }

    /// A waiting program said something, or left.
    pub(super) fn hear(&mut self, source: u32, flags: EventFlags, active: bool) {
        let Some(program) = self.waiting.get_mut(source) else {
            return;
        };
        if program.wish.is_some() {
            // It waits for the guest; what it says meanwhile is the connection's.
            if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
                self.waiting.remove(source);
            }
            return;
        }
        match program.read_line() {
            Ok(false) => {}
            Ok(true) => self.grant(source, active),
            Err(error) => {
                VsockMetrics::add(&self.metrics.refused_programs, 1);
                tracing::debug!(%error, "a vsock program said nothing that means anything");
                self.waiting.remove(source);
            }
        }
    }

    fn grant(&mut self, source: u32, active: bool) {
        let wish = self.waiting.get_mut(source).and_then(|p| p.wish);
        let Some(Wish::Connect(port)) = wish else {
            return;
        };
        let Some(program) = self.waiting.remove(source) else {
            return;
        };
        if !active || self.connections.len() >= MAX_CONNECTIONS {
            VsockMetrics::add(&self.metrics.refused, 1);
            return;
        }
        let own = self.free_port(port);
        let connection = Connection::new(program.stream, source, None);
        self.insert((port, own), connection);
    }

    fn free_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = match port.checked_add(1) {
                // The last number means "any" in Linux.
                None | Some(u32::MAX) => FIRST_PORT,
                Some(next) => next,
            };
            if !self.connections.contains_key(&(guest_port, port)) {
                return port;
            }
        }
    }
}
