//! Random policies and questions about them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ocs_dataplane::model::{
    Acl, AclEntry, AclId, Direction, GroupId, Mac, Network, Peer, Policy, Port, PortId, Remote,
    RouteTable, Rule, TableId, Target, Traffic, Vni,
};
use ocs_dataplane::reference::Question;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use super::frames::{self, End, Header};
use super::ipv6;
use super::policy::{policy, port};

const GROUPS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Ports of a policy: three to each of two networks, whose addresses overlap.
pub const PORTS: usize = 6;
const ADDRESSES: [[u8; 4]; 3] = [[10, 0, 0, 10], [10, 0, 0, 130], [10, 0, 1, 10]];
/// Their IPv6 addresses, which are the outside's, too, and so nobody's twice: two of one subnet,
/// as those above, and one of another; then the same of another network.
const IPV6: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0x10),
    Ipv6Addr::new(0xfd00, 0, 0, 1, 0x8000, 0, 0, 0x10),
    Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 0x10),
    Ipv6Addr::new(0xfd00, 0, 0, 0x101, 0, 0, 0, 0x10),
    Ipv6Addr::new(0xfd00, 0, 0, 0x101, 0x8000, 0, 0, 0x10),
    Ipv6Addr::new(0xfd00, 0, 0, 0x102, 0, 0, 0, 0x10),
];

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        (0..GROUPS.len()).prop_map(|group| Peer::Group(GroupId(GROUPS[group].into()))),
        (0..ADDRESSES.len(), 0..=32u8).prop_map(|(address, length)| {
            let prefix = format!("{}/{length}", Ipv4Addr::from(ADDRESSES[address]));
            Peer::Cidr(prefix.parse::<ipnet::IpNet>().expect("a prefix").trunc())
        }),
        (0..=IPV6.len(), prop_oneof![Just(0), 60..=66u8, 126..=128u8]).prop_map(
            |(address, length)| {
                let address = IPV6.get(address).copied().unwrap_or(STRANGER);
                let prefix = ipnet::Ipv6Net::new(address, length).expect("a prefix");
                Peer::Cidr(prefix.trunc().into())
            }
        ),
    ]
}

/// Ports that questions also ask for, so that ranges and questions meet.
fn port_number() -> impl Strategy<Value = u16> {
    prop_oneof![79..=82u16, Just(0), Just(u16::MAX), any::<u16>()]
}

fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![Just(1), Just(6), Just(17), Just(47), Just(58), any::<u8>()]
}

fn traffic() -> impl Strategy<Value = Traffic> {
    prop_oneof![
        Just(Traffic::All),
        protocol().prop_map(Traffic::Protocol),
        (any::<bool>(), port_number(), port_number()).prop_map(|(tcp, a, b)| Traffic::Ports {
            protocol: if tcp { 6 } else { 17 },
            from: a.min(b),
            to: a.max(b),
        }),
        (
            any::<bool>(),
            proptest::option::of(0..12u8),
            proptest::option::of(0..3u8)
        )
            .prop_map(|(v6, kind, code)| Traffic::Icmp {
                protocol: if v6 { 58 } else { 1 },
                kind: if v6 { kind.map(icmpv6_type) } else { kind },
                code,
            }),
    ]
}

/// Types of errors, of echoes and of what is neither; none of neighbour discovery, which no
/// rule is about.
fn icmpv6_type(index: u8) -> u8 {
    [0, 1, 2, 3, 4, 128, 129, 100, 127, 138, 200, 255][usize::from(index % 12)]
}

fn rule() -> impl Strategy<Value = Rule> {
    (any::<bool>(), traffic(), peer()).prop_map(|(ingress, traffic, peer)| Rule {
        direction: if ingress {
            Direction::Ingress
        } else {
            Direction::Egress
        },
        traffic,
        peer,
    })
}

/// A host beyond the uplink, and what it has.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 50);
const REMOTE_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 0x50);
/// Addresses that no port here has: nobody's, another host's, outside.
const ELSEWHERE: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 0, 0, 99),
    REMOTE,
    Ipv4Addr::new(203, 0, 113, 7),
];
const ELSEWHERE_IPV6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0x99),
    REMOTE_IPV6,
    STRANGER,
];
/// Someone outside.
const STRANGER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

fn target() -> impl Strategy<Value = Target> {
    let hops = ADDRESSES.map(Ipv4Addr::from).into_iter().chain([REMOTE]);
    prop_oneof![
        3 => Just(Target::Local),
        1 => Just(Target::Blackhole),
        2 => Just(Target::Outside),
        1 => Just(Target::EgressOnly),
        2 => proptest::sample::select(hops.collect::<Vec<_>>())
            .prop_map(|hop| Target::NextHop(hop.into())),
        1 => Just(Target::Peer(Vni(6))),
    ]
}

fn route_table() -> impl Strategy<Value = RouteTable> {
    let prefixes = [
        "0.0.0.0/0",
        "10.0.0.0/16",
        "10.0.1.0/24",
        "10.0.0.0/24",
        "10.0.1.10/32",
        "::/0",
        "fd00::/32",
        "fd00:0:0:2::/64",
        "fd00:0:0:100::/56",
        "2001:db8::/32",
        "fd00:0:0:2::10/128",
    ];
    let prefix = proptest::sample::select(prefixes.to_vec());
    vec((prefix, target()), 0..5).prop_map(|routes| RouteTable {
        routes: routes
            .into_iter()
            .map(|(prefix, target)| (prefix.parse().expect("a prefix"), target))
            .collect(),
    })
}

fn acl() -> impl Strategy<Value = Acl> {
    let entry = (any::<bool>(), 1..20u32, traffic(), peer(), any::<bool>());
    vec(entry, 0..6).prop_map(|entries| {
        let entries = entries
            .into_iter()
            .filter_map(|(out, number, traffic, peer, allow)| {
                let Peer::Cidr(cidr) = peer else { return None };
                let direction = if out {
                    Direction::Egress
                } else {
                    Direction::Ingress
                };
                let entry = AclEntry {
                    traffic,
                    cidr,
                    allow,
                };
                Some(((direction, number), entry))
            });
        Acl {
            entries: entries.collect(),
        }
    })
}

/// What a port has besides groups.
#[derive(Clone, Debug)]
struct Extra {
    table: Option<usize>,
    acl: Option<usize>,
    check: bool,
    public: bool,
}

fn extra() -> impl Strategy<Value = Extra> {
    use proptest::option::weighted;
    let check = proptest::bool::weighted(0.7);
    (
        weighted(0.7, 0..3usize),
        weighted(0.5, 0..3usize),
        check,
        any::<bool>(),
    )
        .prop_map(|(table, acl, check, public)| Extra {
            table,
            acl,
            check,
            public,
        })
}

/// A policy whose ports have these interfaces: two networks of the same addresses that are
/// peered all the same, so that a route leads into the other.
pub fn policies(ifindexes: [u32; PORTS]) -> impl Strategy<Value = Policy> {
    let members = vec(subsequence(GROUPS.to_vec(), 0..=3), PORTS + 1);
    let rules = vec(vec(rule(), 0..6), GROUPS.len());
    let around = (
        vec(route_table(), 3),
        vec(acl(), 3),
        vec(extra(), PORTS + 1),
    );
    (members, rules, around).prop_map(move |(members, rules, (tables, acls, extras))| {
        let ports = members
            .iter()
            .take(PORTS)
            .enumerate()
            .map(|(index, groups)| {
                let vni = if index < 3 { 5 } else { 6 };
                let last = u8::try_from(index).expect("few ports") + 1;
                let (id, mut port) = port(
                    ifindexes[index],
                    vni,
                    ADDRESSES[index % 3],
                    groups,
                    [169, 254, 1, last],
                );
                let extra = &extras[index];
                port.table = extra.table.map(|table| TableId(table.to_string()));
                super::ipv6::give(&mut port, IPV6[index]);
                port.acl = extra.acl.map(|acl| AclId(acl.to_string()));
                port.source_dest_check = extra.check;
                if extra.public {
                    let own = Ipv4Addr::from(ADDRESSES[index % 3]);
                    port.publics.insert(own, Ipv4Addr::new(198, 51, 100, last));
                }
                (id, port)
            });
        let mut policy = policy(ports.collect::<Vec<_>>(), GROUPS.into_iter().zip(rules));
        let named = |index: usize| index.to_string();
        policy.tables = (0..).map(named).map(TableId).zip(tables).collect();
        policy.acls = (0..).map(named).map(AclId).zip(acls).collect();
        let ipv6 = ["fd00::/56", "fd00:0:0:100::/56"].map(|net| net.parse().expect("a prefix"));
        for (vni, peer, [own, theirs]) in
            [(Vni(5), Vni(6), ipv6), (Vni(6), Vni(5), [ipv6[1], ipv6[0]])]
        {
            let network = Network {
                cidrs: ["10.0.0.0/16".parse().expect("a prefix"), own].into(),
                peers: [
                    ("172.20.0.0/16".parse().expect("a prefix"), peer),
                    (theirs, peer),
                ]
                .into(),
            };
            policy.networks.insert(vni, network);
        }
        let groups = members[PORTS].iter().map(|name| GroupId((*name).into()));
        let remote = Remote {
            host: HOST,
            mac: Mac([2, 9, 9, 9, 9, 9]),
            groups: groups.collect(),
            forwards: !extras[PORTS].check,
        };
        policy
            .remotes
            .insert((Vni(5), REMOTE_IPV6.into()), remote.clone());
        policy.remotes.insert((Vni(5), REMOTE.into()), remote);
        policy
    })
}

/// [`policies`] of groups alone: no routes, no ACLs, nobody elsewhere. Every other group may
/// send whatever it likes, as EC2's do at first, so that what receivers say matters.
pub fn group_policies(ifindexes: [u32; PORTS]) -> impl Strategy<Value = Policy> {
    let generous = vec(any::<bool>(), GROUPS.len());
    (policies(ifindexes), generous).prop_map(|(policy, generous)| Policy {
        ports: policy
            .ports
            .into_iter()
            .map(|(id, port)| {
                let plain = Port {
                    table: None,
                    acl: None,
                    source_dest_check: true,
                    ..port
                };
                (id, plain)
            })
            .collect(),
        groups: policy
            .groups
            .into_iter()
            .zip(generous)
            .map(|((id, mut group), generous)| {
                group
                    .rules
                    .extend(generous.then(everything).into_iter().flatten());
                (id, group)
            })
            .collect(),
        ..Policy::default()
    })
}

/// All of either IP goes out.
fn everything() -> [Rule; 2] {
    ["0.0.0.0/0", "::/0"].map(|prefix| Rule {
        direction: Direction::Egress,
        traffic: Traffic::All,
        peer: Peer::Cidr(prefix.parse().expect("a prefix")),
    })
}

/// Who asks whom what.
#[derive(Clone, Debug)]
pub struct Asked {
    from: Index,
    to: Option<Index>,
    else_to: usize,
    v6: bool,
    pub question: Question,
}

pub fn questions() -> impl Strategy<Value = Asked> {
    let to = proptest::option::weighted(0.8, any::<Index>());
    (
        any::<Index>(),
        (to, 0..ELSEWHERE.len(), any::<bool>()),
        protocol(),
        port_number(),
        0..12u8,
        0..3u8,
    )
        .prop_map(|(from, (to, else_to, v6), protocol, port, kind, code)| {
            // What is no protocol but an extension header has tests of its own.
            let protocol = match protocol {
                0 | 43 | 44 | 51 | 60 if v6 => 47,
                protocol => protocol,
            };
            let port = match (protocol, v6) {
                (1, false) => u16::from_be_bytes([kind, code]),
                (58, true) => u16::from_be_bytes([icmpv6_type(kind), code]),
                (6 | 17, _) => port,
                _ => 0,
            };
            Asked {
                from,
                to,
                else_to,
                v6,
                question: Question { protocol, port },
            }
        })
}

impl Asked {
    /// Whether flows of its protocol differ by more than addresses.
    pub fn has_ports(&self) -> bool {
        matches!(
            (self.question.protocol, self.v6),
            (6 | 17, _) | (1, false) | (58, true)
        )
    }

    /// The sender, its address and the receiver's; and the frame that asks. `nonce` makes
    /// its flow unlike others.
    pub fn frame(&self, policy: &Policy, nonce: u16) -> (PortId, u32, IpAddr, IpAddr, Vec<u8>) {
        if self.v6 {
            return self.ipv6_frame(policy, nonce);
        }
        let ports: Vec<(&PortId, &Port)> = policy.ports.iter().collect();
        let (id, sender) = self.from.get(&ports);
        let from = super::policy::end(sender, nonce);
        let to_ip = match &self.to {
            Some(to) => super::policy::end(to.get(&ports).1, 0).ip,
            None => ELSEWHERE[self.else_to],
        };
        let to = End {
            mac: ocs_dataplane::shared::layout::ROUTER_MAC,
            ip: to_ip,
            port: self.question.port,
        };
        let [kind, code] = self.question.port.to_be_bytes();
        let payload = match self.question.protocol {
            1 => frames::icmp_message(kind, code, nonce, b""),
            6 => frames::tcp_segment(from, to, frames::SYN, frames::ONES, b""),
            17 => frames::udp_datagram(from, to, b"x"),
            _ => vec![0; 8],
        };
        let protocol = self.question.protocol;
        let packet = frames::ipv4(from.ip, to.ip, protocol, Header::default(), &payload);
        let frame = frames::ethernet(to.mac, from.mac, 0x0800, &packet);
        let (source, to) = (from.ip.into(), to.ip.into());
        ((*id).clone(), sender.ifindex, source, to, frame)
    }

    fn ipv6_frame(&self, policy: &Policy, nonce: u16) -> (PortId, u32, IpAddr, IpAddr, Vec<u8>) {
        let ports: Vec<(&PortId, &Port)> = policy.ports.iter().collect();
        let (id, sender) = self.from.get(&ports);
        let from = ipv6::end(sender, nonce);
        let to = ipv6::End {
            mac: ocs_dataplane::shared::layout::ROUTER_MAC,
            ip: match &self.to {
                Some(to) => ipv6::end(to.get(&ports).1, 0).ip,
                None => ELSEWHERE_IPV6[self.else_to],
            },
            port: self.question.port,
        };
        let [kind, code] = self.question.port.to_be_bytes();
        let [high, low] = nonce.to_be_bytes();
        let protocol = self.question.protocol;
        let payload = match protocol {
            ipv6::ICMPV6 => ipv6::icmp_message(from, to, kind, code, &[high, low, 0, 1]),
            ipv6::TCP => ipv6::tcp_segment(from, to, ipv6::SYN),
            ipv6::UDP => ipv6::udp_datagram(from, to, b"x"),
            _ => vec![0; 8],
        };
        let frame = ipv6::frame(from, to, protocol, &payload);
        let (source, to) = (from.ip.into(), to.ip.into());
        ((*id).clone(), sender.ifindex, source, to, frame)
    }
}
