//! Clients that try again and again: `connect`, `udp`, `ping`.

use super::attempts::Attempts;
use crate::executor;
use crate::net::tcp::Stream;
use crate::net::{Handle, Net, ring};
use alloc::format;
use alloc::rc::Rc;
use alloc::vec;
use core::net::{IpAddr, SocketAddr};
use ocs_probe_logic::fold::Outcome;
use ocs_probe_logic::pattern;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{icmp, udp};
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpEndpoint, Ipv6Address,
};

/// Short, so that connections which cannot end do not add up.
const CLOSE_US: u64 = 1_000_000;
const CONNECT_BUFFER_BYTES: usize = 256;
const DATAGRAM_BYTES: usize = 64;
const DATAGRAMS: usize = 8;
const PING_BYTES: usize = 32;

/// `connect`: a new connection each time, closed at once.
pub async fn connect(net: Rc<Net>, to: SocketAddr, every_ms: u32, report_us: u64) {
    Attempts::new(&net, to.ip(), format!("connect: {to}"), every_ms, report_us)
        .run(move |_| {
            let net = net.clone();
            async move {
                match Stream::connect(&net, to, CONNECT_BUFFER_BYTES).await {
                    Ok(stream) => {
                        executor::spawn(async move { stream.close(CLOSE_US).await });
                        Outcome::Ok
                    }
                    Err(outcome) => outcome,
                }
            }
        })
        .await;
}

/// `udp`: a numbered datagram, whose echo is compared.
pub async fn udp(net: Rc<Net>, to: SocketAddr, every_ms: u32, report_us: u64) {
    let remote = IpEndpoint::new(to.ip().into(), to.port());
    Attempts::new(&net, to.ip(), format!("udp: {to}"), every_ms, report_us)
        .run(move |number| {
            let net = net.clone();
            async move {
                match udp_socket(&net) {
                    Some(socket) => udp_echo(&socket, remote, number).await,
                    None => Outcome::Unsent,
                }
            }
        })
        .await;
}

/// Each datagram has a socket and so a port of its own: as flow tracking sees it, a new
/// flow each time.
pub fn udp_socket(net: &Rc<Net>) -> Option<Handle> {
    let packets = || {
        udp::PacketBuffer::new(
            vec![udp::PacketMetadata::EMPTY; DATAGRAMS],
            ring(DATAGRAMS * DATAGRAM_BYTES),
        )
    };
    let socket = net.add(udp::Socket::new(packets(), packets()))?;
    let port = net.ephemeral_port();
    socket
        .with(|s: &mut udp::Socket| s.bind(port))
        .ok()
        .map(|()| socket)
}

async fn udp_echo(socket: &Handle, remote: IpEndpoint, number: u16) -> Outcome {
    let mut sent = [0; DATAGRAM_BYTES];
    pattern::fill(&mut sent, number.into(), 0);
    if socket
        .with(|s: &mut udp::Socket| s.send_slice(&sent, remote))
        .is_err()
    {
        return Outcome::Unsent;
    }
    executor::wait(|| {
        socket.with(|s: &mut udp::Socket| {
            let (data, meta) = s.recv().ok()?;
            (meta.endpoint == remote).then_some(if data == sent {
                Outcome::Ok
            } else {
                Outcome::Mismatch
            })
        })
    })
    .await
}

/// `ping`: an ICMP echo request with an identifier of its own each time.
pub async fn ping(net: Rc<Net>, to: IpAddr, every_ms: u32, report_us: u64) {
    Attempts::new(&net, to, format!("ping: {to}"), every_ms, report_us)
        .run(move |number| {
            let net = net.clone();
            async move {
                let ident = net.ephemeral_port();
                match icmp_socket(&net, ident) {
                    Some(socket) => icmp_echo(&socket, to, ident, number).await,
                    None => Outcome::Unsent,
                }
            }
        })
        .await;
}

fn icmp_socket(net: &Rc<Net>, ident: u16) -> Option<Handle> {
    let packets = || {
        icmp::PacketBuffer::new(
            vec![icmp::PacketMetadata::EMPTY; DATAGRAMS],
            ring(DATAGRAMS * DATAGRAM_BYTES),
        )
    };
    let socket = net.add(icmp::Socket::new(packets(), packets()))?;
    socket
        .with(|s: &mut icmp::Socket| s.bind(icmp::Endpoint::Ident(ident)))
        .ok()
        .map(|()| socket)
}

async fn icmp_echo(socket: &Handle, to: IpAddr, ident: u16, seq_no: u16) -> Outcome {
    let mut sent = [0; PING_BYTES];
    pattern::fill(&mut sent, seq_no.into(), 0);
    let to = IpAddress::from(to);
    let queued = socket.with(|s: &mut icmp::Socket| send_echo(s, to, ident, seq_no, &sent));
    if queued.is_none() {
        return Outcome::Unsent;
    }
    executor::wait(|| {
        socket.with(|s: &mut icmp::Socket| {
            let (bytes, from) = s.recv().ok()?;
            let data = echo_reply(bytes, from).filter(|_| from == to)?;
            Some(if data == sent {
                Outcome::Ok
            } else {
                Outcome::Mismatch
            })
        })
    })
    .await
}

fn send_echo(
    socket: &mut icmp::Socket,
    to: IpAddress,
    ident: u16,
    seq_no: u16,
    data: &[u8],
) -> Option<()> {
    let checksums = ChecksumCapabilities::default();
    match to {
        IpAddress::Ipv4(_) => {
            let request = Icmpv4Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            let bytes = socket.send(request.buffer_len(), to).ok()?;
            request.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checksums);
        }
        IpAddress::Ipv6(address) => {
            let request = Icmpv6Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            let bytes = socket.send(request.buffer_len(), to).ok()?;
            // Its checksum is written anew once its source is known.
            let mut packet = Icmpv6Packet::new_unchecked(bytes);
            request.emit(&Ipv6Address::UNSPECIFIED, &address, &mut packet, &checksums);
        }
    }
    Some(())
}

/// The data of an echo's reply.
fn echo_reply(bytes: &[u8], from: IpAddress) -> Option<&[u8]> {
    match from {
        IpAddress::Ipv4(_) => {
            let packet = Icmpv4Packet::new_checked(bytes).ok()?;
            let checksums = ChecksumCapabilities::default();
            match Icmpv4Repr::parse(&packet, &checksums).ok()? {
                Icmpv4Repr::EchoReply { data, .. } => Some(data),
                _ => None,
            }
        }
        IpAddress::Ipv6(address) => {
            let packet = Icmpv6Packet::new_checked(bytes).ok()?;
            // It was verified when it came, with the addresses that it covers.
            let ignored = ChecksumCapabilities::ignored();
            let to = Ipv6Address::UNSPECIFIED;
            match Icmpv6Repr::parse(&address, &to, &packet, &ignored).ok()? {
                Icmpv6Repr::EchoReply { data, .. } => Some(data),
                _ => None,
            }
        }
    }
}
