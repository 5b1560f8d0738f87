//! An honest driver against an interface with a real tap: what a burst costs, in kicks,
//! interrupts and system calls, and what limits do to it.

#[allow(dead_code, reason = "each user takes its own part of it")]
#[path = "../../../tests/common/tap.rs"]
mod tap;
mod tracer;

use super::offloads::OFFERED;
use super::tap::Tap;
use super::*;
use crate::events::EventLoop;
use crate::memory::{self, GuestRam};
use crate::virtio::{Activation, F_EVENT_IDX, F_VERSION_1, VirtioDevice};
use ocs_vmm_spec::{Net, RateLimit, Source, TransmitLimits};
use std::sync::atomic::Ordering;
use tracer::{Tracer, window};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SIZE: u16 = 64;
const BURST: u16 = 32;
const FRAME_BYTES: usize = 1000;
const WRITABLE: u16 = 2;

/// One queue from the driver's side, with EVENT_IDX (virtio 1.3 §2.7.7.2, §2.7.10).
struct Ring {
    ram: GuestRam,
    at: u64,
    next: u16,
    seen: u16,
    kick: Arc<EventFd>,
    kicks: u64,
    call: EventFd,
}

impl Ring {
    fn new(ram: &GuestRam, at: u64) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            ram: ram.clone(),
            at,
            next: 0,
            seen: 0,
            kick: Arc::new(event()),
            kicks: 0,
            call: event(),
        }
    }

    fn device_side(&self) -> VirtQueue {
        let mut queue = Queue::new(SIZE).unwrap();
        let low = |at: u64| Some(u32::try_from(at).unwrap());
        queue.set_desc_table_address(low(self.at), Some(0));
        queue.set_avail_ring_address(low(self.at + 0x1000), Some(0));
        queue.set_used_ring_address(low(self.at + 0x2000), Some(0));
        queue.set_event_idx(true);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.ram));
        let call = self.call.try_clone().unwrap();
        VirtQueue::new(queue, self.ram.clone(), Arc::clone(&self.kick), Some(call))
    }

    fn half(&self, at: u64) -> u16 {
        self.ram.read_obj(GuestAddress(self.at + at)).unwrap()
    }

    fn set_half(&self, at: u64, value: u16) {
        self.ram
            .write_obj(value, GuestAddress(self.at + at))
            .unwrap();
    }

    /// Makes a buffer with `bytes` available.
    fn add_bytes(&mut self, bytes: &[u8]) {
        let at = self.buffer(self.next % SIZE);
        self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
        self.add_len(0, bytes.len());
    }

    fn buffer(&self, index: u16) -> u64 {
        self.at + 0x10_000 + u64::from(index) * 0x1000
    }

    fn add(&mut self, flags: u16) {
        let len = if flags == WRITABLE {
            2048
        } else {
            HEADER_BYTES + FRAME_BYTES
        };
        self.add_len(flags, len);
    }

    /// Makes one buffer available, and kicks if the device asked for it.
    fn add_len(&mut self, flags: u16, len: usize) {
        let index = self.next % SIZE;
        let buffer = self.buffer(index);
        let descriptor = self.at + u64::from(index) * 16;
        self.ram
            .write_obj(buffer, GuestAddress(descriptor))
            .unwrap();
        let rest = u64::from(flags) << 32 | len as u64;
        self.ram
            .write_obj(rest, GuestAddress(descriptor + 8))
            .unwrap();
        self.set_half(0x1000 + 4 + 2 * u64::from(index), index);
        let old = self.next;
        self.next = old.wrapping_add(1);
        self.set_half(0x1002, self.next);
        let event = self.half(0x2000 + 4 + 8 * u64::from(SIZE));
        if self.next.wrapping_sub(event).wrapping_sub(1) < self.next.wrapping_sub(old) {
            self.kick.write(1).unwrap();
            self.kicks += 1;
        }
    }

    /// Takes back what was used; how many.
    fn reap(&mut self) -> u16 {
        let used = self.half(0x2002);
        let count = used.wrapping_sub(self.seen);
        self.seen = used;
        count
    }

    /// Asks for an interrupt at the next used buffer, or for none.
    fn want_interrupts(&self, wanted: bool) {
        let event = if wanted {
            self.seen
        } else {
            self.seen.wrapping_sub(1)
        };
        self.set_half(0x1000 + 4 + 2 * u64::from(SIZE), event);
    }

    fn interrupts(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }
}

struct Rig {
    events: EventLoop,
    rx: Ring,
    tx: Ring,
    host: tap::HostSide,
    metrics: Arc<NetMetrics>,
    control: Arc<NetControl>,
    _device: NetDevice,
}

/// An interface of the spec.
pub(in crate::virtio) fn interface(offloads: bool) -> Net {
    Net {
        id: "eni".to_owned(),
        tap: Source::Fd(-1),
        mac: "02:00:00:00:00:01".to_owned(),
        mtu: 1500,
        transmit: TransmitLimits::default(),
        offloads,
    }
}

fn rig(limits: &TransmitLimits) -> Rig {
    rig_with(limits, 0)
}

/// A driver that accepts `features`.
fn rig_with(limits: &TransmitLimits, features: u64) -> Rig {
    let (file, host) = tap::make();
    let ring = TapRing::new().unwrap();
    let tap = Tap::new(file).unwrap();
    let net = Net {
        transmit: *limits,
        ..interface(features & OFFERED != 0)
    };
    let (mut device, worker) = NetWorker::new(tap, &ring, &SharedLine::default(), &net).unwrap();
    let (metrics, control) = (worker.metrics(), worker.control());
    let ram = memory::create(16).unwrap();
    let (rx, tx) = (Ring::new(&ram, 0x10_0000), Ring::new(&ram, 0x40_0000));
    let events = EventLoop::new().unwrap();
    let epoll = events.epoll();
    let id = epoll.new_id();
    let kicks = [Arc::clone(&rx.kick), Arc::clone(&tx.kick)];
    worker.watch(&epoll, id, &kicks).unwrap();
    epoll.push(id, Box::new(worker));
    device
        .activate(Activation {
            ram,
            features: F_VERSION_1 | F_EVENT_IDX | features,
            queues: vec![Some(rx.device_side()), Some(tx.device_side())],
            fault: Fault::new("eni".into(), Arc::default(), None, Arc::default()),
        })
        .unwrap();
    let mut rig = Rig {
        events,
        rx,
        tx,
        host,
        metrics,
        control,
        _device: device,
    };
    for _ in 0..SIZE {
        rig.rx.add(WRITABLE);
    }
    rig.turn();
    rig
}

impl Rig {
    fn turn(&mut self) {
        assert!(self.events.turn().unwrap());
    }

    fn sent(&self) -> u64 {
        self.metrics.tx_frames.load(Ordering::Relaxed)
    }

    fn received(&self) -> u64 {
        self.metrics.rx_frames.load(Ordering::Relaxed)
    }

    /// Interrupts of transmit and receive queue, as the metrics say.
    fn counted(&self) -> [u64; 2] {
        let metrics = [&self.metrics.tx_interrupts, &self.metrics.rx_interrupts];
        metrics.map(|counter| counter.load(Ordering::Relaxed))
    }

    /// 32 frames from the guest; the system calls it took.
    fn transmit_burst(&mut self, traced: bool) {
        let before = self.sent();
        for _ in 0..BURST {
            self.tx.add(0);
        }
        window(traced, || {
            while self.sent() < before + u64::from(BURST) {
                assert!(self.events.turn().unwrap());
            }
        });
        assert_eq!(self.tx.reap(), BURST);
        self.host.drain(BURST.into());
    }

    /// 32 frames to the guest, all there before the worker looks.
    fn receive_burst(&mut self, traced: bool) {
        let before = self.received();
        let mut frame = vec![0xff; 6];
        frame.resize(FRAME_BYTES, 7);
        for _ in 0..BURST {
            self.host.send(&frame);
        }
        window(traced, || {
            while self.received() < before + u64::from(BURST) {
                assert!(self.events.turn().unwrap());
            }
        });
        for _ in 0..self.rx.reap() {
            self.rx.add(WRITABLE);
        }
    }
}

#[test]
fn a_burst_costs_few_system_calls_kicks_and_interrupts() {
    const BURSTS: u64 = 60;
    const FRAMES: u64 = BURSTS * BURST as u64;
    Tracer::run_if_asked();
    let mut tracer = Tracer::attach("a_burst_costs_few_system_calls_kicks_and_interrupts");
    let mut rig = rig(&TransmitLimits::default());
    let (tx_kicks, rx_kicks) = (rig.tx.kicks, rig.rx.kicks);
    // The host's own stack may have said something already.
    let _ = (rig.tx.interrupts(), rig.rx.interrupts());
    let before = rig.counted();

    let mut interrupts = [0; 2];
    for _ in 0..BURSTS {
        rig.tx.want_interrupts(true);
        rig.transmit_burst(true);
        interrupts[0] += rig.tx.interrupts();
    }
    let for_transmit = tracer.so_far();
    for _ in 0..BURSTS {
        rig.rx.want_interrupts(true);
        rig.receive_burst(true);
        interrupts[1] += rig.rx.interrupts();
    }
    let for_receive = tracer.finish() - for_transmit;
    let kicks = [rig.tx.kicks - tx_kicks, rig.rx.kicks - rx_kicks];
    println!(
        "system calls a frame: tx {:.3}, rx {:.3}; kicks of {FRAMES}: {kicks:?}; interrupts: {interrupts:?}",
        for_transmit as f64 / FRAMES as f64,
        for_receive as f64 / FRAMES as f64,
    );
    assert!(
        for_transmit >= 2 * BURSTS && for_receive >= 2 * BURSTS,
        "something was counted"
    );
    assert!(
        5 * for_transmit <= FRAMES,
        "{for_transmit} for {FRAMES} sent"
    );
    assert!(
        5 * for_receive <= FRAMES,
        "{for_receive} for {FRAMES} received"
    );
    for kicks in kicks {
        assert!(10 * kicks <= FRAMES, "{kicks} kicks for {FRAMES} frames");
    }
    for interrupts in interrupts {
        assert!(
            (BURSTS / 2..=2 * BURSTS).contains(&interrupts),
            "{interrupts}"
        );
    }
    let counted = rig.counted();
    assert_eq!([counted[0] - before[0], counted[1] - before[1]], interrupts);

    // The same without interrupts: none comes, and every frame moves.
    for _ in 0..BURSTS {
        rig.tx.want_interrupts(false);
        rig.transmit_burst(false);
        rig.rx.want_interrupts(false);
        rig.receive_burst(false);
    }
    assert_eq!([rig.tx.interrupts(), rig.rx.interrupts()], [0, 0]);
    assert_eq!(rig.counted(), counted);
}

#[test]
fn frames_over_the_limit_wait_in_the_queue() {
    let limits = |per_s, burst| TransmitLimits {
        packets: Some(RateLimit { per_s, burst }),
        ..TransmitLimits::default()
    };
    let mut rig = rig(&limits(1, 10));
    for _ in 0..BURST {
        rig.tx.add(0);
    }
    rig.turn();
    assert_eq!((rig.sent(), rig.tx.reap()), (10, 10), "the burst");
    assert_eq!(rig.metrics.tx_shaped.load(Ordering::Relaxed), 1);
    // More kicks move nothing.
    rig.tx.kick.write(1).unwrap();
    rig.turn();
    assert_eq!(rig.sent(), 10);
    // The timer does, at the rate; nothing else wakes the worker now.
    rig.control.limit(&limits(2000, 1));
    let start_ns = crate::cpu::monotonic_ns();
    while rig.sent() < BURST.into() {
        rig.turn();
    }
    let least_ns = 20 * 500_000;
    assert!(crate::cpu::monotonic_ns() - start_ns >= least_ns);
    assert_eq!(rig.tx.reap(), BURST - 10);
    // Without a limit all go at once.
    rig.control.limit(&TransmitLimits::default());
    rig.turn();
    rig.transmit_burst(false);
}

/// A TCP segment of 3,000 bytes that the guest leaves to us: three frames on the wire if the
/// header counts, none if the guest was not offered that.
#[test]
fn a_frame_to_be_segmented_goes_only_where_offloads_were_agreed() {
    const SEGMENT: usize = 1000;
    for (features, expected) in [(OFFERED, 1), (0, 0)] {
        let mut rig = rig_with(&TransmitLimits::default(), features);
        let packet = tcp_packet(3 * SEGMENT);
        // flags NEEDS_CSUM, gso TCPV4, header length, segment, checksum at 34 + 16.
        let mut header = vec![1, 1];
        for half in [54u16, 1000, 34, 16, 0] {
            header.extend_from_slice(&half.to_le_bytes());
        }
        let frame = [header, packet].concat();
        rig.tx.add_bytes(&frame);
        rig.turn();
        assert_eq!(rig.tx.reap(), 1);
        assert_eq!(rig.sent(), expected);
        let refused = rig.metrics.tx_bad_length.load(Ordering::Relaxed);
        assert_eq!(refused, 1 - expected);
        if expected > 0 {
            let got = rig.host.receive("the frame", |frame| {
                (frame.get(12..14)? == [8, 0] && frame.get(23)? == &6).then_some(frame.len())
            });
            assert_eq!(
                got,
                54 + 3 * SEGMENT,
                "the host's stack sees it whole, as a guest would"
            );
        }
    }
}

fn tcp_packet(payload: usize) -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend_from_slice(&[2, 0, 0, 0, 0, 1, 8, 0]);
    let len = u16::try_from(40 + payload).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&len.to_be_bytes());
    ip.extend_from_slice(&[0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend_from_slice(&ip);
    let tcp = [
        0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ];
    packet.extend_from_slice(&tcp);
    packet.resize(14 + 40 + payload, 7);
    packet
}
