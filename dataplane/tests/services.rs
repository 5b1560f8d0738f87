//! DHCP and metadata: two networks with the same addresses, one responder.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ocs_dataplane::model::{Port, PortId};
use ocs_dataplane::shared::layout::{
    DNS_LINK_LOCAL_PORT, Direction, METADATA, RESOLVER, ROUTER_MAC, Reason,
};
use support::frames::{
    ACK, End, Numbers, SYN, SYN_ACK, arp, checksums_hold, destination, ethernet, icmp, metadata,
    payload, source, tcp, tcp_at, udp,
};
use support::policy::{all_out, end, policy, port};
use support::{Guest, Lab, responder};

/// Two networks with one guest each, both at 10.0.0.10.
struct Overlap {
    lab: Lab,
    guests: [Guest; 2],
    ports: [(PortId, Port); 2],
}

const SERVICES: [[u8; 4]; 2] = [[169, 254, 1, 1], [169, 254, 1, 2]];

impl Overlap {
    fn new() -> Self {
        let lab = Lab::new();
        let guests = ["tap-a", "tap-b"].map(|name| Guest::new(&lab, name));
        let at = |index: usize, vni| {
            let ifindex = guests[index].ifindex;
            port(ifindex, vni, [10, 0, 0, 10], &["g"], SERVICES[index])
        };
        let ports = [at(0, 5), at(1, 6)];
        lab.apply(&policy(ports.clone(), [("g", vec![all_out()])]))
            .expect("a policy");
        Self { lab, guests, ports }
    }

    fn end(&self, index: usize, at: u16) -> End {
        end(&self.ports[index].1, at)
    }
}

#[test]
fn dhcp_before_an_address_is_answered_to_all() {
    let mut overlap = Overlap::new();
    let socket = responder::dhcp(&overlap.lab);
    for (index, service) in SERVICES.into_iter().enumerate() {
        let from = End {
            ip: Ipv4Addr::UNSPECIFIED,
            ..overlap.end(index, 68)
        };
        let to = End {
            mac: [0xff; 6],
            ip: Ipv4Addr::BROADCAST,
            port: 67,
        };
        let discover = [index as u8; 240];
        overlap.guests[index].send(&udp(from, to, &discover));
        let (heard, who) = responder::receive(&socket);
        assert_eq!(heard, discover);
        assert_eq!(who, SocketAddr::from((service, 68)));

        let offer = [0; 240];
        socket.send_to(&offer, who).expect("an answer");
        let frame = overlap.guests[index].receive();
        assert_eq!(frame[..6], overlap.end(index, 0).mac);
        assert_eq!(frame[6..12], ROUTER_MAC);
        assert_eq!(source(&frame), Ipv4Addr::from(METADATA));
        assert_eq!(destination(&frame), Ipv4Addr::BROADCAST);
        assert_eq!(payload(&frame)[8..], offer);
        assert!(checksums_hold(&frame));
    }
}

#[test]
fn dhcp_renewal_is_answered_to_the_address() {
    let mut overlap = Overlap::new();
    let socket = responder::dhcp(&overlap.lab);
    let from = overlap.end(1, 68);
    overlap.guests[1].send(&udp(from, metadata(67), &[0; 240]));
    let (_, who) = responder::receive(&socket);
    assert_eq!(who, SocketAddr::from((SERVICES[1], 68)));
    let mut acknowledgement = [0; 240];
    acknowledgement[12..16].copy_from_slice(&from.ip.octets());
    socket.send_to(&acknowledgement, who).expect("an answer");
    let frame = overlap.guests[1].receive();
    assert_eq!(destination(&frame), from.ip);
    assert!(checksums_hold(&frame));
    overlap.guests[0].hears_nothing();
}

#[test]
fn the_resolver_answers_from_the_address_that_was_asked() {
    let lab = Lab::new();
    let mut guest = Guest::new(&lab, "tap-a");
    let mut eni = port(guest.ifindex, 5, [10, 0, 0, 10], &["g"], SERVICES[0]);
    eni.1.resolver = Some(Ipv4Addr::new(10, 0, 0, 2));
    lab.apply(&policy([eni.clone()], [("g", vec![])]))
        .expect("a policy in which no rule lets anything out");
    let sockets = [53, DNS_LINK_LOCAL_PORT].map(|port| responder::datagrams(&lab, port));
    let from = end(&eni.1, 4000);
    for (asked, socket) in [[10, 0, 0, 2], RESOLVER].into_iter().zip(&sockets) {
        let asked = Ipv4Addr::from(asked);
        guest.send(&arp(from, 1, asked));
        assert_eq!(
            guest.receive()[6..12],
            ROUTER_MAC,
            "{asked} is behind the router"
        );
        let to = End {
            mac: ROUTER_MAC,
            ip: asked,
            port: 53,
        };
        guest.send(&udp(from, to, b"question"));
        let (heard, who) = responder::receive(socket);
        assert_eq!(
            (heard.as_slice(), who.ip()),
            (&b"question"[..], IpAddr::from(SERVICES[0]))
        );
        socket.send_to(b"answer", who).expect("an answer");
        let frame = guest.receive();
        assert_eq!((source(&frame), destination(&frame)), (asked, from.ip));
        assert_eq!(payload(&frame)[..2], 53u16.to_be_bytes());
        assert_eq!(payload(&frame)[8..], *b"answer");
        assert!(checksums_hold(&frame));
        guest.send(&udp(from, End { port: 54, ..to }, b"anything else"));
        guest.hears_nothing();
    }
    // Where the network has no resolver of its own, that address is a stranger's.
    eni.1.resolver = None;
    lab.apply(&policy([eni], [("g", vec![])]))
        .expect("a policy");
    guest.send(&arp(from, 1, Ipv4Addr::new(10, 0, 0, 2)));
    guest.hears_nothing();
}

/// Fetches something by hand: a handshake, a request, an answer.
fn fetch(guest: &mut Guest, from: End) -> Vec<u8> {
    let to = metadata(80);
    guest.send(&tcp(from, to, SYN));
    let answer = guest.receive();
    assert!(checksums_hold(&answer));
    assert_eq!(source(&answer), to.ip);
    assert_eq!(destination(&answer), from.ip);
    let segment = payload(&answer);
    assert_eq!(segment[13], SYN_ACK);
    let theirs = u32::from_be_bytes(segment[4..8].try_into().expect("four bytes"));
    let numbers = Numbers {
        sequence: 2,
        acknowledged: theirs + 1,
    };
    guest.send(&tcp_at(from, to, ACK, numbers, b""));
    guest.send(&tcp_at(from, to, ACK, numbers, b"GET"));
    loop {
        let frame = guest.receive();
        assert!(checksums_hold(&frame));
        let segment = payload(&frame);
        let data = &segment[usize::from(segment[12] >> 4) * 4..];
        if !data.is_empty() {
            return data.to_vec();
        }
    }
}

#[test]
fn metadata_knows_overlapping_guests_apart() {
    let mut overlap = Overlap::new();
    let listener = responder::http(&overlap.lab);
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, peer) = listener.accept().expect("a connection");
            let mut request = [0; 3];
            stream.read_exact(&mut request).expect("a request");
            stream
                .write_all(peer.ip().to_string().as_bytes())
                .expect("an answer");
        }
    });
    for (index, service) in SERVICES.into_iter().enumerate() {
        let from = overlap.end(index, 40_000);
        let told = fetch(&mut overlap.guests[index], from);
        let expected = IpAddr::from(service).to_string();
        assert_eq!(String::from_utf8_lossy(&told), expected);
    }
    server.join().expect("the server");
}

/// Frames that look like service traffic and are not, and why they die.
#[test]
fn what_is_not_served_is_dropped_and_counted() {
    let overlap = Overlap::new();
    let guest = overlap.end(0, 40_000);
    let stranger = End {
        ip: Ipv4Addr::new(10, 0, 0, 66),
        ..guest
    };
    let nobody = End {
        ip: Ipv4Addr::UNSPECIFIED,
        ..guest
    };
    let cases = [
        (
            "another port",
            tcp(guest, metadata(22), SYN),
            Reason::NotServed,
        ),
        (
            "UDP to 80",
            udp(guest, metadata(80), b"x"),
            Reason::NotServed,
        ),
        (
            "echo",
            icmp(guest, metadata(0), 8, 0, 1, b""),
            Reason::NotServed,
        ),
        (
            "a stranger",
            tcp(stranger, metadata(80), SYN),
            Reason::Spoofed,
        ),
        ("nobody", tcp(nobody, metadata(80), SYN), Reason::Spoofed),
        (
            "DHCP of a stranger",
            udp(
                End {
                    port: 68,
                    ..stranger
                },
                metadata(67),
                b"x",
            ),
            Reason::Spoofed,
        ),
    ];
    for (what, frame, reason) in cases {
        let before = overlap.lab.counters(&overlap.ports[0].0).expect("counters");
        let ifindex = overlap.guests[0].ifindex;
        let run = overlap
            .lab
            .run_port(ifindex, &frame, 1, None)
            .expect("a run");
        assert_eq!(run.action, XDP_DROP, "{what}");
        assert_eq!(run.frame, frame, "{what}");
        let after = overlap.lab.counters(&overlap.ports[0].0).expect("counters");
        let mut expected = before;
        *expected
            .packets
            .entry((Direction::Egress, reason))
            .or_default() += 1;
        assert_eq!(after, expected, "{what}");
    }
}

/// `XDP_DROP` of linux/bpf.h.
const XDP_DROP: u32 = 1;

/// What the responder's kernel could send by itself, or someone in its namespace.
#[test]
fn the_responder_can_only_answer() {
    let overlap = Overlap::new();
    let served = End {
        mac: [2; 6],
        ip: Ipv4Addr::from(SERVICES[0]),
        port: 40_000,
    };
    let unknown = End {
        ip: Ipv4Addr::new(169, 254, 9, 9),
        ..served
    };
    let other_source = End {
        ip: Ipv4Addr::new(169, 254, 169, 1),
        ..metadata(80)
    };
    let cases = [
        (tcp(metadata(22), served, SYN), Reason::NotServed),
        (udp(metadata(67), served, b"x"), Reason::NotServed),
        (
            icmp(metadata(0), served, 3, 3, 0, &[0; 28]),
            Reason::NotServed,
        ),
        (tcp(metadata(80), unknown, SYN_ACK), Reason::NoPort),
        (tcp(other_source, served, SYN_ACK), Reason::Spoofed),
        (arp(metadata(0), 1, served.ip), Reason::EtherType),
        (
            ethernet([2; 6], [2; 6], 0x86dd, &[0; 40]),
            Reason::Malformed,
        ),
        (
            ethernet([2; 6], [2; 6], 0x0800, &[0x45; 19]),
            Reason::Malformed,
        ),
    ];
    for (index, (frame, reason)) in cases.into_iter().enumerate() {
        let before = overlap.lab.responder_counters().expect("counters");
        let run = overlap.lab.run_svc(&frame).expect("a run");
        assert_eq!(run.action, XDP_DROP, "case {index}");
        let after = overlap.lab.responder_counters().expect("counters");
        let mut expected = before;
        *expected
            .packets
            .entry((Direction::Egress, reason))
            .or_default() += 1;
        assert_eq!(after, expected, "case {index}");
    }
}
