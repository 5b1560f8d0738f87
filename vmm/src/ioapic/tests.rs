use super::*;
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_lapic_state};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use proptest::prelude::*;
use std::time::{Duration, Instant};

const PINS: u8 = 6;
const VECTOR: u32 = 0x31;
/// Of the local APIC: spurious interrupts, with the bit that enables it; requested ones.
const SPURIOUS: usize = 0xf0;
const REQUESTED: usize = 0x200;

fn vm() -> Arc<VmFd> {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let local_apics = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    vm.enable_cap(&local_apics).unwrap();
    Arc::new(vm)
}

fn ioapic(vm: &Arc<VmFd>) -> Ioapic {
    let ioapic = Ioapic::new(Arc::new(Irqs::new(Arc::clone(vm))));
    ioapic.line(PINS - 1).unwrap();
    ioapic
}

impl Ioapic {
    fn set(&self, register: u8, value: u32) {
        self.write(SELECT, &u32::from(register).to_le_bytes());
        self.write(WINDOW, &value.to_le_bytes());
    }

    fn get(&self, register: u8) -> u32 {
        self.write(SELECT, &[register]);
        let mut word = [0; 4];
        self.read(WINDOW, &mut word);
        u32::from_le_bytes(word)
    }
}

/// A processor whose local APIC takes interrupts.
fn vcpu(vm: &VmFd) -> VcpuFd {
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut apic = vcpu.get_lapic().unwrap();
    apic.regs[SPURIOUS + 1] = 1;
    vcpu.set_lapic(&apic).unwrap();
    vcpu
}

/// Was it asked for this vector?
fn requested(apic: &kvm_lapic_state, vector: u32) -> bool {
    let at = REQUESTED + 0x10 * (vector as usize / 32) + (vector as usize % 32) / 8;
    apic.regs[at].cast_unsigned() & 1 << (vector % 8) != 0
}

fn comes(vcpu: &VcpuFd, vector: u32) {
    let end = Instant::now() + Duration::from_secs(20);
    while !requested(&vcpu.get_lapic().unwrap(), vector) {
        assert!(Instant::now() < end, "no interrupt {vector:#x}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_line_interrupts_by_the_entry_of_its_pin() {
    let vm = vm();
    let (ioapic, vcpu) = (ioapic(&vm), vcpu(&vm));
    let line = ioapic.line(5).unwrap();
    // Masked: kept until it no longer is.
    line.write(1).unwrap();
    assert!(!requested(&vcpu.get_lapic().unwrap(), VECTOR));
    ioapic.set(FIRST_ENTRY + 10, VECTOR);
    comes(&vcpu, VECTOR);
    // Another vector, and another event on the same pin.
    let other = new_event().unwrap();
    ioapic.set(FIRST_ENTRY + 10, VECTOR | 1 << 16);
    ioapic.connect(5, share(&other).unwrap());
    ioapic.set(FIRST_ENTRY + 10, VECTOR + 1);
    other.write(1).unwrap();
    comes(&vcpu, VECTOR + 1);
    // Once more masked, and elsewhere: nothing comes of that.
    ioapic.set(FIRST_ENTRY + 10, (VECTOR + 2) | 1 << 16);
    line.write(1).unwrap();
    let pin = &ioapic.lock().pins[5];
    assert_eq!((pin.attached, pin.events.len()), (0, 3));
    assert!(!requested(&vcpu.get_lapic().unwrap(), VECTOR + 2));
}

#[test]
fn a_line_that_kvm_refuses_leaves_the_others_of_its_pin_as_they_are() {
    let vm = vm();
    let (ioapic, vcpu) = (ioapic(&vm), vcpu(&vm));
    let line = ioapic.line(5).unwrap();
    // KVM listens to an eventfd once: EBUSY.
    ioapic.connect(5, share(&line).unwrap());
    for masked in [0, 1 << 16, 0] {
        ioapic.set(FIRST_ENTRY + 10, VECTOR | masked);
        // That of PINS - 1 is the first, this line the second; none while masked.
        let attached = ioapic.lock().pins[5].attached;
        assert_eq!(attached, if masked == 0 { 2 } else { 0 });
    }
    line.write(1).unwrap();
    comes(&vcpu, VECTOR);
}

#[test]
fn registers_are_those_of_the_data_sheet() {
    let ioapic = ioapic(&vm());
    assert_eq!(ioapic.get(VERSION), 0x11 | u32::from(PINS - 1) << 16);
    ioapic.set(ID, u32::MAX);
    assert_eq!(
        (ioapic.get(ID), ioapic.get(ARBITRATION)),
        (0x0f00_0000, 0x0f00_0000)
    );
    assert_eq!(ioapic.get(FIRST_ENTRY), 1 << 16, "masked at first");
    // Delivery status and remote IRR are not the guest's, nor is what is reserved.
    ioapic.set(FIRST_ENTRY, u32::MAX);
    ioapic.set(FIRST_ENTRY + 1, u32::MAX);
    assert_eq!(ioapic.get(FIRST_ENTRY), 0x1_afff);
    assert_eq!(ioapic.get(FIRST_ENTRY + 1), 0xff00_0000);
    // There is nothing behind the last pin.
    let behind = FIRST_ENTRY + 2 * PINS;
    ioapic.set(behind, 0);
    assert_eq!(ioapic.get(behind), 0);
    let message = Pin {
        entry: 0x0300_0000_0000_0b42,
        gsi: Gsi(0),
        events: Vec::new(),
        attached: 0,
    }
    .message();
    assert_eq!((message.address, message.data), (0xfee0_3004, 0x342));
}

#[test]
fn entries_round_trip_and_a_line_works_behind_them() {
    let (used, fresh_vm) = (ioapic(&vm()), vm());
    let (fresh, vcpu) = (ioapic(&fresh_vm), vcpu(&fresh_vm));
    used.set(FIRST_ENTRY + 8, VECTOR);
    used.set(ID, 0x0100_0000);
    let line = fresh.line(4).unwrap();
    crate::lifecycle::assert_round_trip(&used, &fresh);
    line.write(1).unwrap();
    comes(&vcpu, VECTOR);
    let refusal = Ioapic::new(Arc::clone(&fresh.irqs))
        .load(&used.save().unwrap())
        .unwrap_err();
    assert!(refusal.contains("6 pins"), "{refusal}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 32, ..ProptestConfig::default() })]

    /// Whatever a guest writes: what it reads is what may be set.
    #[test]
    fn fuzz_hostile_registers(
        accesses in proptest::collection::vec((0..0x40u64, proptest::collection::vec(any::<u8>(), 1..9)), 0..64),
    ) {
        let ioapic = ioapic(&vm());
        let _line = ioapic.line(0).unwrap();
        for (offset, bytes) in accesses {
            ioapic.write(offset & !0xf, &bytes);
            ioapic.read(offset, &mut vec![0; bytes.len()]);
        }
        for register in 0..PINS {
            prop_assert_eq!(ioapic.get(FIRST_ENTRY + 2 * register) & !0x1_afff, 0);
        }
    }
}
