//! Asks for a peer's Ethernet address.
//!
//! smoltcp asks for one address a second in all, so with a few silent peers the others
//! would wait their turn for seconds. A task that starts to talk to a peer, or has had no
//! answer from it, asks by itself; smoltcp learns from the reply.

use super::{Inner, Net, now};
use smoltcp::phy::{Device, TxToken};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpAddress,
};

impl Net {
    /// Sends a request if `peer` is an IPv4 address in our subnet; without a free buffer, none.
    pub fn solicit(&self, peer: impl Into<IpAddress>) {
        let IpAddress::Ipv4(peer) = peer.into() else {
            return;
        };
        let mut inner = self.inner.borrow_mut();
        let Inner {
            interface, device, ..
        } = &mut *inner;
        let on_link = interface
            .ip_addrs()
            .iter()
            .any(|cidr| cidr.contains_addr(&peer.into()));
        let (Some(own), true) = (interface.ipv4_addr(), on_link) else {
            return;
        };
        let own_mac = EthernetAddress(device.mac());
        let ethernet = EthernetRepr {
            src_addr: own_mac,
            dst_addr: EthernetAddress::BROADCAST,
            ethertype: EthernetProtocol::Arp,
        };
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: own_mac,
            source_protocol_addr: own,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: peer,
        };
        if let Some(token) = device.transmit(now()) {
            token.consume(ethernet.buffer_len() + arp.buffer_len(), |bytes| {
                let mut frame = EthernetFrame::new_unchecked(bytes);
                ethernet.emit(&mut frame);
                arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
            });
        }
    }
}
