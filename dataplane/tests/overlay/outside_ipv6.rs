//! IPv6 to the host's network and back, by live frames, of both kinds of port.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use ocs_dataplane::model::{
    Direction as Way, Network, Policy, Port, PortId, RouteTable, Rule, TableId, Target, Traffic,
    Vni,
};
use ocs_dataplane::shared::layout::{Direction, Reason};

use super::support::ipv6::{self, End, udp};
use super::support::policy::{cidr, policy, port};
use super::support::{self, Guest};
use super::{Host, VNI};

const STRANGER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1);
const OWN: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10),
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11),
];

/// Two ports, which send anything and hear UDP port 7.
fn desired(ports: &[(PortId, Port); 2], target: Target) -> Policy {
    let rule = |direction, traffic| Rule {
        direction,
        traffic,
        peer: cidr("::/0"),
    };
    let echo = Traffic::Ports {
        protocol: 17,
        from: 7,
        to: 7,
    };
    let rules = vec![rule(Way::Egress, Traffic::All), rule(Way::Ingress, echo)];
    let mut policy = policy(ports.clone(), [("a", rules)]);
    let routes = [
        ("2001:db8:1::/56".parse().expect("a prefix"), Target::Local),
        ("::/0".parse().expect("a prefix"), target),
    ];
    let table = RouteTable {
        routes: routes.into(),
    };
    policy.tables.insert(TableId("t".into()), table);
    let network = Network {
        cidrs: ["2001:db8:1::/56".parse().expect("a prefix")].into(),
        ..Network::default()
    };
    policy.networks.insert(Vni(VNI), network);
    policy
}

#[test]
fn both_kinds_of_port_reach_the_outside_and_are_reached_as_routes_and_rules_say() {
    let host = Host::new(1);
    host.netns.ip(&format!("addr add {STRANGER}/128 dev lo"));
    let blocks = ["2001:db8:1::/56".parse().expect("a prefix")];
    host.netns
        .within(|| host.lab.set_outside_pair("ocs-out", &blocks))
        .unwrap_or_else(|error| panic!("{}", support::chain(&error)));
    let mut guests = [
        Guest::new(&host.lab, "tap-a"),
        Guest::with_offloads(&host.lab, "tap-b", 0),
    ];
    let mut ports: [(PortId, Port); 2] = std::array::from_fn(|index| {
        let last = u8::try_from(index).expect("few ports") + 10;
        let service = [169, 254, 1, last];
        port(
            guests[index].ifindex,
            VNI,
            [10, 0, 0, last],
            &["a"],
            service,
        )
    });
    for (index, (_, port)) in ports.iter_mut().enumerate() {
        ipv6::give(port, OWN[index]);
        port.table = Some(TableId("t".into()));
    }
    let socket = host.netns.within(|| UdpSocket::bind((STRANGER, 53)));
    let socket = socket.expect("a socket");
    let patience = Some(Duration::from_secs(5));
    socket.set_read_timeout(patience).expect("a time-out");
    let heard_at = |guest: &mut Guest, own: Ipv6Addr, port: u16, data: &[u8]| {
        let to = SocketAddr::from((own, port));
        socket.send_to(data, to).expect("a datagram");
        let frame = guest.receive();
        assert_eq!(
            (ipv6::source(&frame), ipv6::destination(&frame)),
            (STRANGER, own)
        );
        assert!(frame.ends_with(data));
    };
    for (target, reason) in [
        (Target::Outside, Reason::IngressDenied),
        (Target::EgressOnly, Reason::EgressOnly),
    ] {
        host.apply(&desired(&ports, target));
        for (index, guest) in guests.iter_mut().enumerate() {
            let own = ipv6::end(&ports[index].1, 4000 + u16::from(target == Target::Outside));
            let out = End {
                mac: ocs_dataplane::shared::layout::ROUTER_MAC,
                ip: STRANGER,
                port: 53,
            };
            guest.send(&udp(own, out, b"question"));
            let (bytes, from) = support::responder::receive(&socket);
            assert_eq!(
                (bytes.as_slice(), from),
                (&b"question"[..], (own.ip, own.port).into())
            );
            heard_at(guest, own.ip, own.port, b"answer");
            if target == Target::Outside {
                heard_at(guest, own.ip, 7, b"as a rule says");
            }
            let refused = || {
                let counters = host.lab.counters(&ports[index].0).expect("counters");
                counters.get(Direction::Ingress, reason)
            };
            let before = refused();
            let closed = if target == Target::Outside { 9 } else { 70 };
            socket
                .send_to(b"unasked", (own.ip, closed))
                .expect("a datagram");
            std::thread::sleep(Duration::from_millis(50));
            guest.hears_nothing();
            assert_eq!(refused(), before + 1, "{target:?}");
        }
    }
}
