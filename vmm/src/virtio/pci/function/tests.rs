//! A hostile driver against a whole network interface: registers, rings, worker.

use super::*;
use crate::events::Handler;
use crate::lifecycle::Lifecycle;
use crate::memory;
use crate::virtio::F_VERSION_1;
use crate::virtio::net::tap::Tap;
use crate::virtio::net::{self, NetMetrics, NetWorker, SharedLine, TapRing};
use kvm_ioctls::Kvm;
use ocs_vmm_spec::Net;
use ocs_vmm_spec::control::NET_OFFLOADS;
use proptest::prelude::*;
use rustix::event::epoll::EventFlags;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress};

const RAM_MIB: u64 = 16;
/// Rings and tables of both queues lie below this.
const RINGS_END: u64 = 0x8000;
const STATUS: u64 = 0x14;
const QUEUE_SIZE: u16 = 8;

struct Interface {
    function: VirtioPci,
    worker: NetWorker,
    metrics: Arc<NetMetrics>,
    ram: GuestRam,
}

#[derive(Clone, Debug)]
enum Op {
    Init,
    Memory { at: u64, bytes: Vec<u8> },
    Bar { offset: u64, bytes: Vec<u8> },
    BarRead { offset: u64, len: usize },
    Config { offset: usize, bytes: Vec<u8> },
    ConfigRead { offset: usize, len: usize },
    Work { source: u32 },
}

fn interface() -> Interface {
    interface_with([2, 0, 0, 0, 0, 1])
}

fn interface_with(mac: [u8; 6]) -> Interface {
    interface_of(mac, false)
}

fn interface_of(mac: [u8; 6], offloads: bool) -> Interface {
    let tap = std::thread::spawn(|| {
        // SAFETY: unshares the network namespace of this thread, which ends below.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(unshared, 0, "needs root");
        Tap::new(Tap::open(Path::new("tap0")).unwrap()).unwrap()
    })
    .join()
    .unwrap();
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let irqs = Arc::new(Irqs::new(Arc::clone(&vm)));
    let ram = memory::create(RAM_MIB).unwrap();
    let ring = TapRing::new().unwrap();
    let [a, b, c, d, e, f] = mac;
    let net = Net {
        mac: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        ..net::tests::interface(offloads)
    };
    let (device, worker) = NetWorker::new(tap, &ring, &SharedLine::default(), &net).unwrap();
    let metrics = worker.metrics();
    let base = 0xc000_0000;
    let changes = Arc::new(Changes::new().unwrap());
    let device = Box::new(device);
    let function =
        VirtioPci::new("eni", device, Some(base), ram.clone(), vm, irqs, changes).unwrap();
    Interface {
        function,
        worker,
        metrics,
        ram,
    }
}

impl Interface {
    fn common(&self, offset: u64, bytes: &[u8]) {
        self.function.bar_write(COMMON + offset, bytes);
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.function.bar_read(COMMON + STATUS, &mut status);
        status[0]
    }

    /// What an honest driver does; rings at fixed places.
    fn init(&self) {
        self.common(STATUS, &[0]);
        self.common(STATUS, &[3]);
        self.init_without_reset();
    }

    /// The rest of it, with the features of the low half that are set.
    fn init_without_reset(&self) {
        self.common(0x08, &1u32.to_le_bytes());
        self.common(0x0c, &1u32.to_le_bytes());
        self.common(STATUS, &[0xb]);
        for queue in 0..2u16 {
            let at = 0x1000 + u64::from(queue) * 0x3000;
            self.common(0x16, &queue.to_le_bytes());
            self.common(0x18, &QUEUE_SIZE.to_le_bytes());
            self.common(0x20, &at.to_le_bytes());
            self.common(0x28, &(at + 0x1000).to_le_bytes());
            self.common(0x30, &(at + 0x2000).to_le_bytes());
            self.common(0x1c, &1u16.to_le_bytes());
        }
        self.common(STATUS, &[0xf]);
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Init => self.init(),
            Op::Memory { at, bytes } => self.ram.write_slice(&bytes, GuestAddress(at)).unwrap(),
            Op::Bar { offset, bytes } => self.function.bar_write(offset, &bytes),
            Op::BarRead { offset, len } => self.function.bar_read(offset, &mut vec![0; len]),
            Op::Config { offset, bytes } => self.function.config_write(offset, &bytes),
            Op::ConfigRead { offset, len } => {
                self.function.config_read(offset, &mut vec![0; len]);
            }
            Op::Work { source } => {
                let both = EventFlags::IN | EventFlags::OUT;
                assert!(self.worker.ready(source, both), "the worker ended the loop");
            }
        }
    }
}

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1usize), Just(2), Just(4), Just(8)]
}

fn word() -> impl Strategy<Value = Vec<u8>> {
    (
        width(),
        prop_oneof![any::<u64>(), 0..16u64, Just(u64::MAX), 0..RINGS_END],
    )
        .prop_map(|(width, value)| value.to_le_bytes()[..width].to_vec())
}

fn bar_offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..0x40u64,
        1 => 0..BAR_BYTES,
        2 => (0..8u64, 0..64u64).prop_map(|(page, within)| page * PAGE + within),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::Init),
        6 => (0..RINGS_END, proptest::collection::vec(
                prop_oneof![Just(0u8), Just(1), Just(4), any::<u8>()], 1..32))
            .prop_map(|(at, bytes)| Op::Memory { at, bytes }),
        3 => (bar_offset(), word()).prop_map(|(offset, bytes)| Op::Bar { offset, bytes }),
        1 => (bar_offset(), width()).prop_map(|(offset, len)| Op::BarRead { offset, len }),
        2 => (0..512usize, word()).prop_map(|(offset, bytes)| Op::Config { offset, bytes }),
        1 => (0..512usize, width()).prop_map(|(offset, len)| Op::ConfigRead { offset, len }),
        5 => (0..5u32).prop_map(|source| Op::Work { source }),
    ]
}

/// Each case makes a VM and a tap, so there are few unless asked for.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(), ..ProptestConfig::default() })]

    /// Whatever a driver does, the process goes on, and an honest driver that comes
    /// after a reset gets its frame out.
    #[test]
    fn fuzz_hostile_driver(ops in proptest::collection::vec(op(), 1..80)) {
        let mut interface = interface();
        for op in ops {
            interface.apply(op);
        }
        let zeros = vec![0; usize::try_from(RINGS_END).unwrap()];
        interface.ram.write_slice(&zeros, GuestAddress(0)).unwrap();
        interface.init();
        prop_assert_eq!(interface.status(), 0xf);
        // One frame of 60 bytes behind a header of 12, in the transmit queue.
        let descriptor = [0x10_0000u64.to_le_bytes(), 72u64.to_le_bytes()].concat();
        interface.ram.write_slice(&descriptor, GuestAddress(0x4000)).unwrap();
        interface.ram.write_obj(1u16, GuestAddress(0x5002)).unwrap();
        let sent = |m: &NetMetrics| {
            m.tx_frames.load(Ordering::Relaxed) + m.tx_errors.load(Ordering::Relaxed)
        };
        let before = sent(&interface.metrics);
        interface.apply(Op::Work { source: 2 });
        prop_assert_eq!(sent(&interface.metrics), before + 1);
        prop_assert_eq!(interface.status(), 0xf);
    }
}

/// A transmit queue with one frame of 60 bytes behind a header of 12, number `index`.
fn offer_frame(ram: &GuestRam, index: u16) {
    let descriptor = [0x10_0000u64.to_le_bytes(), 72u64.to_le_bytes()].concat();
    ram.write_slice(&descriptor, GuestAddress(0x4000)).unwrap();
    ram.write_obj(index, GuestAddress(0x5002)).unwrap();
}

/// An interface whose driver has set up everything that a snapshot keeps.
fn busy() -> Interface {
    let mut interface = interface();
    interface.init();
    offer_frame(&interface.ram, 1);
    interface.apply(Op::Work { source: 2 });
    for (offset, word) in [(0u64, 0xfee0_0000u32), (8, 0x41), (12, 0)] {
        let at = MSIX_TABLE + 16 + offset;
        interface.function.bar_write(at, &word.to_le_bytes());
    }
    let msix = interface.function.lock().capabilities.msix;
    interface.function.config_write(msix + 2, &[0, 0x80]);
    interface.function.config_write(4, &[6, 4]);
    interface
}

#[test]
fn a_function_round_trips() {
    crate::lifecycle::assert_round_trip(&busy().function, &interface().function);
}

#[test]
fn a_loaded_interface_goes_on_where_the_saved_one_stood() {
    let used = busy();
    let lengths = |i: &Interface| {
        let m = &i.metrics;
        m.tx_frames.load(Ordering::Relaxed) + m.tx_errors.load(Ordering::Relaxed)
    };
    assert_eq!(lengths(&used), 1);
    used.function.pause().unwrap();
    let state = used.function.save().unwrap();

    let mut clone = interface_with([2, 0, 0, 0, 0, 2]);
    let mut memory = vec![0; usize::try_from(RINGS_END).unwrap()];
    used.ram.read_slice(&mut memory, GuestAddress(0)).unwrap();
    clone.ram.write_slice(&memory, GuestAddress(0)).unwrap();
    clone.function.load(&state).unwrap();
    assert_eq!(clone.status(), 0xf);
    offer_frame(&clone.ram, 2);
    clone.apply(Op::Work { source: 2 });
    assert_eq!(lengths(&clone), 0, "a paused interface sent a frame");
    clone.function.resume();
    clone.apply(Op::Work { source: 2 });
    assert_eq!(
        lengths(&clone),
        1,
        "the second frame, and not the first again"
    );

    // The clone's own address shows, and the driver can tell that something changed.
    let mut mac = [0; 6];
    clone.function.bar_read(DEVICE, &mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 2]);
    let mut generation = [0];
    clone.function.bar_read(COMMON + 0x15, &mut generation);
    assert_eq!(generation, [1]);
}

#[test]
fn a_broken_ring_stops_the_device_until_reset() {
    let mut interface = interface();
    interface.init();
    assert_eq!(interface.status(), 0xf);
    // The transmit queue's available index runs far ahead.
    interface
        .ram
        .write_obj(1000u16, GuestAddress(0x5002))
        .unwrap();
    interface.apply(Op::Work { source: 2 });
    assert_eq!(interface.status() & STATUS_NEEDS_RESET, STATUS_NEEDS_RESET);
    assert_eq!(interface.function.metrics.faults.load(Ordering::Relaxed), 1);
    // Further kicks do nothing; a reset mends it.
    interface.apply(Op::Work { source: 2 });
    assert_eq!(interface.function.metrics.faults.load(Ordering::Relaxed), 1);
    interface.ram.write_obj(0u16, GuestAddress(0x5002)).unwrap();
    interface.init();
    assert_eq!(interface.status(), 0xf);
}

#[test]
fn queues_outside_memory_are_refused() {
    let interface = interface();
    interface.init();
    interface.common(STATUS, &[0]);
    assert_eq!(interface.status(), 0);
    interface.common(0x08, &1u32.to_le_bytes());
    interface.common(0x0c, &1u32.to_le_bytes());
    interface.common(STATUS, &[0xb]);
    for queue in 0..2u16 {
        interface.common(0x16, &queue.to_le_bytes());
        interface.common(0x20, &(RAM_MIB << 20).to_le_bytes());
        interface.common(0x1c, &1u16.to_le_bytes());
    }
    interface.common(STATUS, &[0xf]);
    assert_eq!(interface.status() & STATUS_NEEDS_RESET, STATUS_NEEDS_RESET);
}

impl Interface {
    /// The low half of what is offered.
    fn offered(&self) -> u64 {
        self.common(0x00, &0u32.to_le_bytes());
        let mut half = [0; 4];
        self.function.bar_read(COMMON + 0x04, &mut half);
        u32::from_le_bytes(half).into()
    }

    /// Negotiates with these features of the low half.
    fn negotiate(&self, features: u64) {
        self.common(STATUS, &[0]);
        self.common(STATUS, &[3]);
        self.common(0x08, &0u32.to_le_bytes());
        self.common(0x0c, &u32::try_from(features).unwrap().to_le_bytes());
        self.init_without_reset();
    }
}

#[test]
fn offloads_that_a_driver_declined_are_withdrawn_and_those_in_use_are_not() {
    let interface = interface_of([2, 0, 0, 0, 0, 1], true);
    let changes = Arc::clone(&interface.function.changes);
    let offloads = interface.offered() & NET_OFFLOADS;
    assert_eq!(offloads, NET_OFFLOADS);
    assert!(!interface.function.withdraw(NET_OFFLOADS), "nobody chose");

    interface.negotiate(1);
    assert_eq!(changes.count(), 1);
    assert_eq!(interface.function.driven_with(), Some(F_VERSION_1 | 1));
    assert!(!interface.function.withdraw(NET_OFFLOADS), "one is in use");
    assert_eq!(interface.offered() & NET_OFFLOADS, NET_OFFLOADS);

    interface.negotiate(0);
    assert_eq!(changes.count(), 3, "one driver went, one came");
    assert!(interface.function.withdraw(NET_OFFLOADS));
    assert_eq!(interface.offered() & NET_OFFLOADS, 0);
    assert!(interface.function.withdraw(NET_OFFLOADS), "as before");

    // Whoever comes later cannot have them either, though it asks for them unseen.
    interface.negotiate(1);
    assert_eq!(interface.status() & 8, 0, "FEATURES_OK");
    assert_eq!(interface.function.driven_with(), None);
}
