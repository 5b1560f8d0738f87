//! The way to an IPv6 address.

use super::layout::{Address6, Port, PrefixKey};
use super::parse::Ipv6;
use super::{endpoint, enters};
use crate::judge::Peer;
use crate::layout::{Address, ROUTE_EGRESS_ONLY, ROUTE_NETWORK, ROUTE_OUTSIDE, Reason, Route, Tap};
use crate::maps::Maps;
use crate::route::Way;

/// The way to an address, and the address's number.
pub(super) struct Found<'a> {
    pub way: Way<'a>,
    pub number: Address,
}

/// Finds it within the sender's network. `None`: it leads outside.
#[inline(always)]
pub(super) fn find<'a>(
    maps: &'a impl Maps,
    tap: &Tap,
    own: &Port,
    ip: &Ipv6,
) -> Result<Option<Found<'a>>, Reason> {
    let inside = own.is_near(&ip.destination);
    if !inside && tap.table != 0 {
        let route = by_table(maps, tap.table, &ip.destination).ok_or(Reason::NoRoute)?;
        if leads_out(&route) {
            return Ok(None);
        }
        if route.kind != ROUTE_NETWORK || route.vni != tap.vni {
            return Err(Reason::Blackhole);
        }
    }
    let receiver = endpoint(maps, tap.vni, &ip.destination).ok_or(Reason::NoEndpoint)?;
    if receiver.is.slot == tap.slot {
        return Err(Reason::NoEndpoint);
    }
    let peer = Peer {
        address: receiver.number,
        identity: receiver.is.identity,
        scope: 0,
    };
    Ok(Some(Found {
        way: Way {
            receiver: Some(&receiver.is),
            vni: tap.vni,
            peer,
            crosses: !inside,
            enters: enters(maps, receiver, &ip.source),
        },
        number: receiver.number,
    }))
}

/// Whether a route leads out of the host.
#[inline(always)]
pub(super) fn leads_out(route: &Route) -> bool {
    route.kind == ROUTE_OUTSIDE || route.kind == ROUTE_EGRESS_ONLY
}

/// What a route table says of an address. Not inlined: a function of its own has a stack of its
/// own, of which a program has little.
#[inline(never)]
pub(super) fn by_table(maps: &impl Maps, table: u32, address: &Address6) -> Option<Route> {
    maps.route_ipv6(&PrefixKey {
        scope: table,
        address: *address,
    })
}
