//! A machine with one of everything, saved and loaded into another of the same spec.

use super::*;
use crate::builder::{Files, build};
use crate::events::EventLoop;
use crate::persist::State;
use crate::virtio::block::Nursery;
use ocs_vmm_spec::Spec;
use std::path::Path;
use std::time::Instant;

/// Sections whose contents go on by themselves; tests of their own hold them to it.
const MOVING: [&str; 2] = ["clock", "cpu."];

fn spec(dir: &Path, tap: &str) -> Spec {
    let at = |name: &str| serde_json::json!({"path": dir.join(format!("{tap}-{name}"))});
    let disk = |id: &str| serde_json::json!({"id": id, "listener": at(id), "backend_uid": 0});
    let json = serde_json::json!({
        "version": 1, "id": tap, "vcpus": 2, "memory_mib": 64,
        "boot": {"disk": "disk0"},
        "serial": {"ring": at("ring"), "capacity_bytes": 4096},
        "net": [{"id": "net0", "tap": {"path": tap}, "mac": "02:00:00:00:00:01", "mtu": 1500}],
        "block": [disk("disk0"), disk("disk1")],
        "rng": {}, "console": {}, "balloon": {"target_mib": 8},
        "vsock": {"guest_cid": 7, "listener": at("vsock"), "uid": 0},
    });
    Spec::parse(json.to_string().as_bytes()).unwrap()
}

/// What the driver of every function set up, and ports, as a guest would.
fn use_it(machine: &Machine) {
    let bus = &machine.bus;
    for (slot, function) in bus.pci.functions() {
        let slot = u8::try_from(slot).unwrap();
        // Memory, bus master, no INTx; an interrupt line of the guest's choice.
        function.config_write(4, &[6, 4]);
        function.config_write(0x3c, &[slot]);
        // ACKNOWLEDGE and DRIVER, then the offered features' low half is chosen.
        function.bar_write(0x14, &[3]);
        function.bar_write(8, &1u32.to_le_bytes());
        // Message of the first vector.
        function.bar_write(0x4000, &0xfee0_0000u32.to_le_bytes());
        function.bar_write(0x4008, &u32::from(slot).to_le_bytes());
    }
    for (port, value) in [(0x3f8 + 7, 0x5au8), (0x70, 0x0b), (0x3f8 + 3, 3)] {
        assert!(bus.port_write(port, &[value]).is_none());
    }
    bus.pci.port_write(0xcf8, &0x8000_0804u32.to_le_bytes());
    bus.power.raise(EVENT_BUTTON).unwrap();
}

fn saved(machine: &Machine) -> Vec<(String, State)> {
    machine.with_parts(|parts| {
        let save = |(name, part): &(String, &dyn Lifecycle)| (name.clone(), part.save().unwrap());
        parts.iter().map(save).collect()
    })
}

#[test]
fn every_device_s_state_round_trips_bit_for_bit() {
    std::thread::spawn(|| {
        // SAFETY: unshares the network namespace of this thread, in which it makes its taps.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(unshared, 0, "needs root");
        let dir = tempfile::tempdir().unwrap();
        let [used, fresh] = ["used", "fresh"].map(|tap| {
            let events = EventLoop::new().unwrap();
            let spec = spec(dir.path(), tap);
            let files = Files::open(&spec).unwrap();
            let machine = build(&spec, files, &events.epoll(), 0).unwrap().machine;
            let free = || Ok(());
            let nursery = Nursery::spawn(free, free).unwrap();
            machine.devices.start(nursery).unwrap();
            machine
        });
        use_it(&used);
        used.pause().unwrap();
        fresh.pause().unwrap();
        let (before, state) = (saved(&fresh), saved(&used));
        // Interrupt chips, two CPUs, five parts of the board, seven functions, the clock.
        let names: Vec<&str> = state.iter().map(|(name, _)| &name[..]).collect();
        assert_eq!(names.len(), 1 + 2 + 5 + 7 + 1, "{names:?}");
        fresh.with_parts(|parts| {
            for ((name, part), (_, state)) in parts.iter().zip(&state) {
                part.load(state).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        });
        for (((name, state), (_, before)), (_, after)) in
            state.iter().zip(&before).zip(&saved(&fresh))
        {
            if MOVING.iter().any(|moving| name.starts_with(moving)) {
                continue;
            }
            assert!(state == after, "{name} is not what it was");
            let is_used =
                name.starts_with("pci.") || ["serial", "rtc", "pci", "power"].contains(&&name[..]);
            assert!(!is_used || state != before, "{name}: nothing was set");
        }
        for machine in [used, fresh] {
            machine.devices.stop(Instant::now());
        }
    })
    .join()
    .unwrap();
}
