//! Moves frames between the tap and the queues.
//!
//! Descriptors are watched edge-triggered, so no eventfd need be read and a full
//! queue or a full tap costs no wakeups: the next kick or the tap's next edge resumes.
//! A burst is bounded, so that one busy interface cannot starve the others.

use super::tap::Tap;
use super::{Active, HEADER_BYTES, NetDevice, NetMetrics, Shared};
use crate::error::{Error, Result, host};
use crate::events::{Epoll, Handler, HandlerId};
use crate::irq::{borrow, new_event};
use crate::virtio::queue::QueueError;
use rustix::event::epoll::EventFlags;
use std::sync::{Arc, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Frames moved in one direction before others get their turn.
const BURST: usize = 256;
/// Ethernet header.
const ETHERNET_BYTES: usize = 14;
/// One VLAN tag.
const VLAN_BYTES: usize = 4;

const SOURCE_TAP: u32 = 0;
const SOURCE_RX_KICK: u32 = 1;
const SOURCE_TX_KICK: u32 = 2;
const SOURCE_AGAIN: u32 = 3;

/// The host's side of one interface.
pub struct NetWorker {
    tap: Tap,
    shared: Shared,
    metrics: Arc<NetMetrics>,
    max_frame_bytes: usize,
    /// Wakes this worker for the rest of a burst.
    again: EventFd,
}

/// Why a burst ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing more to do until the next edge.
    Dry,
    /// The burst is spent.
    Spent,
}

impl NetWorker {
    /// The two halves of an interface.
    pub fn new(tap: Tap, mac: [u8; 6], mtu: u16) -> Result<(NetDevice, Self)> {
        let shared = Shared::default();
        let device = NetDevice::new(mac, mtu, Arc::clone(&shared));
        let worker = Self {
            tap,
            shared,
            metrics: Arc::default(),
            max_frame_bytes: usize::from(mtu) + ETHERNET_BYTES + VLAN_BYTES,
            again: new_event()?,
        };
        Ok((device, worker))
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Watches the tap and both kicks on behalf of `handler`.
    pub fn watch(
        &self,
        epoll: &Epoll,
        handler: HandlerId,
        kicks: &[Option<Arc<EventFd>>],
    ) -> Result<()> {
        let fail = host("watch an interface");
        let both = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        let input = EventFlags::IN | EventFlags::ET;
        epoll
            .add(handler, SOURCE_TAP, &self.tap, both)
            .map_err(&fail)?;
        for (source, kick) in (SOURCE_RX_KICK..).zip(kicks.iter().flatten()) {
            epoll
                .add(handler, source, borrow(kick), input)
                .map_err(&fail)?;
        }
        epoll
            .add(handler, SOURCE_AGAIN, borrow(&self.again), input)
            .map_err(&fail)
    }

    /// Frames from the tap to the guest.
    fn receive(&self, active: &mut Active) -> std::result::Result<End, QueueError> {
        let Active { rx, buffers, .. } = active;
        rx.disable_kicks()?;
        let mut moved = 0;
        let mut turns = 0..BURST;
        let end = loop {
            if turns.next().is_none() {
                break End::Spent;
            }
            let Some(head) = rx.pop(buffers)? else {
                // No buffers: the driver's next kick brings us back.
                if rx.enable_kicks()? {
                    continue;
                }
                break End::Dry;
            };
            if buffers.writable_bytes() <= HEADER_BYTES {
                return Err(QueueError::Buffer {
                    at: 0,
                    len: u32::try_from(buffers.writable_bytes()).unwrap_or(u32::MAX),
                });
            }
            let room = buffers.writable_bytes();
            match self.tap.read(&buffers.writable) {
                Ok(Some(bytes)) if bytes < HEADER_BYTES || bytes > room => {
                    NetMetrics::add(&self.metrics.rx_short_buffers, 1);
                    rx.undo_pop();
                }
                Ok(Some(bytes)) => {
                    set_buffer_count(&buffers.writable);
                    rx.push(head, u32::try_from(bytes).unwrap_or(u32::MAX))?;
                    moved += 1;
                    NetMetrics::add(&self.metrics.rx_frames, 1);
                    NetMetrics::add(&self.metrics.rx_bytes, bytes - HEADER_BYTES);
                }
                Ok(None) => {
                    rx.undo_pop();
                    break End::Dry;
                }
                Err(error) => {
                    // The tap is down or gone; its next edge brings us back.
                    tracing::debug!(%error, "tap read failed");
                    rx.undo_pop();
                    break End::Dry;
                }
            }
        };
        if moved > 0 && rx.notify()? {
            NetMetrics::add(&self.metrics.interrupts, 1);
        }
        Ok(end)
    }

    /// Frames from the guest to the tap.
    fn transmit(&self, active: &mut Active) -> std::result::Result<End, QueueError> {
        let Active { tx, buffers, .. } = active;
        tx.disable_kicks()?;
        let mut moved = 0;
        let mut turns = 0..BURST;
        let end = loop {
            if turns.next().is_none() {
                break End::Spent;
            }
            let Some(head) = tx.pop(buffers)? else {
                if tx.enable_kicks()? {
                    continue;
                }
                break End::Dry;
            };
            let frame_bytes = buffers.readable_bytes().saturating_sub(HEADER_BYTES);
            if frame_bytes < ETHERNET_BYTES || frame_bytes > self.max_frame_bytes {
                NetMetrics::add(&self.metrics.tx_bad_length, 1);
            } else if !self.send(&mut buffers.readable, frame_bytes) {
                NetMetrics::add(&self.metrics.tx_stalls, 1);
                tx.undo_pop();
                break End::Dry;
            }
            tx.push(head, 0)?;
            moved += 1;
        };
        if moved > 0 && tx.notify()? {
            NetMetrics::add(&self.metrics.interrupts, 1);
        }
        Ok(end)
    }

    /// Sends one frame behind a header of our own: the guest's could ask for offloads that
    /// it was not offered. False when the tap is full.
    fn send(&self, buffers: &mut Vec<libc::iovec>, frame_bytes: usize) -> bool {
        static HEADER: [u8; HEADER_BYTES] = [0; HEADER_BYTES];
        skip(buffers, HEADER_BYTES);
        buffers.insert(
            0,
            libc::iovec {
                iov_base: HEADER.as_ptr().cast_mut().cast(),
                iov_len: HEADER_BYTES,
            },
        );
        match self.tap.write(buffers) {
            Ok(true) => {
                NetMetrics::add(&self.metrics.tx_frames, 1);
                NetMetrics::add(&self.metrics.tx_bytes, frame_bytes);
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::debug!(%error, "tap write failed");
                NetMetrics::add(&self.metrics.tx_errors, 1);
                true
            }
        }
    }
}

impl Handler for NetWorker {
    fn ready(&mut self, source: u32, flags: EventFlags) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut guard = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let paused = guard.paused;
        let Some(active) = guard.active.as_mut().filter(|_| !paused) else {
            return true;
        };
        let tap = source == SOURCE_TAP;
        let again = source == SOURCE_AGAIN;
        let receive = source == SOURCE_RX_KICK || again || tap && flags.contains(EventFlags::IN);
        let transmit = source == SOURCE_TX_KICK || again || tap && flags.contains(EventFlags::OUT);
        let mut run = || -> std::result::Result<bool, QueueError> {
            let received = if receive {
                self.receive(active)?
            } else {
                End::Dry
            };
            let sent = if transmit {
                self.transmit(active)?
            } else {
                End::Dry
            };
            Ok(received == End::Spent || sent == End::Spent)
        };
        match run() {
            Ok(false) => {}
            Ok(true) => {
                // A full counter already means "again".
                let _ = self.again.write(1);
            }
            Err(error) => {
                let fault = active.fault.clone();
                guard.active = None;
                fault.raise(&error.to_string());
            }
        }
        true
    }
}

/// Drops the first `bytes` of a list of buffers.
fn skip(buffers: &mut Vec<libc::iovec>, mut bytes: usize) {
    let mut whole = 0;
    for buffer in buffers.iter_mut() {
        if bytes < buffer.iov_len {
            buffer.iov_base = buffer.iov_base.cast::<u8>().wrapping_add(bytes).cast();
            buffer.iov_len -= bytes;
            break;
        }
        bytes -= buffer.iov_len;
        whole += 1;
    }
    buffers.drain(..whole);
}

/// `num_buffers` of the header is 1 for a driver of virtio 1 (§5.1.6.4.1); the tap leaves it 0.
fn set_buffer_count(buffers: &[libc::iovec]) {
    const NUM_BUFFERS: usize = 10;
    for (index, value) in (NUM_BUFFERS..).zip(1u16.to_le_bytes()) {
        let mut at = index;
        for buffer in buffers {
            if at < buffer.iov_len {
                // SAFETY: the byte is inside a buffer that the queue's walk found in guest
                // memory, which stays mapped; a volatile byte store tolerates a racing guest.
                unsafe {
                    buffer.iov_base.cast::<u8>().add(at).write_volatile(value);
                }
                break;
            }
            at -= buffer.iov_len;
        }
    }
}

/// Why a tap is refused, with the interface's id.
pub(crate) fn tap_error(id: &str, error: &std::io::Error) -> Error {
    Error::Device {
        device: id.to_owned(),
        problem: format!("its tap cannot serve: {error}"),
    }
}
