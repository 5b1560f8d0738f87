//! To the outside and back: public addresses, NAT gateways.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use ocs_dataplane::model::{
    Mac, Nat, Network, Policy, Port, PortId, RouteTable, TableId, Target, Vni,
};
use ocs_dataplane::shared::layout::{Direction, Reason};

use super::support::frames::{
    ACK, End, SYN, SYN_ACK, checksums_hold, destination, icmp, payload, source, tcp, tcp_at, udp,
};
use super::support::policy::{all_out, cidr, end, policy, port, tcp_in};
use super::support::{self, Guest, Lab};
use super::{Host, VNI};

const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 5);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// Someone outside.
const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// A with a public address, and B behind a NAT gateway: on a host whose network is outside.
struct Outside {
    host: Host,
    a: Guest,
    b: Guest,
    ports: [(PortId, Port); 2],
}

impl Outside {
    fn new() -> Self {
        let host = Host::new(1);
        lead_out(&host);
        host.netns.ip(&format!("addr add {STRANGER}/32 dev lo"));
        let a = Guest::new(&host.lab, "tap-a");
        let b = Guest::new(&host.lab, "tap-b");
        let mut ports = [
            port(a.ifindex, VNI, [10, 0, 0, 10], &["a"], [169, 254, 1, 1]),
            port(b.ifindex, VNI, [10, 0, 1, 10], &["b"], [169, 254, 1, 2]),
        ];
        ports[0].1.publics = [(Ipv4Addr::new(10, 0, 0, 10), PUBLIC)].into();
        ports[0].1.table = Some(TableId("public".into()));
        ports[1].1.table = Some(TableId("private".into()));
        let out = Self { host, a, b, ports };
        out.host.apply(&out.policy());
        out
    }

    fn policy(&self) -> Policy {
        let rules_a = vec![all_out(), tcp_in(80, 80, cidr("203.0.113.0/24"))];
        let mut policy = policy(self.ports.clone(), [("a", rules_a), ("b", vec![all_out()])]);
        let nat = Ipv4Addr::new(10, 0, 0, 9);
        let table = |default| {
            let routes = [
                ("10.0.0.0/16".parse().expect("a prefix"), Target::Local),
                ("0.0.0.0/0".parse().expect("a prefix"), default),
            ];
            RouteTable {
                routes: routes.into(),
            }
        };
        policy.tables = [
            (TableId("public".into()), table(Target::Outside)),
            (
                TableId("private".into()),
                table(Target::NextHop(nat.into())),
            ),
        ]
        .into();
        let network = Network {
            cidrs: ["10.0.0.0/16".parse().expect("a prefix")].into(),
            ..Network::default()
        };
        policy.networks.insert(Vni(VNI), network);
        let gateway = Nat {
            vni: Vni(VNI),
            mac: Mac([2, 0, 0, 0, 0, 9]),
            address: nat,
            public: Some(GATEWAY),
            subnet: "10.0.0.0/24".parse().expect("a prefix"),
            acl: None,
        };
        policy.nats.insert(PortId("nat-1".into()), gateway);
        policy
    }

    fn stranger(port: u16) -> End {
        End {
            mac: ocs_dataplane::shared::layout::ROUTER_MAC,
            ip: STRANGER,
            port,
        }
    }

    fn socket(&self, port: u16) -> UdpSocket {
        let socket = self.host.netns.within(|| UdpSocket::bind((STRANGER, port)));
        let socket = socket.expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a time-out");
        socket
    }
}

/// Leads a host's public addresses to its fabric.
fn lead_out(host: &Host) {
    let publics = ["198.51.100.0/24".parse().expect("a prefix")];
    host.netns
        .within(|| host.lab.set_outside_pair("ocs-out", &publics))
        .unwrap_or_else(|error| panic!("{}", support::chain(&error)));
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, std::net::SocketAddr) {
    support::responder::receive(socket)
}

#[test]
fn a_public_address_is_its_ports_and_no_other_answers() {
    let mut out = Outside::new();
    let (a, web) = (end(&out.ports[0].1, 80), Outside::stranger(50_000));
    let socket = out.socket(53);
    let a_dns = End { port: 5353, ..a };
    out.a.send(&udp(a_dns, Outside::stranger(53), b"question"));
    let (bytes, from) = receive(&socket);
    assert_eq!(
        (bytes.as_slice(), from),
        (&b"question"[..], (PUBLIC, 5353).into())
    );
    socket.send_to(b"answer", from).expect("an answer");
    let heard = out.a.receive();
    assert_eq!((source(&heard), destination(&heard)), (STRANGER, a.ip));
    assert_eq!(&payload(&heard)[8..], b"answer");
    assert!(checksums_hold(&heard));
    socket.send_to(b"unasked", (PUBLIC, 9)).expect("a datagram");
    socket
        .send_to(b"nobody's", (Ipv4Addr::new(198, 51, 100, 77), 9))
        .expect("a datagram");
    std::thread::sleep(Duration::from_millis(50));
    out.a.hears_nothing();
    let counters = out.host.lab.counters(&out.ports[0].0).expect("counters");
    assert_eq!(counters.get(Direction::Ingress, Reason::IngressDenied), 1);

    // The kernel's TCP connects to the public address; the guest answers by hand.
    let connected = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            out.host.netns.within(|| {
                let mut stream = std::net::TcpStream::connect((PUBLIC, 80))?;
                stream.write_all(b"GET")?;
                let mut answer = [0; 2];
                stream.read_exact(&mut answer)?;
                std::io::Result::Ok(answer)
            })
        });
        let guest = &mut out.a;
        let syn = guest.receive();
        let numbers = |frame: &[u8], at: usize| {
            u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"))
        };
        let to = End {
            port: u16::from_be_bytes([syn[34], syn[35]]),
            ..web
        };
        let theirs = numbers(&syn, 38);
        let at = |sequence, acknowledged| support::frames::Numbers {
            sequence,
            acknowledged,
        };
        guest.send(&tcp_at(
            a,
            to,
            SYN_ACK,
            at(100, theirs.wrapping_add(1)),
            b"",
        ));
        let data = loop {
            let heard = guest.receive();
            if payload(&heard).ends_with(b"GET") {
                break heard;
            }
        };
        assert!(checksums_hold(&data));
        guest.send(&tcp_at(a, to, ACK, at(101, theirs.wrapping_add(4)), b"OK"));
        client.join().expect("no panic")
    });
    assert_eq!(&connected.expect("a connection"), b"OK");
}

#[test]
fn an_error_from_outside_is_rewritten_inside() {
    let mut out = Outside::new();
    let closed = Outside::stranger(9999);
    let (a, b) = (end(&out.ports[0].1, 1111), end(&out.ports[1].1, 2222));
    for (guest, from) in [(&mut out.a, a), (&mut out.b, b)] {
        guest.send(&udp(from, closed, b"x"));
        let error = guest.receive();
        assert_eq!(
            payload(&error)[..2],
            [3, 3],
            "port unreachable, by the kernel"
        );
        assert!(checksums_hold(&error));
        assert_eq!(destination(&error), from.ip);
        let quote = &payload(&error)[8..];
        assert_eq!(quote[12..16], from.ip.octets(), "the private address");
        assert_eq!(quote[20..22], from.port.to_be_bytes(), "and port");
        assert_eq!(support::frames::header_sum(quote), 0);
    }
}

#[test]
fn a_nat_gateway_gives_each_flow_a_port_and_its_answers_back() {
    let mut out = Outside::new();
    let b = end(&out.ports[1].1, 7000);
    let socket = out.socket(53);
    out.b.send(&udp(b, Outside::stranger(53), b"question"));
    let (bytes, from) = receive(&socket);
    assert_eq!(bytes, b"question");
    assert_eq!(from.ip(), IpAddr::V4(GATEWAY));
    socket.send_to(b"answer", from).expect("an answer");
    let heard = out.b.receive();
    assert_eq!((source(&heard), destination(&heard)), (STRANGER, b.ip));
    assert_eq!(heard[36..38], 7000u16.to_be_bytes());
    assert_eq!(&payload(&heard)[8..], b"answer");
    assert!(checksums_hold(&heard));
    out.b.send(&udp(b, Outside::stranger(53), b"again"));
    assert_eq!(receive(&socket).1, from, "the same port");

    let other = out.socket(54);
    other.send_to(b"unasked", from).expect("a datagram");
    std::thread::sleep(Duration::from_millis(50));
    out.b.hears_nothing();
    let counters = out.host.lab.outside_counters().expect("counters");
    assert_eq!(counters.get(Direction::Egress, Reason::NotTranslated), 1);

    out.b
        .send(&icmp(b, Outside::stranger(0), 8, 0, 77, b"ping"));
    let answer = out.b.receive();
    assert_eq!(
        (payload(&answer)[0], &payload(&answer)[8..]),
        (0, &b"ping"[..])
    );
    assert_eq!(
        answer[38..40],
        77u16.to_be_bytes(),
        "the guest's identifier"
    );
    assert!(checksums_hold(&answer));
}

/// TCP from behind the gateway to a listener of the kernel's.
#[test]
fn tcp_leaves_by_a_nat_gateway() {
    let mut out = Outside::new();
    let listener = out.host.netns.within(|| TcpListener::bind((STRANGER, 80)));
    let listener = listener.expect("a listener");
    let (b, web) = (end(&out.ports[1].1, 7000), Outside::stranger(80));
    out.b.send(&tcp(b, web, SYN));
    let answer = out.b.receive();
    assert_eq!(answer[47], SYN_ACK);
    let theirs = u32::from_be_bytes(answer[38..42].try_into().expect("four bytes"));
    let numbers = support::frames::Numbers {
        sequence: 2,
        acknowledged: theirs.wrapping_add(1),
    };
    out.b.send(&tcp_at(b, web, ACK, numbers, b"hello"));
    let (mut stream, from) = listener.accept().expect("a connection");
    assert_eq!(from.ip(), IpAddr::V4(GATEWAY));
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a time-out");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).expect("five bytes");
    assert_eq!(&bytes, b"hello");
}

/// A loader of another layout succeeds: who is translated stays so, under the same port.
#[test]
fn translations_outlive_a_layout() {
    outlive(Lab::succeed);
}

/// Also where a gateway's table could not be mapped.
#[test]
fn translations_outlive_a_layout_without_shared_memory() {
    outlive(Lab::succeed_unshared);
}

fn outlive(succeed: fn(&mut Lab)) {
    let mut out = Outside::new();
    let b = end(&out.ports[1].1, 7000);
    let socket = out.socket(53);
    out.b.send(&udp(b, Outside::stranger(53), b"question"));
    let (_, from) = receive(&socket);
    succeed(&mut out.host.lab);
    lead_out(&out.host);
    socket.send_to(b"meanwhile", from).expect("an answer");
    assert_eq!(&payload(&out.b.receive())[8..], b"meanwhile");

    out.host.apply(&out.policy());
    socket.send_to(b"answer", from).expect("an answer");
    assert_eq!(&payload(&out.b.receive())[8..], b"answer");
    out.b.send(&udp(b, Outside::stranger(53), b"again"));
    assert_eq!(receive(&socket).1, from, "the same port");
    let a = End {
        port: 5353,
        ..end(&out.ports[0].1, 80)
    };
    out.a.send(&udp(a, Outside::stranger(53), b"question"));
    assert_eq!(receive(&socket).1, (PUBLIC, 5353).into());
}
