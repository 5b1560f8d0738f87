//! IPv6 between ports: what passes, what is tracked, what is answered, what is refused.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ocs_dataplane::compiler::raw;
use ocs_dataplane::fabric::UplinkConfig;
use ocs_dataplane::model::{
    Acl, AclEntry, AclId, Direction as Way, GroupId, Mac, Peer, Policy, Port, PortId, Remote,
    RouteTable, Rule, TableId, Target, Traffic, Vni,
};
use ocs_dataplane::shared::Action;
use ocs_dataplane::shared::layout::{Direction, Host, ROUTER_MAC, Reason, UPLINK_SLOT, Uplink};
use support::counted::{self, Lookups};
use support::ipv6::{
    self, End, FRAGMENT, ICMPV6, PAYLOAD, SYN, TCP, UDP, checksum_holds, echo, frame, link_local,
    solicitation, tcp, udp,
};
use support::memory::Memory;
use support::policy::{cidr, group, policy, port};
use support::underlay::Netns;
use support::{Guest, Lab};

const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;
const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn address(subnet: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, subnet, 0, 0, 0, last)
}

/// A port of network 5.
fn at(ifindex: u32, subnet: u16, last: u8, name: &str) -> (PortId, Port) {
    let low = u8::try_from(subnet).expect("a small number");
    let (id, mut port) = port(
        ifindex,
        5,
        [10, 0, low, last],
        &[name],
        [169, 254, low, last],
    );
    ipv6::give(&mut port, address(subnet, u16::from(last)));
    (id, port)
}

fn rule(direction: Way, traffic: Traffic, peer: Peer) -> Rule {
    Rule {
        direction,
        traffic,
        peer,
    }
}

fn ports_of(protocol: u8, from: u16, to: u16) -> Traffic {
    Traffic::Ports { protocol, from, to }
}

/// A and B of one subnet, C of another. A may send to all of fd00::/16; B hears A's UDP port
/// 53 and C hears TCP port 80 and echoes.
fn three(ifindexes: [u32; 3]) -> Policy {
    let ports = [
        at(ifindexes[0], 1, 10, "a"),
        at(ifindexes[1], 1, 11, "b"),
        at(ifindexes[2], 2, 10, "c"),
    ];
    let out = rule(Way::Egress, Traffic::All, cidr("fd00::/16"));
    let echo = Traffic::Icmp {
        protocol: ICMPV6,
        kind: Some(128),
        code: None,
    };
    policy(
        ports,
        [
            ("a", vec![out]),
            (
                "b",
                vec![rule(
                    Way::Ingress,
                    ports_of(UDP, 53, 53),
                    cidr("fd00:0:0:1::a/128"),
                )],
            ),
            (
                "c",
                vec![
                    rule(Way::Ingress, ports_of(TCP, 80, 80), group("a")),
                    rule(Way::Ingress, echo, cidr("::/0")),
                ],
            ),
        ],
    )
}

struct Bench {
    memory: Memory,
    policy: Policy,
}

impl Bench {
    fn new() -> Self {
        Self::of(three([A, B, C]))
    }

    fn of(policy: Policy) -> Self {
        Self {
            memory: Memory::new(&policy),
            policy,
        }
    }

    /// An interface's end, as others send to it.
    fn end(&self, ifindex: u32, at: u16) -> End {
        let mut ports = self.policy.ports.values();
        let port = ports.find(|port| port.ifindex == ifindex);
        ipv6::end(port.expect("a port"), at)
    }

    /// What becomes of a frame, and the frame then.
    fn run(&self, from: u32, frame: &[u8]) -> (Action, Vec<u8>) {
        let mut frame = frame.to_vec();
        (self.memory.run_port(from, &mut frame), frame)
    }

    fn passes(&self, from: u32, frame: &[u8]) -> bool {
        matches!(self.run(from, frame).0, Action::Redirect { .. })
    }

    /// Asserts that a frame is dropped, and counted so where it ended.
    fn refused(&self, from: u32, frame: &[u8], by: u32, way: Direction, reason: Reason) {
        let count = || self.memory.counters_of(by).get(way, reason);
        let before = count();
        assert_eq!(self.run(from, frame).0, Action::Drop, "{reason:?}");
        assert_eq!(count(), before + 1, "{reason:?}");
    }
}

#[test]
fn rules_decide_and_answers_follow() {
    let bench = Bench::new();
    let (a, b, c) = (bench.end(A, 4000), bench.end(B, 53), bench.end(C, 80));
    let closed = End { port: 54, ..b };
    bench.refused(
        A,
        &udp(a, closed, b"x"),
        B,
        Direction::Ingress,
        Reason::IngressDenied,
    );
    // B has no egress rule, so only answers leave it.
    bench.refused(
        B,
        &udp(b, a, b"x"),
        B,
        Direction::Egress,
        Reason::EgressDenied,
    );
    let (action, sent) = bench.run(A, &udp(a, b, b"question"));
    assert!(matches!(action, Action::Redirect { .. }));
    assert_eq!(sent[..6], b.mac);
    assert_eq!(sent[6..12], a.mac, "one subnet, no router");
    assert_eq!(sent[21], 64);
    assert!(bench.passes(B, &udp(b, a, b"answer")));
    bench.refused(
        B,
        &udp(b, End { port: 4001, ..a }, b"x"),
        B,
        Direction::Egress,
        Reason::EgressDenied,
    );
    // By group, across subnets.
    let (action, sent) = bench.run(A, &tcp(a, c, SYN));
    assert!(matches!(action, Action::Redirect { .. }));
    assert_eq!(sent[6..12], ROUTER_MAC);
    assert_eq!(sent[21], 63);
    assert!(checksum_holds(&sent));
    assert!(bench.passes(C, &tcp(c, a, 0x12)));
    bench.refused(
        B,
        &tcp(b, c, SYN),
        B,
        Direction::Egress,
        Reason::EgressDenied,
    );
}

#[test]
fn a_rule_of_ipv4_lets_no_ipv6_in() {
    let mut desired = three([A, B, C]);
    let all = rule(Way::Ingress, Traffic::All, cidr("0.0.0.0/0"));
    desired
        .groups
        .insert(GroupId("b".into()), vec![all].into_group());
    let bench = Bench::of(desired);
    let (a, b) = (bench.end(A, 4000), bench.end(B, 53));
    bench.refused(
        A,
        &udp(a, b, b"x"),
        B,
        Direction::Ingress,
        Reason::IngressDenied,
    );
}

#[test]
fn a_rule_open_to_all_of_ipv4_leaves_ipv6_tracked() {
    let mut desired = three([A, B, C]);
    let open = |way| rule(way, Traffic::All, cidr("0.0.0.0/0"));
    let rules = vec![
        open(Way::Ingress),
        open(Way::Egress),
        rule(Way::Ingress, Traffic::All, group("a")),
    ];
    desired
        .groups
        .insert(GroupId("b".into()), rules.into_group());
    let bench = Bench::of(desired);
    let (a, b) = (bench.end(A, 4000), bench.end(B, 53));
    assert!(bench.passes(A, &udp(a, b, b"x")));
    assert!(bench.passes(B, &udp(b, a, b"answer")));
}

trait IntoGroup {
    fn into_group(self) -> ocs_dataplane::model::Group;
}

impl IntoGroup for Vec<Rule> {
    fn into_group(self) -> ocs_dataplane::model::Group {
        ocs_dataplane::model::Group {
            rules: self.into_iter().collect(),
        }
    }
}

#[test]
fn echoes_are_tracked_and_errors_pass_that_quote_what_is() {
    let bench = Bench::new();
    let (a, b, c) = (bench.end(A, 4000), bench.end(B, 53), bench.end(C, 80));
    // C may not ask, and answers nobody who did not.
    bench.refused(
        C,
        &echo(c, a, 128, 7),
        C,
        Direction::Egress,
        Reason::EgressDenied,
    );
    bench.refused(
        C,
        &echo(c, a, 129, 7),
        C,
        Direction::Egress,
        Reason::EgressDenied,
    );
    assert!(bench.passes(A, &echo(a, c, 128, 7)));
    assert!(bench.passes(C, &echo(c, a, 129, 7)));
    bench.refused(
        C,
        &echo(c, a, 129, 8),
        C,
        Direction::Egress,
        Reason::EgressDenied,
    );
    let question = udp(a, b, b"question");
    let unreachable = ipv6::error(b, a, 1, &question);
    bench.refused(B, &unreachable, B, Direction::Egress, Reason::EgressDenied);
    assert!(bench.passes(A, &question));
    assert!(bench.passes(B, &unreachable));
    // About another port, to another, from another.
    let other = udp(End { port: 4001, ..a }, b, b"question");
    for (from, error) in [
        (B, ipv6::error(b, a, 1, &other)),
        (B, ipv6::error(b, c, 1, &question)),
        (C, ipv6::error(c, a, 1, &question)),
    ] {
        bench.refused(from, &error, from, Direction::Egress, Reason::EgressDenied);
    }
}

#[test]
fn nobody_sends_from_an_address_of_another() {
    let mut desired = three([A, B, C]);
    for port in desired.ports.values_mut() {
        port.source_dest_check = false;
    }
    let bench = Bench::of(desired);
    let (a, b) = (bench.end(A, 4000), bench.end(B, 53));
    for ip in [b.ip, address(9, 9), Ipv6Addr::LOCALHOST] {
        let spoofed = udp(End { ip, ..a }, b, b"x");
        bench.refused(A, &spoofed, A, Direction::Egress, Reason::Spoofed);
    }
    let spoofed = udp(End { mac: b.mac, ..a }, b, b"x");
    bench.refused(A, &spoofed, A, Direction::Egress, Reason::Spoofed);
    // Nothing of the link leaves it.
    let many = End {
        ip: "ff02::1".parse().expect("an address"),
        ..b
    };
    for (from, to) in [(link_local(a), b), (a, link_local(b)), (a, many)] {
        bench.refused(
            A,
            &udp(from, to, b"x"),
            A,
            Direction::Egress,
            Reason::ArpUnanswered,
        );
    }
    // Nor an IPv4 packet from where numbers of addresses are.
    let (from, to) = (
        support::frames::End {
            mac: a.mac,
            ip: Ipv4Addr::new(0, 0, 0, 1),
            port: 4000,
        },
        support::frames::End {
            mac: b.mac,
            ip: Ipv4Addr::new(10, 0, 1, 11),
            port: 53,
        },
    );
    bench.refused(
        A,
        &support::frames::udp(from, to, b"x"),
        A,
        Direction::Egress,
        Reason::Spoofed,
    );
}

#[test]
fn a_port_without_addresses_has_no_ipv6() {
    let mut desired = three([A, B, C]);
    for port in desired.ports.values_mut().filter(|port| port.ifindex == B) {
        port.addresses.retain(IpAddr::is_ipv4);
    }
    let bench = Bench::of(desired);
    let a = bench.end(A, 4000);
    let b = End {
        mac: [2, 0, 0, 0, 0, 1],
        ip: address(1, 11),
        port: 53,
    };
    bench.refused(
        A,
        &udp(a, b, b"x"),
        A,
        Direction::Egress,
        Reason::NoEndpoint,
    );
    let own = bench
        .policy
        .ports
        .values()
        .find(|port| port.ifindex == B)
        .expect("a port")
        .mac
        .0;
    let b = End { mac: own, ..b };
    bench.refused(B, &udp(b, a, b"x"), B, Direction::Egress, Reason::EtherType);
}

#[test]
fn routes_lead_within_the_network_or_nowhere() {
    let mut desired = three([A, B, C]);
    let route = |prefix: &str, target| (prefix.parse().expect("a prefix"), target);
    let table = RouteTable {
        routes: [
            route("fd00:0:0:2::/64", Target::Local),
            route("fd00:0:0:3::/64", Target::Blackhole),
            route("2001:db8::/32", Target::Outside),
        ]
        .into(),
    };
    desired.tables.insert(TableId("t".into()), table);
    for port in desired.ports.values_mut().filter(|port| port.ifindex == A) {
        port.table = Some(TableId("t".into()));
    }
    let bench = Bench::of(desired);
    let (a, c) = (bench.end(A, 4000), bench.end(C, 80));
    assert!(bench.passes(A, &tcp(a, c, SYN)));
    let to = |ip| tcp(a, End { ip, ..c }, SYN);
    let outside = "2001:db8::1".parse().expect("an address");
    for (ip, reason) in [
        (address(2, 99), Reason::NoEndpoint),
        (address(3, 1), Reason::Blackhole),
        (outside, Reason::Blackhole),
        (address(4, 1), Reason::NoRoute),
        (a.ip, Reason::NoEndpoint),
    ] {
        bench.refused(A, &to(ip), A, Direction::Egress, reason);
    }
    let mut last_hop = tcp(a, c, SYN);
    last_hop[21] = 1;
    bench.refused(A, &last_hop, A, Direction::Egress, Reason::TtlExceeded);
}

#[test]
fn a_network_acl_is_asked_where_a_subnet_ends() {
    let mut desired = three([A, B, C]);
    let entry = |number, prefix: &str, allow| {
        let entry = AclEntry {
            traffic: Traffic::All,
            cidr: prefix.parse().expect("a prefix"),
            allow,
        };
        ((Way::Egress, number), entry)
    };
    let acl = Acl {
        entries: [
            entry(1, "fd00:0:0:2::a/128", false),
            entry(2, "::/0", true),
            entry(3, "0.0.0.0/0", true),
        ]
        .into(),
    };
    desired.acls.insert(AclId("acl".into()), acl);
    let (id, other) = at(4, 2, 11, "c");
    desired.ports.insert(id, other);
    for port in desired.ports.values_mut().filter(|port| port.ifindex == A) {
        port.acl = Some(AclId("acl".into()));
    }
    let bench = Bench::of(desired);
    let (a, b, c) = (bench.end(A, 4000), bench.end(B, 53), bench.end(C, 80));
    assert!(bench.passes(A, &udp(a, b, b"x")), "within the subnet");
    let denied = tcp(a, c, SYN);
    bench.refused(A, &denied, A, Direction::Egress, Reason::AclDenied);
    assert!(bench.passes(A, &tcp(a, bench.end(4, 80), SYN)));
}

#[test]
fn what_is_too_long_is_answered() {
    let mut desired = three([A, B, C]);
    for port in desired.ports.values_mut() {
        port.mtu = 1450;
    }
    let bench = Bench::of(desired);
    let (a, b) = (bench.end(A, 4000), bench.end(B, 53));
    assert!(bench.passes(A, &udp(a, b, &[0; 1450 - 48])));
    let long = udp(a, b, &[0; 1450 - 47]);
    let (action, answer) = bench.run(A, &long);
    assert_eq!(action, Action::Bounce);
    assert_eq!(answer[..6], a.mac);
    assert_eq!(ipv6::source(&answer), ipv6::router().ip);
    assert_eq!(ipv6::destination(&answer), a.ip);
    assert_eq!(answer[20..22], [ICMPV6, 255]);
    assert_eq!(answer[PAYLOAD..PAYLOAD + 2], [2, 0]);
    assert_eq!(answer[PAYLOAD + 4..PAYLOAD + 8], 1450u32.to_be_bytes());
    assert_eq!(answer[PAYLOAD + 8..], long[14..14 + 64]);
    assert!(checksum_holds(&answer));
    // An error is not answered by one; an echo is.
    let error = ipv6::error(a, b, 1, &long);
    bench.refused(A, &error, A, Direction::Egress, Reason::TooLong);
    let message = ipv6::icmp_message(a, b, 128, 0, &[0; 1450]);
    assert_eq!(
        bench.run(A, &frame(a, b, ICMPV6, &message)).0,
        Action::Bounce
    );
}

#[test]
fn later_fragments_follow_their_first() {
    let bench = Bench::new();
    let (a, b) = (bench.end(A, 4000), bench.end(B, 53));
    let datagram = udp_of(a, b, 64);
    let part = |offset: u16, more, id| {
        let at = usize::from(offset) * 8;
        let bytes = &datagram[at..at + 32];
        frame(
            a,
            b,
            FRAGMENT,
            &ipv6::fragment(UDP, offset, more, id, bytes),
        )
    };
    let high = 0xabcd_0000;
    bench.refused(
        A,
        &part(4, false, 7),
        A,
        Direction::Egress,
        Reason::Fragment,
    );
    assert!(bench.passes(A, &part(0, true, 7)));
    assert!(bench.passes(A, &part(4, false, 7)));
    // The whole of an identification counts.
    bench.refused(
        A,
        &part(4, false, 7 | high),
        A,
        Direction::Egress,
        Reason::Fragment,
    );
    // A datagram that the rules refuse does not begin.
    let closed = udp_of(a, End { port: 54, ..b }, 64);
    let first = frame(
        a,
        b,
        FRAGMENT,
        &ipv6::fragment(UDP, 0, true, 9, &closed[..32]),
    );
    bench.refused(A, &first, B, Direction::Ingress, Reason::IngressDenied);
    bench.refused(
        A,
        &part(4, false, 9),
        A,
        Direction::Egress,
        Reason::Fragment,
    );
    // What overwrites a TCP header, a first without one, extensions of what is cut.
    let c = bench.end(C, 80);
    let segment = ipv6::tcp_segment(a, c, SYN);
    for payload in [
        ipv6::fragment(TCP, 1, false, 1, &[0; 16]),
        ipv6::fragment(TCP, 2, false, 1, &[0; 16]),
        ipv6::fragment(TCP, 0, true, 1, &segment[..16]),
        ipv6::fragment(60, 0, true, 1, &[UDP, 0, 0, 0, 0, 0, 0, 0]),
        ipv6::fragment(FRAGMENT, 0, true, 1, &segment),
    ] {
        let cut = frame(a, c, FRAGMENT, &payload);
        bench.refused(A, &cut, A, Direction::Egress, Reason::Malformed);
    }
    // One of one is a whole (RFC 6946).
    let atomic = frame(a, c, FRAGMENT, &ipv6::fragment(TCP, 0, false, 1, &segment));
    assert!(bench.passes(A, &atomic));
}

fn udp_of(from: End, to: End, length: usize) -> Vec<u8> {
    ipv6::udp_datagram(from, to, &vec![7; length])
}

/// `kinds` of extension headers in front of a TCP segment, each of `words` × 8 bytes.
fn chained(from: End, to: End, kinds: &[u8], words: u8) -> Vec<u8> {
    let mut payload = Vec::new();
    for (index, _) in kinds.iter().enumerate() {
        let next = kinds.get(index + 1).copied().unwrap_or(TCP);
        // PadN to the end (RFC 8200 §4.2).
        let length = usize::from(words) * 8;
        payload.extend_from_slice(&[next, words - 1, 1, u8::try_from(length - 4).expect("few")]);
        payload.extend(std::iter::repeat_n(0, length - 4));
    }
    payload.extend(ipv6::tcp_segment(from, to, SYN));
    frame(from, to, kinds.first().copied().unwrap_or(TCP), &payload)
}

#[test]
fn extension_headers_hide_nothing() {
    let bench = Bench::new();
    let (a, c) = (bench.end(A, 4000), bench.end(C, 80));
    let closed = End { port: 81, ..c };
    for (count, kinds) in [&[60u8][..], &[0], &[0, 60], &[60, 60, 60, 60]]
        .iter()
        .enumerate()
    {
        for words in [1, 3, 20] {
            let port = 5000 + u16::from(words) * 8 + u16::try_from(count).expect("few");
            let from = End { port, ..a };
            assert!(
                bench.passes(A, &chained(from, c, kinds, words)),
                "{kinds:?}"
            );
            let denied = chained(from, closed, kinds, words);
            bench.refused(A, &denied, C, Direction::Ingress, Reason::IngressDenied);
        }
    }
    for kinds in [
        &[60u8, 60, 60, 60, 60][..],
        &[60, 0],
        &[0, 0],
        &[43],
        &[60, 43],
    ] {
        bench.refused(
            A,
            &chained(a, c, kinds, 1),
            A,
            Direction::Egress,
            Reason::Malformed,
        );
    }
}

#[test]
fn whatever_is_cut_short_is_refused() {
    let bench = Bench::new();
    let (a, b, c) = (bench.end(A, 4000), bench.end(B, 53), bench.end(C, 80));
    let fragment = ipv6::fragment(UDP, 0, true, 7, &udp_of(a, b, 24));
    for whole in [
        udp(a, b, b"question"),
        tcp(a, c, SYN),
        echo(a, c, 128, 7),
        chained(a, c, &[0, 60], 2),
        frame(a, b, FRAGMENT, &fragment),
        solicitation(a, b.ip),
    ] {
        for length in 14..whole.len() {
            let cut = &whole[..length];
            bench.refused(A, cut, A, Direction::Egress, Reason::Malformed);
            // And one that says so itself: no longer than its headers.
            let mut honest = cut.to_vec();
            if length >= PAYLOAD {
                let left = u16::try_from(length - PAYLOAD).expect("short");
                honest[18..20].copy_from_slice(&left.to_be_bytes());
                let (action, _) = bench.run(A, &honest);
                let dropped = action == Action::Drop;
                let whole_headers = length - PAYLOAD >= 8;
                assert!(dropped || whole_headers, "{length} of {whole:02x?}");
            }
        }
        assert_ne!(bench.run(A, &whole).0, Action::Drop);
    }
    // Lengths that lie.
    for (at, value) in [(14, 0x40), (18, 0xff)] {
        let mut lies = udp(a, b, b"question");
        lies[at] = value;
        bench.refused(A, &lies, A, Direction::Egress, Reason::Malformed);
    }
}

#[test]
fn neighbours_are_answered_for() {
    let mut desired = three([A, B, C]);
    let far = Remote {
        host: THERE,
        mac: Mac([2, 9, 9, 9, 9, 9]),
        groups: [GroupId("b".into())].into(),
        forwards: false,
    };
    desired
        .remotes
        .insert((Vni(5), address(1, 0x50).into()), far);
    let bench = Bench::of(desired);
    let (a, b, c) = (bench.end(A, 0), bench.end(B, 0), bench.end(C, 0));
    let remote = End {
        mac: [2, 9, 9, 9, 9, 9],
        ip: address(1, 0x50),
        port: 0,
    };
    for from in [a, link_local(a)] {
        for (to, flags) in [(b, 0x60), (remote, 0x60), (ipv6::router(), 0xe0)] {
            let (action, answer) = bench.run(A, &solicitation(from, to.ip));
            assert_eq!(action, Action::Bounce);
            assert_eq!((&answer[..6], &answer[6..12]), (&a.mac[..], &to.mac[..]));
            assert_eq!(
                (ipv6::source(&answer), ipv6::destination(&answer)),
                (to.ip, from.ip)
            );
            assert_eq!(answer[20..22], [ICMPV6, 255]);
            assert_eq!(answer[PAYLOAD..PAYLOAD + 2], [136, 0]);
            assert_eq!(answer[PAYLOAD + 4], flags);
            assert_eq!(answer[PAYLOAD + 8..PAYLOAD + 24], to.ip.octets());
            assert_eq!(answer[PAYLOAD + 24..PAYLOAD + 26], [2, 1]);
            assert_eq!(answer[PAYLOAD + 26..], to.mac);
            assert!(checksum_holds(&answer));
        }
        // Is B still there? It is asked itself, and need not be told who asks.
        let mut rest = vec![0; 4];
        rest.extend_from_slice(&b.ip.octets());
        let (action, answer) = bench.run(A, &ipv6::to_neighbour(from, b, 135, &rest));
        assert_eq!(action, Action::Bounce);
        assert_eq!(answer.len(), PAYLOAD + 24);
        assert!(checksum_holds(&answer));
    }
    // Nobody has it, it is one's own, it is of another subnet; and nobody else's duplicate.
    for target in [address(1, 0x99), a.ip, c.ip] {
        let question = solicitation(a, target);
        bench.refused(A, &question, A, Direction::Egress, Reason::ArpUnanswered);
    }
    let nobody = End {
        ip: Ipv6Addr::UNSPECIFIED,
        ..a
    };
    let question = solicitation(nobody, b.ip);
    bench.refused(A, &question, A, Direction::Egress, Reason::ArpUnanswered);
    let spoofed = solicitation(End { ip: b.ip, ..a }, c.ip);
    bench.refused(A, &spoofed, A, Direction::Egress, Reason::Spoofed);
    // What has crossed a router is no neighbour's (RFC 4861 §7.1.1).
    let mut far = solicitation(a, b.ip);
    far[21] = 254;
    bench.refused(A, &far, A, Direction::Egress, Reason::Malformed);
    // An advertisement changes nobody's mind.
    let lie = ipv6::to_neighbour(a, b, 136, &[0; 20]);
    bench.refused(A, &lie, A, Direction::Egress, Reason::ArpUnanswered);
}

/// Two hosts in memory: A here, C there.
#[test]
fn it_crosses_hosts() {
    let all = three([A, B, C]);
    let remote = |ifindex, host| {
        let port = all
            .ports
            .values()
            .find(|port| port.ifindex == ifindex)
            .expect("a port");
        let remote = Remote {
            host,
            mac: port.mac,
            groups: port.groups.clone(),
            forwards: false,
        };
        ((port.vni, port.addresses[1]), remote)
    };
    let host = |ifindex, own: Ipv4Addr, far, other: Ipv4Addr| {
        let mut policy = all.clone();
        policy.ports.retain(|_, port| port.ifindex == ifindex);
        policy.remotes.extend([remote(far, other)]);
        let mut memory = Memory::new(&policy);
        let way = Host::new(raw(other), [2, 0, 0, 0, 0, 2], raw(own), [2, 0, 0, 0, 0, 1]);
        memory.hosts.insert(raw(other), way);
        let uplink = Uplink {
            address: raw(own),
            mac: [2, 0, 0, 0, 0, 1],
            ..Uplink::default()
        };
        memory.uplinks.insert(UPLINK_SLOT, uplink);
        memory
    };
    let (here, there) = (host(A, HERE, C, THERE), host(C, THERE, A, HERE));
    let bench = Bench::of(all.clone());
    let (a, c) = (bench.end(A, 4000), bench.end(C, 80));
    let cross = |from: &Memory, ifindex, to: &Memory, frame: &[u8]| {
        let mut frame = frame.to_vec();
        let action = from.run_port(ifindex, &mut frame);
        assert!(
            matches!(
                action,
                Action::Redirect {
                    slot: UPLINK_SLOT,
                    ..
                }
            ),
            "{action:?}"
        );
        let wrapped = frame.clone();
        (to.run_uplink(&mut frame), frame, wrapped)
    };
    let (action, arrived, wrapped) = cross(&here, A, &there, &tcp(a, c, SYN));
    assert!(matches!(action, Action::Redirect { .. }));
    let mut expected = tcp(a, c, SYN);
    expected[..6].copy_from_slice(&c.mac);
    expected[6..12].copy_from_slice(&ROUTER_MAC);
    expected[21] = 63;
    assert_eq!(arrived, expected);
    let (action, ..) = cross(&there, C, &here, &tcp(c, a, 0x12));
    assert!(matches!(action, Action::Redirect { .. }));
    let closed = End { port: 81, ..c };
    let (action, ..) = cross(&here, A, &there, &tcp(a, closed, SYN));
    assert_eq!(action, Action::Drop);
    // From a host that has no such sender, and for whom it is not.
    for (at, value, reason) in [(29, 9, Reason::OuterSource), (50, 9, Reason::NoEndpoint)] {
        let mut lie = wrapped.clone();
        lie[at] = value;
        let before = there
            .counters_at(UPLINK_SLOT)
            .get(Direction::Egress, reason);
        assert_eq!(there.run_uplink(&mut lie), Action::Drop);
        let after = there
            .counters_at(UPLINK_SLOT)
            .get(Direction::Egress, reason);
        assert_eq!(after, before + 1, "{reason:?}");
    }
    for length in 0..wrapped.len() {
        let mut cut = wrapped[..length].to_vec();
        assert!(
            !matches!(there.run_uplink(&mut cut), Action::Redirect { .. }),
            "{length}"
        );
    }
}

/// The same in the kernel, over a cable; then a successor takes over and the flow goes on.
#[test]
fn it_crosses_a_cable_and_a_restart() {
    let mut labs = [Lab::new(), Lab::new()];
    let namespaces = [Netns::new(), Netns::new()];
    namespaces[0].cable("up0", &namespaces[1], "up1");
    let addresses = [HERE, THERE];
    for (index, interface) in ["up0", "up1"].into_iter().enumerate() {
        let address = addresses[index];
        namespaces[index].ip(&format!("addr add {address}/24 dev {interface}"));
        let config = UplinkConfig {
            interface: interface.to_owned(),
            address,
            outside: false,
        };
        let mtu = namespaces[index].within(|| labs[index].set_uplink(config));
        mtu.expect("an uplink");
    }
    let mut a = Guest::new(&labs[0], "tap-a");
    let mut c = Guest::new(&labs[1], "tap-c");
    let all = three([a.ifindex, 9999, c.ifindex]);
    let port = |name: &str| {
        let group = GroupId(name.into());
        let mut ports = all.ports.values();
        ports
            .find(|port| port.groups.contains(&group))
            .expect("a port")
            .clone()
    };
    for (index, (own, far)) in [("a", "c"), ("c", "a")].into_iter().enumerate() {
        let mut policy = all.clone();
        policy
            .ports
            .retain(|_, port| port.groups.contains(&GroupId(own.into())));
        let far = port(far);
        let remote = Remote {
            host: addresses[1 - index],
            mac: far.mac,
            groups: far.groups.clone(),
            forwards: false,
        };
        policy.remotes.insert((far.vni, far.addresses[1]), remote);
        labs[index]
            .apply(&policy)
            .unwrap_or_else(|error| panic!("{}", support::chain(&error)));
        for _ in 0..100 {
            let refresh = || labs[index].refresh_hosts();
            if namespaces[index].within(refresh).expect("hosts") == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
    let (from, to) = (ipv6::end(&port("a"), 4000), ipv6::end(&port("c"), 80));
    let mut ports = all.ports.iter();
    let is_c = |port: &Port| port.groups.contains(&GroupId("c".into()));
    let (c_id, _) = ports.find(|(_, port)| is_c(port)).expect("C");
    labs[1].set_logged(c_id, true).expect("a log");
    a.send(&tcp(from, to, SYN));
    let arrived = c.receive();
    assert_eq!(arrived[PAYLOAD..], tcp(from, to, SYN)[PAYLOAD..]);
    c.send(&tcp(to, from, 0x12));
    assert_eq!(a.receive()[PAYLOAD..], tcp(to, from, 0x12)[PAYLOAD..]);
    a.send(&tcp(from, End { port: 81, ..to }, SYN));
    c.hears_nothing();
    let log = labs[1].take_flow_log(c_id).expect("a log").expect("kept");
    let mut flows: Vec<_> = log
        .records
        .iter()
        .map(|flow| {
            (
                flow.source,
                flow.destination_port,
                flow.accepted,
                flow.bytes,
            )
        })
        .collect();
    flows.sort();
    let (a_ip, c_ip) = (IpAddr::V6(from.ip), IpAddr::V6(to.ip));
    let expected = [
        (a_ip, 80, true, 60),
        (a_ip, 81, false, 60),
        (c_ip, 4000, true, 60),
    ];
    assert_eq!(flows, expected);
    labs[1].restart();
    // C has no egress rule: what it sends is tracked or nothing.
    c.send(&tcp(to, from, 0x10));
    assert_eq!(a.receive()[PAYLOAD..], tcp(to, from, 0x10)[PAYLOAD..]);
    c.send(&tcp(End { port: 81, ..to }, from, 0x10));
    a.hears_nothing();
}

/// Packets of four kinds, among so many rules and addresses; what they ask for.
fn asked(rules: u16, mappings: u16) -> Vec<(&'static str, Lookups)> {
    let mut desired = three([A, B, C]);
    let allow = |n: u16| {
        let port = 20_000 + 2 * n;
        rule(Way::Ingress, ports_of(UDP, port, port), cidr("fd00::/16"))
    };
    let more = (0..rules).map(allow);
    let b = desired.groups.get_mut(&GroupId("b".into()));
    b.expect("a group").rules.extend(more);
    for n in 0..mappings {
        let remote = Remote {
            host: THERE,
            mac: Mac([2, 9, 9, 9, 9, 9]),
            groups: [GroupId("b".into())].into(),
            forwards: false,
        };
        desired
            .remotes
            .insert((Vni(5), address(7, n).into()), remote);
    }
    let bench = Bench::of(desired);
    let (a, b) = (bench.end(A, 4000), bench.end(B, 53));
    let mut memory = bench.memory;
    memory.hosts.insert(raw(THERE), Host::default());
    let far = End {
        ip: address(7, 0),
        ..b
    };
    let closed = End { port: 54, ..b };
    [
        ("here, new", b),
        ("here, tracked", b),
        ("here, denied", closed),
        ("another host's, new", far),
        ("another host's, tracked", far),
    ]
    .map(|(name, to)| (name, counted::send(&memory, A, &udp(a, to, b"x")).1))
    .into()
}

/// As of IPv4, whose figures are in `lookups`. The port is found twice, by each program, and
/// both addresses are looked up.
#[test]
fn a_packet_asks_as_often_among_many_as_among_few() {
    let few = asked(1, 1);
    assert_eq!(asked(10_000, 1), few);
    assert_eq!(asked(1, 20_000), few);
    for ((name, lookups), limit) in few.iter().zip([16, 12, 15, 13, 10]) {
        let total: u32 = lookups.values().sum();
        println!("{name}: {total} of {lookups:?}");
        assert!(
            total <= limit,
            "{name}: {total} is more than {limit}: {lookups:?}"
        );
    }
}

/// What Linux asks for when a link comes up, before and after it has an address there.
#[test]
fn the_router_says_that_addresses_are_managed() {
    let mut desired = three([A, B, C]);
    for port in desired.ports.values_mut() {
        port.mtu = 1450;
    }
    let bench = Bench::of(desired);
    let a = bench.end(A, 0);
    let routers = End {
        mac: [0x33, 0x33, 0, 0, 0, 2],
        ip: "ff02::2".parse().expect("an address"),
        port: 0,
    };
    let nobody = End {
        ip: Ipv6Addr::UNSPECIFIED,
        ..a
    };
    let mut named = vec![0, 0, 0, 0, 1, 1];
    named.extend_from_slice(&a.mac);
    let nodes: Ipv6Addr = "ff02::1".parse().expect("an address");
    for (from, rest, to) in [
        (nobody, &[0; 4][..], nodes),
        (link_local(a), &named, link_local(a).ip),
        (a, &named, a.ip),
    ] {
        let question = ipv6::to_neighbour(from, routers, 133, rest);
        let (action, answer) = bench.run(A, &question);
        assert_eq!(action, Action::Bounce);
        assert_eq!(
            (&answer[..6], &answer[6..12]),
            (&a.mac[..], &ROUTER_MAC[..])
        );
        assert_eq!(ipv6::source(&answer), ipv6::router().ip);
        assert_eq!(ipv6::destination(&answer), to);
        assert_eq!(answer[20..22], [ICMPV6, 255]);
        let message = &answer[PAYLOAD..];
        assert_eq!(message[..2], [134, 0]);
        assert_eq!(
            message[4..8],
            [64, 0xc0, 0x07, 0x08],
            "managed, for 1,800 s"
        );
        assert_eq!(message[8..16], [0; 8]);
        assert_eq!(message[16..18], [1, 1]);
        assert_eq!(message[18..24], ROUTER_MAC);
        assert_eq!(
            message[24..32],
            [5, 1, 0, 0, 0, 0, 0x05, 0xaa],
            "the MTU, 1,450"
        );
        assert_eq!(message.len(), 32);
        assert!(checksum_holds(&answer));
        let mut far = question;
        far[21] = 64;
        bench.refused(A, &far, A, Direction::Egress, Reason::Malformed);
    }
    let lie = ipv6::to_neighbour(link_local(a), routers, 134, &[0; 12]);
    bench.refused(A, &lie, A, Direction::Egress, Reason::ArpUnanswered);
}
