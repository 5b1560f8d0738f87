//! The way to other hosts and to the outside.
//!
//! ```text
//!  another host's frames ─ uplink (the host's namespace) ─▶ XDP uplink ─▶ taps
//!                                                              └▶ the host's own stack
//!  the host's network ─ NAME ═ veth ═ out0 (taps' namespace) ─▶ XDP outside ─▶ taps
//! ```
//!
//! Where there is no interface for the outside, a pair leads into the host's network: what
//! the host routes to it and is for a public address arrives; nothing else does.
//!
//! Which Ethernet address a host has, the kernel finds out and keeps up to date; we ask it
//! ([`super::Fabric::refresh_hosts`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use ipnet::Ipv4Net;
use ocs_dataplane_shared::layout::{Host, OUTSIDE_HOST, OUTSIDE_SLOT, UPLINK_SLOT, Uplink};

use super::error::FabricError;
use super::{Fabric, netns, rtnl};
use crate::compiler::raw;

/// The pair's end among the taps.
pub(super) const OUT0: &str = "out0";
/// Ethernet address of `out0`.
const OUT0_MAC: [u8; 6] = [0x02, 0x6f, 0x63, 0x73, 0x00, 0x04];

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
        let uplink = Uplink {
            address: raw(config.address),
            mac: link.mac,
            reserved: [0; 2],
        };
        state.maps.set_uplink(UPLINK_SLOT, Some(uplink))?;
        state.maps.set_own_device(UPLINK_SLOT, Some(link.ifindex))?;
        if config.outside {
            state
                .maps
                .set_own_device(OUTSIDE_SLOT, Some(link.ifindex))?;
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
    pub fn set_outside_pair(&self, name: &str, publics: &[Ipv4Net]) -> Result<(), FabricError> {
        let mut state = self.state();
        let state = &mut *state;
        let taps = std::os::fd::AsFd::as_fd(&self.taps_netns);
        let there = netns::within(taps, || rtnl::find(OUT0))?.is_some();
        match rtnl::find(name)? {
            Some(_) if there => {}
            half => {
                if let Some(half) = half {
                    rtnl::remove(half)?;
                } else if there {
                    netns::within(taps, || rtnl::remove(rtnl::index_of(OUT0)?))?;
                }
                rtnl::add_veth(name, OUT0)?;
                rtnl::move_to(rtnl::index_of(OUT0)?, self.taps_netns.as_raw_fd())?;
            }
        }
        super::links::turn_off_tx_checksums(name)?;
        let outer = rtnl::link(name)?;
        state.programs.attach_outer(&self.pins, outer.ifindex)?;
        rtnl::set_up(outer.ifindex)?;
        for prefix in publics {
            rtnl::add_link_route(outer.ifindex, *prefix)?;
        }
        netns::within(taps, || {
            let out0 = rtnl::index_of(OUT0)?;
            rtnl::set_mac(out0, OUT0_MAC)?;
            state.programs.attach_outside(&self.pins, out0)?;
            rtnl::set_up(out0)?;
            state.maps.set_own_device(OUTSIDE_SLOT, Some(out0))
        })?;
        let uplink = Uplink {
            address: 0,
            mac: OUT0_MAC,
            reserved: [0; 2],
        };
        state.maps.set_uplink(OUTSIDE_SLOT, Some(uplink))?;
        let host = Host::new(OUTSIDE_HOST, outer.mac, 0, OUT0_MAC);
        state.maps.set_host(OUTSIDE_HOST, Some(host))
    }

    /// Learns from the kernel how the hosts are reached that the policy in force names, and
    /// the next hop to the outside. In the uplink's namespace; now and then, since
    /// interfaces and addresses change. How many of them are not known.
    pub fn refresh_hosts(&self) -> Result<usize, FabricError> {
        let mut state = self.state();
        let state = &mut *state;
        let Some(uplink) = &state.uplink else {
            return Ok(0);
        };
        let mut wanted: BTreeSet<u32> = state.contents.entries.hosts();
        if uplink.config.outside {
            wanted.insert(OUTSIDE_HOST);
        }
        let held = state.maps.hosts()?;
        let mut unknown = 0;
        for address in held.keys() {
            let pair = *address == OUTSIDE_HOST && !uplink.config.outside;
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
}

/// Who is next on the way to a host: itself, or a gateway.
fn next_hop(
    uplink: &Attached,
    address: u32,
    known: &BTreeMap<Ipv4Addr, [u8; 6]>,
) -> Result<Option<Ipv4Addr>, FabricError> {
    if address == OUTSIDE_HOST {
        return rtnl::default_gateway(uplink.ifindex);
    }
    let host = Ipv4Addr::from(address.to_ne_bytes());
    if known.contains_key(&host) {
        return Ok(Some(host));
    }
    Ok(Some(
        rtnl::gateway_to(uplink.ifindex, host)?.unwrap_or(host),
    ))
}
