//! From one port to another of the same network: two trackers, two policies.
//!
//! ```text
//!  sender's tracker ──new──▶ sender's egress rules ─┐
//!         └────────tracked─────────────────────────┤
//!                 ┌────────────────────────────────┘
//!                 ▼
//!  receiver's tracker ──new──▶ receiver's ingress rules ──▶ remembered by both
//! ```

use crate::checksum::Delta;
use crate::flow::FlowKey;
use crate::layout::{
    Direction, Endpoint, EndpointKey, Identity, ROUTER_MAC, Reason, RuleKey, Tap, Timeouts,
};
use crate::log;
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{
    ETH_SOURCE, IP_CHECKSUM, IP_TTL, Ipv4, Part, Role, Transport, quoted, transport,
};
use crate::tracker::{self, From};

/// One side of a packet's way.
struct Side<'a> {
    slot: u32,
    direction: Direction,
    from: From,
    own: Identity,
    peer: Identity,
    timeouts: &'a Timeouts,
    key: FlowKey,
}

/// What a side says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Tracked,
    Allowed,
    Denied,
}

/// Passes a packet on to whoever has its destination.
#[inline(always)]
pub(crate) fn to_endpoint(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
    sender: Identity,
    ip: &Ipv4,
) -> Result<Action, Reason> {
    let key = EndpointKey {
        vni: tap.vni,
        address: ip.destination,
    };
    let receiver = match maps.endpoint(&key) {
        Some(endpoint) if endpoint.slot != tap.slot => endpoint,
        _ => return Err(Reason::NoEndpoint),
    };
    let routed = ip.destination & tap.mask != tap.subnet;
    if routed && ip.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let admitted = match ip.part {
        Part::Later => follows_first(maps, tap, ip),
        Part::Whole | Part::First => admit(packet, maps, tap, sender, receiver, ip)?,
    };
    let by_sender = !matches!(admitted, Admitted::No(_));
    log::record(packet, maps, tap.slot, ip, by_sender);
    if by_sender {
        let by_receiver = matches!(admitted, Admitted::Yes);
        log::record(packet, maps, receiver.slot, ip, by_receiver);
    }
    match admitted {
        Admitted::Yes => {}
        Admitted::No(reason) => return Err(reason),
        Admitted::Refused => {
            maps.count(receiver.slot, Direction::Ingress, Reason::IngressDenied);
            return Ok(Action::Drop);
        }
    }
    if routed {
        decrement_ttl(packet).ok_or(Reason::Malformed)?;
        packet
            .store_mac(ETH_SOURCE, ROUTER_MAC)
            .ok_or(Reason::Malformed)?;
    }
    packet.store_mac(0, receiver.mac).ok_or(Reason::Malformed)?;
    Ok(Action::Redirect {
        slot: receiver.slot,
        from: tap.slot,
    })
}

/// Whether a packet may pass.
enum Admitted {
    Yes,
    /// No, and it is the sender who counts it.
    No(Reason),
    /// No: the receiver refuses it.
    Refused,
}

/// Asks both sides.
#[inline(always)]
fn admit(
    packet: &(impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
    sender: Identity,
    receiver: &Endpoint,
    ip: &Ipv4,
) -> Result<Admitted, Reason> {
    let ports = transport(packet, ip).ok_or(Reason::Malformed)?;
    let (out_key, in_key) = keys(packet, ip, &ports);
    let egress = Side {
        slot: tap.slot,
        direction: Direction::Egress,
        from: From::Own,
        own: sender,
        peer: receiver.identity,
        timeouts: &tap.timeouts,
        key: out_key,
    };
    let ingress = Side {
        slot: receiver.slot,
        direction: Direction::Ingress,
        from: From::Peer,
        own: receiver.identity,
        peer: sender,
        timeouts: &receiver.timeouts,
        key: in_key,
    };
    let now = maps.now();
    let sent = ask(maps, &egress, ip.protocol, &ports, now);
    if sent == Verdict::Denied {
        return Ok(Admitted::No(Reason::EgressDenied));
    }
    let received = ask(maps, &ingress, ip.protocol, &ports, now);
    if received == Verdict::Denied {
        return Ok(Admitted::Refused);
    }
    if tracker::is_remembered(ports.role)
        && !(remember(maps, &egress, sent, ports.role, now)
            && remember(maps, &ingress, received, ports.role, now))
    {
        return Ok(Admitted::No(Reason::FlowBusy));
    }
    if ip.part == Part::First && !remember_fragments(maps, tap, ip, now) {
        return Ok(Admitted::No(Reason::FlowBusy));
    }
    Ok(Admitted::Yes)
}

/// The flow's key as the sender and as the receiver see it. An ICMP error belongs to the
/// flow that it quotes, if it comes from where that flow's packet went.
#[inline(always)]
fn keys(packet: &(impl Packet + ?Sized), ip: &Ipv4, ports: &Transport) -> (FlowKey, FlowKey) {
    if let Role::Error { quote } = ports.role
        && let Some((inner, inner_ports)) = quoted(packet, quote)
        && inner.source == ip.destination
        && inner.destination == ip.source
    {
        let (in_key, out_key) = both_views(&inner, &inner_ports);
        return (out_key, in_key);
    }
    both_views(ip, ports)
}

/// A packet's key as its sender and as its receiver see it.
#[inline(always)]
fn both_views(ip: &Ipv4, ports: &Transport) -> (FlowKey, FlowKey) {
    let sender = FlowKey {
        own: ip.source,
        peer: ip.destination,
        own_port: ports.source,
        peer_port: ports.destination,
        protocol: ip.protocol,
        kind: tracker::kind(ports.role, From::Own),
    };
    let receiver = FlowKey {
        own: ip.destination,
        peer: ip.source,
        own_port: ports.destination,
        peer_port: ports.source,
        protocol: ip.protocol,
        kind: tracker::kind(ports.role, From::Peer),
    };
    (sender, receiver)
}

/// Asks a side's tracker, then its rules.
#[inline(always)]
fn ask(maps: &impl Maps, side: &Side<'_>, protocol: u8, ports: &Transport, now: u64) -> Verdict {
    let Some(bucket) = maps.bucket(side.slot, side.key.bucket()) else {
        return Verdict::Denied;
    };
    let tracked = match ports.role {
        Role::Error { .. } => tracker::is_tracked(bucket, &side.key, now),
        role => tracker::track(bucket, &side.key, role, side.from, now, side.timeouts),
    };
    if tracked {
        return Verdict::Tracked;
    }
    if rules_allow(maps, side, protocol, ports.rule_port) {
        Verdict::Allowed
    } else {
        Verdict::Denied
    }
}

/// Whether a side's rules allow a packet: by the peer's groups, or by its address.
#[inline(always)]
fn rules_allow(maps: &impl Maps, side: &Side<'_>, protocol: u8, port: u16) -> bool {
    if side.own.set == 0 {
        return false;
    }
    let mut key = RuleKey {
        policy: side.own.set,
        peer: side.peer.atom,
        direction: side.direction as u8,
        protocol,
        port,
    };
    if side.peer.atom != 0 && maps.allows(&key) {
        return true;
    }
    key.peer = side.peer.set;
    side.peer.set != 0 && maps.allows(&key)
}

/// Remembers a flow that a side's rules have just allowed.
#[inline(always)]
fn remember(maps: &impl Maps, side: &Side<'_>, verdict: Verdict, role: Role, now: u64) -> bool {
    if verdict != Verdict::Allowed {
        return true;
    }
    match maps.bucket(side.slot, side.key.bucket()) {
        Some(bucket) => tracker::remember(bucket, &side.key, role, side.from, now, side.timeouts),
        None => false,
    }
}

/// Lets the later fragments of an admitted datagram follow. The sender's table remembers
/// for both sides: what the first fragment was allowed, the rest is.
#[inline(always)]
fn remember_fragments(maps: &impl Maps, tap: &Tap, ip: &Ipv4, now: u64) -> bool {
    let key = tracker::fragments_key(ip.source, ip.destination, ip.protocol, ip.id);
    match maps.bucket(tap.slot, key.bucket()) {
        Some(bucket) => tracker::remember_fragments(bucket, &key, now, &tap.timeouts),
        None => false,
    }
}

/// Whether a later fragment's first was admitted.
#[inline(always)]
fn follows_first(maps: &impl Maps, tap: &Tap, ip: &Ipv4) -> Admitted {
    let key = tracker::fragments_key(ip.source, ip.destination, ip.protocol, ip.id);
    match maps.bucket(tap.slot, key.bucket()) {
        Some(bucket) if tracker::is_tracked(bucket, &key, maps.now()) => Admitted::Yes,
        _ => Admitted::No(Reason::Fragment),
    }
}

#[inline(always)]
fn decrement_ttl(packet: &mut (impl Packet + ?Sized)) -> Option<()> {
    let old = packet.load_u16(IP_TTL)?;
    let [ttl, protocol] = old.to_ne_bytes();
    let new = u16::from_ne_bytes([ttl.wrapping_sub(1), protocol]);
    packet.store_u16(IP_TTL, new)?;
    Delta::default().word(old, new).store(packet, IP_CHECKSUM)
}
