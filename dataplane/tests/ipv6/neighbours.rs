//! Who asks for a neighbour or a router.

use super::*;

#[test]
fn neighbours_are_answered_for() {
    let mut desired = three([A, B, C]);
    tell_of_far(&mut desired, address(1, 0x50));
    let bench = Bench::of(desired);
    let (a, b, c) = (bench.end(A, 0), bench.end(B, 0), bench.end(C, 0));
    let remote = End {
        mac: FAR.0,
        ip: address(1, 0x50),
        port: 0,
    };
    for from in [a, link_local(a)] {
        for (to, flags) in [(b, 0x60), (remote, 0x60), (ipv6::router(), 0xe0)] {
            let (action, answer) = bench.run(A, &solicitation(from, to.ip));
            assert_eq!(action, Action::Bounce);
            assert_eq!((&answer[..6], &answer[6..12]), (&a.mac[..], &to.mac[..]));
            assert_eq!(
                (ipv6::source(&answer), ipv6::destination(&answer)),
                (to.ip, from.ip)
            );
            assert_eq!(answer[20..22], [ICMPV6, 255]);
            assert_eq!(answer[PAYLOAD..PAYLOAD + 2], [136, 0]);
            assert_eq!(answer[PAYLOAD + 4], flags);
            assert_eq!(answer[PAYLOAD + 8..PAYLOAD + 24], to.ip.octets());
            assert_eq!(answer[PAYLOAD + 24..PAYLOAD + 26], [2, 1]);
            assert_eq!(answer[PAYLOAD + 26..], to.mac);
            assert!(checksum_holds(&answer));
        }
        // Is B still there? It is asked itself, and need not be told who asks.
        let mut rest = vec![0; 4];
        rest.extend_from_slice(&b.ip.octets());
        let (action, answer) = bench.run(A, &ipv6::to_neighbour(from, b, 135, &rest));
        assert_eq!(action, Action::Bounce);
        assert_eq!(answer.len(), PAYLOAD + 24);
        assert!(checksum_holds(&answer));
    }
    // Nobody has it, it is one's own, it is of another subnet; and nobody else's duplicate.
    for target in [address(1, 0x99), a.ip, c.ip] {
        let question = solicitation(a, target);
        bench.refused(A, &question, A, Direction::Egress, Reason::ArpUnanswered);
    }
    let nobody = End {
        ip: Ipv6Addr::UNSPECIFIED,
        ..a
    };
    let question = solicitation(nobody, b.ip);
    bench.refused(A, &question, A, Direction::Egress, Reason::ArpUnanswered);
    let spoofed = solicitation(End { ip: b.ip, ..a }, c.ip);
    bench.refused(A, &spoofed, A, Direction::Egress, Reason::Spoofed);
    // What has crossed a router is no neighbour's (RFC 4861 §7.1.1).
    let mut far = solicitation(a, b.ip);
    far[21] = 254;
    bench.refused(A, &far, A, Direction::Egress, Reason::Malformed);
    // An advertisement changes nobody's mind.
    let lie = ipv6::to_neighbour(a, b, 136, &[0; 20]);
    bench.refused(A, &lie, A, Direction::Egress, Reason::ArpUnanswered);
}

/// What Linux asks for when a link comes up, before and after it has an address there.
#[test]
fn the_router_says_that_addresses_are_managed() {
    let mut desired = three([A, B, C]);
    for port in desired.ports.values_mut() {
        port.mtu = 1450;
    }
    let bench = Bench::of(desired);
    let a = bench.end(A, 0);
    let routers = End {
        mac: [0x33, 0x33, 0, 0, 0, 2],
        ip: "ff02::2".parse().expect("an address"),
        port: 0,
    };
    let nobody = End {
        ip: Ipv6Addr::UNSPECIFIED,
        ..a
    };
    let mut named = vec![0, 0, 0, 0, 1, 1];
    named.extend_from_slice(&a.mac);
    let nodes: Ipv6Addr = "ff02::1".parse().expect("an address");
    for (from, rest, to) in [
        (nobody, &[0; 4][..], nodes),
        (link_local(a), &named, link_local(a).ip),
        (a, &named, a.ip),
    ] {
        let question = ipv6::to_neighbour(from, routers, 133, rest);
        let (action, answer) = bench.run(A, &question);
        assert_eq!(action, Action::Bounce);
        assert_eq!(
            (&answer[..6], &answer[6..12]),
            (&a.mac[..], &ROUTER_MAC[..])
        );
        assert_eq!(ipv6::source(&answer), ipv6::router().ip);
        assert_eq!(ipv6::destination(&answer), to);
        assert_eq!(answer[20..22], [ICMPV6, 255]);
        let message = &answer[PAYLOAD..];
        assert_eq!(message[..2], [134, 0]);
        assert_eq!(
            message[4..8],
            [64, 0xc0, 0x07, 0x08],
            "managed, for 1,800 s"
        );
        assert_eq!(message[8..16], [0; 8]);
        assert_eq!(message[16..18], [1, 1]);
        assert_eq!(message[18..24], ROUTER_MAC);
        assert_eq!(
            message[24..32],
            [5, 1, 0, 0, 0, 0, 0x05, 0xaa],
            "the MTU, 1,450"
        );
        assert_eq!(message.len(), 32);
        assert!(checksum_holds(&answer));
        let mut far = question;
        far[21] = 64;
        bench.refused(A, &far, A, Direction::Egress, Reason::Malformed);
    }
    let lie = ipv6::to_neighbour(link_local(a), routers, 134, &[0; 12]);
    bench.refused(A, &lie, A, Direction::Egress, Reason::ArpUnanswered);
}
