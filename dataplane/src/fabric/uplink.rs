//! The way to other hosts and to the outside.
//!
//! ```text
//!  another host's frames ─ uplink (the host's namespace) ─▶ XDP uplink ─▶ taps
//!                                                              └▶ the host's own stack
//!  guests' unfinished frames ─ onward0 (among the taps) ═ ocs-upN ─▶ TCX onward ─▶ uplink
//!
//!  the host's network ─ NAME ═ veth ═ out0 (taps' namespace) ─▶ XDP outside ─▶ taps
//! ```
//!
//! Where there is no interface for the outside, a pair leads into the host's network: what
//! the host routes to it and is for a public address arrives; nothing else does.
//!
//! Which Ethernet address a host has, the kernel finds out and keeps up to date; we ask it
//! ([`super::Fabric::refresh_hosts`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use ocs_dataplane_shared::layout::{
    Host, OUTSIDE_HOST, OUTSIDE_HOST_IPV6, OUTSIDE_SLOT, UPLINK_SLOT, Uplink,
};

use super::error::FabricError;
use super::{Fabric, State, links, netns, rtnl};
use crate::compiler::raw;

/// The pair's end among the taps.
pub(super) const OUT0: &str = "out0";
/// Ethernet address of `out0`.
const OUT0_MAC: [u8; 6] = [0x02, 0x6f, 0x63, 0x73, 0x00, 0x04];

/// The taps' end of the pair by which socket buffers reach the uplink: what redirects them
/// does not see beyond the taps' namespace.
pub(super) const ONWARD0: &str = "onward0";

/// The other end's name.
fn onward(uplink: u32) -> String {
    format!("ocs-up{uplink}")
}

/// How this host reaches others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkConfig {
    /// The interface, in the namespace of the thread that says so.
    pub interface: String,
    /// This host's address on it, from which and to which tunnels go.
    pub address: Ipv4Addr,
    /// Whether it leads to the outside, too.
    pub outside: bool,
}

/// An uplink in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    config: UplinkConfig,
    ifindex: u32,
    mac: [u8; 6],
}

impl Fabric {
    /// Attaches to the uplink, after which endpoints on other hosts are reached. The longest
    /// packet that the interface carries, in bytes.
    pub fn set_uplink(&self, config: UplinkConfig) -> Result<u32, FabricError> {
        let link = rtnl::link(&config.interface)?;
        let mut state = self.state();
        let state = &mut *state;
        state.programs.attach_uplink(&self.pins, link.ifindex)?;
        if link.is_veth {
            // It would hand frames over as they are to a program that sees no checksum missing.
            links::turn_off_tx_checksums(&config.interface)?;
        }
        let uplink = Uplink {
            address: raw(config.address),
            mac: link.mac,
            reserved: [0; 2],
            ifindex: link.ifindex,
        };
        state.maps.set_uplink(UPLINK_SLOT, Some(uplink))?;
        if config.outside {
            // A pair of before leads nowhere now.
            state.maps.set_uplink(OUTSIDE_SLOT, None)?;
            // Whoever looks for an IPv6 address asks many, which an interface hears of those
            // alone that its own addresses are among (RFC 4861 §7.2.2).
            rtnl::set_all_multicast(link.ifindex)?;
        }
        let outer = onward(link.ifindex);
        let onward0 = self.ensure_pair(&outer, ONWARD0)?;
        state.programs.attach_onward(&self.pins, &outer)?;
        rtnl::set_up(rtnl::index_of(&outer)?)?;
        netns::within(self.taps_netns.as_fd(), || rtnl::set_up(onward0))?;
        let slots = [UPLINK_SLOT, OUTSIDE_SLOT];
        for slot in slots.into_iter().take(1 + usize::from(config.outside)) {
            state.maps.set_own_device(slot, Some(link.ifindex))?;
            state.maps.set_interface(slot, onward0)?;
        }
        state.uplink = Some(Attached {
            config,
            ifindex: link.ifindex,
            mac: link.mac,
        });
        Ok(link.mtu)
    }

    /// Makes the pair to the host's network: `name` is the end that the host routes public
    /// addresses to, in the namespace of the thread that says so. Routes for `publics` are
    /// made.
    pub fn set_outside_pair(&self, name: &str, publics: &[IpNet]) -> Result<(), FabricError> {
        let mut state = self.state();
        let state = &mut *state;
        let out0 = self.ensure_pair(name, OUT0)?;
        links::turn_off_tx_checksums(name)?;
        let outer = rtnl::link(name)?;
        state.programs.attach_outer(&self.pins, outer.ifindex)?;
        if publics.iter().any(|prefix| matches!(prefix, IpNet::V6(_))) {
            // The host asks for IPv6 neighbours from an address of this link, which nobody else
            // has and nobody advertises.
            for (name_of, value) in [
                ("accept_ra", "0"),
                ("accept_dad", "0"),
                ("disable_ipv6", "0"),
            ] {
                netns::sysctl(&format!("ipv6/conf/{name}/{name_of}"), value)?;
            }
        }
        rtnl::set_up(outer.ifindex)?;
        for prefix in publics {
            rtnl::add_link_route(outer.ifindex, *prefix)?;
        }
        netns::within(self.taps_netns.as_fd(), || {
            rtnl::set_mac(out0, OUT0_MAC)?;
            state.programs.attach_outside(&self.pins, out0)?;
            rtnl::set_up(out0)?;
            state.maps.set_own_device(OUTSIDE_SLOT, Some(out0))
        })?;
        state.maps.set_interface(OUTSIDE_SLOT, out0)?;
        let uplink = Uplink {
            address: 0,
            mac: OUT0_MAC,
            reserved: [0; 2],
            ifindex: 0,
        };
        state.maps.set_uplink(OUTSIDE_SLOT, Some(uplink))?;
        let host = Host::new(OUTSIDE_HOST, outer.mac, 0, OUT0_MAC);
        state.maps.set_host(OUTSIDE_HOST_IPV6, Some(host))?;
        state.maps.set_host(OUTSIDE_HOST, Some(host))
    }

    /// Makes a pair of which `outer` is in the thread's namespace, and `inner`, whose index
    /// this gives, among the taps; a half that a predecessor left is replaced.
    fn ensure_pair(&self, outer: &str, inner: &str) -> Result<u32, FabricError> {
        let taps = self.taps_netns.as_fd();
        let there = netns::within(taps, || rtnl::find(inner))?.is_some();
        match rtnl::find(outer)? {
            Some(_) if there => {}
            half => {
                if let Some(half) = half {
                    rtnl::remove(half)?;
                } else if there {
                    netns::within(taps, || rtnl::remove(rtnl::index_of(inner)?))?;
                }
                rtnl::add_veth(outer, inner)?;
                rtnl::move_to(rtnl::index_of(inner)?, self.taps_netns.as_raw_fd())?;
                netns::sysctl(&format!("ipv6/conf/{outer}/disable_ipv6"), "1")?;
            }
        }
        netns::within(taps, || rtnl::index_of(inner))
    }

    /// Learns from the kernel how the hosts are reached that the policy in force names, and
    /// the next hop to the outside. In the uplink's namespace; now and then, since
    /// interfaces and addresses change. How many of them are not known.
    pub fn refresh_hosts(&self) -> Result<usize, FabricError> {
        refresh_hosts(&mut self.state())
    }
}

/// [`Fabric::refresh_hosts`].
pub(super) fn refresh_hosts(state: &mut State) -> Result<usize, FabricError> {
    let Some(uplink) = &state.uplink else {
        return Ok(0);
    };
    let mut wanted: BTreeSet<u32> = state.contents.entries.hosts();
    if uplink.config.outside {
        wanted.insert(OUTSIDE_HOST);
        if !state.contents.entries.publics_ipv6.is_empty() {
            wanted.insert(OUTSIDE_HOST_IPV6);
        }
    }
    let held = state.maps.hosts()?;
    let mut unknown = 0;
    for address in held.keys() {
        let is_outside = matches!(*address, OUTSIDE_HOST | OUTSIDE_HOST_IPV6);
        let pair = is_outside && !uplink.config.outside;
        if !wanted.contains(address) && !pair {
            state.maps.set_host(*address, None)?;
        }
    }
    let known = rtnl::neighbours(uplink.ifindex)?;
    for address in wanted {
        let hop = next_hop(uplink, address, &known)?;
        let Some(mac) = hop.and_then(|hop| known.get(&hop)) else {
            unknown += 1;
            if let Some(hop) = hop {
                rtnl::manage_neighbour(uplink.ifindex, hop)?;
            }
            continue;
        };
        let host = Host::new(address, *mac, raw(uplink.config.address), uplink.mac);
        if held.get(&address) != Some(&host) {
            state.maps.set_host(address, Some(host))?;
        }
    }
    Ok(unknown)
}

/// Who is next on the way to a host: itself, or a gateway.
fn next_hop(
    uplink: &Attached,
    address: u32,
    known: &BTreeMap<IpAddr, [u8; 6]>,
) -> Result<Option<IpAddr>, FabricError> {
    match address {
        OUTSIDE_HOST => return rtnl::default_gateway(uplink.ifindex),
        OUTSIDE_HOST_IPV6 => return rtnl::default_gateway_ipv6(uplink.ifindex),
        _ => {}
    }
    let host = IpAddr::from(address.to_ne_bytes());
    if known.contains_key(&host) {
        return Ok(Some(host));
    }
    Ok(Some(
        rtnl::gateway_to(uplink.ifindex, host)?.unwrap_or(host),
    ))
}
