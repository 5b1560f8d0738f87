//! Between hosts: VXLAN (RFC 7348) over IPv4.
//!
//! ```text
//! 0          14        34        42        50
//! │ Ethernet │ IPv4    │ UDP     │ VXLAN   │ the sender's frame …
//!            to a host  to 4789    VNI: the receiver's network
//! ```
//!
//! The inner Ethernet addresses are the sender's and the next hop's, so that whoever
//! forwards for others is told apart from those it forwards for.

use crate::checksum::Sum;
use crate::flow::FlowKey;
use crate::judge::Peer;
use crate::layout::{
    Address, Direction, Endpoint, EndpointKey, FORWARDS, ForwarderKey, Front, Host, Identity,
    PrefixKey, Reason, UPLINK_SLOT, Uplink,
};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{
    self, ETH_LEN, ETH_SOURCE, ETH_TYPE, ETHERTYPE_IPV4, IP_CHECKSUM, IP_DESTINATION, IP_LENGTH,
    IP_SOURCE, IP_TTL, Ipv4, Part, UDP,
};

/// The destination port as it lies in a packet (RFC 7348 §5).
pub const PORT: u16 = 4789u16.to_be();
/// Bytes that it adds in front of a frame.
pub const OVERHEAD: usize = ETH_LEN + 20 + 8 + 8;

const UDP_AT: usize = ETH_LEN + 20;
const VXLAN_AT: usize = UDP_AT + 8;
/// The flag that says that there is a VNI.
const HAS_VNI: u8 = 0x08;
const DONT_FRAGMENT: u16 = 0x4000u16.to_be();
const TTL: u8 = 64;

/// Wraps a frame and sends it to the host that has its receiver.
#[inline(always)]
pub(crate) fn send(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    vni: u32,
    receiver: &Endpoint,
    flow: &FlowKey,
    from: u32,
) -> Result<Action, Reason> {
    let host = maps.host(receiver.host).ok_or(Reason::Unreachable)?;
    packet.store_mac(0, receiver.mac).ok_or(Reason::Malformed)?;
    let outer = Outer {
        host,
        length: (packet.len() + OVERHEAD - ETH_LEN) as u16,
        vni,
        flow,
    };
    packet.wrap(&outer).ok_or(Reason::Malformed)?;
    Ok(Action::Redirect {
        slot: UPLINK_SLOT,
        from,
    })
}

/// Where in [`Host::front`] two bytes of the outer header lie, by their offset: in which word.
const fn at(offset: usize) -> usize {
    offset / size_of::<u64>()
}

/// How they lie in it.
#[inline(always)]
const fn half(offset: usize, value: u16) -> u64 {
    let from = offset % size_of::<u64>();
    let value = value as u64;
    if cfg!(target_endian = "little") {
        value << (8 * from)
    } else {
        value << (8 * (size_of::<u64>() - 2 - from))
    }
}

impl Host {
    /// How to reach the host at `address`, or with [`OUTSIDE_HOST`] the outside, from `own`:
    /// by the next hop with the Ethernet address `mac`.
    ///
    /// [`OUTSIDE_HOST`]: crate::layout::OUTSIDE_HOST
    #[must_use]
    pub fn new(address: Address, mac: [u8; 6], own: Address, own_mac: [u8; 6]) -> Self {
        let mut bytes = [0; size_of::<Front>()];
        let mut put = |at: usize, value: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(value) {
                *to = *from;
            }
        };
        put(0, &mac);
        put(ETH_SOURCE, &own_mac);
        put(ETH_TYPE, &ETHERTYPE_IPV4.to_ne_bytes());
        put(ETH_LEN, &[0x45]);
        put(ETH_LEN + 6, &DONT_FRAGMENT.to_ne_bytes());
        put(IP_TTL, &[TTL, UDP]);
        put(IP_SOURCE, &own.to_ne_bytes());
        put(IP_DESTINATION, &address.to_ne_bytes());
        put(UDP_AT + 2, &PORT.to_ne_bytes());
        put(VXLAN_AT, &[HAS_VNI]);
        let mut sum = Sum::default();
        for half in bytes[ETH_LEN..UDP_AT].chunks_exact(2) {
            sum = sum.word(u16::from_ne_bytes([half[0], half[1]]));
        }
        let mut front = Front::default();
        for (to, from) in front.iter_mut().zip(bytes.as_chunks().0) {
            *to = u64::from_ne_bytes(*from);
        }
        Self {
            front,
            sum: sum.value(),
            reserved: 0,
        }
    }
}

/// The outer header of a frame.
pub struct Outer<'a> {
    /// The host that it is for.
    pub host: &'a Host,
    /// Length of the outer IPv4 packet in bytes.
    pub length: u16,
    /// The network.
    pub vni: u32,
    /// The flow of what is inside.
    pub flow: &'a FlowKey,
}

impl Outer<'_> {
    /// Its first words, and the two bytes behind them. Asked when there is room for it, so that
    /// nothing of it waits in memory meanwhile.
    #[inline(always)]
    #[must_use]
    pub fn header(&self) -> (Front, u16) {
        let ip_length = self.length.to_be();
        let sum = Sum::from_value(self.host.sum);
        let checksum = sum.word(ip_length).checksum();
        // Of the range for ephemeral ports (RFC 7348 §5).
        let source = 0xc000 | (self.flow.hash() >> 18) as u16;
        let (high, low) = ((self.vni >> 8) as u16, (self.vni << 8) as u16);
        let mut front = self.host.front;
        for (offset, value) in [
            (IP_LENGTH, ip_length),
            (IP_CHECKSUM, checksum),
            (UDP_AT, source.to_be()),
            // No checksum (RFC 7348 §5): the inner frame has its own.
            (UDP_AT + 4, (self.length - 20).to_be()),
            (VXLAN_AT + 4, high.to_be()),
        ] {
            front[at(offset)] |= half(offset, value);
        }
        (front, low.to_be())
    }
}

/// An IPv4 header without options, behind an Ethernet header.
pub(crate) struct Header {
    pub length: u16,
    pub fragment: u16,
    pub protocol: u8,
    pub source: Address,
    pub destination: Address,
}

impl Header {
    #[inline(always)]
    pub(crate) fn store(&self, packet: &mut (impl Packet + ?Sized)) -> Option<()> {
        let words = [
            u32::from_ne_bytes([0x45, 0, 0, 0]) | u32::from(self.length.to_be()) << 16,
            u32::from(self.fragment) << 16,
            u32::from_ne_bytes([TTL, self.protocol, 0, 0]),
            self.source,
            self.destination,
        ];
        let sum = words
            .iter()
            .fold(Sum::default(), |sum, word| sum.long(*word));
        packet.store_u32(ETH_LEN, words[0])?;
        packet.store_u32(ETH_LEN + 4, words[1])?;
        packet.store_u32(ETH_LEN + 8, words[2])?;
        packet.store_u16(IP_CHECKSUM, sum.checksum())?;
        packet.store_u32(ETH_LEN + 12, self.source)?;
        packet.store_u32(ETH_LEN + 16, self.destination)
    }
}

/// A frame that another host has sent, unwrapped.
pub(crate) struct Unwrapped<'a> {
    pub ip: Ipv4,
    pub sender: Sender,
    pub receiver: &'a Endpoint,
}

/// Who sent it.
pub(crate) struct Sender {
    pub peer: Peer,
    /// Whether the sender stands between the receiver and the packet's source.
    pub forwards: bool,
}

/// Whether a packet is VXLAN for this host.
#[inline(always)]
pub(crate) fn is_ours(packet: &(impl Packet + ?Sized), outer: &Ipv4, uplink: &Uplink) -> bool {
    outer.protocol == UDP
        && uplink.address != 0
        && outer.destination == uplink.address
        && outer.part != Part::Later
        && matches!(packet.load_u16(outer.payload + 2), Some(PORT))
}

/// The network of a wrapped frame, and the EtherType of what is in it.
#[inline(always)]
pub(crate) fn look_inside(
    packet: &(impl Packet + ?Sized),
    outer: &Ipv4,
) -> Result<(u32, u16), Reason> {
    if outer.part != Part::Whole {
        return Err(Reason::Fragment);
    }
    if outer.payload != UDP_AT {
        return Err(Reason::Malformed);
    }
    let flags = packet.load_u8(VXLAN_AT).ok_or(Reason::Malformed)?;
    let vni = packet.load_u32(VXLAN_AT + 4).ok_or(Reason::Malformed)?;
    let vni = u32::from_be(vni) >> 8;
    if flags & HAS_VNI == 0 {
        return Err(Reason::Malformed);
    }
    let ether_type = packet.load_u16(OVERHEAD + ETH_TYPE);
    Ok((vni, ether_type.ok_or(Reason::Malformed)?))
}

/// Unwraps a frame of IPv4, and finds whose and for whom it is.
#[inline(always)]
pub(crate) fn unwrap<'a>(
    packet: &mut (impl Packet + ?Sized),
    maps: &'a impl Maps,
    outer: &Ipv4,
    vni: u32,
) -> Result<Unwrapped<'a>, Reason> {
    packet.pull(OVERHEAD).ok_or(Reason::Malformed)?;
    let to = packet.load_mac(0).ok_or(Reason::Malformed)?;
    let by = packet.load_mac(ETH_SOURCE).ok_or(Reason::Malformed)?;
    let ip = parse::ipv4(packet).ok_or(Reason::Malformed)?;
    let sender = sender(maps, vni, by, &ip, outer.source).ok_or(Reason::OuterSource)?;
    let receiver = receiver(maps, vni, to, ip.destination).ok_or(Reason::NoEndpoint)?;
    Ok(Unwrapped {
        ip,
        sender,
        receiver,
    })
}

/// Who sent it, if `host` is where that is: an endpoint of the network, or of a peer, or
/// one that forwards.
#[inline(always)]
fn sender(maps: &impl Maps, vni: u32, mac: [u8; 6], ip: &Ipv4, host: Address) -> Option<Sender> {
    let address = ip.source;
    let is = |identity, forwards| {
        let peer = Peer {
            address,
            identity,
            scope: 0,
        };
        Some(Sender { peer, forwards })
    };
    if let Some(endpoint) = maps.endpoint(&EndpointKey { vni, address })
        && endpoint.host == host
    {
        return is(endpoint.identity, false);
    }
    let key = PrefixKey {
        scope: vni,
        address,
    };
    let place = maps.place(&key).unwrap_or_default();
    let peer = EndpointKey {
        vni: place.vni,
        address,
    };
    if place.vni != 0
        && place.vni != vni
        && let Some(endpoint) = maps.endpoint(&peer)
        && endpoint.host == host
    {
        let identity = Identity {
            set: endpoint.identity.set,
            atom: place.atom,
        };
        return is(identity, false);
    }
    let forwarder = forwarder(maps, vni, mac)?;
    if forwarder.host != host {
        return None;
    }
    let identity = Identity {
        set: 0,
        atom: place.atom,
    };
    is(identity, true)
}

/// Who gets it: the endpoint here that has the destination, or one that forwards.
#[inline(always)]
fn receiver(maps: &impl Maps, vni: u32, mac: [u8; 6], address: Address) -> Option<&Endpoint> {
    if let Some(endpoint) = maps.endpoint(&EndpointKey { vni, address })
        && endpoint.mac == mac
        && endpoint.host == 0
    {
        return Some(endpoint);
    }
    forwarder(maps, vni, mac).filter(|endpoint| endpoint.host == 0)
}

#[inline(always)]
fn forwarder(maps: &impl Maps, vni: u32, mac: [u8; 6]) -> Option<&Endpoint> {
    let address = maps.forwarder(&ForwarderKey {
        vni,
        mac,
        reserved: [0; 2],
    })?;
    maps.endpoint(&EndpointKey { vni, address })
        .filter(|endpoint| endpoint.flags & FORWARDS != 0)
}

/// Counts a packet that came in on the uplink and went no further.
#[inline(always)]
pub(crate) fn count(maps: &impl Maps, slot: u32, reason: Reason) {
    maps.count(slot, Direction::Egress, reason);
}
