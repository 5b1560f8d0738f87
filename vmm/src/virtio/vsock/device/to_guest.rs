//! Packets to the guest: resets first, then each connection in its turn.

use super::super::VsockMetrics;
use super::super::connection::Over;
use super::super::packet::{HEADER_BYTES, HOST_CID, Header, Operation, STREAM};
use super::{Ports, RX, VsockModel};
use crate::virtio::hosted::{Chain, Driver, End};
use crate::virtio::queue::QueueError;
use std::ops::Bound;

impl VsockModel {
    /// Packets to the guest, as long as it gives buffers.
    pub(super) fn send(&mut self, driver: &mut Driver) -> std::result::Result<End, QueueError> {
        driver.drain(RX, |_, buffers| {
            if buffers.writable_bytes() < HEADER_BYTES {
                return Err(QueueError::Protocol("gives no room for a header"));
            }
            let Some((header, payload)) = self.next_packet(buffers.writable_bytes()) else {
                return Ok(Chain::Wait);
            };
            buffers.write_at(0, &header.to_bytes());
            buffers.write_at(HEADER_BYTES, &self.bounce[..payload]);
            VsockMetrics::add(&self.metrics.rx_packets, 1);
            VsockMetrics::add(&self.metrics.rx_bytes, payload);
            Ok(Chain::Done(
                u32::try_from(HEADER_BYTES + payload).unwrap_or(u32::MAX),
            ))
        })
    }

    /// The next packet for a buffer of `room` bytes; its payload is in `bounce`.
    fn next_packet(&mut self, room: usize) -> Option<(Header, usize)> {
        if let Some(ports) = self.resets.pop_front() {
            return Some((self.header(ports, Operation::Reset), 0));
        }
        loop {
            let ports = self.next_with_news()?;
            self.last_turn = ports;
            let connection = self.connections.get_mut(&ports)?;
            let mut payload = 0;
            let operation = match connection.operation() {
                Some(operation) => operation,
                None => {
                    let credit = usize::try_from(connection.peer_credit()).unwrap_or(usize::MAX);
                    let most = credit.min(room - HEADER_BYTES).min(self.bounce.len());
                    if most == 0 {
                        return None;
                    }
                    match connection.read(&mut self.bounce[..most]) {
                        Ok(Some(count)) => payload = count,
                        Ok(None) => continue,
                        Err(Over) => {
                            self.remove(ports);
                            return Some((self.header(ports, Operation::Reset), 0));
                        }
                    }
                    Operation::Data
                }
            };
            let mut flags = 0;
            let connection = self.connections.get_mut(&ports)?;
            if operation == Operation::Shutdown {
                flags = connection.shutdown_flags();
            }
            let (buffer_bytes, forwarded) = connection.tell_credit();
            let header = Header {
                len: u32::try_from(payload).unwrap_or(u32::MAX),
                flags,
                buffer_bytes,
                forwarded,
                ..self.header(ports, operation)
            };
            return Some((header, payload));
        }
    }

    /// The next connection, in turn, that has something for the guest.
    fn next_with_news(&self) -> Option<Ports> {
        let later = (Bound::Excluded(self.last_turn), Bound::Unbounded);
        let after = self.connections.range(later);
        let before = self.connections.range(..=self.last_turn);
        after
            .chain(before)
            .find(|(_, connection)| connection.has_news())
            .map(|(ports, _)| *ports)
    }

    fn header(&self, (guest_port, own_port): Ports, operation: Operation) -> Header {
        Header {
            source_cid: HOST_CID,
            destination_cid: self.guest_cid,
            source_port: own_port,
            destination_port: guest_port,
            len: 0,
            kind: STREAM,
            operation: Some(operation),
            flags: 0,
            buffer_bytes: 0,
            forwarded: 0,
        }
    }
}
