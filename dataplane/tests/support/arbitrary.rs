//! Random policies and questions about them.

use std::net::Ipv4Addr;

use ocs_dataplane::model::{Direction, GroupId, Peer, Policy, Port, PortId, Rule, Traffic};
use ocs_dataplane::reference::Question;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use super::frames::{self, End, Header};
use super::policy::{policy, port};

const GROUPS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Ports of a policy: three to each of two networks, whose addresses overlap.
pub const PORTS: usize = 6;
const ADDRESSES: [[u8; 4]; 3] = [[10, 0, 0, 10], [10, 0, 0, 130], [10, 0, 1, 10]];

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        (0..GROUPS.len()).prop_map(|group| Peer::Group(GroupId(GROUPS[group].into()))),
        (0..ADDRESSES.len(), 0..=32u8).prop_map(|(address, length)| {
            let prefix = format!("{}/{length}", Ipv4Addr::from(ADDRESSES[address]));
            Peer::Cidr(prefix.parse::<ipnet::IpNet>().expect("a prefix").trunc())
        }),
    ]
}

/// Ports that questions also ask for, so that ranges and questions meet.
fn port_number() -> impl Strategy<Value = u16> {
    prop_oneof![79..=82u16, Just(0), Just(u16::MAX), any::<u16>()]
}

fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![Just(1), Just(6), Just(17), Just(47), any::<u8>()]
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
        (proptest::option::of(0..12u8), proptest::option::of(0..3u8)).prop_map(|(kind, code)| {
            Traffic::Icmp {
                protocol: 1,
                kind,
                code,
            }
        }),
    ]
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

/// A policy whose ports have these interfaces.
pub fn policies(ifindexes: [u32; PORTS]) -> impl Strategy<Value = Policy> {
    let members = vec(subsequence(GROUPS.to_vec(), 0..=3), PORTS);
    let rules = vec(vec(rule(), 0..6), GROUPS.len());
    (members, rules).prop_map(move |(members, rules)| {
        let ports = members.iter().enumerate().map(|(index, groups)| {
            let vni = if index < 3 { 5 } else { 6 };
            let last = u8::try_from(index).expect("few ports") + 1;
            port(
                ifindexes[index],
                vni,
                ADDRESSES[index % 3],
                groups,
                [169, 254, 1, last],
            )
        });
        policy(ports.collect::<Vec<_>>(), GROUPS.into_iter().zip(rules))
    })
}

/// Who asks whom what.
#[derive(Clone, Debug)]
pub struct Asked {
    from: Index,
    to: Option<Index>,
    pub question: Question,
}

pub fn questions() -> impl Strategy<Value = Asked> {
    let to = proptest::option::weighted(0.95, any::<Index>());
    (
        any::<Index>(),
        to,
        protocol(),
        port_number(),
        0..12u8,
        0..3u8,
    )
        .prop_map(|(from, to, protocol, port, kind, code)| Asked {
            from,
            to,
            question: Question {
                protocol,
                port: match protocol {
                    1 => u16::from_be_bytes([kind, code]),
                    6 | 17 => port,
                    _ => 0,
                },
            },
        })
}

impl Asked {
    /// The sender, its address and the receiver's; and the frame that asks. `nonce` makes
    /// its flow unlike others.
    pub fn frame(&self, policy: &Policy, nonce: u16) -> (PortId, u32, Ipv4Addr, Ipv4Addr, Vec<u8>) {
        let ports: Vec<(&PortId, &Port)> = policy.ports.iter().collect();
        let (id, sender) = self.from.get(&ports);
        let from = super::policy::end(sender, nonce);
        let to_ip = match &self.to {
            Some(to) => super::policy::end(to.get(&ports).1, 0).ip,
            None => Ipv4Addr::new(10, 0, 0, 99),
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
        ((*id).clone(), sender.ifindex, from.ip, to.ip, frame)
    }
}
