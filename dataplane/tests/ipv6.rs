//! IPv6 between ports: what passes, what is tracked, what is answered, what is refused.

#[path = "ipv6/hosts.rs"]
mod hosts;
#[path = "ipv6/neighbours.rs"]
mod neighbours;
#[path = "ipv6/outside.rs"]
mod outside;
#[path = "ipv6/services.rs"]
mod services;
#[path = "ipv6/shapes.rs"]
mod shapes;
mod support;
#[path = "ipv6/verdicts.rs"]
mod verdicts;

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

const FAR: Mac = Mac([2, 9, 9, 9, 9, 9]);

/// Tells of an address of group `b` on the other host.
fn tell_of_far(policy: &mut Policy, ip: Ipv6Addr) {
    let far = Remote {
        host: THERE,
        mac: FAR,
        groups: [GroupId("b".into())].into(),
        forwards: false,
    };
    policy.remotes.insert((Vni(5), ip.into()), far);
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
