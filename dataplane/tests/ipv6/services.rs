//! DHCPv6, the metadata service and the resolver: two networks with the same addresses, one
//! responder.

use std::net::{SocketAddr, SocketAddrV6};

use super::support::frames::ethernet;
use super::support::responder::{self, ADDRESS_IPV6, RESOLVER_IPV6};
use super::*;

/// Two networks with one guest each, both at fd00:0:0:1::a; one guest may leave checksums to
/// others.
struct Overlap {
    lab: Lab,
    guests: [Guest; 2],
    ports: [(PortId, Port); 2],
}

fn overlap() -> Overlap {
    let lab = Lab::new();
    let guests = [
        Guest::new(&lab, "tap-a"),
        Guest::with_offloads(&lab, "tap-b", 0),
    ];
    let at = |n: usize, vni| {
        let last = u8::try_from(n + 1).expect("a small number");
        let address = [169, 254, 1, last];
        let mut made = port(guests[n].ifindex, vni, [10, 0, 0, 10], &["g"], address);
        ipv6::give(&mut made.1, super::address(1, 10));
        made.1.addresses.push(super::address(1, 11).into());
        made
    };
    let ports = [at(0, 5), at(1, 6)];
    lab.apply(&policy(ports.clone(), [("g", vec![])]))
        .expect("a policy in which no rule lets anything out");
    Overlap { lab, guests, ports }
}

/// What the responder takes a port for that asks from an address.
fn seen_as(port: &Port, from: End) -> SocketAddr {
    let [a, b, c, d] = port.service_address.octets();
    let mut bytes = from.ip.octets();
    bytes[..4].copy_from_slice(&[0xfd, 0, 0x0e, 0xc2]);
    bytes[4..8].copy_from_slice(&[a, b, c, d]);
    SocketAddrV6::new(bytes.into(), from.port, 0, 0).into()
}

fn service(ip: Ipv6Addr, port: u16) -> End {
    End {
        mac: ROUTER_MAC,
        ip,
        port,
    }
}

fn all_servers() -> End {
    End {
        mac: [0x33, 0x33, 0, 1, 0, 2],
        ip: "ff02::1:2".parse().expect("an address"),
        port: 547,
    }
}

#[test]
fn guests_are_known_apart_and_answered_where_they_asked() {
    let mut overlap = overlap();
    let lab = &overlap.lab;
    let dhcp = responder::datagrams_at(lab, ADDRESS_IPV6.into(), 547);
    let dns = responder::datagrams_at(lab, RESOLVER_IPV6.into(), 53);
    for (guest, (id, port)) in overlap.guests.iter_mut().zip(&overlap.ports) {
        let own = ipv6::end(port, 4_000);
        let second = End {
            ip: super::address(1, 11),
            ..own
        };
        let client = End {
            port: 546,
            ..link_local(own)
        };
        let resolver = service(RESOLVER_IPV6, 53);
        // Clients need not make their link-local address of their Ethernet address.
        let private = End {
            ip: "fe80::1234:5678:9abc:def0".parse().expect("an address"),
            ..client
        };
        for (from, to, socket, answered_from) in [
            (client, all_servers(), &dhcp, ipv6::router().ip),
            (private, all_servers(), &dhcp, ipv6::router().ip),
            (own, resolver, &dns, RESOLVER_IPV6),
            (second, resolver, &dns, RESOLVER_IPV6),
        ] {
            guest.send(&udp(from, to, b"question"));
            let (heard, who) = responder::receive(socket);
            assert_eq!(heard, b"question");
            assert_eq!(who, seen_as(port, from));
            socket.send_to(b"answer", who).expect("an answer");
            let frame = guest.receive();
            assert_eq!(
                (&frame[..6], &frame[6..12]),
                (&port.mac.0[..], &ROUTER_MAC[..])
            );
            assert_eq!(ipv6::source(&frame), answered_from);
            assert_eq!(ipv6::destination(&frame), from.ip);
            assert_eq!(frame[PAYLOAD..PAYLOAD + 2], to.port.to_be_bytes());
            assert_eq!(frame[PAYLOAD + 2..PAYLOAD + 4], from.port.to_be_bytes());
            assert_eq!(frame[PAYLOAD + 8..], *b"answer");
            assert!(checksum_holds(&frame));
        }
        let counters = lab.counters(id).expect("counters");
        assert_eq!(counters.get(Direction::Egress, Reason::Forwarded), 4);
    }
}

/// The responder tells of the router, who is on the guest's link.
#[test]
fn a_guest_hears_of_its_router_again() {
    let overlap = overlap();
    let (_, port) = &overlap.ports[0];
    let client = End {
        port: 546,
        ..link_local(ipv6::end(port, 0))
    };
    let SocketAddr::V6(seen) = seen_as(port, client) else {
        panic!("an IPv6 address");
    };
    let guest = End {
        mac: [2; 6],
        ip: *seen.ip(),
        port: 0,
    };
    for (from, passes) in [(ADDRESS_IPV6, true), (RESOLVER_IPV6, false)] {
        let message = ipv6::to_neighbour(service(from, 0), guest, 134, &[0; 12]);
        let run = overlap.lab.run_svc(&message).expect("a run");
        assert_eq!(run.action == 4, passes, "{from}: redirected, or dropped");
        if passes {
            assert_eq!(ipv6::source(&run.frame), ipv6::router().ip);
            assert_eq!(ipv6::destination(&run.frame), client.ip);
            assert_eq!(run.frame[21], 255);
            assert!(checksum_holds(&run.frame));
        }
    }
}

/// Packets that look like a service's and are not, and why they die.
#[test]
fn what_is_not_served_is_dropped_and_counted() {
    let bench = Bench::new();
    let own = bench.end(A, 4_000);
    let link = link_local(own);
    let metadata = service(ADDRESS_IPV6, 80);
    let resolver = service(RESOLVER_IPV6, 53);
    let stranger = End {
        ip: super::address(1, 66),
        ..own
    };
    let as_client = |end: End| End { port: 546, ..end };
    let fragment = |from: End, to: End| {
        let datagram = ipv6::udp_datagram(from, to, &[0; 16]);
        let part = ipv6::fragment(UDP, 0, true, 7, &datagram[..16]);
        frame(from, to, FRAGMENT, &part)
    };
    for (packet, reason) in [
        (tcp(stranger, metadata, SYN), Reason::Spoofed),
        (tcp(link, metadata, SYN), Reason::Spoofed),
        (udp(as_client(own), all_servers(), b""), Reason::Spoofed),
        (udp(own, metadata, b""), Reason::NotServed),
        (tcp(own, service(ADDRESS_IPV6, 81), SYN), Reason::NotServed),
        (tcp(own, service(RESOLVER_IPV6, 80), SYN), Reason::NotServed),
        (tcp(own, service(ADDRESS_IPV6, 53), SYN), Reason::NotServed),
        (echo(own, metadata, 128, 1), Reason::NotServed),
        (udp(link, all_servers(), b""), Reason::NotServed),
        (
            tcp(own, service("fd00:ec2::123".parse().expect("it"), 80), SYN),
            Reason::NotServed,
        ),
        (fragment(own, resolver), Reason::Fragment),
    ] {
        bench.refused(A, &packet, A, Direction::Egress, reason);
    }
    // Its own services are not told to others by an address of theirs.
    assert!(bench.passes(A, &tcp(own, metadata, SYN)));
    assert!(bench.passes(A, &udp(own, resolver, b"question")));
}

/// What the responder's host might send by itself, or by mistake.
#[test]
fn the_responder_says_only_what_it_serves() {
    let overlap = overlap();
    let (_, port) = &overlap.ports[0];
    let client = End {
        port: 546,
        ..link_local(ipv6::end(port, 0))
    };
    let SocketAddr::V6(seen) = seen_as(port, client) else {
        panic!("an IPv6 address");
    };
    let guest = End {
        mac: [2; 6],
        ip: *seen.ip(),
        port: 546,
    };
    let nobody = End {
        ip: "fd00:ec2:a9fe:6363::1".parse().expect("an address"),
        ..guest
    };
    let own = ipv6::end(port, 546);
    let from = |ip, port| service(ip, port);
    let count = |reason| {
        let counters = overlap.lab.responder_counters().expect("counters");
        counters.get(Direction::Egress, reason)
    };
    for (packet, reason) in [
        (udp(from(ADDRESS_IPV6, 547), nobody, b""), Reason::NoPort),
        (udp(from(ADDRESS_IPV6, 547), own, b""), Reason::NoPort),
        (udp(from(RESOLVER_IPV6, 547), guest, b""), Reason::NotServed),
        (udp(from(ADDRESS_IPV6, 53), guest, b""), Reason::NotServed),
        (udp(from(ADDRESS_IPV6, 80), guest, b""), Reason::NotServed),
        (tcp(from(RESOLVER_IPV6, 80), guest, SYN), Reason::NotServed),
        (tcp(from(ADDRESS_IPV6, 22), guest, SYN), Reason::NotServed),
        (
            echo(from(ADDRESS_IPV6, 0), guest, 129, 1),
            Reason::NotServed,
        ),
        (
            ethernet(guest.mac, ROUTER_MAC, ipv6::ETHERTYPE, &[0x60; 20]),
            Reason::Malformed,
        ),
    ] {
        let before = count(reason);
        let run = overlap.lab.run_svc(&packet).expect("a run");
        assert_eq!((run.action, count(reason)), (1, before + 1), "{reason:?}");
    }
}
