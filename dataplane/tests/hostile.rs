//! What hostile guests, hosts and strangers send that no well-meaning stack would, in memory:
//! tags in tags, tunnels in tunnels, addresses that are nobody's, headers that are sent twice.

mod support;

use std::net::Ipv4Addr;

use ocs_dataplane::compiler::raw;
use ocs_dataplane::model::{
    Network, Peer, Policy, Port, PortId, Remote, RouteTable, Rule, TableId, Target, Traffic, Vni,
};
use ocs_dataplane::shared::Action;
use ocs_dataplane::shared::layout::{
    Direction, Host, OUTSIDE_HOST, OUTSIDE_SLOT, ROUTER_MAC, Reason, UPLINK_SLOT, Uplink,
};
use support::frames::{
    End, Header, ONES, SYN, arp, ethernet, icmp, ipv4, tcp, tcp_segment, udp, udp_datagram,
};
use support::memory::Memory;
use support::policy::{all_out, cidr, end, policy, port, tcp_in};

const VNI: u32 = 5;
const A: u32 = 1;
const B: u32 = 2;
const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 5);
const VXLAN: u16 = 4789;

fn udp_in(from: u16, to: u16, peer: Peer) -> Rule {
    Rule {
        traffic: Traffic::Ports {
            protocol: 17,
            from,
            to,
        },
        ..tcp_in(from, to, peer)
    }
}

fn ports() -> [(PortId, Port); 2] {
    let mut ports = [
        port(A, VNI, [10, 0, 0, 10], &["g"], [169, 254, 1, 1]),
        port(B, VNI, [10, 0, 0, 11], &["g"], [169, 254, 1, 2]),
    ];
    ports[0].1.publics = [(Ipv4Addr::new(10, 0, 0, 10), PUBLIC)].into();
    ports[0].1.table = Some(TableId("public".into()));
    ports
}

/// The policy of a host with these of the ports; the others are at another.
fn told(here: &[u32], elsewhere: Ipv4Addr) -> Policy {
    let open = vec![
        all_out(),
        tcp_in(0, u16::MAX, cidr("0.0.0.0/0")),
        udp_in(0, u16::MAX, cidr("0.0.0.0/0")),
    ];
    let (near, far): (Vec<_>, Vec<_>) = ports()
        .into_iter()
        .partition(|(_, port)| here.contains(&port.ifindex));
    let mut told = policy(near, [("g", open)]);
    for (_, port) in far {
        let remote = Remote {
            host: elsewhere,
            mac: port.mac,
            groups: port.groups.clone(),
            forwards: false,
        };
        told.remotes.insert((port.vni, port.addresses[0]), remote);
    }
    let routes = [
        ("10.0.0.0/16".parse().expect("a prefix"), Target::Local),
        ("0.0.0.0/0".parse().expect("a prefix"), Target::Outside),
    ];
    let table = RouteTable {
        routes: routes.into(),
    };
    told.tables.insert(TableId("public".into()), table);
    let network = Network {
        cidrs: ["10.0.0.0/16".parse().expect("a prefix")].into(),
        ..Network::default()
    };
    told.networks.insert(Vni(VNI), network);
    told
}

/// A host whose uplink leads to another and outside.
fn host(here: &[u32], own: Ipv4Addr, other: Ipv4Addr) -> Memory {
    let mut memory = Memory::new(&told(here, other));
    let macs = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]];
    for address in [raw(other), OUTSIDE_HOST] {
        let way = Host::new(address, macs[0], raw(own), macs[1]);
        memory.hosts.insert(address, way);
    }
    let uplink = Uplink {
        address: raw(own),
        mac: macs[1],
        ..Uplink::default()
    };
    memory.uplinks.insert(UPLINK_SLOT, uplink);
    memory.uplinks.insert(OUTSIDE_SLOT, uplink);
    memory
}

fn at(ifindex: u32, at: u16) -> End {
    let ports = ports();
    let found = ports.iter().find(|(_, port)| port.ifindex == ifindex);
    end(&found.expect("a port").1, at)
}

/// Runs a frame of A's; asserts that it is a drop that is counted once, by this reason.
fn dies(memory: &Memory, what: &str, frame: &[u8], reason: Reason) {
    let mut expected = memory.counters_of(A);
    let counted = expected.packets.entry((Direction::Egress, reason));
    *counted.or_default() += 1;
    assert_eq!(
        memory.run_port(A, &mut frame.to_vec()),
        Action::Drop,
        "{what}"
    );
    assert_eq!(memory.counters_of(A), expected, "{what}");
}

/// The same of a frame on the uplink.
fn dies_at_uplink(memory: &Memory, what: &str, frame: &[u8], reason: Reason) {
    let refused = |memory: &Memory| {
        let counters = memory.counters_at(UPLINK_SLOT);
        counters.get(Direction::Egress, reason)
    };
    let before = refused(memory);
    assert_eq!(
        memory.run_uplink(&mut frame.to_vec()),
        Action::Drop,
        "{what}"
    );
    assert_eq!(refused(memory), before + 1, "{what}");
}

fn passes(action: Action) -> bool {
    matches!(action, Action::Redirect { .. })
}

#[test]
fn tags_in_tags_are_no_ethertype_of_ours() {
    let memory = host(&[A, B], HERE, THERE);
    let whole = tcp(at(A, 1000), at(B, 80), SYN);
    assert!(passes(memory.run_port(A, &mut whole.clone())));
    for tags in [
        &[0x8100][..],
        &[0x88a8, 0x8100],
        &[0x9100, 0x8100],
        &[0x8100; 4],
    ] {
        let mut tagged = whole[..12].to_vec();
        for (number, tag) in (1u16..).zip(tags) {
            tagged.extend_from_slice(&u16::to_be_bytes(*tag));
            tagged.extend_from_slice(&number.to_be_bytes());
        }
        tagged.extend_from_slice(&whole[12..]);
        dies(&memory, &format!("{tags:x?}"), &tagged, Reason::EtherType);
    }
}

#[test]
fn every_truncation_of_every_header_is_a_counted_drop() {
    let memory = host(&[A, B], HERE, THERE);
    let (a, b) = (at(A, 1000), at(B, 80));
    for (what, whole, headers) in [
        ("TCP", tcp(a, b, SYN), 14 + 20 + 20),
        ("UDP", udp(a, b, b"x"), 14 + 20 + 8),
        ("ICMP", icmp(a, b, 8, 0, 1, b"x"), 14 + 20 + 8),
        ("ARP", arp(a, 1, b.ip), 14 + 28),
    ] {
        for length in 0..headers {
            let frame = &whole[..length];
            let before = memory.counters_of(A).packets.values().sum::<u64>();
            let strays = memory.counters_at(0).packets.values().sum::<u64>();
            let action = memory.run_port(A, &mut frame.to_vec());
            assert_eq!(action, Action::Drop, "{what} cut to {length}");
            let now = memory.counters_of(A).packets.values().sum::<u64>()
                + memory.counters_at(0).packets.values().sum::<u64>();
            assert_eq!(now, before + strays + 1, "{what} cut to {length}");
        }
        // An IP packet that says that it is shorter than its headers.
        if what != "ARP" {
            for says in 0..headers - 14 {
                let mut lies = whole.clone();
                let says = u16::try_from(says).expect("few");
                lies[16..18].copy_from_slice(&says.to_be_bytes());
                dies(&memory, what, &lies, Reason::Malformed);
            }
        }
    }
}

/// A frame of A's as its host sends it to B's.
fn tunnelled() -> Vec<u8> {
    let mut frame = tcp(at(A, 1000), at(B, 80), SYN);
    let action = host(&[A], HERE, THERE).run_port(A, &mut frame);
    assert!(passes(action), "{action:?}");
    frame
}

#[test]
fn a_tunnel_that_is_cut_or_lies_reaches_nobody() {
    let there = host(&[B], THERE, HERE);
    let whole = tunnelled();
    assert!(passes(there.run_uplink(&mut whole.clone())));
    for length in 0..whole.len() {
        let action = there.run_uplink(&mut whole[..length].to_vec());
        // What is not even IPv4 for this host's tunnel is the host's own.
        assert!(
            matches!(action, Action::Drop | Action::Pass),
            "cut to {length}"
        );
    }
    let mut unflagged = whole.clone();
    unflagged[42] = 0;
    dies_at_uplink(&there, "no network", &unflagged, Reason::Malformed);
    let mut tagged = whole.clone();
    tagged[62..64].copy_from_slice(&0x8100u16.to_be_bytes());
    dies_at_uplink(&there, "a tag inside", &tagged, Reason::EtherType);
    let mut strange = whole.clone();
    strange[46..49].copy_from_slice(&[0, 0, 6]);
    dies_at_uplink(&there, "another network", &strange, Reason::OuterSource);
    let mut parted = whole;
    parted[20] = 0x20;
    dies_at_uplink(&there, "a fragment outside", &parted, Reason::Fragment);
}

/// What a guest wraps is a datagram to whom it is for, and no more.
#[test]
fn a_tunnel_in_a_tunnel_is_unwrapped_once() {
    let here = host(&[A], HERE, THERE);
    let there = host(&[B], THERE, HERE);
    let (a, b) = (at(A, 4000), at(B, VXLAN));
    let tunnel = tunnelled();
    let inner = &tunnel[42..];
    let mut frame = udp(a, b, inner);
    assert!(passes(here.run_port(A, &mut frame)));
    let action = there.run_uplink(&mut frame);
    let slot = there.entries().taps[&B].slot;
    assert!(matches!(action, Action::Redirect { slot: to, .. } if to == slot));
    assert_eq!(frame, udp(a, b, inner));

    // Nor is one that a guest sends to a host's own address taken for a host's: it comes from
    // the guest's public address, or not at all.
    let underlay = End {
        mac: ROUTER_MAC,
        ip: THERE,
        port: VXLAN,
    };
    let mut frame = udp(a, underlay, inner);
    assert!(passes(here.run_port(A, &mut frame)));
    assert_eq!(frame[26..30], PUBLIC.octets());
    dies_at_uplink(&there, "a guest's tunnel", &frame, Reason::OuterSource);
    let spoofed = End { ip: HERE, ..a };
    dies(
        &here,
        "a host's address",
        &udp(spoofed, underlay, inner),
        Reason::Spoofed,
    );
}

#[test]
fn nobodys_addresses_send_nothing() {
    let memory = host(&[A, B], HERE, THERE);
    let (a, b) = (at(A, 1000), at(B, 80));
    let martians = [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [127, 0, 0, 1],
        [169, 254, 169, 254],
        [224, 0, 0, 1],
        [240, 0, 0, 1],
        [255, 255, 255, 255],
        [10, 0, 0, 11],
    ]
    .map(Ipv4Addr::from);
    for ip in martians {
        let from = End { ip, ..a };
        dies(
            &memory,
            &format!("{ip} by A"),
            &tcp(from, b, SYN),
            Reason::Spoofed,
        );
        // And from outside, to A's public address.
        let stranger = End {
            mac: ROUTER_MAC,
            ..from
        };
        let to = End { ip: PUBLIC, ..a };
        let frame = tcp(stranger, to, SYN);
        dies_at_uplink(
            &memory,
            &format!("{ip} from outside"),
            &frame,
            Reason::Spoofed,
        );
    }
    for ip in [[127, 0, 0, 1], [0, 0, 0, 0], [224, 0, 0, 1], [255; 4]].map(Ipv4Addr::from) {
        let to = End { ip, ..b };
        let action = memory.run_port(B, &mut tcp(at(B, 1000), to, SYN));
        assert_eq!(action, Action::Drop, "to {ip}");
    }
}

/// A first fragment that comes again with other ports is asked again, and what lies over
/// another's header is no first fragment's to let through.
#[test]
fn overlapping_fragments_are_judged_by_their_own_headers() {
    let mut ports = ports();
    ports[0].1.table = None;
    let closed = vec![
        all_out(),
        udp_in(53, 53, cidr("0.0.0.0/0")),
        tcp_in(80, 80, cidr("0.0.0.0/0")),
    ];
    let memory = Memory::new(&policy(ports, [("g", closed)]));
    let (a, open) = (at(A, 1000), at(B, 53));
    let fragment = |protocol, id, fragment, part: &[u8]| {
        let header = Header {
            id,
            fragment,
            ttl: 64,
        };
        let packet = ipv4(a.ip, open.ip, protocol, header, part);
        memory.run_port(A, &mut ethernet(open.mac, a.mac, 0x0800, &packet))
    };
    let datagram = |port| udp_datagram(a, End { port, ..open }, &[7; 1472]);
    let (good, bad) = (datagram(53), datagram(54));
    assert!(passes(fragment(17, 1, 0x2000, &good[..1000])));
    assert_eq!(
        fragment(17, 1, 0x2000, &bad[..1000]),
        Action::Drop,
        "other ports"
    );
    // Over the rest of the first, as a receiver may or may not take it: no header is there.
    assert!(passes(fragment(17, 1, 0x2000 | 1, &good[8..1000])));
    assert!(passes(fragment(17, 1, 1000 / 8, &good[1000..])));
    // A TCP header in parts, or one of which a part comes again, is nobody's.
    let web = End { port: 80, ..open };
    let segment = tcp_segment(a, web, SYN, ONES, &[7; 64]);
    assert_eq!(
        fragment(6, 2, 0x2000, &segment[..8]),
        Action::Drop,
        "half a header"
    );
    assert!(passes(fragment(6, 3, 0x2000, &segment[..64])));
    for offset in [1, 2] {
        let over = fragment(6, 3, 0x2000 | offset, &segment[8..40]);
        assert_eq!(over, Action::Drop, "over the header, at {offset}");
    }
}
