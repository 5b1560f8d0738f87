//! What KVM keeps for the machine as a whole: the paravirtual clock.

use crate::lifecycle::Lifecycle;
use crate::persist::State;
use kvm_bindings::kvm_clock_data;
use kvm_ioctls::VmFd;
use std::sync::Arc;

const CLOCK_VERSION: u16 = 1;

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
        Arc::new(Kvm::new().unwrap().create_vm().unwrap())
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
