//! IPv6 by order: a link-local address (RFC 4291 appendix A), the router by its advertisement
//! (RFC 4861), addresses by DHCPv6. Reports each change.

use super::{Handle, Net, ring};
use crate::console::say;
use crate::{clock, executor};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use ocs_probe_logic::dhcp6::{
    self, ADVERTISE, CLIENT_PORT, Lease, RENEW, REPLY, REQUEST, SERVER_PORT, SERVERS, SOLICIT,
};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{raw, udp};
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpEndpoint, IpProtocol, IpVersion, Ipv6Address,
    Ipv6Packet, Ipv6Repr, NdiscRepr,
};

const PATIENCE_US: u64 = 1_000_000;
const ROUTERS: Ipv6Address = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// A message that has crossed no router.
const NO_HOPS: u8 = 255;
const PACKETS: usize = 4;
const PACKET_BYTES: usize = 512;

/// Keeps the interface's addresses, for ever.
pub async fn keep(net: Rc<Net>) {
    let mac = net.mac_bytes();
    net.add_link_local(link_local(mac));
    let (Some(routers), Some(servers)) = (router_socket(&net), server_socket(&net)) else {
        say!("ipv6: error=no-socket");
        return;
    };
    let mut router = None;
    while router.is_none() {
        router = find_router(&routers, mac).await;
    }
    drop(routers);
    let mut known = None;
    loop {
        let asked_us = clock::now_us();
        let lease = match &known {
            None => acquire(&servers, mac).await,
            Some(lease) => exchange(&servers, RENEW, REPLY, mac, Some(lease)).await,
        };
        if let Some(lease) = lease {
            if known.as_ref() != Some(&lease) {
                net.configure_ipv6(&lease.addresses, router);
                report(&lease, router);
            }
            let renew_us = u64::from(lease.renew_s.max(1)) * 1_000_000;
            known = Some(lease);
            executor::sleep_until(asked_us + renew_us).await;
        }
    }
}

async fn acquire(socket: &Handle, mac: [u8; 6]) -> Option<Lease> {
    let offer = exchange(socket, SOLICIT, ADVERTISE, mac, None).await?;
    exchange(socket, REQUEST, REPLY, mac, Some(&offer)).await
}

fn report(lease: &Lease, router: Option<Ipv6Address>) {
    let addresses = lease.addresses.iter().map(ToString::to_string);
    let addresses: Vec<String> = addresses.collect();
    let or_none = |address: Option<Ipv6Addr>| address.map_or("none".into(), |it| it.to_string());
    say!(
        "ipv6: addresses={} router={} dns={} valid_s={}",
        addresses.join(","),
        or_none(router),
        or_none(lease.resolver),
        lease.valid_s,
    );
}

fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Address {
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let id = [pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f)];
    Ipv6Address::new(0xfe80, 0, 0, 0, id[0], id[1], id[2], id[3])
}

fn router_socket(net: &Rc<Net>) -> Option<Handle> {
    let packets = || {
        let metadata = vec![raw::PacketMetadata::EMPTY; PACKETS];
        raw::PacketBuffer::new(metadata, ring(PACKETS * PACKET_BYTES))
    };
    let (version, protocol) = (Some(IpVersion::Ipv6), Some(IpProtocol::Icmpv6));
    net.add(raw::Socket::new(version, protocol, packets(), packets()))
}

/// The router that answers a solicitation, if one does in time.
async fn find_router(socket: &Handle, mac: [u8; 6]) -> Option<Ipv6Address> {
    let own = link_local(mac);
    let solicitation = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit {
        lladdr: Some(EthernetAddress(mac).into()),
    });
    let header = Ipv6Repr {
        src_addr: own,
        dst_addr: ROUTERS,
        next_header: IpProtocol::Icmpv6,
        payload_len: solicitation.buffer_len(),
        hop_limit: NO_HOPS,
    };
    let mut bytes = vec![0; header.buffer_len() + solicitation.buffer_len()];
    let mut packet = Ipv6Packet::new_unchecked(&mut bytes[..]);
    header.emit(&mut packet);
    let checksums = ChecksumCapabilities::default();
    let mut message = Icmpv6Packet::new_unchecked(packet.payload_mut());
    solicitation.emit(&own, &ROUTERS, &mut message, &checksums);
    // A full buffer loses it, as networks do.
    let _ = socket.with(|s: &mut raw::Socket| s.send_slice(&bytes));
    let heard = executor::wait(|| {
        socket.with(|s: &mut raw::Socket| {
            let packet = Ipv6Packet::new_checked(s.recv().ok()?).ok()?;
            let (from, to) = (packet.src_addr(), packet.dst_addr());
            let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
            match Icmpv6Repr::parse(&from, &to, &message, &checksums).ok()? {
                Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert { .. }) => Some(from),
                _ => None,
            }
        })
    });
    executor::until(clock::now_us() + PATIENCE_US, heard).await
}

fn server_socket(net: &Rc<Net>) -> Option<Handle> {
    let packets = || {
        let metadata = vec![udp::PacketMetadata::EMPTY; PACKETS];
        udp::PacketBuffer::new(metadata, ring(PACKETS * PACKET_BYTES))
    };
    let socket = net.add(udp::Socket::new(packets(), packets()))?;
    let bound = socket.with(|s: &mut udp::Socket| s.bind(CLIENT_PORT));
    bound.ok().map(|()| socket)
}

/// Asks all servers, and waits a while for one's answer.
async fn exchange(
    socket: &Handle,
    kind: u8,
    answer: u8,
    mac: [u8; 6],
    lease: Option<&Lease>,
) -> Option<Lease> {
    let [a, b, c, ..] = clock::entropy().to_ne_bytes();
    let number = [a, b, c];
    let message = dhcp6::message(kind, number, mac, lease);
    let to = IpEndpoint::new(SERVERS.into(), SERVER_PORT);
    // A full buffer loses it, as networks do.
    let _ = socket.with(|s: &mut udp::Socket| s.send_slice(&message, to));
    let heard = executor::wait(|| {
        socket.with(|s: &mut udp::Socket| {
            let (bytes, _) = s.recv().ok()?;
            dhcp6::answer(bytes, answer, number)
        })
    });
    executor::until(clock::now_us() + PATIENCE_US, heard).await
}
