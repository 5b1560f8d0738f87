//! To the outside and back: as routes lead, and as rules say.

use super::*;
use ocs_dataplane::model::Network;
use ocs_dataplane::shared::layout::{OUTSIDE_HOST_IPV6, OUTSIDE_SLOT};

const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// Someone outside, whose frames come from the next hop.
fn stranger(last: u16, port: u16) -> End {
    End {
        mac: HOP_MAC,
        ip: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last),
        port,
    }
}

/// A, by whose route table all else goes to `target`, which may send anything and hears TCP
/// port 80 of 2001:db8::/112; on a host whose uplink leads outside.
fn host(target: Target) -> Bench {
    let mut desired = three([A, B, C]);
    let routes = [
        ("fd00::/56".parse().expect("a prefix"), Target::Local),
        ("::/0".parse().expect("a prefix"), target),
    ];
    let table = RouteTable {
        routes: routes.into(),
    };
    desired.tables.insert(TableId("t".into()), table);
    for port in desired.ports.values_mut().filter(|port| port.ifindex == A) {
        port.table = Some(TableId("t".into()));
    }
    let network = Network {
        cidrs: ["fd00::/56".parse().expect("a prefix")].into(),
        ..Network::default()
    };
    desired.networks.insert(Vni(5), network);
    let group = desired.groups.get_mut(&GroupId("a".into()));
    let rules = &mut group.expect("a group").rules;
    rules.insert(rule(Way::Egress, Traffic::All, cidr("::/0")));
    let web = ports_of(TCP, 80, 80);
    rules.insert(rule(Way::Ingress, web, cidr("2001:db8::/112")));
    let mut bench = Bench::of(desired);
    let way = Host::new(OUTSIDE_HOST_IPV6, HOP_MAC, 0, UPLINK_MAC);
    bench.memory.hosts.insert(OUTSIDE_HOST_IPV6, way);
    let uplink = Uplink {
        address: raw(HERE),
        mac: UPLINK_MAC,
        ..Uplink::default()
    };
    bench.memory.uplinks.insert(UPLINK_SLOT, uplink);
    bench
}

/// What becomes of a frame from outside, and the frame then.
fn arrives(bench: &Bench, frame: &[u8]) -> (Action, Vec<u8>) {
    let mut frame = frame.to_vec();
    (bench.memory.run_uplink(&mut frame), frame)
}

fn is_heard(bench: &Bench, frame: &[u8]) -> bool {
    matches!(arrives(bench, frame).0, Action::Redirect { .. })
}

fn refused_outside(bench: &Bench, frame: &[u8], reason: Reason) {
    let count = || {
        let counters = bench.memory.counters_at(UPLINK_SLOT);
        counters.get(Direction::Egress, reason)
    };
    let before = count();
    assert_eq!(arrives(bench, frame).0, Action::Drop, "{reason:?}");
    assert_eq!(count(), before + 1, "{reason:?}");
}

#[test]
fn it_leaves_from_its_own_address_and_answers_come_back() {
    let bench = host(Target::Outside);
    let (a, b) = (bench.end(A, 4000), stranger(1, 53));
    assert!(!is_heard(&bench, &udp(b, a, b"unasked")));
    let (action, left) = bench.run(A, &udp(a, b, b"question"));
    assert!(
        matches!(
            action,
            Action::Redirect {
                slot: OUTSIDE_SLOT,
                ..
            }
        ),
        "{action:?}"
    );
    let mut expected = udp(a, b, b"question");
    expected[..6].copy_from_slice(&HOP_MAC);
    expected[6..12].copy_from_slice(&UPLINK_MAC);
    expected[21] = 63;
    assert_eq!(left, expected);
    let (action, heard) = arrives(&bench, &udp(b, a, b"answer"));
    assert!(matches!(action, Action::Redirect { .. }), "{action:?}");
    let mut expected = udp(b, a, b"answer");
    expected[..6].copy_from_slice(&a.mac);
    expected[6..12].copy_from_slice(&ROUTER_MAC);
    expected[21] = 63;
    assert_eq!(heard, expected);
    // Nobody else answers for them.
    assert!(!is_heard(&bench, &udp(stranger(2, 53), a, b"answer")));
}

#[test]
fn rules_say_who_begins_outside() {
    let bench = host(Target::Outside);
    let web = bench.end(A, 80);
    assert!(is_heard(&bench, &tcp(stranger(1, 5000), web, SYN)));
    let beyond = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, 1);
    let beyond = End {
        ip: beyond,
        ..stranger(1, 5000)
    };
    let denied = || {
        bench
            .memory
            .counters_of(A)
            .get(Direction::Ingress, Reason::IngressDenied)
    };
    assert!(!is_heard(&bench, &tcp(beyond, web, SYN)));
    assert!(!is_heard(
        &bench,
        &tcp(stranger(1, 5000), End { port: 81, ..web }, SYN)
    ));
    assert_eq!(denied(), 2);
    // C's table leads nowhere outside: the host does not know it there.
    let (action, _) = arrives(&bench, &tcp(stranger(1, 5000), bench.end(C, 80), SYN));
    assert_eq!(action, Action::Pass);
}

#[test]
fn nothing_begins_outside_where_flows_may_only_leave() {
    let bench = host(Target::EgressOnly);
    let (web, b) = (bench.end(A, 80), stranger(1, 5000));
    assert!(
        !is_heard(&bench, &tcp(b, web, SYN)),
        "though rules allow it"
    );
    let counters = bench.memory.counters_of(A);
    assert_eq!(counters.get(Direction::Ingress, Reason::EgressOnly), 1);
    let (a, server) = (bench.end(A, 4000), stranger(1, 443));
    assert!(bench.passes(A, &tcp(a, server, SYN)));
    assert!(is_heard(&bench, &tcp(server, a, 0x12)), "an answer");
    assert!(!is_heard(&bench, &tcp(server, a, SYN)), "a new question");
}

#[test]
fn no_one_of_the_network_and_no_one_of_a_link_comes_from_outside() {
    let bench = host(Target::Outside);
    let web = bench.end(A, 80);
    for source in [
        "fd00:0:0:3::1",
        "fe80::1",
        "ff02::1",
        "::",
        "::1",
        "::ffff:192.0.2.7",
        "fd00:ec2::254",
    ] {
        let from = End {
            ip: source.parse().expect("an address"),
            ..stranger(1, 5000)
        };
        refused_outside(&bench, &tcp(from, web, SYN), Reason::Spoofed);
    }
    let whole = tcp(stranger(1, 5000), web, SYN);
    let mut last_hop = whole.clone();
    last_hop[21] = 1;
    refused_outside(&bench, &last_hop, Reason::TtlExceeded);
    for length in 0..whole.len() {
        assert!(!is_heard(&bench, &whole[..length]), "{length}");
    }
    let nobody = End {
        ip: address(1, 0x99),
        ..web
    };
    assert_eq!(
        arrives(&bench, &tcp(stranger(1, 1), nobody, SYN)).0,
        Action::Pass
    );
}

/// Path MTU discovery: whoever stands on the way may speak of what went by.
#[test]
fn an_error_from_the_way_arrives_if_it_quotes_a_flow() {
    let bench = host(Target::EgressOnly);
    let (a, b) = (bench.end(A, 4000), stranger(1, 443));
    let sent = tcp(a, b, SYN);
    assert!(bench.passes(A, &sent));
    let router = stranger(0x77, 0);
    let (action, heard) = arrives(&bench, &ipv6::error(router, a, 2, &sent));
    assert!(matches!(action, Action::Redirect { .. }), "{action:?}");
    assert!(checksum_holds(&heard));
    let never_sent = tcp(a, stranger(2, 443), SYN);
    assert!(!is_heard(&bench, &ipv6::error(router, a, 2, &never_sent)));
}

#[test]
fn solicitations_for_its_addresses_are_answered_and_no_others() {
    let bench = host(Target::Outside);
    let router = stranger(0xfe, 0);
    let a = bench.end(A, 0);
    let (action, answer) = arrives(&bench, &solicitation(router, a.ip));
    assert_eq!(action, Action::Bounce);
    assert!(checksum_holds(&answer));
    assert_eq!(
        (&answer[..6], &answer[6..12]),
        (&HOP_MAC[..], &UPLINK_MAC[..])
    );
    assert_eq!(
        (ipv6::source(&answer), ipv6::destination(&answer)),
        (a.ip, router.ip)
    );
    assert_eq!(answer[PAYLOAD], 136);
    for target in [bench.end(C, 0).ip, address(1, 0x99), router.ip] {
        let (action, _) = arrives(&bench, &solicitation(router, target));
        assert_eq!(action, Action::Pass, "{target}: the host's own");
    }
}

#[test]
fn an_acl_knows_places_outside() {
    let mut desired = host(Target::Outside).policy;
    let entry = |way, number, prefix: &str, allow| {
        let entry = AclEntry {
            traffic: Traffic::All,
            cidr: prefix.parse().expect("a prefix"),
            allow,
        };
        ((way, number), entry)
    };
    let entries = [
        entry(Way::Egress, 1, "2001:db8::2/128", false),
        entry(Way::Egress, 2, "::/0", true),
        entry(Way::Ingress, 1, "2001:db8::/64", true),
    ];
    let acl = Acl {
        entries: entries.into(),
    };
    desired.acls.insert(AclId("x".into()), acl);
    for port in desired.ports.values_mut().filter(|port| port.ifindex == A) {
        port.acl = Some(AclId("x".into()));
    }
    let mut bench = host(Target::Outside);
    bench.memory.apply(&desired);
    let a = bench.end(A, 4000);
    assert!(bench.passes(A, &udp(a, stranger(1, 53), b"x")));
    let denied = udp(a, stranger(2, 53), b"x");
    bench.refused(A, &denied, A, Direction::Egress, Reason::AclDenied);
    let web = bench.end(A, 80);
    assert!(is_heard(&bench, &tcp(stranger(3, 5000), web, SYN)));
}
