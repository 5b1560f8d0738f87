//! What passes and what is tracked: rules, ACLs, routes, sources.

use super::*;

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
            route("2001:db8::/32", Target::Peer(Vni(6))),
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
    let peered = "2001:db8::1".parse().expect("an address");
    for (ip, reason) in [
        (address(2, 99), Reason::NoEndpoint),
        (address(3, 1), Reason::Blackhole),
        (peered, Reason::Blackhole),
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
