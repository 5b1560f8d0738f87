//! The way to an IPv6 address.

use super::layout::{Port, PrefixKey};
use super::parse::Ipv6;
use super::{endpoint, enters};
use crate::judge::Peer;
use crate::layout::{Address, ROUTE_NETWORK, Reason, Tap};
use crate::maps::Maps;
use crate::route::Way;

/// The way to an address, and the address's number.
pub(super) struct Found<'a> {
    pub way: Way<'a>,
    pub number: Address,
}

/// Finds it.
#[inline(always)]
pub(super) fn find<'a>(
    maps: &'a impl Maps,
    tap: &Tap,
    own: &Port,
    ip: &Ipv6,
) -> Result<Found<'a>, Reason> {
    let inside = own.is_near(&ip.destination);
    if !inside && tap.table != 0 {
        let key = PrefixKey {
            scope: tap.table,
            address: ip.destination,
        };
        let route = maps.route_ipv6(&key).ok_or(Reason::NoRoute)?;
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
    Ok(Found {
        way: Way {
            receiver: Some(&receiver.is),
            vni: tap.vni,
            peer,
            crosses: !inside,
            enters: enters(maps, receiver, &ip.source),
        },
        number: receiver.number,
    })
}
