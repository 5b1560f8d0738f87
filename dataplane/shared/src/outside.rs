//! To and from the outside: plain IP, each endpoint by the public address that stands for
//! it, one to one; NAT gateways by [`crate::nat`].
//!
//! Nothing but an address in `PUBLICS` is let in or answered for.

use crate::deliver::{self, Arrival, deliver};
use crate::judge::{Asked, Peer};
use crate::layout::{
    Address, EndpointKey, Identity, OUTSIDE_HOST, OUTSIDE_SLOT, PrefixKey, Reason, TRANSLATES, Tap,
};
use crate::maps::{Action, Maps};
use crate::nat::{self, Returned};
use crate::packet::Packet;
use crate::parse::{
    self, ETH_TYPE, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, Ipv4, Part, Role,
    transport,
};
use crate::rewrite::{Quote, readdress, requote};
use crate::{arp, forward, ipv6};

/// The public address that stands for one of a port's own.
#[inline(always)]
pub(crate) fn public_of(maps: &impl Maps, tap: &Tap, address: Address) -> Result<Address, Reason> {
    let key = EndpointKey {
        vni: tap.vni,
        address,
    };
    match maps.endpoint(&key) {
        Some(endpoint) if endpoint.slot == tap.slot && endpoint.public != 0 => Ok(endpoint.public),
        _ => Err(Reason::NoPublicAddress),
    }
}

/// Sends a packet out from its public address.
#[inline(always)]
pub(crate) fn out(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    public: Address,
    ip: &Ipv4,
    asked: &Asked,
    from: u32,
) -> Result<Action, Reason> {
    readdress(packet, ip, public, ip.destination).ok_or(Reason::Malformed)?;
    if let Role::Error { quote } = asked.ports.role {
        // What it quotes came to the public address.
        let change = Quote::destination(ip.source, public);
        requote(packet, ip, quote, &change).ok_or(Reason::NotTranslated)?;
    }
    leave(packet, maps, OUTSIDE_HOST, from)
}

/// Sends a frame to the next hop outside that stands at `hop` in `HOSTS`.
#[inline(always)]
pub(crate) fn leave(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    hop: Address,
    from: u32,
) -> Result<Action, Reason> {
    let host = maps.host(hop).ok_or(Reason::Unreachable)?;
    // Both Ethernet addresses.
    let [first, second, ..] = host.front;
    let rest = u32::from_ne_bytes(*second.to_ne_bytes().first_chunk().unwrap_or(&[0; 4]));
    packet
        .store_u64(0, first)
        .and_then(|()| packet.store_u32(8, rest))
        .ok_or(Reason::Malformed)?;
    Ok(Action::Redirect {
        slot: OUTSIDE_SLOT,
        from,
    })
}

/// Lets in what is for a public address. `Pass`: it is for none.
#[inline(always)]
pub(crate) fn receive(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    slot: u32,
) -> Result<Action, Reason> {
    match packet.load_u16(ETH_TYPE) {
        Some(ETHERTYPE_IPV4) => {}
        Some(ETHERTYPE_ARP) => return arp::answer_outside(packet, maps, slot),
        Some(ETHERTYPE_IPV6) => return Ok(ipv6::outside::stage(maps, slot)),
        _ => return Ok(Action::Pass),
    }
    let Some(ip) = parse::ipv4(packet) else {
        return Ok(Action::Pass);
    };
    let Some(key) = maps.public(ip.destination) else {
        return Ok(Action::Pass);
    };
    let endpoint = maps.endpoint(&key).ok_or(Reason::NoEndpoint)?;
    if endpoint.host != 0 {
        return Err(Reason::NoEndpoint);
    }
    if ip.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let sender = stranger(maps, key.vni, ip.source)?;
    forward::decrement_ttl(packet).ok_or(Reason::Malformed)?;
    if endpoint.flags & TRANSLATES != 0 {
        let returned = Returned {
            key,
            gateway: endpoint,
            sender,
            slot,
        };
        return nat::back(packet, maps, &returned, &ip);
    }
    if ip.protocol == ICMP
        && ip.part != Part::Later
        && let Role::Error { quote } = transport(packet, &ip).ok_or(Reason::Malformed)?.role
    {
        // What it quotes went out from the public address.
        let change = Quote::source(ip.destination, key.address);
        requote(packet, &ip, quote, &change).ok_or(Reason::NotTranslated)?;
    }
    readdress(packet, &ip, ip.source, key.address).ok_or(Reason::Malformed)?;
    let ip = Ipv4 {
        destination: key.address,
        ..ip
    };
    let asked = Asked::read(packet, &ip, false).ok_or(Reason::Malformed)?;
    let arrival = Arrival {
        receiver: endpoint,
        sender,
        crosses: deliver::crosses(endpoint, ip.source),
        from: slot,
        policy: endpoint.identity.set,
        may_begin: true,
    };
    deliver(packet, maps, &arrival, &ip, &asked, None, maps.now())
}

/// Someone outside. An address of the network or of a peer does not come from there, nor
/// one that is no host's (RFC 1122 §3.2.1.3).
#[inline(always)]
fn stranger(maps: &impl Maps, vni: u32, address: Address) -> Result<Peer, Reason> {
    let [first, second, ..] = address.to_ne_bytes();
    if first == 0 || first == 127 || first >= 224 || (first == 169 && second == 254) {
        return Err(Reason::Spoofed);
    }
    let key = PrefixKey {
        scope: vni,
        address,
    };
    let place = maps.place(&key).unwrap_or_default();
    if place.vni != 0 {
        return Err(Reason::Spoofed);
    }
    Ok(Peer {
        address,
        identity: Identity {
            set: 0,
            atom: place.atom,
        },
        scope: 0,
    })
}
