//! Routes, network ACLs, forwarding ports, peerings and open flows, packet by packet.

mod support;

use std::net::Ipv4Addr;

use ocs_dataplane::model::{
    Acl, AclEntry, AclId, Direction as Way, Network, Policy, Port, PortId, RouteTable, Rule,
    TableId, Target, Tracking, Traffic, Vni,
};
use ocs_dataplane::shared::Action;
use ocs_dataplane::shared::layout::{Direction, ROUTER_MAC, Reason};
use support::frames::{
    ACK, End, Header, SYN, SYN_ACK, destination, ethernet, icmp, ipv4, tcp, udp, udp_datagram,
};
use support::memory::{HZ, Memory};
use support::policy::{all_out, cidr, end, group, policy, port, tcp_in};

/// A and B of two subnets, M of A's subnet, which forwards; all in one open network.
const A: u32 = 1;
const B: u32 = 2;
const M: u32 = 3;

fn all_in() -> Rule {
    Rule {
        direction: Way::Ingress,
        ..all_out()
    }
}

fn ports() -> [(PortId, Port); 3] {
    [
        port(A, 5, [10, 0, 0, 10], &["a"], [169, 254, 1, 1]),
        port(B, 5, [10, 0, 1, 10], &["b"], [169, 254, 1, 2]),
        port(M, 5, [10, 0, 0, 20], &["m"], [169, 254, 1, 3]),
    ]
}

fn open() -> Policy {
    let rules = || vec![all_out(), all_in()];
    let mut policy = policy(ports(), [("a", rules()), ("b", rules()), ("m", rules())]);
    let network = Network {
        cidrs: ["10.0.0.0/16".parse().expect("a prefix")].into(),
        ..Network::default()
    };
    policy.networks.insert(Vni(5), network);
    policy
}

fn table(routes: &[(&str, Target)]) -> RouteTable {
    let routes = routes.iter().map(|(prefix, target)| {
        let prefix = prefix.parse().expect("a prefix");
        (prefix, *target)
    });
    RouteTable {
        routes: routes.collect(),
    }
}

fn edit(policy: &mut Policy, ifindex: u32, change: impl Fn(&mut Port)) {
    let ports = policy.ports.values_mut();
    ports
        .filter(|port| port.ifindex == ifindex)
        .for_each(change);
}

fn use_table(policy: &mut Policy, ifindex: u32, routes: &[(&str, Target)]) {
    let id = TableId(format!("rtb-{ifindex}"));
    policy.tables.insert(id.clone(), table(routes));
    edit(policy, ifindex, |port| port.table = Some(id.clone()));
}

fn at(ifindex: u32) -> End {
    let ports = ports();
    let found = ports.iter().find(|(_, port)| port.ifindex == ifindex);
    let mut end = end(&found.expect("a port").1, 1000);
    if ifindex == B {
        end.port = 80;
    }
    end
}

/// What becomes of a frame, and how it ends up.
fn send(memory: &Memory, from: u32, frame: &[u8]) -> (Action, Vec<u8>) {
    let mut frame = frame.to_vec();
    let action = memory.run_port(from, &mut frame);
    (action, frame)
}

fn passes(memory: &Memory, from: u32, frame: &[u8]) -> bool {
    send(memory, from, frame).0 != Action::Drop
}

/// The frame dies, and its sender counts why.
fn dies(memory: &Memory, from: u32, frame: &[u8], reason: Reason) {
    let before = memory.counters_of(from).get(Direction::Egress, reason);
    assert!(!passes(memory, from, frame), "{reason:?}");
    let after = memory.counters_of(from).get(Direction::Egress, reason);
    assert_eq!(after - before, 1, "{reason:?}");
}

#[test]
fn the_most_specific_route_decides() {
    let mut policy = open();
    use_table(
        &mut policy,
        A,
        &[
            ("10.0.0.0/16", Target::Local),
            ("10.0.1.0/24", Target::Blackhole),
        ],
    );
    let memory = Memory::new(&policy);
    dies(&memory, A, &tcp(at(A), at(B), SYN), Reason::Blackhole);
    let outside = End {
        ip: Ipv4Addr::new(203, 0, 113, 1),
        ..at(B)
    };
    dies(&memory, A, &tcp(at(A), outside, SYN), Reason::NoRoute);
    assert!(
        passes(&memory, A, &tcp(at(A), at(M), SYN)),
        "within the subnet no route counts"
    );
    assert!(
        passes(&memory, B, &tcp(at(B), at(A), SYN)),
        "B's subnet has no table"
    );

    use_table(
        &mut policy,
        A,
        &[
            ("10.0.0.0/16", Target::Local),
            ("10.0.1.0/24", Target::Blackhole),
            ("10.0.1.10/32", Target::Local),
        ],
    );
    let memory = Memory::new(&policy);
    assert!(passes(&memory, A, &tcp(at(A), at(B), SYN)));
}

/// A's packets to B go by M, which forwards them if its check is off.
#[test]
fn a_port_forwards_for_others_if_its_source_dest_check_is_off() {
    let mut policy = open();
    let by_m = [
        ("10.0.0.0/16", Target::Local),
        ("10.0.1.0/24", Target::NextHop(at(M).ip.into())),
    ];
    use_table(&mut policy, A, &by_m);
    let memory = Memory::new(&policy);
    let syn = tcp(at(A), at(B), SYN);
    dies(&memory, A, &syn, Reason::SourceDestCheck);
    let forwarded = tcp(
        End {
            mac: at(M).mac,
            ..at(A)
        },
        at(B),
        SYN,
    );
    dies(&memory, M, &forwarded, Reason::Spoofed);

    edit(&mut policy, M, |port| port.source_dest_check = false);
    let memory = Memory::new(&policy);
    let (action, frame) = send(&memory, A, &syn);
    assert_ne!(action, Action::Drop);
    assert_eq!(frame[..6], at(M).mac);
    assert_eq!(destination(&frame), at(B).ip, "M hears it with B's address");
    let (action, frame) = send(&memory, M, &forwarded);
    assert_ne!(action, Action::Drop);
    assert_eq!(
        (&frame[..6], &frame[6..12]),
        (&at(B).mac[..], &ROUTER_MAC[..])
    );
}

/// EC2 User Guide, "Security group referencing": what a middlebox forwards is known by its
/// address, never by the group of whoever has that.
#[test]
fn what_is_forwarded_is_known_by_its_address_alone() {
    let forwarded = tcp(
        End {
            mac: at(M).mac,
            ..at(A)
        },
        at(B),
        SYN,
    );
    for (peer, allowed) in [(group("a"), false), (cidr("10.0.0.10/32"), true)] {
        let mut policy = open();
        edit(&mut policy, M, |port| port.source_dest_check = false);
        let group = policy.groups.values_mut().nth(1).expect("group b");
        group.rules = [all_out(), tcp_in(80, 80, peer)].into();
        let memory = Memory::new(&policy);
        assert_eq!(passes(&memory, M, &forwarded), allowed);
        assert!(passes(&memory, A, &tcp(at(A), at(B), SYN)), "A itself");
    }
}

fn entry(traffic: Traffic, prefix: &str, allow: bool) -> AclEntry {
    AclEntry {
        traffic,
        cidr: prefix.parse().expect("a prefix"),
        allow,
    }
}

fn use_acl(policy: &mut Policy, ifindex: u32, entries: &[((Way, u32), AclEntry)]) {
    let id = AclId(format!("acl-{ifindex}"));
    let entries = entries.iter().cloned().collect();
    policy.acls.insert(id.clone(), Acl { entries });
    edit(policy, ifindex, |port| port.acl = Some(id.clone()));
}

#[test]
fn an_acl_is_ordered_and_remembers_nothing() {
    let everywhere = "0.0.0.0/0";
    let web = Traffic::Ports {
        protocol: 6,
        from: 80,
        to: 80,
    };
    let ingress = |number| (Way::Ingress, number);
    let mut policy = open();
    use_acl(
        &mut policy,
        B,
        &[
            (ingress(100), entry(web.clone(), "10.0.0.10/32", false)),
            (ingress(200), entry(web, "10.0.0.0/24", true)),
            (ingress(300), entry(Traffic::Protocol(17), everywhere, true)),
        ],
    );
    let memory = Memory::new(&policy);
    let by = |from, port| tcp(at(from), End { port, ..at(B) }, SYN);
    assert!(!passes(&memory, A, &by(A, 80)), "100 comes before 200");
    assert!(passes(&memory, M, &by(M, 80)));
    assert!(!passes(&memory, M, &by(M, 81)), "no entry");
    let refused = memory
        .counters_of(B)
        .get(Direction::Ingress, Reason::AclDenied);
    assert_eq!(refused, 2);
    let answer = tcp(at(B), at(M), SYN_ACK);
    dies(&memory, B, &answer, Reason::AclDenied);

    let mut policy = open();
    let none = (Way::Egress, 1);
    use_acl(
        &mut policy,
        A,
        &[(none, entry(Traffic::All, everywhere, false))],
    );
    let memory = Memory::new(&policy);
    assert!(
        passes(&memory, A, &tcp(at(A), at(M), SYN)),
        "nothing crosses the border"
    );
    dies(&memory, A, &tcp(at(A), at(B), SYN), Reason::AclDenied);
}

#[test]
fn later_fragments_are_not_asked_for_ports_that_they_lack() {
    let mut policy = open();
    let high = Traffic::Ports {
        protocol: 17,
        from: 80,
        to: 80,
    };
    use_acl(
        &mut policy,
        B,
        &[((Way::Ingress, 1), entry(high, "0.0.0.0/0", true))],
    );
    let memory = Memory::new(&policy);
    let datagram = udp_datagram(at(A), at(B), &[7; 1992]);
    let part = |fragment, bytes: &[u8]| {
        let header = Header {
            id: 9,
            fragment,
            ttl: 64,
        };
        ethernet(
            ROUTER_MAC,
            at(A).mac,
            0x0800,
            &ipv4(at(A).ip, at(B).ip, 17, header, bytes),
        )
    };
    let later = part(1480 / 8, &datagram[1480..]);
    assert!(!passes(&memory, A, &later), "before its first");
    assert!(passes(&memory, A, &part(0x2000, &datagram[..1480])) && passes(&memory, A, &later));
}

/// A in network 5, and P in network 6, which are peered.
#[test]
fn a_peer_is_reached_by_route_and_known_by_its_groups() {
    const P: u32 = 4;
    let peer = port(P, 6, [10, 9, 0, 10], &["p"], [169, 254, 1, 4]);
    let there = End {
        port: 80,
        ..end(&peer.1, 80)
    };
    let mut policy = open();
    policy.ports.extend([peer]);
    let rules = [all_out(), tcp_in(80, 80, group("a"))].into();
    let id = ocs_dataplane::model::GroupId("p".into());
    policy
        .groups
        .insert(id, ocs_dataplane::model::Group { rules });
    let syn = tcp(at(A), there, SYN);
    dies(&Memory::new(&policy), A, &syn, Reason::NoEndpoint);

    let space = |space: &str| space.parse().expect("a prefix");
    let mut network = policy.networks.remove(&Vni(5)).expect("network 5");
    network.peers = [(space("10.9.0.0/16"), Vni(6))].into();
    policy.networks.insert(Vni(5), network);
    let back = Network {
        cidrs: [space("10.9.0.0/16")].into(),
        peers: [(space("10.0.0.0/16"), Vni(5))].into(),
    };
    policy.networks.insert(Vni(6), back);
    dies(&Memory::new(&policy), A, &syn, Reason::NoEndpoint);

    use_table(
        &mut policy,
        A,
        &[
            ("10.0.0.0/16", Target::Local),
            ("10.9.0.0/16", Target::Peer(Vni(6))),
        ],
    );
    let memory = Memory::new(&policy);
    let (action, frame) = send(&memory, A, &syn);
    assert_ne!(action, Action::Drop);
    assert_eq!(
        (&frame[..6], &frame[6..12]),
        (&there.mac[..], &ROUTER_MAC[..])
    );
    assert!(
        !passes(&memory, M, &tcp(at(M), there, SYN)),
        "M's subnet has no such route"
    );
    let to_a = tcp(there, at(A), SYN_ACK);
    assert!(!passes(&memory, P, &to_a), "nor has P's");

    use_table(
        &mut policy,
        P,
        &[
            ("10.9.0.0/16", Target::Local),
            ("10.0.0.0/16", Target::Peer(Vni(5))),
        ],
    );
    use_table(
        &mut policy,
        M,
        &[
            ("10.0.0.0/16", Target::Local),
            ("10.9.0.0/16", Target::Peer(Vni(6))),
        ],
    );
    let memory = Memory::new(&policy);
    assert!(passes(&memory, A, &syn) && passes(&memory, P, &to_a));
    assert!(
        !passes(&memory, M, &tcp(at(M), there, SYN)),
        "M is not in the group"
    );
    let refused = memory
        .counters_of(P)
        .get(Direction::Ingress, Reason::IngressDenied);
    assert_eq!(refused, 1);
}

/// EC2 User Guide, "Untracked connections": open both ways, nothing is remembered, and a
/// change of rules holds at once.
#[test]
fn a_flow_that_is_open_both_ways_is_judged_anew_each_time() {
    let web = tcp_in(80, 80, cidr("0.0.0.0/0"));
    let with = |rules: Vec<Rule>| {
        let mut policy = open();
        let group = policy.groups.values_mut().nth(1).expect("group b");
        group.rules = rules.into_iter().collect();
        policy
    };
    let mut memory = Memory::new(&with(vec![all_out(), web.clone()]));
    let (there, back) = (tcp(at(A), at(B), ACK), tcp(at(B), at(A), ACK));
    for (from, frame) in [(A, tcp(at(A), at(B), SYN)), (B, tcp(at(B), at(A), SYN_ACK))] {
        assert!(passes(&memory, from, &frame));
    }
    assert!(passes(&memory, A, &there) && passes(&memory, B, &back));
    assert_eq!(memory.flows_of(B), 0, "nothing is remembered");
    let quote = icmp(at(A), at(B), 3, 3, 0, &back[14..42]);
    assert!(passes(&memory, A, &quote), "an error about it");
    memory.apply(&with(vec![all_out()]));
    assert!(
        !passes(&memory, A, &there) && !passes(&memory, A, &quote),
        "closed at once"
    );

    // One way alone is open: tracked, and a change of rules cuts nothing.
    let near = tcp_in(80, 80, cidr("10.0.0.0/16"));
    let mut memory = Memory::new(&with(vec![all_out(), near]));
    assert!(passes(&memory, A, &tcp(at(A), at(B), SYN)));
    assert!(passes(&memory, B, &tcp(at(B), at(A), SYN_ACK)));
    assert_eq!(memory.flows_of(B), 1);
    memory.apply(&with(vec![all_out()]));
    assert!(passes(&memory, A, &there) && passes(&memory, B, &back));
}

#[test]
fn a_port_has_secondary_addresses_and_timeouts_of_its_own() {
    let mut policy = open();
    let second = Ipv4Addr::new(10, 0, 0, 4);
    edit(&mut policy, A, |port| {
        port.addresses.push(second.into());
        port.tracking = Tracking {
            udp_s: 60,
            ..Tracking::default()
        };
    });
    for group in policy.groups.values_mut() {
        group.rules = [all_out()].into();
    }
    let b = policy.groups.values_mut().nth(1).expect("group b");
    b.rules.insert(Rule {
        peer: cidr("10.0.0.4/32"),
        ..all_in()
    });
    let mut memory = Memory::new(&policy);
    assert_eq!(
        memory.entries().taps[&A].address,
        u32::from_ne_bytes([10, 0, 0, 10])
    );
    let from = End {
        ip: second,
        ..at(A)
    };
    assert!(passes(&memory, A, &udp(from, at(B), b"x")));
    assert!(
        !passes(&memory, A, &udp(at(A), at(B), b"x")),
        "the first address is not allowed"
    );
    memory.now += 59 * u64::from(HZ);
    assert_eq!((memory.flows_of(A), memory.flows_of(B)), (1, 0));
}
