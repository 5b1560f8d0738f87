//! Hosts joined by a cable, each with a fabric of its own: what crosses, what leaves, what
//! comes back.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use ocs_dataplane::fabric::{Counters, UplinkConfig};
use ocs_dataplane::model::{
    Mac, Nat, Network, Policy, Port, PortId, Remote, RouteTable, TableId, Target, Vni,
};
use ocs_dataplane::shared::layout::{Direction, Reason};
use support::frames::{
    ACK, End, FIN_ACK, SYN, SYN_ACK, checksums_hold, destination, icmp, payload, source, tcp,
    tcp_at, udp,
};
use support::policy::{all_out, cidr, end, group, policy, port, tcp_in};
use support::underlay::{Netns, run};
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
            .ip(&format!("addr add {}/24 dev {interface}", self.address));
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
        self.lab
            .apply(policy)
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

/// `ETHTOOL_SGRO`: a veth takes redirected frames only with that, or a program.
const TAKE_REDIRECTED: &str = "import fcntl,socket,struct,array,sys\n\
value=array.array('I',[0x2c,1])\n\
request=struct.pack('16sP',sys.argv[1].encode(),value.buffer_info()[0])\n\
fcntl.ioctl(socket.socket(),0x8946,request)";

#[test]
fn a_kernel_vxlan_device_is_a_peer() {
    let host = Host::new(1);
    let foreign = Netns::new();
    host.netns.cable("up0", &foreign, "up1");
    host.attach("up0");
    let mut a = Guest::new(&host.lab, "tap-a");
    let port_a = port(a.ifindex, VNI, [10, 0, 0, 10], &["a"], [169, 254, 1, 1]);
    let far = port(0, VNI, [10, 0, 0, 50], &["far"], [169, 254, 1, 2]).1;
    let mac = |mac: Mac| mac.0.map(|byte| format!("{byte:02x}")).join(":");
    foreign.within(|| run(&["python3", "-c", TAKE_REDIRECTED, "up1"]));
    for line in [
        "addr add 192.0.2.2/24 dev up1".to_owned(),
        format!("link add vx0 type vxlan id {VNI} dstport 4789 local 192.0.2.2 dev up1"),
        format!("link set vx0 address {} mtu 1450 up", mac(far.mac)),
        "addr add 10.0.0.50/24 dev vx0".to_owned(),
        format!("neigh add 10.0.0.10 lladdr {} dev vx0", mac(port_a.1.mac)),
    ] {
        foreign.ip(&line);
    }
    foreign.within(|| {
        let mac = mac(port_a.1.mac);
        run(&[
            "bridge",
            "fdb",
            "append",
            &mac,
            "dev",
            "vx0",
            "dst",
            "192.0.2.1",
        ])
    });
    let mut wanted = policy([port_a.clone()], [("a", vec![all_out()])]);
    wanted
        .remotes
        .extend([remote(&far, Ipv4Addr::new(192, 0, 2, 2))]);
    host.apply(&wanted);

    let (a_end, far_end) = (end(&port_a.1, 40_000), end(&far, 7));
    a.send(&icmp(a_end, far_end, 8, 0, 77, b"hello"));
    let answer = a.receive();
    assert_eq!(payload(&answer)[0], 0, "an echo reply of the kernel");
    assert_eq!(&payload(&answer)[8..], b"hello");
    assert!(checksums_hold(&answer));

    let socket = foreign.within(|| UdpSocket::bind((Ipv4Addr::new(10, 0, 0, 50), 7)));
    let socket = socket.expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a time-out");
    a.send(&udp(a_end, far_end, b"question"));
    let mut bytes = [0; 64];
    let (length, from) = socket.recv_from(&mut bytes).expect("a datagram");
    assert_eq!(&bytes[..length], b"question");
    assert_eq!(from.to_string(), "10.0.0.10:40000");
    socket.send_to(b"answer", from).expect("an answer");
    assert_eq!(&payload(&a.receive())[8..], b"answer");
}

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
        let publics = ["198.51.100.0/24".parse().expect("a prefix")];
        host.netns
            .within(|| host.lab.set_outside_pair("ocs-out", &publics))
            .unwrap_or_else(|error| panic!("{}", support::chain(&error)));
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
