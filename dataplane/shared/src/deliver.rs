//! To a port of this host: its network ACL, its tracker, its rules.

use crate::acl;
use crate::judge::{self, Asked, Passed, Peer, Side, Verdict};
use crate::layout::{Address, Direction, Endpoint, ROUTER_MAC, Reason, TRACKS_ALL};
use crate::log;
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{ETH_SOURCE, Family, Ip, Part};

/// A packet at the end of its way.
pub(crate) struct Arrival<'a> {
    /// Who gets it.
    pub receiver: &'a Endpoint,
    /// Who sent it, as the receiver's rules see it.
    pub sender: Peer,
    /// Whether it comes from beyond the receiver's subnet.
    pub crosses: bool,
    /// The slot that it came from.
    pub from: u32,
    /// Whose rules may let it begin a flow: the receiver's, or nobody's.
    pub policy: u32,
    /// Whether it may begin one, if rules allow; else it must belong to one.
    pub may_begin: bool,
}

/// Whether an address is beyond a receiver's subnet.
#[inline(always)]
pub(crate) fn crosses(receiver: &Endpoint, source: Address) -> bool {
    source & receiver.mask != receiver.subnet
}

/// Delivers a packet, or counts with the receiver why not.
#[inline(always)]
pub(crate) fn deliver(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    arrival: &Arrival<'_>,
    ip: &Ip,
    asked: &Asked,
    sent: Option<&Passed<'_>>,
    now: u64,
) -> Result<Action, Reason> {
    let receiver = arrival.receiver;
    let crosses = arrival.crosses;
    let ports = &asked.ports;
    let passes_acl = !crosses
        || acl::allows(
            maps,
            receiver.acl,
            Direction::Ingress,
            arrival.sender.address,
            ip,
            ports,
        );
    let side = Side {
        slot: receiver.slot,
        direction: Direction::Ingress,
        policy: arrival.policy,
        peer: arrival.sender,
        timeouts: &receiver.timeouts,
        tracks_all: receiver.flags & TRACKS_ALL != 0 || ip.family == Family::V6,
    };
    let verdict = if passes_acl {
        judge::ask(maps, &side, ip, asked, now)
    } else {
        Verdict::DENIED
    };
    let passes = verdict != Verdict::DENIED;
    log::record(packet, maps, receiver.slot, ip, ports, passes);
    if !passes {
        let reason = match ip.part {
            Part::Later => Reason::Fragment,
            _ if !passes_acl => Reason::AclDenied,
            Part::Whole | Part::First if !arrival.may_begin => Reason::EgressOnly,
            Part::Whole | Part::First => Reason::IngressDenied,
        };
        maps.count(receiver.slot, Direction::Ingress, reason);
        return Ok(Action::Drop);
    }
    let passed = Passed { side, verdict };
    let remembered = sent.is_none_or(|sent| judge::remember(maps, sent, ip, asked, now))
        && judge::remember(maps, &passed, ip, asked, now);
    if !remembered {
        return Err(Reason::FlowBusy);
    }
    if crosses {
        packet
            .store_mac(ETH_SOURCE, ROUTER_MAC)
            .ok_or(Reason::Malformed)?;
    }
    packet.store_mac(0, receiver.mac).ok_or(Reason::Malformed)?;
    Ok(Action::Redirect {
        slot: receiver.slot,
        from: arrival.from,
    })
}
