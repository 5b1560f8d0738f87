//! What a packet costs does not grow with what the host knows: it asks each map as often, and
//! takes as many instructions, among 10,000 rules, a million flows or 100,000 mappings as among
//! few.

#[path = "support/machine.rs"]
mod machine;
mod support;

use std::net::{IpAddr, Ipv4Addr};

use machine::{Machine, Ran};
use ocs_dataplane::fabric::UplinkConfig;
use ocs_dataplane::model::{Mac, Policy, Remote, Vni};
use ocs_dataplane::shared::Action;
use ocs_dataplane::shared::layout::{Host, LAYOUT_VERSION};
use support::counted::{self, Lookups};
use support::frames::{self, End};
use support::memory::Memory;
use support::policy::{all_out, end, group, policy, port};
use support::underlay::Netns;
use support::{Guest, Lab};

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const FAR: [u8; 4] = [10, 0, 0, 12];
const A: u32 = 1;
/// Of a flow that is known, and of one that is not.
const PORT: u16 = 20_000;

/// What a host knows.
#[derive(Clone, Copy)]
struct Size {
    rules: u16,
    flows: usize,
    mappings: u32,
}

const SMALL: Size = Size {
    rules: 1,
    flows: 1,
    mappings: 10,
};

/// Two ports here and one on another host, all in one group, among much else.
fn desired(size: Size, [a, b]: [u32; 2], mut other: impl FnMut(u32) -> u32) -> (Policy, [End; 3]) {
    let a = port(a, 1, [10, 0, 0, 10], &["sg"], [169, 254, 1, 10]);
    let b = port(b, 1, [10, 0, 0, 11], &["sg"], [169, 254, 1, 11]);
    let (from, to) = (end(&a.1, PORT), end(&b.1, PORT));
    let mut rules = vec![all_out()];
    // No two ports share a prefix, so each is an entry of its own.
    rules.extend((0..size.rules).map(|n| udp_in(PORT + 2 * n)));
    let mut desired: Policy = policy([a, b], [("sg", rules)]);
    let far = End {
        mac: [2, 0, 0, 0, 9, 9],
        ip: FAR.into(),
        port: PORT,
    };
    for n in 0..size.mappings {
        let address = if n == 0 {
            far.ip
        } else {
            Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + n)
        };
        let remote = Remote {
            host: HOST,
            mac: Mac(far.mac),
            groups: ["sg"]
                .map(|name| ocs_dataplane::model::GroupId(name.into()))
                .into(),
            forwards: false,
        };
        desired
            .remotes
            .insert((Vni(1), IpAddr::V4(address)), remote);
    }
    let others = size.flows.div_ceil(Memory::FLOWS_OF_ONE).max(1) - 1;
    for n in 0..u32::try_from(others).expect("few ports") {
        let [_, _, high, low] = (n + 1).to_be_bytes();
        let (id, other) = port(
            other(n),
            2,
            [10, 9, high, low],
            &["sg"],
            [169, 254, 100 + high, low],
        );
        desired.ports.insert(id, other);
    }
    (desired, [from, to, far])
}

/// A host that is a memory.
fn host(size: Size) -> (Memory, [End; 3]) {
    let (desired, [from, to, far]) = desired(size, [A, 2], |n| 100 + n);
    let mut memory = Memory::new(&desired);
    memory
        .hosts
        .insert(u32::from_ne_bytes(HOST.octets()), Host::default());
    for (there, ifindex, back) in [(to, 2, true), (far, 0, false)] {
        assert_ne!(
            counted::send(&memory, A, &frames::udp(from, there, b"first")).0,
            Action::Drop
        );
        if back {
            let answer = frames::udp(there, from, b"answer");
            assert_ne!(counted::send(&memory, ifindex, &answer).0, Action::Drop);
        }
    }
    memory.fill(size.flows);
    (memory, [from, to, far])
}

fn udp_in(at: u16) -> ocs_dataplane::model::Rule {
    ocs_dataplane::model::Rule {
        direction: ocs_dataplane::model::Direction::Ingress,
        traffic: ocs_dataplane::model::Traffic::Ports {
            protocol: 17,
            from: at,
            to: at,
        },
        peer: group("sg"),
    }
}

/// Packets of five kinds, and whether they pass.
fn kinds([from, to, far]: [End; 3]) -> [(&'static str, Vec<u8>, bool); 5] {
    let again = End {
        port: PORT + 1,
        ..from
    };
    let closed = End { port: 9, ..to };
    [
        ("here, tracked", from, to, true),
        ("here, new", again, to, true),
        ("here, denied", from, closed, false),
        ("another host's, tracked", from, far, true),
        ("another host's, new", again, far, true),
    ]
    .map(|(name, from, to, passes)| (name, frames::udp(from, to, b"again"), passes))
}

/// What they ask for.
fn asked(size: Size) -> Vec<(&'static str, Lookups)> {
    let (memory, ends) = host(size);
    kinds(ends)
        .map(|(name, frame, passes)| {
            let (action, lookups) = counted::send(&memory, A, &frame);
            assert_eq!(action != Action::Drop, passes, "{name}");
            (name, lookups)
        })
        .into()
}

/// What the program in the kernel takes for them, by its own maps.
fn taken(size: Size) -> Vec<(&'static str, Ran)> {
    let (lab, cable) = (Lab::new(), Netns::new());
    let (a, b) = (Guest::new(&lab, "a"), Guest::new(&lab, "b"));
    cable.ip("link add up0 type veth peer name far0");
    cable.ip("addr add 192.0.2.1/24 dev up0");
    cable.ip("link set up0 up");
    cable.ip(&format!(
        "neigh add {HOST} lladdr 02:00:00:00:02:02 dev up0 nud permanent"
    ));
    let uplink = UplinkConfig {
        interface: "up0".into(),
        address: Ipv4Addr::new(192, 0, 2, 1),
        outside: false,
    };
    let mut others = Vec::new();
    let (desired, ends) = desired(size, [a.ifindex, b.ifindex], |n| {
        let guest = Guest::new(&lab, &format!("o{n}"));
        let ifindex = guest.ifindex;
        others.push(guest);
        ifindex
    });
    cable.within(|| lab.set_uplink(uplink)).expect("an uplink");
    lab.apply(&desired).expect("a policy");
    assert_eq!(cable.within(|| lab.refresh_hosts()).expect("hosts"), 0);
    let [from, to, far] = ends;
    let run = |ifindex, frame: &[u8]| lab.run_port(ifindex, frame, 1, None).expect("a run");
    // Each port that is there for that has flows with the next one.
    let is_other = |ifindex| others.iter().any(|guest| guest.ifindex == ifindex);
    let others: Vec<_> = desired
        .ports
        .values()
        .filter(|port| is_other(port.ifindex))
        .collect();
    for pair in others.windows(2) {
        for n in 0..u16::try_from(Memory::FLOWS_OF_ONE / 2).expect("few flows") {
            let frame = frames::udp(end(pair[0], n), end(pair[1], PORT), b"another");
            assert_eq!(run(pair[0].ifindex, &frame).action, XDP_REDIRECT);
        }
    }
    // Last, or they would be forgotten before all others are there.
    for (ifindex, frame) in [
        (a.ifindex, frames::udp(from, to, b"first")),
        (b.ifindex, frames::udp(to, from, b"answer")),
        (a.ifindex, frames::udp(from, far, b"first")),
    ] {
        assert_eq!(run(ifindex, &frame).action, XDP_REDIRECT);
    }
    let object = std::fs::read(env!("OCS_BPF_OBJECT")).expect("the object");
    let pins = lab.config().bpffs.join(format!("v{LAYOUT_VERSION}/maps"));
    let machine = Machine::new(&object, "port", &pins);
    // Later than all that the kernel has recorded, so that each deadline moves.
    let now = lab.jiffies().expect("a clock") + 1;
    kinds(ends)
        .map(|(name, frame, passes)| {
            let ran = machine.run(a.ifindex, &frame, now);
            assert_eq!(ran.action == u64::from(XDP_REDIRECT), passes, "{name}");
            (name, ran)
        })
        .into()
}

const XDP_REDIRECT: u32 = 4;
/// What packets of the five kinds take, at most: who adds to these figures says why.
const INSTRUCTIONS: [u64; 5] = [810, 1_240, 800, 710, 920];

fn total(lookups: &Lookups) -> u32 {
    lookups.values().sum()
}

/// Much of each.
fn many() -> [(&'static str, Size); 3] {
    let long = std::env::var_os("OCS_LONG").is_some();
    let (flows, mappings) = if long {
        (1_000_000, 100_000)
    } else {
        (50_000, 20_000)
    };
    [
        (
            "rules",
            Size {
                rules: 10_000,
                ..SMALL
            },
        ),
        ("flows", Size { flows, ..SMALL }),
        ("mappings", Size { mappings, ..SMALL }),
    ]
}

#[test]
fn a_packet_asks_as_often_among_many_as_among_few() {
    let few = asked(SMALL);
    for (what, size) in many() {
        assert_eq!(asked(size), few, "{what}");
    }
    for (name, lookups) in &few {
        println!("{name}: {} of {lookups:?}", total(lookups));
    }
}

/// What a packet asks for is what it costs: a hash of a key, a cache line, a pointer that
/// is followed. Who adds to these figures says why.
#[test]
fn a_packet_asks_no_more_than_it_did() {
    for ((name, lookups), limit) in asked(SMALL).iter().zip([8, 13, 11, 6, 8]) {
        assert!(
            total(lookups) <= limit,
            "{name}: {} is more than {limit}: {lookups:?}",
            total(lookups)
        );
    }
}

#[test]
fn a_packet_takes_as_many_instructions_among_many_as_among_few() {
    let few = taken(SMALL);
    for (name, ran) in &few {
        println!("{name}: {ran:?}");
    }
    for (what, size) in many() {
        assert_eq!(taken(size), few, "{what}");
    }
    for ((name, ran), limit) in few.iter().zip(INSTRUCTIONS) {
        assert!(
            ran.instructions <= limit,
            "{name}: {} instructions are more than {limit}",
            ran.instructions
        );
    }
}
