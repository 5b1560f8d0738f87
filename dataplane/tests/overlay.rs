//! Hosts joined by a cable, each with a fabric of its own: what crosses, what leaves, what
//! comes back.

#[path = "overlay/foreign.rs"]
mod foreign;
#[path = "overlay/outside.rs"]
mod outside;
#[path = "overlay/outside_ipv6.rs"]
mod outside_ipv6;
mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ocs_dataplane::fabric::{Counters, UplinkConfig};
use ocs_dataplane::model::{Policy, Port, PortId, Remote, Vni};
use ocs_dataplane::shared::layout::{Direction, Reason};
use support::frames::{
    ACK, End, FIN_ACK, SYN, SYN_ACK, checksums_hold, destination, payload, source, tcp, tcp_at,
};
use support::policy::{all_out, end, group, policy, port, tcp_in};
use support::underlay::Netns;
use support::{Guest, Lab};

const VNI: u32 = 5;

/// A host: its fabric, its namespace, its address on the cable.
struct Host {
    lab: Lab,
    netns: Netns,
    address: Ipv4Addr,
}

impl Host {
    fn new(last: u8) -> Self {
        Self {
            lab: Lab::new(),
            netns: Netns::new(),
            address: Ipv4Addr::new(192, 0, 2, last),
        }
    }

    fn attach(&self, interface: &str) {
        self.netns
            .ip(&format!("addr replace {}/24 dev {interface}", self.address));
        let config = UplinkConfig {
            interface: interface.to_owned(),
            address: self.address,
            outside: false,
        };
        let mtu = self.netns.within(|| self.lab.set_uplink(config));
        assert_eq!(mtu.expect("an uplink"), 1500);
    }

    /// Applies a policy, and waits until the kernel knows the way to all its hosts.
    fn apply(&self, policy: &Policy) {
        self.netns
            .within(|| self.lab.apply(policy))
            .unwrap_or_else(|error| panic!("{}", support::chain(&error)));
        for _ in 0..100 {
            let unknown = self.netns.within(|| self.lab.refresh_hosts());
            match unknown {
                Ok(0) => return,
                Ok(_) => std::thread::sleep(Duration::from_millis(50)),
                Err(error) => panic!("{}", support::chain(&error)),
            }
        }
        panic!("a host was not found");
    }

    fn refused(&self, reason: Reason) -> u64 {
        let counters: Counters = self.lab.uplink_counters().expect("counters");
        counters.get(Direction::Egress, reason)
    }
}

/// A port as other hosts know it.
fn remote(port: &Port, host: Ipv4Addr) -> ((Vni, IpAddr), Remote) {
    let remote = Remote {
        host,
        mac: port.mac,
        groups: port.groups.clone(),
        forwards: !port.source_dest_check,
    };
    ((port.vni, port.addresses[0]), remote)
}

/// A on one host, B on another, of two subnets; B lets A's group in at port 80.
struct Two {
    hosts: [Host; 2],
    a: Guest,
    b: Guest,
    ports: [(PortId, Port); 2],
}

impl Two {
    fn new() -> Self {
        let hosts = [Host::new(1), Host::new(2)];
        hosts[0].netns.cable("up0", &hosts[1].netns, "up1");
        hosts[0].attach("up0");
        hosts[1].attach("up1");
        let a = Guest::new(&hosts[0].lab, "tap-a");
        let b = Guest::new(&hosts[1].lab, "tap-b");
        let mut ports = [
            port(a.ifindex, VNI, [10, 0, 0, 10], &["a"], [169, 254, 1, 1]),
            port(b.ifindex, VNI, [10, 0, 1, 10], &["b"], [169, 254, 1, 2]),
        ];
        for (_, port) in &mut ports {
            port.mtu = 1450;
        }
        let two = Self { hosts, a, b, ports };
        for host in 0..2 {
            two.hosts[host].apply(&two.policy(host, two.hosts[1 - host].address));
        }
        two
    }

    /// What one host is told: its port, and that the other is at `elsewhere`.
    fn policy(&self, host: usize, elsewhere: Ipv4Addr) -> Policy {
        let rules = |name| match name {
            "b" => vec![all_out(), tcp_in(80, 80, group("a"))],
            _ => vec![all_out()],
        };
        let groups = ["a", "b"].map(|name| (name, rules(name)));
        let mut policy = policy([self.ports[host].clone()], groups);
        policy
            .remotes
            .extend([remote(&self.ports[1 - host].1, elsewhere)]);
        policy
    }

    fn ends(&self) -> (End, End) {
        (end(&self.ports[0].1, 40_000), end(&self.ports[1].1, 80))
    }
}

#[test]
fn a_flow_crosses_hosts_by_group_reference() {
    let mut two = Two::new();
    let (a, b) = two.ends();
    for (flags, a_speaks) in [(SYN, true), (SYN_ACK, false), (ACK, true), (FIN_ACK, false)] {
        let (from, to) = if a_speaks { (a, b) } else { (b, a) };
        let frame = tcp(from, to, flags);
        let (sender, receiver) = if a_speaks {
            (&mut two.a, &mut two.b)
        } else {
            (&mut two.b, &mut two.a)
        };
        sender.send(&frame);
        let heard = receiver.receive();
        assert_eq!(payload(&heard), payload(&frame));
        assert_eq!((source(&heard), destination(&heard)), (from.ip, to.ip));
        assert_eq!(heard[..6], to.mac);
        assert_eq!(heard[22], 63, "routed once");
        assert!(checksums_hold(&heard));
    }
    two.b.send(&tcp(b, End { port: 99, ..a }, SYN));
    std::thread::sleep(Duration::from_millis(50));
    two.a.hears_nothing();
    let counters = two.hosts[0]
        .lab
        .counters(&two.ports[0].0)
        .expect("counters");
    assert_eq!(counters.get(Direction::Ingress, Reason::IngressDenied), 1);
}

/// A loader of another layout succeeds on one host, then on the other.
#[test]
fn a_flow_across_hosts_outlives_their_layouts() {
    let mut two = Two::new();
    let (a, b) = two.ends();
    let crosses = |two: &mut Two, what: &str| {
        for (flags, a_speaks) in [(ACK, true), (ACK, false)] {
            let (from, to) = if a_speaks { (a, b) } else { (b, a) };
            let (sender, receiver) = if a_speaks {
                (&mut two.a, &mut two.b)
            } else {
                (&mut two.b, &mut two.a)
            };
            sender.send(&tcp(from, to, flags));
            assert_eq!(destination(&receiver.receive()), to.ip, "{what}");
        }
    };
    two.a.send(&tcp(a, b, SYN));
    two.b.receive();
    for host in 0..2 {
        two.hosts[host].lab.succeed();
        crosses(&mut two, "before it is told anything");
        two.hosts[host].attach(["up0", "up1"][host]);
        crosses(&mut two, "before it has a policy");
        let mut policy = two.policy(host, two.hosts[1 - host].address);
        for group in policy.groups.values_mut() {
            group.rules.retain(|rule| *rule == all_out());
        }
        two.hosts[host].apply(&policy);
        crosses(
            &mut two,
            "by its successor, though no rule allows it any more",
        );
    }
    two.a.send(&tcp(End { port: 1, ..a }, b, SYN));
    std::thread::sleep(Duration::from_millis(50));
    two.b.hears_nothing();
}

#[test]
fn a_frame_from_another_host_than_its_senders_dies() {
    let mut two = Two::new();
    let (a, b) = two.ends();
    two.hosts[1]
        .lab
        .apply(&two.policy(1, Ipv4Addr::new(192, 0, 2, 77)))
        .expect("a policy");
    two.a.send(&tcp(a, b, SYN));
    std::thread::sleep(Duration::from_millis(50));
    two.b.hears_nothing();
    assert_eq!(two.hosts[1].refused(Reason::OuterSource), 1);
    two.hosts[1].apply(&two.policy(1, two.hosts[0].address));
    two.a.send(&tcp(a, b, SYN));
    two.b.receive();
}

#[test]
fn what_is_too_long_for_the_tunnel_is_answered() {
    let mut two = Two::new();
    let (a, b) = two.ends();
    let longest = tcp_at(a, b, SYN, support::frames::ONES, &[7; 1410]);
    assert_eq!(longest.len(), 14 + 1450);
    two.a.send(&longest);
    assert_eq!(payload(&two.b.receive()), payload(&longest));
    let longer = tcp_at(a, b, SYN, support::frames::ONES, &[7; 1411]);
    two.a.send(&longer);
    let answer = two.a.receive();
    assert_eq!(answer[34..36], [3, 4]);
    assert_eq!(answer[40..42], 1450u16.to_be_bytes());
    assert!(checksums_hold(&answer));
}
