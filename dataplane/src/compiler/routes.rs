//! Entries that say which way a packet goes, and what a network sees of an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{
    MAX_PLACES, MAX_PLACES_IPV6, MAX_ROUTES, MAX_ROUTES_IPV6, Place, PrefixKey, ROUTE_BLACKHOLE,
    ROUTE_EGRESS_ONLY, ROUTE_NETWORK, ROUTE_NEXT_HOP, ROUTE_OUTSIDE, Route, SCOPE_BITS,
};

use super::{CompileError, Entries, Numbers, Prefixes, check_size, raw, rules};
use crate::model::{Network, Policy, Target, Vni};

/// Adds the routes of all tables in use.
pub(super) fn add(entries: &mut Entries, numbers: &Numbers) -> Result<(), CompileError> {
    for ((vni, table), number) in numbers.tables() {
        for (prefix, target) in &table.routes {
            match prefix {
                IpNet::V4(prefix) => {
                    let route = route(*vni, *target);
                    entries.routes.insert(key(number, *prefix), route);
                }
                IpNet::V6(prefix) => {
                    let route = route_ipv6(*vni, *target);
                    entries.routes_ipv6.insert(key_ipv6(number, *prefix), route);
                }
            }
        }
    }
    check_size("ROUTES_IPV6", entries.routes_ipv6.len(), MAX_ROUTES_IPV6)?;
    check_size("ROUTES", entries.routes.len(), MAX_ROUTES)
}

fn route(vni: Vni, target: Target) -> Route {
    let (kind, vni, address) = match target {
        Target::Local => (ROUTE_NETWORK, vni.0, 0),
        Target::Peer(peer) => (ROUTE_NETWORK, peer.0, 0),
        Target::NextHop(IpAddr::V4(hop)) => (ROUTE_NEXT_HOP, vni.0, raw(hop)),
        Target::Outside => (ROUTE_OUTSIDE, 0, 0),
        Target::Blackhole | Target::EgressOnly | Target::NextHop(IpAddr::V6(_)) => {
            (ROUTE_BLACKHOLE, 0, 0)
        }
    };
    Route { kind, vni, address }
}

/// IPv6 goes within its network, or outside.
fn route_ipv6(vni: Vni, target: Target) -> Route {
    match target {
        Target::Local | Target::Outside => route(vni, target),
        Target::EgressOnly => Route {
            kind: ROUTE_EGRESS_ONLY,
            vni: 0,
            address: 0,
        },
        _ => route(vni, Target::Blackhole),
    }
}

pub(super) fn key_ipv6(scope: u32, prefix: Ipv6Net) -> (ipv6::PrefixKey, u32) {
    let key = ipv6::PrefixKey {
        scope,
        address: ipv6::address(prefix.network().octets()),
    };
    (key, SCOPE_BITS + u32::from(prefix.prefix_len()))
}

/// Adds what each network that ports here are in sees of addresses.
pub(super) fn add_places(
    entries: &mut Entries,
    policy: &Policy,
    prefixes: &Prefixes,
    numbers: &Numbers,
) -> Result<(), CompileError> {
    for vni in super::own_networks(policy) {
        let named = prefixes.get(&vni);
        let spaces = spaces(vni, policy.networks.get(&vni));
        let place = |prefix: IpNet| {
            let atom = rules::narrowest(|net| named.is_some_and(|set| set.contains(net)), prefix);
            let space = rules::narrowest(|net| spaces.contains_key(net), prefix);
            Place {
                atom: atom.map_or(0, |atom| numbers.atom(&(vni, atom))),
                vni: space.map_or(0, |space| spaces.get(&space).map_or(0, |vni| vni.0)),
            }
        };
        let of_rules = named.into_iter().flatten().copied();
        for prefix in of_rules.chain(spaces.keys().copied()) {
            if let IpNet::V4(address) = prefix {
                entries.places.insert(key(vni.0, address), place(prefix));
            }
        }
        for prefix in prefixes_ipv6(policy, prefixes, vni) {
            let seen = ipv6::Place {
                is: place(prefix.into()),
                number: ipv6::number(numbers.address(&(vni, prefix))),
            };
            entries.places_ipv6.insert(key_ipv6(vni.0, prefix), seen);
        }
    }
    check_size("PLACES_IPV6", entries.places_ipv6.len(), MAX_PLACES_IPV6)?;
    check_size("PLACES", entries.places.len(), MAX_PLACES)
}

/// Prefixes within which a network that ports here are in sees all IPv6 addresses alike: those
/// that rules and ACLs name, and whole address spaces.
pub(super) fn prefixes_ipv6(policy: &Policy, prefixes: &Prefixes, vni: Vni) -> BTreeSet<Ipv6Net> {
    let of_rules = prefixes.get(&vni).into_iter().flatten().copied();
    let of_spaces = spaces(vni, policy.networks.get(&vni)).into_keys();
    let ports = policy.ports.values().filter(|port| port.vni == vni);
    let acls: BTreeSet<_> = ports.filter_map(|port| port.acl.as_ref()).collect();
    let of_acls = acls
        .into_iter()
        .filter_map(|acl| policy.acls.get(acl))
        .flat_map(|acl| acl.entries.values().map(|entry| entry.cidr.trunc()));
    of_rules
        .chain(of_spaces)
        .chain(of_acls)
        .filter_map(|prefix| match prefix {
            IpNet::V6(prefix) => Some(prefix),
            IpNet::V4(_) => None,
        })
        .collect()
}

/// Whose each part of the address space is that is known to a network.
fn spaces(vni: Vni, network: Option<&Network>) -> BTreeMap<IpNet, Vni> {
    let Some(network) = network else {
        return BTreeMap::new();
    };
    let peers = network.peers.iter().map(|(space, peer)| (*space, *peer));
    let own = network.cidrs.iter().map(|space| (*space, vni));
    peers
        .chain(own)
        .map(|(space, vni)| (space.trunc(), vni))
        .collect()
}

fn key(scope: u32, prefix: Ipv4Net) -> (PrefixKey, u32) {
    let key = PrefixKey {
        scope,
        address: raw(prefix.network()),
    };
    (key, SCOPE_BITS + u32::from(prefix.prefix_len()))
}
