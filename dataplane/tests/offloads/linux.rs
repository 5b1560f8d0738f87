//! Linux stacks that leave everything to each other, by either IP.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use ocs_dataplane::fabric::UplinkConfig;
use ocs_dataplane::model::{PortId, Remote};
use ocs_dataplane::shared::layout::Reason;

use super::support::policy::{end, policy};
use super::support::stack::{self, Stack};
use super::support::underlay::Netns;
use super::support::{self, Lab, ipv6, responder};
use super::{Port, at, open};

/// A stack behind a port's tap, with both of its addresses.
fn stack(tap: std::os::fd::OwnedFd, port: &Port) -> Stack {
    let v4 = end(port, 0);
    let stack = Stack::with_offloads(tap.into(), v4.mac, v4.ip);
    stack.give_ipv6(ipv6::end(port, 0).ip);
    stack
}

/// Two Linux stacks that leave everything to each other, and the responder, which a veth leads
/// to and whose address the path puts in another's place.
#[test]
fn linux_leaves_its_work_to_linux() {
    let lab = Lab::new();
    let taps = ["a", "b"].map(|name| lab.create_offload_tap(name).expect("a tap"));
    let ports = [(10, &taps[0]), (11, &taps[1])].map(|(last, tap)| at(tap.ifindex, last));
    let desired = policy(ports.clone(), [("sg", open())]);
    lab.apply(&desired).expect("a policy");
    let [tap_a, tap_b] = taps;
    let from = stack(tap_a.fd, &ports[0].1);
    let to = stack(tap_b.fd, &ports[1].1);

    for address in ports[1].1.addresses.clone() {
        let before = from.counts().0;
        let segments = from.tcp("OutSegs");
        exchange_between(&from, &to, address);
        leaves_segmentation(&from, before, segments);
    }

    let routes = from.spawn(|| {
        stack::ip("route add 169.254.169.254 dev eth0");
        stack::ip("-6 route add fd00:ec2::/32 via fe80::6f:63ff:fe73:1 dev eth0");
    });
    routes.join().expect("routes");
    let services: [IpAddr; 2] = [responder::ADDRESS.into(), responder::ADDRESS_IPV6.into()];
    for service in services {
        let listener = responder::http_at(&lab, service);
        let heard = exchange(&from, (service, 80).into(), listener);
        assert_eq!(heard, PAYLOAD);
    }
    for stack in [&from, &to] {
        assert_eq!(stack.tcp("InCsumErrors"), 0);
    }
}

/// Two hosts, joined by a cable; on each a Linux stack that leaves everything to others. The
/// cable's end finishes each frame, behind the outer header, whose own lengths then fit.
#[test]
fn what_leaves_the_host_is_finished_at_the_uplink() {
    let hosts = [1, 2].map(|last| (Lab::new(), Netns::new(), Ipv4Addr::new(192, 0, 2, last)));
    hosts[0].1.cable("up0", &hosts[1].1, "up1");
    let taps = [0, 1].map(|n: usize| hosts[n].0.create_offload_tap("tap").expect("a tap"));
    let ports = [(&taps[0], 10), (&taps[1], 11)].map(|(tap, last)| {
        let (id, mut port) = at(tap.ifindex, last);
        port.mtu = 1_450;
        (id, port)
    });
    for (n, (lab, netns, address)) in hosts.iter().enumerate() {
        let interface = format!("up{n}");
        netns.ip(&format!("addr add {address}/24 dev {interface}"));
        let uplink = UplinkConfig {
            interface,
            address: *address,
            outside: false,
        };
        netns
            .within(|| lab.set_uplink(uplink))
            .unwrap_or_else(|error| panic!("{}", support::chain(&error)));
        let (_, far): &(PortId, Port) = &ports[1 - n];
        let mut desired = policy([ports[n].clone()], [("sg", open())]);
        for address in &far.addresses {
            let remote = Remote {
                host: hosts[1 - n].2,
                mac: far.mac,
                groups: far.groups.clone(),
                forwards: false,
            };
            desired.remotes.insert((far.vni, *address), remote);
        }
        lab.apply(&desired).expect("a policy");
    }
    // Nor does a guest's declining change that: not every uplink sends what XDP redirects to it.
    for ((lab, _, _), tap) in hosts.iter().zip(&taps) {
        assert!(!lab.finishes_taps());
        lab.finish_tap(tap.ifindex).expect("a tap by its twin");
        let links = lab
            .pins_of(ocs_dataplane_shared::layout::LAYOUT_VERSION)
            .join("links");
        assert!(links.join(format!("buffer-{}", tap.ifindex)).exists());
    }
    for (lab, netns, _) in &hosts {
        for _ in 0..100 {
            if netns.within(|| lab.refresh_hosts()).expect("hosts") == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let [tap_a, tap_b] = taps;
    let from = stack(tap_a.fd, &ports[0].1);
    let to = stack(tap_b.fd, &ports[1].1);
    for stack in [&from, &to] {
        let mtu = stack.spawn(|| stack::ip("link set eth0 mtu 1450"));
        mtu.join().expect("an MTU");
    }
    for address in ports[1].1.addresses.clone() {
        let before = from.counts().0;
        let segments = from.tcp("OutSegs");
        exchange_between(&from, &to, address);
        leaves_segmentation(&from, before, segments);
    }
    for stack in [&from, &to] {
        assert_eq!(stack.tcp("InCsumErrors"), 0);
    }
    let refused = hosts[1].0.uplink_counters().expect("counters").packets;
    let reasons: Vec<_> = refused
        .keys()
        .filter(|(_, reason)| *reason != Reason::Forwarded)
        .collect();
    assert!(reasons.is_empty(), "{reasons:?}");
}

const PAYLOAD: usize = 2_000_000;

/// Since there were so many frames and segments, most of the payload has left the stack in
/// frames of two segments or more. How many more, and how many acknowledgements go beside them,
/// is the load's affair.
fn leaves_segmentation(from: &Stack, frames: u64, segments: u64) {
    let frames = from.counts().0 - frames;
    let segments = from.tcp("OutSegs") - segments;
    let joined = segments.saturating_sub(frames);
    let needed = PAYLOAD as u64 / 1_460;
    assert!(
        joined > needed / 3,
        "{segments} segments in {frames} frames"
    );
}

/// [`exchange`] with a listener in the other stack.
fn exchange_between(from: &Stack, to: &Stack, at: IpAddr) {
    let server = to.spawn(move || TcpListener::bind((at, 80)).expect("a port"));
    let heard = exchange(from, (at, 80).into(), server.join().expect("a server"));
    assert_eq!(heard, PAYLOAD);
}

/// Sends the payload to a listener, which sends it back; how much arrived.
fn exchange(from: &Stack, to: SocketAddr, listener: TcpListener) -> usize {
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut bytes = vec![0; PAYLOAD];
        stream.read_exact(&mut bytes).expect("the payload");
        stream.write_all(&bytes).expect("an answer");
    });
    let client = from.spawn(move || {
        let mut stream = TcpStream::connect(to).expect("a connection");
        let sent: Vec<u8> = (0..PAYLOAD).map(|n| (n / 7) as u8).collect();
        stream.write_all(&sent).expect("the payload is sent");
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).expect("an answer");
        assert!(heard == sent, "what came back is not what was sent");
        heard.len()
    });
    server.join().expect("the server");
    client.join().expect("the client")
}
