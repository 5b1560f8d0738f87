//! The device: tells packets and streams apart, and keeps both within bounds.

use super::VsockMetrics;
use super::connection::{Connection, Over};
use super::host::Waiting;
use super::packet::{HEADER_BYTES, HOST_CID, Header, MAX_PAYLOAD_BYTES, Operation, STREAM};
use crate::error::{Result, host};
use crate::events::{Epoll, HandlerId};
use crate::virtio::hosted::{Chain, Driver, End, Model, OWN_SOURCE};
use crate::virtio::queue::{Buffers, QueueError};
use crate::virtio::{Loaded, read_bytes};
use rustix::event::epoll::EventFlags;
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;

mod programs;
mod to_guest;

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;
const QUEUE_SIZES: &[u16] = &[128, 128, 8];

/// Connections at a time.
pub(super) const MAX_CONNECTIONS: usize = 128;
/// Programs that wait for one at a time.
pub(super) const MAX_WAITING: usize = 64;
/// Resets that the guest has not taken; then its packets wait.
const MAX_RESETS: usize = 64;
/// Host ports for connections that programs make: above those that services have.
const FIRST_PORT: u32 = 1 << 30;

/// The guest's port and the host's.
type Ports = (u32, u32);

/// The socket device.
pub struct VsockModel {
    pub(super) guest_cid: u64,
    listener: UnixListener,
    /// Whose programs are heard.
    uid: u32,
    watcher: Option<(Arc<Epoll>, HandlerId)>,
    next_source: u32,
    next_port: u32,
    waiting: Waiting,
    connections: BTreeMap<Ports, Connection>,
    by_source: BTreeMap<u32, Ports>,
    /// Whose turn it was to send to the guest.
    last_turn: Ports,
    resets: VecDeque<Ports>,
    /// The guest's packets wait for room in `resets`.
    tx_waits: bool,
    /// The guest shall be told that all its connections are gone.
    pub(super) transport_reset: bool,
    bounce: Vec<u8>,
    metrics: Arc<VsockMetrics>,
}

impl VsockModel {
    /// A device at `guest_cid` for programs of user `uid`.
    pub fn new(guest_cid: u32, listener: UnixListener, uid: u32) -> Self {
        Self {
            guest_cid: guest_cid.into(),
            listener,
            uid,
            watcher: None,
            next_source: OWN_SOURCE,
            next_port: FIRST_PORT,
            waiting: Waiting::default(),
            connections: BTreeMap::new(),
            by_source: BTreeMap::new(),
            last_turn: (0, 0),
            resets: VecDeque::new(),
            tx_waits: false,
            transport_reset: false,
            bounce: vec![0; MAX_PAYLOAD_BYTES],
            metrics: Arc::default(),
        }
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<VsockMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Watches the listener on behalf of `handler`, and streams from then on.
    pub fn watch(&mut self, epoll: Arc<Epoll>, handler: HandlerId) -> Result<()> {
        let edge = EventFlags::IN | EventFlags::ET;
        epoll
            .add(handler, OWN_SOURCE, &self.listener, edge)
            .map_err(host("watch the vsock socket"))?;
        self.watcher = Some((epoll, handler));
        Ok(())
    }

    fn insert(&mut self, ports: Ports, connection: Connection) {
        self.by_source.insert(connection.source, ports);
        self.connections.insert(ports, connection);
        self.count();
    }

    fn remove(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.remove(&ports) {
            self.by_source.remove(&connection.source);
        }
        self.count();
    }

    fn count(&self) {
        let open = self.connections.len() as u64;
        self.metrics.connections.store(open, Ordering::Relaxed);
    }

    /// Ends a connection, and tells the guest.
    fn break_off(&mut self, ports: Ports) {
        self.remove(ports);
        self.resets.push_back(ports);
    }

    /// Packets from the guest.
    fn receive(&mut self, driver: &mut Driver) -> std::result::Result<End, QueueError> {
        self.tx_waits = false;
        driver.drain(TX, |_, buffers| {
            // One packet asks for one reset at most, and one of another connection's.
            if self.resets.len() + 2 > MAX_RESETS {
                self.tx_waits = true;
                return Ok(Chain::Wait);
            }
            let mut bytes = [0; HEADER_BYTES];
            if buffers.read_at(0, &mut bytes) < HEADER_BYTES {
                return Err(QueueError::Protocol("sends packets shorter than a header"));
            }
            VsockMetrics::add(&self.metrics.tx_packets, 1);
            self.handle(&Header::parse(&bytes), buffers);
            Ok(Chain::Done(0))
        })
    }

    fn handle(&mut self, header: &Header, buffers: &Buffers) {
        let ports = (header.source_port, header.destination_port);
        let payload = buffers.readable_bytes() - HEADER_BYTES;
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let addressed = header.source_cid == self.guest_cid
            && header.destination_cid == HOST_CID
            && header.kind == STREAM
            && len <= payload.min(MAX_PAYLOAD_BYTES);
        let Some(operation) = header.operation.filter(|_| addressed) else {
            VsockMetrics::add(&self.metrics.bad_packets, 1);
            if header.operation != Some(Operation::Reset) && header.source_cid == self.guest_cid {
                self.break_off(ports);
            }
            return;
        };
        if operation == Operation::Request {
            return self.answer_request(ports, header);
        }
        let Some(connection) = self.connections.get_mut(&ports) else {
            if operation != Operation::Reset {
                self.resets.push_back(ports);
            }
            return;
        };
        connection.learn_credit(header);
        let result = match operation {
            Operation::Response if !connection.open => {
                connection.open = true;
                VsockMetrics::add(&self.metrics.opened, 1);
                connection.greet(ports.1)
            }
            Operation::Data if connection.open => {
                let count = buffers.read_at(HEADER_BYTES, &mut self.bounce[..len]);
                VsockMetrics::add(&self.metrics.tx_bytes, count);
                let taken = connection.take(&self.bounce[..count]);
                if taken.is_err() {
                    VsockMetrics::add(&self.metrics.bad_packets, 1);
                }
                taken
            }
            Operation::Shutdown => connection.guest_shuts_down(header.flags),
            Operation::CreditUpdate => Ok(()),
            Operation::CreditRequest => {
                connection.pending.credit = true;
                Ok(())
            }
            Operation::Reset => return self.remove(ports),
            _ => {
                VsockMetrics::add(&self.metrics.bad_packets, 1);
                Err(Over)
            }
        };
        if result.is_err() {
            self.break_off(ports);
        }
    }

    fn answer_request(&mut self, ports: Ports, header: &Header) {
        if self.connections.contains_key(&ports) {
            VsockMetrics::add(&self.metrics.bad_packets, 1);
            return self.break_off(ports);
        }
        let room = self.connections.len() < MAX_CONNECTIONS;
        while room && let Some((source, stream)) = self.waiting.take_acceptor(ports.1) {
            let mut connection = Connection::new(stream, source, Some(header));
            // One that has just left takes nothing; the next one does.
            if connection.greet(ports.0).is_ok() {
                VsockMetrics::add(&self.metrics.opened, 1);
                return self.insert(ports, connection);
            }
        }
        VsockMetrics::add(&self.metrics.refused, 1);
        self.resets.push_back(ports);
    }

    /// A connection's stream is ready.
    fn stir(&mut self, source: u32, flags: EventFlags) {
        let Some(ports) = self.by_source.get(&source).copied() else {
            return;
        };
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        connection.readable = true;
        connection.hung_up |= flags.contains(EventFlags::HUP);
        if connection.hung_up && !connection.open {
            // Nobody is left to be connected; the guest may answer, and is then reset.
            return self.remove(ports);
        }
        if connection.flush().is_err() {
            self.break_off(ports);
        }
    }

    fn turn(&mut self, driver: &mut Driver) -> std::result::Result<End, QueueError> {
        let received = self.receive(driver)?;
        let sent = self.send(driver)?;
        let unblocked = self.tx_waits && self.resets.len() + 2 <= MAX_RESETS;
        Ok(
            match received == End::Spent || sent == End::Spent || unblocked {
                true => End::Spent,
                false => End::Dry,
            },
        )
    }
}

impl Model for VsockModel {
    fn kind(&self) -> u16 {
        19
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn needed_queues(&self) -> usize {
        2
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn serve(&mut self, index: usize, driver: &mut Driver) -> std::result::Result<End, QueueError> {
        if index != EVENT {
            return self.turn(driver);
        }
        driver.drain(EVENT, |_, buffers| {
            if !std::mem::take(&mut self.transport_reset) {
                return Ok(Chain::Wait);
            }
            // `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` is number 0.
            let written = buffers.write_at(0, &0u32.to_le_bytes());
            Ok(Chain::Done(u32::try_from(written).unwrap_or(0)))
        })
    }

    fn ready(
        &mut self,
        source: Option<u32>,
        flags: EventFlags,
        driver: Option<&mut Driver>,
    ) -> std::result::Result<End, QueueError> {
        let active = driver.is_some();
        let mut end = End::Dry;
        match source {
            Some(OWN_SOURCE) => end = self.accept(driver.as_deref()),
            Some(source) => {
                self.hear(source, flags, active);
                self.stir(source, flags);
            }
            None => {
                end = self.accept(driver.as_deref());
                let waiting = self.waiting.sources();
                waiting
                    .into_iter()
                    .for_each(|source| self.hear(source, flags, active));
                let open: Vec<u32> = self.by_source.keys().copied().collect();
                open.into_iter().for_each(|source| self.stir(source, flags));
            }
        }
        if let Some(driver) = driver
            && self.turn(driver)? == End::Spent
        {
            end = End::Spent;
        }
        Ok(end)
    }

    fn reset(&mut self) {
        self.connections.clear();
        self.by_source.clear();
        self.resets.clear();
        self.transport_reset = false;
        self.count();
    }

    fn save(&self) -> Vec<u8> {
        self.saved()
    }

    fn load(&mut self, own: &[u8]) -> std::result::Result<Loaded, String> {
        self.take(own)
    }
}
