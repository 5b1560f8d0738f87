//! What a hostile guest cannot do, and what it hears of a host without programs: nothing.

mod support;

use std::net::{Ipv4Addr, Ipv6Addr};

use ocs_dataplane::fabric::{Counters, Fabric};
use ocs_dataplane::model::{Policy, Port, PortId};
use ocs_dataplane::shared::layout::{Direction, ROUTER_MAC, Reason, SVC0_MAC};
use support::frames::{End, SYN, arp, ethernet, icmp, tcp, udp};
use support::policy::{all_out, cidr, end, policy, port, tcp_in};
use support::responder::within;
use support::{Guest, Lab, ipv6};

/// A, B and C of one subnet and D of another, all open; and E of another network at C's
/// address.
struct Neighbours {
    lab: Lab,
    guests: Vec<Guest>,
    ports: Vec<(PortId, Port)>,
}

impl Neighbours {
    fn new() -> Self {
        Self::by(|lab, name| Guest::new(lab, name))
    }

    fn by(guest: impl Fn(&Lab, &str) -> Guest) -> Self {
        let lab = Lab::new();
        let places = [
            (5, [10, 0, 0, 10]),
            (5, [10, 0, 0, 11]),
            (5, [10, 0, 0, 12]),
            (5, [10, 0, 1, 10]),
            (6, [10, 0, 0, 12]),
        ];
        let mut guests = Vec::new();
        let mut ports = Vec::new();
        for (last, (vni, address)) in (1..).zip(places) {
            let guest = guest(&lab, &format!("tap{last}"));
            ports.push(port(
                guest.ifindex,
                vni,
                address,
                &["g"],
                [169, 254, 1, last],
            ));
            guests.push(guest);
        }
        let neighbours = Self { lab, guests, ports };
        neighbours
            .lab
            .apply(&neighbours.policy())
            .expect("a policy");
        neighbours
    }

    fn policy(&self) -> Policy {
        let open = vec![all_out(), tcp_in(0, u16::MAX, cidr("0.0.0.0/0"))];
        policy(self.ports.clone(), [("g", open)])
    }

    fn end(&self, index: usize) -> End {
        end(&self.ports[index].1, 1000)
    }

    fn counters(&self, index: usize) -> Counters {
        self.lab.counters(&self.ports[index].0).expect("counters")
    }

    /// Sends a frame as A; asserts that nobody hears it and that A's counters differ by
    /// one packet of this reason.
    fn dies(&mut self, what: &str, frame: &[u8], reason: Reason) {
        let mut expected = self.counters(0);
        *expected
            .packets
            .entry((Direction::Egress, reason))
            .or_default() += 1;
        self.guests[0].send(frame);
        for guest in &mut self.guests {
            assert_eq!(guest.poll(), None, "{what}");
        }
        assert_eq!(self.counters(0), expected, "{what}");
    }
}

#[test]
fn neighbours_answer_arp_and_nobody_else_does() {
    let mut net = Neighbours::new();
    let a = net.end(0);
    let asked = [
        (net.end(1).ip, net.end(1).mac),
        (net.end(2).ip, net.end(2).mac),
        (Ipv4Addr::new(10, 0, 0, 1), ROUTER_MAC),
        (Ipv4Addr::new(169, 254, 169, 254), ROUTER_MAC),
    ];
    for (target, mac) in asked {
        net.guests[0].send(&arp(a, 1, target));
        let answer = net.guests[0].receive();
        let owner = End {
            mac,
            ip: target,
            port: 0,
        };
        let mut expected = arp(owner, 2, a.ip);
        expected[..6].copy_from_slice(&a.mac);
        expected[32..38].copy_from_slice(&a.mac);
        assert_eq!(answer, expected);
    }
    let silent = [a.ip, net.end(3).ip, Ipv4Addr::new(10, 0, 0, 99)];
    for target in silent {
        net.dies("ARP", &arp(a, 1, target), Reason::ArpUnanswered);
    }
    net.dies(
        "an unasked reply",
        &arp(a, 2, net.end(1).ip),
        Reason::ArpUnanswered,
    );
}

#[test]
fn a_frame_between_subnets_is_routed_and_within_one_is_not() {
    let mut net = Neighbours::new();
    let (a, b, d) = (net.end(0), net.end(1), net.end(3));
    let near = tcp(a, b, SYN);
    net.guests[0].send(&near);
    assert_eq!(net.guests[1].receive(), near);

    let router = End {
        mac: ROUTER_MAC,
        ..d
    };
    net.guests[0].send(&tcp(a, router, SYN));
    let far = net.guests[3].receive();
    assert_eq!(far[..6], d.mac);
    assert_eq!(far[6..12], ROUTER_MAC);
    assert_eq!(far[22], 63);
    assert!(support::frames::checksums_hold(&far));
}

#[test]
fn spoofed_frames_die_at_the_tap() {
    let mut net = Neighbours::new();
    let (a, b) = (net.end(0), net.end(1));
    let b_mac = End { mac: b.mac, ..a };
    let b_ip = End { ip: b.ip, ..a };
    let frames = [
        ("another's MAC", tcp(b_mac, net.end(2), SYN)),
        ("another's address", tcp(b_ip, net.end(2), SYN)),
        ("ARP by another's MAC", arp(b_mac, 1, net.end(2).ip)),
        ("ARP for another's address", arp(b_ip, 1, net.end(2).ip)),
        (
            "no address",
            udp(
                End {
                    ip: Ipv4Addr::UNSPECIFIED,
                    ..a
                },
                b,
                b"x",
            ),
        ),
    ];
    for (what, frame) in frames {
        net.dies(what, &frame, Reason::Spoofed);
    }
    let mut claims = arp(a, 1, b.ip);
    claims[22..28].copy_from_slice(&b.mac);
    net.dies("ARP that names another's MAC", &claims, Reason::Spoofed);
}

#[test]
fn networks_with_equal_addresses_do_not_meet() {
    let mut net = Neighbours::new();
    let syn = tcp(net.end(0), net.end(2), SYN);
    net.guests[0].send(&syn);
    assert_eq!(net.guests[2].receive(), syn);
    net.guests[4].hears_nothing();
    let (e, a) = (net.end(4), net.end(0));
    net.guests[4].send(&tcp(e, a, SYN));
    net.guests[0].hears_nothing();
    assert_eq!(
        net.counters(4).get(Direction::Egress, Reason::NoEndpoint),
        1
    );
}

#[test]
fn hostile_frames_are_counted_drops() {
    let mut net = Neighbours::new();
    let (a, b) = (net.end(0), net.end(1));
    let whole = tcp(a, b, SYN);
    for length in 14..whole.len() {
        let what = format!("cut to {length}");
        net.dies(&what, &whole[..length], Reason::Malformed);
    }
    let mut lies = whole.clone();
    lies[16..18].copy_from_slice(&u16::MAX.to_be_bytes());
    net.dies("a total length beyond the frame", &lies, Reason::Malformed);
    let mut lies = whole.clone();
    lies[14] = 0x44;
    net.dies("a header of 16 bytes", &lies, Reason::Malformed);
    let mut lies = whole.clone();
    lies[14] = 0x4f;
    net.dies("a header longer than the packet", &lies, Reason::Malformed);
    let mut lies = whole.clone();
    lies[14 + 20 + 12] = 0xf0;
    net.dies(
        "a TCP header longer than the packet",
        &lies,
        Reason::Malformed,
    );
    let mut lies = whole.clone();
    lies[14] = 0x65;
    net.dies("IPv6 that says IPv4", &lies, Reason::Malformed);
    let six = ethernet(b.mac, a.mac, 0x86dd, &[0x60; 40]);
    net.dies("IPv6", &six, Reason::EtherType);
    let tagged = ethernet(b.mac, a.mac, 0x8100, &whole[12..]);
    net.dies("a VLAN tag", &tagged, Reason::EtherType);
    let mut huge = whole;
    huge.resize(14 + 1501, 0);
    let before = net.counters(0).get(Direction::Egress, Reason::TooLong);
    net.guests[0].send(&huge);
    let answer = net.guests[0].receive();
    assert_eq!(answer[34..36], [3, 4], "fragmentation needed");
    assert_eq!(answer[40..42], 1500u16.to_be_bytes());
    assert_eq!(answer[42..70], huge[14..42], "what it is about");
    assert_eq!(answer.len(), 70);
    assert!(support::frames::checksums_hold(&answer));
    huge.resize(60_000, 0);
    net.guests[0].send(&huge);
    for guest in &mut net.guests[1..] {
        guest.hears_nothing();
    }
    let after = net.counters(0).get(Direction::Egress, Reason::TooLong);
    assert_eq!(after - before, 2);
}

/// Every address that the host or a neighbour could answer at.
fn probes(from: End) -> Vec<Vec<u8>> {
    let targets = [
        [127, 0, 0, 1],
        [169, 254, 169, 254],
        [169, 254, 169, 253],
        [10, 0, 0, 1],
        [10, 0, 0, 11],
        [192, 0, 2, 2],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
    ];
    let mut frames = Vec::new();
    for target in targets {
        for mac in [[0xff; 6], ROUTER_MAC, SVC0_MAC] {
            let to = End {
                mac,
                ip: Ipv4Addr::from(target),
                port: 80,
            };
            frames.push(arp(from, 1, to.ip));
            frames.push(icmp(from, to, 8, 0, 1, b"x"));
            frames.push(tcp(from, to, SYN));
            frames.push(udp(from, End { port: 67, ..to }, b"x"));
        }
    }
    // Neighbour solicitations, TCP and UDP, from an address of the link.
    let from = ipv6::link_local(ipv6::End {
        mac: from.mac,
        ip: Ipv6Addr::UNSPECIFIED,
        port: 1000,
    });
    let targets: [Ipv6Addr; 5] = [
        "fe80::6f:63ff:fe73:1",
        "fe80::6f:63ff:fe73:2",
        "fd00:ec2::254",
        "ff02::1",
        "::1",
    ]
    .map(|text| text.parse().expect("an address"));
    for ip in targets {
        frames.push(ipv6::solicitation(from, ip));
        for mac in [[0x33, 0x33, 0, 0, 0, 1], ROUTER_MAC, SVC0_MAC] {
            let to = ipv6::End { mac, ip, port: 80 };
            frames.push(ipv6::echo(from, to, 128, 1));
            frames.push(ipv6::tcp(from, to, SYN));
            frames.push(ipv6::udp(from, to, b"x"));
        }
    }
    frames
}

/// What the taps' namespace shows of what its stack has done: what it sent, opened, answered
/// and learnt.
#[derive(Debug, PartialEq, Eq)]
struct Stack {
    sent: Vec<(String, String)>,
    neighbours: String,
    sockets: Vec<usize>,
}

impl Stack {
    fn of(lab: &Lab) -> Self {
        within(&lab.config().taps_netns, || {
            let read = |name: &str| {
                std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect(name)
            };
            let (names, values) = (read("snmp"), read("snmp6"));
            let mut sent = Vec::new();
            let lines: Vec<&str> = names.lines().collect();
            for pair in lines.chunks_exact(2) {
                let cells = pair[0].split(' ').zip(pair[1].split(' '));
                sent.extend(cells.map(|(name, value)| (name.to_owned(), value.to_owned())));
            }
            sent.extend(values.lines().filter_map(|line| {
                let (name, value) = line.split_once(char::is_whitespace)?;
                Some((name.to_owned(), value.trim().to_owned()))
            }));
            let acts = |name: &str| {
                ["Out", "Opens", "Forw", "Delivers", "Resets", "Reply"]
                    .iter()
                    .any(|part| name.contains(part))
            };
            sent.retain(|(name, _)| acts(name));
            Self {
                sent,
                neighbours: support::underlay::run(&["ip", "neigh", "show"]),
                sockets: ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"]
                    .map(|name| read(name).lines().count())
                    .to_vec(),
            }
        })
    }
}

/// Whether the tap's program is alive again: ARP for the gateway is answered.
fn wait_for_arp(guest: &mut Guest, from: End) {
    let question = arp(from, 1, Ipv4Addr::new(10, 0, 0, 1));
    guest.send(&question);
    let answer = guest.receive();
    assert_eq!(answer[6..12], ROUTER_MAC, "something else came first");
}

fn reattach(fabric: &Fabric, ifindex: u32) {
    fabric.attach(ifindex).expect("the program back");
}

#[test]
fn without_its_program_a_tap_reaches_nobody() {
    reaches_nobody_without_program(Neighbours::new());
}

/// Nor does one whose guest may leave work to others.
#[test]
fn without_its_twin_a_tap_reaches_nobody() {
    let net = Neighbours::by(|lab, name| Guest::with_offloads(lab, name, 0));
    reaches_nobody_without_program(net);
}

fn reaches_nobody_without_program(mut net: Neighbours) {
    let a = net.end(0);
    let ifindex = net.guests[0].ifindex;
    let counted = net.counters(0);
    let stack = Stack::of(&net.lab);
    net.lab.detach(ifindex).expect("the program off");
    for frame in probes(a) {
        net.guests[0].send(&frame);
    }
    assert_eq!(net.counters(0), counted);
    assert_eq!(
        Stack::of(&net.lab),
        stack,
        "the host's stack has done nothing"
    );
    reattach(&net.lab, ifindex);
    wait_for_arp(&mut net.guests[0], a);
    for guest in &mut net.guests {
        guest.hears_nothing();
    }
}

#[test]
fn without_a_policy_a_tap_reaches_nobody() {
    let mut net = Neighbours::new();
    let a = net.end(0);
    net.lab.apply(&Policy::default()).expect("no policy");
    for frame in probes(a) {
        net.guests[0].send(&frame);
    }
    let strays = net.lab.responder_counters().expect("counters");
    let sent = u64::try_from(probes(a).len()).expect("few");
    assert_eq!(strays.get(Direction::Egress, Reason::NoPort), sent);
    net.lab.apply(&net.policy()).expect("the policy again");
    wait_for_arp(&mut net.guests[0], a);
    for guest in &mut net.guests {
        guest.hears_nothing();
    }
}
