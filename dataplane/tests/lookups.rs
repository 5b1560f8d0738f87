//! What a packet costs does not grow with what the host knows: it asks each map as often
//! among 10,000 rules, a million flows or 100,000 mappings as among one.

mod support;

use std::net::{IpAddr, Ipv4Addr};

use ocs_dataplane::model::{Mac, Policy, Remote, Vni};
use ocs_dataplane::shared::Action;
use ocs_dataplane::shared::layout::Host;
use support::counted::{self, Lookups};
use support::frames::{self, End};
use support::memory::Memory;
use support::policy::{all_out, end, group, policy, port};

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
fn host(size: Size) -> (Memory, [End; 3]) {
    let a = port(A, 1, [10, 0, 0, 10], &["sg"], [169, 254, 1, 10]);
    let b = port(2, 1, [10, 0, 0, 11], &["sg"], [169, 254, 1, 11]);
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
            100 + n,
            2,
            [10, 9, high, low],
            &[],
            [169, 254, 100 + high, low],
        );
        desired.ports.insert(id, other);
    }
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

/// What packets of five kinds ask for.
fn asked(size: Size) -> Vec<(&'static str, Lookups)> {
    let (memory, [from, to, far]) = host(size);
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
    .map(|(name, from, to, passes)| {
        let (action, lookups) = counted::send(&memory, A, &frames::udp(from, to, b"again"));
        assert_eq!(action != Action::Drop, passes, "{name}");
        (name, lookups)
    })
    .into()
}

fn total(lookups: &Lookups) -> u32 {
    lookups.values().sum()
}

#[test]
fn a_packet_asks_as_often_among_many_as_among_few() {
    let long = std::env::var_os("OCS_LONG").is_some();
    let few = asked(SMALL);
    let flows = if long { 1_000_000 } else { 50_000 };
    for (what, size) in [
        (
            "rules",
            Size {
                rules: 10_000,
                ..SMALL
            },
        ),
        ("flows", Size { flows, ..SMALL }),
        (
            "mappings",
            Size {
                mappings: 100_000,
                ..SMALL
            },
        ),
    ] {
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
    for ((name, lookups), limit) in asked(SMALL).iter().zip([8, 13, 11, 7, 9]) {
        assert!(
            total(lookups) <= limit,
            "{name}: {} is more than {limit}: {lookups:?}",
            total(lookups)
        );
    }
}
