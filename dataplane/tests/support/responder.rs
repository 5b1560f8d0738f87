//! Sockets in the responder's namespace.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
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

pub fn dhcp(lab: &Lab) -> UdpSocket {
    datagrams(lab, 67)
}

pub fn datagrams(lab: &Lab, port: u16) -> UdpSocket {
    within(&lab.config().svc_netns, || {
        let socket = UdpSocket::bind((ADDRESS, port)).expect("the port");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a time-out");
        socket
    })
}

pub fn http(lab: &Lab) -> TcpListener {
    within(&lab.config().svc_netns, || {
        TcpListener::bind((ADDRESS, 80)).expect("port 80")
    })
}

/// The next datagram and its sender.
pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 2048];
    let (length, from) = socket.recv_from(&mut bytes).expect("a datagram");
    bytes.truncate(length);
    (bytes, from)
}
