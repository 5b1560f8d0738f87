//! A router's advertisements (RFC 4861 §4.2) beside those that the packet path answers with: to
//! who renews its addresses, before the last one's time is over.

use super::record::Interface;
use ocs_dataplane::shared::layout::ROUTER_MAC;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

/// Of advertisements: hop limit, flags "managed" and "other", and the seconds that it is there
/// for.
const SAYS: [u8; 4] = [64, 0xc0, 0x07, 0x08];

/// What is said to an ENI, without the checksum, which the kernel writes (RFC 3542 §3.1).
fn advertisement(interface: &Interface) -> [u8; 32] {
    let mut message = [0; 32];
    message[0] = 134;
    message[4..8].copy_from_slice(&SAYS);
    message[16..18].copy_from_slice(&[1, 1]);
    message[18..24].copy_from_slice(&ROUTER_MAC);
    message[24..26].copy_from_slice(&[5, 1]);
    message[28..].copy_from_slice(&u32::from(interface.mtu).to_be_bytes());
    message
}

/// Tells an ENI, by the address that it is known by, on a socket of ICMPv6. Lost, it is said
/// again with the next renewal.
pub fn advertise(socket: &UdpSocket, interface: &Interface, to: Ipv6Addr) {
    let message = advertisement(interface);
    if let Err(error) = socket.send_to(&message, SocketAddr::from((to, 0))) {
        tracing::debug!(%to, %error, "advertising a router failed");
    }
}
