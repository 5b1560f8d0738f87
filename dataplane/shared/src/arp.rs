//! ARP, answered in place (RFC 826): a network has no broadcast, so nobody else hears.
//!
//! As in a VPC of EC2, the gateway and every endpoint of the subnet answer; an address
//! that nobody has stays silent.

use crate::forward::identity_of;
use crate::layout::{Direction, EndpointKey, METADATA_ADDRESS, ROUTER_MAC, Reason, Tap};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::parse::{ETH_LEN, ETH_SOURCE};
use crate::service;

const HARDWARE_AND_PROTOCOL: usize = ETH_LEN;
const LENGTHS: usize = ETH_LEN + 4;
const OPERATION: usize = ETH_LEN + 6;
const SENDER_MAC: usize = ETH_LEN + 8;
const SENDER_ADDRESS: usize = ETH_LEN + 14;
const TARGET_MAC: usize = ETH_LEN + 18;
const TARGET_ADDRESS: usize = ETH_LEN + 24;

const ETHERNET_AND_IPV4: u32 = 0x0001_0800u32.to_be();
const SIX_AND_FOUR: u16 = 0x0604u16.to_be();
const REQUEST: u16 = 1u16.to_be();
const REPLY: u16 = 2u16.to_be();

struct Request {
    kinds: u32,
    lengths: u16,
    operation: u16,
    sender_mac: [u8; 6],
    sender: u32,
    target: u32,
}

#[inline(always)]
fn read(packet: &(impl Packet + ?Sized)) -> Option<Request> {
    Some(Request {
        kinds: packet.load_u32(HARDWARE_AND_PROTOCOL)?,
        lengths: packet.load_u16(LENGTHS)?,
        operation: packet.load_u16(OPERATION)?,
        sender_mac: packet.load_mac(SENDER_MAC)?,
        sender: packet.load_u32(SENDER_ADDRESS)?,
        target: packet.load_u32(TARGET_ADDRESS)?,
    })
}

/// Turns a request of the port into its reply.
#[inline(always)]
pub(crate) fn answer(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    tap: &Tap,
) -> Result<Action, Reason> {
    let request = read(packet).ok_or(Reason::Malformed)?;
    if request.kinds != ETHERNET_AND_IPV4 || request.lengths != SIX_AND_FOUR {
        return Err(Reason::Malformed);
    }
    let Request { sender, target, .. } = request;
    if request.sender_mac != tap.mac || (sender != 0 && identity_of(maps, tap, sender).is_none()) {
        return Err(Reason::Spoofed);
    }
    if request.operation != REQUEST {
        return Err(Reason::ArpUnanswered);
    }
    let mac = owner_of(maps, tap, target).ok_or(Reason::ArpUnanswered)?;
    write_reply(packet, tap.mac, mac, sender, target).ok_or(Reason::Malformed)?;
    maps.count(tap.slot, Direction::Egress, Reason::Answered);
    Ok(Action::Bounce)
}

/// Answers for public addresses of this host. `Pass`: it is for none.
#[inline(always)]
pub(crate) fn answer_outside(
    packet: &mut (impl Packet + ?Sized),
    maps: &impl Maps,
    slot: u32,
) -> Result<Action, Reason> {
    let Some(request) = read(packet) else {
        return Ok(Action::Pass);
    };
    if request.kinds != ETHERNET_AND_IPV4
        || request.lengths != SIX_AND_FOUR
        || request.operation != REQUEST
    {
        return Ok(Action::Pass);
    }
    let Some(uplink) = maps.uplink(slot) else {
        return Ok(Action::Pass);
    };
    let ours = maps
        .public(request.target)
        .and_then(|key| maps.endpoint(&key))
        .is_some_and(|endpoint| endpoint.host == 0);
    if !ours {
        return Ok(Action::Pass);
    }
    let Request {
        sender_mac,
        sender,
        target,
        ..
    } = request;
    write_reply(packet, sender_mac, uplink.mac, sender, target).ok_or(Reason::Malformed)?;
    maps.count(slot, Direction::Egress, Reason::Answered);
    Ok(Action::Bounce)
}

/// The Ethernet address that stands for `target` on the port's subnet.
#[inline(always)]
fn owner_of(maps: &impl Maps, tap: &Tap, target: u32) -> Option<[u8; 6]> {
    if target == tap.gateway || target == METADATA_ADDRESS || service::is_resolver(tap, target) {
        return Some(ROUTER_MAC);
    }
    if target & tap.mask != tap.subnet {
        return None;
    }
    let key = EndpointKey {
        vni: tap.vni,
        address: target,
    };
    match maps.endpoint(&key) {
        Some(endpoint) if endpoint.slot != tap.slot => Some(endpoint.mac),
        _ => None,
    }
}

#[inline(always)]
fn write_reply(
    packet: &mut (impl Packet + ?Sized),
    asker: [u8; 6],
    owner: [u8; 6],
    sender: u32,
    target: u32,
) -> Option<()> {
    packet.store_mac(0, asker)?;
    packet.store_mac(ETH_SOURCE, owner)?;
    packet.store_u16(OPERATION, REPLY)?;
    packet.store_mac(SENDER_MAC, owner)?;
    packet.store_u32(SENDER_ADDRESS, target)?;
    packet.store_mac(TARGET_MAC, asker)?;
    packet.store_u32(TARGET_ADDRESS, sender)
}
