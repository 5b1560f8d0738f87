//! Moves frames between the tap and the queues, [`BATCH`] a system call.
//!
//! ```text
//!  tx queue ─ pop ≤ 32 ─▶ shaper ─▶ one enter ─▶ tap      then one interrupt, if wanted
//!  tap ─▶ one enter ─▶ rx queue, as many as came          then one interrupt, if wanted
//! ```
//! Descriptors are watched edge-triggered, so no eventfd need be read and a full queue
//! costs no wakeups: the next kick, the tap's next edge or the shaper's timer resumes.
//! A burst is bounded, so that one busy interface cannot starve the others. Between two
//! bursts nothing is in flight: what was taken from a queue and not used went back.

use super::buffers::{move_up, read_front, set_buffer_count, skip, take_buffers};
use super::line::{SharedLine, Ticket};
use super::offloads::{Offloads, cost};
use super::ring::{BATCH, Place, SharedRing, TapRing, Way};
use super::shaper::Shaper;
use super::tap::Tap;
use super::{Active, Chain, ETHERNET_BYTES, FRONT_BYTES, HEADER_BYTES};
use super::{NetDevice, NetMetrics, Shared};
use crate::cpu::monotonic_ns;
use crate::error::{Error, Result, host};
use crate::events::{Epoll, Handler, HandlerId};
use crate::irq::{borrow, new_event};
use crate::virtio::queue::{QueueError, VirtQueue};
use ocs_vmm_spec::{Net, TransmitLimits, parse_mac};
use rustix::event::epoll::EventFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Frames moved in one direction before others get their turn.
const BURST: usize = 256;
/// One VLAN tag.
const VLAN_BYTES: usize = 4;
/// Buffers offered to a tap that has been quiet: each one too many costs a failed read.
const FEWEST_AHEAD: usize = 4;

const SOURCE_TAP: u32 = 0;
const SOURCE_RX_KICK: u32 = 1;
const SOURCE_TX_KICK: u32 = 2;
const SOURCE_AGAIN: u32 = 3;
const SOURCE_TIMER: u32 = 4;

/// The host's side of one interface.
pub struct NetWorker {
    tap: Tap,
    place: Place,
    shared: Shared,
    metrics: Arc<NetMetrics>,
    mtu: usize,
    control: Arc<NetControl>,
    /// Wakes this worker when frames may go that had to wait.
    timer: OwnedFd,
    /// Limits of all interfaces together.
    line: SharedLine,
    ticket: Ticket,
}

/// What can be changed while the worker runs.
pub struct NetControl {
    shaper: Mutex<Shaper>,
    /// Wakes the worker, also for the rest of a burst.
    again: EventFd,
}

impl NetControl {
    /// Other limits from now on; buckets start full.
    pub fn limit(&self, limits: &TransmitLimits) {
        *self.shaper.lock().unwrap_or_else(PoisonError::into_inner) =
            Shaper::new(limits, monotonic_ns());
        self.wake();
    }

    fn wake(&self) {
        // A full counter already means "again".
        let _ = self.again.write(1);
    }
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
    /// The two halves of an interface, whose frames go through `ring`, and wait with those of
    /// others in `line`.
    pub fn new(
        tap: Tap,
        ring: &SharedRing,
        line: &SharedLine,
        net: &Net,
    ) -> Result<(NetDevice, Self)> {
        let shared = Shared::default();
        let mac = parse_mac(&net.mac).unwrap_or_default();
        let device = NetDevice::new(mac, net.mtu, net.offloads, Arc::clone(&shared));
        let place = TapRing::adopt(ring, &tap).map_err(host("register a tap"))?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(host("make a timer"))?;
        let worker = Self {
            tap,
            place,
            shared,
            metrics: Arc::default(),
            mtu: usize::from(net.mtu),
            control: Arc::new(NetControl {
                shaper: Mutex::new(Shaper::new(&net.transmit, monotonic_ns())),
                again: new_event()?,
            }),
            timer,
            line: line.clone(),
            ticket: line.lock().ticket(),
        };
        Ok((device, worker))
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Changes it later.
    pub fn control(&self) -> Arc<NetControl> {
        Arc::clone(&self.control)
    }

    /// Watches the tap and both kicks on behalf of `handler`.
    pub fn watch(&self, epoll: &Epoll, handler: HandlerId, kicks: &[Arc<EventFd>]) -> Result<()> {
        let fail = host("watch an interface");
        let input = EventFlags::IN | EventFlags::ET;
        epoll
            .add(handler, SOURCE_TAP, &self.tap, input)
            .and_then(|()| epoll.add(handler, SOURCE_TIMER, &self.timer, input))
            .and_then(|()| epoll.add(handler, SOURCE_AGAIN, borrow(&self.control.again), input))
            .map_err(&fail)?;
        for (source, kick) in (SOURCE_RX_KICK..).zip(kicks) {
            epoll
                .add(handler, source, borrow(kick), input)
                .map_err(&fail)?;
        }
        self.metrics.watch(kicks);
        Ok(())
    }

    /// Frames from the tap to the guest.
    fn receive(&self, active: &mut Active) -> std::result::Result<End, QueueError> {
        let Active {
            rx, chains, ahead, ..
        } = active;
        rx.disable_kicks()?;
        let (mut moved, mut budget) = (false, BURST);
        let end = loop {
            if budget == 0 {
                break End::Spent;
            }
            let offered = take_buffers(rx, chains, *ahead)?;
            budget = budget.saturating_sub(offered.max(1));
            if offered == 0 {
                // No buffers: the driver's next kick brings us back.
                if rx.enable_kicks()? {
                    continue;
                }
                break End::Dry;
            }
            let filled = self.read(chains, offered);
            for _ in filled..offered {
                rx.undo_pop();
            }
            for chain in chains.iter().take(filled) {
                rx.push(chain.head, u32::try_from(chain.bytes).unwrap_or(u32::MAX))?;
            }
            moved |= filled > 0;
            *ahead = (2 * filled).clamp(FEWEST_AHEAD, BATCH);
            if filled < offered {
                break End::Dry;
            }
        };
        if moved && rx.notify()? {
            NetMetrics::add(&self.metrics.rx_interrupts, 1);
        }
        Ok(end)
    }

    /// Reads into the first `offered` chains; how many of them, from the first, hold a frame.
    fn read(&self, chains: &mut [Chain], offered: usize) -> usize {
        let mut results = [0; BATCH];
        let frames = chains.iter().take(offered);
        let frames = frames.map(|chain| chain.buffers.writable.as_slice());
        NetMetrics::add(&self.metrics.batches, 1);
        if let Err(error) = self.place.batch(Way::Read, frames, &mut results) {
            tracing::debug!(%error, "the tap's ring failed");
            return 0;
        }
        let mut filled = 0;
        for (index, result) in results.iter().take(offered).enumerate() {
            // Errors: no frame, or the tap is down or gone; its next edge brings us back.
            let Ok(bytes) = usize::try_from(*result) else {
                continue;
            };
            let fits = (HEADER_BYTES..=chains[index].buffers.writable_bytes()).contains(&bytes);
            // A frame that came after a read found none moves up, so that what is not used
            // can go back to the queue.
            if !fits || filled < index && !move_up(chains, index, filled, bytes) {
                NetMetrics::add(&self.metrics.rx_short_buffers, 1);
                continue;
            }
            let chain = &mut chains[filled];
            chain.bytes = bytes;
            set_buffer_count(&chain.buffers.writable);
            NetMetrics::add(&self.metrics.rx_frames, 1);
            NetMetrics::add(&self.metrics.rx_bytes, bytes - HEADER_BYTES);
            filled += 1;
        }
        filled
    }

    /// Frames from the guest to the tap.
    fn transmit(&self, active: &mut Active) -> std::result::Result<End, QueueError> {
        let Active {
            tx,
            chains,
            offloads,
            ..
        } = active;
        tx.disable_kicks()?;
        let (mut moved, mut budget) = (false, BURST);
        let end = loop {
            if budget == 0 {
                break End::Spent;
            }
            let (taken, wait_ns) = self.take_frames(tx, chains, *offloads)?;
            budget = budget.saturating_sub(taken.max(1));
            self.write(&chains[..taken]);
            for chain in chains.iter().take(taken) {
                tx.push(chain.head, 0)?;
            }
            moved |= taken > 0;
            if let Some(wait_ns) = wait_ns {
                NetMetrics::add(&self.metrics.tx_shaped, 1);
                self.wake_in(wait_ns);
                break End::Dry;
            }
            if taken == 0 {
                if tx.enable_kicks()? {
                    continue;
                }
                break End::Dry;
            }
        };
        if moved && tx.notify()? {
            NetMetrics::add(&self.metrics.tx_interrupts, 1);
        }
        Ok(end)
    }

    /// Takes as many frames as there are and may go, [`BATCH`] at most, each behind a header
    /// of our own: the driver's could ask for what it was not offered. Also in how many ns the
    /// next may go, if it may not now.
    fn take_frames(
        &self,
        tx: &mut VirtQueue,
        chains: &mut [Chain],
        offloads: Offloads,
    ) -> std::result::Result<(usize, Option<u64>), QueueError> {
        let shaper = &self.control.shaper;
        let mut shaper = shaper.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = self.line.lock();
        if shaper.is_limited() || line.is_limited() {
            let now_ns = monotonic_ns();
            shaper.refill(now_ns);
            line.refill(now_ns);
        }
        let max_frame_bytes = offloads.packet_bytes(self.mtu) + ETHERNET_BYTES + VLAN_BYTES;
        for (taken, chain) in chains.iter_mut().enumerate() {
            let Some(head) = tx.pop(&mut chain.buffers)? else {
                line.leave(self.ticket);
                return Ok((taken, None));
            };
            chain.head = head;
            let frame_bytes = chain.buffers.readable_bytes().saturating_sub(HEADER_BYTES);
            if frame_bytes < ETHERNET_BYTES || frame_bytes > max_frame_bytes {
                NetMetrics::add(&self.metrics.tx_bad_length, 1);
                chain.bytes = 0;
                continue;
            }
            chain.front = read_front(&chain.buffers.readable);
            let Some(told) = offloads.header(&chain.front) else {
                NetMetrics::add(&self.metrics.tx_bad_header, 1);
                chain.bytes = 0;
                continue;
            };
            chain.front[..HEADER_BYTES].copy_from_slice(&told);
            let cost = cost(&told, frame_bytes as u64);
            let wait_ns = match shaper.wait_ns(cost) {
                0 => line.wait_ns(self.ticket, cost),
                wait_ns => {
                    line.leave(self.ticket);
                    wait_ns
                }
            };
            if wait_ns > 0 {
                tx.undo_pop();
                return Ok((taken, Some(wait_ns)));
            }
            shaper.spend(cost);
            line.spend(self.ticket, cost);
            chain.bytes = frame_bytes;
            skip(&mut chain.buffers.readable, FRONT_BYTES);
            chain.buffers.readable.insert(
                0,
                libc::iovec {
                    iov_base: chain.front.as_ptr().cast_mut().cast(),
                    iov_len: FRONT_BYTES,
                },
            );
        }
        Ok((chains.len(), None))
    }

    /// Sends the frames that are fit for it. One that the tap does not take is lost, as on
    /// any wire.
    fn write(&self, chains: &[Chain]) {
        let going = || chains.iter().filter(|chain| chain.bytes > 0);
        if going().next().is_none() {
            return;
        }
        let mut results = [0; BATCH];
        let frames = going().map(|chain| chain.buffers.readable.as_slice());
        NetMetrics::add(&self.metrics.batches, 1);
        if let Err(error) = self.place.batch(Way::Write, frames, &mut results) {
            tracing::debug!(%error, "the tap's ring failed");
        }
        for (chain, result) in going().zip(results) {
            if result < 0 {
                NetMetrics::add(&self.metrics.tx_errors, 1);
            } else {
                NetMetrics::add(&self.metrics.tx_frames, 1);
                NetMetrics::add(&self.metrics.tx_bytes, chain.bytes);
            }
        }
    }

    fn wake_in(&self, ns: u64) {
        const SECOND_NS: u64 = 1_000_000_000;
        let time = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(ns / SECOND_NS).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(ns % SECOND_NS).unwrap_or(0),
            },
        };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time) {
            tracing::error!(%error, "a shaped interface cannot be woken");
        }
    }
}

impl Handler for NetWorker {
    fn ready(&mut self, source: u32, _flags: EventFlags) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut guard = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let paused = guard.paused;
        let Some(active) = guard.active.as_mut().filter(|_| !paused) else {
            self.line.lock().leave(self.ticket);
            return true;
        };
        if std::mem::take(&mut active.is_new)
            && let Err(error) = self.tap.set_offloads(active.offloads.tap_flags())
        {
            tracing::error!(%error, "the tap does not take the driver's offloads");
        }
        let receive = matches!(source, SOURCE_TAP | SOURCE_RX_KICK | SOURCE_AGAIN);
        let transmit = matches!(source, SOURCE_TX_KICK | SOURCE_TIMER | SOURCE_AGAIN);
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
            Ok(true) => self.control.wake(),
            Err(error) => {
                let fault = active.fault.clone();
                guard.active = None;
                self.line.lock().leave(self.ticket);
                fault.raise(&error.to_string());
            }
        }
        true
    }
}

impl Drop for NetWorker {
    fn drop(&mut self) {
        self.line.lock().leave(self.ticket);
    }
}

/// Why a tap is refused, with the interface's id.
pub(crate) fn tap_error(id: &str, error: &std::io::Error) -> Error {
    Error::Device {
        device: id.to_owned(),
        problem: format!("its tap cannot serve: {error}"),
    }
}
