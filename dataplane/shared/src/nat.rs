//! A NAT gateway: many private addresses behind one public one.
//!
//! ```text
//!  port 1024 + 8 × group + way        bucket = home(destination) + group
//!
//!  out:  the flow's groups, by its hash ─▶ its way, else a free one ─▶ the port
//!  back: the port ─▶ group and way ─▶ whose flow it is
//! ```
//!
//! One table serves both directions: a way's place *is* the port. Ports are given out per
//! destination, so that as many flows as there are ports go to each; those of different
//! destinations share the table, not the ports. A table is one gateway's, that is one
//! tenant's: nobody else's flows can fill it. A live flow is never evicted.

use crate::acl;
use crate::deliver::{self, Arrival, deliver};
use crate::flow::{FlowKey, State, WAYS};
use crate::judge::{Asked, Peer};
use crate::layout::{Direction, Endpoint, EndpointKey, NAT_BUCKETS, OUTSIDE_HOST, Reason};
use crate::maps::{Action, Maps};
use crate::outside::leave;
use crate::packet::Packet;
use crate::parse::{
    ETH_SOURCE, ICMP, Ipv4, Part, Role, TCP, TcpFlags, Transport, UDP, quoted, transport,
};
use crate::rewrite::{Quote, readdress, repoint, requote};
use crate::tracker::{self, From};
use crate::vxlan;

const FIRST_PORT: u32 = 1024;
const GROUPS: u32 = (65_536 - FIRST_PORT) / WAYS as u32;
/// Groups that a flow may be in.
const PROBES: u32 = 8;
/// Between them; prime to [`GROUPS`].
const STRIDE: u32 = 1009;

const _: () = assert!(GROUPS as usize <= NAT_BUCKETS);

/// The bucket of a destination's group. `key` is a flow's as the sender sees it.
#[inline(always)]
fn bucket_of(key: &FlowKey, group: u32) -> u32 {
    let destination = FlowKey {
        own: 0,
        own_port: 0,
        ..*key
    };
    ((destination.hash() >> 40) as u32).wrapping_add(group) & (NAT_BUCKETS as u32 - 1)
}

/// Sends a packet of a port out by a gateway.
#[inline(always)]
pub(crate) fn out(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    gateway: &Endpoint,
    ip: &Ipv4,
    asked: &Asked,
    from: u32,
    now: u64,
) -> Result<Action, Reason> {
    let ports = &asked.ports;
    let at = match ports.role {
        Role::Tcp(_) => ip.payload,
        Role::Datagram if ip.protocol == UDP => ip.payload,
        Role::Query(_) => ip.payload + 4,
        _ => return Err(Reason::NotTranslated),
    };
    if ip.part != Part::Whole {
        return Err(Reason::Fragment);
    }
    if gateway.public == 0 {
        return Err(Reason::NoPublicAddress);
    }
    let enters = ip.source & gateway.mask != gateway.subnet;
    if enters && !acl::allows(maps, gateway.acl, Direction::Ingress, ip.source, ip, ports)
        || !acl::allows(
            maps,
            gateway.acl,
            Direction::Egress,
            ip.destination,
            ip,
            ports,
        )
    {
        return Err(Reason::AclDenied);
    }
    let (meta, peers) = asked.sent().words();
    let port = allocate(maps, gateway, meta, peers, now, ports.role);
    if port == 0 {
        return Err(Reason::NatExhausted);
    }
    repoint(packet, ip, at, ports.source, port).ok_or(Reason::Malformed)?;
    readdress(packet, ip, gateway.public, ip.destination).ok_or(Reason::Malformed)?;
    leave(packet, maps, OUTSIDE_HOST, from)
}

/// The port of a flow, as it lies in a packet: the one that it has, else a free one; 0:
/// there is none.
#[inline(always)]
fn allocate(
    maps: &impl Maps,
    gateway: &Endpoint,
    meta: u64,
    peers: u64,
    now: u64,
    role: Role,
) -> u16 {
    // The last bits of a key's words are a flow's progress, and nothing yet.
    let meta = match role {
        Role::Tcp(flags) => meta | u64::from(flags.0),
        _ => meta,
    };
    find_or_claim(maps, gateway, meta, peers, now)
}

#[inline(always)]
fn find_or_claim(maps: &impl Maps, gateway: &Endpoint, meta: u64, peers: u64, now: u64) -> u16 {
    let mut key = FlowKey::of(meta, peers);
    // No flags are set where there are none.
    let role = Role::Tcp(TcpFlags(meta as u8));
    if key.protocol == ICMP {
        // Answers know their own identifier alone.
        key.peer_port = 0;
    }
    let first = (key.hash() >> 32) as u32 % GROUPS;
    let home = bucket_of(&key, first);
    // Groups are looked through twice: for the flow, then for a free way.
    for probe in 0..2 * PROBES {
        let step = (probe % PROBES) * STRIDE;
        let group = (first + step) % GROUPS;
        let index = bucket_at(home, first, group);
        let Some(bucket) = maps.nat_bucket(gateway.slot, index) else {
            return 0;
        };
        if probe >= PROBES {
            let opening = tracker::opening(role, From::Own);
            let until = tracker::deadline(key.protocol, State::Opening, now, &gateway.timeouts);
            if let Some(way) = bucket.claim(&key, opening, now, until) {
                return port(group, way);
            }
        } else if let Some((way, found)) = bucket.find_way(&key, now) {
            if matches!(role, Role::Tcp(flags) if flags.opens()) {
                let until = tracker::deadline(TCP, State::Opening, now, &gateway.timeouts);
                found.advance(tracker::opening(role, From::Own), until);
            } else {
                tracker::advance(
                    &found,
                    key.protocol,
                    role,
                    From::Own,
                    now,
                    &gateway.timeouts,
                );
            }
            return port(group, way);
        }
    }
    0
}

/// The bucket of a group, by that of another of the same destination.
#[inline(always)]
fn bucket_at(bucket: u32, of: u32, group: u32) -> u32 {
    bucket.wrapping_sub(of).wrapping_add(group) & (NAT_BUCKETS as u32 - 1)
}

#[inline(always)]
fn port(group: u32, way: usize) -> u16 {
    ((FIRST_PORT + group * WAYS as u32 + way as u32) as u16).to_be()
}

/// What a packet from outside says of the flow that it belongs to.
struct Answer {
    /// The flow as its sender sees it, but for the sender.
    key: FlowKey,
    /// The gateway's port.
    port: u16,
    /// Where the port lies; of an ICMP error behind the quoted IPv4 header.
    at: usize,
    /// Where an ICMP error's quote is; 0: it is none.
    quote: usize,
}

#[inline(always)]
fn answer(packet: &(impl Packet + ?Sized), ip: &Ipv4, ports: &Transport) -> Option<Answer> {
    let key = |peer, peer_port, protocol, kind| FlowKey {
        own: 0,
        peer,
        own_port: 0,
        peer_port,
        protocol,
        kind,
    };
    match ports.role {
        Role::Answer(_) => Some(Answer {
            key: key(ip.source, 0, ICMP, tracker::kind(ports.role, From::Peer)),
            port: ports.destination,
            at: ip.payload + 4,
            quote: 0,
        }),
        Role::Error { quote } => {
            let (inner, inner_ports) = quoted(packet, quote)?;
            if inner.source != ip.destination {
                return None;
            }
            let (peer_port, at) = match inner.protocol {
                ICMP => (0, 4),
                TCP | UDP => (inner_ports.destination, 0),
                _ => return None,
            };
            let kind = tracker::kind(inner_ports.role, From::Own);
            Some(Answer {
                key: key(inner.destination, peer_port, inner.protocol, kind),
                port: inner_ports.source,
                at,
                quote,
            })
        }
        Role::Tcp(_) | Role::Datagram if matches!(ip.protocol, TCP | UDP) => Some(Answer {
            key: key(ip.source, ports.source, ip.protocol, 0),
            port: ports.destination,
            at: ip.payload + 2,
            quote: 0,
        }),
        _ => None,
    }
}

/// A packet from outside at a gateway.
pub(crate) struct Returned<'a> {
    /// The gateway's address.
    pub key: EndpointKey,
    /// The gateway.
    pub gateway: &'a Endpoint,
    /// Who sent it.
    pub sender: Peer,
    /// Where it came in.
    pub slot: u32,
}

/// Sends a packet from outside back to the port whose flow it belongs to.
#[inline(always)]
pub(crate) fn back(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    returned: &Returned<'_>,
    ip: &Ipv4,
) -> Result<Action, Reason> {
    let Returned {
        key: own,
        gateway,
        sender,
        slot,
    } = *returned;
    if ip.part != Part::Whole {
        return Err(Reason::Fragment);
    }
    let ports = transport(packet, ip).ok_or(Reason::Malformed)?;
    if !acl::allows(maps, gateway.acl, Direction::Ingress, ip.source, ip, &ports) {
        return Err(Reason::AclDenied);
    }
    let now = maps.now();
    let answer = answer(packet, ip, &ports).ok_or(Reason::NotTranslated)?;
    let number = u32::from(u16::from_be(answer.port))
        .checked_sub(FIRST_PORT)
        .ok_or(Reason::NotTranslated)?;
    let bucket = maps
        .nat_bucket(gateway.slot, bucket_of(&answer.key, number / WAYS as u32))
        .ok_or(Reason::NotTranslated)?;
    let (flow, found) = bucket
        .entry(number as usize % WAYS, now)
        .ok_or(Reason::NotTranslated)?;
    let theirs = FlowKey {
        own: flow.own,
        own_port: flow.own_port,
        ..answer.key
    };
    if flow != theirs {
        return Err(Reason::NotTranslated);
    }
    if answer.quote == 0 {
        let timeouts = &gateway.timeouts;
        tracker::advance(&found, flow.protocol, ports.role, From::Peer, now, timeouts);
        repoint(packet, ip, answer.at, answer.port, flow.own_port).ok_or(Reason::Malformed)?;
    } else {
        let change = Quote::source(ip.destination, flow.own).with_port(
            answer.at,
            answer.port,
            flow.own_port,
        );
        requote(packet, ip, answer.quote, &change).ok_or(Reason::NotTranslated)?;
    }
    readdress(packet, ip, ip.source, flow.own).ok_or(Reason::Malformed)?;
    let ip = Ipv4 {
        destination: flow.own,
        ..*ip
    };
    let asked = Asked::read(packet, &ip, false).ok_or(Reason::Malformed)?;
    let leaves = flow.own & gateway.mask != gateway.subnet;
    if leaves
        && !acl::allows(
            maps,
            gateway.acl,
            Direction::Egress,
            flow.own,
            &ip,
            &asked.ports,
        )
    {
        return Err(Reason::AclDenied);
    }
    let place = EndpointKey {
        vni: own.vni,
        address: flow.own,
    };
    let receiver = maps.endpoint(&place).ok_or(Reason::NoEndpoint)?;
    if receiver.host != 0 {
        packet
            .store_mac(ETH_SOURCE, gateway.mac)
            .ok_or(Reason::Malformed)?;
        return vxlan::send(packet, maps, own.vni, receiver, asked.sent(), slot);
    }
    let arrival = Arrival {
        receiver,
        sender,
        crosses: deliver::crosses(receiver, ip.source),
        from: slot,
        policy: receiver.identity.set,
        may_begin: true,
    };
    deliver(packet, maps, &arrival, &ip, &asked, None, now)
}
