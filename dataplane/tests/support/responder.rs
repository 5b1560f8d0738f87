//! Sockets in the responder's namespace.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Lab;

pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Does something in a network namespace.
pub fn within<T: Send>(path: &std::path::Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let namespace = File::open(path).expect("a namespace");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("entering a namespace");
            work()
        });
        worker.join().expect("no panic in the namespace")
    })
}

/// Where it hears IPv6.
pub const ADDRESS_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// Where its resolver does.
pub const RESOLVER_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253);

pub fn dhcp(lab: &Lab) -> UdpSocket {
    datagrams(lab, 67)
}

pub fn datagrams(lab: &Lab, port: u16) -> UdpSocket {
    datagrams_at(lab, ADDRESS.into(), port)
}

pub fn datagrams_at(lab: &Lab, address: IpAddr, port: u16) -> UdpSocket {
    within(&lab.config().svc_netns, || {
        let socket = UdpSocket::bind((address, port)).expect("the port");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a time-out");
        socket
    })
}

pub fn http(lab: &Lab) -> TcpListener {
    http_at(lab, ADDRESS.into())
}

pub fn http_at(lab: &Lab, address: IpAddr) -> TcpListener {
    within(&lab.config().svc_netns, || {
        TcpListener::bind((address, 80)).expect("port 80")
    })
}

/// The next datagram and its sender.
pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 2048];
    let (length, from) = socket.recv_from(&mut bytes).expect("a datagram");
    bytes.truncate(length);
    (bytes, from)
}
