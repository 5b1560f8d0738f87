//! An honest driver, then a hostile one, against an interface on MMIO.

use super::*;
use crate::irq::Irqs;
use crate::memory::{self, GuestRam};
use crate::virtio::changes::Changes;
use crate::virtio::net::tap::Tap;
use crate::virtio::net::{self, NetWorker, TapRing};
use kvm_ioctls::Kvm;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const AT: u64 = layout::VIRTIO_MMIO;

struct Machine {
    bus: MmioBus,
    function: Arc<VirtioPci>,
    _ioapic: Ioapic,
    _worker: NetWorker,
    _ram: GuestRam,
}

fn machine() -> Machine {
    let tap = std::thread::spawn(|| {
        // SAFETY: unshares the network namespace of this thread, which ends below.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(unshared, 0, "needs root");
        Tap::new(Tap::open(std::path::Path::new("tap0")).unwrap()).unwrap()
    })
    .join()
    .unwrap();
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let irqs = Arc::new(Irqs::new(Arc::clone(&vm)));
    let ram = memory::create(16).unwrap();
    let ring = TapRing::new().unwrap();
    let line = net::SharedLine::default();
    let (device, worker) =
        NetWorker::new(tap, &ring, &line, &net::tests::interface(false)).unwrap();
    let device = Box::new(device);
    let changes = Arc::new(Changes::new().unwrap());
    let function = VirtioPci::new(
        "eni",
        device,
        None,
        ram.clone(),
        Arc::clone(&vm),
        Arc::clone(&irqs),
        changes,
    )
    .unwrap();
    let function = Arc::new(function);
    let slot = Slot::all().next().unwrap();
    let bus = MmioBus::default();
    let ioapic = Ioapic::new(irqs);
    bus.insert(VirtioMmio::new(Arc::clone(&function), slot, &ioapic).unwrap());
    // As a driver's kernel sets its pin up.
    let (_, pin) = place(slot).unwrap();
    ioapic.write(0, &[0x10 + 2 * pin]);
    ioapic.write(0x10, &0x31u32.to_le_bytes());
    Machine {
        bus,
        function,
        _ioapic: ioapic,
        _worker: worker,
        _ram: ram,
    }
}

impl Machine {
    fn read(&self, offset: u64) -> u32 {
        let mut word = [0xff; 4];
        assert!(self.bus.read(AT + offset, &mut word));
        u32::from_le_bytes(word)
    }

    fn write(&self, offset: u64, value: u32) {
        assert!(self.bus.write(AT + offset, &value.to_le_bytes()));
    }

    /// As Linux's `virtio_mmio` does it.
    fn init(&self) {
        self.write(0x70, 0);
        assert_eq!(self.read(0x70), 0);
        self.write(0x70, 3);
        self.write(0x14, 1);
        assert_eq!(self.read(0x10) & 1, 1, "VERSION_1 is offered");
        self.write(0x24, 1);
        self.write(0x20, 1);
        self.write(0x70, 0xb);
        for queue in 0..2 {
            self.write(0x30, queue);
            assert_eq!(self.read(0x44), 0);
            assert_eq!(self.read(0x34), 256);
            self.write(0x38, 8);
            let at = 0x1000 + queue * 0x3000;
            for (register, address) in [(0x80, at), (0x90, at + 0x1000), (0xa0, at + 0x2000)] {
                self.write(register, address);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
            assert_eq!(self.read(0x44), 1);
        }
        self.write(0x70, 0xf);
    }
}

#[test]
fn a_driver_finds_sets_up_and_resets_the_device() {
    let machine = machine();
    assert_eq!(machine.read(0x00), MAGIC);
    assert_eq!([machine.read(0x04), machine.read(0x08)], [2, 1]);
    assert_eq!(machine.read(0xb0), u32::MAX);
    for _ in 0..2 {
        machine.init();
        assert_eq!(machine.read(0x70), 0xf);
        assert!(machine.function.driven_with().is_some());
        assert_eq!(machine.read(INTERRUPT_STATUS), 1);
    }
    // MAC and MTU.
    let mut mac = [0; 1];
    assert!(machine.bus.read(AT + CONFIG + 5, &mut mac));
    assert_eq!(mac, [1]);
    // A notification that KVM did not catch arrives all the same.
    let kick = &machine.function.kicks()[1];
    let _ = kick.read();
    machine.write(QUEUE_NOTIFY, 1);
    assert_eq!(kick.read().unwrap(), 1);
    machine.write(QUEUE_NOTIFY, u32::MAX);
    assert!(!machine.bus.read(AT + WINDOW, &mut mac));
    assert!(!machine.bus.read(AT - 1, &mut mac));
    machine.write(0x70, 0);
    assert!(machine.function.driven_with().is_none());
}

#[test]
fn a_changed_configuration_is_told_until_the_driver_heard_it() {
    let machine = machine();
    machine.init();
    let events = machine.function.vector_events().unwrap();
    assert_eq!(machine.read(INTERRUPT_STATUS), 1);
    machine.function.announce_config();
    assert_eq!(machine.read(INTERRUPT_STATUS), 3);
    // Nothing but the irqfd of the pin takes it off, and that one did.
    assert!(events[0].read().is_err());
    machine.write(INTERRUPT_ACK, 1);
    assert_eq!(machine.read(INTERRUPT_STATUS), 3);
    machine.write(INTERRUPT_ACK, 3);
    assert_eq!(machine.read(INTERRUPT_STATUS), 1);
}

#[test]
fn a_driven_device_round_trips() {
    let (used, fresh) = (machine(), machine());
    used.init();
    crate::lifecycle::assert_round_trip(used.function.as_ref(), fresh.function.as_ref());
    assert!(fresh.function.driven_with().is_some());
    assert_eq!(fresh.read(0x70), 0xf);
    fresh.write(0x30, 1);
    assert_eq!(fresh.read(0x44), 1);
    // What was on its way when it was saved is said again.
    assert_eq!(fresh.read(INTERRUPT_STATUS), 3);
}

#[test]
fn places_end_with_the_pins() {
    let places: Vec<_> = Slot::all().filter_map(place).collect();
    assert_eq!(places.len(), 8);
    assert_eq!(places.first(), Some(&(AT, 6)));
    assert_eq!(places.last(), Some(&(AT + 7 * WINDOW, 13)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

    /// Whatever registers a driver touches, an honest one succeeds after it.
    #[test]
    fn fuzz_hostile_registers(
        ops in proptest::collection::vec((0..0x200u64, any::<u32>(), 0..6usize, any::<bool>()), 1..200),
    ) {
        let machine = machine();
        for (offset, value, len, write) in ops {
            let aligned = if len > 0 { offset & !3 } else { offset };
            let mut bytes = [value.to_le_bytes(), [0; 4]].concat();
            let len = [1, 4, 4, 4, 2, 8][len];
            if write {
                machine.bus.write(AT + aligned, &bytes[..len]);
            } else {
                machine.bus.read(AT + aligned, &mut bytes[..len]);
            }
        }
        machine._ram.write_slice(&[0; 0x8000], GuestAddress(0)).unwrap();
        machine.init();
        prop_assert_eq!(machine.read(0x70), 0xf);
    }
}
