//! Other hosts, and what a packet asks for here and there.

use super::*;

/// What another host is told of a port's IPv6 address.
fn told_of(port: &Port, host: Ipv4Addr) -> ((Vni, IpAddr), Remote) {
    let remote = Remote {
        host,
        mac: port.mac,
        groups: port.groups.clone(),
        forwards: false,
    };
    ((port.vni, port.addresses[1]), remote)
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
        told_of(port, host)
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
        policy.remotes.extend([told_of(&far, addresses[1 - index])]);
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
        tell_of_far(&mut desired, address(7, n));
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
