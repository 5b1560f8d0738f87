//! What KVM keeps for the machine as a whole: interrupt controllers and the paravirtual clock.

use crate::lifecycle::Lifecycle;
use crate::persist::State;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const IRQCHIP_VERSION: u16 = 1;
const CLOCK_VERSION: u16 = 1;

/// The IOAPIC, and the PICs that KVM makes with it though no guest is told of them.
pub struct IrqChips(pub Arc<VmFd>);

#[derive(Serialize, Deserialize)]
struct ChipsState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
}

impl IrqChips {
    fn get(&self, chip_id: u32) -> Result<kvm_irqchip, String> {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        self.0
            .get_irqchip(&mut chip)
            .map_err(|e| format!("cannot be read: {e}"))?;
        Ok(chip)
    }
}

impl Lifecycle for IrqChips {
    fn save(&self) -> Result<State, String> {
        let state = ChipsState {
            pic_master: self.get(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: self.get(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: self.get(KVM_IRQCHIP_IOAPIC)?,
        };
        State::encode(IRQCHIP_VERSION, &state)
    }

    fn load(&self, state: &State) -> Result<(), String> {
        let state: ChipsState = state.decode(IRQCHIP_VERSION)?;
        for (mut chip, chip_id) in [
            (state.pic_master, KVM_IRQCHIP_PIC_MASTER),
            (state.pic_slave, KVM_IRQCHIP_PIC_SLAVE),
            (state.ioapic, KVM_IRQCHIP_IOAPIC),
        ] {
            chip.chip_id = chip_id;
            self.0
                .set_irqchip(&chip)
                .map_err(|e| format!("cannot be set: {e}"))?;
        }
        Ok(())
    }
}

/// kvm-clock. A guest that is loaded finds that no time has passed; its wall clock is its own
/// to set, from the RTC or the network.
pub struct Clock(pub Arc<VmFd>);

impl Lifecycle for Clock {
    fn save(&self) -> Result<State, String> {
        let clock = self
            .0
            .get_clock()
            .map_err(|e| format!("cannot be read: {e}"))?;
        State::encode(CLOCK_VERSION, &clock.clock)
    }

    fn load(&self, state: &State) -> Result<(), String> {
        let clock = kvm_clock_data {
            clock: state.decode(CLOCK_VERSION)?,
            ..Default::default()
        };
        self.0
            .set_clock(&clock)
            .map_err(|e| format!("cannot be set: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;

    fn vm() -> Arc<VmFd> {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        Arc::new(vm)
    }

    #[test]
    fn interrupt_controllers_round_trip() {
        let (used, fresh) = (IrqChips(vm()), IrqChips(vm()));
        let mut chip = used.get(KVM_IRQCHIP_IOAPIC).unwrap();
        // SAFETY: `get` asked for the IOAPIC, for which KVM fills this member.
        let ioapic = unsafe { &mut chip.chip.ioapic };
        ioapic.redirtbl[5].bits = 0x31;
        used.0.set_irqchip(&chip).unwrap();
        crate::lifecycle::assert_round_trip(&used, &fresh);
    }

    #[test]
    fn the_clock_goes_on_where_it_stood() {
        let (used, fresh) = (Clock(vm()), Clock(vm()));
        const HOUR_NS: u64 = 3_600_000_000_000;
        let later = State::encode(CLOCK_VERSION, &HOUR_NS).unwrap();
        used.load(&later).unwrap();
        let saved = used.save().unwrap();
        fresh.load(&saved).unwrap();
        let read = |state: &State| state.decode::<u64>(CLOCK_VERSION).unwrap();
        let now = read(&fresh.save().unwrap());
        assert!(now >= read(&saved) && now < 2 * HOUR_NS, "{now}");
    }
}
