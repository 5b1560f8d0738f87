//! A vCPU in a snapshot: every register that KVM tells, in the order it must be told.
//!
//! ```text
//!  CPUID ─▶ general, system ─▶ XCR0, XSAVE ─▶ debug ─▶ local APIC ─▶ MSRs (TSC first,
//!                                             TSC deadline last) ─▶ MP state ─▶ events
//! ```
//! What depends on what: CPUID decides which MSRs and XSAVE components exist; the TSC
//! deadline is armed only where the local APIC's timer is in that mode, and against the TSC.

use super::Vcpu;
use crate::lifecycle::Lifecycle;
use crate::persist::State;
use kvm_bindings::{
    CpuId, MsrList, Msrs, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, VcpuFd};
use serde::{Deserialize, Serialize};

const STATE_VERSION: u16 = 1;
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The XSAVE area that `struct kvm_xsave` has room for.
const XSAVE_BYTES: usize = size_of::<kvm_xsave>();
/// AMX makes it 11 KiB; no known CPU needs more.
const MAX_XSAVE_BYTES: usize = 64 << 10;

/// Registers of the local APIC (Intel SDM vol. 3 table 11-1).
const APIC_LVT_TIMER: usize = 0x320;
const APIC_TMICT: usize = 0x380;
const APIC_TMCCT: usize = 0x390;
const LVT_MASKED: u32 = 1 << 16;
/// 0 is one-shot.
const LVT_TIMER_MODE: u32 = 3 << 17;

#[derive(Serialize, Deserialize)]
struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: Vec<u32>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    mp: kvm_mp_state,
    events: kvm_vcpu_events,
}

impl Lifecycle for Vcpu {
    fn pause(&self) -> Result<(), String> {
        // Tells a guest with kvm-clock that it was stopped, lest its watchdogs bark; one without
        // it is no error.
        let _ = self.lock().kvmclock_ctrl();
        Ok(())
    }

    fn save(&self) -> Result<State, String> {
        let vcpu = self.lock();
        let cpuid = vcpu
            .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("CPUID"))?;
        let state = VcpuState {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            // MP state first: reading it lets KVM settle a pending INIT.
            mp: vcpu.get_mp_state().map_err(failed("the MP state"))?,
            regs: vcpu.get_regs().map_err(failed("registers"))?,
            sregs: vcpu.get_sregs().map_err(failed("system registers"))?,
            xcrs: vcpu.get_xcrs().map_err(failed("XCR0"))?,
            xsave: self.get_xsave(&vcpu)?,
            debug: vcpu.get_debug_regs().map_err(failed("debug registers"))?,
            lapic: lapic_of(&vcpu)?,
            msrs: self.get_msrs(&vcpu)?,
            events: vcpu.get_vcpu_events().map_err(failed("pending events"))?,
        };
        State::encode(STATE_VERSION, &state)
    }

    fn load(&self, state: &State) -> Result<(), String> {
        let state: VcpuState = state.decode(STATE_VERSION)?;
        let vcpu = self.lock();
        super::cpuid::check(&self.kvm, &vcpu, &state.cpuid)?;
        let cpuid = CpuId::from_entries(&state.cpuid)
            .map_err(|_| format!("has {} CPUID leaves", state.cpuid.len()))?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("CPUID"))?;
        if state.tsc_khz != 0 && state.tsc_khz != vcpu.get_tsc_khz().unwrap_or(0) {
            vcpu.set_tsc_khz(state.tsc_khz)
                .map_err(failed("the TSC's frequency"))?;
        }
        vcpu.set_regs(&state.regs).map_err(failed("registers"))?;
        vcpu.set_sregs(&state.sregs)
            .map_err(failed("system registers"))?;
        vcpu.set_xcrs(&state.xcrs).map_err(failed("XCR0"))?;
        self.set_xsave(&vcpu, &state.xsave)?;
        vcpu.set_debug_regs(&state.debug)
            .map_err(failed("debug registers"))?;
        vcpu.set_lapic(&state.lapic)
            .map_err(failed("the local APIC"))?;
        set_msrs(&vcpu, state.msrs)?;
        vcpu.set_mp_state(state.mp)
            .map_err(failed("the MP state"))?;
        vcpu.set_vcpu_events(&state.events)
            .map_err(failed("pending events"))
    }
}

impl Vcpu {
    /// Bytes of the XSAVE area of this VM's guests.
    fn xsave_bytes(&self) -> usize {
        let bytes = self.vm.check_extension_int(Cap::Xsave2);
        usize::try_from(bytes).unwrap_or(0).max(XSAVE_BYTES)
    }

    fn get_xsave(&self, vcpu: &VcpuFd) -> Result<Vec<u32>, String> {
        let bytes = self.xsave_bytes();
        if bytes == XSAVE_BYTES {
            let area = vcpu.get_xsave().map_err(failed("the XSAVE area"))?;
            return Ok(area.region.to_vec());
        }
        let mut area = Xsave::new((bytes - XSAVE_BYTES).div_ceil(4))
            .map_err(|e| format!("needs {bytes} bytes of XSAVE area: {e:?}"))?;
        // SAFETY: the area has as many bytes as KVM said that it writes.
        unsafe { vcpu.get_xsave2(&mut area) }.map_err(failed("the XSAVE area"))?;
        let mut words = area.as_fam_struct_ref().xsave.region.to_vec();
        words.extend_from_slice(area.as_slice());
        Ok(words)
    }

    fn set_xsave(&self, vcpu: &VcpuFd, words: &[u32]) -> Result<(), String> {
        let wanted = self.xsave_bytes();
        let bytes = words.len() * 4;
        if bytes != wanted.next_multiple_of(4) || bytes > MAX_XSAVE_BYTES {
            return Err(format!(
                "has {bytes} bytes of XSAVE area, and this host's CPUs {wanted}"
            ));
        }
        let (fixed, rest) = words.split_at(XSAVE_BYTES / 4);
        let mut area = Xsave::new(rest.len()).map_err(|e| format!("is too large: {e:?}"))?;
        // SAFETY: the length of the flexible part is not changed.
        unsafe { area.as_mut_fam_struct() }
            .xsave
            .region
            .copy_from_slice(fixed);
        area.as_mut_slice().copy_from_slice(rest);
        // SAFETY: the area has as many bytes as KVM said that it reads.
        unsafe { vcpu.set_xsave2(&area) }.map_err(failed("the XSAVE area"))
    }

    /// All MSRs that KVM lists for saving, but those that this vCPU does not have.
    fn get_msrs(&self, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, String> {
        let list: MsrList = self
            .kvm
            .get_msr_index_list()
            .map_err(failed("the list of MSRs"))?;
        let mut wanted: Vec<kvm_msr_entry> = list
            .as_slice()
            .iter()
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut have = Vec::with_capacity(wanted.len());
        // KVM stops at the first that it cannot read; that one is left out.
        while !wanted.is_empty() {
            let mut msrs =
                Msrs::from_entries(&wanted).map_err(|_| "has too many MSRs".to_owned())?;
            let count = vcpu.get_msrs(&mut msrs).map_err(failed("MSRs"))?;
            have.extend_from_slice(msrs.as_slice().get(..count).unwrap_or_default());
            wanted.drain(..(count + 1).min(wanted.len()));
        }
        Ok(have)
    }
}

/// The local APIC, whose one-shot timer, if it has run out, runs out again when it is loaded:
/// KVM keeps an expiry that it has not yet made an interrupt of where nobody can read it. A
/// guest that had its interrupt gets a second one.
fn lapic_of(vcpu: &VcpuFd) -> Result<kvm_lapic_state, String> {
    let mut lapic = vcpu.get_lapic().map_err(failed("the local APIC"))?;
    let timer = lapic_word(&lapic, APIC_LVT_TIMER);
    let armed = timer & (LVT_MASKED | LVT_TIMER_MODE) == 0 && lapic_word(&lapic, APIC_TMICT) != 0;
    if armed && lapic_word(&lapic, APIC_TMCCT) == 0 {
        lapic.regs[APIC_TMCCT] = 1;
    }
    Ok(lapic)
}

fn lapic_word(lapic: &kvm_lapic_state, register: usize) -> u32 {
    let bytes = [0, 1, 2, 3].map(|i| lapic.regs[register + i].cast_unsigned());
    u32::from_le_bytes(bytes)
}

/// Sets MSRs; one that KVM refuses must have the value already.
fn set_msrs(vcpu: &VcpuFd, mut msrs: Vec<kvm_msr_entry>) -> Result<(), String> {
    msrs.sort_by_key(|msr| match msr.index {
        MSR_TSC => 0,
        MSR_TSC_DEADLINE => 2,
        _ => 1,
    });
    let one =
        |msr: kvm_msr_entry| Msrs::from_entries(&[msr]).map_err(|_| "has too many MSRs".to_owned());
    while !msrs.is_empty() {
        let all = Msrs::from_entries(&msrs).map_err(|_| format!("has {} MSRs", msrs.len()))?;
        let count = vcpu.set_msrs(&all).map_err(failed("MSRs"))?;
        if let Some(refused) = msrs.get(count) {
            let mut now = one(*refused)?;
            let read = vcpu.get_msrs(&mut now).unwrap_or(0) == 1;
            let same = now
                .as_slice()
                .first()
                .is_some_and(|n| n.data == refused.data);
            if !(read && same) {
                return Err(format!(
                    "has {:#x} in MSR {:#x}, which this host does not take",
                    refused.data, refused.index
                ));
            }
        }
        msrs.drain(..(count + 1).min(msrs.len()));
    }
    Ok(())
}

fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> String {
    move |error| format!("cannot have {what}: KVM says {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Entry;
    use crate::cpu::Start;
    use kvm_ioctls::Kvm;
    use std::sync::Arc;

    fn vcpu() -> Vcpu {
        let kvm = Arc::new(Kvm::new().unwrap());
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        let json = serde_json::json!({
            "version": 1, "id": "t", "vcpus": 2, "memory_mib": 64,
            "boot": {"kernel": {"fd": 3}}, "serial": {"ring": {"fd": 4}, "capacity_bytes": 4096},
        });
        let spec = ocs_vmm_spec::Spec::parse(json.to_string().as_bytes()).unwrap();
        super::super::create(
            &kvm,
            &vm,
            0,
            &spec,
            &Start::At(Entry::Pvh { ip: 0x10_0000 }),
        )
        .unwrap()
    }

    /// The TSC moves on between two readings; all else is still.
    fn without_tsc(state: &State) -> State {
        let mut decoded: VcpuState = state.decode(STATE_VERSION).unwrap();
        decoded.msrs.retain(|msr| msr.index != MSR_TSC);
        State::encode(STATE_VERSION, &decoded).unwrap()
    }

    #[test]
    fn registers_round_trip_bit_for_bit() {
        let (used, fresh) = (vcpu(), vcpu());
        {
            let fd = used.lock();
            let mut regs = fd.get_regs().unwrap();
            (regs.rax, regs.r15, regs.rflags) = (0x1234_5678_9abc_def0, 7, 0x246);
            fd.set_regs(&regs).unwrap();
            let mut sregs = fd.get_sregs().unwrap();
            (sregs.cr2, sregs.fs.base) = (0xdead_b000, 0x7fff_1000);
            fd.set_sregs(&sregs).unwrap();
            let mut lapic = fd.get_lapic().unwrap();
            lapic.regs[0x80] = 0x20;
            fd.set_lapic(&lapic).unwrap();
            let mut area = fd.get_xsave().unwrap();
            area.region[40] = 0xa5a5_5a5a;
            area.region[128] |= 3;
            // SAFETY: no dynamic XSAVE features are enabled in tests.
            unsafe { fd.set_xsave(&area).unwrap() };
        }
        let state = used.save().unwrap();
        assert_ne!(without_tsc(&fresh.save().unwrap()), without_tsc(&state));
        fresh.load(&state).unwrap();
        let again = fresh.save().unwrap();
        assert_eq!(without_tsc(&again), without_tsc(&state));
        let decoded: VcpuState = again.decode(STATE_VERSION).unwrap();
        assert_eq!(decoded.regs.rax, 0x1234_5678_9abc_def0);
        assert_eq!(decoded.xsave[40], 0xa5a5_5a5a);
        let tsc = |s: &State| {
            let decoded: VcpuState = s.decode(STATE_VERSION).unwrap();
            let msr = decoded
                .msrs
                .iter()
                .find(|msr| msr.index == MSR_TSC)
                .copied();
            msr.map_or(0, |msr| msr.data)
        };
        assert!(tsc(&again) >= tsc(&state), "the TSC went back");
    }

    #[test]
    fn a_timer_that_ran_out_while_paused_runs_out_again() {
        let used = vcpu();
        {
            let fd = used.lock();
            let mut lapic = fd.get_lapic().unwrap();
            let mut set = |register: usize, value: u32| {
                for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
                    lapic.regs[register + i] = byte.cast_signed();
                }
            };
            const SPURIOUS: usize = 0xf0;
            set(SPURIOUS, 0x1ff);
            set(APIC_LVT_TIMER, 0x20);
            set(APIC_TMICT, 1000);
            set(APIC_TMCCT, 1000);
            fd.set_lapic(&lapic).unwrap();
        }
        let count = || -> u32 {
            let state: VcpuState = used.save().unwrap().decode(STATE_VERSION).unwrap();
            lapic_word(&state.lapic, APIC_TMCCT)
        };
        // Whole microseconds long, and never nothing.
        for _ in 0..20 {
            assert_ne!(count(), 0);
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        assert_eq!(count(), 1);
    }

    #[test]
    fn an_msr_that_cannot_be_is_named() {
        let used = vcpu();
        let state = used.save().unwrap();
        let mut decoded: VcpuState = state.decode(STATE_VERSION).unwrap();
        decoded.msrs.push(kvm_msr_entry {
            index: 0xdead_beef,
            data: 1,
            ..Default::default()
        });
        let state = State::encode(STATE_VERSION, &decoded).unwrap();
        let refusal = vcpu().load(&state).unwrap_err();
        assert!(refusal.contains("MSR 0xdeadbeef"), "{refusal}");
    }
}
