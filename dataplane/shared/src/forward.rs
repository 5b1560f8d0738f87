//! From a port: route, network ACL, tracker, rules; then on to whoever is next.
//!
//! ```text
//!  route ──▶ ACL ──▶ sender's tracker ──new──▶ sender's egress rules ─┐
//!                         └──────tracked─────────────────────────────┤
//!            ┌─────────────┬──────────────────┬───────────────────────┘
//!            ▼             ▼                  ▼                ▼
//!         deliver        vxlan           outside              nat
//!        port here    another host   from its public    from the NAT
//!                                       address      gateway's address
//! ```

use crate::acl;
use crate::checksum::Delta;
use crate::deliver::{self, Arrival, deliver};
use crate::judge::{self, Asked, Passed, Peer, Side, Verdict};
use crate::layout::{
    Direction, EndpointKey, FORWARDS, Identity, OUTSIDE_HOST_IPV6, Reason, TRACKS_ALL, TRANSLATE,
    TRANSLATES, Tap,
};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{Family, IP_CHECKSUM, IP_TTL, Ip, Ipv4, Part};
use crate::route::Way;
use crate::verifier::blur;
use crate::{ipv6, log, nat, outside, route, too_long, vxlan};

/// Passes a packet on.
#[inline(always)]
pub(crate) fn from_port(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
    ip: &Ipv4,
) -> Result<Action, Reason> {
    let sender = sender(maps, tap, ip.source)?;
    if too_long::is(packet, tap) {
        return too_long::answer(packet, maps, tap, ip);
    }
    let now = maps.now();
    let way = route::find(maps, tap, ip.destination)?;
    by_way(packet, maps, tap, ip, sender, way, now)
}

/// Passes a packet of either IP on by the way that it takes.
#[inline(always)]
pub(crate) fn by_way(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
    ip: &Ip,
    sender: Peer,
    way: Way<'_>,
    now: u64,
) -> Result<Action, Reason> {
    let crosses = blur(u8::from(way.crosses), now) != 0;
    if crosses && ip.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let strict = sender.scope == 0;
    let asked = Asked::read(packet, ip, strict).ok_or(Reason::Malformed)?;
    let translates = way
        .receiver
        .is_some_and(|receiver| receiver.flags & TRANSLATES != 0);
    let side = Side {
        slot: tap.slot,
        direction: Direction::Egress,
        policy: tap.identity.set,
        peer: way.peer,
        timeouts: &tap.timeouts,
        // What goes through a NAT gateway is (EC2 User Guide, "Automatically tracked
        // connections"), and IPv6, of which rules that are open to all of IPv4 say nothing.
        tracks_all: translates || tap.flags & TRACKS_ALL != 0 || ip.family == Family::V6,
    };
    let passes_acl = !crosses
        || acl::allows(
            maps,
            tap.acl,
            Direction::Egress,
            way.peer.address,
            ip,
            &asked.ports,
        );
    let verdict = if passes_acl {
        judge::ask(maps, &side, ip, &asked, now)
    } else {
        Verdict::DENIED
    };
    let sent = verdict != Verdict::DENIED;
    log::record(packet, maps, tap.slot, ip, &asked.ports, sent);
    if !sent {
        return Err(match ip.part {
            Part::Later => Reason::Fragment,
            _ if !passes_acl => Reason::AclDenied,
            Part::Whole | Part::First => Reason::EgressDenied,
        });
    }
    if crosses {
        match ip.family {
            Family::V4 => decrement_ttl(packet),
            Family::V6 => ipv6::decrement_hop_limit(packet, ip),
        }
        .ok_or(Reason::Malformed)?;
    }
    let passed = Passed { side, verdict };
    if let Some(receiver) = way.receiver
        && receiver.host == 0
        && !translates
    {
        let arrival = Arrival {
            receiver,
            sender: as_seen_from(sender, way.vni, tap.vni),
            crosses: match ip.family {
                Family::V4 => deliver::crosses(receiver, ip.source),
                Family::V6 => way.enters,
            },
            from: tap.slot,
            policy: receiver.identity.set,
            may_begin: true,
        };
        return deliver(packet, maps, &arrival, ip, &asked, Some(&passed), now);
    }
    let public = match way.receiver {
        Some(_) => 0,
        None => match ip.family {
            Family::V4 => outside::public_of(maps, tap, ip.source)?,
            // Its own is.
            Family::V6 => 0,
        },
    };
    if !judge::remember(maps, &passed, ip, &asked, now) {
        return Err(Reason::FlowBusy);
    }
    match way.receiver {
        Some(receiver) if receiver.host != 0 => {
            vxlan::send(packet, maps, way.vni, receiver, asked.sent(), tap.slot)
        }
        Some(_) => Ok(Action::Stage {
            stage: TRANSLATE,
            slot: tap.slot,
        }),
        None => match ip.family {
            Family::V4 => outside::out(packet, maps, public, ip, &asked, tap.slot),
            Family::V6 => outside::leave(packet, maps, OUTSIDE_HOST_IPV6, tap.slot),
        },
    }
}

/// Goes on with a packet that [`from_port`] has let pass to a NAT gateway.
#[inline(always)]
pub(crate) fn by_gateway(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
    ip: &Ipv4,
) -> Result<Action, Reason> {
    let way = route::find(maps, tap, ip.destination)?;
    let gateway = way.receiver.ok_or(Reason::NoEndpoint)?;
    if gateway.flags & TRANSLATES == 0 {
        return Err(Reason::NoEndpoint);
    }
    let asked = Asked::read(packet, ip, true).ok_or(Reason::Malformed)?;
    nat::out(packet, maps, gateway, ip, &asked, tap.slot, maps.now())
}

/// Who sends: one of the port's own addresses, or, if the port forwards, any.
#[inline(always)]
fn sender(maps: &impl Maps, tap: &Tap, address: u32) -> Result<Peer, Reason> {
    if let Some(identity) = identity_of(maps, tap, address) {
        return Ok(Peer {
            address,
            identity,
            scope: 0,
        });
    }
    // None comes from 0.0.0.0/8 or from 224.0.0.0/3 (RFC 1122 §3.2.1.3), where numbers of IPv6
    // addresses are.
    let [first, ..] = address.to_ne_bytes();
    if tap.flags & FORWARDS == 0 || first == 0 || first >= 224 {
        return Err(Reason::Spoofed);
    }
    Ok(Peer {
        address,
        identity: Identity::default(),
        scope: tap.vni,
    })
}

/// A sender of one network, as rules of a network see it.
#[inline(always)]
fn as_seen_from(sender: Peer, network: u32, own: u32) -> Peer {
    if network == own {
        return sender;
    }
    Peer {
        identity: Identity {
            set: sender.identity.set,
            atom: 0,
        },
        scope: network,
        ..sender
    }
}

/// What an address of the port is judged by. `None`: the address isn't the port's.
#[inline(always)]
pub(crate) fn identity_of(maps: &impl Maps, tap: &Tap, address: u32) -> Option<Identity> {
    if address == tap.address {
        return Some(tap.identity);
    }
    let key = EndpointKey {
        vni: tap.vni,
        address,
    };
    match maps.endpoint(&key) {
        Some(endpoint) if endpoint.slot == tap.slot => Some(endpoint.identity),
        _ => None,
    }
}

#[inline(always)]
pub(crate) fn decrement_ttl(packet: &mut (impl Packet + ?Sized)) -> Option<()> {
    let old = packet.load_u16(IP_TTL)?;
    let [ttl, protocol] = old.to_ne_bytes();
    let new = u16::from_ne_bytes([ttl.wrapping_sub(1), protocol]);
    packet.store_u16(IP_TTL, new)?;
    Delta::default().word(old, new).store(packet, IP_CHECKSUM)
}
