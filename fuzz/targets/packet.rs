//! Frames from hostile guests, through the packet logic that the BPF programs run.
//!
//! Every frame is counted where it ends, and keeps its length unless it is too long.

#![no_main]

/// What the packet path's own tests stand on, as far as it needs no kernel.
#[allow(dead_code, reason = "each user takes a part")]
#[path = "../../dataplane/tests/support"]
mod support {
    pub mod frames;
    pub mod ipv6;
    pub mod memory;
    pub mod policy;
}

use std::net::Ipv6Addr;

use libfuzzer_sys::fuzz_target;
use ocs_dataplane::model::Rule;
use ocs_dataplane::shared::Action;
use support::ipv6;
use support::memory::Memory;
use support::policy::{all_out, cidr, group, policy, port, tcp_in};

/// Two networks with the same addresses; the first two interfaces are of one.
const NETWORKS: [u32; 3] = [7, 7, 8];
const ADDRESSES: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1),
];
/// Bytes that say what an IPv6 packet begins with.
const HEAD: usize = 1;

fuzz_target!(|frames: Vec<(u8, u16, Vec<u8>)>| {
    let mut ports = [
        port(1, NETWORKS[0], [10, 0, 0, 10], &["a"], [169, 254, 1, 1]),
        port(
            2,
            NETWORKS[1],
            [10, 0, 1, 10],
            &["a", "b"],
            [169, 254, 1, 2],
        ),
        port(3, NETWORKS[2], [10, 0, 0, 10], &["c"], [169, 254, 1, 3]),
    ];
    for (index, (_, port)) in ports.iter_mut().enumerate() {
        ipv6::give(port, ADDRESSES[index]);
    }
    let ends = [0, 1, 2].map(|index: usize| ipv6::end(&ports[index].1, 0));
    let ipv6_out = Rule {
        peer: cidr("::/0"),
        ..all_out()
    };
    let mut memory = Memory::new(&policy(
        ports,
        [
            ("a", vec![all_out(), ipv6_out, tcp_in(1, 1024, group("a"))]),
            ("b", vec![all_out(), tcp_in(80, 80, cidr("10.0.0.0/8"))]),
            ("c", vec![all_out(), tcp_in(0, u16::MAX, cidr("::/0"))]),
        ],
    ));
    for (sender, wait, mut frame) in frames.into_iter().take(32) {
        memory.now += u64::from(wait);
        if sender & 0x80 != 0 && frame.len() > HEAD {
            // Whatever it is, it begins as a port's IPv6 packet to another does.
            let payload = frame.split_off(HEAD);
            let next = frame.first().copied().unwrap_or_default();
            let index = usize::from(sender % 3);
            frame = ipv6::frame(
                ends[index],
                ends[usize::from(sender >> 4) % 3],
                next,
                &payload,
            );
        }
        let (sender, length) = (u32::from(sender % 3) + 1, frame.len());
        let before = counted(&memory);
        let action = memory.run_port(sender, &mut frame);
        let ends = counted(&memory) - before;
        match action {
            Action::Drop | Action::Bounce => assert_eq!(ends, 1),
            // Where it left and where it arrived; the responder is no port.
            Action::Redirect { .. } => assert!((1..=2).contains(&ends)),
            Action::Pass | Action::Stage { .. } => {
                panic!("{action:?} is no end of a guest's frame")
            }
        }
        // What is too long is answered in a frame of another length.
        if action != Action::Bounce {
            assert_eq!(frame.len(), length);
        }
    }
});

fn counted(memory: &Memory) -> u64 {
    (1..=3)
        .flat_map(|port| memory.counters_of(port).packets.into_values())
        .sum()
}
